"""A training's dry run shows the very batch that the trainer takes first, and what of it is learned."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline import printed
from pipeline.binding import bind
from pipeline.cli import app
from pipeline.files import InputError
from pipeline.preview import Masked, Preview, preview_of_shards, texts_of
from pipeline.runner import run as run_stages
from pipeline.train import train
from tests.models import make_bart, make_model, make_tokenizer
from tests.test_train import metrics, pair, run, write_shards

HOSTILE = "é€\u202e\x1b[31m [red]hi[/red]\nr9 label ⟦all⟧ ⟨<end>⟩ <end> ↵ |"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "decoder")
    make_bart(folder / "encoder_decoder")
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve examples with rationales of unlike lengths, a hostile one among them."""
    rows = [row for number in range(11) for row in pair(number, rationale="because " * (1 + number % 4))]
    return write_shards(tmp_path_factory.mktemp("data") / "shards", [*rows, *pair(11, rationale=HOSTILE)])


def looked_at(shards: Path, student: Path, **given: Any) -> Preview:
    given = {"student": str(student), "precision": "float32", "batch_size": 4, "epochs": 1, "log_every": 1, **given}
    values = {"task.targets": None, "stages.parse.label_type": None, "stages.sample.teacher.terms": None}
    return preview_of_shards(shards, bind(train, given, lookup=values.__getitem__, folder=Path.cwd()))


def text(sequence: Masked, *, learned: bool) -> str:
    return "".join(piece.text for piece in sequence.pieces if piece.learned == learned)


def tokens(sequences: list[Masked]) -> list[tuple[list[int], int, str]]:
    """As the trainer has them: ids, number of targets, task."""
    return [
        ([piece.token for piece in one.pieces], sum(piece.learned for piece in one.pieces), one.task)
        for one in sequences
    ]


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
@pytest.mark.parametrize("more", [{"seed": 5}, {"accumulation": 2, "packing": False}], ids=["packed", "accumulated"])
def test_the_batch_is_the_one_that_the_trainer_takes_first(
    tmp_path: Path, models: Path, shards: Path, kind: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline import trainer

    found = looked_at(shards, models / kind, **more)
    name = "collate" if kind == "decoder" else "collate_pairs"
    real, seen = getattr(trainer, name), []

    def spy(items: Any, *layout: Any) -> Any:
        batch = real(items, *layout)
        seen.append((items, batch))
        return batch

    monkeypatch.setattr(trainer, name, spy)
    run(shards, tmp_path / "out", models / kind, **more)

    for model, start in zip(found.models, (0, len(seen) // 2), strict=True):
        items, batch = seen[start]
        tasks = [one.task for one in model.tasks]
        given = [
            (list(ids), targets, tasks[task])
            for item in items
            for ids, targets, task in zip(item["ids"], item["targets"], item["tasks"], strict=True)
        ]
        assert given == tokens([one for one in found.sequences if one.task in tasks])
        read = batch["attention_mask"].sum() + ((batch["labels"] != -100).sum() if kind != "decoder" else 0)
        positions = batch["input_ids"].numel() + (batch["labels"].numel() if kind != "decoder" else 0)
        assert (model.batch.rows, model.batch.positions) == (len(batch["input_ids"]), positions)
        assert model.batch.padding == pytest.approx(1 - read.item() / positions)
        assert model.batch.packed == ("position_ids" in batch) == (kind == "decoder" and more.get("packing", True))
        assert (model.batch.examples, model.batch.sequences) == (4, 4 * len(tasks))
        steps = metrics(tmp_path / "out", model.name)
        assert model.steps == len(steps)
        for one in model.tasks:
            assert one.first_step == steps[0][f"{one.task}_tokens"]
            assert one.epoch == sum(step[f"{one.task}_tokens"] for step in steps)
            assert one.sequences == 12
    assert [[one.weight for one in model.tasks] for model in found.models] == [[0.5, 0.5], [1.0]]


def test_what_is_learned_is_the_completion_and_the_end_token(models: Path, shards: Path) -> None:
    rows = {
        (row["example"], row["task"]): row
        for row in map(json.loads, (shards / "train-00000.jsonl").read_text().split("\n")[:-1])
    }
    found = looked_at(shards, models / "decoder", batch_size=64)
    assert len(found.sequences) == len(rows) == 24
    for one in found.sequences:
        row = rows.pop((one.example, one.task))
        assert text(one, learned=True) == row["completion"] + "<end>"
        assert text(one, learned=False) == row["prompt"] + "\n"
        assert [piece.special for piece in one.pieces] == [False] * (len(one.pieces) - 1) + [True]
    assert not rows


def test_a_distribution_is_shown_as_its_labels_with_their_shares(tmp_path: Path, models: Path) -> None:
    soft = [row.changed(distribution='{"a": 0.75, "bb": 0.25}') for number in range(3) for row in pair(number)[:1]]
    shards = write_shards(tmp_path / "shards", soft)
    found = looked_at(shards, models / "decoder")
    assert [(text(one, learned=True), one.share) for one in found.sequences] == [
        ("a<end>", 0.75),
        ("bb<end>", 0.25),
    ] * 3
    (label,) = found.models[0].tasks
    run(shards, tmp_path / "out", models / "decoder")
    assert label.first_step == label.epoch == metrics(tmp_path / "out")[0]["label_tokens"] == 3 * (0.75 * 2 + 0.25 * 3)


def test_rows_that_are_not_trained_are_counted_by_reason(tmp_path: Path, models: Path) -> None:
    long = "long " * 20
    rows = [*pair(0), *pair(1), *pair(2, rationale=long), *pair(3)[:1], *pair(4, "validation"), *pair(5, rationale=" ")]
    shards = write_shards(tmp_path / "shards", rows)
    found = looked_at(shards, models / "decoder", max_length=60)
    assert found.rows == {"train": 4, "validation": 2}
    assert found.dropped == {"too_long": 2, "empty_completion": 2, "missing_task": 1}
    assert found.examples == {"train": 2, "validation": 1}
    label, rationale = found.models[0].tasks
    assert (label.longest, label.mean_length) == (22, 22.0)
    assert (rationale.longest, rationale.mean_length) == (42, 42.0)

    found = looked_at(shards, models / "decoder", max_length=60, too_long="cut", targets=["rationale"])
    assert found.cut == 1
    assert found.dropped == {"not_a_target": 6, "empty_completion": 1}
    (short,) = [one for one in found.sequences if one.example == "r2"]
    assert text(short, learned=True) == long[: 60 - len("[rationale] aaaaaaaaa 2\n")]  # its end is not learned


def test_what_cannot_be_trained_is_told_as_by_a_training(tmp_path: Path, models: Path, shards: Path) -> None:
    with pytest.raises(InputError, match=r"no rows to train on are left of 24 \(too_long 24\)"):
        looked_at(shards, models / "decoder", max_length=5)
    with pytest.raises(InputError, match=r"batch_size: 4 examples do not divide among 3 processes"):
        looked_at(shards, models / "decoder", processes=3)
    with pytest.raises(InputError, match=r"targets: response: no row has this task"):
        looked_at(shards, models / "decoder", targets=["response"])
    with pytest.raises(InputError, match="no such folder"):
        looked_at(shards, tmp_path / "absent")


def test_each_of_several_processes_lays_out_its_own_part(models: Path, shards: Path) -> None:
    given = {"packing": False, "batch_size": 6}
    one, two = (looked_at(shards, models / "decoder", processes=number, **given) for number in (1, 2))
    assert one.sequences == two.sequences
    assert one.models[0].tasks == two.models[0].tasks
    lengths = [len(sequence.pieces) for sequence in two.sequences]
    assert one.models[0].batch.positions == 12 * max(lengths)
    assert two.models[0].batch.positions == 6 * max(lengths[:6]) + 6 * max(lengths[6:])
    assert max(lengths[:6]) != max(lengths[6:])


@cache
def bytes_tokenizer() -> Any:
    return make_tokenizer(["<end>"], eos_token="<end>")


@settings(max_examples=100)
@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text("a�é€😀\n"))
def test_pieces_are_the_text_whatever_characters_are_made_of(said: str) -> None:
    ids = bytes_tokenizer()(said, add_special_tokens=False)["input_ids"]
    texts = texts_of(bytes_tokenizer(), ids)
    assert len(texts) == len(ids) == len(said.encode())
    assert "".join(texts) == said
    if "�" not in said:
        assert [part for part in texts if part] == list(said)


def test_characters_that_are_cut_off_are_shown_as_such() -> None:
    ids = bytes_tokenizer()("a€", add_special_tokens=False)["input_ids"]
    assert texts_of(bytes_tokenizer(), ids[:-1]) == ["a", "", "�"]
    assert texts_of(bytes_tokenizer(), []) == []


@pytest.mark.parametrize("colours", [False, True])
def test_hostile_text_neither_drives_a_terminal_nor_passes_for_a_mark(
    models: Path, shards: Path, colours: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    if colours:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    rows = pair(9, rationale=HOSTILE)
    rows = [row.changed(example="r9\x1b[2J", id=f"r9\x1b[2J/{row.task}") for row in rows]
    found = looked_at(write_shards(shards.parent / f"hostile{colours}", rows), models / "decoder")
    printed.first_batch(found, ["stepdistill", "train", "--out", "a b"])
    shown = capsys.readouterr().out
    inert = r"é€\x202e\x1b[31m [red]hi[/red]↵r9 label \u27e6all\u27e7 \u27e8<end>\u27e9 <end> \u21b5 |"
    lines = [line.strip() for line in shown.split("\n")]
    if colours:
        assert f"\x1b[2m[rationale] bbbbbbbbb 9↵\x1b[0m|\x1b[1;32m{inert}\x1b[0m\x1b[1;7;32m⟨<end>⟩\x1b[0m" in lines
        assert "⟦" not in shown
    else:
        assert f"[rationale] bbbbbbbbb 9↵|⟦{inert}⟨<end>⟩⟧" in lines
        assert "\x1b" not in shown
    assert "\x1b[31m" not in shown
    assert r"r9\x1b[2J rationale" in lines
    assert lines[-2] == "to train: stepdistill train --out 'a b'"


def test_only_a_few_examples_are_shown_and_json_has_all(tmp_path: Path, models: Path, shards: Path) -> None:
    asked = ["train", "--shards", str(shards), "--student", str(models / "decoder"), "--out", str(tmp_path / "out")]
    asked += ["--set", "batch_size=8", "--dry-run"]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    found = looked_at(shards, models / "decoder", batch_size=8, baseline=False, precision="auto", epochs=3)
    first = list(dict.fromkeys(one.example for one in found.sequences))
    assert [line.split()[0] for line in lines if line.endswith((" label", " rationale"))] == [
        name for name in first[:4] for _ in range(2)
    ]
    assert sum(line.startswith("a training would be refused: ") for line in lines) == 1
    assert lines[-1] == f"to train: stepdistill {' '.join(asked[:-1])}"

    told = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    assert {one["example"] for one in told["sequences"]} == set(first)
    assert len(told["sequences"]) == 16
    assert told["sequences"][0]["pieces"][-1] == {"token": 256, "text": "<end>", "learned": True, "special": True}
    assert "--accept-terms" in told["refused"]
    permitted = json.loads(CliRunner().invoke(app, [*asked, "--json", "--accept-terms", "ours"]).stdout)
    assert permitted == {**told, "refused": None}
    assert list(tmp_path.iterdir()) == []


def test_a_project_s_shards_are_looked_at_beside_its_filters(project: Path, models: Path) -> None:
    project.write_text(project.read_text().replace("train: false", f"train: {{student: {models / 'decoder'}}}"))
    asked = ["run", "train", "quality", "-c", str(project), "--dry-run", "--json"]
    early = CliRunner().invoke(app, asked)
    assert isinstance(early.exception, InputError)
    assert "train: reads shard, which has no result yet" in str(early.exception)
    run_stages(project, until="shard")
    before = {path: path.stat().st_mtime_ns for path in project.parent.rglob("*")}
    first, second = json.loads(CliRunner().invoke(app, asked).stdout)
    assert (first["stage"], second["stage"]) == ("train", "quality")
    assert [model["name"] for model in first["models"]] == ["student", "baseline"]
    assert f"{project}:" in first["refused"]
    shown = CliRunner().invoke(app, [*asked[:2], "-c", str(project), "--dry-run", "--set", "train.alpha=0.25"]).stdout
    assert shown.endswith(f"to train: stepdistill run train -c {project} --set train.alpha=0.25\n")
    assert {path: path.stat().st_mtime_ns for path in project.parent.rglob("*")} == before
