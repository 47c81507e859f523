"""shard: examples become the rows that a student is trained on, one for each of its tasks.

    {"id": "9f../label", "task": "label", "split": "train", "prompt": "[label] Late goal sinks ..", "completion": "sports", ..}
    {"id": "9f../rationale", .., "prompt": "[rationale] Late goal sinks ..", "completion": "A goal is scored.", ..}

The prefix tells the student which of its tasks is meant. A student of free responses, or of a chain of thought (``.. So the answer is
sports.``: rationale and label in one completion), has one task and gets the bare input, so that afterwards it is asked like any
fine-tuned model.

Which label is trained on is the setting ``label``: the ``vote`` of all responses, the row's own true label (``gold``), what one ``teacher``
said in its first response that could be read, or ``soft``: the teachers' whole distribution over the labels, which stands in the field
``distribution`` of the label's row beside the voted label. The rationale is always one that argues for the voted label. Where another label
is trained on, it would argue against it, so such an example is dropped (``rationale_of_other_label: keep`` trains both all the same);
``stages.sample.rationalise`` is how true labels get rationales of their own.

``difficulty`` is how much the votes on an example disagree, in bits: 0 where all say the same, 1 where two labels have half of the
votes each. Files are in input order; a curriculum is a line more, and the trainer here shuffles the rows and does not look at it::

    rows = datasets.load_dataset("path/to/shards", split="train").sort("difficulty")        # easy ones first, unknown ones last

An example's split is read off a hash of its id: all its rows stand in the same split, and adding or dropping other examples moves
none of them. Limits: the share of validation rows is therefore met on average only, and with a few dozen examples a split can be
empty. Examples that are not duplicates but still close may stand in different splits.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, NamedTuple

import xxhash
from pydantic import Field, JsonValue

from pipeline import labels as label_forms
from pipeline.binding import From, suggestion
from pipeline.files import InputError, plain
from pipeline.labels import LabelType
from pipeline.records import Drop, Example, OutputFile, Target, TrainingRow, features
from pipeline.terms import OutputTerms

CARD = "README.md"  # in the stage's folder
LABEL_PREFIX = "[label] "
RATIONALE_PREFIX = "[rationale] "
RESPONSE_PREFIX = ""
PREFIXES: Mapping[Target, str] = {
    "label": LABEL_PREFIX,
    "rationale": RATIONALE_PREFIX,
    "response": RESPONSE_PREFIX,
    "chain_of_thought": RESPONSE_PREFIX,
}
SPLITS: tuple[Literal["train", "validation"], ...] = ("train", "validation")

Source = Literal["vote", "gold", "teacher", "soft"]
ANSWER = "So the answer is "  # what a chain of thought says before its label


@dataclass(frozen=True)
class Terms:
    """What is trained on: the targets, whose label, and the task's labels. The settings of shard that say what an example must have.

    ``teacher`` None is the first of ``teachers``.
    """

    targets: Sequence[Target]
    label: Source = "vote"
    teacher: str | None = None
    rationale_of_other_label: Literal["drop", "keep"] = "drop"
    label_type: LabelType = "text"
    labels: Sequence[str] | None = None
    teachers: Sequence[str] = ()


def terms_of(settings: Mapping[str, Any]) -> Terms:
    """The terms in the settings of a shard's manifest; an older one says less, and means the defaults."""
    return Terms(**{field.name: settings[field.name] for field in fields(Terms) if field.name in settings})


class Refused(NamedTuple):
    """Why an example cannot be trained on, and the evidence."""

    reason: str
    evidence: dict[str, JsonValue]


def shard(
    rows: Iterable[Example],
    *,
    label: Source = "vote",
    teacher: str | None = None,
    rationale_of_other_label: Literal["drop", "keep"] = "drop",
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.05,
    rows_per_shard: Annotated[int, Field(gt=0)] = 50_000,
    seed: int = 0,
    targets: Annotated[list[Target], From("task.targets")],
    label_type: Annotated[LabelType, From("stages.parse.label_type")] = "text",
    labels: Annotated[Sequence[str] | None, From("task.labels")] = None,
    gold: Annotated[str | None, From("task.gold")] = "gold",
    teachers: Annotated[Sequence[str], From("stages.sample.teacher.names")] = (),
    task: Annotated[str, From("task.name")] = "unnamed",
    license: Annotated[str | None, From("task.license")] = None,
    output_terms: Annotated[Mapping[str, OutputTerms] | None, From("stages.sample.teacher.terms")] = None,
) -> Iterator[TrainingRow | Drop]:
    """One training row for each example and target, in order; an example that lacks one of them is dropped with all of them.

    ``label``: which one is trained on; ``soft`` needs stages.sample.soft_labels. ``teacher``: whose, with ``label: teacher``; the first of
    stages.sample.teacher where none is named.
    ``rationale_of_other_label``: what becomes of an example whose rationale argues for another label than the one trained on.
    ``validation`` is the share of examples that are held back; ``rows_per_shard`` and ``task``, the name that stands in the data card, are
    read by whoever writes the files. The inputs' ``license`` and the ``output_terms`` by teacher change no row: they go along with the
    rows, in the manifest. Raises InputError, before the first row, where settings do not go together.
    """
    if label == "gold" and gold is None:
        raise InputError("stages.shard.label: gold needs task.gold, the column with the true label; set it")
    if teacher is not None and label != "teacher":
        raise InputError("stages.shard.teacher: it counts only with label: teacher; set that, or remove it")
    if teacher is not None and teachers and teacher not in teachers:
        raise InputError(f"stages.shard.teacher: no such teacher{suggestion(teacher, map(plain, teachers))}")
    terms = Terms(targets, label, teacher, rationale_of_other_label, label_type, labels, teachers)
    return _rows(rows, terms, validation, seed)


def _rows(rows: Iterable[Example], terms: Terms, validation: float, seed: int) -> Iterator[TrainingRow | Drop]:
    for example in rows:
        found = completions(example, terms)
        if isinstance(found, Refused):
            for target in terms.targets:
                yield Drop(id=f"{example.id}/{target}", reason=found.reason, evidence=found.evidence)
            continue
        held_back = split(example.id, validation=validation, seed=seed)
        hard = difficulty(example)
        soft = json.dumps(example.soft_labels, ensure_ascii=False) if terms.label == "soft" else None
        for target, completion in found.items():
            yield TrainingRow(
                id=f"{example.id}/{target}",
                example=example.id,
                task=target,
                split=held_back,
                prompt=student_prompt(target, example.input),
                completion=completion,
                difficulty=hard,
                distribution=soft if target == "label" else None,
            )


def completions(example: Example, terms: Terms) -> dict[Target, str] | Refused:
    """What the student is to answer to each of its tasks, or why this example cannot be trained on."""
    label = trained_label(example, terms)
    if terms.label == "gold":
        options = example.choices or terms.labels
        if label is None:
            return _refused("no_gold", example)
        if options is not None and label not in options:
            return _refused("gold_not_in_set", example, options=[*options])
    elif terms.label == "teacher" and label is None:
        return _refused("no_teacher_label", example, teacher=_teacher(terms))
    elif terms.label == "soft" and not example.soft_labels:
        return _refused("no_soft_labels", example)
    texts: dict[Target, str | None] = {
        "label": label,
        "rationale": example.rationale,
        "response": example.text,
        "chain_of_thought": chain_of_thought(example.rationale, label),
    }
    found: dict[Target, str] = {}
    for target in terms.targets:
        text = texts[target]
        if text and text.strip():
            found[target] = text
    if len(found) < len(terms.targets):
        missing: list[JsonValue] = [target for target in terms.targets if target not in found]
        return Refused(f"no_{missing[0]}", {"missing": missing, "response": example.response})
    if (
        terms.label in ("gold", "teacher")
        and terms.rationale_of_other_label == "drop"
        and _argues_for_other(example, label, terms)
    ):
        return _refused("rationale_of_other_label", example, trained_on=label, label_from=terms.label)
    return found


def chain_of_thought(rationale: str | None, label: str | None) -> str | None:
    """Rationale and label in one text, from which ``said_label`` reads the label again; None where one of them is missing."""
    if not (rationale or "").strip() or not (label or "").strip():
        return None
    return f"{(rationale or '').strip()} {ANSWER}{label}."


def said_label(text: str) -> str:
    """The label at the end of a chain of thought; nothing where it comes to no answer."""
    _, found, label = text.rpartition(ANSWER)
    return label.strip().removesuffix(".") if found else ""


def _refused(reason: str, example: Example, **more: JsonValue) -> Refused:
    return Refused(reason, {"voted": example.label, "gold": example.gold, "response": example.response, **more})


def trained_label(example: Example, terms: Terms) -> str | None:
    """The label that a student is trained on, in its one spelling; None where the example has none."""
    if terms.label in ("vote", "soft"):
        return example.label
    if terms.label == "teacher":
        name = _teacher(terms)
        return next((vote.label for vote in example.votes if vote.teacher == name and vote.label is not None), None)
    return label_forms.normalise(example.gold or "", terms.label_type, terms.labels, example.choices)


def _argues_for_other(example: Example, label: str | None, terms: Terms) -> bool:
    """Whether what is trained beside the label argues for another one: parse keeps a response that gave the voted label."""
    if label is None or example.label is None or set(terms.targets) == {"label"}:
        return False
    return label_forms.key(label, terms.label_type) != label_forms.key(example.label, terms.label_type)


def _teacher(terms: Terms) -> str | None:
    return terms.teacher or next(iter(terms.teachers), None)


def difficulty(example: Example) -> float | None:
    """Entropy of the votes, in bits; None with one vote, and where the teacher was told the label: neither tells how hard it was."""
    return None if len(example.votes) < 2 or example.rationalised else example.entropy


def student_prompt(task: Target, text: str) -> str:
    """What the student sees when it is given ``task`` on the input ``text``, before the separator that the trainer puts behind it."""
    return PREFIXES[task] + text


def split(example: str, *, validation: float, seed: int) -> Literal["train", "validation"]:
    """Where the example with this id goes; a share of ``validation`` of all ids is held back."""
    return "validation" if xxhash.xxh3_64_intdigest(f"{seed}:{example}".encode()) < validation * 2**64 else "train"


def card(settings: Mapping[str, Any], key: str, files: Iterable[OutputFile]) -> str:
    """The data card of a result, from what its manifest holds."""
    rows: Counter[str] = Counter()
    for file in files:
        split = file.path.rpartition("-")[0]
        if file.rows is not None and split in SPLITS:
            rows[split] += file.rows
    details = {"teacher": ", ".join(settings["teachers"]), "settings": settings, "key": key}
    return data_card(settings["task"], rows, details)


def data_card(task_name: str, rows: Mapping[str, int], details: Mapping[str, object]) -> str:
    """The README.md that makes a folder of shards loadable by ``datasets.load_dataset``.

    ``rows`` is the number of rows by split: the splits that have any are declared, from files ``<split>-*.jsonl``. ``details`` are further
    facts to be listed (teacher, settings, sources); their text is escaped, so that no fact can alter the card.
    """
    present = [name for name in SPLITS if rows.get(name)]
    head = ["---", f"pretty_name: {quoted(task_name)}", "license: unknown", "task_categories:", "- text-generation"]
    if present:
        head += ["configs:", "- config_name: default", "  data_files:"]
        for name in present:
            head += [f"  - split: {name}", f"    path: {name}-*.jsonl"]
        head += ["dataset_info:", "  features:"]
        for column, kind in features(TrainingRow).items():
            head += [f"  - name: {column}", f"    dtype: {kind}"]
    text = [
        f"# Training rows: {escaped(task_name)}",
        "",
        "Made by stepdistill: inputs with the answers that a teacher model gave to them, as prompts and completions for a smaller model.",
        "",
        "| split | rows |",
        "|---|---:|",
        *(f"| {name} | {rows.get(name, 0):,} |" for name in SPLITS),
        "",
        "| about | |",
        "|---|---|",
        *(f"| {escaped(name)} | {escaped(_fact(value))} |" for name, value in details.items()),
        "| licence | unknown: it follows from the inputs' source and the teacher's terms |",
        "",
        "Each row holds `id` (`<example>/<task>`), `example`, `task`, `split`, `prompt`, `completion` and `difficulty`: the entropy of the",
        "answers that teachers gave to its example, in bits, null where there was one alone. Rows of one example share `example` and stand",
        "in the same split. `manifest.json` beside this file names the settings, its parents and each file's SHA-256.",
        "",
        "    import datasets",
        '    rows = datasets.load_dataset("path/to/this/folder")',
        '    easy_first = rows["train"].sort("difficulty")',
        "",
        "Labels and rationales are a model's and were checked by rules alone, not by people: expect wrong labels, and rationales that",
        "sound right without being the reason for the label.",
    ]
    return "\n".join([*head, "---", "", *text, ""])


def _fact(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def quoted(value: object) -> str:
    """A scalar as JSON, which YAML reads as the same; a text on one line, and of printable characters alone, as YAML demands."""
    return json.dumps(plain(value, 2000) if isinstance(value, str) else value, ensure_ascii=False)


def escaped(text: str) -> str:
    """``text`` on one line, without meaning to Markdown or HTML."""
    shown = plain(text, 2000).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{character}" if character in "\\`*_{}[]()#|~!" else character for character in shown)
