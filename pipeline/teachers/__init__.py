"""The teachers: one file a backend, picked by ``teacher: {backend: ..}``.

A backend file has its settings (a pydantic model with ``backend: Literal["<name>"]``), ``name``, ``identity`` (what of the teacher
counts for a request's key; no heavy import), ``counter`` (what counts a prompt's tokens, exactly or not at all) and ``connect`` (a
context that gives a function from requests to answers), ``terms`` (of its outputs, as far as the settings tell) and ``facts`` (what else a
manifest says of it). Adding one is such a file, its name in the three lines below, and a test.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, JsonValue

from pipeline.files import private
from pipeline.teachers import replay, server, vllm
from pipeline.teachers.contract import Answer, Failure, Price, Request, Sampling, Teacher
from pipeline.teachers.replay import Replay
from pipeline.teachers.server import Server
from pipeline.teachers.vllm import Vllm
from pipeline.terms import OutputTerms, recorded

__all__ = [
    "Answer",
    "Failure",
    "Price",
    "Replay",
    "Request",
    "Sampling",
    "Server",
    "Teacher",
    "TeacherSettings",
    "Teachers",
    "Vllm",
]

TeacherSettings = Annotated[Vllm | Server | Replay, Field(discriminator="backend")]
Teachers = Annotated[
    list[TeacherSettings],
    Field(min_length=1),
    BeforeValidator(lambda given: [given] if isinstance(given, dict) else given),
]
"""One teacher, or a list of them, each asked about its share of the rows."""
BACKENDS: Final[dict[str, ModuleType]] = {"vllm": vllm, "server": server, "replay": replay}


def name(settings: TeacherSettings) -> str:
    """What responses and reports call this teacher."""
    found: str = BACKENDS[settings.backend].name(settings)
    return found


def name_of(recorded: Mapping[str, Any]) -> str:
    """The same, from the settings as a manifest holds them."""
    return str(recorded.get("name") or recorded.get("model") or "recorded")


def identity(settings: TeacherSettings) -> dict[str, JsonValue]:
    """All of the teacher that can change its answers, as it resolves now. Nothing is loaded, but weight files may be hashed.

    It is what manifests hold, so that requests' keys can be worked out from them: home folders and secrets are taken out.
    Raises InputError where it cannot be resolved.
    """
    found: dict[str, JsonValue] = private(BACKENDS[settings.backend].identity(settings))
    return found


def terms(settings: TeacherSettings) -> OutputTerms:
    """Those of the teacher's outputs: as its settings state them, or else as the table knows them. Nothing is loaded or looked up."""
    found: OutputTerms = settings.output_terms or BACKENDS[settings.backend].terms(settings)
    return found


def facts(settings: TeacherSettings, identity: Mapping[str, Any]) -> dict[str, JsonValue]:
    """What a manifest says of the teacher beside its identity, which is given so that nothing is hashed twice: files, engine, terms.

    They describe the teacher as it is set, also where all of its answers came out of the store. Raises InputError.
    """
    found: dict[str, JsonValue] = BACKENDS[settings.backend].facts(settings, identity)
    return {**found, "terms": recorded(terms(settings))}


def counter(settings: TeacherSettings) -> Callable[[Request], int] | None:
    """What counts the tokens of a request's prompt as the teacher will, without the teacher; None where that cannot be known.

    Raises InputError where the tokenizer is not there.
    """
    found: Callable[[Request], int] | None = BACKENDS[settings.backend].counter(settings)
    return found


def connect(settings: TeacherSettings, sampling: Sampling) -> AbstractContextManager[Teacher]:
    """The teacher, started for the time of the block; ``sampling`` is an example of what the requests will ask for.

    Raises InputError where a setting cannot be used, before anything is loaded.
    """
    found: AbstractContextManager[Any] = BACKENDS[settings.backend].connect(settings, sampling)
    return found
