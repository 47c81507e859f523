"""Filters of rationales that say nothing of their own: they repeat the label, the input, an example of the prompt, or themselves."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from operator import eq
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline import prompts
from pipeline.binding import From
from pipeline.filters.reading import Count, Share, quoted, said, written
from pipeline.records import Example
from pipeline.shots import FewShot
from pipeline.sources import read
from pipeline.text import ngrams, words

EMPTY_WORDS = frozenset(
    words(
        "a about an and answer because belongs category choice correct i is it its label of so text that the therefore this to topic which"
    )
)
_BETWEEN_EXAMPLES = re.compile(r"\{[%{#].*?[%}#]\}|\n\s*\n", re.DOTALL)
LONG = 5_000  # characters: in longer inputs, looking for each word by itself takes too long
LONGEST_LOOP = 6  # words
SUMMED = 20  # times that a loop of numbers and signs has to go on
_SUM = frozenset("+-*/")
RUN = 5  # words: shorter runs of words are common to many sentences


def repeats_label(example: Example) -> str | None:
    """The rationale says nothing but the label: "The answer is sports, so the topic is sports"."""
    if not example.rationale or example.label is None:
        return None
    label = None
    for word in said(example.rationale):
        if word not in EMPTY_WORDS:
            label = label or set(words(example.label)) or {""}
            if word not in label:
                return None
    return f"the rationale {quoted(example.rationale)} only repeats the label {quoted(example.label)}"


def repeats_input(example: Example, *, maximum: Share = 0.9) -> str | None:
    """More than ``maximum`` of the rationale's runs of three words stand in the input: it copies instead of explaining."""
    own = said(example.rationale or "")
    runs = len(own) - 2
    if runs <= 0:
        return None
    others = runs - maximum * runs  # how many runs of its own let the rationale pass
    if example.input.isascii() and len(example.input) < LONG:
        # Words that are not in it tell at a glance: each stands at the beginning of a run of its own, but for the last two.
        letters = example.input.lower().replace("'", "").replace("`", "").replace(",", "")
        missing = -2
        for word in own:
            if word not in letters:
                missing += 1
                if missing >= others:
                    return None
    given = set(_threes(said(example.input)))
    copied = sum(map(given.__contains__, _threes(own)))
    if copied <= maximum * runs:
        return None
    return f"{copied} of the rationale's {runs} runs of three words are copied from the input, more than {maximum:.0%}"


def _threes(own: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    return zip(own, own[1:], own[2:], strict=False)


def copies_example(
    example: Example,
    *,
    maximum: Share = 0.8,
    prompt: Annotated[Path | None, From("task.prompt")] = None,
    few_shot: Annotated[FewShot | None, From("stages.sample.few_shot")] = None,
) -> str | None:
    """More than ``maximum`` of the rationale's runs of five words stand in one example of the prompt.

    Examples are the paragraphs of the prompt template's own text, and the columns of the ``few_shot`` file. A rationale of fewer than
    five words is not looked at.
    """
    if prompt is None and few_shot is None:
        return None
    own = said(example.rationale or "")
    runs = len(own) - RUN + 1
    if runs <= 0:
        return None
    known = examples_of(prompt, None if few_shot is None else few_shot.path)
    counts: Counter[int] = Counter()
    missing = 0
    for start in range(runs):
        found = known.get(" ".join(own[start : start + RUN]))
        if found is None:
            missing += 1
            if missing >= runs - maximum * runs:
                return None
        else:
            counts.update(found)
    copied = max(counts.values(), default=0)
    if copied <= maximum * runs:
        return None
    return f"{copied} of the rationale's {runs} runs of five words stand in one example of the prompt, more than {maximum:.0%}"


@lru_cache(maxsize=4)
def examples_of(prompt: Path | None, shots: Path | None) -> dict[str, set[int]]:
    """Each run of words of a prompt's examples -> the examples that it stands in. Raises InputError where a file cannot be read."""
    texts: list[str] = []
    if prompt is not None:
        texts += _BETWEEN_EXAMPLES.split(prompts.text_of(prompts.load(prompt)))
    if shots is not None:
        rows = [row for _, row in read(shots) if isinstance(row, dict)]
        texts += [value for row in rows for value in row.values() if isinstance(value, str)]
    known: dict[str, set[int]] = {}
    for number, text in enumerate(texts):
        for run in ngrams(words(text), RUN):
            known.setdefault(run, set()).add(number)
    return known


def repetition(
    example: Example,
    *,
    shortest: Count = 1000,
    top: Sequence[Share] = (0.20, 0.18, 0.16),
    duplicate: Sequence[Share] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10),
    lines: Share = 0.30,
    line_characters: Share = 0.20,
    in_a_row: Annotated[int, Field(ge=2)] = 5,
) -> str | None:
    """The rationale (in a free response: the text) repeats itself, by the ratios of Gopher (Rae et al. 2021, table A1).

    ``top``: the share of the characters that the most frequent run of 2, 3, 4 words may hold. ``duplicate``: the share that later
    occurrences of runs of 5, 6, .. 10 words may hold. ``lines``, ``line_characters``: the share of later occurrences of lines, by number
    and by characters. Characters are those of the normalised words, without spaces.

    The thresholds were made for web pages; in a rationale of 30 words a sentence that is taken up again passes them all. So shares are of
    at least ``shortest`` characters (and ten lines): 0.15 of a shorter text means 150 characters.

    A loop is one in a text of any length: one to six words said ``in_a_row`` times, one time directly after the other. A loop of numbers
    alone, or with a sign of arithmetic in it ("5 + 5 + 5 + .."), may be a sum, and has to go on for at least 20 times.
    """
    text = written(example)
    own = said(text)
    distinct = set(own)
    # Whatever repeats is made of words said before; what these hold bounds all ratios, and is little in most texts.
    characters = len("".join(own))
    later, enough = characters - len("".join(distinct)), min(top, default=1.0) * shortest
    if later > min(duplicate, default=1.0) * shortest or (characters > enough and 2 * later > enough):
        why = _runs(own, shortest, top, duplicate)
        if why is not None:
            return why
    if len(own) - len(distinct) >= in_a_row - 1 and (why := _loop(own, in_a_row)):
        return why
    return _lines(text, shortest, lines, line_characters) if "\n" in text else None


def _loop(own: Sequence[str], in_a_row: int) -> str | None:
    """The first of the shortest loops."""
    for length in range(1, LONGEST_LOOP + 1):
        # Of the words in a row that a loop has the same as those ``length`` before them, one stands at a multiple of ``step``.
        step = length * (in_a_row - 1)
        if not any(map(eq, own[::step], own[length::step])):
            continue
        # A byte for each word: whether it is the same as the one ``length`` words before it.
        same = bytes(map(eq, own, own[length:]))
        start = same.find(b"\1" * step)
        while start >= 0:
            end = same.find(b"\0", start)
            times = ((len(same) if end < 0 else end) - start) // length + 1
            turn = own[start : start + length]
            if times >= SUMMED or "=" in turn or (_SUM.isdisjoint(turn) and any(map(str.isalpha, turn))):
                return f"the words {quoted(' '.join(turn))} stand there {times} times in a row"
            start = -1 if end < 0 else same.find(b"\1" * step, end)
    return None


def _runs(own: Sequence[str], shortest: int, top: Sequence[float], duplicate: Sequence[float]) -> str | None:
    total = max(len("".join(own)), shortest, 1)
    stretches, often = _stretches(own)
    # A run of n words that was said before lies in a stretch of at least n - 1 such pairs, and no run is said more often than a pair.
    held = [characters for _, characters in stretches]
    if sum(held) <= min(duplicate, default=1.0) * total and often * max(held) <= min(top, default=1.0) * total:
        return None
    for n, share in enumerate(top, 2):
        those = [held for pairs, held in stretches if pairs >= n - 1]
        if often * max(those, default=0) > share * total:
            run, count = _most_frequent(own, n)
            holds = count * len(run.replace(" ", ""))
            if holds > share * total:
                words_said = f"the words {quoted(run)} stand there {count} times"
                return f"{words_said} and hold {holds / total:.1%} of {total} characters, more than {share:.0%}"
    for n, share in enumerate(duplicate, 5):
        bound = sum([held for pairs, held in stretches if pairs >= n - 1])
        if bound > share * total and (holds := _later(own, n)) > share * total:
            return (
                f"runs of {n} words said before hold {holds / total:.1%} of {total} characters, more than {share:.0%}"
            )
    return None


def _stretches(own: Sequence[str]) -> tuple[list[tuple[int, int]], int]:
    """Each stretch of words of which all pairs of neighbours were said before, and how often the most frequent pair was said.

    A stretch is the number of its pairs, and its characters.
    """
    seen: dict[tuple[str, str], int] = {}
    found: list[tuple[int, int]] = []
    pairs = held = 0
    for pair in pairwise(own):
        if pair in seen:
            seen[pair] += 1
            held += len(pair[1]) if pairs else len(pair[0]) + len(pair[1])
            pairs += 1
        else:
            seen[pair] = 1
            if pairs:
                found.append((pairs, held))
                pairs = held = 0
    return [*found, (pairs, held)], max(seen.values(), default=0)


def _most_frequent(own: Sequence[str], n: int) -> tuple[str, int]:
    """The repeated run of ``n`` words that holds most characters, and how often it stands there; occurrences do not overlap."""
    counts: dict[str, int] = {}
    ends: dict[str, int] = {}
    for start, run in enumerate(ngrams(own, n)):
        if start >= ends.get(run, 0):
            counts[run] = counts.get(run, 0) + 1
            ends[run] = start + n
    repeated = {run: count for run, count in counts.items() if count > 1}
    return max(repeated.items(), key=lambda item: item[1] * (len(item[0]) - n + 1), default=("", 0))


def _later(own: Sequence[str], n: int) -> int:
    """How many characters stand in runs of ``n`` words that were said before, each character counted once."""
    seen: set[str] = set()
    held = counted = 0
    for start, run in enumerate(ngrams(own, n)):
        if run in seen:
            held += sum(map(len, own[max(start, counted) : start + n]))
            counted = start + n
        else:
            seen.add(run)
    return held


def _lines(text: str, shortest: int, lines: float, line_characters: float) -> str | None:
    found = [line for raw in text.split("\n") if (line := raw.strip())]
    seen: set[str] = set()
    later = [line for line in found if line in seen or seen.add(line)]  # type: ignore[func-returns-value]
    number, characters = max(len(found), 10), max(sum(map(len, found)), shortest, 1)
    if len(later) > lines * number:
        return f"{len(later)} of {len(found)} lines repeat an earlier one, more than {lines:.0%} of {number}"
    held = sum(map(len, later))
    if held > line_characters * characters:
        return f"lines said before hold {held / characters:.1%} of {characters} characters, more than {line_characters:.0%}"
    return None
