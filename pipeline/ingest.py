"""ingest: source rows -> Prompt. Each row is validated and gets its id.

    {"text": "Late goal sinks the leaders", "topic": "sports"}
    -> {"id": "5f0c..", "source": "train.jsonl:17", "input": "Late goal sinks the leaders", "gold": "sports", "choices": null, ...}

The id is the source's own (``task.id`` names its column) or the xxh3-128 of the row's canonical JSON. A row that stands there twice,
byte for byte, would get the same id twice: from the second on, the id carries ``.2``, ``.3`` .. so that no row vanishes before dedup
names it.

``slices`` holds, as text, the row's values in the columns that ``task.slices`` names: ``slices: [source]`` gives {"source": "wiki"}. They
go with the row to its example, where groups of rows can be told apart. Every row must have these columns.

Rows that were revoked (see ``pipeline.revocations``), by their id or with their whole file, are dropped as ``revoked``.

Limits: ids are held in memory to see doubles (about 100 bytes a row).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pipeline.binding import From
from pipeline.files import InputError, RowError, digest, plain
from pipeline.prompts import render_text
from pipeline.records import Drop, Prompt
from pipeline.revocations import REASON, Revoked
from pipeline.sources import Row, read

OnBadRow = Literal["stop", "drop"]


def ingest(
    rows: Iterable[Row],
    *,
    on_bad_row: OnBadRow = "stop",
    input: Annotated[str, From("task.input")],
    gold: Annotated[str | None, From("task.gold")],
    choices: Annotated[str | None, From("task.choices")],
    id: Annotated[str | None, From("task.id")],
    slices: Annotated[Sequence[str], From("task.slices")] = (),
    revoked: Annotated[Revoked | None, From("revoked.ingest")] = None,
) -> Iterator[Prompt | Drop]:
    """Accept rows as prompts. A bad row stops the run with its place, or becomes a drop with reason ``bad_row``."""
    seen: dict[str, str] = {}
    repeats: Counter[str] = Counter()
    rows_out, files_out = (revoked or {}).get("row", {}), (revoked or {}).get("file", {})
    for number, (source, row) in enumerate(rows, 1):
        try:
            if isinstance(row, RowError):
                raise row
            prompt = _prompt(source, row, input, gold, choices, id, slices)
            if prompt.id in seen and id is not None:
                raise InputError(
                    f"{source}: {id}: {plain(prompt.id)!r} is also the id of {seen[prompt.id]}; ids must be unique"
                )
        except InputError as error:
            if on_bad_row == "stop":
                raise
            # the whole path is for the terminal: a row reads the same wherever the project lies
            problem = f"{source}: {error.problem}" if isinstance(error, RowError) else str(error)
            yield Drop(id=f"row-{number}", reason="bad_row", evidence={"source": source, "problem": problem})
            continue
        if prompt.id in seen:
            repeats[prompt.id] += 1
            prompt = prompt.changed(id=f"{prompt.id}.{repeats[prompt.id] + 1}")
        seen[prompt.id] = source
        why = rows_out.get(prompt.id, files_out.get(source.rpartition(":")[0]))
        if why is None:
            yield prompt
        else:
            yield Drop(id=prompt.id, reason=REASON, evidence={"source": source, "because": why})


def prompts(
    path: Path | str,
    *,
    input: str,
    gold: str | None,
    choices: str | None,
    id: str | None,
    slices: Sequence[str] = (),
    on_bad_row: OnBadRow = "stop",
    revoked: Revoked | None = None,
) -> Iterator[Prompt | Drop]:
    """The rows of a source file as ingest would accept them: eval sets are read by this."""
    settings: dict[str, Any] = {"input": input, "gold": gold, "choices": choices, "id": id, "slices": slices}
    return ingest(read(path), on_bad_row=on_bad_row, revoked=revoked, **settings)


def _prompt(
    source: str,
    row: dict[str, Any],
    input: str,
    gold: str | None,
    choices: str | None,
    id: str | None,
    slices: Sequence[str],
) -> Prompt:
    def column(name: str) -> Any:
        if name not in row:
            raise InputError(f"{source}: {name}: no such column; the row has {plain(', '.join(row))}")
        return row[name]

    def text(name: str) -> str:
        value = column(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise InputError(f"{source}: {name}: expected text or a number, found {plain(repr(value), 60)}")
        return str(value)

    shown = render_text(input, row, source)
    if not shown.strip():
        raise InputError(f"{source}: the input is empty; check the row and task.input")
    answers = None
    if choices is not None:
        answers = column(choices)
        if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
            raise InputError(f"{source}: {choices}: expected a list of texts, found {plain(repr(answers), 60)}")
    name = digest(row) if id is None else text(id)
    if not name or len(name) > 200 or not name.isprintable() or "/" in name or "#" in name:
        raise InputError(
            f"{source}: {id}: {plain(name, 60)!r} cannot be an id: 1 to 200 printable characters without '/' and '#'"
        )
    return Prompt(
        id=name,
        source=source,
        input=shown,
        gold=None if gold is None else text(gold),
        choices=answers,
        columns=row,
        slices={name: text(name) for name in slices},
    )
