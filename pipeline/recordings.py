"""The response store for people and other programs: list, count, export, and import of answers that were recorded elsewhere.

    {"id": "r0", "completion": ["A goal is scored. So the answer is sports."], "finish_reason": ["stop"],
     "prompt_tokens": 48, "completion_tokens": [11]}

is a row of recorded completions: what ``export_completions`` writes, ``import_completions`` takes, and the teacher ``replay`` reads. Only
``id`` and ``completion`` (a text, or a list with one for each sample) must be there.

Limits: imported answers count for the sampling settings, the inputs and the teacher's description that stages.yaml has at that time; a
change of those asks for another import. The file of an import is held in memory.
"""

import json
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Final

from pydantic import JsonValue

from pipeline import responses, teachers
from pipeline.asking import record_of
from pipeline.config import Config
from pipeline.files import InputError, RunError, atomic, canonical_json, plain, regular, strict_json
from pipeline.progress import bar
from pipeline.records import Drop
from pipeline.requests import Asking, Respondent, requests_of, resolve
from pipeline.responses import Answered, Stored, open_store, read_store
from pipeline.results import source_rows
from pipeline.revocations import why_not
from pipeline.teachers import Replay
from pipeline.teachers.replay import recorded

STORE: Final = "responses"  # its folder in a run's
STDOUT: Final = "-"
IMPORTED_TOGETHER: Final = 10_000
SHOWN_EVERY: Final = 1000  # records between two steps of a progress bar
NAMED: Final = 5  # of ids that have no partner, so many are named


def records(folder: Path, *, teacher: str | None = None, finish_reason: str | None = None) -> Iterator[Stored]:
    """The store's records in the order of their arrival: all, or those of one teacher or with one finish reason."""
    for _, _, record in read_store(folder):
        if teacher in (None, record.teacher) and finish_reason in (None, record.finish_reason):
            yield record


def some(found: Iterable[Stored], number: int, *, first: bool = False) -> list[Stored]:
    """The first records, or the newest, the newest last."""
    return list(islice(found, number)) if first else list(deque(_shown(found, "reading"), maxlen=number))


@dataclass
class Contents:
    """How much a store holds."""

    records: int = 0
    families: int = 0
    segments: int = 0
    bytes: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: Counter[str] = field(default_factory=Counter)
    teachers: dict[tuple[str, str], "Contents"] = field(default_factory=dict)  # by name and digest of the identity

    def add(self, record: Stored) -> None:
        """Count a record in."""
        self.records += 1
        self.prompt_tokens += record.prompt_tokens
        self.completion_tokens += record.completion_tokens
        self.finish_reasons[record.finish_reason] += 1


def count(folder: Path) -> Contents:
    """How much there is, together and for each teacher."""
    contents = Contents()
    families: set[bytes] = set()
    for record in _shown(records(folder), "counting"):
        contents.add(record)
        contents.teachers.setdefault((record.teacher, record.identity), Contents()).add(record)
        families.add(bytes.fromhex(record.family))
    contents.families = len(families)
    paths = responses.segments(folder)
    contents.segments, contents.bytes = len(paths), sum(path.stat().st_size for path in paths)
    return contents


def export(folder: Path, target: str, *, teacher: str | None = None, finish_reason: str | None = None) -> int:
    """Write the records to a file, which appears whole or not at all, or to ``-``; one JSON object a line. How many there were."""
    number = 0
    with _output(target) as file:
        for record in _shown(records(folder, teacher=teacher, finish_reason=finish_reason), "export"):
            file.write(record.line() + b"\n")
            number += 1
    return number


@dataclass
class Exported:
    """What ``export_completions`` wrote.

    ``unanswered`` requests have no answer; ``revoked`` answers were left out, and so were those ``behind_a_gap``, because an earlier
    sample has none.
    """

    rows: int = 0
    answers: int = 0
    unanswered: int = 0
    revoked: int = 0
    behind_a_gap: int = 0


def export_completions(config: Config, target: str, *, teacher: str | None = None) -> Exported:
    """Write the answers of a teacher to the prompts of stages.yaml, in their order, as recorded completions.

    Raises InputError where ``teacher`` has to be named, or is none of stages.yaml.
    """
    names = [teachers.name(settings) for settings in _settings(config)]
    if teacher is None and len(names) > 1:
        raise InputError(f"--teacher: name one of the teachers of {config.file}: {plain(', '.join(names))}")
    asking, respondent = _respondent(config, names[0] if teacher is None else teacher)
    store = Answered(config.run / STORE)
    exported = Exported()
    with _output(target) as file, bar("export", None, "prompts") as advance:
        for prompt in source_rows(config):
            advance()
            if isinstance(prompt, Drop) or not respondent.takes(prompt):
                continue
            found = [
                store.get(request.family, asking.max_tokens) for request in requests_of(asking, respondent, prompt)
            ]
            refused = [one is not None and _revoked(asking, one) for one in found]
            exported.unanswered += found.count(None)
            exported.revoked += sum(refused)
            found = [None if out else one for one, out in zip(found, refused, strict=True)]
            whole: list[Stored] = []
            for one in found:
                if one is None:
                    break
                whole.append(one)
            exported.behind_a_gap += len(found) - found.count(None) - len(whole)
            if whole:
                exported.rows += 1
                exported.answers += len(whole)
                file.write(_row(prompt.id, whole) + b"\n")
    store.close()
    return exported


def _revoked(asking: Asking, answer: Stored) -> bool:
    return why_not(asking.revoked, key=answer.key, family=answer.family) is not None


def _row(name: str, answers: list[Stored]) -> bytes:
    row = {
        "id": name,
        "completion": [answer.text for answer in answers],
        "finish_reason": [answer.finish_reason for answer in answers],
        "prompt_tokens": [answer.prompt_tokens for answer in answers],
        "completion_tokens": [answer.completion_tokens for answer in answers],
    }
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass
class Imported:
    """What ``import_completions`` did with each completion of its file, and with each request of stages.yaml.

    Completions are ``added``, ``there`` already (with the same text), ``differing`` (the store has another text, which stays), ``surplus``
    (beyond ``n``), or stand in a row that no prompt asks for (``strangers``, by id). Requests without a completion are ``unanswered``;
    prompts without any are in ``prompts_without``.
    """

    added: int = 0
    there: int = 0
    differing: list[str] = field(default_factory=list)
    surplus: int = 0
    strangers: list[str] = field(default_factory=list)
    unanswered: int = 0
    prompts_without: list[str] = field(default_factory=list)


def import_completions(
    config: Config, path: Path, *, teacher: str, about: dict[str, JsonValue] | None = None
) -> Imported:
    """Take recorded completions into the store, as the answers of the teacher that stages.yaml describes under this name.

    ``about`` must be the description there, where it is given. Nothing is written before the whole file was read. Raises InputError for a
    teacher that is not there and, with file and line, for a row that cannot be used; RunError where the store cannot be written.
    """
    _described(config, teacher, about)
    asking, respondent = _respondent(config, teacher)
    answers = recorded(path)
    told = Imported()
    strangers = dict.fromkeys(answers)
    waiting: list[Stored] = []
    with open_store(config.run / STORE) as store, bar("import", len(answers), "rows") as advance:
        identity = store.add_teacher(respondent.identity)
        for prompt in source_rows(config):
            if isinstance(prompt, Drop) or not respondent.takes(prompt):
                continue
            found = answers.get(prompt.id, [])
            if prompt.id in strangers:
                del strangers[prompt.id]
                advance()
            if not found:
                told.prompts_without.append(prompt.id)
            told.unanswered += max(asking.n - len(found), 0)
            told.surplus += max(len(found) - asking.n, 0)
            for request, answer in zip(requests_of(asking, respondent, prompt), found, strict=False):
                before = store.get(request.family, asking.max_tokens)
                if before is None:
                    waiting.append(record_of(respondent, identity, request, answer))
                elif before.text == answer.text:
                    told.there += 1
                else:
                    told.differing.append(f"{prompt.id}#{request.sample}")
            if len(waiting) >= IMPORTED_TOGETHER:
                store.append(waiting)
                told.added += len(waiting)
                waiting = []
        store.append(waiting)
        told.added += len(waiting)
    told.strangers = list(strangers)
    return told


def story(told: Imported) -> Iterator[str]:
    """The lines that say what an import did; nothing that was left out goes unsaid."""
    yield f"{told.added:,} completions added, {told.there:,} were there already"
    if told.differing:
        yield f"{len(told.differing):,} are in the store with another text, which stays: {_named(told.differing)}"
    if told.strangers:
        yield f"{len(told.strangers):,} rows of the file belong to no prompt that this teacher is asked about: {_named(told.strangers)}"
    if told.surplus:
        yield f"{told.surplus:,} completions go beyond stages.sample.n and were left out"
    if told.unanswered:
        prompts = f", {len(told.prompts_without):,} prompts have none" if told.prompts_without else ""
        yield (
            f"{told.unanswered:,} requests have no completion in the file{prompts}"
            f"{': ' + _named(told.prompts_without) if told.prompts_without else ''}"
        )


def description(given: str) -> dict[str, JsonValue]:
    """A teacher's description, as JSON or as the name of a file that holds it. Raises InputError."""
    text, where = given, "--about"
    if not given.lstrip().startswith("{"):
        where = given
        try:
            text = regular(Path(given)).read_bytes().decode()
        except OSError as error:
            raise InputError(f"{given}: cannot be read ({error.strerror}); give JSON or the name of a file") from None
        except UnicodeDecodeError:
            raise InputError(f"{given}: not UTF-8 text; save it as UTF-8") from None
    try:
        found = strict_json(text)
    except ValueError as error:
        raise InputError(f"{where}: {plain(str(error))}; not valid JSON") from None
    if not isinstance(found, dict):
        raise InputError(f'{where}: expected a JSON object, for example {{"model": "..", "date": ".."}}')
    return found


def _named(names: list[str]) -> str:
    return plain(", ".join(names[:NAMED]), 200) + (" .." if len(names) > NAMED else "")


def _settings(config: Config) -> list[teachers.TeacherSettings]:
    found: list[teachers.TeacherSettings] = config.stages["sample"]["teacher"]
    return found


def _described(config: Config, teacher: str, about: dict[str, JsonValue] | None) -> None:
    """Raises InputError where stages.yaml does not describe a recorded teacher of this name, or not so."""
    shown = json.dumps(about if about is not None else {"model": ".."}, ensure_ascii=False)
    wanted = f"{{backend: replay, name: {json.dumps(teacher, ensure_ascii=False)}, about: {shown}}}"
    where = f"{config.file}: stages.sample.teacher"
    for settings in _settings(config):
        if teachers.name(settings) != teacher:
            continue
        if not isinstance(settings, Replay):
            raise InputError(
                f"{where}: {plain(teacher)} is a teacher that is asked; write {plain(wanted, 2000)} to import"
            )
        if settings.completions is not None:
            raise InputError(
                f"{where}: {plain(teacher)} reads {settings.completions}; write {plain(wanted, 2000)} to import instead"
            )
        if about is not None and canonical_json(about) != canonical_json(settings.about):
            raise InputError(
                f"{where}: describes {plain(teacher)} in other words than --about; write {plain(wanted, 2000)}"
            )
        return
    raise InputError(f"{where}: has no {plain(teacher)}; write {plain(wanted, 2000)}")


def _respondent(config: Config, teacher: str) -> tuple[Asking, Respondent]:
    """The settings of the sample stage, resolved for this teacher alone. Raises InputError where there is none of this name."""
    given = {teachers.name(settings): settings for settings in _settings(config)}
    if teacher not in given:
        raise InputError(
            f"--teacher {plain(teacher)}: none of the teachers of {config.file}; there are {plain(', '.join(given))}"
        )
    asking = resolve({teacher: teachers.identity(given[teacher])}, **config.stages["sample"])
    return asking, next(one for one in asking.respondents if one.name == teacher)


def _shown(found: Iterable[Stored], what: str) -> Iterator[Stored]:
    """The same records, with a progress bar."""
    with bar(what, None, "records") as advance:
        for number, record in enumerate(found, 1):
            if number % SHOWN_EVERY == 0:
                advance(SHOWN_EVERY)
            yield record


@contextmanager
def _output(target: str) -> Iterator[IO[bytes]]:
    """A file that appears whole or not at all, or the standard output. Raises InputError where it cannot be made."""
    if target == STDOUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(target)
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{path}: cannot be written; give the name of a file in a folder that is there")
    try:
        with atomic(path) as file:
            yield file
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror})") from None
