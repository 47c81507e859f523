"""With ``--full``: what was trained on are the rows of shard, and what judge and evaluate say in figures follows from their rows.

    train/2ab2..../part-00000.jsonl:17: not the row r17/label of shard that stands here
    evaluate/8d21..../metrics.json: eval_sets.test: not what the predictions give

- ``judge``: the scores in its manifest are those of its rows.
- ``shard``: its data card is the one that follows from its manifest.
- ``train``: every training row was trained on or dropped, in the order of the shards; the sums of its tokens and examples are so.
- ``evaluate``: each prediction is right or wrong as its label says, all models were asked about the same rows, and metrics, intervals and
  comparisons are computed again from the predictions.

Limits: how many tokens a row has, what a student wrote, and its size are taken as they stand; they take the model to tell.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import DecodeError
from pydantic import ValidationError

from pipeline import evaluate, outputs, shard
from pipeline.audits import Audited, Finding, Result
from pipeline.files import RunError, canonical_json, plain
from pipeline.labels import same
from pipeline.records import Example, Prediction, Trained, TrainingRow
from pipeline.stages import STAGES


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on scores, on rows that were trained on, and on predictions."""
    for result in audited.all if audited.full else ():
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
    kind = settings["label_type"]
    predictions: dict[str, dict[str, list[Prediction]]] = defaultdict(lambda: defaultdict(list))
    for path, number, line in _lines(folder):
        try:
            row = Prediction.read(line)
        except DecodeError as error:
            yield Finding(path, f"not a prediction ({plain(str(error))})", number)
            return
        correct = row.label is not None and same(row.label, row.gold, kind)
        if row.line() != line or row.id != f"{row.eval_set}/{row.model}/{row.row}" or row.correct != correct:
            yield Finding(path, f"{plain(row.id)}: not what such a prediction says of itself", number)
            return
        predictions[row.eval_set][row.model].append(row)
    metrics = folder / evaluate.METRICS
    try:
        told = evaluate.Metrics.model_validate_json(metrics.read_bytes())
    except ValidationError:
        yield Finding(metrics, "not the metrics of models")
        return
    drops = Counter(drop.id.partition("/")[0] for drop in outputs.read_drops(folder))
    for name in sorted({*told.eval_sets, *predictions}):
        by_model = predictions[name]
        if len({tuple((row.row, row.input, row.gold) for row in given) for given in by_model.values()}) > 1:
            yield Finding(folder, f"{plain(name)}: the models were not asked about the same rows")
        elif (said := told.eval_sets.get(name)) is None or by_model.keys() != said.models.keys():
            yield Finding(metrics, f"eval_sets.{plain(name)}: not of the models that predicted")
        elif {row.label for row in by_model.get("majority", ())} - {said.majority}:
            yield Finding(metrics, f"eval_sets.{plain(name)}.majority: not the label that predictions of majority have")
        elif said != _measured(by_model, said, drops[name], settings):
            yield Finding(metrics, f"eval_sets.{plain(name)}: not what the predictions give")
    details = {"models": manifest.details.get("models"), "summary": evaluate.summary(told.eval_sets)}
    models = {model for by_model in predictions.values() for model in by_model}
    if canonical_json(details) != canonical_json(manifest.details) or not models <= set(_texts(details["models"])):
        yield Finding(folder / outputs.MANIFEST, f"details: not what {evaluate.METRICS} gives")


def _measured(
    by_model: dict[str, list[Prediction]], said: evaluate.SetMetrics, drops: int, settings: dict[str, Any]
) -> evaluate.SetMetrics:
    return evaluate.set_metrics(
        by_model,
        evaluate.closed_set(settings["label_type"], settings["labels"]),
        settings["label_type"],
        said.majority,
        {model: found.parameters for model, found in said.models.items()},
        drops // max(len(by_model), 1),
        settings["bootstrap"],
        settings["seed"],
    )


def _texts(value: object) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []
