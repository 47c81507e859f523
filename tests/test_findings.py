"""What an audit says, word for word: for each of many kinds of damage all of its findings, beside those of ``tests/golden/findings``.

Where the texts are meant to change, or what is damaged, write them anew with

    python -m tests.test_findings

and read the difference: each line is one that a user may meet. Digests are left out, since they hang on the versions of the code.
"""

import hashlib
import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pipeline import outputs
from pipeline.audit import audit
from tests.tampering import (
    changed_leaf,
    files_of,
    folder_of,
    kind_of,
    lines_of,
    make_run,
    manifest_of,
    reforge,
    row_tamperings,
    sealed,
    shown,
    store_tamperings,
    tampered,
    write_lines,
    write_manifest,
    write_project,
)
from tests.test_tampering import ALONG_THE_CHAIN, CHAIN, CHANGES, EXTRAS, MOVES, one_of_each, renamed_to, watched

GOLDEN = Path(__file__).parent / "golden" / "findings"
MOST = 12  # findings of one damage that are written down
DIGEST = re.compile(r"[0-9a-f]{16,}")

Damage = tuple[str, Callable[[], object]]


def told(run: Path, *, full: bool) -> Iterator[str]:
    """The findings of an audit, without what differs from one machine to the next."""
    findings = list(audit(run, full=full))
    for finding in findings[:MOST]:
        text = str(finding).replace(f"{run}/", "").replace(str(run), "the run").replace(str(run.parent), "..")
        yield f"[{finding.check}] {DIGEST.sub(lambda found: f'<{len(found[0])}>', text)}"
    if len(findings) > MOST:
        yield f"and {len(findings) - MOST} more"


def manifests(run: Path) -> Iterator[Damage]:
    """Every leaf of a kind is another one, and the manifest's own digest fits; every other stage at a time."""
    seen: set[str] = set()
    for stage in CHAIN:
        manifest = manifest_of(run, stage)
        for place in one_of_each(manifest, depth=2):
            # Of a clone by git and of a copy without it the code says different things of itself.
            if (known := kind_of(place[:2])) not in seen and place[0] not in ("digest", "code"):
                seen.add(known)
                content = changed_leaf(manifest, place, "changed", seal=True) or b""
                path = folder_of(run, stage) / outputs.MANIFEST
                if place[0] == "features" and len(seen) % 4:
                    continue
                yield (
                    f"{stage}: {shown(place)} is another",
                    lambda path=path, content=content: path.write_bytes(content),
                )
    parents = manifest_of(run, "quality")["parents"]
    others = {"parse": manifest_of(run, "dedup")["parents"]["parse"], **parents}
    for what, given in (("nothing", {}), ("another stage as well", others)):
        yield f"quality: made from {what}", lambda given=given: _edited(run, "quality", parents=given)
    dropped = [
        {**one, "root": "0" * 64} if one["path"] == "dropped.jsonl" else one
        for one in manifest_of(run, "parse")["outputs"]
    ]
    yield "parse: its drops have a root", lambda: _edited(run, "parse", outputs=dropped)
    rows = [{**one, "root": "0" * 64} if one["rows"] else one for one in manifest_of(run, "dedup")["outputs"]]
    yield "dedup: its rows have another root", lambda: _edited(run, "dedup", outputs=rows)


def _edited(run: Path, stage: str, **fields: object) -> None:
    write_manifest(run, stage, sealed({**manifest_of(run, stage), **fields}))


def files(run: Path) -> Iterator[Damage]:
    """What can be done to a file's bytes or its name, each to one of the run's files after the other."""
    before = files_of(run)
    names = [name for name in watched(before) if before[name]]
    for number, (what, change) in enumerate(CHANGES.items()):
        for name in names[number % 4 :: 4]:
            if name.endswith(outputs.MANIFEST) and what not in ("first byte flipped", "emptied", "a byte appended"):
                continue  # how long it is, and so the place that an error names, hangs on the repository of the code
            if (new := change(before[name])) != before[name] and number % 3 == len(name) % 3:
                yield f"{name}: {what}", lambda name=name, new=new: (run / name).write_bytes(new)
    for number, (what, move) in enumerate(MOVES.items()):
        for name in names[number::9]:
            if not renamed_to(run / name).exists():
                yield f"{name}: {what}", lambda name=name, move=move: move(run / name)


def places(run: Path) -> Iterator[Damage]:
    """What does not belong where it lies, and what names a result in force."""
    for number, (what, make) in enumerate(EXTRAS.items()):
        folders = [run, run / CHAIN[number % len(CHAIN)], folder_of(run, CHAIN[number % len(CHAIN)]), run / "responses"]
        for folder in folders:
            yield f"{what} in {folder.relative_to(run)}", lambda make=make, folder=folder: make(folder)
    for name in ("report", "exports"):
        yield (
            f"a link in {name}",
            lambda name=name: ((run / name).mkdir(exist_ok=True), EXTRAS["a link to a file"](run / name)),
        )
    short = folder_of(run, "dedup").with_name("abc")
    yield (
        "a result with a short name",
        lambda: (folder_of(run, "dedup").rename(short), (run / "dedup" / "current").write_text("abc\n")),
    )
    for number, content in enumerate(("", "0" * 32, "../x", "manifest.json", "a\x1b[2J\n", "x" * 2000)):
        path = run / CHAIN[number] / "current"
        yield f"{CHAIN[number]}/current: {content[:20]!r}", lambda path=path, content=content: path.write_text(content)
    for stage in CHAIN[::2]:
        path = run / stage / "current"
        yield f"{stage}/current is gone", path.unlink
    for number, stage in enumerate(CHAIN):
        folder = folder_of(run, stage)
        acts: list[Damage] = [
            ("is gone", lambda folder=folder: shutil.rmtree(folder)),
            ("has another name", lambda folder=folder: folder.rename(folder.with_name("0" * 32))),
            ("has no manifest", lambda folder=folder: (folder / outputs.MANIFEST).unlink()),
            ("has a manifest of another form", lambda folder=folder: (folder / outputs.MANIFEST).write_text("[]")),
        ]
        for what, act in acts[number % 2 :: 2]:
            yield f"the result of {stage} {what}", act
    for stage in CHAIN[1:-1:3]:
        yield f"{stage} is gone", lambda stage=stage: shutil.rmtree(run / stage)
    yield "the store is gone", lambda: shutil.rmtree(run / "responses")
    yield "a teacher is gone", lambda: next((run / "responses/teachers").iterdir()).unlink()


def rows(run: Path) -> Iterator[Damage]:
    """Rows of a stage are others, and every unsigned hash fits; some in all stages from one on."""
    for one in itertools.islice(row_tamperings(run), 0, None, 4):
        yield str(one), lambda one=one: (one.act(run), reforge(run, one.stage))
    for what, (_, act) in itertools.islice(ALONG_THE_CHAIN.items(), 0, None, 3):
        yield what, lambda act=act: act(run)


def lines(run: Path) -> Iterator[Damage]:
    """Lines of a file change, come, go or move, and no hash fits; or all but one fits."""
    first = "part-00000.jsonl"
    changes: dict[str, Callable[[list[bytes]], list[bytes]]] = {
        "the third line is another": lambda old: [*old[:2], old[2].replace(b"r", b"R", 1), *old[3:]],
        "every line is another": lambda old: [line.replace(b"r", b"R", 1) for line in old],
        "six lines are others": lambda old: [line.replace(b"r", b"R", 1) for line in old[:6]] + old[6:],
        "five lines are others": lambda old: [line.replace(b"r", b"R", 1) for line in old[:5]] + old[5:],
        "the second line is gone": lambda old: old[:1] + old[2:],
        "seven lines are gone": lambda old: old[7:],
        "all lines are gone": lambda old: [],
        "the second line is there again": lambda old: [*old[:2], old[1], *old[2:]],
        "a line was added": lambda old: [*old[:2], old[1].replace(b"r", b"R", 1), *old[2:]],
        "a line was added, another is gone": lambda old: [old[1].replace(b"r", b"R", 1), *old[2:], old[2]],
        "two lines changed places": lambda old: [old[1], old[0], *old[2:]],
        "the first line moved to the end": lambda old: [*old[1:], old[0]],
        "a line stands where another stood": lambda old: [old[1], *old[1:]],
        "no newline at the end": lambda old: [*old[:-1], old[-1].rstrip(b"\n")],
    }  # fmt: skip
    for stage in ("dedup", "shard", "judge"):
        for what, change in changes.items():
            name = first if stage != "shard" else "train-00001.jsonl"
            path = folder_of(run, stage) / name
            new = b"".join(change(path.read_bytes().splitlines(keepends=True)))
            yield f"{stage}: {what}", lambda path=path, new=new: path.write_bytes(new)
            if stage == "dedup" or what.startswith("the"):
                yield (
                    f"{stage}: {what}, and the manifest fits",
                    lambda stage=stage, name=name, change=change: _fitting(run, stage, name, change),
                )

    yield "quality: no newline at the end, and the hashes fit", lambda: _unended(run, "quality")


def _unended(run: Path, stage: str) -> None:
    path = folder_of(run, stage) / "part-00000.jsonl"
    content = path.read_bytes().rstrip(b"\n")
    path.write_bytes(content)
    fits = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    known = manifest_of(run, stage)["outputs"]
    _edited(run, stage, outputs=[{**one, **fits} if one["path"] == path.name else one for one in known])


def _fitting(run: Path, stage: str, name: str, change: Callable[[list[bytes]], list[bytes]]) -> None:
    old = lines_of(run, stage)
    write_lines(
        run, stage, {**old, name: [line.rstrip(b"\n") for line in change([line + b"\n" for line in old[name]])]}
    )
    reforge(run, stage)


def store(run: Path) -> Iterator[Damage]:
    """Records with keys and checks that fit, and records that are damaged."""
    for one in store_tamperings(run):
        if "structured." not in str(one):  # the form that a judge's answer must have: one leaf is like the other
            yield str(one), lambda one=one: one.act(run)
    path = run / "responses" / "segment-00000.jsonl"
    old = path.read_bytes().splitlines(keepends=True)
    damaged = [line.replace(b"a", b"b", 1) for line in old]
    for number in (1, 20, 21, 23):
        yield (
            f"{number} records are damaged",
            lambda number=number: path.write_bytes(b"".join(damaged[:number] + old[number:])),
        )
    yield "a record stands there twice", lambda: path.write_bytes(b"".join([*old, old[3]]))
    yield "22 records stand there twice", lambda: path.write_bytes(b"".join([*old, *old[:22]]))
    yield "the last record is cut short", lambda: path.write_bytes(b"".join(old)[:-20])
    yield "a record that is none", lambda: path.write_bytes(b"".join([b"{}\n", *old]))
    yield "a segment is missing", lambda: path.rename(path.with_name("segment-00003.jsonl"))
    second = path.with_name("segment-00001.jsonl")
    yield (
        "a record is missing, of two segments",
        lambda: (path.write_bytes(b"".join(old[1:9])), second.write_bytes(b"".join(old[9:]))),
    )
    teacher = next((run / "responses" / "teachers").iterdir())
    yield "a teacher is another", lambda: teacher.write_bytes(teacher.read_bytes().replace(b"replay", b"player"))
    yield "a teacher is no JSON", lambda: teacher.write_bytes(b"{")


KINDS: dict[str, Callable[[Path], Iterator[Damage]]] = {
    one.__name__: one for one in (manifests, files, places, lines, rows, store)
}
FULL = ("rows",)


def said(run: Path, kind: str) -> str:
    """Each damage of a kind with what the audit says of it."""
    before = files_of(run)
    parts = []
    for what, act in list(KINDS[kind](run)):
        with tampered(run, before):
            act()
            found = "\n".join(told(run, full=kind in FULL)) or "nothing"
        parts.append(f"# {DIGEST.sub('<>', what)}\n{found}\n")
    return "\n".join(parts)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; each test leaves it as it was."""
    return make_run(write_project(tmp_path_factory.mktemp("findings")))


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_audit_says_is_what_is_written(whole: Path, kind: str) -> None:
    assert said(whole, kind) == (GOLDEN / f"{kind}.txt").read_text()


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    with TemporaryDirectory() as scratch:
        for name in KINDS:
            (GOLDEN / f"{name}.txt").write_text(said(make_run(write_project(Path(scratch) / name)), name))
