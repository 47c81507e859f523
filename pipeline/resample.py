"""resample: ask a teacher some of its requests again, and say how often it answers the same.

    resample(config, 20)
    -> Report(teacher="smollm2-135m-instruct", asked=20, same_text=19, same_label=20, failed=0, differing=[Differing(id="r17#0", ..)])

That a text really is the teacher's cannot be read off a run folder; asking again is what an auditor who has the teacher can do. The
requests are those of rows of the sample stage in force, chosen by ``seed``, and are put as they were: prompt, sampling parameters, seed.
Nothing is looked up in the response store and nothing is written.

Limits: a report, not a verdict: engines, batches and hardware move a token now and then, an API may answer with another model, and with a
temperature and no seed no text comes twice. Recorded completions are compared with their file.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pipeline import outputs, parse, requests, sample, teachers
from pipeline.blocks import cut
from pipeline.config import Config
from pipeline.files import InputError, RunError, plain
from pipeline.records import Drop, Prompt, Response
from pipeline.teachers import Answer, Failure, Request
from pipeline.text import excerpt

SHOWN: Final = 200  # characters of a text that are told


@dataclass(frozen=True)
class Differing:
    """A row whose answer is another one now, or failed: labels are None where none can be read, ``now`` tells why there is no text."""

    id: str
    request: str
    teacher: str
    before: str
    now: str
    label_before: str | None
    label_now: str | None
    failed: bool = False


@dataclass(frozen=True)
class Report:
    """How many answers of how many rows are the same, byte for byte and by the label that parse reads in them.

    ``asked`` counts rows, ``same_label`` those whose label (or that there is none) is the same; ``absent`` are teachers whose rows were not
    asked, as their settings do not lead to the teacher that answered then.
    """

    asked: int = 0
    same_text: int = 0
    same_label: int = 0
    failed: int = 0
    differing: list[Differing] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)


def resample(config: Config, rows: int, *, seed: int = 0) -> Report:
    """Ask about so many rows again. ``rows`` is at least 1; all there are where there are fewer.

    Raises InputError where the run has no responses, or settings cannot be used; RunError where a teacher fails as a whole.
    """
    folder = outputs.current(config.run, "sample")
    ingested = None if folder is None else outputs.read_manifest(folder).parents.get("ingest")
    if folder is None or ingested is None:
        raise InputError(f"{config.run}: has no responses; run `stepdistill run --until sample` first")
    manifest = outputs.read_manifest(folder)
    total = sum(file.rows or 0 for file in outputs.row_files(folder))
    numbers = {*random.Random(seed).sample(range(total), min(rows, total))}
    chosen = {row.id: row for number, row in enumerate(outputs.read(folder, Response)) if number in numbers}
    asking = sample.asking_of(folder, manifest)
    known = {teachers.name(one): one for one in config.stages["sample"]["teacher"]}
    wanted: dict[str, list[tuple[Response, Request]]] = {}
    prompts = {row.prompt for row in chosen.values()}
    for prompt in _prompts(config.run / "ingest" / ingested.key, prompts):
        for number, (respondent, request) in enumerate(requests.all_requests(asking, prompt)):
            if (row := chosen.get(f"{prompt.id}#{number}")) is not None:
                wanted.setdefault(respondent.name, []).append((row, request))
    absent: dict[str, str] = {}
    answers: list[tuple[Response, Answer | Failure]] = []
    for respondent in asking.respondents:
        pairs = wanted.get(respondent.name, [])
        settings = known.get(respondent.name)
        if pairs and settings is None:
            absent[respondent.name] = "stages.yaml names no such teacher"
        elif pairs and settings is not None and teachers.identity(settings) != respondent.identity:
            absent[respondent.name] = "stages.yaml leads to another model, revision or file than answered then"
        elif pairs and settings is not None:
            answers += _answers(settings, pairs)
    return _report(answers, config, absent)


def _prompts(folder: Path, ids: set[str]) -> list[Prompt]:
    return [row for block in cut(folder) for row in block.rows(Prompt) if row.id in ids]


def _answers(
    settings: teachers.TeacherSettings, pairs: Sequence[tuple[Response, Request]]
) -> list[tuple[Response, Answer | Failure]]:
    """What the teacher says now, in the order of the rows; two rows may share a request."""
    found: dict[str, Answer | Failure] = {}
    distinct = {request.key: request for _, request in pairs}
    with teachers.connect(settings, next(iter(distinct.values())).sampling) as teacher:
        waiting = iter(distinct.values())
        while len(found) < len(distinct):
            before = len(found)
            for request, result in teacher(waiting):
                found[request.key] = result
            if len(found) == before:
                raise RunError(f"{teachers.name(settings)}: stopped answering; check the teacher and ask again")
    return [(row, found[request.key]) for row, request in pairs]


def _report(answers: Sequence[tuple[Response, Answer | Failure]], config: Config, absent: dict[str, str]) -> Report:
    same_text = same_label = failed = 0
    differing = []
    for row, answer in answers:
        label_before = _label(row, config)
        if isinstance(answer, Failure):
            failed += 1
            told = f"{answer.reason}: {plain(str(answer.evidence), SHOWN)}"
            differing.append(
                Differing(
                    row.id, row.request, row.teacher, excerpt(row.text, SHOWN), told, label_before, None, failed=True
                )
            )
            continue
        label_now = _label(row.changed(text=answer.text, finish_reason=answer.finish_reason), config)
        same_text += answer.text == row.text
        same_label += label_now == label_before
        if answer.text != row.text:
            texts = excerpt(row.text, SHOWN), excerpt(answer.text, SHOWN)
            differing.append(Differing(row.id, row.request, row.teacher, *texts, label_before, label_now))
    return Report(len(answers), same_text, same_label, failed, differing, absent)


def _label(row: Response, config: Config) -> str | None:
    """The label that parse reads in an answer, or None."""
    found = next(parse.parse([row], **config.stages["parse"]), None)
    return None if found is None or isinstance(found, Drop) else found.label
