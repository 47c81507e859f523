"""balance: drop rows of labels and groups that have too many, so that no label and no source drowns the others.

    balance: {most_per_label: 2000, most_per_group: {source: 500}}          # runs only where it is named
    balance: {label_ratio: 1}                                               # as many rows of each label as the rarest has

    {"id": "b7..", "reason": "over_label_cap", "evidence": {"label": "sports", "rows": 812, "cap": 500, "rank": 644, "choose": "random",
     "seed": 0, "draw": "c51f02ab99e0d731"}}

All rows stand in one order: by a draw that is a hash of the row's id and the seed, or by the rule ``choose`` with that draw between
equals. They are gone through in it, and a row is kept unless its label or one of its groups is full. So caps hold exactly, the rows
kept of a full label or group are its first ones, and no row is dropped that could have stayed. Then ``label_ratio`` takes the last rows
of each label that has more than so many times the rows that the rarest label still has. None of this depends on the order of the input,
and of two inputs that differ in a few rows the results do too.

The label is the one that shard trains on. Rows that shard is going to drop are not counted here, and pass; rows without a label pass the
label's caps. ``hardest`` and ``easiest`` go by the entropy of the votes, ``highest_vote`` by the share of them that the voted label has;
rows with one vote come last.

Limits: a label that few rows have makes ``label_ratio`` drop nearly everything; where the task has a list of labels, only those count
as the rarest. Labels that are no classes (equations, answers of multiple-choice rows) can't be balanced. ``label_ratio`` comes last, so
it may leave a group with fewer rows than its cap. Ids, draws and codes are held in memory (about 100 bytes a row).
"""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import xxhash
from pydantic import Field, JsonValue

from pipeline import labels as label_forms
from pipeline.binding import From, suggestion
from pipeline.blocks import Corpus
from pipeline.files import InputError, plain
from pipeline.labels import LabelType
from pipeline.records import Drop, Example, Target
from pipeline.shard import Refused, Source, Terms, completions, difficulty, trained_label

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

Choose = Literal["random", "hardest", "easiest", "highest_vote"]
Cap = Annotated[int, Field(gt=0)]


def balance(
    rows: Iterable[Example],
    *,
    most_per_label: Cap | None = None,
    label_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None,
    most_per_group: Mapping[str, Cap] | None = None,
    choose: Choose = "random",
    seed: int = 0,
    slices: Annotated[Sequence[str], From("task.slices")] = (),
    targets: Annotated[Sequence[Target], From("task.targets")] = ("label", "rationale"),
    labels: Annotated[Sequence[str] | None, From("task.labels")] = None,
    label_type: Annotated[LabelType, From("stages.parse.label_type")] = "text",
    teachers: Annotated[Sequence[str], From("stages.sample.teacher.names")] = (),
    label: Annotated[Source, From("stages.shard.label")] = "vote",
    teacher: Annotated[str | None, From("stages.shard.teacher")] = None,
    rationale_of_other_label: Annotated[
        Literal["drop", "keep"], From("stages.shard.rationale_of_other_label")
    ] = "drop",
) -> Iterator[Drop | None]:
    """One verdict a row, after all have been read.

    ``most_per_label``: rows that a label may have. ``label_ratio``: how many times the rows of the rarest label any may have, at least 1.
    ``most_per_group``: for columns that task.slices names, rows that each of their values may have. ``choose``: which rows stay first.
    ``seed``: for the draw. Raises InputError, before the first row, where no cap is set or a column is unknown, and at its end where
    ``choose`` goes by votes and no row has more than one.
    """
    settings = {name: value for name, value in locals().items() if name != "rows"}
    return CORPUS.judge(rows, settings)


@dataclass(frozen=True)
class Plan:
    """The settings, checked. ``columns``: those of ``task.slices`` that are capped, with their caps."""

    most_per_label: int | None
    label_ratio: float | None
    columns: dict[str, int]
    choose: Choose
    seed: int
    terms: Terms


@dataclass(frozen=True)
class Sketch:
    """A block of rows: ids one behind the other and their lengths, draws, how early each row is chosen, and its label and groups.

    ``scores`` are higher for rows that are chosen before others; -inf where what decides is not known. The label is column 0, then come
    the groups: ``names`` has the values of each column and ``codes`` each row's place among them, -1 for rows that are not counted.
    """

    ids: bytes
    lengths: "Integers"
    draws: "NDArray[np.uint64]"
    scores: "NDArray[np.float64]"
    names: list[list[str]]
    codes: list["Integers"]


def checked(
    *,
    most_per_label: int | None,
    label_ratio: float | None,
    most_per_group: Mapping[str, int] | None,
    choose: Choose,
    seed: int,
    slices: Sequence[str],
    **terms: Any,
) -> Plan:
    """The settings of ``balance``, checked. Raises InputError."""
    if most_per_label is None and label_ratio is None and not most_per_group:
        raise InputError(
            "stages.balance: no cap is set; set most_per_label, label_ratio or most_per_group, or remove the stage"
        )
    for column in most_per_group or {}:
        if column not in slices:
            known = suggestion(column, map(plain, slices)) if slices else ", which names none; name it there"
            raise InputError(
                f"stages.balance.most_per_group.{plain(column)}: not among the columns of task.slices{known}"
            )
    return Plan(most_per_label, label_ratio, dict(most_per_group or {}), choose, seed, Terms(**terms))


def sketch(rows: Iterable[Example], plan: Plan) -> Sketch:
    """What is remembered of a block. Raises InputError where a row has no value in a capped column."""
    import numpy as np

    ids: list[bytes] = []
    draws: list[int] = []
    scores: list[float] = []
    values: list[list[str | None]] = [[] for _ in range(1 + len(plan.columns))]
    for example in rows:
        ids.append(example.id.encode())
        draws.append(xxhash.xxh3_64_intdigest(f"balance:{plan.seed}:{example.id}".encode()))
        scores.append(_score(example, plan.choose))
        counted = not isinstance(completions(example, plan.terms), Refused)
        values[0].append(trained_label(example, plan.terms) if counted else None)
        for place, column in enumerate(plan.columns, 1):
            values[place].append(_value(example, column) if counted else None)
    names = [list(dict.fromkeys(value for value in column if value is not None)) for column in values]
    places = [{name: code for code, name in enumerate(column)} | {None: -1} for column in names]
    return Sketch(
        ids=b"".join(ids),
        lengths=np.array([len(id) for id in ids], np.int64),
        draws=np.array(draws, np.uint64),
        scores=np.array(scores, np.float64),
        names=names,
        codes=[
            np.array([place[value] for value in column], np.int64) for place, column in zip(places, values, strict=True)
        ],
    )


def _value(example: Example, column: str) -> str:
    try:
        return example.slices[column]
    except KeyError:
        problem = f"balance: row {plain(example.id)} has no value for {plain(column)!r}"
        raise InputError(f"{problem}; name the column in task.slices and run from ingest on") from None


def _score(example: Example, choose: Choose) -> float:
    """Higher for rows that are chosen before others."""
    if choose == "random":
        return 0.0
    hard = difficulty(example)
    known = example.agreement if choose == "highest_vote" else hard
    if hard is None or known is None:
        return -math.inf
    return -known if choose == "easiest" else known


@dataclass(frozen=True)
class Column:
    """One way to tell the rows of the corpus apart, by label or by a column of the source, and how many rows a group may have.

    ``names`` are the values as they are written, and ``group_of`` the number of each one's group: labels that say the same are one.
    ``written`` is each row's place among the names, -1 for rows that are not counted.
    """

    names: list[str]
    group_of: list[int]
    written: "Integers"
    cap: int | None
    title: str | None = None  # None for the label
    because: Mapping[str, JsonValue] = field(default_factory=dict)  # where the cap comes from, if it is no setting

    @cached_property
    def groups(self) -> "Integers":
        """Each row's group, or -1."""
        import numpy as np

        return np.array([*self.group_of, -1])[self.written]

    def sizes(self) -> "Integers":
        """Rows of each group."""
        import numpy as np

        return np.bincount(self.groups[self.groups >= 0], minlength=max(1, len(self.group_of)))

    def ranks(self, order: "Integers") -> "Integers":
        """Each row's place in its group, from 1, where the rows are taken in this order."""
        import numpy as np

        together = order[np.argsort(self.groups[order], kind="stable")]
        groups = self.groups[together]
        ranks = np.empty(len(order), np.int64)
        ranks[together] = np.arange(len(order)) - np.searchsorted(groups, groups) + 1
        return ranks


def resolve(sketches: Iterable[Sketch], plan: Plan) -> Generator[Drop | None, None, dict[str, Any]]:
    """The verdicts in the order of the rows, and at the end how many groups were over their caps. Raises InputError."""
    import numpy as np

    blocks = list(sketches)
    draws = np.concatenate([block.draws for block in blocks]) if blocks else np.empty(0, np.uint64)
    scores = np.concatenate([block.scores for block in blocks]) if blocks else np.empty(0)
    columns = [_column(blocks, 0, plan.most_per_label, None, partial(label_forms.key, kind=plan.terms.label_type))]
    columns += [_column(blocks, place, cap, title) for place, (title, cap) in enumerate(plan.columns.items(), 1)]
    if plan.choose != "random" and len(scores) and np.isneginf(scores).all():
        problem = f"{plan.choose} goes by the votes, and no row has more than one"
        raise InputError(f"stages.balance.choose: {problem}; ask for several samples, or choose random")
    order = np.lexsort((draws, -scores))
    turned_away = _turned_away(columns, order)
    if plan.label_ratio is not None:
        evened, cap = _evened(columns[0], turned_away < 0, plan.label_ratio, plan.terms)
        turned_away[(evened.groups >= 0) & (evened.ranks(order) > cap)] = len(columns)
        columns.append(evened)

    sizes, ranks = [column.sizes() for column in columns], [column.ranks(order) for column in columns]
    ids = _ids(blocks)
    for row, (id, place) in enumerate(zip(ids, turned_away.tolist(), strict=True)):
        if place < 0:
            yield None
            continue
        column = columns[place]
        value = column.names[column.written[row]]
        evidence: dict[str, JsonValue] = {
            **({"label": value} if column.title is None else {"column": column.title, "group": value}),
            "rows": int(sizes[place][column.groups[row]]),
            "cap": column.cap,
            "rank": int(ranks[place][row]),
            "choose": plan.choose,
            "seed": plan.seed,
            "draw": f"{draws[row]:016x}",
            **column.because,
        }
        if plan.choose != "random":
            score = abs(float(scores[row]))
            evidence["agreement" if plan.choose == "highest_vote" else "difficulty"] = (
                None if math.isinf(score) else score
            )
        yield Drop(id=id, reason="over_label_cap" if column.title is None else "over_group_cap", evidence=evidence)
    return {"caps": [_facts(column) for column in columns if column.cap is not None]}


def _column(
    blocks: Sequence[Sketch], place: int, cap: int | None, title: str | None, same: Callable[[str], str] = str
) -> Column:
    """The column at ``place`` of all blocks; values are of one group where ``same`` makes them equal."""
    import numpy as np

    names: dict[str, int] = {}
    parts = [np.empty(0, np.int64)]
    for block in blocks:
        codes = [names.setdefault(name, len(names)) for name in block.names[place]]
        parts.append(np.array([*codes, -1])[block.codes[place]])  # -1 is the last
    groups: dict[str, int] = {}
    group_of = [groups.setdefault(same(name), len(groups)) for name in names]
    return Column(list(names), group_of, np.concatenate(parts), cap, title)


def _turned_away(columns: Sequence[Column], order: "Integers") -> "Integers":
    """For each row the place of the column whose group was full when its turn came, or -1."""
    import numpy as np

    turned_away = np.full(len(order), -1, np.int64)
    capped = [(place, column, column.cap) for place, column in enumerate(columns) if column.cap is not None]
    crowded = np.zeros(len(order), bool)  # the others are in no group that can be full
    for _, column, cap in capped:
        crowded |= (column.groups >= 0) & (column.sizes()[column.groups] > cap)
    groups = [(place, column.groups.tolist(), [cap] * len(column.sizes())) for place, column, cap in capped]
    for row in order[crowded[order]].tolist():
        full = next((place for place, group, room in groups if group[row] >= 0 and not room[group[row]]), -1)
        turned_away[row] = full
        if full < 0:
            for _, group, room in groups:
                if group[row] >= 0:
                    room[group[row]] -= 1
    return turned_away


def _evened(labels: Column, left: "NDArray[np.bool_]", ratio: float, terms: Terms) -> tuple[Column, int]:
    """The labels of the rows that are left, and their cap: ``ratio`` times the rows of the rarest."""
    import numpy as np

    now = replace(labels, written=np.where(left, labels.written, -1))
    sizes = now.sizes()
    there = [(int(sizes[group]), name) for name, group in zip(now.names, now.group_of, strict=True) if sizes[group]]
    named = {label_forms.key(label, terms.label_type) for label in terms.labels or ()}
    counting = [one for one in there if label_forms.key(one[1], terms.label_type) in named] or there
    rows, rarest = min(counting, default=(0, None))
    cap = math.floor(Fraction(repr(float(ratio))) * rows)  # exactly as it is written: 2.3 times 100 is 230
    return replace(now, cap=cap, because={"label_ratio": ratio, "rarest": rarest, "rarest_rows": rows}), cap


def _facts(column: Column) -> dict[str, JsonValue]:
    sizes = column.sizes()
    return {
        "by": column.title or "label",
        "cap": column.cap,
        "groups": int((sizes > 0).sum()),
        "over": int((sizes > (column.cap or 0)).sum()),
        **column.because,
    }


def _ids(blocks: Iterable[Sketch]) -> Iterator[str]:
    for block in blocks:
        end = 0
        for length in block.lengths.tolist():
            yield block.ids[end : end + length].decode()
            end += length


CORPUS = Corpus(
    view=Example,
    prepare=checked,
    sketch=lambda rows, plan, **settings: sketch(rows, plan),
    resolve=lambda sketches, plan, **settings: resolve(sketches, plan),
)
