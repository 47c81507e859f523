"""Figures against numbers worked out by hand, and the job with a tiny student that was really trained."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import evaluate as module
from pipeline import outputs
from pipeline.config import Config, load
from pipeline.evaluate import (
    EvalSet,
    Metrics,
    Speeds,
    accuracy_interval,
    confusion,
    evaluate,
    evaluate_model,
    generate,
    label_scores,
    macro_f1,
    paired_difference,
    read_label,
)
from pipeline.files import InputError
from pipeline.formats import Format
from pipeline.outputs import Job, Totals
from pipeline.records import Drop, Prediction, TrainingRow
from pipeline.runner import run
from pipeline.shard import student_prompt
from pipeline.teachers import Server
from tests.chat_server import chat_server, completion
from tests.conftest import write_jsonl, write_project

TOPICS = ("sports", "food")
WORDS = ("match", "soup")


# Figures


def test_wilson_interval_as_worked_out_by_hand() -> None:
    # 8 of 10: centre (0.8 + 3.8415/20) / 1.38415, half width 1.95996 / 1.38415 * sqrt((0.16 + 3.8415/40) / 10)
    assert accuracy_interval(8, 10) == pytest.approx((0.49016, 0.94331), abs=1e-5)
    assert accuracy_interval(0, 10) == (0.0, pytest.approx(0.27753, abs=1e-5))
    assert accuracy_interval(10, 10) == (pytest.approx(0.72247, abs=1e-5), 1.0)


@given(st.integers(1, 3000), st.data())
def test_interval_holds_the_share_and_mirrors(rows: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, rows))
    low, high = accuracy_interval(correct, rows)
    assert 0 <= low <= correct / rows <= high <= 1
    mirrored = accuracy_interval(rows - correct, rows)
    assert (low, high) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]))


@pytest.mark.parametrize(("correct", "rows"), [(0, 0), (3, 2), (-1, 5)])
def test_interval_of_what_is_no_share(correct: int, rows: int) -> None:
    with pytest.raises(ValueError, match="no share"):
        accuracy_interval(correct, rows)


GOLDS = ["a", "a", "b", "b", "c"]
ANSWERS = ["a", "b", "b", None, "c"]


def test_macro_f1_as_worked_out_by_hand() -> None:
    # a: precision 1, recall 1/2, F1 2/3; b: 1/2, 1/2, F1 1/2; c: 1; d is nowhere and does not count
    assert macro_f1(GOLDS, ANSWERS, ["a", "b", "c", "d"]) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert macro_f1(["a"], ["d"], ["a", "d"]) == 0.0
    assert macro_f1(["a"], [None], ["a"]) == 0.0


def test_confusion_has_a_last_column_for_everything_else() -> None:
    matrix = confusion(GOLDS, ANSWERS, ["a", "b", "c", "d"])
    assert matrix == [[1, 1, 0, 0, 0], [0, 1, 0, 0, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
    scores = label_scores(matrix, ["a", "b", "c", "d"])
    assert (scores["b"].precision, scores["b"].recall, scores["b"].gold, scores["b"].answered) == (0.5, 0.5, 2, 2)
    assert (scores["d"].precision, scores["d"].recall) == (None, None)


def test_a_truth_outside_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="'z' is none of the classes"):
        confusion(["z"], ["a"], ["a"])


def test_a_label_named_other_is_a_label_like_any() -> None:
    assert confusion(["other", "a"], ["other", None], ["other", "a"]) == [[1, 0, 0], [0, 0, 1]]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["a", "b", "c", "z", None])), min_size=1, max_size=40)
)
def test_confusion_counts_every_row_once(pairs: list[tuple[str, str | None]]) -> None:
    golds, answers = [gold for gold, _ in pairs], [answer for _, answer in pairs]
    matrix = confusion(golds, answers, "abc")
    assert [sum(row) for row in matrix] == [golds.count(name) for name in "abc"]
    assert sum(matrix[place][place] for place in range(3)) == sum(gold == answer for gold, answer in pairs)
    assert 0 <= macro_f1(golds, answers, "abc") <= 1


def test_paired_difference_agrees_with_the_normal_approximation() -> None:
    first = [True] * 30 + [False] * 10 + [True] * 40 + [False] * 20
    second = [False] * 30 + [True] * 10 + [True] * 40 + [False] * 20
    difference, (low, high) = paired_difference(first, second, resamples=20_000)
    half = 1.96 * math.sqrt((0.4 - 0.2**2) / 100)  # variance of a difference that is +1 in 30%, -1 in 10% of the rows
    assert difference == pytest.approx(0.2)
    assert (low, high) == pytest.approx((0.2 - half, 0.2 + half), abs=0.015)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60), st.integers(0, 5))
def test_paired_difference_is_seeded_and_holds_its_centre(pairs: list[tuple[bool, bool]], seed: int) -> None:
    first, second = [one for one, _ in pairs], [other for _, other in pairs]
    difference, (low, high) = paired_difference(first, second, resamples=200, seed=seed)
    assert paired_difference(first, second, resamples=200, seed=seed) == (difference, (low, high))
    assert -1 <= low <= high <= 1
    assert difference == pytest.approx(sum(first) / len(first) - sum(second) / len(second))
    assert paired_difference(first, first, resamples=200, seed=seed) == (0.0, (0.0, 0.0))


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="in pairs"):
        paired_difference([True], [True, False])


def test_answers_that_say_no_label_are_none() -> None:
    assert read_label(" Sports. ", "text", ["sports", "food"]) == "sports"
    assert read_label("gardening", "text", ["sports", "food"]) is None
    assert read_label("(b)", "choice", choices=["river", "bank"]) == "bank"
    assert read_label("(q)", "choice", choices=["river", "bank"]) is None
    assert read_label("twelve", "number") is None
    assert read_label("84 / 0", "equation") is None
    assert read_label("(84 / 2)", "equation") == "84 / 2"
    assert read_label("anything at all", "text") == "anything at all"


# A student


def tiny_student(folder: Path, *, steps: int, context: int = 512) -> Path:
    """A checkpoint of a few thousand weights over bytes; with some steps it learns to tell 'match' from 'soup', and to end its answer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate(["<end>", *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")
    torch.manual_seed(1)
    torch.set_num_threads(
        1
    )  # two threads wait for each other a hundred times longer than they work on matrices this small
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        eos_token_id=0,
        pad_token_id=None,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    said = {
        ("label", 0): "sports",
        ("label", 1): "food",
        ("rationale", 0): "It is a match.",
        ("rationale", 1): "It is soup.",
    }
    for step in range(steps):
        sequences = []
        for (task, topic), answer in said.items():
            asked = Format().prompt_ids(
                tokenizer, student_prompt(task, f"{'x' * (step * 7 % 12)} {WORDS[topic]} {'y' * (step % 5)}")
            )
            sequences.append((asked, Format().completion_ids(tokenizer, answer)))
        longest = max(len(asked) + len(answer) for asked, answer in sequences)
        rows = [asked + answer + [0] * (longest - len(asked) - len(answer)) for asked, answer in sequences]
        learned = [
            [-100] * len(asked) + answer + [-100] * (longest - len(asked) - len(answer)) for asked, answer in sequences
        ]
        loss = model(input_ids=torch.tensor(rows), labels=torch.tensor(learned)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.generation_config.do_sample = True  # what a checkpoint says of sampling must not reach the evaluation
    model.generation_config.temperature = 5.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """As many threads for the tests after these as for those before."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A train stage's folder: a student that has learned its task, and a baseline that has learned nothing."""
    folder = tmp_path_factory.mktemp("train")
    tiny_student(folder / "student", steps=220)
    tiny_student(folder / "baseline", steps=0)
    return folder


def test_answers_do_not_depend_on_the_batch(students: Path) -> None:
    checkpoint = module.load(str(students / "student"))
    texts = [student_prompt("label", f"{'a' * number} {WORDS[number % 2]}") for number in range(7)]
    alone = [generate(checkpoint, [asked], max_new_tokens=12)[0] for asked in texts]
    assert generate(checkpoint, texts, batch_size=3, max_new_tokens=12) == alone
    assert [answer.text for answer in alone] == [TOPICS[number % 2] for number in range(7)]
    assert all(answer.finished for answer in alone)


def test_a_text_without_room_for_an_answer_gets_none(tmp_path: Path) -> None:
    checkpoint = module.load(str(tiny_student(tmp_path / "short", steps=0, context=64)))
    short, long = generate(checkpoint, ["soup", "soup" * 20], max_new_tokens=8)
    assert short.text is not None
    assert (long.text, long.finished) == (None, False)


# The job


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run up to the shards; of six test rows the recorded teacher has three right, one wrong, mumbles at one and never saw the last."""
    folder = tmp_path_factory.mktemp("project")
    settings = write_project(folder)
    rows = [
        {"id": f"t{n}", "text": f"{'x' * n} {WORDS[n % 2]} {'y' * (n % 3)}", "topic": TOPICS[n % 2]} for n in range(6)
    ]
    rows += [{"id": "bare", "text": "no truth here", "topic": ""}, {"id": "odd", "text": "roses", "topic": "gardening"}]
    write_jsonl(folder / "test.jsonl", rows)
    with (folder / "completions.jsonl").open("a") as file:
        for number in range(5):
            topic = TOPICS[number % 2] if number else "food"
            said = f"It is so. So the answer is {topic}." if number != 4 else "Who knows."
            file.write(json.dumps({"id": f"t{number}", "completion": said}) + "\n")
    config = load(settings)
    run(config)
    return config


def ask(
    config: Config, folder: Path, train: Path | None, **changed: Any
) -> tuple[list[Prediction], list[Drop], Totals]:
    folder.mkdir(parents=True, exist_ok=True)
    shard = outputs.current(config.run, "shard")
    assert shard is not None
    inputs = {"shard": shard} | ({"train": train} if train is not None else {})
    settings: dict[str, Any] = {
        "eval_sets": config.eval_sets,
        "labels": config.task.labels,
        "label_type": "text",
        "targets": config.task.targets,
        "sample": config.stages["sample"],
        "parse": config.stages["parse"],
    }
    rows = evaluate(Job(folder, inputs, config.run / "responses"), **(settings | changed))
    found: list[Prediction | Drop] = []
    try:
        while True:
            found.append(next(rows))
    except StopIteration as end:
        totals: Totals = end.value
    return (
        [row for row in found if isinstance(row, Prediction)],
        [row for row in found if isinstance(row, Drop)],
        totals,
    )


def figures(folder: Path) -> Metrics:
    return Metrics.model_validate_json((folder / "metrics.json").read_bytes())


@pytest.fixture(scope="module")
def measured(prepared: Config, students: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("evaluate")
    return folder, ask(prepared, folder, students)


def test_every_eval_row_is_a_prediction_or_a_drop_for_each_model(measured: tuple[Path, Any]) -> None:
    _, (predictions, drops, totals) = measured
    assert totals.rows_in == len(predictions) + len(drops) == 8 * 4
    assert len({row.id for row in [*predictions, *drops]}) == 32
    models = ("teacher", "student", "baseline", "majority")
    assert [row.id for row in predictions] == [f"test/{model}/t{n}" for model in models for n in range(6)]
    reasons = {(drop.id, drop.reason) for drop in drops}
    assert reasons == {
        (f"test/{model}/{row}", reason)
        for model in models
        for row, reason in (("bare", "no_gold"), ("odd", "gold_is_no_label"))
    }


def test_figures_are_those_of_the_predictions(measured: tuple[Path, Any]) -> None:
    folder, (predictions, _, _) = measured
    found = figures(folder).eval_sets["test"]
    assert (found.rows, found.dropped, found.classes) == (6, 2, ["sports", "food"])
    for model, shown in found.models.items():
        own = [row for row in predictions if row.model == model]
        assert shown.correct == sum(row.correct for row in own)
        assert shown.accuracy == pytest.approx(shown.correct / 6)
        assert shown.accuracy_interval == accuracy_interval(shown.correct, 6)
        assert sum(map(sum, shown.confusion)) == 6
        assert shown.answered == sum(row.label is not None for row in own)


def test_the_trained_student_is_right_and_the_untrained_baseline_is_not(measured: tuple[Path, Any]) -> None:
    models = figures(measured[0]).eval_sets["test"].models
    assert models["student"].accuracy == 1.0
    assert (models["baseline"].correct, models["baseline"].answered) == (0, 0)
    assert models["baseline"].confusion == [[0, 0, 3], [0, 0, 3]]
    assert models["majority"].correct == 3


def test_what_the_teacher_did_not_answer_is_wrong_and_said_so(measured: tuple[Path, Any]) -> None:
    folder, (predictions, _, _) = measured
    teacher = [row for row in predictions if row.model == "teacher"]
    assert [row.label for row in teacher] == ["food", "food", "sports", "food", None, None]
    assert [row.correct for row in teacher] == [False, True, True, True, False, False]
    assert [row.text for row in teacher[4:]] == ["Who knows.", ""]
    found = figures(folder).eval_sets["test"]
    assert (found.models["teacher"].answered, found.models["teacher"].unanswered) == (4, 1)
    assert (found.models["student"].same_as_teacher, found.models["student"].teacher_rows) == (3, 4)
    compared = {(pair.first, pair.second): pair for pair in found.comparisons}
    assert (compared["student", "teacher"].only_first, compared["student", "teacher"].only_second) == (3, 0)


def test_the_student_is_asked_why(measured: tuple[Path, Any]) -> None:
    rows = [json.loads(line) for line in (measured[0] / "rationales.jsonl").read_bytes().splitlines()]
    assert [row["row"] for row in rows] == [f"t{n}" for n in range(6)]
    assert [row["rationale"] for row in rows] == ["It is a match.", "It is soup."] * 3
    assert all(row["finished"] for row in rows)


def test_the_same_again_is_the_same_bytes_but_for_speeds(
    measured: tuple[Path, Any], prepared: Config, students: Path, tmp_path: Path
) -> None:
    folder, (predictions, drops, _) = measured
    again, more, _ = ask(prepared, tmp_path, students, batch_size=1)
    assert [row.line() for row in again] == [row.line() for row in predictions]
    assert [row.line() for row in more] == [row.line() for row in drops]
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"metrics.json", "rationales.jsonl", "run-speed.json"}
    for name in ("metrics.json", "rationales.jsonl"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert b"per_second" not in (folder / "metrics.json").read_bytes()
    speeds = Speeds.model_validate_json((tmp_path / "run-speed.json").read_bytes())
    assert set(speeds.models) == {"student", "baseline"} | ({"teacher"} & set(speeds.models))
    assert speeds.models["student"].rows == 6


def test_without_a_student_the_teacher_is_measured_alone(prepared: Config, tmp_path: Path) -> None:
    predictions, _, totals = ask(prepared, tmp_path, None)
    assert {row.model for row in predictions} == {"teacher", "majority"}
    assert totals.rows_in == 8 * 2
    assert figures(tmp_path).eval_sets["test"].comparisons == []


def test_a_teacher_that_answered_nothing_is_left_out(prepared: Config, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "other.jsonl", [{"id": "someone else", "completion": "Hm. So the answer is food."}])
    teacher = prepared.stages["sample"]["teacher"][0].model_copy(update={"completions": tmp_path / "other.jsonl"})
    predictions, _, totals = ask(prepared, tmp_path, None, sample=prepared.stages["sample"] | {"teacher": [teacher]})
    assert {row.model for row in predictions} == {"majority"}
    assert totals.rows_in == 8


@pytest.mark.parametrize("rationalise", [False, True])
def test_the_teacher_is_never_shown_the_true_label(
    prepared: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], rationalise: bool
) -> None:
    (tmp_path / "why.jinja").write_text(
        f"{{% block user %}}{{{{ {'gold' if rationalise else 'text'} }}}}{{% endblock %}}"
    )
    with chat_server(lambda body: completion("It is so. So the answer is food.")) as chat:
        teacher = Server(backend="server", base_url=chat.url, model="m", revision="1")
        changed = {"teacher": [teacher], "prompt": tmp_path / "why.jinja", "rationalise": rationalise}
        predictions, _, totals = ask(prepared, tmp_path / "out", None, sample=prepared.stages["sample"] | changed)
    assert len(chat.requests) == (0 if rationalise else 6)
    assert {row.model for row in predictions} == ({"majority"} if rationalise else {"teacher", "majority"})
    assert totals.rows_in == (8 if rationalise else 16)
    left_out = "evaluate: the teacher is left out; its prompt shows the true label (stages.sample.rationalise)"
    assert (left_out in capsys.readouterr().err) == rationalise


def test_two_eval_sets_may_share_ids(prepared: Config, tmp_path: Path) -> None:
    sets = {"test": prepared.eval_sets["test"], "again": prepared.eval_sets["test"]}
    predictions, drops, totals = ask(prepared, tmp_path, None, eval_sets=sets)
    assert totals.rows_in == len(predictions) + len(drops) == 2 * 8 * 2
    found = figures(tmp_path).eval_sets
    assert found["test"].models["teacher"] == found["again"].models["teacher"]
    assert found["test"].models["teacher"].correct == 3


def test_an_eval_set_without_truths_measures_nothing(prepared: Config, tmp_path: Path) -> None:
    bare = prepared.eval_sets["test"].model_copy(update={"gold": None})
    predictions, drops, totals = ask(prepared, tmp_path, None, eval_sets={"bare": bare})
    assert predictions == []
    assert {drop.reason for drop in drops} == {"no_gold"}
    assert totals.rows_in == len(drops)
    assert figures(tmp_path).eval_sets["bare"].models == {}


def test_no_eval_set_is_a_wrong_setting(prepared: Config, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="eval_sets: there is nothing to evaluate on"):
        ask(prepared, tmp_path, None, eval_sets={})


def test_an_answer_that_had_to_be_cut_off_is_none(prepared: Config, students: Path, tmp_path: Path) -> None:
    predictions, _, _ = ask(prepared, tmp_path, students, max_new_tokens=4)
    student = [row for row in predictions if row.model == "student"]
    assert [(row.text, row.label) for row in student[:2]] == [("spor", None), ("food", None)]


# Any model on any file


def test_a_model_alone(prepared: Config, students: Path) -> None:
    found = evaluate_model(
        str(students / "student"), prepared.eval_sets["test"], name="test", labels=["sports", "food"]
    )
    assert (found["rows"], found["correct"], found["accuracy"], found["macro_f1"]) == (6, 6, 1.0, 1.0)
    assert found["dropped"] == {"no_gold": 1, "gold_is_no_label": 1}
    assert found["examples_per_second"] > 0
    assert found["parameters"] == sum(
        weights.numel() for weights in module.load(str(students / "student")).model.parameters()
    )
    json.dumps(found)


def test_open_answers_have_no_confusion_matrix(prepared: Config, students: Path) -> None:
    found = evaluate_model(str(students / "student"), prepared.eval_sets["test"])
    assert (found["rows"], found["correct"]) == (7, 6)  # 'gardening' is a truth like any other here
    assert (found["macro_f1"], found["confusion"], found["classes"]) == (None, [], [])


def test_what_cannot_be_measured_is_one_line(prepared: Config, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name"):
        evaluate_model(str(tmp_path / "nowhere"), prepared.eval_sets["test"])
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"text": "soup", "topic": ""}])
    rows = EvalSet(path=path, input="{{ text }}", gold="topic", choices=None, id=None)
    with pytest.raises(InputError, match="none of 1 rows has a usable true label"):
        evaluate_model(str(tmp_path), rows)


def test_majority_is_the_most_frequent_label_of_the_training_rows(prepared: Config) -> None:
    shard = outputs.current(prepared.run, "shard")
    assert shard is not None
    rows = [row for row in outputs.read(shard, TrainingRow) if row.task == "label" and row.split == "train"]
    counts = {topic: sum(row.completion == topic for row in rows) for topic in TOPICS}
    majority = module._majority(Job(Path(), {"shard": shard}, Path()))
    assert majority == min(counts, key=lambda topic: (-counts[topic], topic))
