"""What an attacker can do to a finished run: a small run with rows and drops in every stage, and the tools to change it without a trace.

    before = files_of(run)
    with tampered(run, before):
        change_rows(run, "parse", lambda lines: lines[1:])     # a row is gone, and every unsigned hash of its stage is right
        reforge(run, "dedup")                                  # and so is every hash in the stages after it

``reforge`` is as careful as can be without running a stage anew: bytes, rows, SHA-256, line digests, Merkle roots, counts, keys, folder
names, parents, digests and ``current`` all fit one another. ``make_run`` runs the pipeline itself, which is what the most careful
attacker does: with other answers, all of it is consistent.
"""

import copy
import csv
import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import xxhash
from msgspec import DecodeError

from pipeline import answering, environment, evaluate, merkle, outputs, provenance, responses, shift
from pipeline.decontaminate import PRESETS
from pipeline.files import RunError, canonical_json, write_json
from pipeline.outputs import Job, Totals
from pipeline.records import Drop, Example, OutputFile, Parent, Prediction, Row, Trained, TrainingRow
from pipeline.responses import Stored
from pipeline.runner import is_run_fact, run
from pipeline.stages import STAGES
from pipeline.train import CITATION, citation
from tests.conftest import text, write_jsonl

Json = dict[str, Any]

SETTINGS = """\
run: run
task:
  name: small
  inputs: inputs.jsonl
  input: "{{ text }}"
  labels: [sports, food]
  gold: topic
  id: id
  slices: [place]
eval_sets:
  test: {path: test.jsonl}
stages:
  ingest: {on_bad_row: drop}
  sample:
    teacher: {backend: replay, completions: completions.jsonl, output_terms: {training: allowed, license: MIT}}
    n: 2
  parse: {pattern: '(?P<rationale>.+?) So the answer is (?P<label>.+?)\\.'}
  dedup: {near: 0.8}
  decontaminate: {ngram: 8}
  judge:
    teacher: {backend: replay, name: judge, completions: judgements.jsonl}
  quality:
    filters:
      - label_in_set
      - {min_words: 3}
      - {min_judge_score: 2}
  balance: {most_per_label: 6}
  shard: {validation: 0.4, rows_per_shard: 4, label: gold}
  train: {student: embedded}
  evaluate: {bootstrap: 10}
"""
MOST_EVIDENCE = 6  # entries of a drop's evidence that are tampered with, about
PREFIXES = ("part-", "train-", "validation-")  # of row files that hold what a stage kept
TRUTH = shift.Truth("text", ("sports", "food"))
# So few, whatever the machine has: each is a leaf to tamper with.
PACKAGES = (environment.PACKAGE, "msgspec", "pydantic")


def write_project(folder: Path, said: str = "It speaks of") -> Path:
    """14 plain rows, and at least one to drop for each stage. ``said`` begins the teacher's rationales."""
    folder.mkdir(parents=True, exist_ok=True)
    topics = ["sports", "food"]
    inputs: list[Json] = [
        {"id": f"r{n}", "text": text(topics[n % 2], n), "topic": topics[n % 2], "place": "north" if n < 6 else "south"}
        for n in range(14)
    ]
    test = [{"id": f"t{n}", "text": text(topics[n % 2], 100 + n), "topic": topics[n % 2]} for n in range(4)]
    special = {
        "twin": {"text": inputs[0]["text"].upper(), "topic": "sports"},
        "leak": {"text": f"I read that {test[0]['text']} today", "topic": "sports"},
        "mute": {"text": text("food", 26), "topic": "food"},
        "else": {"text": text("food", 27), "topic": "food"},
        "terse": {"text": text("food", 28), "topic": "food"},
        "poor": {"text": text("food", 29), "topic": "food"},
        "garbled": {"text": text("food", 30), "topic": "food"},
        "other": {"text": text("food", 31), "topic": "sports"},
        "silent": {"text": text("food", 32), "topic": "food"},
    }
    inputs += [{"id": name, "place": "south", **row} for name, row in special.items()]
    completions: dict[str, list[str]] = {}
    for row in inputs:
        first = row["text"].split()[0].lower()
        answer = f"{said} {first} and more. So the answer is {row['topic']}."
        completions[row["id"]] = [answer, answer.replace("and more", "and the like")]
    completions["r3"][1] = f"{said} a trophy, it seems. So the answer is sports."
    completions["twin"] = completions["r0"]
    completions["mute"] = ["I do not know.", "Who knows?"]
    completions["else"] = [f"{said} plants and more. So the answer is gardening."] * 2
    completions["terse"] = ["Food. So the answer is food."] * 2
    completions["other"] = [f"{said} dinner and more. So the answer is food."] * 2
    del completions["silent"]
    completions |= {row["id"]: [f"{said} a pair. So the answer is {row['topic']}."] * 2 for row in test}
    judgements = {
        row["id"]: json.dumps({"reason": f"It names {row['text'].split()[1]}.", "score": 3 + len(row["text"]) % 3})
        for row in inputs
    }
    judgements |= {"poor": json.dumps({"reason": "It is vague.", "score": 1}), "garbled": "five of five"}
    inputs.append({"id": "broken", "topic": "food", "place": "north"})
    write_jsonl(folder / "inputs.jsonl", inputs)
    write_jsonl(folder / "test.jsonl", test)
    write_jsonl(
        folder / "completions.jsonl", [{"id": name, "completion": found} for name, found in completions.items()]
    )
    write_jsonl(folder / "judgements.jsonl", [{"id": name, "completion": found} for name, found in judgements.items()])
    (folder / "stages.yaml").write_text(SETTINGS)
    return folder / "stages.yaml"


def make_run(settings_file: Path, overrides: tuple[str, ...] = ()) -> Path:
    """The run folder of the project, run with a student that is no model: the files of one, which is all that an audit looks at."""
    with pytest.MonkeyPatch.context() as patch:
        found = environment.environment()
        packages = {name: found.packages[name] for name in PACKAGES}
        patch.setattr(environment, "environment", lambda: found.model_copy(update={"packages": packages}))
        patch.setitem(
            STAGES,
            "train",
            replace(STAGES["train"], function=_train, schema=STAGES["train"].function, identities=_student),
        )
        patch.setitem(
            STAGES, "evaluate", replace(STAGES["evaluate"], function=_evaluate, schema=STAGES["evaluate"].function)
        )
        patch.setattr(answering, "device", lambda: "cpu")
        run(settings_file, overrides=overrides)
    return settings_file.parent / "run"


def _student(settings: Mapping[str, Any]) -> Json:
    return {"student": {"from": "embedded", "model": "a model", "sha256": "5" * 64}}


def _train(job: Job, **settings: Any) -> Generator[Trained | Drop, None, Totals]:
    """Two files of a student and one of metrics; a word is a token."""
    (job.folder / "student").mkdir(exist_ok=True)
    (job.folder / "student/config.json").write_text('{"num_hidden_layers": 2}\n')
    (job.folder / "student/model.safetensors").write_bytes(bytes(range(256)))
    write_json(job.folder / "student" / CITATION, citation(job.inputs["shard"]))
    (job.folder / "metrics.jsonl").write_text('{"model": "student", "step": 1, "epoch": 1.0, "loss": 0.5}\n')
    rows = list(outputs.read(job.inputs["shard"], TrainingRow))
    for row in rows:
        yield Trained(
            id=row.id, example=row.example, task=row.task, split=row.split, tokens=len(row.completion.split()) + 1
        )
    examples = {split: len({row.example for row in rows if row.split == split}) for split in ("train", "validation")}
    tokens = {
        task: sum(len(row.completion.split()) + 1 for row in rows if row.task == task)
        for task in ("label", "rationale")
    }
    facts = {"student": {"layers": 2, "parameters": 64, "step": 1, "epoch": 1.0, "loss": 0.5}}
    return Totals(len(rows), {"models": facts, "examples": examples, "target_tokens": tokens, "precision": "float32"})


def _evaluate(job: Job, **settings: Any) -> Generator[Prediction | Drop, None, Totals]:
    """The teacher and the most frequent label, but no student."""
    return evaluate.evaluate(Job(job.folder, {"shard": job.inputs["shard"]}, job.responses), **settings)


def write_varied_project(folder: Path, seed: int) -> Path:
    """The same project under other settings, drawn by ``seed``: every stage that can be left out, every kind of file and of label."""
    draw = random.Random(seed)
    write_project(folder)
    stages: Json = {
        "ingest": {"on_bad_row": "drop"},
        "sample": {"teacher": _teachers(folder, draw), "n": draw.randint(1, 2), "seed": draw.randint(0, 9)},
        "parse": {"pattern": r"(?P<rationale>.+?) So the answer is (?P<label>.+?)\."},
        "dedup": draw.choice([False, {}, {"near": 0.8}, {"near": round(draw.uniform(0.3, 1), 2)}, {"near": None}]),
        "decontaminate": draw.choice([False, {}, {"ngram": draw.randint(3, 9)}, {"preset": draw.choice([*PRESETS])}]),
        "quality": draw.choice(
            [False, {"filters": ["label_in_set", {"min_words": draw.randint(1, 6)}]}, {"filters": []}]
        ),
        "shard": {
            "validation": draw.choice([0, 0.2, 0.5]),
            "rows_per_shard": draw.randint(1, 30),
            "seed": draw.randint(0, 9),
            "label": draw.choice(["vote", "gold", "teacher"]),
            "rationale_of_other_label": draw.choice(["drop", "keep"]),
        },
        "train": draw.choice([False, {"student": "embedded", "accept_terms": "a test"}]),
        "evaluate": draw.choice([False, False, {"bootstrap": 10}]),
    }
    if draw.random() < 0.5:
        stages["judge"] = {"teacher": {"backend": "replay", "name": "judge", "completions": "judgements.jsonl"}}
        stages["judge"]["on_failure"] = draw.choice(["drop", "keep"])
    if draw.random() < 0.4:
        stages["balance"] = draw.choice([{"most_per_label": draw.randint(1, 6)}, {"most_per_group": {"place": 4}}])
    task = {"name": "varied", "inputs": _inputs(folder, draw), "input": "{{ text }}", "labels": ["sports", "food"]}
    task |= {"gold": "topic", "id": "id", "slices": ["place"], "license": draw.choice([None, "CC0-1.0"])}
    task["targets"] = draw.choice([["label"], ["label", "rationale"], ["rationale"], ["label", "rationale"]])
    eval_sets = {"test": {"path": "test.jsonl", "license": draw.choice([None, "MIT"])}}
    given = {"run": "run", "task": task, "eval_sets": eval_sets, "stages": stages}
    (folder / "stages.yaml").write_text(json.dumps(given))
    return folder / "stages.yaml"


def _teachers(folder: Path, draw: random.Random) -> Any:
    one = {"backend": "replay", "completions": "completions.jsonl"}
    two = {**one, "name": "second", "price": draw.choice([None, {"prompt_tokens": 1.0, "completion_tokens": 2.0}])}
    shares = draw.choice([(1.0, 1.0), (0.5, 0.5), (0.25, 1.0)])
    return draw.choice([one, [{**one, "share": shares[0]}, {**two, "share": shares[1]}]])


def _inputs(folder: Path, draw: random.Random) -> str:
    """The rows as JSON lines, CSV or Parquet, in one file or two in a folder."""
    rows = [json.loads(line) for line in (folder / "inputs.jsonl").read_bytes().splitlines()]
    kind = draw.choice(["jsonl", "csv", "parquet", "folder"])
    rows = rows if kind == "jsonl" else rows[:-1]  # the bad row lacks a column
    if kind == "csv":
        with (folder / "inputs.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "inputs.parquet")
    elif kind == "folder":
        (folder / "inputs").mkdir()
        write_jsonl(folder / "inputs/a.jsonl", rows[:9])
        write_jsonl(folder / "inputs/b.jsonl", rows[9:])
        return "inputs"
    return f"inputs.{kind}"


# A run as bytes, and back again.


def files_of(run: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path in it."""
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


@contextmanager
def tampered(run: Path, before: Mapping[str, bytes]) -> Iterator[None]:
    """Whatever happens to the run in this block, afterwards it is as it was."""
    try:
        yield
    finally:
        restore(run, before)


def restore(run: Path, before: Mapping[str, bytes]) -> None:
    """Make the folder hold exactly these files."""
    wanted = {run / name for name in before}
    for path in sorted(run.rglob("*"), reverse=True):
        if path.is_symlink() or (not path.is_dir() and path not in wanted):
            path.unlink()
        elif path.is_dir() and (path in wanted or not any(path.iterdir())):
            shutil.rmtree(path)
    for name, content in before.items():
        path = run / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def folder_of(run: Path, stage: str) -> Path:
    """The folder of a stage's result in force."""
    return run / stage / (run / stage / "current").read_text().strip()


def manifest_of(run: Path, stage: str) -> Json:
    """A stage's manifest, as any JSON reader sees it."""
    found: Json = json.loads((folder_of(run, stage) / outputs.MANIFEST).read_bytes())
    return found


def sealed(manifest: Json) -> Json:
    """The manifest with the digest that its content has."""
    content = {name: value for name, value in manifest.items() if name != "digest"}
    return (
        {**content, "digest": hashlib.sha256(canonical_json(content)).hexdigest()} if "digest" in manifest else content
    )


def write_manifest(run: Path, stage: str, manifest: Json) -> None:
    """Put it where the stage's is."""
    (folder_of(run, stage) / outputs.MANIFEST).write_bytes(canonical_json(manifest) + b"\n")


# Leaves of a manifest, and what can be done to one.

Step = str | int
Place = tuple[Step, ...]


def leaves(value: Any, place: Place = ()) -> Iterator[Place]:
    """The places of everything that holds nothing else."""
    items: list[tuple[Step, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    if not items:
        yield place
    for step, item in items:
        yield from leaves(item, (*place, step))


def at(value: Any, place: Place) -> Any:
    """What stands there."""
    for step in place:
        value = value[step]
    return value


def shown(place: Place) -> str:
    """``outputs.0.sha256``."""
    return ".".join(map(str, place))


def kind_of(place: Place) -> str:
    """The place with every number in it as ``*``: leaves with one kind hold the same thing of several rows or files."""
    return ".".join("*" if isinstance(step, int) else step for step in place)


def other(value: Any) -> Any:
    """Another value of the same type and, for a text, of the same form."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value + 0.5
    if isinstance(value, str) and value:
        last = value[-1]
        return value[:-1] + ("1" if last == "0" else "0" if last.isdigit() else "b" if last == "a" else "a")
    return {"": "a", None: "a"}.get(value, ["a"]) if not isinstance(value, dict | list) else type(value)()


def retyped(value: Any) -> Any:
    """The same value, as far as can be, of another type."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return [value]
    return {} if value == [] or value is None else []


KINDS = ("deleted", "changed", "retyped", "swapped", "doubled")
_TWIN = "\x00twin"


def changed_leaf(manifest: Json, place: Place, kind: str, *, seal: bool) -> bytes | None:
    """The manifest's bytes with one leaf tampered with; with ``seal``, its digest fits again. None where this can't be done there.

    ``swapped``: with the next one in the same object or list that differs. ``doubled``: a key stands there twice, of which most readers
    take the last; an element of a list is repeated.
    """
    found = copy.deepcopy(manifest)
    holder, step = at(found, place[:-1]), place[-1]
    value = holder[step]
    if kind == "deleted":
        del holder[step]
    elif kind == "changed":
        holder[step] = {"a": 1} if value == {} else ["a"] if value == [] else other(value)
    elif kind == "retyped":
        holder[step] = retyped(value)
    elif kind == "swapped":
        steps = sorted(holder) if isinstance(holder, dict) else range(len(holder))
        partner = next(
            (one for one in steps if one != step and holder[one] != value and (step in ("digest",) or one != "digest")),
            None,
        )
        if partner is None:
            return None
        holder[step], holder[partner] = holder[partner], value
    elif isinstance(holder, list):
        holder.insert(int(step), value)
    else:
        holder[step] = other(value) if not isinstance(value, dict | list) else ["a"]
        lax = sealed(found) if seal else found
        at(lax, place[:-1])[f"{step}{_TWIN}"] = at(lax, place)
        at(lax, place[:-1])[step] = value
        return canonical_json(lax).replace(json.dumps(_TWIN)[1:-1].encode(), b"") + b"\n"
    if seal and place != ("digest",):
        found = sealed(found)
    return canonical_json(found) + b"\n"


# Rows, with all hashes of their stage and of those after it made to fit.

Lines = dict[str, list[bytes]]


def lines_of(run: Path, stage: str) -> Lines:
    """The lines of a stage's row files, by file, the drops' among them."""
    folder = folder_of(run, stage)
    names = [one["path"] for one in manifest_of(run, stage)["outputs"] if one["rows"] is not None]
    return {name: (folder / name).read_bytes().splitlines() for name in names}


def write_lines(run: Path, stage: str, lines: Lines) -> None:
    """Write row files and the digests beside them."""
    folder = folder_of(run, stage)
    for name, found in lines.items():
        (folder / name).write_bytes(b"".join(line + b"\n" for line in found))
        digests = b"".join(xxhash.xxh3_64_hexdigest(line).encode() + b"\n" for line in found)
        (folder / name).with_suffix(".xxh3").write_bytes(digests)


def changed(line: bytes, **fields: Any) -> bytes:
    """A row with other values, in the one encoding of rows."""
    return json.dumps({**json.loads(line), **fields}, ensure_ascii=False, separators=(",", ":")).encode()


def reforge(run: Path, first: str = "ingest", *, count_first: bool = True) -> None:
    """Make everything unsigned from this stage on fit what lies in the folders. A run that was not touched stays as it is, to the byte.

    Without ``count_first`` the first stage's manifest says what it says, and only its key and digest are made to fit.
    """
    renamed: dict[str, str] = {}
    for stage in list(STAGES)[list(STAGES).index(first) :]:
        if (run / stage / "current").is_file():
            _reforge(run, stage, renamed, count=count_first or stage != first)


def _reforge(run: Path, stage: str, renamed: dict[str, str], *, count: bool) -> None:
    folder, manifest = folder_of(run, stage), manifest_of(run, stage)
    before = hashlib.sha256((folder / outputs.MANIFEST).read_bytes()).hexdigest()
    if count:
        for parent in manifest["parents"]:
            path = folder_of(run, parent) / outputs.MANIFEST
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            manifest["parents"][parent] = {"key": path.parent.name, "manifest": digest}
    parents = {name: Parent(**parent) for name, parent in manifest["parents"].items()}
    key = provenance.key_of(
        manifest["stage"], manifest["version"], manifest["settings"], parents, manifest["identities"]
    )
    renamed[manifest["key"]], manifest["key"] = key, key
    if count:
        _write_names(folder, renamed)
        _count(run, stage, folder, manifest)
        _list_files(folder, manifest)
    write_manifest(run, stage, sealed(manifest))
    renamed[before] = hashlib.sha256((folder / outputs.MANIFEST).read_bytes()).hexdigest()
    folder.rename(folder.with_name(key))
    (run / stage / "current").write_text(f"{key}\n")


def _write_names(folder: Path, renamed: Mapping[str, str]) -> None:
    """Keys and digests as they stand in cards and the like."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".md", ".json") and path.name != outputs.MANIFEST and not is_run_fact(path.name):
            content = path.read_text()
            for old, new in renamed.items():
                content = content.replace(old, new)
            path.write_text(content)


def _list_files(folder: Path, manifest: Json) -> None:
    files = [_output(folder, known) for known in manifest["outputs"] if (folder / known["path"]).is_file()]
    names = {file.path for file in files}
    tree = manifest["root"] is not None
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and name not in names and name != outputs.MANIFEST and not is_run_fact(name):
            rows = path.suffix == ".jsonl"
            files.append(
                _output(folder, {"path": name, "rows": 0 if rows else None, "root": "" if rows and tree else None})
            )
    if tree:
        manifest["root"] = outputs.root(files)
    manifest["outputs"] = [file.model_dump(mode="json") for file in files]


def _output(folder: Path, known: Json) -> OutputFile:
    content = (folder / known["path"]).read_bytes()
    rows = None if known["rows"] is None else content.count(b"\n")
    tree = None if known["root"] is None else merkle.Tree(merkle.leaves(content.splitlines())).root.hex()
    return OutputFile(
        path=known["path"], bytes=len(content), rows=rows, sha256=hashlib.sha256(content).hexdigest(), root=tree
    )


def _count(run: Path, stage: str, folder: Path, manifest: Json) -> None:
    """Counts that obey the conservation law, and what the stage says about the shift of its rows."""
    lines = lines_of(run, stage)
    drops = [json.loads(line) for line in lines.get("dropped.jsonl", [])]
    kept = [json.loads(line) for name, found in lines.items() if name.startswith(PREFIXES) for line in found]
    counts = manifest["counts"]
    counts["reasons"] = dict(sorted(Counter(drop["reason"] for drop in drops).items()))
    counts["dropped"] = len(drops)
    counts["kept"] = sum(len(row["votes"]) for row in kept) if stage == "parse" else len(kept)
    counts["rows_out"] = len(kept)
    counts["rows_in"] = counts["kept"] + counts["dropped"]
    if (folder / shift.COUNTS).is_file():
        with suppress(RunError, DecodeError):  # rows that no reader takes are not counted
            _count_shift(run, stage, folder, manifest, {drop["id"] for drop in drops})


def _count_shift(run: Path, stage: str, folder: Path, manifest: Json, dropped: set[str]) -> None:
    (parent,) = manifest["parents"]
    row = STAGES[stage].takes
    assert row is not None
    read: list[Any] = list(outputs.read(folder_of(run, parent), row))
    gone = shift.measured([one for one in read if one.id in dropped], TRUTH)
    if stage == "parse":
        before = shift.measured(read, TRUTH)
        lines = [line for name, found in lines_of(run, stage).items() if name != "dropped.jsonl" for line in found]
        kept = shift.measured([Example.read(line) for line in lines], TRUTH)
    else:
        before = shift.measured(read, TRUTH)
        kept = shift.less(before, gone)
    manifest["details"]["shift"] = shift.change(before, gone).model_dump(mode="json")
    (folder / shift.COUNTS).write_text(shift.encoded(kept))


# Tamperings with rows: each is done to one stage, whose hashes and those of all stages after it are then made to fit.


class Tampering(NamedTuple):
    """One thing an attacker does to a run. ``what`` is its name, ``stage`` where it is done."""

    what: str
    stage: str
    act: Callable[[Path], None]

    def __str__(self) -> str:
        return f"{self.stage}: {self.what}"


def row_tamperings(run: Path) -> Iterator[Tampering]:
    """Rows removed, added, edited in every field, put in another order, moved between files, between kept and dropped."""
    for number, stage in enumerate(STAGES):
        lines = lines_of(run, stage)
        kept = [name for name in lines if name.startswith(PREFIXES)]
        made = list(_kept_tamperings(stage, kept, lines))
        if lines["dropped.jsonl"]:
            made += _drop_tamperings(run, stage, kept[0], lines["dropped.jsonl"])
        yield from (
            made[number % 2 :: 2] if STAGES[stage].kind == "filter" else made
        )  # each filter half of what is alike in all


def _kept_tamperings(stage: str, names: list[str], lines: Lines) -> Iterator[Tampering]:
    name = names[0]
    found = lines[name]
    line = found[1]

    def first(what: str, new: list[bytes]) -> Tampering:
        return Tampering(what, stage, lambda run: write_lines(run, stage, {name: new}))

    yield first("a row is removed", found[:1] + found[2:])
    yield first("the last row is removed", found[:-1])
    yield first("a row is added", [*found, changed(line, id="r99" + json.loads(line)["id"][2:])])
    yield first("a row stands there twice", [*found, line])
    yield first("two rows change places", [found[1], found[0], *found[2:]])
    yield first("a row has another encoding", [found[0], line.replace(b":", b": ", 1), *found[2:]])
    yield first("a row has an unknown field", [found[0], line[:-1] + b',"note":1}', *found[2:]])
    yield first("a row has a key twice", [found[0], line[:1] + b'"id":"r98",' + line[1:], *found[2:]])
    reason = json.loads(lines["dropped.jsonl"][0])["reason"] if lines["dropped.jsonl"] else "too_long"
    drop = {"id": json.loads(line)["id"], "reason": reason, "evidence": {}}
    drops = [*lines["dropped.jsonl"], json.dumps(drop, separators=(",", ":")).encode()]
    yield Tampering(
        "a kept row is among the drops",
        stage,
        lambda run: write_lines(run, stage, {name: found[:1] + found[2:], "dropped.jsonl": drops}),
    )
    row = json.loads(line)
    fields = {kind_of(place): place for place in reversed([*leaves(row)])}
    for place in in_turn([fields[kind] for kind in sorted(fields)], stage):
        edited = _edited(row, place, STAGES[stage].gives)
        if edited is not None:
            yield first(f"{shown(place)} of a row is edited", [found[0], edited, *found[2:]])
    if len(names) > 1:
        second, last = names[1], names[-1]
        moved = {name: found[:-1], second: [found[-1], *lines[second]]}
        yield Tampering("a row is moved to the next file", stage, lambda run: write_lines(run, stage, moved))
        across = {name: found[:1] + found[2:], last: [*lines[last], line]}
        yield Tampering("a row is moved to the other split's file", stage, lambda run: write_lines(run, stage, across))
        exchanged = {name: lines[second], second: found}
        yield Tampering("two files change places", stage, lambda run: write_lines(run, stage, exchanged))
        yield Tampering("a file is emptied", stage, lambda run: write_lines(run, stage, {last: []}))


def in_turn(places: list[Place], stage: str) -> list[Place]:
    """All of them; of the stages that pass rows through, and are alike, each has a part, so that together they have all."""
    passing = [name for name, one in STAGES.items() if one.kind == "filter" or one.adds]
    return places[passing.index(stage) :: len(passing)] if stage in passing else places


def _edited(row: Json, place: Place, record: type[Row]) -> bytes | None:
    """The row with another value there, of a type that it may have; None where no other can be thought of."""
    value = at(row, place)
    values = [other(value)] if value not in (None, [], {}) else ["a", 0.5, 1, ["a"], {"a": "b"}, {"a": 0.5}]
    for new in values:
        edited = copy.deepcopy(row)
        at(edited, place[:-1])[place[-1]] = new
        line = json.dumps(edited, ensure_ascii=False, separators=(",", ":")).encode()
        with suppress(DecodeError):
            record.read(line)
            return line
    return None


def _drop_tamperings(run: Path, stage: str, name: str, drops: list[bytes]) -> Iterator[Tampering]:
    def dropped(what: str, new: list[bytes]) -> Tampering:
        return Tampering(what, stage, lambda run: write_lines(run, stage, {"dropped.jsonl": new}))

    drop = json.loads(drops[0])
    yield dropped("a drop is removed", drops[1:])
    yield dropped("a drop is added", [*drops, changed(drops[0], id="r99" + drop["id"][2:])])
    yield dropped("a drop stands there twice", [*drops, drops[0]])
    yield dropped("the evidence of a drop is deleted", [changed(drops[0], evidence={}), *drops[1:]])
    if len(drops) > 1:
        yield dropped("two drops change places", [drops[1], drops[0], *drops[2:]])
    places = list(leaves(drop))
    for number, place in enumerate(places[:2] + places[2 :: max(len(places) // MOST_EVIDENCE, 1)]):
        edited = _edited(drop, place, Drop)
        if edited is not None and (number % 2 or place[0] != "evidence"):
            yield dropped(f"{shown(place)} of a drop is edited", [edited, *drops[1:]])
        elif isinstance(at(drop, place[:-1]), dict):
            less = copy.deepcopy(drop)
            del at(less, place[:-1])[place[-1]]
            yield dropped(f"{shown(place)} of a drop is deleted", [changed(drops[0], **less), *drops[1:]])
    parents = manifest_of(run, stage)["parents"]
    if STAGES[stage].kind == "filter" or STAGES[stage].adds:
        (parent,) = parents
        back = next(
            line
            for found in (lines_of(run, parent)[one] for one in lines_of(run, parent) if one.startswith(PREFIXES))
            for line in found
            if json.loads(line)["id"] == drop["id"]
        )
        kept = lines_of(run, stage)[name]
        yield Tampering(
            "a dropped row is put back",
            stage,
            lambda run: write_lines(run, stage, {name: [*kept, back], "dropped.jsonl": drops[1:]}),
        )


def propagate(run: Path, first: str, row: str, old: str, new: str) -> None:
    """Replace a text in all that lies of one input row in this stage and those after it."""
    for stage in list(STAGES)[list(STAGES).index(first) :]:
        if (run / stage / "current").is_file():
            write_lines(
                run,
                stage,
                {
                    name: [_replaced(line, row, old, new) for line in found]
                    for name, found in lines_of(run, stage).items()
                },
            )


def _replaced(line: bytes, row: str, old: str, new: str) -> bytes:
    found = json.loads(line).get("id", "")
    mine = found == row or found.startswith((f"{row}#", f"{row}/"))
    return line.replace(old.encode(), new.encode()) if mine else line


# The response store.


def records_of(run: Path) -> list[Json]:
    """The store's records, in order, without their checks."""
    paths = sorted((run / "responses").glob("segment-*.jsonl"))
    found: list[Json] = [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]
    return [{name: value for name, value in record.items() if name != "check"} for record in found]


def write_records(run: Path, records: list[Json]) -> None:
    """Make these the store's records, each with the key and the check that it must have."""
    lines = []
    for record in records:
        asked = {name: record[name] for name in ("identity", "prompt", "sampling", "seed", "sample")}
        family = responses.family_key(**asked)
        made = {**record, "family": family, "key": responses.request_key(family, record["max_tokens"])}
        said = Stored.model_validate(made).line()
        lines.append(said[:-1] + b',"check":"' + xxhash.xxh3_64_hexdigest(said).encode() + b'"}\n')
    (run / "responses/segment-00000.jsonl").write_bytes(b"".join(lines))


def store_tamperings(run: Path) -> Iterator[Tampering]:
    """Records edited in every field, removed, repeated, with texts exchanged: of an answer and of a judgement that a training row needs."""
    records = records_of(run)
    stage = {"recorded": "sample", "judge": "judge"}
    trained = {json.loads(line)["example"] for found in lines_of(run, "train").values() for line in found}
    (kept,) = (found for name, found in lines_of(run, "balance").items() if name.startswith(PREFIXES))
    example = next(json.loads(line) for line in kept if json.loads(line)["id"] in trained)
    for key in (example["votes"][0]["request"], example["judgement"]["request"]):
        number = next(number for number, record in enumerate(records) if record["key"] == key)
        where = stage[records[number]["teacher"]]
        yield from _record_tamperings(records, number, where)


def _record_tamperings(records: list[Json], number: int, stage: str) -> Iterator[Tampering]:
    def made(what: str, found: list[Json]) -> Tampering:
        return Tampering(f"{what} in the store", stage, lambda run: write_records(run, found))

    record = records[number]
    for place in leaves(record):
        if place[0] in ("key", "family"):
            continue  # they are what the rest makes them
        edited = copy.deepcopy(records)
        value = at(record, place)
        new = (
            {"sports": -0.1}
            if place == ("label_logprobs",)
            else 0.5
            if value is None and len(place) == 1
            else other(value)
        )
        at(edited[number], place[:-1])[place[-1]] = new if value != [] else ["a"]
        yield made(f"{shown(place)} of a record is edited", edited)
    yield made("a record is removed", records[:number] + records[number + 1 :])
    yield made("a record stands twice", [*records, record])
    exchanged = copy.deepcopy(records)
    partner = number + 1
    exchanged[number]["text"], exchanged[partner]["text"] = records[partner]["text"], record["text"] + " "
    yield made("texts of two records change places", exchanged)
