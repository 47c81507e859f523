"""Rows of any source a user names: a .jsonl, .csv or .parquet file, a folder of them, or ``hub:<data set>``.

``read`` yields where a row stands and the row, or the error that tells why there is none::

    ("train.jsonl:17", {"text": "Late goal sinks the league leaders", "topic": "sports"})

Limits: CSV needs a header line and UTF-8; every CSV value is a string. A Hub data set is named ``hub:owner/name``, with
``hub:owner/name@revision`` and ``#split`` (default ``train``) where wanted, and is read through ``datasets``.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipeline.binding import InputPath
from pipeline.files import InputError, RowError, canonical_json, plain, scan_jsonl

Row = tuple[str, dict[str, Any] | RowError]
SUFFIXES = (".jsonl", ".csv", ".parquet")
HUB = "hub:"


class EvalSet(BaseModel):
    """Rows that no training row may overlap and that models are measured on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: InputPath
    input: str | None = Field(None, description="template of the input; the task's where it is left out")
    gold: str | None = Field(None, description="column of the true label; the task's where it is left out")
    choices: str | None = Field(None, description="column of the row's own answers; the task's where it is left out")
    id: str | None = Field(None, description="column of the row's id; the task's where it is left out")
    license: str | None = Field(
        None, min_length=1, exclude=True, description="of these rows: SPDX identifier, or a text"
    )


def files(path: Path) -> list[Path]:
    """The files that ``path`` stands for, sorted by name. Raises InputError where there are none."""
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and not file.name.startswith("."))
        if not found:
            raise InputError(f"{path}: no {', '.join(SUFFIXES)} file in this folder")
        return found
    if not path.exists():
        raise InputError(f"{path}: no such file; check the path (relative paths start at the folder of stages.yaml)")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: unknown kind of file; known: {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise InputError(f"{path}: not a regular file")
    return [path]


def read(source: Path | str) -> Iterator[Row]:
    """Place and row of each row of ``source``, in order. Raises InputError where the source as a whole cannot be read."""
    if isinstance(source, str) and source.startswith(HUB):
        yield from _read_hub(source)
        return
    for path in files(Path(source)):
        reader = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}[path.suffix]
        yield from reader(path)


def _read_jsonl(path: Path) -> Iterator[Row]:
    for number, row in scan_jsonl(path):
        yield f"{path.name}:{number}", row


def _read_csv(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            if not header:
                raise InputError(f"{path}:1: no header line")
            if len(set(header)) != len(header):
                raise InputError(f"{path}:1: a column name stands twice in the header")
            for values in reader:
                place = f"{path.name}:{reader.line_num}"
                if not values:
                    continue
                if len(values) != len(header):
                    problem = f"{len(values)} values for {len(header)} columns; quote values that hold commas"
                    yield place, RowError(f"{path}:{reader.line_num}", problem)
                else:
                    yield place, dict(zip(header, values, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: {plain(str(error))}; save it as CSV in UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if len(set(file.schema_arrow.names)) != len(file.schema_arrow.names):
                raise InputError(f"{path}: a column name stands twice; rename one of them")
            for batch in file.iter_batches(batch_size=1024):
                for row in _values(batch):
                    number += 1
                    yield f"{path.name}:{number}", _json_row(row, f"{path}: row {number}")
    except MemoryError:
        problem = f"the rows behind row {number} need more memory than there is"
        raise InputError(f"{path}: {problem}; split or shorten their values") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: behind row {number}: {plain(str(error))}; write texts in UTF-8") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: {plain(str(error))}; not a Parquet file, or damaged") from None


def _values(batch: Any) -> Iterator[dict[str, Any] | OverflowError]:
    """The rows of a record batch as Python's values, or for a row with a date that Python has none for, such as year 33658, the error."""
    try:
        yield from batch.to_pylist()
    except OverflowError as error:
        if batch.num_rows == 1:
            yield error
        else:
            for number in range(batch.num_rows):
                yield from _values(batch.slice(number, 1))


def hub_name(source: str) -> tuple[str, str | None, str]:
    """Name, revision (None where none is given) and split of ``hub:owner/name@revision#split``."""
    name, _, split = source.removeprefix(HUB).partition("#")
    name, _, revision = name.partition("@")
    return name, revision or None, split or "train"


def _read_hub(source: str) -> Iterator[Row]:
    name, revision, split = hub_name(source)
    import datasets

    try:
        rows = datasets.load_dataset(name, revision=revision, split=split, streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"{name}:{number}", _json_row(row, f"{source}: row {number}")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{source}: {plain(str(error))}; check the name, revision and split") from None


def _json_row(row: dict[str, Any] | OverflowError, place: str) -> dict[str, Any] | RowError:
    """A row as JSON can hold it: dates become ISO text; what has no JSON form is an error."""
    if isinstance(row, OverflowError):
        return RowError(place, f"{plain(str(row))}; convert the column to text or numbers")
    try:
        plain_row: dict[str, Any] = json.loads(json.dumps(row, default=_iso, allow_nan=False))
        canonical_json(plain_row)
        return plain_row
    except (TypeError, ValueError) as error:
        return RowError(place, f"{plain(str(error))}; convert the column to text or numbers")


def _iso(value: Any) -> str:
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    raise TypeError(f"a value of type {type(value).__name__} has no JSON form")
