"""The command line as a user meets it: what it prints, and its exit codes."""

import itertools
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.chat_server import Reply, chat_server, completion, hearing

COMMAND = [str(Path(sys.executable).with_name("stepdistill"))]
COMMANDS = (
    "init check plan run sweep status show view compare suspects train evaluate predict report "
    "trace revoke audit repair keygen sign prove verify export push responses"
).split()


def call(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, cwd=project.parent, timeout=120
    )


def test_help_names_every_command() -> None:
    shown = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^  (\w+)  ", shown, re.MULTILINE) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str) -> None:
    done = subprocess.run([*COMMAND, command, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Usage: stepdistill" in done.stdout


def test_a_session_from_check_to_audit(project: Path) -> None:
    checked = call(project, "check")
    assert (checked.returncode, checked.stdout) == (
        0,
        "stages.yaml: ready: 29 inputs; eval sets: test 6; stages: ingest, sample, parse, dedup, decontaminate, quality, shard\n",
    )
    planned = json.loads(call(project, "plan", "--json").stdout)
    assert [stage["runs"] for stage in planned["stages"]] == [True] * 7
    assert planned["teacher"]["to_ask"] == 29

    ran = call(project, "run")
    assert ran.returncode == 0
    assert "quality: 26 examples in, 24 kept, 2 dropped (label_in_set 1, min_words 1)" in ran.stderr
    assert ran.stdout.rstrip().endswith("report: runs/small/report/index.html")
    assert (project.parent / "runs/small/report/index.html").is_file()
    again = json.loads(call(project, "run", "--json").stdout)
    assert not any(stage["ran"] for stage in again["stages"])

    status = json.loads(call(project, "status", "--json").stdout)
    assert {stage["state"] for stage in status} == {"done"}
    assert "done" in call(project, "status").stdout

    rows = [json.loads(line) for line in call(project, "show", "dedup", "--dropped", "--json").stdout.splitlines()]
    assert [row["id"] for row in rows] == ["r24"]
    assert "reason: unparsed" in call(project, "show", "parse", "--reason", "unparsed").stdout
    traced = call(project, "trace", "r28")
    assert traced.returncode == 0
    assert "reason: min_words" in traced.stdout

    audited = call(project, "audit")
    assert (audited.returncode, audited.stdout.count("\n")) == (0, 2)
    part = next((project.parent / "runs/small/quality").glob("*/part-00000.jsonl"))
    part.write_bytes(part.read_bytes().replace(b"speaks", b"speakz", 1))
    audited = call(project, "audit", "--json")
    assert audited.returncode == 1
    found = [(Path(one["path"]).name, one["line"]) for one in json.loads(audited.stdout)["findings"]]
    assert ("part-00000.jsonl", 1) in found


def test_plan_names_the_changed_field_and_asks_the_teacher_nothing(project: Path) -> None:
    call(project, "run")
    shown = call(project, "plan", "--set", "quality.filters=[label_in_set]").stdout
    assert re.search(r"quality +runs +quality\.filters: - \{\"min_words\"", shown)
    assert "teacher: nothing to ask" in shown


def asked_of_a_server(project: Path, url: str, more: str = "") -> None:
    """The small project with a server, of 4 requests at once, as its teacher; ``more``: further settings of it."""
    (project.parent / "prompt.jinja").write_text("{% block user %}{{ text }}{% endblock %}")
    teacher = f"{{backend: server, base_url: '{url}', model: m, concurrency: 4, {more}}}\n    max_tokens: 30"
    settings = project.read_text().replace("{backend: replay, completions: completions.jsonl}", teacher)
    project.write_text(settings.replace("  labels:", "  prompt: prompt.jinja\n  labels:"))


def test_plan_reckons_the_cost_and_a_price_changes_no_key(project: Path) -> None:
    """Then the run says what it took, and a plan expects as much of what is asked next."""
    with chat_server(lambda _: completion("It speaks of this and that. So the answer is food.")) as chat:
        asked_of_a_server(project, chat.url, "name: '[bold]m', price: {completion_tokens: 1000}")
        shown = call(project, "plan", "--set", "sample.budget={usd: 0.1}").stdout
        assert re.search(r"\[bold\]m +29 +0 +about \d+ +at most 870 +not known +about 0\.87", shown)
        assert "cost: about 0.87, at most 0.87 at the prices of stages.sample.teacher.price" in shown
        assert "budget: 0.1 usd hold about 3 of the 29 requests; 10 runs" in shown
        ran = call(project, "run").stdout
        assert re.search(r"\[bold\]m +29 +29 +203 +319 +[\d,]+ +0\.319 *\n", ran)
    project.write_text(project.read_text().replace("completion_tokens: 1000", "completion_tokens: 7"))
    planned = json.loads(call(project, "plan", "--json").stdout)
    assert not any(stage["runs"] for stage in planned["stages"])
    project.write_text(project.read_text().replace("max_tokens: 30", "max_tokens: 31\n    seed: 1"))
    found = json.loads(call(project, "plan", "--json").stdout)["teacher"]
    assert (found["to_ask"], found["completion_tokens"], found["completion_tokens_at_most"]) == (29, 29 * 11, 29 * 31)
    assert found["teachers"][0]["teacher"] == "[bold]m"
    assert found["cost"] == pytest.approx(29 * 11 * 7 / 1e6)
    assert found["seconds"] > 0


def test_a_budget_that_is_used_up_is_one_line_and_exit_code_1(project: Path) -> None:
    with chat_server(lambda _: completion("It speaks of this and that. So the answer is food.")) as chat:
        asked_of_a_server(project, chat.url)
        stopped = call(project, "run", "--set", "sample.budget={tokens: 500}")
        asked = len(chat.requests)
        assert (stopped.returncode, stopped.stdout) == (1, "")
        assert 0 < asked * 18 <= 500
        assert stopped.stderr.splitlines()[-1] == (
            f"stepdistill: sample: the budget of 500 tokens does not hold another request; {asked} were asked now "
            f"({asked * 18} tokens) and {asked} answers are in the response store; "
            "run again to go on with a fresh budget, or raise stages.sample.budget"
        )
        assert json.loads(call(project, "plan", "--json").stdout)["teacher"]["stored"] == asked
        done = call(project, "run", "--set", "sample.budget={tokens: 5000}")
        assert done.returncode == 0
        assert f"{29 - asked} of 29 requests asked, {asked} answered from the response store" in done.stderr
        assert len(chat.requests) == 29


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "qualitty"], "qualitty: unknown stage; the stages are ingest"),
        (["run", "train"], "stages.yaml: stages.train: this stage is switched off"),
        (["run", "quality"], "quality: reads decontaminate, which has no result yet"),
        (["run", "--set", "dedup.nera=1"], "stages.dedup.nera: unknown setting; did you mean 'near'?"),
        (["run", "-c", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["show", "parse"], "parse: no result yet; run `stepdistill run --until parse`"),
        (["show", "nothing"], "nothing: unknown stage"),
        (["trace", "r0"], "r0: no row of runs/small has this id"),
        (["audit", "nowhere"], "nowhere: no run here"),
        (["init", "."], ".: already holds something"),
        (["train", "--shards", "nowhere", "--student", "embedded", "--out", "o"], "nowhere"),
        (
            ["train", "--shards", ".", "--student", "embedded", "--out", "o", "--set", "alpha=2"],
            "alpha: input should be less than",
        ),
        (["evaluate", "--model", "./nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(project: Path, arguments: list[str], message: str) -> None:
    done = call(project, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["rnu"], "No such command"), (["show"], "Missing argument"), (["run", "--forse"], "No such option")],
)
def test_wrong_usage_is_exit_code_2(project: Path, arguments: list[str], message: str) -> None:
    done = call(project, *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_init_makes_a_project_that_checks(tmp_path: Path) -> None:
    made = subprocess.run([*COMMAND, "init", str(tmp_path / "new")], capture_output=True, text=True, check=False)
    assert made.returncode == 0
    assert (tmp_path / "new/data/topics/train.jsonl").is_file()
    checked = call(tmp_path / "new/stages.yaml", "check")
    assert checked.stdout.startswith("stages.yaml: ready: 442 inputs; eval sets: test 150")


def test_hostile_text_cannot_drive_the_terminal(project: Path) -> None:
    path = project.parent / "inputs.jsonl"
    path.write_bytes(
        path.read_bytes()
        + b'{"id": "evil", "text": "\\u001b[2J\\u001b]0;owned\\u0007 [bold]x[/bold]\\nforged: line", "topic": "food"}\n'
    )
    with (project.parent / "completions.jsonl").open("ab") as file:
        file.write(b'{"id": "evil", "completion": "It is \\u001b[31mred and so on. So the answer is food."}\n')
    call(project, "run")
    for arguments in (["trace", "evil"], ["show", "ingest", "-n", "40"], ["status"]):
        shown = call(project, *arguments)
        assert shown.returncode == 0
        assert "\x1b" not in shown.stdout
        assert "\nforged: line" not in shown.stdout


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_goes_on_and_asks_nothing_twice(project: Path, stop: signal.Signals) -> None:
    """The teacher answers eight rows, then hangs; the run is stopped there, and a second one asks for the rest alone."""
    hangs, numbers, go_on = True, itertools.count(), threading.Event()

    def reply(body: dict[str, Any]) -> Reply:
        if next(numbers) >= 8 and hangs:
            go_on.wait(60)
        return completion("It speaks of this and that. So the answer is food.")

    (project.parent / "prompt.jinja").write_text("{% block user %}{{ text }}{% endblock %}")
    with chat_server(reply) as chat:
        teacher = f"{{backend: server, base_url: '{chat.url}', model: m, concurrency: 2, retries: 0}}\n    chunk: 4"
        settings = project.read_text().replace("{backend: replay, completions: completions.jsonl}", teacher)
        project.write_text(settings.replace("  labels:", "  prompt: prompt.jinja\n  labels:"))
        process = subprocess.Popen(hearing([*COMMAND, "run"]), cwd=project.parent, stderr=subprocess.PIPE, text=True)
        responses = project.parent / "runs/small/responses"
        until = time.monotonic() + 60
        while sum(path.read_bytes().count(b"\n") for path in responses.glob("segment-*.jsonl")) < 8:
            assert process.poll() is None and not go_on.wait(0.02)
            assert time.monotonic() < until
        process.send_signal(stop)
        _, told = process.communicate(timeout=60)
        if stop == signal.SIGINT:
            assert process.returncode == 130
            assert told.splitlines()[-1] == "stepdistill: stopped; what was finished is kept, run again to go on"
        hangs = False
        go_on.set()
        planned = json.loads(call(project, "plan", "--json").stdout)
        assert (planned["teacher"]["stored"], planned["teacher"]["to_ask"]) == (8, 21)
        before = len(chat.requests)
        assert call(project, "run").returncode == 0
        assert len(chat.requests) - before == 21
        assert call(project, "audit").returncode == 0


@pytest.mark.parametrize(
    "arguments", [[b"prove", b"\xff"], [b"trace", b"\xff"], [b"revoke", b"--source", b"\xff"], [b"show", b"\xff"]]
)
def test_an_argument_that_is_no_text_is_one_line(project: Path, arguments: list[bytes]) -> None:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, check=False, cwd=project.parent, timeout=120)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"stepdistill: \\xdcff: not text in UTF-8; give ids and paths in UTF-8\n"


def test_a_folder_that_cannot_be_made_is_one_line_and_exit_code_1(project: Path) -> None:
    (project.parent / "runs/small").mkdir(parents=True)
    (project.parent / "runs/small/ingest").write_text("a file, where a folder should be")
    done = call(project, "run")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"stepdistill: runs/small/ingest/\w+: Not a directory; check .*", done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr
