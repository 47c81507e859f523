"""The rows that models are measured on: read from the eval sets, with what is known of each beside the models' answers.

    {"id": "41", "text": "Late goals sink the leaders", "topic": "sports"}
    -> EvalRow {"eval_set": "test", "row": "41", "gold": "sports", "slices": {"source": "web"}, "contaminated": ["b7.."], ..}

A row without a true label, or with one outside the label set, does not count: it is a drop with its reason.

Limits: of a row of the task that overlaps several eval rows, decontaminate names one as evidence; the others look clean here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from pipeline import outputs
from pipeline.files import InputError
from pipeline.ingest import prompts
from pipeline.labels import LabelType, read_label
from pipeline.records import Drop, Prompt
from pipeline.sources import EvalSet


@dataclass(frozen=True)
class Asked:
    """An eval row that counts, with its normalised true label."""

    eval_set: str
    prompt: Prompt
    gold: str

    @property
    def place(self) -> str:
        """``<eval set>/<row id>``."""
        return f"{self.eval_set}/{self.prompt.id}"


def read(
    eval_sets: Mapping[str, EvalSet], label_type: LabelType, labels: Sequence[str] | None, slices: Sequence[str] = ()
) -> tuple[list[Asked], list[Drop]]:
    """The rows that count, and a drop for each that does not; ids of drops are ``<eval set>/<row id>``.

    ``slices`` are columns that tell groups of rows apart; a file without one of them has no such groups. Raises InputError where there
    is no eval set, or one cannot be read.
    """
    if not eval_sets:
        raise InputError(
            "eval_sets: there is nothing to evaluate on; name an eval set in stages.yaml, or switch it off: 'evaluate: false'"
        )
    rows: list[Asked] = []
    drops: list[Drop] = []
    for name, eval_set in eval_sets.items():
        given = prompts(
            eval_set.path, input=eval_set.input or "", gold=eval_set.gold, choices=eval_set.choices, id=eval_set.id
        )
        for prompt in given:
            if isinstance(prompt, Drop):
                drops.append(prompt.changed(id=f"{name}/{prompt.id}"))
                continue
            if not (prompt.gold or "").strip():
                evidence: dict[str, JsonValue] = {"source": prompt.source, "column": eval_set.gold}
                drops.append(Drop(id=f"{name}/{prompt.id}", reason="no_gold", evidence=evidence))
                continue
            gold = read_label(prompt.gold or "", label_type, labels, prompt.choices)
            if gold is None:
                evidence = {"source": prompt.source, "gold": prompt.gold}
                drops.append(Drop(id=f"{name}/{prompt.id}", reason="gold_is_no_label", evidence=evidence))
            else:
                values = {column: prompt.columns.get(column) for column in slices}
                groups = {column: str(value) for column, value in values.items() if value is not None}
                rows.append(Asked(name, prompt.changed(slices=groups), gold))
    return rows, drops


def overlapping(shards: Path) -> dict[str, dict[str, list[str]]] | None:
    """Eval set -> eval row -> ids of the task's rows that decontaminate dropped for it, on the way to these shards.

    None where decontaminate was switched off. Every eval set that was compared is there, also without findings.
    """
    folder: Path | None = shards
    while folder is not None:
        manifest = outputs.read_manifest(folder)
        if manifest.stage == "decontaminate":
            compared = manifest.settings.get("eval_sets")
            found: dict[str, dict[str, list[str]]] = (
                {name: {} for name in compared} if isinstance(compared, dict) else {}
            )
            for drop in outputs.read_drops(folder):
                if drop.reason == "contaminated":
                    rows = found.setdefault(str(drop.evidence["eval_set"]), {})
                    rows.setdefault(str(drop.evidence["eval_row"]), []).append(drop.id)
            return found
        before = next(iter(manifest.parents.items()), None)
        folder = None if before is None else folder.parents[1] / before[0] / before[1].key
    return None
