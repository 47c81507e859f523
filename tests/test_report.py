"""The page: its figures are the manifests', nothing in it is fetched or run, and no row can break out of it."""

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import outputs
from pipeline.evaluate import (
    INTERVAL,
    Comparison,
    Metrics,
    ModelMetrics,
    Rationale,
    SetMetrics,
    Speed,
    Speeds,
    accuracy_interval,
    label_scores,
)
from pipeline.files import RunError, canonical_json, digest, sha256, write_json
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
    Record,
    Response,
    Source,
    Trained,
    TrainingRow,
    Vote,
    features,
)
from pipeline.report import (
    build,
    charts,
    drawn,
    funnel,
    funnel_bar,
    interval_bar,
    line_chart,
    read_curves,
    shift_tables,
    thinned,
    ticks,
)
from pipeline.shift import Truth, change
from pipeline.shift import measured as counted
from pipeline.stages import STAGES
from pipeline.usage import Facts, Figures
from tests.rows import example

TEXTS = [
    ("Late goal sinks the leaders after a goalless first half", "sports", "A goal decides a match."),
    ("The relay baton hit the floor at the second exchange", "sports", "A relay is a race."),
    ("I burned the caramel twice, but the flan wobbled perfectly", "food", "Caramel and flan are cooked."),
    ("Could you bring a salad on Saturday? Bea has gone off dairy", "food", "It plans a meal."),
    ("Tiles, laundry, a tram squealing uphill, nothing booked until Tuesday", "travel", "A tram in a far town."),
    ("The express looks pricey and we arrive at midnight", "travel", "Someone arrives by train."),
]
LABELS = ["sports", "food", "travel"]
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} </style></svg>\"'&amp; \u202e\x00"


def finish(
    run: Path,
    stage: str,
    rows: Sequence[Record],
    drops: Sequence[Drop] = (),
    *,
    parent: str | None = None,
    rows_in: int | None = None,
    kept: int | None = None,
    settings: dict[str, Any] | None = None,
    extra: dict[str, bytes] | None = None,
    details: dict[str, Any] | None = None,
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
        version=1,
        key=key,
        settings=settings or {},
        parents={}
        if above is None
        else {above.parent.name: Parent(key=above.name, manifest=sha256(above / "manifest.json"))},
        asked={},
        sources=[] if parent else [Source(uri="data/train.jsonl", bytes=10, sha256="a" * 64)],
        models={},
        code=Code(package="stepdistill", version="0.1.0", commit=None, dirty=None, modules="c" * 64),
        environment=Environment(
            python="3.11.0", platform="Linux x86_64", processor="any", accelerators=[], driver=None, packages={}
        ),
        root=None,
        identities={"teacher": {"name": "SmolLM2-135M-Instruct"}} if stage == "sample" else {},
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


def model_metrics(confusion: list[list[int]], parameters: int | None, *, unanswered: int = 0) -> ModelMetrics:
    rows = sum(map(sum, confusion))
    correct = sum(row[place] for place, row in enumerate(confusion))
    return ModelMetrics(
        rows=rows,
        answered=rows - sum(row[-1] for row in confusion),
        unanswered=unanswered,
        correct=correct,
        accuracy=correct / rows,
        accuracy_interval=accuracy_interval(correct, rows),
        macro_f1=0.5,
        labels=label_scores(confusion, LABELS),
        confusion=confusion,
        same_as_teacher=rows // 2,
        teacher_rows=rows,
        parameters=parameters,
    )


def measured() -> Metrics:
    found = SetMetrics(
        rows=150,
        dropped=2,
        classes=LABELS,
        majority="food",
        models={
            "teacher": model_metrics([[40, 5, 3, 2], [2, 41, 6, 1], [4, 3, 43, 0]], None, unanswered=1),
            "student": model_metrics([[37, 9, 4, 0], [6, 36, 7, 1], [8, 3, 38, 1]], 57_000_000),
            "baseline": model_metrics([[33, 10, 6, 1], [7, 34, 9, 0], [8, 8, 34, 0]], 57_000_000),
            "majority": model_metrics([[0, 50, 0, 0], [0, 50, 0, 0], [0, 50, 0, 0]], 0),
        },
        comparisons=[
            Comparison(
                first="student",
                second="baseline",
                difference=10 / 150,
                interval=(-0.02, 0.15),
                only_first=21,
                only_second=11,
            ),
            Comparison(
                first="student",
                second="teacher",
                difference=-13 / 150,
                interval=(-0.16, -0.01),
                only_first=9,
                only_second=22,
            ),
        ],
    )
    return Metrics(label_type="text", interval=INTERVAL, eval_sets={"test": found})


def curves(steps: int = 75) -> bytes:
    rows: list[dict[str, Any]] = []
    for model in ("student", "baseline"):
        for step in range(5, steps + 1, 5):
            row = {"model": model, "step": step, "epoch": step / 25, "label_loss": 2.2 * 0.94**step + 0.1}
            if model == "student":
                row["rationale_loss"] = 2.9 * 0.985**step + 0.6
            if step % 25 == 0:
                row |= {f"validation_{name}": value + 0.15 for name, value in row.items() if name.endswith("_loss")}
            rows.append(row)
    return b"".join(canonical_json(row) + b"\n" for row in rows)


def fabricate(run: Path, texts: Sequence[tuple[str, str, str]] = tuple(TEXTS), *, evaluated: bool = True) -> Path:
    """A whole run over ``texts``: one row unparsed, one a near duplicate, one contaminated, one too short."""
    prompts = [
        Prompt(
            id=f"{n:032x}", source=f"train.jsonl:{n + 1}", input=text, gold=label, choices=None, columns={"text": text}
        )
        for n, (text, label, _) in enumerate(texts)
    ]
    finish(
        run,
        "ingest",
        prompts,
        [Drop(id="row-9", reason="bad_row", evidence={"source": "train.jsonl:9", "problem": "no text"})],
    )
    responses = [
        Response(
            id=f"{prompt.id}#0",
            prompt=prompt.id,
            sample=0,
            request="c" * 32,
            teacher="SmolLM2-135M-Instruct",
            text=f"{why} So the answer is {label}.",
            finish_reason="stop",
            prompt_tokens=200,
            completion_tokens=20,
            input=prompt.input,
            gold=prompt.gold,
            choices=None,
        )
        for prompt, (_, label, why) in zip(prompts, texts, strict=True)
    ]
    finish(run, "sample", responses, parent="ingest", settings={"temperature": 0.0, "n": 1, "seed": 0})
    examples = [
        Example(
            id=response.prompt,
            input=response.input,
            label=label,
            rationale=why,
            response=response.id,
            text=response.text,
            finish_reason="stop",
            votes=[Vote(response=response.id, request=response.request, teacher=response.teacher, label=label)],
            gold=response.gold,
            choices=None,
        )
        for response, (_, label, why) in zip(responses, texts, strict=True)
    ]
    unparsed = Drop(
        id=responses[-1].id, reason="unparsed", evidence={"text": "I do not know.", "pattern": "(?P<label>.+)"}
    )
    finish(
        run, "parse", examples[:-1], [unparsed], parent="sample", kept=2 * len(examples[:-1])
    )  # two responses an example
    twin = {
        "twin": examples[0].id,
        "twin_text": examples[0].input,
        "text": examples[-2].input,
        "similarity": 0.84,
        "near": 0.5,
        "method": "Jaccard of 4-character shingles of the input, candidates by MinHash",
    }
    finish(
        run, "dedup", examples[:-2], [Drop(id=examples[-2].id, reason="near_duplicate", evidence=twin)], parent="parse"
    )
    leak = {
        "where": "input",
        "text": examples[-3].input,
        "eval_set": "test",
        "eval_row": "41",
        "eval_source": "test.jsonl:42",
        "eval_text": f"Eval row: {examples[-3].input}",
        "method": "8-gram",
        "overlap": "bring a salad on saturday bea has gone",
    }
    gone = [Drop(id=examples[-3].id, reason="contaminated", evidence=leak)]
    finish(run, "decontaminate", examples[:-3], gone, parent="dedup")
    short = Drop(id=examples[-4].id, reason="min_words", evidence={"filter": "min_words", "words": 3, "minimum": 4})
    finish(
        run,
        "quality",
        examples[:-4],
        [short],
        parent="decontaminate",
        settings={"filters": [{"min_words": {"minimum": 4}}]},
    )
    rows = [
        TrainingRow(
            id=f"{example.id}/{task}",
            example=example.id,
            task=task,  # type: ignore[arg-type]
            split="train",
            prompt=f"[{task}] {example.input}",
            completion=example.label if task == "label" else example.rationale,  # type: ignore[arg-type]
        )
        for example in examples[:-4]
        for task in ("label", "rationale")
    ]
    finish(run, "shard", rows, parent="quality")
    trained = [Trained(id=row.id, example=row.example, task=row.task, split=row.split, tokens=4) for row in rows]
    finish(run, "train", trained, parent="shard", extra={"metrics.jsonl": curves()})
    if evaluated:
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
        told = [
            Rationale(eval_set="test", row=str(n), input=text, gold=label, label="food", rationale=why, finished=n != 1)
            for n, (text, label, why) in enumerate(texts[:4])
        ]
        speeds = {
            model: Speed(rows=150, seconds=7.5, examples_per_second=rate)
            for model, rate in (("student", 41.5), ("baseline", 40.0), ("teacher", 3.1))
        }
        finish(
            run,
            "evaluate",
            [prediction],
            parent="train",
            extra={
                "metrics.json": measured().model_dump_json().encode(),
                "rationales.jsonl": b"".join(rationale.line() + b"\n" for rationale in told),
                "run-speed.json": Speeds(device="cpu", models=speeds).model_dump_json().encode(),
            },
        )
    return run


class Page(HTMLParser):
    """Elements with their attributes, and the text; fails where an element is closed that was not open."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr", "rect", "line", "path", "circle", "polyline"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_figures_on_the_page_are_those_of_the_manifests(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "topics")
    page = squeezed(read(build(run)).text)
    for stage in (name for name in STAGES if STAGES[name].on):
        folder = outputs.current(run, stage)
        assert folder is not None
        manifest = outputs.read_manifest(folder)
        assert manifest.key in page
        assert manifest.digest in page
        if stage != "evaluate":
            counts, what = manifest.counts, squeezed(STAGES[stage].what.replace("`", ""))
            assert (
                f"{stage} {what} {counts.rows_in} {counts.unit} in, {counts.kept} kept, {counts.dropped} dropped"
                in page
            )
            written = f"{counts.dropped} dropped; {counts.rows_out} rows written"
            assert (written in page) == (stage == "parse")
            for reason, number in counts.reasons.items():
                assert f"{reason.replace('_', ' ')} {number}" in page


def test_models_stand_with_accuracy_and_interval(tmp_path: Path) -> None:
    page = squeezed(read(build(fabricate(tmp_path / "topics"))).text)
    for name, figures in measured().eval_sets["test"].models.items():
        low, high = figures.accuracy_interval
        assert f"{name} {figures.accuracy:.1%} {low:.1%} to {high:.1%}" in page
    assert "The student gives the right answer to 74.0% of the 150 rows of test" in page
    assert "student − baseline: +6.7 points (−2.0 to +15.0), which these rows do not tell apart from none" in page
    assert "student − teacher: −8.7 points (−16.0 to −1.0) student alone" in page
    assert "41.5" in page
    assert "57.0M" in page


def sampled(run: Path, figures: dict[str, Any], facts: dict[str, Any] | bytes | None) -> None:
    """A run of one sample stage with these figures of its teachers."""
    content = facts if isinstance(facts, bytes) else canonical_json(facts)
    extra = {} if facts is None else {"run-speed.json": content}
    finish(run, "sample", [], rows_in=0, extra=extra, details={"teachers": figures})


def figures_of(requests: int, failures: dict[str, int], tokens: int, cost: float) -> dict[str, Any]:
    answers = requests - sum(failures.values())
    return Figures(
        requests=requests, responses=answers, answers=answers - 7, prompt_tokens=9 * tokens, completion_tokens=tokens,
        failures=failures, cost_of_tokens=cost,
    ).model_dump()  # fmt: skip


def test_what_each_teacher_was_asked_stands_on_the_page(tmp_path: Path) -> None:
    facts = Facts(
        requests=1234, answers=1200, seconds=61.5, requests_per_second=20.0, tokens_per_second=987.6, prompt_tokens=5,
        cached_tokens=4321, completion_tokens=6, finish_reasons={"stop": 1200}, failures={"refused": 34}, cost=0.0456,
    )  # fmt: skip
    figures = {
        HOSTILE: figures_of(5000, {"prompt_too_long": 21, "refused": 34}, 123456, 7.5),
        "other": figures_of(2500, {}, 0, 0.0),
    }
    sampled(tmp_path / "run", figures, {HOSTILE: facts.model_dump()})
    path = build(tmp_path / "run")
    page = squeezed(read(path).text)
    assert (
        f"{squeezed(HOSTILE)} refused 34prompt too long 21 5,000 1,234 asked for this result 4,945 by 4,938 answers 1,111,104 4,321 cached "
        "123,456 25.0 an answer 987.6 in 61.5 s 7.50 0.046 for what was asked" in page
    )
    assert "other 2,500 none asked for this result 2,500 by 2,493 answers 0 0 0.0 an answer – –" in page
    assert "<script" not in path.read_text()


@pytest.mark.parametrize("left", [None, b"{}", b"[]", b"{", b'{"m": {"requests": 1}}'])
def test_without_measurements_the_page_shows_what_is_known(tmp_path: Path, left: bytes | None) -> None:
    sampled(tmp_path / "run", {"m": figures_of(100, {}, 1000, 0.5)}, left)
    page = squeezed(read(build(tmp_path / "run")).text)
    assert "m 100 none asked for this result 100 by 93 answers 9,000 1,000 10.8 an answer – 0.50" in page


def test_a_result_of_an_earlier_version_has_no_figures_of_teachers(tmp_path: Path) -> None:
    sampled(tmp_path / "run", {"m": {"requests": 3}}, None)
    assert "What the teachers were asked" not in read(build(tmp_path / "run")).text


def filtered(run: Path, names: Sequence[str]) -> Path:
    """A run whose quality stage dropped 40 of 50 rows of the first label and slice, and 5 of 50 of each other."""
    rows = [
        example(
            f"{name} {n}",
            label=name,
            gold=name,
            slices={names[0]: name},
            input="x" * (n + 1),
            entropy=(n % 2) * 0.97,
            agreement=1.0,
        )
        for name in names
        for n in range(50)
    ]
    gone = [row for row in rows if int(row.id.rpartition(" ")[2]) < (40 if row.label == names[0] else 5)]
    kept = [row for row in rows if row not in gone]
    found = change(counted(rows, Truth()), counted(gone, Truth()))
    drops = [Drop(id=row.id, reason="min_words", evidence={}) for row in gone]
    details = {"shift": found.model_dump(mode="json")}
    finish(run, "quality", kept, drops, rows_in=len(rows), details=details)
    return run


def test_what_filtering_did_stands_on_the_page(tmp_path: Path) -> None:
    page = squeezed(read(build(filtered(tmp_path / "run", ["travel", "food", "sports"]))).text)
    assert "quality 50 of 150 dropped" in page
    assert (
        "the labels shift by 23.3 points (travel 33.3% -> 10.0%, food 33.3% -> 45.0%, sports 33.3% -> 45.0%; p 1e-16, Cramér's V 0.70)"
        in page
    )
    for column in ("label", "true label", "slice: travel"):
        assert f"{column} rows in kept share, before and after dropped food 50 45 33.3% → 45.0% 10.0%" in page
    assert page.count("travel (mostly gone) 50 10 33.3% → 10.0% 80.0%") == 3
    assert "3 different; 23.3% of the rows moved from one to another; dropped against kept: p" in page
    assert "vote entropy, bits rows in kept share, before and after dropped 0 75 49 50.0% → 49.0% 34.7%" in page
    assert "input, characters 25.5 13 · 25 · 38 29.8 18 · 30 · 42 17 5 · 15 · 28 " in page
    assert "Of the labels that can be held against a true one, 100.0% were right before and 100.0% after." in page


def test_hostile_labels_and_slices_stay_text(tmp_path: Path) -> None:
    tame = read(build(filtered(tmp_path / "tame", ["travel", "food", "sports"])))
    path = build(filtered(tmp_path / "hostile", [HOSTILE, f"food {HOSTILE}", f"sports {HOSTILE}"]))
    assert [tag for tag, _ in read(path).elements] == [tag for tag, _ in tame.elements]
    assert "<script" not in path.read_text()
    assert "<script>alert(1)</script>" in read(path).text


def test_only_the_most_frequent_labels_and_those_that_are_gone_are_shown(tmp_path: Path) -> None:
    rows = [example(f"{name} {n}", label=f"l{name:02}") for name in range(30) for n in range(100 - name)]
    gone = [row for row in rows if row.label == "l20"]
    found = change(counted(rows, Truth()), counted(gone, Truth()))
    labels = shift_tables(found)[0]
    assert [value.name for value in labels.rows] == [f"l{name:02}" for name in range(10)] + ["l20", "all others"]
    assert (labels.warned, sum(value.before for value in labels.rows)) == (["l20"], len(rows))
    assert sum(value.after for value in labels.rows) == len(rows) - len(gone)


def test_a_stage_that_dropped_nothing_has_no_table(tmp_path: Path) -> None:
    rows = [example(f"r{n}") for n in range(5)]
    details = {"shift": change(counted(rows, Truth()), counted([], Truth())).model_dump(mode="json")}
    finish(tmp_path, "quality", rows, details=details)
    assert "What filtering did" not in read(build(tmp_path)).text


@pytest.mark.parametrize("left", [None, [], {"rows": 1}, {"warnings": "x"}])
def test_a_record_of_another_shape_is_passed_over(tmp_path: Path, left: object) -> None:
    finish(tmp_path, "quality", [example()], details={"shift": left})
    assert "What filtering did" not in read(build(tmp_path)).text


def test_near_duplicates_and_leaks_stand_beside_what_they_repeat(tmp_path: Path) -> None:
    page = squeezed(read(build(fabricate(tmp_path / "topics"))).text)
    assert f"{TEXTS[4][0]} the row that was kept for it {TEXTS[0][0]}" in page
    assert f"the eval row Eval row: {TEXTS[3][0]}" in page
    assert "overlap bring a salad on saturday bea has gone" in page
    assert "I do not know." in page


def test_nothing_is_fetched_and_nothing_runs(tmp_path: Path) -> None:
    path = build(fabricate(tmp_path / "topics"))
    source, page = path.read_text(), read(path)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|javascript:", source)
    names = {name for _, attributes in page.elements for name in attributes}
    assert not names & {"src", "href", "srcset", "action", "data", "xlink:href"}
    assert not any(name.startswith("on") for name in names)
    assert not {tag for tag, _ in page.elements} & {
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "img",
    }
    policies = [found for tag, found in page.elements if found.get("http-equiv") == "Content-Security-Policy"]
    assert [found["content"] for found in policies] == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_hostile_rows_stay_text(tmp_path: Path) -> None:
    tame = read(build(fabricate(tmp_path / "tame")))
    run = fabricate(tmp_path / "hostile", [(f"{HOSTILE} {n}", HOSTILE, HOSTILE) for n in range(6)])
    path = build(run, HOSTILE)
    page = read(path)
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in tame.elements]
    assert "<script" not in path.read_text()
    assert "{{ 7*7 }}" in page.text
    assert "<script>alert(1)</script>" in page.text


def test_hostile_names_in_measurements_stay_text(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run")
    folder = outputs.current(run, "evaluate")
    assert folder is not None
    found = json.loads((folder / "metrics.json").read_bytes())
    found["eval_sets"] = {
        HOSTILE: found["eval_sets"]["test"] | {"classes": [HOSTILE, "food", "travel"], "majority": HOSTILE}
    }
    for figures in found["eval_sets"][HOSTILE]["models"].values():
        figures["labels"][HOSTILE] = figures["labels"].pop("sports")
    write_json(folder / "metrics.json", found)
    trained = outputs.current(run, "train")
    assert trained is not None
    (trained / "metrics.jsonl").write_bytes(canonical_json({"model": HOSTILE, "step": 1, "label_loss": 1.0}) + b"\n")
    path = build(run)
    assert "<script" not in path.read_text()
    assert not {tag for tag, _ in read(path).elements} & {"script", "img"}


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    first = build(fabricate(tmp_path / "a" / "topics")).read_bytes()
    assert build(tmp_path / "a" / "topics").read_bytes() == first
    assert build(fabricate(tmp_path / "b" / "topics")).read_bytes() == first


def test_a_run_that_is_not_finished_has_a_page_of_what_there_is(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "topics", evaluated=False)
    assert "has not been evaluated yet" in read(build(run)).text
    partial = tmp_path / "partial"
    finish(partial, "ingest", [Prompt(id="1", source="a:1", input="x", gold=None, choices=None, columns={})])
    page = squeezed(read(build(partial, "half done")).text)
    assert "half done" in page
    assert "1 rows in, 1 kept, 0 dropped" in page
    assert "None: every row that came in went on." in page


def test_no_stage_no_page(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no finished stage"):
        build(tmp_path)
    assert not (tmp_path / "report").exists()


def test_a_changed_manifest_gives_no_page(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "topics")
    folder = outputs.current(run, "dedup")
    assert folder is not None
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"kept":4', b'"kept":5'))
    with pytest.raises(RunError, match="digest"):
        build(run)


def test_results_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "topics")
    assert "belongs together" not in read(build(run)).text
    quality = outputs.current(run, "quality")
    assert quality is not None
    rows = list(outputs.read(quality, Example))
    finish(run, "quality", rows[:1], parent="decontaminate")
    page = squeezed(read(build(run)).text)
    assert "shard was made from an earlier result of quality; train was made from shard, which is out of date" in page


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "topics")
    folder = outputs.current(run, "dedup")
    assert folder is not None
    (folder / "dropped.jsonl").unlink()
    with pytest.raises(RunError, match="dropped.jsonl: cannot be read"):
        build(run)


def test_only_a_few_of_many_drops_are_shown_and_the_page_says_so(tmp_path: Path) -> None:
    drops = [Drop(id=f"d{n}", reason="too_long", evidence={"words": n}) for n in range(500)]
    finish(
        tmp_path, "ingest", [Prompt(id="1", source="a:1", input="y" * 5000, gold=None, choices=None, columns={})], drops
    )
    page = squeezed(read(build(tmp_path, rows_per_reason=4)).text)
    assert "ingest: too long 500 dropped, 4 of them here" in page
    assert len(re.findall(r"\bd\d+\b", page)) == 4


def test_long_texts_are_cut_and_say_so(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "long", [("long " * 1000 + str(n), "food", "short") for n in range(6)])
    assert "… (cut here; 5,001 characters in all)" in read(build(run)).text


# Parts


@given(st.floats(0, 1), st.floats(0, 1))
def test_funnel_bars_fill_what_came_in(one: float, other: float) -> None:
    start, end = max(one, other), min(one, other)
    kept, dropped = (
        float(width)
        for width in re.findall(r'class="(?:kept|dropped)"[^/]*?width="([\d.]+)"', str(funnel_bar(start, end)))
    )
    assert kept + dropped == pytest.approx(start * 1000, abs=4.2)
    assert dropped >= min(4, start * 1000) - 0.1 if start - end > 1e-6 else dropped == 0 or start > end


def test_each_stage_starts_where_its_parent_ended(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "topics")
    manifests = {name: outputs.read_manifest(folder) for name in STAGES if (folder := outputs.current(run, name))}
    bars = {bar.manifest.stage: bar for bar in funnel(manifests)}
    assert (bars["ingest"].start, bars["ingest"].end) == (1.0, pytest.approx(6 / 7))
    assert bars["quality"].end == pytest.approx(6 / 7 * 10 / 11 * 2 / 5)
    assert bars["shard"].end == bars["train"].end == bars["quality"].end  # two rows an example make the bar no wider
    for before, after in (("ingest", "sample"), ("parse", "dedup"), ("quality", "shard")):
        assert bars[after].start == bars[before].end


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_are_even_and_enclose(low: float, width: float) -> None:
    found = ticks(low, low + width)
    rounding = 1e-6 * (1 + abs(low) + width)
    assert found[0] <= low + rounding
    assert found[-1] >= low + width - rounding
    assert 2 <= len(found) <= 8
    steps = [after - before for before, after in pairwise(found)]
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-3)


@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 50)), min_size=1, max_size=300))
def test_charts_stay_inside_their_frame(drawn_points: list[tuple[float, float]]) -> None:
    rows = [{"model": "student", "step": step, "label_loss": loss} for step, loss in drawn_points]
    ((_, chart, (line,)),) = charts(rows)
    assert len(line.points) <= 240
    for pair in re.findall(r"(-?[\d.]+),(-?[\d.]+)", re.search(r'points="([^"]*)"', str(chart))[1]):  # type: ignore[index]
        x, y = map(float, pair)
        assert 45 <= x <= 429
        assert 11 <= y <= 229


def test_charts_hold_a_line_for_each_model_and_split(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(curves())
    found = {title: [line.name for line in lines] for title, _, lines in charts(read_curves(tmp_path))}
    assert found == {
        "Label loss": ["student", "student, validation", "baseline", "baseline, validation"],
        "Rationale loss": ["student", "student, validation"],
    }
    assert charts([{"model": "student", "step": None, "label_loss": float("nan")}]) == []


def test_names_in_charts_are_escaped() -> None:
    chart = str(line_chart([], "<x>", "<y>"))
    assert "<x>" not in chart
    assert "&lt;y&gt;" in chart


@given(st.lists(st.tuples(st.floats(0, 1e3), st.floats(0, 1e3)), max_size=200), st.integers(1, 50))
def test_thinning_keeps_the_mean(points: list[tuple[float, float]], most: int) -> None:
    found = thinned(points, most)
    assert len(found) <= most
    if points and len(points) % len(found) == 0:
        assert sum(y for _, y in found) / len(found) == pytest.approx(sum(y for _, y in points) / len(points))


@given(st.integers(0, 200), st.integers(0, 20), st.text(max_size=3))
def test_a_sample_is_in_order_and_the_same_again(rows: int, size: int, seed: str) -> None:
    found = drawn(range(rows), size, seed)
    assert found == sorted(set(found)) == drawn(range(rows), size, seed)
    assert len(found) == min(rows, size)


def test_every_row_is_as_likely_to_be_drawn() -> None:
    hits = [0] * 20
    for seed in range(4000):
        for row in drawn(range(20), 5, str(seed)):
            hits[row] += 1
    assert all(880 < count < 1120 for count in hits)  # 1000 expected, standard deviation 27


def test_the_whisker_stands_on_the_interval() -> None:
    bar = str(interval_bar(0.5, (0.4, 0.6), "student"))
    assert 'width="100.0"' in bar
    assert "M80.0 12H120.0" in bar
