"""The tamper suite: whatever is changed in a finished run, audit finds it and names the right file; of clean runs it says nothing.

An attacker works at three levels. *Naive*: bytes are changed and nothing else. *Sealed*: a manifest is edited, and its own digest fits
again. *Reforged*: everything unsigned along the chain fits again (tests/tampering.py). The right file is

- for naive and sealed tamperings the very file that was changed, removed, added or renamed;
- for reforged ones a file or folder of the stage that was tampered with, of one next to it in the chain, or of the response store: what
  contradicts the tampering. What nothing contradicts is found by the signature alone, and ``SIGNATURE_ALONE`` says what that is.

``TAMPERINGS=all python -m pytest tests/test_tampering.py`` tries every reforged one and a hundred clean runs; without it, a third of them.
"""

import base64
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from pipeline import cli, outputs, signing
from pipeline.audit import audit
from pipeline.audits import Finding
from pipeline.audits.manifests import UNPROVEN
from pipeline.export import export
from pipeline.files import InputError, RunError, canonical_json
from pipeline.stages import STAGES
from pipeline.train import CITATION
from tests.tampering import (
    KINDS,
    Json,
    Place,
    changed_leaf,
    files_of,
    folder_of,
    kind_of,
    leaves,
    make_run,
    manifest_of,
    other,
    propagate,
    reforge,
    restore,
    row_tamperings,
    shown,
    store_tamperings,
    tampered,
    write_project,
    write_varied_project,
)

CHAIN = list(STAGES)
LAST = CHAIN[-1]  # no stage after it says what its manifest was
ALL = os.environ.get("TAMPERINGS") == "all"
NOT_WATCHED = (".lock", "responses/lock")  # empty, or names a process


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; each test leaves it as it was."""
    return make_run(write_project(tmp_path_factory.mktemp("tampering")))


@pytest.fixture(scope="module")
def before(whole: Path) -> dict[str, bytes]:
    """Its files."""
    return files_of(whole)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> signing.Pair:
    """The signer's."""
    return signing.generate(tmp_path_factory.mktemp("keys") / "signer")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, keys: signing.Pair) -> Path:
    """The same run, signed."""
    run = make_run(write_project(tmp_path_factory.mktemp("signed")))
    signing.sign(run, signing.private_key(keys.private))
    return run


@pytest.fixture(scope="module")
def before_signed(signed: Path) -> dict[str, bytes]:
    """Its files."""
    return files_of(signed)


def named(findings: Iterable[Finding]) -> set[Path]:
    """The files that findings name."""
    return {finding.path for finding in findings}


def near(run: Path, stage: str, findings: Iterable[Finding]) -> list[Finding]:
    """Those that name what lies in the stage's folder, in that of a stage next to it in the chain, or in the response store."""
    place = CHAIN.index(stage)
    beside = {*CHAIN[max(place - 1, 0) : place + 2], "responses"} | ({"shard"} if stage == "evaluate" else set())
    return [one for one in findings if any(one.path.is_relative_to(run / name) for name in beside)]


def test_the_run_has_rows_and_drops_in_every_stage(whole: Path, before: dict[str, bytes]) -> None:
    assert list(audit(whole, full=True)) == []
    for stage in CHAIN:
        counts = manifest_of(whole, stage)["counts"]
        assert counts["rows_out"] > 4
        assert counts["dropped"] > 0 or stage in ("train", "evaluate")
    assert sum(name.startswith("shard/") and "-0000" in name and name.endswith(".jsonl") for name in before) >= 5


def test_a_signed_run_is_whole(signed: Path, keys: signing.Pair) -> None:
    assert list(audit(signed, full=True, keys=[keys.public])) == []


def test_reforging_what_was_not_touched_changes_nothing(whole: Path, before: dict[str, bytes]) -> None:
    reforge(whole)
    assert files_of(whole) == before


# Manifests


@pytest.mark.parametrize("kind", KINDS)
def test_every_leaf_of_every_manifest(whole: Path, before: dict[str, bytes], kind: str) -> None:
    """Naive. One leaf of each manifest at a time; each of the manifests must be named."""
    manifests = {stage: manifest_of(whole, stage) for stage in CHAIN}
    # Every leaf is changed; the rest is done to one leaf of each entry, or to each leaf of it that is no list's.
    places = {stage: list(leaves(one)) if kind == "changed" else one_of_each(one) for stage, one in manifests.items()}
    with tampered(whole, before):
        for number in range(max(map(len, places.values()))):
            done = {}
            for stage, manifest in manifests.items():
                place = places[stage][number % len(places[stage])]
                found = changed_leaf(manifest, place, kind, seal=False)
                path = folder_of(whole, stage) / outputs.MANIFEST
                path.write_bytes(found if found is not None else b"{}")
                if found is not None:
                    done[path] = shown(place)
            found_paths = named(audit(whole))
            assert {str(path): place for path, place in done.items() if path not in found_paths} == {}


def one_of_each(manifest: Json, depth: int = 3) -> list[Place]:
    """A leaf for each entry of a manifest, for each entry of that, and so on, ``depth`` times; list items are taken for one."""
    found: dict[Place, Place] = {}
    for place in leaves(manifest):
        found.setdefault(tuple("*" if isinstance(step, int) else step for step in place[:depth]), place)
    return list(found.values())


@pytest.mark.parametrize("first", [0, 1])
def test_every_leaf_of_a_manifest_that_fits_its_digest_again(whole: Path, before: dict[str, bytes], first: int) -> None:
    """Sealed. Every other manifest of the chain is tampered with, so that the one after it is as it was and says so."""
    manifests = {stage: manifest_of(whole, stage) for stage in CHAIN[:-1][first::2]}
    places = {stage: one_of_each(manifest) for stage, manifest in manifests.items()}
    with tampered(whole, before):
        for number in range(max(map(len, places.values()))):
            done = {}
            for stage, manifest in manifests.items():
                place = places[stage][number % len(places[stage])]
                turned = KINDS[number % len(KINDS) :] + KINDS[: number % len(KINDS)]
                found = next(one for kind in turned if (one := changed_leaf(manifest, place, kind, seal=True)))
                path = folder_of(whole, stage) / outputs.MANIFEST
                path.write_bytes(found)
                done[path] = shown(place)
            found_paths = named(audit(whole))
            assert {str(path): place for path, place in done.items() if path not in found_paths} == {}


# Files

SEGMENT = "segment-00000.jsonl"
WHOLE_RECORDS = ("emptied", "first line cut", "last line cut", "two lines swapped")
"""Leaves whole records in the store, which is in no manifest. A row that needs one that is gone names it; their order means nothing."""

ONE_AT_A_TIME = (
    "train-00000.jsonl",
    "train-00000.xxh3",
    "README.md",
    "segment-00000.jsonl",
    "student/model.safetensors",
)


def flipped(content: bytes, where: int) -> bytes:
    """One bit of one byte is another."""
    return content[:where] + bytes([content[where] ^ 1]) + content[where:][1:]


def two_lines_swapped(content: bytes) -> bytes:
    """The first two lines change places."""
    lines = content.splitlines(keepends=True)
    return b"".join([*lines[1:2], *lines[:1], *lines[2:]])


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "first byte flipped": lambda content: flipped(content, 0),
    "middle byte flipped": lambda content: flipped(content, len(content) // 2),
    "last byte flipped": lambda content: flipped(content, len(content) - 1),
    "cut in half": lambda content: content[: len(content) // 2],
    "last byte cut": lambda content: content[:-1],
    "first line cut": lambda content: content.partition(b"\n")[2],
    "last line cut": lambda content: content[: content.rstrip(b"\n").rfind(b"\n") + 1],
    "emptied": lambda content: b"",
    "a byte appended": lambda content: content + b" ",
    "an empty line appended": lambda content: content + b"\n",
    "a line appended again": lambda content: content + content.splitlines(keepends=True)[-1],
    "two lines swapped": two_lines_swapped,
    "other line endings": lambda content: content.replace(b"\n", b"\r\n"),
}


def renamed_to(path: Path) -> Path:
    return path.with_name(f"renamed-{path.name}")


def renamed(path: Path) -> None:
    path.rename(renamed_to(path))


def linked(path: Path) -> None:
    """The same bytes, but elsewhere."""
    elsewhere = path.with_name(".elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def foldered(path: Path) -> None:
    path.unlink()
    path.mkdir()


def exchanged(path: Path) -> None:
    """With a file beside it that differs, where there is one, or else one of another stage."""
    beside = [other for other in sorted(path.parent.iterdir()) if other.is_file() and other != path]
    partner = next(other for other in beside if other.read_bytes() != path.read_bytes())
    mine = path.read_bytes()
    path.write_bytes(partner.read_bytes())
    partner.write_bytes(mine)


MOVES: dict[str, Callable[[Path], None]] = {
    "deleted": Path.unlink,
    "renamed": renamed,
    "a link to the same bytes": linked,
    "a folder in its place": foldered,
    "exchanged with the one beside it": exchanged,
}


def watched(before: dict[str, bytes]) -> list[str]:
    """Every file that an audit vouches for. Times and host names are facts about a run, not about its result."""
    return [
        name
        for name in before
        if name not in NOT_WATCHED and not Path(name).name.startswith("run") and not name.endswith("/current")
    ]


def test_every_file_is_hashed(whole: Path, before: dict[str, bytes]) -> None:
    """Naive. All files of a run at once but the manifests, since a result whose manifest is broken is not looked at."""
    files = [name for name in watched(before) if not name.endswith("manifest.json")]
    for what, change in CHANGES.items():
        with tampered(whole, before):
            done = set()
            for name in files:
                if SEGMENT in name and what in WHOLE_RECORDS:
                    continue
                if before[name] and (new := change(before[name])) != before[name]:
                    (whole / name).write_bytes(new)
                    done.add(whole / name)
            missed = done - named(audit(whole))
            assert {str(path.relative_to(whole)) for path in missed} == set(), what


def test_every_file_is_missed(whole: Path, before: dict[str, bytes]) -> None:
    """Naive. Files moved, a quarter of them at a time."""
    missed = []
    for what, move in MOVES.items():
        for part in range(4):
            files = [name for name in watched(before) if not name.endswith(("manifest.json", SEGMENT))]
            names = files[part::4] if move is not exchanged else files[part : part + 1]
            with tampered(whole, before):
                for name in names:
                    if (whole / name).is_file():
                        move(whole / name)
                found = named(audit(whole))
                instead = {
                    whole / name: renamed_to(whole / name) if move is renamed else whole / name for name in names
                }
                missed += [(path, what) for path, other in instead.items() if not {path, other} & found]
    assert missed == []


@pytest.mark.parametrize("name", ONE_AT_A_TIME)
def test_a_file_is_named(whole: Path, before: dict[str, bytes], name: str) -> None:
    """Naive. One file, and all other files are as they were and not named."""
    path = next(whole / one for one in before if one.endswith(name))
    content = path.read_bytes()
    for what, change in CHANGES.items():
        if change(content) != content and not (path.name == SEGMENT and what in WHOLE_RECORDS):
            with tampered(whole, before):
                path.write_bytes(change(content))
                files = {place for place in named(audit(whole)) if place.is_file()}
                # Rows whose answers are damaged, or gone, are named with it, or in its place.
                assert files == {path} if path.name != SEGMENT else files, what


@pytest.mark.parametrize("move", MOVES)
def test_a_segment_that_was_moved(whole: Path, before: dict[str, bytes], move: str) -> None:
    """Naive. What is no file of the store is named, and each row whose answer is gone."""
    with tampered(whole, before):
        MOVES[move](whole / "responses" / SEGMENT)
        found = named(audit(whole))
        assert any((whole / "shard") in path.parents or (whole / "responses") in path.parents for path in found)


@pytest.mark.parametrize("move", MOVES)
def test_a_manifest_that_was_moved(whole: Path, before: dict[str, bytes], move: str) -> None:
    """Naive. A result is named by what says that it is in force once its manifest is gone."""
    for stage in CHAIN:
        path = folder_of(whole, stage) / outputs.MANIFEST
        with tampered(whole, before):
            MOVES[move](path)
            assert {path, whole / stage / "current"} & named(audit(whole)), stage


EXTRAS: dict[str, Callable[[Path], Path]] = {}


def extra(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    EXTRAS[make.__name__.replace("_", " ")] = make
    return make


def written(path: Path, content: bytes = b"{}\n") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


@extra
def a_row_file(folder: Path) -> Path:
    return written(folder / "part-00099.jsonl")


@extra
def a_text(folder: Path) -> Path:
    return written(folder / "notes.txt")


@extra
def a_hidden_file(folder: Path) -> Path:
    return written(folder / ".hidden")


@extra
def a_temporary_file(folder: Path) -> Path:
    return written(folder / ".part-00000.jsonl.tmp")


@extra
def a_file_in_a_folder(folder: Path) -> Path:
    return written(folder / "more/part-00000.jsonl")


@extra
def a_file_in_a_hidden_folder(folder: Path) -> Path:
    return written(folder / ".git/config")


@extra
def a_link_to_a_file(folder: Path) -> Path:
    (folder / "link").symlink_to("/etc/hostname")
    return folder / "link"


@extra
def a_link_to_a_folder(folder: Path) -> Path:
    (folder / "linked").symlink_to("/etc")
    return folder / "linked"


@extra
def a_link_to_nothing(folder: Path) -> Path:
    (folder / "dangling").symlink_to(folder / "nothing")
    return folder / "dangling"


@extra
def a_name_that_forges_lines(folder: Path) -> Path:
    return written(folder / "a\nfile: is whole")


def test_what_was_not_written_by_the_pipeline_is_named(whole: Path, before: dict[str, bytes]) -> None:
    """Naive. In the folder of every result, and of the response store."""
    folders = [folder_of(whole, stage) for stage in CHAIN] + [whole / "responses", whole / "responses/teachers"]
    for what, make in EXTRAS.items():
        with tampered(whole, before):
            made = {folder: make(folder) for folder in folders}
            found = named(audit(whole))
            missed = {
                path for folder, path in made.items() if not found & {path, *path.parents} - {folder, *folder.parents}
            }
            assert missed == set(), what


# What points at a result, and whole results


def other_run(folder: Path) -> Path:
    """A run of the same project whose teacher said other things."""
    return make_run(write_project(folder, said="It tells of"))


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run like ``whole``, from other answers."""
    return other_run(tmp_path_factory.mktemp("another"))


def test_what_names_the_result_in_force(whole: Path, before: dict[str, bytes]) -> None:
    """Naive. Its file deleted, emptied, made to name something else, or a link."""
    missed = []
    for stage in CHAIN:
        path = whole / stage / "current"
        key = path.read_text().strip()
        for content in (
            None,
            "",
            "0" * 32,
            f"../{stage}/{key}",
            f"{key[:-1]}",
            f"{key} ",
            f"/etc/{key}",
            "manifest.json",
        ):
            with tampered(whole, before):
                if content is None:
                    path.unlink()
                else:
                    path.write_text(content)
                if path not in named(audit(whole)):
                    missed.append((stage, content))
        with tampered(whole, before):
            linked(path)
            if path not in named(audit(whole)):
                missed.append((stage, "link"))
    assert missed == []


def test_a_result_that_is_gone(whole: Path, before: dict[str, bytes]) -> None:
    """Naive. Its folder deleted, renamed, or a link to it; whoever was made from it, or names it, says so."""
    missed = []
    for stage in CHAIN:
        folder, place = folder_of(whole, stage), whole / stage
        acts: dict[str, Callable[[], object]] = {
            "deleted": lambda folder=folder: shutil.rmtree(folder),
            "renamed": lambda folder=folder: folder.rename(folder.with_name("0" * 32)),
            "linked": lambda folder=folder: linked(folder),
            "manifest deleted": lambda folder=folder: (folder / outputs.MANIFEST).unlink(),
        }
        if stage != LAST:
            acts["stage deleted"] = lambda place=place: shutil.rmtree(place)
        for what, act in acts.items():
            with tampered(whole, before):
                act()
                if not near(whole, stage, audit(whole)):
                    missed.append((stage, what))
    assert missed == []


def test_a_result_of_another_run(whole: Path, another: Path, before: dict[str, bytes]) -> None:
    """Naive: put in the place of this run's, under its name or its own."""
    missed = []
    for stage in CHAIN[1:]:
        mine, other = folder_of(whole, stage), folder_of(another, stage)
        with tampered(whole, before):
            shutil.rmtree(mine)
            shutil.copytree(other, mine)
            if mine / outputs.MANIFEST not in named(audit(whole)):
                missed.append((stage, "under this run's key"))
        with tampered(whole, before):
            shutil.rmtree(mine)
            shutil.copytree(other, mine.with_name(other.name))
            (whole / stage / "current").write_text(other.name + "\n")
            if not near(whole, stage, audit(whole)):
                missed.append((stage, "under its own key"))
    assert missed == []


def test_the_response_store_of_another_run(whole: Path, another: Path, before: dict[str, bytes]) -> None:
    with tampered(whole, before):
        shutil.rmtree(whole / "responses")
        assert whole / "responses" in named(audit(whole))
        shutil.copytree(another / "responses", whole / "responses")
        assert any("store" in str(finding) or whole / "responses" in finding.path.parents for finding in audit(whole))


# Rows, with every unsigned hash made to fit


def found(run: Path, stage: str | None, keys: signing.Pair) -> tuple[list[Finding], list[Finding]]:
    """What a signature finds, and what contradicts the tampering without one: near this stage, or in any manifest."""
    findings = list(audit(run, recompute=True, keys=[keys.public]))
    signatures = run / "signatures"
    by_signature = [one for one in findings if signatures in (one.path, *one.path.parents)]
    others = [one for one in findings if one not in by_signature]
    if stage is None:
        return by_signature, [
            one for one in others if one.path.name == outputs.MANIFEST or one.path.parent.parent.parent == run
        ]
    return by_signature, near(run, stage, others)


SIGNATURE_ALONE = {
    "*: code.*": "code.version, code.commit, code.dirty, code.modules",
    "*: environment.*": "environment.*",
    "*: sources.*": "sources.uri, sources.bytes, sources.license, sources.revision",
    "*: models.*": "models.*",
    "*: asked.*": "asked.*",
    "shard: settings.license": "the task's name, and what licences are stated",
    "shard: settings.task": "the task's name, and what licences are stated",
    "*: details.*": "details of sample, dedup, decontaminate, judge, balance, train, evaluate",
    "train: identities.student.*": "identities.student, identities of evaluate",
    "evaluate: identities.*": "identities.student, identities of evaluate",
    "evaluate: settings.sample.*": "settings that no key depends on",
    "evaluate: settings.judge.*": "settings that no key depends on",
    **dict.fromkeys(
        (
            *("evaluate: settings.eval_sets.*", "evaluate: settings.labels.*", "evaluate: settings.parse.*"),
            *("balance: settings.slices.*", "quality: settings.logprobs", "judge: settings.choices"),
            *("decontaminate: settings.input", "parse: settings.rationalise"),
        ),
        "what a stage says of the task that changes none of its rows",
    ),
    "evaluate: text of a row *": "texts of predictions",
    "ingest: source of a row *": "drops and places of source rows",
    "ingest: *of a drop *": "drops and places of source rows",
    "sample: evidence.* of a drop *": "why a teacher gave no answer",
}
"""What an attacker who makes all unsigned hashes fit can change without a contradiction, and where the audit's report says so."""


def test_rows_with_all_hashes_made_to_fit(signed: Path, before_signed: dict[str, bytes], keys: signing.Pair) -> None:
    """Reforged. The signature finds every one; without it, what ``--full`` derives again contradicts all but what is listed."""
    unsigned, slipped = [], []
    for one in itertools.islice(row_tamperings(signed), 0, None, 1 if ALL else 3):
        with tampered(signed, before_signed):
            one.act(signed)
            reforge(signed, one.stage)
            by_signature, by_contradiction = found(signed, one.stage, keys)
        if not by_signature:
            unsigned.append(str(one))
        if not by_contradiction:
            slipped.append(str(one))
    assert unsigned == []
    assert listed(slipped) == []


def test_leaves_with_all_hashes_made_to_fit(signed: Path, before_signed: dict[str, bytes], keys: signing.Pair) -> None:
    """Reforged. One entry of a manifest is another one, and the key, the digest and all stages after it fit."""
    unsigned, slipped = [], []
    done, seen = 0, set[str]()
    for stage in reversed(CHAIN):
        manifest = manifest_of(signed, stage)
        for place in one_of_each(manifest, depth=2):
            if place[0] in ("key", "digest") or kind_of(place[:2]) in seen:
                continue  # they follow from the rest; or another stage has the same entry
            seen.add(kind_of(place[:2]))
            if not ALL and len(seen) % 3:
                continue
            content = changed_leaf(manifest, place, "changed", seal=True)
            path = folder_of(signed, stage) / outputs.MANIFEST
            with tampered(signed, before_signed):
                path.write_bytes(content or b"")
                if not readable(path.parent):
                    continue
                reforge(signed, stage, count_first=False)
                by_signature, by_contradiction = found(signed, None, keys)
            done += 1
            if not by_signature:
                unsigned.append(f"{stage}: {shown(place)}")
            if not by_contradiction:
                slipped.append(f"{stage}: {shown(place)}")
    assert done > (70 if ALL else 23)
    assert unsigned == []
    assert listed(slipped) == []


def readable(folder: Path) -> bool:
    """Whether the manifest has the form of one."""
    try:
        outputs.read_manifest(folder)
    except RunError:
        return False
    return True


def listed(slipped: list[str]) -> list[str]:
    """Those that are not known to be found by the signature alone."""
    return [one for one in slipped if not any(fnmatchcase(one, known) for known in SIGNATURE_ALONE)]


# Answers


def test_records_with_keys_and_checks_that_fit(whole: Path, before: dict[str, bytes]) -> None:
    """Reforged, and under no signature: the rows of sample and judge, which are, say what the store must hold."""
    missed = []
    for one in store_tamperings(whole):
        with tampered(whole, before):
            one.act(whole)
            if not near(whole, one.stage, audit(whole, full=True)):
                missed.append(str(one))
    assert [one for one in missed if not any(fnmatchcase(one, known) for known in IN_NO_ROW)] == []


IN_NO_ROW = (
    "*: teacher of a record *",
    *(f"judge: {name} of a record *" for name in ("finish_reason", "*_tokens", "mean_logprob", "label_logprobs")),
)
"""What records of the store say that no row says again; no manifest holds it, so no signature guards it."""


def edited_from(stage: str, old: str, new: str) -> Callable[[Path], None]:
    """A text of row r2 is another one in this stage and all after it."""

    def act(run: Path) -> None:
        propagate(run, stage, "r2", old, new)
        reforge(run, stage)

    return act


ALONG_THE_CHAIN = {
    f"{what} from {stage} on": (stage, edited_from(stage, old, new))
    for what, old, new, stages in (
        ("an answer", "and more", "and then some", ("sample", "parse", "dedup", "judge", "balance", "shard")),
        ("a label", '"label":"sports"', '"label":"food"', ("parse", "dedup", "judge", "quality", "balance")),
        ("a true label", '"gold":"sports"', '"gold":"food"', ("sample", "parse", "dedup", "quality", "balance")),
        ("an input", "penalty2", "penalty9", ("sample", "parse", "dedup", "balance", "shard")),
        ("a slice", '"place":"north"', '"place":"south"', ("sample", "parse", "balance")),
        ("a score", '"score":', '"score":1', ("judge", "quality", "balance")),
        ("a request", '"request":"', '"request":"0', ("sample", "parse", "judge", "balance")),
        ("a completion", '"completion":"sports"', '"completion":"food"', ("shard",)),
        ("a split", '"split":"train"', '"split":"validation"', ("shard",)),
    )
    for stage in stages
}


@pytest.mark.parametrize("what", ALONG_THE_CHAIN)
def test_a_text_edited_along_the_chain(
    signed: Path, before_signed: dict[str, bytes], keys: signing.Pair, what: str
) -> None:
    """Reforged, and the same edit made wherever the text stands from a stage on: the stage before that contradicts it."""
    stage, act = ALONG_THE_CHAIN[what]
    with tampered(signed, before_signed):
        act(signed)
        assert files_of(signed) != before_signed
        by_signature, by_contradiction = found(signed, stage, keys)
    assert by_signature
    assert by_contradiction


def test_the_most_careful_attacker(
    signed: Path, before_signed: dict[str, bytes], keys: signing.Pair, tmp_path: Path
) -> None:
    """Who runs the whole pipeline anew, with other inputs, answers or settings, contradicts nothing: the signature alone tells."""
    changes: dict[str, Callable[[Path], object]] = {
        "other answers": lambda folder: write_project(folder, said="It tells of"),
        "another input": lambda folder: replace_in(folder / "inputs.jsonl", "penalty2", "penalty9"),
        "another true label": lambda folder: replace_in(
            folder / "inputs.jsonl", '"topic": "sports"', '"topic": "food"'
        ),
        "other judgements": lambda folder: replace_in(folder / "judgements.jsonl", "It names", "It says"),
        "an eval row less": lambda folder: replace_in(folder / "test.jsonl", '{"id": "t0"', '{"id": "t9"'),
        "another setting": lambda folder: replace_in(folder / "stages.yaml", "near: 0.8", "near: 0.81"),
    }
    for number, (what, change) in enumerate(changes.items()):
        write_project(tmp_path / str(number))
        change(tmp_path / str(number))
        forged = make_run(tmp_path / str(number) / "stages.yaml")
        assert list(audit(forged, full=True)) == [], what
        shutil.copytree(signed / "signatures", forged / "signatures")
        by_signature, _ = found(forged, "shard", keys)
        assert by_signature, what


def replace_in(path: Path, old: str, new: str) -> None:
    """Another text in a file, once."""
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))


# Signatures


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> signing.Pair:
    """The attacker's keys."""
    return signing.generate(tmp_path_factory.mktemp("stranger") / "stranger")


def envelope_of(run: Path) -> Path:
    """The one signature."""
    (path,) = (run / "signatures").iterdir()
    return path


def test_every_leaf_of_a_signature(signed: Path, before_signed: dict[str, bytes], keys: signing.Pair) -> None:
    """Naive: what can be done to a manifest is done to the envelope, and to the statement in it."""
    path = envelope_of(signed)
    envelope = json.loads(path.read_bytes())
    statement = json.loads(base64.b64decode(envelope["payload"]))
    missed = []
    with tampered(signed, before_signed):
        for value, pack in ((envelope, lambda content: content), (statement, packed(envelope))):
            for number, place in enumerate(one_of_each(value)):
                turned = KINDS[number % len(KINDS) :] + KINDS[: number % len(KINDS)]
                content = next(one for kind in turned if (one := changed_leaf(value, place, kind, seal=False)))
                path.write_bytes(pack(content))
                if not {path, path.parent} & named(audit(signed, keys=[keys.public])):
                    missed.append(shown(place))
        assert missed == []
        content = before_signed[str(path.relative_to(signed))]
        for what, change in CHANGES.items():
            if change(content) != content:
                path.write_bytes(change(content))
                assert {path, path.parent} & named(audit(signed, keys=[keys.public])), what


def packed(envelope: Json) -> Callable[[bytes], bytes]:
    """Puts another payload into an envelope."""
    return lambda content: canonical_json({**envelope, "payload": base64.b64encode(content.strip()).decode()}) + b"\n"


def test_signatures_of_others(
    signed: Path, another: Path, before_signed: dict[str, bytes], keys: signing.Pair, stranger: signing.Pair
) -> None:
    """Removed, made with another key, over another data set, with a key that lies in the run."""
    place = signed / "signatures"
    trusted = [keys.public]
    with tampered(signed, before_signed):
        shutil.rmtree(place)
        assert place in named(audit(signed, keys=trusted))
        signing.sign(signed, signing.private_key(stranger.private))
        assert place in named(audit(signed, keys=trusted))
        assert list(audit(signed, keys=[stranger.public])) == []
    assert place in named(audit(signed, keys=[stranger.public]))
    with tampered(signed, before_signed):
        shutil.rmtree(place)
        signing.sign(another, signing.private_key(keys.private))
        shutil.copytree(another / "signatures", place)
        shutil.rmtree(another / "signatures")
        assert {place, envelope_of(signed)} <= named(audit(signed, keys=trusted))
    with tampered(signed, before_signed):
        shutil.copy(stranger.public, place / "signer.public.pem")
        assert place / "signer.public.pem" in named(audit(signed, keys=trusted))
        with pytest.raises(InputError):
            list(audit(signed, keys=[place / "signer.public.pem"]))
    with tampered(signed, before_signed):
        path = envelope_of(signed)
        content = json.loads(path.read_bytes())
        theirs = signing.private_key(stranger.private)
        content["signatures"][0]["sig"] = base64.b64encode(theirs.sign(b"anything")).decode()
        path.write_bytes(canonical_json(content) + b"\n")
        assert path in named(audit(signed, keys=trusted))


# Exports


def test_exports(signed: Path, another: Path, before_signed: dict[str, bytes]) -> None:
    """Every export with bytes changed, of another run, or beside something that is none."""
    with tampered(signed, before_signed):
        written_here = list(export(signed, "all"))
        exported = files_of(signed)
        assert list(audit(signed, full=True)) == []
        for path in written_here:
            content = exported[str(path.relative_to(signed))]
            for what in ("middle byte flipped", "last line cut", "a byte appended", "emptied"):
                path.write_bytes(CHANGES[what](content))
                assert path in named(audit(signed)), what
            restore(signed, exported)
        for made in export(another, "all"):
            path = signed / made.relative_to(another)
            path.write_bytes(made.read_bytes())
            assert path in named(audit(signed))
        shutil.rmtree(another / "exports")
        restore(signed, exported)
        links = [make for what, make in EXTRAS.items() if "link" in what]
        for makers in (links, [make for make in EXTRAS.values() if make not in links]):
            made_there = {make(signed / "exports") for make in makers}
            found_there = named(audit(signed))
            restore(signed, exported)
            assert {path for path in made_there if not {path, path.parent} & found_there} == set()


# Results of two runs, and what is said of models, with every unsigned hash made to fit


def test_a_parent_of_another_run(
    signed: Path, another: Path, before_signed: dict[str, bytes], keys: signing.Pair
) -> None:
    """Reforged: its result in the place of this run's, and all stages after it say that they were made from it."""
    missed = []
    for stage in CHAIN[1:-1]:
        with tampered(signed, before_signed):
            mine, theirs = folder_of(signed, stage), folder_of(another, stage)
            shutil.rmtree(mine)
            shutil.copytree(theirs, mine.with_name(theirs.name))
            (signed / stage / "current").write_text(f"{theirs.name}\n")
            reforge(signed, stage)
            by_signature, by_contradiction = found(signed, stage, keys)
        missed += [] if by_signature and by_contradiction else [stage]
    assert missed == []


def test_a_student_of_other_shards(
    signed: Path, another: Path, before_signed: dict[str, bytes], keys: signing.Pair
) -> None:
    """Its folder put in the place of this run's, and its record of what it was trained on edited, both with hashes that fit."""
    citation = folder_of(signed, "train") / "student" / CITATION
    theirs = folder_of(another, "train") / "student" / CITATION
    with tampered(signed, before_signed):
        shutil.copytree(theirs.parent, citation.parent, dirs_exist_ok=True)
        assert citation in named(audit(signed))
        reforge(signed, "train")
        assert folder_of(signed, "train") / "student" / CITATION in named(audit(signed, keys=[keys.public]))
    for field in json.loads(citation.read_bytes()):
        with tampered(signed, before_signed):
            content = json.loads(citation.read_bytes())
            citation.write_text(json.dumps({**content, field: other(content[field])}))
            reforge(signed, "train")
            by_signature, by_contradiction = found(signed, "train", keys)
        assert by_signature, field
        assert by_contradiction, field


def test_an_eval_set_exchanged(signed: Path, before_signed: dict[str, bytes], keys: signing.Pair) -> None:
    """Reforged: the digest of the rows that training rows were compared with, in the settings and among the sources."""
    before = manifest_of(signed, "decontaminate")
    (digest,) = {source["sha256"] for source in before["sources"] if source["uri"].endswith("test.jsonl")}
    with tampered(signed, before_signed):
        replace_in(folder_of(signed, "decontaminate") / outputs.MANIFEST, digest, "0" * 64)
        path = folder_of(signed, "decontaminate") / outputs.MANIFEST
        path.write_bytes(path.read_bytes().replace(digest.encode(), b"0" * 64))
        reforge(signed, "decontaminate", count_first=False)
        by_signature, by_contradiction = found(signed, "decontaminate", keys)
        assert by_signature
        assert by_contradiction or any(one.path.is_relative_to(signed / "evaluate") for one in audit(signed))


# The command


def test_the_command_says_what_and_where_and_what_it_cannot_prove(
    signed: Path, before_signed: dict[str, bytes], keys: signing.Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit codes 0, 1 and 2; a finding is a line."""
    trusted = ["--key", str(keys.public)]

    def main(*arguments: str) -> int:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr("sys.argv", ["stepdistill", *arguments])
            cli.main()
        return int(ended.value.code or 0)

    assert main("audit", str(signed), "--full", *trusted) == 0
    said = capsys.readouterr().out
    for name in {*UNPROVEN, *SIGNATURE_ALONE.values()}:
        assert name in UNPROVEN
        assert name in said
    with tampered(signed, before_signed):
        path = next((folder_of(signed, "shard")).glob("train-00000.jsonl"))
        path.write_bytes(CHANGES["middle byte flipped"](path.read_bytes()))
        assert main("audit", str(signed), *trusted) == 1
        shown_now = capsys.readouterr()
        assert f"{path}:" in shown_now.out + shown_now.err
    with tampered(signed, before_signed):
        shutil.rmtree(signed / "signatures")
        assert main("audit", str(signed)) == 0
        assert main("audit", str(signed), *trusted) == 1
    assert main("audit", str(signed / "nothing")) == 2


# Clean runs


@pytest.mark.parametrize("seed", range(100 if ALL else 30))
def test_of_a_clean_run_nothing_is_said(tmp_path: Path, seed: int, keys: signing.Pair) -> None:
    """Varied settings, inputs, teachers and stages; every tenth run is signed and exported."""
    run = make_run(write_varied_project(tmp_path, seed))
    if seed % 10 == 0:
        signing.sign(run, signing.private_key(keys.private))
        assert len(list(export(run, "all"))) > 3
    assert list(audit(run, recompute=True, keys=[keys.public] if seed % 10 == 0 else ())) == []


def test_there_are_more_than_four_hundred(whole: Path, before: dict[str, bytes]) -> None:
    """Distinct tamperings, by class."""
    manifests = [manifest_of(whole, stage) for stage in CHAIN]
    files = [name for name in watched(before) if not name.endswith(outputs.MANIFEST)]
    naive = [changed_leaf(one, place, kind, seal=False) for one in manifests for place in leaves(one) for kind in KINDS]
    counted = {
        "leaves of manifests": sum(content is not None for content in naive),
        "leaves, digest made to fit": sum(len(one_of_each(one)) for one in manifests[:-1]),
        "files": sum(
            change(before[name]) != before[name] for name in files for change in CHANGES.values() if before[name]
        ),
        "files moved": len(files) * len(MOVES),
        "what was not written": len(EXTRAS) * (len(CHAIN) + 2),
        "rows, all hashes made to fit": len(list(row_tamperings(whole))),
        "records of the store": len(list(store_tamperings(whole))),
        "texts along the chain": len(ALONG_THE_CHAIN),
    }
    assert sum(counted.values()) >= 400
    assert min(counted.values()) >= 25, counted
