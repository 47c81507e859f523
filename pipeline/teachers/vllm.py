"""A teacher inside this process's own vLLM engine; the same code on a CPU and on GPUs.

    teacher: {backend: vllm, model: embedded, engine: {enforce_eager: true}}

``model`` is ``embedded`` (the teacher that `make setup` fetches), the folder of a checkpoint (written with ``/`` or ``.`` in front, or
existing), or a hub repository that lies in the local Hugging Face cache or whose ``revision`` is a full commit. The tokenizer's chat
template is applied here, and ``assistant_prefix`` follows its generation prompt; a model without one gets the blocks' texts one after
the other. A request that cannot be asked becomes a failure of its own and never reaches the engine: ``prompt_too_long`` (prompt and
``max_tokens`` exceed the context) and ``special_token`` (the row spells one of the model's special tokens, and could forge a turn).

Limits: the same request can get another answer where its batch is another one (rounding); the store keeps the first. Chat templates
that print today's date change the prompt behind the request key's back. Code that comes with a checkpoint is never run.
"""

import dataclasses
import inspect
import multiprocessing
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import jinja2
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pipeline import embedded
from pipeline.files import InputError, RunError, plain, sha256
from pipeline.prompts import Messages
from pipeline.teachers.contract import Answer, Failure, Request, Sampling, Teacher, further, known

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
    "hf_token": "settings are no place for secrets; set HF_TOKEN in the environment",
}
REFUSED_SAMPLING: Final = {
    "n": "set stages.sample.n",
    "seed": "set stages.sample.seed",
    "structured_outputs": "set stages.sample.regex",
    **dict.fromkeys(("logprobs", "prompt_logprobs", "flat_logprobs"), "log-probabilities are not stored"),
    **dict.fromkeys(
        ("detokenize", "output_kind", "skip_clone", "output_text_buffer_length"), "the text is needed whole"
    ),
}


class Vllm(BaseModel):
    """Settings. ``engine`` takes any argument of ``vllm.LLM`` beside the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Literal["vllm"]
    model: str = Field(min_length=1)
    revision: str | None = Field(None, description="branch, tag or commit of a hub repository")
    engine: dict[str, JsonValue] = {}


def name(settings: Vllm) -> str:
    """What responses and reports call this teacher."""
    return settings.model


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
        files = [folder] if folder.is_file() else sorted(folder.iterdir())
        model = {"files": {file.name: sha256(file) for file in files if file.is_file() and _counts(file)}}
    engine = {key: value for key, value in settings.engine.items() if key not in NOT_IN_IDENTITY}
    return {"backend": "vllm", "model": model, "engine": engine}


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
    make_parameters = _parameters(vllm, sampling, more)
    make_parameters(0)
    engine: dict[str, Any] = {
        "model": str(folder) if commit is None else settings.model,
        "revision": commit,
        "tokenizer_revision": commit if "tokenizer" not in settings.engine else None,
        "enable_prefix_caching": True,
        "use_tqdm_on_load": False,
        **settings.engine,
    }
    with ExitStack() as stack:
        try:
            llm = stack.enter_context(_guard())(
                lambda: vllm.LLM(**engine), ValueError, TypeError, RuntimeError, OSError, VLLMError
            )
        except (ValueError, TypeError, VLLMClientError) as error:
            raise InputError(f"stages.sample.teacher: vLLM refuses these settings: {_first_line(error)}") from None
        except (RuntimeError, OSError, VLLMError) as error:
            raise RunError(
                f"teacher: vLLM did not start: {_first_line(error)}; VLLM_LOGGING_LEVEL=INFO in the environment shows more"
            ) from None
        stack.callback(llm.llm_engine.engine_core.shutdown)
        encode = _encoder(llm.get_tokenizer())
        context = int(llm.llm_engine.model_config.max_model_len)

        def answer(requests: Sequence[Request]) -> list[Answer | Failure]:
            results: list[Answer | Failure | None] = [None] * len(requests)
            prompts, wanted, places = [], [], []
            for place, request in enumerate(requests):
                tokens = encode(request)
                if not isinstance(tokens, Failure) and len(tokens) + int(str(sampling["max_tokens"])) > context:
                    evidence: dict[str, JsonValue] = {
                        "prompt_tokens": len(tokens),
                        "max_tokens": sampling["max_tokens"],
                        "context": context,
                    }
                    tokens = Failure("prompt_too_long", evidence)
                if isinstance(tokens, Failure):
                    results[place] = tokens
                    continue
                prompts.append({"prompt_token_ids": tokens})
                wanted.append(make_parameters(request.seed))
                places.append(place)
            if prompts:
                try:
                    outputs = llm.generate(prompts, wanted, use_tqdm=False)
                except (ValueError, VLLMClientError) as error:
                    raise InputError(f"stages.sample: vLLM refuses the request: {_first_line(error)}") from None
                except (RuntimeError, VLLMError) as error:
                    raise RunError(
                        f"teacher: vLLM failed: {_first_line(error)}; what it had answered before is stored"
                    ) from None
                for place, output in zip(places, outputs, strict=True):
                    results[place] = _result(output)
            return [result for result in results if result is not None]

        yield answer


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


def _counts(file: Path) -> bool:
    return not file.name.startswith(".") and file.suffix not in (".md", ".lock")


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
for line in sys.stdin.readlines():
    try:
        os.kill(int(line), signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


@contextmanager
def _guard() -> Iterator[Callable[..., Any]]:
    """Gives a function that starts an engine whose processes end with this block and with this process, even where it is killed.

    By themselves they would live on then, and keep their memory (vLLM 0.32). A small process waits for the end of a pipe that only this
    process holds, and then ends those it was told of: after a regular end there are none left. The start itself runs in a thread, since
    it waits in a way that Ctrl-C does not interrupt.
    """
    command = [sys.executable, "-I", "-S", "-c", GUARD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True) as guard:

        def start(make: Callable[[], Any], *expected: type[Exception]) -> Any:
            told = {child.pid for child in multiprocessing.active_children()}
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
                        print(child.pid, file=guard.stdin, flush=True)
            for error in failed:
                raise error
            if not made:
                raise RunError("teacher: vLLM did not start; the error stands above")
            return made[0]

        yield start


def _parameters(vllm: Any, sampling: Sampling, more: dict[str, JsonValue]) -> Any:
    """A function from a seed to vLLM's parameters. It raises InputError where vLLM refuses a value."""
    from vllm.exceptions import VLLMClientError
    from vllm.sampling_params import StructuredOutputsParams

    def make(seed: int) -> Any:
        regex = sampling["regex"]
        try:
            return vllm.SamplingParams(
                temperature=sampling["temperature"],
                top_p=sampling["top_p"],
                max_tokens=sampling["max_tokens"],
                stop=sampling["stop"] or None,
                seed=seed,
                structured_outputs=None if regex is None else StructuredOutputsParams(regex=regex),
                **more,
            )
        except (ValueError, TypeError, VLLMClientError) as error:
            raise InputError(f"stages.sample: vLLM refuses the sampling parameters: {_first_line(error)}") from None

    return make


def _encoder(tokenizer: Any) -> Any:
    """A function from a request to its prompt's token ids, or to the failure that says why there are none."""
    special = set(tokenizer.all_special_tokens)
    special |= {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special}
    special.discard("")
    spelled = re.compile("|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)) or r"(?!)")
    chat = getattr(tokenizer, "chat_template", None) is not None

    def encode(request: Request) -> list[int] | Failure:
        assert request.messages is not None
        messages = request.messages
        for text in (*(message.content for message in messages.messages), messages.assistant_prefix):
            for token in spelled.findall(text):
                if token not in request.template_text or any(token in row_text for row_text in request.row_texts):
                    return Failure("special_token", {"token": token})
        if not chat:
            tokens = tokenizer.encode(
                "".join(message.content for message in messages.messages) + messages.assistant_prefix
            )
        else:
            tokens = tokenizer.encode(_chat(tokenizer, messages) + messages.assistant_prefix, add_special_tokens=False)
        return [int(token) for token in tokens]

    return encode


def _chat(tokenizer: Any, messages: Messages) -> str:
    turns = [message.model_dump() for message in messages.messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except (jinja2.TemplateError, ValueError) as error:
        raise InputError(f"task.prompt: the model's chat template refuses the prompt: {_first_line(error)}") from None


def _result(output: Any) -> Answer | Failure:
    completion = output.outputs[0]
    if completion.finish_reason not in ("stop", "length"):
        return Failure("not_finished", {"finish_reason": str(completion.finish_reason)})
    return Answer(completion.text, completion.finish_reason, len(output.prompt_token_ids), len(completion.token_ids))


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return plain(" ".join(lines[:2]), 300) or type(error).__name__
