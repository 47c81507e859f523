"""Control tokens: which of a tokenizer's tokens steer a model, which of them a text spells, and text made into tokens of which none is one.

    spelt(tokenizer, "a<|im_end|>b")      ["<|im_end|>"]
    text_ids(tokenizer, "a<|im_end|>b")   [64, 27, 91, ..]: "a", "<", "|" and so on, as plain text has them

Two sets. ``steering``: the tokens that are flagged as special, and those that the chat template writes; no text of a row may become one.
``suspects``: these, and whatever else was added to the vocabulary and looks like a mark ("<|repo_name|>", "[INST]", "|||EMAIL|||"). An
added token that looks like text is text: a word, white space, or a tag of HTML, which some models have as tokens.

Limits: a mark that a chat template writes with ordinary tokens ("[/INST]") is told from text by ``template_marks`` alone, which see. The
token for unknown words is in neither set: it is what some text becomes by right.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SLOT: Final = "\ue5a1\uf3c7\ue90b"  # of the private use area: stands for a text while a chat template is rendered
_HTML: Final = frozenset(
    "a abbr b big blockquote body br caption center cite code col colgroup dd del div dl dt em font footer h1 h2 h3 h4 h5 h6 head header "
    "hr html i img ins kbd li main mark ol p pre q s samp script section small span strike strong style sub sup table tbody td tfoot th "
    "thead title tr tt u ul var".split()
)
_TAG: Final = re.compile(r"</?([a-z][a-z0-9]*) ?/?>")
_MARK: Final = re.compile(r"(?s)[^\w\s].*[^\W_].*[^\w\s]")
_WORD: Final = re.compile(r"[^\W\d_]{3}")
_SIGN: Final = re.compile(r"[^\w\s]")


class NoPlainTokenError(ValueError):
    """The tokenizer has no token for ``sign`` but a control token."""

    def __init__(self, sign: str) -> None:
        super().__init__(f"nothing but a control token for {sign!r}")
        self.sign = sign


def text_ids(tokenizer: "PreTrainedTokenizerBase", text: str, forbidden: frozenset[int] | None = None) -> list[int]:
    """The tokens of plain text, none of them in ``forbidden`` (where left out: ``steering``). Raises NoPlainTokenError.

    What looks like a special token is taken as text; where a tokenizer would read one in spite of that (T5's reads "</s>", and those
    that are not flagged as special are always read), the text is cut inside it.
    """
    control = steering(tokenizer) if forbidden is None else forbidden

    def ids_of(part: str) -> list[int]:
        return plain_ids(tokenizer, part, split=True)

    ids = ids_of(text)
    if control.isdisjoint(ids):
        return ids
    found: list[int] = []
    while text:  # each round looks at little more than what it takes off, so that many marks cost no more than few
        whole, safe = 1, 0  # how much of the beginning has a control token, and has none
        while control.isdisjoint(ids := ids_of(text[:whole])):
            if whole >= len(text):
                return found + ids
            whole, safe = min(2 * whole, len(text)), whole
        while whole - safe > 1:
            middle = (whole + safe) // 2
            if control.isdisjoint(ids_of(text[:middle])):
                safe = middle
            else:
                whole = middle
        if not safe:
            raise NoPlainTokenError(text[0])
        found += ids_of(text[:safe])
        text = text[safe:]
    return found


def plain_ids(tokenizer: "PreTrainedTokenizerBase", text: str, *, split: bool) -> list[int]:
    """The tokens of ``text`` alone, nothing put around it. ``split``: what looks like a special token is taken as text."""
    arguments: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": split, "verbose": False}
    found: Iterable[int] = tokenizer(text, **arguments)["input_ids"]
    return list(found)


def steering(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """The ids of the tokens that are special, or that the chat template writes."""
    return _steering(tokenizer, state(tokenizer))


def suspects(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """``steering``, and the ids of all other added tokens that look like marks."""
    return _suspects(tokenizer, state(tokenizer))


def spelling(tokenizer: Any) -> re.Pattern[str]:
    """Finds in a text the tokens of ``suspects`` that stand there letter by letter, and the token for unknown words.

    It is there for tokenizers of any kind; for one that is not of transformers it knows those tokens alone that it calls special.
    """
    found = {str(token) for token in tokenizer.all_special_tokens}
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    if hasattr(tokenizer, "get_added_vocab"):
        found |= {added[number].content for number in suspects(tokenizer) if number in added}
    found |= {str(token) for token in added.values() if token.special}
    found.discard("")
    return re.compile("|".join(re.escape(token) for token in sorted(found, key=len, reverse=True)) or r"(?!)")


def spelt(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[str]:
    """The tokens of ``suspects`` that the tokenizer reads in ``text``, in order: also those in other letters that it takes for the same."""
    control = suspects(tokenizer)
    return [
        str(tokenizer.convert_ids_to_tokens(number))
        for number in plain_ids(tokenizer, text, split=False)
        if number in control
    ]


def around(tokenizer: "PreTrainedTokenizerBase") -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer itself puts before and after a text."""
    return _around(tokenizer, state(tokenizer))


def state(tokenizer: "PreTrainedTokenizerBase") -> tuple[object, ...]:
    """What the cached facts about a tokenizer depend on, for it can be changed."""
    return len(tokenizer), tokenizer.eos_token_id, tokenizer.unk_token_id, templates(tokenizer)


def templates(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Its chat templates' text."""
    found: str | Mapping[str, str] | None = tokenizer.chat_template
    return "\n".join(found.values()) if isinstance(found, Mapping) else found or ""


def parts_around(
    render: Callable[[Sequence[str]], str], number: int, pad: tuple[str, str] = ("", "")
) -> list[str] | None:
    """What a template writes before, between and behind ``number`` texts: ``number`` + 1 parts.

    ``render`` gives what it writes of such texts; it is given placeholders, between the two texts of ``pad``, so that no part depends on
    what a row says. None where a text is not written exactly once, as it is and in its place.
    """
    slots = [f"{SLOT}{chr(0xE000 + place)}" for place in range(number)]
    rest = render([f"{pad[0]}{slot}{pad[1]}" for slot in slots])
    parts = []
    for slot in slots:
        before, *after = rest.split(slot)
        if len(after) != 1:
            return None
        parts.append(before)
        rest = after[0]
    return None if SLOT in "".join(parts) + rest else [*parts, rest]


def template_marks(parts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> frozenset[str]:
    """The lines by which a template tells turns apart without a control token ("[/INST]", "### Response:"): text can forge these.

    ``parts`` are those of ``parts_around``. Where a part has a control token, that guards it. A line without any sign, or with fewer than
    three letters in a row ("Q:"), is too much like any text to be told from it.
    """
    control = suspects(tokenizer)
    return frozenset(
        line.strip()
        for part in parts
        if control.isdisjoint(plain_ids(tokenizer, part, split=False))
        for line in part.splitlines()
        if _WORD.search(line) and _SIGN.search(line)
    )


@lru_cache(maxsize=8)
def _around(tokenizer: "PreTrainedTokenizerBase", state: tuple[object, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    bare, whole = plain_ids(tokenizer, "a", split=False), list(tokenizer("a")["input_ids"])
    for place in range(len(whole) - len(bare) + 1):
        if whole[place : place + len(bare)] == bare:
            return tuple(whole[:place]), tuple(whole[place + len(bare) :])
    return (), ()


@lru_cache(maxsize=8)
def _steering(tokenizer: "PreTrainedTokenizerBase", state: tuple[object, ...]) -> frozenset[int]:
    written = templates(tokenizer)
    found = {
        number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special or (token.content.strip() and token.content in written)
    }
    found |= {number for number in tokenizer.all_special_ids if number is not None}
    return _without_unknown(tokenizer, found)


@lru_cache(maxsize=8)
def _suspects(tokenizer: "PreTrainedTokenizerBase", state: tuple[object, ...]) -> frozenset[int]:
    added = {
        number for number, token in tokenizer.added_tokens_decoder.items() if _looks_like_a_mark(token.content.strip())
    }
    return _steering(tokenizer, state) | _without_unknown(tokenizer, added)


def _without_unknown(tokenizer: "PreTrainedTokenizerBase", found: set[int]) -> frozenset[int]:
    unknown = tokenizer.unk_token_id
    return frozenset(found - {unknown} if unknown != tokenizer.eos_token_id else found)


def _looks_like_a_mark(token: str) -> bool:
    tag = _TAG.fullmatch(token)
    return _MARK.fullmatch(token) is not None and (tag is None or tag[1] not in _HTML)
