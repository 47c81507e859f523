"""A teacher inside this process's own vLLM engine; the same code on a CPU and on GPUs.

    teacher: {backend: vllm, model: embedded, engine: {enforce_eager: true}}

``model`` is ``embedded`` (the teacher that `make setup` fetches), the folder of a checkpoint (written with ``/`` or ``.`` in front, or
existing), or a hub repository that lies in the local Hugging Face cache or whose ``revision`` is a full commit; ``adapter`` a LoRA adapter
for it. The tokenizer's chat template is applied here, and ``assistant_prefix`` follows its generation prompt; a model without one, or
``chat: false``, gets the blocks' texts one after the other. A request that cannot be asked becomes a failure of its own and never reaches
the engine: ``prompt_too_long`` (prompt and ``max_tokens`` exceed the context), ``special_token`` (the row spells one of the model's special
tokens, and could forge a turn), ``refused`` (vLLM does not take it, though it took others). The engine always has more requests than it
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
import inspect
import multiprocessing
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from itertools import count, takewhile
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final, Literal

import jinja2
from pydantic import Field, JsonValue

from pipeline import embedded
from pipeline.binding import InputPath
from pipeline.files import InputError, RunError, plain, sha256, strict_json
from pipeline.prompts import Messages
from pipeline.teachers import continuous
from pipeline.teachers.continuous import EngineDied
from pipeline.teachers.contract import Answer, Common, Failure, Request, Sampling, Teacher, further, known

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
FOLLOWS: Final = re.compile(r"\s*(?:\w+|[^\w\s]+)|\s+")
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
    engine: dict[str, JsonValue] = Field(default={}, description="arguments of vllm.LLM")
    restarts: int = Field(
        default=3, ge=0, description="deaths of the engine in a row, at its start or without a request, that are borne"
    )


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
    if settings.adapter is not None:
        _lora_rank(settings.adapter)
        found["adapter"] = {"files": _digests(sorted(settings.adapter.iterdir()))}
    return found


def counter(settings: Vllm) -> Callable[[Request], int] | None:
    """Counts with the model's own tokenizer and chat template what ``connect`` would send; 0 for a request that it would not send.

    None where vLLM would not use the tokenizer of transformers. Raises InputError where the tokenizer is not there.

    Limits: where the context's length can be known only by starting the engine, a prompt that does not fit is counted.
    """
    _quiet()
    tokenizer = _tokenizer(settings)
    if tokenizer is None:
        return None
    encode = _encoder(settings, tokenizer, _context(settings, tokenizer))

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
    more = further(sampling, REFUSED_SAMPLING)
    folder, commit = _located(settings)
    _quiet()
    try:
        import vllm
        from vllm.engine.arg_utils import EngineArgs
        from vllm.exceptions import VLLMClientError, VLLMError
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
        _templated(settings, tokenizer)
    engine: dict[str, Any] = {
        "model": str(folder) if commit is None else settings.model,
        "revision": commit,
        "tokenizer_revision": commit if "tokenizer" not in settings.engine else None,
        "enable_prefix_caching": True,
        "use_tqdm_on_load": False,
        **settings.engine,
    }
    if settings.adapter is not None:
        engine["enable_lora"] = True
        engine.setdefault("max_lora_rank", _lora_rank(settings.adapter))
    begun = False

    with _guard() as launch:

        def start() -> _Engine:
            nonlocal begun
            again, begun = begun, True
            try:
                llm, processes = launch(
                    lambda: vllm.LLM(**engine), ValueError, TypeError, RuntimeError, OSError, VLLMError
                )
            except (ValueError, TypeError, VLLMClientError) as error:
                if again:
                    raise EngineDied(f"it did not start: {_first_line(error)}") from None
                raise InputError(f"stages.sample.teacher: vLLM refuses these settings: {_first_line(error)}") from None
            except (RuntimeError, OSError, VLLMError) as error:
                if again:
                    raise EngineDied(f"it did not start: {_first_line(error)}") from None
                raise RunError(
                    f"teacher: vLLM did not start: {_first_line(error)}; VLLM_LOGGING_LEVEL=INFO in the environment shows more"
                ) from None
            return _Engine(settings, llm, processes, make_parameters)

        def apart(deaths: int, error: str) -> Answer | Failure:
            return Failure("engine_died", {"deaths": deaths, "error": error})

        with continuous.running(start, apart=apart, restarts=settings.restarts) as answers:

            def teacher(requests: Iterator[Request]) -> Iterator[tuple[Request, Answer | Failure]]:
                return answers(requests)

            yield teacher


@dataclasses.dataclass
class _Asked:
    """A request that the engine has; with its answer, once that is there and its labels are looked at."""

    number: int
    request: Request
    prompt: list[int]
    answer: Answer | None = None
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    missing: int = 0


@dataclasses.dataclass
class _Scored:
    """A label whose log-probability the engine is asked for: that of the tokens from ``first`` on, behind the prompt."""

    asked: _Asked
    label: str
    tokens: list[int]
    first: int


class _Engine:
    """vLLM's engine, as ``continuous`` wants one. What ``LLM.generate`` does with its requests is done here one request at a time."""

    def __init__(self, settings: Vllm, llm: Any, processes: list[BaseProcess], make_parameters: Any) -> None:
        import zmq
        from vllm.exceptions import VLLMClientError, VLLMError
        from vllm.inputs import tokens_input
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.exceptions import EngineDeadError

        self.tokens_input = tokens_input
        self.dead = (EngineDeadError, zmq.ZMQError)
        self.refusals = (ValueError, TypeError, RuntimeError, ArithmeticError, VLLMClientError)
        self.failures = (VLLMError, RuntimeError, ArithmeticError, OSError, zmq.ZMQError)
        self.engine = llm.llm_engine
        self.make_parameters = make_parameters
        self.tokenizer = llm.get_tokenizer()
        self.specials = _specials(self.tokenizer)
        self.context = int(self.engine.model_config.max_model_len)
        self.encode = _encoder(settings, self.tokenizer, self.context)
        # As many again wait inside the engine as it computes at once, so that it goes on while its last answers are looked at.
        self.room = 2 * int(self.engine.vllm_config.scheduler_config.max_num_seqs)
        self.lora = None if settings.adapter is None else LoRARequest("adapter", 1, str(settings.adapter.resolve()))
        self.names = count()
        self.has: dict[str, _Asked | _Scored] = {}
        self.took = False
        self.death: EngineDied | None = None
        self.end = _watch(self.engine.engine_core, processes)

    def submit(self, number: int, request: Request) -> Answer | Failure | None:
        if self.death is not None:
            raise self.death
        tokens = self.encode(request)
        if isinstance(tokens, Failure):
            return tokens
        parameters = self.make_parameters(request.sampling, request.seed)
        try:
            self._add(_Asked(number, request, tokens), tokens, parameters)
        except _Refused as refused:
            if not self.took:  # the very first: it is hardly the row
                raise InputError(f"stages.sample: vLLM refuses the request: {refused}") from None
            return Failure("refused", {"problem": str(refused)})
        self.took = True
        return None

    def step(self) -> list[tuple[int, Answer | Failure]]:
        if self.death is not None:
            raise self.death
        try:
            outputs = self.engine.step()
        except self.failures as error:
            raise self._died(error) from None
        found: list[tuple[int, Answer | Failure]] = []
        for output in outputs:
            if not output.finished:
                continue
            asked = self.has.pop(output.request_id)
            try:
                result = self._scored(asked, output) if isinstance(asked, _Scored) else self._answered(asked, output)
            except EngineDied as death:  # what else this step brought is good, and is given first
                self.death = death
                continue
            if result is not None:
                found.append(((asked.asked if isinstance(asked, _Scored) else asked).number, result))
        return found

    def close(self) -> None:
        self.has.clear()
        self.engine.engine_core.shutdown()

    def _add(self, asked: _Asked | _Scored, tokens: list[int], parameters: Any) -> None:
        """Give the engine a request. Raises _Refused where it does not take it, EngineDied."""
        name = str(next(self.names))
        self.has[name] = asked
        try:
            self.engine.add_request(name, self.tokens_input(tokens), parameters, lora_request=self.lora)
        except self.dead as error:
            raise self._died(error) from None
        except self.refusals as error:
            del self.has[name]
            raise _Refused(_first_line(error)) from None

    def _died(self, error: Exception) -> EngineDied:
        """How it died: by its process's end, where that is known, which says more than vLLM's words."""
        with suppress(TimeoutError):
            return EngineDied(self.end.result(timeout=2))
        return EngineDied(_first_line(error))

    def _answered(self, asked: _Asked, output: Any) -> Answer | Failure | None:
        """The result, or None where its labels have to be looked at first."""
        completion = output.outputs[0]
        prompt_tokens, completion_tokens = len(asked.prompt), len(completion.token_ids)
        if completion.finish_reason not in ("stop", "length"):
            return Failure(
                "not_finished", {"finish_reason": str(completion.finish_reason)}, prompt_tokens, completion_tokens
            )
        sampling = asked.request.sampling
        mean = None
        if sampling.get("logprobs") and completion_tokens:
            mean = float(completion.cumulative_logprob) / completion_tokens
        asked.answer = Answer(
            completion.text,
            completion.finish_reason,
            prompt_tokens,
            completion_tokens,
            cached_tokens=max(0, int(output.num_cached_tokens or 0)),
            mean_logprob=mean,
        )
        soft: Any = sampling.get("soft_labels")
        if soft is None:
            return asked.answer
        ended_by: str | int | None = None
        if completion.finish_reason == "stop":
            ended_by = completion.stop_reason
            if not isinstance(ended_by, str):
                ended_by = int(completion.token_ids[-1])
            elif sampling.get("include_stop_str_in_output"):
                ended_by = None
        variants = label_variants(completion.text, ended_by, soft["after"], soft["labels"], self._encode_answer)
        if variants is None or len(asked.prompt) + max(map(len, variants.values())) >= self.context:
            return asked.answer
        columns = zip(*variants.values(), strict=False)
        first = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        for label, tokens in variants.items():
            asked.scores[label] = 0.0
            if len(tokens) > first:
                asked.missing += 1
                self._score(_Scored(asked, label, tokens, first), from_cache=True)
        return None if asked.missing else dataclasses.replace(asked.answer, label_logprobs=asked.scores)

    def _encode_answer(self, text: str) -> list[int] | None:
        if self.specials.search(text):
            return None
        return [int(token) for token in self.tokenizer.encode(text, add_special_tokens=False)]

    def _score(self, scored: _Scored, *, from_cache: bool) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # vLLM by itself computes the whole prompt anew for this; only the tokens behind the last common one are wanted.
        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            prompt_logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_reading_prefix_cache=not from_cache,
            skip_clone=True,
        )
        try:
            self._add(scored, scored.asked.prompt + scored.tokens, parameters)
        except _Refused as refused:
            raise RunError(f"teacher: vLLM refuses to compute labels' log-probabilities: {refused}") from None

    def _scored(self, scored: _Scored, output: Any) -> Answer | None:
        """The answer, where this was the last of its labels."""
        asked, wanted = scored.asked, scored.tokens[scored.first :]
        # The row that foretells a token is that of the token before; rows of cached tokens are absent, or hold whatever was in memory.
        computed = len(asked.prompt) + len(scored.tokens) - 1 - int(output.num_cached_tokens or 0)
        rows = (output.prompt_logprobs or [])[-len(wanted) :]
        if computed < len(wanted) or len(rows) < len(wanted):
            self._score(scored, from_cache=False)
            return None
        asked.scores[scored.label] = sum(float(row[token].logprob) for row, token in zip(rows, wanted, strict=True))
        asked.missing -= 1
        assert asked.answer is not None
        return None if asked.missing else dataclasses.replace(asked.answer, label_logprobs=asked.scores)


class _Refused(Exception):
    """vLLM does not take a request."""


def label_variants(
    text: str,
    ended_by: str | int | None,
    after: str,
    labels: Sequence[str],
    encode: Callable[[str], list[int] | None],
) -> dict[str, list[int]] | None:
    """For each label the answer's tokens with that label in the place of its own, up to what followed that one; None without a place.

    ``ended_by`` is the stop text or token that ended the answer, None where it was cut. White space behind ``after`` is the answer's own.
    Where none of the labels stands there, it is not known what would follow, and nothing does.
    """
    place = text.rfind(after) if after else 0
    if place < 0:
        return None
    place += len(after)
    place += len(text[place:]) - len(text[place:].lstrip())
    there = [label for label in labels if _stands(label, text, place)]
    follows: str = ""
    ender: list[int] = []
    if there:
        end = place + max(map(len, there))
        rest = text[end:] + (ended_by if isinstance(ended_by, str) else "")
        found = FOLLOWS.match(rest)
        if found:
            follows = found[0]
        elif isinstance(ended_by, int):
            ender = [ended_by]
    variants: dict[str, list[int]] = {}
    for label in labels:
        tokens = encode(text[:place] + label + follows)
        if tokens is None:
            return None
        variants[label] = tokens + ender
    return variants


def _stands(label: str, text: str, place: int) -> bool:
    """Whether the label stands there, and not just as the beginning of a longer word."""
    end = place + len(label)
    return text.startswith(label, place) and not (label[-1:].isalnum() and text[end : end + 1].isalnum())


def _located(settings: Vllm) -> tuple[Path, str | None]:
    """The model's folder (or GGUF file), or, for a hub repository, the commit it is taken at. Raises InputError."""
    path = Path(settings.model).expanduser()
    where = "stages.sample.teacher"
    if settings.model == EMBEDDED or path.exists() or settings.model.startswith(("/", ".", "~")):
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
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    reference = cache / f"models--{settings.model.replace('/', '--')}" / "refs" / asked
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
        raise InputError(
            f"stages.sample.teacher: {plain(str(source))}: its tokenizer cannot be loaded: {_first_line(error)}; "
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


def _quiet() -> None:
    """The environment of vLLM, where the user has not set it otherwise."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # those of the engine's processes
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB; vLLM would take a good part of the machine
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # A forked engine would hold the store's lock for as long as it lives.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")


GUARD: Final = """
import os, signal, sys
handles = []
for line in sys.stdin:
    try:
        handles.append(os.pidfd_open(int(line)))
    except ProcessLookupError:
        pass
for handle in handles:
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


@contextmanager
def _guard() -> Iterator[Callable[..., Any]]:
    """Gives a function that starts an engine, with its processes, which end with this block and with this process, even where it is killed.

    By themselves they would live on then, and keep their memory (vLLM 0.32). A small process waits for the end of a pipe that only this
    process holds, and then ends those it was told of: after a regular end there are none left. The start itself runs in a thread, since
    it waits in a way that Ctrl-C does not interrupt.
    """
    command = [sys.executable, "-I", "-S", "-c", GUARD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True) as guard:

        def start(make: Callable[[], Any], *expected: type[Exception]) -> tuple[Any, list[BaseProcess]]:
            told = {child.pid for child in multiprocessing.active_children()}
            processes: list[BaseProcess] = []
            made: list[Any] = []
            failed: list[Exception] = []

            def work() -> None:
                try:
                    made.append(make())
                except expected as error:
                    failed.append(error)

            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            while thread.is_alive():
                thread.join(0.1)
                for child in multiprocessing.active_children():
                    if child.pid not in told:
                        told.add(child.pid)
                        processes.append(child)
                        print(child.pid, file=guard.stdin, flush=True)
            for error in failed:
                raise error
            if not made:
                raise RunError("teacher: vLLM did not start; the error stands above")
            return made[0], processes

        yield start


def _watch(core: Any, processes: list[BaseProcess]) -> "Future[str]":
    """See to it that the end of an engine's process is told to who waits for its answers; gives how it ended, once it did.

    By itself vLLM 0.32 would let it wait for ever where the process could say nothing before its end, as after SIGKILL.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    waiting = getattr(core, "outputs_queue", None)
    end: Future[str] = Future()
    poll = select.poll()
    try:
        handles = [os.pidfd_open(process.pid) for process in processes if process.pid is not None]
    except ProcessLookupError:
        raise EngineDied("its process ended as soon as it was there") from None
    for handle in handles:
        poll.register(handle, select.POLLIN)

    def watch() -> None:
        ended = poll.poll()[0][0]
        how = "its process ended"
        with suppress(ChildProcessError):  # somebody else has asked for it
            found = os.waitid(os.P_PIDFD, ended, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if found is not None:
                by_signal = found.si_code != os.CLD_EXITED
                how += f" by {signal.Signals(found.si_status).name}" if by_signal else f" with code {found.si_status}"
        for handle in handles:
            os.close(handle)
        end.set_result(how)
        if waiting is not None:
            waiting.put(EngineDeadError())

    if handles:
        threading.Thread(target=watch, name="engine's end", daemon=True).start()
    return end


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
            raise InputError(f"stages.sample: vLLM refuses the sampling parameters: {_first_line(error)}") from None

    return make


def _encoder(settings: Vllm, tokenizer: Any, context: int | None) -> Callable[[Request], list[int] | Failure]:
    """A function from a request to its prompt's token ids, or to the failure that says why it is not asked."""
    chat = _templated(settings, tokenizer)
    spelled = _specials(tokenizer)

    def encode(request: Request) -> list[int] | Failure:
        assert request.messages is not None
        messages = request.messages
        for text in (*(message.content for message in messages.messages), messages.assistant_prefix):
            for token in spelled.findall(text):
                if token not in request.template_text or any(token in row_text for row_text in request.row_texts):
                    return Failure("special_token", {"token": token})
        if chat:
            text = _chat(tokenizer, messages) + messages.assistant_prefix
        else:
            text = "".join(message.content for message in messages.messages) + messages.assistant_prefix
        tokens = [int(token) for token in tokenizer.encode(text, add_special_tokens=not chat)]
        if context is not None and len(tokens) + request.max_tokens > context:
            return Failure(
                "prompt_too_long",
                {"prompt_tokens": len(tokens), "max_tokens": request.max_tokens, "context": context},
            )
        return tokens

    return encode


def _templated(settings: Vllm, tokenizer: Any) -> bool:
    """Whether prompts are put into the tokenizer's chat template. Raises InputError where they are to be and it has none."""
    there = getattr(tokenizer, "chat_template", None) is not None
    if settings.chat and not there:
        raise InputError(
            "stages.sample.teacher.chat: the tokenizer has no chat template; set it to false, or leave it out"
        )
    return there if settings.chat is None else settings.chat


def _specials(tokenizer: Any) -> re.Pattern[str]:
    """Finds the tokenizer's special tokens in a text."""
    special = set(tokenizer.all_special_tokens)
    special |= {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special}
    special.discard("")
    return re.compile("|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)) or r"(?!)")


def _chat(tokenizer: Any, messages: Messages) -> str:
    turns = [message.model_dump() for message in messages.messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except (jinja2.TemplateError, ValueError) as error:
        raise InputError(f"task.prompt: the model's chat template refuses the prompt: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return plain(" ".join(lines[:2]), 300) or type(error).__name__
