"""Tries to break every promise of docs/guarantees.md as often as its harness can, and writes the counts there. Run by `make torture`.

Takes hours on two cores. Arguments are handed to pytest: `python scripts/torture.py tests/test_faults.py` runs one part, whose rows alone
are then written.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "guarantees.md"
BEGIN, END = "<!-- counts: written by scripts/torture.py -->\n", "<!-- /counts -->"
PARTS = [
    "test_faults",
    "test_faults_training",
    "test_places",
    "test_random_kills",
    "test_power_loss",
    "test_concurrent",
    "test_kills",
    "test_resume",
    "test_malformed",
    "test_fuzz",
    "test_coverage_fuzz",
    "test_endurance",
]
MORE = {"TORTURE": "1", "NIGHTLY": "1", "KILLS": "700", "RESUMES": "20"}


def main() -> None:
    """Run the parts one after the other; the exit code is 1 where a promise broke."""
    chosen = sys.argv[1:] or [f"tests/{name}.py" for name in PARTS if (ROOT / "tests" / f"{name}.py").is_file()]
    broken = []
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as counts:
        began = time.monotonic()
        for part in chosen:
            print(f"torture: {part}", flush=True)
            command = [sys.executable, "-m", "pytest", "-q", part]
            done = subprocess.run(
                command, cwd=ROOT, env={**os.environ, **MORE, "TORTURE_COUNTS": counts.name}, check=False
            )
            if done.returncode:
                broken.append(part)
        tried: Counter[str] = Counter()
        for line in Path(counts.name).read_text().splitlines():
            what, number = json.loads(line)
            tried[what] += number
    write(known(PAGE.read_text()) | tried, time.monotonic() - began)
    print(
        f"torture: {'broken: ' + ', '.join(broken) if broken else 'nothing broke'}; counts are in {PAGE.relative_to(ROOT)}"
    )
    sys.exit(bool(broken))


def known(page: str) -> dict[str, int]:
    """The counts that the page has already."""
    rows = page.partition(BEGIN)[2].partition(END)[0].splitlines()
    cells = [row.strip("| ").split(" | ") for row in rows if row.startswith("| ")]
    return {
        what.strip(): int(number.replace(",", ""))
        for what, number in cells
        if number.strip().replace(",", "").isdigit()
    }


def write(tried: dict[str, int], seconds: float) -> None:
    """Put the table into the page."""
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = [f"| {what} | {number:,} |" for what, number in sorted(tried.items())]
    table = "\n".join(["| what was tried | how often |", "|---|---|", *lines])
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    when = f"Last written after {seconds / 60:,.0f} minutes on {machine}."
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n\n{when}\n\n{END}{after}")


if __name__ == "__main__":
    main()
