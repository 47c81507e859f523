"""The Hub's data card: the README.md of a folder of shards, with what its search and ``datasets.load_dataset`` read at its head.

    ---
    pretty_name: "topics"
    license: "unknown"
    configs: ..
    ---
    # topics

It takes the place of the short card that the shard stage leaves beside its files, and says what only later or other manifests know.
Sources: the Hub's documentation of data set cards, and the fields of ``huggingface_hub.DatasetCardData``.

Limits: whether the field ``license`` is right for a data set made from licensed inputs by a licensed teacher is for a person to judge; it
repeats what the one source states, and says ``unknown`` or ``other`` in all other cases.
"""

from typing import Any, Final

from pipeline import terms
from pipeline.cards import front_matter, table
from pipeline.exports import (
    View,
    detail,
    hub_licence,
    inputs,
    made_by,
    models,
    named,
    part,
    rows_by_split,
    setting,
    shards,
    title,
)
from pipeline.exports.croissant import WHAT
from pipeline.records import TrainingRow, features
from pipeline.shard import escaped
from pipeline.sources import HUB as HUB_PREFIX
from pipeline.stages import STAGES

SIZES: Final = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
LARGER: Final = "10M<n<100M"
SAMPLING: Final = "n temperature top_p max_tokens stop regex structured seed greedy_first rationalise logprobs".split()


def render(shown: View) -> str:
    """The card, its head included."""
    return "\n".join([*front_matter(_head(shown)), "", *_text(shown), ""])


def _head(shown: View) -> dict[str, Any]:
    rows = rows_by_split(shown)
    number = sum(rows.values())
    labels = setting(shown, "shard", "labels")
    from_hub = [source.uri.removeprefix(HUB_PREFIX) for source in inputs(shown) if source.uri.startswith(HUB_PREFIX)]
    sizes = {
        split: sum(file.bytes for file in shards(shown.shard) if file.path.startswith(f"{split}-")) for split in rows
    }
    return {
        "pretty_name": title(shown),
        "license": hub_licence(shown),
        "task_categories": ["text-generation", *(["text-classification"] if labels else [])],
        "size_categories": [next((name for most, name in SIZES if number < most), LARGER)],
        "annotations_creators": ["machine-generated"],
        "source_datasets": [f"extended|{name}" for name in from_hub] or ["original"],
        "tags": ["synthetic", "distillation", "stepdistill"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"{split}-*.jsonl"} for split in rows],
            }
        ]
        if rows
        else None,
        "dataset_info": {
            "features": [{"name": column, "dtype": kind} for column, kind in features(TrainingRow).items()],
            "splits": [
                {"name": split, "num_bytes": sizes[split], "num_examples": number} for split, number in rows.items()
            ],
        }
        if rows
        else None,
    }


def _text(shown: View) -> list[str]:
    rows = rows_by_split(shown)
    return [
        f"# {escaped(title(shown))}",
        "",
        "Rows to train a small model on: inputs with the answers that a larger model, the teacher, gave to them. Made by stepdistill.",
        "This card is a view: it was generated from the manifests named below, and says nothing that they do not say.",
        "",
        "## What it holds",
        "",
        *table(("split", "rows"), [(split, number) for split, number in rows.items()], right=(1,)),
        "",
        *table(("column", "type", "what"), [(name, kind, WHAT[name]) for name, kind in features(TrainingRow).items()]),
        "",
        "    import datasets",
        f'    rows = datasets.load_dataset("{shown.repository or "path/to/this/folder"}")',
        "",
        "## How it was made",
        "",
        *table(
            ("stage", "what", "unit", "in", "kept", "dropped"),
            [
                (
                    stage,
                    " ".join(STAGES[stage].what.replace("`", "").split()),
                    counts.unit,
                    counts.rows_in,
                    counts.kept,
                    counts.dropped,
                )
                for stage in made_by(shown)
                for counts in [shown.results[stage].manifest.counts]
            ],
            right=(3, 4, 5),
        ),
        "",
        *_teachers(shown),
        *terms_and_licences(shown),
        *_contamination(shown),
        *_drops(shown),
        *provenance(shown),
        "## Limits",
        "",
        "- Labels and rationales are a model's and were checked by rules alone, not by people: expect wrong labels, and rationales that",
        "  sound right without being the reason for the label.",
        "- What the inputs hold of personal data, errors and biases is still in them, save where a stage above says otherwise.",
        "- No manifest can prove that the teacher really wrote a text; asking it again, with the same seed, is the test.",
    ]


def _teachers(shown: View) -> list[str]:
    used = [(stage, model) for stage in made_by(shown) for model in models(shown, stage)]
    recorded = all(model.identity.get("backend") == "replay" for stage, model in used if stage == "sample")
    sampling = {name: setting(shown, "sample", name) for name in SAMPLING}
    code = shown.shard.code
    return [
        *table(
            ("model", "role", "what it is", "further facts"),
            [
                (
                    named(model),
                    stage,
                    model.identity,
                    {
                        name: value
                        for name, value in model.facts.items()
                        if name != "terms" and model.identity.get(name) != value
                    },
                )
                for stage, model in used
            ],
        ),
        "",
        *_facts(
            "made with",
            {
                "answers": "recorded ones; how they were asked for is known to their recording alone"
                if recorded
                else None,
                "prompt template (digest)": part(setting(shown, "sample", "prompt"), "prompt"),
                **({} if recorded else sampling),
                "label trained on": setting(shown, "shard", "label"),
                "code": f"{code.package} {code.version}, commit {code.commit or 'unknown'}{' with changes' if code.dirty else ''}",
            },
        ),
        "",
    ]


def _facts(head: str, facts: dict[str, Any]) -> list[str]:
    """A table of what is known."""
    return table((head, ""), [(name, value) for name, value in facts.items() if value not in (None, "", [], {})])


def terms_and_licences(shown: View) -> list[str]:
    """The section on who allows what: the inputs' sources and the teachers' terms."""
    return [
        "## Terms and licences",
        "",
        *table(
            ("source of inputs", "rows", "revision", "licence", "SHA-256"),
            [
                (source.uri, source.rows, source.revision, source.license or "unknown", source.sha256)
                for source in inputs(shown)
            ],
            right=(1,),
        ),
        "",
        *table(
            (
                "teacher",
                "licence or terms",
                "training on its outputs",
                "obligations",
                "where they stand",
                "as of",
                "known from",
            ),
            [
                (
                    name,
                    one.license or "unknown",
                    one.training,
                    "; ".join(one.obligations),
                    one.source,
                    one.as_of,
                    one.known_from or ("" if one.training == "unknown" else "the settings"),
                )
                for name, one in terms.of_manifest(shown.shard.settings).items()
            ],
        ),
        "",
        "The data set stands under the licences of its inputs and the terms of its teachers together. Where one of them is unknown, so is",
        "what may be done with the rows.",
        "",
    ]


def _contamination(shown: View) -> list[str]:
    head = ["## Contamination", ""]
    found = detail(shown, "decontaminate", "eval_sets")
    if not isinstance(found, dict):
        return [*head, "No eval set was compared with these rows.", ""]
    settings = {
        name: setting(shown, "decontaminate", name) for name in ("ngram", "coverage", "edited", "fields", "numbers")
    }
    return [
        *head,
        *table(
            ("eval set", "its rows", "examples dropped", "content"),
            [
                (
                    name,
                    part(one, "rows"),
                    part(one, "dropped"),
                    setting(shown, "decontaminate", "eval_sets", name, "path"),
                )
                for name, one in found.items()
            ],
            right=(1, 2),
        ),
        "",
        *_facts("compared by", {**settings, "found by": detail(shown, "decontaminate", "methods")}),
        "",
    ]


def _drops(shown: View) -> list[str]:
    rows = [
        (stage, reason, number)
        for stage in made_by(shown)
        for reason, number in shown.results[stage].manifest.counts.reasons.items()
    ]
    if not rows:
        return ["## What was dropped", "", "Nothing.", ""]
    return ["## What was dropped, and why", "", *table(("stage", "reason", "number"), rows, right=(2,)), ""]


def provenance(shown: View) -> list[str]:
    """The section by which a stranger finds and checks the manifests."""
    return [
        "## Provenance",
        "",
        f"Root of the data set (RFC 6962 tree over its shards): `{shown.shard.root or 'none: it has no rows'}`",
        "",
        *table(
            ("stage", "key", "SHA-256 of its manifest"),
            [(stage, result.manifest.key, shown.manifest_digest(stage)) for stage, result in shown.results.items()],
        ),
        "",
        "Each manifest names its parents by their SHA-256 and its files by theirs. With the run folder, `stepdistill audit RUN` checks all",
        "of it; with the shards alone, `sha256sum` against the outputs in the manifest of the shard stage does, and `stepdistill verify`",
        "checks one row's proof against the root. A signature, where there is one, is over these manifests.",
        "",
    ]
