"""The pieces of a card in Markdown: its head in YAML, tables, and values as people read them; what stands in them is escaped.

    table(("split", "rows"), [("train", 420)], right=(1,))  ->  ["| split | rows |", "|---|---:|", "| train | 420 |"]

Limits: a value is shown on one line, and cut where it is longer than 2,000 characters.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.shard import escaped, quoted


def fact(value: Any) -> str:
    """A value of a manifest as people read it: ``backend vllm, model (name SmolLM2, revision 7e27bd9)``; nothing for None."""
    if isinstance(value, dict):
        return ", ".join(
            f"{name} ({fact(item)})" if isinstance(item, dict) else f"{name} {fact(item)}"
            for name, item in value.items()
            if item not in (None, [], {})
        )
    if isinstance(value, list):
        return ", ".join(map(fact, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value)


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]], right: tuple[int, ...] = ()) -> list[str]:
    """The lines of a Markdown table; what stands in its cells is escaped. Columns in ``right`` are aligned there."""
    rule = "|".join("---:" if column in right else "---" for column in range(len(header)))
    cells = [tuple(escaped(fact(cell)) for cell in row) for row in rows]
    return [f"| {' | '.join(row)} |" for row in (header,)] + [f"|{rule}|"] + [f"| {' | '.join(row)} |" for row in cells]


def front_matter(fields: Mapping[str, Any]) -> list[str]:
    """The lines of a card's YAML block: lists and objects in lines of their own, scalars as JSON. Fields that are None are left out."""
    return ["---", *(line for name, value in fields.items() if value is not None for line in _yaml(name, value)), "---"]


def _yaml(name: str, value: Any) -> list[str]:
    if isinstance(value, list):
        lines = [f"{name}:"]
        for item in value:
            inside = _object(item) if isinstance(item, dict) else [quoted(item)]
            lines += [f"- {inside[0]}", *(f"  {line}" for line in inside[1:])]
        return lines if value else [f"{name}: []"]
    if isinstance(value, dict):
        return [f"{name}:", *(f"  {line}" for line in _object(value))]
    return [f"{name}: {quoted(value)}"]


def _object(value: Mapping[str, Any]) -> list[str]:
    return [line for name, item in value.items() for line in _yaml(name, item)]
