import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.packing import closest, pack
from pipeline.trainer import EMPTY, IGNORED, Layout, collate, packs

PADDING = 0
LENGTHS = st.lists(st.integers(2, 40), max_size=30)


@given(LENGTHS, st.integers(40, 90))
def test_every_sequence_has_its_place_once_and_no_row_overflows(lengths: list[int], room: int) -> None:
    for rows in (pack(lengths, room), closest(lengths)):
        assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    assert all(sum(lengths[place] for place in row) <= room for row in pack(lengths, room))
    assert all(sum(lengths[place] for place in row) <= 2 * max(lengths) for row in closest(lengths))


@given(LENGTHS.filter(bool))
def test_packing_never_takes_more_positions_than_padding(lengths: list[int]) -> None:
    rows = closest(lengths)
    width = max(sum(lengths[place] for place in row) for row in rows)
    assert len(rows) * width <= len(lengths) * max(lengths)
    fewest = -(-sum(lengths) // max(lengths))
    assert len(pack(lengths, max(lengths))) <= 11 / 9 * fewest * 2  # no bin but one is less than half full


def test_what_fits_together_is_together() -> None:
    assert pack([9, 4, 5, 2], 9) == [[0], [2, 1], [3]]
    assert closest([10, 6, 6, 6, 6]) == [[0], [1, 2], [3, 4]]  # three rows of 12, where it would be five of 10
    with pytest.raises(ValueError, match="10 tokens in a row of 9"):
        pack([10], 9)


@st.composite
def items(draw: st.DrawFn) -> list[dict[str, list]]:
    """Examples of one to three sequences, each token of which is another number."""
    found, token = [], 1
    for _ in range(draw(st.integers(0, 6))):
        one: dict[str, list] = {field: [] for field in EMPTY}
        for _ in range(draw(st.integers(1, 3))):
            length = draw(st.integers(2, 12))
            one["ids"].append(list(range(token, token + length)))
            one["targets"].append(draw(st.integers(1, length - 1)))
            one["tasks"].append(draw(st.integers(0, 1)))
            one["shares"].append(draw(st.sampled_from([1.0, 0.5, 0.25])))
            token += length
        found.append(one)
    return [*found, EMPTY]


@given(items(), st.booleans(), st.booleans())
def test_a_batch_holds_each_token_once_and_asks_for_the_next(given_items: list, packed: bool, one_row: bool) -> None:
    batch = collate(given_items, Layout(PADDING, packed, one_row))
    sequences = [one for item in given_items for one in zip(*(item[field] for field in EMPTY), strict=True)]
    mask = batch["attention_mask"].bool()
    assert sorted(batch["input_ids"][mask].tolist()) == sorted(token for ids, *_ in sequences for token in ids)
    assert (batch["input_ids"][~mask] == PADDING).all()
    wanted = {
        ids[place - 1]: (ids[place], task, share)
        for ids, count, task, share in sequences
        for place in range(len(ids) - count, len(ids))
    }
    learned = batch["labels"] != IGNORED
    there = zip(*(batch[name][learned].tolist() for name in ("input_ids", "labels", "tasks", "shares")), strict=True)
    assert {token: (label, task, share) for token, label, task, share in there} == wanted
    if packed:
        firsts = {ids[0] for ids, *_ in sequences}
        places = zip(batch["input_ids"][mask].tolist(), batch["position_ids"][mask].tolist(), strict=True)
        assert all((place == 0) == (token in firsts) for token, place in places)
    if packed and one_row:
        assert len(batch["input_ids"]) == 1


def test_a_model_is_asked_whether_it_keeps_packed_sequences_apart() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    shape = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2}
    llama = LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=32, num_attention_heads=2))
    for attention in ("eager", "sdpa"):
        llama.set_attn_implementation(attention)
        assert packs(llama)
    assert packs(GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2)))
    assert not packs(MambaForCausalLM(MambaConfig(**shape, state_size=4)))
