r"""Filters of what has no place in a rationale: refusals, the manners of a chat, the next question, tokens of a chat format, broken text.

Phrases are compared as pipeline.text normalises them. One that the row's input holds as well is passed over: it may be what the
rationale speaks about.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Final

from pydantic import Field

from pipeline.filters.reading import quoted, said, written
from pipeline.records import Example
from pipeline.text import normalise

Phrase = Annotated[str, Field(min_length=1)]

REFUSALS = (
    "as an ai",
    "as an artificial intelligence",
    "as a language model",
    "as a large language model",
    "i must decline",
    "i have to decline",
    "no answer can be given",
    "against my guidelines",
    "beyond my capabilities",
)

# How teachers decline in the first person, in normalised words: "i (really) cannot | am unable to | .. (just) answer | help | ..".
_ADVERB = r"(?:(?:\w{2,14}ly|also|just|still|therefore|thus|hence|however|afraid|sorry|but|in good conscience) ){0,2}"
_CORE = r"(?:answer|respond|reply|help(?! but| \w+ing)|assist|provide|comply|fulfil|fulfill|accommodate)"
_WIDE = (
    rf"(?:{_CORE}|(?:be )?(?:answering|responding|helping|providing)|determine|decide|judge|choose|pick|select|verify|confirm|conclude"
    r"|solve|complete|process|perform|generate|produce|create|offer|give (?:you|an?|the|any|advice)|share|discuss|engage|comment"
    r"|recommend|advise|support|continue|proceed|do (?:that|this|so)|find (?:an|the|any|enough)|say (?:for|with|which|what|whether)"
    r"|tell (?:you|which|what|whether|from)|work (?:this|that|it) out|make (?:an?|any|this|that|such)|reach an?|come up with"
    r"|carry (?:this|that|out)|speculate|identify|infer|access|figure)"
)
_UNABLE = (
    r"(?:cannot|can not|could not|couldnt|(?:wont|will not)(?: be able to)?|should not"
    rf"|(?:am|was) {_ADVERB}(?:unable|unwilling|forbidden|prohibited|not (?:able|allowed|permitted|authori[sz]ed|qualified|equipped"
    r"|designed|willing|supposed|going|in a position)) (?:to|from)|(?:find|found) myself unable to)"
)
_KNOWLEDGE = (
    r"(?:\w{2,14} ){0,2}"
    r"(?:information|context|details?|data|knowledge|evidence|ability|capability|expertise|means|basis|access|way)"
)
_DECLINES: Final = {  # what it holds, looked for first -> the form
    " i ": re.compile(
        r" (?:unfortunately|regrettably|sadly) i(?= )|not something i (?:am|can|could|will|would)(?= )"
        rf"| i {_ADVERB}(?:{_UNABLE} {_ADVERB}{_WIDE}"
        rf"|(?:(?:must|have to|will have to|need to|will|would|am going to|am going to have to|am obliged to|am forced to) )?{_ADVERB}"
        r"(?:decline|refuse|abstain|refrain from)"
        r"|(?:would|will) (?:rather|prefer) not|(?:would )?(?:prefer|choose) not to|would not be able to"
        rf"|do not (?:currently )?(?:have|possess) (?:{_KNOWLEDGE}|an answer|any answer|the answer|personal)"
        rf"|(?:lack|have no) {_KNOWLEDGE}|(?:do not|would not|am not) (?:feel )?comfortable|(?:will|am going to) have to pass"
        rf"|would (?:need|require) (?:more|additional|further) {_KNOWLEDGE}|do not (?:think|believe) (?:that )?i (?:can|should)"
        r"|do not know (?:the|how to|what the|which) (?:correct |right )?(?:answer|choice|option)"
        r"|(?:am|was|have been) (?:instructed|told|trained|programmed|asked) not to"
        r"|apologi[sz]e|regret (?:that|to)|am (?:just|only|merely) an? (?:ai|language)"
        r"|am (?:afraid|sorry) (?:but |that |this )?(?:i|we|no|the|your|this|that|cannot))(?= )"
    ),
    " we ": re.compile(
        rf" we {_ADVERB}(?:cannot|can not|(?:wont|will not)(?: be able to)?|are unable to|are not able to) {_ADVERB}{_CORE}(?= )"
    ),
    " me ": re.compile(
        r" (?:not (?:be )?(?:appropriate|possible|right|proper|ethical|responsible|permissible|allowed)|inappropriate|impossible"
        rf"|unethical|irresponsible|improper) (?:for|of) me to(?= )| for me to {_WIDE}(?= )"
    ),
    " my ": re.compile(
        r" my (?:\w{2,14} ){0,2}(?:guidelines|policy|policies|programming|capabilities|safeguards)(?= )"
    ),
    " our ": re.compile(
        r" (?:against|violates?|by|under|with) our (?:\w{2,14} ){0,2}(?:guidelines|policy|policies)(?= )"
    ),
    " polic": re.compile(r" (?:content|usage|use|safety) polic(?:y|ies)(?= )"),
    "sorry": re.compile(r" sorry (?:but|i|we|about that|for the inconvenience)(?= )"),
    "apologies": re.compile(r" apologies (?:but|i|for (?:the|any|not))(?= )"),
    "appropriate": re.compile(
        rf" (?:not (?:be )?appropriate|inappropriate) to (?:{_CORE}|discuss|comment|speculate|engage|generate|choose an?|share)(?= )"
    ),
    "unfortunately": re.compile(r" unfortunately (?:i|we|this (?:request|question)|the question|your)(?= )"),
    "unable to": re.compile(rf"^ (?:sorry )?unable to {_WIDE}(?= )"),
    " cannot be ": re.compile(
        r" (?:request|question|query|prompt|task|problem) (?:\w{2,14}ly )?cannot be "
        r"(?:answered|fulfilled|completed|processed|handled|solved|resolved|satisfied)(?= )"
    ),
}
"""Of "we" less is asked than of "I": a rationale may well reason "we cannot determine the order from this"."""

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
    *("### Instruction:", "### Input:", "### Response:"),
)  # fmt: skip


def refusal(example: Example, *, phrases: Sequence[Phrase] = REFUSALS) -> str | None:
    """The rationale (in a free response: the text) holds words by which teachers decline, and the input does not.

    Besides ``phrases`` these are the usual ways to say in the first person that one cannot, may not or will not answer ("I'm afraid I am
    not able to determine ..", "it is not appropriate for me to ..", "unfortunately, I .."). That something cannot be known, said without
    an "I", is no refusal: it is what a neutral label stands for.
    """
    found = _phrase(example, tuple(phrases)) or _declined(example)
    return found and f"the teacher declines: {quoted(found)}"


def _declined(example: Example) -> str | None:
    """The first words in which a form of ``_DECLINES`` is found, and the input does not hold."""
    if _SIGNS_OF_IT.isdisjoint(said(written(example))):
        return None
    text = _in_full(written(example))
    for part, form in _DECLINES.items():
        if part in text:
            for match in form.finditer(text):
                if f"{match[0]} " not in _in_full(example.input):
                    return match[0].strip()
    return None


def _in_full(text: str) -> str:
    """The normalised text between spaces, with "I'm" and its like in full."""
    text = f" {normalise(text)} "
    for short, full in _SHORT.items():
        text = text.replace(short, full)
    return text


_SHORT: Final = {
    " im ": " i am ",
    " ive ": " i have ",
    " id rather ": " i would rather ",
    " dont ": " do not ",
    " cant ": " cannot ",
}
_SIGNS_OF_IT: Final = frozenset(
    "i we me my our im ive id policy policies sorry apologies appropriate inappropriate unfortunately unable cannot cant".split()
)
"""Words of which each form of ``_DECLINES`` has one."""


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

    The list is that of the chat templates of ChatML, Llama 2 and 3, Gemma, Mistral, DeepSeek, Harmony and Alpaca.
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
    normal, rare = _normal(phrases)
    if rare.isdisjoint(said(written(example))):
        return None
    text = f" {normalise(written(example))} "
    for spelled, phrase in normal:
        if spelled in text and spelled not in f" {normalise(example.input)} ":
            return phrase
    return None


@lru_cache(maxsize=64)
def _normal(phrases: tuple[str, ...]) -> tuple[list[tuple[str, str]], frozenset[str]]:
    """The phrases as they are looked for, and a long word of each: without one of these no phrase stands in a text."""
    normal = [(f" {normalise(phrase)} ", phrase) for phrase in phrases]
    return normal, frozenset(max(reversed(spelled.split()), key=len, default="") for spelled, _ in normal)


@lru_cache(maxsize=64)
def _by_first_character(tokens: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    return [
        (first, [token for token in tokens if token[0] == first]) for first in sorted({token[0] for token in tokens})
    ]


@lru_cache(maxsize=64)
def _opening(marks: tuple[str, ...]) -> re.Pattern[str]:
    options = "|".join(re.escape(mark).replace(re.escape("{n}"), "[0-9]{1,6}") for mark in marks)
    return re.compile(rf"\n[ \t*#]{{0,20}}(?:{options})")
