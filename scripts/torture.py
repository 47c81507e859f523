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
    "test_control",
    "test_coverage_fuzz",
    "test_endurance",
]
MORE = {"TORTURE": "1", "NIGHTLY": "1", "KILLS": "700", "RESUMES": "20"}


def main() -> None:
    """Run the parts one after the other; the exit code is 1 where a promise broke."""
    chosen = sys.argv[1:] or [f"tests/{name}.py" for name in PARTS]
    broken = []
    for part in chosen:
        print(f"torture: {part}", flush=True)
        began = time.monotonic()
        with tempfile.NamedTemporaryFile(suffix=".jsonl") as counts:
            environment = {**os.environ, **MORE, "TORTURE_COUNTS": counts.name}
            done = subprocess.run([sys.executable, "-m", "pytest", "-q", part], cwd=ROOT, env=environment, check=False)
            if done.returncode:
                broken.append(part)
            write(tried(Path(counts.name)), time.monotonic() - began)  # now: the next part may be stopped
    print(
        f"torture: {'broken: ' + ', '.join(broken) if broken else 'nothing broke'}; counts are in {PAGE.relative_to(ROOT)}"
    )
    sys.exit(bool(broken))


def tried(counts: Path) -> Counter[str]:
    """How often each kind was, by the lines that tests/counting.py wrote."""
    found: Counter[str] = Counter()
    for line in counts.read_text().splitlines():
        what, number = json.loads(line)
        found[what] += number
    return found


def known(page: str) -> dict[str, int]:
    """The counts that the page has already."""
    rows = page.partition(BEGIN)[2].partition(END)[0].splitlines()
    cells = [row.strip("| ").split(" | ") for row in rows if row.startswith("| ")]
    return {
        what.strip(): int(number.replace(",", ""))
        for what, number in cells
        if number.strip().replace(",", "").isdigit()
    }


def write(counts: Counter[str], seconds: float) -> None:
    """Put the counts into the page, beside those that are there already or in their place."""
    page = PAGE.read_text()
    found = known(page) | counts
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = [f"| {what} | {number:,} |" for what, number in sorted(found.items())]
    table = "\n".join(["| what was tried | how often |", "|---|---|", *lines])
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    when = f"The part run last took {seconds / 60:,.0f} minutes on {machine}."
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n\n{when}\n\n{END}{after}")


if __name__ == "__main__":
    main()
