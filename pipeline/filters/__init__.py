"""Filters of the quality stage: one function each, which says in a sentence why an example is dropped, or None.

    filters: [{min_words: 4}, label_in_set]

    min_words(example, minimum=4)  ->  "the rationale has 2 words, fewer than 4"

A new filter is one function in the file of its kind, whose keyword-only parameters are its settings, and its name in ``FILTERS``. The
first sentence of its docstring says what is dropped. What it answers holds the figures that decided, so that a drop can be checked by
its line alone. Filters of the rationale let examples without one pass: a task that asks for no rationale has ``rationale: null``, an
empty rationale is "". Those in ``ASKED_FOR`` run only where they are named.

Filters look at one row alone and take time in proportion to its length, whatever stands in it.

Limits: phrases, units and empty words are English. Where a filter cannot tell, the example passes.
"""

from collections.abc import Callable
from typing import Final

from pipeline.filters.answers import finish_reason, label_has_value, label_in_set, matches_gold
from pipeline.filters.contradictions import last_value, other_conclusion, wrong_step
from pipeline.filters.credentials import secrets
from pipeline.filters.languages import language
from pipeline.filters.leftovers import boilerplate, broken_text, chat_tokens, refusal, run_on
from pipeline.filters.lengths import max_words, min_words, tokens
from pipeline.filters.lists import allow_list, block_list
from pipeline.filters.marked import marked_bad
from pipeline.filters.private import private_data
from pipeline.filters.scores import max_entropy, mean_logprob, min_agreement, min_judge_score
from pipeline.filters.substance import copies_example, repeats_input, repeats_label, repetition

FILTERS: dict[str, Callable[..., str | None]] = {
    function.__name__: function
    for function in (
        label_in_set,
        label_has_value,
        matches_gold,
        finish_reason,
        min_words,
        max_words,
        tokens,
        repeats_label,
        repeats_input,
        copies_example,
        repetition,
        other_conclusion,
        wrong_step,
        last_value,
        refusal,
        boilerplate,
        run_on,
        chat_tokens,
        broken_text,
        private_data,
        secrets,
        language,
        allow_list,
        block_list,
        marked_bad,
        min_agreement,
        max_entropy,
        mean_logprob,
        min_judge_score,
    )
}
"""What ``quality.filters`` can name."""

ASKED_FOR: Final[dict[str, str | None]] = {
    "matches_gold": "gold",
    "tokens": None,
    "secrets": None,
    "last_value": None,
    "language": None,
    "allow_list": None,
    "block_list": None,
    "marked_bad": None,
    "min_agreement": "votes",
    "max_entropy": "votes",
    "mean_logprob": "votes",
    "min_judge_score": "judgement",
}
"""Filters that run only where they are named, and the field of the example, if any, that is their evidence besides label and rationale."""

SILENT: Final = ("private_data", "secrets")
"""Filters whose finds must not be written down once more: their drops, and any of a row that they object to, hold none of its texts."""
