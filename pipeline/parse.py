r"""parse: responses -> Example. Label and rationale out of the text, and a vote over the samples of a prompt.

    pattern: '(?s)(?P<rationale>.*?)\s*So the answer is (?P<label>.+?)\.?'

    {"id": "9f..#0", "text": "A goal is scored. So the answer is Sports.\n\nQ: ..", ...}
    -> {"id": "9f..", "label": "sports", "rationale": "A goal is scored.", "votes": [{"label": "sports", ..}], ...}

The text is cut at the earliest of the ``cut_at`` strings, stripped, and the pattern must cover all of it (``re.fullmatch``: end it
with ``.*`` under ``(?s)`` where anything may follow). What the groups ``label`` and ``rationale`` hold, stripped, is what the response
said; the label is put into its one spelling by its type. A free response (``targets: [response]``) needs no pattern; with one, its
group ``response`` is taken.

Limits: patterns run in Python's ``re``, which has no time limit: nested repeats such as ``(a+)+$`` can take forever on a long text.
Labels that are no member of the set still count in the vote: what a teacher mostly said is its answer, and quality drops it with that
evidence.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Annotated

from pydantic import AfterValidator, Field, JsonValue

from pipeline import labels as label_forms
from pipeline.binding import From, suggestion
from pipeline.files import InputError
from pipeline.labels import LabelType
from pipeline.records import Drop, Example, Response, Target, Vote
from pipeline.text import excerpt

GROUPS = ("label", "rationale", "response")


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
    label_type: LabelType = "text",
    cut_at: Sequence[Annotated[str, Field(min_length=1)]] = (),
    min_agreement: Annotated[float, Field(ge=0, le=1)] = 0.0,
    labels: Annotated[list[str] | None, From("task.labels")] = None,
    targets: Annotated[Sequence[Target], From("task.targets")] = ("label", "rationale"),
) -> Iterator[Example | Drop]:
    """One Example a prompt, from all its responses; they must stand next to each other.

    pattern: where label and rationale stand. label_type: how labels are read and compared. cut_at: texts that open what no longer
    belongs to the answer. min_agreement: the share of a prompt's parsed responses, 0 to 1, that must say the winning label.

    The label that most responses say wins, of equally many the one said first; rationale and text are those of the first response that
    said it. Dropped, each with the id of its response: ``unparsed`` ones, and with reason ``low_agreement`` all of a prompt that
    agree too little. Raises InputError, before the first row, where the pattern lacks what the targets need.
    """
    try:
        found = re.compile(checked_pattern(pattern)) if pattern is not None else None
    except ValueError as error:
        raise InputError(f"stages.parse.pattern: {error}") from None
    for target in targets:
        if target != "response" and (found is None or target not in found.groupindex):
            problem = "is missing" if found is None else f"has no group '{target}'"
            raise InputError(f"stages.parse.pattern: {problem}, and task.targets names {target}; add (?P<{target}>..)")
    read = partial(_read, pattern=found, label_type=label_type, cut_at=cut_at, labels=labels)
    return _examples(rows, read, label_type, min_agreement)


@dataclass(frozen=True)
class _Answer:
    """What one response said."""

    label: str | None
    rationale: str | None
    text: str


def _examples(
    rows: Iterable[Response], read: Callable[[Response], _Answer | Drop], label_type: LabelType, min_agreement: float
) -> Iterator[Example | Drop]:
    for _, group in groupby(rows, key=lambda response: response.prompt):
        parsed: list[tuple[Response, _Answer]] = []
        for response in group:
            answer = read(response)
            if isinstance(answer, Drop):
                yield answer
            else:
                parsed.append((response, answer))
        if parsed:
            yield from _voted(parsed, label_type, min_agreement)


def _read(
    response: Response,
    *,
    pattern: re.Pattern[str] | None,
    label_type: LabelType,
    cut_at: Sequence[str],
    labels: list[str] | None,
) -> _Answer | Drop:
    """What a response said, or the drop that tells why that cannot be made out."""
    cuts = [place for place in map(response.text.find, cut_at) if place >= 0]
    text = response.text[: min(cuts, default=None)].strip()
    label = rationale = None
    problem = "" if text else "the text is empty"
    if text and pattern is not None:
        match = pattern.fullmatch(text)
        said = {name: (match[name] or "").strip() for name in pattern.groupindex} if match is not None else {}
        rationale = said.get("rationale")
        text = said.get("response", text)
        if match is None:
            problem = "the pattern does not fit the text"
        elif not said.get("response", text):
            problem = "the response is empty"
        elif "label" in said:
            label = label_forms.normalise(said["label"], label_type, labels, response.choices)
            problem = "" if label else "the label is empty"
    if not problem:
        return _Answer(label, rationale, text)
    evidence: dict[str, JsonValue] = {
        "problem": problem,
        "text": excerpt(text),
        "characters_cut": len(response.text) - min(cuts, default=len(response.text)),
        "finish_reason": response.finish_reason,
        "pattern": None if pattern is None else excerpt(pattern.pattern, 120),
    }
    return Drop(id=response.id, reason="unparsed", evidence=evidence)


def _voted(
    parsed: list[tuple[Response, _Answer]], label_type: LabelType, min_agreement: float
) -> Iterator[Example | Drop]:
    """The example that the responses to one prompt make, or a drop for each of them."""
    keys = [None if answer.label is None else label_forms.key(answer.label, label_type) for _, answer in parsed]
    winner, count = Counter(keys).most_common(1)[0]  # of equal counts, the one said first
    agreement = count / len(parsed)
    if agreement < min_agreement:
        votes: dict[str, JsonValue] = {other.id: said.label for other, said in parsed}
        for other, _ in parsed:
            evidence: dict[str, JsonValue] = {
                "votes": votes,
                "agreement": round(agreement, 4),
                "min_agreement": min_agreement,
            }
            yield Drop(id=other.id, reason="low_agreement", evidence=evidence)
        return
    response, answer = parsed[keys.index(winner)]
    yield Example(
        id=response.prompt,
        input=response.input,
        label=answer.label,
        rationale=answer.rationale,
        response=response.id,
        text=answer.text,
        finish_reason=response.finish_reason,
        votes=[
            Vote(response=other.id, request=other.request, teacher=other.teacher, label=said.label)
            for other, said in parsed
        ],
        gold=response.gold,
        choices=response.choices,
    )
