"""sample: Prompt -> Response. Ask the teacher n times per prompt; every answer is in the response store before it counts.

    {"id": "5f0c..", "input": "Late goal sinks the leaders", ..}
    -> {"id": "5f0c..#0", "request": "c4..", "text": "A goal is scored. So the answer is sports.", "finish_reason": "stop", ..}

A request is looked up in the store by its key first; only what is not there is asked, ``chunk`` requests at a time, and each chunk's
answers are on disk before the next is asked. Where everything is there, the teacher is not even started. Sample i uses ``seed + i``.
Rows come in the order of the prompts. What the teacher could not answer becomes a drop with the id that its response would have had.

Limits: a failed request is not stored; it is asked again by the next run with another key, or with ``--force``. Two rows with the same
rendered prompt share one answer.
"""

import re
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypedDict, Unpack

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pipeline import outputs, prompts, teachers
from pipeline.binding import From
from pipeline.files import InputError, atomic, canonical_json, digest, plain, write_json
from pipeline.outputs import Job, Totals
from pipeline.progress import bar, say_line
from pipeline.prompts import Template
from pipeline.records import Drop, Prompt, Response
from pipeline.responses import Store, Stored, open_store, request_key, stored_keys
from pipeline.teachers import Answer, Failure, Request, Teacher, TeacherSettings
from pipeline.teachers.contract import SETTINGS_OF_SAMPLE

SPEED: Final = "run-speed.json"  # in the stage's folder: how fast the teacher answered, for the next plan's estimate
TEMPLATES: Final = "templates.json"  # in the stage's folder: the prompt template and all it includes, as they were used
WINDOW: Final = 16  # answers from the store wait for one that is still to be asked, for at most so many chunks
LABELS: Final = "{labels}"  # in ``regex``: any one of the task's labels


class Price(BaseModel):
    """What asking costs, in any one currency; `stepdistill plan` reckons with it. Tokens are priced by the million."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hour: Annotated[float, Field(ge=0)] = 0.0
    prompt_tokens: Annotated[float, Field(ge=0)] = 0.0
    completion_tokens: Annotated[float, Field(ge=0)] = 0.0


class Settings(TypedDict):
    """The stage's settings, as ``sample`` takes them and as ``From("stages.sample")`` gives them."""

    teacher: TeacherSettings
    n: int
    temperature: float
    top_p: float
    max_tokens: int
    stop: Sequence[str]
    seed: int
    regex: str | None
    sampling: dict[str, JsonValue] | None
    chunk: int
    price: Price | None
    prompt: Path | None
    labels: list[str] | None


@dataclass
class Asked:
    """What was asked of the teacher, and how long it took without the start."""

    requests: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Pending:
    """What asking would take: distinct requests in the store and to ask, and for the latter the prompts' characters and ``max_tokens``."""

    stored: int
    to_ask: int
    prompt_characters: int
    completion_tokens_at_most: int


def sample(
    job: Job,
    *,
    teacher: TeacherSettings,
    n: Annotated[int, Field(ge=1)] = 1,
    temperature: Annotated[float, Field(ge=0)] = 0.0,
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0,
    max_tokens: Annotated[int, Field(ge=1)] = 256,
    stop: Sequence[str] = (),
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0,
    regex: str | None = None,
    sampling: dict[str, JsonValue] | None = None,
    chunk: Annotated[int, Field(ge=1)] = 256,
    price: Price | None = None,
    prompt: Annotated[Path | None, From("task.prompt")] = None,
    labels: Annotated[list[str] | None, From("task.labels")] = None,
) -> Generator[Response | Drop, None, Totals]:
    """Ask the teacher about every prompt.

    ``stop``: texts that end an answer. ``regex``: what answers must look like, where ``{labels}`` stands for any label of the task.
    ``sampling``: further sampling parameters of the backend (``top_k``, ``min_p``, ``repetition_penalty`` ..). ``chunk``: how many
    requests are asked, and committed, together. ``price``: what asking costs, for the plan.

    Raises InputError for settings and templates that cannot be used, RunError where the teacher fails.
    """
    settings: Settings = {
        "teacher": teacher,
        "n": n,
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "stop": stop,
        "seed": seed,
        "regex": regex,
        "sampling": sampling,
        "chunk": chunk,
        "price": price,
        "prompt": prompt,
        "labels": labels,
    }
    asking = _asking(settings)
    if asking.template is not None:
        write_json(job.folder / TEMPLATES, prompts.snapshot(asking.template))
    folder = job.inputs["ingest"]
    wanted = n * sum(file.rows or 0 for file in outputs.row_files(folder))
    answered = failed = prompt_tokens = completion_tokens = 0
    asked = Asked()
    with bar("sample", wanted, "requests") as advance:
        for row in _answers(asking, outputs.read(folder, Prompt), job.responses, asked):
            if isinstance(row, Drop):
                failed += 1
            else:
                answered += 1
                prompt_tokens += row.prompt_tokens
                completion_tokens += row.completion_tokens
            yield row
            advance()
    if asked.requests:
        with atomic(job.folder / SPEED) as file:
            file.write(canonical_json({"requests_per_second": asked.requests / max(asked.seconds, 1e-3)}) + b"\n")
    details: dict[str, object] = {
        "teacher": asking.identity,
        "sampling": asking.sampling,
        "seed": seed,
        "responses": answered,
        "failures": failed,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
    }
    return Totals(rows_in=wanted, details=details)


def answers(
    rows: Iterable[Prompt], *, responses: Path, asked: Asked | None = None, **settings: Unpack[Settings]
) -> Iterator[Response | Drop]:
    """Ask the teacher about any prompts, through the store in ``responses``; one row a sample, in the order of the prompts.

    ``asked`` is filled with what was asked. Raises InputError and RunError as ``sample`` does; what was answered before stays in the store.
    """
    yield from _answers(_asking(settings), rows, responses, Asked() if asked is None else asked)


def pending(rows: Iterable[Prompt], *, settings: Mapping[str, Any], responses: Path) -> Pending:
    """What ``answers`` would find in the store and what it would have to ask. Loads and asks nothing; needs no lock."""
    asking = _asking(settings)
    known = stored_keys(responses)
    seen: set[bytes] = set()
    stored = to_ask = characters = 0
    for row in rows:
        for request in _requests(asking, row):
            key = bytes.fromhex(request.key)
            if key in seen:
                continue
            seen.add(key)
            if key in known:
                stored += 1
                continue
            to_ask += 1
            if request.messages is not None:
                characters += sum(len(message.content) for message in request.messages.messages)
                characters += len(request.messages.assistant_prefix)
    return Pending(stored, to_ask, characters, to_ask * settings["max_tokens"])


def check(settings: Mapping[str, Any]) -> Template | None:
    """Everything about the settings that can be checked before a teacher is there; the prompt template. Raises InputError."""
    return _asking(settings, identity={}).template


def request_of(
    prompt: Prompt,
    template: Template | None,
    settings: Mapping[str, Any],
    identity: Mapping[str, JsonValue],
    index: int,
) -> tuple[dict[str, JsonValue], str]:
    """The prompt as it was sent, and its request's key, from what a finished stage left on disk.

    ``settings`` are those of its manifest, ``identity`` the teacher's as the manifest has it, ``index`` the sample's number.
    """
    recorded = settings["teacher"]["backend"] == "replay"
    labels = settings.get("labels")
    sent = _sent(prompt, None if recorded or template is None else _messages(prompt, template, labels))
    key = request_key(
        identity=digest(dict(identity)),
        prompt=digest(sent),
        sampling=sampling_of(settings),
        seed=settings["seed"] + index,
        sample=index,
    )
    return sent, key


@dataclass(frozen=True)
class _Asking:
    """The settings, checked and resolved."""

    teacher: TeacherSettings
    name: str
    identity: dict[str, JsonValue]
    n: int
    seed: int
    chunk: int
    sampling: dict[str, JsonValue]
    template: Template | None
    labels: list[str] | None
    identity_digest: str
    template_text: str


def _asking(settings: Mapping[str, Any], identity: dict[str, JsonValue] | None = None) -> _Asking:
    teacher: TeacherSettings = settings["teacher"]
    path: Path | None = settings["prompt"]
    recorded = isinstance(teacher, teachers.Replay)
    if path is None and not recorded:
        raise InputError(f"task.prompt: missing; the backend {teacher.backend} needs a prompt template")
    if settings["n"] > 1 and settings["temperature"] == 0 and not recorded:
        raise InputError("stages.sample.n: at temperature 0 all samples are the same; set a temperature, or n: 1")
    if any(not text for text in settings["stop"]):
        raise InputError("stages.sample.stop: an empty text stops everything; remove it")
    identity = teachers.identity(teacher) if identity is None else identity
    template = None if path is None else prompts.load(path)
    return _Asking(
        teacher=teacher,
        name=teachers.name(teacher),
        identity=identity,
        n=settings["n"],
        seed=settings["seed"],
        chunk=settings["chunk"],
        sampling=sampling_of(settings),
        template=template,
        labels=settings["labels"],
        identity_digest=digest(identity),
        template_text="" if template is None else prompts.text_of(template),
    )


def sampling_of(settings: Mapping[str, Any]) -> dict[str, JsonValue]:
    """Every sampling parameter, in one fixed shape. Raises InputError."""
    further = dict(settings["sampling"] or {})
    for name in further:
        if name in SETTINGS_OF_SAMPLE:
            raise InputError(f"stages.sample.sampling.{name}: set stages.sample.{name} instead")
    return {
        "temperature": float(settings["temperature"]),
        "top_p": float(settings["top_p"]),
        "max_tokens": settings["max_tokens"],
        "stop": list(settings["stop"]),
        "regex": _regex(settings["regex"], settings.get("labels")),
        **further,
    }


def _regex(regex: str | None, labels: list[str] | None) -> str | None:
    if regex is None:
        return None
    if LABELS in regex:
        if not labels:
            raise InputError(f"stages.sample.regex: {LABELS} needs task.labels, which the task does not have")
        # Only what has a meaning in a regular expression is escaped: the engines know fewer escapes than Python does.
        choices = "|".join(re.sub(r"([\\.^$*+?{}\[\]|()])", r"\\\1", label) for label in labels)
        regex = regex.replace(LABELS, f"({choices})")
    try:
        re.compile(regex)
    except re.error as error:
        raise InputError(f"stages.sample.regex: {plain(str(error))}; not a regular expression") from None
    return regex


def _messages(prompt: Prompt, template: Template, labels: list[str] | None) -> prompts.Messages:
    return prompts.render(template, prompt.columns, labels=labels, choices=prompt.choices, source=prompt.source)


def _sent(prompt: Prompt, messages: prompts.Messages | None) -> dict[str, JsonValue]:
    """What the request's key holds of the prompt; recorded completions go by the row's id."""
    return {"id": prompt.id, "input": prompt.input} if messages is None else messages.model_dump(mode="json")


def _requests(asking: _Asking, prompt: Prompt) -> Iterator[Request]:
    """The n requests of one prompt."""
    recorded = isinstance(asking.teacher, teachers.Replay)
    messages = None
    if not recorded:
        assert asking.template is not None
        messages = _messages(prompt, asking.template, asking.labels)
    sent = digest(_sent(prompt, messages))
    row_texts = () if recorded else tuple(_texts([prompt.columns, prompt.choices]))
    for index in range(asking.n):
        seed = asking.seed + index
        key = request_key(
            identity=asking.identity_digest, prompt=sent, sampling=asking.sampling, seed=seed, sample=index
        )
        yield Request(key, prompt.id, sent, index, seed, messages, row_texts, asking.template_text)


def _texts(value: Any) -> Iterator[str]:
    """Every text inside a row's columns."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _answers(asking: _Asking, rows: Iterable[Prompt], responses: Path, asked: Asked) -> Iterator[Response | Drop]:
    waiting: list[tuple[Prompt, Request]] = []  # in the order of the prompts
    missing: dict[str, Request] = {}  # those of them that must be asked; equal requests once
    failures: dict[str, Failure] = {}
    total = 0
    with ExitStack() as stack:
        store = stack.enter_context(open_store(responses))
        connection: Teacher | None = None

        def settle() -> Iterator[Response | Drop]:
            """Ask what is missing, commit it, and give everything that waits."""
            nonlocal connection
            if missing:
                if connection is None:
                    if asking.teacher.backend == "vllm":
                        say_line(f"sample: starting the teacher ({plain(asking.name)})")
                    connection = stack.enter_context(teachers.connect(asking.teacher, asking.sampling))
                began = time.monotonic()
                failures.update(_ask(asking, connection, list(missing.values()), store))
                asked.seconds += time.monotonic() - began
                asked.requests += len(missing)
                missing.clear()
            for prompt, request in waiting:
                yield _row(asking, prompt, request, store, failures)
            waiting.clear()

        for prompt in rows:
            for request in _requests(asking, prompt):
                total += 1
                waiting.append((prompt, request))
                if request.key not in store and request.key not in failures:
                    missing[request.key] = request
                if len(missing) == asking.chunk or len(waiting) >= asking.chunk * WINDOW:
                    yield from settle()
        yield from settle()
    known = total - asked.requests
    say_line(f"sample: {asked.requests:,} of {total:,} requests asked, {known:,} answered from the response store")


def _ask(asking: _Asking, connection: Teacher, requests: list[Request], store: Store) -> dict[str, Failure]:
    """Ask one chunk and commit the answers; the failures."""
    results = connection(requests)
    identity = store.add_teacher(asking.identity)
    answered, failures = [], {}
    for request, result in zip(requests, results, strict=True):
        if isinstance(result, Answer):
            answered.append(_stored(asking, identity, request, result))
        else:
            failures[request.key] = result
    store.append(answered)
    return failures


def _stored(asking: _Asking, identity: str, request: Request, answer: Answer) -> Stored:
    return Stored(
        key=request.key,
        teacher=asking.name,
        identity=identity,
        prompt=request.prompt_digest,
        sampling=asking.sampling,
        seed=request.seed,
        sample=request.sample,
        text=answer.text,
        finish_reason=answer.finish_reason,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
    )


def _row(
    asking: _Asking, prompt: Prompt, request: Request, store: Store, failures: Mapping[str, Failure]
) -> Response | Drop:
    name = f"{prompt.id}#{request.sample}"
    stored = store.get(request.key)
    if stored is None:
        failure = failures[request.key]
        return Drop(id=name, reason=failure.reason, evidence={"source": prompt.source, **failure.evidence})
    return Response(
        id=name,
        prompt=prompt.id,
        sample=request.sample,
        request=request.key,
        teacher=asking.name,
        text=stored.text,
        finish_reason=stored.finish_reason,
        prompt_tokens=stored.prompt_tokens,
        completion_tokens=stored.completion_tokens,
        input=prompt.input,
        gold=prompt.gold,
        choices=prompt.choices,
    )
