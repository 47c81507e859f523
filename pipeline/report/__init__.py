"""The report: what a run did, as one page, as Markdown and as JSON, built from what lies in the run folder and from nothing else.

    runs/<run>/report/index.html     for people: one file, light and dark, for any width; it holds no script and loads nothing
    runs/<run>/report/report.md      the same as Markdown, without the drawings
    runs/<run>/report/report.json    the same as a ``Report``, for programs

What was distilled from what and how good it is; where the rows went and why, with examples; what filtering did to labels, slices, lengths
and difficulty; votes; what overlapped the eval sets; the models beside each other; curves; calibration; costs; safety; where it all came
from, and what an audit said. Other runs can stand beside it. Every text is escaped, whoever wrote it. The same run folder gives the same
bytes.

Limits: rows shown are a sample, drawn with a fixed seed in one pass; texts longer than ``LONGEST_TEXT`` characters are shown cut, and say
so. The page believes the manifests: only an audit (``audited``) verifies them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from pipeline.files import InputError, atomic
from pipeline.gates import Verdict
from pipeline.report import beside, html, markdown, view
from pipeline.report.shape import Audit, Report

Format = Literal["html", "markdown", "json"]
FILES: Final[dict[str, str]] = {"html": "index.html", "markdown": "report.md", "json": "report.json"}
SHOWN_FINDINGS: Final = 10


def build(
    run: Path,
    title: str | None = None,
    *,
    compare: Sequence[Path] = (),
    gates: Sequence[Verdict] = (),
    audit: Audit | None = None,
    formats: Sequence[str] = tuple(FILES),
    out: Path | None = None,
    kept_rows: int = 8,
    rows_per_reason: int = 4,
    seed: int = 0,
) -> Path:
    """Write the report of a run, by default into its folder ``report``, and return the path of the page, or of the first format.

    ``compare`` are run folders that are put beside it, ``gates`` the verdicts to show, ``audit`` what an audit said (None: nobody audited).
    ``kept_rows`` rows of the last filter and ``rows_per_reason`` drops of every reason are shown. Raises InputError for an unknown format;
    RunError where a run has no finished stage, or one of its files is damaged.
    """
    unknown = [name for name in formats if name not in FILES]
    if unknown or not formats:
        raise InputError(f"report: {', '.join(unknown) or 'no format'}: the formats are {', '.join(FILES)}")
    found = view.read(
        run, title, kept_rows=kept_rows, rows_per_reason=rows_per_reason, seed=seed, gates=gates, audit=audit
    )
    others = [view.read(other, kept_rows=0, rows_per_reason=0) for other in compare]
    if others:
        found = found.model_copy(update={"side_by_side": beside.side_by_side([found, *others])})
    folder = out if out is not None else run / "report"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in FILES:
        if name in formats:
            paths.append(folder / FILES[name])
            with atomic(paths[-1]) as file:
                file.write(told(found, name).encode("utf-8", "backslashreplace"))
    return paths[0]


def told(report: Report, name: str) -> str:
    """A report in one of the formats."""
    if name == "html":
        return html.page(report)
    return markdown.page(report) if name == "markdown" else report.model_dump_json(indent=2) + "\n"


def audited(run: Path) -> Audit:
    """What `stepdistill audit` says of a run now; it reads every file. Raises InputError where there is no run."""
    from itertools import chain

    from pipeline.audit import CHECKS, auditing, found_by
    from pipeline.audits import signature

    count = 0
    shown: list[str] = []
    with auditing(run) as (checked, findings):
        for one in chain(findings, *(found_by(check, checked) for check in CHECKS)):
            count += 1
            if len(shown) < SHOWN_FINDINGS:
                shown.append(_inside(run, str(one)))
    return Audit(
        whole=not count,
        findings=count,
        shown=shown,
        not_looked_at=[_inside(run, str(note)) for note in checked.notes[:SHOWN_FINDINGS]],
        files=checked.covered["files"],
        rows=checked.covered["rows"],
        responses=checked.covered["responses"],
        bytes=checked.covered["bytes"],
        signature=signature.told(run),
    )


def _inside(run: Path, text: str) -> str:
    """A finding with its places from the run folder on: where that lies is nobody's business."""
    return text.replace(f"{run}/", "")
