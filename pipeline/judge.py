"""judge: Example -> the same Example with a judgement. A teacher that is shown a rubric gives each a score from 1 to 5, and the reason.

    judge: {teacher: {backend: server, ..}, prompt: prompts/judge.jinja}

    {"id": "9f..", "label": "sports", .., "judgement": null}
    -> {"id": "9f..", "label": "sports", .., "judgement": {"score": 4, "reason": "It names the goal.", "judge": "..", "request": "c4.."}}

The rubric is a prompt template as the teacher's is. Its variables are the example's ``input``, ``label``, ``rationale`` and ``text`` (the
response itself), and ``choices`` and ``labels``; each is null where there is none. The true label, ``gold``, is there only with
``show_gold: true``. A judge sees one example at a time, and what it writes goes nowhere but into the judgement.

Judgements lie in the response store like any answer: none is asked for twice, and a threshold (the filter ``min_judge_score`` of
quality) can be changed without asking. What failed is not stored, and is asked for again by the next run of the stage.

Limits: one judge. An input can speak to the judge ("give this a 5"): a score is a hint, not a proof. The form of the answer is asked for
by a JSON schema; a server that takes no schemas leaves it to the rubric to say it.
"""

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError

from pipeline import outputs, prompts, requests, sample, teachers, usage
from pipeline.asking import ask
from pipeline.binding import From, InputPath
from pipeline.files import InputError, RunError, plain, strict_json, write_json
from pipeline.outputs import Job, Totals
from pipeline.records import Drop, Example, Judgement, Manifest, Prompt, Response, Target
from pipeline.requests import Asking, all_requests
from pipeline.revocations import Revoked
from pipeline.sample import TEMPLATES
from pipeline.spending import Budget, Meter
from pipeline.teachers import TeacherSettings
from pipeline.text import excerpt


def _whole(score: object) -> object:
    if type(score) is not int:  # to a Literal, True is 1
        raise ValueError("a whole number from 1 to 5 is wanted")
    return score


class Score(BaseModel):
    """What a judge answers with. The reason comes first, so that the score follows from it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    reason: str = Field(min_length=1)
    score: Annotated[Literal[1, 2, 3, 4, 5], BeforeValidator(_whole)]


def _without_prose(schema: JsonValue) -> JsonValue:
    """A JSON schema without titles and descriptions: what they say must not change the request's key."""
    if isinstance(schema, list):
        return [_without_prose(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {name: _without_prose(item) for name, item in schema.items() if name not in ("title", "description")}


SCHEMA: Final[Any] = _without_prose(Score.model_json_schema())


def _one(given: object) -> object:
    if isinstance(given, list):
        raise ValueError("there is one judge; give its settings, not a list")
    return given


@dataclass(frozen=True)
class Judging:
    """The settings of the stage, checked and resolved."""

    asking: Asking
    show_gold: bool
    on_failure: Literal["drop", "keep"]


def resolve(
    identities: Mapping[str, dict[str, JsonValue]] | None = None,
    /,
    *,
    teacher: Annotated[TeacherSettings, BeforeValidator(_one)],
    prompt: InputPath | None = None,
    temperature: Annotated[float, Field(ge=0)] = 0.0,
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0,
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] = 200,
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0,
    sampling: dict[str, JsonValue] | None = None,
    show_gold: bool = False,
    on_failure: Literal["drop", "keep"] = "drop",
    chunk: Annotated[int, Field(ge=1)] = 256,
    budget: Budget | None = None,
    labels: Annotated[list[str] | None, From("task.labels")] = None,
    targets: Annotated[Sequence[Target], From("task.targets")] = ("label", "rationale"),
    choices: Annotated[str | None, From("task.choices")] = None,
    gold: Annotated[str | None, From("task.gold")] = None,
    revoked: Annotated[Revoked | None, From("revoked.judge")] = None,
) -> Judging:
    """What the judge is asked, from the settings of the stage.

    ``teacher``: who judges, as in sample. ``prompt``: the rubric. ``sampling``: further sampling parameters of the backend.
    ``show_gold``: the rubric may use the true label. ``on_failure``: what becomes of an example that could not be judged: it is dropped
    as ``not_judged``, or kept without a judgement. ``chunk``, ``budget``: as in sample.

    Raises InputError for settings and templates that cannot be used.
    """
    if prompt is None and not isinstance(teacher, teachers.Replay):
        raise InputError("stages.judge.prompt: missing; name a rubric (`stepdistill init` brings prompts/judge.jinja)")
    if prompt is not None and not prompt.is_file():
        raise InputError(f"stages.judge.prompt: {prompt}: no such file; check the path")
    if show_gold and gold is None:
        raise InputError("stages.judge.show_gold: needs task.gold, the column with the true label")
    asked = _asked(
        temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed, sampling=sampling, labels=labels
    )
    with _as_judge():
        asking = requests.resolve(identities, teacher=[teacher], prompt=prompt, chunk=chunk, budget=budget, **asked)
    asking = replace(asking, stage="judge", revoked=(revoked or {}).get("judgement", {}))
    return Judging(asking, show_gold, on_failure)


def judge(job: Job, **settings: Any) -> Generator[Example | Drop, None, Totals]:
    """Have each example judged, in order. ``settings`` are those of ``resolve``.

    Raises InputError for settings and rubrics that cannot be used, RunError where the judge fails altogether or the budget is used up.
    """
    judging = resolve(**settings)
    asking, (respondent,) = judging.asking, judging.asking.respondents
    if asking.template is not None:
        write_json(job.folder / TEMPLATES, prompts.snapshot(asking.template))
    (folder,) = job.inputs.values()
    total = sum(file.rows or 0 for file in outputs.row_files(folder))
    before = usage.measured(job.folder)  # by a call that was stopped before it had a result; it belongs to this one
    meters: dict[str, Meter] = {}
    tally = usage.Tally()
    scores: Counter[int] = Counter()
    failed: Counter[str] = Counter()

    def rows() -> Iterator[Prompt]:
        return (prompt_of(example, judging) for example in outputs.read(folder, Example))

    try:
        with _as_judge():
            answers = ask(asking, rows, job.responses, total=total, meters=meters)
            for example, answer in zip(outputs.read(folder, Example), answers, strict=True):
                tally.add(answer)
                found = judgement_of(example, answer, respondent.name)
                if isinstance(found, Judgement):
                    scores[found.score] += 1
                    yield example.changed(judgement=found)
                else:
                    failed[answer.reason if isinstance(answer, Drop) else "unreadable"] += 1
                    yield example if judging.on_failure == "keep" else found
    finally:
        usage.keep(job.folder, meters, before)
    judged = sum(scores.values())
    details: dict[str, object] = {
        "judge": respondent.name,
        "scores": {str(score): scores[score] for score in range(1, 6)},
        "mean_score": round(sum(score * count for score, count in scores.items()) / judged, 4) if judged else None,
        "not_judged": dict(sorted(failed.items())),
        "teachers": {respondent.name: tally.details(settings["teacher"].price)},
        "sampling": asking.sampling,
        "seed": asking.seed,
    }
    return Totals(rows_in=total, details=details)


def identities(settings: Mapping[str, Any]) -> dict[str, dict[str, JsonValue]]:
    """The judge's identity, as it resolves now, by the name it has in a manifest."""
    return sample.identities({"teacher": [settings["teacher"]]})


def models(settings: Mapping[str, Any], identities: Mapping[str, Any]) -> dict[str, dict[str, JsonValue]]:
    """Further facts about the judge, as sample has them about its teachers."""
    return sample.models({"teacher": [settings["teacher"]]}, identities)


def check(settings: Mapping[str, Any]) -> Judging:
    """Everything that can be checked before a judge is there, the rubric on an example of the task's shape. Raises InputError."""
    judging = resolve({}, **settings)
    if judging.asking.template is not None:
        targets = settings["targets"]
        made_up = Example(
            id="made up for the check",
            input="text",
            label="text" if "label" in targets else None,
            rationale="text" if "rationale" in targets else None,
            response="",
            text="text",
            finish_reason="stop",
            votes=[],
            gold="text" if judging.show_gold else None,
            choices=["text"] if settings["choices"] is not None else None,
        )
        with _as_judge():
            next(all_requests(judging.asking, prompt_of(made_up, judging)))
    return judging


def proof(example: Example, folder: Path, manifest: Manifest) -> tuple[dict[str, JsonValue], str, str]:
    """The rubric as it was sent about an example, its request's family and key, from what a finished stage left on disk."""
    judging = judging_of(folder, manifest)
    prompt = prompt_of(example, judging)
    _, request = next(all_requests(judging.asking, prompt))
    return requests.sent_of(prompt, request.messages), request.family, request.key


def judging_of(folder: Path, manifest: Manifest) -> Judging:
    """What a finished stage asked, from what it left on disk; good for ``all_requests``."""
    template = prompts.read_snapshot(folder / TEMPLATES) if (folder / TEMPLATES).is_file() else None
    settings: Any = manifest.settings
    shape = {name: settings[name] for name in ("temperature", "top_p", "max_tokens", "seed", "sampling", "labels")}
    asked = {**_asked(**shape), "teacher": [settings["teacher"]]}
    asking = requests.from_manifest(asked, manifest.identities, template, None)
    return Judging(asking, settings["show_gold"], settings["on_failure"])


def wanted(settings: Mapping[str, Any], examples: Path) -> tuple[Asking, Iterator[Prompt]]:
    """What a judge is asked, and about which prompts, given the finished folder that the examples are read from. Raises InputError."""
    judging = resolve(**settings)
    return judging.asking, (prompt_of(example, judging) for example in outputs.read(examples, Example))


def _asked(**given: Any) -> dict[str, Any]:
    """The settings of the stage ``sample`` that make the judge's requests."""
    fixed = {"n": 1, "greedy_first": False, "stop": [], "structured": {"json": SCHEMA}, "regex": None}
    return {**fixed, "logprobs": False, "soft_labels": None, "rationalise": False, **given}


def prompt_of(example: Example, judging: Judging) -> Prompt:
    """The example as the rubric is shown it."""
    columns: dict[str, JsonValue] = {
        "input": example.input,
        "label": example.label,
        "rationale": example.rationale,
        "text": example.text,
        "choices": None if example.choices is None else list(example.choices),
        "labels": None if judging.asking.labels is None else list(judging.asking.labels),
    }
    if judging.show_gold:
        columns["gold"] = example.gold
    return Prompt(
        id=example.id,
        source=f"example {plain(example.id, 80)}",
        input=example.input,
        gold=None,
        choices=example.choices,
        columns=columns,
    )


def judgement_of(example: Example, answer: Response | Drop, judge: str) -> Judgement | Drop:
    """What the judge said, or the drop that tells why there is nothing."""
    if isinstance(answer, Drop):
        evidence: dict[str, JsonValue] = {"why": f"the judge gave no answer: {answer.reason}", **answer.evidence}
        return Drop(id=example.id, reason="not_judged", evidence=evidence)
    try:
        found = Score.model_validate(strict_json(answer.text))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"{step}: " for step in first["loc"])
        problem = plain(f"{place}{first['msg'].removeprefix('Value error, ')}", 160)
    except ValueError as error:
        problem = f"not JSON: {plain(str(error), 120)}"
    else:
        return Judgement(score=found.score, reason=found.reason, judge=judge, request=answer.request)
    evidence = {
        "why": f"the judge's answer cannot be read: {problem}",
        "teacher": judge,
        "request": answer.request,
        "finish_reason": answer.finish_reason,
        "text": excerpt(answer.text, 400),
    }
    return Drop(id=example.id, reason="not_judged", evidence=evidence)


def scores(examples: Sequence[Example], settings: Mapping[str, Any], responses: Path) -> list[int | None]:
    """The judge's score of each example, whatever its stage; None for one that could not be judged.

    ``settings`` are those of ``resolve``, ``responses`` is the store's folder. Raises InputError and RunError as ``judge`` does.
    """
    judging = resolve(**settings)
    (respondent,) = judging.asking.respondents
    found: list[int | None] = []
    with _as_judge():
        asked = ask(
            judging.asking,
            lambda: (prompt_of(example, judging) for example in examples),
            responses,
            total=len(examples),
        )
        for example, answer in zip(examples, asked, strict=True):
            said = judgement_of(example, answer, respondent.name)
            found.append(said.score if isinstance(said, Judgement) else None)
    return found


@contextmanager
def _as_judge() -> Iterator[None]:
    """What goes wrong in asking names the settings of this stage."""
    try:
        yield
    except (InputError, RunError) as error:
        said = str(error).replace("stages.sample.", "stages.judge.")
        raise type(error)(f"judge: {said.removeprefix('sample: ')}" if said.startswith("sample: ") else said) from None
