"""What a manifest says about itself and beside the others: whatever can be worked out from the rest of it must be so.

    quality/05be..../manifest.json: asked.filters: not what settings.filters came from

A forger who changes one entry and all digests that follow from it is caught where that entry contradicts another one, or what this code
would have written. ``UNPROVEN`` names the entries that nothing else in a run folder tells of, each with its reason.

Limits: settings that this code knows and an older one did not are missed only in results of the same code (``code.modules``).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pipeline import environment, measure, outputs, requests, sample, shift, sources
from pipeline.audits import Audited, Finding, Result, settings
from pipeline.binding import Problem
from pipeline.files import InputError, RunError, canonical_json, digest, plain, strict_json
from pipeline.records import Example, Manifest, OutputFile, features
from pipeline.runner import ROWS_PER_FILE
from pipeline.stages import STAGES
from pipeline.train import MODELS

UNPROVEN: Final = {
    "that the teacher really produced a text": "the store says so, and nobody can tell from the text; `--resample` asks some again",
    "code.version, code.commit, code.dirty, code.modules": "which code ran; only their form, and what other entries repeat, is checked",
    "environment.*": "Python, packages, processor, accelerators and driver of a machine that is not there any more",
    "sources.uri, sources.bytes, sources.license, sources.revision": "of files that are not in the run folder; their content is in the key",
    "models.*": "further facts about models that are not in the run folder; no key depends on them",
    "details of sample, dedup, decontaminate, judge, balance, train, evaluate": "measured while the stage ran; sums are checked",
    "asked.*": "where a file lay, and whether a default was written out; the rest must resolve to the settings",
    "what a stage says of the task that changes none of its rows": "labels, columns, slices; that stages differ in it is noted, no finding",
    "settings that no key depends on": "how evaluate repeats those of sample and judge may differ in them",
    "the task's name, and what licences are stated": "words that shard takes from stages.yaml for its card",
    "identities.student, identities of evaluate": "of a model that is not in the run folder",
    "drops and places of source rows": "what a source row said that ingest dropped, and where a kept one stood, only the source file tells",
    "why a teacher gave no answer": "a failure is on no other record; the drops of sample say it alone",
    "texts of predictions": "what a model wrote to an eval row; labels and figures are held against them",
    "the student's weights and other files, train's metrics.jsonl": "what came of a training; that it ran on these rows is only said",
    "evaluate's rows.jsonl, rationales.jsonl, validation.jsonl, safety.jsonl": "what is known of a row, and what models wrote and how sure "
    "they were; figures are held against them",
    "revoked.jsonl where it was emptied or deleted": "in no manifest; what results in force know of it is noted",
    "marks.jsonl": "what a reader thought of rows; what a filter made of it is in that stage's key and drops",
    "report, index, damaged": "pages and tables made of results, and what repair moved away; in no manifest, and nothing is made of them",
    "results.md, failures.jsonl and plots of sweeps": "views of results.jsonl, which is held against the results that it names",
    "names, tokens and log-probabilities in the response store that no row repeats": "the store is in no manifest and under no signature",
    "run.json, run-*.json": "times and speeds, in no manifest and under no signature",
}
"""What no contradiction can give away: without a signature a forger who recomputes every digest could have changed it."""

DROPS: Final = (f"{outputs.DROPPED}.jsonl", f"{outputs.DROPPED}.xxh3")


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on what manifests say."""
    for result in audited.all:
        manifest = result.manifest
        stage = result.folder.parent.name
        if manifest.stage != stage:
            continue  # was named by the check of the chain
        parts: tuple[Callable[[Audited, Result], Iterator[str | Finding]], ...] = (
            _stage, _counts, _outputs, _sources, settings.names, settings.values, settings.asked, settings.agreements, settings.identities,
            _details, _made_by,
        )  # fmt: skip
        for part in parts[:1] if manifest.version != STAGES[stage].version else parts:
            try:
                for problem in part(audited, result):
                    yield (
                        problem if isinstance(problem, Finding) else Finding(result.folder / outputs.MANIFEST, problem)
                    )
            except (
                ArithmeticError,
                AttributeError,
                LookupError,
                TypeError,
                ValueError,
                InputError,
                RunError,
                Problem,
            ) as error:
                clear = isinstance(error, InputError | RunError | Problem)
                told = plain(str(error) if clear else f"{type(error).__name__}: {error}")
                yield Finding(
                    result.folder / outputs.MANIFEST,
                    f"{part.__name__.strip('_')}: has not the form that it needs ({told})",
                )


def _stage(audited: Audited, result: Result) -> Iterator[str]:
    manifest, stage = result.manifest, STAGES[result.manifest.stage]
    if manifest.version != stage.version:
        yield f"version: {manifest.version} of {stage.name}; this code knows {stage.version}, and cannot check what another one wrote"
        return
    if manifest.counts.unit != stage.unit:
        yield f"counts.unit: {stage.name} counts {stage.unit}"
    if manifest.features != features(stage.gives):
        yield f"features: not those of the rows of {stage.name}"


def _counts(audited: Audited, result: Result) -> Iterator[str]:
    """The conservation law, within the manifest and against its parents'."""
    manifest, stage = result.manifest, STAGES[result.manifest.stage]
    counts = manifest.counts
    if counts.rows_in != counts.kept + counts.dropped or counts.dropped != sum(counts.reasons.values()):
        yield f"counts: {counts.rows_in} in is not {counts.kept} kept + {counts.dropped} dropped"
    if min(counts.kept, counts.rows_out, *counts.reasons.values(), 0) < 0 or 0 in counts.reasons.values():
        yield "counts: less than nothing was counted, or a reason that nothing was dropped for"
    one_each = stage.stands_for is type(stage).stands_for
    if (counts.kept != counts.rows_out) if one_each else (counts.kept < counts.rows_out):
        yield f"counts: {counts.kept} kept, but {counts.rows_out} rows were written"
    written = sum(file.rows or 0 for file in manifest.outputs if file.path not in DROPS)
    if written != counts.rows_out:
        yield f"counts.rows_out: {counts.rows_out}, but {written} rows are in its files"
    drops = [file.rows for file in manifest.outputs if file.path == DROPS[0]]
    if drops != [counts.dropped]:
        yield f"counts.dropped: {counts.dropped}, but {DROPS[0]} has {drops[0] if drops else 'no'} rows"
    read = _rows_read(audited, result)
    if read is not None and counts.rows_in != read:
        yield f"counts.rows_in: {counts.rows_in}, but {read} {stage.unit} came from what it read"


def _rows_read(audited: Audited, result: Result) -> int | None:
    """How many units came in, by what the stage read; None where that takes a look at rows."""
    manifest, stage = result.manifest, STAGES[result.manifest.stage]
    if not stage.reads:
        hub = any(source.bytes is None for source in manifest.sources)
        return None if hub else sum(source.rows or 0 for source in manifest.sources)
    parents = [audited.parent(result, name) for name in manifest.parents]
    if stage.name == "evaluate" or len(parents) != 1 or parents[0] is None:
        return None
    came = parents[0].manifest.counts.rows_out
    if stage.name == "sample":
        asked = [one["share"] for one in manifest.settings["teacher"]]  # type: ignore[union-attr,index,call-overload]
        return came * len(asked) * int(manifest.settings["n"]) if set(asked) == {1.0} else None  # type: ignore[arg-type]
    return came * stage.units(manifest.settings)


def _outputs(audited: Audited, result: Result) -> Iterator[str]:
    """The files that the stage writes, in the order in which it does."""
    manifest, stage = result.manifest, STAGES[result.manifest.stage]
    names = {file.path for file in manifest.outputs}
    rows = {file.path: file for file in manifest.outputs if file.rows is not None}
    for file in manifest.outputs:
        beside = str(PurePosixPath(file.path).with_suffix(".xxh3"))
        counted = file.path.endswith(".jsonl") and beside in names
        if counted != (file.rows is not None):
            yield f"outputs: {plain(file.path)}: rows are counted in a .jsonl file with a .xxh3 file beside it, and only there"
    wanted = {*DROPS, *(("counts.json",) if stage.gives is Example else ()), *(("README.md",) if stage.tree else ())}
    for name in sorted(wanted - names):
        yield f"outputs: {name} is missing"
    for name in sorted(names - wanted):
        if (
            name not in rows
            and str(PurePosixPath(name).with_suffix(".jsonl")) not in rows
            and not _beside(stage.name, name)
        ):
            yield f"outputs: {plain(name)}: no file that {stage.name} writes"
    kept = [name for name in rows if name != DROPS[0]]
    expected = [*sorted(kept), DROPS[0]]
    pairs = [one for name in expected for one in (name, str(PurePosixPath(name).with_suffix(".xxh3")))]
    rest = [str(path) for path in sorted(Path(name) for name in names - set(pairs))]
    if [file.path for file in manifest.outputs] != [*pairs, *rest]:
        yield "outputs: not in the order in which they are written"
    yield from _numbered(sorted(kept), rows, manifest)


BESIDE: Final[Mapping[str, tuple[str, ...]]] = {
    "sample": (sample.TEMPLATES, sample.SHOTS),
    "judge": (sample.TEMPLATES, sample.SHOTS),
    "train": ("metrics.jsonl",),
    "evaluate": measure.FILES,
}
"""What stages write beside their rows; train the models' folders, too."""
RUNS_CODE: Final = (".bin", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".py", ".so")  # where a model is loaded


def _beside(stage: str, name: str) -> bool:
    folder, _, file = name.partition("/")
    model = stage == "train" and folder in MODELS and bool(file)
    return name in BESIDE.get(stage, ()) or (model and PurePosixPath(name).suffix.lower() not in RUNS_CODE)


def _numbered(names: list[str], rows: Mapping[str, OutputFile], manifest: Manifest) -> Iterator[str]:
    """Row files are numbered, and all but the last are full."""
    full = manifest.settings.get("rows_per_shard", ROWS_PER_FILE)
    last: dict[str, int] = {}
    for name in names:
        prefix, _, number = name.removesuffix(".jsonl").rpartition("-")
        if number != f"{last.get(prefix, -1) + 1:05d}":
            yield f"outputs: {plain(name)}: row files are numbered one after the other"
        last[prefix] = last.get(prefix, -1) + 1
        is_last = f"{prefix}-{last[prefix] + 1:05d}.jsonl" not in rows
        count = rows[name].rows or 0
        if not 0 < count <= full or (not is_last and count != full):  # type: ignore[operator]
            yield f"outputs: {plain(name)}: {count} rows, where files have {full}"


def _sources(audited: Audited, result: Result) -> Iterator[str]:
    """The files that were read are those whose content stands in the settings."""
    manifest = result.manifest
    names = [source.uri for source in manifest.sources]
    if names != sorted(set(names)):
        yield "sources: each stands there once, in order"
    for source in manifest.sources:
        where = f"sources: {plain(source.uri)}"
        hub = source.uri.startswith(sources.HUB)
        if ((source.bytes is None), (source.sha256 is None)) != (hub, hub):
            yield f"{where}: a file has a size and a digest, a data set of the Hub has neither"
        if hub and result.manifest.stage == "ingest":
            name, revision, _ = sources.hub_name(str(manifest.settings.get("inputs")))
            if (source.uri, source.revision) != (f"{sources.HUB}{name}", revision):
                yield f"{where}: not the data set of settings.inputs"
        elif source.revision is not None:
            yield f"{where}: a file has no revision"
        if (source.bytes or 0) < 0 or (source.rows or 0) < 0 or not source.uri:
            yield f"{where}: sizes and rows are no less than 0"
        if source.rows is not None and manifest.stage != "ingest":
            yield f"{where}: rows: only ingest counts them"
    told = set(settings.digests(manifest.settings))
    read = {source.sha256 for source in manifest.sources if source.sha256 and not source.uri.endswith(".jinja")}
    for one in sorted(told ^ read):
        yield f"sources: {one[:12]}.. is {'in settings, but no source' if one in told else 'no file of the settings'}"
    yield from _template(result)


def _template(result: Result) -> Iterator[str]:
    """The prompt template as it was kept is the one in settings, and among its texts is the file that was read."""
    manifest = result.manifest
    prompt: Any = manifest.settings.get("prompt")
    if not isinstance(prompt, dict) or "templates.json" not in {file.path for file in manifest.outputs}:
        return
    kept = strict_json((result.folder / "templates.json").read_bytes())
    if prompt.get("prompt") != digest(kept):
        yield "settings.prompt: not the template in templates.json"
    texts = {hashlib.sha256(text.encode()).hexdigest() for text in settings.texts(kept)}
    read = [source.sha256 for source in manifest.sources if source.uri.endswith(".jinja")]
    if len(read) == 1 and read[0] not in texts:
        yield "sources: the prompt template is not the one in templates.json"


def _details(audited: Audited, result: Result) -> Iterator[str | Finding]:
    """Figures that other entries, or the counts that a stage left, give again."""
    manifest = result.manifest
    details: Any = manifest.details
    if manifest.stage == "sample":
        known = requests.from_manifest(manifest.settings, manifest.identities, None, None)
        if canonical_json(details["sampling"]) != canonical_json(known.sampling) or details["seed"] != known.seed:
            yield "details: sampling or seed are not those of settings"
        found = details["teachers"].values()
        failures: Counter[str] = sum((Counter(one["failures"]) for one in found), Counter())
        sums = tuple(sum(one[name] for one in found) for name in ("requests", "responses"))
        if sums != (manifest.counts.rows_in, manifest.counts.kept) or failures != Counter(manifest.counts.reasons):
            yield "details.teachers: requests, responses and failures do not add up to counts"
        if set(details["teachers"]) != {one.name for one in known.respondents}:
            yield "details.teachers: not the teachers of settings"
    if STAGES[manifest.stage].gives is Example and manifest.stage != "parse":
        (name,) = manifest.parents
        parent = audited.parent(result, name)
        if parent is not None:
            mine = [parent.folder, result.folder] if name == "parse" else [result.folder]  # others name their own
            for folder in mine:
                try:
                    shift.read(folder)
                except RunError as error:
                    path = folder / shift.COUNTS
                    told = str(error).removeprefix(f"{path}: ").removesuffix("; run `stepdistill audit`")
                    yield Finding(path, told)
                    return
            try:
                before, kept = shift.read(parent.folder), shift.read(result.folder)
            except RunError:
                return
            if (before.rows, kept.rows) != (manifest.counts.rows_in, manifest.counts.kept):
                yield "details.shift: counts.json, here or of its parent, is not of as many rows"
            change = shift.change(before, shift.less(before, kept)).model_dump(mode="json")
            if canonical_json(change) != canonical_json(details["shift"]):
                yield "details.shift: not what counts.json, here and of its parent, give"
    if manifest.stage in ("ingest", "shard") and details:
        yield f"details: {manifest.stage} has none"
    if STAGES[manifest.stage].gives is not Example and "shift" in details:
        yield "details.shift: only stages that give examples have one"


def _made_by(audited: Audited, result: Result) -> Iterator[str]:
    """The form of what can only be believed."""
    code, made_on = result.manifest.code, result.manifest.environment
    if code.package != environment.PACKAGE:
        yield f"code.package: {plain(code.package)} makes no such manifests"
    if (code.commit is None) != (code.dirty is None) or (
        code.commit and not re.fullmatch(r"[0-9a-f]{40}", code.commit)
    ):
        yield "code: a commit has 40 hexadecimal digits, and was changed or not"
    if code.version not in ("unknown", made_on.packages.get(code.package)):
        yield "code.version: not that of the package in environment.packages"
    version = re.compile(r"\d[\w.!+-]*")
    names = [
        name
        for name, one in made_on.packages.items()
        if not version.fullmatch(one) or not re.fullmatch(r"[a-z0-9-]+", name)
    ]
    if names:
        yield f"environment.packages: {plain(names[0])}: no package with a version"
    if not re.fullmatch(r"\d+\.\d+\.\d+\S*", made_on.python) or not re.fullmatch(r"\w+ \w+", made_on.platform):
        yield "environment: python or platform have not the form that they are written in"
    texts = [made_on.processor, *made_on.accelerators, made_on.driver or "1"]
    if not all(text and text.isprintable() for text in texts) or not re.fullmatch(r"\d[\d.]*", texts[-1]):
        yield "environment: processor, accelerators or driver have not the form that they are written in"
