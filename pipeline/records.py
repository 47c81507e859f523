"""The rows that flow between stages, and the manifest each stage leaves behind.

Every record is frozen and strict, and is written as one JSON object a line in the order of its fields, so that the same row is
always the same bytes. One input row becomes, for example::

    Prompt    {"id": "9f..", "source": "train.jsonl:17", "input": "Late goal sinks ..", "gold": null, ...}
    Response  {"id": "9f..#0", "prompt": "9f..", "request": "c4..", "text": "A goal is scored. So the answer is sports.", ...}
    Example   {"id": "9f..", "input": "Late goal sinks ..", "label": "sports", "rationale": "A goal is scored.", ...}
    TrainingRow {"id": "9f../label", "prompt": "[label] Late goal sinks ..", "completion": "sports", ...}
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Target = Literal["label", "rationale", "response"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """A frozen row; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def line(self) -> bytes:
        r"""The row's one encoding: compact JSON in field order, UTF-8, without the ``\n``."""
        return self.model_dump_json().encode()


class Prompt(Record):
    """An input row that was accepted. Written by ingest."""

    id: str
    source: str = Field(description="where the row was read: file name and line (or row) number, from 1")
    input: str = Field(description="what the student sees after its prefix")
    gold: str | None = Field(
        description="the true label, where the source has one; only rationalise shows it to a teacher"
    )
    choices: list[str] | None = Field(description="the row's own closed answers, for multiple-choice tasks")
    columns: dict[str, JsonValue] = Field(description="the source row, for the prompt template")


class Response(Record):
    """One answer of a teacher. Written by sample."""

    id: str = Field(description="<prompt id>#<sample index>")
    prompt: str
    sample: int
    request: str = Field(description="the key under which the response store holds this answer")
    teacher: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    mean_logprob: float | None = Field(None, description="mean log-probability of its tokens, where it was asked for")
    label_logprobs: dict[str, float] | None = Field(
        None, description="log-probability of each label at the label's place, not normalised over the labels"
    )
    rationalised: bool = Field(False, description="the true label was given, and only the rationale is the teacher's")
    input: str
    gold: str | None
    choices: list[str] | None


class Vote(Record):
    """What one response said, as parse understood it."""

    response: str = Field(description="id of the Response")
    request: str = Field(description="its key in the response store")
    teacher: str
    label: str | None
    weight: float = Field(default=1.0, description="what it counted beside the others")
    mean_logprob: float | None = Field(default=None, description="of the response's tokens, where it is known")


class Judgement(Record):
    """What a judge said of an example, from 1 (unusable) to 5 (flawless). Written by judge."""

    score: int
    reason: str
    judge: str = Field(description="the teacher that judged")
    request: str = Field(description="the key under which the response store holds the judge's answer")


class Example(Record):
    """An input with the label and the rationale that its teacher gave.

    Written by parse; judge adds its judgement; kept or dropped, never changed, by the filters.
    """

    id: str = Field(description="the id of the Prompt it answers")
    input: str
    label: str | None = Field(description="normalised label; None for tasks whose target is the free response")
    rationale: str | None
    response: str = Field(description="id of the Response whose rationale (or text) this is")
    text: str = Field(description="that response's text, cut where it ran on past the answer")
    finish_reason: str
    votes: list[Vote] = Field(description="all parsed responses to this prompt, winner included")
    gold: str | None
    choices: list[str] | None
    agreement: float | None = Field(
        default=None, description="share of the votes' weight that the label won; None without labels"
    )
    entropy: float | None = Field(default=None, description="of the votes' distribution over the labels, in bits")
    soft_labels: dict[str, float] | None = Field(
        default=None,
        description="label -> probability, the mean over the responses with log-probabilities of their labels",
    )
    rationalised: bool = Field(
        default=False, description="the label is the true one, and only the rationale is the teacher's"
    )
    judgement: Judgement | None = Field(
        default=None, description="set by judge alone; None where it did not run, or failed"
    )


class TrainingRow(Record):
    """One row that a student is trained on. Written by shard; ``prompt`` and ``completion`` are TRL's column names."""

    id: str = Field(description="<example id>/<task>")
    example: str
    task: Target
    split: Literal["train", "validation"]
    prompt: str = Field(description="prefix and input: '[label] ..' or '[rationale] ..'")
    completion: str


class Trained(Record):
    """A training row that reached the trainer, with the number of its target tokens. Written by train."""

    id: str
    example: str
    task: Target
    split: Literal["train", "validation"]
    tokens: int = Field(description="target tokens, the end-of-sequence token included")


class Prediction(Record):
    """What one model answered to one row of an eval set. Written by evaluate."""

    id: str = Field(description="<eval set>/<model>/<row id>")
    eval_set: str
    model: str
    row: str
    input: str
    gold: str
    label: str | None = Field(description="normalised; None where the text could not be read as a label")
    correct: bool
    text: str


class Drop(Record):
    """A row that ends here: why, and the evidence to check it by."""

    id: str
    reason: str = Field(description="a fixed name: 'near_duplicate', 'too_short', ...")
    evidence: dict[str, JsonValue]


class InputDigest(Record):
    """A file that a stage read besides the rows of other stages."""

    path: str
    bytes: int
    sha256: Sha256


class OutputFile(Record):
    """A file that a stage wrote, relative to its folder. ``rows`` is None for files that are not row files."""

    path: str
    bytes: int
    rows: int | None
    sha256: Sha256


class Parent(Record):
    """A stage that was read: its key, and the SHA-256 of its manifest's bytes."""

    key: str
    manifest: Sha256


class Counts(Record):
    """The conservation law in figures: ``rows_in == kept + dropped``, counted in ``unit``; ``rows_out`` rows were written."""

    unit: str
    rows_in: int
    kept: int
    dropped: int
    reasons: dict[str, int]
    rows_out: int


class Manifest(Record):
    """What a stage did, written after everything it describes. It holds no times: those are in ``run.json`` beside it."""

    schema_version: Literal[1] = 1
    stage: str
    version: int
    key: str
    settings: dict[str, JsonValue]
    parents: dict[str, Parent]
    inputs: list[InputDigest]
    identities: dict[str, dict[str, JsonValue]] = Field(
        description="models used: what was asked for and what it resolved to"
    )
    counts: Counts
    outputs: list[OutputFile]
    features: dict[str, str] = Field(description="column name -> type of the row files, for datasets.load_dataset")
    details: dict[str, JsonValue]
    digest: Sha256 = Field(description="SHA-256 over this manifest's canonical JSON without this field")


def features(record: type[Record]) -> dict[str, str]:
    """Column name -> type name as ``datasets.Features`` understands it ('string', 'int64', 'float64', 'bool', 'list<string>', 'json').

    'json' marks a column whose value is free JSON or a list of records.
    """

    def name(annotation: Any) -> str:
        options = [option for option in get_args(annotation) if option is not type(None)]
        if annotation in (str, int, float, bool):
            return {str: "string", int: "int64", float: "float64", bool: "bool"}[annotation]
        if annotation == list[str] or list[str] in options:
            return "list<string>"
        if all(isinstance(option, str) for option in options) and options:
            return "string"
        return name(options[0]) if len(options) == 1 and options[0] in (str, int, float, bool) else "json"

    return {field: name(info.annotation) for field, info in record.model_fields.items()}
