"""With ``--full`` every row is made again: from the rows of the stage before, the settings in the manifest and the response store.

    parse/95d5..../part-00003.jsonl:17: row r17: label, votes: not what parse makes of sample

What a stage writes for its input is a function of that input and its settings, so the very functions that wrote the rows are run again,
block by block, and give the same bytes or a finding:

- ``ingest``: each prompt from its ``columns``, its id too where that is their digest;
- ``sample`` and ``judge``: each request's key from prompt, template, settings and identities, and all of the row from the record under it;
- ``parse``, ``quality``, ``shard``: the rows and drops that the stage's function gives;
- ``dedup``, ``decontaminate``, ``balance``, which need the whole corpus: with ``--recompute``, which then also compares the rows that are
  trained on with the eval sets once more.

What a filter keeps passes through it byte by byte, which the check of laws sees to; so of filters the drops are compared.

Limits: results of another version of a stage cannot be made again by this one, nor can verdicts that files decide which are not at hand, or
a model; a note says so. Why a teacher gave no answer is on nobody's record. Of a result that differs in many rows the first are named.
Patterns and templates come from the manifests: one that was made to take forever, or all memory, does so (``ulimit`` bounds it).
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import DecodeError

from pipeline import ingest, judge, outputs, requests, sample
from pipeline.asking import response_of
from pipeline.audits import Audited, Finding, Result, kind
from pipeline.audits.answers import Answers, located
from pipeline.audits.inputs import place_of
from pipeline.binding import contents, restored
from pipeline.blocks import BYTES, Block, cut
from pipeline.files import InputError, RunError, plain, sha256
from pipeline.records import Drop, Example, Prompt
from pipeline.requests import Asking, Respondent, all_requests
from pipeline.revocations import REASON
from pipeline.stages import STAGES, Stage
from pipeline.teachers import Request

MOST: Final = 20  # rows of a result that are named
DROPPED: Final = outputs.DROPPED
NO_ROWS: Final = frozenset({"inputs", "output_terms", "license"})  # settings that are no parameters, or change no row

UNUSABLE: Final = (
    *(InputError, RunError, DecodeError, ValueError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, AssertionError, MemoryError, RuntimeError, re.error),
)
"""What settings, templates or rows that nobody checked can raise in a stage's function."""

Lines = dict[str, list[bytes | str]]
"""By the prefix of their files the lines of rows; in place of one that cannot be made, why."""


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on rows that are not what their stage makes of its input."""
    if not audited.full:
        return
    answers: list[Answers] = []

    def store() -> Answers:
        if not answers:
            answers.append(located(audited.store, audited.crew))
        return answers[0]

    for result in audited.all:
        stage = STAGES.get(result.manifest.stage)
        place = result.folder / outputs.MANIFEST
        if stage is None or stage.name in ("train", "evaluate"):
            continue
        if result.manifest.version != stage.version:
            problem = f"of version {result.manifest.version} of {stage.name}; this code has {stage.version} and cannot make its rows again"
            audited.notes.append(Finding(place, problem))
            continue
        try:
            yield from _derived(audited, result, stage, store)
        except UNUSABLE as error:
            yield Finding(place, f"its rows cannot be made again: {plain(str(error) or type(error).__name__)}")
        except FileNotFoundError as error:
            yield Finding(Path(error.filename), "missing, so rows cannot be made again")
        except OSError as error:
            yield Finding(Path(error.filename or result.folder), f"cannot be read ({error.strerror})")
    if audited.recompute:
        yield from _contaminated(audited)


def _contaminated(audited: Audited) -> Iterator[Finding]:
    """Rows that are trained on in which a row of an eval set stands.

    Words that many rows share count less, and these rows are fewer than decontaminate had: what is no whole eval row is only noted.
    """
    shard = audited.results.get("shard")
    before = [] if shard is None else audited.before(shard)
    compared = next((result for name, result in before if name == "decontaminate"), None)
    source = None if shard is None else next((audited.parent(shard, name) for name in shard.manifest.parents), None)
    if source is None or compared is None:
        audited.notes.append(Finding(audited.run, "the rows that are trained on were compared with no eval set"))
        return
    stage = STAGES["decontaminate"]
    try:
        settings = corpus_settings(audited, compared.manifest.settings, stage) | {"semantic": None}
        for drop in verdicts(audited, stage, source.folder, settings):
            if drop is not None and drop.reason == "contaminated":
                told = f"{plain(str(drop.evidence['eval_set']), 60)}, row {plain(str(drop.evidence['eval_row']), 60)}"
                problem = f"row {plain(drop.id, 120)}, which is trained on, holds a row of the eval set {told}"
                finding = Finding(source.folder, f"{problem} ({drop.evidence['method']}, {drop.evidence['score']})")
                if drop.evidence["method"] in ("exact", "contained"):
                    yield finding
                else:
                    audited.notes.append(finding)
    except FileNotFoundError as error:
        problem = f"{error.filename} is not at hand; the rows that are trained on were not compared with it"
        audited.notes.append(Finding(compared.folder / outputs.MANIFEST, problem))
    except (*UNUSABLE, OSError) as error:
        yield Finding(source.folder, f"its rows cannot be compared with the eval sets: {plain(str(error))}")


@dataclass(frozen=True)
class Work:
    """How the rows of one result are made: its stage, its folder, the settings; what else its kind needs.

    ``dropped`` are the drops of a stage that asks, by id; ``state`` tells its manifest and templates from others there. ``passed`` are rows
    that a filter dropped whose file is not at hand.
    """

    stage: str
    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    answers: Answers | None = None
    dropped: Mapping[str, Drop] = field(default_factory=dict)
    passed: frozenset[str] = frozenset()
    in_force: bool = True
    state: str = ""


def _derived(audited: Audited, result: Result, stage: Stage, store: Callable[[], Answers]) -> Iterator[Finding]:
    parents = [audited.parent(result, name) for name in result.manifest.parents]
    if None in parents:
        return  # the check of the chain names what is missing
    source = parents[0].folder if parents and parents[0] is not None else result.folder
    told = parents[0].manifest.stage if parents and parents[0] is not None else "its columns"
    if stage.corpus is not None:
        if audited.recompute:
            yield from _recomputed(audited, result, stage, source)
        return
    work = Work(stage.name, result.folder, in_force=audited.results.get(stage.name) is result)
    if stage.kind == "job":
        if stage.name == "sample" and parents[0] is not None:
            _fits(audited, result, parents[0].manifest.counts.rows_out)
        drops = {drop.id: drop for drop in outputs.read_drops(result.folder)}
        work = replace(work, answers=store(), dropped=drops, state=_state(result.folder))
    else:
        settings, missing = _settings(audited, result, stage)
        for name in missing:
            problem = f"a file of the filter {plain(name, 60)} is not at hand; its verdicts were taken as they are"
            audited.notes.append(Finding(result.folder / outputs.MANIFEST, problem))
        passed = (
            {drop.id for drop in outputs.read_drops(result.folder) if drop.reason in missing}
            if missing
            else frozenset()
        )
        work = replace(work, settings=settings, passed=frozenset(passed))
    yield from _compared(audited, result, work, source, told, set(missing) if stage.kind == "filter" else set())


def _fits(audited: Audited, result: Result, prompts: int) -> None:
    """Raises ValueError where the settings mean far more requests than there are rows, so that none are made of a small file.

    Shares are met on average; what is asked beyond the rows is left room for.
    """
    settings: Any = result.manifest.settings
    scanned = [one.rows for path, one in audited.scans.items() if path.parent == result.folder]
    rows = sum(scanned) if scanned else result.manifest.counts.rows_in
    samples = settings["n"]
    shares = [min(one["share"], 1) for one in settings["teacher"]]
    room = rows + 50 * samples if min(shares) < 1 else 0
    if samples > requests.MOST_SAMPLES or not prompts * samples * sum(shares) <= rows + room:
        raise ValueError(f"n: {samples} for {prompts} prompts is far more than its {rows} requests")


def _settings(audited: Audited, result: Result, stage: Stage) -> tuple[dict[str, Any], list[str]]:
    """The settings as the stage's function takes them, and the names of filters left out because their files are not at hand."""
    given = {name: value for name, value in result.manifest.settings.items() if name not in NO_ROWS}
    missing: list[str] = []
    calls: Any = given.get("filters")
    if stage.name == "quality" and isinstance(calls, list):
        missing = [name for call in calls for name in call if not _is_at_hand(audited, call)]
        given["filters"] = [call for call in calls if not set(call) & set(missing)]
    return restored(stage.function, given, lambda content: place_of(audited, content)), missing


def _is_at_hand(audited: Audited, value: Any) -> bool:
    try:
        for content in contents(value):
            place_of(audited, content)
    except FileNotFoundError:
        return False
    return True


def _compared(
    audited: Audited, result: Result, work: Work, source: Path, told: str, unlooked: set[str]
) -> Iterator[Finding]:
    """Make all rows again and compare them with the files."""
    blocks = [*cut(source, together=STAGES[work.stage].together)]
    files = outputs.row_files(result.folder)
    prefixes = {file.path.rsplit("-", 1)[0] for file in files} | {DROPPED}
    if STAGES[work.stage].kind == "filter" or work.stage == "ingest":
        prefixes &= {DROPPED} if work.stage != "ingest" else prefixes - {DROPPED}
    written = {
        prefix: _Written([result.folder / file.path for file in files if file.path.rsplit("-", 1)[0] == prefix])
        for prefix in prefixes - {DROPPED}
    }
    if DROPPED in prefixes:
        written[DROPPED] = _Written([result.folder / f"{DROPPED}.jsonl"], without=frozenset(unlooked))
    named = 0
    astray: set[str] = set()  # prefixes whose rows no longer stand where they are looked for
    found = audited.crew.in_order(_summed, ((block,) for block in blocks), weight=sum(map(len, blocks)), shared=work)
    for block, sums in zip(blocks, found, strict=True):
        for prefix in sorted({*written, *sums} - astray):
            rows = written.setdefault(prefix, _Written([]))
            if rows.next_are(*sums.get(prefix, (0, 0, hashlib.sha256().digest()))):
                continue
            for finding in _told(rows, _lines(work, block).get(prefix, []), result, told):
                yield finding
                named += 1
                if finding.line is None:
                    astray.add(prefix)
                if named == MOST:
                    yield Finding(result.folder, f"further rows may not be what {work.stage} makes of {told}")
                    return
    for rows in (written[prefix] for prefix in sorted({*written} - astray)):
        if (place := rows.rest()) is not None:
            yield Finding(place[0], f"holds rows that {work.stage} does not make of {told}", place[1])


def _told(rows: "_Written", lines: Sequence[bytes | str], result: Result, told: str) -> Iterator[Finding]:
    """Which of the next rows on disk are others than these. Ends with a finding without a line where rows are missing or too many."""
    stage = result.manifest.stage
    for line in lines:
        at = rows.line()
        if at is None:
            missing = f"row {_id(line)}, which {stage} makes of {told}, is missing" if isinstance(line, bytes) else line
            yield Finding(result.folder, missing)
            return
        path, number, there = at
        if there == line:
            continue
        if isinstance(line, str):
            yield Finding(path, line, number)
        elif _id(there) == _id(line):
            yield Finding(path, f"row {_id(line)}: {_fields(there, line)}: not what {stage} makes of {told}", number)
        else:
            yield Finding(path, f"row {_id(there)} stands where {stage} makes row {_id(line)} of {told}", number)
            yield Finding(result.folder, f"rows after that were not compared with what {stage} makes of {told}")
            return


def _id(line: bytes) -> str:
    try:
        return plain(str(msgspec.json.decode(line)["id"]), 120)
    except (DecodeError, KeyError, TypeError):
        return plain(line.decode(errors="replace"), 60)


def _fields(there: bytes, made: bytes) -> str:
    """The names of the fields in which two rows differ."""
    one, other = msgspec.json.decode(there), msgspec.json.decode(made)
    names = [name for name in dict.fromkeys((*other, *one)) if one.get(name) != other.get(name)]
    return plain(", ".join(names) or "its encoding", 200)


class _Written:
    """The rows of some files on disk, one behind the other. ``without``: reasons of drops that are passed over."""

    def __init__(self, paths: Sequence[Path], without: frozenset[str] = frozenset()) -> None:
        self.paths, self.without = list(paths), without
        self.at = self.offset = 0
        self.counted = 0, 0  # an offset in the file at hand and the lines before it, which only findings tell

    def next_are(self, rows: int, length: int, digest: bytes) -> bool:
        """Whether the next rows are those with this length in bytes and this SHA-256; if so, they are behind us."""
        if self.without:
            return rows == 0
        before = self.at, self.offset, self.counted
        sha256 = hashlib.sha256()
        left = length
        while left and self.at < len(self.paths):
            with self.paths[self.at].open("rb") as file:
                file.seek(self.offset)
                data = file.read(left)
            if not data:
                self.at, self.offset, self.counted = self.at + 1, 0, (0, 0)
                continue
            sha256.update(data)
            self.offset += len(data)
            left -= len(data)
        if left or sha256.digest() != digest:
            self.at, self.offset, self.counted = before
            return False
        return True

    def line(self) -> tuple[Path, int, bytes] | None:
        """The next row with its place; None behind the last."""
        while self.at < len(self.paths):
            path = self.paths[self.at]
            with path.open("rb") as file:
                file.seek(self.offset)
                raw = file.readline()
            if raw:
                number = self._lines_before() + 1
                self.offset += len(raw)
                self.counted = self.offset, number
                if not self.without or Drop.read(raw).reason not in self.without:
                    return path, number, raw.removesuffix(b"\n")
            else:
                self.at, self.offset, self.counted = self.at + 1, 0, (0, 0)
        return None

    def _lines_before(self) -> int:
        """How many lines of the file at hand are behind us."""
        place, lines = self.counted
        with self.paths[self.at].open("rb") as file:
            file.seek(place)
            while place < self.offset:
                data = file.read(min(BYTES, self.offset - place))
                if not data:
                    break
                place += len(data)
                lines += data.count(b"\n")
        return lines

    def rest(self) -> tuple[Path, int] | None:
        """The place of the next row; None behind the last."""
        found = self.line()
        return None if found is None else found[:2]


def _summed(work: Work, block: Block) -> dict[str, tuple[int, int, bytes]]:
    """Of the rows made of a block their number, their length in bytes and their SHA-256, by the prefix of their files."""
    sums = {}
    for prefix, lines in _lines(work, block).items():
        made = [line for line in lines if isinstance(line, bytes)]
        data = b"\n".join([*made, b""]) if made else b""
        # What cannot be made has no digest, so that nothing on disk is taken for it.
        sums[prefix] = len(lines), len(data), hashlib.sha256(data).digest() if len(made) == len(lines) else b""
    return sums


def _lines(work: Work, block: Block) -> Lines:
    """What the stage makes of one block."""
    if work.stage == "ingest":
        return {"part": [_prompt(row, work.settings) for row in block.rows(Prompt)]}
    if work.stage == "sample":
        return _responses(work, block.rows(Prompt))
    if work.stage == "judge":
        return _judgements(work, block.rows(Example))
    stage = STAGES[work.stage]
    assert stage.takes is not None
    found: Lines = {}
    for row in stage.function(block.rows(stage.takes), **work.settings):
        if row is None:
            continue
        if isinstance(row, Drop):
            if row.id not in work.passed:
                found.setdefault(DROPPED, []).append(row.line())
        else:
            found.setdefault(stage.prefix(row), []).append(row.line())
    return found


def _prompt(row: Prompt, settings: Mapping[str, Any]) -> bytes | str:
    """The prompt that its columns make. Where the id is their digest, the same row may stand there several times."""
    try:
        made = next(ingest.ingest([(row.source, row.columns)], **settings))
    except InputError as error:
        return f"row {plain(row.id, 120)}: {error}"
    if settings["id"] is None and row.id != made.id and isinstance(made, Prompt):
        base, _, number = row.id.rpartition(".")
        if base == made.id and number.isdecimal():
            made = made.changed(id=row.id)
    return made.line()


def _state(folder: Path) -> str:
    files = (folder / name for name in (outputs.MANIFEST, sample.TEMPLATES, sample.SHOTS))
    return " ".join(sha256(file) for file in files if kind(file) == "file")


@lru_cache(maxsize=4)
def _asking(folder: Path, state: str) -> Asking:
    return sample.asking_of(folder, outputs.read_manifest(folder))


@lru_cache(maxsize=4)
def _judging(folder: Path, state: str) -> judge.Judging:
    return judge.judging_of(folder, outputs.read_manifest(folder))


def _responses(work: Work, prompts: Iterable[Prompt]) -> Lines:
    asking = _asking(work.folder, work.state)
    wanted: list[tuple[str, Prompt, Respondent, Request]] = []
    kept: list[bytes | str] = []
    for prompt in prompts:
        for number, (respondent, request) in enumerate(all_requests(asking, prompt)):
            wanted.append((f"{prompt.id}#{number}", prompt, respondent, request))
    assert work.answers is not None
    answers = work.answers.of([bytes.fromhex(request.family) for *_, request in wanted], asking.max_tokens)
    drops: list[bytes | str] = []
    for (name, prompt, respondent, request), answer in zip(wanted, answers, strict=True):
        drop = work.dropped.get(name)
        if drop is not None:
            drops.append(_dropped(drop, {"source": prompt.source, "teacher": respondent.name}, request, answer, work))
        elif answer is None:
            kept.append(f"row {plain(name, 120)}: its request {request.key} has no answer in the response store")
        else:
            stored: Any = answer
            kept.append(response_of(name, prompt, respondent, stored, rationalised=asking.rationalise).line())
    return {"part": kept, DROPPED: drops}


def _dropped(drop: Drop, known: dict[str, Any], request: Request, answer: object, work: Work) -> bytes | str:
    """A drop of a stage that asks, as far as it can be told: whose request it was, and that there is no answer to it."""
    if answer is not None and work.in_force and drop.reason != REASON:
        return f"row {plain(drop.id, 120)}: dropped as {plain(drop.reason)}, but its request {request.key} is answered in the store"
    return drop.changed(
        evidence={**known, **{name: value for name, value in drop.evidence.items() if name not in known}}
    ).line()


def _judgements(work: Work, examples: Sequence[Example]) -> Lines:
    judging = _judging(work.folder, work.state)
    asking, (respondent,) = judging.asking, judging.asking.respondents
    prompts = [judge.prompt_of(example, judging) for example in examples]
    wanted = [next(all_requests(asking, prompt))[1] for prompt in prompts]
    assert work.answers is not None
    answers = work.answers.of([bytes.fromhex(request.family) for request in wanted], asking.max_tokens)
    kept: list[bytes | str] = []
    drops: list[bytes | str] = []
    for example, prompt, request, answer in zip(examples, prompts, wanted, answers, strict=True):
        stored: Any = answer
        made = (
            None
            if answer is None
            else judge.judgement_of(
                example, response_of(f"{prompt.id}#0", prompt, respondent, stored, rationalised=False), respondent.name
            )
        )
        drop = work.dropped.get(example.id)
        if drop is not None and (made is None or not isinstance(made, Drop)):
            drops.append(_dropped(drop, {}, request, answer, work))
        elif isinstance(made, Drop) and judging.on_failure == "drop":
            drops.append(made.line())
        elif made is None and judging.on_failure == "drop":
            kept.append(f"row {plain(example.id, 120)}: its request {request.key} has no answer in the response store")
        else:
            kept.append(
                example.line() if made is None or isinstance(made, Drop) else example.changed(judgement=made).line()
            )
    return {"part": kept, DROPPED: drops}


def _recomputed(audited: Audited, result: Result, stage: Stage, source: Path) -> Iterator[Finding]:
    """The verdicts of a filter that needs the whole corpus, once more."""
    place = result.folder / outputs.MANIFEST
    given = dict(result.manifest.settings)
    if given.get("semantic") is not None:
        audited.notes.append(
            Finding(
                place, f"{stage.name}: a model decided, which is not loaded here; its verdicts were taken as they are"
            )
        )
        return
    try:
        settings = corpus_settings(audited, result.manifest.settings, stage)
    except FileNotFoundError as error:
        audited.notes.append(
            Finding(place, f"{stage.name}: {error.filename} is not at hand; its verdicts were taken as they are")
        )
        return
    written = _Written([result.folder / f"{DROPPED}.jsonl"])
    drops = [drop.line() for drop in verdicts(audited, stage, source, settings) if drop is not None]
    named = 0
    for finding in _told(written, drops, result, source.parent.name):
        yield finding
        named += 1
        if named == MOST:
            return
    if not named and (rest := written.rest()) is not None:
        yield Finding(rest[0], f"holds drops that {stage.name} does not make of {source.parent.name}", rest[1])


def corpus_settings(audited: Audited, settings: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    """The settings of a filter that needs the whole corpus. Raises FileNotFoundError for a file that is not at hand, ValueError.

    What decontaminate looks for in the teacher's prompt stops a run and drops no row, so it goes without.
    """
    given = dict(settings)
    if stage.name == "decontaminate":
        given |= {"prompt": None, "few_shot": None}
    return restored(stage.function, given, lambda content: place_of(audited, content))


def verdicts(audited: Audited, stage: Stage, source: Path, settings: Mapping[str, Any]) -> Iterator[Drop | None]:
    """One verdict for each row in a finished folder."""
    assert stage.corpus is not None
    blocks = [*cut(source)]
    prepared = stage.corpus.prepare(**settings)
    shared = (stage.name, settings, prepared)
    weight = sum(map(len, blocks))
    sketches = [*audited.crew.in_order(_sketch, ((block,) for block in blocks), weight=weight, shared=shared)]
    return stage.corpus.resolve(sketches, prepared, **settings)


def _sketch(shared: tuple[str, Mapping[str, Any], Any], block: Block) -> Any:
    name, settings, prepared = shared
    corpus = STAGES[name].corpus
    assert corpus is not None
    return corpus.sketch(block.rows(corpus.view), prepared, **settings)
