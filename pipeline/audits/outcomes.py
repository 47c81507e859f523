"""With ``--full``: what was trained on are the rows of shard, and what judge and evaluate say in figures follows from their rows.

    train/2ab2..../part-00000.jsonl:17: not the row r17/label of shard that stands here
    evaluate/8d21..../metrics.json: eval_sets.test: not what the predictions give

- ``judge``: the scores in its manifest are those of its rows.
- ``shard``: its data card is the one that follows from its manifest.
- ``train``: every training row was trained on or dropped, in the order of the shards; the sums of its tokens and examples are so.
- ``evaluate``: each prediction is right or wrong as its label says, all models were asked about the same rows, and every figure is computed
  again from the predictions, rationales and probabilities beside it.

Limits: how many tokens a row has, what a student wrote, and its size are taken as they stand; they take the model to tell.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import DecodeError
from pydantic import ValidationError

from pipeline import evaluate, measure, outputs, shard
from pipeline.audits import Audited, Finding, Result
from pipeline.files import RunError, canonical_json, plain
from pipeline.labels import same
from pipeline.measure import Evidence, Facts, Measuring
from pipeline.metrics import Metrics
from pipeline.records import Example, Manifest, Prediction, Trained, TrainingRow
from pipeline.stages import STAGES


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on scores, on rows that were trained on, and on predictions."""
    for result in audited.all if audited.full else ():
        if result.manifest.version != STAGES[result.manifest.stage].version:
            continue  # which the check of manifests says
        try:
            if result.folder.parent.name == "train":
                yield from _trained(audited, result)
            elif result.folder.parent.name == "shard":
                yield from _carded(result)
            elif result.folder.parent.name == "judge":
                yield from _judged(result)
            elif result.folder.parent.name == "evaluate":
                yield from _evaluated(result)
        except (RunError, OSError, LookupError, TypeError, ValueError) as error:
            yield Finding(result.folder, f"cannot be compared with what it was made from ({plain(str(error))})")


def _lines(folder: Path) -> Iterator[tuple[Path, int, bytes]]:
    """File, number and bytes of each kept row."""
    for file in outputs.row_files(folder):
        with (folder / file.path).open("rb") as rows:
            for number, line in enumerate(rows, 1):
                yield folder / file.path, number, line.removesuffix(b"\n")


def _trained(audited: Audited, result: Result) -> Iterator[Finding]:
    shards = audited.parent(result, "shard")
    if shards is None:
        return  # named by the check of the chain
    dropped = {drop.id for drop in outputs.read_drops(result.folder)}
    lines = _lines(result.folder)
    tokens: Counter[str] = Counter()
    examples: Counter[str] = Counter()
    last = ""  # the rows of an example stand next to one another
    for row in outputs.read(shards.folder, TrainingRow):
        if row.id in dropped:
            continue
        path, number, line = next(lines, (result.folder, 0, b""))
        if not number:
            yield Finding(path, f"row {plain(row.id)} of shard was neither trained on nor dropped")
            return
        found = _trained_row(line)
        known = (row.id, row.example, row.task, row.split)
        if found is None or known != (found.id, found.example, found.task, found.split) or found.tokens < 1:
            yield Finding(path, f"not the row {plain(row.id)} of shard that stands here", number)
            return
        tokens[row.task] += found.tokens
        examples[row.split] += row.example != last
        last = row.example
    if (more := next(lines, None)) is not None:
        yield Finding(more[0], "shard has no such row", more[1])
    details: Any = result.manifest.details
    for name, sums in (("target_tokens", tokens), ("examples", examples)):
        if {key: count for key, count in details[name].items() if count} != dict(sums):
            yield Finding(result.folder / outputs.MANIFEST, f"details.{name}: not the sums over its rows")


def _trained_row(line: bytes) -> Trained | None:
    """None where it is none, or not written as rows are."""
    try:
        found = Trained.read(line)
    except DecodeError:
        return None
    return found if found.line() == line else None


def _carded(result: Result) -> Iterator[Finding]:
    folder, manifest = result
    path, made = folder / shard.CARD, shard.card(manifest.settings, manifest.key, manifest.outputs).encode()
    if manifest.version == STAGES["shard"].version and (path.stat().st_size, path.read_bytes()) != (len(made), made):
        yield Finding(path, "not the card that shard writes for such a manifest")


def _judged(result: Result) -> Iterator[Finding]:
    details: Any = result.manifest.details
    scores = Counter(row.judgement.score for row in outputs.read(result.folder, Example) if row.judgement is not None)
    judged = scores.total()
    mean = round(sum(score * count for score, count in scores.items()) / judged, 4) if judged else None
    if details["scores"] != {str(score): scores[score] for score in range(1, 6)} or details["mean_score"] != mean:
        yield Finding(result.folder / outputs.MANIFEST, "details: scores or their mean are not those of its rows")


def _evaluated(result: Result) -> Iterator[Finding]:
    folder, manifest = result
    settings: Any = manifest.settings
    if not 0 < settings["bootstrap"] <= evaluate.MOST_RESAMPLES:
        raise ValueError(
            f"bootstrap: {settings['bootstrap']} is more than the {evaluate.MOST_RESAMPLES:,} that there can be"
        )
    measuring = Measuring(
        settings["label_type"], settings["labels"], settings["targets"], settings["bootstrap"], settings["seed"]
    )
    for path, number, line in _lines(folder):
        try:
            row = Prediction.read(line)
        except DecodeError as error:
            yield Finding(path, f"not a prediction ({plain(str(error))})", number)
            return
        correct = row.label is not None and same(row.label, row.gold, measuring.label_type)
        if row.line() != line or row.id != f"{row.eval_set}/{row.model}/{row.row}" or row.correct != correct:
            yield Finding(path, f"{plain(row.id)}: not what such a prediction says of itself", number)
            return
    metrics = folder / measure.METRICS
    try:
        told = Metrics.model_validate_json(metrics.read_bytes())
        evidence = measure.read(folder)
    except (ValidationError, RunError) as error:
        yield Finding(metrics, f"not the metrics of models ({plain(str(error), 160)})")
        return
    predictions = evidence.predictions
    asked = [(row.eval_set, row.row, row.input, row.gold) for row in evidence.rows]
    for model, given in predictions.items():
        if [(row.eval_set, row.row, row.input, row.gold) for row in given] != asked:
            yield Finding(
                folder, f"{plain(model)}: was not asked about the rows of {measure.ROWS}, each once and in order"
            )
            return
    models = _texts(manifest.details.get("models"))
    if {*predictions} - {*models} or (evidence.rows and {*models} - {*predictions}):
        yield Finding(folder / outputs.MANIFEST, "details: not the models that predicted")
        return
    yield from _figures(folder, evidence, told, measuring, manifest)


def _figures(
    folder: Path, evidence: Evidence, told: Metrics, measuring: Measuring, manifest: Manifest
) -> Iterator[Finding]:
    """Every figure is what the rows beside it give; the models' sizes and what decontaminate compared are believed."""
    settings: Any = manifest.settings
    models: Any = manifest.details["models"]
    metrics = folder / measure.METRICS
    drops = Counter(drop.id.partition("/")[0] for drop in outputs.read_drops(folder))
    said = {row.label for row in evidence.predictions.get("majority", ())}
    majorities = {one.majority for one in told.eval_sets.values()}
    if len(majorities) > 1 or said - majorities:
        yield Finding(metrics, "majority: not the label that predictions of majority have")
        return
    sizes: dict[str, int | None] = {}
    for one in told.eval_sets.values():
        sizes |= {model: found.parameters for model, found in one.models.items()}
    facts = Facts(
        dropped={name: drops[name] // max(len(models), 1) for name in settings["eval_sets"]},
        parameters=sizes,
        majority=next(iter(majorities), None),
        compared=[name for name, one in told.eval_sets.items() if one.contamination is not None],
        base=None if told.safety is None else told.safety.base,
    )
    again = measure.measure(evidence, measuring, facts)
    for name in sorted({*again.eval_sets, *told.eval_sets}):
        if again.eval_sets.get(name) != told.eval_sets.get(name):
            yield Finding(metrics, f"eval_sets.{plain(name)}: not what the predictions give")
    if again != told and again.eval_sets == told.eval_sets:
        yield Finding(metrics, "not what the rows beside it give")
    if canonical_json({"models": models, "summary": measure.summary(told)}) != canonical_json(manifest.details):
        yield Finding(folder / outputs.MANIFEST, f"details: not what {measure.METRICS} gives")


def _texts(value: object) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []
