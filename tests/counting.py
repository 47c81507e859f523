"""How often each promise was put to the test: counts for the table in docs/guarantees.md, kept where TORTURE_COUNTS names a file.

TORTURE=1 tries everything there is to try; of what takes hours, TORTURE=7 tries every 7th, and the counts say so.
"""

import json
import os
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
STEP = int(os.environ.get("TORTURE") or 1)


def every(cases: list[T]) -> list[T]:
    """All of them, or every so-manieth, as TORTURE says."""
    return cases[STEP // 2 :: STEP]


def counted(what: str, number: int = 1) -> None:
    """Note ``number`` more tries of this kind."""
    if path := os.environ.get("TORTURE_COUNTS"):
        told = what if STEP == 1 else f"{what} (every {STEP}th)"
        with Path(path).open("a") as file:
            file.write(json.dumps([told, number]) + "\n")
