"""What a report holds: everything that the page, the Markdown and report.json tell, read from the run folder once.

    {"schema_version": 1, "title": "topics", "headline": {"made": "SmolLM2-135M-Instruct learned ..", ..}, "funnel": [..], ..}

Every figure is that of a manifest, of metrics.json or of a measurement beside them; rows are samples, drawn with a fixed seed. A part that
the run does not have is None or empty. Texts are as they are in the run: who shows them escapes them.
"""

from typing import Literal

from pydantic import Field, JsonValue

from pipeline.gates import Verdict
from pipeline.metrics import Costs, Interval, Metrics
from pipeline.records import Record, Source
from pipeline.report.marks import Piece
from pipeline.shift import Shift
from pipeline.usage import Facts, Figures


class Reason(Record):
    """Why rows were dropped, and how many."""

    name: str
    dropped: int


class Bar(Record):
    """One stage of the funnel. ``start`` and ``end`` are the shares of the first stage's input that came in and went on."""

    stage: str
    what: str
    unit: str
    rows_in: int
    kept: int
    dropped: int
    rows_out: int
    reasons: list[Reason] = Field(description="the most frequent first")
    start: float
    end: float


class Gain(Record):
    """What the student saves beside its teacher: how many times (None where the teacher's figure is not known), and a sentence."""

    what: str
    times: float | None
    sentence: str


class Headline(Record):
    """What was distilled from what, and what that gains. ``made`` is a sentence."""

    made: str | None
    teachers: list[str]
    student: str | None = Field(description="the model that it was made from")
    layers: int | None
    examples: int | None = Field(description="that it was trained on")
    gains: list[Gain]


class Asked(Record):
    """What one teacher was asked. ``facts`` is what was measured of what was asked for this result; None where the store had it all."""

    teacher: str
    figures: Figures
    facts: Facts | None


class Level(Record):
    """How many rows lie in a class of a measure."""

    name: str
    rows: int


class Ballot(Record):
    """One response's label."""

    teacher: str
    label: str | None
    weight: float


class Voted(Record):
    """An example with all that its teachers said."""

    id: str
    input: str
    label: str | None
    gold: str | None
    agreement: float | None
    entropy: float | None
    votes: list[Ballot]
    soft_labels: dict[str, float] | None


class Votes(Record):
    """How far the teachers' answers to a row agree, over the examples that parse made."""

    rows: int
    agreement: list[Level]
    entropy: list[Level]
    unanimous: int
    split: list[Voted] = Field(description="examples on which the votes differ")
    soft: list[Voted] = Field(description="examples with soft labels")


class Pair(Record):
    """A text and the one that it was held against, with the words that both have."""

    own: list[Piece]
    other: list[Piece]
    where: str = Field(description="which text of the row it is: 'input' or 'rationale'")
    whose: str = Field(description="what the other text is")


class ShownDrop(Record):
    """A dropped row: what it said, what another row said that it was held against, and the rest of the evidence."""

    id: str
    text: str | None
    pair: Pair | None
    evidence: dict[str, JsonValue]


class DropGroup(Record):
    """Rows that one stage dropped for one reason: how many, and some of them."""

    stage: str
    reason: str
    dropped: int
    rows: list[ShownDrop]


class Searched(Record):
    """An eval set that the rows were searched for."""

    name: str
    rows: int
    too_short: int = Field(description="eval rows of too few words to be looked for inside texts")
    found: int = Field(description="eval rows that stood in some row")
    dropped: int = Field(description="rows dropped for it")


class Contaminated(Record):
    """What decontaminate found."""

    eval_sets: list[Searched]
    methods: dict[str, int] = Field(description="how they were found -> rows")
    passages: int = Field(description="rows with a passage that many rows share; reported, not dropped by default")
    findings: list[ShownDrop]


class Kept(Record):
    """An example that all filters kept."""

    id: str
    input: str
    label: str | None
    gold: str | None
    why: str = Field(description="its rationale, or the teacher's text")


class Said(Record):
    """What one model answered, and said when it was asked why."""

    model: str
    label: str | None
    rationale: str
    finished: bool
    asked_again: bool
    label_after: str | None
    score: int | None


class Told(Record):
    """Models asked why, on the same eval row."""

    eval_set: str
    row: str
    input: str
    gold: str
    said: list[Said]


class Line(Record):
    """A line of a chart: its name, the model or kind of line that colours it, and its points."""

    name: str
    style: str
    points: list[tuple[float, float]]


class Chart(Record):
    """Lines over a common pair of axes."""

    title: str
    x: str
    y: str
    lines: list[Line]


class Spot(Record):
    """A setting of a sweep: its place on the axis, the mean of its trainings, their interval, each of them."""

    at: float | str
    mean: float
    interval: Interval
    single: list[float]


class Curve(Record):
    """One combination of the other settings."""

    label: str
    spots: list[Spot]


class Swept(Record):
    """A sweep on one eval set."""

    name: str
    eval_set: str
    axis: str
    trainings: int
    curves: list[Curve]
    note: str = Field(description="what the intervals are")


class Audit(Record):
    """What an audit of the run folder said when the report was made."""

    whole: bool
    findings: int
    shown: list[str] = Field(description="the first findings")
    not_looked_at: list[str]
    files: int
    rows: int
    responses: int
    bytes: int
    signature: str


class Stamp(Record):
    """What a stage's result is bound to."""

    stage: str
    version: int
    key: str
    digest: str
    reads: list[str]
    files: int
    settings: dict[str, JsonValue]
    models: dict[str, dict[str, JsonValue]]
    details: dict[str, JsonValue]
    sources: list[Source]


class Measured(Record):
    """A model's accuracy in one run. ``difference`` is to the first run's, with an interval as of independent rows; None for the first."""

    accuracy: float
    interval: Interval
    rows: int
    difference: float | None = None
    difference_interval: Interval | None = None


class Differing(Record):
    """A setting that the runs do not share; None where a run has no such setting."""

    stage: str
    setting: str
    values: list[str | None]


class Counted(Record):
    """Rows in and kept of a stage in each run; None where a run does not have it."""

    stage: str
    rows: list[tuple[int, int] | None]


class Beside(Record):
    """A model on an eval set in each run; None where a run did not measure it."""

    eval_set: str
    model: str
    figures: list[Measured | None]


class SideBySide(Record):
    """Several runs, this one first. Lists in it have an entry for each run, in this order."""

    runs: list[str]
    settings: list[Differing]
    counts: list[Counted]
    models: list[Beside]


class Report(Record):
    """A run, or what there is of it."""

    schema_version: Literal[1] = 1
    title: str
    headline: Headline
    gates: list[Verdict] = Field(description="the gates as the settings have them when the report is made")
    side_by_side: SideBySide | None
    out_of_date: dict[str, str] = Field(description="stage -> why its result does not belong to those of the others")
    funnel: list[Bar]
    shifts: dict[str, Shift] = Field(description="stage -> what it did to labels, slices, lengths and difficulty")
    asked: list[Asked]
    votes: Votes | None
    contaminated: Contaminated | None
    metrics: Metrics | None
    earlier_metrics: bool = Field(description="figures are there, but an earlier version of evaluate wrote them")
    costs: Costs | None
    training: list[Chart]
    sweeps: list[Swept]
    rationales: list[Told]
    kept: list[Kept]
    drops: list[DropGroup]
    audit: Audit | None = Field(description="None where nobody audited")
    stamps: list[Stamp]
