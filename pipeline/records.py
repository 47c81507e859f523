"""The rows that flow between stages, and the manifest each stage leaves behind.

Every record is frozen and strict, and is written as one JSON object a line in the order of its fields, so that the same row is
always the same bytes. One input row becomes, for example::

    Prompt    {"id": "9f..", "source": "train.jsonl:17", "input": "Late goal sinks ..", "gold": null, ...}
    Response  {"id": "9f..#0", "prompt": "9f..", "request": "c4..", "text": "A goal is scored. So the answer is sports.", ...}
    Example   {"id": "9f..", "input": "Late goal sinks ..", "label": "sports", "rationale": "A goal is scored.", ...}
    TrainingRow {"id": "9f../label", "prompt": "[label] Late goal sinks ..", "completion": "sports", ...}
"""

from functools import lru_cache
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_type_hints

import msgspec
from msgspec import Meta
from pydantic import BaseModel, ConfigDict, Field, JsonValue

Target = Literal["label", "rationale", "response", "chain_of_thought"]
S = TypeVar("S", bound=msgspec.Struct)
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """A frozen record that people read, or that is checked once: manifests, figures. Unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def line(self) -> bytes:
        r"""The record's one encoding: compact JSON in field order, UTF-8, without ``\n``."""
        return self.model_dump_json().encode()


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen row; unknown fields are refused. Millions of these are read and written, by msgspec's codec.

    Types are checked where a row is read, not where it is made.
    """

    def line(self) -> bytes:
        r"""The row's one encoding: compact JSON in field order, UTF-8, without ``\n``. Raises UnicodeEncodeError for lone surrogates."""
        return _ENCODER.encode(self)

    @classmethod
    def read(cls, line: bytes | str) -> Self:
        """The row that a line holds. Raises msgspec.DecodeError where it holds none."""
        return decoded(cls, line)

    def changed(self, **fields: Any) -> Self:
        """The same row with other values in these fields."""
        return msgspec.structs.replace(self, **fields)

    def plain(self) -> dict[str, Any]:
        """The row as JSON's own types."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


_ENCODER = msgspec.json.Encoder()


@lru_cache
def decoder(row: type[S]) -> "msgspec.json.Decoder[S]":
    """Reads rows of one type: ``decode`` a line, ``decode_lines`` a block of them."""
    return msgspec.json.Decoder(row)


def decoded(row: type[S], line: bytes | str) -> S:
    """The row, or the fields of one that ``row`` has, that a line holds. Raises msgspec.DecodeError where it holds none."""
    try:
        found: S = decoder(row).decode(line)
        return found
    except UnicodeDecodeError:
        raise msgspec.DecodeError("not UTF-8") from None
    except RecursionError:
        raise msgspec.DecodeError("nested too deeply") from None


class Prompt(Row, frozen=True):
    """An input row that was accepted. Written by ingest."""

    id: str
    source: Annotated[str, Meta(description="where the row was read: file name and line (or row) number, from 1")]
    input: Annotated[str, Meta(description="what the student sees after its prefix")]
    gold: Annotated[
        str | None, Meta(description="the true label, where the source has one; only rationalise shows it to a teacher")
    ]
    choices: Annotated[list[str] | None, Meta(description="the row's own closed answers, for multiple-choice tasks")]
    columns: Annotated[dict[str, Any], Meta(description="the source row, for the prompt template")]
    slices: Annotated[dict[str, str], Meta(description="the row's values in the columns that task.slices names")] = (
        msgspec.field(default_factory=dict)
    )


class Response(Row, frozen=True):
    """One answer of a teacher. Written by sample."""

    id: Annotated[str, Meta(description="<prompt id>#<sample index>")]
    prompt: str
    sample: int
    request: Annotated[str, Meta(description="the key under which the response store holds this answer")]
    teacher: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    input: str
    gold: str | None
    choices: list[str] | None
    mean_logprob: Annotated[
        float | None, Meta(description="mean log-probability of its tokens, where it was asked for")
    ] = None
    label_logprobs: Annotated[
        dict[str, float] | None,
        Meta(description="log-probability of each label at the label's place, not normalised over the labels"),
    ] = None
    rationalised: Annotated[
        bool, Meta(description="the true label was given, and only the rationale is the teacher's")
    ] = False
    slices: Annotated[dict[str, str], Meta(description="the row's values in the columns that task.slices names")] = (
        msgspec.field(default_factory=dict)
    )


class Vote(Row, frozen=True):
    """What one response said, as parse understood it."""

    response: Annotated[str, Meta(description="id of the Response")]
    request: Annotated[str, Meta(description="its key in the response store")]
    teacher: str
    label: str | None
    weight: Annotated[float, Meta(description="what it counted beside the others")] = 1.0
    mean_logprob: Annotated[float | None, Meta(description="of the response's tokens, where it is known")] = None


class Judgement(Row, frozen=True):
    """What a judge said of an example, from 1 (unusable) to 5 (flawless). Written by judge."""

    score: int
    reason: str
    judge: Annotated[str, Meta(description="the teacher that judged")]
    request: Annotated[str, Meta(description="the key under which the response store holds the judge's answer")]


class Example(Row, frozen=True):
    """An input with the label and the rationale that its teacher gave.

    Written by parse; judge adds its judgement; kept or dropped, never changed, by the filters.
    """

    id: Annotated[str, Meta(description="the id of the Prompt it answers")]
    input: str
    label: Annotated[str | None, Meta(description="normalised label; None for tasks whose target is the free response")]
    rationale: str | None
    response: Annotated[str, Meta(description="id of the Response whose rationale (or text) this is")]
    text: Annotated[str, Meta(description="that response's text, cut where it ran on past the answer")]
    finish_reason: str
    votes: Annotated[list[Vote], Meta(description="all parsed responses to this prompt, winner included")]
    gold: str | None
    choices: list[str] | None
    agreement: Annotated[
        float | None, Meta(description="share of the votes' weight that the label won; None without labels")
    ] = None
    entropy: Annotated[float | None, Meta(description="of the votes' distribution over the labels, in bits")] = None
    soft_labels: Annotated[
        dict[str, float] | None,
        Meta(description="label -> probability, the mean over the responses with log-probabilities of their labels"),
    ] = None
    rationalised: Annotated[
        bool, Meta(description="the label is the true one, and only the rationale is the teacher's")
    ] = False
    judgement: Annotated[
        Judgement | None, Meta(description="set by judge alone; None where it did not run, or failed")
    ] = None
    slices: Annotated[dict[str, str], Meta(description="the row's values in the columns that task.slices names")] = (
        msgspec.field(default_factory=dict)
    )


class TrainingRow(Row, frozen=True):
    """One row that a student is trained on. Written by shard; ``prompt`` and ``completion`` are TRL's column names."""

    id: Annotated[str, Meta(description="<example id>/<task>")]
    example: str
    task: Target
    split: Literal["train", "validation"]
    prompt: Annotated[str, Meta(description="prefix and input: '[label] ..' or '[rationale] ..'")]
    completion: str
    difficulty: Annotated[
        float | None,
        Meta(description="entropy of the votes on its example, in bits; None without several votes of teachers"),
    ] = None
    distribution: Annotated[
        str | None,
        Meta(description="label -> probability as a JSON object in a text: what is learned instead of the completion"),
    ] = None


class Trained(Row, frozen=True):
    """A training row that reached the trainer, with the number of its target tokens. Written by train."""

    id: str
    example: str
    task: Target
    split: Literal["train", "validation"]
    tokens: Annotated[int, Meta(description="target tokens, the end-of-sequence token included")]


class Prediction(Row, frozen=True):
    """What one model answered to one row of an eval set. Written by evaluate."""

    id: Annotated[str, Meta(description="<eval set>/<model>/<row id>")]
    eval_set: str
    model: str
    row: str
    input: str
    gold: str
    label: Annotated[str | None, Meta(description="normalised; None where the text could not be read as a label")]
    correct: bool
    text: str
    probabilities: Annotated[
        dict[str, float] | None, Meta(description="of the labels there are; None where they are not known")
    ] = None
    probabilities_of: Annotated[
        Literal["scores", "votes"] | None,
        Meta(description="scores: the model's own log-probabilities; votes: shares of the teacher's samples"),
    ] = None


class Drop(Row, frozen=True):
    """A row that ends here: why, and the evidence to check it by."""

    id: str
    reason: Annotated[str, Meta(description="a fixed name: 'near_duplicate', 'too_short', ...")]
    evidence: dict[str, Any]


class Source(Record):
    """A file, or a data set of the Hub, that a stage read besides the rows of other stages."""

    uri: str = Field(description="as stages.yaml names it: relative to its folder, or hub:owner/name")
    revision: str | None = Field(default=None, description="of a data set of the Hub")
    license: str | None = Field(default=None, description="as stages.yaml states it: an SPDX identifier, or a text")
    bytes: int | None = Field(default=None, description="None for a data set of the Hub")
    sha256: Sha256 | None = Field(default=None, description="None for a data set of the Hub")
    rows: int | None = Field(
        default=None, description="as they were read; None for files that hold none, or were not read to the end"
    )


class OutputFile(Record):
    """A file that a stage wrote, relative to its folder. ``rows`` is None for files that are not row files."""

    path: str
    bytes: int
    rows: int | None
    sha256: Sha256
    root: Sha256 | None = Field(
        default=None, description="of the Merkle tree over its lines; row files of the shard stage have one"
    )


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


class Code(Record):
    """The code that made a result."""

    package: str
    version: str
    commit: str | None = Field(description="of the Git checkout that it lies in; None where there is none")
    dirty: bool | None = Field(description="whether the code differed from that commit")
    modules: Sha256 = Field(
        description="over the canonical JSON of path -> SHA-256 of the package's own modules and templates"
    )


class Environment(Record):
    """What the code ran on."""

    python: str
    platform: str
    processor: str
    accelerators: list[str]
    driver: str | None
    packages: dict[str, str] = Field(description="name -> version of every package that the requirements lead to")


class Manifest(Record):
    """What a stage did, written after everything it describes. It holds no times: those are in ``run.json`` beside it.

    Equal inputs, settings and stored responses give an equal manifest wherever the run folder lies, on one machine with one environment.
    """

    schema_version: Literal[2] = 2
    stage: str
    version: int
    key: str
    asked: dict[str, JsonValue] = Field(description="the stage's settings as stages.yaml has them")
    settings: dict[str, JsonValue] = Field(description="all of its settings as they resolve, files by content")
    parents: dict[str, Parent]
    sources: list[Source]
    identities: dict[str, dict[str, JsonValue]] = Field(
        description="models used: what was asked for and what it resolved to"
    )
    models: dict[str, dict[str, JsonValue]] = Field(
        description="further facts about those models, by the same names: files, engine, terms; no key depends on them"
    )
    code: Code
    environment: Environment
    counts: Counts
    outputs: list[OutputFile]
    root: Sha256 | None = Field(
        description="of the Merkle tree over the row files that have a root, each by the canonical JSON of path, bytes, rows, root"
    )
    features: dict[str, str] = Field(description="column name -> type of the row files, for datasets.load_dataset")
    details: dict[str, JsonValue]
    digest: Sha256 = Field(description="SHA-256 over this manifest's canonical JSON without this field")


def features(row: type[Row]) -> dict[str, str]:
    """Column name -> type name as ``datasets.Features`` understands it ('string', 'int64', 'float64', 'bool', 'list<string>', 'json').

    'json' marks a column whose value is free JSON or a list of rows.
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

    return {field: name(annotation) for field, annotation in get_type_hints(row).items()}
