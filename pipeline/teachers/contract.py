"""What a teacher is asked, and what it gives back: all that a backend file needs to know of the pipeline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from pydantic import JsonValue

from pipeline.binding import suggestion
from pipeline.files import InputError
from pipeline.prompts import Messages

Sampling = Mapping[str, JsonValue]
"""temperature, top_p, max_tokens, stop, regex (None: free text), and any further parameters of the backend."""

SETTINGS_OF_SAMPLE: Final = ("temperature", "top_p", "max_tokens", "stop", "regex")


@dataclass(frozen=True)
class Request:
    """One answer that is wanted.

    ``row_texts`` are the texts that came from the input row, ``template_text`` the template's own: a backend that knows the model's
    special tokens can tell by them who wrote one.
    """

    key: str
    prompt_id: str
    prompt_digest: str
    sample: int
    seed: int
    messages: Messages | None  # None for recorded completions
    row_texts: tuple[str, ...] = field(default=(), repr=False)
    template_text: str = field(default="", repr=False)


@dataclass(frozen=True)
class Answer:
    """What the teacher wrote, without the assistant prefix. Token counts are 0 where the backend does not know them."""

    text: str
    finish_reason: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Failure:
    """Why there is no answer to this request; it becomes a drop with this reason."""

    reason: str
    evidence: dict[str, JsonValue]


class Teacher(Protocol):
    """What a backend's ``connect`` gives."""

    def __call__(self, requests: Sequence[Request]) -> list[Answer | Failure]:
        """One result for each request, in their order."""


def further(sampling: Sampling, refused: Mapping[str, str]) -> dict[str, JsonValue]:
    """The sampling parameters that the sample stage does not name itself. Raises InputError for those that cannot be set here."""
    found = {name: value for name, value in sampling.items() if name not in SETTINGS_OF_SAMPLE}
    for name in found:
        if name in refused:
            raise InputError(f"stages.sample.sampling.{name}: cannot be set here; {refused[name]}")
    return found


def known(names: Mapping[str, JsonValue], allowed: set[str], where: str, what: str) -> None:
    """Raises InputError for the first name that is not allowed, with the one that was probably meant."""
    for name in names:
        if name not in allowed:
            close = suggestion(name, allowed)
            raise InputError(
                f"{where}.{name}: unknown {what}{close if 'did you mean' in close else '; see the documentation of vLLM'}"
            )
