"""No checkpoint gets anything of its own to run: pickled weights and code are refused in one line by everything that loads a model."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import answering, embeddings, foreign, teachers
from pipeline.files import InputError
from pipeline.student import StudentSettings, identity, load, quiet
from pipeline.teachers import Server, Vllm
from tests.models import make_model

SAMPLING: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 5, "stop": [], "structured": None}


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def student(folder: Path) -> None:
    with quiet():
        load(StudentSettings.model_validate({"from": str(folder)}))


def teacher(folder: Path) -> None:
    with teachers.connect(Vllm.model_validate({"backend": "vllm", "model": str(folder)}), SAMPLING):
        pytest.fail("it started")


def count(folder: Path) -> None:
    teachers.counter(Vllm.model_validate({"backend": "vllm", "model": str(folder)}))


def server(folder: Path) -> None:
    address = {"backend": "server", "base_url": "http://127.0.0.1:1/v1", "model": "m"}
    teachers.counter(Server.model_validate({**address, "tokenizer": str(folder)}))


def embedding(folder: Path) -> None:
    embeddings.embed(["a"], model=str(folder))


def by_transformers(folder: Path) -> None:
    """As evaluate, predict and faithfulness ask a student."""
    given = identity(StudentSettings.model_validate({"from": str(folder)}))
    with answering.BACKENDS["transformers"](str(folder), given, None, "float32", "evaluate"):
        pytest.fail("it was loaded")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


def pickled(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(marker)))


def own_model(folder: Path, marker: Path) -> None:
    own = {"AutoConfig": "modeling.Config", "AutoModel": "modeling.Model", "AutoModelForCausalLM": "modeling.Model"}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "of_its_own", "auto_map": own}))
    (folder / "modeling.py").write_text(f"open({str(marker)!r}, 'w')\n")


def own_tokenizer(folder: Path, marker: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["words.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **own}))
    (folder / "words.py").write_text(f"open({str(marker)!r}, 'w')\n")


PICKLES = (
    r"it has no weights in safetensors files, and others are not read: a \.bin file can run code; convert them first$"
)
CODE = r"it needs code of its own, which is never run \(auto_map in {}\), and no setting allows it; name a model that"
MODEL, WORDS = CODE.format(r"config\.json: modeling\.Model"), CODE.format(r"tokenizer_config\.json: words\.Own")


@pytest.mark.parametrize(
    ("spoil", "loads", "told"),
    [
        (pickled, student, PICKLES),
        (pickled, teacher, PICKLES),
        (pickled, embedding, PICKLES),
        (pickled, by_transformers, PICKLES),
        (own_model, student, MODEL),
        (own_model, embedding, MODEL),
        (own_model, by_transformers, MODEL),
        (own_tokenizer, student, WORDS),
        (own_tokenizer, count, WORDS),
        (own_tokenizer, server, WORDS),
        (own_tokenizer, embedding, WORDS),
        (own_tokenizer, by_transformers, WORDS),
    ],
    ids=lambda given: getattr(given, "__name__", ""),
)
def test_nothing_of_a_checkpoints_own_is_run_and_one_line_says_what_it_wanted(
    tmp_path: Path, marker: Path, spoil: Callable[[Path, Path], None], loads: Callable[[Path], None], told: str
) -> None:
    folder = make_model(tmp_path / "model")
    spoil(folder, marker)
    with pytest.raises(InputError, match=told) as error:
        loads(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    assert not marker.exists()


def test_the_pickle_of_these_tests_does_make_its_file(tmp_path: Path, marker: Path) -> None:
    pickle.loads(pickle.dumps(Touch(marker)))
    assert marker.exists()


def test_weights_in_another_form_cannot_be_asked_for_either(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    for form in ("auto", "pt", "npcache", "tensorizer"):
        settings = Vllm.model_validate({"backend": "vllm", "model": str(folder), "engine": {"load_format": form}})
        with (
            pytest.raises(InputError, match=r"engine\.load_format: weights of another form can run code"),
            teachers.connect(settings, SAMPLING),
        ):
            pytest.fail("it started")


def test_code_that_transformers_can_do_without_is_no_hindrance(tmp_path: Path, marker: Path) -> None:
    folder = make_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "modeling.Model"}}))
    (folder / "modeling.py").write_text(f"open({str(marker)!r}, 'w')\n")
    student(folder)
    assert not marker.exists()
    assert foreign.told(ValueError("something else"), folder) is None
    assert foreign.weights(folder) is None
