"""Fuzzing that follows coverage (scripts/fuzz.py, with atheris) runs, finds a defect that was put there, and finds no other.

By default a few hundred inputs for each target; `TORTURE=1` gives each one FUZZ_SECONDS (1200). What was found once stays: FOUND.
"""

import os
import subprocess
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fuzz_targets import PLANTED, TARGETS, odd_segments

REAL = [name for name in TARGETS if name not in PLANTED]
ROOT = Path(__file__).parents[1]
LONG = ["--seconds", os.environ.get("FUZZ_SECONDS", "1200")]
SHORT = ["--seconds", "60", "--executions", "200", "--seed", "1"]
needs_atheris = pytest.mark.skipif(find_spec("atheris") is None, reason="atheris has no build for this platform")

FOUND = {
    "a row that ingest took, and no later stage could read": ("rows", b'{"text":"a","more":-' + b"9" * 4300 + b"}"),
    "a key as .NET spells it": ("answers", b'{"error":"Incorrect key sk-1234/5678\\u002Babcdefgh"}'),
    "a key as pages spell it": ("answers", b"<p>Incorrect key sk-1234&#x2F;5678&#43;abcdefgh</p>"),
    "a key in UTF-16": ("answers", '{"error":"Incorrect key sk-1234/5678+abcdefgh"}'.encode("utf-16-le")),
    **{f"a record with {name}": ("segments", content) for name, content in odd_segments().items()},
    "a table that breaks off within a character": ("csv", b"c\ro\n\xc2"),
}


def fuzz(tmp_path: Path, target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script on a corpus of its own."""
    return subprocess.run(
        [
            *(sys.executable, "scripts/fuzz.py", target, "--found", str(tmp_path / "found")),
            *("--corpus", str(tmp_path / "corpus"), *arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


@pytest.mark.parametrize("target", REAL)
def test_what_fuzzing_begins_from_is_as_it_should_be(tmp_path: Path, target: str) -> None:
    with ExitStack() as closing:
        attempt = TARGETS[target].begin(tmp_path, closing)
        for seed in TARGETS[target].seeds():
            attempt(seed)


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_mended(tmp_path: Path, name: str) -> None:
    target, content = FOUND[name]
    with ExitStack() as closing:
        TARGETS[target].begin(tmp_path, closing)(content)


@needs_atheris
@pytest.mark.parametrize("target", REAL)
def test_nothing_is_found(tmp_path: Path, target: str) -> None:
    done = fuzz(tmp_path, target, *(LONG if "TORTURE" in os.environ else SHORT))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing found" in done.stdout and not list((tmp_path / "found").iterdir())
    assert list((tmp_path / "corpus").iterdir())


@needs_atheris
def test_a_planted_defect_is_found_by_its_branches(tmp_path: Path) -> None:
    """Four bytes in a row: chance alone would take billions of inputs."""
    done = fuzz(tmp_path, "planted", "--seconds", "120", "--seed", "1")
    (broken,) = (tmp_path / "found").iterdir()
    assert done.returncode == 1 and broken.read_bytes().startswith(b"ohno")
    (line,) = done.stdout.splitlines()
    assert line.startswith("planted: ") and f"found {broken}; see it with `" in line
    again = fuzz(tmp_path, "planted", "--input", str(broken))
    assert again.returncode == 1 and "the defect that was put there" in again.stderr


@needs_atheris
def test_what_takes_too_long_is_found_and_kept(tmp_path: Path) -> None:
    done = fuzz(tmp_path, "endless", "--seconds", "60", "--seed", "1", "--seconds-each", "1")
    (broken,) = (tmp_path / "found").iterdir()
    assert done.returncode == 1 and broken.name.startswith("timeout-")
