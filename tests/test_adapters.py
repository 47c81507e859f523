"""Adapters: what is trained, what stays, and that the merged model is a plain one that says the same."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.adapters import Adapter, merge, wrap
from pipeline.files import InputError
from pipeline.formats import Format, add_prefixes
from pipeline.student import StudentSettings, load, quiet
from tests.models import make_bart, make_model, make_t5

TASKS = ("label", "rationale")


def loaded(folder: Path) -> tuple[Any, list[int], dict[str, Any]]:
    """A model, the ids of its prefix tokens, and a batch with them."""
    import torch

    with quiet():
        model, tokenizer, _ = load(StudentSettings.model_validate({"from": str(folder)}))
        of = Format(prefixes="tokens", tasks=TASKS, encoder_decoder=bool(model.config.is_encoder_decoder))
        ids = add_prefixes(model, tokenizer, of)
    words = torch.tensor([[*ids, 5, 6, 7, 8]])
    return model.eval(), ids, {"input_ids": words, "labels": words}


def logits(model: Any, batch: dict[str, Any]) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(**batch).logits


def trained(model: Any, batch: dict[str, Any], steps: int = 6) -> list[float]:
    import torch

    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=2e-2)
    losses = []
    for _ in range(steps):
        loss = model.train()(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", ["lora", "dora", "qlora"])
@pytest.mark.parametrize("apart", [False, True], ids=["tied", "apart"])
@pytest.mark.parametrize("make", [make_model, make_t5, make_bart])
def test_the_merged_model_says_what_the_trained_one_said_and_is_a_plain_checkpoint(
    tmp_path: Path, make: Callable[..., Path], apart: bool, kind: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    model, ids, batch = loaded(make(tmp_path / "model", tie_word_embeddings=not apart))
    names, class_before, before = set(model.state_dict()), type(model), logits(model, batch)
    words = model.get_input_embeddings().weight.detach().clone()
    head = model.get_output_embeddings().weight.detach().clone()
    wrapped = wrap(model, Adapter(kind=kind, rank=4), tokens=ids)
    if kind != "qlora":
        assert logits(wrapped, batch).equal(before)
    learning = {name for name, one in wrapped.named_parameters() if one.requires_grad}
    assert learning
    assert all("lora_" in name or "trainable_tokens" in name for name in learning)
    losses = trained(wrapped, batch)
    assert losses[-1] < losses[0] - 0.1
    said = logits(wrapped, batch)
    assert not said.allclose(before, atol=0.1)

    merged = merge(wrapped)
    assert type(merged) is class_before
    assert set(merged.state_dict()) == names
    assert logits(merged, batch).allclose(said, atol=1e-4)
    table, moved = merged.get_input_embeddings().weight, set()
    moved = {number for number in range(len(words)) if not table[number].equal(words[number])}
    assert moved == set(ids)
    assert (merged.get_output_embeddings().weight is table) is not apart
    if apart:
        assert merged.get_output_embeddings().weight.equal(head)
    merged.save_pretrained(tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    auto = AutoModelForSeq2SeqLM if merged.config.is_encoder_decoder else AutoModelForCausalLM
    again, told = auto.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(told.values())
    assert logits(again, batch).allclose(said, atol=1e-4)


def test_packed_weights_take_a_seventh_of_the_room_and_the_head_stays_whole(tmp_path: Path) -> None:
    import torch

    model, _, batch = loaded(make_model(tmp_path / "model", hidden_size=128, intermediate_size=256))
    before, size = (
        logits(model, batch),
        sum(part.weight.nbytes for part in model.model.layers.modules() if type(part) is torch.nn.Linear),
    )
    wrapped = wrap(model, Adapter(kind="qlora", rank=4))
    packed = [
        part for part in wrapped.modules() if type(part).__name__ == "Linear4bit" and hasattr(part, "quant_state")
    ]
    packed = [
        part for part in packed if isinstance(part.weight, torch.nn.Parameter) and part.weight.dtype == torch.uint8
    ]
    assert len(packed) == 2 * 7
    assert sum(part.weight.nbytes for part in packed) * 7.9 < size
    assert type(wrapped.get_output_embeddings()) is torch.nn.Linear
    assert logits(wrapped, batch).allclose(before, atol=0.5)
    merged = merge(wrapped)
    assert {one.dtype for one in merged.parameters()} == {torch.float32}


def test_validating_between_steps_changes_no_packed_training(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    model, ids, batch = loaded(tmp_path / "model")
    straight = trained(wrap(model, Adapter(kind="qlora", rank=4), tokens=ids), batch)
    model, ids, batch = loaded(tmp_path / "model")
    wrapped = wrap(model, Adapter(kind="qlora", rank=4), tokens=ids)
    logits(wrapped, batch)
    assert trained(wrapped, batch) == straight


def test_a_model_that_computes_in_less_memory_learns_the_same(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    losses = []
    for checkpointing in (False, True):
        model, _, batch = loaded(tmp_path / "model")
        wrapped = wrap(model, Adapter(rank=4))
        if checkpointing:
            wrapped.gradient_checkpointing_enable()
        losses.append(trained(wrapped, batch))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_beginning_follows_the_seed_alone(tmp_path: Path) -> None:
    import torch

    make_model(tmp_path / "model")

    def drawn(seed: int) -> dict[str, Any]:
        state = torch.get_rng_state()
        wrapped = wrap(loaded(tmp_path / "model")[0], Adapter(rank=4), seed=seed)
        assert torch.get_rng_state().equal(state)
        torch.rand(1)
        return {name: one for name, one in wrapped.named_parameters() if "lora_A" in name}

    one, same, other = drawn(3), drawn(3), drawn(4)
    assert all(one[name].equal(same[name]) for name in one)
    assert not any(one[name].equal(other[name]) for name in one)


def test_modules_can_be_named(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    wrapped = wrap(loaded(tmp_path / "model")[0], Adapter(modules=["q_proj", "layers.1.mlp.up_proj"]))
    there = {
        name.split(".lora_")[0].rpartition("layers.")[2] for name, _ in wrapped.named_parameters() if ".lora_" in name
    }
    assert there == {"0.self_attn.q_proj", "1.self_attn.q_proj", "1.mlp.up_proj"}
    with pytest.raises(InputError, match=r"^train\.adapter\.modules: .*'q_prj'; did you mean 'q_proj'\?"):
        wrap(loaded(tmp_path / "model")[0], Adapter(modules=["v_proj", "q_prj"]))
    with pytest.raises(InputError, match=r"^train\.adapter\.modules: .*'lm_head'; known: down_proj, .*up_proj"):
        wrap(loaded(tmp_path / "model")[0], Adapter(modules=["lm_head"]))


def test_without_its_library_qlora_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    model = loaded(make_model(tmp_path / "model"))[0]
    with pytest.raises(
        InputError, match=r"^train\.adapter\.kind: qlora needs bitsandbytes; install stepdistill\[qlora\]"
    ):
        wrap(model, Adapter(kind="qlora"))


def test_what_qlora_cannot_pack_is_told() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    with pytest.raises(InputError, match="no linear layers that qlora could pack"):
        wrap(model, Adapter(kind="qlora"))
    assert wrap(model, Adapter(rank=2)).get_base_model() is model


def test_settings() -> None:
    assert Adapter.model_validate("dora") == Adapter(kind="dora", rank=16, scale=32, dropout=0, modules="all-linear")
    assert Adapter.model_validate({"modules": ["q_proj"]}).modules == ["q_proj"]
    for wrong in ("prefix", {"rank": 0}, {"dropout": 1}, {"modules": []}, {"modules": "q_proj"}, {"alpha": 3}, 5):
        with pytest.raises(ValidationError):
            Adapter.model_validate(wrong)
