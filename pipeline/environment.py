"""What a result was made by: the package's own code, and the packages and hardware under it.

Only what is named here is ever recorded: no environment variable, no user, host or folder name. Times and the host stand in ``run.json``.

Limits: packages are those that stepdistill's own requirements lead to. A checkout that Git does not know, or a machine without Git, has
no commit; the digest of the modules says all the same which code it was.
"""

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from pipeline.files import canonical_json, plain, sha256
from pipeline.records import Code, Environment

PACKAGE = "stepdistill"
SOURCE = Path(__file__).parent


@lru_cache
def code() -> Code:
    """The package's version, its commit where it lies in a Git checkout, and a digest over all of its modules and templates."""
    files = {
        path.relative_to(SOURCE).as_posix(): sha256(path)
        for path in sorted(SOURCE.rglob("*"))
        if path.suffix in (".py", ".jinja", ".json") and "example" not in path.relative_to(SOURCE).parts
    }
    commit, dirty = _commit()
    return Code(
        package=PACKAGE,
        version=_version(PACKAGE) or "unknown",
        commit=commit,
        dirty=dirty,
        modules=hashlib.sha256(canonical_json(files)).hexdigest(),
    )


@lru_cache
def environment() -> Environment:
    """Python, the packages that the requirements lead to, processor, accelerators and their driver."""
    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        accelerators=_accelerators(),
        driver=_driver(),
        packages=dict(sorted(_packages())),
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> tuple[str | None, bool | None]:
    """The commit of the checkout that the package lies in, and whether its code differs from it; None where there is none."""
    here = SOURCE.resolve()
    if not (here.parent / ".git").exists():
        return None, None
    asked = ["git", "-C", str(here), "-c", "core.fsmonitor=false"]
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        head = subprocess.run([*asked, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, env=quiet)
        state = subprocess.run(
            [*asked, "status", "--porcelain", "--", "."], capture_output=True, text=True, check=True, env=quiet
        )
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return head.stdout.strip(), bool(state.stdout.strip())


def _packages() -> Iterator[tuple[str, str]]:
    """Every installed package that the requirements of this one lead to, extras that are installed included."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    seen: set[str] = set()
    waiting = [PACKAGE]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        yield name, found.version
        for line in found.requires or ():
            try:
                wanted = Requirement(line)
            except InvalidRequirement:
                continue
            optional = wanted.marker is not None and "extra" in str(wanted.marker)
            if not optional or name == PACKAGE:
                waiting.append(wanted.name)


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        found = None
    return plain(found[1].strip()) if found else platform.processor() or platform.machine()


def _accelerators() -> list[str]:
    """The names of NVIDIA's devices, as the driver gives them."""
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        model = re.search(r"^Model:\s*(.+)$", path.read_text(errors="replace"), re.MULTILINE)
        found.append(plain(model[1].strip()) if model else "unknown")
    return found


def _driver() -> str | None:
    try:
        found = re.search(
            r"Kernel Module.*?(\d[\d.]+)", Path("/proc/driver/nvidia/version").read_text(errors="replace")
        )
    except OSError:
        return None
    return found[1] if found else None
