"""A run as its stages leave it, with something in every part that a report has; and the same with hostile text wherever a run has text."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline import gates, outputs
from pipeline.files import canonical_json, digest, sha256
from pipeline.intervals import accuracy_interval, share
from pipeline.measure import INTERVAL
from pipeline.metrics import (
    Bin,
    Calibration,
    Comparison,
    Contamination,
    Cost,
    Costs,
    Estimate,
    Kind,
    Metrics,
    ModelMetrics,
    Rationale,
    RationaleScores,
    Safety,
    SafetyScores,
    SetMetrics,
    Slice,
)
from pipeline.outputs import RowWriter
from pipeline.records import (
    Code,
    Counts,
    Drop,
    Environment,
    Example,
    Manifest,
    OutputFile,
    Parent,
    Prediction,
    Prompt,
    Response,
    Row,
    Source,
    Target,
    Trained,
    TrainingRow,
    Vote,
    features,
)
from pipeline.scores import label_scores
from pipeline.shift import COUNTS, Truth, change, encoded
from pipeline.shift import measured as counted
from pipeline.stages import STAGES
from pipeline.sweeps import Measured
from pipeline.usage import Figures

Foreign = Callable[[str], str]
"""What stands in the run in place of a name or a text of the tame one."""

TEXTS = [
    ("Late goal sinks the leaders after a goalless first half", "sports", "A goal decides a match."),
    ("The relay baton hit the floor at the second exchange", "sports", "A relay is a race."),
    ("I burned the caramel twice, but the flan wobbled perfectly", "food", "Caramel and flan are cooked."),
    ("Could you bring a salad on Saturday? Bea has gone off dairy", "food", "It plans a meal."),
    ("Tiles, laundry, a tram squealing uphill, nothing booked until Tuesday", "travel", "A tram in a far town."),
    ("The express looks pricey and we arrive at midnight", "travel", "Someone arrives by train."),
]
TASKS: tuple[Target, ...] = ("label", "rationale")
LABELS = ["sports", "food", "travel"]
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} </style></svg>\"'&amp; \u202e\x00"


def finish(
    run: Path,
    stage: str,
    rows: Sequence[Row],
    drops: Sequence[Drop] = (),
    *,
    parent: str | None = None,
    rows_in: int | None = None,
    kept: int | None = None,
    settings: dict[str, Any] | None = None,
    extra: dict[str, bytes] | None = None,
    details: dict[str, Any] | None = None,
    identities: dict[str, dict[str, Any]] | None = None,
    source: str = "data/train.jsonl",
    version: int | None = None,
) -> Path:
    """A finished stage as the runner leaves it."""
    key = digest([stage, [row.plain() for row in rows]])
    folder = run / stage / key
    folder.mkdir(parents=True)
    kept_writer, drop_writer = RowWriter(folder, "part", 1000), RowWriter(folder, outputs.DROPPED, None)
    for row in rows:
        kept_writer.write(row.line())
    for drop in drops:
        drop_writer.write(drop.line())
    files = kept_writer.close() + drop_writer.close()
    for name, content in (extra or {}).items():
        (folder / name).write_bytes(content)
        if not name.startswith("run"):
            files.append(OutputFile(path=name, bytes=len(content), rows=None, sha256=sha256(folder / name)))
    above = outputs.current(run, parent) if parent else None
    reasons = {
        reason: sum(drop.reason == reason for drop in drops) for reason in sorted({drop.reason for drop in drops})
    }
    kept = len(rows) if kept is None else kept
    manifest = Manifest(
        stage=stage,
        version=STAGES[stage].version if version is None else version,
        key=key,
        settings=settings or {},
        parents={}
        if above is None
        else {above.parent.name: Parent(key=above.name, manifest=sha256(above / "manifest.json"))},
        asked={},
        sources=[] if parent else [Source(uri=source, bytes=10, sha256="a" * 64, license="CC0-1.0")],
        models={},
        code=Code(package="stepdistill", version="0.1.0", commit=None, dirty=None, modules="c" * 64),
        environment=Environment(
            python="3.11.0", platform="Linux x86_64", processor="any", accelerators=[], driver=None, packages={}
        ),
        root=None,
        identities=identities or {},
        counts=Counts(
            unit=STAGES[stage].unit,
            rows_in=kept + len(drops) if rows_in is None else rows_in,
            kept=kept,
            dropped=len(drops),
            reasons=reasons,
            rows_out=len(rows),
        ),
        outputs=files,
        features=features(STAGES[stage].gives),
        details=details or {},
        digest="0" * 64,
    )
    outputs.write_manifest(folder, manifest.model_copy(update={"digest": outputs.manifest_digest(manifest)}))
    outputs.point(run, stage, key)
    return folder


def model_metrics(
    kind: Kind, confusion: list[list[int]], labels: Sequence[str], parameters: int | None, foreign: Foreign
) -> ModelMetrics:
    """Figures that follow from a confusion matrix, and others that look like those of such a model."""
    rows = sum(map(sum, confusion))
    correct = sum(row[place] for place, row in enumerate(confusion))
    asked = kind in ("student", "teacher")
    bins = [
        Bin(
            low=n / 10,
            high=(n + 1) / 10,
            rows=n * n,
            confidence=n / 10 + 0.05 if n else None,
            accuracy=n / 12 if n else None,
        )
        for n in range(10)
    ]
    return ModelMetrics(
        kind=kind,
        rows=rows,
        answered=rows - sum(row[-1] for row in confusion),
        unanswered=1 if kind == "teacher" else 0,
        correct=correct,
        accuracy=correct / rows,
        accuracy_interval=accuracy_interval(correct, rows),
        macro_f1=0.5,
        macro_f1_interval=(0.41, 0.58),
        labels=label_scores(confusion, labels),
        confusion=confusion,
        exact_match=correct / rows,
        rouge_l=Estimate(value=0.61, interval=(0.55, 0.66)) if asked else None,
        chrf=None,
        same_as_teacher=rows // 2,
        teacher_rows=rows,
        slices={
            "teacher agreement": [Slice(value="100%", share=share(60, 70)), Slice(value="67%", share=share(31, 80))],
            "input length": [Slice(value="3 to 9 words", share=share(9, 12))],
            foreign("source"): [
                Slice(value=foreign("news"), share=share(40, 50)),
                Slice(value="none", share=share(0, 0)),
            ],
        }
        if asked
        else {},
        calibration=Calibration(
            source="scores" if kind == "student" else "votes",
            rows=rows,
            ece=0.083,
            brier=0.412,
            bins=bins,
            temperature=1.7 if kind == "student" else None,
            temperature_rows=25 if kind == "student" else 0,
            scaled_ece=0.031 if kind == "student" else None,
            scaled_brier=0.388 if kind == "student" else None,
        )
        if asked
        else None,
        rationales=RationaleScores(
            rows=48,
            finished=47,
            concludes=40,
            concludes_label=36,
            concludes_gold=30,
            asked_first=48,
            changed=5,
            right_before=33,
            right_after=35,
            words=13.2,
            copied=0.21,
            distinct=0.94,
            judged=None,
            judge_score=None,
        )
        if asked
        else None,
        parameters=parameters,
    )


def tame(name: str) -> str:
    """Every name as it is."""
    return name


def measured(labels: Sequence[str] = LABELS, foreign: Foreign = tame) -> Metrics:
    """What evaluate found, on one eval set."""

    def compared(second: str, both: int, first: int, other: int, interval: tuple[float, float], p: float) -> Comparison:
        told = f"student − {second}: {100 * (first - other) / 150:+.1f} points"
        return Comparison(
            first="student",
            second=second,
            difference=(first - other) / 150,
            interval=interval,
            only_first=first,
            only_second=other,
            both=both,
            neither=150 - both - first - other,
            p=p,
            sentence=foreign(f"{told}; {'shown' if p < 0.05 else 'not shown'}."),
        )

    found = SetMetrics(
        rows=150,
        dropped=2,
        classes=list(labels),
        majority=labels[1],
        models={
            "teacher": model_metrics(
                "teacher", [[40, 5, 3, 2], [2, 41, 6, 1], [4, 3, 43, 0]], labels, 134_515_008, foreign
            ),
            "student": model_metrics(
                "student", [[37, 9, 4, 0], [6, 36, 7, 1], [8, 3, 38, 1]], labels, 57_000_000, foreign
            ),
            "baseline": model_metrics(
                "baseline", [[33, 10, 6, 1], [7, 34, 9, 0], [8, 8, 34, 0]], labels, 57_000_000, foreign
            ),
            "majority": model_metrics("majority", [[0, 50, 0, 0], [0, 50, 0, 0], [0, 50, 0, 0]], labels, 0, foreign),
            "nearest": model_metrics("nearest", [[20, 20, 10, 0], [10, 30, 10, 0], [15, 5, 30, 0]], labels, 0, foreign),
            foreign("larger"): model_metrics(
                "model", [[44, 3, 3, 0], [2, 44, 4, 0], [3, 3, 44, 0]], labels, 1_700_000_000, foreign
            ),
        },
        comparisons=[
            compared("baseline", 90, 21, 11, (-0.02, 0.15), 0.11),
            compared("teacher", 102, 9, 22, (-0.16, -0.01), 0.03),
        ],
        contamination=Contamination(
            clean=140,
            found=10,
            models={"student": (share(103, 140), share(8, 10)), "teacher": (share(115, 140), share(9, 10))},
        ),
    )
    scores = {"harmful": 40, "harmless": 30, "outputs": 220, "swapped": 60}
    safety = Safety(
        base=foreign("SmolLM2-135M-Instruct"),
        models={
            "base": SafetyScores(
                model="base", refused=22, refused_harmless=3, toxic=1, private=0, swapped_changed=4, **scores
            ),
            "student": SafetyScores(
                model=foreign("the student"),
                refused=9,
                refused_harmless=0,
                toxic=2,
                private=1,
                swapped_changed=6,
                **scores,
            ),
        },
        sentences=[foreign("The student refuses 9 of 40 harmful requests, the model that it was made from 22.")],
    )
    return Metrics(label_type="text", interval=INTERVAL, eval_sets={foreign("test"): found}, safety=safety)


def cost(throughput: float, parameters: int, *, price: float | None = None) -> Cost:
    return Cost(
        parameters=parameters,
        bytes_on_disk=2 * parameters,
        peak_memory=812_000_000,
        latency={"p50": 0.031, "p95": 0.052, "p99": 0.0611},
        latency_rows=16,
        throughput=throughput,
        batch_size=32,
        rows=150,
        seconds=150 / throughput,
        cost_per_1000=price,
    )


def costs(foreign: Foreign = tame) -> Costs:
    models = {
        "student": cost(41.5, 57_000_000, price=0.004),
        "baseline": cost(40.0, 57_000_000, price=0.004),
        "teacher": cost(3.1, 134_515_008, price=0.12),
    }
    return Costs(device=foreign("cpu"), price_per_hour=0.6, models=models)


def curves(steps: int = 75, models: Sequence[str] = ("student", "baseline")) -> bytes:
    rows: list[dict[str, Any]] = []
    for model in models:
        for step in range(5, steps + 1, 5):
            row: dict[str, Any] = {
                "model": model,
                "step": step,
                "epoch": step / 25,
                "label_loss": 2.2 * 0.94**step + 0.1,
            }
            if model == "student":
                row["rationale_loss"] = 2.9 * 0.985**step + 0.6
            if step % 25 == 0:
                row |= {f"validation_{name}": value + 0.15 for name, value in row.items() if name.endswith("_loss")}
            rows.append(row)
    return b"".join(canonical_json(row) + b"\n" for row in rows)


def swept(foreign: Foreign = tame) -> bytes:
    """A learning curve: three fractions of the rows, two losses, two seeds."""
    rows = [
        Measured(
            knobs={"train.fraction": fraction, "train.seed": seed, "train.template": foreign(name)},
            eval_set=foreign("test"),
            train="t" * 32,
            evaluate="e" * 32,
            rows=150,
            correct=correct,
            accuracy=correct / 150,
            interval=accuracy_interval(correct, 150),
            steps=100,
            label_loss=0.01,
            tokens=1000,
            seconds=10.0,
        )
        for n, name in enumerate(("text", "chat"))
        for seed in (0, 1)
        for place, fraction in enumerate((0.1, 0.3, 1.0))
        for correct in [60 + 20 * place + 5 * n + 3 * seed]
    ]
    return b"".join(row.line() + b"\n" for row in rows)


def fabricate(
    run: Path,
    texts: Sequence[tuple[str, str, str]] = tuple(TEXTS),
    *,
    evaluated: bool = True,
    foreign: Foreign = tame,
    labels: Sequence[str] = LABELS,
) -> Path:
    """A whole run over ``texts``: one row unparsed, one a near duplicate, one contaminated, one too short; votes differ on one."""
    teacher = foreign("SmolLM2-135M-Instruct")
    prompts = [
        Prompt(
            id=f"{n:032x}", source=f"train.jsonl:{n + 1}", input=text, gold=label, choices=None, columns={"text": text}
        )
        for n, (text, label, _) in enumerate(texts)
    ]
    bad = Drop(
        id="row-9",
        reason=foreign("bad_row"),
        evidence={foreign("source"): foreign("train.jsonl:9"), "problem": "no text"},
    )
    finish(run, "ingest", prompts, [bad], source=foreign("data/train.jsonl"))
    responses = [
        Response(
            id=f"{prompt.id}#{sample}",
            prompt=prompt.id,
            sample=sample,
            request="c" * 32,
            teacher=teacher,
            text=f"{why} So the answer is {label}.",
            finish_reason="stop",
            prompt_tokens=200,
            completion_tokens=20,
            input=prompt.input,
            gold=prompt.gold,
            choices=None,
        )
        for prompt, (_, label, why) in zip(prompts, texts, strict=True)
        for sample in range(2)
    ]
    asked = Figures(
        requests=12,
        responses=12,
        answers=12,
        prompt_tokens=2400,
        completion_tokens=240,
        failures={},
        cost_of_tokens=0.5,
    )
    finish(
        run,
        "sample",
        responses,
        parent="ingest",
        settings={"temperature": 0.0, "n": 2, "seed": 0, "soft_labels": "labels", "teacher": [{"model": teacher}]},
        identities={f"teacher {teacher}": {"backend": "vllm", "model": {"name": teacher, "digest": "d" * 32}}},
        details={"teachers": {teacher: asked.model_dump()}},
    )
    examples = [
        Example(
            id=prompt.id,
            input=prompt.input,
            label=label,
            rationale=why,
            response=f"{prompt.id}#0",
            text=f"{why} So the answer is {label}.",
            finish_reason="stop",
            votes=[
                Vote(response=f"{prompt.id}#{n}", request="c" * 32, teacher=teacher, label=vote)
                for n, vote in enumerate((label, labels[-1] if place == 1 else label))
            ],
            gold=prompt.gold,
            choices=None,
            agreement=0.5 if place == 1 else 1.0,
            entropy=1.0 if place == 1 else 0.0,
            soft_labels={label: 0.75, "another": 0.25} if place < 3 else None,
            slices={foreign("source"): foreign("news")},
        )
        for place, (prompt, (_, label, why)) in enumerate(zip(prompts, texts, strict=True))
    ]
    unparsed = Drop(
        id=f"{prompts[-1].id}#0", reason="unparsed", evidence={"text": "I do not know.", "pattern": "(?P<label>.+)"}
    )
    told = examples[:-1]
    finish(
        run,
        "parse",
        told,
        [unparsed],
        parent="sample",
        kept=2 * len(told),  # two responses an example
        extra={COUNTS: encoded(counted(told, Truth())).encode()},
    )
    twin = {
        "twin": examples[0].id,
        "twin_text": examples[0].input,
        "text": examples[-2].input,
        "similarity": 0.84,
        "near": 0.5,
        "method": "Jaccard of 4-character shingles of the input, candidates by MinHash",
    }
    gone = [Drop(id=examples[-2].id, reason="near_duplicate", evidence=twin)]
    shifted = change(counted(told, Truth()), counted([examples[-2]], Truth())).model_dump(mode="json")
    shifted["warnings"] = [foreign("mostly hard rows go")]
    finish(run, "dedup", examples[:-2], gone, parent="parse", details={"shift": shifted})
    leak = {
        "where": "input",
        "text": examples[-3].input,
        "eval_set": foreign("test"),
        "eval_row": "41",
        "eval_source": "test.jsonl:42",
        "eval_text": f"Eval row: {examples[-3].input}",
        "method": "8-gram",
        "overlap": "bring a salad on saturday bea has gone",
    }
    gone = [Drop(id=examples[-3].id, reason="contaminated", evidence=leak)]
    details = {
        "eval_sets": {foreign("test"): {"rows": 150, "too_short": 1, "found": 1, "dropped": 1}},
        "methods": {foreign("runs"): 1},
        "shared_passages": {"rows": 0, "examples": []},
    }
    finish(run, "decontaminate", examples[:-3], gone, parent="dedup", details=details)
    short = Drop(
        id=examples[-4].id, reason=foreign("min_words"), evidence={"filter": "min_words", "words": 3, "minimum": 4}
    )
    finish(
        run,
        "quality",
        examples[:-4],
        [short],
        parent="decontaminate",
        settings={"filters": [{"min_words": {"minimum": 4}}], foreign("name"): foreign("value")},
    )
    rows = [
        TrainingRow(
            id=f"{example.id}/{task}",
            example=example.id,
            task=task,
            split="train",
            prompt=f"[{task}] {example.input}",
            completion=example.label if task == "label" else example.rationale,  # type: ignore[arg-type]
        )
        for example in examples[:-4]
        for task in TASKS
    ]
    finish(run, "shard", rows, parent="quality")
    trained = [Trained(id=row.id, example=row.example, task=row.task, split=row.split, tokens=4) for row in rows]
    finish(
        run,
        "train",
        trained,
        parent="shard",
        settings={"student": {"from": "embedded", "layers": 8}, "alpha": 0.5},
        details={"examples": {"train": 2, "validation": 0}},
        identities={"student": {"name": foreign("SmolLM2-135M-Instruct"), "from": "embedded"}},
        extra={"metrics.jsonl": curves(models=("student", "baseline", foreign("another")))},
    )
    if not evaluated:
        return run
    prediction = Prediction(
        id="test/student/41",
        eval_set="test",
        model="student",
        row="41",
        input="x",
        gold="food",
        label="food",
        correct=True,
        text="food",
    )
    said = [
        Rationale(
            eval_set="test",
            model=model,
            row=str(n),
            input=text,
            gold=label,
            choices=None,
            label=labels[1],
            rationale=why,
            finished=n != 1,
            asked_again=n == 2,
            label_after=labels[2] if n == 2 else None,
            score=4 if n == 3 else None,
        )
        for model in ("teacher", "student")
        for n, (text, label, why) in enumerate(texts[:4])
    ]
    finish(
        run,
        "evaluate",
        [prediction],
        parent="train",
        extra={
            "metrics.json": measured(labels, foreign).model_dump_json().encode(),
            "rationales.jsonl": b"".join(one.line() + b"\n" for one in said),
            "run-speed.json": costs(foreign).model_dump_json().encode(),
        },
    )
    folder = run / "sweeps" / "fractions"
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_bytes(swept(foreign))
    return run


def verdicts(foreign: Foreign = tame) -> list[gates.Verdict]:
    """Gates, one of which failed."""
    return [
        gates.Verdict(eval_set=foreign("test"), gate="accuracy", condition=">= 0.7", value=0.74, passed=True),
        gates.Verdict(eval_set="test", gate="ece", condition=foreign("<= 0.05"), value=None, passed=False),
    ]
