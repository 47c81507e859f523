"""What a teacher is asked, and what it gives back: all that a backend file needs to know of the pipeline."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, Protocol

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pipeline.binding import suggestion
from pipeline.files import InputError, plain, private
from pipeline.prompts import Messages
from pipeline.terms import Stated

Sampling = Mapping[str, JsonValue]
"""temperature, top_p, max_tokens, stop, structured, logprobs, soft_labels, and any further parameters of the backend.

``structured``: None for free text, or ``{"regex": text}``, ``{"choice": [texts]}`` or ``{"json": schema}``. ``logprobs``: whether
the mean log-probability of the answer is wanted. ``soft_labels``: None, or ``{"after": text, "labels": [texts]}``: the
log-probability of each label is wanted at the place behind the last ``after`` in the answer.
"""

SETTINGS_OF_SAMPLE: Final = ("temperature", "top_p", "max_tokens", "stop", "structured", "logprobs", "soft_labels")


class Price(BaseModel):
    """What asking costs, in any one currency. Tokens are priced by the million."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hour: Annotated[float, Field(ge=0)] = 0.0
    prompt_tokens: Annotated[float, Field(ge=0)] = 0.0
    completion_tokens: Annotated[float, Field(ge=0)] = 0.0


class Common(BaseModel):
    """The settings that every backend has."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str | None = Field(
        None, min_length=1, description="what responses and reports call it; the model, where left out"
    )
    share: float = Field(1.0, gt=0, le=1, description="the part of the rows that it is asked about")
    price: Price | None = None
    output_terms: Stated = Field(
        None,
        description="may its outputs be trained on, under which obligations; or an entry's name in the table of terms, "
        "which also stands in, where it can, for what is left out",
    )


@dataclass(frozen=True)
class Request:
    """One answer that is wanted.

    ``sampling`` is this request's own; ``seed`` too. ``sample`` counts within this teacher. ``row_texts`` are the texts that came from
    the input row (and from examples in a file), ``template_text`` the template's own: a backend that knows the model's special tokens
    can tell by them who wrote one.
    """

    key: str
    family: str
    prompt_id: str
    prompt_digest: str
    sample: int
    seed: int
    sampling: Sampling
    messages: Messages | None  # None for recorded completions
    row_texts: tuple[str, ...] = field(default=(), repr=False)
    template_text: str = field(default="", repr=False)

    @property
    def max_tokens(self) -> int:
        """The most tokens the answer may have."""
        return int(str(self.sampling["max_tokens"]))


@dataclass(frozen=True)
class Answer:
    """What the teacher wrote, without the assistant prefix.

    Token counts are 0 where the backend does not know them; ``cached_tokens`` are those of the prompt that were not computed anew.
    ``mean_logprob`` is that of the answer's tokens, ``label_logprobs`` gives each label's log-probability (natural logarithm, not
    normalised over the labels); None where they were not asked for or the backend cannot tell.
    """

    text: str
    finish_reason: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    mean_logprob: float | None = None
    label_logprobs: dict[str, float] | None = None


@dataclass(frozen=True)
class Failure:
    """Why there is no answer to this request; it becomes a drop with this reason.

    ``prompt_tokens`` and ``completion_tokens`` were used (and are paid for) all the same.
    """

    reason: str
    evidence: dict[str, JsonValue]
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Teacher(Protocol):
    """What a backend's ``connect`` gives."""

    def __call__(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Answer | Failure]]:
        """One result for each request, as they come, in any order.

        Requests are taken from the iterator only as there is room for more, so that it can be endless; an answer that is there is given
        before the next request is waited for. It can be called again when its requests are answered.
        """


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


def one_line(error: BaseException) -> str:
    """What a library's error says, in one line that can be shown and kept: folders in it may tell whose machine this is."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return plain(private(" ".join(lines[:2])), 300) or type(error).__name__
