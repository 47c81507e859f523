"""Look before a run: what the filters of a stage would drop, which labels their neighbours contradict, and what would be trained first.

Nothing is written.

    found = dry_run(load("stages.yaml"), "quality")
    for reason in found.reasons: print(reason.name, reason.alone, reason.first, reason.only)

    found = suspects(load("stages.yaml"), model="models/all-MiniLM-L6-v2")
    for row in found.suspects[:10]: print(row.score, row.label, row.neighbours, row.input)

    found = first_batch(load("stages.yaml"))          # see `preview`

``dry_run`` runs a filter stage on what lies on disk for it, in blocks and processes as a run does, and counts. For quality it asks every
filter about every row, those that are not configured too (with their defaults), so that one run tells what each does alone, in the
order of the list, and what no other filter sees.

``suspects`` ranks rows by the labels of their ``k`` nearest: the score is the similarity that speaks for another label less that which
speaks for the row's own, as a share of all (Bahri, Jiang and Gupta, 2020, "Deep k-NN for noisy labels", take the neighbours' votes;
here they are weighted by cosine). Rows above 0 are suspects, as evidence to look at: none is dropped. Near means like embeddings, or,
without a model, like TF-IDF weights of words and runs of 3 to 5 characters, projected to 256 dimensions (latent semantic analysis).

Limits: suspects are only as good as what makes rows near. On the demo (417 short, varied texts, 24% of the labels wrong) 90% of the first
20 suspects are wrong by all-MiniLM-L6-v2, and 25% by words, which is chance; of 10% that were swapped at random 89% and 32% are. Words
see a topic only where texts share them. ``agreement`` measures this wherever there are true labels. Rows whose label stands out for a
good reason (rare labels, borders between two) are suspects too, and where errors are the rule among like rows, the right one is. Weights
of words are learnt from ``SAMPLE`` rows; neighbours beyond 50,000 rows are looked for in clusters, where about a tenth of them is missed;
texts and vectors are held in memory.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pipeline import labels as label_forms
from pipeline import outputs, quality
from pipeline.binding import Call
from pipeline.blocks import Block, cut
from pipeline.config import Config, load, permit, verify
from pipeline.files import InputError, plain
from pipeline.filters import FILTERS
from pipeline.preview import Preview, preview_of_shards
from pipeline.processes import Crew
from pipeline.progress import bar
from pipeline.records import Drop, Example
from pipeline.results import result
from pipeline.runner import choose
from pipeline.stages import STAGES, Stage
from pipeline.text import excerpt, words

if TYPE_CHECKING:
    from pipeline.embeddings import Indices, Vectors

EXAMPLES: Final = 2  # of a reason that are shown
PAIRS: Final = 10  # of filters that object together, the most frequent
NEAREST: Final = 3  # of a suspect's neighbours that are shown
SAMPLE: Final = 20_000  # rows that the weights of words are learnt from
TERMS: Final = 100_000  # of which so many, the most frequent
DIMENSIONS: Final = 256
RANKS: Final = (10, 20, 50, 100, 200, 500, 1000)
CHUNK: Final = 1 << 14


@dataclass(frozen=True)
class Reason:
    """What would be dropped for one reason.

    ``first``: rows that the run would count under it. Of quality's filters also ``alone``: rows that it objects to, whatever the others do,
    and ``only``: rows that no other configured filter objects to; for a filter that is not ``configured``, what it would drop besides.
    """

    name: str
    configured: bool
    first: int
    alone: int | None
    only: int | None
    settings: dict[str, Any] | None
    examples: list[dict[str, Any]]


@dataclass(frozen=True)
class DryRun:
    """What a filter stage would do with the ``rows`` that stage ``reads`` left.

    ``together``: two of the configured filters and the number of rows that both object to. ``not_tried``: filters that could not be, and
    why. ``details``: what would stand in the manifest.
    """

    stage: str
    reads: str
    rows: int
    dropped: int
    reasons: list[Reason]
    together: list[tuple[str, str, int]] = field(default_factory=list)
    not_tried: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def dry_run(config: Config, stage: str, overrides: Sequence[str] = (), *, processes: int | None = None) -> DryRun:
    """Run one filter stage on what lies on disk, and only count. ``overrides`` are those that ``config`` was loaded with;
    ``processes`` stands in for its setting of this name.

    Raises InputError where the stage is no filter, is switched off, or has nothing to read yet.
    """
    verify(config)
    choose(config, [stage], None, None)
    row = STAGES[stage]
    if row.kind != "filter":
        filters = ", ".join(name for name in config.stages if STAGES[name].kind == "filter")
        raise InputError(f"{stage}: --dry-run is for train and for filter stages; here these are {filters or 'none'}")
    reads, folder = _read_by(config, stage)
    with Crew(config.engine, processes or config.processes, config.ray) as crew:
        if stage == "quality":
            return _quality(config, reads, folder, overrides, crew)
        return _filter(config, row, reads, folder, crew)


def first_batch(config: Config) -> Preview:
    """What training on the shards in force would begin with. Raises InputError as a training does, but for terms that refuse it."""
    verify(config)
    choose(config, ["train"], None, None)
    _, folder = _read_by(config, "train")
    refused = None
    try:
        permit(config, ["train"])
    except InputError as error:
        refused = str(error)
    return preview_of_shards(folder, config.stages["train"], refused=refused)


def _read_by(config: Config, stage: str) -> tuple[str, Path]:
    """The stage whose result this one reads, and the folder in force. Raises InputError where there is none yet."""
    (reads,) = config.parents(stage)
    folder = outputs.current(config.run, reads)
    if folder is None:
        raise InputError(f"{stage}: reads {reads}, which has no result yet; run `stepdistill run --until {reads}`")
    return reads, folder


def _quality(config: Config, reads: str, folder: Path, overrides: Sequence[str], crew: Crew) -> DryRun:
    filters: list[Call] = list(config.stages["quality"]["filters"])
    others, not_tried = _not_configured(config, {call.name for call in filters}, overrides)
    counts: Counter[tuple[int, ...]] = Counter()
    examples: dict[int, list[Drop]] = {}
    for found, drops in _blockwise(crew, _objections, folder, [*filters, *others], "quality"):
        counts += found
        for number, shown in drops.items():
            examples[number] = [*examples.get(number, ()), *shown][:EXAMPLES]
    alone, first, only = Counter[int](), Counter[int](), Counter[int]()
    together = Counter[tuple[int, int]]()
    for objecting, rows in counts.items():
        configured = [number for number in objecting if number < len(filters)]
        alone.update(dict.fromkeys(objecting, rows))
        first.update(dict.fromkeys(configured[:1], rows))
        if len(configured) <= 1:
            only.update(dict.fromkeys(configured or objecting, rows))
        together.update(dict.fromkeys(combinations(configured, 2), rows))
    reasons = [
        Reason(
            name=call.name,
            configured=number < len(filters),
            first=first[number],
            alone=alone[number],
            only=only[number],
            settings=call.settings,
            examples=[drop.plain() for drop in examples.get(number, ())],
        )
        for number, call in enumerate([*filters, *others])
    ]
    pairs = sorted(together.items(), key=lambda pair: (-pair[1], pair[0]))[:PAIRS]
    return DryRun(
        stage="quality",
        reads=reads,
        rows=counts.total(),
        dropped=first.total(),
        reasons=reasons,
        together=[(filters[one].name, filters[other].name, rows) for (one, other), rows in pairs],
        not_tried=not_tried,
    )


def _not_configured(
    config: Config, configured: set[str], overrides: Sequence[str]
) -> tuple[list[Call], dict[str, str]]:
    """The other filters, bound as if each stood in the list by its bare name; and those that cannot stand there so, with the reason."""
    found: list[Call] = []
    not_tried: dict[str, str] = {}
    for name in FILTERS:
        if name in configured:
            continue
        try:
            tried = load(config.file, [*overrides, f"quality.filters=[{name}]"])
            STAGES["quality"].check(tried.stages["quality"])
            found += tried.stages["quality"]["filters"]
        except InputError as error:
            not_tried[name] = re.sub(r"^(\S+: )?stages\.\S+: ", "", str(error))
    return found, not_tried


def _objections(calls: Sequence[Call], block: Block) -> tuple[Counter[tuple[int, ...]], dict[int, list[Drop]]]:
    """How many rows of one block each set of filters objects to, and the first drops of each filter."""
    counts: Counter[tuple[int, ...]] = Counter()
    examples: dict[int, list[Drop]] = {}
    for example in block.rows(Example):
        drops = {number: drop for number, call in enumerate(calls) if (drop := quality.judge(example, call))}
        counts[tuple(drops)] += 1
        for number, drop in drops.items():
            if len(examples.setdefault(number, [])) < EXAMPLES:
                examples[number].append(drop)
    return counts, examples


def _filter(config: Config, stage: Stage, reads: str, folder: Path, crew: Crew) -> DryRun:
    """Any other filter: its verdicts by reason."""
    settings = config.stages[stage.name]
    details: dict[str, Any] = {}

    def verdicts() -> Iterator[Drop | None]:
        if stage.corpus is None:
            for found in _blockwise(crew, _judged, folder, (stage.name, settings), stage.name):
                yield from found
            return
        prepared = stage.corpus.prepare(**settings)
        sketches = list(_blockwise(crew, _sketch, folder, (stage.name, settings, prepared), stage.name))
        details.update((yield from stage.corpus.resolve(sketches, prepared, **settings)) or {})

    rows = 0
    counts: Counter[str] = Counter()
    examples: dict[str, list[dict[str, Any]]] = {}
    for drop in verdicts():
        rows += 1
        if drop is not None:
            counts[drop.reason] += 1
            if counts[drop.reason] <= EXAMPLES:
                examples.setdefault(drop.reason, []).append(drop.plain())
    reasons = [Reason(name, True, number, None, None, None, examples[name]) for name, number in counts.most_common()]
    return DryRun(stage.name, reads, rows, counts.total(), reasons, details=details)


def _judged(shared: tuple[str, dict[str, Any]], block: Block) -> list[Drop | None]:
    name, settings = shared
    return list(STAGES[name].function(block.rows(Example), **settings))


def _sketch(shared: tuple[str, dict[str, Any], Any], block: Block) -> Any:
    name, settings, prepared = shared
    corpus = STAGES[name].corpus
    assert corpus is not None
    return corpus.sketch(block.rows(corpus.view), prepared, **settings)


def _blockwise(crew: Crew, function: Any, folder: Path, shared: Any, stage: str) -> Iterator[Any]:
    """What ``function`` gives for each block of a finished folder, in order."""
    blocks = list(cut(folder))
    weight = sum(map(len, blocks))
    with bar(f"{stage}, dry run", weight >> 10, "KiB") as advance:
        tasks = ((block,) for block in blocks)
        for block, found in zip(blocks, crew.in_order(function, tasks, weight=weight, shared=shared), strict=True):
            yield found
            advance(len(block) >> 10)


class Labelled(msgspec.Struct):
    """What of an example is looked at for suspects."""

    id: str
    input: str
    label: str | None
    gold: str | None
    choices: list[str] | None


@dataclass(frozen=True)
class Neighbour:
    """A row near a suspect, and its cosine."""

    id: str
    label: str
    similarity: float
    input: str


@dataclass(frozen=True)
class Suspect:
    """A row whose neighbours speak for another label: ``neighbours`` is that label, ``votes`` how many of the ``k`` have it.

    ``score``, from 0 to 1: the similarity that speaks for that label less that which speaks for the row's own, as a share of all.
    """

    id: str
    score: float
    label: str
    neighbours: str
    votes: int
    gold: str | None
    input: str
    nearest: list[Neighbour]


@dataclass(frozen=True)
class Agreement:
    """How well the ranking finds labels that are not gold, among the ``rows`` with a true label.

    ``wrong`` is their share among all of those, ``suspects`` among the suspects, ``found`` the share of all wrong ones that are suspects;
    ``first`` holds, for the so many most suspect, the share that is wrong.
    """

    rows: int
    wrong: float
    suspects: float | None
    found: float | None
    first: dict[int, float]


@dataclass(frozen=True)
class Suspects:
    """The most suspect rows of a stage's result, and how many there are. ``by``: what makes rows near, a model or words."""

    stage: str
    by: str
    k: int
    rows: int
    total: int
    agreement: Agreement | None
    suspects: list[Suspect]


def suspects(
    config: Config,
    stage: str | None = None,
    *,
    k: int = 10,
    model: str | None = None,
    revision: str | None = None,
    number: int | None = None,
) -> Suspects:
    """The ``number`` rows (None: all suspects) whose label their ``k`` nearest contradict most, in a stage's result in force.

    ``stage``: None is the last filter stage that has a result. Raises InputError where there is none, where its rows have no labels that
    others can share, and where the model is not there.
    """
    from pipeline import embeddings

    stage = stage or _last_filter(config)
    folder = result(config, stage)
    if STAGES[stage].gives is not Example:
        raise InputError(f"{stage}: holds no examples; the stages that do are {', '.join(_giving_examples(config))}")
    kind = config.stages["parse"]["label_type"]
    rows = [row for block in cut(folder) for row in block.rows(Labelled) if row.label is not None]
    if kind in ("number", "equation") or any(row.choices for row in rows):
        raise InputError(
            f"{stage}: every row has answers of its own here ({'its choices' if any(row.choices for row in rows) else kind}), "
            "so its neighbours' labels say nothing of its own; suspects need labels that rows share"
        )
    if len(rows) < 2:
        raise InputError(f"{stage}: {len(rows)} rows with a label; suspects need neighbours")
    inputs = [row.input for row in rows]
    vectors = _by_words(inputs) if model is None else embeddings.embed(inputs, model=model, revision=revision)
    k = min(k, len(rows) - 1)
    near, cosines = embeddings.neighbours(vectors, k)
    keys = [label_forms.key(row.label or "", kind) for row in rows]
    scores, voted, votes = _votes(keys, near, cosines)
    order = [int(place) for place in (-scores).argsort(kind="stable") if scores[place] > 0]
    wrong = [row.gold is not None and not label_forms.same(row.label or "", row.gold, kind) for row in rows]
    ranked = [wrong[place] for place in order if rows[place].gold is not None]
    known = sum(row.gold is not None for row in rows)

    def shown(place: int) -> Suspect:
        row = rows[place]
        found = [(int(other), float(cosine)) for other, cosine in zip(near[place], cosines[place], strict=True)]
        return Suspect(
            id=row.id,
            score=round(float(scores[place]), 4),
            label=row.label or "",
            neighbours=rows[int(near[place, voted[place]])].label or "",
            votes=int(votes[place]),
            gold=row.gold,
            input=excerpt(row.input),
            nearest=[
                Neighbour(rows[other].id, rows[other].label or "", round(cosine, 4), excerpt(rows[other].input))
                for other, cosine in found[:NEAREST]
                if other >= 0
            ],
        )

    return Suspects(
        stage=stage,
        by="words" if model is None else model,
        k=k,
        rows=len(rows),
        total=len(order),
        agreement=_agreement(known, sum(wrong), ranked) if known else None,
        suspects=[shown(place) for place in order[:number]],
    )


def _last_filter(config: Config) -> str:
    done = [name for name in config.stages if outputs.current(config.run, name) is not None]
    filters = [name for name in done if STAGES[name].kind == "filter"]
    if not filters:
        raise InputError(f"{config.run}: no filter stage has a result yet; run `stepdistill run --until quality`")
    return filters[-1]


def _giving_examples(config: Config) -> Iterable[str]:
    return (name for name in config.stages if STAGES[name].gives is Example)


def _agreement(rows: int, wrong: int, ranked: list[bool]) -> Agreement:
    return Agreement(
        rows=rows,
        wrong=wrong / rows,
        suspects=sum(ranked) / len(ranked) if ranked else None,
        found=sum(ranked) / wrong if wrong else None,
        first={rank: sum(ranked[:rank]) / rank for rank in RANKS if rank <= len(ranked)},
    )


def _votes(keys: Sequence[str], near: "Indices", cosines: "Vectors") -> tuple[Any, Any, Any]:
    """For each row: the score, which of its neighbours has the label that most speaks for, and how many of them have that label."""
    import numpy as np

    _, label = np.unique(np.array(keys, dtype=object), return_inverse=True)
    scores, voted, votes = np.zeros(len(keys)), np.zeros(len(keys), np.int64), np.zeros(len(keys), np.int64)
    for start in range(0, len(keys), CHUNK):
        here = slice(start, start + CHUNK)
        weight = np.where(near[here] < 0, 0, cosines[here].clip(min=0)).astype(np.float64)
        theirs, own = np.where(near[here] < 0, -1, label[near[here]]), label[here, None]
        alike = theirs[:, :, None] == theirs[:, None, :]
        support = (alike * weight[:, None, :]).sum(axis=2)  # of each neighbour's label, by all neighbours
        for_own = np.where(theirs == own, weight, 0).sum(axis=1)
        against = np.where(theirs == own, -1, support)
        best = against.argmax(axis=1)
        rows = np.arange(len(best))
        total = weight.sum(axis=1)
        scores[here] = np.where(total > 0, (against[rows, best] - for_own) / np.maximum(total, 1e-12), -1)
        voted[here], votes[here] = best, alike[rows, best].sum(axis=1)
    return scores, voted, votes


def _by_words(texts: Sequence[str]) -> "Vectors":
    """Vectors of length 1 from words and runs of characters; a text without any that the sample knows is all zeros."""
    import numpy as np
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    chosen = np.sort(np.random.default_rng(0).choice(len(texts), min(len(texts), SAMPLE), replace=False))
    vectorizer = TfidfVectorizer(analyzer=_terms, sublinear_tf=True, max_features=TERMS)
    parts = []
    with bar("weigh words", len(texts), "texts") as advance:
        weights = vectorizer.fit_transform([texts[row] for row in chosen])
        projection = TruncatedSVD(max(1, min(DIMENSIONS, *(size - 1 for size in weights.shape))), random_state=0)
        projection.fit(weights)
        for start in range(0, len(texts), CHUNK):
            part = texts[start : start + CHUNK]
            parts.append(normalize(projection.transform(vectorizer.transform(part))).astype(np.float32))
            advance(len(part))
    found: Vectors = np.concatenate(parts)
    return found


def _terms(text: str) -> list[str]:
    found = words(text)
    runs = [
        padded[start : start + length]
        for padded in (f" {word} " for word in found)
        for length in (3, 4, 5)
        for start in range(len(padded) - length + 1)
    ]
    return found + runs or [plain(text)]
