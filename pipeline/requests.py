"""What each teacher is asked about a prompt: the rendered messages, the sampling parameters, the seed and the key of every request.

    asking = resolve(teacher=[..], n=2, temperature=0.7, ..)
    for request in requests_of(asking, asking.respondents[0], prompt): ..

``resolve`` has the settings of the stage ``sample`` as its parameters and checks all that can be checked before a teacher is there.

A teacher with ``share: 1`` is asked about every row. Smaller shares are taken from the rows one behind the other (by a hash of the row's
id, so that it does not matter which other rows there are): two teachers with ``share: 0.5`` have each row once between them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import xxhash
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pipeline import prompts, shots, teachers
from pipeline.binding import From
from pipeline.cluster import Cluster
from pipeline.files import InputError, canonical_json, digest, plain
from pipeline.prompts import Messages, Template
from pipeline.records import Prompt
from pipeline.responses import encoded_family_key, request_key
from pipeline.revocations import Revoked
from pipeline.shots import FewShot, Shots
from pipeline.spending import Budget
from pipeline.teachers import Request, Teachers, TeacherSettings
from pipeline.teachers.contract import SETTINGS_OF_SAMPLE

LABELS: Final = "{labels}"  # in ``regex``: any one of the labels
TEACHER: Final = "teacher "  # begins the name of each teacher's identity in a manifest
RATIONALE_THEN_LABEL: Final = r"[^\n]{10,300} So the answer is {labels}\."  # a weak teacher that rambles uses all of it
MOST_SAMPLES: Final = 10_000  # of a prompt and teacher
CIRCLE: Final = 2**64  # its circumference in whole numbers: as many as the hash of an id can be

Schema = Annotated[dict[Literal["json"], dict[str, JsonValue]], Field(min_length=1)]
Structured = Literal["rationale_then_label", "label", "json"] | Schema


class SoftLabels(BaseModel):
    """The distribution over the labels is wanted, at the place behind the last ``after`` of the answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    after: str = Field("So the answer is ", description="where the label begins; empty: at the answer's start")


class RayCluster(Cluster):
    """Where ``engine: ray`` runs, and what each of its workers is given there."""

    num_cpus: float = Field(default=1.0, ge=0, description="for each worker")
    num_gpus: float = Field(default=0.0, ge=0, description="for each worker")
    resources: dict[str, float] = Field(
        default={}, description="further resources for each worker, by the cluster's names"
    )


@dataclass(frozen=True)
class Respondent:
    """One teacher, as it resolved.

    ``recorded``: it only has answers by the rows' ids, and is shown no prompt. ``rows`` is the part of the rows that it is asked about,
    as start and length of an interval on a circle of circumference 1. ``settings`` are None where a finished result is looked at.
    """

    name: str
    recorded: bool
    identity: dict[str, JsonValue]
    digest: str
    rows: tuple[float, float]
    settings: TeacherSettings | None

    @property
    def takes_all(self) -> bool:
        """Whether it is asked about every row."""
        return self.rows[1] >= 1

    def takes(self, prompt: Prompt) -> bool:
        """Whether this teacher is asked about the row."""
        if self.takes_all:
            return True
        start, end = _point(self.rows[0]), _point(self.rows[0] + self.rows[1])
        place = xxhash.xxh3_64_intdigest(prompt.id.encode())
        return start <= place < end or start <= place + CIRCLE < end


@dataclass(frozen=True)
class Asking:
    """The settings of the stage, checked and resolved."""

    respondents: tuple[Respondent, ...]
    n: int
    greedy_first: bool
    seed: int
    max_tokens: int
    sampling: dict[str, JsonValue] = field(repr=False)
    regex: str | None
    structured: Structured | None
    soft_labels: SoftLabels | None
    rationalise: bool
    template: Template | None
    template_text: str = field(repr=False)
    shots: Shots | None
    labels: list[str] | None
    chunk: int = 256
    budget: Budget | None = None
    engine: Literal["local", "ray"] = "local"
    workers: int = 1
    cluster: RayCluster = field(default_factory=RayCluster)
    stage: str = "sample"  # for what is said while asking
    encoded: dict[bool, tuple[dict[str, JsonValue], str]] = field(
        default_factory=dict, repr=False, compare=False
    )  # sampling parameters and their canonical JSON as they were last made, greedy ones under True
    revoked: Mapping[str, str] = field(
        default_factory=dict
    )  # requests that are not asked, and answers not used, and why


def resolve(
    identities: Mapping[str, dict[str, JsonValue]] | None = None,
    /,
    *,
    teacher: Teachers,
    n: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] = 1,
    greedy_first: bool = False,
    temperature: Annotated[float, Field(ge=0)] = 0.0,
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0,
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] = 256,
    stop: Sequence[str] = (),
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0,
    structured: Structured | None = None,
    regex: str | None = None,
    sampling: dict[str, JsonValue] | None = None,
    logprobs: bool = False,
    soft_labels: SoftLabels | None = None,
    rationalise: bool = False,
    few_shot: FewShot | None = None,
    chunk: Annotated[int, Field(ge=1)] = 256,
    budget: Budget | None = None,
    engine: Literal["local", "ray"] = "local",
    workers: Annotated[int, Field(ge=1)] = 1,
    ray: RayCluster | None = None,
    prompt: Annotated[Path | None, From("task.prompt")] = None,
    labels: Annotated[list[str] | None, From("task.labels")] = None,
    choices: Annotated[str | None, From("task.choices")] = None,
    gold: Annotated[str | None, From("task.gold")] = None,
    input: Annotated[str | None, From("task.input")] = None,
    revoked: Annotated[Revoked | None, From("revoked.sample")] = None,
) -> Asking:
    """What is asked of whom, from the settings of the stage.

    ``teacher``: one, or a list. ``n``: samples per prompt and teacher, sample i with ``seed + i``. ``greedy_first``: the first of them
    at temperature 0. ``stop``: texts that end an answer. ``structured``: answers are made to have a form, a rationale of one line and at
    most 300 characters and then "So the answer is <label>.", the label alone, a JSON object with ``rationale`` and ``label``, or, as
    ``{json: schema}``, one by a JSON schema of one's own. ``regex``: a form of one's own, where ``{labels}`` stands for any label of the
    task (or choice of the row). ``sampling``: further sampling parameters of the backend
    (``top_k``, ``min_p``, ``repetition_penalty`` ..). ``logprobs``: keep each answer's mean log-probability. ``soft_labels``: keep the
    distribution over the labels. ``rationalise``: the prompt shows the true label (as the variable ``gold``), and only the rationale is
    the teacher's. ``few_shot``: examples from a file, as the variable ``shots`` of the prompt (see ``pipeline.shots``). ``chunk``:
    answers that are committed together, at most. ``budget``: what one call may spend. ``engine``, ``workers``, ``ray``: several engines,
    by Ray.

    ``identities``, by teacher's name, stand in for the teachers as they resolve now. Raises InputError for settings and templates that
    cannot be used.
    """
    respondents = _respondents(teacher, identities)
    recorded = all(one.recorded for one in respondents)
    if prompt is None and not recorded:
        raise InputError(f"task.prompt: missing; the backend {teacher[0].backend} needs a prompt template")
    if n > 1 and temperature == 0 and not recorded:
        raise InputError("stages.sample.n: at temperature 0 all samples are the same; set a temperature, or n: 1")
    if any(not text for text in stop):
        raise InputError("stages.sample.stop: an empty text stops everything; remove it")
    if regex is not None and structured is not None:
        raise InputError("stages.sample.regex: structured already says what answers look like; keep one of them")
    if rationalise and gold is None:
        raise InputError("stages.sample.rationalise: needs task.gold, the column with the true label")
    if rationalise and any(one.recorded for one in respondents):
        raise InputError("stages.sample.rationalise: recorded completions are shown no label; leave it, or them, out")
    if few_shot is not None and recorded:
        raise InputError("stages.sample.few_shot: recorded completions are shown no examples; leave it out")
    if few_shot is not None and input is None:
        raise InputError("stages.sample.few_shot: needs task.input, by which examples and rows are compared")
    if engine == "local" and (workers > 1 or ray is not None):
        raise InputError(
            f"stages.sample.{'workers' if workers > 1 else 'ray'}: needs `engine: ray`; set it, or leave this out"
        )
    closed = labels is not None or choices is not None
    if structured in ("rationale_then_label", "label") and not closed:
        raise InputError(f"stages.sample.structured: {structured} needs task.labels or task.choices")
    if soft_labels is not None and not closed:
        raise InputError("stages.sample.soft_labels: needs task.labels or task.choices")
    if regex is not None and LABELS in regex and not closed:
        raise InputError(f"stages.sample.regex: {LABELS} needs task.labels, which the task does not have")
    for name in sampling or {}:
        if name in SETTINGS_OF_SAMPLE or name == "regex":
            raise InputError(f"stages.sample.sampling.{name}: set stages.sample.{name} instead")
    template = None if prompt is None else prompts.load(prompt)
    if template is not None and not recorded:
        own = {"labels": labels is not None, "choices": choices is not None, "shots": few_shot is not None}
        _check_variables(template, gold, {name for name, there in own.items() if there}, rationalise=rationalise)
    asking = _asking(
        respondents,
        template,
        None if few_shot is None or input is None else shots.load(few_shot, input),
        n=n,
        greedy_first=greedy_first,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        stop=stop,
        seed=seed,
        structured=structured,
        regex=regex,
        sampling=sampling,
        logprobs=logprobs,
        soft_labels=soft_labels,
        rationalise=rationalise,
        labels=labels,
    )
    _sampling(asking, labels or ["label"], greedy=False)
    asking = replace(asking, chunk=chunk, budget=budget, engine=engine, workers=workers, cluster=ray or RayCluster())
    return replace(asking, revoked=(revoked or {}).get("response", {}))


def _check_variables(template: Template, gold: str | None, own: set[str], *, rationalise: bool) -> None:
    """Raises InputError for a template that does not show what it is given, or shows the true label where it must not.

    ``own`` are the variables that are not the row's: what goes by such a name is no column.
    """
    used = prompts.variables_of(template)
    if "shots" in own - used:
        raise InputError(
            "stages.sample.few_shot: the prompt does not use the variable 'shots'; write {% for shot in shots %} .. {% endfor %}"
        )
    if rationalise and not used & {"gold", gold}:
        raise InputError(
            "stages.sample.rationalise: the prompt does not use the variable 'gold', the true label; write {{ gold }}"
        )
    if not rationalise and gold in used - own:
        raise InputError(
            f"task.prompt: the prompt shows the column '{plain(gold or '')}', which is task.gold; leave it out, "
            "or set stages.sample.rationalise"
        )


def from_manifest(
    settings: Mapping[str, Any],
    identities: Mapping[str, dict[str, JsonValue]],
    template: Template | None,
    examples: Shots | None,
) -> Asking:
    """What a finished stage asked, by its manifest and the snapshots beside it; good for ``all_requests`` only."""
    given = [(teachers.name_of(one), one["backend"] == "replay", one["share"], None) for one in settings["teacher"]]
    found = {name.removeprefix(TEACHER): identity for name, identity in identities.items()}
    known = {name: value for name, value in settings.items() if name in _SHAPES_REQUESTS}
    soft = known["soft_labels"]
    known["soft_labels"] = None if soft is None else SoftLabels.model_validate(soft)
    return _asking(_shared(given, found), template, examples, **known)


_SHAPES_REQUESTS: Final = (
    *("n", "greedy_first", "temperature", "top_p", "max_tokens", "stop", "seed", "structured", "regex"),
    *("sampling", "logprobs", "soft_labels", "rationalise", "labels"),
)


def _asking(
    respondents: tuple[Respondent, ...], template: Template | None, examples: Shots | None, **given: Any
) -> Asking:
    return Asking(
        respondents=respondents,
        n=given["n"],
        greedy_first=given["greedy_first"],
        seed=given["seed"],
        max_tokens=given["max_tokens"],
        sampling={
            "temperature": float(given["temperature"]),
            "top_p": float(given["top_p"]),
            "stop": list(given["stop"]),
            **({"logprobs": True} if given["logprobs"] else {}),
            **(given["sampling"] or {}),
        },
        regex=given["regex"],
        structured=given["structured"],
        soft_labels=given["soft_labels"],
        rationalise=given["rationalise"],
        template=template,
        template_text="" if template is None else prompts.text_of(template),
        shots=examples,
        labels=given["labels"],
    )


def _respondents(
    given: Sequence[TeacherSettings], identities: Mapping[str, dict[str, JsonValue]] | None
) -> tuple[Respondent, ...]:
    names = [teachers.name(settings) for settings in given]
    for position, name in enumerate(names):
        if name in names[:position]:
            raise InputError(
                f"stages.sample.teacher[{position}].name: {plain(name)}: two teachers have this name; set another"
            )
    covered = sum(settings.share for settings in given if settings.share < 1)
    if _point(covered) < CIRCLE and not any(settings.share >= 1 for settings in given):
        raise InputError(
            f"stages.sample.teacher: the shares add up to {covered:.10g}, so some rows would have no teacher; let them add up to 1"
        )
    if identities is None:
        identities = {name: teachers.identity(settings) for name, settings in zip(names, given, strict=True)}
    shares = [
        (name, isinstance(settings, teachers.Replay), settings.share, settings)
        for name, settings in zip(names, given, strict=True)
    ]
    return _shared(shares, identities)


def _shared(
    given: Iterable[tuple[str, bool, float, TeacherSettings | None]],
    identities: Mapping[str, dict[str, JsonValue]],
) -> tuple[Respondent, ...]:
    """The teachers (name, whether recorded, share, settings), each with its part of the rows, one behind the other."""
    found = []
    start = 0.0
    for name, recorded, share, settings in given:
        identity = dict(identities.get(name, {}))
        found.append(Respondent(name, recorded, identity, digest(identity), (start, share), settings))
        start += share if share < 1 else 0.0
    return tuple(found)


def _point(place: float) -> int:
    """A place on the circle as a whole number, so that where one part ends the next begins; shares count to nine digits."""
    return round(round(place, 9) * CIRCLE)


def requests_of(asking: Asking, respondent: Respondent, prompt: Prompt) -> Iterator[Request]:
    """The n requests to one teacher about one prompt. Raises InputError where the template cannot be rendered for it."""
    messages: Messages | None = None
    row_texts: tuple[str, ...] = ()
    if not respondent.recorded:
        examples = None if asking.shots is None else shots.choose(asking.shots, prompt)
        messages = _messages(asking, prompt, examples)
        row_texts = tuple(_texts([prompt.columns, prompt.choices, prompt.gold, examples]))
    sent = sent_digest(prompt, messages)
    for index in range(asking.n):
        sampling, encoded = _encoded(asking, prompt, greedy=asking.greedy_first and index == 0)
        seed = asking.seed + index
        family = encoded_family_key(identity=respondent.digest, prompt=sent, sampling=encoded, seed=seed, sample=index)
        yield Request(
            key=request_key(family, asking.max_tokens),
            family=family,
            prompt_id=prompt.id,
            prompt_digest=sent,
            sample=index,
            seed=seed,
            sampling={**sampling, "max_tokens": asking.max_tokens},
            messages=messages,
            row_texts=row_texts,
            template_text=asking.template_text,
        )


def all_requests(asking: Asking, prompt: Prompt) -> Iterator[tuple[Respondent, Request]]:
    """The requests to all teachers about one prompt, in the order in which its responses are numbered."""
    for respondent in asking.respondents:
        if respondent.takes(prompt):
            for request in requests_of(asking, respondent, prompt):
                yield respondent, request


def sent_of(prompt: Prompt, messages: Messages | None) -> dict[str, JsonValue]:
    """What the request's key holds of the prompt; recorded completions go by the row's id."""
    return {"id": prompt.id, "input": prompt.input} if messages is None else messages.model_dump(mode="json")


def sent_digest(prompt: Prompt, messages: Messages | None) -> str:
    """``digest`` of ``sent_of``. It holds texts alone, which msgspec writes as the canonical JSON has them, several times as fast."""
    return xxhash.xxh3_128_hexdigest(_TEXTS.encode(sent_of(prompt, messages)))


_TEXTS: Final = msgspec.json.Encoder(order="sorted")


def _messages(asking: Asking, prompt: Prompt, examples: list[dict[str, JsonValue]] | None) -> Messages:
    assert asking.template is not None
    if asking.rationalise and prompt.gold is None:
        raise InputError(f"{prompt.source}: has no true label; stages.sample.rationalise needs one in every row")
    extra: dict[str, JsonValue] = {}
    if asking.rationalise:
        extra["gold"] = prompt.gold
    if examples is not None:
        extra["shots"] = list(examples)
    return prompts.render(
        asking.template, prompt.columns, labels=asking.labels, choices=prompt.choices, extra=extra, source=prompt.source
    )


def _encoded(asking: Asking, prompt: Prompt, *, greedy: bool) -> tuple[dict[str, JsonValue], str]:
    """The sampling parameters and their canonical JSON, made once where they do not depend on the row."""
    found = asking.encoded.get(greedy)
    if found is None:
        sampling = _sampling(asking, prompt.choices or asking.labels, greedy=greedy)
        found = sampling, canonical_json(sampling).decode()
        if asking.structured is None and asking.regex is None and asking.soft_labels is None:
            asking.encoded[greedy] = found
    return found


def _sampling(asking: Asking, labels: list[str] | None, *, greedy: bool) -> dict[str, JsonValue]:
    """Every sampling parameter but max_tokens and the seed, in one fixed shape. Raises InputError."""
    found: dict[str, JsonValue] = {**asking.sampling, "structured": _structured(asking, labels)}
    if greedy:
        found |= {"temperature": 0.0, "top_p": 1.0}
    if asking.soft_labels is not None:
        found["soft_labels"] = {"after": asking.soft_labels.after, "labels": list(labels or ())}
    return found


def _structured(asking: Asking, labels: list[str] | None) -> dict[str, JsonValue] | None:
    if isinstance(asking.structured, dict):
        return {"json": asking.structured["json"]}
    if asking.structured == "label":
        return {"choice": list(labels or ())}
    if asking.structured == "json":
        label: JsonValue = {"type": "string", "enum": list(labels)} if labels else {"type": "string", "minLength": 1}
        return {
            "json": {
                "type": "object",
                "properties": {"rationale": {"type": "string", "minLength": 1}, "label": label},
                "required": ["rationale", "label"],
                "additionalProperties": False,
            }
        }
    regex = RATIONALE_THEN_LABEL if asking.structured == "rationale_then_label" else asking.regex
    if regex is None:
        return None
    # Only what has a meaning in a regular expression is escaped: the engines know fewer escapes than Python does.
    choices = "|".join(re.sub(r"([\\.^$*+?{}\[\]|()])", r"\\\1", label) for label in labels or ())
    regex = regex.replace(LABELS, f"({choices})")
    try:
        re.compile(regex)
    except re.error as error:
        raise InputError(f"stages.sample.regex: {plain(str(error))}; not a regular expression") from None
    return {"regex": regex}


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
