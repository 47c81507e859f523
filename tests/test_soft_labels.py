"""Distributions over labels as targets: against cross-entropy worked out over the labels' texts, with all logits."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.answering import load
from pipeline.files import InputError
from pipeline.losses.soft_labels import tempered
from pipeline.records import TrainingRow
from tests.models import make_model
from tests.test_train import files, metrics, pair, run, weights, write_shards

DISTRIBUTIONS = [
    {"a": 0.75, "bread": 0.25},
    {"a": 0.1, "bread": 0.6, "goals": 0.3},
    {"bread": 1.0, "a": 0.0},
    {"goals": 0.5, "a": 0.5},
]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


def soft(number: int, distribution: dict[str, float]) -> list[TrainingRow]:
    label, rationale = pair(number)
    return [label.changed(distribution=json.dumps(distribution)), rationale]


def by_hand(student: Path, prompt: str, distribution: dict[str, float], temperature: float) -> tuple[float, float]:
    """- sum over labels of p(label) log q(label), and the tokens that this counts for; q from all logits, token by token."""
    import torch

    checkpoint = load(str(student))
    total = sum(chance ** (1 / temperature) for chance in distribution.values())
    entropy = tokens = 0.0
    for label, chance in distribution.items():
        asked = checkpoint.format.prompt_ids(checkpoint.tokenizer, prompt)
        said = checkpoint.format.completion_ids(checkpoint.tokenizer, label)
        with torch.no_grad():
            chances = checkpoint.model(torch.tensor([asked + said])).logits[0].double().log_softmax(-1)
        written = sum(chances[len(asked) + place - 1, word].item() for place, word in enumerate(said))
        share = chance ** (1 / temperature) / total if chance else 0.0
        entropy -= share * written
        tokens += share * len(said)
    return entropy, tokens


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("shape", [{"batch_size": 4}, {"batch_size": 1, "accumulation": 4, "packing": False}])
def test_the_loss_is_the_cross_entropy_worked_out_by_hand(
    temperature: float, shape: dict[str, Any], tmp_path: Path, tiny: Path
) -> None:
    rows = [soft(number, distribution) for number, distribution in enumerate(DISTRIBUTIONS)]
    shards = write_shards(tmp_path / "shards", [row for both in rows for row in both])
    details = run(shards, tmp_path / "out", tiny, temperature=temperature, alpha=0.4, **shape)
    found = [
        by_hand(tiny, label.prompt, distribution, temperature)
        for (label, _), distribution in zip(rows, DISTRIBUTIONS, strict=True)
    ]
    entropy, tokens = (sum(values) for values in zip(*found, strict=True))
    (step,) = metrics(tmp_path / "out")
    assert step["label_loss"] == pytest.approx(entropy / tokens, rel=1e-5)
    assert step["label_tokens"] == pytest.approx(tokens, abs=1e-3)
    assert step["loss"] == pytest.approx(0.4 * step["label_loss"] + 0.6 * step["rationale_loss"], rel=1e-5)
    (baseline,) = metrics(tmp_path / "out", "baseline")
    assert baseline["label_loss"] == pytest.approx(step["label_loss"], rel=1e-5)
    assert details["examples"]["train"] == len(DISTRIBUTIONS)


def test_all_on_one_label_is_that_label_exactly(tmp_path: Path, tiny: Path) -> None:
    hard = [row for number in range(6) for row in pair(number)]
    sure = [
        row if row.task == "rationale" else row.changed(distribution=json.dumps({"other": 0, row.completion: 1}))
        for row in hard
    ]
    for name, rows in (("hard", hard), ("sure", sure)):
        run(write_shards(tmp_path / f"{name}-shards", rows), tmp_path / name, tiny, epochs=2, temperature=3.0)
    assert (tmp_path / "hard" / "metrics.jsonl").read_bytes() == (tmp_path / "sure" / "metrics.jsonl").read_bytes()
    for model in ("student", "baseline"):
        one, other = (files(tmp_path / name / model)["model.safetensors"] for name in ("hard", "sure"))
        assert one == other


def test_a_student_learns_what_share_each_label_has(tmp_path: Path, tiny: Path) -> None:
    import torch

    shares = {"a": 0.7, "b": 0.2, "c": 0.1}
    rows = [row for number in range(4) for row in soft(number, shares)]
    shards = write_shards(tmp_path / "shards", rows)
    run(shards, tmp_path / "out", tiny, targets=["label"], epochs=80, learning_rate=1e-2)
    checkpoint = load(str(tmp_path / "out" / "student"))
    asked = checkpoint.format.prompt_ids(checkpoint.tokenizer, rows[0].prompt)
    with torch.no_grad():
        chances = checkpoint.model(torch.tensor([asked])).logits[0, -1].softmax(-1)
    for label, share in shares.items():
        assert chances[checkpoint.tokenizer.convert_tokens_to_ids(label)].item() == pytest.approx(share, abs=0.03)
    assert len(weights(tmp_path / "out" / "student"))


@pytest.mark.parametrize(
    "wrong", ['{"a": "much"}', "[0.5, 0.5]", '{"a": 0}', '{"a": -1, "b": 2}', "{}", "not json", '{"a": NaN}']
)
def test_what_is_no_distribution_is_named(wrong: str, tmp_path: Path, tiny: Path) -> None:
    label, rationale = pair(0)
    shards = write_shards(tmp_path / "shards", [label.changed(distribution=wrong), rationale])
    with pytest.raises(InputError, match=r"^train: row r0/label: distribution: .*make the shards anew$"):
        run(shards, tmp_path / "out", tiny)


# Temperature

CHANCES = st.dictionaries(st.text(max_size=4), st.floats(1e-9, 1), min_size=1, max_size=6)
TEMPERATURES = st.floats(0.05, 20)


@given(CHANCES, TEMPERATURES)
def test_tempered_is_a_distribution_in_the_same_order(chances: dict[str, float], temperature: float) -> None:
    found = tempered(chances, temperature)
    assert sum(found.values()) == pytest.approx(1)
    assert [label for label in chances if label in found] == [*found]
    for label, value in found.items():
        for other, less in found.items():
            if chances[label] > chances[other]:
                assert value >= less
    best = max(chances, key=lambda label: chances[label])
    assert best in found
    ratio = {label: math.log(value / found[best]) * temperature for label, value in found.items() if value > 1e-200}
    assert ratio == pytest.approx({label: math.log(chances[label] / chances[best]) for label in ratio}, abs=1e-6)


@given(CHANCES)
def test_a_temperature_of_one_only_makes_it_add_up(chances: dict[str, float]) -> None:
    total = sum(chances.values())
    assert tempered(chances, 1) == pytest.approx({label: value / total for label, value in chances.items()})


@given(CHANCES, TEMPERATURES, st.floats(1e-6, 1e6))
def test_only_shares_matter_and_more_temperature_flattens(
    chances: dict[str, float], temperature: float, factor: float
) -> None:
    found = tempered(chances, temperature)
    assert tempered({label: value * factor for label, value in chances.items()}, temperature) == pytest.approx(found)
    flatter = tempered(chances, temperature * 1.5)
    assert max(flatter.values()) <= max(found.values()) + 1e-9
    assert max(tempered(chances, 1e9).values()) == pytest.approx(1 / len(chances), rel=1e-6)


@given(CHANCES, st.floats(0.5, 4), st.floats(0.5, 4))
def test_one_temperature_after_another_is_their_product(chances: dict[str, float], one: float, other: float) -> None:
    assert tempered(tempered(chances, one), other) == pytest.approx(tempered(chances, one * other), abs=1e-9)


@given(CHANCES, TEMPERATURES)
def test_labels_without_probability_are_left_out(chances: dict[str, float], temperature: float) -> None:
    assert "absent" not in tempered({**chances, "absent": 0.0}, temperature)
    assert tempered({**chances, "absent": 0.0}, temperature) == tempered(chances, temperature)


@pytest.mark.parametrize(
    ("chances", "temperature"),
    [({}, 1.0), ({"a": 0.0}, 1.0), ({"a": -0.1, "b": 1.1}, 1.0), ({"a": math.nan}, 1.0), ({"a": math.inf}, 1.0)]
    + [({"a": 1.0}, wrong) for wrong in (0.0, -1.0, math.nan)],
)
def test_what_has_no_temperature_is_refused(chances: dict[str, float], temperature: float) -> None:
    with pytest.raises(ValueError, match=r"temperature|distribution"):
        tempered(chances, temperature)
