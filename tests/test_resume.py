"""SIGKILL in the middle of training, five times over, wherever it stands: the same weights and metrics as if nothing had happened.

A child is killed at a step, or a few file operations after it: while a checkpoint, the best weights, the metrics or the student are being
written. The moments are drawn; ``KILLED_TRAININGS_SEED=7 python -m pytest tests/test_resume.py`` draws others.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.binding import bind
from pipeline.files import InputError, RunError
from pipeline.outputs import Job
from pipeline.train import train
from tests.forked import Forked
from tests.models import make_model, make_t5
from tests.test_exact import fork_processes
from tests.test_train import files, metrics, pair, run, write_shards

SEED = int(os.environ.get("KILLED_TRAININGS_SEED", "0"))
OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [row for number in range(16) for row in pair(number, "validation" if number >= 12 else "train")]
    return write_shards(tmp_path_factory.mktemp("data") / "shards", rows)


class Kill(NamedTuple):
    """When: so many operations on files after a step of a model. In several processes either all are killed or only one is."""

    model: str
    step: int
    operations: int
    rank: str | None = None


def train_until(kill: list[Any] | None, shards: str, out: str, student: str, said: str, given: dict[str, Any]) -> None:
    """Train, and be killed; otherwise leave in the file ``said`` what is known of the models."""
    fork_processes()
    if kill is not None:
        await_death(Kill(*kill))
    details = run(Path(shards), Path(out), Path(student), **given)
    Path(said).write_text(json.dumps(details))


def await_death(kill: Kill) -> None:
    from pipeline.trainer import Pace

    reached, left = False, kill.operations

    def die() -> None:
        if reached and left <= 0 and kill.rank in (None, os.environ.get("RANK")):
            os.kill(os.getpid(), signal.SIGKILL)

    def count(event: str, details: tuple[Any, ...]) -> None:
        nonlocal left
        if reached and event in OPERATIONS:
            die()
            left -= 1

    on_step_end = Pace.on_step_end

    def counted(pace: Pace, args: Any, state: Any, control: Any, **more: Any) -> None:
        nonlocal reached
        on_step_end(pace, args, state, control, **more)
        reached = reached or (kill.model in (args.run_name, "student") and state.global_step >= kill.step)
        die()

    Pace.on_step_end = counted  # type: ignore[method-assign]
    sys.addaudithook(count)


def survives(
    forked: Forked, kills: list[Kill], shards: Path, student: Path, folder: Path, given: dict[str, Any]
) -> None:
    """Whether a training that is killed again and again ends as one that is not, and that makes no checkpoints."""
    killed, whole = folder / "killed", folder / "whole"

    def trained(out: Path, kill: Kill | None, checkpoint_seconds: int) -> int:
        places = {
            "shards": str(shards),
            "out": str(out),
            "student": str(student),
            "said": str(folder / f"{out.name}.json"),
        }
        return forked(train_until, kill=kill, given={**given, "checkpoint_seconds": checkpoint_seconds}, **places)

    for kill in kills:
        code = trained(killed, kill, 0)
        assert code if "processes" in given else code == -signal.SIGKILL, f"it was not killed at {kill}"
        assert not (killed / kill.model).exists()
    assert trained(killed, None, 0) == 0
    assert trained(whole, None, 1000) == 0
    assert (folder / "killed.json").read_text() == (folder / "whole.json").read_text()
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for model in json.loads((folder / "whole.json").read_text())["models"]:
        assert files(killed / model) == files(whole / model)
    assert {path.name for path in killed.iterdir()} == {path.name for path in whole.iterdir()}


def drawn(steps: int, kills: int, model: str = "student") -> list[Kill]:
    moments = random.Random(f"{SEED} {steps} {kills} {model}")
    return [Kill(model, step, moments.randrange(40)) for step in sorted(moments.sample(range(1, steps - 2), kills))]


@pytest.mark.slow
def test_a_decoder_and_its_baseline_are_killed_at_any_moment(tmp_path: Path, shards: Path, forked: Forked) -> None:
    # Dropout: so it also matters which random numbers come next.
    student = make_model(tmp_path / "tiny", attention_dropout=0.1)
    given = {"epochs": 5, "batch_size": 4, "attention": "eager"}
    finishing = [Kill("student", 15, 12), Kill("baseline", 15, 6)]
    kills = [*drawn(15, 5), finishing[0], *drawn(15, 1, "baseline"), finishing[1]]
    survives(forked, kills, shards, student, tmp_path, given)


@pytest.mark.slow
def test_an_encoder_decoder_is_killed_while_it_validates_keeps_the_best_and_stops_early(
    tmp_path: Path, forked: Forked
) -> None:
    # What validation asks for contradicts what is learned, so that it grows worse.
    contrary = [row for number in range(12, 16) for row in pair(number, "validation", label="ba"[number % 2])]
    shards = write_shards(tmp_path / "shards", [row for number in range(12) for row in pair(number)] + contrary)
    student = make_t5(tmp_path / "tiny", dropout_rate=0.1)
    frequent = {"evaluate_every": 2, "patience": 3, "keep": "best", "log_every": 3}
    given = {"epochs": 20, "batch_size": 2, "accumulation": 2, "learning_rate": 1e-2, "baseline": False, **frequent}
    survives(forked, drawn(16, 5), shards, student, tmp_path, given)
    validations = [step["step"] for step in metrics(tmp_path / "whole", kind="validation_loss")]
    assert 16 <= validations[-1] < 60, validations


def test_checkpoints_of_other_rows_are_refused(tmp_path: Path, shards: Path) -> None:
    student = make_model(tmp_path / "tiny")
    others = write_shards(tmp_path / "others", [row for number in range(5) for row in pair(number)])

    def train_in_stage(shards: Path, **given: Any) -> list[object]:
        asked = {"student": str(student), "precision": "float32", "epochs": 1, "baseline": False, **given}
        values = {"task.targets": None, "stages.parse.label_type": None, "stages.sample.teacher.terms": {}}
        bound = bind(train, asked, lookup=values.__getitem__, folder=tmp_path)
        return list(train(Job(tmp_path / "stage", {"shard": shards}, tmp_path), **bound))

    with pytest.raises(RunError, match="no longer a number"):
        train_in_stage(shards, epochs=9, learning_rate=1e30, log_every=1, checkpoint_seconds=0)
    assert list((tmp_path / "stage" / "checkpoints-student").glob("checkpoint-*"))
    with pytest.raises(InputError, match="stage/checkpoints-student: these checkpoints were trained on other rows"):
        train_in_stage(others)
    assert not (tmp_path / "stage" / "student").exists()

    with pytest.raises(RunError, match="no longer a number"):
        run(shards, tmp_path / "out", student, epochs=9, learning_rate=1e30, baseline=False)
    with pytest.raises(InputError, match="out: holds a training with other settings or rows; remove it"):
        run(others, tmp_path / "out", student, epochs=9, learning_rate=1e30, baseline=False)
