"""Training step by step beside bare TRL and beside the two forwards of the method's authors, on the same rows, one after another.

    python -m benchmarks.training [--layers 8] [--rows SHARDS] [--threads 2] [--rounds 3] [--steps 6] [--precision float32]

ours            `pipeline.train.train_on_shards`, the student alone, no validation rows
trl             TRL's SFTTrainer as it comes: its collator and padding, its fused head (which on a CPU goes over every position, and in
                float32 on its way back), its own loss (the mean over all completion tokens); a batch holds both rows of each example.
                Gradient checkpointing, which it turns on by itself, is off on all sides
two-forwards    label batch and rationale batch, each padded to its own longest, through the model one after the other, full logits,
                alpha * label loss + (1 - alpha) * rationale loss, one backward: what the authors' code does, in a plain loop
one-forward     both rows of each example in one padded batch, full logits and the model's own loss (the mean over all completion tokens),
                in the same plain loop: what training on a CPU costs without TRL; only where asked for
..-eager        any of these with transformers' plain attention instead of its default (sdpa); only where asked for

Every variant runs in a process of its own, in turn (a b c, a b c, ..), each time from the same weights, with the same rows, tokens,
AdamW, learning rates, threads and precision (bfloat16 is autocast over float32 weights). Of all variants alike: a step lasts from the end
of one optimizer step to the end of the next (a hook that torch has for every optimizer), so that start-up and saving are outside and
batching, logging and clipping inside; the first ``--discard`` steps don't count; tokens are those of the rows, padding left out, and
positions are what went through the embedding, padding and all. The peak is ru_maxrss at the last optimizer step, growth is the peak
less what was resident when the first forward began: model, libraries and rows.

The run ends without figures where a variant was given other rows, other learning rates or another number of target tokens in any step
(those of ours are counted by its own facts, for all steps together), or where the first loss of ours is not the one of two forwards
(relative 1e-2 in bfloat16, 1e-5 in float32). The rows of each step are read off what ours put into its embedding, and the others are
given the same in the same order.

Without ``--rows`` the rows are made: prompts of two of the demo's texts (about 50 tokens), labels of 3 to 8 tokens, rationales of 20 to
50 (the embedded student's tokens). Their lengths decide about padding, and so do the ratios: real shards say more about real shards.
Limits: the CPU only; a handful of steps, so losses say that the same is computed, not how well it learns; machines with other work
give other ratios. Prints a table, the ratios beside what is wanted, and one line of JSON.
"""

import argparse
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TASKS = ("label", "rationale")
OURS, TRL, TWO, ONE = "ours", "trl", "two-forwards", "one-forward"
EAGER = "-eager"
VARIANTS = (OURS, *(name + attention for name in (TRL, TWO, ONE) for attention in ("", EAGER)))
ALPHA, LEARNING_RATE, WARMUP, CLIP = 0.5, 3e-4, 0.1, 1.0
IGNORED = -100
TOLERANCE = {"bfloat16": 1e-2, "float32": 1e-5}
LABELS = (
    "food and drink",
    "sports and games",
    "money and business news",
    "new technology and computer science",
    "travel to other places and far countries",
)
WANTED: Mapping[tuple[str, str, str], tuple[float, str]] = {
    ("examples_per_second", OURS, TRL): (1.0, "at least 1.0, better 1.5"),
    ("examples_per_second", OURS, TWO): (1.5, "at least 1.5"),
    ("peak_mib", OURS, TRL): (1.05, "at most 1.05"),
}

Row = dict[str, Any]
# Of an example and a task: the tokens, and how many at their end are targets.
Tokens = dict[str, dict[str, tuple[list[int], int]]]


# What all variants get.


def made(number: int, seed: int) -> list[Row]:
    """Training rows of ``number`` examples: the demo's texts, two in a prompt, and labels and rationales of their words."""
    chance = random.Random(seed)
    texts = [json.loads(line)["text"] for line in (ROOT / "data" / "topics" / "train.jsonl").read_text().splitlines()]
    words = " ".join(texts).split()
    rows = []
    for place in range(number):
        text = f"{place}. {' '.join(chance.sample(texts, 2))}"
        start, length = chance.randrange(len(words) - 40), chance.randint(16, 34)
        said = {"label": chance.choice(LABELS), "rationale": " ".join(words[start : start + length])}
        rows += [
            {
                "id": f"made{place}/{task}",
                "example": f"made{place}",
                "task": task,
                "split": "train",
                "prompt": f"[{task}] {text}",
                "completion": said[task],
            }
            for task in TASKS
        ]
    return rows


def read(folder: Path, number: int) -> list[Row]:
    """Both rows of the first ``number`` training examples of a folder of shards that have both, none with another's prompt."""
    examples: dict[str, dict[str, Row]] = {}
    for path in sorted(folder.glob("train-*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            if line:
                row = json.loads(line)
                examples.setdefault(row["example"], {})[row["task"]] = row
    prompts: set[str] = set()
    chosen = []
    for rows in examples.values():
        if not set(TASKS) <= set(rows) or not all(rows[task]["completion"].strip() for task in TASKS):
            continue
        if prompts.isdisjoint(rows[task]["prompt"] for task in TASKS):
            prompts.update(rows[task]["prompt"] for task in TASKS)
            chosen.append([rows[task] for task in TASKS])
    if len(chosen) < number:
        sys.exit(f"{folder}: {len(chosen)} examples with both tasks, {number} are needed; lower --steps or --batch")
    return [row for rows in chosen[:number] for row in rows]


@dataclass(frozen=True)
class Given:
    """What a process is told; ``order`` names the examples of each step, None where it is for the variant to choose."""

    shards: str
    student: str
    layers: int | None
    batch: int
    steps: int
    precision: str
    threads: int
    seed: int
    settings: dict[str, Any]
    order: list[list[str]] | None


def tokens_of(shards: Path, tokenizer: Any) -> Tokens:
    from pipeline.formats import Format

    found: Tokens = {}
    for line in (shards / "train-00000.jsonl").read_text().split("\n")[:-1]:
        row = json.loads(line)
        completion = Format().completion_ids(tokenizer, row["completion"])
        found.setdefault(row["example"], {})[row["task"]] = (
            Format().prompt_ids(tokenizer, row["prompt"]) + completion,
            len(completion),
        )
    return found


# In a process of its own: one variant.


class Watch:
    """Notes the end of each optimizer step, its learning rate and the peak of memory, and what went through the embedding before it."""

    def __init__(self) -> None:
        import torch
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.ends: list[float] = []
        self.rates: list[float] = []
        self.ids: list[list[Any]] = [[]]
        self.optimizer: dict[str, Any] = {}
        self.loaded = self.peak = 0.0
        embedding = torch.nn.functional.embedding

        def seen(ids: Any, *arguments: Any, **named: Any) -> Any:
            self.loaded = self.loaded or resident()
            self.ids[-1].append(ids.detach().numpy().copy())
            return embedding(ids, *arguments, **named)

        def stepped(optimizer: Any, arguments: Any, named: Any) -> None:
            self.ends.append(time.perf_counter())
            group = optimizer.param_groups[0]
            self.rates.append(float(group["lr"]))
            self.ids.append([])
            fields = ("betas", "eps", "weight_decay", "fused", "foreach")
            self.optimizer = {"name": type(optimizer).__name__, **{field: group.get(field) for field in fields}}
            self.peak = peak()

        torch.nn.functional.embedding = seen
        register_optimizer_step_post_hook(stepped)

    def examples(self, tokens: Tokens) -> list[list[str]]:
        """The examples of each step, found by their tokens, however the sequences were laid out."""
        import numpy

        def bytes_of(ids: Any) -> bytes:
            return numpy.asarray(ids, dtype=numpy.int32).tobytes()

        found = []
        for arrays in self.ids[: len(self.ends)]:
            stream = b"".join(bytes_of(array) for array in arrays)
            # Of a row everything but its last token, which nothing is predicted from, must be there.
            found.append(
                [
                    name
                    for name, tasks in tokens.items()
                    if all(holds(stream, bytes_of(ids[:-1])) for ids, _ in tasks.values())
                ]
            )
        return found


def holds(stream: bytes, part: bytes) -> bool:
    """Whether ``part`` stands in ``stream`` at the start of a token."""
    place = stream.find(part)
    while place % 4 and place >= 0:
        place = stream.find(part, place + 1)
    return place >= 0


def peak() -> float:
    """The most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident() -> float:
    """What it holds now, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def ours(given: Given) -> tuple[list[float], list[int]]:
    """The loss of each step, and the number of target tokens of all steps together."""
    from pipeline.binding import bind
    from pipeline.train import train, train_on_shards

    asked: dict[str, Any] = {
        "student": {"from": given.student, **({"layers": given.layers} if given.layers else {})},
        "alpha": ALPHA,
        "epochs": 1,
        "learning_rate": LEARNING_RATE,
        "warmup": WARMUP,
        "batch_size": given.batch,
        "seed": given.seed,
        "baseline": False,
        "precision": given.precision,
        "log_every": 1,
        "checkpoint_seconds": 1e9,
        "accept_terms": "a measurement: the student is thrown away",
        **given.settings,
    }
    known = {"task.targets": list(TASKS), "stages.parse.label_type": "text", "stages.sample.teacher.terms": None}
    bound = bind(train, asked, lookup=known.__getitem__, folder=ROOT)
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out"
        details = train_on_shards(Path(given.shards), out=out, **bound)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["model"] == "student" and "loss" in line]
    return losses, [sum(details["target_tokens"].values())]


def trl(given: Given, tokens: Tokens, model: Any, tokenizer: Any) -> tuple[list[float], list[int]]:
    """The loss of each step, and its number of target tokens."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    assert given.order is not None
    rows = [tokens[name][task] for names in given.order for name in names for task in TASKS]
    table = {
        "input_ids": [ids for ids, _ in rows],
        "completion_mask": [[0] * (len(ids) - targets) + [1] * targets for ids, targets in rows],
    }
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=given.batch * len(TASKS),
            train_sampling_strategy="sequential",
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="linear",
            warmup_steps=WARMUP,  # below 1, so a share
            max_grad_norm=CLIP,
            gradient_checkpointing=False,
            completion_only_loss=True,
            max_length=None,
            bf16=given.precision == "bfloat16",
            use_cpu=True,
            dataloader_pin_memory=False,
            seed=given.seed,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
        )
        trainer = SFTTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_dict(table), processing_class=tokenizer
        )
        collate, targets = trainer.data_collator, []

        def counting(features: Any) -> Any:
            batch = collate(features)
            targets.append(int((batch["labels"][:, 1:] != IGNORED).sum()))
            return batch

        trainer.data_collator = counting
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], targets


def forwards(
    given: Given, tokens: Tokens, model: Any, tokenizer: Any, *, parts: Sequence[tuple[float, Sequence[str]]]
) -> tuple[list[float], list[int]]:
    """The loss of each step, and its number of target tokens. ``parts``: a forward's weight in the loss, and the tasks in its batch."""
    import torch
    from transformers import get_scheduler

    def batch(rows: Sequence[tuple[list[int], int]]) -> dict[str, Any]:
        longest = max(len(ids) for ids, _ in rows)
        padding = [longest - len(ids) for ids, _ in rows]
        columns: dict[str, list[list[int]]] = {
            "input_ids": [ids + [tokenizer.pad_token_id] * more for (ids, _), more in zip(rows, padding, strict=True)],
            "attention_mask": [[1] * len(ids) + [0] * more for (ids, _), more in zip(rows, padding, strict=True)],
            "labels": [
                [IGNORED] * (len(ids) - count) + ids[len(ids) - count :] + [IGNORED] * more
                for (ids, count), more in zip(rows, padding, strict=True)
            ],
        }
        return {name: torch.tensor(column) for name, column in columns.items()}

    assert given.order is not None
    # As transformers' Trainer makes it.
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True
    )
    schedule = get_scheduler(
        "linear", optimizer, num_warmup_steps=math.ceil(given.steps * WARMUP), num_training_steps=given.steps
    )
    losses, targets = [], []
    model.train()
    for names in given.order:
        batches = [batch([tokens[name][task] for name in names for task in tasks]) for _, tasks in parts]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=given.precision == "bfloat16"):
            means = [model(**one, use_cache=False).loss for one in batches]
        loss = sum(weight * mean for (weight, _), mean in zip(parts, means, strict=True))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        targets.append(sum(int((one["labels"][:, 1:] != IGNORED).sum()) for one in batches))
    return losses, targets


PEERS: Mapping[str, Callable[[Given, Tokens, Any, Any], tuple[list[float], list[int]]]] = {
    TRL: trl,
    TWO: partial(forwards, parts=[(ALPHA, ["label"]), (1 - ALPHA, ["rationale"])]),
    ONE: partial(forwards, parts=[(1.0, TASKS)]),
}


def work(variant: str, asked: Path, answer: Path) -> None:
    """Train one variant as ``asked`` says, and write what was seen."""
    import torch

    from pipeline.student import StudentSettings, load, quiet

    given = Given(**json.loads(asked.read_text()))
    torch.set_num_threads(given.threads)
    student = StudentSettings.model_validate({"from": given.student, "layers": given.layers})
    with quiet():
        if variant == OURS:
            watch = Watch()
            losses, targets = ours(given)
            end = peak()
            _, tokenizer, _ = load(student)
        else:
            model, tokenizer, _ = load(student)
            if variant.endswith(EAGER):
                model.set_attn_implementation("eager")
            tokens = tokens_of(Path(given.shards), tokenizer)
            watch = Watch()
            losses, targets = PEERS[variant.removesuffix(EAGER)](given, tokens, model, tokenizer)
            end = peak()
    tokens = tokens_of(Path(given.shards), tokenizer)
    order = watch.examples(tokens)
    seconds = [after - before for before, after in zip(watch.ends, watch.ends[1:], strict=False)]
    found = {
        "seconds": [None, *seconds],  # the first step has no beginning
        "rates": watch.rates,
        "order": order,
        "targets": targets,
        "expected_targets": [sum(tokens[one][task][1] for one in names for task in TASKS) for names in order],
        "tokens": [sum(len(tokens[one][task][0]) for one in names for task in TASKS) for names in order],
        "positions": [sum(array.size for array in arrays) for arrays in watch.ids[: len(order)]],
        "losses": losses,
        "optimizer": watch.optimizer,
        "peak": watch.peak,
        "peak_at_end": end,
        "loaded": watch.loaded,
    }
    answer.write_text(json.dumps(found))


# The measurement.


def visit(variant: str, given: Given, folder: Path) -> dict[str, Any]:
    """One variant in a process of its own."""
    asked, answer, log = folder / "asked.json", folder / "answer.json", folder / "log.txt"
    asked.write_text(json.dumps(given.__dict__))
    answer.unlink(missing_ok=True)
    threads = str(given.threads)
    environment = {
        **os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "", "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    with log.open("w") as told:
        command = [sys.executable, "-m", "benchmarks.training", "--work", variant, str(asked), str(answer)]
        done = subprocess.run(command, check=False, cwd=ROOT, env=environment, stdout=told, stderr=told)
    if done.returncode or not answer.is_file():
        sys.exit(f"{variant} failed ({done.returncode}):\n{log.read_text()[-3000:]}")
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


def compare(variant: str, found: Mapping[str, Any], first: Mapping[str, Any], given: Given) -> None:
    """Stops where a variant did not do the work that the first one did."""
    if [len(names) for names in found["order"]] != [given.batch] * given.steps:
        sizes = [len(names) for names in found["order"]]
        sys.exit(f"{variant}: of the {given.batch} examples of each of {given.steps} steps these were seen: {sizes}")
    if [set(names) for names in found["order"]] != [set(names) for names in first["order"]]:
        sys.exit(f"{variant}: other examples in its steps than the first variant's")
    wanted = found["expected_targets"] if len(found["targets"]) == given.steps else [sum(found["expected_targets"])]
    if found["targets"] != wanted:
        sys.exit(f"{variant}: {found['targets']} target tokens, expected {wanted}")
    if len(found["losses"]) != given.steps:
        sys.exit(f"{variant}: {len(found['losses'])} losses of {given.steps} steps")
    for step, (one, other) in enumerate(zip(found["rates"], first["rates"], strict=True), 1):
        if not math.isclose(one, other, rel_tol=1e-6):
            sys.exit(f"{variant}: learning rate {one} at step {step}, {other} for the first variant")


def figures(rounds: Sequence[Mapping[str, Any]], discard: int, batch: int) -> dict[str, Any]:
    """What the visits of one variant come to."""
    times = [seconds for one in rounds for seconds in one["seconds"][discard:]]
    median = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else [median] * 3
    tokens, positions = ([sum(one[what][discard:]) for one in rounds] for what in ("tokens", "positions"))
    peaks = [one["peak"] for one in rounds]
    return {
        "step_seconds": median,
        "step_seconds_quartiles": [low, high],
        "step_seconds_by_round": [statistics.median(one["seconds"][discard:]) for one in rounds],
        "examples_per_second": batch / median,
        "tokens_per_second": sum(tokens) / len(times) / median,
        "padding": 1 - sum(tokens) / sum(positions),
        "peak_mib": statistics.median(peaks),
        "growth_mib": statistics.median(one["peak"] - one["loaded"] for one in rounds),
        "peak_mib_by_round": peaks,
        "peak_mib_with_saving": statistics.median(one["peak_at_end"] for one in rounds),
        "first_loss": rounds[0]["losses"][0],
        "last_loss": rounds[0]["losses"][-1],
        "optimizer": rounds[0]["optimizer"],
    }


def report(found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Prints the table and the ratios; the ratios."""
    print(
        f"\n{'variant':<19} {'s/step':>7} {'quartiles':>15} {'examples/s':>11} {'tokens/s':>9} {'padding':>8}"
        f" {'peak MiB':>9} {'growth':>7} {'first loss':>11} {'last loss':>10}"
    )
    for variant, one in found.items():
        low, high = one["step_seconds_quartiles"]
        print(
            f"{variant:<19} {one['step_seconds']:>7.3f} {low:>7.3f} {high:>7.3f} {one['examples_per_second']:>11.2f}"
            f" {one['tokens_per_second']:>9,.0f} {one['padding']:>8.1%} {one['peak_mib']:>9,.0f} {one['growth_mib']:>7,.0f}"
            f" {one['first_loss']:>11.5f} {one['last_loss']:>10.5f}"
        )
    print()
    ratios: dict[str, Any] = {}
    for other in [variant for variant in found if variant != OURS and OURS in found]:
        mine, theirs = found[OURS], found[other]
        by_round = [
            slow / fast
            for fast, slow in zip(mine["step_seconds_by_round"], theirs["step_seconds_by_round"], strict=True)
        ]
        for what in ("examples_per_second", "peak_mib", "growth_mib"):
            ratio = mine[what] / theirs[what] if theirs[what] else math.nan
            line = f"{what}, ours / {other}: {ratio:.3f}"
            ratios[f"{what} ours/{other}"] = ratio
            if what == "examples_per_second":
                ratios[f"{what} ours/{other} by round"] = by_round
                line += f" (by round {', '.join(f'{one:.3f}' for one in by_round)})"
            if (what, OURS, other) in WANTED:
                limit, told = WANTED[what, OURS, other]
                reached = ratio <= limit if what == "peak_mib" else ratio >= limit
                line += f"; wanted {told}: {'reached' if reached else 'NOT reached'}"
            print(line)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, help="a folder of shards; left out: rows are made")
    parser.add_argument("--student", default="embedded")
    parser.add_argument("--layers", type=int, help="of the student's, evenly spaced; left out: all")
    parser.add_argument("--batch", type=int, default=16, help="examples a step; sequences are twice as many")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each visit")
    parser.add_argument("--discard", type=int, default=2, help="steps before those, at least the first")
    parser.add_argument("--rounds", type=int, default=3, help="visits of each variant")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--precision", choices=sorted(TOLERANCE), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", default=",".join((OURS, TRL, TWO)), help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="a further setting of ours")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(asked.work[0], Path(asked.work[1]), Path(asked.work[2]))
        return
    variants = asked.variants.split(",")
    if not set(variants) <= set(VARIANTS) or asked.discard < 1 or asked.steps < 1 or asked.rounds < 1:
        parser.error(f"--variants are of {', '.join(VARIANTS)}; --discard, --steps and --rounds at least 1")
    variants.sort(key=lambda variant: variant != OURS)  # the others follow the order of its rows
    steps = asked.discard + asked.steps
    number = steps * asked.batch
    rows = read(asked.rows, number) if asked.rows else made(number, asked.seed)
    visits: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = folder / "shards"
        shards.mkdir()
        (shards / "train-00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        names = list(dict.fromkeys(row["example"] for row in rows))
        given = Given(
            shards=str(shards),
            student=asked.student,
            layers=asked.layers,
            batch=asked.batch,
            steps=steps,
            precision=asked.precision,
            threads=asked.threads,
            seed=asked.seed,
            settings={field: json.loads(value) for field, _, value in (one.partition("=") for one in asked.set)},
            order=[names[place : place + asked.batch] for place in range(0, number, asked.batch)],
        )
        first: dict[str, Any] = {}
        for turn in range(asked.rounds):
            for variant in variants:
                found = visit(variant, given, folder)
                if not first:
                    first, given = found, Given(**{**given.__dict__, "order": found["order"]})
                compare(variant, found, first, given)
                visits[variant].append(found)
                times = " ".join(f"{seconds:.2f}" for seconds in found["seconds"][asked.discard :])
                print(f"round {turn + 1} {variant}: {times} s, peak {found['peak']:,.0f} MiB", flush=True)
    for variant in variants:
        if OURS in variants and variant.startswith(TWO):
            mine, theirs = first["losses"][0], visits[variant][0]["losses"][0]
            if not math.isclose(mine, theirs, rel_tol=TOLERANCE[asked.precision]):
                sys.exit(f"the first loss of ours is {mine}, of {variant} {theirs}: not the same loss")
        if visits[variant][0]["optimizer"] != first["optimizer"]:
            print(f"note: {variant} has {visits[variant][0]['optimizer']}, {variants[0]} {first['optimizer']}")
    results = {variant: figures(visits[variant], asked.discard, asked.batch) for variant in variants}
    ratios = report(results)
    mean = [round(statistics.mean(first[what]), 1) for what in ("tokens", "expected_targets")]
    settings = {**given.__dict__, "rows": "made" if asked.rows is None else "shards", "rounds": asked.rounds}
    settings |= {"discard": asked.discard, "tokens_per_step": mean[0], "target_tokens_per_step": mean[1]}
    settings = {field: value for field, value in settings.items() if field not in ("shards", "order")}
    print(json.dumps({"settings": settings, "variants": results, "ratios": ratios}))


if __name__ == "__main__":
    main()
