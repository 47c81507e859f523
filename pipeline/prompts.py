r"""Prompt templates: load ``prompts/*.jinja``, check them, and render a row into the messages that a teacher is sent.

A template has the blocks ``system`` (optional), ``user`` and ``assistant_prefix`` (optional: how the teacher's answer is to begin)::

    {% block system %}You label texts.{% endblock %}
    {% block user %}{% include "shots.jinja" %}Text: {{ text }}{% endblock %}

and the row ``{"text": "Late goal"}`` becomes::

    {"messages": [{"role": "system", "content": "You label texts."}, {"role": "user", "content": "..Text: Late goal"}],
     "assistant_prefix": ""}

Few-shot examples stand inside ``user``, or as turns of their own in pairs of blocks ``user_1`` and ``assistant_1``, ``user_2`` ..; those
are sent between ``system`` and ``user``. Variables are the row's columns, and ``labels`` and ``choices`` where the task has them (these
win over columns of that name). What is rendered is never rendered again, so ``{{ .. }}`` in a row stays text. Templates run in Jinja's
sandbox; they read files of their own folder alone, and have no source of randomness.

Limits: white space is sent as the blocks leave it (``{%-`` trims it). A block that is blank is not sent. Nothing here keeps a row from
imitating a model's special tokens: the ``vllm`` backend does (``special_tokens``), ``server`` where it knows the tokenizer.
"""

import difflib
import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import JsonValue

from pipeline import files
from pipeline.files import InputError, plain, regular, strict_json
from pipeline.limits import TooLongError, bounded
from pipeline.records import Record

BLOCKS: Final = ("system", "user", "assistant_prefix")
EXAMPLE: Final = re.compile(r"(user|assistant)_([1-9][0-9]{0,2})")
OUTSIDE: Final = (nodes.Assign, nodes.AssignBlock, nodes.Macro, nodes.Import, nodes.FromImport)
"""What may stand beside the blocks: definitions that the blocks use. Text there would never be sent, so it is refused."""
LONGEST: Final = 1 << 24  # characters, items or bits that one step of a template makes
FAILURES: Final = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
    MemoryError,
    SyntaxError,
    TooLongError,
)
"""What the expressions of a template can raise."""
SET_BY: Final = {
    "labels": "task.labels",
    "choices": "task.choices",
    "shots": "stages.sample.few_shot",
    "gold": "stages.sample.rationalise",
}
"""The variables that are no columns, each with the setting that it comes from."""


class Message(Record):
    """One turn of the conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Messages(Record):
    """A rendered prompt: what the teacher is sent, and the first words of its answer."""

    messages: list[Message]
    assistant_prefix: str


@dataclass(frozen=True)
class Template:
    """A checked template. ``sources`` holds the text of the file and of everything it includes, by name."""

    name: str
    sources: Mapping[str, str]
    shown: str = field(compare=False)  # how messages name it
    _compiled: jinja2.Template = field(repr=False, compare=False)


def load(path: Path) -> Template:
    """The template at ``path`` and what it includes.

    Raises InputError with file and line for one that cannot be read, is not valid, has no ``user`` block, or includes a file that
    does not exist or lies outside its folder.
    """
    loader = jinja2.FileSystemLoader(path.parent)
    environment = _environment()
    sources: dict[str, str] = {}
    wanted = [(path.name, str(path))]
    while wanted:
        name, where = wanted.pop()
        try:
            regular(path.parent / name)
            sources[name], file, _ = loader.get_source(environment, name)
        except (jinja2.TemplateNotFound, OSError):
            raise InputError(f"{where}: {plain(name)}: no such template in {path.parent}; check the name") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{path.parent / name}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
        if name != path.name and not Path(file).resolve().is_relative_to(path.parent.resolve()):
            raise InputError(f"{where}: {plain(name)}: lies outside {path.parent}; copy it there")
        for included, line in _included(environment, sources[name], str(path.parent / name)):
            if included not in sources:
                wanted.append((included, f"{path.parent / name}:{line}"))
    return _template(path.name, sources, str(path))


def snapshot(template: Template) -> dict[str, JsonValue]:
    """The template as JSON: its own name, and name -> text of all files it consists of. ``from_snapshot`` turns it back."""
    return {"name": template.name, "templates": dict(sorted(template.sources.items()))}


def from_snapshot(found: Mapping[str, Any], shown: str = "snapshot") -> Template:
    """The template that ``snapshot`` was taken of; it reads no file. Raises InputError where it is no snapshot."""
    name, sources = found.get("name"), found.get("templates")
    if not isinstance(name, str) or not isinstance(sources, dict) or name not in sources:
        raise InputError(f"{shown}: not a snapshot of a prompt template")
    return _template(name, {str(key): str(text) for key, text in sources.items()}, f"{shown}: {name}")


def read_snapshot(path: Path) -> Template:
    """``from_snapshot`` of a file. Raises InputError."""
    try:
        found = strict_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a snapshot of a prompt template ({plain(str(error))})") from None
    return from_snapshot(found if isinstance(found, dict) else {}, str(path))


def digest(path: Path) -> str:
    """Names the content of the template at ``path``, everything it includes counted in. Raises InputError as ``load`` does."""
    return files.digest(snapshot(load(path)))


def variables_of(template: Template) -> frozenset[str]:
    """The names of all variables that the template, or what it includes, takes from outside."""
    environment = _environment()
    return frozenset().union(
        *(meta.find_undeclared_variables(environment.parse(text)) for text in template.sources.values())
    )


def text_of(template: Template) -> str:
    """All of the template's own text: what stands there was written by the template's author, not by a row."""
    return "\n".join(template.sources.values())


def render(
    template: Template,
    columns: Mapping[str, JsonValue],
    *,
    labels: list[str] | None = None,
    choices: list[str] | None = None,
    extra: Mapping[str, JsonValue] | None = None,
    source: str = "the row",
) -> Messages:
    """The messages for one row. ``extra`` are further variables; ``source`` is where the row stands, for error messages.

    Raises InputError with the template's file and line where it uses a variable that the row does not have, prints a null, or fails.
    """
    variables = _variables(columns, labels, choices) | dict(extra or {})
    context = template._compiled.new_context(variables)
    found: dict[str, str] = {}

    def captured(name: str, block: Any) -> Any:
        def run(context: Any) -> Iterator[str]:
            found[name] = "".join(block(context))
            yield found[name]

        return run

    for name in context.blocks:
        if _sent(name):
            context.blocks[name] = [captured(name, context.blocks[name][0])]
    try:
        bounded(deque, template._compiled.root_render_func(context), 0)
    except FAILURES as error:
        raise InputError(_failure(error, template.shown, variables, source, settings=SET_BY)) from None
    examples = sum(name.startswith("assistant_") and name != "assistant_prefix" for name in found)
    turns = [Message(role="system", content=found["system"])] if found.get("system", "").strip() else []
    for number in range(1, examples + 1):
        turns.append(Message(role="user", content=found[f"user_{number}"]))
        turns.append(Message(role="assistant", content=found[f"assistant_{number}"]))
    turns.append(Message(role="user", content=found["user"]))
    return Messages(messages=turns, assistant_prefix=found.get("assistant_prefix", ""))


def render_text(template: str, columns: Mapping[str, JsonValue], source: str = "the row") -> str:
    """A template given as text, such as ``task.input``, with the row's columns filled in. ``source`` is where the row stands.

    Raises InputError where it is not valid, or uses a column that the row does not have.
    """
    try:
        compiled, name = _text(template)
        only = columns.get(name)
        return only if type(only) is str else bounded(compiled.render, _variables(columns, None, None))
    except FAILURES as error:
        shown = f"{source}: in {plain(template, 60)!r}"
        raise InputError(_failure(error, shown, columns, "the row", show_line="\n" in template)) from None


def check_text(template: str) -> None:
    """Raises InputError where a template given as text is not valid, whatever the columns of the rows."""
    try:
        _text(template)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"{plain(template, 60)!r}: {plain(error.message or '')}; not a valid Jinja template") from None
    except (SyntaxError, RecursionError, MemoryError):
        raise InputError(f"{plain(template, 60)!r}: nested too deeply") from None


def _variables(
    columns: Mapping[str, JsonValue], labels: list[str] | None, choices: list[str] | None
) -> dict[str, JsonValue]:
    variables = dict(columns)
    if labels is not None:
        variables["labels"] = list(labels)
    if choices is not None:
        variables["choices"] = list(choices)
    return variables


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which no single step makes a number, text or list without bounds."""

    intercepted_binops = frozenset(("*", "**", "%"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The result. Raises OverflowError where it would be too large."""
        if operator == "**" and all(isinstance(one, int) for one in (left, right)):
            if left.bit_length() * max(right, 0) > LONGEST:
                raise OverflowError("the result of '**' is too large")
        elif operator == "*" and all(isinstance(one, int) for one in (left, right)):
            if left.bit_length() + right.bit_length() > LONGEST:
                raise OverflowError("the result of '*' is too large")
        elif operator == "*":
            for one, times in ((left, right), (right, left)):
                if isinstance(one, str | list | tuple) and isinstance(times, int) and len(one) * times > LONGEST:
                    raise OverflowError("the result of '*' is too long")
        elif operator == "%" and isinstance(left, str) and re.search(r"\d{7}|\*", left):
            raise OverflowError("the width in a format is too large")
        return super().call_binop(context, operator, left, right)


def _environment(loader: jinja2.BaseLoader | None = None) -> ImmutableSandboxedEnvironment:
    environment = _Environment(
        undefined=jinja2.StrictUndefined,
        loader=loader,
        finalize=_printable,
        keep_trailing_newline=False,
        autoescape=False,
    )
    del environment.globals["lipsum"]  # the two that give something else each time
    del environment.filters["random"]
    return environment


def _printable(value: Any) -> Any:
    if value is None:
        raise jinja2.UndefinedError("a null would be printed as 'None'; write {{ column or '' }} if it may be missing")
    return value


@lru_cache(maxsize=64)
def _text(template: str) -> tuple[jinja2.Template, str]:
    """The template and, where it is no more than one column as most are, its name: a text there needs no rendering."""
    environment = _environment()
    match environment.parse(template).body:
        case [nodes.Output(nodes=[nodes.Name(name=name)])] if name != "self":
            return environment.from_string(template), name
    return environment.from_string(template), ""


def _template(name: str, sources: dict[str, str], shown: str) -> Template:
    paths = {key: shown if key == name else str(Path(shown).with_name(key)) for key in sources}

    def source_of(key: str) -> tuple[str, str, None] | None:
        return (sources[key], paths[key], None) if key in sources else None

    environment = _environment(jinja2.FunctionLoader(source_of))
    _check(_parse(environment, sources[name], shown), shown)
    try:
        for key in sources:
            environment.get_template(key)
        compiled = environment.get_template(name)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"{error.filename or shown}:{error.lineno}: {plain(error.message or '')}") from None
    except (SyntaxError, RecursionError, MemoryError):
        raise InputError(f"{shown}: nested too deeply") from None
    return Template(name, sources, shown, compiled)


def _parse(environment: jinja2.Environment, text: str, shown: str) -> nodes.Template:
    try:
        return environment.parse(text)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"{shown}:{error.lineno}: {plain(error.message or '')}; not a valid Jinja template") from None
    except RecursionError:
        raise InputError(f"{shown}: nested too deeply") from None


def _included(environment: jinja2.Environment, text: str, shown: str) -> Iterator[tuple[str, int]]:
    """Name and line of each file that a template includes or imports."""
    tree = _parse(environment, text, shown)
    for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport)):
        target = node.template  # type: ignore[attr-defined]
        names = target.items if isinstance(target, nodes.List | nodes.Tuple) else [target]
        for name in names:
            if not isinstance(name, nodes.Const) or not isinstance(name.value, str):
                raise InputError(f"{shown}:{node.lineno}: the name of an included file must be written out in quotes")
            yield name.value, node.lineno


def _check(tree: nodes.Template, shown: str) -> None:
    """Refuse what would never be sent, or not as it looks."""
    top = [node for node in tree.body if isinstance(node, nodes.Block)]
    for node in tree.body:
        if isinstance(node, nodes.Block):
            if not _sent(node.name):
                close = difflib.get_close_matches(node.name, BLOCKS, n=1)
                hint = (
                    f"did you mean '{close[0]}'?"
                    if close
                    else f"the blocks are {', '.join(BLOCKS)}, user_1, assistant_1, user_2 .."
                )
                raise InputError(f"{shown}:{node.lineno}: block '{plain(node.name)}' would never be sent; {hint}")
        elif isinstance(node, nodes.Output):
            for part in node.nodes:
                if not isinstance(part, nodes.TemplateData) or part.data.strip():
                    raise InputError(
                        f"{shown}:{part.lineno}: text outside the blocks would never be sent; move it into a block"
                    )
        elif isinstance(node, nodes.Extends):
            raise InputError(f"{shown}:{node.lineno}: 'extends' is not supported; use 'include' inside the blocks")
        elif not isinstance(node, OUTSIDE):
            raise InputError(
                f"{shown}:{node.lineno}: this stands outside the blocks and would never be sent; move it into a block"
            )
    for node in tree.find_all(nodes.Block):
        if _sent(node.name) and node not in top:
            raise InputError(f"{shown}:{node.lineno}: block '{node.name}' stands inside another block; move it out")
    names = {node.name for node in top}
    examples = sorted({int(found[2]) for name in names if (found := EXAMPLE.fullmatch(name))})
    for number in range(1, max(examples, default=0) + 1):
        for name in (f"user_{number}", f"assistant_{number}"):
            if name not in names:
                raise InputError(
                    f"{shown}: it has no block '{name}'; examples are pairs user_N and assistant_N, from 1 on without gaps"
                )
    if "user" not in names:
        raise InputError(f"{shown}: it has no block 'user'; write {{% block user %}} .. {{% endblock %}}")


def _sent(block: str) -> bool:
    return block in BLOCKS or EXAMPLE.fullmatch(block) is not None


def _failure(
    error: Exception,
    shown: str,
    columns: Collection[str],
    source: str,
    *,
    show_line: bool = True,
    settings: Mapping[str, str] | None = None,
) -> str:
    """The one line for an error that rendering raised: template and line, what is wrong."""
    place, line = shown, getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None:
        compiled = trace.tb_frame.f_globals.get("__jinja_template__")
        if isinstance(compiled, jinja2.Template):
            line = compiled.get_corresponding_lineno(trace.tb_lineno)
            place = compiled.filename if compiled.filename not in (None, "<template>") else shown
        trace = trace.tb_next
    start = f"{place}:{line}: " if line and show_line else f"{place}: "
    undefined = re.fullmatch(r"'(.+)' is undefined", str(error))
    if isinstance(error, jinja2.UndefinedError) and undefined:
        return start + _unknown(undefined[1], columns, source, settings or {})
    if isinstance(error, TooLongError):
        return f"{start}it {error} with {source}; make its loops shorter"
    if isinstance(error, MemoryError):
        return f"{start}it needs more memory than there is, with {source}; make its texts shorter"
    if isinstance(error, RecursionError):
        return f"{start}it includes itself, or recurses too deeply"
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"{start}{plain(error.message or '')}; not a valid Jinja template"
    return f"{start}{plain(str(error)) or type(error).__name__} (with {source})"


def _unknown(name: str, columns: Collection[str], source: str, settings: Mapping[str, str]) -> str:
    close = difflib.get_close_matches(name, list(columns), n=1)
    hint = f"; did you mean '{plain(close[0])}'?" if close else ""
    if name in settings:
        hint = f"; set {settings[name]}"
    return f"{plain(name)}: no such column in {source}, which has {plain(', '.join(columns)) or 'none'}{hint}"
