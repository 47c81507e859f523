"""The set-up: what stops it says so in one line, it starts again after an interruption, and the lock fits pyproject.toml."""

import shutil
import subprocess
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
TOOLS = ["bash", "cat", "cksum", "cp", "dirname", "flock", "grep", "mkdir", "mv", "pwd", "rm", "tail", "touch"]
PYTHON = """\
#!/bin/bash
# A Python as far as scripts/setup looks at one: what it is asked goes to a log; the environment it makes holds a copy of it.
echo "$*" >> {log}
case "$*" in
    *platform.python_version*) echo {version} ;;
    *"version_info[:3]"*) echo {version} ;;
    *"version_info <"*) {new_enough} ;;
    *ensurepip*) {has_venv} ;;
    *sys.executable*) echo "$0" ;;
    "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *"pip install --no-deps --no-compile"*) {pip} ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the set-up script, and beside it a folder ``path`` of the tools that the script calls."""
    folder, path = tmp_path / "checkout", tmp_path / "path"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "setup", folder / "scripts")
    (folder / "requirements.lock").write_text("six==1.17.0\ntorch==2.13.0+cpu\n")
    (folder / "pyproject.toml").write_text("")
    path.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, tool
        (path / tool).symlink_to(found)
    return folder


def add_python(
    checkout: Path,
    version: str,
    *,
    name: str = "python3",
    new_enough: bool = True,
    has_venv: bool = True,
    pip: str = "true",
) -> None:
    path = checkout.parent / "path" / name
    answers = {"new_enough": str(new_enough).lower(), "has_venv": str(has_venv).lower(), "pip": pip}
    path.write_text(PYTHON.format(version=version, log=checkout.parent / "log", **answers))
    path.chmod(0o755)


def set_up(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = checkout.parent / "path"
    return subprocess.run(
        [path / "bash", "scripts/setup"],
        cwd=checkout,
        env={"PATH": str(path), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def asked(checkout: Path) -> str:
    """What the Pythons were asked since the last time."""
    log = checkout.parent / "log"
    text = log.read_text()
    log.unlink()
    return text


def refused(checkout: Path, **environment: str) -> str:
    done = set_up(checkout, **environment)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done
    return done.stderr


def test_no_python(checkout: Path) -> None:
    assert "needs Python >= 3.11 with venv; none found; name one with: make setup PYTHON=" in refused(checkout)
    assert "none found at /nope" in refused(checkout, PYTHON="/nope")


def test_every_python_that_will_not_do_is_named(checkout: Path) -> None:
    add_python(checkout, "3.9.18", new_enough=False)
    add_python(checkout, "3.12.1", name="python3.12", has_venv=False)
    line = refused(checkout)
    assert "python3 is 3.9.18" in line
    assert "python3.12 (3.12.1) lacks venv" in line and "apt install python3.12-venv" in line
    assert not (checkout / ".venv").exists()


def test_a_part_of_a_checkout(checkout: Path) -> None:
    (checkout / "requirements.lock").unlink()
    assert "requirements.lock is missing" in refused(checkout)


def test_an_environment_of_somebody_else_is_left_alone(checkout: Path) -> None:
    add_python(checkout, "3.11.7")
    (checkout / ".venv").mkdir()
    assert "was made by something else" in refused(checkout)
    assert (checkout / ".venv").is_dir()


def test_a_second_run_installs_nothing(checkout: Path) -> None:
    add_python(checkout, "3.9.18", new_enough=False)
    add_python(checkout, "3.11.7", name="python3.11")
    assert set_up(checkout).returncode == 0
    first = asked(checkout)
    assert "-m venv .venv" in first and "--no-deps --no-compile -r requirements.lock" in first
    assert "--no-deps --no-build-isolation --editable ." in first
    done = set_up(checkout)
    assert done.returncode == 0 and asked(checkout) == "-m pipeline.embedded\n"

    (checkout / "pyproject.toml").write_text("# changed")
    set_up(checkout)
    again = asked(checkout)
    assert "--editable" in again and "requirements.lock" not in again

    (checkout / "requirements.lock").write_text("six==1.16.0\ntorch==2.13.0+cpu\n")
    done = set_up(checkout)
    assert "the lock has changed" in done.stdout and "requirements.lock" in asked(checkout)


def test_a_failed_or_interrupted_installation_is_made_anew(checkout: Path) -> None:
    add_python(checkout, "3.11.7", pip="echo ERROR: no network; exit 1")
    done = set_up(checkout)
    assert done.returncode == 1 and "ERROR: no network" in done.stderr and "pip install failed" in done.stderr
    (checkout / ".venv" / "half").write_text("")
    add_python(checkout, "3.11.7")
    done = set_up(checkout)
    assert done.returncode == 0 and "the last set-up was interrupted" in done.stdout
    assert not (checkout / ".venv" / "half").exists()


def test_pytorch_index_is_added_only_where_the_sources_lack_the_wheel(checkout: Path) -> None:
    add_python(checkout, "3.11.7")
    set_up(checkout)
    assert "--extra-index-url" not in asked(checkout)
    shutil.rmtree(checkout / ".venv")
    python = checkout.parent / "path" / "python3"
    python.write_text(python.read_text().replace("esac", "    *--dry-run*) exit 1 ;;\nesac"))
    set_up(checkout)
    assert "--extra-index-url https://download.pytorch.org/whl/cpu -r requirements.lock" in asked(checkout)


def test_two_at_once_take_turns(checkout: Path) -> None:
    add_python(checkout, "3.11.7")
    with subprocess.Popen([shutil.which("flock") or "flock", str(checkout), "sleep", "1"]):
        while subprocess.run(["flock", "--nonblock", str(checkout), "true"], check=False).returncode == 0:
            pass
        assert "another set-up is at work here" in set_up(checkout).stdout


def locked() -> dict[str, str]:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_the_lock_fits_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"], *extras["cpu"], *extras["dev"]]
    versions = locked()
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_what_breaks_torch_is_in_neither_lock_nor_environment() -> None:
    unwanted = {"torchvision", "torchaudio", "torchcodec"}
    assert not unwanted & set(locked())
    assert not [name for name in unwanted if find_spec(name)]
