"""revocations: what may no longer be used, in the file ``revoked.jsonl`` of a run folder, and what each stage is told of it.

    {"kind":"row","id":"5f0c..","source":"train.jsonl:17","reason":"the author withdrew it"}
    {"kind":"file","id":"scraped.jsonl","source":null,"reason":"no licence"}
    {"kind":"response","id":"c4..","family":"7d..","source":"5f0c..#0","reason":"copied from a test"}
    {"kind":"judgement","id":"9a..","family":"b1..","source":null,"reason":".."}

ingest drops the rows, and all rows of the files; sample drops the responses, and judge goes without the judgements: none of them is asked
for again, also not with another ``max_tokens``, which is what a family is. Only what matters to a stage goes into its key, so that a run
without the file has the keys that it always had.

Limits: rows are known by their ids. A row that gets another id, because it or ``task.id`` changed, is another row. Where a line has no
family, because the store had lost the answer when it was revoked, a request with another ``max_tokens`` is another request.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError, model_validator

from pipeline.files import InputError, atomic, canonical_json, plain, regular, strict_json
from pipeline.records import Manifest, Record
from pipeline.responses import request_key

FILE: Final = "revoked.jsonl"
REASON: Final = "revoked"  # of the drops
HANDLED_BY: Final = {"row": "ingest", "file": "ingest", "response": "sample", "judgement": "judge"}
LINE_BYTES: Final = 10_000

Revoked = dict[str, dict[str, str]]
"""What one stage must not use: kind -> id -> reason."""


class Revocation(Record):
    """One line of the file."""

    kind: Literal["row", "file", "response", "judgement"]
    id: str = Field(min_length=1, description="of the input row, the source file's name, or the request's key")
    family: str | None = Field(default=None, pattern="^[0-9a-f]{32}$", description="of the request, where it is known")
    source: str | None = Field(
        default=None, description="where ingest read the row; the response's id, where it was named by that"
    )
    reason: str

    @model_validator(mode="after")
    def _names_a_request(self) -> "Revocation":
        if self.kind in ("response", "judgement"):
            if not (len(self.id) == 32 and set(self.id) <= set("0123456789abcdef")):
                raise ValueError("the id of a response or judgement is its request's key, 32 hexadecimal digits")
        elif self.family is not None:
            raise ValueError("only a response or judgement has a family")
        return self


def read(run: Path) -> list[Revocation]:
    """What the run's file says, in its order; nothing where there is none. Raises InputError with the line that cannot be used."""
    path = run / FILE
    found: dict[tuple[str, str], Revocation] = {}
    try:
        with regular(path).open("rb") as lines:
            number = 0
            while raw := lines.readline(LINE_BYTES):
                number += 1
                one = _read(raw, f"{path}:{number}")
                if (one.kind, one.id) in found:
                    raise InputError(f"{path}:{number}: {one.kind} {plain(one.id, 80)} is revoked above; remove a line")
                found[one.kind, one.id] = one
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); restore or remove the file") from None
    return list(found.values())


def _read(raw: bytes, place: str) -> Revocation:
    try:
        if not raw.endswith(b"\n"):
            raise ValueError("too long, or without a newline at its end")
        strict_json(raw)
        return Revocation.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    except ValueError as error:
        problem = str(error)
    raise InputError(f"{place}: {plain(problem)}; correct the line, or remove it and revoke again")


def write(run: Path, revocations: Iterable[Revocation]) -> None:
    """Put these in place of what the file says; without any there is no file. Who calls this holds the run's lock."""
    lines = [canonical_json(_plain(one)) + b"\n" for one in revocations]
    if not lines:
        (run / FILE).unlink(missing_ok=True)
        return
    with atomic(run / FILE) as file:
        file.write(b"".join(lines))


def _plain(one: Revocation) -> dict[str, str | None]:
    """What a line holds: only one that has a family names it."""
    return one.model_dump(mode="json", exclude={"family"} if one.family is None else None)


def by_stage(revocations: Iterable[Revocation]) -> dict[str, Revoked]:
    """What each stage that handles some of these must not use; requests are there by their keys and by their families."""
    found: dict[str, Revoked] = {}
    for one in revocations:
        ids = found.setdefault(HANDLED_BY[one.kind], {}).setdefault(one.kind, {})
        for name in (one.family, one.id):
            if name is not None:
                ids[name] = one.reason
    return found


def why_not(revoked: Mapping[str, str], *, key: str, family: str) -> str | None:
    """Why a request must not be asked, nor its answer be used; None where it may. ``revoked`` are keys and families, with reasons."""
    return revoked.get(key, revoked.get(family))


def by_kind(revocations: Iterable[Revocation], manifests: Iterable[Manifest]) -> dict[str, set[str]]:
    """What is revoked, by kind; requests also under the keys that they have in results with another ``max_tokens``."""
    lengths = {one.settings.get("max_tokens") for one in manifests if one.stage in ("sample", "judge")}
    found: dict[str, set[str]] = {}
    for one in revocations:
        ids = found.setdefault(one.kind, set())
        ids.add(one.id)
        if one.family is not None:
            ids |= {request_key(one.family, length) for length in lengths if type(length) is int}
    return found
