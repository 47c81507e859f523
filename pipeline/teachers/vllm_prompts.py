"""From messages to the tokens that vLLM is sent: chat template, special tokens, length.

A row that spells one of the model's special tokens could forge a turn, and one that does not fit would stop the whole call: both become
failures of their own here, and never reach the engine.
"""

import re
from collections.abc import Callable
from typing import Any

import jinja2

from pipeline.files import InputError
from pipeline.prompts import Messages
from pipeline.teachers.contract import Failure, Request, one_line


def encoder(chat: bool | None, tokenizer: Any, context: int | None) -> Callable[[Request], list[int] | Failure]:
    """A function from a request to its prompt's token ids, or to the failure that says why it is not asked.

    ``chat``: into the chat template or not; None: where there is one. ``context``: tokens that prompt and answer may have together.
    Raises InputError where there is no template though one is wanted, and the function where it refuses the prompt.
    """
    chat = templated(chat, tokenizer)
    spelled = specials(tokenizer)

    def encode(request: Request) -> list[int] | Failure:
        assert request.messages is not None
        messages = request.messages
        for text in (*(message.content for message in messages.messages), messages.assistant_prefix):
            for token in spelled.findall(text):
                if token not in request.template_text or any(token in row_text for row_text in request.row_texts):
                    return Failure("special_token", {"token": token})
        if chat:
            text = _chat(tokenizer, messages) + messages.assistant_prefix
        else:
            text = "".join(message.content for message in messages.messages) + messages.assistant_prefix
        tokens = [int(token) for token in tokenizer.encode(text, add_special_tokens=not chat)]
        if context is not None and len(tokens) + request.max_tokens > context:
            return Failure(
                "prompt_too_long",
                {"prompt_tokens": len(tokens), "max_tokens": request.max_tokens, "context": context},
            )
        return tokens

    return encode


def templated(chat: bool | None, tokenizer: Any) -> bool:
    """Whether prompts are put into the tokenizer's chat template. Raises InputError where they are to be and it has none."""
    there = getattr(tokenizer, "chat_template", None) is not None
    if chat and not there:
        raise InputError(
            "stages.sample.teacher.chat: the tokenizer has no chat template; set it to false, or leave it out"
        )
    return there if chat is None else chat


def specials(tokenizer: Any) -> re.Pattern[str]:
    """Finds the tokenizer's special tokens in a text."""
    special = set(tokenizer.all_special_tokens)
    special |= {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special}
    special.discard("")
    return re.compile("|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)) or r"(?!)")


def _chat(tokenizer: Any, messages: Messages) -> str:
    turns = [message.model_dump() for message in messages.messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except (jinja2.TemplateError, ValueError) as error:
        raise InputError(f"task.prompt: the model's chat template refuses the prompt: {one_line(error)}") from None
