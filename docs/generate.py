"""Writes the parts of the docs that are made from the code: `python docs/generate.py`; `--check` fails where they are out of step.

In README.md, the table of stages between its markers; in docs/provenance.md, what an audit cannot prove. All of docs/settings.md,
docs/filters.md, docs/records.md, docs/errors.md and docs/commands.md.
"""

import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import reference
from pydantic import BaseModel

from pipeline.audits.manifests import UNPROVEN
from pipeline.binding import Call, From, parameters
from pipeline.config import Task, TopLevel
from pipeline.sources import EvalSet
from pipeline.stages import NOT_IN_KEY, STAGES
from pipeline.teachers import Replay, Server, Vllm

BACKENDS: dict[type[BaseModel], str] = {Vllm: "vllm", Server: "server", Replay: "replay"}
ROOT = Path(__file__).parents[1]


def stage_table() -> str:
    lines = ["| stage | kind | reads -> writes | what it does |", "|---|---|---|---|"]
    for stage in STAGES.values():
        takes = stage.takes.__name__ if stage.takes else {"ingest": "source rows"}.get(stage.name, "student, eval sets")
        gives = stage.gives.__name__
        flow = f"{takes} -> {gives}" if takes != gives else gives
        lines.append(f"| {stage.name} | {stage.kind} | {flow} | {stage.what} |")
    return "\n".join(lines) + "\n"


def unproven() -> str:
    return (
        "\n".join(["| what | why |", "|---|---|", *(f"| {name} | {reason} |" for name, reason in UNPROVEN.items())])
        + "\n"
    )


def between(page: str, name: str, made: str) -> str:
    """The page with ``made`` between the markers of this name."""
    text = (ROOT / page).read_text()
    begin = f"<!-- {name}: made by docs/generate.py -->\n"
    start, end = text.index(begin) + len(begin), text.index(f"<!-- /{name} -->")
    return text[:start] + made + text[end:]


def settings() -> str:
    parts = [
        "# Settings",
        "Made from the code by `docs/generate.py`. A stage's keyword-only parameters are its settings in `stages.yaml`; "
        "`stepdistill run --set stage.knob=value` sets one for one call.",
    ]
    for name, model in {"The top of stages.yaml": TopLevel, "task": Task, "eval_sets: each": EvalSet}.items():
        parts += [f"## {name}", model_table(model)]
    for stage in STAGES.values():
        parts += [f"## {stage.name}", f"{stage.what[0].upper()}{stage.what[1:]}.", table(stage.settings)]
        optional = f"It can be switched off: `{stage.name}: false`." if stage.on else "It runs only where it is named."
        parts += [optional] if stage.optional else []
    parts += ["## Quality filters", "Each has its own settings: [filters.md](filters.md)."]
    parts += [
        "## Teachers",
        "What `teacher` takes, by its `backend`; `price` is for the plan, the budget and the report.",
    ]
    for model, name in BACKENDS.items():
        parts += [f"### teacher: backend {name}", model_table(model)]
    left_out = "\n".join(f"- `{name}`: {reason}." for name, reason in NOT_IN_KEY.items())
    parts += ["## Settings that do not make a stage run anew", left_out]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(function: object) -> str:
    rows = []
    for name, (annotation, default) in parameters(function).items():  # type: ignore[arg-type]
        marks = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
        if any(isinstance(mark, From) for mark in marks):
            continue
        shown = "required" if default is inspect.Parameter.empty else f"`{default_of(default)}`".replace("|", "\\|")
        rows.append(f"| `{name}` | {type_name(annotation)} | {shown} |")
    return "\n".join(["| setting | type | default |", "|---|---|---|", *rows]) if rows else "It takes no settings."


def model_table(model: type[BaseModel]) -> str:
    rows = [
        f"| `{name}` | {type_name(info.annotation)} | "
        f"{'required' if info.is_required() else f'`{default_of(info.default)}`'} | {info.description or ''} |"
        for name, info in model.model_fields.items()
        if name != "backend"
    ]
    return "\n".join(["| setting | type | default | |", "|---|---|---|---|", *rows])


def default_of(value: object) -> str:
    """As it would stand in YAML."""
    if hasattr(value, "model_dump"):
        return (
            "{"
            + ", ".join(f"{name}: {default_of(item)}" for name, item in value.model_dump(by_alias=True).items())
            + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(default_of(item) for item in value) + "]"
    if isinstance(value, Call):
        return value.name
    return (
        {None: "null", True: "true", False: "false"}.get(value, str(value))
        if isinstance(value, bool | None)
        else str(value)
    )


def type_name(annotation: object) -> str:
    """The type as a reader of settings wants it: ``number from 0 to 1``, ``list of text``, ``one of: a, b``."""
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        bounds = [bound for mark in inner[1:] for bound in getattr(mark, "metadata", [])]
        words = {"Ge": "at least", "Gt": "above", "Le": "at most", "Lt": "below"}
        limits = [
            f"{words[kind]} {next(iter(vars_of(bound).values()))}"
            for bound in bounds
            if (kind := type(bound).__name__) in words
        ]
        return " ".join([type_name(inner[0]), " and ".join(limits)]).strip()
    if get_origin(annotation) is Literal:
        return "one of: " + ", ".join(str(value) for value in inner)
    if annotation is type(None):
        return "null"
    if get_origin(annotation) in (list, Sequence, tuple):
        return f"list of {type_name(inner[0])}"
    if get_origin(annotation) in (dict, Mapping):
        return f"{type_name(inner[1])} by name" if get_origin(inner[1]) is Annotated else "settings by name"
    if inner:
        return " or ".join(type_name(option) for option in inner)
    plain = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", Call: "filter"}
    if annotation in plain:
        return plain[annotation]  # type: ignore[index]
    if annotation in BACKENDS:
        return f"[{BACKENDS[annotation]}](#teacher-backend-{BACKENDS[annotation]})"
    if hasattr(annotation, "model_fields"):
        fields = [
            f"{info.alias or name}{'' if info.is_required() else '?'}" for name, info in annotation.model_fields.items()
        ]
        return f"{{{', '.join(fields)}}}"
    return getattr(annotation, "__name__", str(annotation))


def vars_of(bound: object) -> dict[str, object]:
    return {name: getattr(bound, name) for name in ("ge", "gt", "le", "lt") if hasattr(bound, name)}


def main() -> int:
    made = {
        ROOT / "README.md": between("README.md", "stages", stage_table()),
        ROOT / "docs/provenance.md": between("docs/provenance.md", "unproven", unproven()),
        ROOT / "docs/settings.md": settings(),
        ROOT / "docs/filters.md": reference.filter_page(table),
        ROOT / "docs/records.md": reference.record_page(),
        ROOT / "docs/errors.md": reference.error_page(),
        ROOT / "docs/commands.md": reference.command_page(),
    }
    stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)}: out of step with the code; run python docs/generate.py")
        return 1 if stale else 0
    for path in stale:
        path.write_text(made[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
