"""sample: Prompt -> Response. Ask the teachers n times per prompt; every answer is in the response store before it counts.

    {"id": "5f0c..", "input": "Late goal sinks the leaders", ..}
    -> {"id": "5f0c..#0", "request": "c4..", "text": "A goal is scored. So the answer is sports.", "finish_reason": "stop", ..}

A request is looked up in the store by its key first; only what is not there is asked. Where everything is there, the teacher is not even
started. Rows come in the order of the prompts. What a teacher could not answer becomes a drop with the id that its response would have had.

Limits: a failed request is not stored; it is asked again by the next run with another key, or with ``--force``.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pydantic import JsonValue

from pipeline import outputs, prompts, shots, teachers, usage
from pipeline.asking import ask
from pipeline.files import canonical_json, digest, write_json
from pipeline.outputs import Job, Totals
from pipeline.progress import bar
from pipeline.records import Drop, Manifest, Prompt, Response
from pipeline.requests import TEACHER, Asking, all_requests, from_manifest, resolve, sent_of
from pipeline.responses import Answered, read_store
from pipeline.revocations import why_not
from pipeline.spending import Meter, at_most, prompt_bound
from pipeline.teachers import Request

CHARACTERS_A_TOKEN: Final = 4  # English text and common tokenizers; for estimates where there is no tokenizer
TEMPLATES: Final = "templates.json"  # in the stage's folder: the prompt template and all it includes, as they were used
SHOTS: Final = "shots.json"  # in the stage's folder: the few-shot examples as they were used


def sample(job: Job, **settings: Any) -> Generator[Response | Drop, None, Totals]:
    """Ask the teachers about every prompt. ``settings`` are those of ``pipeline.requests.resolve``.

    Raises InputError for settings and templates that cannot be used, RunError where a teacher fails or the budget is used up.
    """
    asking = resolve(**settings)
    if asking.template is not None:
        write_json(job.folder / TEMPLATES, prompts.snapshot(asking.template))
    if asking.shots is not None:
        write_json(job.folder / SHOTS, shots.snapshot(asking.shots))
    folder = job.inputs["ingest"]
    total = sum(file.rows or 0 for file in outputs.row_files(folder))
    before = usage.measured(job.folder)  # by a call that was stopped before it had a result; it belongs to this one
    meters: dict[str, Meter] = {}
    counts = {respondent.name: usage.Tally() for respondent in asking.respondents}
    try:
        for row in ask(asking, lambda: outputs.read(folder, Prompt), job.responses, total=total, meters=meters):
            counts[row.teacher if isinstance(row, Response) else str(row.evidence["teacher"])].add(row)
            yield row
    finally:
        usage.keep(job.folder, meters, before)
    prices = {teachers.name(one): one.price for one in settings["teacher"]}
    asked: dict[str, object] = {name: found.details(prices[name]) for name, found in counts.items()}
    shared = [respondent for respondent in asking.respondents if not respondent.takes_all]
    wanted = total * (len(asking.respondents) - len(shared))
    if shared:
        wanted += sum(respondent.takes(prompt) for prompt in outputs.read(folder, Prompt) for respondent in shared)
    details: dict[str, object] = {"teachers": asked, "sampling": asking.sampling, "max_tokens": asking.max_tokens}
    details |= {"seed": asking.seed, "seed_rule": "seed + sample index", "prompt": _prompt_facts(asking.template)}
    return Totals(rows_in=wanted * asking.n, details=details)


def _prompt_facts(template: prompts.Template | None) -> dict[str, JsonValue] | None:
    """The template's digest and the variables that it takes from outside; None for recorded completions without a prompt."""
    if template is None:
        return None
    return {"digest": digest(prompts.snapshot(template)), "variables": [*sorted(prompts.variables_of(template))]}


def answers(
    rows: Sequence[Prompt],
    *,
    responses: Path,
    meters: dict[str, Meter] | None = None,
    stage: str = "sample",
    **settings: Any,
) -> Iterator[Response | Drop]:
    """Ask the teachers about any prompts, through the store in ``responses``; one row a request, in the order of the prompts.

    ``meters`` is filled with what was asked of each teacher, ``stage`` is for what is said meanwhile. Raises InputError and RunError as
    ``sample`` does.
    """
    asking = replace(resolve(**settings), stage=stage)
    yield from ask(asking, lambda: rows, responses, total=len(rows), meters=meters)


@dataclass
class ToAsk:
    """What one teacher would be asked: distinct requests in the store and to ask, and what the latter would take.

    ``prompt_tokens`` are exact where ``counted``, else a token is taken for every CHARACTERS_A_TOKEN characters. ``completion_tokens`` is
    what to expect: for ``foreseen`` requests the mean of this teacher's answers in the store, ``max_tokens`` for each of the others.
    Recorded completions take nothing.
    ``most`` is what the largest single request can take, as the budget sets it aside: tokens read, and written.
    """

    stored: int = 0
    to_ask: int = 0
    prompt_tokens: int = 0
    counted: bool = False
    completion_tokens: int = 0
    completion_tokens_at_most: int = 0
    foreseen: int = 0
    most: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Pending:
    """What asking would take, by the teachers' names."""

    teachers: dict[str, ToAsk]

    @property
    def stored(self) -> int:
        """Distinct requests that the store answers."""
        return sum(one.stored for one in self.teachers.values())

    @property
    def to_ask(self) -> int:
        """Distinct requests that would be asked."""
        return sum(one.to_ask for one in self.teachers.values())


def pending(rows: Iterable[Prompt], *, settings: Mapping[str, Any], responses: Path) -> Pending:
    """What ``answers`` would find in the store and what it would have to ask. Starts no teacher and asks nothing; needs no lock.

    Prompts are counted with the teacher's own tokenizer, where it has one here; 16 bytes are held for each distinct request. Raises
    InputError as ``resolve`` does.
    """
    asking = resolve(**settings)
    known = Answered(responses)
    found = {respondent.name: ToAsk() for respondent in asking.respondents}
    counters: dict[str, Callable[[Request], int] | None] = {}
    wanted: Counter[tuple[str, str, bytes]] = Counter()
    seen: set[bytes] = set()
    counted = ("", "", 0)  # the samples of one prompt are counted once
    with bar("plan", None, "prompts counted") as advance:
        for row in rows:
            for respondent, request in all_requests(asking, row):
                family = bytes.fromhex(request.family)
                if family in seen or why_not(asking.revoked, key=request.key, family=request.family) is not None:
                    continue
                seen.add(family)
                mine = found[respondent.name]
                if known.has(request.family, asking.max_tokens):
                    mine.stored += 1
                    continue
                mine.to_ask += 1
                if counted[:2] != (respondent.name, request.prompt_digest):
                    if respondent.name not in counters:
                        assert respondent.settings is not None
                        counters[respondent.name] = teachers.counter(respondent.settings)
                    counted = (respondent.name, request.prompt_digest, _length(request, counters[respondent.name]))
                bound = counted[2] if counters[respondent.name] is not None else prompt_bound(request, None)
                read, written = at_most(request, bound)
                mine.most = (max(mine.most[0], read), max(mine.most[1], written))
                mine.prompt_tokens += counted[2]
                if respondent.recorded:
                    mine.foreseen += 1
                    continue
                mine.completion_tokens_at_most += request.max_tokens
                wanted[respondent.name, respondent.digest, _shape(request.sampling, rough=bool(row.choices))] += 1
            advance()
    lengths = _lengths(responses, asking.max_tokens, {key[1:] for key in wanted})
    for (name, identity, shape), requests in wanted.items():
        mean = lengths.get((identity, shape), lengths.get((identity, b"")))
        found[name].foreseen += 0 if mean is None else requests
        found[name].completion_tokens += round(requests * (asking.max_tokens if mean is None else mean))
    for respondent in asking.respondents:
        found[respondent.name].counted = respondent.recorded or counters.get(respondent.name) is not None
    return Pending(found)


def _length(request: Request, count: Callable[[Request], int] | None) -> int:
    if count is not None:
        return count(request)
    if request.messages is None:
        return 0
    texts = [message.content for message in request.messages.messages] + [request.messages.assistant_prefix]
    return -(-sum(map(len, texts)) // CHARACTERS_A_TOKEN)


def _shape(sampling: Mapping[str, JsonValue], *, rough: bool) -> bytes:
    """What of the sampling parameters answers of like length have in common; ``rough`` where labels are each row's own."""
    shape = {name: value for name, value in sampling.items() if name != "max_tokens"}
    structured = shape.get("structured")
    if rough:
        shape["structured"] = [*sorted(structured)] if isinstance(structured, dict) else None
        shape.pop("soft_labels", None)
    return canonical_json({"rough": rough, **shape})


def _lengths(responses: Path, max_tokens: int, wanted: set[tuple[str, bytes]]) -> dict[tuple[str, bytes], float]:
    """The mean length of the answers in the store by teacher and shape, and of all of a teacher's by an empty shape.

    Left out are answers whose length the backend did not know, and those that were cut at fewer tokens than are allowed now; of longer
    ones ``max_tokens`` count.
    """
    identities = {identity for identity, _ in wanted}
    sums: dict[tuple[str, bytes], list[int]] = {}
    if not identities:
        return {}
    with bar("plan", None, "stored answers read") as advance:
        for _, _, record in read_store(responses):
            advance()
            cut = record.finish_reason == "length" and record.max_tokens < max_tokens
            if record.identity not in identities or not record.completion_tokens or cut:
                continue
            shapes = {(record.identity, _shape(record.sampling, rough=rough)) for rough in (False, True)} & wanted
            for place in {(record.identity, b""), *shapes}:
                found = sums.setdefault(place, [0, 0])
                found[0] += min(record.completion_tokens, max_tokens)
                found[1] += 1
    return {place: tokens / answers for place, (tokens, answers) in sums.items()}


def asking_of(folder: Path, manifest: Manifest) -> Asking:
    """What a finished stage asked, from what it left on disk; good for ``all_requests`` only. Raises InputError for damaged snapshots."""
    template = prompts.read_snapshot(folder / TEMPLATES) if (folder / TEMPLATES).is_file() else None
    few_shot = manifest.settings.get("few_shot")
    examples = shots.read_snapshot(folder / SHOTS, few_shot) if isinstance(few_shot, dict) else None
    return from_manifest(manifest.settings, manifest.identities, template, examples)


def proof(prompt: Prompt, folder: Path, manifest: Manifest, number: int) -> tuple[dict[str, JsonValue], str, str]:
    """The prompt as it was sent for a row's response ``number``, its request's family and key, from what a finished stage left on disk."""
    _, request = list(all_requests(asking_of(folder, manifest), prompt))[number]
    return sent_of(prompt, request.messages), request.family, request.key


def identities(settings: Mapping[str, Any]) -> dict[str, dict[str, JsonValue]]:
    """Each teacher's identity, as it resolves now, by the name it has in a manifest."""
    return {TEACHER + teachers.name(one): teachers.identity(one) for one in settings["teacher"]}


def models(settings: Mapping[str, Any], identities: Mapping[str, Any]) -> dict[str, dict[str, JsonValue]]:
    """Further facts about each teacher, by the same names: files, engine, how it is spread over machines, terms of its outputs."""
    found: dict[str, dict[str, JsonValue]] = {}
    for one in settings["teacher"]:
        name = TEACHER + teachers.name(one)
        found[name] = {**teachers.facts(one, identities[name]), "workers": settings.get("workers", 1)}
    return found


def check(settings: Mapping[str, Any]) -> Asking:
    """Everything about the settings that can be checked before a teacher is there; what would be asked. Raises InputError."""
    return resolve({}, **settings)
