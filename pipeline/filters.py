"""Filters of the quality stage: one function each, which says in a sentence why an example is dropped, or None.

    filters: [{min_words: 4}, label_in_set]

    min_words(example, minimum=4)  ->  "the rationale has 2 words, fewer than 4"

A new filter is one function here, whose keyword-only parameters are its settings, and its name in ``FILTERS``. Sentences hold the
figures that decided, so that a drop can be checked by its line alone. Filters of the rationale let examples without one pass: a task
that asks for no rationale has ``rationale: null``, an empty rationale is "". Those in ``ASKED_FOR`` run only where they are named: what
they look at takes several samples, or a judge.

Limits: words are those of text.py; the phrases of ``refusal`` and the empty words of ``repeats_label`` are English.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Final

from pydantic import Field

from pipeline import labels as label_forms
from pipeline.binding import From
from pipeline.files import plain
from pipeline.labels import LabelType
from pipeline.records import Example
from pipeline.text import ngrams, normalise, words

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]

EMPTY_WORDS = frozenset(
    words(
        "a about an and answer because belongs category choice correct i is it its label of so text that the therefore this to topic which"
    )
)

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


def label_in_set(example: Example, *, labels: Annotated[list[str] | None, From("task.labels")] = None) -> str | None:
    """The label is none of the row's own choices or, where it has none, of the task's labels."""
    options = example.choices or labels
    if options is None or example.label is None or example.label in options:
        return None
    return f"the label {_quoted(example.label)} is not among {plain(', '.join(options))}"


def label_has_value(
    example: Example, *, label_type: Annotated[LabelType, From("stages.parse.label_type")] = "text"
) -> str | None:
    """The label of a number or equation task has no value: a name in it, a bracket left open, a division by zero."""
    if label_type not in ("number", "equation") or example.label is None:
        return None
    if label_forms.value(example.label, label_type) is not None:
        return None
    return f"the label {_quoted(example.label)} is no {label_type} that has a value"


def finish_reason(example: Example, *, allowed: Sequence[str] = ("stop", "recorded")) -> str | None:
    """The teacher did not end by itself, so that the text may be cut off ("length")."""
    if example.finish_reason in allowed:
        return None
    return f"the response ended with {_quoted(example.finish_reason)}, not with {plain(' or '.join(allowed))}"


def min_words(example: Example, *, minimum: Count = 4) -> str | None:
    """The rationale has fewer words."""
    if example.rationale is None:
        return None
    count = len(words(example.rationale))
    return f"the rationale has {count} words, fewer than {minimum}" if count < minimum else None


def max_words(example: Example, *, maximum: Count = 300) -> str | None:
    """The rationale has more words."""
    count = len(words(example.rationale or ""))
    return f"the rationale has {count} words, more than {maximum}" if count > maximum else None


def repeats_label(example: Example) -> str | None:
    """The rationale says nothing but the label: "The answer is sports, so the topic is sports"."""
    if not example.rationale or example.label is None:
        return None
    said = words(example.rationale)
    label = set(words(example.label))
    if all(word in label or word in EMPTY_WORDS for word in said):
        return f"the rationale {_quoted(example.rationale)} only repeats the label {_quoted(example.label)}"
    return None


def repeats_input(example: Example, *, maximum: Share = 0.9) -> str | None:
    """More than ``maximum`` of the rationale's runs of three words stand in the input: it copies instead of explaining."""
    said = ngrams(words(example.rationale or ""), 3)
    given = set(ngrams(words(example.input), 3))
    copied = sum(run in given for run in said)
    if not said or copied <= maximum * len(said):
        return None
    return f"{copied} of the rationale's {len(said)} runs of three words are copied from the input, more than {maximum:.0%}"


def repetition(example: Example, *, maximum: Share = 0.5) -> str | None:
    """More than ``maximum`` of the runs of three words in the rationale (in a free response: in the text) were said before."""
    said = ngrams(words(_written(example)), 3)
    repeated = len(said) - len(set(said))
    if not said or repeated <= maximum * len(said):
        return None
    return f"{repeated} of {len(said)} runs of three words repeat an earlier one, more than {maximum:.0%}"


def refusal(example: Example, *, phrases: Sequence[str] = REFUSALS) -> str | None:
    """The rationale (in a free response: the text) holds a phrase by which teachers decline."""
    said = f" {normalise(_written(example))} "
    for phrase in phrases:
        if f" {normalise(phrase)} " in said:
            return f"the teacher declines: {_quoted(phrase)}"
    return None


def min_agreement(example: Example, *, minimum: Share = 0.6) -> str | None:
    """The label won a smaller share of the votes (of their weight, in a weighted vote)."""
    if example.agreement is None or example.agreement >= minimum:
        return None
    return f"the label won {example.agreement:.4g} of the votes, less than {minimum:g}: {_votes(example)}"


def max_entropy(example: Example, *, maximum: Annotated[float, Field(ge=0)] = 1.0) -> str | None:
    """The votes are spread wider over the labels: their entropy, in bits, is higher (1 is two labels with half of the votes each)."""
    if example.entropy is None or example.entropy <= maximum:
        return None
    return f"the votes have an entropy of {example.entropy:.4g} bits, more than {maximum:g}: {_votes(example)}"


def min_judge_score(example: Example, *, minimum: Annotated[int, Field(ge=1, le=5)] = 3) -> str | None:
    """The judge gave a lower score, or none at all."""
    found = example.judgement
    if found is None:
        return "it was not judged"
    if found.score >= minimum:
        return None
    return f"the judge gave {found.score}, less than {minimum}: {_quoted(found.reason, 200)}"


def _votes(example: Example) -> str:
    """How often each label was said, the most frequent first: ``sports 3, food 1``."""
    counts = Counter(vote.label for vote in example.votes if vote.label is not None)
    shown = [f"{_quoted(label, 40)} {count}" for label, count in counts.most_common(3)]
    return ", ".join(shown + ["others"] * (len(counts) > len(shown)))


def _written(example: Example) -> str:
    return example.text if example.label is None or example.rationale is None else example.rationale


def _quoted(said: str, limit: int = 80) -> str:
    return f"'{plain(said, limit)}'"


FILTERS: dict[str, Callable[..., str | None]] = {
    function.__name__: function
    for function in (
        label_in_set,
        label_has_value,
        finish_reason,
        min_words,
        max_words,
        repeats_label,
        repeats_input,
        repetition,
        refusal,
        min_agreement,
        max_entropy,
        min_judge_score,
    )
}
"""What ``quality.filters`` can name."""

ASKED_FOR: Final = {"min_agreement": "votes", "max_entropy": "votes", "min_judge_score": "judgement"}
"""Filters that run only where they are named, and the field of the example that is their evidence."""
