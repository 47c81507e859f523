"""predict: a trained student labels a file, one row out for each row in, in the order of the file.

    {"text": "Late goal sinks the leaders"}
    -> {"id": "5f0c..", "input": "Late goal sinks the leaders", "label": "sports", "text": "sports", "finished": true,
        "problem": null, "detail": null}

A row that cannot be answered is a row of the output all the same: its ``label`` is null, ``problem`` names why and ``detail`` says it in
words: ``bad_row`` (it cannot be read, or lacks a column), ``too_long`` (prompt and answer exceed the model's context), ``not_finished``
(the answer was cut off; ``text`` has it), ``not_in_set`` (the answer is none of the labels; ``text`` has it), ``no_label`` (it says nothing
that could be a label), ``engine_died`` and ``refused`` (by vLLM, of this row). With ``rationale`` the student is asked a second time, for
its rationale, by that task's own prompt; ``rationale`` and ``rationale_finished`` come along then.

The prompt is made of the same tokens as in training, answers are greedy, and labels are read as evaluate reads them. Rows are read, asked
and written in blocks, so that a file of any length takes the memory of one block. While it is written, the output is ``<name>.part``, with
what it was begun with (rows, model, settings) in ``<name>.part.json``; started again, it goes on behind the last whole row.

Limits: the answer to a row can differ in rare near-ties between batches, machines and backends; transformers computes in float32, as
evaluate does, vLLM in the type that the weights are stored in. A Hub data set without a revision is taken for the same one when the work
goes on. Rows that are equal have equal ids, unless a column holds ids.
"""

import fcntl
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Annotated, Any, Final, get_args

import msgspec
from msgspec import Meta
from pydantic import Field, JsonValue

from pipeline import answering
from pipeline.answering import Backend, Failed, Student, opened
from pipeline.ask_students import asked_task
from pipeline.binding import suggestion
from pipeline.config import Config
from pipeline.files import InputError, RowError, RunError, digest, plain, sha256, strict_json, sync_folder, write_json
from pipeline.formats import Format
from pipeline.generate import Answer
from pipeline.ingest import ingest
from pipeline.labels import LabelType, closed_set, read_label
from pipeline.progress import Advance, bar, say_line
from pipeline.prompts import check_text
from pipeline.records import Drop, Prompt, Record, Row, Target
from pipeline.shard import said_label, student_prompt
from pipeline.sources import HUB, files, read
from pipeline.sources import Row as Sourced

VERSION: Final = 1  # raise it when the same rows, model and settings give other lines than before
COLUMNS: Final = ("input", "text")  # what a row's input is looked for in, where nothing says it
BLOCK: Final[Mapping[Backend, int]] = {"transformers": 512, "vllm": 4096}  # rows that are read before one is written
MOST_TOKENS: Final[Mapping[Target, int]] = {"label": 32, "rationale": 96, "response": 256, "chain_of_thought": 256}


class Predicted(Row, frozen=True):
    """What became of one input row."""

    id: Annotated[str, Meta(description="of the column asked for, else the digest of the row; row-N for a bad one")]
    input: Annotated[str | None, Meta(description="what the student saw after its prefix; None for a bad row")]
    label: str | None
    text: Annotated[str | None, Meta(description="the answer as it was written; None where there is none")]
    finished: Annotated[bool, Meta(description="whether the student ended the answer itself")]
    problem: Annotated[str | None, Meta(description="why there is no label: a fixed name")]
    detail: Annotated[str | None, Meta(description="the problem in words, where its name does not say all")]


class Explained(Predicted, frozen=True):
    """With the student's rationale."""

    rationale: Annotated[str | None, Meta(description="None where the student could not be asked")]
    rationale_finished: bool


class Summary(Record):
    """What a whole file came to. ``rows == answered +`` the sum of ``problems``."""

    model: str
    data: str
    out: str | None
    backend: Backend
    device: str
    task: Target
    input: str = Field(description="the template that the inputs were made by")
    rows: int
    answered: int = Field(description="rows without a problem")
    problems: dict[str, int]
    without_rationale: int | None = Field(
        description="rows whose rationale is missing or was cut off; None if not asked"
    )
    resumed: int = Field(description="rows that an earlier call had written")
    seconds: float = Field(description="of asking, without the start of the model")
    rows_per_second: float | None

    def told(self) -> str:
        """The closing line."""
        parts = [f"{self.rows:,} rows, {self.answered:,} answered"]
        parts += [f"{name} {number:,}" for name, number in self.problems.items()]
        parts += [f"without a whole rationale {self.without_rationale:,}"] if self.without_rationale else []
        speed = f" ({self.rows_per_second:,.1f} rows a second)" if self.rows_per_second is not None else ""
        return f"{self.out or 'predict'}: {', '.join(parts)}{speed}"


@dataclass(frozen=True)
class Asking:
    """How rows are asked: all that an answer depends on beside the row and the model."""

    backend: Backend
    task: Target
    rationale: bool
    input: str
    labels: list[str] | None
    label_type: LabelType
    choices: str | None
    id: str | None
    max_new_tokens: int
    max_rationale_tokens: int

    @property
    def tasks(self) -> list[tuple[Target, int]]:
        """What each row is asked, with the most tokens of an answer."""
        asked: list[tuple[Target, int]] = [(self.task, self.max_new_tokens)]
        return [*asked, ("rationale", self.max_rationale_tokens)] if self.rationale else asked

    @property
    def reads_labels(self) -> bool:
        """Whether an answer stands for a label; a free response does not, unless something says how it is to be read."""
        told = self.labels is not None or self.choices is not None or self.label_type != "text"
        return self.task in ("label", "chain_of_thought") or (self.task == "response" and told)


@dataclass
class _Tally:
    """What the rows came to so far."""

    rows: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    without_rationale: int = 0

    def add(self, row: Predicted) -> None:
        self.rows += 1
        if row.problem is not None:
            self.problems[row.problem] += 1
        if isinstance(row, Explained) and not row.rationale_finished:
            self.without_rationale += 1


def predict(
    model: str,
    data: str,
    *,
    out: Path | None = None,
    stream: IO[bytes] | None = None,
    config: Config | None = None,
    task: str | None = None,
    rationale: bool = False,
    input: str | None = None,
    labels: Sequence[str] | None = None,
    label_type: str | None = None,
    id: str | None = None,
    backend: str | None = None,
    max_new_tokens: int | None = None,
    max_rationale_tokens: int = MOST_TOKENS["rationale"],
    batch_size: int | None = None,
) -> Summary:
    """Label every row of ``data`` into ``out``, or where that is None, into ``stream`` (stdout).

    ``model`` is a checkpoint folder, a Hub name or ``embedded``; ``data`` a file, a folder or ``hub:<data set>``. ``config`` gives the
    template of the input, the labels, their kind and the task where those are left out. ``batch_size`` None is the backend's own.
    Raises InputError where model, rows, settings or what lies at ``out`` cannot be used, RunError where the work could not be finished.
    """
    source = data if data.startswith(HUB) else Path(data)
    rows, first = _looked_through(source)
    asking = _asking(
        first, Format.of(model).tasks, config, backend=backend, task=task, rationale=rationale, input=input,
        labels=labels, label_type=label_type,
        id=id, max_new_tokens=max_new_tokens, max_rationale_tokens=max_rationale_tokens,
    )  # fmt: skip
    identity = _identity(model)
    tally = _Tally()
    kind = Explained if asking.rationale else Predicted
    place = _streamed(stream) if out is None else _resumed(out, _header(source, identity, asking), kind, tally)
    seconds = 0.0
    with place as file:
        resumed = tally.rows
        device = answering.device()
        told = f"task {asking.task}{' and rationale' if asking.rationale else ''}, input {plain(asking.input, 80)}"
        before = f", {resumed:,} of {rows or 0:,} rows are there" if resumed else ""
        say_line(f"predict: {asking.backend} on {device}, {told}{before}")
        if rows is None or resumed < rows:
            asked = None if rows is None else rows * len(asking.tasks)
            with opened(asking.backend, model, identity, batch_size=batch_size) as student:
                began = time.perf_counter()
                with bar("predict", asked, "answers" if asking.rationale else "rows") as advance:
                    advance(resumed * len(asking.tasks))
                    for block in _blocks(read(source), resumed, BLOCK[asking.backend]):
                        for row in _answered(block, tally.rows, asking, student, advance):
                            file.write(row.line() + b"\n")
                            tally.add(row)
                        file.flush()
                seconds = time.perf_counter() - began
        if rows is not None and tally.rows != rows:
            raise RunError(f"{plain(data)}: its rows changed while they were read; run again")
    new = tally.rows - resumed
    return Summary(
        model=model,
        data=data,
        out=None if out is None else str(out),
        backend=asking.backend,
        device=device,
        task=asking.task,
        input=asking.input,
        rows=tally.rows,
        answered=tally.rows - tally.problems.total(),
        problems=dict(tally.problems.most_common()),
        without_rationale=tally.without_rationale if asking.rationale else None,
        resumed=resumed,
        seconds=round(seconds, 3),
        rows_per_second=round(new / seconds, 2) if new and seconds else None,
    )


def _looked_through(source: Path | str) -> tuple[int | None, Mapping[str, Any] | None]:
    """The number of rows, and the first that can be read; of a Hub data set the first alone, so that it is sent only once.

    Raises InputError where the source as a whole cannot be read.
    """
    first: Mapping[str, Any] | None = None
    number = 0
    for _, row in read(source):
        number += 1
        if first is None and not isinstance(row, RowError):
            first = row
            if isinstance(source, str):
                return None, first
    return number, first


def _asking(
    first: Mapping[str, Any] | None,
    learned: Sequence[Any],
    config: Config | None,
    *,
    backend: str | None,
    task: str | None,
    rationale: bool,
    input: str | None,
    labels: Sequence[str] | None,
    label_type: str | None,
    id: str | None,
    max_new_tokens: int | None,
    max_rationale_tokens: int,
) -> Asking:
    """The settings as they resolve; ``learned`` are the tasks that the student says it has.

    Raises InputError for values that are not known, and where nothing says what the input is.
    """
    of_task = config.task if config is not None else None
    targets: Sequence[Target] = learned or (of_task.targets if of_task is not None else ())
    default: Target = "rationale" if set(targets) == {"rationale"} else asked_task(targets)
    chosen: Target = _one_of("--task", task, get_args(Target)) or default
    if chosen == "rationale" and rationale:
        raise InputError("--rationale: the task is the rationale already; leave it out")
    for name in labels or ():
        if not name.strip() or list(labels or ()).count(name) > 1:
            raise InputError(f"--labels: {plain(name)!r} stands there twice or is empty; name each label once")
    template = input if input is not None else of_task.input if of_task is not None else _template(first)
    check_text(template)
    known = list(labels) if labels is not None else None
    stated: LabelType = config.stages["parse"]["label_type"] if config is not None else "text"
    return Asking(
        backend=_one_of("--backend", backend, get_args(Backend)) or answering.default_backend(),
        task=chosen,
        rationale=rationale,
        input=template,
        labels=known if known is not None or of_task is None else of_task.labels,
        label_type=_one_of("--label-type", label_type, get_args(LabelType)) or stated,
        choices=of_task.choices if of_task is not None and known is None else None,
        id=id,
        max_new_tokens=max_new_tokens or MOST_TOKENS[chosen],
        max_rationale_tokens=max_rationale_tokens,
    )


def _one_of(option: str, value: str | None, known: Sequence[str]) -> Any:
    if value is not None and value not in known:
        raise InputError(f"{option}: {plain(value)!r} is not known{suggestion(value, known)}")
    return value


def _template(first: Mapping[str, Any] | None) -> str:
    if first is None:
        return f"{{{{ {COLUMNS[0]} }}}}"  # there is no row that it could be wrong for
    column = next((name for name in COLUMNS if name in first), None)
    if column is None:
        raise InputError(
            f"--input: say what the student is to see, as in --input '{{{{ column }}}}'; the rows have {plain(', '.join(first))}"
        )
    return f"{{{{ {column} }}}}"


def _identity(model: str) -> dict[str, Any]:
    try:
        return answering.identity(model)
    except InputError as error:
        raise InputError(f"--model: {error}") from None


def _header(source: Path | str, identity: Mapping[str, Any], asking: Asking) -> dict[str, JsonValue]:
    """What the lines of a file depend on. A folder of a model is known by its files, wherever it lies."""
    named = {name: value for name, value in identity.items() if name != "from" or "files" not in identity}
    rows: JsonValue = source if isinstance(source, str) else {path.name: sha256(path) for path in files(source)}
    return {"version": VERSION, "rows": rows, "model": digest(named), "settings": asdict(asking)}


@contextmanager
def _streamed(stream: IO[bytes] | None) -> Iterator[IO[bytes]]:
    yield sys.stdout.buffer if stream is None else stream


@contextmanager
def _resumed(out: Path, header: Mapping[str, JsonValue], kind: type[Predicted], tally: _Tally) -> Iterator[IO[bytes]]:
    """The file of lines, to be written on; it takes its name when the block ends well. ``tally`` is told of the lines that are there.

    Raises InputError where ``out`` is there already, or was begun with something else; RunError where another process writes it.
    """
    part, beside = out.with_name(f"{out.name}.part"), out.with_name(f"{out.name}.part.json")
    if out.exists():
        raise InputError(f"{out}: is there already; remove it, or name another file with --out")
    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}; make it first")
    with part.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{part}: another process is writing it; wait until it is done or stop it") from None
        if os.fstat(file.fileno()).st_size:
            _check_header(beside, part, header)
            file.seek(0)
            end = 0
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    tally.add(kind.read(line))
                except msgspec.DecodeError:
                    raise InputError(f"{part}:{number}: no row of predict; remove the file to start anew") from None
                end += len(line)
            file.truncate(end)
        write_json(beside, header)
        yield file
        file.flush()
        os.fsync(file.fileno())
        part.replace(out)
        beside.unlink()
        sync_folder(out.parent)


def _check_header(beside: Path, part: Path, header: Mapping[str, JsonValue]) -> None:
    """Raises InputError where a file was begun with something else, and says with what."""
    try:
        then = strict_json(beside.read_bytes())
    except (OSError, ValueError):
        then = None
    anew = "remove it to start anew, or name another file with --out"
    if not isinstance(then, dict):
        raise InputError(f"{part}: what it was begun with is not known ({beside.name} is missing or damaged); {anew}")
    differs = {"version": "by another version", "rows": "with other rows", "model": "with another model"}
    told = [words for name, words in differs.items() if then.get(name) != header[name]]
    settings, before = header["settings"], then.get("settings")
    if isinstance(settings, dict) and settings != before:
        known = before if isinstance(before, dict) else {}
        names = [name for name, value in settings.items() if name not in known or known[name] != value]
        told.append(f"with other settings ({', '.join(names) or 'unknown ones'})")
    if told:
        raise InputError(f"{part}: was begun {' and '.join(told)}; {anew}")


def _blocks(rows: Iterable[Sourced], done: int, size: int) -> Iterator[list[Sourced]]:
    """The rows behind the first ``done``, in blocks that begin where they would have begun without those."""
    left = islice(rows, done, None)
    first = size - done % size
    while block := list(islice(left, first)):
        yield block
        first = size


def _answered(
    block: Sequence[Sourced], before: int, asking: Asking, student: Student, advance: Advance
) -> Iterator[Predicted]:
    """A line for each row of the block, in order. ``before`` counts the rows before it."""
    given = [_accepted(before + index, place, row, asking) for index, (place, row) in enumerate(block, 1)]
    said = [_said(given, task, most, student, advance) for task, most in asking.tasks]
    for index, prompt in enumerate(given):
        answer = said[0][index]
        label, problem, detail = _read(answer, prompt, asking)
        fields: dict[str, Any] = {
            "id": prompt.id,
            "input": prompt.input if isinstance(prompt, Prompt) else None,
            "label": label,
            "text": answer.text if isinstance(answer, Answer) else None,
            "finished": isinstance(answer, Answer) and answer.finished,
            "problem": problem,
            "detail": detail,
        }
        if not asking.rationale:
            yield Predicted(**fields)
            continue
        why = said[1][index]
        rationale = why.text.strip() if isinstance(why, Answer) and why.text is not None else None
        yield Explained(**fields, rationale=rationale, rationale_finished=isinstance(why, Answer) and why.finished)


def _accepted(number: int, place: str, row: dict[str, Any] | RowError, asking: Asking) -> Prompt | Drop:
    """The row as ingest takes it. One at a time: nothing is held, and rows may be equal."""
    accepted = ingest(
        [(place, row)], on_bad_row="drop", input=asking.input, gold=None, choices=asking.choices, id=asking.id
    )
    found = next(accepted)
    return found.changed(id=f"row-{number}") if isinstance(found, Drop) else found


def _said(
    given: Sequence[Prompt | Drop], task: Target, most: int, student: Student, advance: Advance
) -> list[Answer | Failed]:
    """What the student answers to each row."""
    found: dict[int, Answer | Failed] = {}
    prompts: dict[int, list[int]] = {}
    for index, prompt in enumerate(given):
        if isinstance(prompt, Drop):
            found[index] = Failed("bad_row", str(prompt.evidence["problem"]))
            continue
        ids = student.format.prompt_ids(student.tokenizer, student_prompt(task, prompt.input))
        if student.context is not None and len(ids) + most > student.context:
            told = f"{len(ids):,} tokens, and {most:,} for the answer, are more than the model's {student.context:,}"
            found[index] = Failed("too_long", told)
        else:
            prompts[index] = ids
    advance(len(found))
    found |= zip(prompts, student.ask(list(prompts.values()), most, advance), strict=True)
    return [found[index] for index in range(len(given))]


def _read(answer: Answer | Failed, prompt: Prompt | Drop, asking: Asking) -> tuple[str | None, str | None, str | None]:
    """Label, problem and detail."""
    if isinstance(answer, Failed):
        return None, answer.problem, answer.detail
    assert isinstance(prompt, Prompt)
    assert answer.text is not None
    if not answer.finished:
        return None, "not_finished", None
    if not asking.reads_labels:
        return None, None, None
    said = said_label(answer.text) if asking.task == "chain_of_thought" else answer.text
    label = read_label(said, asking.label_type, asking.labels, prompt.choices)
    if label is not None:
        return label, None, None
    options = prompt.choices or closed_set(asking.label_type, asking.labels)
    return None, "not_in_set" if options and answer.text.strip() else "no_label", None
