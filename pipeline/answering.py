"""Models of one's own, asked greedily: by transformers or by vLLM, with what they said kept, so that none is asked the same twice.

    with opened("transformers", "runs/topics/train/5f0c../student", identity) as student:
        ids = student.format.prompt_ids(student.tokenizer, "[label] Late goal sinks the leaders")
        student.ask([ids], 32, advance)   ->  [Answer(text="sports", finished=True)]

``recalled`` looks an answer up in a store of the same kind as the teachers' (``<run>/answers``) by the model's files, its format, the
backend, the prompt's tokens and the length allowed, and computes only what is not there.

Limits: transformers computes in float32 or bfloat16 as asked, vLLM in the type that the weights are stored in; answers can differ in rare
near-ties between batches, machines and backends.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import JsonValue

from pipeline import embedded, foreign
from pipeline.files import InputError, RunError, digest, plain, private
from pipeline.formats import Format
from pipeline.generate import Answer, greedy
from pipeline.progress import Advance, bar
from pipeline.responses import Store, Stored, family_key, request_key
from pipeline.student import StudentSettings, quiet
from pipeline.student import identity as identity_of_student
from pipeline.student import load as load_student
from pipeline.teachers import vllm as vllm_teacher
from pipeline.teachers import vllm_engine
from pipeline.teachers.continuous import running
from pipeline.teachers.contract import Failure, Request, Sampling, one_line

Backend = Literal["transformers", "vllm"]
Precision = Literal["float32", "bfloat16"]

FOLDER: Final = "answers"  # of a run: what its own models said
BATCH: Final = 32  # prompts that transformers computes at once


@dataclass(frozen=True)
class Failed:
    """Why there is no answer."""

    problem: str
    detail: str | None


@dataclass(frozen=True)
class Checkpoint:
    """A language model with its tokenizer and the way it is asked, ready to answer."""

    model: Any
    tokenizer: Any
    format: Format = field(default_factory=Format)

    @property
    def parameters(self) -> int:
        """How many weights it has, shared ones counted once."""
        return sum(weights.numel() for weights in self.model.parameters())


@dataclass(frozen=True)
class Student:
    """A model that is ready: it answers prompts of tokens, each with at most so many tokens, in their order.

    ``checkpoint`` is there where transformers runs it.
    """

    tokenizer: Any
    format: Format
    context: int | None
    ask: Callable[[Sequence[list[int]], int, Advance], Sequence[Answer | Failed]]
    checkpoint: Checkpoint | None


def device() -> str:
    """Where models run here: 'cuda' or 'cpu'."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def default_backend() -> Backend:
    """That is vLLM where it is installed and there is a GPU: on a CPU its start takes longer than most files do."""
    return "vllm" if find_spec("vllm") is not None and device() == "cuda" else "transformers"


def identity(model: str) -> dict[str, Any]:
    """What a folder, a Hub name or ``embedded`` resolves to now (``student.identity``). Raises InputError that names the model."""
    try:
        return identity_of_student(StudentSettings.model_validate({"from": model}))
    except InputError as error:
        raise InputError(str(error).removeprefix("train.student: ")) from None


def load(model: str, precision: Precision = "float32") -> Checkpoint:
    """A checkpoint folder, Hub name or ``embedded``, on the GPU where there is one. Raises InputError where it cannot be used."""
    import torch

    try:
        with quiet():
            loaded, tokenizer, _ = load_student(StudentSettings.model_validate({"from": model}))
    except InputError as error:
        raise InputError(str(error).removeprefix("train.student: ")) from None
    asked = Format.of(model).model_copy(update={"encoder_decoder": bool(loaded.config.is_encoder_decoder)})
    return Checkpoint(loaded.to(device(), getattr(torch, precision)).eval(), tokenizer, asked)


def generate(
    checkpoint: Checkpoint,
    texts: Sequence[str],
    *,
    batch_size: int = BATCH,
    max_new_tokens: int = 32,
    description: str = "generate",
) -> list[Answer]:
    """One greedy answer for each text, in order; none for a text that leaves less than ``max_new_tokens`` of the model's context."""
    prompts = [checkpoint.format.prompt_ids(checkpoint.tokenizer, text) for text in texts]
    with bar(description, len(texts)) as advance:
        return complete(checkpoint, prompts, batch_size=batch_size, max_new_tokens=max_new_tokens, advance=advance)


def complete(
    checkpoint: Checkpoint, prompts: Sequence[Sequence[int]], *, batch_size: int, max_new_tokens: int, advance: Advance
) -> list[Answer]:
    """``generate`` for prompts that are tokens already; ``advance`` is told how many more of them are done."""
    end = checkpoint.format.end_token_id(checkpoint.tokenizer)
    return greedy(
        checkpoint.model,
        checkpoint.tokenizer,
        prompts,
        end=end,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        advance=advance,
    )


def opened(
    backend: Backend,
    model: str,
    identity: Mapping[str, Any],
    *,
    batch_size: int | None = None,
    precision: Precision = "float32",
    who: str = "predict",
) -> AbstractContextManager[Student]:
    """The model, started for the time of the block; ``identity`` is what ``identity`` gave, ``batch_size`` None the backend's own.

    ``who`` begins what is said on the way. Raises InputError where the model cannot be used, RunError where it does not start.
    """
    return BACKENDS[backend](model, identity, batch_size, precision, who)


@dataclass(frozen=True)
class Memory:
    """What one model said before, in a store; ``identity`` is all of it, and of how it is run, that can change an answer."""

    store: Store
    name: str
    identity: Mapping[str, JsonValue]

    def answers(
        self,
        prompts: Sequence[list[int]],
        most: int,
        compute: Callable[[Sequence[list[int]]], Sequence[Answer | Failed]],
    ) -> list[Answer | Failed]:
        """An answer of at most ``most`` tokens to each prompt's tokens; ``compute`` is given the prompts that have none yet.

        What has no answer (no room for one, or the engine died of it) is computed again the next time.
        """

        def kept(answer: Answer | Failed) -> dict[str, Any] | None:
            if isinstance(answer, Failed) or answer.text is None:
                return None
            return {"text": answer.text, "finish_reason": "stop" if answer.finished else "length"}

        def recalled(stored: Stored) -> Answer:
            return Answer(stored.text, stored.finish_reason == "stop")

        return self._recalled(prompts, {"greedy": True}, most, compute, kept, recalled)

    def scores(
        self,
        prompts: Sequence[list[int]],
        labels: Sequence[Sequence[str]],
        compute: Callable[[Sequence[int]], Sequence[dict[str, float] | None]],
    ) -> list[dict[str, float] | None]:
        """Each prompt's log-probabilities of its labels; ``compute`` is given the places of the prompts that have none yet.

        None where it has no room for them.
        """
        found: list[dict[str, float] | None] = [None] * len(prompts)
        groups: dict[tuple[str, ...], list[int]] = {}
        for place, names in enumerate(labels):
            groups.setdefault(tuple(names), []).append(place)
        for names, places in groups.items():

            def anew(asked: Sequence[list[int]], places: list[int] = places) -> Sequence[dict[str, float] | None]:
                where = {tuple(prompts[place]): place for place in places}
                return compute([where[tuple(ids)] for ids in asked])

            said = self._recalled(
                [prompts[place] for place in places],
                {"scores_of": list(names)},
                1,
                anew,
                lambda scores: scores and {"text": "", "finish_reason": "stop", "label_logprobs": scores},
                lambda stored: dict(stored.label_logprobs or {}),
            )
            for place, scores in zip(places, said, strict=True):
                found[place] = scores
        return found

    def _recalled(
        self,
        prompts: Sequence[list[int]],
        sampling: dict[str, JsonValue],
        most: int,
        compute: Callable[[Sequence[list[int]]], Sequence[Any]],
        kept: Callable[[Any], dict[str, Any] | None],
        recalled: Callable[[Stored], Any],
    ) -> list[Any]:
        name = self.store.add_teacher(self.identity)
        asked = [digest({"tokens": ids}) for ids in prompts]
        families = [family_key(identity=name, prompt=prompt, sampling=sampling, seed=0, sample=0) for prompt in asked]
        missing: dict[str, int] = {}  # family -> the first prompt that asks for it
        for place, family in enumerate(families):
            if not self.store.has(family, most):
                missing.setdefault(family, place)
        computed: dict[str, Any] = {}
        if missing:
            said = compute([prompts[place] for place in missing.values()])
            computed = dict(zip(missing, said, strict=True))
            self.store.append(
                Stored(
                    key=request_key(family, most),
                    family=family,
                    max_tokens=most,
                    teacher=self.name,
                    identity=name,
                    prompt=asked[missing[family]],
                    sampling=sampling,
                    seed=0,
                    sample=0,
                    prompt_tokens=len(prompts[missing[family]]),
                    completion_tokens=0,
                    **fields,
                )
                for family, answer in computed.items()
                if (fields := kept(answer)) is not None
            )
        found = []
        for family in families:
            stored = None if family in computed else self.store.get(family, most)
            found.append(computed[family] if stored is None else recalled(stored))
        return found


def memory(
    store: Store, name: str, identity: Mapping[str, Any], given: Format, backend: Backend, precision: Precision
) -> Memory:
    """The memory of a model that is run so."""
    told: dict[str, JsonValue] = {
        "checkpoint": private(
            {key: value for key, value in identity.items() if key != "from" or "files" not in identity}
        ),
        "format": given.model_dump(mode="json"),
        "backend": backend,
        "precision": precision if backend == "transformers" else "as stored",
    }
    return Memory(store, name, told)


@contextmanager
def _transformers(
    model: str, identity: Mapping[str, Any], batch_size: int | None, precision: Precision, who: str
) -> Iterator[Student]:
    import torch

    checkpoint = load(model, precision)

    def ask(prompts: Sequence[list[int]], most: int, advance: Advance) -> list[Answer | Failed]:
        try:
            return [
                *complete(checkpoint, prompts, batch_size=batch_size or BATCH, max_new_tokens=most, advance=advance)
            ]
        except torch.OutOfMemoryError:
            raise RunError(f"{who}: out of GPU memory; run again with a lower batch size") from None

    with quiet():
        config = checkpoint.model.config
        context = None if checkpoint.format.encoder_decoder else getattr(config, "max_position_embeddings", None)
        yield Student(checkpoint.tokenizer, checkpoint.format, context, ask, checkpoint)


@contextmanager
def _vllm(
    model: str, identity: Mapping[str, Any], batch_size: int | None, precision: Precision, who: str
) -> Iterator[Student]:
    """With vLLM's engine in processes of its own, run as for a teacher: it is kept full, and where it dies it is started anew."""
    vllm_teacher.prepare_environment()
    try:
        import vllm
        from vllm.exceptions import VLLMError
        from vllm.platforms import current_platform
        from vllm.sampling_params import RequestOutputKind
    except ModuleNotFoundError as error:
        raise InputError(
            f"{who}: backend vllm: it needs the package {plain(error.name or 'vllm')}; pip install 'stepdistill[gpu]', or "
            "'stepdistill[cpu]' where there is no GPU; or choose the backend transformers"
        ) from None
    where = _located(model, identity)
    tokenizer = _tokenizer(model, where)
    engine: dict[str, Any] = {
        **where,
        "tokenizer_revision": where["revision"],
        "load_format": "safetensors",  # nothing else is opened
        "generation_config": "vllm",  # answers are greedy whatever the folder says
        "enforce_eager": current_platform.is_cpu(),  # compiling takes a minute there
        "use_tqdm_on_load": False,
        **({"max_num_seqs": batch_size} if batch_size is not None else {}),
    }
    asked_as = Format.of(model)
    end = asked_as.end_token_id(tokenizer)
    asked: dict[str, list[int]] = {}
    context: list[int] = []

    def parameters(sampling: Sampling, seed: int) -> Any:
        return vllm.SamplingParams(
            temperature=0.0,
            max_tokens=sampling["max_tokens"],
            stop_token_ids=[end],
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )

    with vllm_engine.guard(who) as launch:

        def start() -> vllm_engine.Engine:
            expected = (ValueError, TypeError, RuntimeError, OSError, VLLMError)
            try:
                llm, processes = launch(lambda: vllm.LLM(**engine), *expected)
            except expected as error:
                more = "VLLM_LOGGING_LEVEL=INFO in the environment shows more, the backend transformers does without it"
                raise RunError(f"{who}: vLLM did not start: {one_line(error)}; {more}") from None
            context[:] = [int(llm.llm_engine.model_config.max_model_len)]
            encode = lambda request: asked[request.key]  # noqa: E731 - prompts are tokens already
            return vllm_engine.Engine(llm, processes, parameters, encode, vllm_engine.NO_SPECIALS, None)

        def apart(deaths: int, error: str) -> Failure:
            return Failure("engine_died", {"error": f"vLLM died {deaths} times while it had this row: {error}"})

        with running(start, apart=apart, who=who) as answers:

            def ask(prompts: Sequence[list[int]], most: int, advance: Advance) -> list[Answer | Failed]:
                asked.clear()
                asked.update({str(index): ids for index, ids in enumerate(prompts)})
                sampling: Sampling = {"max_tokens": most}
                requests = (Request(key, "", "", "", 0, 0, sampling, None) for key in asked)
                found: dict[int, Answer | Failed] = {}
                for request, result in answers(requests):
                    if isinstance(result, Failure):
                        detail = ", ".join(f"{value}" for value in result.evidence.values())
                        found[int(request.key)] = Failed(result.reason, plain(detail))
                    else:
                        found[int(request.key)] = Answer(result.text, result.finish_reason == "stop")
                    advance()
                return [found[index] for index in range(len(prompts))]

            yield Student(tokenizer, asked_as, context[0], ask, None)


def _located(model: str, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The model's folder, or its repository and commit, as vLLM takes them."""
    if "files" in identity:
        return {"model": str(Path(model).expanduser().resolve()), "revision": None}
    if "revision" in identity:
        return {"model": identity["from"], "revision": identity["revision"]}
    return {"model": str(embedded.folder()), "revision": None}


def _tokenizer(model: str, where: Mapping[str, Any]) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(where["model"], revision=where["revision"], trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        problem = foreign.told(error, where["model"]) or f"its tokenizer cannot be loaded ({one_line(error)})"
        raise InputError(f"{plain(model)}: {problem}") from None
    if tokenizer.eos_token_id is None:
        raise InputError(f"{plain(model)}: its tokenizer has no end-of-sequence token; name a trained student")
    return tokenizer


BACKENDS: Final[
    Mapping[Backend, Callable[[str, Mapping[str, Any], int | None, Precision, str], AbstractContextManager[Student]]]
] = {"transformers": _transformers, "vllm": _vllm}
