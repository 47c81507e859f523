"""What filters look at, in the forms that several of them need.

written(example)   the rationale or, in a free response, the whole text
said(text)         its words as pipeline.text makes them, worked out once for all filters of a row
quoted("a\\x07b")  -> 'a\\x07b', in quotes and on one line: evidence that cannot drive a terminal
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

from pydantic import Field

from pipeline.files import plain
from pipeline.records import Example
from pipeline.text import words

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def written(example: Example) -> str:
    """What a student would learn to write: the rationale, or the text where the task has no label or no rationale."""
    return example.text if example.label is None or example.rationale is None else example.rationale


@lru_cache(maxsize=16)
def said(text: str) -> Sequence[str]:
    """The normalised words of ``text``."""
    return words(text)


def quoted(text: str, limit: int = 80) -> str:
    """``text`` in quotes, on one line, at most ``limit`` characters of it."""
    return f"'{plain(text[: limit + 1], limit)}'"
