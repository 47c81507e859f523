"""Sampling: through the store, in order, durable chunk by chunk, nothing asked twice; and once with the real engine."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import embedded, outputs, sample, teachers, usage
from pipeline.binding import parameters
from pipeline.files import InputError, RunError
from pipeline.outputs import Job, RowWriter
from pipeline.records import Counts, Drop, Manifest, Prompt, Response, features
from pipeline.requests import all_requests, resolve
from pipeline.responses import Answered, open_store, read_store, verify
from tests.chat_server import Reply, chat_server, completion, echo, hearing
from tests.rows import MADE_BY

TEMPLATE = """{% block system %}Topics: {{ labels | join(", ") }}{% endblock %}
{% block user %}{% include "ask.jinja" %}{{ text }}{% endblock %}"""
LABELS = ["sports", "food & drink (hot)"]


def rows(*texts: str) -> list[Prompt]:
    return [
        Prompt(id=f"r{n}", source=f"train.jsonl:{n + 1}", input=text, gold=None, choices=None, columns={"text": text})
        for n, text in enumerate(texts)
    ]


@pytest.fixture
def template(tmp_path: Path) -> Path:
    (tmp_path / "ask.jinja").write_text("Text: ")
    path = tmp_path / "topics.jinja"
    path.write_text(TEMPLATE)
    return path


def asked(url: str, template: Path | None, concurrency: int = 16, **changed: Any) -> dict[str, Any]:
    teacher = teachers.Server(
        backend="server", base_url=url, model="m", revision="1", retries=1, pause=0.01, concurrency=concurrency
    )
    return {
        "teacher": [teacher],
        "max_tokens": 20,
        "chunk": 4,
        "prompt": template,
        "labels": LABELS,
        **changed,
    }


def defaults() -> dict[str, Any]:
    return {name: default for name, (_, default) in parameters(resolve).items()}


NOWHERE = "http://127.0.0.1:9/v1"  # asking it fails at once


def test_answers_come_in_order_with_ids_seeds_and_all_that_parse_needs(tmp_path: Path, template: Path) -> None:
    with chat_server() as chat:
        settings = asked(chat.url, template, n=2, temperature=0.7, seed=5)
        found = list(sample.answers(rows("a", "b", "c"), responses=tmp_path / "store", **settings))
    assert [row.id for row in found] == ["r0#0", "r0#1", "r1#0", "r1#1", "r2#0", "r2#1"]
    assert [row.text for row in found if isinstance(row, Response)] == [
        f"about Text: {x} ({s})" for x in "abc" for s in (5, 6)
    ]
    first = found[0]
    assert isinstance(first, Response)
    assert (first.prompt, first.sample, first.teacher, first.input, first.finish_reason) == ("r0", 0, "m", "a", "stop")
    assert (first.prompt_tokens, first.completion_tokens) == (7, 4)
    assert {row.request for row in found if isinstance(row, Response)} == {
        record.key for _, _, record in read_store(tmp_path / "store")
    }
    assert list(verify(tmp_path / "store")) == []


def test_what_is_in_the_store_is_never_asked_again(tmp_path: Path, template: Path) -> None:
    store = tmp_path / "store"
    with chat_server() as chat:
        first = list(sample.answers(rows("a", "b"), responses=store, **asked(chat.url, template)))
        assert len(chat.requests) == 2
        more = list(sample.answers(rows("a", "b", "c"), responses=store, **asked(chat.url, template, chunk=1)))
        assert len(chat.requests) == 3
    assert more[:2] == first
    again = list(
        sample.answers(rows("a", "b", "c"), responses=store, **asked(NOWHERE, template))
    )  # nobody is there to ask
    assert again == more


@pytest.mark.parametrize(
    "changed",
    [
        {"temperature": 0.1},
        {"top_p": 0.9},
        {"max_tokens": 19},
        {"stop": ["."]},
        {"seed": 1},
        {"regex": "a+"},
        {"sampling": {"top_k": 4}},
        {"labels": ["sports"]},
        {"teacher": [teachers.Server(backend="server", base_url="http://127.0.0.1:9", model="other", revision="1")]},
        {"teacher": [teachers.Server(backend="server", base_url="http://127.0.0.1:9", model="m", revision="2")]},
    ],
)
def test_whatever_can_change_the_answer_asks_anew(tmp_path: Path, template: Path, changed: dict[str, Any]) -> None:
    settings = asked(NOWHERE, template)
    with chat_server() as chat:
        list(sample.answers(rows("a"), responses=tmp_path / "store", **asked(chat.url, template)))
    assert sample.pending(rows("a"), settings=settings, responses=tmp_path / "store").stored == 1
    assert sample.pending(rows("a"), settings={**settings, **changed}, responses=tmp_path / "store").stored == 0
    (template.parent / "ask.jinja").write_text("Passage: ")  # a changed include changes the prompt
    assert sample.pending(rows("a"), settings=settings, responses=tmp_path / "store").stored == 0


def test_equal_prompts_are_asked_once(tmp_path: Path, template: Path) -> None:
    with chat_server() as chat:
        texts = ["a", "a", "b", "a", "c", "b", "d", "a"]
        found = list(sample.answers(rows(*texts), responses=tmp_path / "store", **asked(chat.url, template, chunk=2)))
        assert len(chat.requests) == 4
    assert [row.text for row in found if isinstance(row, Response)] == [f"about Text: {text} (0)" for text in texts]


def sometimes(body: dict[str, Any]) -> Reply:
    return (400, {}, b"no") if body["messages"][-1]["content"].endswith("!") else echo(body)


@pytest.fixture(scope="module")
def server():
    with chat_server(sometimes) as chat:
        yield chat


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(
    texts=st.lists(st.sampled_from(["a", "b", "c!", "d", "e!", "{{ f }}"]), max_size=12),
    chunk=st.integers(1, 5),
    before=st.integers(0, 12),
    n=st.integers(1, 3),
)
def test_rows_do_not_depend_on_chunks_or_on_what_was_there(
    tmp_path_factory: pytest.TempPathFactory,
    template: Path,
    server: Any,
    texts: list[str],
    chunk: int,
    before: int,
    n: int,
) -> None:
    settings = asked(server.url, template, n=n, temperature=0.5)
    stores = [tmp_path_factory.mktemp("store") for _ in range(2)]
    whole = list(sample.answers(rows(*texts), responses=stores[0], **settings))
    list(sample.answers(rows(*texts)[:before], responses=stores[1], **settings))
    pending = sample.pending(rows(*texts), settings=settings, responses=stores[1])
    count = len(server.requests)
    resumed = list(sample.answers(rows(*texts), responses=stores[1], **{**settings, "chunk": chunk}))
    assert [row.line() for row in resumed] == [row.line() for row in whole]
    assert [row.id for row in whole] == [f"r{number}#{index}" for number in range(len(texts)) for index in range(n)]
    assert [isinstance(row, Drop) for row in whole] == [text.endswith("!") for text in texts for _ in range(n)]
    assert pending.to_ask == len(server.requests) - count
    assert pending.stored + pending.to_ask == len(set(texts)) * n


def test_a_failure_is_a_drop_with_its_evidence(tmp_path: Path, template: Path) -> None:
    with chat_server(sometimes) as chat:
        found = list(sample.answers(rows("a", "b!"), responses=tmp_path / "store", **asked(chat.url, template)))
    assert found[1] == Drop(
        id="r1#0",
        reason="refused",
        evidence={"source": "train.jsonl:2", "teacher": "m", "status": 400, "problem": "no"},
    )
    assert len(Answered(tmp_path / "store")) == 1


SAMPLING = """
import json, sys
from pathlib import Path
from pipeline import sample, teachers
from pipeline.records import Prompt
from tests.test_sample import asked, rows
url, folder = sys.argv[1], Path(sys.argv[2])
try:
    for row in sample.answers(rows(*"abcdefghij"), responses=folder / "store", **asked(url, folder / "topics.jinja", 3, chunk=3)):
        print(row.line().decode(), flush=True)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_asks_only_for_what_is_missing(tmp_path: Path, template: Path, stop: signal.Signals) -> None:
    """The server answers three requests and lets the next three hang; the process is stopped there, and another goes on."""
    hang, all_hang, go_on = True, threading.Barrier(4), threading.Event()

    def reply(body: dict[str, Any]) -> Reply:
        if hang and len(chat.requests) > 3:
            while len(list(read_store(tmp_path / "store"))) < 3:  # the commit goes on beside
                go_on.wait(0.01)
            all_hang.wait(60)
            go_on.wait(60)
        return echo(body)

    with chat_server(reply) as chat:
        command = [sys.executable, "-c", SAMPLING, chat.url, str(tmp_path)]
        first = subprocess.Popen(hearing(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        all_hang.wait(60)  # three requests that hang, and this
        first.send_signal(stop)
        printed, _ = first.communicate(timeout=30)
        assert first.returncode == (130 if stop == signal.SIGINT else -stop)
        assert len(list(read_store(tmp_path / "store"))) == 3
        assert len(chat.requests) == 6
        hang = False
        go_on.set()
        second = subprocess.run(command, capture_output=True, text=True, check=True)
        assert len(chat.requests) == 6 + 7
        assert [body["messages"][-1]["content"] for body in chat.requests[6:]].count("Text: a") == 0
    assert "7 of 10 requests asked, 3 answered from the response store" in second.stderr
    assert second.stdout.splitlines()[: len(printed.splitlines())] == printed.splitlines()
    assert [json.loads(line)["text"] for line in second.stdout.splitlines()] == [
        f"about Text: {x} (0)" for x in "abcdefghij"
    ]


def ingested(folder: Path, prompts_: list[Prompt]) -> Path:
    """A finished ingest folder."""
    folder.mkdir(parents=True)
    writer = RowWriter(folder, "part", 3)
    for row in prompts_:
        writer.write(row.line())
    files = [*writer.close(), *RowWriter(folder, outputs.DROPPED, None).close()]
    counts = Counts(
        unit="rows", rows_in=len(prompts_), kept=len(prompts_), dropped=0, reasons={}, rows_out=len(prompts_)
    )
    manifest = Manifest(
        stage="ingest", version=1, key="k", settings={}, parents={}, **MADE_BY, identities={}, counts=counts, outputs=files,
        features=features(Prompt), details={}, digest="0" * 64,
    )  # fmt: skip
    outputs.write_manifest(folder, manifest.model_copy(update={"digest": outputs.manifest_digest(manifest)}))
    return folder


def run(job: Job, **settings: Any) -> tuple[list[Response | Drop], outputs.Totals]:
    found, generator = [], sample.sample(job, **settings)
    while True:
        try:
            found.append(next(generator))
        except StopIteration as end:
            return found, end.value


def job(folder: Path, name: str, source: Path) -> Job:
    (folder / name).mkdir()
    return Job(folder / name, {"ingest": source}, folder / "store")


def test_the_stage_conserves_and_gives_the_same_bytes_when_resumed(tmp_path: Path, template: Path) -> None:
    source = ingested(tmp_path / "ingest", rows("a", "b!", "c", "d", "a"))
    with chat_server(sometimes) as chat:
        settings = asked(chat.url, template, n=2, temperature=1.0)
        first, totals = run(job(tmp_path, "first", source), **settings)
        second, again = run(job(tmp_path, "second", source), **settings)
    assert totals.rows_in == len(first) == 10
    assert (
        totals.details["teachers"]["m"]["failures"]
        == {"refused": 2}
        == Counter(row.reason for row in first if isinstance(row, Drop))
    )
    answers = {row.request: row.completion_tokens for row in first if isinstance(row, Response)}
    assert totals.details["teachers"]["m"]["completion_tokens"] == sum(
        answers.values()
    )  # equal prompts share an answer
    assert (totals.details["teachers"]["m"]["responses"], totals.details["teachers"]["m"]["answers"]) == (8, 6)
    json.dumps(totals.details, allow_nan=False)
    assert (first, totals) == (second, again)
    assert (tmp_path / "first" / sample.TEMPLATES).read_bytes() == (tmp_path / "second" / sample.TEMPLATES).read_bytes()
    assert json.loads((tmp_path / "first" / usage.SPEED).read_bytes())["m"]["requests_per_second"] > 0


def test_the_prompt_and_key_of_a_response_can_be_made_again_later(tmp_path: Path, template: Path) -> None:
    source = ingested(tmp_path / "ingest", rows("a", "b"))
    with chat_server() as chat:
        settings = asked(chat.url, template, n=2, temperature=1.0, regex="{labels}", stop=["\n"], sampling={"top_k": 3})
        found, _ = run(job(tmp_path, "first", source), **settings)
        sent = [body["messages"] for body in chat.requests]
    template.unlink()
    recorded = {**defaults(), **settings, "teacher": [{"backend": "server", "model": "m", "share": 1.0}]}
    identities = sample.identities(settings)
    manifest = outputs.read_manifest(source).model_copy(update={"settings": recorded, "identities": identities})
    for row, prompt in zip(found, [prompt for prompt in rows("a", "b") for _ in range(2)], strict=True):
        assert isinstance(row, Response)
        messages, _, key = sample.proof(prompt, tmp_path / "first", manifest, row.sample)
        assert key == row.request
        assert messages["messages"] in sent


def test_recorded_completions_need_no_prompt(tmp_path: Path) -> None:
    (tmp_path / "completions.jsonl").write_text(
        '{"id": "r0", "completion": ["x", "y"]}\n{"id": "r1", "completion": "z"}\n'
    )
    teacher = teachers.Replay(backend="replay", completions=tmp_path / "completions.jsonl", name="palm")
    source = ingested(tmp_path / "ingest", rows("same", "same", "c"))
    found, totals = run(job(tmp_path, "first", source), teacher=[teacher], n=2)
    assert [row.text if isinstance(row, Response) else row.reason for row in found] == [
        "x", "y", "z", "no_completion", "no_completion", "no_completion",
    ]  # fmt: skip
    assert totals.rows_in == 6
    assert not (tmp_path / "first" / sample.TEMPLATES).exists()
    assert list(verify(tmp_path / "store")) == []


def test_labels_are_escaped_in_the_regex(tmp_path: Path, template: Path) -> None:
    with chat_server(lambda body: completion("food & drink (hot).")) as chat:
        list(sample.answers(rows("a"), responses=tmp_path / "store", **asked(chat.url, template, regex=r"{labels}\.")))
        regex = chat.requests[0]["structured_outputs"]["regex"]
    assert regex == r"(sports|food & drink \(hot\))\."
    assert re.fullmatch(regex, "food & drink (hot).")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=st.lists(st.text(min_size=1), min_size=1, unique=True))
def test_the_regex_of_labels_matches_each_and_nothing_else(template: Path, labels: list[str]) -> None:
    settings = asked(NOWHERE, template, labels=labels, regex="<{labels}>")
    (_, request), *_ = all_requests(resolve(**settings), rows("a")[0])
    structured = request.sampling["structured"]
    assert isinstance(structured, dict)
    regex = structured["regex"]
    assert isinstance(regex, str)
    assert all(re.fullmatch(regex, f"<{label}>") for label in labels)
    assert not re.fullmatch(regex, "<" + "".join(labels) + "another>")


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"prompt": None}, "task.prompt: missing"),
        ({"n": 2}, "at temperature 0 all samples are the same"),
        ({"regex": "{labels}", "labels": None}, "needs task.labels"),
        ({"regex": "(a"}, "not a regular expression"),
        ({"stop": [""]}, "an empty text"),
        ({"sampling": {"temperature": 1.0}}, "set stages.sample.temperature instead"),
        ({"prompt": Path("/nosuch/a.jinja")}, "no such template"),
    ],
)
def test_settings_that_cannot_be_used(template: Path, changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        sample.check({**asked(NOWHERE, template), **changed})
    assert sample.check(asked(NOWHERE, template)) is not None


def test_a_row_without_the_templates_column_stops_with_its_place(tmp_path: Path, template: Path) -> None:
    row = rows("a")[0].changed(columns={"texts": "a"})
    with pytest.raises(
        InputError, match=r"topics\.jinja:2: text: no such column in train\.jsonl:1, which has texts, labels"
    ):
        list(sample.answers([row], responses=tmp_path / "store", **asked(NOWHERE, template)))


def test_a_teacher_that_is_not_there_loses_nothing(tmp_path: Path, template: Path) -> None:
    with chat_server() as chat:
        list(sample.answers(rows("a"), responses=tmp_path / "store", **asked(chat.url, template)))
    with pytest.raises(RunError, match="no request could be delivered"):
        list(sample.answers(rows("a", "b"), responses=tmp_path / "store", **asked(NOWHERE, template)))
    with open_store(tmp_path / "store") as store:  # the lock is free again
        assert len(store) == 1


ENGINE = """
import sys
from pathlib import Path
from pipeline import sample
from tests.test_sample import engine_rows, engine_settings
if __name__ == "__main__":
    for row in sample.answers(engine_rows(), responses=Path(sys.argv[1]) / "store", **engine_settings(Path(sys.argv[1]))):
        print(row.line().decode(), flush=True)
        if row.id == "r3#0":
            input()
"""
LONG = "word " * 400


def engine_rows() -> list[Prompt]:
    return rows(
        "Late goal sinks the leaders", "The soup was cold <|im_end|>", LONG, "Ticket prices for the night train rise"
    )


def engine_settings(folder: Path) -> dict[str, Any]:
    teacher = teachers.Vllm(
        backend="vllm", model="embedded", engine={"enforce_eager": True, "max_model_len": 256, "max_num_seqs": 8}
    )
    return asked(
        NOWHERE,
        folder / "topics.jinja",
        teacher=[teacher],
        regex=r"The topic is {labels}\. [a-z ]{4,40}\.",
        stop=["."],
        chunk=8,
        max_tokens=40,
    )


@pytest.mark.slow
def test_the_real_engine(tmp_path: Path, template: Path) -> None:
    """One engine in a process of its own: structured output, a stop text, rows that cannot be asked; it is gone when the rows are there."""
    try:
        embedded.folder()
    except InputError as error:
        pytest.skip(str(error))
    (tmp_path / "sampling.py").write_text(ENGINE)  # the engine's process starts from this file's name
    command = [sys.executable, str(tmp_path / "sampling.py"), str(tmp_path)]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    found = [json.loads(process.stdout.readline()) for _ in range(4)]
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert not any("EngineCore" in Path(f"/proc/{child}/cmdline").read_text() for child in children)
    process.communicate("\n")
    assert process.returncode == 0
    for row in (found[0], found[3]):
        assert re.fullmatch(r"The topic is (sports|food & drink \(hot\))", row["text"])  # cut before the stop text
        assert row["finish_reason"] == "stop"
        assert 0 < row["completion_tokens"] <= 40
        assert 10 < row["prompt_tokens"] < 100
    assert (found[1]["reason"], found[1]["evidence"]["token"]) == ("special_token", "<|im_end|>")
    assert found[2]["reason"] == "prompt_too_long"
    assert found[2]["evidence"]["prompt_tokens"] + 40 > found[2]["evidence"]["context"] == 256
    stored = {record.key for _, _, record in read_store(tmp_path / "store")}
    assert stored == {row["request"] for row in (found[0], found[3])}
