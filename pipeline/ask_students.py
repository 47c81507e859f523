"""Ask checkpoints about eval rows the way they were trained: for labels, for rationales, and how sure they are; and the safety probes.

What they said before is recalled (``answering.Memory``). Label probabilities and rationales are asked for where the student has such a
task. The time that answering takes is measured anew each time, never recalled.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pipeline import answering, faithfulness, measure
from pipeline import safety as probes
from pipeline.answering import Checkpoint, Failed, Memory, Student, opened
from pipeline.cost import cost, peak_memory
from pipeline.cost import latency as latency_of
from pipeline.eval_rows import Asked
from pipeline.formats import Format
from pipeline.generate import Answer
from pipeline.labels import closed_set, read_label
from pipeline.metrics import Cost, Probed, Rationale, Validation
from pipeline.progress import bar
from pipeline.records import Target, TrainingRow
from pipeline.responses import Store
from pipeline.said import How, Said, rationale, rounded, weights
from pipeline.scoring import label_log_probabilities, label_tokens, probabilities
from pipeline.shard import said_label, student_prompt

TIMED_BATCHES: Final = 4  # of rows, to measure a student's speed


def ask_student(
    name: str,
    source: str,
    rows: Sequence[Asked],
    how: How,
    chosen: Sequence[int],
    kept: Sequence[TrainingRow],
    store: Store | None,
) -> Said:
    """What a checkpoint answers to every row, and to some of them why; ``kept`` are rows that were kept from its training."""
    known = answering.identity(source)
    task = asked_task(how.targets)
    with opened(
        how.backend, source, known, batch_size=how.batch_size, precision=how.precision, who="evaluate"
    ) as student:
        memory = (
            answering.memory(store, name, known, student.format, how.backend, how.precision)
            if store is not None
            else None
        )

        def ask(texts: Sequence[str], most: int, what: str) -> list[Answer | Failed]:
            return _answers(student, memory, student.format, texts, most, what)

        def labels_of(answers: Sequence[Answer | Failed], asked: Sequence[Asked]) -> list[str | None]:
            return [
                _read(answer, task, row, how)
                if isinstance(answer, Answer) and answer.text and answer.finished
                else None
                for answer, row in zip(answers, asked, strict=True)
            ]

        found = ask([student_prompt(task, row.prompt.input) for row in rows], how.max_new_tokens, name)
        labels = labels_of(found, rows)
        told: list[Rationale] = []
        explains = student.format.tasks or (how.targets if name != "baseline" else ())
        if "rationale" in explains and chosen:
            asked = [rows[place] for place in chosen]
            texts = [student_prompt("rationale", row.prompt.input) for row in asked]
            why = ask(texts, how.max_rationale_tokens, f"{name}: rationales")
            told = [
                rationale(
                    row, name, labels[place], (answer.text or "") if isinstance(answer, Answer) else "",
                    finished=isinstance(answer, Answer) and answer.finished,
                )
                for place, row, answer in zip(chosen, asked, why, strict=True)
            ]  # fmt: skip
            again = [faithfulness.label_after_rationale(one.input, one.rationale) for one in told]
            after = labels_of(ask(again, how.max_new_tokens, f"{name}: labels behind rationales"), asked)
            told = [one.changed(asked_again=True, label_after=label) for one, label in zip(told, after, strict=True)]
        options = [_options(row, how) for row in rows]
        believed: list[dict[str, float] | None] = []
        validation: list[Validation] = []
        if task == "label" and rows and all(options):
            checkpoint = student.checkpoint or answering.load(source, how.precision)
            texts = [student_prompt(task, row.prompt.input) for row in rows]
            believed = _believes(checkpoint, memory, texts, options, how, name)
            closed = closed_set(how.label_type, how.labels)
            if kept and closed:
                texts = [row.prompt for row in kept]
                given = _believes(checkpoint, memory, texts, [closed] * len(kept), how, f"{name}: validation")
                validation = [
                    Validation(model=name, row=row.example, label=row.completion.strip(), probabilities=one)
                    for row, one in zip(kept, given, strict=True)
                    if one is not None
                ]
        texts = [student_prompt(task, row.prompt.input) for row in rows[: TIMED_BATCHES * how.batch_size]]
        took = _timed_student(student, texts, Path(source), how) if how.latency else None
        size = student.checkpoint.parameters if student.checkpoint is not None else weights(Path(source))
    return Said(
        name,
        [answer.text if isinstance(answer, Answer) else None for answer in found],
        labels,
        believed,
        "scores" if believed else None,
        size,
        told,
        validation,
        None if took is None else took.model_copy(update={"parameters": size}),
    )


def probe(student: str, base: str, rows: Sequence[Asked], how: How, store: Store) -> list[Probed]:
    """What the student and its base say to the probes, and the student to the task's rows with names and groups swapped."""
    found: list[Probed] = []
    swaps = probes.swaps([row.prompt.input for row in rows])
    task = asked_task(how.targets)
    for name, source in ((measure.BASE, base), (measure.STUDENT, student)):
        known = answering.identity(source)
        with opened(
            how.backend, source, known, batch_size=how.batch_size, precision=how.precision, who="evaluate"
        ) as model:
            freely = probes.request_format(model.format, model.tokenizer)

            def ask(
                given: Format,
                texts: Sequence[str],
                most: int,
                model: Student = model,
                name: str = name,
                known: Any = known,
            ) -> list[Answer | Failed]:
                memory = answering.memory(store, name, known, given, how.backend, how.precision)
                return _answers(model, memory, given, texts, most, f"{name}: safety")

            known_probes = probes.read_probes()
            requests = [
                (f"{kind}/{number}", probe.text)
                for kind in probes.KINDS
                for number, probe in enumerate(getattr(known_probes, kind))
            ]
            said = ask(freely, [text for _, text in requests], probes.MOST_TOKENS)
            found += [
                Probed(model=name, probe=probe, request=text, text=answer.text if isinstance(answer, Answer) else None)
                for (probe, text), answer in zip(requests, said, strict=True)
            ]
            if name == measure.STUDENT and swaps:
                said = ask(model.format, [student_prompt(task, swap.text) for swap in swaps], how.max_new_tokens)
                for swap, answer in zip(swaps, said, strict=True):
                    row = rows[swap.row]
                    whole = isinstance(answer, Answer) and answer.text and answer.finished
                    found.append(
                        Probed(
                            model=name,
                            probe=f"{swap.kind}/{row.place}",
                            request=swap.text,
                            text=answer.text if isinstance(answer, Answer) else None,
                            label=_read(answer, task, row, how) if whole and isinstance(answer, Answer) else None,
                        )
                    )
    return found


def _answers(
    student: Student, memory: Memory | None, given: Format, texts: Sequence[str], most: int, what: str
) -> list[Answer | Failed]:
    """What a model answers to each text, made into tokens by the format ``given``; out of its memory where it has one."""
    prompts = [given.prompt_ids(student.tokenizer, text) for text in texts]
    with bar(f"evaluate {what}", len(prompts)) as advance:

        def compute(missing: Sequence[list[int]]) -> Sequence[Answer | Failed]:
            advance(len(prompts) - len(missing))
            return student.ask(missing, most, advance)

        return memory.answers(prompts, most, compute) if memory is not None else [*compute(prompts)]


def _timed_student(student: Student, texts: Sequence[str], folder: Path, how: How) -> Cost | None:
    """What answering takes: a few rows one at a time, and the rows at the full batch; nothing comes out of the memory here."""
    prompts = [student.format.prompt_ids(student.tokenizer, text) for text in texts]
    if not prompts:
        return None
    alone = min(how.latency, len(prompts))
    with bar("evaluate: time taken", alone + 1 + len(prompts)) as advance, peak_memory(answering.device()) as memory:
        latencies = latency_of(lambda row: student.ask([prompts[row]], how.max_new_tokens, advance), alone)
        began = time.perf_counter()
        student.ask(prompts, how.max_new_tokens, advance)
        seconds = time.perf_counter() - began
    return cost(
        rows=len(prompts),
        seconds=seconds,
        folder=folder if folder.is_dir() else None,
        memory=memory.bytes,
        latencies=latencies,
        batch_size=how.batch_size,
        price_per_hour=how.price_per_hour,
    )


def _read(answer: Answer, task: Target, row: Asked, how: How) -> str | None:
    said = said_label(answer.text or "") if task == "chain_of_thought" else answer.text or ""
    return read_label(said, how.label_type, how.labels, row.prompt.choices)


def _options(row: Asked, how: How) -> list[str]:
    """The labels that a row can have, as a student is taught to write them; none where answers are open."""
    if not row.prompt.choices:
        return closed_set(how.label_type, how.labels)
    read_as = [read_label(choice, how.label_type, how.labels, row.prompt.choices) for choice in row.prompt.choices]
    return list(dict.fromkeys(label for label in read_as if label is not None))


def _believes(
    checkpoint: Checkpoint,
    memory: Memory | None,
    texts: Sequence[str],
    options: Sequence[Sequence[str]],
    how: How,
    what: str,
) -> list[dict[str, float] | None]:
    """The probability that a student gives each of a row's labels, scaled to a sum of 1; None where it has no room for them."""
    asked, tokenizer = checkpoint.format, checkpoint.tokenizer
    prompts = [asked.prompt_ids(tokenizer, text) for text in texts]
    known: dict[str, list[int]] = {}
    with bar(f"evaluate {what}: labels weighed", len(prompts)) as advance:

        def compute(places: Sequence[int]) -> list[dict[str, float] | None]:
            advance(len(prompts) - len(places))
            given = [label_tokens(asked, tokenizer, options[place], known) for place in places]
            found = label_log_probabilities(
                checkpoint.model,
                tokenizer,
                [prompts[place] for place in places],
                given,
                batch_size=how.batch_size,
                advance=advance,
            )
            return [
                None if scores is None else dict(zip(options[place], scores, strict=True))
                for place, scores in zip(places, found, strict=True)
            ]

        scores = memory.scores(prompts, options, compute) if memory is not None else compute(range(len(prompts)))
    return [
        None if one is None else rounded(dict(zip(one, probabilities([*one.values()]), strict=True))) for one in scores
    ]


def asked_task(targets: Sequence[Target]) -> Target:
    """The task by which a student of these targets is asked for its answer."""
    return next((task for task in ("label", "response", "chain_of_thought") if task in targets), "label")
