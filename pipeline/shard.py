"""shard: examples become the rows that a student is trained on, one for each of its tasks.

    {"id": "9f../label", "task": "label", "split": "train", "prompt": "[label] Late goal sinks ..", "completion": "sports", ..}
    {"id": "9f../rationale", .., "prompt": "[rationale] Late goal sinks ..", "completion": "A goal is scored.", ..}

The prefix tells the student which of its tasks is meant. A student of free responses has one task and gets the bare input, so that
afterwards it is asked like any fine-tuned model.

An example's split is read off a hash of its id: all its rows stand in the same split, and adding or dropping other examples moves
none of them. Limits: the share of validation rows is therefore met on average only, and with a few dozen examples a split can be
empty. Examples that are not duplicates but still close may stand in different splits.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal

import xxhash
from pydantic import Field, JsonValue

from pipeline.binding import From
from pipeline.files import plain
from pipeline.records import Drop, Example, Target, TrainingRow, features

LABEL_PREFIX = "[label] "
RATIONALE_PREFIX = "[rationale] "
RESPONSE_PREFIX = ""
PREFIXES: Mapping[Target, str] = {"label": LABEL_PREFIX, "rationale": RATIONALE_PREFIX, "response": RESPONSE_PREFIX}
SPLITS: tuple[Literal["train", "validation"], ...] = ("train", "validation")


def shard(
    rows: Iterable[Example],
    *,
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.05,
    rows_per_shard: Annotated[int, Field(gt=0)] = 50_000,
    seed: int = 0,
    targets: Annotated[list[Target], From("task.targets")],
) -> Iterator[TrainingRow | Drop]:
    """One training row for each example and target, in order; an example that lacks one of them is dropped with all of them.

    ``validation`` is the share of examples that are held back; ``rows_per_shard`` is read by whoever writes the files.
    """
    for example in rows:
        completions = {target: _completion(example, target) for target in targets}
        missing = [target for target, completion in completions.items() if completion is None]
        if missing:
            evidence: dict[str, JsonValue] = {"missing": [*missing], "response": example.response}
            yield from (
                Drop(id=f"{example.id}/{target}", reason=f"no_{missing[0]}", evidence=evidence) for target in targets
            )
            continue
        held_back = split(example.id, validation=validation, seed=seed)
        for target, completion in completions.items():
            assert completion is not None
            yield TrainingRow(
                id=f"{example.id}/{target}",
                example=example.id,
                task=target,
                split=held_back,
                prompt=student_prompt(target, example.input),
                completion=completion,
            )


def student_prompt(task: Target, text: str) -> str:
    """What the student sees when it is given ``task`` on the input ``text``, before the separator that the trainer puts behind it."""
    return PREFIXES[task] + text


def split(example: str, *, validation: float, seed: int) -> Literal["train", "validation"]:
    """Where the example with this id goes; a share of ``validation`` of all ids is held back."""
    return "validation" if xxhash.xxh3_64_intdigest(f"{seed}:{example}".encode()) < validation * 2**64 else "train"


def data_card(task_name: str, rows: Mapping[str, int], details: Mapping[str, object]) -> str:
    """The README.md that makes a folder of shards loadable by ``datasets.load_dataset``.

    ``rows`` is the number of rows by split: the splits that have any are declared, from files ``<split>-*.jsonl``. ``details`` are further
    facts to be listed (teacher, settings, sources); their text is escaped, so that no fact can alter the card.
    """
    present = [name for name in SPLITS if rows.get(name)]
    head = ["---", f"pretty_name: {_quoted(task_name)}", "license: unknown", "task_categories:", "- text-generation"]
    if present:
        head += ["configs:", "- config_name: default", "  data_files:"]
        for name in present:
            head += [f"  - split: {name}", f"    path: {name}-*.jsonl"]
        head += ["dataset_info:", "  features:"]
        for column, kind in features(TrainingRow).items():
            head += [f"  - name: {column}", f"    dtype: {kind}"]
    text = [
        f"# Training rows: {_escaped(task_name)}",
        "",
        "Made by stepdistill: inputs with the answers that a teacher model gave to them, as prompts and completions for a smaller model.",
        "",
        "| split | rows |",
        "|---|---:|",
        *(f"| {name} | {rows.get(name, 0):,} |" for name in SPLITS),
        "",
        "| about | |",
        "|---|---|",
        *(f"| {_escaped(name)} | {_escaped(_fact(value))} |" for name, value in details.items()),
        "| licence | unknown: it follows from the inputs' source and the teacher's terms |",
        "",
        "Each row holds `id` (`<example>/<task>`), `example`, `task`, `split`, `prompt` and `completion`. Rows of one example share",
        "`example` and stand in the same split. `manifest.json` beside this file names the settings, its parents and each file's SHA-256.",
        "",
        "    import datasets",
        '    rows = datasets.load_dataset("path/to/this/folder")',
        "",
        "Labels and rationales are a model's and were checked by rules alone, not by people: expect wrong labels, and rationales that",
        "sound right without being the reason for the label.",
    ]
    return "\n".join([*head, "---", "", *text, ""])


def _completion(example: Example, target: Target) -> str | None:
    text = {"label": example.label, "rationale": example.rationale, "response": example.text}[target]
    return text if text and text.strip() else None


def _fact(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def _quoted(text: str) -> str:
    """``text`` as a YAML scalar (a JSON string is one)."""
    return json.dumps(text)


def _escaped(text: str) -> str:
    """``text`` on one line, without meaning to Markdown or HTML."""
    shown = plain(text, 2000).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{character}" if character in "\\`*_{}[]()#|~!" else character for character in shown)
