"""decontaminate: drop examples in which a row of an eval set stands, wholly, in large part or edited, with both texts as evidence.

    {"id": "b7..", "reason": "contaminated", "evidence": {"where": "input", "eval_set": "test", "eval_row": "41", "method": "edited",
     "score": 0.87, "threshold": 0.65, "overlap": "Late goals sink the leaders", "eval_overlap": "Late goal sinks the leaders", ...}}

Texts are compared by the words of their normal form (text.py). An eval row stands in an example's input or rationale where

1. the two are equal (``exact``), or
2. all of its words stand there in one run (``contained``); rows of fewer than ``shortest`` words only count where they are equal, or
3. ``coverage`` of it stands there in runs of ``ngram`` or more words, in any order (``runs``), or
4. ``edited`` of it stands there word by word, in order, inside one stretch of the text (``edited``).

A share is the smaller of two (overlap.py): of the eval row's words, and of what they are worth, where rare words are worth more than
frequent ones. In both a word in a run of ``ngram`` words that k eval rows or k texts share counts 1/k². So a frame, an instruction,
few-shot examples or a passage that many rows share count next to nothing beside what a row has to itself, and rows that have a frame in
common but speak of other things differ. Where ``edited`` of a row's words are found, but count too little, that is a shared passage:
counted, with examples, in the manifest's details. All numbers are alike unless ``numbers: matter``.

A smaller ``ngram`` finds more rows whose parts change places, and takes shorter phrases for shared; a larger one than an eval row has
words leaves that row to the other rules. Thresholds were chosen on planted rows (benchmarks/curation_quality.py, odd seeds).

Before any row is judged the stage checks itself: some rows of each eval set, as they are, between other words, and in other case and
punctuation, must be found by the very same index. And the teacher's prompt is looked through: a few-shot example that is an eval row
would be learned from every answer, so it stops the run.

``preset`` follows the rule of another project instead, for comparison, over this project's words:

- ``open_r1``: any 8 words in a run (github.com/huggingface/open-r1, scripts/decontaminate.py, after s1, arXiv 2501.19393)
- ``lm_eval``: any 13 (github.com/EleutherAI/lm-evaluation-harness, docs/decontamination.md and lm_eval/decontamination/janitor.py; that
  cuts the run and 200 characters around it out, which leaves nothing of a row of ordinary length)
- ``gpt3``: the same, but runs that more than 10 training texts have do not count (Brown et al., 2020, arXiv 2005.14165, appendix C)
- ``datatrove``: any 12 (github.com/huggingface/datatrove, pipeline/decont/n_grams.py, with find_query_ngrams)
- ``open_instruct``: over half of the eval row's words in runs of 8 (github.com/allenai/open-instruct, decontamination/search.py; Lambert
  et al., 2024, arXiv 2411.15124)

Limits: a paraphrase or a translation shares too few words (``semantic`` finds some paraphrases). A part of an eval row under half of it
is not found, nor is an example that is itself a small part of one. Where a passage stands in one eval row and one text alone, nothing
tells that it is shared: with a question that is short beside it, it counts as the eval row. Copies of one eval row count as training
texts that share its runs: where all of them were edited at the same place, that place counts more. Rows whose texts may overlap are held
until all were read, about 1 kB each: 1 GB where each of a million rows has the same eval row in it. With ``semantic`` all inputs are.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from pydantic import Field, JsonValue

from pipeline import prompts, shots
from pipeline.binding import From
from pipeline.blocks import Corpus, Verdicts
from pipeline.dedup import Semantic
from pipeline.files import InputError, RunError, plain
from pipeline.ingest import prompts as read_prompts
from pipeline.records import Drop, Example, Prompt
from pipeline.shots import FewShot
from pipeline.sources import EvalSet
from pipeline.text import NORMALISER, excerpt, normalise, numbers, words

if TYPE_CHECKING:
    from pipeline.overlap import Found, Index, Weights

Where = Literal["prompt", "input", "rationale"]

PLANTED: Final = 8  # rows of each eval set that the self-check looks for
EXAMPLES: Final = 10  # of shared passages in the manifest
SPAN: Final = 400  # characters of an overlap that evidence shows
FILLER: Final = "Seen on a page between other words of no account"


@dataclass(frozen=True)
class Preset:
    """Another project's rule. ``coverage`` None: any run of ``ngram`` words, unless more than ``most_texts`` training texts have it."""

    ngram: int
    coverage: float | None = None
    most_texts: int | None = None


PRESETS: Final = {
    "open_r1": Preset(8),
    "lm_eval": Preset(13),
    "gpt3": Preset(13, most_texts=10),
    "datatrove": Preset(12),
    "open_instruct": Preset(8, coverage=0.5),
}


def decontaminate(
    rows: Iterable[Example],
    *,
    ngram: Annotated[int, Field(ge=2, le=100)] = 8,
    coverage: Annotated[float, Field(ge=0.4, le=1)] = 0.5,
    edited: Annotated[float, Field(ge=0.4, le=1)] | None = 0.65,
    shortest: Annotated[int, Field(ge=1, le=100)] = 4,
    numbers: Literal["ignore", "matter"] = "ignore",
    shared_passages: Literal["report", "drop"] = "report",
    fields: Sequence[Where] = ("prompt", "input", "rationale"),
    semantic: Semantic | None = None,
    preset: Literal["open_r1", "lm_eval", "gpt3", "datatrove", "open_instruct"] | None = None,
    eval_sets: Annotated[Mapping[str, EvalSet], From("eval_sets")],
    prompt: Annotated[Path | None, From("task.prompt")] = None,
    few_shot: Annotated[FewShot | None, From("stages.sample.few_shot")] = None,
    input: Annotated[str | None, From("task.input")] = None,
) -> Iterator[Drop | None]:
    """One verdict a row, once all were read.

    ngram: words in a run that counts for ``coverage``, and as shared where several rows have it. coverage: share of an eval row, 0.4 to
    1, in such runs. edited: share of it found word by word, in order; null looks for no edited rows. shortest: words from
    which an eval row is looked for inside texts. numbers: whether a row with other numbers is another row. shared_passages: what becomes
    of texts that share words with an eval row which many share. fields: what is compared with the eval rows' inputs; ``prompt`` is the
    teacher's. semantic: also drop inputs that mean nearly the same as an eval row, by a model's vectors. preset: another project's rule;
    of the other settings only fields, semantic and eval_sets have an effect with it.

    Raises InputError, before the first verdict, where an eval set has no rows or one that cannot be read, and where the prompt holds an
    eval row; RunError where the self-check fails.
    """
    settings = {
        "ngram": ngram, "coverage": coverage, "edited": edited, "shortest": shortest, "numbers": numbers,
        "shared_passages": shared_passages, "fields": fields, "semantic": semantic, "preset": preset, "eval_sets": eval_sets,
        "prompt": prompt, "few_shot": few_shot, "input": input,
    }  # fmt: skip
    return CORPUS.judge(rows, settings)


def check(settings: Mapping[str, Any]) -> None:
    """Raises InputError where an eval set cannot be read or the teacher's prompt holds an eval row."""
    if settings["prompt"] is not None and "prompt" in settings["fields"]:
        prepare(**settings)


def identities(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The embedding model as it resolves now, where one is used. Raises InputError where it is not there."""
    if settings["semantic"] is None:
        return {}
    from pipeline import embeddings

    return {"semantic": embeddings.identity(settings["semantic"].model, settings["semantic"].revision)}


class Text(msgspec.Struct, frozen=True):
    """What decontaminate looks at."""

    id: str
    input: str
    rationale: str | None


class EvalRow(msgspec.Struct, frozen=True):
    """A row of an eval set."""

    eval_set: str
    id: str
    source: str
    text: str


@dataclass(frozen=True)
class Rules:
    """From which shares on an eval row stands in a text."""

    name: str
    ngram: int
    coverage: float
    edited: float
    shortest: int
    numbers: bool
    most_texts: int | None = None
    weighted: bool = True

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Rules":
        """Those that the settings say."""
        if settings["preset"] is None:
            edited = settings["edited"] or 2.0
            matter = settings["numbers"] == "matter"
            return cls("", settings["ngram"], settings["coverage"], edited, settings["shortest"], matter)
        preset = PRESETS[settings["preset"]]
        least = 1e-9 if preset.coverage is None else preset.coverage + 1e-9
        return cls(settings["preset"], preset.ngram, least, 2.0, preset.ngram, True, preset.most_texts, False)


@dataclass(frozen=True)
class Prepared:
    """The eval rows and their index; None where there are none."""

    rows: list[EvalRow]
    index: "Index | None"
    rules: Rules


@dataclass
class Sketch:
    """One block: the candidates, and the rows that their texts belong to. Text i is field i // rows of row i % rows."""

    rows: int
    fields: Sequence[Where] = ()
    found: "Found | None" = None
    kept: dict[int, tuple[str, str]] = field(default_factory=dict)  # text -> the row's id, the text
    inputs: list[tuple[str, str]] = field(default_factory=list)  # of all rows, where vectors of them are wanted


@dataclass(frozen=True)
class Match:
    """An eval row that stands in a text, or shares a passage with it. Spans are in words: the first, and the one behind the last."""

    method: str
    score: float
    threshold: float
    row: int
    found: int
    span: tuple[int, int]
    eval_span: tuple[int, int]


def prepare(**settings: Any) -> Prepared:
    """The index of the eval rows, once it has found what was planted, and nothing in the prompt."""
    rules = Rules.of(settings)
    rows = [row for name, eval_set in settings["eval_sets"].items() for row in _eval_rows(name, eval_set)]
    if not rows:
        return Prepared(rows, None, rules)
    from pipeline import overlap, tokens

    texts = tokens.pack([row.text for row in rows])
    if rules.weighted:
        index = overlap.build(texts, ngram=rules.ngram, masked=not rules.numbers)
    else:
        index = overlap.build_any(texts, ngram=rules.ngram)
    prepared = Prepared(rows, index, rules)
    _check_itself(prepared)
    if settings["prompt"] is not None and "prompt" in settings["fields"]:
        _check_prompt(prepared, settings["prompt"], settings["few_shot"], settings["input"])
    return prepared


def sketch(rows: Sequence[Text], prepared: Prepared, **settings: Any) -> Sketch:
    """The candidates among the texts of one block."""
    used: list[Where] = [name for name in settings["fields"] if name != "prompt"]
    inputs = [(row.id, row.input) for row in rows] if settings["semantic"] is not None else []
    if prepared.index is None or not rows or not used:
        return Sketch(len(rows), used, inputs=inputs)
    from pipeline import overlap, tokens

    texts = [getattr(row, name) or "" for name in used for row in rows]
    found = overlap.scan(tokens.pack(texts), prepared.index)
    kept = {number: (rows[number % len(rows)].id, texts[number]) for number in dict.fromkeys(found.text.tolist())}
    return Sketch(len(rows), used, found, kept, inputs)


def resolve(sketches: Sequence[Sketch], prepared: Prepared, **settings: Any) -> Verdicts:
    """One verdict a row, and at the end what was compared and found."""
    rules = prepared.rules
    found = [sketch.found for sketch in sketches if sketch.found is not None]
    judge = _Judge(prepared, found, sum(sketch.rows * len(sketch.fields) for sketch in sketches))
    near = _by_meaning(sketches, prepared, settings["semantic"]) if prepared.rows else {}
    by_set: Counter[str] = Counter()
    by_method: Counter[str] = Counter()
    hit: set[int] = set()
    passages: list[dict[str, JsonValue]] = []
    shared = 0
    before = 0
    for sketch in sketches:
        best = judge.best(sketch)
        for place in range(sketch.rows):
            drop = None
            if place in best:
                number, match = best[place]
                passage = _passage(match)
                shared += passage
                if not passage or len(passages) < EXAMPLES or settings["shared_passages"] == "drop":
                    id, text = sketch.kept[number]
                    evidence = _evidence(text, sketch.fields[number // sketch.rows], match, prepared)
                    if passage and len(passages) < EXAMPLES:
                        passages.append({"row": id, **evidence})
                    if not passage or settings["shared_passages"] == "drop":
                        drop = Drop(id=id, reason="shared_passage" if passage else "contaminated", evidence=evidence)
            if (drop is None or drop.reason == "shared_passage") and before + place in near:
                drop = near[before + place]
            if drop is not None and drop.reason == "contaminated":
                by_set[drop.evidence["eval_set"]] += 1
                by_method[drop.evidence["method"]] += 1
                hit.add(drop.evidence.pop("eval_place"))
            elif drop is not None:
                drop.evidence.pop("eval_place")
            yield drop
        before += sketch.rows
    for example in passages:
        example.pop("eval_place", None)
    sizes = Counter(row.eval_set for row in prepared.rows)
    lengths = [] if prepared.index is None else prepared.index.lengths.tolist()
    too_short = Counter(
        row.eval_set for row, length in zip(prepared.rows, lengths, strict=True) if length < rules.shortest
    )
    return {
        "eval_sets": {
            name: {
                "rows": sizes[name],
                "too_short": too_short[name],
                "found": sum(prepared.rows[place].eval_set == name for place in hit),
                "dropped": by_set[name],
            }
            for name in settings["eval_sets"]
        },
        "methods": dict(sorted(by_method.items())),
        "normaliser": NORMALISER,
        "shared_passages": {"rows": shared, "examples": passages},
    }


class _Judge:
    """What was found in all texts, and from it which candidates stand in their texts."""

    def __init__(self, prepared: Prepared, found: Sequence["Found"], texts: int) -> None:
        self.index, self.rules = prepared.index, prepared.rules
        self.weights: tuple[Weights, Weights] | None = None
        self.begins: Any = None  # where a run of the eval rows begins that few enough texts have
        if self.index is None:
            return
        import numpy

        from pipeline import overlap

        if self.rules.weighted:
            self.weights = overlap.weights(self.index, found, texts)
        else:
            self.weights = (numpy.ones(len(self.index.words)),) * 2
        if self.rules.most_texts is not None:
            few = overlap.texts_with(self.index, found) <= self.rules.most_texts
            self.begins = numpy.zeros(len(self.index.runs), numpy.bool_)
            here = self.index.runs >= 0
            self.begins[here] = few[self.index.runs[here]]

    def best(self, sketch: Sketch) -> dict[int, tuple[int, Match]]:
        """For each row in which an eval row stands its text and the match: fields in their order, then the highest score."""
        if self.index is None or self.weights is None or sketch.found is None:
            return {}
        from pipeline import overlap

        result: dict[int, tuple[int, Match]] = {}
        found = sketch.found
        shares = overlap.shares(self.index, found, self.weights)
        enough = shares >= (self.rules.edited, self.rules.edited, self.rules.coverage)
        for candidate in (enough.any(axis=1) | (shares[:, 1] == 1)).nonzero()[0].tolist():
            match = self._match(found, candidate, *shares[candidate].tolist())
            if match is None:
                continue
            number = int(found.text[candidate])
            place = number % sketch.rows
            known = result.get(place)
            if known is None or (_rank(match) > _rank(known[1]) and (known[0] == number or _passage(known[1]))):
                result[place] = (number, match)
        return result

    def _match(self, found: "Found", candidate: int, share: float, of_words: float, in_runs: float) -> Match | None:
        assert self.index is not None
        row, span, length = int(found.row[candidate]), found.spans[candidate].tolist(), int(found.lengths[candidate])
        rules, place = self.rules, self.index.place(row)
        own = place.stop - place.start
        run = (span[2], span[2] + span[4]), (span[3], span[3] + span[4])
        if rules.weighted and span[4] == own and (own == length or own >= rules.shortest):
            return Match("exact" if own == length else "contained", 1.0, 1.0, row, own, *run)
        if own < rules.shortest:
            return None
        marks = found.marked(candidate)
        count = int((marks > 0).sum())
        if rules.weighted and rules.numbers and (self.index.number[self.index.words[place]] & (marks == 0)).any():
            return None  # a number of the eval row is another one, or is missing
        if self.begins is not None and not self._begin(self.begins[place], marks > 1):
            return None
        if in_runs >= rules.coverage:
            return Match(rules.name or "runs", in_runs, rules.coverage, row, count, *run)
        places = marks.nonzero()[0]
        around = (span[0], span[1]), (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
        if share >= rules.edited:
            return Match("edited", share, rules.edited, row, count, *around)
        if of_words >= rules.edited and rules.weighted:
            return Match("shared passage", share, rules.edited, row, count, *run)
        return None

    def _begin(self, begins: Any, in_run: Any) -> bool:
        """Whether a run that begins where ``begins`` says is among those that were found."""
        n = self.rules.ngram
        return any(in_run[start : start + n].all() for start in begins.nonzero()[0])


def _passage(match: Match) -> bool:
    return match.method == "shared passage"


def _rank(match: Match) -> tuple[int, float]:
    """Of two matches of a text the greater one is told; of equals the earlier eval row's."""
    methods = ("shared passage", "edited", "contained", "exact")
    return methods.index(match.method) if match.method in methods else 1, round(match.score, 9)


def _evidence(text: str, where: str, match: Match, prepared: Prepared) -> dict[str, Any]:
    row, rules = prepared.rows[match.row], prepared.rules
    overlap = as_it_stands(text, *match.span)
    eval_overlap = as_it_stands(row.text, *match.eval_span)
    method = match.method
    if rules.name:
        settings: dict[str, JsonValue] = {"preset": rules.name, "ngram": rules.ngram}
    else:
        settings = {
            "ngram": rules.ngram, "coverage": rules.coverage, "edited": rules.edited if rules.edited <= 1 else None,
            "shortest": rules.shortest, "numbers": "matter" if rules.numbers else "ignore",
        }  # fmt: skip
    return {
        "where": where,
        "text": excerpt(text),
        "eval_place": match.row,
        "eval_set": row.eval_set,
        "eval_row": row.id,
        "eval_source": row.source,
        "eval_text": excerpt(row.text),
        "method": method,
        "score": round(match.score, 4),
        "threshold": round(match.threshold, 4),
        "words_found": [match.found, len(words(row.text))],
        "numbers_differ": numbers(overlap) != numbers(eval_overlap),
        "overlap": excerpt(overlap, SPAN),
        "eval_overlap": excerpt(eval_overlap, SPAN),
        "settings": settings,
    }


def as_it_stands(text: str, first: int, last: int) -> str:
    """Words ``first`` to ``last`` (exclusive) of the normal form of ``text`` as they stand in it, cut at white space.

    Where the normal form has other words than the parts between white space have, the words of the normal form.
    """
    known = words(text)
    start = end = at = 0
    for piece in re.finditer(r"\S+", text):
        bare = piece[0].strip('.,;:!?"()')
        own = [bare.lower()] if bare.isascii() and bare.isalnum() else words(piece[0])
        if known[at : at + len(own)] != own:
            if any(character.isalnum() for character in piece[0]):
                return " ".join(known[first:last])
            continue  # punctuation that stands alone
        if at <= first:
            start = piece.start()
        if at < last:
            end = piece.end()
        at += len(own)
    return text[start:end] if at == len(known) else " ".join(known[first:last])


def _by_meaning(sketches: Sequence[Sketch], prepared: Prepared, semantic: Semantic | None) -> dict[int, Drop]:
    """For the inputs that mean nearly the same as an eval row their drops, by the row's place in the corpus."""
    if semantic is None:
        return {}
    from pipeline.embeddings import nearest

    inputs = [one for sketch in sketches for one in sketch.inputs]
    queries, texts, cosines = nearest(
        [row.text for row in prepared.rows],
        [text for _, text in inputs],
        model=semantic.model,
        at_least=semantic.at_least,
        revision=semantic.revision,
    )
    best: dict[int, tuple[float, int]] = {}
    for query, place, cosine in zip(queries.tolist(), texts.tolist(), cosines.tolist(), strict=True):
        if place not in best or (-cosine, query) < best[place]:
            best[place] = (-cosine, query)
    drops = {}
    for place, (cosine, query) in best.items():
        row, (id, text) = prepared.rows[query], inputs[place]
        evidence = {
            "where": "input", "text": excerpt(text), "eval_place": query, "eval_set": row.eval_set, "eval_row": row.id,
            "eval_source": row.source, "eval_text": excerpt(row.text), "method": "meaning", "score": round(-cosine, 5),
            "threshold": semantic.at_least, "settings": {"semantic": semantic.model_dump()},
        }  # fmt: skip
        drops[place] = Drop(id=id, reason="contaminated", evidence=evidence)
    return drops


def _eval_rows(name: str, eval_set: EvalSet) -> Iterator[EvalRow]:
    if eval_set.input is None:
        raise InputError(f"eval_sets.{name}.input: is missing; say which text of a row is its input")
    given = read_prompts(
        eval_set.path,
        input=eval_set.input,
        gold=eval_set.gold,
        choices=eval_set.choices,
        id=eval_set.id,
        on_bad_row="stop",
    )
    found = False
    for prompt in given:
        if isinstance(prompt, Prompt):  # as bad rows stop, there are no drops
            found = True
            yield EvalRow(name, prompt.id, prompt.source, prompt.input)
    if not found:
        raise InputError(f"eval_sets.{name}.path: {eval_set.path} has no rows; nothing can be compared with it")


def _matches(texts: Sequence[str], prepared: Prepared) -> dict[int, tuple[int, Match]]:
    """What stands in texts that are no training rows, by the place of each."""
    if not texts:
        return {}
    found = sketch([Text("", text, None) for text in texts], prepared, fields=("input",), semantic=None)
    assert found.found is not None
    best = _Judge(prepared, [], 0).best(found)
    return {place: one for place, one in best.items() if not _passage(one[1])}


def _check_itself(prepared: Prepared) -> None:
    """Raises RunError where the index does not find a row of an eval set that was planted in a text."""
    assert prepared.index is not None
    sets: dict[str, list[int]] = {}
    for place, row in enumerate(prepared.rows):
        sets.setdefault(row.eval_set, []).append(place)
    planted: list[tuple[int, str, str]] = []
    for places in sets.values():
        for place in places[:: -(-len(places) // PLANTED)]:
            text = prepared.rows[place].text
            known = words(text)
            if len(known) < prepared.rules.shortest and prepared.rules.name:
                continue  # the preset does not look for it
            planted.append((place, "as it is", text))
            if any(character.isalnum() for character in normalise(text)):
                shown = f"** {'  '.join(_other_case(text).split())} **"
                if normalise(shown) == normalise(text):  # marks that stand alone can combine with other letters
                    planted.append((place, "in other case and punctuation", shown))
                if len(known) >= prepared.rules.shortest:
                    planted.append((place, "between other words", f"{FILLER}\n{text}\n{FILLER}"))
    found = _matches([text for _, _, text in planted], prepared)
    for number, (place, how, _) in enumerate(planted):
        row = prepared.rows[place]
        if number not in found:
            raise RunError(
                f"eval_sets.{row.eval_set}: row {plain(row.id)} was planted {how} to check the index and was not found; nothing "
                "was compared; check what the eval set's input shows, or report this"
            )


def _other_case(text: str) -> str:
    """In capitals, but for letters that do not come back from there."""
    return "".join(one.upper() if one.upper().casefold() == one.casefold() else one for one in text)


def _check_prompt(prepared: Prepared, path: Path, few_shot: FewShot | None, input: str | None) -> None:
    """Raises InputError where the prompt's own text, or an example that it shows, holds an eval row."""
    template = prompts.load(path)
    given = [(str(path.with_name(name)), _static(text)) for name, text in template.sources.items()]
    if few_shot is not None and input is not None:
        examples = shots.load(few_shot, input).inputs
        given += [(f"{few_shot.path}: example {number}", text) for number, text in enumerate(examples, 1)]
    found = _matches([text for _, text in given], prepared)
    for place, (_, match) in sorted(found.items()):
        row = prepared.rows[match.row]
        overlap = plain(as_it_stands(given[place][1], *match.span), 120)
        raise InputError(
            f"{given[place][0]}: '{overlap}' stands in eval_sets.{row.eval_set}, row {plain(row.id)} ({plain(row.source)}): a model that "
            "learns from this prompt's answers has seen it; write another example, or leave 'prompt' out of decontaminate.fields"
        )


def _static(text: str) -> str:
    """A template's own words: without comments and what marks its statements and expressions."""
    return re.sub(r"\{[%{]-?|-?[%}]\}", "\n", re.sub(r"\{#.*?#\}", "", text, flags=re.DOTALL))


CORPUS = Corpus(view=Text, prepare=prepare, sketch=sketch, resolve=resolve)
