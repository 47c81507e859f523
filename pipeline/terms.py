"""Terms: may what a teacher wrote be trained on, under which obligations, and who says so.

    output_terms: {license: Apache-2.0, training: allowed, source: "https://..", as_of: "2025-04-29"}
    output_terms: qwen3                       # the entry of this name in the table

What a teacher's settings say wins. Where they say nothing, ``terms.json`` beside this file knows the best-known model families: by the
owner's own repository on the Hub, by the address of a provider's interface, and the embedded teacher. All else is unknown: a folder, a name
under which a server serves something, and a recording can be anything. Training on what is forbidden or unknown takes a recorded reason.

Limits: this is no legal advice. The table gives the gist of each licence in a line; ``source`` is where it stands, ``as_of`` which version
is meant (or when the model came out), and ``known_from`` how it is known: a ``copy`` of the text, ``quotations`` of its decisive sentences,
or ``memory``, which has to be checked at the source. Terms change, and a contract with a provider can say something else. A judge's terms
are recorded and not enforced: what it wrote is not trained on.
"""

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError

from pipeline.binding import InputPath, suggestion
from pipeline.files import InputError, plain, sha256
from pipeline.records import Sha256

TABLE: Final = Path(__file__).with_name("terms.json")


class TextDigest(BaseModel):
    """A licence's text that is not at hand."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Sha256


class OutputTerms(BaseModel):
    """What may be done with a teacher's outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    training: Literal["allowed", "conditional", "forbidden", "unknown"] = Field(
        description="may a model be trained on the outputs: conditional where that has obligations"
    )
    license: str | None = Field(None, min_length=1, description="SPDX identifier, or name, of the licence or terms")
    text: TextDigest | InputPath | None = Field(
        None,
        description="a file with the licence's text, kept as its SHA-256; or {sha256: ..}, where it is not at hand",
    )
    obligations: list[str] = Field([], description="what has to be done, one text each: 'the name begins with Llama'")
    source: str | None = Field(None, description="where the terms stand")
    as_of: str | None = Field(
        None, pattern=r"^\d{4}(-\d{2}(-\d{2})?)?$", description="date of the version meant: '2024-07-23'"
    )
    known_from: Literal["copy", "quotations", "memory"] | None = Field(
        None, description="how the table knows: a copy of the text, quotations of it, or memory; check it at the source"
    )


UNKNOWN: Final = OutputTerms.model_validate({"training": "unknown"})


class Family(BaseModel):
    """One entry of the table. ``hub`` are patterns of repositories, always with their owner; ``hosts`` those of a provider's interface."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    hub: list[str]
    hosts: list[str] = []
    embedded: bool = False
    terms: OutputTerms


@lru_cache
def table() -> tuple[Family, ...]:
    """The entries, in the order in which they are tried."""
    return tuple(Family.model_validate(entry) for entry in json.loads(TABLE.read_bytes()))


def named(value: object) -> object:
    """The terms of the table's entry of this name; anything else as it is. Raises ValueError for a name that is none."""
    if not isinstance(value, str):
        return value
    found = {family.name: family.terms for family in table()}
    if value not in found:
        raise ValueError(f"no entry of this name in the table of terms{suggestion(value, found)}")
    return found[value]


Stated = Annotated[OutputTerms | None, BeforeValidator(named)]
"""Terms as settings state them: written out, or the name of an entry of the table."""


def of_embedded() -> OutputTerms:
    """Those of the embedded teacher."""
    return next((family.terms for family in table() if family.embedded), UNKNOWN)


def of_repository(name: str) -> OutputTerms:
    """Those of ``owner/name`` on the Hub, where the table knows the owner's family."""
    known = (family for family in table() if any(fnmatchcase(name.lower(), one.lower()) for one in family.hub))
    return next((family.terms for family in known), UNKNOWN)


def of_address(url: str) -> OutputTerms:
    """Those of a provider, by the host of its interface."""
    host = urlsplit(url).hostname
    return next((family.terms for family in table() if host in family.hosts), UNKNOWN)


def recorded(terms: OutputTerms) -> dict[str, JsonValue]:
    """The terms as manifests hold them: a file with the licence's text by its SHA-256. Raises InputError where it cannot be read."""
    found: dict[str, JsonValue] = terms.model_dump(mode="json")
    if isinstance(terms.text, Path):
        try:
            found["text"] = {"sha256": sha256(terms.text)}
        except OSError as error:
            raise InputError(f"{terms.text}: cannot be read ({error.strerror}); check output_terms.text") from None
    return found


def of_manifest(settings: Mapping[str, Any]) -> dict[str, OutputTerms]:
    """The terms by teacher in the settings of a manifest of shard or train; what cannot be read there is unknown."""
    found = settings.get("output_terms")
    if not isinstance(found, dict) or not found:
        return {"unnamed": UNKNOWN}
    return {name: _read(terms) for name, terms in found.items()}


def _read(terms: object) -> OutputTerms:
    try:
        return OutputTerms.model_validate(terms)
    except ValidationError:
        return UNKNOWN


def refused(terms: Mapping[str, OutputTerms]) -> str | None:
    """Which teachers' outputs must not be trained on without a reason, in one line; None where there are none."""
    return "; ".join(_refused(terms)) or None


def _refused(terms: Mapping[str, OutputTerms]) -> Iterator[str]:
    for name, one in terms.items():
        if one.training == "unknown":
            yield f"it is not known whether the outputs of the teacher '{plain(name, 80)}' may be trained on"
        elif one.training == "forbidden":
            told = ", ".join((one.license or "its terms", *one.obligations))
            yield f"the outputs of the teacher '{plain(name, 80)}' may not be trained on ({plain(told)})"


def permit(terms: Mapping[str, OutputTerms], reason: str | None, where: str) -> None:
    """Raises InputError where training on these teachers' outputs takes a reason and none is given; ``where`` begins its message."""
    if reason is None and (problem := refused(terms)):
        raise InputError(
            f"{where}: {problem}; state the teacher's output_terms, or give the reason why it may be done all the same: "
            "--accept-terms REASON"
        )


def conditions(terms: Mapping[str, OutputTerms]) -> list[str]:
    """One line for each teacher whose outputs have obligations: ``teacher 'x' (Llama 3.1 Community License): ..; ..``."""
    return [
        f"teacher '{plain(name, 80)}' ({plain(one.license or 'its terms', 80)}): {plain('; '.join(one.obligations), 600)}"
        for name, one in terms.items()
        if one.obligations
    ]
