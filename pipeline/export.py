"""export: what others' tools read about a data set, generated from its manifests.

    stepdistill export croissant            # <run>/exports/croissant.json
    stepdistill export all

An export is a view: ``audit`` generates each again and compares the bytes, so that none can say what the manifests do not. Exports hold no
clock times and no machine's paths; the same manifests give the same bytes.

Limits: a new release may word an export anew; the old file is then a finding until it is exported again.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from pipeline import outputs
from pipeline.binding import suggestion
from pipeline.exports import View, croissant, data_card, model_card, statement, summary, view
from pipeline.files import InputError, plain

FOLDER: Final = "exports"


class Format(NamedTuple):
    """A format: its file's name, and what renders it."""

    file: str
    render: Callable[[View], str]


FORMATS: Final = {
    "croissant": Format("croissant.json", croissant.render),
    "data-card": Format("data-card.md", data_card.render),
    "model-card": Format("model-card.md", model_card.render),
    "statement": Format("statement.json", statement.render),
    "summary": Format("summary.txt", summary.render),
}
ALL: Final = "all"


def export(run: Path, name: str, target: Path | None = None) -> Iterator[Path]:
    """Write an export, or all that the run has results for, and name each file written; ``target`` is another file than the usual one.

    Raises InputError for a name that is no format, and where there is nothing to export; RunError where manifests do not hold together.
    """
    if name != ALL and name not in FORMATS:
        raise InputError(f"no export format of this name{suggestion(name, [*FORMATS, ALL])}")
    if name == ALL and target is not None:
        raise InputError("-o names one file; leave it out with `export all`")
    shown = view(run)
    for format_name in FORMATS if name == ALL else (name,):
        if name == ALL and format_name == "model-card" and "train" not in shown.results:
            continue
        file, render = FORMATS[format_name]
        path = target or run / FOLDER / file
        text = render(shown)
        try:
            path.parent.mkdir(exist_ok=True)
            outputs.write_text(path, text)
        except OSError as error:
            raise InputError(
                f"{plain(str(path))}: cannot be written ({error.strerror}); choose another place"
            ) from None
        yield path
