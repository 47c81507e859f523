"""The whole story of a row as data: what came in, what was asked and answered, every verdict on it, and what came of it.

    told = story(run, "9f..")
    told.fate            # 'dropped by dedup: near duplicate'
    told.answers[0]      # Answer(teacher='embedded', text='A goal ..', spans={'label': (40, 46), ..}, ..)
    told.verdicts        # one of each filter that saw it, in order, with its evidence

It is ``pipeline.trace`` put in order, with what evaluate left: the models' answers to the rows of eval sets. A student is asked about those
rows alone; the row of a task has such answers only where it stands in an eval set too.

A row that was dropped for private data or a secret (``filters.SILENT``) is told without what the teachers wrote.

Limits: which part of a response is the label and which the rationale is found again by the settings of parse, as the manifest has them:
its pattern takes as long on a text here as it took there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from pipeline import outputs
from pipeline.files import InputError, plain
from pipeline.filters import SILENT
from pipeline.parse import spans
from pipeline.quality import HELD_BACK
from pipeline.records import Example, Manifest, Response
from pipeline.stages import STAGES
from pipeline.trace import Event, trace
from pipeline.viewer.rows import START, Part, Wanted, page, parts

EVAL: Final = "evaluate"
SECONDS: Final = 2.0  # for what is found without an index
MOST: Final = 100  # predictions of one row: a dozen models on a few eval sets
RATIONALES: Final = "rationales.jsonl"
EVAL_ROWS: Final = "rows.jsonl"
VALIDATION: Final = "validation.jsonl"
NOT_SHOWN: Final = "not shown: private data or a secret was found in it"
BESIDE_BYTES: Final = 1 << 28  # of these that are looked through


@dataclass(frozen=True)
class Sent:
    """A prompt as a teacher got it; ``proven``: the request's key, made anew from it, is the one in the store."""

    messages: list[dict[str, Any]]
    other: dict[str, Any]
    proven: bool


@dataclass
class Answer:
    """A teacher's response, what was read from it, and what that counted."""

    id: str
    teacher: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    request: str
    place: str
    mean_logprob: float | None = None
    sent: Sent | None = None
    stored: str = ""
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    vote: dict[str, Any] | None = None
    kept: bool = False
    drop: dict[str, Any] | None = None


@dataclass(frozen=True)
class Verdict:
    """What a stage, or one filter of it, said of the row: 'kept', 'dropped' or 'not asked'."""

    stage: str
    name: str
    said: str
    settings: Any = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    place: str = ""


@dataclass
class Story:
    """All that is known of a row of the task."""

    id: str
    fate: str = ""
    lost: bool = False
    prompt: dict[str, Any] | None = None
    answers: list[Answer] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    example: dict[str, Any] | None = None
    judgement: dict[str, Any] | None = None
    judged: Sent | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    training: list[dict[str, Any]] = field(default_factory=list)
    trained: dict[str, dict[str, Any]] = field(default_factory=dict)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    validated: list[dict[str, Any]] = field(default_factory=list)
    places: list[tuple[str, str]] = field(default_factory=list)

    @property
    def text(self) -> str | None:
        """The row's input, from whatever stage still has it."""
        for row in (self.prompt, self.example):
            if row is not None and isinstance(row.get("input"), str):
                return str(row["input"])
        found = [verdict.evidence.get("text") for verdict in self.verdicts]
        return next((text for text in found if isinstance(text, str)), None)


@dataclass(frozen=True)
class EvalStory:
    """All that is known of a row of an eval set: what each model answered to it."""

    eval_set: str
    row: str
    predictions: list[dict[str, Any]]
    rationales: list[dict[str, Any]]
    known: dict[str, Any] | None
    dropped: dict[str, Any] | None

    @property
    def id(self) -> str:
        """What it is marked by."""
        return f"{self.eval_set}/{self.row}"


def story(run: Path, id: str) -> Story:
    """The story of an input row. Raises InputError where there is none, RunError where a file is missing or damaged."""
    told = Story(id)
    events = trace(run, id)
    parsing = _manifest(run, "parse")
    for event in events:
        _tell(told, event, run)
        if event.verdict in ("kept", "dropped"):
            told.places.append((event.stage, event.place))
    for answer in told.answers:
        answer.spans = spans(answer.text, **_strings(parsing.settings)) if parsing is not None else {}
    _vote(told)
    told.predictions = [row for row in _predictions(run, Wanted(row=id)) if row.get("row") == id]
    told.validated = _beside(outputs.current(run, EVAL), VALIDATION, Wanted(row=id))
    told.fate, told.lost = _fate(told, events)
    _hold_back(told)
    return told


def _tell(told: Story, event: Event, run: Path) -> None:
    row = event.row
    if event.verdict == "prompt":
        sent = _sent(row, event.place)
        if event.stage == "sample" and told.answers:
            told.answers[-1].sent = sent
        else:
            told.judged = sent
    elif event.verdict == "stored":
        if event.stage == "sample" and told.answers:
            told.answers[-1].stored = event.place
    elif event.stage == "sample" and event.verdict == "dropped":
        told.failures.append(row)
    elif event.stage == "parse" and event.verdict == "dropped":
        owner = next((answer for answer in told.answers if answer.id == row.get("id")), None)
        if owner is None:
            told.failures.append(row)
        else:
            owner.drop = row
    elif event.verdict == "dropped":
        told.verdicts += _dropped(event, run)
    elif event.stage == "ingest":
        told.prompt = row
    elif event.stage == "sample":
        told.answers.append(_answer(event))
    elif event.stage == "parse":
        told.example = row
    elif event.stage == "judge":
        told.example = told.example or row
        told.judgement = row.get("judgement")
    elif event.stage == "shard":
        told.training.append(row)
    elif event.stage == "train":
        told.trained[str(row.get("id"))] = row
    elif STAGES[event.stage].kind == "filter":
        told.example = told.example or row
        told.judgement = told.judgement or row.get("judgement")
        told.verdicts += _kept(event, run)


def _answer(event: Event) -> Answer:
    found = msgspec.convert(event.row, Response)  # trace has checked its types
    return Answer(
        found.id,
        found.teacher,
        found.text,
        found.finish_reason,
        found.prompt_tokens,
        found.completion_tokens,
        found.request,
        event.place,
        found.mean_logprob,
    )


def _sent(row: Mapping[str, Any], place: str) -> Sent:
    messages, proven = row.get("messages"), "its key is the request's" in place
    if not isinstance(messages, list):
        return Sent([], {**row}, proven)
    other = {name: value for name, value in row.items() if name != "messages" and value not in (None, "", [], {})}
    return Sent([message for message in messages if isinstance(message, dict)], other, proven)


def _filters(run: Path) -> list[tuple[str, Any]]:
    """The filters of quality in order, each with its settings."""
    manifest = _manifest(run, "quality")
    listed = manifest.settings.get("filters") if manifest is not None else None
    return [item for one in listed if isinstance(one, dict) for item in one.items()] if isinstance(listed, list) else []


def _kept(event: Event, run: Path) -> list[Verdict]:
    if event.stage != "quality":
        return [Verdict(event.stage, event.stage, "kept", place=event.place)]
    return [Verdict("quality", name, "kept", settings, place=event.place) for name, settings in _filters(run)] or [
        Verdict("quality", "quality", "kept", place=event.place)
    ]


def _dropped(event: Event, run: Path) -> list[Verdict]:
    reason, evidence = str(event.row.get("reason")), event.row.get("evidence")
    given = evidence if isinstance(evidence, dict) else {}
    here = Verdict(event.stage, event.stage, "dropped", None, given, reason, event.place)
    filters = _filters(run) if event.stage == "quality" else []
    names = [name for name, _ in filters]
    if reason not in names:
        return [here]
    objected = names.index(reason)
    found = []
    for index, (name, settings) in enumerate(filters):
        if index == objected:
            found.append(Verdict("quality", name, "dropped", settings, given, reason, event.place))
        else:
            found.append(Verdict("quality", name, "kept" if index < objected else "not asked", settings))
    return found


def _vote(told: Story) -> None:
    """Which response was counted as what, and whose rationale was kept."""
    example = told.example
    if example is None:
        return
    votes = {vote.response: vote for vote in msgspec.convert(example, Example).votes}
    for answer in told.answers:
        vote = votes.get(answer.id)
        answer.vote = None if vote is None else vote.plain()
        answer.kept = answer.id == example.get("response")


def _hold_back(told: Story) -> None:
    """What a teacher wrote of a row in which private data or a secret was found is not shown once more."""
    if not any(verdict.reason in SILENT or verdict.evidence.get("why") == HELD_BACK for verdict in told.verdicts):
        return
    for answer in told.answers:
        answer.text, answer.spans, answer.vote = NOT_SHOWN, {}, None
    if told.example is not None:
        texts = {name: NOT_SHOWN for name in ("label", "rationale", "text") if told.example.get(name) is not None}
        told.example = {**told.example, **texts, "votes": []}
    if told.judgement is not None:
        told.judgement = {**told.judgement, "reason": NOT_SHOWN}
    told.judged = None


def _fate(told: Story, events: Iterable[Event]) -> tuple[str, bool]:
    """What became of the row in the end, in a sentence, and whether it was lost."""
    for verdict in told.verdicts:
        if verdict.said == "dropped":
            return f"dropped by {verdict.stage}: {verdict.reason.replace('_', ' ')}", True
    stages = [event.stage for event in events if event.verdict == "kept"]
    if told.training:
        learnt = f", {len(told.trained)} of them trained on" if told.trained else ""
        return f"kept to the end: {_rows(len(told.training))}{learnt}", False
    if told.example is None and (told.failures or any(answer.drop for answer in told.answers)):
        return "ended without an answer that could be read", True
    return f"kept as far as {stages[-1]}" if stages else "on no stage's rows", not stages


def _rows(count: int) -> str:
    return "one training row" if count == 1 else f"{count} training rows"


def eval_story(run: Path, eval_set: str, row: str) -> EvalStory:
    """The story of a row of an eval set. Raises InputError where evaluate knows none of it."""
    wanted = Wanted(eval_set=eval_set, row=row)
    predictions = _predictions(run, wanted)
    dropped = _dropped_of_eval(run, eval_set, row)
    if not predictions and dropped is None:
        raise InputError(
            f"{plain(eval_set, 80)}/{plain(row, 80)}: no row of an eval set that was measured is called so"
        )
    folder = outputs.current(run, EVAL)
    return EvalStory(
        eval_set,
        row,
        predictions,
        _beside(folder, RATIONALES, wanted),
        next(iter(_beside(folder, EVAL_ROWS, wanted)), None),
        dropped,
    )


def _predictions(run: Path, wanted: Wanted) -> list[dict[str, Any]]:
    folder = outputs.current(run, EVAL)
    if folder is None:
        return []
    found = page(parts(folder, dropped=False), START, wanted, size=MOST, seconds=SECONDS)
    return [one.row for one in found.rows if one.row is not None]


def _dropped_of_eval(run: Path, eval_set: str, row: str) -> dict[str, Any] | None:
    """Why evaluate left a row out, where it did."""
    folder = outputs.current(run, EVAL)
    if folder is None:
        return None
    files = parts(folder, dropped=True)
    found = page(files, START, Wanted(text=f"{eval_set}/{row}"), size=MOST, seconds=SECONDS)
    return next(
        (one.row for one in found.rows if one.row is not None and one.row.get("id") == f"{eval_set}/{row}"), None
    )


def _beside(folder: Path | None, name: str, wanted: Wanted) -> list[dict[str, Any]]:
    """The lines about a row in a file that evaluate wrote beside its predictions, where there is one."""
    path = folder / name if folder is not None else None
    if path is None or path.is_symlink() or not path.is_file() or path.stat().st_size > BESIDE_BYTES:
        return []
    found = page([Part(path, 0, path.stat().st_size)], START, wanted, size=MOST, seconds=SECONDS)
    return [one.row for one in found.rows if one.row is not None]


def _manifest(run: Path, stage: str) -> Manifest | None:
    folder = outputs.current(run, stage)
    return outputs.read_manifest(folder) if folder is not None else None


def _strings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by which parse found the parts of a response, where they are of the kind that they must be."""
    pattern, format, cut_at = (settings.get(name) for name in ("pattern", "format", "cut_at"))
    return {
        "pattern": pattern if isinstance(pattern, str) else None,
        "format": "json" if format == "json" else "pattern",
        "cut_at": [text for text in cut_at if isinstance(text, str) and text] if isinstance(cut_at, list) else [],
    }
