"""Ask the teachers about eval rows as the sample stage asked them about the task's, and take the time of a local one.

Answers come through the response store, so that nothing is paid for twice. Of several teachers that are each asked about all rows, every
one is there by itself as well.

Limits: of a teacher in another process no memory is seen; what a server's answers take only the server knows, so it is not timed.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

from pipeline import embedded, measure, outputs
from pipeline.cost import cost
from pipeline.cost import latency as latency_of
from pipeline.eval_rows import Asked
from pipeline.files import RunError
from pipeline.labels import read_label
from pipeline.metrics import Cost, Costs
from pipeline.parse import parse as parse_responses
from pipeline.progress import Advance, bar
from pipeline.records import Example, Response
from pipeline.requests import TEACHER, all_requests, resolve
from pipeline.said import How, Said, rationale, rounded, weights
from pipeline.sample import answers
from pipeline.spending import cost as price_of
from pipeline.student import EMBEDDED
from pipeline.teachers import Request, Teacher, TeacherSettings, Vllm, connect
from pipeline.teachers import identity as identity_of_teacher
from pipeline.teachers import name as teacher_name
from pipeline.teachers import name_of as teachers_name_of

SPEEDS: Final = "run-speed.json"
TIMED_REQUESTS: Final = 64  # to a teacher, at once


def ask_teachers(
    rows: Sequence[Asked],
    sample: dict[str, Any],
    parse: dict[str, Any],
    responses: Path,
    how: How,
    chosen: Sequence[int],
) -> tuple[list[Said], list[float | None]]:
    """The teachers' voted answers, as the sample and parse stages would have taken them, and how far the votes on each row agreed.

    Of several teachers that are each asked about all rows, every one's own answers too. A recording that holds no answer to any eval row
    says nothing about the teacher, which is left out then.
    """
    given = _responses(rows, sample, responses)
    names = [teacher_name(one) for one in sample["teacher"]]
    sizes = {teacher_name(one): _stored_parameters(one) for one in sample["teacher"]}
    groups = {measure.TEACHER: given}
    if len(names) > 1 and all(one.share == 1.0 for one in sample["teacher"]):
        groups |= {
            f"{measure.TEACHER}:{name}": {
                place: [response for response in found if response.teacher == name] for place, found in given.items()
            }
            for name in names
        }
    said: list[Said] = []
    agreement: list[float | None] = [None] * len(rows)
    for model, found in groups.items():
        examples: list[Example | None] = []
        texts: list[str | None] = []
        for row in rows:
            mine = found.get(row.place, [])
            read_as = next((one for one in parse_responses(mine, **parse) if isinstance(one, Example)), None)
            examples.append(read_as)
            texts.append(read_as.text if read_as is not None else mine[0].text if mine else None)
        if not any(text is not None for text in texts):
            continue
        labels = [
            None
            if example is None
            else read_label(
                example.text if example.label is None else example.label, how.label_type, how.labels, row.prompt.choices
            )
            for row, example in zip(rows, examples, strict=True)
        ]
        if model == measure.TEACHER:
            agreement = [
                example.agreement if example is not None and len(example.votes) > 1 else None for example in examples
            ]
        size = sizes[names[0]] if len(names) == 1 else sizes.get(model.partition(":")[2])
        said.append(
            Said(
                model,
                texts,
                labels,
                *_believed(examples),
                parameters=size,
                rationales=[
                    rationale(rows[place], model, labels[place], example.rationale)
                    for place in chosen
                    if (example := examples[place]) is not None and example.rationale is not None
                ],
            )
        )
    return said, agreement


def _responses(rows: Sequence[Asked], sample: dict[str, Any], responses: Path) -> dict[str, list[Response]]:
    """All that the teachers said about each row, by its place."""
    rounds: list[list[Asked]] = []  # one, unless eval sets share ids: recorded answers are found by a row's own id
    seen: Counter[str] = Counter()
    for row in rows:
        if seen[row.prompt.id] == len(rounds):
            rounds.append([])
        rounds[seen[row.prompt.id]].append(row)
        seen[row.prompt.id] += 1
    found: dict[str, list[Response]] = {}
    for asked in rounds:
        places = {row.prompt.id: row.place for row in asked}
        for response in answers([row.prompt for row in asked], **sample, responses=responses, stage="evaluate"):
            if isinstance(response, Response):
                found.setdefault(places[response.prompt], []).append(response)
    return found


def _believed(
    examples: Sequence[Example | None],
) -> tuple[list[dict[str, float] | None], Literal["scores", "votes"] | None]:
    """The probabilities that the teacher gave the labels, where it was asked for them; else, of several votes, their shares."""
    if any(example is not None and example.soft_labels for example in examples):
        return [None if example is None else rounded(example.soft_labels) for example in examples], "scores"
    if not any(example is not None and len(example.votes) > 1 for example in examples):
        return [], None
    shares: list[dict[str, float] | None] = []
    for example in examples:
        weights: Counter[str] = Counter()
        for vote in example.votes if example is not None else ():
            if vote.label is not None:
                weights[vote.label] += vote.weight  # type: ignore[assignment]
        whole = sum(weights.values())
        shares.append(rounded({label: weight / whole for label, weight in weights.items()}) if whole else None)
    return shares, "votes"


def timed_teachers(
    said: Sequence[Said], rows: Sequence[Asked], sample: dict[str, Any], alone: int, folder: Path
) -> list[Said]:
    """The same, with what answering takes a local vLLM teacher; of others only their servers know.

    A teacher of the same identity and price that an earlier evaluation in this run timed is not started again.
    """
    if not (alone and said and rows):
        return [*said]
    asking = resolve(**sample)
    costs: dict[str, Cost] = {}
    for settings in sample["teacher"]:
        name = teacher_name(settings)
        if not isinstance(settings, Vllm):
            continue
        if (before := _timed_before(folder, settings)) is not None:
            costs[name] = before
            continue
        its_own = (  # of a teacher that is asked about a share of the rows, those
            request
            for row in rows
            for respondent, request in all_requests(asking, row.prompt)
            if respondent.name == name and request.sample == 0
        )
        requests = list(islice(its_own, TIMED_REQUESTS))
        if not requests:
            continue
        count = min(alone, len(requests))
        with (
            connect(settings, requests[0].sampling) as teacher,
            bar("evaluate teacher: time taken", 1 + count + len(requests)) as advance,
        ):

            def ask(some: Sequence[Request], teacher: Teacher = teacher, advance: Advance = advance) -> list[Any]:
                said = []
                for _, answer in teacher(iter(some)):
                    said.append(answer)
                    advance()
                return said

            latencies = latency_of(lambda row, requests=requests, ask=ask: ask([requests[row]]), count)  # type: ignore[misc]
            began = time.perf_counter()
            answers = ask(requests)
            seconds = time.perf_counter() - began
        found = cost(
            rows=len(requests),
            seconds=seconds,
            parameters=_stored_parameters(settings),
            folder=_folder(settings),
            latencies=latencies,
        )
        if settings.price is not None:
            read, written = (
                sum(getattr(one, f"{side}_tokens") for one in answers) for side in ("prompt", "completion")
            )
            paid = price_of(settings.price, read, written, seconds)
            found = found.model_copy(update={"cost_per_1000": paid / len(requests) * 1000})
        costs[name] = found
    single = len(sample["teacher"]) == 1
    return [
        replace(one, cost=next(iter(costs.values()), None) if single else costs.get(one.model.partition(":")[2]))
        for one in said
    ]


def _timed_before(folder: Path, settings: Vllm) -> Cost | None:
    """What the last of the other results beside ``folder`` measured of this teacher; None where there is none, or it cannot be read."""
    known = identity_of_teacher(settings)
    name = TEACHER + teacher_name(settings)
    others = sorted(folder.parent.glob(f"*/{SPEEDS}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in others:
        try:
            manifest = outputs.read_manifest(path.parent)
            costs = Costs.model_validate_json(path.read_bytes()).models
        except (RunError, OSError, ValueError):
            continue
        sample: Any = manifest.settings.get("sample")
        prices = [one.get("price") for one in sample["teacher"] if teachers_name_of(one) == teacher_name(settings)]
        price = settings.price and settings.price.model_dump(mode="json")
        model = measure.TEACHER if len(sample["teacher"]) == 1 else f"{measure.TEACHER}:{teacher_name(settings)}"
        if manifest.identities.get(name) == known and prices == [price] and model in costs:
            return costs[model]
    return None


def _stored_parameters(teacher: TeacherSettings) -> int | None:
    """How many weights the checkpoint of a local teacher holds."""
    if not isinstance(teacher, Vllm):
        return None
    return weights(_folder(teacher))


def _folder(teacher: Vllm) -> Path:
    return embedded.folder() if teacher.model == EMBEDDED else Path(teacher.model)
