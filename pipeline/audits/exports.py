"""Every export says what the manifests in force give now: each is generated again and compared, byte by byte."""

from collections.abc import Iterator
from typing import Final

from pipeline import export, exports
from pipeline.audits import Audited, Finding, kind
from pipeline.exports import Result, View
from pipeline.files import InputError, RunError

MOST_BYTES: Final = 64 << 20  # an export is text for people and tools; nothing larger is read


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on the folder of exports; none where there is no such folder."""
    folder = audited.run / export.FOLDER
    if kind(folder) is None:
        return
    if kind(folder) != "folder":
        yield Finding(folder, "not a folder")
        return
    formats = {known.file: known for known in export.FORMATS.values()}
    try:
        shown: View | None = _view(audited)
        missing = ""
    except (InputError, RunError) as error:
        shown, missing = None, str(error)
    for path in sorted(folder.iterdir()):
        if path.name not in formats:
            yield Finding(path, "not an export; nothing can tell whether it is right")
        elif kind(path) != "file" or path.lstat().st_size > MOST_BYTES:
            yield Finding(path, "not a plain file of an export's size")
        elif shown is None:
            yield Finding(path, f"cannot be compared: {missing}")
        else:
            try:
                wanted = formats[path.name].render(shown)
            except (InputError, RunError) as error:
                yield Finding(path, f"cannot be compared: {error}")
                continue
            if path.read_bytes() != wanted.encode():
                problem = "edited, or exported from other manifests or by another release"
                yield Finding(path, f"not what the manifests in force give: {problem}; export it again")


def _view(audited: Audited) -> View:
    """The view of the results in force, as they were opened for this audit. Raises RunError, InputError."""
    if "shard" not in audited.results:
        raise InputError("there are no shards in force")
    chain = {"shard": audited.results["shard"], **dict(audited.ancestors("shard"))}
    later = [Result(*audited.results[stage]) for stage in exports.LATER if stage in audited.results]
    return exports.assembled({stage: Result(*one) for stage, one in chain.items()}, later)
