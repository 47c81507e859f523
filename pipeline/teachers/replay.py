"""Recorded completions by prompt id: real answers of a teacher that is not here any more, or whose bill is paid.

    {"id": "svamp-train-0000", "completion": "Luke scored 84 points .. The answer is (84 / 2)."}
    {"id": "svamp-train-0001", "completion": ["the first sample", "the second"]}

Sample i of a prompt is the i-th completion. A prompt without one is dropped as ``no_completion``.

Limits: the file is held in memory; token counts are not known (0); the sampling settings are taken to be those of the recording.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pipeline.binding import InputPath
from pipeline.files import InputError, plain, read_jsonl, sha256
from pipeline.teachers.contract import Answer, Failure, Request, Sampling, Teacher


class Replay(BaseModel):
    """Settings: ``teacher: {backend: replay, name: palm-540b, completions: palm540b-train.jsonl}``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Literal["replay"]
    completions: InputPath = Field(description="a JSONL of {id, completion}")
    name: str = Field("recorded", min_length=1, description="who wrote them")


def name(settings: Replay) -> str:
    """What responses and reports call this teacher."""
    return settings.name


def identity(settings: Replay) -> dict[str, JsonValue]:
    """What a request's key holds of this teacher: its name and the recording's content. Raises InputError where it cannot be read."""
    try:
        content = sha256(settings.completions)
    except OSError as error:
        raise InputError(f"{settings.completions}: cannot be read ({error.strerror}); check the path") from None
    return {"backend": "replay", "name": settings.name, "completions": content}


@contextmanager
def connect(settings: Replay, sampling: Sampling) -> Iterator[Teacher]:
    """Read the recording. Raises InputError, with the line, for a row that is none or an id that stands there twice."""
    completions: dict[str, list[str]] = {}
    lines: dict[str, int] = {}
    path = settings.completions
    for line, row in read_jsonl(path):
        found, texts = row.get("id"), row.get("completion")
        if isinstance(texts, str):
            texts = [texts]
        if not isinstance(found, str):
            raise InputError(f"{path}:{line}: id: expected text, found {plain(repr(found), 60)}")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InputError(
                f"{path}:{line}: completion: expected text or a list of texts, found {plain(repr(texts), 60)}"
            )
        if found in lines:
            raise InputError(
                f"{path}:{line}: id: {plain(found)!r} stands in line {lines[found]} already; keep one of them"
            )
        completions[found], lines[found] = texts, line

    def answer(requests: Sequence[Request]) -> list[Answer | Failure]:
        return [_answer(completions.get(request.prompt_id, []), request) for request in requests]

    yield answer


def _answer(texts: list[str], request: Request) -> Answer | Failure:
    if request.sample >= len(texts):
        return Failure("no_completion", {"recorded": len(texts), "sample": request.sample})
    return Answer(texts[request.sample], "recorded")
