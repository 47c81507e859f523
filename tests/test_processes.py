"""Rows on several processes, or as Ray tasks: the same bytes, clear errors, and nothing that is left behind."""

import multiprocessing
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline import processes, runner
from pipeline.blocks import cut
from pipeline.cluster import Cluster, connected, in_use
from pipeline.config import load
from pipeline.files import InputError, RunError
from pipeline.processes import AHEAD, Crew
from tests.conftest import ROOT, write_project
from tests.rows import response
from tests.test_blocks import tree, write_result

AT_LAST = 60.0  # seconds; what is waited for comes at once, or never


@pytest.fixture(autouse=True)
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little work is enough to be shared out."""
    monkeypatch.setattr(processes, "WORTH_IT", 1)


def square(_: object, number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def stumble(error: Exception, number: int) -> int:
    if number == 5:
        raise error
    return number


def die(_: object, number: int) -> None:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)


def hang(pipe: Any, *_: object) -> None:
    """Says its process's number, and never ends."""
    with Path(os.environ["STEPDISTILL_TEST_PIPE"]).open("w") as told:
        told.write(f"{os.getpid()}\n")
    signal.pause()


def numbers(amount: int) -> Iterator[tuple[int]]:
    return ((number,) for number in range(amount))


@pytest.mark.parametrize("number", [1, 2, 4])
def test_results_come_in_order_wherever_they_are_made(number: int) -> None:
    with Crew("local", number) as crew:
        found = list(crew.in_order(square, numbers(40), weight=1))
        again = list(crew.in_order(square, numbers(40), weight=1))
    assert [result for result, _ in found] == [result for result, _ in again] == [place**2 for place in range(40)]
    where = {process for _, process in found + again}
    assert where == {os.getpid()} if number == 1 else os.getpid() not in where and len(where) <= number
    assert not multiprocessing.active_children()


def test_little_work_stays_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "WORTH_IT", 1000)
    with Crew("local", 2) as crew:
        assert {process for _, process in crew.in_order(square, numbers(9), weight=999)} == {os.getpid()}


def test_only_so_much_is_under_way() -> None:
    taken = 0

    def counted() -> Iterator[tuple[int]]:
        nonlocal taken
        for task in numbers(60):
            taken += 1
            yield task

    with Crew("local", 2) as crew:
        for given, _ in enumerate(crew.in_order(square, counted(), weight=1)):
            assert taken <= given + 2 * AHEAD


@pytest.mark.parametrize("error", [InputError("a.jsonl:3: no text; fix it"), RunError("it broke"), ValueError("odd")])
def test_an_error_arrives_as_itself_and_ends_the_rest(error: Exception) -> None:
    with pytest.raises(type(error)) as there, Crew("local", 2) as crew:
        list(crew.in_order(stumble, numbers(1000), weight=1, shared=error))
    assert str(there.value) == str(error)
    assert not multiprocessing.active_children()


def test_a_killed_process_is_one_clear_line() -> None:
    with (
        pytest.raises(RunError, match="was killed, most likely for want of memory; set `processes: 1`"),
        Crew("local", 2) as crew,
    ):
        list(crew.in_order(die, numbers(1000), weight=1))
    assert not multiprocessing.active_children()


def test_resting_ends_the_processes_until_there_is_work() -> None:
    with Crew("local", 2) as crew:
        before = {process for _, process in crew.in_order(square, numbers(9), weight=1)}
        crew.rest()
        assert not multiprocessing.active_children()
        after = {process for _, process in crew.in_order(square, numbers(9), weight=1)}
    assert before.isdisjoint(after)


SCRIPT = """
import operator
from pipeline import processes
print("main")
processes.WORTH_IT = 1
with processes.Crew("local", 2) as crew:
    print(list(crew.in_order(operator.add, [(1,), (2,)], weight=1, shared=10)))
"""


@pytest.mark.parametrize("entry", ["script", "command"])
def test_what_the_main_module_does_is_not_done_again(tmp_path: Path, entry: str) -> None:
    """Not even without a guard for ``__main__``."""
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = [str(tmp_path / "script.py")] if entry == "script" else ["-c", SCRIPT]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("main\n[11, 12]\n", "")


def write_large_project(folder: Path) -> Path:
    """A project with 3,000 responses to 2,000 prompts, some of them alike."""
    config = write_project(folder)
    said = [
        f"It speaks of {what} here and there. So the answer is {label}."
        for what in ("goals", "soup", "a match", "bread")
        for label in ("sports", "food", "plants")
    ]
    rows = [
        response(
            said[(place * 7 + n) % 12], f"r{place}", n, input=f"note {place % 1900} about {said[place % 1900 % 12]}"
        )
        for place in range(2000)
        for n in range(1 + place % 2)
    ]
    write_result(folder / "runs" / "small", "sample", rows, 700)
    return config


def told_by(number: int, pipe: int) -> list[int]:
    """What so many processes write to the pipe: a line each."""
    told = b""
    while told.count(b"\n") < number:
        assert select.select([pipe], [], [], AT_LAST)[0]
        told += os.read(pipe, 1000)
    os.close(pipe)
    return [int(line) for line in told.split()]


HANGING = """
from functools import partial
from pipeline import blocks, cli, processes, runner
from tests.test_processes import hang
processes.WORTH_IT, runner.cut = 1, partial(blocks.cut, size=65536)
runner._apart = hang
cli.main()
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_a_run_ends_its_processes_end_and_the_next_run_goes_on(tmp_path: Path, end: signal.Signals) -> None:
    config = write_large_project(tmp_path / "project")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    heard = os.open(pipe, os.O_RDWR)  # so that it never ends
    run = subprocess.Popen(
        [sys.executable, "-c", HANGING, "run", "-c", str(config), "--from", "parse", "--processes", "2"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"STEPDISTILL_TEST_PIPE": str(pipe)},
        start_new_session=True,
    )
    handles = [os.pidfd_open(process) for process in told_by(2, heard)]
    if end is signal.SIGINT:
        os.killpg(run.pid, end)  # as a terminal does
    else:
        run.send_signal(end)
    _, said = run.communicate(timeout=AT_LAST)
    for handle in handles:
        assert select.select([handle], [], [], AT_LAST)[0]
        os.close(handle)
    assert run.returncode == (130 if end is signal.SIGINT else -end)
    if end is signal.SIGINT:
        assert said.splitlines()[1:] == ["stepdistill: stopped; what was finished is kept, run again to go on"]
    assert all(outcome.ran for outcome in runner.run(config, start="parse", processes=1))


def test_any_number_of_processes_and_ray_write_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "cut", partial(cut, size=1 << 16))
    monkeypatch.setattr(runner, "ROWS_PER_FILE", 450)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # Ray's processes find the tests

    def ran(engine: str, number: int) -> dict[str, bytes]:
        folder = tmp_path / f"{engine}-{number}"
        config = write_large_project(folder)
        config.write_text(f"engine: {engine}\n" + config.read_text())
        outcomes = runner.run(config, start="parse", processes=number)
        dropped = {outcome.stage: outcome.manifest.counts.dropped for outcome in outcomes if outcome.ran}
        assert dropped.keys() == {"parse", "dedup", "decontaminate", "quality", "shard"}
        assert dropped["dedup"] and dropped["quality"]
        return tree(folder / "runs")

    one = ran("local", 1)
    assert ran("local", 2) == one
    assert ran("local", 4) == one
    with connected(None, setting="", num_cpus=2):
        assert ran("ray", 2) == one
        ray_fails_as_processes_do(tmp_path)
    assert not in_use()


def ray_fails_as_processes_do(folder: Path) -> None:
    with Crew("ray", 2) as crew:
        assert [result for result, _ in crew.in_order(square, numbers(20), weight=1)] == [n**2 for n in range(20)]
        for error in (InputError("a.jsonl:3: no text; fix it"), RunError("it broke")):
            with pytest.raises(type(error), match=str(error)):
                list(crew.in_order(stumble, numbers(20), weight=1, shared=error))
        with pytest.raises(InputError, match="does not see .*gone; with ray all nodes need a shared file system"):
            list(crew.in_order(look, [()], weight=1, shared=folder / "gone"))
        with pytest.raises(RunError, match="was killed"):
            list(crew.in_order(die, numbers(20), weight=1))


def look(path: Path) -> list[Path]:
    return list(path.iterdir())


def test_a_cluster_that_cannot_be_used_is_one_clear_line() -> None:
    with (
        pytest.raises(InputError, match=r"^ray.address: 127.0.0.1:9: nobody answers there"),
        Crew("ray", 2, Cluster(address="127.0.0.1:9")) as crew,
    ):
        list(crew.in_order(square, numbers(2), weight=1))


def test_settings_and_options_say_how_many(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    class Noted(Crew):
        def __init__(self, *given: Any) -> None:
            started.append(given)
            super().__init__(*given)

    monkeypatch.setattr(runner, "Crew", Noted)
    runner.run(project, ["ingest"])
    project.write_text("processes: 3\n" + project.read_text())
    runner.run(project, ["ingest"])
    runner.run(project, ["ingest"], processes=2)
    project.write_text("engine: ray\nray: {address: auto}\n" + project.read_text())
    runner.run(project, ["ingest"])
    assert started == [
        ("local", None, None),
        ("local", 3, None),
        ("local", 2, None),
        ("ray", 3, Cluster(address="auto")),
    ]


def test_an_address_needs_ray(project: Path) -> None:
    project.write_text("ray: {address: auto}\n" + project.read_text())
    with pytest.raises(InputError, match=r"stages.yaml:1: ray: needs `engine: ray`"):
        load(project)
