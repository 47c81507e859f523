"""decontaminate: drop examples that overlap an eval set, with the eval row and the words they share.

    {"id": "b7..", "reason": "contaminated", "evidence": {"eval_set": "test", "eval_row": "41", "eval_text": "Late goal sinks ..",
     "where": "input", "method": "8-gram", "overlap": "late goal sinks the leaders in the rain", ...}}

Texts are compared by the words of their normalised form (text.py). An example's input or rationale overlaps an eval row where

1. their normalised texts are equal (method ``exact``), or
2. they share any run of ``ngram`` words (``8-gram``), or
3. one of them is shorter than ``ngram`` words, and the whole of it, at least ``shortest`` words, stands in the other (``contained``).

The first of these that holds is the evidence, the input before the rationale, eval sets in their order in stages.yaml.

Limits: any shared run counts, so long texts that quote the same passage, or boilerplate in all inputs, flag each other: put only the
text itself into ``task.input``. A row in which every run of ``ngram`` words was edited, a paraphrase or a translation is not found; a
smaller ``ngram`` finds more edited rows and flags more innocent ones. All runs of words of the eval sets are held in memory.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from pipeline.binding import From
from pipeline.files import InputError
from pipeline.ingest import prompts
from pipeline.records import Drop, Example, Prompt
from pipeline.sources import EvalSet
from pipeline.text import excerpt, ngrams, normalise

Where = Literal["input", "rationale"]


def decontaminate(
    rows: Iterable[Example],
    *,
    ngram: Annotated[int, Field(ge=2, le=100)] = 8,
    shortest: Annotated[int, Field(ge=1, le=100)] = 5,
    fields: Sequence[Where] = ("input", "rationale"),
    eval_sets: Annotated[Mapping[str, EvalSet], From("eval_sets")],
) -> Iterator[Drop | None]:
    """One verdict a row, from that row alone.

    ngram: words in a run that must not be shared. shortest: words that a text shorter than ``ngram`` must have to be looked for inside
    others. fields: which texts of an example are compared with the eval rows' inputs.

    Raises InputError, before the first verdict, where an eval set has no rows or one that cannot be read.
    """
    settings: dict[str, JsonValue] = {"ngram": ngram, "shortest": shortest}
    index = _Index(ngram, shortest)
    for name, eval_set in eval_sets.items():
        for prompt in _eval_rows(name, eval_set):
            index.add(name, prompt)
    for row in rows:
        verdict = None
        for field in fields:
            text = getattr(row, field)
            found = index.overlap(text) if text else None
            if found is not None:
                evidence: dict[str, JsonValue] = {"where": field, "text": excerpt(text), **found, "settings": settings}
                verdict = Drop(id=row.id, reason="contaminated", evidence=evidence)
                break
        yield verdict


def _eval_rows(name: str, eval_set: EvalSet) -> Iterator[Prompt]:
    if eval_set.input is None:
        raise InputError(f"eval_sets.{name}.input: is missing; say which text of a row is its input")
    given = prompts(
        eval_set.path,
        input=eval_set.input,
        gold=eval_set.gold,
        choices=eval_set.choices,
        id=eval_set.id,
        on_bad_row="stop",
    )
    found = False
    for prompt in given:
        if isinstance(prompt, Prompt):  # as bad rows stop, there are no drops
            found = True
            yield prompt
    if not found:
        raise InputError(f"eval_sets.{name}.path: {eval_set.path} has no rows; nothing can be compared with it")


class _Index:
    """The eval rows, by whole text and by runs of words."""

    def __init__(self, ngram: int, shortest: int) -> None:
        self.ngram, self.shortest = ngram, shortest
        self.rows: list[tuple[str, Prompt, list[str]]] = []
        self.exact: dict[str, int] = {}
        self.runs: dict[int, dict[str, int]] = {}  # length -> run of words -> the first eval row it stands in
        self.short: dict[int, dict[str, int]] = {}  # length -> whole text shorter than ngram -> its eval row

    def add(self, name: str, prompt: Prompt) -> None:
        """One more eval row."""
        place, normalised = len(self.rows), normalise(prompt.input)
        words = normalised.split()
        self.rows.append((name, prompt, words))
        self.exact.setdefault(normalised, place)
        if self.shortest <= len(words) < self.ngram:
            self.short.setdefault(len(words), {}).setdefault(normalised, place)

    def overlap(self, text: str) -> dict[str, JsonValue] | None:
        """The evidence that ``text`` overlaps an eval row, or None."""
        normalised = normalise(text)
        words = normalised.split()
        if normalised in self.exact:
            return self._evidence("exact", self.exact[normalised], normalised)
        if self.shortest <= len(words) < self.ngram:
            place = self._runs(len(words)).get(normalised)
            if place is not None:
                return self._evidence("contained", place, normalised)
        runs = self._runs(self.ngram)
        for start, run in enumerate(ngrams(words, self.ngram)):
            if run in runs:
                place = runs[run]
                shared = _shared(words, start, self.rows[place][2], self.ngram)
                return self._evidence(f"{self.ngram}-gram", place, shared)
        for length, texts in sorted(self.short.items()):
            for run in ngrams(words, length):
                if run in texts:
                    return self._evidence("contained", texts[run], run)
        return None

    def _runs(self, length: int) -> dict[str, int]:
        """All runs of ``length`` words; other lengths than ``ngram`` are made when the first text of that length comes."""
        if length not in self.runs:
            runs: dict[str, int] = {}
            for place, (_, _, words) in enumerate(self.rows):
                for run in ngrams(words, length):
                    runs.setdefault(run, place)
            self.runs[length] = runs
        return self.runs[length]

    def _evidence(self, method: str, place: int, overlap: str) -> dict[str, JsonValue]:
        name, prompt, _ = self.rows[place]
        return {
            "eval_set": name,
            "eval_row": prompt.id,
            "eval_source": prompt.source,
            "eval_text": excerpt(prompt.input),
            "method": method,
            "overlap": excerpt(overlap),
        }


def _shared(words: list[str], start: int, other: list[str], ngram: int) -> str:
    """The whole run of words around ``words[start : start + ngram]`` that also stands in ``other``."""
    run = words[start : start + ngram]
    at = next(place for place in range(len(other)) if other[place : place + ngram] == run)
    end = ngram
    while start + end < len(words) and at + end < len(other) and words[start + end] == other[at + end]:
        end += 1
    return " ".join(words[start : start + end])
