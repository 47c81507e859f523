"""Log-probabilities of closed labels against one plain forward for each row and label, with real tiny models of several kinds."""

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.formats import Format
from pipeline.generate import greedy
from pipeline.scoring import label_log_probabilities, label_tokens, probabilities
from pipeline.student import StudentSettings, load
from tests.models import make_bart, make_model, make_t5, make_tokenizer

PROMPTS = ["[label] Late goal sinks the leaders", "[label] Soup", "[label] A much longer text about trains and tickets"]
LABELS = [["sports", "food"], ["a", "sports", "travel guide"], ["food"]]


def loaded(folder: Path) -> tuple[Any, Any]:
    model, tokenizer, _ = load(StudentSettings.model_validate({"from": str(folder)}))
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return loaded(make_model(tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return loaded(make_t5(tmp_path_factory.mktemp("models") / "t5"))


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return loaded(make_bart(tmp_path_factory.mktemp("models") / "bart"))


def windowed() -> Any:
    """Mistral, which remembers the last 8 tokens only."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    size = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 8, "max_position_embeddings": 256}
    return MistralForCausalLM(MistralConfig(**size, **heads)).eval()


def state_space() -> Any:
    """Mamba, which has a state and no keys and values."""
    import torch
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    size = {"vocab_size": 260, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "pad_token_id": 256}
    return MambaForCausalLM(MambaConfig(**size)).eval()


def recurrent() -> Any:
    """A model that takes positions and whose memory is attention in one layer and a state in the other."""
    import torch
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    torch.manual_seed(0)
    size = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "layer_types": ["linear_attention", "full_attention"]}
    states = {
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    experts = {"num_experts": 0, "mlp_only_layers": [0, 1], "decoder_sparse_step": 1}
    return Qwen3NextForCausalLM(Qwen3NextConfig(**size, **heads, **states, **experts)).eval()


def plain(model: Any, prompt: Sequence[int], label: Sequence[int]) -> float:
    """One forward of nothing but this prompt and this label, as training makes it."""
    import torch

    with torch.inference_mode():
        if model.config.is_encoder_decoder:
            logits = model(input_ids=torch.tensor([prompt]), labels=torch.tensor([label])).logits[0]
        else:
            logits = model(input_ids=torch.tensor([[*prompt, *label]])).logits[0, len(prompt) - 1 : -1]
        said = logits.log_softmax(-1)
        return float(sum(said[place, token] for place, token in enumerate(label)))


def encoded(model: Any, tokenizer: Any) -> tuple[list[list[int]], list[list[list[int]]]]:
    asked = Format(encoder_decoder=bool(model.config.is_encoder_decoder))
    prompts = [asked.prompt_ids(tokenizer, prompt) for prompt in PROMPTS]
    return prompts, [label_tokens(asked, tokenizer, labels) for labels in LABELS]


def check(model: Any, tokenizer: Any) -> None:
    prompts, labels = encoded(model, tokenizer)
    wanted = [[plain(model, prompt, label) for label in row] for prompt, row in zip(prompts, labels, strict=True)]
    for batch_size in (1, 2, 64):
        done: list[int] = []
        found = label_log_probabilities(model, tokenizer, prompts, labels, batch_size=batch_size, advance=done.append)
        assert sum(done) == len(prompts)
        for mine, its in zip(found, wanted, strict=True):
            assert mine == pytest.approx(its, abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "t5", "bart"])
def test_scores_are_those_of_plain_forwards(name: str, request: pytest.FixtureRequest) -> None:
    check(*request.getfixturevalue(name))


@pytest.mark.parametrize("make", [windowed, state_space, recurrent], ids=lambda make: make.__name__)
def test_models_with_other_memories_are_scored_alike(make: Any) -> None:
    check(make(), make_tokenizer(["<end>"], eos_token="<end>"))


def test_a_prompt_is_computed_once_for_all_labels(llama: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = llama
    prompts, labels = encoded(model, tokenizer)
    widths: list[int] = []
    forward = type(model).forward

    def counting(self: Any, input_ids: Any, **given: Any) -> Any:
        widths.append(input_ids.shape[1])
        return forward(self, input_ids, **given)

    counting.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(model), "forward", counting)
    label_log_probabilities(model, tokenizer, prompts[:2], labels[:2], batch_size=2)
    longest = max(len(prompt) for prompt in prompts[:2])
    assert [width for width in widths if width >= longest] == [longest]
    assert len(widths) == 4  # the prompts, then five labels by two


def test_labels_are_scored_with_the_tokens_that_are_trained(llama: tuple[Any, Any]) -> None:
    _, tokenizer = llama
    known: dict[str, list[int]] = {}
    found = label_tokens(Format(), tokenizer, ["car", "carpet", "car"], known)
    assert found[0] == found[2] == [*tokenizer("car")["input_ids"], tokenizer.eos_token_id]
    assert found[1][: len(found[0])] != found[0]  # the end token keeps a label apart from one that begins with it
    assert known.keys() == {"car", "carpet"}


def test_the_most_likely_of_all_labels_of_a_token_is_what_greedy_writes(llama: tuple[Any, Any]) -> None:
    model, tokenizer = llama
    prompts, _ = encoded(model, tokenizer)
    end = tokenizer.eos_token_id
    every = [[token] for token in range(256)]
    found = label_log_probabilities(model, tokenizer, prompts, [every] * len(prompts), batch_size=50)
    answers = greedy(model, tokenizer, prompts, end=end, max_new_tokens=1)
    for scores, answer in zip(found, answers, strict=True):
        assert scores is not None
        assert math.fsum(map(math.exp, scores)) < 1.0
        if not answer.finished:
            best = max(range(256), key=scores.__getitem__)
            assert tokenizer.decode([best]) == answer.text


def test_rows_without_room_or_labels(llama: tuple[Any, Any]) -> None:
    model, tokenizer = llama
    done: list[int] = []
    long, short = [5] * 255, [5] * 254
    found = label_log_probabilities(
        model, tokenizer, [long, short, [], [7]], [[[1, 256]], [[1, 256]], [[1]], []], advance=done.append
    )
    assert [row is None for row in found] == [True, False, True, False]
    assert found[3] == []
    assert sum(done) == 4
    assert label_log_probabilities(model, tokenizer, [], []) == []
    with pytest.raises(ValueError, match="without tokens"):
        label_log_probabilities(model, tokenizer, [[1]], [[[]]])


@given(st.lists(st.floats(-800, 0), min_size=1, max_size=8))
def test_probabilities_add_up_and_keep_the_order(scores: list[float]) -> None:
    found = probabilities(scores)
    assert math.fsum(found) == pytest.approx(1)
    assert all(0 <= share <= 1 for share in found)
    assert found.index(max(found)) == scores.index(max(scores)) or max(scores) - sorted(scores)[-2] < 1e-9


def test_probabilities_as_worked_out_by_hand() -> None:
    assert probabilities([math.log(0.3), math.log(0.1)]) == pytest.approx([0.75, 0.25])
    assert probabilities([-math.inf, -math.inf]) == [0.5, 0.5]
    with pytest.raises(ValueError, match="empty"):
        probabilities([])
