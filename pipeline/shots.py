"""Few-shot examples from a file: the rows that the prompt shows as ``shots``.

    few_shot: {path: shots.jsonl, k: 4, choose: nearest}

    {% for shot in shots %}Text: {{ shot.text }}
    {{ shot.why }} So the answer is {{ shot.topic }}.
    {% endfor %}Text: {{ text }}

``first`` shows every row the same k, so that the prompts begin alike and an engine's prefix cache serves them all. ``nearest`` shows
each row the k whose inputs (``task.input``, rendered) are most like its own, the most similar last, next to the question: the cosine
of TF-IDF weights over single words and pairs of them, as ``pipeline.text`` makes words (single characters in scripts without spaces).

An example with the row's own input, but for case and punctuation, is never shown to it: it would give the answer away. The next one
takes its place.

Limits: where the file has no next one, such a row is shown fewer than k. Examples are held in memory, with keys in the order of the
alphabet. A column whose name is that of a method, such as ``items``, is ``shot["items"]`` in a template.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pipeline.binding import InputPath
from pipeline.files import InputError, canonical_json, plain, strict_json
from pipeline.prompts import render_text
from pipeline.records import Prompt
from pipeline.sources import files, read
from pipeline.text import ngrams, normalise, words

DIGITS: Final = 9  # of a similarity that count: what differs beyond them is a rounding error, and file order decides

Choose = Literal["first", "nearest"]


class FewShot(BaseModel):
    """Which examples are shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: InputPath = Field(
        description="a .jsonl, .csv or .parquet file, or a folder of them, with the columns of task.input"
    )
    k: int = Field(default=4, ge=1, description="how many a row is shown")
    choose: Choose = Field(
        default="first", description="first: the same for every row; nearest: those most like the row"
    )


@dataclass(frozen=True)
class Shots:
    """The examples, read: their columns, and the input of each as ``task.input`` renders it."""

    rows: list[dict[str, JsonValue]] = field(repr=False)
    inputs: list[str] = field(repr=False)
    k: int
    choose: Choose
    _normal: list[str] = field(repr=False)
    _ranked: Callable[[str], list[int]] = field(repr=False, compare=False)


def load(settings: FewShot, input: str) -> Shots:
    """Read the examples; ``input`` is the template ``task.input``.

    Raises InputError for a file that cannot be read, a row without the columns of ``input``, and where there are fewer than k.
    """
    try:
        files(settings.path)
    except InputError as error:
        raise InputError(f"stages.sample.few_shot.path: {error}") from None
    rows: list[dict[str, JsonValue]] = []
    inputs: list[str] = []
    for place, row in read(settings.path):
        if isinstance(row, InputError):
            raise row
        shown = render_text(input, row, place)
        if not shown.strip():
            raise InputError(f"{place}: the input of this example is empty; check the row and task.input")
        try:
            rows.append(strict_json(canonical_json(row)))  # the order of keys that a snapshot gives back
        except ValueError as error:
            raise InputError(f"{place}: {plain(str(error))}; convert the column to text or numbers") from None
        inputs.append(shown)
    if len(rows) < settings.k:
        raise InputError(
            f"stages.sample.few_shot.k: {settings.k} examples are to be shown, but {settings.path} holds {len(rows)}; "
            "add examples, or lower k"
        )
    return _shots(rows, inputs, settings.k, settings.choose)


def snapshot(shots: Shots) -> dict[str, JsonValue]:
    """The examples as JSON. ``read_snapshot`` turns them back."""
    return {"rows": list(shots.rows), "inputs": list(shots.inputs)}


def read_snapshot(path: Path, settings: Mapping[str, Any]) -> Shots:
    """The examples that a finished stage used; ``settings`` is ``few_shot`` as its manifest holds it. Raises InputError."""
    try:
        found = strict_json(path.read_bytes())
        rows, inputs = found["rows"], found["inputs"]
        if len(rows) != len(inputs) or not all(isinstance(row, dict) for row in rows):
            raise ValueError("rows and inputs do not fit together")
        return _shots(rows, [str(text) for text in inputs], settings["k"], settings["choose"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a snapshot of few-shot examples ({plain(str(error))})") from None


def choose(shots: Shots, prompt: Prompt) -> list[dict[str, JsonValue]]:
    """The examples that one row is shown, in the order in which it is shown them."""
    own = normalise(prompt.input)
    order = range(len(shots.rows)) if shots.choose == "first" else shots._ranked(prompt.input)
    chosen: list[int] = []
    for index in order:
        if shots._normal[index] != own:
            chosen.append(index)
            if len(chosen) == shots.k:
                break
    if shots.choose == "nearest":
        chosen.reverse()
    return [shots.rows[index] for index in chosen]


def _shots(rows: list[dict[str, JsonValue]], inputs: list[str], k: int, choose: Choose) -> Shots:
    ranked = _by_similarity(inputs) if choose == "nearest" else lambda text: []
    return Shots(rows, inputs, k, choose, [normalise(text) for text in inputs], ranked)


def _by_similarity(inputs: list[str]) -> Callable[[str], list[int]]:
    """What puts the examples in order for a text, the most similar first and equally similar ones as the file has them."""
    import numpy
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer=_terms)
    weights = vectorizer.fit_transform(inputs).T.tocsr()  # a row a term, so that a text costs only its own terms
    places, rarity = vectorizer.vocabulary_, vectorizer.idf_

    def ranked(text: str) -> list[int]:
        # What vectorizer.transform does, without its checks, which take ten times as long for one text.
        terms = sorted((places[term], number) for term, number in Counter(_terms(text)).items() if term in places)
        own = numpy.array([number * rarity[place] for place, number in terms])
        own /= numpy.linalg.norm(own) or 1.0
        similarities = (weights[[place for place, _ in terms]].T @ own).round(DIGITS)
        order: list[int] = (-similarities).argsort(kind="stable").tolist()
        return order

    return ranked


def _terms(text: str) -> list[str]:
    found = words(text)
    return found + ngrams(found, 2)
