"""stages.yaml -> bound functions, strict: every setting is checked before anything runs, and every error names its line.

YAML 1.2 as ruamel.yaml reads it: ``no`` is text, duplicate keys are errors. Tags and aliases are refused: a settings file is data.
"""

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline import prompts, teachers
from pipeline.binding import Call, InputPath, Problem, bind, check, located, suggestion
from pipeline.cluster import Cluster
from pipeline.files import InputError, plain, regular
from pipeline.processes import Engine
from pipeline.records import Target
from pipeline.revocations import Revoked, by_stage
from pipeline.revocations import read as read_revocations
from pipeline.sources import HUB, EvalSet, files
from pipeline.stages import STAGES
from pipeline.text import fold

Places = dict[tuple[str | int, ...], int]
MOST_BYTES = 1 << 20  # of a settings file
DEEPEST = 100  # lists and settings inside each other


def _distinct(values: list[str]) -> list[str]:
    doubled = sorted({value for value in values if values.count(value) > 1})
    if doubled:
        raise ValueError(f"stands there twice: {', '.join(doubled)}")
    return values


def _labels(values: list[str]) -> list[str]:
    """Labels that answers can be told apart by. Raises ValueError."""
    spelled: dict[str, str] = {}
    for label in _distinct(values):
        if not label.strip():
            raise ValueError("an empty label can never be read; remove it")
        if (other := spelled.setdefault(fold(label), label)) != label:
            raise ValueError(f"'{other}' and '{label}' are read as the same label; keep one of them")
    return values


class Task(BaseModel):
    """What is distilled: the inputs, the teacher's prompt, and what the student is to answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, description="for titles")
    inputs: str = Field(description="a .jsonl, .csv or .parquet file, a folder of them, or hub:<data set>")
    prompt: InputPath | None = Field(
        None, description="the teacher's prompt template; not needed for recorded completions"
    )
    input: str = Field(min_length=1, description="template of what the student sees after its prefix")
    labels: Annotated[list[str], Field(min_length=1), AfterValidator(_labels)] | None = Field(
        None, description="the closed set of labels; left out for free answers"
    )
    gold: str | None = Field(
        None, description="column with the true label; a teacher is shown it by stages.sample.rationalise alone"
    )
    choices: str | None = Field(None, description="column with the row's own closed answers")
    id: str | None = Field(None, description="column with a unique id")
    license: str | None = Field(None, min_length=1, description="of the inputs: SPDX identifier, or a text")
    slices: Annotated[list[str], AfterValidator(_distinct)] = Field(
        default=[],
        description="columns that tell groups of rows apart: figures are given for each, and groups can be capped",
    )
    targets: Annotated[list[Target], Field(min_length=1), AfterValidator(_distinct)] = Field(
        default=["label", "rationale"], description="the student's tasks: label and rationale, or response alone"
    )


class TopLevel(BaseModel):
    """What stands at the top of stages.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str = Field(min_length=1, description="the folder of all results")
    engine: Engine = Field(default="local", description="where rows are worked on, the teacher's requests apart")
    processes: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="that work on rows, at most; left out, one for each core"
    )
    ray: Cluster | None = Field(default=None, description="which cluster `engine: ray` joins; left out, this machine")
    task: Task = Field(description="what is distilled")
    eval_sets: dict[str, EvalSet] = Field(
        default={}, description="rows that no training row may overlap and that models are measured on, by name"
    )
    stages: dict[str, Any] = Field(default={}, description="the settings of each stage, by its name")


@dataclass(frozen=True)
class Config:
    """Checked settings. ``stages`` holds the stages that are switched on, in order, each with its keyword arguments.

    ``given`` holds what stands in the file about them, and what stood in its place on the command line.
    """

    file: Path
    run: Path
    engine: Engine
    processes: int | None
    ray: Cluster | None
    task: Task
    eval_sets: dict[str, EvalSet]
    stages: dict[str, dict[str, Any]]
    given: dict[str, Any] = field(repr=False, default_factory=dict)
    places: Places = field(repr=False, default_factory=dict)

    def parents(self, stage: str) -> tuple[str, ...]:
        """The stages that ``stage`` reads, where one that is switched off is stood in for by what it would have read."""
        found: list[str] = []
        for name in STAGES[stage].reads:
            found += [name] if name in self.stages else self.parents(name)
        return tuple(dict.fromkeys(found))


def load(path: Path | str, overrides: Iterable[str] = (), *, accept_terms: str | None = None) -> Config:
    """Read and check ``stages.yaml``. ``overrides`` are ``stage.knob=value`` as ``--set`` takes them, values in YAML.

    ``accept_terms`` is the reason of ``--accept-terms``, which stands in for ``stages.train.accept_terms``.
    Raises InputError: one line with file, line, setting, problem and what to do.
    """
    path = Path(path)
    try:
        with regular(path).open("rb") as file:
            raw_text = file.read(MOST_BYTES + 1)
        if len(raw_text) > MOST_BYTES:
            raise InputError(
                f"{path}: larger than {MOST_BYTES >> 20} MiB; settings are a short text, name the right file"
            )
        text = raw_text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); `stepdistill init DIR` makes a new project"
        ) from None
    raw, places = read_yaml(text, str(path))
    folder = path.parent
    source = str(path)
    try:
        top = check(TopLevel, raw, folder=folder, where=())
        if top.ray is not None and top.engine != "ray":
            raise Problem(("ray",), "needs `engine: ray`; set it, or leave this out")
        stages = dict(top.stages)
        for override in overrides:
            _override(stages, places, override)
        if accept_terms is not None:
            if not isinstance(train := stages.get("train") or {}, dict) or stages.get("train") is False:
                raise InputError(f"{path}: --accept-terms: stages.train is switched off, so nothing is trained")
            stages["train"] = {**train, "accept_terms": accept_terms}
        task = top.task
        if not task.inputs.startswith(HUB):
            task = task.model_copy(update={"inputs": str(folder / task.inputs)})
        eval_sets = {name: _eval_set(name, given, task) for name, given in top.eval_sets.items()}
        bound = _bind_stages(stages, task, eval_sets, folder, by_stage(read_revocations(folder / top.run)))
    except Problem as problem:
        raise located(problem, "", source, places) from None
    given = {name: value for name, value in stages.items() if isinstance(value, dict)}
    return Config(path, folder / top.run, top.engine, top.processes, top.ray, task, eval_sets, bound, given, places)


def verify(config: Config, *, thorough: bool = False) -> None:
    """Check what ``load`` leaves alone because looking at results does not need it: input files, and settings against each other.

    ``thorough`` also looks at what takes a while. Raises InputError with the setting's line.
    """
    try:
        named: dict[tuple[str, ...], Path | str | None] = {
            ("task", "inputs"): config.task.inputs,
            ("task", "prompt"): config.task.prompt,
        }
        named |= {("eval_sets", name, "path"): eval_set.path for name, eval_set in config.eval_sets.items()}
        for setting, path in named.items():
            if path is None or str(path).startswith(HUB):
                continue
            try:
                if setting[-1] != "prompt":
                    files(Path(path))
                elif not Path(path).is_file():
                    raise InputError(f"{path}: no such file; check the path")
            except InputError as error:
                raise Problem(setting, str(error)) from None
        for name, settings in config.stages.items():
            for place, file in _paths(settings, ("stages", name)):
                # a teacher that is written down alone is a list of one all the same
                where: tuple[str | int, ...] = tuple(
                    step for end, step in enumerate(place, 1) if isinstance(step, str) or place[:end] in config.places
                )
                if file.exists() and not file.is_file() and not file.is_dir():
                    raise Problem(where, f"{file}: not a regular file; name a file, not a pipe or a device")
                if where[-1] == "completions" and not file.is_file():
                    problem = "a directory; name the file in it" if file.is_dir() else "no such file; check the path"
                    raise Problem(where, f"{file}: {problem}")
            with _placed():
                STAGES[name].check(settings)
                if thorough:
                    STAGES[name].before(settings)
        _hide_true_labels(config)
    except Problem as problem:
        raise located(problem, "", str(config.file), config.places) from None


def _paths(value: Any, where: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Path]]:
    """The input files that stand in a setting, each with its place."""
    if isinstance(value, Path):
        yield where, value
    elif isinstance(value, BaseModel):
        for name, info in type(value).model_fields.items():
            yield from _paths(getattr(value, name), (*where, info.alias or name))
    elif isinstance(value, Call):
        yield from _paths(value.settings, (*where, value.name))
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _paths(item, (*where, name))
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from _paths(item, (*where, position))


def permit(config: Config, running: Iterable[str]) -> None:
    """Raises InputError, with the setting's line, where one of the stages that are to run must not run like this."""
    try:
        for name in running:
            with _placed():
                STAGES[name].permitted(config.stages[name])
    except Problem as problem:
        raise located(problem, "", str(config.file), config.places) from None


@contextmanager
def _placed() -> Iterator[None]:
    """Turns a message that begins with a setting into the Problem of this setting."""
    try:
        yield
    except InputError as error:
        setting, colon, problem = str(error).partition(": ")
        if not colon or not setting.startswith(("stages.", "task.")):
            raise
        steps = re.findall(r"[^.\[\]]+", setting)
        raise Problem(tuple(int(step) if step.isdecimal() else step for step in steps), problem) from None


def _hide_true_labels(config: Config) -> None:
    """Raises Problem where the teacher, asked about an eval set, would be shown its true labels."""
    asked = config.stages["sample"]
    shown = asked["prompt"] is not None and any(one.backend != "replay" for one in asked["teacher"])
    if not shown or asked["rationalise"] or "evaluate" not in config.stages:
        return
    used = prompts.variables_of(prompts.load(asked["prompt"])) - set(prompts.SET_BY)
    for name, eval_set in config.eval_sets.items():
        if eval_set.gold in used:
            problem = (
                f"the prompt shows the column '{plain(eval_set.gold or '')}', so the teacher would be told the answers"
            )
            raise Problem(("eval_sets", name, "gold"), f"{problem}; leave it out of the prompt")


def _eval_set(name: str, given: EvalSet, task: Task) -> EvalSet:
    if not name.replace("-", "").replace("_", "").isalnum():
        raise Problem(("eval_sets", name), "a name is made of letters, digits, '-' and '_'")
    filled = {field: getattr(given, field) or getattr(task, field) for field in ("input", "gold", "choices", "id")}
    return given.model_copy(update=filled)


def _bind_stages(
    given: Mapping[str, Any],
    task: Task,
    eval_sets: Mapping[str, EvalSet],
    folder: Path,
    revoked: Mapping[str, Revoked],
) -> dict[str, dict[str, Any]]:
    for name in given:
        if name not in STAGES:
            raise Problem(("stages", name), f"unknown stage{suggestion(str(name), STAGES)}")
    bound: dict[str, dict[str, Any]] = {}
    values: dict[str, Any] = {"eval_sets": dict(eval_sets)}
    values |= {f"task.{name}": getattr(task, name) for name in Task.model_fields}
    values |= {f"revoked.{name}": revoked.get(name) for name in STAGES}

    def lookup(path: str) -> Any:
        """A value of the configuration; a stage that another one asks for before its turn is bound then."""
        if path not in values:
            bind_stage(path.split(".")[1])
        return values.get(path)  # None of a stage that is switched off

    def bind_stage(name: str) -> None:
        stage = STAGES[name]
        settings = given.get(name, None if stage.on else False)
        values[f"stages.{name}.on"] = settings is not False
        if settings is False:
            if not stage.optional:
                raise Problem(("stages", name), "this stage cannot be switched off")
            values[f"stages.{name}"] = None
            return
        bound[name] = bind(stage.settings, settings, lookup=lookup, folder=folder, where=("stages", name))
        if name not in revoked:
            bound[name].pop("revoked", None)  # where nothing is revoked, keys are as if nothing ever could be
        values[f"stages.{name}"] = bound[name]
        values.update({f"stages.{name}.{knob}": value for knob, value in bound[name].items()})
        if name == "sample":
            values["stages.sample.teacher.names"] = [teachers.name(one) for one in bound[name]["teacher"]]
            values["stages.sample.teacher.terms"] = {
                teachers.name(one): teachers.terms(one) for one in bound[name]["teacher"]
            }

    for name in STAGES:
        if f"stages.{name}.on" not in values:
            bind_stage(name)
    return {name: bound[name] for name in STAGES if name in bound}


def _override(stages: dict[str, Any], places: Places, override: str) -> None:
    name, equals, value = override.partition("=")
    path = name.strip().removeprefix("stages.").split(".")
    if not equals or not all(path):
        raise InputError(
            f"--set {plain(override)}: write it as stage.knob=value, for example quality.filters='[label_in_set]'"
        )
    parsed, _ = read_yaml(value, f"--set {plain(name)}", mapping=False)
    if path[0] not in STAGES:
        raise InputError(f"--set {plain(override)}: {plain(path[0])}: unknown stage{suggestion(path[0], STAGES)}")
    for line in [line for line in places if line[: len(path) + 1] == ("stages", *path)]:
        del places[line]
    target: Any = {"": stages}
    for step, after in zip(["", *path[:-1]], path, strict=True):
        if not isinstance(target[step], dict):
            target[step] = {}
        target = target[step]
        target.setdefault(after, None)
    target[path[-1]] = parsed


def read_yaml(text: str, source: str, *, mapping: bool = True) -> tuple[Any, Places]:
    """Plain values of a YAML document, and the line of each. Raises InputError with the line.

    ``mapping`` asks for a document that is ``name: value`` pairs.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

    depth = 0
    try:
        for event in YAML(typ="rt", pure=True).parse(io.StringIO(text)):
            line = event.start_mark.line + 1
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > DEEPEST:
                raise InputError(f"{source}:{line}: nested too deeply; at most {DEEPEST} levels are read")
            if isinstance(event, ScalarEvent) and event.value == "<<" and event.style is None:
                raise InputError(f"{source}:{line}: YAML merge keys are not allowed; write the values out")
            if isinstance(event, AliasEvent) or getattr(event, "anchor", None):
                raise InputError(f"{source}:{line}: YAML anchors and aliases are not allowed; write the value out")
            if getattr(event, "tag", None):
                raise InputError(f"{source}:{line}: YAML tags are not allowed; write a plain value")
        document = YAML(typ="rt", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        start = f"{source}:{mark.line + 1}" if mark else source
        raise InputError(f"{start}: {plain(str(error.problem or error.context))}; not valid YAML") from None
    except RecursionError:
        raise InputError(f"{source}: nested too deeply") from None
    except (YAMLError, ValueError) as error:
        raise InputError(f"{source}: {plain(str(error))}; not valid YAML") from None
    places: Places = {}
    value = _plain_value(document, (), places, source, 1)
    if mapping and not isinstance(value, dict):
        raise InputError(f"{source}:1: expected settings ('name: value')")
    return value, places


def _plain_value(value: Any, where: tuple[str | int, ...], places: Places, source: str, line: int) -> Any:
    places[where] = line
    if isinstance(value, dict):
        found = {}
        for name, item in value.items():
            here = value.lc.key(name)[0] + 1  # type: ignore[attr-defined]
            if not isinstance(name, str):
                raise InputError(f"{source}:{here}: {plain(str(name))}: names must be text; put it in quotes")
            if "\0" in name:
                raise InputError(f"{source}:{here}: {plain(name)}: holds a NUL character; remove it")
            found[str(name)] = _plain_value(item, (*where, str(name)), places, source, here)
        return found
    if isinstance(value, list):
        return [
            _plain_value(item, (*where, index), places, source, value.lc.item(index)[0] + 1)  # type: ignore[attr-defined]
            for index, item in enumerate(value)
        ]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and "\0" in value:
        raise InputError(f"{source}:{line}: {plain(value, 60)}: holds a NUL character; remove it")
    if isinstance(value, int) and value.bit_length() > 1024:
        raise InputError(f"{source}:{line}: a number of more than 300 digits; write a smaller one")
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    raise InputError(f"{source}:{line}: {plain(str(value))}: dates and times must be put in quotes")
