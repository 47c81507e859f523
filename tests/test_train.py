"""Training on a tiny random model: two layers, 32 wide, one token for each byte."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.binding import Problem, bind
from pipeline.encoding import Encoding, encode
from pipeline.files import InputError, RunError
from pipeline.formats import Format
from pipeline.outputs import Job
from pipeline.records import Drop, Trained, TrainingRow
from pipeline.student import StudentSettings, identity, load
from pipeline.train import read_shards, train, train_on_shards
from tests.models import make_model

ROOT = Path(__file__).parents[1]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


def pair(number: int, split: str = "train", **completions: str) -> list[TrainingRow]:
    """Both rows of an example whose label is the letter that fills its input."""
    letter = "ab"[number % 2]
    text = f"{letter * 9} {number}"
    said = {"label": letter, "rationale": f"It begins with {letter}."} | completions
    return [
        TrainingRow(
            id=f"r{number}/{task}",
            example=f"r{number}",
            task=task,
            split=split,
            prompt=f"[{task}] {text}",
            completion=said[task],
        )
        for task in ("label", "rationale")
    ]


def write_shards(folder: Path, rows: list[TrainingRow]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        chosen = [row for row in rows if row.split == split]
        if chosen:
            (folder / f"{split}-00000.jsonl").write_bytes(b"".join(row.line() + b"\n" for row in chosen))
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [row for number in range(24) for row in pair(number, "validation" if number >= 20 else "train")]
    return write_shards(tmp_path_factory.mktemp("data") / "shards", rows)


def run(shards: Path, out: Path, student: Path, **given: Any) -> dict[str, Any]:
    """What the command line does: check the settings, then train."""
    given = {"student": str(student), "precision": "float32", "batch_size": 4, "epochs": 1, "log_every": 1, **given}
    given.setdefault("accept_terms", "the rows are made up")
    values = {"task.targets": None, "stages.parse.label_type": None, "stages.sample.teacher.terms": None}
    bound = bind(train, given, lookup=values.__getitem__, folder=Path.cwd())
    return train_on_shards(shards, out=out, **bound)


def encoded(rows: list[TrainingRow], tokenizer: Any, limit: int, **more: Any) -> tuple[list[Any], dict[str, Any], int]:
    """What became of the rows, the examples, and how many rows were cut."""
    encoding = Encoding(
        prompt_ids=lambda text: Format().prompt_ids(tokenizer, text),
        completion_ids=lambda text: Format().completion_ids(tokenizer, text),
        tasks=more.pop("tasks", ["label", "rationale"]),
        max_length=limit,
        **more,
    )
    found = encode(rows, encoding)
    return found.fates, found.examples, found.cut


def metrics(out: Path, model: str = "student", kind: str = "loss") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["model"] == model and kind in row]


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shards: Path, tiny: Path) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("trained") / "out"
    return out, run(shards, out, tiny, epochs=16, learning_rate=1e-2)


def test_both_models_learn_and_are_normal_checkpoints(trained: tuple[Path, dict[str, Any]]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, details = trained
    for model in ("student", "baseline"):
        steps = metrics(out, model)
        assert [row["step"] for row in steps] == list(range(1, 81))
        assert steps[0]["label_loss"] > 3
        assert steps[-1]["label_loss"] < 0.1
        assert metrics(out, model, "validation_label_loss")[-1]["validation_label_loss"] < 0.1
        tokenizer = AutoTokenizer.from_pretrained(out / model)
        network = AutoModelForCausalLM.from_pretrained(out / model)
        import torch

        asked = Format().prompt_ids(tokenizer, "[label] bbbbbbbbb 21")
        said = network.generate(torch.tensor([asked]), max_new_tokens=4, do_sample=False, pad_token_id=0)[
            0, len(asked) :
        ].tolist()
        assert said == Format().completion_ids(tokenizer, "b")
        assert details["models"][model]["parameters"] == network.num_parameters()
    assert "rationale_loss" in metrics(out)[0]
    assert "rationale_loss" not in metrics(out, "baseline")[0]
    assert details["examples"] == {"train": 20, "validation": 4}
    assert details["target_tokens"] == {"label": 24 * 2, "rationale": 24 * 18}
    left = {path.name for path in out.iterdir()}
    assert left == {"student", "baseline", "metrics.jsonl", "run-train.json", "settings.json"}


def test_metrics_hold_figures_of_the_training_and_no_times(trained: tuple[Path, dict[str, Any]]) -> None:
    row = metrics(trained[0])[9]
    assert set(row) == {
        "model",
        "step",
        "epoch",
        "loss",
        "grad_norm",
        "learning_rate",
        "label_loss",
        "rationale_loss",
        "label_tokens",
        "rationale_tokens",
        "tokens",
    }
    assert (row["label_tokens"], row["rationale_tokens"]) == (4 * 2, 4 * 18)
    assert row["epoch"] == 2
    assert row["loss"] == pytest.approx(0.5 * row["label_loss"] + 0.5 * row["rationale_loss"], rel=1e-4)
    (first, *_) = metrics(trained[0], kind="validation_loss")
    fields = {
        "model",
        "step",
        "epoch",
        "validation_loss",
        "validation_label_loss",
        "validation_label_accuracy",
        "validation_rationale_loss",
        "tokens",
    }
    assert set(first) == fields
    assert first["step"] == 5


def test_the_stage_accounts_for_every_row(tmp_path: Path, shards: Path, tiny: Path) -> None:
    student = StudentSettings.model_validate({"from": str(tiny)})
    rows = train(
        Job(tmp_path, {"shard": shards}, tmp_path),
        student=student,
        epochs=0.2,
        baseline=False,
        task_targets=["label", "rationale"],
        label_type=None,
        output_terms={},
    )
    found = []
    with pytest.raises(StopIteration) as end:
        while True:
            found.append(next(rows))
    given = list(read_shards(shards))
    assert end.value.value.rows_in == len(given)
    assert found == [
        Trained(id=row.id, example=row.example, task=row.task, split=row.split, tokens=len(row.completion) + 1)
        for row in given
    ]
    assert not (tmp_path / "baseline").exists()


def test_the_first_loss_is_the_one_worked_out_with_full_logits(tmp_path: Path, shards: Path, tiny: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run(shards, tmp_path / "out", tiny, batch_size=20, alpha=0.3, baseline=False)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    losses: dict[str, list[float]] = {"label": [], "rationale": []}
    for row in read_shards(shards):
        if row.split == "train":
            prompt, completion = (
                Format().prompt_ids(tokenizer, row.prompt),
                Format().completion_ids(tokenizer, row.completion),
            )
            with torch.no_grad():
                chances = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
            losses[row.task] += [
                -chances[len(prompt) + place - 1, word].item() for place, word in enumerate(completion)
            ]
    label, rationale = (sum(losses[task]) / len(losses[task]) for task in ("label", "rationale"))
    (step,) = metrics(tmp_path / "out")
    assert step["label_loss"] == pytest.approx(label, rel=1e-4)
    assert step["rationale_loss"] == pytest.approx(rationale, rel=1e-4)
    assert step["loss"] == pytest.approx(0.3 * label + 0.7 * rationale, rel=1e-4)


def test_micro_batches_change_neither_loss_nor_weights(tmp_path: Path, tiny: Path) -> None:
    # Rationales of unlike lengths: a mean of micro-batch means would be another loss.
    rows = [row for number in range(16) for row in pair(number, rationale="because " * (1 + number % 5))]
    shards = write_shards(tmp_path / "shards", rows)
    run(shards, tmp_path / "whole", tiny, batch_size=8, accumulation=1, baseline=False)
    run(shards, tmp_path / "parts", tiny, batch_size=2, accumulation=4, baseline=False)
    whole, parts = metrics(tmp_path / "whole"), metrics(tmp_path / "parts")
    assert len(whole) == len(parts) == 2
    for one, other in zip(whole, parts, strict=True):
        for field in ("loss", "label_loss", "rationale_loss", "grad_norm", "tokens", "step", "learning_rate"):
            assert one[field] == pytest.approx(other[field], rel=1e-5), field
    trained, again = weights(tmp_path / "whole" / "student"), weights(tmp_path / "parts" / "student")
    assert all(trained[name].allclose(again[name], atol=1e-5) for name in trained)


def test_alpha_one_learns_the_labels_as_the_baseline_does(tmp_path: Path, shards: Path, tiny: Path) -> None:
    run(shards, tmp_path / "out", tiny, alpha=1.0)
    student, baseline = metrics(tmp_path / "out"), metrics(tmp_path / "out", "baseline")
    assert [row["label_loss"] for row in student] == pytest.approx([row["label_loss"] for row in baseline], rel=1e-3)
    run(shards, tmp_path / "only", tiny, targets=["label", "rationale"], alpha=0.0)
    assert metrics(tmp_path / "only")[0]["loss"] == metrics(tmp_path / "only")[0]["rationale_loss"]


def test_same_settings_give_the_same_bytes(tmp_path: Path, shards: Path, tiny: Path) -> None:
    for name in ("one", "two"):
        run(shards, tmp_path / name, tiny, baseline=False, seed=3)
    assert files(tmp_path / "one" / "student") == files(tmp_path / "two" / "student")
    assert (tmp_path / "one" / "metrics.jsonl").read_bytes() == (tmp_path / "two" / "metrics.jsonl").read_bytes()
    run(shards, tmp_path / "three", tiny, baseline=False, seed=4)
    assert metrics(tmp_path / "one") != metrics(tmp_path / "three")


def test_rows_that_cannot_be_trained_on_are_dropped_with_their_examples(tiny: Path) -> None:
    _, tokenizer, _ = load(StudentSettings.model_validate({"from": str(tiny)}))
    rows = pair(0) + pair(1, rationale="long " * 20) + pair(2)[:1] + pair(3, rationale="\n")
    fates, examples, _ = encoded(rows, tokenizer, 60)
    assert [fate.id for fate in fates] == [row.id for row in rows]
    assert [type(fate) for fate in fates] == [Trained] * 2 + [Drop] * 5
    drops = fates[2:]
    assert [drop.reason for drop in drops] == ["too_long"] * 2 + ["missing_task"] + ["empty_completion"] * 2
    sizes = {"label": len("[label] bbbbbbbbb 1\n") + 2, "rationale": len("[rationale] bbbbbbbbb 1\n") + 101}
    assert drops[0].evidence == {"tokens": sizes, "max_length": 60}
    assert drops[2].evidence == {"missing": ["rationale"]}
    assert len(examples["train"]) == 1
    at_the_limit, *_ = encoded(rows[:2], tokenizer, len("[rationale] aaaaaaaaa 0\nIt begins with a.") + 1)
    assert [type(fate) for fate in at_the_limit] == [Trained] * 2


def test_rows_that_contradict_one_another_stop_the_training(tiny: Path) -> None:
    _, tokenizer, _ = load(StudentSettings.model_validate({"from": str(tiny)}))
    with pytest.raises(InputError, match=r"r0/label.*twice"):
        encoded(pair(0) + pair(0), tokenizer, 60)
    with pytest.raises(InputError, match=r"r0.*different splits"):
        encoded([pair(0)[0], pair(0, "validation")[1]], tokenizer, 60)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.characters(exclude_categories=["Cs"])) | st.just("x<end>y"),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
def test_no_text_reaches_over_the_boundary_or_forges_an_end(tiny: Path, prompt: str, completion: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = TOKENIZERS.setdefault(tiny, AutoTokenizer.from_pretrained(tiny))
    asked, said = Format().prompt_ids(tokenizer, prompt), Format().completion_ids(tokenizer, completion)
    assert tokenizer.decode(asked) == prompt + "\n"
    assert tokenizer.decode(said[:-1]) == completion
    assert said[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in asked + said[:-1]


TOKENIZERS: dict[Path, Any] = {}


CHILD = """
import sys
from pathlib import Path
from transformers import Trainer
from tests.test_train import run
save = Trainer._save_checkpoint
def told(trainer, *arguments, **named):
    save(trainer, *arguments, **named)
    print(trainer.state.global_step, flush=True)
Trainer._save_checkpoint = told
run(*map(Path, sys.argv[1:]), epochs=8, checkpoint_seconds=0)
"""


def test_a_killed_training_goes_on_and_ends_as_if_nothing_had_happened(
    tmp_path: Path, shards: Path, tiny: Path
) -> None:
    out, whole = tmp_path / "killed", tmp_path / "whole"
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, shards, out, tiny],
        cwd=ROOT,
        env=alone,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdout is not None
    saved = [int(line) for line, _ in zip(child.stdout, range(7), strict=False)]
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert len(saved) == 7, "it ended before it was killed"
    assert not (out / "student").exists()
    half = out / "checkpoints-student" / "checkpoint-9999"  # killed while it was being written
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")

    again = run(shards, out, tiny, epochs=8, checkpoint_seconds=0)
    straight = run(shards, whole, tiny, epochs=8, checkpoint_seconds=1000)

    assert again == straight
    assert [row["step"] for row in metrics(out)] == list(range(1, 41))
    assert (out / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for model in ("student", "baseline"):
        assert files(out / model) == files(whole / model)
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


def test_a_finished_student_is_not_trained_again(
    tmp_path: Path, shards: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(shards, tmp_path / "out", tiny)
    before = files(tmp_path / "out" / "student")
    shutil.rmtree(tmp_path / "out" / "baseline")
    capsys.readouterr()
    assert run(shards, tmp_path / "out", tiny) == first
    said = capsys.readouterr()
    assert "train baseline" in said.err
    assert "train student" not in said.err
    assert said.out == ""
    assert files(tmp_path / "out" / "student") == before


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path, shards: Path, tiny: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        run(shards, tmp_path / "mine", tiny)
    run(shards, tmp_path / "out", tiny, baseline=False)
    with pytest.raises(InputError, match="other settings"):
        run(shards, tmp_path / "out", tiny, baseline=False, alpha=0.9)


def test_without_validation_rows_and_with_one_task(tmp_path: Path, tiny: Path) -> None:
    rows = [pair(number)[0].changed(task="response") for number in range(5)]
    details = run(write_shards(tmp_path / "shards", rows), tmp_path / "out", tiny)
    assert set(details["models"]) == {"student"}
    assert set(metrics(tmp_path / "out")[0]) == {
        "model",
        "step",
        "epoch",
        "loss",
        "grad_norm",
        "learning_rate",
        "response_loss",
        "response_tokens",
        "tokens",
    }
    assert not metrics(tmp_path / "out", kind="validation_loss")
    assert metrics(tmp_path / "out")[0]["loss"] == metrics(tmp_path / "out")[0]["response_loss"]


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path, shards: Path, tiny: Path) -> None:
    with pytest.raises(RunError, match=r"step .*learning_rate"):
        run(shards, tmp_path / "out", tiny, learning_rate=1e30, baseline=False)
    assert not (tmp_path / "out" / "student").exists()


def test_what_cannot_be_used_is_named(tmp_path: Path, shards: Path, tiny: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"max_length: 512 is more than the student's context of 256"):
        run(shards, tmp_path / "a", tiny, max_length=512)
    with pytest.raises(InputError, match="no train-"):
        run(empty, tmp_path / "b", tiny)
    with pytest.raises(InputError, match=r"no config\.json"):
        run(shards, tmp_path / "c", empty)
    with pytest.raises(InputError, match="no such folder"):
        run(shards, tmp_path / "d", tmp_path / "absent")
    with pytest.raises(InputError, match=r"no rows to train on are left of 48 \(too_long 48\)"):
        run(shards, tmp_path / "e", tiny, max_length=5)
    bad = write_shards(tmp_path / "bad", pair(0))
    with (bad / "train-00000.jsonl").open("a") as file:
        file.write('{"id": "x"}\n')
    with pytest.raises(InputError, match=r"train-00000\.jsonl:3: .*`example`"):
        run(bad, tmp_path / "f", tiny)
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot be loaded"):
        run(shards, tmp_path / "g", broken)


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"alpha": 1.5}, "alpha"),
        ({"epochs": 0}, "epochs"),
        ({"student": {"from": "embedded", "layers": 0}}, "student"),
        ({"student": {"from": "embedded", "layer": 8}}, "student"),
        ({"batch_size": 0}, "batch_size"),
        ({"precision": "half"}, "precision"),
        ({"learning_rat": 1e-4}, "learning_rat"),
    ],
)
def test_settings_are_checked(given: dict[str, Any], where: str) -> None:
    with pytest.raises(Problem) as problem:
        bind(train, given, lookup=lambda path: ["label"], folder=Path())
    assert problem.value.where[0] == where


def test_a_student_can_be_named_in_one_word_or_with_its_layers() -> None:
    def bound(student: object) -> StudentSettings:
        found: StudentSettings = bind(train, {"student": student}, lookup=lambda path: ["label"], folder=Path())[
            "student"
        ]
        return found

    assert bound("owner/name") == StudentSettings.model_validate({"from": "owner/name"})
    assert bound({"from": "embedded", "layers": 8}).layers == 8
    assert bound({"from": "embedded", "layers": [0, 5]}).model_dump() == {"from": "embedded", "layers": [0, 5]}


def test_the_identity_follows_the_files(tmp_path: Path, tiny: Path) -> None:
    copy = shutil.copytree(tiny, tmp_path / "tiny")
    settings = StudentSettings.model_validate({"from": str(copy)})
    before = identity(settings)
    assert before == identity(StudentSettings.model_validate({"from": str(tiny)}))
    assert before["files"]["model.safetensors"]
    with (copy / "config.json").open("a") as file:
        file.write(" ")
    assert identity(settings) != before


def test_a_model_from_the_hub_is_pinned_to_its_commit(tmp_path: Path, tiny: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--tiny"
    shutil.copytree(tiny, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = (
        "from pipeline.student import *\n"
        "student = StudentSettings.model_validate({'from': 'owner/tiny', 'layers': 1})\n"
        "print(identity(student), load(student)[0].config.num_hidden_layers)\n"
        "try: identity(StudentSettings.model_validate({'from': 'owner/other'}))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    offline = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    said = subprocess.run(
        [sys.executable, "-c", code], env=offline, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    first, second = said.splitlines()
    assert first == f"{{'from': 'owner/tiny', 'revision': '{commit}'}} 1"
    assert second.startswith("InputError train.student: owner/other: ")
