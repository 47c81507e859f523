"""The vLLM backend: what of it counts, what is refused, how labels are compared; and once with the real engine, all in one process."""

import json
import math
import multiprocessing.connection
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import embedded, teachers
from pipeline.files import InputError
from pipeline.prompts import Message, Messages
from pipeline.teachers import Answer, Failure, Request, Vllm
from pipeline.teachers.vllm_engine import guard, label_variants
from tests.chat_server import hearing

SAMPLING: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 20, "stop": [], "structured": None}


def request(name: str, text: str, seed: int = 0, prefix: str = "", **sampling: Any) -> Request:
    messages = Messages(
        messages=[Message(role="system", content="What is it about?"), Message(role="user", content=text)],
        assistant_prefix=prefix,
    )
    return Request(name, name, name, "", 0, seed, {**SAMPLING, **sampling}, messages, (text,), "What is it about?")


@pytest.fixture(scope="module")
def model() -> Path:
    try:
        return embedded.folder()
    except InputError as error:
        pytest.skip(str(error))


def refused(settings: Vllm, **sampling: Any) -> None:
    with teachers.connect(settings, {**SAMPLING, **sampling}):
        pytest.fail("it started")


def checkpoint(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        (folder / name).write_text(name)
    return folder


def test_a_local_model_is_known_by_its_files(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    settings = Vllm(backend="vllm", model=str(folder), engine={"dtype": "bfloat16"})
    before = teachers.identity(settings)
    assert teachers.identity(settings.model_copy(update={"model": str(checkpoint(tmp_path / "copy"))})) == before
    (folder / "README.md").write_text("notes")
    faster = settings.model_copy(update={"engine": {"dtype": "bfloat16", "max_num_seqs": 8, "enforce_eager": True}})
    assert teachers.identity(faster) == before
    assert teachers.identity(settings.model_copy(update={"engine": {"dtype": "float32"}})) != before
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        (folder / name).write_text("other")
        changed = teachers.identity(settings)
        assert changed != before
        before = changed


def test_a_hub_model_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    settings = Vllm(backend="vllm", model="org/model")
    with pytest.raises(InputError, match="not in the local cache"):
        teachers.identity(settings)
    references = tmp_path / "models--org--model" / "refs"
    references.mkdir(parents=True)
    (references / "main").write_text("a" * 40)
    assert teachers.identity(settings)["model"] == {"repository": "org/model", "revision": "a" * 40}
    pinned = settings.model_copy(update={"revision": "b" * 40})
    assert teachers.identity(pinned)["model"] == {"repository": "org/model", "revision": "b" * 40}


@pytest.mark.parametrize(
    ("model", "revision", "problem"),
    [
        ("./nosuch", None, "no such folder"),
        ("/nosuch", None, "no such folder"),
        ("a b", None, "neither a folder nor"),
        ("org/model", "../../secret", "not the name of a branch"),
        ("embedded", "main", "only a hub repository has revisions"),
    ],
)
def test_models_that_cannot_be_found(model: str, revision: str | None, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        teachers.identity(Vllm(backend="vllm", model=model, revision=revision))


def test_a_token_is_refused_before_anything_could_record_it() -> None:
    with pytest.raises(ValueError, match="no place for secrets"):
        Vllm(backend="vllm", model="embedded", engine={"hf_token": "x"})


@pytest.mark.parametrize(
    ("engine", "problem"),
    [
        ({"trust_remote_code": True}, "is never run"),
        ({"model": "x"}, "beside 'engine'"),
        ({"logprobs_mode": "raw_logits"}, "those of the model"),
    ],
)
def test_engine_settings_that_are_not_for_the_user(tmp_path: Path, engine: dict[str, Any], problem: str) -> None:
    settings = Vllm(backend="vllm", model=str(checkpoint(tmp_path / "model")), engine=engine)
    with pytest.raises(InputError, match=problem):
        refused(settings)


@pytest.mark.parametrize(
    "name", ["n", "seed", "structured_outputs", "prompt_logprobs", "logprob_token_ids", "output_kind"]
)
def test_sampling_parameters_with_a_place_of_their_own_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"sampling\.{name}: cannot be set here"):
        refused(Vllm(backend="vllm", model="embedded"), **{name: 1})


@pytest.mark.slow
def test_names_and_values_that_vllm_does_not_know_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    settings = Vllm(backend="vllm", model=str(checkpoint(tmp_path / "model")))
    misspelt = settings.model_copy(update={"engine": {"enforce_eagr": True}})
    with pytest.raises(InputError, match=r"engine\.enforce_eagr: unknown engine setting; did you mean 'enforce_eager'"):
        refused(misspelt)
    with pytest.raises(InputError, match=r"sampling\.repetition_penalti: unknown .*did you mean 'repetition_penalty'"):
        refused(settings, repetition_penalti=1.1)
    with pytest.raises(InputError, match=r"refuses the sampling parameters: .*repetition_penalty"):
        refused(settings, repetition_penalty=-1.0)
    with pytest.raises(InputError, match="refuses these settings"):
        refused(Vllm(backend="vllm", model="embedded", engine={"dtype": "float17"}))
    assert "VLLM_LOGGING_LEVEL" in os.environ


def adapter(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, **config}))
    (folder / "adapter_model.safetensors").write_text("weights")
    return folder


def test_chat_and_adapter_count_only_where_they_are_set(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_text("weights")
    settings = Vllm(backend="vllm", model=str(tmp_path / "model"))
    plain = teachers.identity(settings)
    assert set(plain) == {"backend", "model", "engine"}
    assert teachers.identity(settings.model_copy(update={"restarts": 9})) == plain
    assert teachers.identity(settings.model_copy(update={"chat": False}))["chat"] is False
    folder = adapter(tmp_path / "adapter")
    adapted = settings.model_copy(update={"adapter": folder})
    before = teachers.identity(adapted)
    assert before != plain
    (folder / "adapter_model.safetensors").write_text("other")
    assert teachers.identity(adapted) != before


@pytest.mark.parametrize(
    ("config", "problem"), [(None, "no adapter_config.json there"), ({"r": "x"}, "rank"), ({"r": 600}, "up to 512")]
)
def test_an_adapter_that_cannot_be_used(tmp_path: Path, config: dict[str, Any] | None, problem: str) -> None:
    folder = tmp_path / "adapter" if config is None else adapter(tmp_path / "adapter", **config)
    (tmp_path / "model").mkdir()
    settings = Vllm(backend="vllm", model=str(tmp_path / "model"), adapter=folder)
    with pytest.raises(InputError, match=problem):
        teachers.identity(settings)


def test_prompts_are_counted_as_they_are_sent(model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    settings = Vllm(backend="vllm", model="embedded", engine={"max_model_len": 100})
    count = teachers.counter(settings)
    assert count is not None
    asked = request("a", "Late goal sinks the leaders", prefix="The topic")
    assert asked.messages is not None
    turns = [message.model_dump() for message in asked.messages.messages]
    chat = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert count(asked) == len(tokenizer.encode(chat + "The topic", add_special_tokens=False))
    raw = teachers.counter(settings.model_copy(update={"chat": False}))
    assert raw is not None
    assert raw(asked) == len(tokenizer.encode("What is it about?Late goal sinks the leadersThe topic")) < count(asked)
    assert count(request("b", "forged <|im_end|>")) == 0
    assert count(request("c", "word " * 40)) > 0
    assert count(request("c", "word " * 40, max_tokens=60)) == 0  # does not fit, so it is not sent
    whole = teachers.counter(Vllm(backend="vllm", model="embedded"))
    assert whole is not None
    assert whole(request("d", "word " * 7000)) > 7000
    assert whole(request("d", "word " * 9000)) == 0  # the context is that of the model's configuration


def test_without_a_chat_template_the_texts_are_sent_as_they_are(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, folder)
    settings = Vllm(backend="vllm", model=str(folder))
    count, raw = (teachers.counter(settings.model_copy(update={"chat": chat})) for chat in (None, False))
    assert count is not None
    assert raw is not None
    assert count(request("a", "Late goal")) == raw(request("a", "Late goal")) > 0
    with pytest.raises(InputError, match="teacher.chat: the tokenizer has no chat template"):
        teachers.counter(settings.model_copy(update={"chat": True}))


def test_there_is_no_count_where_the_tokenizer_is_another_one(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert teachers.counter(Vllm(backend="vllm", model=str(tmp_path / "model.gguf"))) is None
    settings = Vllm(backend="vllm", model=str(tmp_path), engine={"tokenizer_mode": "mistral"})
    assert teachers.counter(settings) is None
    with pytest.raises(InputError, match="its tokenizer cannot be loaded"):
        teachers.counter(settings.model_copy(update={"engine": {}}))


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def shown(text: str, ended_by: str | int | None, after: str, labels: list[str]) -> dict[str, str] | None:
    found = label_variants(text, ended_by, after, labels, letters)
    return None if found is None else {label: "".join(map(chr, tokens)) for label, tokens in found.items()}


LABELS = ["food", "food and drink", "war"]


@pytest.mark.parametrize(
    ("text", "ended_by", "after", "follows"),
    [
        ("It is food. Yes.", None, "is ", "."),
        ("It is food and drink. Yes.", None, "is ", "."),
        ("It is food, and drink", None, "is ", ","),
        ('{"label": "war"}', 33, '"label": "', '"}'),
        ("food", 33, "", "!"),  # ended by a token
        ("It is war", ".\n\n", "is ", "."),  # ended by a stop text
        ("war of the roses", None, "", " of"),
        ("It is food", None, "is ", ""),  # cut: what would have followed?
        ("It is warm.", None, "is ", ""),  # not one of the labels
        ("It is", None, "is", ""),
    ],
)
def test_labels_take_the_place_of_the_answers_own(
    text: str, ended_by: str | int | None, after: str, follows: str
) -> None:
    place = text.rindex(after) + len(after) if after else 0
    assert shown(text, ended_by, after, LABELS) == {label: text[:place] + label + follows for label in LABELS}


def test_labels_are_looked_for_at_the_last_place_behind_white_space() -> None:
    text = "The answer is war? No. The answer is  food."
    head = "The answer is war? No. The answer is  "
    assert shown(text, 0, "answer is", LABELS) == {label: head + label + "." for label in LABELS}
    assert shown("\nfood.", None, "", ["food"]) == {"food": "\nfood."}
    assert shown(text, 0, "The topic is", LABELS) is None
    assert label_variants(text, 0, "", LABELS, lambda text: None) is None


@given(
    labels=st.lists(st.text("ab ", min_size=1).filter(lambda label: label == label.strip()), min_size=1, unique=True),
    head=st.text("xyz", min_size=1),
    ender=st.sampled_from([".", "!", None]),
    data=st.data(),
)
def test_the_answers_own_label_gives_the_answer_itself(
    labels: list[str], head: str, ender: str | None, data: st.DataObject
) -> None:
    own = data.draw(st.sampled_from(labels))
    found = shown(f"{head}: {own}", ender, ": ", labels)
    assert found is not None
    assert list(found) == labels
    assert found[own] == f"{head}: {own}{ender or ''}"
    if ender:  # no label is how another one begins, once it is ended
        texts = list(found.values())
        assert not any(one != other and other.startswith(one) for one in texts for other in texts)


SOFT = {"after": "The answer is ", "labels": ["sports", "food", "food and drink"]}
FORM = {"regex": r"[a-z ]{8,30}\. The answer is (sports|food|food and drink)\."}
# In float32 what is computed in another batch is the same but for the last digits; bfloat16 would hide what is to be compared.
ENGINE: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 16}


def stream() -> list[Request]:
    """40 rows: two that cannot be asked, one whose form vLLM refuses, some with log-probabilities, some with labels' too."""
    rows = []
    for number in range(40):
        text = f"Row {number}: the late goal of the striker and a soup of onions"
        more: dict[str, Any] = {"temperature": 0.7, "max_tokens": 12 + number % 7}
        if number % 4 == 0:
            more = {"max_tokens": 40, "structured": FORM, "soft_labels": SOFT, "logprobs": True}
        if number == 8:
            more |= {"stop": ["."], "soft_labels": {"after": "", "labels": ["sports", "a row"]}}
        text = {5: "word " * 600, 6: f"{text}<|im_end|>"}.get(number, text)
        if number == 7:
            more["structured"] = {"regex": "(a"}
        rows.append(request(f"r{number}", text, seed=number, prefix="It is" if number % 3 == 0 else "", **more))
    return rows


def told(request: Request, result: Answer | Failure, count: Any) -> dict[str, Any]:
    return {"name": request.key, "counted": count(request), "kind": type(result).__name__, **vars(result)}


def in_an_engine(result: Path) -> None:
    """What the tests look at; it runs in a process of its own, since an engine's processes start from the main module.

    It ends only by being killed, with the engine up.
    """
    import multiprocessing

    import vllm
    from vllm.v1.engine.llm_engine import LLMEngine

    engines: list[Any] = []

    class Known(vllm.LLM):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            engines.append(self)

    vllm.LLM = Known
    add = LLMEngine.add_request

    def poisoned(self: Any, name: str, prompt: Any, *rest: Any, **more: Any) -> Any:
        added = add(self, name, prompt, *rest, **more)
        if "arsenic" in self.get_tokenizer().decode(prompt["prompt_token_ids"]):
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
        return added

    settings = Vllm(backend="vllm", model="embedded", engine=ENGINE)
    count = teachers.counter(settings)
    with teachers.connect(settings, SAMPLING) as teacher:
        rows = stream()
        streamed = list(teacher(iter(rows)))
        again = list(teacher(iter(rows[12:13])))
        compared = [bare(engines[0], asked, found) for asked, found in streamed if asked.key in ("r0", "r8", "r16")]
        long = [request(f"s{n}", f"{n} " + "word " * 380, n, temperature=0.7, max_tokens=2) for n in range(12)]
        sampled = list(teacher(iter(long)))
        LLMEngine.add_request = poisoned
        deadly = list(teacher(iter([request(name, f"A cup of {name}") for name in ("tea", "milk", "arsenic")])))
        after = list(teacher(iter([request("water", "A cup of water")])))
        found = {
            "streamed": [told(asked, found, count) for asked, found in streamed],
            "again": [told(asked, found, count) for asked, found in again],
            "compared": compared,
            "sampled": [told(asked, found, count) for asked, found in sampled],
            "deadly": [told(asked, found, count) for asked, found in deadly],
            "after": [told(asked, found, count) for asked, found in after],
            "starts": len(engines),
        }
        result.write_text(json.dumps(found))
        print("up", flush=True)
        input()


def bare(llm: Any, asked: Request, found: Answer | Failure) -> dict[str, dict[str, float]]:
    """The labels' log-probabilities from ``LLM.generate``, token by token, and those that the backend gave."""
    import vllm

    assert isinstance(found, Answer)
    assert found.label_logprobs is not None
    assert asked.messages is not None
    tokenizer = llm.get_tokenizer()
    turns = [message.model_dump() for message in asked.messages.messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer.encode(text + asked.messages.assistant_prefix, add_special_tokens=False)
    soft: Any = asked.sampling["soft_labels"]
    head = found.text[: found.text.rindex(soft["after"]) + len(soft["after"])]
    if not soft["after"]:
        head = found.text[: len(found.text) - len(found.text.lstrip())]
    follows = "." if soft["after"] else ""
    answers = {label: tokenizer.encode(head + label + follows, add_special_tokens=False) for label in soft["labels"]}
    first = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*answers.values(), strict=False))))
    expected = {}
    for label, tokens in answers.items():
        prompts = [{"prompt_token_ids": prompt + tokens[:place]} for place in range(first, len(tokens))]
        wanted = [vllm.SamplingParams(max_tokens=1, logprob_token_ids=[token]) for token in tokens[first:]]
        outputs = llm.generate(prompts, wanted, use_tqdm=False)
        expected[label] = sum(
            output.outputs[0].logprobs[0][token].logprob for output, token in zip(outputs, tokens[first:], strict=True)
        )
    return {"bare": expected, "backend": found.label_logprobs}


SCRIPT = """
import sys
from pathlib import Path
from tests.test_vllm import in_an_engine
if __name__ == "__main__":
    in_an_engine(Path(sys.argv[1]))
"""


def waiting(pipe: Path) -> None:
    """As an engine's process that has started one of its own."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    pipe.write_text(f"{os.getpid()} {child.pid}\n")
    child.wait()


def interrupted(pipe: Path) -> None:
    """Ctrl-C while an engine starts: it waits for its process as vLLM does, without a look at signals."""
    context = multiprocessing.get_context("spawn")

    def make() -> None:
        while True:
            process = context.Process(target=waiting, args=(pipe,))
            process.start()
            multiprocessing.connection.wait([process.sentinel])

    with guard() as start:
        try:
            start(make)
        except KeyboardInterrupt:
            for thread in set(threading.enumerate()) - {threading.current_thread()}:
                thread.join(10)
                assert not thread.is_alive()
            print("stopped")


def test_ctrl_c_while_an_engine_starts_is_for_the_one_who_waits(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "asking.py").write_text(SCRIPT.replace("in_an_engine", "interrupted"))
    # Not traced for coverage: where an exception waits for another thread, one that is traced never goes on (Python 3.11).
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    process = subprocess.Popen(
        hearing([sys.executable, str(tmp_path / "asking.py"), str(pipe)]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    handles = [os.pidfd_open(int(child)) for child in pipe.read_text().split()]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    try:
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert said == "stopped\n"
    assert process.returncode == 0
    for handle in handles:
        assert select.select([handle], [], [], 30)[0]
        os.close(handle)


@pytest.fixture(scope="module")
def engine(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("engine")
    (folder / "asking.py").write_text(SCRIPT)
    command = [sys.executable, str(folder / "asking.py"), str(folder / "found.json")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=environment
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        children = listed.read_text().split() if line else []
        names = [Path(f"/proc/{child}/cmdline").read_text() for child in children]
        handles = [os.pidfd_open(int(child)) for child in children]
        process.kill()
        process.communicate()
    assert line == "up\n", (folder / "said.txt").read_text()[-4000:]
    outlived = [name for name, handle in zip(names, handles, strict=True) if not select.select([handle], [], [], 30)[0]]
    for handle in handles:
        os.close(handle)
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found | {"said": (folder / "said.txt").read_text(), "processes": names, "outlived": outlived}


@pytest.mark.slow
def test_each_row_is_answered_once_and_those_that_cannot_be_asked_fail_alone(engine: dict[str, Any]) -> None:
    found = {row["name"]: row for row in engine["streamed"]}
    assert len(engine["streamed"]) == len(found) == 40
    failed = {name: row["reason"] for name, row in found.items() if row["kind"] == "Failure"}
    assert failed == {"r5": "prompt_too_long", "r6": "special_token", "r7": "refused"}
    assert found["r5"]["evidence"]["context"] == 512
    assert found["r6"]["evidence"] == {"token": "<|im_end|>"}
    assert [row["name"] for row in engine["streamed"]] != [f"r{number}" for number in range(40)]


@pytest.mark.slow
def test_answers_have_the_form_that_was_asked_for_and_end_before_a_stop_text(engine: dict[str, Any]) -> None:
    found = {row["name"]: row for row in engine["streamed"]}
    for number in range(0, 40, 4):
        row = found[f"r{number}"]
        assert 0 < row["completion_tokens"] <= 40
        if row["finish_reason"] == "stop":
            assert re.fullmatch(r"[a-z ]{8,30}" if number == 8 else FORM["regex"], row["text"])
    assert found["r8"]["finish_reason"] == "stop"
    assert any(found[f"r{number}"]["finish_reason"] == "stop" for number in range(0, 40, 4) if number != 8)


@pytest.mark.slow
def test_prompts_are_counted_exactly_before_they_are_sent(engine: dict[str, Any]) -> None:
    for row in engine["streamed"]:
        if row.get("reason") != "refused":
            assert row["counted"] == row["prompt_tokens"]
            assert (row["counted"] > 0) == (row["kind"] == "Answer")


@pytest.mark.slow
def test_log_probabilities_are_given_where_they_are_asked_for(engine: dict[str, Any]) -> None:
    for row in engine["streamed"]:
        if row["kind"] == "Answer":
            number = int(row["name"][1:])
            assert (row["mean_logprob"] is not None) == (number % 4 == 0)
            assert row["mean_logprob"] is None or -10 < row["mean_logprob"] < 0
            if row["label_logprobs"] is not None:
                assert number % 4 == 0
    # 'after' does not occur in an answer that was cut before it.
    soft = {row["name"]: row for row in engine["streamed"] if row["name"] != "r8" and row.get("mean_logprob")}
    assert len(soft) == 9
    for row in soft.values():
        assert (row["label_logprobs"] is not None) == ("The answer is " in row["text"])


@pytest.mark.slow
def test_labels_log_probabilities_are_those_of_vllm(engine: dict[str, Any]) -> None:
    assert len(engine["compared"]) == 3
    for one in engine["compared"]:
        assert one["backend"].keys() == one["bare"].keys()
        assert all(value < 0 for value in one["backend"].values())
        assert one["backend"] == pytest.approx(one["bare"], abs=1e-3)
        assert distribution(one["backend"]) == pytest.approx(distribution(one["bare"]), abs=1e-3)


def distribution(logprobs: dict[str, float]) -> dict[str, float]:
    whole = sum(math.exp(value) for value in logprobs.values())
    return {label: math.exp(value) / whole for label, value in logprobs.items()}


@pytest.mark.slow
def test_a_second_time_the_prompt_is_in_the_cache(engine: dict[str, Any]) -> None:
    first = next(row for row in engine["streamed"] if row["name"] == engine["again"][0]["name"])
    assert engine["again"][0]["text"] == first["text"]
    assert all(0 <= row.get("cached_tokens", 0) <= row["prompt_tokens"] for row in engine["streamed"])


@pytest.mark.slow
def test_more_prompts_than_one_step_takes_are_sampled_too(engine: dict[str, Any]) -> None:
    """vLLM's CPU build dies where a sampled request's prompt is computed in two parts; the engine's deaths are counted below."""
    assert sum(row["prompt_tokens"] for row in engine["sampled"]) > 4096
    assert {row["kind"] for row in engine["sampled"]} == {"Answer"}


@pytest.mark.slow
def test_a_row_that_kills_the_engine_is_set_apart(engine: dict[str, Any]) -> None:
    found = {row["name"]: row for row in engine["deadly"]}
    assert len(engine["deadly"]) == len(found) == 3
    assert found["tea"]["kind"] == found["milk"]["kind"] == "Answer"
    assert found["arsenic"]["reason"] == "engine_died"
    assert found["arsenic"]["evidence"]["deaths"] == 3
    assert found["arsenic"]["evidence"]["error"].startswith("its process ended")
    assert engine["after"][0]["kind"] == "Answer"
    assert engine["starts"] == 4
    assert engine["said"].count("the engine died (its process ended") == 3


@pytest.mark.slow
def test_killed_it_leaves_nothing_running(engine: dict[str, Any]) -> None:
    assert any("EngineCore" in name for name in engine["processes"])
    assert engine["outlived"] == []
