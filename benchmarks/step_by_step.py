"""Do rationales make a small student better with less data? Distilling Step-by-Step beside standard fine-tuning, on PaLM 540B's rationales.

    python -m benchmarks.step_by_step DATA --out FOLDER [--task svamp] [--seeds 3] [--steps 100] [--part main ...]
    python -m benchmarks.step_by_step --table FOLDER          # what is there so far, as Markdown, and curve.svg

DATA holds svamp/ and cqa/ (rows and PaLM's completions as published with the paper). Nothing is filtered but what cannot be parsed, as in
the paper. Both methods get the same student, rows, steps, batch, schedule and seeds; a tenth of the training rows is held back, the
learning rate is searched on it alone, for both methods alike, and each training keeps the weights of its best validation by generated
labels (looked at every third of the steps). Test rows are answered once, greedily, by those weights.

    main         standard and step by step at 25% and 100% of the training rows, true labels
    search       both at 25%, other learning rates, first seed
    alpha        step by step at 25%, alpha 0.1 and 0.9
    teacher      both at 25%, the teacher's labels instead of the true ones

Each training is a process of its own and one line of results.jsonl; what is there is not trained again.
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BATCH = 16
METHODS = {"standard": ["label"], "step by step": ["label", "rationale"]}
RATES = (2e-4, 5e-4)


def cells(part: str, *, seeds: int, steps: int, rate: float) -> Iterator[dict[str, Any]]:
    """The trainings of one part of the reproduction, in the order in which they are worth having."""
    plain = {"label": "gold", "alpha": 0.5, "fraction": 0.25, "steps": steps, "rate": rate, "seed": 0}
    if part == "search":
        for other in RATES:
            yield from ({**plain, "method": method, "rate": other} for method in METHODS)
        return
    if part == "main":
        for fraction, seed in product((0.25, 1.0), range(seeds)):
            yield from ({**plain, "method": method, "fraction": fraction, "seed": seed} for method in METHODS)
        return
    for seed in range(seeds):
        start = {**plain, "seed": seed}
        if part == "alpha":
            yield from ({**start, "method": "step by step", "alpha": alpha} for alpha in (0.1, 0.9))
        elif part == "teacher":
            yield from ({**start, "method": method, "label": "vote"} for method in METHODS)


def shards(data: Path, task: str, label: str, out: Path) -> Path:
    """Training rows of a task with this kind of label, through the pipeline's own stages."""
    import pipeline

    project = out / "project"
    if not project.exists():
        shutil.copytree(ROOT / "examples" / task, project, ignore=shutil.ignore_patterns("data", "runs"))
        (project / "data").symlink_to((data / task).resolve())
    off = [f"{stage}=false" for stage in ("dedup", "decontaminate", "quality")]
    asked = [f"shard.label={label}", "shard.rationale_of_other_label=keep", "shard.validation=0.1"]
    return pipeline.run(project / "stages.yaml", until="shard", overrides=[*off, *asked])[-1].folder


def train_cell(cell: dict[str, Any], folder: Path, student: str, task: str) -> dict[str, Any]:
    """Train and test one cell; its figures, and which test rows it has right."""
    import pipeline.config
    from pipeline import labels
    from pipeline.formats import Format
    from pipeline.generate import greedy
    from pipeline.ingest import prompts
    from pipeline.project import train_alone
    from pipeline.records import Prompt
    from pipeline.shard import student_prompt
    from pipeline.student import StudentSettings, load
    from pipeline.train import read_shards

    rows = Path(cell["shards"])
    examples = sum(row.task == "label" and row.split == "train" for row in read_shards(rows))
    each = math.ceil(round(cell["fraction"] * examples) / BATCH)
    kind = "equation" if task == "svamp" else "choice"
    settings = {
        "targets": json.dumps(METHODS[cell["method"]]),
        "alpha": cell["alpha"],
        "fraction": cell["fraction"],
        "epochs": cell["steps"] / each,
        "learning_rate": f"{cell['rate']:.6f}",
        "batch_size": BATCH,
        "seed": cell["seed"],
        "evaluate_every": max(1, cell["steps"] // 3),
        "accept_terms": "reproduction of published figures",
        "checkpoint_seconds": 120,
    }
    given = [f"{name}={value}" for name, value in settings.items()]
    details = train_alone(rows, student, folder, None, given)
    model, tokenizer, _ = load(StudentSettings.model_validate({"from": str(folder / "student")}))
    eval_set = pipeline.config.load(Path(cell["project"])).eval_sets["test"]
    given_rows = prompts(
        eval_set.path, input=eval_set.input or "", gold=eval_set.gold, choices=eval_set.choices, id=eval_set.id
    )
    test = [row for row in given_rows if isinstance(row, Prompt)]
    asked = [Format().prompt_ids(tokenizer, student_prompt("label", row.input)) for row in test]
    said = greedy(model, tokenizer, asked, end=tokenizer.eos_token_id, max_new_tokens=24)
    right = [
        answer.finished and labels.same((answer.text or "").strip(), row.gold or "", kind)  # type: ignore[arg-type]
        for answer, row in zip(said, test, strict=True)
    ]
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    looks = [line for line in history if "validation_label_accuracy" in line]
    speed = json.loads((folder / "run-train.json").read_text())["student"]
    return {
        **{name: value for name, value in cell.items() if name not in ("shards", "project")},
        "task": task,
        "student": student,
        "rows": len(test),
        "correct": sum(right),
        "accuracy": sum(right) / len(test),
        "validation": [
            [line["step"], line["validation_label_accuracy"], line["validation_label_loss"]] for line in looks
        ],
        "examples": details["examples"],
        "seconds": speed["seconds"],
        "tokens": speed["tokens"],
        "right": "".join("01"[one] for one in right),
        "said": [answer.text for answer in said[:5]],
    }


def name(cell: dict[str, Any]) -> str:
    """A cell's own, short: a digest of what it is."""
    known = {field: cell[field] for field in ("method", "label", "alpha", "fraction", "steps", "rate", "seed")}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]


def read(out: Path) -> dict[str, dict[str, Any]]:
    path = out / "results.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {name(cell): cell for cell in found}


def chosen_rate(found: dict[str, dict[str, Any]], default: float) -> float:
    """The learning rate with the best validation, both methods' added up; the default where none was searched."""
    scores: dict[float, list[float]] = defaultdict(list)
    for cell in found.values():
        if cell["seed"] == 0 and cell["fraction"] == 0.25 and cell["label"] == "gold" and cell["alpha"] == 0.5:
            scores[cell["rate"]].append(max(accuracy for _, accuracy, _ in cell["validation"]))
    whole = {rate: sum(both) for rate, both in scores.items() if len(both) == len(METHODS)}
    return max(whole, key=whole.__getitem__) if whole else default


def run(arguments: argparse.Namespace) -> None:
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    rate = arguments.rate
    for part in arguments.part:
        if part != "search" and rate is None:
            rate = chosen_rate(read(out), 2e-4)
            print(f"learning rate: {rate:g}", flush=True)
        for cell in cells(part, seeds=arguments.seeds, steps=arguments.steps, rate=rate or 2e-4):
            if name(cell) in read(out):
                continue
            cell["shards"] = str(shards(arguments.data, arguments.task, cell["label"], out).resolve())
            cell["project"] = str((out / "project" / "stages.yaml").resolve())
            with tempfile.TemporaryDirectory(dir=out) as scratch:
                command = [sys.executable, "-m", "benchmarks.step_by_step", str(arguments.data), "--out", scratch]
                command += ["--task", arguments.task, "--student", arguments.student, "--cell", json.dumps(cell)]
                done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                sys.exit(f"{cell}: exit {done.returncode}")
            line = done.stdout.splitlines()[-1]
            with (out / "results.jsonl").open("a") as file:
                file.write(line + "\n")
            figures = json.loads(line)
            told = {
                field: figures[field]
                for field in ("method", "label", "alpha", "fraction", "seed", "rate", "accuracy", "seconds")
            }
            print(json.dumps(told), flush=True)


def across(values: list[float]) -> str:
    """Mean with its 95% t interval over seeds, in percent."""
    from scipy.stats import t

    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{100 * mean:.1f}"
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{100 * mean:.1f} [{100 * (mean - half):.1f}, {100 * (mean + half):.1f}]"


def paired(pairs: list[tuple[str, str]]) -> tuple[float, float, float]:
    """Mean difference of the second to the first, and its 95% bootstrap interval over test rows, all seeds of a row drawn together."""
    import numpy

    rows = numpy.mean(
        [[int(two) - int(one) for one, two in zip(first, second, strict=True)] for first, second in pairs], axis=0
    )
    drawn = numpy.random.default_rng(0).choice(rows, (10_000, len(rows))).mean(1)
    low, high = numpy.quantile(drawn, [0.025, 0.975])
    return float(rows.mean()), float(low), float(high)


def table(out: Path) -> str:
    from pipeline.intervals import accuracy_interval

    groups: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = defaultdict(dict)
    for cell in read(out).values():
        groups[
            cell["label"],
            cell["fraction"],
            cell["alpha"] if len(METHODS[cell["method"]]) > 1 else None,
            cell["method"],
            cell["rate"],
        ][cell["seed"]] = cell
    lines = [
        "| labels | rows | method | alpha | learning rate | seeds | accuracy, mean over seeds [95%, t] | pooled answers [95%, Wilson] | validation |",  # noqa: E501
        "|---|---|---|---|---|---|---|---|---|",
    ]
    said = {"gold": "true", "vote": "teacher"}
    for key in sorted(groups, key=lambda key: (key[0], key[1], key[3], key[4], key[2] or 0)):
        found = groups[key]
        label, fraction, alpha, method, rate = key
        right, rows = sum(cell["correct"] for cell in found.values()), sum(cell["rows"] for cell in found.values())
        low, high = accuracy_interval(right, rows)
        seen = statistics.mean(max(accuracy for _, accuracy, _ in cell["validation"]) for cell in found.values())
        lines.append(
            f"| {said[label]} | {fraction:.0%} | {method} | {'' if alpha is None else alpha} | {rate:g} | {len(found)} | "
            f"{across([cell['accuracy'] for cell in found.values()])} | "
            f"{100 * right / rows:.1f} [{100 * low:.1f}, {100 * high:.1f}] | {100 * seen:.1f} |"
        )
    lines += [
        "",
        "Step by step minus standard, same seeds and rows; the interval is a bootstrap over test rows.",
        "",
        "| labels | rows | alpha | learning rate | seeds | difference |",
        "|---|---|---|---|---|---|",
    ]
    for (label, fraction, alpha, method, rate), found in sorted(groups.items(), key=lambda entry: str(entry[0])):
        other = groups.get((label, fraction, None, "standard", rate), {})
        both = sorted(set(found) & set(other)) if method != "standard" else []
        if both:
            mean, low, high = paired([(other[seed]["right"], found[seed]["right"]) for seed in both])
            lines.append(
                f"| {said[label]} | {fraction:.0%} | {alpha} | {rate:g} | {len(both)} | "
                f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] |"
            )
    return "\n".join(lines)


def plot(out: Path) -> Path:
    """Accuracy against the share of the training rows, a point for each seed."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    found = [cell for cell in read(out).values() if cell["label"] == "gold" and cell["alpha"] == 0.5]
    rate = chosen_rate(read(out), 2e-4)
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for method, marker in zip(METHODS, "os", strict=True):
        here = [cell for cell in found if cell["method"] == method and cell["rate"] == rate]
        shares = sorted({cell["fraction"] for cell in here})
        means = [statistics.mean(cell["accuracy"] for cell in here if cell["fraction"] == share) for share in shares]
        (line,) = axes.plot([100 * share for share in shares], [100 * mean for mean in means], label=method)
        axes.scatter(
            [100 * cell["fraction"] for cell in here],
            [100 * cell["accuracy"] for cell in here],
            marker=marker,
            alpha=0.5,
            color=line.get_color(),
        )
    axes.set(xlabel="training rows used, %", ylabel="test accuracy, %", ylim=(0, None))
    axes.legend()
    figure.tight_layout()
    figure.savefig(out / "curve.svg", metadata={"Date": None})
    return out / "curve.svg"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--task", choices=["svamp", "cqa"], default="svamp")
    parser.add_argument("--student", default="embedded")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--part", nargs="+", default=["search", "main", "alpha", "teacher"])
    parser.add_argument("--cell")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.table))
        print(f"\n{plot(arguments.table)}")
    elif arguments.cell:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        figures = train_cell(json.loads(arguments.cell), arguments.out / "training", arguments.student, arguments.task)
        print(json.dumps(figures))
    else:
        run(arguments)


if __name__ == "__main__":
    main()
