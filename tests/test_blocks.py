"""Blocks: however row files are cut, what comes of them is the same, to the byte."""

import tempfile
from collections.abc import Iterable
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import outputs, runner
from pipeline.blocks import Block, cut, judged, mapped
from pipeline.files import RunError, line_digest
from pipeline.outputs import DROPPED, RowWriter
from pipeline.records import Counts, Drop, Manifest, Response, Row
from tests.conftest import write_project
from tests.rows import MADE_BY, example, response

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
LINES = st.lists(st.binary(min_size=1, max_size=40).map(lambda line: line.replace(b"\n", b" ")), max_size=30)


def write_result(run: Path, stage: str, rows: Iterable[Row], rows_per_file: int = 100_000) -> Path:
    """What a stage that kept these rows leaves behind, in force."""
    folder = run / stage / "made"
    folder.mkdir(parents=True)
    writer, drops = RowWriter(folder, "part", rows_per_file), RowWriter(folder, DROPPED, None)
    for row in rows:
        writer.write(row.line())
    files = [*writer.close(), *drops.close()]
    counts = Counts(unit="rows", rows_in=writer.rows, kept=writer.rows, dropped=0, reasons={}, rows_out=writer.rows)
    manifest = Manifest(
        stage=stage,
        version=1,
        key="made",
        settings={},
        parents={},
        **MADE_BY,
        identities={},
        counts=counts,
        outputs=files,
        features={},
        details={},
        digest="0" * 64,
    )
    manifest = manifest.model_copy(update={"digest": outputs.manifest_digest(manifest)})
    outputs.write_manifest(folder, manifest)
    outputs.point(run, stage, "made")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file but those that hold times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("run.json", ".lock"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def groups(sizes: list[int]) -> list[Response]:
    return [response(f"says {n}", f"r{place}", n) for place, size in enumerate(sizes) for n in range(size)]


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    rows_per_file=st.integers(1, 10),
    size=st.integers(1, 4000),
    together=st.sampled_from([None, "prompt"]),
)
def test_blocks_are_whole_lines_in_order_and_keep_together_what_belongs_together(
    sizes: list[int], rows_per_file: int, size: int, together: str | None
) -> None:
    rows = groups(sizes)
    with tempfile.TemporaryDirectory() as name:
        folder = write_result(Path(name), "sample", rows, rows_per_file)
        blocks = list(cut(folder, together=together, size=size))
        assert all(block.read().endswith(b"\n") and len(block) == len(block.read()) for block in blocks)
        assert b"".join(map(Block.read, blocks)) == b"".join(row.line() + b"\n" for row in rows)
        found = [block.rows(Response) for block in blocks]
    assert list(chain(*found)) == rows
    if together:
        assert all(before[-1].prompt != after[0].prompt for before, after in pairwise(found))
    elif size == 1:
        assert all(len(rows) <= 2 for rows in found)


@given(lines=LINES, cuts=st.lists(st.integers(0, 30)), rows_per_file=st.one_of(st.none(), st.integers(1, 8)))
def test_rows_written_at_once_are_rows_written_one_by_one(
    lines: list[bytes], cuts: list[int], rows_per_file: int | None
) -> None:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as many:
        writer = RowWriter(Path(one), "part", rows_per_file)
        for line in lines:
            writer.write(line)
        single = writer.close()
        writer = RowWriter(Path(many), "part", rows_per_file)
        for start, end in pairwise([0, *sorted(min(place, len(lines)) for place in cuts), len(lines)]):
            some = lines[start:end]
            digests = b"".join(line_digest(line).encode() + b"\n" for line in some)
            writer.write_lines(b"".join(line + b"\n" for line in some), digests, len(some))
        assert writer.close() == single
        assert tree(Path(many)) == tree(Path(one))


@given(texts=st.lists(st.tuples(TEXTS, st.booleans())))
def test_a_filter_passes_lines_through_as_they_are(texts: list[tuple[str, bool]]) -> None:
    rows = [example(f"r{place}", input=text) for place, (text, _) in enumerate(texts)]
    verdicts = [
        None if kept else Drop(id=row.id, reason="short" if row.input else "empty", evidence={})
        for row, (_, kept) in zip(rows, texts, strict=True)
    ]
    written = judged(b"".join(row.line() + b"\n" for row in rows), verdicts, "quality")
    kept = [row.line() for row, drop in zip(rows, verdicts, strict=True) if drop is None]
    drops = [drop for drop in verdicts if drop is not None]
    assert b"".join(lines.data for lines in written.kept.values()) == b"".join(line + b"\n" for line in kept)
    assert b"".join(lines.digests for lines in written.kept.values()).decode().split() == list(map(line_digest, kept))
    assert written.drops.data == b"".join(drop.line() + b"\n" for drop in drops)
    assert (written.rows_in, written.units, written.drops.rows) == (len(rows), len(kept), len(drops))
    assert sum(written.reasons.values()) == len(drops)


@pytest.mark.parametrize("verdicts", [0, 1, 3])
def test_a_filter_with_another_number_of_verdicts_than_rows_is_stopped(verdicts: int) -> None:
    data = b"".join(example(name).line() + b"\n" for name in "ab")
    with pytest.raises(RunError, match=f"as many verdicts as rows are needed, there were {verdicts} for 2"):
        judged(data, [None] * verdicts, "quality")


def test_a_map_writes_each_row_to_its_file() -> None:
    rows = [example(f"r{n}", label="ab"[n % 2]) for n in range(5)]
    drop = Drop(id="r5", reason="short", evidence={})
    written = mapped([*rows, drop], 6, lambda row: row.label, lambda row: 2)
    assert {name: lines.rows for name, lines in written.kept.items()} == {"a": 3, "b": 2}
    assert written.kept["b"].data == b"".join(row.line() + b"\n" for row in rows[1::2])
    assert (written.rows_in, written.units, written.reasons) == (6, 10, {"short": 1})


@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=8),
    damaged=st.integers(0, 100),
    size=st.integers(1, 2000),
    damage=st.sampled_from([b"{", b'{"prompt": 1}', b'{"prompt": "\xff"}', b"[" * 5000]),
)
def test_a_damaged_line_is_named_wherever_it_stands(sizes: list[int], damaged: int, size: int, damage: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = write_result(Path(name), "sample", groups(sizes))
        lines = (folder / "part-00000.jsonl").read_bytes().split(b"\n")[:-1]
        place = damaged % len(lines)
        lines[place] = damage
        (folder / "part-00000.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
        with pytest.raises(RunError, match=rf"part-00000.jsonl:{place + 1}: not a Response row"):
            for block in cut(folder, together="prompt", size=size):
                block.rows(Response)


@pytest.mark.parametrize("lines", [0, 2])
def test_a_row_that_is_gone_or_came_since_stops_the_stage(tmp_path: Path, lines: int) -> None:
    config = write_project(tmp_path)
    part = write_result(tmp_path / "runs" / "small", "sample", groups([1, 1, 1])) / "part-00000.jsonl"
    first, *others = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join([first * lines or b"\n", *others]))
    with pytest.raises(RunError, match=rf"sample/made: {2 + lines} rows in its files, 3 in its manifest; .* audit"):
        runner.run(config, ["parse"])
    assert outputs.current(tmp_path / "runs" / "small", "parse") is None


@settings(max_examples=6)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=3, max_size=20),
    rows_per_file=st.integers(1, 12),
    size=st.integers(1, 6000),
)
def test_no_cut_changes_a_byte_of_any_stage(sizes: list[int], rows_per_file: int, size: int) -> None:
    """From responses that cross the borders of blocks and files to the shards: row files, digests, drops and manifests."""

    def ran(folder: Path, **given: Any) -> dict[str, bytes]:
        config = write_project(folder)
        said = [
            "So the answer is food.",
            "It is eaten. So the answer is food.",
            "It is a goal. So the answer is sports.",
            "",
        ]
        rows = [
            response(
                said[(place + n * n) % 4], f"r{place}", n, input=f"the text {'of many words ' * (place % 3)}{place}"
            )
            for place, size in enumerate(sizes)
            for n in range(size)
        ]
        write_result(folder / "runs" / "small", "sample", rows, rows_per_file)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner, "cut", partial(cut, **given))
            patch.setattr(runner, "ROWS_PER_FILE", 3)
            runner.run(config, start="parse", overrides=["shard.rows_per_shard=2", "shard.validation=0.3"])
        return tree(folder / "runs")

    with tempfile.TemporaryDirectory() as name:
        assert ran(Path(name, "many"), size=size) == ran(Path(name, "one"))
