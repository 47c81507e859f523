"""The pages that list what the code has: filters, rows and manifests, errors, commands. Called by generate.py."""

import ast
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import typer
import typer.models
from pydantic import BaseModel

from pipeline import evaluate, metrics, records, responses, sweeps, usage
from pipeline.cli import app
from pipeline.filters import FILTERS
from pipeline.stages import STAGES

PACKAGE = Path(records.__file__).parent
MADE = "Made from the code by `docs/generate.py`."


def cell(text: str) -> str:
    """A text that stays text in a cell of a table."""
    return re.sub(r"([|\[\]*])", r"\\\1", text.replace("<", "&lt;")).replace("\n", " ")


def page(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def rows(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    names = list(header)
    return "\n".join(
        [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}", *(f"| {' | '.join(line)} |" for line in lines)]
    )


# rows, manifests and figures

ROW_FILES = {
    records.Prompt: "ingest",
    records.Response: "sample",
    records.Example: "parse, dedup, decontaminate, judge, quality, balance",
    records.TrainingRow: "shard",
    records.Trained: "train",
    records.Prediction: "evaluate",
    records.Drop: "every stage, `dropped.jsonl`",
}


def named(annotation: Any, own: set[type]) -> str:
    """A type as the pages write it; a record links to its own table."""
    inner = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return named(inner[0], own)
    if origin is Literal:
        return "one of: " + ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(named(option, own) for option in inner)
    if origin in (list, tuple) and len({*inner} - {...}) == 1:
        return f"list of {named(inner[0], own)}"
    if origin is tuple:
        return "list of " + " and ".join(named(option, own) for option in inner)
    if origin is dict or annotation is dict:
        return f"{named(inner[1], own)} by name" if inner else "object"
    if annotation in own:
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    plain = {str: "text", int: "whole number", float: "number", bool: "true or false", NoneType: "null", Any: "any"}
    return plain.get(annotation, getattr(annotation, "__name__", "any JSON"))


def described(record: type) -> Iterator[tuple[str, Any, str]]:
    """Each field's name, type and description."""
    if issubclass(record, BaseModel):
        for name, info in record.model_fields.items():
            yield info.alias or name, info.annotation, info.description or ""
        return
    for name, annotation in get_type_hints(record, include_extras=True).items():
        marks = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
        said = [mark.description for mark in marks if isinstance(mark, msgspec.Meta) and mark.description]
        yield name, annotation, said[0] if said else ""


def own_records(module: ModuleType) -> list[type]:
    """The records and rows that a module defines for others, in its order."""
    found = [one for one in vars(module).values() if inspect.isclass(one) and one.__module__ == module.__name__]
    kinds = (records.Row, records.Record)
    return [one for one in found if issubclass(one, kinds) and one not in kinds and not one.__name__.startswith("_")]


def record_table(record: type, own: set[type], level: str = "###") -> str:
    said = (inspect.getdoc(record) or "").replace("\n\n", "<br>").replace("\n", " ")
    lines = [(f"`{name}`", named(kind, own), cell(text)) for name, kind, text in described(record)]
    return page(f"{level} {record.__name__}", said, rows(("field", "type", ""), lines)).rstrip("\n")


def record_page() -> str:
    kinds = own_records(records)
    figures = own_records(evaluate)
    figures += [one for one in own_records(metrics) if one.__name__ not in {other.__name__ for other in figures}]
    others = [*own_records(responses), *own_records(usage), *own_records(sweeps)]
    own = {*kinds, *figures, *others}
    manifests = [one for one in kinds if issubclass(one, records.Record)]
    shown = [one for one in kinds if issubclass(one, records.Row)]
    parts = [
        "# Rows, manifests and figures",
        f"{MADE} What each JSON object on disk holds, field by field; where the files lie: [files.md](files.md). Unknown "
        "fields are refused wherever one of these is read.",
        "## Rows",
        "One object a line, in the order of these fields.",
        rows(
            ("row", "written by"),
            ((f"[{row.__name__}](#{row.__name__.lower()})", stages) for row, stages in ROW_FILES.items()),
        ),
        *(record_table(one, own) for one in shown),
        "## Manifests",
        "`manifest.json`, beside the rows of each result.",
        *(record_table(one, own) for one in reversed(manifests)),
        "## Figures of evaluate",
        "`metrics.json`, `rationales.jsonl` and `run-speed.json`.",
        *(record_table(one, own) for one in figures),
    ]
    if others:
        parts += ["## The response store, what asking took, and sweeps", *(record_table(one, own) for one in others)]
    return page(*parts)


# filters


def filter_page(settings_table: Any) -> str:
    on = {call.name for call in default_filters()}
    parts = [
        "# Filters",
        f"{MADE} `quality: {{filters: [..]}}` is a list in the order wanted: the first filter that objects is the reason of the "
        "drop. Each is written as its bare name, as `{name: value}` for its first setting, or as `{name: {setting: value}}`. "
        "What they find, and wrongly object to: [benchmarks.md](benchmarks.md#filters). How to try one: [curation.md](curation.md).",
        rows(
            ("filter", "by default", "drops a row where"),
            (
                (f"[{name}](#{name})", "on" if name in on else "", cell(summary(function)))
                for name, function in FILTERS.items()
            ),
        ),
    ]
    for name, function in FILTERS.items():
        told = (inspect.getdoc(function) or "").split("\n\n", 1)
        module = function.__module__.rpartition(".")[2]
        parts += [f"## {name}", told[0].replace("\n", " "), told[1] if len(told) > 1 else "", settings_table(function)]
        parts.append(f"`{signature(name, function)}`, in `pipeline/filters/{module}.py`.")
    return page(*parts)


def default_filters() -> list[Any]:
    return list(inspect.signature(STAGES["quality"].settings).parameters["filters"].default)


def summary(function: Any) -> str:
    return (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")


def signature(name: str, function: Any) -> str:
    """``min_words(minimum=4)``; long defaults are cut."""
    settings = []
    for setting, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            default = parameter.default
            value = "" if default is inspect.Parameter.empty else f"={default!r}"
            settings.append(setting + (value if len(value) < 40 else "=.."))
    return f"{name}({', '.join(settings)})"


# errors

CODES = {"InputError": 2, "RowError": 2, "Problem": 2, "BadParameter": 2, "RunError": 1}


@dataclass(frozen=True)
class Message:
    """One place that raises: its module and function, and what is said there with ``{..}`` for what depends on the case."""

    module: str
    function: str
    kind: str
    text: str


def template(node: ast.expr | None, known: dict[str, ast.expr]) -> str:
    """The text of an expression, with ``{name}`` or ``{..}`` in place of values."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part, known) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return template(node.value, {}) if isinstance(node.value, ast.Constant) else "{" + value_name(node.value) + "}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left, known) + template(node.right, known)
    if isinstance(node, ast.Name) and node.id in known:
        return template(known[node.id], {})
    return "{" + (value_name(node) if node is not None else "..") + "}"


def value_name(node: ast.expr) -> str:
    """A value's name, where it has a short one."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("plain", "str", "len", "private")
    ):
        return value_name(node.args[0]) if node.args else ".."
    return ".."


def messages() -> list[Message]:
    """Every message of an error that the command line prints as a line, in the order of modules and of the code."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if "example" in path.relative_to(PACKAGE).parts:
            continue
        module = str(path.relative_to(PACKAGE))
        for function, node in raised(ast.parse(path.read_text())):
            call = node.exc
            if not isinstance(call, ast.Call):
                continue
            kind = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
            if kind not in CODES or not call.args:
                continue
            known = assigned(function) if function is not None else {}
            text = template(call.args[-1] if kind in ("RowError", "Problem") else call.args[0], known)
            if re.sub(r"\{[^}]*\}", "", text).strip(
                " :;,."
            ):  # a message that only passes another one on says nothing here
                found.append(Message(module, "" if function is None else function.name, kind, text))
    return list(dict.fromkeys(found))


Function = ast.FunctionDef | ast.AsyncFunctionDef


def raised(tree: ast.AST, inside: Function | None = None) -> Iterator[tuple[Function | None, ast.Raise]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Raise):
            yield inside, node
        yield from raised(node, node if isinstance(node, Function) else inside)


def assigned(function: Function) -> dict[str, ast.expr]:
    """Names that a function gives one text."""
    found: dict[str, ast.expr] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if isinstance(node.value, ast.JoinedStr | ast.Constant | ast.BinOp):
                found[name] = node.value
    return found


def error_page() -> str:
    told = messages()
    modules = list(dict.fromkeys(message.module for message in told))
    parts = [
        "# Errors",
        f"{MADE} The lines that a command can end with, by the module that says them: {len(told):,}. What depends on the case stands "
        "in braces. A message names the place, then the problem, then what to do; that last part has a column of its own here.",
        "Exit code 2 (wrong usage, settings or input): what was given has to be changed; results that were finished before stay. "
        "Exit code 1: the settings are right, and the work could not be finished; run again to go on from there. Any other error of "
        "the system (a full disk, missing rights) names the file, with code 1; Ctrl-C ends with 130. A traceback is a fault of this "
        "program.",
    ]
    for module in modules:
        lines = []
        for one in sorted(
            {message for message in told if message.module == module}, key=lambda one: (one.text, one.function)
        ):
            said, _, todo = one.text.rpartition("; ") if "; " in one.text else (one.text, "", "")
            lines.append((cell(said), cell(todo), f"`{one.function}`" if one.function else "", str(CODES[one.kind])))
        parts += [f"## `{module}`", rows(("what it says", "what to do", "said by", "code"), lines)]
    return page(*parts)


# commands


def command_page() -> str:
    commands = list(walk(app, "stepdistill"))
    parts = [
        "# Commands",
        f"{MADE} `stepdistill COMMAND --help` says the same. Exit codes: 0 done, 1 failed or the audit found something, 2 wrong usage or "
        "settings, 130 on Ctrl-C.",
        str(app.info.help),
        rows(
            ("command", "what it does"),
            ((f"[`{name}`](#{name.replace(' ', '-')})", cell(inspect.getdoc(call) or "")) for name, call in commands),
        ),
    ]
    for name, call in commands:
        arguments, lines = [], []
        for word, said, is_argument in options(call):
            arguments += [word] if is_argument else []
            lines.append((cell(f"`{word}`" if is_argument else word), cell(said)))
        parts += [f"## {name}", inspect.getdoc(call) or "", f"    {' '.join([name, *arguments])} [OPTIONS]"]
        parts += [rows(("", ""), lines)] if lines else []
    return page(*parts)


def walk(group: typer.Typer, prefix: str) -> Iterator[tuple[str, Any]]:
    """Each command's whole name and function, those of groups last."""
    for one in group.registered_commands:
        assert one.callback is not None
        yield f"{prefix} {one.name or one.callback.__name__.replace('_', '-')}", one.callback
    for other in group.registered_groups:
        assert other.typer_instance is not None
        yield from walk(other.typer_instance, f"{prefix} {other.name or other.typer_instance.info.name}")


def options(call: Any) -> Iterator[tuple[str, str, bool]]:
    """Each parameter of a command: how it is written, what it is, and whether it is an argument."""
    kinds = get_type_hints(call, include_extras=True)
    for name, parameter in inspect.signature(call).parameters.items():
        kind, marks = kinds[name], ()
        if get_origin(kind) is Annotated:
            kind, *marks = get_args(kind)
        info = next((mark for mark in marks if isinstance(mark, typer.models.ParameterInfo)), None)
        options = (
            [one for one in get_args(kind) if one is not NoneType] if get_origin(kind) in (Union, UnionType) else [kind]
        )
        several = get_origin(options[0]) is list
        inner = get_args(options[0])[0] if several else options[0]
        said = (info.help if info is not None else None) or ""
        default = parameter.default
        if default not in (None, inspect.Parameter.empty, False, True) and not several:
            said += f"{'; ' if said else ''}by default {default}"
        is_argument = isinstance(info, typer.models.ArgumentInfo) or (
            info is None and default is inspect.Parameter.empty
        )
        metavar = (info.metavar if info is not None else None) or {Path: "PATH", int: "N", float: "X"}.get(
            inner, "TEXT"
        )
        if is_argument:
            yield (info.metavar if info is not None else None) or name.upper(), said, True
            continue
        # in Annotated, the first name of an option stands where a default would
        named_so = [info.default, *(info.param_decls or ())] if isinstance(info, typer.models.OptionInfo) else []
        written = [one for one in named_so if isinstance(one, str)] or [f"--{name.replace('_', '-')}"]
        word = ", ".join(f"`{one}`" for one in written) + ("" if inner is bool else f" {metavar}")
        if default is inspect.Parameter.empty:
            said += f"{'; ' if said else ''}required"
        yield word + (" (repeatable)" if several else ""), said, False
