"""From messages to the tokens that vLLM is sent: chat template, special tokens, length.

A row that spells one of the model's special tokens could forge a turn, and one that does not fit would stop the whole call: both become
failures of their own here, and never reach the engine. With ``plain`` such a row is asked about all the same, and what it spells is text.

    <|im_start|>user\\n   a<|im_end|>b   <|im_end|>\\n<|im_start|>assistant\\n
    the template's own    the row's      the template's own

What the template writes is made into tokens as ever, what stands in a message as plain text, each by itself; a row without such tokens is
sent as it would be without ``plain``. Either way the control tokens of what is sent must be those of the template with harmless texts.

Limits: a tokenizer that vLLM does not take from transformers is known by the spelling of its special tokens alone. Where a chat template
tells turns apart by words, a row that spells them is set apart, also with ``plain``, as far as `control.template_marks` knows them.
"""

import re
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import jinja2

from pipeline import control
from pipeline.files import InputError
from pipeline.prompts import Messages
from pipeline.teachers.contract import Failure, Request, one_line
from pipeline.teachers.forged import authored, by_letters, by_tokens, refusal, texts_of


def encoder(
    chat: bool | None, tokenizer: Any, context: int | None, *, plain: bool = False
) -> Callable[[Request], list[int] | Failure]:
    """A function from a request to its prompt's token ids, or to the failure that says why it is not asked.

    ``chat``: into the chat template or not; None: where there is one. ``context``: tokens that prompt and answer may have together.
    ``plain``: rows that spell control tokens are sent as plain text. Raises InputError where there is no template though one is wanted,
    or ``plain`` is and the tokenizer is none of transformers; the function raises it where the template refuses the prompt.
    """
    chat = templated(chat, tokenizer)
    known = hasattr(tokenizer, "added_tokens_decoder") and hasattr(tokenizer, "convert_ids_to_tokens")
    if plain and not known:
        raise InputError(
            "stages.sample.teacher.special_tokens: plain needs a tokenizer of transformers, and vLLM uses another one for this "
            "model; leave it out, or set engine.tokenizer_mode: hf"
        )
    spelling = control.spelling(tokenizer)
    guarded = _Guarded(tokenizer, chat, spelling) if known else None

    def encode(request: Request) -> list[int] | Failure:
        assert request.messages is not None
        token = by_letters(spelling, request)
        if guarded is None:
            found = _whole(chat, tokenizer, request.messages) if token is None else refusal(token)
        elif (mark := guarded.mark(request)) is not None:
            return refusal(mark, "the chat template tells turns apart by this text")
        else:
            found = guarded.joined(request) if token is None else refusal(token)
            if plain and isinstance(found, Failure):
                found = guarded.apart(request, str(found.evidence["token"]))
        if isinstance(found, list) and context is not None and len(found) + request.max_tokens > context:
            return Failure(
                "prompt_too_long",
                {"prompt_tokens": len(found), "max_tokens": request.max_tokens, "context": context},
            )
        return found

    return encode


def templated(chat: bool | None, tokenizer: Any) -> bool:
    """Whether prompts are put into the tokenizer's chat template. Raises InputError where they are to be and it has none."""
    there = getattr(tokenizer, "chat_template", None) is not None
    if chat and not there:
        raise InputError(
            "stages.sample.teacher.chat: the tokenizer has no chat template; set it to false, or leave it out"
        )
    return there if chat is None else chat


class _Guarded:
    """Prompts as tokens, their control tokens held against those of the template. It remembers what the template writes by itself."""

    def __init__(self, tokenizer: Any, chat: bool, spelling: re.Pattern[str]) -> None:
        self.tokenizer, self.chat, self.spelling = tokenizer, chat, spelling
        self.control = control.suspects(tokenizer)
        self.expected: dict[tuple[object, ...], list[int]] = {}
        self.frames: dict[tuple[str, ...], _Frame | None] = {}

    def mark(self, request: Request) -> str | None:
        """A line of the chat template's that a message's text spells, and that has no control token to guard it."""
        if not self.chat:
            return None
        assert request.messages is not None
        frame = self._shape(request.messages)
        if frame is None or not frame.marks:
            return None
        for text in texts_of(request.messages):
            for mark in frame.marks:
                if mark in text and not authored(mark, request):
                    return mark
        return None

    def joined(self, request: Request) -> list[int] | Failure:
        """The prompt as one text, as the model was trained to read it; a failure where a row's text makes a control token of it."""
        messages = request.messages
        assert messages is not None
        found = _whole(self.chat, self.tokenizer, messages)
        written = [self.spelling.findall(text) for text in texts_of(messages)]  # by the prompt's author
        found_there, expected = self._controls(found), self._expected(messages, written)
        if found_there == expected:
            return found
        return refusal(by_tokens(self.tokenizer, request) or self._first(found_there, expected))

    def apart(self, request: Request, token: str) -> list[int] | Failure:
        """The prompt with what stands in each message as plain text; a failure, which names ``token``, where that cannot be vouched for."""
        messages = request.messages
        assert messages is not None
        texts = texts_of(messages)
        if any(found in request.template_text for text in texts for found in self.spelling.findall(text)):
            return refusal(token, "task.prompt spells special tokens of its own, which would become text as well")
        try:
            if self.chat:
                frame = self._frame(messages)
                if frame is None:
                    return refusal(token, "the chat template changes what stands in the messages")
                texts = frame.stripped(texts)
                found = [*frame.ids[0]]
                for text, ids in zip(texts, (*frame.ids[1:], []), strict=True):
                    found += [*control.text_ids(self.tokenizer, text, self.control), *ids]
            else:
                before, after = control.around(self.tokenizer)
                found = [*before, *control.text_ids(self.tokenizer, "".join(texts), self.control), *after]
        except control.NoPlainTokenError:
            return refusal(token, "the tokenizer has nothing else for it")
        harmless = self._expected(messages, [[] for _ in texts])
        return found if self._controls(found) == harmless else refusal(token, "it could not be made plain text")

    def _controls(self, ids: Sequence[int]) -> list[int]:
        return [number for number in ids if number in self.control]

    def _expected(self, messages: Messages, written: Sequence[Sequence[str]]) -> list[int]:
        """The control tokens of the prompt if its row said nothing: the template's, and those ``written`` in each message."""
        roles = tuple(message.role for message in messages.messages)
        blank = tuple(not text.strip() for text in texts_of(messages))
        key = roles, blank, tuple(map(tuple, written))
        if key not in self.expected:
            harmless = [
                "" if empty else "".join(["a", *(f"{token}a" for token in tokens)])
                for empty, tokens in zip(blank, written, strict=True)
            ]
            said = [
                message.model_copy(update={"content": text})
                for message, text in zip(messages.messages, harmless, strict=False)
            ]
            whole = Messages(messages=said, assistant_prefix=harmless[-1])
            self.expected[key] = self._controls(_whole(self.chat, self.tokenizer, whole))
        return self.expected[key]

    def _first(self, found: Sequence[int], expected: Sequence[int]) -> str:
        """The first control token that is there too much or too few."""
        pairs = zip_longest(found, expected)
        return next(
            str(self.tokenizer.convert_ids_to_tokens(other if one is None else one))
            for one, other in pairs
            if one != other
        )

    def _shape(self, messages: Messages) -> "_Frame | None":
        roles = tuple(message.role for message in messages.messages)
        if roles not in self.frames:
            self.frames[roles] = _frame(self.tokenizer, messages)
        return self.frames[roles]

    def _frame(self, messages: Messages) -> "_Frame | None":
        """What the template writes around these messages; None where it is not what it writes around any others."""
        real = _chat(self.tokenizer, messages) + messages.assistant_prefix
        for _ in range(2):
            frame = self._shape(messages)
            if frame is not None and frame.around(texts_of(messages)) == real:
                return frame
            self.frames.pop(tuple(message.role for message in messages.messages))  # it may have written the time of day
        return None


class _Frame:
    """What a chat template writes before, between and behind the messages, and how much white space it takes off each."""

    def __init__(self, tokenizer: Any, parts: list[str], kept: list[tuple[bool, bool]]) -> None:
        self.parts, self.kept = parts, kept
        self.ids = [control.plain_ids(tokenizer, part, split=False) for part in parts]
        self.marks = sorted(control.template_marks(parts, tokenizer))

    def stripped(self, texts: Sequence[str]) -> list[str]:
        """The texts of the messages as the template writes them; the last, with which the answer begins, is none of them."""
        found = []
        for text, (left, right) in zip(texts, self.kept, strict=False):
            said = text if left else text.lstrip()
            found.append(said if right else said.rstrip())
        return [*found, texts[-1]]

    def around(self, texts: Sequence[str]) -> str:
        """The prompt as one text."""
        said = self.stripped(texts)
        return "".join(part + text for part, text in zip(self.parts, said, strict=True))


PAD = ("\t", "\n")  # before and behind a placeholder, to see what is left of it


def _frame(tokenizer: Any, messages: Messages) -> _Frame | None:
    def render(texts: Sequence[str]) -> str:
        said = zip(messages.messages, texts, strict=True)
        turns = [message.model_copy(update={"content": text}) for message, text in said]
        return _chat(tokenizer, Messages(messages=turns, assistant_prefix=""))

    number = len(messages.messages)
    try:
        parts, padded = control.parts_around(render, number), control.parts_around(render, number, PAD)
    except InputError:
        return None
    if parts is None or padded is None:
        return None
    kept = [[True, True] for _ in range(number)]
    for place, (bare, found) in enumerate(zip(parts, padded, strict=True)):
        ends = [(before, after) for before in (PAD[1], "") for after in (PAD[0], "") if before + bare + after == found]
        if not ends:
            return None
        if place:
            kept[place - 1][1] = bool(ends[0][0])
        if place < number:
            kept[place][0] = bool(ends[0][1])
    return _Frame(tokenizer, parts, [(left, right) for left, right in kept])


def _whole(chat: bool, tokenizer: Any, messages: Messages) -> list[int]:
    texts = texts_of(messages)
    text = _chat(tokenizer, messages) + messages.assistant_prefix if chat else "".join(texts)
    return [int(token) for token in tokenizer.encode(text, add_special_tokens=not chat)]


def _chat(tokenizer: Any, messages: Messages) -> str:
    turns = [message.model_dump() for message in messages.messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except (jinja2.TemplateError, ValueError) as error:
        raise InputError(f"task.prompt: the model's chat template refuses the prompt: {one_line(error)}") from None
