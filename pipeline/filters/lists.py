"""Filters by lists of your own: phrases and patterns that a rationale must not hold, or must hold one of.

    - block_list: {phrases: [stock phrase], patterns: ['(?i)figure \\\\d+'], file: blocked.txt, where: [rationale, input]}

Phrases are compared as pipeline.text normalises them, as whole words: letter case, accents' spelling, punctuation and white space do not
count. A file holds one phrase a line; empty lines and lines that begin with "#" are passed over. Its content is part of the stage's key.
Patterns are Python's regular expressions, found anywhere in the text as it is written.

Limits: a pattern with nested repeats such as ``(a+)+$`` can take forever on a long text: after 10 s of the processor the run stops.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline.binding import InputPath
from pipeline.files import InputError, regular
from pipeline.filters.reading import quoted
from pipeline.limits import TooLongError, bounded
from pipeline.records import Example
from pipeline.text import normalise

Part = Literal["rationale", "text", "input", "label"]


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression ({error})") from None
    except (OverflowError, RecursionError):
        raise ValueError("no regular expression (too large)") from None
    return pattern


def _has_words(phrase: str) -> str:
    if not normalise(phrase):
        raise ValueError("an empty phrase would stand everywhere")
    return phrase


Pattern = Annotated[str, AfterValidator(_compiles)]
Phrase = Annotated[str, AfterValidator(_has_words)]
Where = Annotated[Sequence[Part], Field(min_length=1)]


def block_list(
    example: Example,
    *,
    phrases: Sequence[Phrase] = (),
    patterns: Sequence[Pattern] = (),
    file: InputPath | None = None,
    where: Where = ("rationale",),
) -> str | None:
    """A phrase of the list (of ``phrases`` or of the ``file``) or one of the ``patterns`` stands in the rationale, or the parts named."""
    found = _found(example, tuple(phrases), tuple(patterns), file, where)
    return found and f"the {found[0]} holds {quoted(found[1])}, which is on the block list"


def allow_list(
    example: Example,
    *,
    phrases: Sequence[Phrase] = (),
    patterns: Sequence[Pattern] = (),
    file: InputPath | None = None,
    where: Where = ("rationale",),
) -> str | None:
    """No phrase of the list (of ``phrases`` or of the ``file``) and none of the ``patterns`` stands in the rationale or the parts named."""
    if all(_part(example, part) is None for part in where) or _found(
        example, tuple(phrases), tuple(patterns), file, where
    ):
        return None
    return f"nothing of the allow list stands in the {' or '.join(where)}"


def _found(
    example: Example, phrases: tuple[str, ...], patterns: tuple[str, ...], file: Path | None, where: Sequence[Part]
) -> tuple[str, str] | None:
    """The first part that holds something of the list, and what. Raises InputError where nothing is listed."""
    if not (phrases or patterns or file):
        raise InputError("nothing is listed; give phrases, patterns or a file")
    spelled = listed(phrases, file)
    for part in where:
        text = _part(example, part)
        if text is None:
            continue
        if spelled:
            shown = f" {normalise(text)} "
            for phrase in spelled:
                if phrase in shown:
                    return part, phrase.strip()
        for pattern in patterns:
            try:
                match = bounded(re.search, pattern, text)
            except TooLongError as error:
                told = f"the pattern {quoted(pattern)} {error} on {quoted(example.id)}"
                raise InputError(
                    f"stages.quality.filters: block_list or allow_list: {told}; write it without nested repeats"
                ) from None
            if match:
                return part, match[0] or pattern
    return None


def _part(example: Example, part: Part) -> str | None:
    return {"rationale": example.rationale, "text": example.text, "input": example.input, "label": example.label}[part]


@lru_cache(maxsize=16)
def listed(phrases: tuple[str, ...], file: Path | None) -> list[str]:
    """The phrases as they are looked for. Raises InputError where the file cannot be read, or holds none."""
    found = list(phrases)
    if file is not None:
        try:
            lines = regular(file).read_bytes().decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror}); check the path") from None
        read = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not read:
            raise InputError(f"{file}: no phrase in this file; write one a line")
        found += read
    return [f" {normalise(phrase)} " for phrase in dict.fromkeys(found)]
