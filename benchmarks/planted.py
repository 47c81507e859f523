"""Rows with a known truth: real rows, and among them copies, edited copies and look-alikes made by script.

    edited("the cat sat on the mat", 0.25, chance, ["dog"])  ->  "the cat dog on mat"
    contamination(real, 1, folder).truths["t17"]             ->  Truth("10% edits", "cqa", "leak", eval_row="c203..")

Everything follows from the data folder and the seed. Even seeds take their eval rows, pairs, refusals and so on from one half of the data,
odd seeds from the other, so that what was tuned on one seed can be reported on another.

Real rows overlap eval rows too: SVAMP consists of variations of the same problems. ``overlaps`` compares every real row with every eval
row, with none of the code that is measured, and labels it ``overlap``, ``unclear`` or ``clean``.

Limits: edits are random, not a person's; nothing is said in other words, only in another order; passages are put together from questions;
the two data sets hold short English texts, most of 10 to 40 words. The eval rows of SVAMP are drawn from its train and test rows, as its
test rows alone are 200.
"""

import difflib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.records import Example
from pipeline.sources import EvalSet

Label = Literal["leak", "clean", "overlap", "unclear"]

PER_KIND = 100  # planted rows of each kind and data set
EVAL_ROWS = {"svamp": 200, "cqa": 1000}
FRAMED = 75  # eval rows of each data set behind each of the two frames
PASSAGES = 60  # that several rows have; half as many stand in one eval row and one training row
COMMON = 200  # the most frequent words of the data: what is left says what a text is about
NEGATIONS = frozenset(
    "no not never none nor neither nothing nobody nowhere without cannot cant dont doesnt didnt isnt arent wasnt werent wont wouldnt "
    "shouldnt couldnt hasnt havent hadnt hardly unless except".split()
)
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve twenty thirty hundred thousand million first second third "
    "half once twice both double triple dozen".split()
)


class Real(NamedTuple):
    """A row of the data folder, with its teacher's recorded answer."""

    id: str
    data: str
    input: str
    gold: str | None
    choices: list[str] | None
    rationale: str
    completion: str
    test: bool = False


class Truth(NamedTuple):
    """What a row is: its kind, the data set it was made from, and whether (and which) eval row stands in it."""

    kind: str
    data: str
    label: Label
    eval_row: str | None = None


@dataclass(frozen=True)
class Contamination:
    """Training rows in random order, the truth of each by its id, and the eval sets as files."""

    rows: list[Example]
    truths: dict[str, Truth]
    kinds: list[str]
    eval_sets: dict[str, EvalSet]
    eval_texts: dict[str, dict[str, str]]


# Real rows ----------------------------------------------------------------------------------------------------------------------------


def read(folder: Path) -> list[Real]:
    """The rows of SVAMP and CommonsenseQA, train and test, in this order."""
    found = []
    for data in ("svamp", "cqa"):
        for split in ("train", "test"):
            answers = {row["id"]: row["completion"] for row in _lines(folder / data / f"palm540b-{split}.jsonl")}
            for row in _lines(folder / data / f"{split}.jsonl"):
                text, gold = (row["input"], row["label"]) if data == "svamp" else (row["question"], row["answer"])
                answer = answers[row["id"]]
                found.append(
                    Real(row["id"], data, text, gold, row.get("choices"), _rationale(answer), answer, split == "test"),
                )
    return found


def invented(real: Iterable[Real]) -> list[Real]:
    """The distinct questions that the teacher went on to ask itself, with its answers: real model-written rows."""
    found: dict[str, Real] = {}
    for row in real:
        for number, turn in enumerate(row.completion.split("\n\nQ: ")[1:]):
            question, _, answer = turn.partition("\nA: ")
            question = question.partition("\nAnswer Choices")[0].strip()
            if answer and question not in found:
                found[question] = Real(f"{row.id}+{number}", row.data, question, None, None, _rationale(answer), answer)
    return list(found.values())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _rationale(completion: str) -> str:
    return re.split(r"\s*(?:So the|The) answer is \(|\n\nQ", completion)[0].strip()


def example(
    id: str, text: str, *, rationale: str | None = "It follows from what is said.", **fields: object
) -> Example:
    """A row as parse would have written it."""
    given: dict[str, object] = {"label": "yes", "gold": None, "choices": None, "finish_reason": "stop", "votes": []}
    given |= {"id": id, "input": text, "rationale": rationale, "response": f"{id}#0", "text": rationale or ""} | fields
    return Example(**given)  # type: ignore[arg-type]


# Edits --------------------------------------------------------------------------------------------------------------------------------


def protected(word: str) -> bool:
    """Whether a word is a number, in digits or letters, or a negation: what makes two texts say different things."""
    plain = re.sub(r"\W", "", word.lower())
    return any(map(str.isdigit, plain)) or plain in NUMBER_WORDS or plain in NEGATIONS


def edited(
    text: str,
    share: float,
    chance: random.Random,
    vocabulary: Sequence[str],
    untouched: Callable[[str], bool] = lambda word: False,
) -> str:
    """``text`` with ``share`` of its words (at least one) replaced, deleted, or followed by a new one.

    ``vocabulary``: where new words come from. Words that are ``untouched`` stay as they are, and none such comes in.
    """
    found = text.split()
    places = [place for place, word in enumerate(found) if not untouched(word)]
    edits = dict.fromkeys(chance.sample(places, min(len(places), max(1, round(share * len(found))))))
    result: list[str] = []
    for place, word in enumerate(found):
        if place not in edits:
            result.append(word)
            continue
        old = plain_words(word)
        new = _another(
            lambda: chance.choice(vocabulary),
            lambda new, old=old: plain_words(new) != old and not untouched(new),
        )
        result += chance.choice([[new], [], [word, new]])
    return " ".join(result or found)


def _another(draw: Callable[[], str], fits: Callable[[str], bool]) -> str:
    """The first of a hundred draws that fits, or the last one."""
    return next((new for new in (draw() for _ in range(100)) if fits(new)), draw())


def renumbered(text: str, chance: random.Random) -> str:
    """``text`` with another number of as many digits for each of its numbers, the same for the same."""
    new: dict[str, str] = {}

    def other(match: re.Match[str]) -> str:
        old = match.group()
        low = 10 ** (len(old) - 1)
        return new.setdefault(old, _another(lambda: str(chance.randint(low, 10 * low - 1)), lambda found: found != old))

    return re.sub(r"\d{1,6}", other, text)


def restyled(text: str, chance: random.Random) -> str:
    """The same words with other case, punctuation, white space or forms of letters."""
    full_width = {code: code + 0xFEE0 for code in range(ord("!"), ord("~") + 1) if chr(code).isalnum()}
    styles: list[Callable[[], str]] = [
        text.upper,
        lambda: re.sub(r"(?<!\d)[.,;:!?\"](?!\d)|[.,;:!?\"](?!\d)", " ", text.lower()),
        lambda: "\n".join("   ".join(line.split()) for line in text.splitlines()),
        lambda: "** " + text.replace(" ", "\t").rstrip("?.") + " **!!",
        lambda: text.translate(full_width),
        lambda: "\u201c" + text.title().replace("'", "\u2019").replace(" ", "\u00a0") + "\u201d",
    ]
    return chance.choice(styles)()


def half(text: str, chance: random.Random) -> str:
    """The first or the second half of the words."""
    found = text.split()
    middle = (len(found) + 1) // 2
    return " ".join(chance.choice([found[:middle], found[middle:] or found]))


def clauses_reordered(text: str, chance: random.Random) -> str:
    """Sentences and clauses in another order; a text of a single clause is cut once and its parts change places."""
    parts = [part.strip() for part in re.split(r"(?<=[.,;?!])\s+|\n", text) if part.strip()]
    if len(parts) < 2:
        found = text.split()
        cut = chance.randint(1, max(1, len(found) - 1))
        return " ".join(found[cut:] + found[:cut])
    order = parts[:]
    while order == parts and len(set(parts)) > 1:
        chance.shuffle(order)
    return " ".join(order)


def words_shuffled(text: str, chance: random.Random, window: int = 4) -> str:
    """Each run of ``window`` words in another order."""
    found = text.split()
    result: list[str] = []
    for start in range(0, len(found), window):
        run = found[start : start + window]
        order = run[:]
        while order == run and len(set(run)) > 1:
            chance.shuffle(order)
        result += order
    return " ".join(result)


def embedded(text: str, chance: random.Random, around: Sequence[str]) -> str:
    """``text`` between two other texts."""
    before, after = chance.sample(around, 2)
    return f"{before}\n{text}\n{after}"


def other_content(text: str, chance: random.Random, content: Mapping[str, Sequence[str]]) -> tuple[str, int]:
    """The frame of ``text`` about something else, and how many words were exchanged.

    ``content``: the words to exchange, by their ``form``. A word becomes the same new one wherever it stands; numbers change too.
    """
    known = {word for group in content.values() for word in group}
    new: dict[str, str] = {}

    def other(match: re.Match[str]) -> str:
        word = match.group()
        lower = word.lower()
        if lower not in known:
            return word
        if lower not in new:
            new[lower] = _another(lambda: chance.choice(content[form(lower)]), lambda found: found != lower)
        return new[lower].capitalize() if word[0].isupper() else new[lower]

    return renumbered(re.sub(r"[A-Za-z]+", other, text), chance), sum(old != found for old, found in new.items())


def form(word: str) -> str:
    """The ending that stands for a word's part of speech: "s", "ing", "ed", "ly" or none."""
    return next(
        (ending for ending in ("ing", "ed", "ly", "s") if word.endswith(ending) and len(word) > len(ending) + 2), ""
    )


# Independent checks -------------------------------------------------------------------------------------------------------------------


def plain_words(text: str) -> list[str]:
    """Lower-cased words, all numbers alike."""
    return ["#" if word[0].isdigit() else word for word in re.findall(r"\d+|[^\W\d_]+", text.lower())]


def aligned(text: str, other: str) -> float:
    """Share of ``other``'s words that stand in ``text`` in the same order, numbers all alike: 0 to 1."""
    found, wanted = plain_words(text), plain_words(other)
    blocks = difflib.SequenceMatcher(None, found, wanted, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / max(1, len(wanted))


def overlaps(texts: Sequence[str], eval_texts: Sequence[str], common: frozenset[str]) -> list[tuple[Label, int]]:
    """For each text whether it overlaps any of ``eval_texts`` by brute force, and the place of the one that it overlaps most.

    Two measures of the eval text: the share of its kinds of content words (all but the ``common`` ones and numbers) that occur in the
    text, and the share of all its words that stand there in the same order. ``overlap`` has at least 0.75 of the first and 0.6 of the
    second (0.8 with one or two content words), ``unclear`` at least half of both; what is left is ``clean``.
    """
    import numpy
    from sklearn.feature_extraction.text import CountVectorizer

    def contents(text: str) -> list[str]:
        return [word for word in plain_words(text) if word not in common and word != "#"]

    vectors = CountVectorizer(analyzer=contents, binary=True, dtype=numpy.float32).fit(eval_texts)
    wanted = vectors.transform(eval_texts)
    sizes = numpy.maximum(1, numpy.asarray(wanted.sum(axis=1)).ravel())
    result: list[tuple[Label, int]] = []
    for start in range(0, len(texts), 1000):
        block = texts[start : start + 1000]
        shares = (vectors.transform(block) @ wanted.T).toarray() / sizes
        for text, row in zip(block, shares, strict=True):
            best: tuple[int, float, int] = (0, 0.0, -1)
            for place in numpy.flatnonzero(row >= 0.5):
                content, order = float(row[place]), aligned(text, eval_texts[place])
                sure = content >= 0.75 and order >= (0.6 if sizes[place] >= 3 else 0.8)
                grade = 2 if sure else int(order >= 0.5)
                best = max(best, (grade, content + order, int(place)))
            labels: tuple[Label, Label, Label] = ("clean", "unclear", "overlap")
            result.append((labels[best[0]], best[2] if best[0] else -1))
    return result


def common_words(texts: Iterable[str]) -> frozenset[str]:
    """The ``COMMON`` words that occur in most texts."""
    counts = Counter(word for text in texts for word in dict.fromkeys(plain_words(text)))
    return frozenset(word for word, _ in counts.most_common(COMMON))


# Contamination ------------------------------------------------------------------------------------------------------------------------

INSTRUCTION = (
    "Read the following question with care, think about what is known in general, and give the one answer that fits best. "
    "Do not explain more than is needed."
)


class _Asked(NamedTuple):
    """An eval row that asks about a passage, and how many eval rows do; 0: it alone, and a single training row will have the passage."""

    row: Real
    passage: str
    sharing: int

    def about(self, question: Real) -> str:
        return f"{self.passage}\n\n{question.input}"


class _Evals(NamedTuple):
    """Which rows become eval rows, how, and what is left."""

    plain: dict[str, list[Real]]
    framed: dict[str, list[Real]]
    asked: list[_Asked]
    frames: dict[str, str]
    rest: list[Real]

    def sets(self) -> dict[str, dict[str, str]]:
        """The texts of each eval set by their ids."""
        plain = {data: {row.id: row.input for row in rows} for data, rows in self.plain.items()}
        framed = {frame: {row.id: self.behind(frame, row) for row in rows} for frame, rows in self.framed.items()}
        return plain | framed | {"passages": {one.row.id: one.about(one.row) for one in self.asked}}

    def wanted(self) -> tuple[list[str], list[str]]:
        """Ids and texts that a real row may overlap: what is asked, without its frame or passage, and passages with their question."""
        asked = [one.row for one in self.asked]
        rows = [row for group in (*self.plain.values(), *self.framed.values(), asked) for row in group]
        whole = [one.about(one.row) for one in self.asked]
        return [row.id for row in (*rows, *asked)], [*(row.input for row in rows), *whole]

    def behind(self, frame: str, row: Real) -> str:
        return f"{self.frames[frame]}\nQ: {row.input}\nA:"


def contamination(real: Sequence[Real], seed: int, folder: Path) -> Contamination:
    """Training rows with planted leaks and look-alikes; the eval sets are written to ``folder``."""
    chance = random.Random(f"contamination {seed}")
    common = common_words(row.input for row in real)
    evals = _evals(real, seed, common, chance)
    real_rows = _labelled([*evals.rest, *invented(evals.rest)], evals, common)
    clean = {
        data: [row for row, truth in real_rows if (truth.data, truth.label) == (data, "clean")] for data in EVAL_ROWS
    }
    planted = [
        *_leaks(evals, clean, chance),
        *_look_alikes(real, evals, clean, common, chance),
        *((example("", row.input, rationale=row.rationale), truth) for row, truth in real_rows),
    ]
    kinds = list(dict.fromkeys(truth.kind for _, truth in planted))
    chance.shuffle(planted)
    rows = [row.changed(id=f"t{number}", response=f"t{number}#0") for number, (row, _) in enumerate(planted)]
    truths = {row.id: truth for row, (_, truth) in zip(rows, planted, strict=True)}
    texts = evals.sets()
    return Contamination(rows, truths, kinds, {name: written(folder, name, texts[name]) for name in texts}, texts)


def _evals(real: Sequence[Real], seed: int, common: frozenset[str], chance: random.Random) -> _Evals:
    drawn = {data: _half_of(real, data, seed, chance) for data in EVAL_ROWS}
    shots = [drawn["cqa"].pop() for _ in range(3)]
    frames = {"instruction": INSTRUCTION, "few-shot": "\n".join(f"Q: {row.input}\nA: {row.rationale}" for row in shots)}
    plain = {data: [drawn[data].pop() for _ in range(count)] for data, count in EVAL_ROWS.items()}
    framed = {frame: [drawn[data].pop() for data in EVAL_ROWS for _ in range(FRAMED)] for frame in frames}
    sharing = [1, 3] * (PASSAGES // 2) + [0] * (PASSAGES // 2)
    questions = [[drawn["cqa"].pop() for _ in range(max(1, count))] for count in sharing]
    wanted = [row.input for group in (*plain.values(), *framed.values(), *questions) for row in group]
    checked = zip(drawn["cqa"], overlaps([row.input for row in drawn["cqa"]], wanted, common), strict=True)
    told = [row for row, (label, _) in checked if label == "clean"][: 4 * len(sharing)]
    asked = [
        _Asked(row, " ".join(part.input for part in told[4 * number : 4 * number + 4]), count)
        for number, (rows, count) in enumerate(zip(questions, sharing, strict=True))
        for row in rows
    ]
    taken = {row.id for rows in (shots, *plain.values(), *framed.values(), *questions, told) for row in rows}
    return _Evals(plain, framed, asked, frames, [row for row in real if row.id not in taken])


def _half_of(real: Sequence[Real], data: str, seed: int, chance: random.Random) -> list[Real]:
    rows = [row for row in real if row.data == data]
    random.Random("halves").shuffle(rows)
    rows = rows[seed % 2 :: 2]
    chance.shuffle(rows)
    return rows


def _labelled(rows: Sequence[Real], evals: _Evals, common: frozenset[str]) -> list[tuple[Real, Truth]]:
    """Real rows with what brute force says of their input, or of their rationale where that overlaps an eval row and the input does not."""
    names, wanted = evals.wanted()
    result = []
    by_input, by_rationale = (
        overlaps([getattr(row, field) for row in rows], wanted, common) for field in ("input", "rationale")
    )
    for row, asked, said in zip(rows, by_input, by_rationale, strict=True):
        label, place = said if said[0] == "overlap" and asked[0] != "overlap" else asked
        kind, eval_row = ("real row", None) if label == "clean" else (f"real row, {label}", names[place])
        result.append((row, Truth(kind, row.data, label, eval_row)))
    return result


def _leaks(
    evals: _Evals, clean: Mapping[str, Sequence[Real]], chance: random.Random
) -> Iterator[tuple[Example, Truth]]:
    """Eval rows as they are found again in training rows; the other text of such a row is a clean row's."""
    vocabulary = [word for row in evals.rest for word in row.input.split()]
    around = [row.rationale for rows in clean.values() for row in rows if len(row.rationale.split()) >= 15]

    def leak(kind: str, row: Real, text: str) -> tuple[Example, Truth]:
        given = chance.choice(clean[row.data]).rationale
        return example("", text, rationale=given), Truth(kind, row.data, "leak", row.id)

    changes: dict[str, Callable[[str], str]] = {
        "verbatim": lambda text: text,
        "other case, punctuation, spaces": lambda text: restyled(text, chance),
        "embedded": lambda text: embedded(text, chance, around),
        "10% edits": lambda text: edited(text, 0.1, chance, vocabulary),
        "10% edits, embedded": lambda text: embedded(edited(text, 0.1, chance, vocabulary), chance, around),
        "25% edits": lambda text: edited(text, 0.25, chance, vocabulary),
        "numbers changed": lambda text: renumbered(text, chance),
        "clauses reordered": lambda text: clauses_reordered(text, chance),
        "words shuffled within 4": lambda text: words_shuffled(text, chance),
        "half": lambda text: half(text, chance),
    }
    for rows in evals.plain.values():
        for kind, change in changes.items():
            fitting = [row for row in rows if kind != "numbers changed" or re.search(r"\d", row.input)]
            for row in chance.sample(fitting, min(PER_KIND, len(fitting))):
                yield leak(kind, row, change(row.input))
        for row in chance.sample(rows, PER_KIND):
            given, truth = leak("in the rationale", row, chance.choice(clean[row.data]).input)
            yield given.changed(rationale=changes["embedded"](row.input)), truth
        for low, high in ((1, 7), (8, 12)):
            short = [row for row in rows if low <= len(plain_words(row.input)) <= high]
            for name in ("verbatim", "embedded"):
                for row in chance.sample(short, PER_KIND) if len(short) >= PER_KIND else ():
                    yield leak(f"{low} to {high} words, {name}", row, changes[name](row.input))
    for frame, rows in evals.framed.items():
        for row in rows:
            yield leak(f"behind {frame}, copied with it", row, evals.behind(frame, row))
            yield leak(f"behind {frame}, copied without it", row, row.input)
    for one in evals.asked:
        if one.sharing:
            yield leak("passage and question, copied", one.row, one.about(one.row))


def _look_alikes(
    real: Sequence[Real],
    evals: _Evals,
    clean: Mapping[str, Sequence[Real]],
    common: frozenset[str],
    chance: random.Random,
) -> Iterator[tuple[Example, Truth]]:
    """Clean rows that share their template, their frame or their passage with eval rows."""

    def alike(kind: str, row: Real, text: str) -> tuple[Example, Truth]:
        given = chance.choice(clean[row.data]).rationale
        return example("", text, rationale=given), Truth(kind, row.data, "clean")

    for data, rows in evals.plain.items():
        made = list(_same_template(rows, [row for row in real if row.data == data], common, chance))
        checked = overlaps([text for _, text in made], evals.wanted()[1], common)
        passed = [pair for pair, (label, _) in zip(made, checked, strict=True) if label == "clean"]
        for row, text in passed[:PER_KIND]:
            yield alike("same template, other content", row, text)
    for frame in evals.frames:
        for rows in clean.values():
            for row in chance.sample(rows, min(PER_KIND, len(rows))):
                yield alike(f"shared {frame}, other row", row, evals.behind(frame, row))
    for one in evals.asked:
        of = one.sharing
        for other in chance.sample(clean["cqa"], 3 if of == 1 else 1):
            kind = f"passage of {of or 1} eval row{'s' * (of > 1)}{'' if of else ' and no other row'}, other question"
            given, truth = alike(kind, other, one.about(other))
            yield given, truth if of else truth._replace(label="unclear")


def _content(rows: Sequence[Real], common: frozenset[str]) -> dict[str, list[str]]:
    """The words that say what a text is about, by their form."""
    counts = Counter(word for row in rows for word in plain_words(row.input))
    found: dict[str, list[str]] = {}
    for word, count in counts.items():
        if count >= 2 and len(word) >= 3 and word not in common and word not in NEGATIONS and word.isascii():
            found.setdefault(form(word), []).append(word)
    return found


def _same_template(
    rows: Sequence[Real], every: Sequence[Real], common: frozenset[str], chance: random.Random
) -> Iterator[tuple[Real, str]]:
    """Frames of eval rows about something else; a word problem also asks for another operation, as another of its rows does."""
    content = _content(every, common)
    for row in chance.sample(rows, len(rows)):
        told = row.input
        if row.data == "svamp":
            asking = chance.choice([other for other in every if _operation(other) != _operation(row)])
            told = row.input.rpartition("\n")[0] + "\n" + asking.input.rpartition("\n")[2]
        text, exchanged = other_content(told, chance, content)
        if exchanged >= 2:
            yield row, text


def _operation(row: Real) -> str:
    return "".join(character for character in row.gold or "" if character in "+-*/")


def written(folder: Path, name: str, texts: Mapping[str, str]) -> EvalSet:
    """An eval set of these texts, by their ids, in a file."""
    path = folder / f"{name}.jsonl"
    lines = (json.dumps({"id": id, "input": text}) + "\n" for id, text in texts.items())
    path.write_text("".join(lines), encoding="utf-8")
    return EvalSet(path=path, input="{{ input }}", gold=None, choices=None, id="id")


# Duplicates ---------------------------------------------------------------------------------------------------------------------------

BINS = ((0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 1.0))
PARTS = 3  # questions in a long text
PAIRS = 70  # of each kind and length
OPPOSITES = {
    one: other
    for pair in (
        "man woman, men women, boy girl, father mother, he she, his her, hot cold, big small, large tiny, old young, before after, "
        "more less, most least, first last, inside outside, day night, good bad, happy sad, up down, open closed, start stop, buy sell, "
        "win lose, morning evening, left right, high low, rich poor, wet dry, always never, all none, summer winter, early late"
    ).split(", ")
    for one, other in (pair.split(), reversed(pair.split()))
}


Length = Literal["short", "long"]


class Pair(NamedTuple):
    """Two rows of which one was made from the other, and whether they say the same; None where that is a matter of settings."""

    kind: str
    length: Length
    first: str
    second: str
    same: bool | None
    similarity: float


def duplicates(
    real: Sequence[Real], seed: int, similarity: Callable[[str, str], float]
) -> tuple[list[Example], list[Pair]]:
    """Rows in random order, and the pairs among them.

    ``similarity``: what the bins of edited copies are made by. Short texts are rows as they are, long ones several questions in a row.
    """
    chance = random.Random(f"duplicates {seed}")
    rows = {data: _half_of(real, data, seed, chance) for data in EVAL_ROWS}
    answers = sorted({row.gold for row in rows["cqa"] if row.gold})
    common = common_words(row.input for row in real)
    every: list[Example] = []
    pairs: list[Pair] = []
    lengths: dict[Length, list[tuple[str, int]]] = {"short": [("cqa", 1), ("svamp", 1)], "long": [("cqa", PARTS)]}
    for length, data, parts in [(length, *one) for length, found in lengths.items() for one in found]:
        content = _content([row for row in real if row.data == data], common)
        vocabulary = [word for row in rows[data] for word in row.input.split()]
        kinds = (
            _numbers_changed(chance, content) if data == "svamp" else _pairs(chance, vocabulary, content, similarity)
        )
        for kind, (same, change) in kinds.items():
            made, unfit = 0, []
            while made < PAIRS and len(rows[data]) >= parts:
                drawn = [rows[data].pop() for _ in range(parts)]
                first = " ".join(row.input for row in drawn)
                second = change(first)
                if second is None:
                    unfit += drawn
                    continue
                gold = drawn[0].gold
                other = next(one for one in chance.sample(answers, 2) if one != gold) if "other label" in kind else gold
                ids = f"p{len(every)}", f"p{len(every) + 1}"
                every += [
                    example(ids[0], first, label=gold, gold=gold),
                    example(ids[1], second, label=other, gold=other),
                ]
                pairs.append(Pair(kind, length, *ids, same, similarity(first, second)))
                made += 1
            rows[data][:0] = unfit
    left = [row for data in EVAL_ROWS for row in rows[data]]
    every += [example(f"r{number}", row.input, label=row.gold, gold=row.gold) for number, row in enumerate(left)]
    chance.shuffle(every)
    return every, pairs


Change = Callable[[str], str | None]


def _pairs(
    chance: random.Random,
    vocabulary: Sequence[str],
    content: Mapping[str, Sequence[str]],
    similarity: Callable[[str, str], float],
) -> dict[str, tuple[bool | None, Change]]:
    """How the second row of a pair is made from the first (None: from this one it cannot), and whether it still says the same."""

    def between(low: float, high: float) -> Change:
        return lambda text: _edited_until(text, low, high, chance, vocabulary, similarity)

    def ordered_anew(change: Callable[[str, random.Random], str]) -> Change:
        return lambda text: None if any(map(protected, text.split())) else change(text, chance)

    def about_something_else(text: str) -> str | None:
        new, exchanged = other_content(text, chance, content)
        return new if exchanged >= 2 else None

    return {
        **{f"edited, Jaccard {low} to {high}": (True, between(low, high)) for low, high in BINS},
        "one word edited": (True, lambda text: edited(text, 0.0, chance, vocabulary, protected)),
        "10% of the words edited": (True, lambda text: edited(text, 0.1, chance, vocabulary, protected)),
        "25% of the words edited": (True, lambda text: edited(text, 0.25, chance, vocabulary, protected)),
        "other case, punctuation, spaces": (True, lambda text: restyled(text, chance)),
        "clauses reordered": (True, ordered_anew(clauses_reordered)),
        "words shuffled within 4": (True, ordered_anew(words_shuffled)),
        "negation added or taken away": (False, lambda text: negated(text, chance)),
        "one word edited, other label": (False, lambda text: edited(text, 0.0, chance, vocabulary, protected)),
        "same template, other content": (False, about_something_else),
        "number word changed, same label": (
            False,
            lambda text: _exchanged(text, dict.fromkeys(NUMBER_WORDS[2:7], "seven")),
        ),
        "word and opposite, same label": (False, lambda text: _exchanged(text, OPPOSITES)),
        "equal text, other label": (None, lambda text: text),
    }


def _numbers_changed(
    chance: random.Random, content: Mapping[str, Sequence[str]]
) -> dict[str, tuple[bool | None, Change]]:
    return {
        "numbers changed": (False, lambda text: renumbered(text, chance)),
        "two numbers changed places": (False, lambda text: new if (new := numbers_exchanged(text)) != text else None),
        "same template, other content": (False, lambda text: other_content(text, chance, content)[0]),
    }


def _exchanged(text: str, places: Mapping[str, str]) -> str | None:
    """``text`` with the first of its words that ``places`` knows exchanged; None where it has none."""
    found = text.split(" ")
    for place, word in enumerate(found):
        if word.lower() in places:
            return " ".join([*found[:place], places[word.lower()], *found[place + 1 :]])
    return None


def negated(text: str, chance: random.Random) -> str:
    """``text`` without its first negation or, where it has none, with a "not" after one of its words."""
    found = text.split()
    for place, word in enumerate(found):
        if re.sub(r"\W", "", word.lower()) in NEGATIONS:
            return " ".join(found[:place] + found[place + 1 :])
    places = [place for place, word in enumerate(found) if word.lower() in _BEFORE_NOT] or range(len(found) - 1) or [0]
    after = chance.choice(places) + 1
    return " ".join([*found[:after], "not", *found[after:]])


_BEFORE_NOT = frozenset("is are was were do does did would could should can will has have had might must".split())


def numbers_exchanged(text: str) -> str:
    """``text`` with its first two different numbers in each other's place; ``text`` itself where it has no two."""
    found = list(dict.fromkeys(re.findall(r"\d+", text)))[:2]
    if len(found) < 2:
        return text
    places = {found[0]: found[1], found[1]: found[0]}
    return re.sub(r"\d+", lambda match: places.get(match.group(), match.group()), text)


def _edited_until(
    text: str,
    low: float,
    high: float,
    chance: random.Random,
    vocabulary: Sequence[str],
    similarity: Callable[[str, str], float],
) -> str | None:
    """``text`` edited word by word until its similarity falls into [low, high), with numbers and negations as they were."""
    for _ in range(30):
        new = text
        while similarity(text, new) >= high:
            new = edited(new, 0.0, chance, vocabulary, protected)
        if similarity(text, new) >= low:
            return new
    return None


# Flawed rationales --------------------------------------------------------------------------------------------------------------------

FLAWED = 100  # planted rows of each flaw and data set

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I am sorry, but I cannot answer this question.",
    "As an AI language model, I do not have personal opinions.",
    "As an AI, I don't have access to that information.",
    "I cannot fulfill this request.",
    "I can't assist with that request.",
    "Unfortunately, I do not have enough information to answer the question.",
    "I'm unable to determine the answer from what is given.",
    "I won't be able to help you with this.",
    "Sorry, I can\u2019t provide an answer here.",
    "I must decline to answer.",
    "It would not be appropriate for me to answer this question.",
    "I am not able to answer that.",
    "I can't determine which choice is right without more context.",
    "There is not enough information given to solve the problem.",
    "I apologize, but I cannot provide a response to that.",
    "I'm just a language model, so I have no experience of this.",
    "My guidelines do not allow me to answer.",
    "I do not know the answer.",
    "None of this can be answered by an AI assistant.",
)
CHAT_TOKENS = (
    "<|im_end|>", "<|im_start|>assistant", "<|endoftext|>", "</s>", "<s>", "[INST]", "[/INST]", "<|eot_id|>", "<|start_header_id|>",
    "<end_of_turn>", "<pad>", "<unk>", "### Response:", "<<SYS>>", "<think>", "</think>", "<|assistant|>", "\nHuman:",
)  # fmt: skip
CONTROL = ("\x00", "\x07", "\x1b[31m", "\x08", "\ufffd", "\u202e")
PRIVATE = {
    "e-mail address": (
        "jane.doe@mailhausen.de",
        "k_meier84@firm.co.uk",
        "info+sales@shop.io",
        "r2d@post.uni-neustadt.de",
    ),
    "telephone number with its country": (
        "+1 (415) 555-0132",
        "+44 20 7946 0958",
        "+49 30 901820",
        "+33 1 42 68 53 00",
    ),
    "telephone number without": ("415-555-0199", "(020) 7946 0958", "030/901820", "01 42 68 53 00"),
    "card number": ("4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005"),
    "IBAN": ("DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819", "FR1420041010050500013M02606"),
    "IP address": ("81.2.69.142", "151.101.65.140", "2a00:1450:4001:81b::200e", "93.184.216.34"),
    "social security number": ("536-90-4399", "219-46-8812"),
    "key": ("sk-abcdefghijklmnopqrstuvwxyz123456", "AKIAIOSFODNN7EXAMPLE", "ghp_16C7e42F292c6912E7710c838347Ae178B4a"),
}
OTHER_LANGUAGES = (
    "Die Antwort muss ein Ort sein, an dem man viele Menschen trifft. Von den genannten Möglichkeiten passt nur diese.",
    "La réponse doit être un endroit où l'on trouve beaucoup de livres. Parmi les choix proposés, un seul convient.",
    "La respuesta debe ser algo que se pueda comer. De las opciones anteriores, solo una tiene sentido en este caso.",
    "La risposta deve essere un luogo dove si vendono scarpe. Tra le scelte date, soltanto questa ha senso.",
    "Het antwoord moet een plaats zijn waar kinderen spelen. Van de keuzes hierboven past alleen deze.",
    "Ответ должен быть местом, где живут люди. Из перечисленных вариантов подходит только этот.",
    "答案必须是人们可以买到食物的地方。在上述选项中，只有这一个是合理的。",
    "答えは人々が本を読む場所でなければなりません。上の選択肢の中で、これだけが当てはまります。",
    "정답은 사람들이 음식을 사는 곳이어야 합니다. 위의 선택지 중에서 이것만 맞습니다.",
    "يجب أن تكون الإجابة مكانا يعيش فيه الناس. من بين الخيارات المذكورة، هذا هو الخيار الوحيد المناسب.",
)
Flaw = Callable[[Example, random.Random], Example | None]


def _said(rationale: Callable[[str, random.Random], str]) -> Flaw:
    """A flaw of the rationale alone; the text that it stands in is changed with it."""

    def flaw(row: Example, chance: random.Random) -> Example | None:
        said = rationale(row.rationale or "", chance)
        return (
            row.changed(rationale=said, text=row.text.replace(row.rationale or "", said, 1))
            if said != row.rationale
            else None
        )

    return flaw


def inserted(text: str, what: str, chance: random.Random) -> str:
    """``text`` with ``what`` after one of its words."""
    found = text.split(" ")
    place = chance.randint(1, len(found))
    return " ".join([*found[:place], what, *found[place:]])


def miscalculated(text: str, chance: random.Random) -> str:
    """``text`` with one result of a step ``a op b = c`` that is off by one or more; ``text`` itself where it has no step."""
    steps = list(re.finditer(r"(?<=\d)(\s*=\s*\$?\s*)(\d+)(?![\d.,]*\d)(?!\s*[-+*/=])", text))
    if not steps:
        return text
    step = chance.choice(steps)
    wrong = int(step[2]) + chance.choice([1, 2, 3, 10])
    return f"{text[: step.start(2)]}{wrong}{text[step.end(2) :]}"


def _concludes_another(row: Example, chance: random.Random) -> Example | None:
    """The rationale picks another of the choices than the label."""
    others = [choice for choice in row.choices or () if choice.lower() != (row.label or "").lower()]
    match = re.search(rf"(?<=only )(?:a |an |the )?{re.escape(row.label or '')}\b", row.rationale or "", re.IGNORECASE)
    if not others or match is None:
        return None
    other = chance.choice(others)
    said = (row.rationale or "")[: match.start()] + other + (row.rationale or "")[match.end() :]
    said = re.sub(rf"\b{re.escape(row.label or '')}\b", other, said, flags=re.IGNORECASE)
    return row.changed(rationale=said, text=row.text.replace(row.rationale or "", said, 1))


def flaws(few_shot: Sequence[str], others: Sequence[Example], seed: int) -> dict[str, Flaw]:
    """What is wrong with a row, by name. ``few_shot``: rationales of the prompt's examples. ``others``: rows to take text from.

    Even and odd seeds share no refusal, token, character, private datum or foreign sentence.
    """
    refusals, tokens, control, foreign = (
        values[seed % 2 :: 2] for values in (REFUSALS, CHAT_TOKENS, CONTROL, OTHER_LANGUAGES)
    )
    private = {what: values[seed % 2 :: 2] for what, values in PRIVATE.items()}
    return {
        "refusal instead": _said(lambda text, chance: chance.choice(refusals)),
        "refusal at the end": _said(lambda text, chance: f"{text} {chance.choice(refusals)}"),
        "sentence repeated 3 to 8 times": _said(lambda text, chance: " ".join([text] * chance.randint(3, 8))),
        "last words repeated 10 times": _said(lambda text, chance: " ".join([text, *text.split()[-4:] * 10])),
        "one word repeated 30 times": _said(lambda text, chance: " ".join([text, *[text.split()[-1]] * 30])),
        "wrong arithmetic": _said(miscalculated),
        "concludes another label": _concludes_another,
        "chat token": _said(lambda text, chance: inserted(text, chance.choice(tokens), chance)),
        "control character": _said(lambda text, chance: inserted(text, chance.choice(control), chance)),
        **{
            what: _said(lambda text, chance, values=values: inserted(text, chance.choice(values), chance))
            for what, values in private.items()
        },
        "runs on into the next question": lambda row, chance: _runs_on(row, chance.choice(others)),
        "a few-shot example's rationale": _said(lambda text, chance: chance.choice(few_shot)),
        "another row's rationale": _said(lambda text, chance: chance.choice(others).rationale or ""),
        "another language": _said(lambda text, chance: chance.choice(foreign)),
        "words in random order": _said(lambda text, chance: " ".join(chance.sample(text.split(), len(text.split())))),
        "says only the label": lambda row, chance: row.changed(
            rationale=f"The answer is {row.label}, so the answer is {row.label}."
        ),
        "says only the input": lambda row, chance: row.changed(rationale=row.input),
        "one to three words": _said(lambda text, chance: " ".join(text.split()[: chance.randint(1, 3)])),
        "500 words": _said(lambda text, chance: " ".join(chance.choice(others).rationale or "" for _ in range(40))),
        "cut off by the token limit": lambda row, chance: row.changed(
            rationale=half(row.rationale or "", chance), finish_reason="length"
        ),
        "cut off, said to have stopped": _said(
            lambda text, chance: " ".join(text.split()[: max(5, len(text.split()) // 2)])
        ),
        "label not among the choices": lambda row, chance: row.changed(label="none of these") if row.choices else None,
    }


def _runs_on(row: Example, other: Example) -> Example:
    more = f"\n\nQ: {other.input}\nA: {other.rationale}"
    return row.changed(rationale=f"{row.rationale}{more}", text=f"{row.text}{more}")


def flawed(rows: Sequence[Example], few_shot: Sequence[str], seed: int) -> list[tuple[str, Example]]:
    """``FLAWED`` rows of each flaw that ``rows`` can have, with its name."""
    chance = random.Random(f"flawed {seed}")
    found = []
    for kind, flaw in flaws(few_shot, rows, seed).items():
        made = (new for row in chance.sample(rows, len(rows)) if (new := flaw(row, chance)) is not None)
        found += [(kind, row) for row, _ in zip(made, range(FLAWED), strict=False)]
    return found
