"""A function's signature is the schema of its settings.

The keyword-only parameters of a stage, a filter or a backend are what can be set in ``stages.yaml``. ``bind`` checks given values
against them before anything runs, fills what the configuration provides elsewhere (``From``), and returns the keyword arguments.

Limits: a value is checked by pydantic in strict mode, but for whole numbers where a float is wanted and strings where a path is.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from pipeline.files import InputError, plain, private


@dataclass(frozen=True)
class From:
    """Marks a parameter that is filled from elsewhere in the configuration: ``From("task.labels")``, ``From("stages.sample.teacher")``."""

    path: str


@dataclass(frozen=True)
class Calls:
    """Marks a parameter that is an ordered list of calls of the named functions: ``[{min_words: 4}, label_in_set]``."""

    functions: Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Call:
    """One entry of such a list, its settings checked and filled in."""

    name: str
    settings: dict[str, Any]


def _as_path(value: object) -> object:
    return Path(value) if isinstance(value, str) else value


InputPath = Annotated[Path, BeforeValidator(_as_path)]
"""A file or folder that is read: relative paths start at the folder of stages.yaml, and its content goes into the stage's key."""


@dataclass(frozen=True)
class Problem(Exception):
    """A setting that cannot be used: where (``("dedup", "nera")``) and what."""

    where: tuple[str | int, ...]
    message: str

    def __str__(self) -> str:
        """``dedup.nera: unknown setting``."""
        return f"{'.'.join(map(str, self.where))}: {self.message}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'near'?`` or, where nothing is close, the list of what there is."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if known else "; it takes no settings"


@cache
def parameters(function: Callable[..., Any]) -> Mapping[str, tuple[Any, Any]]:
    """Keyword-only parameters: name -> (annotation, default or ``inspect.Parameter.empty``)."""
    hints = get_type_hints(function, include_extras=True)
    return {
        name: (hints[name], parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def bind(
    function: Callable[..., Any],
    settings: object,
    *,
    lookup: Callable[[str], Any],
    folder: Path,
    where: tuple[str | int, ...] = (),
) -> dict[str, Any]:
    """Keyword arguments for ``function``: ``settings`` checked, defaults filled in, ``From`` parameters looked up.

    ``lookup`` gives the value at a dotted path of the configuration; ``folder`` is where relative input paths start.
    Raises Problem at the first setting that cannot be used.
    """
    if settings is None:
        settings = {}
    if not isinstance(settings, dict):
        raise Problem(where, f"expected settings ('name: value'), found {_shown(settings)}")
    known = parameters(function)
    free = {name for name, (annotation, _) in known.items() if _marker(annotation, From) is None}
    for name in settings:
        if name not in free:
            raise Problem((*where, name), f"unknown setting{suggestion(str(name), free)}")
    bound: dict[str, Any] = {}
    for name, (annotation, default) in known.items():
        source = _marker(annotation, From)
        calls = _marker(annotation, Calls)
        if source is not None:
            bound[name] = lookup(source.path)
        elif calls is not None:
            given = settings.get(name, default if default is not inspect.Parameter.empty else [])
            bound[name] = bind_calls(given, calls.functions, lookup=lookup, folder=folder, where=(*where, name))
        elif name in settings:
            bound[name] = check(annotation, settings[name], folder=folder, where=(*where, name))
        elif default is inspect.Parameter.empty:
            raise Problem(where, f"'{name}' is missing; it has no default")
        else:
            bound[name] = default
    return bound


def bind_calls(
    given: object,
    functions: Mapping[str, Callable[..., Any]],
    *,
    lookup: Callable[[str], Any],
    folder: Path,
    where: tuple[str | int, ...],
) -> list[Call]:
    """A list such as ``[{min_words: 4}, {rationale_words: {minimum: 3}}, label_in_set]`` as checked calls, in order.

    A bare value is the function's first setting. Raises Problem.
    """
    if not isinstance(given, list | tuple):
        raise Problem(where, f"expected a list, found {_shown(given)}")
    calls = []
    for index, entry in enumerate(given):
        here = (*where, index)
        value: Any
        if isinstance(entry, Call):
            name, value = entry.name, entry.settings
        elif isinstance(entry, dict) and len(entry) == 1:
            name, value = next(iter(entry.items()))
        elif isinstance(entry, str):
            name, value = entry, {}
        else:
            raise Problem(here, f"expected a name or 'name: settings', found {_shown(entry)}")
        if name not in functions:
            raise Problem((*here, str(name)), f"unknown name{suggestion(str(name), functions)}")
        function = functions[name]
        if value is not None and not isinstance(value, dict):
            free = [key for key, (annotation, _) in parameters(function).items() if _marker(annotation, From) is None]
            if not free:
                raise Problem((*here, name), "takes no settings")
            value = {free[0]: value}
        calls.append(Call(name, bind(function, value, lookup=lookup, folder=folder, where=(*here, name))))
    return calls


_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_content(value: object) -> bool:
    """Whether this is what a manifest holds in place of a path: ``{"sha256": ..}``, of a folder the SHA-256 of each file by its name.

    Or ``{"prompt": ..}``, the digest of a prompt template with all that it includes (32 hexadecimal digits).
    """
    if not isinstance(value, dict) or not value or not all(isinstance(item, str) for item in value.values()):
        return False
    return set(value) == {"prompt"} or all(_SHA256.fullmatch(item) for item in value.values())


def contents(value: object) -> Iterator[dict[str, str]]:
    """Each such value inside a setting."""
    if is_content(value):
        yield value  # type: ignore[misc]
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from contents(item)


def restored(
    function: Callable[..., Any], settings: Mapping[str, Any], place: Callable[[dict[str, str]], Path]
) -> dict[str, Any]:
    """The keyword arguments that ``bind`` gave, from the settings as a manifest holds them; those that it does not name are the defaults.

    ``place`` gives the file or folder with a content. Raises ValueError for what the function does not take, and for any path that did
    not come from there: what a manifest names itself is never opened.
    """
    known = parameters(function)
    if unknown := sorted({*settings} - {*known}):
        raise ValueError(f"unknown setting {plain(unknown[0], 60)}")
    found: dict[str, Any] = {}
    for name, (annotation, default) in known.items():
        calls = _marker(annotation, Calls)
        if name not in settings and default is inspect.Parameter.empty:
            raise ValueError(f"the setting {name} is missing")
        if name not in settings:
            found[name] = default
        elif calls is not None:
            found[name] = [
                Call(call, restored(calls.functions[call], given, place))
                for entry in settings[name]
                for call, given in entry.items()
            ]
        else:
            found[name] = settled(annotation, settings[name], name, place)
    return found


def settled(annotation: Any, value: object, name: str, place: Callable[[dict[str, str]], Path]) -> Any:
    """One of them. Raises ValueError."""
    given: set[Path] = set()

    def placed(value: object) -> object:
        if is_content(value):
            found = place(value)  # type: ignore[arg-type]
            given.add(found)
            return found
        if isinstance(value, dict):
            return {key: placed(item) for key, item in value.items()}
        return [placed(item) for item in value] if isinstance(value, list) else value

    try:
        checked = check(annotation, placed(value), folder=Path(), where=(name,))
    except Problem as problem:
        where = ".".join(map(str, problem.where))
        raise ValueError(f"{plain(where, 60)}: {plain(problem.message, 120)}") from None
    for path in _paths(checked):
        if path not in given:
            raise ValueError(f"{name}: {plain(str(path), 80)}: a path, where a manifest has the digest of a file")
    return checked


def _paths(value: Any) -> Iterator[Path]:
    """Every Path inside a setting: in lists, dicts and pydantic models."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _paths(item)
    elif hasattr(value, "model_copy"):
        for name in type(value).model_fields:
            yield from _paths(getattr(value, name))


def check(annotation: Any, value: object, *, folder: Path, where: tuple[str | int, ...]) -> Any:
    """``value`` as ``annotation`` says, with relative input paths made to start at ``folder``. Raises Problem."""
    try:
        checked = TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        # A name that nobody knows is often why another one is missing.
        first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
        inner = _place(first["loc"], value, missing=first["type"] == "missing")
        if first["type"] == "extra_forbidden":
            known = _fields(annotation, first["loc"][:-1])
            raise Problem((*where, *inner), "unknown setting" + suggestion(str(inner[-1]), known)) from None
        message = first["msg"].removeprefix("Value error, ")
        raise Problem((*where, *inner), f"{message[0].lower()}{message[1:]}, found {_shown(first['input'])}") from None
    return rooted(checked, folder)


def rooted(value: Any, folder: Path) -> Any:
    """``value`` with every relative Path inside it (in lists, dicts and pydantic models) made to start at ``folder``."""
    if isinstance(value, Path):
        return value if value.is_absolute() else folder / value
    if isinstance(value, list):
        return [rooted(item, folder) for item in value]
    if isinstance(value, dict):
        return {name: rooted(item, folder) for name, item in value.items()}
    if hasattr(value, "model_copy"):
        return value.model_copy(
            update={name: rooted(getattr(value, name), folder) for name in type(value).model_fields}
        )
    return value


def located(problem: Problem, prefix: str, source: str, places: Mapping[tuple[str | int, ...], int]) -> InputError:
    """The problem as the one line a user reads: ``stages.yaml:14: stages.dedup.nera: unknown setting; ...``."""
    where = problem.where
    line = next((places[where[:end]] for end in range(len(where), -1, -1) if where[:end] in places), None)
    name = prefix + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in where).removeprefix(
        "." if not prefix else ""
    )
    start = f"{source}:{line}: " if line else f"{source}: "
    return InputError(start + (f"{plain(name)}: " if name else "") + plain(problem.message))


def _marker(annotation: Any, kind: type[Any]) -> Any:
    found = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return next((mark for mark in found if isinstance(mark, kind)), None)


def _place(steps: tuple[str | int, ...], value: object, *, missing: bool) -> tuple[str | int, ...]:
    """Where in ``value`` pydantic's ``steps`` lead, without those that are none of its keys: the names of a union's branches.

    The last step of what is ``missing`` cannot be there.
    """
    found: list[str | int] = []
    for position, step in enumerate(steps):
        inside = dict(enumerate(value)) if isinstance(value, list) else value if isinstance(value, dict) else {}
        if step in inside:
            value = inside[step]
        elif not (missing and position == len(steps) - 1):
            continue
        found.append(step)
    return tuple(found)


def _fields(annotation: Any, steps: tuple[str | int, ...]) -> list[str]:
    """The names of the settings at pydantic's ``steps`` inside a (union of) pydantic models."""
    models = [part for part in _parts(annotation) if hasattr(part, "model_fields")]
    if not steps:
        return [info.alias or name for model in models for name, info in model.model_fields.items()]
    fields = [model.model_fields[steps[0]].annotation for model in models if steps[0] in model.model_fields]
    # Where it is no setting's name, it is a place in a list, or the value by which one of several models was told.
    told = [
        model for model in models if any(steps[0] in get_args(info.annotation) for info in model.model_fields.values())
    ]
    return [name for part in (fields or told or [annotation]) for name in _fields(part, steps[1:])]


def _parts(annotation: Any) -> list[Any]:
    return [annotation, *(part for inner in get_args(annotation) for part in _parts(inner))]


def _shown(value: object) -> str:
    return "nothing" if value is None else plain(repr(private(value)), 60)
