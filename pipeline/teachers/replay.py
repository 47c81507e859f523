"""Recorded completions by prompt id: real answers of a teacher that is not here any more, or whose bill is paid.

    {"id": "svamp-train-0000", "completion": "Luke scored 84 points .. The answer is (84 / 2)."}
    {"id": "svamp-train-0001", "completion": ["the first sample", "the second"]}

Sample i of a prompt is the i-th completion. A prompt without one is dropped as ``no_completion``.

A recording that was taken into the response store (``stepdistill responses import``) needs no file any more: ``about`` says whose answers
they are, and what is not in the store is dropped as ``no_completion``.

Limits: the file is held in memory; token counts are 0 where the file does not tell them (``prompt_tokens``, ``completion_tokens``), and the
finish reason is 'recorded' (``finish_reason``); the sampling settings are taken to be those of the recording.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, model_validator

from pipeline.binding import InputPath
from pipeline.files import InputError, canonical_json, plain, read_jsonl, sha256
from pipeline.teachers.contract import Answer, Common, Failure, Request, Sampling, Teacher
from pipeline.terms import UNKNOWN, OutputTerms


class Replay(Common):
    """Settings: ``teacher: {backend: replay, name: palm-540b, completions: palm540b-train.jsonl}``."""

    backend: Literal["replay"]
    completions: InputPath | None = Field(
        default=None,
        description="a JSONL of {id, completion}; left out where they were imported into the response store",
    )
    about: dict[str, JsonValue] | None = Field(
        default=None, description="whose answers they are, in any words: model, provider, date, terms"
    )

    @model_validator(mode="after")
    def _from_somewhere(self) -> "Replay":
        if self.completions is None and self.about is None:
            raise ValueError(
                "set completions, the file of the recorded answers (or about, whose they are, where they were imported)"
            )
        try:
            canonical_json(self.about)
        except ValueError:
            raise ValueError("about: holds what JSON cannot say; write texts, whole numbers and finite ones") from None
        return self


def name(settings: Replay) -> str:
    """What responses and reports call this teacher."""
    return settings.name or "recorded"


def identity(settings: Replay) -> dict[str, JsonValue]:
    """What a request's key holds of this teacher: its name, and the recording's content or, without one, the teacher's description.

    Raises InputError where the file cannot be read.
    """
    if settings.completions is None:
        return {"backend": "replay", "name": name(settings), "about": settings.about}
    try:
        content = sha256(settings.completions)
    except OSError as error:
        raise InputError(f"{settings.completions}: cannot be read ({error.strerror}); check the path") from None
    return {"backend": "replay", "name": name(settings), "completions": content}


def terms(settings: Replay) -> OutputTerms:
    """Unknown: a recording can be anyone's."""
    return UNKNOWN


def facts(settings: Replay, identity: Mapping[str, Any]) -> dict[str, JsonValue]:
    """The recording's SHA-256, and whose answers it holds as the settings say."""
    return {"backend": "replay", "completions": identity.get("completions"), "about": settings.about}


def counter(settings: Replay) -> Callable[[Request], int] | None:
    """None: a recording does not say."""
    return None


@contextmanager
def connect(settings: Replay, sampling: Sampling) -> Iterator[Teacher]:
    """Read the recording, where there is one. Raises InputError, with the line, for a row that is none or an id that stands there twice."""
    completions = {} if settings.completions is None else recorded(settings.completions)

    def answer(requests: Iterator[Request]) -> Iterator[tuple[Request, Answer | Failure]]:
        for request in requests:
            yield request, _answer(completions.get(request.prompt_id, []), request)

    yield answer


def recorded(path: Path) -> dict[str, list[Answer]]:
    """The answers of a file of recorded completions, by the prompt's id, in the order of the samples.

    ``finish_reason``, ``prompt_tokens`` and ``completion_tokens`` may stand beside ``completion``, one for all samples or a list; they are
    'recorded', 0 and 0 where they do not. Raises InputError, with the line, for a row that is none or an id that stands there twice.
    """
    found: dict[str, list[Answer]] = {}
    lines: dict[str, int] = {}
    for line, row in read_jsonl(path):
        where, name = f"{path}:{line}", row.get("id")
        if not isinstance(name, str):
            raise InputError(f"{where}: id: expected text, found {plain(repr(name), 60)}")
        texts = _listed(row.get("completion"), str, None, where, "completion", "text or a list of texts")
        told = {"finish_reason": "recorded", "prompt_tokens": 0, "completion_tokens": 0}
        told |= {field: row[field] for field in told if row.get(field) is not None}
        reasons = _listed(told["finish_reason"], str, len(texts), where, "finish_reason", "text")
        prompt = _listed(told["prompt_tokens"], int, len(texts), where, "prompt_tokens", "a number of tokens")
        completion = _listed(
            told["completion_tokens"], int, len(texts), where, "completion_tokens", "a number of tokens"
        )
        if name in lines:
            raise InputError(f"{where}: id: {plain(name)!r} stands in line {lines[name]} already; keep one of them")
        lines[name] = line
        found[name] = [Answer(*one) for one in zip(texts, reasons, prompt, completion, strict=True)]
    return found


def _listed(value: Any, kind: type, count: int | None, where: str, name: str, wanted: str) -> list[Any]:
    """The value for each sample. Raises InputError where it is none."""
    values = value if isinstance(value, list) else [value] * (1 if count is None else count)
    for one in values:
        if not isinstance(one, kind) or isinstance(one, bool) or (isinstance(one, int) and not 0 <= one < 2**31):
            raise InputError(f"{where}: {name}: expected {wanted}, found {plain(repr(value), 60)}")
    if count is not None and len(values) != count:
        raise InputError(f"{where}: {name}: has {len(values)} values for {count} completions; give one for each")
    return values


def _answer(answers: list[Answer], request: Request) -> Answer | Failure:
    if request.sample >= len(answers):
        return Failure("no_completion", {"recorded": len(answers), "sample": request.sample})
    return answers[request.sample]
