"""What evaluate's metrics.json holds: every figure follows from the rows and the predictions beside it.

    {"label_type": "text", "interval": "95% ..", "eval_sets": {"test": {"rows": 150, "models": {"student": {"accuracy": 0.713, ..}}, ..}}}

Shares run from 0 to 1 and count every row with a true label, answered or not. Intervals are 95% intervals over the rows: they speak of
other rows from the same source, not of other training seeds. Measurements (seconds, bytes of memory) are no part of a result: they stand
in run-speed.json.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta
from pydantic import Field

from pipeline.records import Record, Row

Interval = tuple[float, float]
Kind = Literal["teacher", "student", "baseline", "majority", "nearest", "model"]


class Share(Record):
    """Rows that are right among some rows; ``value`` is None where there are none."""

    rows: int
    right: int
    value: float | None
    interval: Interval | None = Field(description="Wilson score interval")


class Estimate(Record):
    """A mean or a score over rows, with its bootstrap interval."""

    value: float
    interval: Interval


class LabelScores(Record):
    """How one label fared. Precision is None where it was never answered, recall where it is no row's true label."""

    precision: float | None
    recall: float | None
    gold: int = Field(description="rows with this true label")
    answered: int = Field(description="rows that the model gave this label")


class Bin(Record):
    """A bin of the reliability diagram: rows whose most likely label has a probability in ``(low, high]``."""

    low: float
    high: float
    rows: int
    confidence: float | None = Field(description="mean probability of the most likely label; None without rows")
    accuracy: float | None


class Calibration(Record):
    """How far probabilities over the closed label set can be believed."""

    source: Literal["scores", "votes"] = Field(
        description="scores: the model's own log-probabilities of the labels; votes: shares of the teacher's samples"
    )
    rows: int
    ece: float = Field(description="expected calibration error over ``bins`` of equal width")
    brier: float = Field(description="mean over rows of the sum over labels of squared differences; from 0 to 2")
    bins: list[Bin]
    temperature: float | None = Field(description="fitted on validation rows; None where there were none")
    temperature_rows: int = Field(description="validation rows that it was fitted on")
    scaled_ece: float | None = Field(description="with that temperature")
    scaled_brier: float | None


class Slice(Record):
    """Accuracy on the rows that share a value: of a column, a length, the agreement of the teacher's votes."""

    value: str
    share: Share


class RationaleScores(Record):
    """What the rationales of a model are worth, on the rows where it was asked for one."""

    rows: int
    finished: int = Field(description="rationales that ended before the limit")
    concludes: int = Field(description="rationales that name exactly one label")
    concludes_label: int = Field(description="of those, the ones whose label is the one that the model answers")
    concludes_gold: int = Field(description="of those, the ones whose label is the true one")
    asked_first: int | None = Field(
        description="rows whose label was asked again behind the rationale; None: it was not"
    )
    changed: int | None = Field(description="of those, labels that are then another one")
    right_before: int | None
    right_after: int | None
    words: float | None = Field(description="mean number of words")
    copied: float | None = Field(description="mean share of a rationale's word 4-grams that stand in the input")
    distinct: float | None = Field(description="different rationales, as a share of all")
    judged: int | None = Field(description="rationales that a judge scored; None where no judge is configured")
    judge_score: float | None = Field(description="mean, from 1 to 5")


class ModelMetrics(Record):
    """One model on one eval set."""

    kind: Kind
    rows: int
    answered: int = Field(description="rows whose answer could be read as a label")
    unanswered: int = Field(description="rows for which the model gave no text at all; counted as wrong")
    correct: int
    accuracy: float
    accuracy_interval: Interval
    macro_f1: float | None = Field(
        description="over the labels that are some row's truth or answer; None without a closed set"
    )
    macro_f1_interval: Interval | None
    labels: dict[str, LabelScores]
    confusion: list[list[int]] = Field(
        description="a row for each true label, a column for each answered one, and a last one: anything else"
    )
    exact_match: float = Field(description="rows whose text is the true label in the same words, case and spaces apart")
    rouge_l: Estimate | None = Field(description="F-measure, for free responses")
    chrf: Estimate | None = Field(description="from 0 to 1, for free responses")
    same_as_teacher: int | None = Field(description="rows answered as the teacher answered them, right or wrong")
    teacher_rows: int | None = Field(description="rows that the teacher answered")
    slices: dict[str, list[Slice]] = Field(
        description="by 'teacher agreement', 'input length', and each column of task.slices"
    )
    calibration: Calibration | None
    rationales: RationaleScores | None
    parameters: int | None = Field(description="None for a teacher whose weights do not lie in a local folder")


class Comparison(Record):
    """Two models on the same rows: the first's accuracy minus the second's."""

    first: str
    second: str
    difference: float
    interval: Interval = Field(description="paired bootstrap over rows")
    only_first: int = Field(description="rows that the first alone has right")
    only_second: int
    both: int
    neither: int
    p: float = Field(description="exact McNemar test, two-sided")
    sentence: str = Field(description="in plain words, with the verdict: shown or not shown")


class Contamination(Record):
    """Eval rows apart by whether decontaminate found their text among the teacher's rows, and whether training rows still had it."""

    clean: int
    found: int = Field(description="eval rows that at least one row of the task overlapped; those rows were dropped")
    models: dict[str, tuple[Share, Share]] = Field(description="model -> accuracy on clean rows, on found rows")


class SetMetrics(Record):
    """All models on one eval set."""

    rows: int = Field(description="rows that count; those without a usable true label are among the drops")
    dropped: int
    classes: list[str] = Field(description="the closed label set, in order; empty for open answers")
    majority: str | None = Field(description="the label that the model 'majority' always gives")
    models: dict[str, ModelMetrics]
    comparisons: list[Comparison]
    contamination: Contamination | None = Field(
        description="None where decontaminate did not run against this eval set"
    )


class SafetyScores(Record):
    """One student on the safety probes."""

    model: str
    harmful: int = Field(description="harmful requests among the probes")
    refused: int
    harmless: int = Field(description="harmless requests that look alike")
    refused_harmless: int
    outputs: int = Field(description="texts that were looked through, answers to the task's own rows among them")
    toxic: int
    private: int = Field(description="outputs with personal data or secrets that did not stand in the input")
    swapped: int = Field(description="rows of the task in which a name or a group could be swapped")
    swapped_changed: int = Field(description="of those, rows whose label changed with it")


class Safety(Record):
    """The students beside the model that they were made from."""

    base: str = Field(description="what the student was initialised from, untrained")
    models: dict[str, SafetyScores] = Field(description="'base', 'student', ..")
    sentences: list[str]


class Metrics(Record):
    """What metrics.json holds."""

    label_type: str
    interval: str
    eval_sets: dict[str, SetMetrics]
    safety: Safety | None


class EvalRow(Row, frozen=True):
    """A line of rows.jsonl: an eval row that counts, with what is known of it beside the models' answers."""

    eval_set: str
    row: str
    input: str
    gold: str
    choices: list[str] | None
    slices: Annotated[dict[str, str], Meta(description="its values in the columns that task.slices names")]
    agreement: Annotated[float | None, Meta(description="of the teacher's votes; None where it was not asked, or once")]
    contaminated: Annotated[
        list[str], Meta(description="ids of rows of the task that decontaminate dropped because they overlap it")
    ]


class Rationale(Row, frozen=True):
    """A line of rationales.jsonl: a model asked why."""

    eval_set: str
    model: str
    row: str
    input: str
    gold: str
    choices: list[str] | None
    label: Annotated[str | None, Meta(description="what the model answers when it is asked for the label alone")]
    rationale: str
    finished: Annotated[bool, Meta(description="False where the rationale was cut off at its longest")]
    asked_again: Annotated[bool, Meta(description="whether the label was asked for again, behind the rationale")] = (
        False
    )
    label_after: Annotated[str | None, Meta(description="what it answered then")] = None
    score: Annotated[int | None, Meta(description="of the judge, from 1 to 5; None where there is none")] = None


class Validation(Row, frozen=True):
    """A line of validation.jsonl: what a model thinks of a row that was kept from its training; temperatures are fitted on them."""

    model: str
    row: str
    label: Annotated[str, Meta(description="the row's label in the shards, which is the teacher's")]
    probabilities: dict[str, float]


class Probed(Row, frozen=True):
    """A line of safety.jsonl: what a model said to a probe, or about a row of the task in which names or groups were swapped."""

    model: str
    probe: Annotated[
        str, Meta(description="harmful/3, harmless/3, bait/3 (of probes.json), or gender/test/5f.. and group/test/5f..")
    ]
    request: str
    text: Annotated[str | None, Meta(description="None where it gave no text")]
    label: Annotated[str | None, Meta(description="of a swapped row: how its answer is read")] = None


class Cost(Record):
    """What answering took on this machine, for one model."""

    parameters: int | None
    bytes_on_disk: int | None
    peak_memory: int | None = Field(description="bytes; of the process on a CPU, of the device on a GPU")
    latency: dict[str, float] | None = Field(description="p50, p95, p99 in seconds, one row at a time")
    latency_rows: int
    throughput: float | None = Field(description="rows a second at the full batch")
    batch_size: int | None
    rows: int
    seconds: float
    cost_per_1000: float | None = Field(description="from a price an hour, at the full batch; None without a price")


class Costs(Record):
    """What run-speed.json holds: measurements, so they are no part of the result and stand in no manifest."""

    device: str
    price_per_hour: float | None
    models: dict[str, Cost]


def scalars(found: ModelMetrics) -> dict[str, float]:
    """The single figures of a model that a gate can name, by name."""
    told: dict[str, Any] = {
        "accuracy": found.accuracy,
        "macro_f1": found.macro_f1,
        "exact_match": found.exact_match,
        "rouge_l": found.rouge_l and found.rouge_l.value,
        "chrf": found.chrf and found.chrf.value,
        "answered": found.answered / found.rows,
        "ece": found.calibration and found.calibration.ece,
        "brier": found.calibration and found.calibration.brier,
        "same_as_teacher": (found.same_as_teacher or 0) / found.teacher_rows if found.teacher_rows else None,
    }
    return {name: float(value) for name, value in told.items() if value is not None}
