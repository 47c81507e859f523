"""Input as nobody should hand it over: each case of tests/malformed.py ends as it says, in bounded time and memory, with one line.

`python -m tests.test_malformed` counts the cases by kind.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bounded import Ask, bounded
from tests.counting import counted
from tests.malformed import FINISHED, RUN, Case, all_cases, write_small

CASES = all_cases()
LISTS = (("audit",), ("responses", "verify"))  # commands that say what they found line by line


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    with bounded(tmp_path_factory.mktemp("said")) as found:
        yield found


@pytest.fixture(scope="module")
def begun(ask: Ask, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The project, before a run and after one."""
    before = write_small(tmp_path_factory.mktemp("before") / "project")
    after = shutil.copytree(before, tmp_path_factory.mktemp("after") / "project")
    done = ask(after, "run")
    assert done.code == 0, done.said
    return {False: before, True: after}


@pytest.mark.parametrize("case", CASES, ids=[f"{case.kind}: {case.name}" for case in CASES])
def test_it_ends_with_one_clear_line(ask: Ask, begun: dict[bool, Path], tmp_path: Path, case: Case) -> None:
    folder = shutil.copytree(begun[case.kind in FINISHED], tmp_path / "project")
    case.make(folder)
    end = ask(folder, *case.asked)
    assert end.code == case.code, end
    assert "Traceback" not in end.said
    assert end.megabytes < case.megabytes
    lines = end.said.strip().splitlines()
    told = [line for line in lines if line.startswith("stepdistill: ")]
    if case.code == 0 or (case.code == 1 and case.asked in LISTS):
        assert not told and re.search(case.said, end.said), end.said
    else:
        assert told == lines[-1:], end.said
        assert re.match(case.said, told[0].removeprefix("stepdistill: ")), end.said
        assert told[0].isprintable() and len(told[0]) < 6000
    if case.rows is not None:
        stage, kept, dropped = case.rows
        (manifest,) = (folder / RUN / stage).glob("*/manifest.json")
        counts = json.loads(manifest.read_bytes())["counts"]
        assert (counts["kept"], counts["dropped"]) == (kept, dropped)
    counted(f"malformed inputs: {case.kind}")


def test_there_are_as_many_cases_as_were_promised() -> None:
    assert len(CASES) >= 300


if __name__ == "__main__":
    for kind, number in Counter(case.kind for case in CASES).items():
        print(f"{kind:12} {number}")
    print(f"{'all':12} {len(CASES)}")
