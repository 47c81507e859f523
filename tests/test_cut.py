"""Students cut to fewer layers: decoders alone, and encoder-decoders with both their stacks."""

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cut import cut, evenly_spaced
from pipeline.files import InputError
from pipeline.student import StudentSettings, load
from tests.models import make_bart, make_model, make_t5


def seq2seq(folder: Path) -> Any:
    from transformers import AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


def logits(model: Any) -> Any:
    import torch

    words = torch.arange(9)[None]
    with torch.no_grad():
        return model.eval()(input_ids=words, labels=words[:, :5]).logits


def same(one: Any, other: Any) -> bool:
    import torch

    return all(torch.equal(first, second) for first, second in zip(one.parameters(), other.parameters(), strict=True))


@given(st.integers(1, 80), st.integers(1, 80))
def test_layers_are_spaced_evenly_with_both_ends(count: int, total: int) -> None:
    count = min(count, total)
    kept = evenly_spaced(count, total)
    assert len(set(kept)) == len(kept) == count
    assert kept == sorted(kept)
    assert kept[0] == 0
    assert kept[-1] == (total - 1 if count > 1 else 0)
    steps = [after - before for before, after in pairwise(kept)]
    assert not steps or max(steps) - min(steps) <= 1


def test_eight_of_thirty() -> None:
    assert evenly_spaced(8, 30) == [0, 4, 8, 12, 17, 21, 25, 29]


def test_cutting_keeps_the_chosen_layers_and_everything_else(tmp_path: Path) -> None:
    import torch

    model, _, _ = load(StudentSettings.model_validate({"from": str(make_model(tmp_path / "six", layers=6))}))
    small = cut(model, [0, 3, 5])
    assert small.config.num_hidden_layers == len(small.model.layers) == 3
    for new, old in enumerate([0, 3, 5]):
        pairs = zip(small.model.layers[new].parameters(), model.model.layers[old].parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    assert torch.equal(small.model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert small.lm_head.weight is small.model.embed_tokens.weight
    words = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(cut(model, 6)(words).logits, model(words).logits)
        assert small(words).logits.isfinite().all()
        assert (
            small.generate(words, max_new_tokens=3, do_sample=False, pad_token_id=0).shape[1] <= 12
        )  # the cache knows its layers
    small.save_pretrained(tmp_path / "three")
    again, _, _ = load(
        StudentSettings.model_validate({"from": str(shutil.copytree(tmp_path / "six", tmp_path / "names"))})
    )
    assert again.config.num_hidden_layers == 6


def test_settings_of_single_layers_follow_the_cut(tmp_path: Path) -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    shape = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    model = Gemma3ForCausalLM(Gemma3TextConfig(**shape, num_hidden_layers=4, layer_types=kinds, sliding_window=4))
    small = cut(model, [0, 3])
    assert small.config.layer_types == ["sliding_attention", "full_attention"]


@pytest.mark.parametrize("layers", [7, [0, 6], [3, 1], [2, 2]])
def test_layers_that_are_not_there_are_refused(tmp_path: Path, layers: int | list[int]) -> None:
    make_model(tmp_path / "six", layers=6)
    with pytest.raises(InputError, match="has 6 layers"):
        load(StudentSettings.model_validate({"from": str(tmp_path / "six"), "layers": layers}))


@pytest.mark.parametrize("apart", [False, True], ids=["head tied", "head apart"])
def test_both_stacks_of_a_t5_are_cut_and_keep_their_positions(tmp_path: Path, apart: bool) -> None:
    model = seq2seq(make_t5(tmp_path / "t5", layers=6, tie_word_embeddings=not apart))
    small = cut(model, [1, 3, 5])
    assert (small.config.num_layers, small.config.num_decoder_layers) == (3, 3)
    for stack, before in ((small.encoder, model.encoder), (small.decoder, model.decoder)):
        assert len(stack.block) == 3
        first = stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        assert first.equal(before.block[0].layer[0].SelfAttention.relative_attention_bias.weight)
        assert same(stack.block[0].layer[-1], before.block[1].layer[-1])
        assert same(stack.block[1], before.block[3])
        assert same(stack.block[2], before.block[5])
    assert small.shared.weight.equal(model.shared.weight)
    assert small.lm_head.weight.equal(model.lm_head.weight)
    assert (small.lm_head.weight is small.shared.weight) is not apart
    assert logits(cut(model, 6)).equal(logits(model))
    small.save_pretrained(tmp_path / "small")
    assert logits(seq2seq(tmp_path / "small")).equal(logits(small))


def test_a_stack_of_two_layers_is_told_from_the_parts_of_a_layer(tmp_path: Path) -> None:
    model = seq2seq(make_t5(tmp_path / "t5", layers=2, decoder_layers=3))  # as many parts as a layer of each has
    small = cut(model, 1)
    assert (len(small.encoder.block), len(small.decoder.block)) == (1, 1)
    assert same(small.decoder.block[0], model.decoder.block[0])


def test_both_stacks_of_a_bart_are_cut(tmp_path: Path) -> None:
    model = seq2seq(make_bart(tmp_path / "bart", layers=6, decoder_layers=4))
    small = cut(model, 3)
    assert (small.config.encoder_layers, small.config.decoder_layers) == (3, 3)
    for stack, before, kept in (
        (small.model.encoder, model.model.encoder, [0, 2, 5]),
        (small.model.decoder, model.model.decoder, [0, 2, 3]),
    ):
        assert len(stack.layers) == 3
        assert all(same(stack.layers[new], before.layers[old]) for new, old in enumerate(kept))
    assert small.lm_head.weight is small.model.shared.weight
    small.save_pretrained(tmp_path / "small")
    assert logits(seq2seq(tmp_path / "small")).equal(logits(small))


@pytest.mark.parametrize("layers", [5, [0, 4]])
def test_layers_that_one_stack_lacks_are_refused(tmp_path: Path, layers: int | list[int]) -> None:
    model = seq2seq(make_bart(tmp_path / "bart", layers=6, decoder_layers=4))
    with pytest.raises(
        InputError, match=r"bart has 6 layers in its encoder and 4 in its decoder; give a number up to 4"
    ):
        cut(model, layers, "bart")


def test_layers_of_unlike_kinds_are_refused() -> None:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    shape = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "moe_intermediate_size": 8, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8}
    heads |= {"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
    experts = {
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
    }
    model = DeepseekV3ForCausalLM(DeepseekV3Config(num_hidden_layers=4, **shape, **heads, **experts))
    assert cut(model, [0, 2]).config.num_hidden_layers == 2
    with pytest.raises(InputError, match="differ from one another"):
        cut(model, [1, 2])


def test_what_has_no_list_of_layers_is_refused() -> None:
    from transformers import AlbertConfig, AlbertForMaskedLM

    shape = {
        "vocab_size": 40,
        "embedding_size": 8,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
    }
    model = AlbertForMaskedLM(AlbertConfig(num_hidden_layers=4, **shape))
    with pytest.raises(InputError, match="do not stand in one list"):
        cut(model, 2)
