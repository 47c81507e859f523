r"""Filters of what has no place in a rationale: refusals, the manners of a chat, the next question, tokens of a chat format, broken text.

Phrases are compared as pipeline.text normalises them. One that the row's input holds as well is passed over: it may be what the
rationale speaks about.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Final

from pydantic import Field

from pipeline.filters.reading import quoted, written
from pipeline.records import Example
from pipeline.text import normalise

Phrase = Annotated[str, Field(min_length=1)]

REFUSALS = (
    "as an ai",
    "as a language model",
    "i am unable to",
    "i'm unable to",
    "i am not able to",
    "i'm not able to",
    "i cannot answer",
    "i can't answer",
    "i cannot assist",
    "i can't assist",
    "i cannot help",
    "i can't help",
    "i cannot provide",
    "i can't provide",
    "i'm sorry, but",
    "i am sorry, but",
)

BOILERPLATE = (
    "i hope this helps",
    "hope that helps",
    "let me know if you",
    "feel free to ask",
    "is there anything else i can",
    "as of my last update",
    "as of my knowledge cutoff",
    "my training data",
    "thank you for your question",
    "that's a great question",
    "here is the answer you",
    "sure, here is",
    "sure! here's",
    "certainly! here",
    "of course! here",
)

NEXT: Final = ("Q:", "Question:", "Input:", "Human:", "User:", "### Instruction", "### Input", "Example {n}:")

TOKENS: Final = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|eom_id|>", "<|return|>", "<|channel|>", "<|message|>"),
    *("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "</s>", "<s>", "<pad>", "<unk>", "<bos>", "<eos>"),
    *("<start_of_turn>", "<end_of_turn>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<think>", "</think>"),
)  # fmt: skip


def refusal(example: Example, *, phrases: Sequence[Phrase] = REFUSALS) -> str | None:
    """The rationale (in a free response: the text) holds a phrase by which teachers decline, and the input does not."""
    found = _phrase(example, tuple(phrases))
    return found and f"the teacher declines: {quoted(found)}"


def boilerplate(example: Example, *, phrases: Sequence[Phrase] = BOILERPLATE) -> str | None:
    """The rationale (in a free response: the text) speaks to whoever asked, in a phrase that the input does not hold."""
    found = _phrase(example, tuple(phrases))
    return found and f"it speaks to whoever asked: {quoted(found)}"


def run_on(example: Example, *, marks: Sequence[Phrase] = NEXT) -> str | None:
    """A later line of the rationale (in a free response: of the text) opens the next example: it begins with one of ``marks``.

    ``{n}`` in a mark stands for a number. Spaces and the marks ``*`` and ``#`` before it are passed over.
    """
    text = written(example)
    if "\n" not in text:
        return None
    found = _opening(tuple(marks)).search(text)
    return found and f"it runs on with {quoted(text[found.start() :].strip(), 60)}"


def chat_tokens(example: Example, *, tokens: Sequence[Phrase] = TOKENS) -> str | None:
    """The rationale or the text holds a token by which chat formats part turns, such as <|im_end|> or [INST], and the input does not.

    The list is that of the chat templates of ChatML, Llama 2 and 3, Gemma, Mistral, DeepSeek and Harmony.
    """
    for text in (example.rationale or "", example.text):
        for first, those in _by_first_character(tuple(tokens)):
            if first in text:
                for token in those:
                    if token in text and token not in example.input:
                        return f"it holds the token {quoted(token)}"
    return None


def broken_text(example: Example) -> str | None:
    """The rationale (in a free response: the text) holds a control or an invisible character, or U+FFFD, the sign of a wrong decoding.

    Tabs and line ends are text, and so are the joiners U+200C and U+200D and the direction marks U+200E and U+200F, which scripts need.
    """
    text = written(example)
    if text.isascii() and text.replace("\n", "").isprintable():
        return None
    found = _BROKEN.search(text)
    return found and f"it holds the character U+{ord(found[0]):04X} at place {found.start() + 1}"


_BROKEN = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u180e\u200b\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffd]"
)


def _phrase(example: Example, phrases: tuple[str, ...]) -> str | None:
    """The first of the phrases that stands in what was written and not in the input."""
    text = f" {normalise(written(example))} "
    for spelled, phrase in _normal(phrases):
        if spelled in text and spelled not in f" {normalise(example.input)} ":
            return phrase
    return None


@lru_cache(maxsize=64)
def _normal(phrases: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(f" {normalise(phrase)} ", phrase) for phrase in phrases]


@lru_cache(maxsize=64)
def _by_first_character(tokens: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    return [
        (first, [token for token in tokens if token[0] == first]) for first in sorted({token[0] for token in tokens})
    ]


@lru_cache(maxsize=64)
def _opening(marks: tuple[str, ...]) -> re.Pattern[str]:
    options = "|".join(re.escape(mark).replace(re.escape("{n}"), "[0-9]{1,6}") for mark in marks)
    return re.compile(rf"\n[ \t*#]{{0,20}}(?:{options})")
