r"""parse: responses -> Example. Label and rationale out of the text, and a vote over the teachers and samples of a prompt.

    pattern: '(?s)(?P<rationale>.*?)\s*So the answer is (?P<label>.+?)\.?'

    {"id": "9f..#0", "text": "A goal is scored. So the answer is Sports.\n\nQ: ..", ...}
    -> {"id": "9f..", "label": "sports", "rationale": "A goal is scored.", "votes": [{"label": "sports", ..}], "agreement": 1.0, ...}

The text is cut at the earliest of the ``cut_at`` strings, stripped, and the pattern must cover all of it (``re.fullmatch``: end it
with ``.*`` under ``(?s)`` where anything may follow). What the groups ``label`` and ``rationale`` hold, stripped, is what the response
said; the label is put into its one spelling by its type. With ``format: json`` the text is one JSON object with fields of these names
instead. A free response (``targets: [response]``) needs no pattern; with one, its group ``response`` is taken.

A rationalised response was shown the true label, so that is its label; the pattern, where there is one, only finds the rationale.

Limits: patterns run in Python's ``re``: nested repeats such as ``(a+)+$`` can take forever on a long text. After 10 s of the processor
the run stops and names the response.
Labels that are no member of the set still count in the vote: what a teacher mostly said is its answer, and quality drops it with that
evidence. Soft labels take a log-probability that is no finite number for a probability of 0.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field, JsonValue

from pipeline import labels as label_forms
from pipeline.binding import From, suggestion
from pipeline.files import InputError, plain, strict_json
from pipeline.labels import LabelType
from pipeline.limits import TooLongError, bounded
from pipeline.records import Drop, Example, Response, Target, Vote
from pipeline.text import excerpt

GROUPS = ("label", "rationale", "response")

Format = Literal["pattern", "json"]
Kept = Literal["first", "shortest", "highest_logprob"]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def checked_pattern(pattern: str) -> str:
    """``pattern`` itself. Raises ValueError, in one line, where it is no regular expression or its groups are not those of ``GROUPS``."""
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise ValueError(f"no regular expression ({error})") from None
    except (OverflowError, RecursionError):
        raise ValueError("no regular expression (too large)") from None
    for name in groups:
        if name not in GROUPS:
            raise ValueError(f"unknown group '{name}'{suggestion(name, GROUPS)}")
    if not groups:
        raise ValueError("no named group; mark the answer with (?P<label>..) and the reason with (?P<rationale>..)")
    return pattern


Pattern = Annotated[str, AfterValidator(checked_pattern)]
"""A regular expression with named groups ``label``, ``rationale``, ``response``."""


def parse(
    rows: Iterable[Response],
    *,
    pattern: Pattern | None = None,
    format: Format = "pattern",
    label_type: LabelType = "text",
    cut_at: Sequence[Annotated[str, Field(min_length=1)]] = (),
    vote: Literal["majority", "weighted"] = "majority",
    weights: Mapping[str, Weight] | None = None,
    rationale: Kept = "first",
    labels: Annotated[list[str] | None, From("task.labels")] = None,
    targets: Annotated[Sequence[Target], From("task.targets")] = ("label", "rationale"),
    teachers: Annotated[Sequence[str] | None, From("stages.sample.teacher.names")] = None,
    logprobs: Annotated[bool, From("stages.sample.logprobs")] = True,
    rationalise: Annotated[bool, From("stages.sample.rationalise")] = False,
) -> Iterator[Example | Drop]:
    """One Example a prompt, from all its responses; they must stand next to each other.

    ``pattern``: where label and rationale stand. ``format``: how; ``json`` needs no pattern. ``label_type``: how labels are read and
    compared. ``cut_at``: texts that open what no longer belongs to the answer. ``vote``: what a response counts, each the same or each
    its teacher's weight; ``weights``: those, by the teachers' names, 1 for others. ``rationale``: which one is kept of those that came
    with the winning label: the one said first, the shortest that is not empty, or that of the response with the highest mean
    log-probability (one without comes last).

    The label with the most votes wins, of equals the one said first. ``unparsed`` responses are dropped, and as ``contradicts_gold``
    rationalised ones that end with another label than they were given. Raises InputError, before the first row, where settings do not
    go together or the pattern lacks what the targets need.
    """
    found = _checked(pattern, format, targets, rationalise)
    if weights and vote != "weighted":
        raise InputError("stages.parse.weights: they count only with vote: weighted; set it, or remove them")
    for name in weights or {}:
        if teachers is not None and name not in teachers:
            known = suggestion(name, map(plain, teachers))
            raise InputError(f"stages.parse.weights.{plain(name)}: no such teacher{known}")
    if rationale == "highest_logprob" and not logprobs:
        raise InputError("stages.parse.rationale: highest_logprob needs stages.sample.logprobs: true")
    # Exact sums of the weights as they are written: no order of the responses makes or breaks a tie.
    exact = {name: Fraction(repr(float(weight))) for name, weight in (weights or {}).items()}
    form = _Form(found, format, frozenset(targets) - {"label"} if rationalise else frozenset(targets))
    read = partial(_read, form=form, label_type=label_type, cut_at=cut_at, labels=labels)
    return _examples(rows, read, partial(_voted, weights=exact, kept=rationale, label_type=label_type, labels=labels))


def spans(
    text: str, *, pattern: str | None = None, format: Format = "pattern", cut_at: Sequence[str] = (), **_: object
) -> dict[str, tuple[int, int]]:
    """Where in a response's text its parts stand: name of the group -> from, to. ``cut`` is what no longer belongs to the answer.

    The other arguments are the stage's settings as a manifest holds them. Nothing is found where the text cannot be read by them, nor of
    a text in JSON that is written there in another way than it is usual.
    """
    end = min((place for place in map(text.find, cut_at) if place >= 0), default=len(text))
    found = {"cut": (end, len(text))} if end < len(text) else {}
    start = len(text[:end]) - len(text[:end].lstrip())
    try:
        form = _Form(None if pattern is None else re.compile(checked_pattern(pattern)), format, frozenset())
        said = _said(text[:end].strip(), form)
    except (ValueError, _UnusableError, TooLongError):
        return found
    match = None if form.pattern is None or format == "json" else form.pattern.fullmatch(text[:end].strip())
    for name, part in said.items():
        written = json.dumps(part, ensure_ascii=False)[1:-1] if match is None else part
        place = text.find(written, start if match is None else start + max(match.start(name), 0), end)
        if part and place >= 0:
            found[name] = (place, place + len(written))
    return found


def _checked(
    pattern: str | None, format: Format, targets: Sequence[Target], rationalise: bool
) -> re.Pattern[str] | None:
    """The compiled pattern. Raises InputError where it is none, or cannot serve."""
    if format == "json":
        if pattern is not None:
            raise InputError("stages.parse.pattern: format: json needs none; remove one of them")
        return None
    try:
        found = re.compile(checked_pattern(pattern)) if pattern is not None else None
    except ValueError as error:
        raise InputError(f"stages.parse.pattern: {error}") from None
    if rationalise and found is None:
        return None  # the whole text is the rationale
    for target in targets:
        if target == "response" or (rationalise and target == "label"):
            continue
        if found is None or target not in found.groupindex:
            problem = "is missing" if found is None else f"has no group '{target}'"
            raise InputError(f"stages.parse.pattern: {problem}, and task.targets names {target}; add (?P<{target}>..)")
    return found


@dataclass(frozen=True)
class _Form:
    """How a text is to be read; ``needed`` are the fields that a JSON object must have."""

    pattern: re.Pattern[str] | None
    format: Format
    needed: frozenset[str]


class _Answer(NamedTuple):
    """What one response said."""

    label: str | None
    rationale: str | None
    text: str


class _Ballot(NamedTuple):
    """A response, what it said, and what that counts."""

    response: Response
    answer: _Answer
    key: str | None
    weight: int | Fraction


def _examples(
    rows: Iterable[Response],
    read: Callable[[Response], _Answer | Drop],
    voted: Callable[[list[tuple[Response, _Answer]]], Example],
) -> Iterator[Example | Drop]:
    for _, group in groupby(rows, key=attrgetter("prompt")):
        parsed: list[tuple[Response, _Answer]] = []
        for response in group:
            answer = read(response)
            if isinstance(answer, Drop):
                yield answer
            else:
                parsed.append((response, answer))
        if parsed:
            yield voted(parsed)


class _UnusableError(Exception):
    """Why a response gives no answer: the reason and the evidence of its drop."""

    def __init__(self, reason: str, evidence: dict[str, JsonValue]) -> None:
        super().__init__(reason)
        self.reason, self.evidence = reason, evidence


def _read(
    response: Response,
    *,
    form: _Form,
    label_type: LabelType,
    cut_at: Sequence[str],
    labels: list[str] | None,
) -> _Answer | Drop:
    """What a response said, or the drop that tells why that cannot be made out."""
    cuts = [place for place in map(response.text.find, cut_at) if place >= 0]
    text = response.text[: min(cuts, default=None)].strip()
    try:
        return _answer(response, text, form, label_type, labels)
    except TooLongError as error:
        told = f"stages.parse.pattern: response {plain(response.id, 80)}: the pattern {error}"
        raise InputError(f"{told}; write it without repeats inside repeats such as (a+)+") from None
    except _UnusableError as error:
        evidence: dict[str, JsonValue] = {
            **error.evidence,
            "text": excerpt(text),
            "characters_cut": len(response.text) - min(cuts, default=len(response.text)),
            "finish_reason": response.finish_reason,
            "pattern": None if form.pattern is None else excerpt(form.pattern.pattern, 120),
        }
        return Drop(id=response.id, reason=error.reason, evidence=evidence)


def _answer(response: Response, text: str, form: _Form, label_type: LabelType, labels: list[str] | None) -> _Answer:
    """What a response said in ``text``. Raises _UnusableError."""
    said = _said(text, form)
    if not said.get("response", text):
        raise _unparsed("the response is empty")
    label = None
    if "label" in said:
        label = label_forms.normalise(said["label"], label_type, labels, response.choices)
    if response.rationalised:
        gold = label_forms.normalise(response.gold or "", label_type, labels, response.choices)
        if gold is None:
            raise _unparsed("the row has no true label, and the response was to explain that")
        if label is not None and label_forms.key(label, label_type) != label_forms.key(gold, label_type):
            raise _UnusableError("contradicts_gold", {"label": label, "gold": gold})
        label = gold
        if form.pattern is None and form.format == "pattern":
            said = {"rationale": text}
    elif "label" in said and label is None:
        raise _unparsed("the label is empty")
    return _Answer(label, said.get("rationale"), said.get("response", text))


def _unparsed(problem: str) -> _UnusableError:
    return _UnusableError("unparsed", {"problem": problem})


def _said(text: str, form: _Form) -> dict[str, str]:
    """What the text says under each name of ``GROUPS`` that it has. Raises _UnusableError."""
    if not text:
        raise _unparsed("the text is empty")
    if form.format == "json":
        return _said_in_json(text, form.needed)
    if form.pattern is None:
        return {}
    match = bounded(form.pattern.fullmatch, text)
    if match is None:
        raise _unparsed("the pattern does not fit the text")
    return {name: (match[name] or "").strip() for name in form.pattern.groupindex}


def _said_in_json(text: str, needed: frozenset[str]) -> dict[str, str]:
    try:
        found = strict_json(text)
    except ValueError as error:
        raise _unparsed(f"not JSON: {plain(str(error), 120)}") from None
    if not isinstance(found, dict):
        raise _unparsed("no JSON object")
    for name, value in found.items():
        if name not in GROUPS:
            raise _unparsed(f"unknown field '{plain(name, 60)}'")
        if not isinstance(value, str):
            raise _unparsed(f"the field '{name}' is no text")
    if missing := sorted(needed - set(found)):
        raise _unparsed(f"the field '{missing[0]}' is missing")
    return {name: value.strip() for name, value in found.items()}


def _voted(
    parsed: list[tuple[Response, _Answer]],
    *,
    weights: Mapping[str, Fraction],
    kept: Kept,
    label_type: LabelType,
    labels: list[str] | None,
) -> Example:
    """The example that the responses to one prompt make."""
    ballots = [
        _Ballot(
            response,
            answer,
            None if answer.label is None else label_forms.key(answer.label, label_type),
            weights.get(response.teacher, 1),
        )
        for response, answer in parsed
    ]
    totals: dict[str | None, int | Fraction] = {}
    for ballot in ballots:
        totals[ballot.key] = totals.get(ballot.key, 0) + ballot.weight
    winner = max(totals, key=totals.__getitem__)  # of equals, the one said first
    whole = sum(totals.values())
    shares = [float(total / whole) for total in totals.values()]
    chosen = _chosen([ballot for ballot in ballots if ballot.key == winner], kept)
    response, answer = chosen.response, chosen.answer
    return Example(
        id=response.prompt,
        input=response.input,
        label=answer.label,
        rationale=answer.rationale,
        response=response.id,
        text=answer.text,
        finish_reason=response.finish_reason,
        votes=[
            Vote(
                response=ballot.response.id,
                request=ballot.response.request,
                teacher=ballot.response.teacher,
                label=ballot.answer.label,
                weight=float(ballot.weight),
                mean_logprob=ballot.response.mean_logprob,
            )
            for ballot in ballots
        ],
        gold=response.gold,
        choices=response.choices,
        agreement=None if winner is None else float(totals[winner] / whole),
        entropy=None if winner is None else _entropy(shares),
        soft_labels=_soft_labels(ballots, label_type, response.choices or labels),
        rationalised=response.rationalised,
        slices=response.slices,
    )


def _chosen(ballots: list[_Ballot], kept: Kept) -> _Ballot:
    """The one whose rationale (in a free response: whose text) is kept; of equals the first."""
    if kept == "highest_logprob":
        return max(ballots, key=lambda ballot: _number(ballot.response.mean_logprob))
    if kept == "shortest":
        return min(ballots, key=lambda ballot: _length(ballot.answer))
    return ballots[0]


def _length(answer: _Answer) -> tuple[bool, int]:
    written = answer.text if answer.rationale is None else answer.rationale
    return not written, len(written)


def _number(logprob: float | None) -> float:
    return logprob if logprob is not None and math.isfinite(logprob) else -math.inf


def _entropy(shares: Sequence[float]) -> float:
    """Shannon entropy in bits, rounded so that it is the same on every machine."""
    if len(shares) == 1:
        return 0.0
    return abs(round(-math.fsum(share * math.log2(share) for share in shares if share), 9))


def _soft_labels(
    ballots: Sequence[_Ballot], label_type: LabelType, options: Sequence[str] | None
) -> dict[str, float] | None:
    """The mean distribution over the labels, in the order of ``options``, weighted as the votes are; None where no response has one.

    What a rationalised response was told tells nothing about the teacher.
    """
    found = []
    for ballot in ballots:
        given = ballot.response.label_logprobs
        if given and not ballot.response.rationalised:
            distribution = _softmax(given, label_type, options)
            found += [(float(ballot.weight), distribution)] if distribution else []
    if not found:
        return None
    names = dict.fromkeys(options or ()) | dict.fromkeys(sorted({name for _, one in found for name in one}))
    total = math.fsum(weight for weight, _ in found)
    mean = {name: math.fsum(weight * one.get(name, 0.0) for weight, one in found) / total for name in names}
    return {name: share for name, share in mean.items() if any(name in one for _, one in found)}


def _softmax(
    logprobs: Mapping[str, float], label_type: LabelType, options: Sequence[str] | None
) -> dict[str, float] | None:
    """Label, in its one spelling -> probability among the labels; None where no log-probability is a number."""
    highest = max(map(_number, logprobs.values()))
    if highest == -math.inf:
        return None
    parts: dict[str, list[float]] = {}
    for raw, logprob in logprobs.items():
        label = label_forms.normalise(raw, label_type, options) or raw
        parts.setdefault(label, []).append(math.exp(_number(logprob) - highest))
    total = math.fsum(part for those in parts.values() for part in those)
    return {label: math.fsum(those) / total for label, those in parts.items()}
