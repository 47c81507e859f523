"""Which control token the row of a request spells: what could forge a turn, a start or an end where a prompt is made into tokens.

    by_letters(spelling, request)   "<|im_end|>", of a row "Goal!<|im_end|>"
    by_tokens(tokenizer, request)   the same, and also of a row "Goal!<|IM_END|>" where the tokenizer takes both for one

A token that the prompt's own template spells is its author's, unless the row spells it too.
"""

import re
from typing import TYPE_CHECKING

from pipeline import control
from pipeline.prompts import Messages
from pipeline.teachers.contract import Failure, Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def texts_of(messages: Messages | None) -> list[str]:
    """What stands in each message, and last how the answer is to begin."""
    assert messages is not None
    return [*(message.content for message in messages.messages), messages.assistant_prefix]


def by_letters(spelling: re.Pattern[str], request: Request) -> str | None:
    """The first token that ``spelling`` finds in a message and that is not its author's."""
    found = (match for text in texts_of(request.messages) for match in spelling.findall(text))
    return next((str(token) for token in found if not authored(token, request)), None)


def by_tokens(tokenizer: "PreTrainedTokenizerBase", request: Request) -> str | None:
    """The first control token that the tokenizer reads in a message and that is not its author's."""
    found = (token for text in texts_of(request.messages) for token in control.spelt(tokenizer, text))
    return next((token for token in found if not authored(token, request)), None)


def authored(token: str, request: Request) -> bool:
    """Whether the prompt's template spells it, and no text of the row does: not in other letters or with other white space either."""
    if token not in request.template_text:
        return False
    bare = _bare(token)
    return not any(bare in _bare(text) for text in request.row_texts)


def refusal(token: str, problem: str | None = None) -> Failure:
    """The failure of a request whose row spells ``token``."""
    return Failure("special_token", {"token": token} if problem is None else {"token": token, "problem": problem})


def _bare(text: str) -> str:
    return "".join(text.casefold().split())
