"""export: what others' tools read about a data set, generated from its manifests.

    stepdistill export croissant            # <run>/exports/croissant.json
    stepdistill export all                  # every format that the run has results for; what it has none for any more is removed

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
    """A format: its file's name, what renders it, and the stage whose result it is about."""

    file: str
    render: Callable[[View], str]
    about: str = "shard"


FORMATS: Final = {
    "croissant": Format("croissant.json", croissant.render),
    "data-card": Format("data-card.md", data_card.render),
    "model-card": Format("model-card.md", model_card.render, "train"),
    "statement": Format("statement.json", statement.render),
    "summary": Format("summary.txt", summary.render),
}
ALL: Final = "all"


def export(run: Path, name: str, target: Path | None = None, *, tell: Callable[[str], None] = print) -> Iterator[Path]:
    """Write an export, or all that the run has results for, and name each file written; ``target`` is another file than the usual one.

    Of all formats, the file of one that the run has no results for (a model card, once the shards are others than those that the student
    was trained on) is removed; ``tell`` is given a line on that.

    Raises InputError for a name that is no format, and where there is nothing to export; RunError where manifests do not hold together.
    """
    if name != ALL and name not in FORMATS:
        raise InputError(f"no export format of this name{suggestion(name, [*FORMATS, ALL])}")
    if name == ALL and target is not None:
        raise InputError("-o names one file; leave it out with `export all`")
    shown = view(run)
    for format_name in FORMATS if name == ALL else (name,):
        file, render, about = FORMATS[format_name]
        path = target or run / FOLDER / file
        if name == ALL and about not in shown.results:
            _remove(path, f"{about} has no result on these shards", tell)
            continue
        text = render(shown)
        try:
            path.parent.mkdir(exist_ok=True)
            outputs.write_text(path, text)
        except OSError as error:
            raise InputError(
                f"{plain(str(path))}: cannot be written ({error.strerror}); choose another place"
            ) from None
        yield path


def _remove(path: Path, why: str, tell: Callable[[str], None]) -> None:
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise InputError(f"{plain(str(path))}: cannot be removed ({error.strerror}); remove it by hand") from None
    tell(f"{path}: removed, for {why}")
