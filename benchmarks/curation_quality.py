"""How well curation works: precision and recall of dedup, decontaminate and the filters on planted cases, as tables for docs/benchmarks.md.

    python -m benchmarks.curation_quality DATA [--seed 0] [--only contamination|dedup|filters] [--json FILE]

DATA is a folder with ``svamp`` and ``cqa`` (planted.py says what is made of them). Figures are reported with seed 0 and settings tuned
with seed 1: the two share no eval row. Intervals are Wilson's at 95%.
"""

import argparse
import inspect
import json
import math
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import planted
from benchmarks.planted import Contamination, Real, Truth
from pipeline import labels as label_forms
from pipeline.binding import Call
from pipeline.decontaminate import decontaminate
from pipeline.dedup import dedup
from pipeline.files import plain
from pipeline.filters import FILTERS
from pipeline.labels import LabelType
from pipeline.parse import parse
from pipeline.quality import DEFAULT, quality
from pipeline.records import Drop, Example, Response
from pipeline.shots import FewShot
from pipeline.text import normalise

Found = list[str | None]
"""For each row the id of the eval row (or other row) that it was dropped for, "" where none is named; None where it was kept."""

PREVALENCE = 0.01  # what share of a real corpus may be leaked; the planted share is far higher


def wilson(hits: int, of: int) -> tuple[float, float]:
    """The 95% interval of a share of which ``hits`` in ``of`` were seen."""
    if of == 0:
        return 0.0, 1.0
    z, share = 1.959964, hits / of
    middle, spread = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    scale = 1 + z * z / of
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def percent(hits: int, of: int, *, interval: bool = True) -> str:
    """``97.0 [94.8, 98.3]``, in per cent; "" where nothing was counted."""
    if of == 0:
        return ""
    low, high = wilson(hits, of)
    return f"{100 * hits / of:.1f}" + (f" [{100 * low:.1f}, {100 * high:.1f}]" if interval else "")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


# Contamination ------------------------------------------------------------------------------------------------------------------------


def any_hit(case: Contamination, n: int, most: int | None = None) -> Found:
    """A plain rule: some run of ``n`` words of the row stands in an eval row (open-r1: 8, datatrove: 12, lm-eval: 13).

    ``most``: runs that more training rows have do not count (GPT-3: 13 words, 10 rows).
    """
    where = {run: id for texts in case.eval_texts.values() for id, text in texts.items() for run in _runs(text, n)}
    shared = [
        {run for text in (row.input, row.rationale or "") for run in _runs(text, n) if run in where}
        for row in case.rows
    ]
    rows = Counter(run for runs in shared for run in runs)
    return [next((where[run] for run in sorted(runs) if most is None or rows[run] <= most), None) for runs in shared]


def coverage(case: Contamination, n: int = 5, least: float = 0.5) -> Found:
    """A plain rule: ``least`` of an eval row's different runs of ``n`` words stand in the row."""
    sizes: dict[str, int] = {}
    where: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for texts in case.eval_texts.values():
        for id, text in texts.items():
            runs = set(_runs(text, n))
            sizes[id] = len(runs)
            for run in runs:
                where[run].append(id)
    found: Found = []
    for row in case.rows:
        best: tuple[float, str | None] = (0.0, None)
        for text in (row.input, row.rationale or ""):
            counts = Counter(id for run in set(_runs(text, n)) for id in where.get(run, ()))
            best = max([best, *((count / sizes[id], id) for id, count in counts.items())], key=lambda one: one[0])
        found.append(best[1] if best[0] >= least else None)
    return found


def _runs(text: str, n: int) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def ours(case: Contamination, **settings: Any) -> Found:
    """The stage itself."""
    verdicts = list(decontaminate(case.rows, eval_sets=case.eval_sets, **settings))
    return [None if verdict is None else str(verdict.evidence.get("eval_row", "")) for verdict in verdicts]


def contamination_rules() -> dict[str, Callable[[Contamination], Found]]:
    """What is compared: our defaults, our presets, and plain rules that share no code with them."""
    rules: dict[str, Callable[[Contamination], Found]] = {"defaults": ours}
    if "preset" in inspect.signature(decontaminate).parameters:
        for preset in ("open_r1", "lm_eval", "gpt3", "datatrove", "open_instruct"):
            rules[preset] = lambda case, preset=preset: ours(case, preset=preset)
    for n in (8, 12, 13):
        rules[f"any {n}-gram"] = lambda case, n=n: any_hit(case, n)
    rules["any 13-gram of at most 10 rows"] = lambda case: any_hit(case, 13, most=10)
    rules["half of 5-grams"] = coverage
    return rules


def contamination(real: Sequence[Real], seed: int) -> tuple[str, dict[str, Any]]:
    """The tables and the figures."""
    with tempfile.TemporaryDirectory() as folder:
        case = planted.contamination(real, seed, Path(folder))
        found = {name: rule(case) for name, rule in contamination_rules().items()}
        splits = _real_splits(real, Path(folder))
    truths = [case.truths[row.id] for row in case.rows]
    kinds = [kind for kind in case.kinds if kind != "real row"] + ["real row"]
    figures: dict[str, Any] = {
        "rows": len(case.rows),
        "eval_rows": {name: len(rows) for name, rows in case.eval_texts.items()},
    }
    figures["dropped"] = {
        name: {kind: _tally(one, truths, kind=kind) for kind in kinds} | {"precision": precision(one, truths)}
        for name, one in found.items()
    }
    figures["defaults"] = {
        f"{kind}, {data}": _tally(found["defaults"], truths, kind=kind, data=data)
        for kind in kinds
        for data in planted.EVAL_ROWS
    }
    figures["real splits"] = splits
    return _contamination_tables(figures, truths, kinds, found), figures


def precision(found: Found, truths: Sequence[Truth]) -> dict[str, float]:
    """What share of the drops was right: as planted, with every unplanted drop counted as wrong, and where 1% of the rows are leaks."""
    right = sum(truth.label == "leak" for truth, one in zip(truths, found, strict=True) if one is not None)
    wrong = sum(truth.label == "clean" for truth, one in zip(truths, found, strict=True) if one is not None)
    dropped = sum(one is not None for one in found)
    recall = right / sum(truth.label == "leak" for truth in truths)
    plain = [one is not None for truth, one in zip(truths, found, strict=True) if truth.kind == "real row"]
    false = sum(plain) / len(plain)
    rare = PREVALENCE * recall + (1 - PREVALENCE) * false
    return {
        "right": right,
        "wrong": wrong,
        "planted": right / max(1, right + wrong),
        "strict": right / max(1, dropped),
        "rare": PREVALENCE * recall / rare if rare else 1.0,
    }


def _tally(found: Found, truths: Sequence[Truth], **fields: str) -> tuple[int, int]:
    """How many of the rows with these truths were dropped, and how many there are."""
    mine = [
        one
        for truth, one in zip(truths, found, strict=True)
        if all(getattr(truth, name) == value for name, value in fields.items())
    ]
    return sum(one is not None for one in mine), len(mine)


def _contamination_tables(
    figures: dict[str, Any], truths: Sequence[Truth], kinds: Sequence[str], found: Mapping[str, Found]
) -> str:
    dropped = figures["dropped"]
    labels = {truth.kind: truth.label for truth in truths}
    counts = Counter(truth.label for truth in truths)

    def lines(label: str) -> list[list[object]]:
        return [
            [kind, dropped["defaults"][kind][1], percent(*dropped["defaults"][kind])]
            + [percent(*dropped[name][kind], interval=False) for name in found if name != "defaults"]
            for kind in kinds
            if labels[kind] == label
        ]

    head = ["rows", "defaults [95%]", *(name for name in found if name != "defaults")]
    shares = [
        [what] + [f"{100 * dropped[name]['precision'][key]:.1f}" for name in found]
        for what, key in (
            ("right among the drops of planted and clean rows", "planted"),
            ("the same, if every unplanted drop were wrong", "strict"),
            ("if 1% of the rows were leaks, among plain real rows", "rare"),
        )
    ]
    named = [
        one == truth.eval_row
        for truth, one in zip(truths, found["defaults"], strict=True)
        if truth.label == "leak" and one is not None
    ]
    by_data = [
        [kind, *(percent(*figures["defaults"][f"{kind}, {data}"]) for data in planted.EVAL_ROWS)]
        for kind in kinds
        if labels[kind] == "leak"
    ]
    return "\n\n".join(
        [
            f"{figures['rows']:,} rows: {counts['leak']:,} planted leaks ({100 * counts['leak'] / figures['rows']:.1f}%), "
            f"{counts['clean']:,} clean ({sum(truth.kind == 'real row' for truth in truths):,} of them plain real rows), and "
            f"{counts['overlap'] + counts['unclear']:,} others (real rows that by brute force overlap an eval row or may); "
            f"{sum(figures['eval_rows'].values()):,} eval rows. Per cent dropped.",
            table(["leaks: recall", *head], lines("leak")),
            table(["clean: false positives", *head], lines("clean")),
            table(["neither counted", *head], lines("overlap") + lines("unclear")),
            table(["precision", *found], shares),
            f"Of the leaks that the defaults found, {percent(sum(named), len(named))}% were dropped for the very eval row that was "
            "planted, the others mostly for a variation of it.",
            table(["recall of the defaults", *planted.EVAL_ROWS], by_data),
            table(
                [
                    "real train against real test",
                    "rows",
                    "dropped",
                    "of these overlap",
                    "unclear",
                    "clean by brute force",
                    "overlap, kept",
                ],
                [[data, *counts] for data, counts in figures["real splits"].items()],
            ),
        ]
    )


def _real_splits(real: Sequence[Real], folder: Path) -> dict[str, list[int]]:
    """What the defaults drop of the real training rows against the real test rows, beside the brute-force labels."""
    common = planted.common_words(row.input for row in real)
    result = {}
    for data in planted.EVAL_ROWS:
        tests = {row.id: row.input for row in real if row.data == data and row.test}
        train = [row for row in real if row.data == data and not row.test]
        sets = {"test": planted.written(folder, f"{data}-test", tests)}
        rows = [planted.example(row.id, row.input, rationale=row.rationale) for row in train]
        dropped = [verdict is not None for verdict in decontaminate(rows, eval_sets=sets)]
        labels = [label for label, _ in planted.overlaps([row.input for row in train], list(tests.values()), common)]
        pairs = Counter(zip(dropped, labels, strict=True))
        result[data] = [
            len(rows),
            sum(dropped),
            pairs[True, "overlap"],
            pairs[True, "unclear"],
            pairs[True, "clean"],
            pairs[False, "overlap"],
        ]
    return result


# Duplicates ---------------------------------------------------------------------------------------------------------------------------


def shingles(text: str, n: int, *, of_words: bool) -> set[tuple[str, ...]] | set[str]:
    """All runs of ``n`` words, or characters, of the normalised text; a shorter text is its own only one."""
    shown = normalise(text)
    if of_words:
        words = shown.split()
        return {tuple(words[start : start + n]) for start in range(max(1, len(words) - n + 1))}
    return {shown[start : start + n] for start in range(max(1, len(shown) - n + 1))}


def jaccard(text: str, other: str, n: int, *, of_words: bool) -> float:
    """Shared shingles over all shingles, 0 to 1, in plain Python."""
    one, two = shingles(text, n, of_words=of_words), shingles(other, n, of_words=of_words)
    return len(one & two) / len(one | two)


def by_default(text: str, other: str) -> float:
    """The Jaccard index of the shingles that dedup takes where nothing is said."""
    settings = inspect.signature(dedup).parameters
    return jaccard(text, other, settings["shingle"].default, of_words=settings["unit"].default == "words")


PLAIN: dict[str, Callable[[str, str], bool]] = {
    "1 word, 0.7": lambda text, other: jaccard(text, other, 1, of_words=True) >= 0.7,
    "3 words, 0.7": lambda text, other: jaccard(text, other, 3, of_words=True) >= 0.7,
    "5 words, 0.8": lambda text, other: jaccard(text, other, 5, of_words=True) >= 0.8,
    "4 characters, 0.8": lambda text, other: jaccard(text, other, 4, of_words=False) >= 0.8,
}
"""Plain rules of other tools: the exact Jaccard index of shingles, from a threshold on, and nothing else."""


def duplicates(real: Sequence[Real], seed: int) -> tuple[str, dict[str, Any]]:
    """The tables and the figures."""
    rows, pairs = planted.duplicates(real, seed, by_default)
    texts = {row.id: row.input for row in rows}
    drops = {row.id: verdict for row, verdict in zip(rows, dedup(rows), strict=True) if verdict is not None}
    kinds = list(dict.fromkeys((pair.same, pair.kind) for pair in pairs))
    figures: dict[str, Any] = {"rows": len(rows), "pairs": len(pairs), "dropped": len(drops), "kinds": {}}
    for same, kind in kinds:
        mine = [pair for pair in pairs if pair.kind == kind]
        found = {id(pair) for pair in mine if _found(pair, drops)}
        figures["kinds"][kind] = {
            "same": same,
            **{
                length: (sum(id(pair) in found for pair in of), len(of))
                for length in ("short", "long")
                for of in [[pair for pair in mine if pair.length == length]]
            },
            **{
                name: (sum(rule(texts[pair.first], texts[pair.second]) for pair in mine), len(mine))
                for name, rule in PLAIN.items()
            },
        }
    alike = [pair for pair in pairs if pair.same and pair.similarity >= 0.8]
    figures["0.8 and above"] = (sum(_found(pair, drops) for pair in alike), len(alike))
    wrong = [problem for drop in drops.values() if (problem := _unfounded(drop, {row.id: row for row in rows}))]
    figures |= {"unfounded": len(wrong), "examples": wrong[:5], "svamp": _traps(real)}
    return _duplicate_tables(figures), figures


def _found(pair: planted.Pair, drops: Mapping[str, Drop]) -> bool:
    """Whether one of the two was dropped: for any row, unless they are different; then for the other one."""
    mine = [(drops[id], other) for id, other in ((pair.first, pair.second), (pair.second, pair.first)) if id in drops]
    return bool(mine) if pair.same is not False else any(drop.evidence["twin"] == other for drop, other in mine)


def _unfounded(drop: Drop, rows: Mapping[str, Example]) -> str | None:
    """What the evidence of ``drop`` claims and a recount does not find; None where all of it holds."""
    row, twin = rows[drop.id], rows[drop.evidence["twin"]]
    if drop.reason == "exact_duplicate":
        return None if normalise(row.input) == normalise(twin.input) else f"{row.input!r} is not {twin.input!r}"
    found = by_default(row.input, twin.input)
    said, least = drop.evidence["similarity"], drop.evidence["threshold"]
    both = f"{row.input!r} and {twin.input!r}"
    if abs(found - said) > 0.0001 or said < least:
        return f"{found:.4f}, not {said} (at least {least}): {both}"
    if re.findall(r"\d+", row.input) != re.findall(r"\d+", twin.input):
        return f"other numbers: {both}"
    return (
        None
        if row.gold is None or twin.gold is None or row.gold.casefold() == twin.gold.casefold()
        else f"other labels: {both}"
    )


def _traps(real: Sequence[Real]) -> dict[str, tuple[int, int]]:
    """SVAMP's problems: how many are dropped, and how many of these have another answer than the row they were dropped for."""
    rows = [row for row in real if row.data == "svamp"]
    by_id = {row.id: row for row in rows}
    kept: list[tuple[Real, set[Any]]] = []
    plain = []
    for row in rows:
        mine = shingles(row.input, 1, of_words=True)
        twin = next((other for other, its in kept if len(mine & its) / len(mine | its) >= 0.7), None)
        if twin is None:
            kept.append((row, set(mine)))
        else:
            plain.append((row, twin))
    examples = [planted.example(row.id, row.input, label=row.gold, gold=row.gold) for row in rows]
    ours = [(by_id[drop.id], by_id[drop.evidence["twin"]]) for drop in dedup(examples) if drop is not None]
    return {
        name: (
            len(pairs),
            sum(
                label_forms.value(row.gold, "equation") != label_forms.value(twin.gold, "equation")
                for row, twin in pairs
            ),
        )
        for name, pairs in (("1 word, 0.7", plain), ("defaults", ours))
    }


def _duplicate_tables(figures: dict[str, Any]) -> str:
    def lines(same: bool | None) -> list[list[object]]:
        return [
            [
                kind,
                percent(*found["short"]),
                percent(*found["long"]),
                *(percent(*found[name], interval=False) for name in PLAIN),
            ]
            for kind, found in figures["kinds"].items()
            if found["same"] is same
        ]

    head = ["defaults, short [95%]", "defaults, long [95%]", *PLAIN]
    kept = figures["dropped"] - figures["unfounded"]
    return "\n\n".join(
        [
            f"{figures['rows']:,} rows, {figures['pairs']:,} planted pairs; {figures['dropped']:,} rows dropped. "
            "Per cent of pairs of which one was dropped.",
            table(["the same: recall", *head], lines(True)),
            table(["not the same: wrongly dropped", *head], lines(False)),
            table(["a matter of settings", *head], lines(None)),
            f"Of all pairs that are the same, at a true Jaccard index of 0.8 and above: {percent(*figures['0.8 and above'])}% found.",
            f"Evidence recounted in plain Python: {percent(kept, figures['dropped'])}% of the drops hold.",
            table(
                ["SVAMP's 1,000 problems", "dropped", "of these with another answer"],
                [[name, *counts] for name, counts in figures["svamp"].items()],
            ),
        ]
    )


# Filters ------------------------------------------------------------------------------------------------------------------------------

PATTERNS = {
    "svamp": r"(?s)(?P<rationale>.*?)\s*The answer is (?P<label>\(.*\).*?)\.?",
    "cqa": r"(?s)(?P<rationale>.*?)\s*So the answer is (?P<label>[^()]*\([a-e]\).+?)\.?",
}
TYPES: dict[str, LabelType] = {"svamp": "equation", "cqa": "choice"}


def parsed(real: Iterable[Real], data: str) -> tuple[list[Example], list[Example]]:
    """The recorded answers, as parse writes them: those that are right, and those that are wrong."""
    kind = TYPES[data]
    answers = [
        Response(
            id=f"{row.id}#0",
            prompt=row.id,
            sample=0,
            request=row.id,
            teacher="PaLM 540B",
            text=row.completion,
            finish_reason="recorded",
            prompt_tokens=0,
            completion_tokens=0,
            input=row.input,
            gold=row.gold,
            choices=row.choices,
        )
        for row in real
        if row.data == data
    ]
    right: list[Example] = []
    wrong: list[Example] = []
    for row in parse(answers, pattern=PATTERNS[data], label_type=kind, cut_at=["\n\nQ"]):
        if isinstance(row, Example):
            (right if label_forms.same(row.label or "", row.gold or "", kind) else wrong).append(row)
    return right, wrong


ALSO = ("language", "last_value")  # filters that are asked for by name, and can be without a setting


def calls(data: str, few_shot: FewShot, names: Iterable[str]) -> list[Call]:
    """Filters, told what the runner would tell them from the other stages' settings."""
    known: dict[str, Any] = {"label_type": TYPES[data], "few_shot": few_shot}
    return [
        Call(name, {key: known[key] for key in inspect.signature(FILTERS[name]).parameters if key in known})
        for name in names
    ]


def filters(real: Sequence[Real], seed: int) -> tuple[str, dict[str, Any]]:
    """The tables and the figures."""
    figures: dict[str, Any] = {"flaws": {}, "untouched": {}, "examples": {}}
    for data in planted.EVAL_ROWS:
        right, wrong = (rows[seed % 2 :: 2] for rows in parsed(real, data))
        shots, right = right[:5], right[5:]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "shots.jsonl"
            lines = (json.dumps({"input": row.input, "why": row.rationale}) + "\n" for row in shots)
            path.write_text("".join(lines), encoding="utf-8")
            default = calls(data, FewShot(path=path), (call.name for call in DEFAULT))
            also = calls(data, FewShot(path=path), ALSO)
            _untouched(data, default, also, right, wrong, figures)
            flawed: dict[str, list[Example]] = defaultdict(list)
            for kind, row in planted.flawed(right, [row.rationale or "" for row in shots], seed):
                flawed[kind].append(row)
            for kind, rows in flawed.items():
                reasons = Counter(drop.reason for drop in quality(rows, filters=default) if drop is not None)
                every = sum(drop is not None for drop in quality(rows, filters=[*default, *also]))
                figures["flaws"].setdefault(kind, {})[data] = (sum(reasons.values()), every, len(rows), dict(reasons))
    return _filter_tables(figures), figures


def _untouched(
    data: str,
    default: Sequence[Call],
    also: Sequence[Call],
    right: Sequence[Example],
    wrong: Sequence[Example],
    figures: dict[str, Any],
) -> None:
    """What the filters, together and each alone, drop of answers as they are."""
    for name, chosen in [("any of the defaults", default), *((call.name, [call]) for call in (*default, *also))]:
        dropped = [[drop for drop in quality(rows, filters=chosen) if drop is not None] for rows in (right, wrong)]
        if any(dropped) or name in ALSO or len(chosen) > 1:
            figures["untouched"][f"{data}, {name}"] = [(len(dropped[0]), len(right)), (len(dropped[1]), len(wrong))]
            figures["examples"][f"{data}, {name}"] = [str(drop.evidence["why"]) for drop in dropped[0][:5]]


def _filter_tables(figures: dict[str, Any]) -> str:
    flaws = []
    for kind, by_data in figures["flaws"].items():
        reasons: Counter[str] = Counter()
        for *_, found in by_data.values():
            reasons.update(found)
        shown = ", ".join(f"{name} {count}" for name, count in reasons.most_common(3))
        of = sum(count for _, _, count, _ in by_data.values())
        shares = [percent(by_data[data][0], by_data[data][2]) if data in by_data else "" for data in planted.EVAL_ROWS]
        every = percent(sum(count for _, count, _, _ in by_data.values()), of, interval=False)
        flaws.append([kind, *shares, shown, every])
    untouched = [
        [
            name,
            *(percent(*count) for count in counts),
            plain("; ".join(figures["examples"][name][:1]), 120).replace("|", "\\|"),
        ]
        for name, counts in figures["untouched"].items()
    ]
    also = f"with {' and '.join(ALSO)}"
    return "\n\n".join(
        [
            "Real answers that are right, with one planted flaw each: per cent dropped by the default filters, and by which.",
            table(["flaw: recall", *planted.EVAL_ROWS, "reasons", also], flaws),
            table(["untouched", "of the right answers", "of the wrong ones", "a right one, for instance"], untouched),
        ]
    )


PARTS = {"contamination": contamination, "dedup": duplicates, "filters": filters}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    real = planted.read(chosen.data)
    figures: dict[str, Any] = {"seed": chosen.seed}
    for name, part in PARTS.items():
        if chosen.only in (None, name):
            began = time.process_time()
            text, figures[name] = part(real, chosen.seed)
            print(
                f"### {name.capitalize()}, seed {chosen.seed}\n\n{text}\n\n({time.process_time() - began:.0f} s of one core)\n",
                flush=True,
            )
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
