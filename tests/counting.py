"""How often each promise was put to the test: counts for the table in docs/guarantees.md, kept where TORTURE_COUNTS names a file."""

import json
import os
from pathlib import Path


def counted(what: str, number: int = 1) -> None:
    """Note ``number`` more tries of this kind."""
    if path := os.environ.get("TORTURE_COUNTS"):
        with Path(path).open("a") as file:
            file.write(json.dumps([what, number]) + "\n")
