"""The student before training: where it comes from, and how much of it is kept.

    student: embedded                             # or a checkpoint folder, or a name on the Hub: owner/name, owner/name@revision
    student: {from: embedded, layers: 8}          # 8 of its layers, evenly spaced, the first and the last among them
    student: {from: embedded, layers: [0, 1, 29]} # exactly these

How rows become its tokens is its `formats.Format`.

Limits: causal and encoder-decoder language models of transformers whose weights lie in safetensors files; no code from a checkpoint is
run. Weights are held in float32. A local folder's path starts where the command runs.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from pipeline import embedded, foreign, terms
from pipeline.cut import cut
from pipeline.files import InputError, plain, sha256
from pipeline.progress import say_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "embedded"


class StudentSettings(BaseModel):
    """A model to start from, and how many (or which) of its layers are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)

    source: str = Field(
        EMBEDDED, alias="from", min_length=1, description="'embedded', a checkpoint folder or a Hub name"
    )
    layers: Annotated[int, Field(gt=0)] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = (
        None
    )


def _settings(value: object) -> object:
    return {"from": value} if isinstance(value, str) else value


Student = Annotated[StudentSettings, BeforeValidator(_settings)]
"""A student as settings name it: a bare string is its source."""


def identity(student: StudentSettings) -> dict[str, Any]:
    """What the student's source resolves to now: a digest, each file's SHA-256, or the commit on the Hub. Raises InputError.

    Files are read whole (2 GB/s); a Hub name costs one small request, or none where it is cached and the machine is offline.
    """
    if student.source == EMBEDDED:
        return {"from": EMBEDDED, **embedded.identity()}
    folder = _local(student.source)
    if folder is not None:
        files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
        return {"from": folder.name, "files": {file.name: sha256(file) for file in files}}
    repository, revision = _hub(student.source)
    return {"from": repository, "revision": revision}


def facts(student: StudentSettings, identity: Mapping[str, Any]) -> dict[str, JsonValue]:
    """What a manifest says of the student's start beside its identity: licence, SHA-256 of its files or commit on the Hub, layers kept.

    Its licence is known of the embedded model and of a Hub repository that the table of terms has.
    """
    known, files = terms.UNKNOWN, identity.get("files")
    if student.source == EMBEDDED:
        known, files = terms.of_embedded(), {**embedded.files()}
    elif files is None:
        known = terms.of_repository(str(identity["from"]))
    found: dict[str, JsonValue] = {"license": known.license, "revision": identity.get("revision"), "files": files}
    return {**found, "layers": [*student.layers] if isinstance(student.layers, list) else student.layers}


def load(student: StudentSettings) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, str]":
    """The model in float32, cut where that is asked for, its tokenizer, and the name of the type its weights were stored in.

    Whether it is an encoder-decoder is told by ``model.config.is_encoder_decoder``. A tokenizer without a pad token gets its end token as
    one, and a line says so. Raises InputError where the source cannot be used as a student.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    name = plain(student.source)
    where: dict[str, Any] = {"trust_remote_code": False}
    if student.source == EMBEDDED:
        source = str(embedded.folder())
    elif (folder := _local(student.source)) is not None:
        source = str(folder)
    else:
        source, where["revision"] = _hub(student.source)
    try:
        config = AutoConfig.from_pretrained(source, **where)
        stored = str(config.dtype or torch.float32).removeprefix("torch.")
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model, told = kind.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **where
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise InputError(f"train.student: {name}: {foreign.told(error, source) or _problem(error)}") from None
    if told["missing_keys"]:
        lacking = sorted(told["missing_keys"])
        shown = plain(", ".join(lacking[:3]), 160) + (", .." if len(lacking) > 3 else "")
        raise InputError(
            f"train.student: {name}: {len(lacking):,} of its weights are not in its files ({shown}); name a whole language model"
        )
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"train.student: {name}: its tokenizer has no end-of-sequence token, so it could not learn to stop"
        )
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        raise InputError(
            f"train.student: {name}: config.json names no decoder_start_token_id, so its decoder could not begin; add it there"
        )
    words = model.get_input_embeddings().num_embeddings
    if max(tokenizer.get_vocab().values()) >= words:
        raise InputError(
            f"train.student: {name}: its tokenizer has tokens beyond the model's {words:,}; they do not belong together"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked everywhere; it only lets batches be made
        _say_once(f"train: {name} has no pad token; its end token pads")
    if student.layers is not None:
        model = cut(model, student.layers, name)
    return model, tokenizer, stored


@cache
def _say_once(line: str) -> None:
    """A line on the student, which is loaded anew for each model that starts from it."""
    say_line(line)


def _problem(error: Exception) -> str:
    """Why a student could not be loaded and what to do, in the words of this program where they are known."""
    said = str(error)
    if isinstance(error, OSError) and "model.safetensors" in said:
        return foreign.NO_SAFETENSORS
    return f"cannot be loaded ({plain(said, 160)}); name a causal or an encoder-decoder language model"


def _local(source: str) -> Path | None:
    """The folder that ``source`` names, or None where it can only be a Hub name."""
    folder = Path(source).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise InputError(
            f"train.student: {plain(source)}: no config.json in this folder; name the folder of a checkpoint"
        )
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise InputError(
            f"train.student: {plain(source)}: no such folder; name a checkpoint folder, a Hub name or '{EMBEDDED}'"
        )
    return None


def _hub(source: str) -> tuple[str, str]:
    """Repository and commit of a Hub name."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = source.partition("@")
    try:
        config = hf_hub_download(repository, "config.json", revision=revision or None)
    except HFValidationError:
        raise InputError(
            f"train.student: {plain(source)}: no such folder, and not a Hub name either; known: '{EMBEDDED}'"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = plain(str(error).strip().partition("\n")[0], 160)
        raise InputError(
            f"train.student: {plain(source)}: neither a folder nor to be had from the Hub ({reason})"
        ) from None
    return repository, Path(config).parent.name


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' notes to developers; errors are raised as ever."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packing = logging.getLogger("bitsandbytes")  # where it is installed, TRL and peft import it, and it complains
        packing_level = packing.level
        packing.setLevel(logging.ERROR)
        import datasets
        from transformers.utils import logging as verbosity

        level, bars = verbosity.get_verbosity(), verbosity.is_progress_bar_enabled()
        data_bars = datasets.are_progress_bars_disabled()
        verbosity.set_verbosity_error()
        verbosity.disable_progress_bar()
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            packing.setLevel(packing_level)
            verbosity.set_verbosity(level)
            if bars:
                verbosity.enable_progress_bar()
            if not data_bars:
                datasets.enable_progress_bars()
