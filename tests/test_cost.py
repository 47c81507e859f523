"""Measurements with clocks and memories that the test sets, and once with the process's own."""

import itertools
import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cost import bytes_on_disk, cost, cost_per_1000, latency, peak_memory, percentiles
from tests.models import make_model

seconds = st.lists(st.floats(0, 1e6), min_size=1, max_size=40)


def test_each_row_is_timed_after_one_that_does_not_count() -> None:
    asked: list[int] = []
    ticks = iter([0.0, 0.5, 1.0, 1.25, 2.0, 2.125])
    assert latency(asked.append, 3, clock=lambda: next(ticks)) == [0.5, 0.25, 0.125]
    assert asked == [0, 0, 1, 2]
    assert latency(asked.append, 0) == []
    assert len(asked) == 4


def test_percentiles_as_worked_out_by_hand() -> None:
    # 5 values: p50 is the third; p95 lies 0.8 of the way from the fourth to the fifth, p99 0.96
    assert percentiles([5.0, 1.0, 2.0, 4.0, 3.0]) == pytest.approx({"p50": 3.0, "p95": 4.8, "p99": 4.96})
    assert percentiles([7.0]) == {"p50": 7.0, "p95": 7.0, "p99": 7.0}
    assert percentiles([]) is None


@given(seconds)
def test_percentiles_are_in_order_and_within_what_was_measured(given: list[float]) -> None:
    found = percentiles(given)
    assert found is not None
    values = [min(given), found["p50"], found["p95"], found["p99"], max(given)]
    assert all(low <= high * (1 + 1e-12) for low, high in itertools.pairwise(values))


@given(seconds)
def test_percentiles_are_numpys(given: list[float]) -> None:
    import numpy

    found = percentiles(given)
    assert found is not None
    assert [*found.values()] == pytest.approx(numpy.percentile(given, [50, 95, 99]), rel=1e-9, abs=1e-9)


def test_only_what_a_model_needs_counts_on_disk(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "tiny")
    needed = sum(file.stat().st_size for file in folder.iterdir())
    assert bytes_on_disk(folder) == needed
    (folder / "README.md").write_text("a card")
    (folder / "pytorch_model.bin").write_bytes(b"the same weights again")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "model.safetensors").write_bytes(b"old weights")
    assert bytes_on_disk(folder) == needed
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"12345")
    assert bytes_on_disk(folder) == needed + 5
    assert bytes_on_disk(tmp_path) is None


def test_the_peak_is_the_highest_look() -> None:
    looks = iter([10, 70, 20])
    seen = threading.Event()
    last = 20

    def resident() -> int:
        found = next(looks, last)
        if found == 20:
            seen.set()
        return found

    with peak_memory("cpu", resident=resident, interval=0.001) as memory:
        assert seen.wait(30)
    assert memory.bytes == 70


def test_memory_that_is_still_held_at_the_end_counts_whatever_was_looked_at_in_between() -> None:
    looks = iter([10, 90])
    with peak_memory("cpu", resident=lambda: next(looks), interval=3600) as memory:
        assert memory.bytes == 10
    assert memory.bytes == 90


def test_the_peak_is_known_and_the_watcher_gone_after_an_error() -> None:
    looks = iter([10, 90])
    with pytest.raises(KeyError), peak_memory("cpu", resident=lambda: next(looks), interval=3600) as memory:
        raise KeyError
    assert memory.bytes == 90
    assert "peak-memory" not in {thread.name for thread in threading.enumerate()}


def test_the_process_s_own_memory() -> None:
    with peak_memory("cpu") as memory:
        before = memory.bytes
        held = bytearray(b"x") * 64_000_000
    assert len(held) == 64_000_000
    assert memory.bytes >= before + 40_000_000


def test_money_as_worked_out_by_hand() -> None:
    assert cost_per_1000(3.6, 10.0) == pytest.approx(0.1)  # 0.001 a second, a thousand rows in 100 seconds
    assert cost_per_1000(0.0, 10.0) == 0.0
    assert cost_per_1000(None, 10.0) is None
    assert cost_per_1000(3.6, 0.0) is None
    assert cost_per_1000(3.6, None) is None


def test_a_model_s_cost(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "tiny")
    found = cost(
        rows=150, seconds=5.0, parameters=7, folder=folder, memory=123, latencies=[0.2, 0.1], batch_size=32,
        price_per_hour=1.08,
    )  # fmt: skip
    assert (found.throughput, found.cost_per_1000, found.latency_rows) == (30.0, pytest.approx(0.01), 2)
    assert found.latency is not None
    assert found.latency["p50"] == pytest.approx(0.15)
    assert found.bytes_on_disk == bytes_on_disk(folder)
    assert json.loads(found.line())["peak_memory"] == 123
    nothing = cost(rows=0, seconds=0.0, price_per_hour=1.0)
    assert (nothing.throughput, nothing.latency, nothing.cost_per_1000, nothing.peak_memory) == (None, None, None, None)
