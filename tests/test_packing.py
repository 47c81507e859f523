"""Batches: each token of each sequence stands there once, keeps its place and its target, and sees no other sequence."""

from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.packing import closest, pack
from tests.models import make_model, make_tokenizer
from tests.test_exact import Case, authors, compare, gradients, pairs, train_in
from tests.test_train import write_shards

__all__ = ["gradients"]  # a fixture

LENGTHS = st.lists(st.integers(1, 60), max_size=40)


pytestmark = pytest.mark.usefixtures("one_thread")


def sums(rows: list[list[int]], lengths: list[int]) -> list[int]:
    return [sum(lengths[place] for place in row) for row in rows]


@given(LENGTHS, st.integers(0, 60))
def test_each_sequence_has_one_row_with_room_for_it(lengths: list[int], more: int) -> None:
    room = max(lengths, default=1) + more
    rows = pack(lengths, room)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    assert all(0 < width <= room for width in sums(rows, lengths))
    # No two rows would have fitted into one: so at most one row is half empty.
    assert all(one + other > room for one, other in combinations(sums(rows, lengths), 2))


@given(LENGTHS.filter(bool))
def test_a_sequence_longer_than_a_row_is_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=f"{max(lengths)} tokens in a row of {max(lengths) - 1}"):
        pack(lengths, max(lengths) - 1)


@given(LENGTHS, st.integers(1, 100))
def test_the_closest_rows_pad_least_of_all_that_are_tried(lengths: list[int], most: int) -> None:
    rows = closest(lengths, most)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    longest = max(lengths, default=0)
    width = max(sums(rows, lengths), default=0)
    assert width <= max(longest, min(most, 2 * longest))
    assert len(rows) * width <= len(pack(lengths, longest)) * longest


def test_what_fits_together_is_together() -> None:
    assert pack([9, 4, 5, 2], 9) == [[0], [2, 1], [3]]
    assert closest([10, 6, 6, 6, 6]) == [[0], [1, 2], [3, 4]]  # three rows of 12, where it would be five of 10


def test_label_rows_of_like_length_share_rows() -> None:
    lengths = [50, 90] * 8
    assert len(closest(lengths)) * max(sums(closest(lengths), lengths)) <= 1.05 * sum(lengths)


# Batches

Sequence = tuple[list[int], int, int, float]
SEQUENCE = st.tuples(
    st.lists(st.integers(1, 99), min_size=2, max_size=12), st.integers(1, 11), st.integers(0, 2), st.floats(0.1, 1)
).map(lambda one: (one[0], min(one[1], len(one[0]) - 1), one[2], one[3]))
ITEMS = st.lists(st.lists(SEQUENCE, max_size=4), max_size=6)


def as_items(examples: list[list[Sequence]]) -> list[dict[str, list[Any]]]:
    """Examples as the data set holds them; one without sequences is the empty one, which only fills up."""
    fields = ("ids", "targets", "tasks", "shares")
    return [{field: [one[place] for one in example] for place, field in enumerate(fields)} for example in examples]


def found(ids: list[int], labels: list[int], tasks: list[int], shares: list[float]) -> tuple[Any, ...]:
    """A sequence of a decoder as it stands in a batch, with what is learned at each of its positions."""
    learned = [
        None if label == -100 else (label, task, round(share, 4))
        for label, task, share in zip(labels, tasks, shares, strict=True)
    ]
    return tuple(ids), tuple(learned)


def expected(one: Sequence) -> tuple[Any, ...]:
    ids, targets, task, share = one
    before = len(ids) - targets - 1
    learned = [
        (after, task, round(share, 4)) if place >= before else None for place, (_, after) in enumerate(pairwise(ids))
    ]
    return tuple(ids), (*learned, None)


@settings(max_examples=60)
@given(ITEMS, st.sampled_from(["padded", "packed", "one row"]))
def test_a_decoders_batch_holds_each_sequence_once_with_its_targets(
    examples: list[list[Sequence]], layout: str
) -> None:
    from pipeline.trainer import Layout, collate

    batch = collate(as_items(examples), Layout(0, layout != "padded", layout == "one row"))
    values = {name: tensor.tolist() for name, tensor in batch.items()}
    there: list[tuple[Any, ...]] = []
    for row, mask in enumerate(values["attention_mask"]):
        width = sum(mask)
        assert mask == [1] * width + [0] * (len(mask) - width)
        starts = [0] if width else []
        if layout != "padded":
            places = values["position_ids"][row]
            starts = [place for place in range(width) if places[place] == 0]
            assert starts[:1] == ([0] if width else [])
            # Whatever pads a row stands apart too, so that no sequence sees it as its own.
            for start, end in pairwise([*starts, width, len(mask)]):
                assert places[start:end] == list(range(end - start))
        for start, end in pairwise([*starts, width]):
            parts = [values[name][row][start:end] for name in ("input_ids", "labels", "tasks", "shares")]
            there.append(found(*parts))
        assert values["labels"][row][width:] == [-100] * (len(mask) - width)
        assert not any(values["shares"][row][width:])
        assert values["input_ids"][row][width:] == [0] * (len(mask) - width)
    sequences = [one for example in examples for one in example]
    assert sorted(there, key=repr) == sorted(map(expected, sequences), key=repr)
    if layout == "one row" or not sequences:
        assert len(values["input_ids"]) == 1
    if layout == "one row":
        assert values["attention_mask"][0].count(0) == (0 if sequences else 1)


@given(ITEMS)
def test_an_encoder_decoders_batch_parts_prompts_from_answers(examples: list[list[Sequence]]) -> None:
    from pipeline.trainer import Layout, collate_pairs

    start = 77
    batch = {
        name: values.tolist()
        for name, values in collate_pairs(as_items(examples), Layout(0), decoder_start=start).items()
    }
    sequences = [one for example in examples for one in example]
    assert len(batch["input_ids"]) == max(1, len(sequences))
    for row, (ids, targets, task, share) in enumerate(sequences):
        asked, said = ids[:-targets], ids[-targets:]
        more, rest = len(batch["input_ids"][row]) - len(asked), len(batch["labels"][row]) - len(said)
        assert batch["input_ids"][row] == asked + [0] * more
        assert batch["attention_mask"][row] == [1] * len(asked) + [0] * more
        assert batch["labels"][row] == said + [-100] * rest
        assert batch["decoder_input_ids"][row] == [start, *said[:-1]] + [0] * rest
        assert batch["tasks"][row] == [task] * len(said) + [0] * rest
        assert batch["shares"][row] == pytest.approx([share] * len(said) + [0] * rest)
    if not sequences:
        assert set(batch["labels"][0]) == {-100}
        assert not any(batch["shares"][0])


# Which models keep sequences in one row apart


def small(kind: str, **shape: Any) -> Any:
    """A model of transformers, named as its classes begin, with whatever weights it begins with."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=260, **shape)
    return transformers.AutoModelForCausalLM.from_config(config)


SIZE = {"hidden_size": 32, "num_hidden_layers": 2}
HEADS = {**SIZE, "intermediate_size": 64, "num_attention_heads": 2}
APART = {
    "Llama": {**HEADS, "attn_implementation": "eager"},
    "Gemma2": {**HEADS, "num_key_value_heads": 1, "head_dim": 16, "attn_implementation": "sdpa"},
    "Mistral": {**HEADS, "num_key_value_heads": 1, "sliding_window": 4, "head_dim": 16},
    "Qwen2": {**HEADS, "num_key_value_heads": 1},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "GPTNeoX": HEADS,
}
MIXED = {
    "Mamba": {**SIZE, "state_size": 4},
    "RecurrentGemma": {**HEADS, "lru_width": 32, "block_types": ["recurrent", "attention"], "head_dim": 16},
    "Lfm2": {**HEADS, "num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]},
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
}


@pytest.mark.parametrize("kind", APART)
def test_attention_keeps_sequences_in_a_row_apart(kind: str) -> None:
    from pipeline.trainer import packs

    model = small(kind, **APART[kind]).train()
    assert packs(model)
    assert model.training


@pytest.mark.parametrize("kind", MIXED)
def test_what_remembers_otherwise_is_not_packed(kind: str) -> None:
    from pipeline.trainer import packs

    assert not packs(small(kind, **MIXED[kind]))


def test_a_model_that_is_not_packed_is_trained_as_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], gradients: list[dict[str, Any]]
) -> None:
    student = tmp_path / "mamba"
    small("Mamba", **MIXED["Mamba"], eos_token_id=256).save_pretrained(student)
    make_tokenizer(["<end>"], eos_token="<end>").save_pretrained(student)
    case = Case(student, write_shards(tmp_path / "shards", pairs()), *authors(student, pairs()))
    train_in({"batch_size": 8, "accumulation": 3}, case, tmp_path / "out")
    compare(case, tmp_path / "out", gradients, within=1e-4)
    assert "rows are padded, not packed" in capsys.readouterr().err
    train_in({"batch_size": 22}, case._replace(student=make_model(tmp_path / "llama")), tmp_path / "packed")
    assert "rows are padded" not in capsys.readouterr().err
