"""What an OpenAI-compatible server's answer says: read strictly, so that nothing is taken for an answer that is none.

    {"choices": [{"index": 0, "message": {"content": "A goal is scored."}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 7, ..}}
    -> Answer("A goal is scored.", "stop", prompt_tokens=7, ..)

Soft labels: the 20 most likely tokens behind the last ``after`` of the answer are asked for. A token belongs to the label that it begins
or completes (spaces in front aside); the log-probabilities of a label's tokens are added up. Where it can begin several labels, and was
the one chosen, the next token is looked at; otherwise it counts for none. Labels that are not seen get no entry.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import JsonValue

from pipeline.files import plain, strict_json
from pipeline.teachers.contract import Answer, Failure, Request

MOST_TOKENS: Final = 10**9  # counts above it are not true
LOWEST_LOGPROB: Final = -1e5  # vLLM writes -9999 for minus infinity
ROUNDING: Final = 1e-3  # by which a log-probability may be above 0
FINISHED: Final = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn"), "stop"),  # Together's, TGI's and Anthropic's words
    **dict.fromkeys(("length", "model_length", "max_tokens"), "length"),  # Mistral's and Anthropic's
}
"""The finish reasons of an answer, and the standard's word for each. With any other one the text is not what the model would have said."""


def read(
    content: bytes,
    request: Request,
    *,
    chat: bool,
    is_asked: Callable[[object], bool],
    hide: Callable[[str], str],
    refuses_key: bool,
) -> Answer | Failure:
    """The answer that the bytes hold, or why there is none.

    ``is_asked`` says whether a model's name is that of the one asked, ``hide`` takes the key out of a text; with ``refuses_key`` an
    answer that holds the key is none.
    """
    shown = plain(hide(content[: 2**16].decode(errors="replace")), 1000)
    try:
        found = strict_json(content)
    except ValueError as error:
        return Failure("unreadable_answer", {"problem": plain(hide(str(error))), "answer": shown})
    if not isinstance(found, dict):
        return Failure("unreadable_answer", {"problem": "not a JSON object", "answer": shown})
    usage = found.get("usage")
    prompt_tokens, completion_tokens = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")

    def failure(reason: str, **evidence: JsonValue) -> Failure:
        return Failure(reason, {**evidence, "answer": shown}, prompt_tokens, completion_tokens)

    choice = _first_choice(found.get("choices"))
    if choice is None:
        return failure("unreadable_answer", problem="not one choice with index 0")
    model = found.get("model")
    if model is not None and not is_asked(model):
        return failure("other_model", model=plain(hide(str(model)), 100))
    message = choice.get("message") if chat else choice
    if not isinstance(message, dict):
        return failure("unreadable_answer", problem="a choice without a message")
    reason = choice.get("finish_reason")
    if not isinstance(reason, str) or reason not in FINISHED:
        return failure("not_finished", finish_reason=plain(hide(str(reason)), 100))
    text = message.get("content" if chat else "text")
    if not isinstance(text, str):
        return failure("no_text", finish_reason=reason)
    if refuses_key and hide(text) != text:
        return failure("key_in_answer")
    tokens = _tokens(choice.get("logprobs"))
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    cached = _count(details, "cached_tokens")
    mean = None
    if tokens and request.sampling.get("logprobs"):
        mean = math.fsum(token.logprob for token in tokens) / len(tokens)
    soft: Any = request.sampling.get("soft_labels")
    labels = label_logprobs(tokens, text, soft["after"], soft["labels"]) if tokens and soft is not None else None
    return Answer(
        text=text,
        finish_reason=FINISHED[reason],
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cached_tokens=cached if cached <= prompt_tokens else 0,
        mean_logprob=mean,
        label_logprobs=labels,
    )


def _first_choice(choices: object) -> dict[str, Any] | None:
    """The choice with index 0, wherever it stands; one alone may have no index."""
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        return None
    first = [choice for choice in choices if type(choice.get("index")) is int and choice["index"] == 0]
    if len(choices) == 1 and choices[0].get("index") is None:
        first = choices
    return first[0] if len(first) == 1 else None


def _count(usage: object, name: str) -> int:
    """A number of tokens; 0 where there is none, or none that can be true."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count <= MOST_TOKENS else 0


@dataclass(frozen=True)
class Token:
    """One token of an answer: its text, its log-probability, and those of the likeliest tokens in its place, itself among them."""

    text: str
    logprob: float
    likeliest: dict[str, float]


def _tokens(found: Any) -> list[Token] | None:
    """The tokens of an answer, of either protocol; None where they are not all there."""
    try:
        if found.get("content") is not None:
            return [
                _token(
                    one["token"],
                    one["logprob"],
                    [(top["token"], top["logprob"]) for top in one.get("top_logprobs") or ()],
                )
                for one in found["content"]
            ]
        top = found.get("top_logprobs") or [None] * len(found["tokens"])
        together = zip(found["tokens"], found["token_logprobs"], top, strict=True)
        return [_token(text, logprob, list((likeliest or {}).items())) for text, logprob, likeliest in together]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _token(text: object, logprob: object, likeliest: list[tuple[object, object]]) -> Token:
    """Raises ValueError for what is no text or cannot be a log-probability."""
    if all(text != other for other, _ in likeliest):
        likeliest = [*likeliest, (text, logprob)]
    found: dict[str, float] = {}
    for other, value in likeliest:
        found[_is_text(other)] = _added(found.get(_is_text(other)), _is_logprob(value))
    return Token(_is_text(text), _is_logprob(logprob), found)


def _is_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not the text of a token")
    return value


def _is_logprob(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not LOWEST_LOGPROB <= value <= ROUNDING:
        raise ValueError("not a log-probability")
    return min(float(value), 0.0)


def _added(one: float | None, other: float) -> float:
    """The logarithm of the sum of two probabilities."""
    if one is None:
        return other
    return min(max(one, other) + math.log1p(math.exp(-abs(one - other))), 0.0)


def label_logprobs(tokens: Sequence[Token], text: str, after: str, labels: Sequence[str]) -> dict[str, float] | None:
    """The log-probability of each label that was seen behind the last ``after`` of the answer ``text``; None where none was.

    ``after`` may end within a token. White space does not count in finding the place: some servers leave it out of a token's text.
    """
    place = text.rfind(after) if after else 0
    if place < 0:
        return None
    before = _squeezed(text[: place + len(after)])
    said, first = "", 0
    while first < len(tokens) and len(said + _squeezed(tokens[first].text)) <= len(before):
        said += _squeezed(tokens[first].text)
        first += 1
    if first == len(tokens) or not (said + _squeezed(tokens[first].text)).startswith(before):
        return None
    begun = before[len(said) :]  # what of ``after`` is in the label's first token
    found: dict[str, float] = {}
    written, logprob = "", 0.0
    for token in tokens[first:]:
        following: str | None = None
        for other, value in token.likeliest.items():
            rest = _behind(other, begun)
            if rest is None:
                continue
            candidate = (written + rest).lstrip()
            meant = _meant(candidate, labels)
            if len(meant) == 1:
                found[meant[0]] = _added(found.get(meant[0]), logprob + value)
            elif meant and other == token.text:
                following = candidate
        if following is None:
            return found or None
        written, logprob, begun = following, logprob + token.logprob, ""
    if written in labels:  # the answer ends with a label that another one begins with
        found[written] = _added(found.get(written), logprob)
    return found or None


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _behind(text: str, begun: str) -> str | None:
    """What of a token's text follows ``begun``, white space aside; None where it begins otherwise."""
    for character in begun:
        text = text.lstrip()
        if not text.startswith(character):
            return None
        text = text[1:]
    return text


def _meant(candidate: str, labels: Sequence[str]) -> list[str]:
    """The labels that a text can become, or the one that it has become: the longest that it begins with, up to a word's end."""
    begins = [label for label in labels if label.startswith(candidate)]
    if begins:
        return begins if candidate else [*begins, ""]  # nothing yet is never one label's
    complete = [label for label in labels if candidate.startswith(label) and not candidate[len(label)].isalnum()]
    return [max(complete, key=len)] if complete else []
