"""What votes are worth on the demo's task: the teacher's accuracy against the true labels of its 442 training inputs.

    python benchmarks/votes.py [SAMPLES]

One greedy answer, and the likeliest label of its soft label, beside SAMPLES (5) sampled ones: each, and their majority. Differences to
the greedy answer with a paired bootstrap interval. The engine is started twice.
"""

import random
import sys
import tempfile
from pathlib import Path

import pipeline
from pipeline import outputs
from pipeline.parse import parse
from pipeline.project import init
from pipeline.records import Drop, Example, Response

TEMPERATURE = 0.7


def examples(folder: Path, overrides: list[str]) -> tuple[dict[str, Example], list[Response]]:
    outcomes = pipeline.run(folder / "stages.yaml", until="parse", overrides=overrides)
    kept = {row.id: row for row in outputs.read(outcomes[-1].folder, Example)}
    return kept, list(outputs.read(outcomes[-2].folder, Response))


def interval(differences: list[int]) -> str:
    chance = random.Random(0)
    size = len(differences)
    draws = sorted(sum(chance.choices(differences, k=size)) / size for _ in range(2000))
    return f"{100 * sum(differences) / size:+.1f} [{100 * draws[50]:+.1f}, {100 * draws[1949]:+.1f}]"


def main() -> None:
    samples = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "project"
        init(folder)
        soft = "sample.soft_labels={after: 'So the answer is '}"
        greedy, first = examples(folder, [soft])
        voted, responses = examples(folder, [f"sample.n={samples}", f"sample.temperature={TEMPERATURE}"])
    gold = {row.prompt: row.gold for row in [*first, *responses]}
    settings = {
        "pattern": r"(?P<rationale>.+?)\s*So the answer is (?P<label>.+?)\.?",
        "labels": sorted(set(map(str, gold.values()))),
    }
    by_sample: dict[int, set[str]] = {}
    for row in responses:
        (found,) = parse([row], **settings)  # type: ignore[arg-type]
        right = not isinstance(found, Drop) and found.label == row.gold
        by_sample.setdefault(row.sample, set()).update([row.prompt] if right else [])
    right = {
        "one greedy answer": {id for id, one in greedy.items() if one.label == one.gold},
        "greedy, soft labels": {
            id for id, one in greedy.items() if one.soft_labels and best(one.soft_labels) == one.gold
        },
        f"majority of {samples}": {id for id, one in voted.items() if one.label == one.gold},
    }
    base = right["one greedy answer"]
    print(f"{len(gold)} inputs; temperature {TEMPERATURE} where sampled")
    for what, rows in right.items():
        difference = interval([(id in rows) - (id in base) for id in gold])
        print(f"{what:<24} {100 * len(rows) / len(gold):5.1f}%  against greedy {difference}")
    singles = [100 * len(rows) / len(gold) for rows in by_sample.values()]
    print(
        f"single sampled answers   {min(singles):.1f}% to {max(singles):.1f}%, mean {sum(singles) / len(singles):.1f}%"
    )
    agreed = [one for one in voted.values() if one.agreement == 1]
    if agreed:
        share = 100 * sum(one.label == one.gold for one in agreed) / len(agreed)
        print(f"where all {samples} agree: {len(agreed)} inputs, {share:.1f}% right")


def best(distribution: dict[str, float]) -> str:
    return max(distribution, key=lambda label: distribution[label])


if __name__ == "__main__":
    main()
