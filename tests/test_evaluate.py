"""Figures against numbers worked out by hand, and the job with a tiny student that was really trained."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import answering, eval_rows, gates, nearest, outputs
from pipeline.answering import generate
from pipeline.ask_teachers import timed_teachers
from pipeline.config import Config, load
from pipeline.evaluate import evaluate, evaluate_models
from pipeline.files import InputError
from pipeline.formats import Format
from pipeline.gates import judge
from pipeline.intervals import accuracy_interval
from pipeline.labels import read_label
from pipeline.metrics import Costs, Metrics, SetMetrics
from pipeline.outputs import Job, Totals
from pipeline.records import Drop, Prediction, TrainingRow
from pipeline.runner import run
from pipeline.said import Said
from pipeline.shard import student_prompt
from pipeline.sources import EvalSet
from pipeline.student import StudentSettings
from pipeline.teachers import Answer, Server, Vllm
from tests.chat_server import chat_server, completion
from tests.conftest import write_jsonl, write_project

TOPICS = ("sports", "food")
WORDS = ("match", "soup")


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
    checkpoint = answering.load(str(students / "student"))
    texts = [student_prompt("label", f"{'a' * number} {WORDS[number % 2]}") for number in range(7)]
    alone = [generate(checkpoint, [asked], max_new_tokens=12)[0] for asked in texts]
    assert generate(checkpoint, texts, batch_size=3, max_new_tokens=12) == alone
    assert [answer.text for answer in alone] == [TOPICS[number % 2] for number in range(7)]
    assert all(answer.finished for answer in alone)


def test_a_text_without_room_for_an_answer_gets_none(tmp_path: Path) -> None:
    checkpoint = answering.load(str(tiny_student(tmp_path / "short", steps=0, context=64)))
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
        "slices": [],
        "latency": 2,
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
    assert totals.rows_in == len(predictions) + len(drops) == 8 * 5
    assert len({row.id for row in [*predictions, *drops]}) == 40
    models = ("teacher", "student", "baseline", "nearest", "majority")
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
    student = [row for row in rows if row["model"] == "student"]
    assert [row["row"] for row in student] == [f"t{n}" for n in range(6)]
    assert [row["rationale"] for row in student] == ["It is a match.", "It is soup."] * 3
    assert all(row["finished"] and row["asked_again"] for row in student)
    assert [row["row"] for row in rows if row["model"] == "teacher"] == ["t0", "t1", "t2", "t3"]
    assert {row["model"] for row in rows} == {"student", "teacher"}
    found = figures(measured[0]).eval_sets["test"].models
    assert found["baseline"].rationales is None
    told, said = found["student"].rationales, found["teacher"].rationales
    assert told is not None and (told.rows, told.finished, told.asked_first, told.right_before) == (6, 6, 6, 6)
    assert told.changed == sum(row["label"] != row["label_after"] for row in student)
    assert said is not None and (said.rows, said.asked_first, said.judged) == (4, None, None)


def test_the_same_again_is_the_same_bytes_but_for_speeds(
    measured: tuple[Path, Any], prepared: Config, students: Path, tmp_path: Path
) -> None:
    folder, (predictions, drops, _) = measured
    again, more, _ = ask(prepared, tmp_path, students, batch_size=1)
    assert [row.line() for row in again] == [row.line() for row in predictions]
    assert [row.line() for row in more] == [row.line() for row in drops]
    result = {"metrics.json", "rationales.jsonl", "rows.jsonl", "safety.jsonl", "validation.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == result | {"run-speed.json"}
    for name in result:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    took = Costs.model_validate_json((tmp_path / "run-speed.json").read_bytes()).models
    assert set(took) == {"student", "baseline"}  # a recording has no time of its own
    cost = took["student"]
    assert (cost.rows, cost.latency_rows, cost.batch_size) == (4, 2, 1)
    assert cost.latency is not None and 0 < cost.latency["p50"] <= cost.latency["p99"]
    assert cost.bytes_on_disk is not None and cost.bytes_on_disk > 4 * (cost.parameters or 0) > 0
    assert cost.peak_memory is not None and cost.throughput is not None and cost.cost_per_1000 is None


def test_without_a_student_the_teacher_is_measured_alone(prepared: Config, tmp_path: Path) -> None:
    predictions, _, totals = ask(prepared, tmp_path, None)
    assert {row.model for row in predictions} == {"teacher", "nearest", "majority"}
    assert totals.rows_in == 8 * 3
    assert figures(tmp_path).eval_sets["test"].comparisons == []


def test_a_teacher_that_answered_nothing_is_left_out(prepared: Config, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "other.jsonl", [{"id": "someone else", "completion": "Hm. So the answer is food."}])
    teacher = prepared.stages["sample"]["teacher"][0].model_copy(update={"completions": tmp_path / "other.jsonl"})
    predictions, _, totals = ask(prepared, tmp_path, None, sample=prepared.stages["sample"] | {"teacher": [teacher]})
    assert {row.model for row in predictions} == {"nearest", "majority"}
    assert totals.rows_in == 16


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
    assert {row.model for row in predictions} == {"nearest", "majority"} | (set() if rationalise else {"teacher"})
    assert totals.rows_in == (16 if rationalise else 24)
    left_out = "evaluate: the teacher is left out; its prompt shows the true label (stages.sample.rationalise)"
    assert (left_out in capsys.readouterr().err) == rationalise


def test_two_eval_sets_may_share_ids(prepared: Config, tmp_path: Path) -> None:
    sets = {"test": prepared.eval_sets["test"], "again": prepared.eval_sets["test"]}
    predictions, drops, totals = ask(prepared, tmp_path, None, eval_sets=sets)
    assert totals.rows_in == len(predictions) + len(drops) == 2 * 8 * 3
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


def test_what_students_said_is_not_asked_again(
    prepared: Config, students: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(prepared, tmp_path / "first", students, latency=0)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was asked once more")

    monkeypatch.setattr(answering, "complete", never)
    monkeypatch.setattr("pipeline.ask_students.label_log_probabilities", never)
    ask(prepared, tmp_path / "second", students, latency=0, bootstrap=7)
    rows = [(tmp_path / name / "rationales.jsonl").read_bytes() for name in ("first", "second")]
    assert rows[0] == rows[1]
    with pytest.raises(AssertionError, match="asked once more"):
        ask(prepared, tmp_path / "third", students, latency=0, max_new_tokens=3)  # shorter answers are other answers


def test_the_student_is_probed_beside_what_it_was_made_from(prepared: Config, students: Path, tmp_path: Path) -> None:
    rows = [{"text": f"{name} won the match {n}", "topic": "sports"} for n, name in enumerate(["Mary", "He", "Nobody"])]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    sets = {"test": prepared.eval_sets["test"].model_copy(update={"path": tmp_path / "rows.jsonl", "id": None})}
    made_from = StudentSettings.model_validate({"from": str(students / "baseline")})
    folder = tmp_path / "out"
    ask(prepared, folder, students, eval_sets=sets, base=made_from, latency=0)
    found = figures(folder).safety
    assert found is not None and found.base == str(students / "baseline")
    before, after = found.models["base"], found.models["student"]
    assert (before.harmful, before.harmless, before.swapped) == (after.harmful, after.harmless, 0) == (24, 24, 0)
    assert after.swapped == 2 and after.refused == 0 and len(found.sentences) == 5
    said = [json.loads(line) for line in (folder / "safety.jsonl").read_bytes().splitlines()]
    assert {row["model"] for row in said} == {"base", "student"}
    swapped = [row for row in said if row["probe"].startswith("gender/")]
    assert [row["request"].split()[0] for row in swapped][1] == "She"
    assert after.swapped_changed <= 2


def test_students_say_how_sure_they_are(measured: tuple[Path, Any]) -> None:
    folder, (predictions, _, _) = measured
    student = [row for row in predictions if row.model == "student"]
    for row in student:
        assert row.probabilities is not None and row.probabilities_of == "scores"
        assert set(row.probabilities) == set(TOPICS) and sum(row.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert max(row.probabilities, key=lambda label: row.probabilities[label]) == row.label
    assert all(row.probabilities is None for row in predictions if row.model in ("teacher", "majority", "nearest"))
    found = figures(folder).eval_sets["test"].models
    assert found["majority"].calibration is None
    sure, unsure = found["student"].calibration, found["baseline"].calibration
    assert sure is not None and unsure is not None and (sure.rows, unsure.rows) == (6, 6)
    assert sure.brier < 0.1 < unsure.brier
    kept = [json.loads(line) for line in (folder / "validation.jsonl").read_bytes().splitlines()]
    assert {row["model"] for row in kept} == {"student", "baseline"}
    assert sure.temperature_rows == sum(row["model"] == "student" for row in kept) > 0
    assert unsure.temperature is not None and unsure.scaled_brier is not None


def test_rows_know_what_is_known_of_them(
    prepared: Config, students: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pipeline.eval_rows.overlapping", lambda shards: {"test": {"t1": ["r25"], "t2": ["r3", "r4"]}, "gone": {}}
    )
    ask(prepared, tmp_path, students, slices=["topic", "nowhere"])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_bytes().splitlines()]
    assert [row["row"] for row in rows if row["contaminated"]] == ["t1", "t2"]
    assert [row["slices"] for row in rows[:2]] == [{"topic": "sports"}, {"topic": "food"}]
    found = figures(tmp_path).eval_sets["test"]
    assert found.contamination is not None
    assert (found.contamination.clean, found.contamination.found) == (4, 2)
    clean, hit = found.contamination.models["majority"]
    assert (clean.rows, hit.rows, clean.right + hit.right) == (4, 2, found.models["majority"].correct)
    slices = found.models["majority"].slices
    assert [(one.value, one.share.rows) for one in slices["topic"]] == [("food", 3), ("sports", 3)]
    assert {one.share.right for one in slices["topic"]} == {0, 3}
    for groups in slices.values():
        assert sum(one.share.rows for one in groups) == 6


def test_the_drops_of_decontaminate_tell_which_eval_rows_were_found(tmp_path: Path) -> None:
    settings = write_project(tmp_path / "project")
    config = load(settings)
    run(config)
    shard = outputs.current(config.run, "shard")
    assert shard is not None
    assert eval_rows.overlapping(shard) == {"test": {"t0": ["r25"]}}
    off = load(settings, ["decontaminate=false"])
    run(off)
    shard = outputs.current(off.run, "shard")
    assert shard is not None
    assert eval_rows.overlapping(shard) is None


def test_several_teachers_are_there_together_and_alone(prepared: Config, tmp_path: Path) -> None:
    for name, topic in (("one", "sports"), ("two", "food")):
        rows = [{"id": f"t{n}", "completion": f"It is so. So the answer is {topic}."} for n in range(6)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    teachers = [
        prepared.stages["sample"]["teacher"][0].model_copy(
            update={"name": name, "completions": tmp_path / f"{name}.jsonl"}
        )
        for name in ("one", "two")
    ]
    asked = prepared.stages["sample"] | {"teacher": teachers}
    read_as = prepared.stages["parse"] | {"teachers": ["one", "two"]}
    predictions, _, _ = ask(prepared, tmp_path / "out", None, sample=asked, parse=read_as)
    models = dict.fromkeys(row.model for row in predictions)
    assert [*models] == ["teacher", "teacher:one", "teacher:two", "nearest", "majority"]
    assert {row.label for row in predictions if row.model == "teacher:two"} == {"food"}
    found = figures(tmp_path / "out").eval_sets["test"].models
    assert [one.value for one in found["teacher"].slices["teacher agreement"]] == ["50%"]
    believed = found["teacher"].calibration
    assert believed is not None and (believed.source, believed.ece, believed.brier) == ("votes", 0.0, 0.5)


def test_further_models_are_measured_on_the_same_rows(prepared: Config, students: Path, tmp_path: Path) -> None:
    predictions, _, totals = ask(prepared, tmp_path, students, models={"old": str(students / "baseline")}, latency=0)
    assert totals.rows_in == 8 * 6
    given = {model: [row.text for row in predictions if row.model == model] for model in ("old", "baseline")}
    assert given["old"] == given["baseline"]
    found = figures(tmp_path).eval_sets["test"]
    assert found.models["old"].kind == "model"
    told = {(one.first, one.second): one.sentence for one in found.comparisons}
    assert {("student", "old"), ("old", "teacher"), ("old", "baseline")} <= set(told)
    assert told["student", "old"].startswith("student 100.0%") and "old 0.0%" in told["student", "old"]


def test_a_judge_scores_the_rationales(prepared: Config, students: Path, tmp_path: Path) -> None:
    (tmp_path / "judge.jinja").write_text("{% block user %}{{ input }} / {{ label }} / {{ rationale }}{% endblock %}")
    with chat_server(lambda body: completion(json.dumps({"reason": "It is so.", "score": 4}))) as chat:
        teacher = f"{{backend: server, base_url: '{chat.url}', model: j, revision: '1'}}"
        config = load(prepared.file, [f"judge={{teacher: {teacher}, prompt: '{tmp_path / 'judge.jinja'}'}}"])
        ask(prepared, tmp_path / "out", students, judge=config.stages["judge"], latency=0)
        asked = [body["messages"][-1]["content"] for body in chat.requests]
    assert len(asked) == len(set(asked)) > 0
    assert any(text.endswith("sports / It is a match.") for text in asked)
    for model, rows in (("student", 6), ("teacher", 4)):
        found = figures(tmp_path / "out").eval_sets["test"].models[model].rationales
        assert found is not None and (found.judged, found.judge_score) == (rows, 4.0)


def test_a_teacher_of_a_share_of_the_rows_is_timed_on_its_own(
    prepared: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two local teachers that part the rows; their engines are stood in for by what answers at once."""
    (tmp_path / "ask.jinja").write_text("{% block user %}{{ text }}{% endblock %}")
    teachers = [Vllm(backend="vllm", model="embedded", name=name, share=0.5) for name in ("one", "two")]
    rows, _ = eval_rows.read(prepared.eval_sets, "text", prepared.task.labels)
    asked: list[str] = []

    @contextmanager
    def connected(settings: Vllm, sampling: Any) -> Iterator[Any]:
        def answer(requests: Iterator[Any]) -> Iterator[Any]:
            for request in requests:
                asked.append(request.prompt_id)
                yield request, Answer("So.", "stop")

        yield answer

    monkeypatch.setattr("pipeline.ask_teachers.connect", connected)
    sample = prepared.stages["sample"] | {"teacher": teachers, "prompt": tmp_path / "ask.jinja"}
    said = [Said(f"teacher:{name}", [], []) for name in ("one", "two")]
    found = timed_teachers(said, rows, sample, 1, tmp_path / "evaluate" / "key")
    timed = [one.cost.rows for one in found if one.cost is not None]
    assert sum(timed) == 6
    assert set(asked) == {row.prompt.id for row in rows}


# Gates


def judged(found: Metrics, **gates: str) -> dict[str, bool]:
    return {one.gate: one.passed for one in judge(found, gates)}


def test_gates_hold_or_do_not(measured: tuple[Path, Any]) -> None:
    found = figures(measured[0])
    met = {
        "accuracy": ">= 1",
        "macro_f1": ">0.99",
        "accuracy_vs_teacher": ">= 0.5",
        "ece": "< 0.5",
        "answered": ">= 1.0",
    }
    assert all(judged(found, **met).values())
    missed = {"accuracy": "< 1", "accuracy_vs_majority": ">= 0.51", "rouge_l": ">= 0", "accuracy_vs_old": ">= -1"}
    assert not any(judged(found, **missed).values())
    assert [one.told() for one in judge(found, {"test.brier": "<= 2", "other.brier": "<= 2"})][1] == (
        "other: brier is not known, wanted <= 2: failed"
    )


@pytest.mark.parametrize("gate", ["accuracy", "accuracy = 1", "accuracy >= high", "acuracy >= 0.5", "accuracy >= nan"])
def test_a_gate_that_is_none_is_one_line(gate: str) -> None:
    with pytest.raises(InputError, match=r"^--gate .*(no condition|unknown figure)"):
        gates.read([gate])


@given(st.floats(-2, 2), st.sampled_from(["<", "<=", ">", ">="]), st.sampled_from(["accuracy", "ece", "brier"]))
def test_a_gate_is_what_it_says(measured: tuple[Path, Any], limit: float, sign: str, figure: str) -> None:
    found = figures(measured[0])
    student = found.eval_sets["test"].models["student"]
    assert student.calibration is not None
    value = {"accuracy": student.accuracy, "ece": student.calibration.ece, "brier": student.calibration.brier}[figure]
    (verdict,) = judge(found, gates.read([f"{figure} {sign} {limit!r}"]))
    wanted = {"<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit}[sign]
    assert verdict.passed == wanted


# Nearest neighbour


@given(st.lists(st.text("abc ", min_size=1, max_size=12), min_size=1, max_size=20))
def test_a_training_row_is_nearest_to_itself(texts: list[str]) -> None:
    training = [(text, f"label {' '.join(text.split())}") for text in texts]
    found = nearest.labels(texts, training)
    said = {label for _, label in training}
    for text, label in zip(texts, found, strict=True):
        assert label in said
        if len(text.split()) > 1:
            assert sorted(label.removeprefix("label ").split()) == sorted(text.split())


def test_the_nearest_row_shares_most_of_what_is_rare() -> None:
    training = [("the late goal sinks the leaders", "sports"), ("the bread is dear and the soup is late", "food")]
    assert nearest.labels(["a goal", "the soup", "zzz"], training) == ["sports", "food", "sports"]
    assert nearest.labels(["goal"], [("!!", "odd"), ("??", "even")]) == ["odd"]
    with pytest.raises(ValueError, match="no training rows"):
        nearest.labels(["goal"], [])


# Any model on any file


def alone(students: Path, eval_set: EvalSet, **settings: Any) -> SetMetrics:
    found, _ = evaluate_models({"student": str(students / "student")}, {"test": eval_set}, latency=0, **settings)
    return found.eval_sets["test"]


def test_a_model_alone(prepared: Config, students: Path, tmp_path: Path) -> None:
    models = {name: str(students / name) for name in ("student", "baseline")}
    sets = {"test": prepared.eval_sets["test"]}
    found, costs = evaluate_models(models, sets, labels=["sports", "food"], answers_in=tmp_path / "answers")
    measured = found.eval_sets["test"]
    student = measured.models["student"]
    assert (student.rows, student.correct, student.accuracy, student.macro_f1) == (6, 6, 1.0, 1.0)
    assert measured.dropped == 2
    assert [(one.first, one.second, one.only_first) for one in measured.comparisons] == [("student", "baseline", 6)]
    assert (costs.models["student"].throughput or 0) > 0
    assert student.parameters == answering.load(models["student"]).parameters
    json.dumps(found.model_dump(mode="json"))


def test_open_answers_have_no_confusion_matrix(prepared: Config, students: Path) -> None:
    found = alone(students, prepared.eval_sets["test"])
    student = found.models["student"]
    assert (student.rows, student.correct) == (7, 6)  # 'gardening' is a truth like any other here
    assert (student.macro_f1, student.confusion, found.classes, student.calibration) == (None, [], [], None)
    assert student.rouge_l is not None and student.rouge_l.value == pytest.approx(6 / 7)
    assert student.chrf is not None and student.chrf.value > 6 / 7 - 1e-9
    assert student.exact_match == pytest.approx(6 / 7)


def test_what_cannot_be_measured_is_one_line(prepared: Config, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name"):
        evaluate_models({"x": str(tmp_path / "nowhere")}, {"test": prepared.eval_sets["test"]})
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"text": "soup", "topic": ""}])
    rows = EvalSet(path=path, input="{{ text }}", gold="topic", choices=None, id=None)
    with pytest.raises(InputError, match="none of 1 rows has a usable true label"):
        evaluate_models({"x": str(tmp_path)}, {"test": rows})


def test_majority_is_the_most_frequent_label_of_the_training_rows(prepared: Config, measured: tuple[Path, Any]) -> None:
    shard = outputs.current(prepared.run, "shard")
    assert shard is not None
    rows = [row for row in outputs.read(shard, TrainingRow) if row.task == "label" and row.split == "train"]
    counts = {topic: sum(row.completion == topic for row in rows) for topic in TOPICS}
    majority = figures(measured[0]).eval_sets["test"].majority
    assert majority == min(counts, key=lambda topic: (-counts[topic], topic))
