"""What can be a student: any causal or encoder-decoder model; what cannot is told in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.files import InputError
from pipeline.student import StudentSettings, load, quiet
from tests.models import make_bart, make_chat, make_model, make_t5


def loaded(folder: Path, layers: int | None = None) -> Any:
    return load(StudentSettings.model_validate({"from": str(folder), "layers": layers}))


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("make", "kind", "encoder_decoder"),
    [
        (make_model, "LlamaForCausalLM", False),
        (make_chat, "LlamaForCausalLM", False),
        (make_t5, "T5ForConditionalGeneration", True),
        (make_bart, "BartForConditionalGeneration", True),
    ],
)
def test_the_model_is_of_its_kind_and_has_its_weights(
    tmp_path: Path, make: Callable[..., Path], kind: str, encoder_decoder: bool
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = make(tmp_path / "model")
    path = folder / "model.safetensors"
    save_file({name: value.bfloat16() for name, value in load_file(path).items()}, path, {"format": "pt"})
    edit(folder / "config.json", dtype="bfloat16")
    model, tokenizer, stored = loaded(folder)
    assert (type(model).__name__, bool(model.config.is_encoder_decoder)) == (kind, encoder_decoder)
    assert stored == "bfloat16"
    weights = load_file(path)
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        if name in weights:
            assert value.equal(weights[name].float())
    assert tokenizer.eos_token == "<end>"
    assert tokenizer.pad_token is not None
    assert loaded(folder, layers=1)[0].config.num_hidden_layers == 1


def test_the_end_token_pads_where_there_is_no_other_and_that_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with quiet():
        for _ in range(2):
            assert loaded(make_model(tmp_path / "padless"))[1].pad_token == "<end>"
        assert capsys.readouterr().err == f"train: {tmp_path / 'padless'} has no pad token; its end token pads\n"
        assert loaded(make_t5(tmp_path / "padded"))[1].pad_token == "<pad>"
        assert capsys.readouterr().err == ""


def test_a_head_apart_from_the_embeddings_is_loaded_as_it_is(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = make_t5(tmp_path / "flan", tie_word_embeddings=False)
    model, _, _ = loaded(folder, layers=1)
    assert model.lm_head.weight.equal(load_file(folder / "model.safetensors")["lm_head.weight"])
    assert not model.lm_head.weight.equal(model.shared.weight)


def no_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def own_code(folder: Path) -> None:
    (folder / "modeling.py").write_text("raise SystemExit('run')\n")
    own = {"AutoConfig": "modeling.Config", "AutoModelForCausalLM": "modeling.Model"}
    edit(folder / "config.json", model_type="of_its_own", auto_map=own)


def too_many_tokens(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"word{number}" for number in range(9)])
    tokenizer.save_pretrained(folder)


def without_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if "layers.1.mlp" not in name}, folder / "model.safetensors"
    )


def other_shape(folder: Path) -> None:
    edit(folder / "config.json", hidden_size=64)


def wrong_type(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers="two")


def an_encoder(folder: Path) -> None:
    edit(folder / "config.json", model_type="vit")


def endless(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token=None)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (no_safetensors, r"no weights in safetensors files, and others are not read"),
        (
            own_code,
            r"needs code of its own, which is never run \(auto_map in config\.json: modeling\.Model\), and no setting allows it",
        ),
        (too_many_tokens, r"tokenizer has tokens beyond the model's 260"),
        (without_weights, r"3 of its weights are not in its files \(model\.layers\.1\.mlp\.down_proj\.weight, "),
        (other_shape, r"cannot be loaded \("),
        (wrong_type, r"cannot be loaded \("),
        (an_encoder, r"cannot be loaded \("),
        (endless, r"no end-of-sequence token"),
    ],
)
def test_what_cannot_be_a_student_is_told_in_one_line(tmp_path: Path, spoil: Callable[[Path], None], told: str) -> None:
    spoil(make_model(tmp_path / "model"))
    with pytest.raises(InputError, match=rf"^train\.student: .*/model: .*{told}") as error:
        loaded(tmp_path / "model")
    assert "\n" not in str(error.value)


def test_a_decoder_that_cannot_begin_is_told(tmp_path: Path) -> None:
    make_t5(tmp_path / "model", decoder_start_token_id=None)
    with pytest.raises(InputError, match="names no decoder_start_token_id"):
        loaded(tmp_path / "model")
