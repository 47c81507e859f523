"""The Hub's model card: the README.md of the student's folder, with its figures at the head as the Hub's model-index.

    ---
    library_name: "transformers"
    model-index: [{name: "topics", results: [{metrics: [{type: accuracy, value: 0.6}]}]}]
    ---
    # topics: student

Sources: the Hub's documentation of model cards, and the fields of ``huggingface_hub.ModelCardData``. Figures come from evaluate's
``metrics.json``, which is read only where it has the SHA-256 that evaluate's manifest gives it.

Limits: the licence of a student follows from its base model's, from that of the inputs and from the teacher's terms; the card lists what is
known of each and leaves the field ``license`` to the person who publishes it. ``base_model`` is named only where it is one of the Hub's.
"""

import hashlib
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from pipeline import measure, terms
from pipeline.cards import front_matter, table
from pipeline.exports import View, part, setting, title
from pipeline.exports.data_card import provenance, terms_and_licences
from pipeline.files import InputError, RunError
from pipeline.metrics import Metrics
from pipeline.shard import PREFIXES, escaped

RECIPE: Final = (
    "targets alpha temperature fraction epochs learning_rate batch_size accumulation warmup max_length too_long keep precision seed "
    "gradient_checkpointing processes"
).split()


def render(shown: View) -> str:
    """The card, its head included. Raises InputError where there is no student, RunError where its figures are not the manifest's."""
    if "train" not in shown.results:
        raise InputError("no student was trained on these shards; run `stepdistill run --until train` first")
    metrics = _metrics(shown)
    return "\n".join([*front_matter(_head(shown, metrics)), "", *_text(shown, metrics), ""])


def _metrics(shown: View) -> Metrics | None:
    if "evaluate" not in shown.results:
        return None
    folder, manifest = shown.results["evaluate"]
    path: Path = folder / measure.METRICS
    expected = next((file.sha256 for file in manifest.outputs if file.path == measure.METRICS), None)
    try:
        raw = path.read_bytes()
        if hashlib.sha256(raw).hexdigest() != expected:
            raise RunError(f"{path}: not the figures that its manifest names; run `stepdistill audit`")
        return Metrics.model_validate_json(raw)
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); run `stepdistill audit`") from None
    except ValidationError:
        raise RunError(f"{path}: holds no figures of this version; run `stepdistill run` again") from None


def _base(shown: View) -> Any:
    return part(shown.results["train"].manifest.identities, "student")


def _head(shown: View, metrics: Metrics | None) -> dict[str, Any]:
    base = _base(shown)
    results = [
        {
            "task": {"type": "text-generation", "name": title(shown)},
            "dataset": {"name": name, "type": name},
            "metrics": [
                {"type": "accuracy", "name": "accuracy", "value": round(student.accuracy, 4)},
                *(
                    [{"type": "f1", "name": "macro F1", "value": round(student.macro_f1, 4)}]
                    if student.macro_f1 is not None
                    else []
                ),
            ],
        }
        for name, found in (metrics.eval_sets if metrics else {}).items()
        for student in [found.models.get("student")]
        if student is not None
    ]
    return {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": part(base, "from") if part(base, "revision") else None,
        "datasets": [shown.repository] if shown.repository else None,
        "tags": ["distillation", "synthetic", "stepdistill"],
        "model-index": [{"name": f"{title(shown)}-student", "results": results}] if results else None,
    }


def _text(shown: View, metrics: Metrics | None) -> list[str]:
    manifest = shown.results["train"].manifest
    targets = setting(shown, "train", "targets") or setting(shown, "train", "task_targets")
    prefixes = [prefix for target, prefix in PREFIXES.items() if isinstance(targets, list) and target in targets]
    return [
        f"# {escaped(title(shown))}: student",
        "",
        "A small model trained on what a larger one answered, by stepdistill. This card is a view: it was generated from the manifests",
        "named below, and says nothing that they and the figures they name do not say.",
        "",
        "## What it is asked",
        "",
        "It was trained to answer the input behind a prefix that says what is wanted: "
        + (" or ".join(f"`{prefix.strip()}`" for prefix in prefixes if prefix) or "none, the bare input")
        + ".",
        "",
        "## How it was trained",
        "",
        *table(
            ("setting", "value"),
            [
                ("base model", _base(shown)),
                *_start(shown),
                ("layers kept", setting(shown, "train", "student", "layers") or "all"),
                *((name, value) for name in RECIPE if (value := setting(shown, "train", name)) is not None),
                *(
                    [("trained on such outputs because", reason)]
                    if (reason := setting(shown, "train", "accept_terms"))
                    else []
                ),
                ("examples", part(manifest.details, "examples")),
                ("target tokens", part(manifest.details, "target_tokens")),
                ("steps and losses", part(manifest.details, "models", "student")),
            ],
        ),
        "",
        f"Trained on the data set with the root `{shown.shard.root or 'none'}`, whose manifest has the SHA-256",
        f"`{shown.manifest_digest('shard')}`.",
        "",
        *_figures(metrics),
        *terms_and_licences(shown),
        "What the base model's licence asks for comes on top of this. "
        + (" ".join(map(escaped, terms.conditions(terms.of_manifest(shown.shard.settings))))),
        "",
        *provenance(shown),
        "## Limits",
        "",
        "- It knows the one task that it was trained on, in the words of its training rows.",
        "- It repeats the teacher's errors and biases, and adds its own; a rationale that it writes need not be the reason for its label.",
        "- Intervals speak of other rows from the same source, not of other training seeds.",
    ]


def _start(shown: View) -> list[tuple[str, Any]]:
    """What is known of the base model beside its identity: its licence, and which files or commit it was."""
    facts = part(shown.results["train"].manifest.models, "student")
    return [
        ("licence of the base model", part(facts, "license") or "unknown"),
        *(
            (what, found)
            for name, what in (("revision", "commit of the base model"), ("files", "its files, SHA-256"))
            if (found := part(facts, name)) and found != part(_base(shown), name)
        ),
    ]


def _figures(metrics: Metrics | None) -> list[str]:
    head = ["## Figures", ""]
    if metrics is None:
        return [*head, "It was not evaluated.", ""]
    rows = [
        (
            eval_set,
            model,
            f"{one.accuracy:.1%}",
            f"{one.accuracy_interval[0]:.1%} to {one.accuracy_interval[1]:.1%}",
            "" if one.macro_f1 is None else f"{one.macro_f1:.3f}",
            one.rows,
            one.unanswered,
        )
        for eval_set, found in metrics.eval_sets.items()
        for model, one in found.models.items()
    ]
    compared = [
        (
            eval_set,
            f"{one.first} minus {one.second}",
            f"{one.difference:+.1%}",
            f"{one.interval[0]:+.1%} to {one.interval[1]:+.1%}",
        )
        for eval_set, found in metrics.eval_sets.items()
        for one in found.comparisons
    ]
    header = ("eval set", "model", "accuracy", metrics.interval, "macro F1", "rows", "without an answer")
    return [
        *head,
        *table(header, rows, right=(2, 3, 4, 5, 6)),
        "",
        *(
            table(("eval set", "difference", "accuracy", "95% paired bootstrap interval"), compared, right=(2, 3))
            if compared
            else []
        ),
        "",
    ]
