"""A student's folder as it is handed over: what it ends with, what its card says, and that the card's lines run."""

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline import answering
from pipeline.files import RunError
from pipeline.formats import Format
from pipeline.model_folder import EXAMPLE, finish, render
from pipeline.terms import OutputTerms
from tests.test_train import files, make_model

CARD: dict[str, Any] = {
    "title": "topics",
    "name": "student",
    "tasks": ["label", "rationale"],
    "base": {"from": "embedded", "name": "SmolLM2-135M-Instruct", "digest": "7e27"},
    "start": {"license": "Apache-2.0", "layers": 8, "revision": None, "files": {"model.safetensors": "ab" * 32}},
    "settings": {"alpha": 0.5, "epochs": 5, "max_length": None},
    "examples": {"train": 398, "validation": 20},
    "target_tokens": {"label": 836, "rationale": 9_120},
    "trained_on": {"stage": "shard", "key": "5b0c", "manifest": "cd" * 32, "root": "ef" * 32},
    "terms": {"embedded": OutputTerms(training="allowed", license="Apache-2.0", obligations=["name it"])},
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(tmp_path: Path, tiny: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "student")


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


TEXT, CHAT = Format(tasks=("label", "rationale")), Format(template="chat", tasks=("label", "rationale"))
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<turn>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def chatting(tokenizer: Any) -> int:
    """Give the tokenizer a chat template, and the token that ends a turn."""
    tokenizer.add_special_tokens({"extra_special_tokens": ["<turn>"]})
    tokenizer.chat_template = TEMPLATE
    end: int = tokenizer.convert_tokens_to_ids("<turn>")
    return end


def test_the_folder_ends_and_pads_as_it_was_trained_to(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, GenerationConfig

    tokenizer = tokenizer_of(folder)
    turn = chatting(tokenizer)
    before = (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.padding_side)
    finish(folder, tokenizer=tokenizer, asked=CHAT, card=CARD)
    assert turn != tokenizer.eos_token_id
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.padding_side) == before  # the caller's own
    saved = tokenizer_of(folder)
    assert (saved.eos_token_id, saved.pad_token_id, saved.padding_side) == (turn, turn, "left")
    generation = GenerationConfig.from_pretrained(folder)
    assert (generation.do_sample, generation.eos_token_id, generation.pad_token_id) == (False, turn, turn)
    generation.save_pretrained(folder.parent)  # transformers would refuse what it holds to be contradictory
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (model.config.eos_token_id, model.generation_config.eos_token_id) == (turn, turn)
    assert Format.read(folder) == CHAT
    assert CHAT.end_token_id(saved) == turn
    assert CHAT.prompt_ids(saved, "[label] <turn> a") == CHAT.prompt_ids(tokenizer, "[label] <turn> a")


def test_a_pad_token_that_is_there_stays(folder: Path) -> None:
    tokenizer = tokenizer_of(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    finish(folder, tokenizer=tokenizer, asked=TEXT, card={})
    config = json.loads((folder / "generation_config.json").read_bytes())
    assert (config["pad_token_id"], config["eos_token_id"]) == (tokenizer.pad_token_id, 256)
    assert tokenizer_of(folder).pad_token == "<pad>"


def test_the_same_arguments_give_the_same_bytes_and_the_weights_stay(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    finish(folder, tokenizer=tokenizer_of(folder), asked=TEXT, card=CARD)
    once = files(folder)
    finish(folder, tokenizer=tokenizer_of(folder), asked=TEXT, card=CARD)
    assert files(folder) == once
    assert once["model.safetensors"] == weights
    assert not list(folder.glob(".*"))


def test_weights_that_run_code_are_refused(folder: Path) -> None:
    tokenizer = tokenizer_of(folder)
    (folder / "pytorch_model.BIN").write_bytes(b"pickle")
    with pytest.raises(RunError, match=r"holds pytorch_model\.BIN; .*safetensors alone"):
        finish(folder, tokenizer=tokenizer, asked=TEXT, card=CARD)
    (folder / "pytorch_model.BIN").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(RunError, match="no safetensors file"):
        finish(folder, tokenizer=tokenizer, asked=TEXT, card=CARD)


def code(card: str) -> list[str]:
    return [part.partition("```")[0] for part in card.split("```python\n")[1:]]


@pytest.mark.parametrize("kind", ["text", "start", "chat"])
def test_the_lines_on_the_card_give_what_the_student_answers(
    folder: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from tokenizers import processors

    tokenizer = tokenizer_of(folder)
    if kind == "start":  # a tokenizer that begins every text with a token of its own
        tokenizer.bos_token = "Z"
        put = processors.TemplateProcessing(single="Z $A", special_tokens=[("Z", tokenizer.bos_token_id)])
        tokenizer.backend_tokenizer.post_processor = put
    if kind == "chat":
        chatting(tokenizer)
    finish(folder, tokenizer=tokenizer, asked=CHAT if kind == "chat" else TEXT, card=CARD)
    with_transformers, with_vllm = code((folder / "README.md").read_text())
    (folder.parent / "lines.py").write_text(with_transformers.replace("path/to/this/folder", str(folder)))
    runpy.run_path(str(folder.parent / "lines.py"))
    expected = answering.generate(answering.load(str(folder)), [f"[label] {EXAMPLE}"], max_new_tokens=32)[0].text
    assert capsys.readouterr().out == f"{expected}\n"
    compile(with_vllm, "README.md", "exec")
    asked = [
        next(line.strip() for line in lines.split("\n") if "ids = " in line) for lines in (with_transformers, with_vllm)
    ]
    assert asked[0] == asked[1]
    assert ("add_special_tokens=True" in asked[0], "Format.of(" in asked[0]) == (kind == "start", kind == "chat")


def test_the_card_says_what_it_was_told(tiny: Path) -> None:
    card = render(CARD, tokenizer_of(tiny), TEXT)
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["library_name"] == "transformers"
    assert "base_model" not in head
    for said in (
        "# topics: student",
        "| label | \\[label\\] &lt;input> |",
        "| layers kept | 8 |",
        "| licence of the base model | Apache-2.0 |",
        "| alpha | 0.5 |",
        "| target tokens | label 836, rationale 9,120 |",
        f"| SHA-256 of its manifest | {'cd' * 32} |",
        f"| its files, SHA-256 | model.safetensors {'ab' * 32} |",
        "| embedded | Apache-2.0 | allowed | name it |",
    ):
        assert said in card
    assert "max\\_length" not in card
    of_hub = render(
        {**CARD, "base": {"from": "owner/name", "revision": "c0"}, "tasks": ["response"]}, tokenizer_of(tiny), TEXT
    )
    assert yaml.safe_load(of_hub.split("---\n")[1])["base_model"] == "owner/name"
    assert "| response | &lt;input> |" in of_hub
    assert f'tokenizer("{EXAMPLE}\\n", ' in of_hub


def test_a_card_that_was_told_nothing_says_so(tiny: Path) -> None:
    card = render({}, tokenizer_of(tiny), TEXT)
    assert "# Student: student" in card
    for said in (
        "not recorded which tasks",
        "| base model | not recorded |",
        "It was not recorded.",
        "| unnamed | unknown |",
    ):
        assert said in card


hostile = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    [
        "---\nlicense: mit",
        "| x |\n# Owned",
        "<script>alert(1)</script>",
        "```\n# out",
        "[a](http://x)",
        "\x1b[2J",
        "![](x)",
    ]
)


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return tokenizer_of(tiny)


@given(st.data())
def test_no_text_leaves_its_place_in_the_card(tokenizer: Any, data: st.DataObject) -> None:
    draw = lambda: data.draw(hostile)  # noqa: E731
    told: dict[str, Any] = {
        "title": draw(),
        "name": draw(),
        "tasks": [draw(), "label"],
        "base": {"from": draw(), "revision": draw(), draw() + "z": draw()},
        "start": {"license": draw(), "files": {draw(): draw()}},
        "settings": {"accept_terms": draw(), "report": [draw()]},
        "trained_on": {"key": draw() + "k", "files": {draw(): "0"}},
        "terms": {draw(): {"training": "allowed", "license": draw() + "l"}},
        "accept_terms": draw() + "a",
    }
    card = render(told, tokenizer, TEXT)
    plain = render(
        {**told, "base": {}, "start": {}, "settings": {}, "trained_on": {"key": "k", "files": "0"}}, tokenizer, TEXT
    )
    shape = [line.split(" ")[0] for line in card.split("\n") if not line.startswith(("|", "base_model"))]
    assert shape == [line.split(" ")[0] for line in plain.split("\n") if not line.startswith(("|", "base_model"))]
    assert all(character.isprintable() or character == "\n" for character in card)
    body = card.partition("\n---\n")[2]
    assert body.count("```") == 4
    assert "<" not in body.split("```python")[0] + body.split("```")[-1]
    head = yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))
    assert set(head) <= {"library_name", "pipeline_tag", "base_model", "tags"}
    assert all(line.replace("\\|", "").count("|") in (3, 7) for line in card.split("\n") if line.startswith("| "))
