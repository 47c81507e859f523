"""Filters of the rationale's length.

Words are those of pipeline.text. Tokens are those of a tokenizer that the setting names, since the stored tokens of a response count its
label and whatever was cut off behind it.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

from pipeline.binding import InputPath
from pipeline.files import InputError, plain
from pipeline.filters.reading import Count, said
from pipeline.records import Example

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer


def min_words(example: Example, *, minimum: Count = 4) -> str | None:
    """The rationale has fewer words."""
    if example.rationale is None:
        return None
    count = len(said(example.rationale))
    return f"the rationale has {count} words, fewer than {minimum}" if count < minimum else None


def max_words(example: Example, *, maximum: Count = 300) -> str | None:
    """The rationale has more words."""
    if not example.rationale:
        return None
    count = len(said(example.rationale))
    return f"the rationale has {count} words, more than {maximum}" if count > maximum else None


def tokens(example: Example, *, tokenizer: InputPath, minimum: Count = 0, maximum: Count | None = None) -> str | None:
    """The rationale has fewer or more tokens; ``tokenizer`` is the ``tokenizer.json`` of the student, special tokens are not counted.

    It costs some 50 microseconds a row. Raises InputError where the file holds no tokenizer.
    """
    if example.rationale is None:
        return None
    read = _tokenizer(tokenizer, tokenizer.stat().st_mtime_ns if tokenizer.is_file() else 0)
    count = len(read.encode(example.rationale, add_special_tokens=False).ids)
    if count < minimum:
        return f"the rationale has {count} tokens, fewer than {minimum}"
    if maximum is not None and count > maximum:
        return f"the rationale has {count} tokens, more than {maximum}"
    return None


@lru_cache(maxsize=4)
def _tokenizer(path: "Path", changed: int) -> "Tokenizer":
    """The tokenizer in the ``tokenizer.json`` that was last ``changed`` then. Raises InputError."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(path.read_bytes().decode())
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise InputError(f"{path}: no tokenizer ({plain(str(error), 120)}); name a tokenizer.json") from None
