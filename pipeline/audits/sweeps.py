"""Each line of a sweep's results is what the results on disk that it names give, and they were made with the settings that it states.

    sweeps/alpha-seed-5b0c77aa/results.jsonl:3: accuracy: is 0.9, but evaluate/2ab2.. gives 0.61

Limits: ``seconds`` is a time, which nobody vouches for. A setting is compared where a manifest has it as it was given: not one that no key
depends on, nor a path, nor one that resolves to more than was written. A line that was taken out is not missed. The table and the plots
beside the lines are views of them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from msgspec import DecodeError, structs

from pipeline import measure, outputs, sweeps
from pipeline.audits import Audited, Finding, kind, misplaced
from pipeline.audits.chain import KEY
from pipeline.files import RunError, canonical_json, plain, private, sha256
from pipeline.records import Manifest
from pipeline.stages import NOT_IN_KEY, STAGES

LARGEST: Final = 64 << 20  # bytes of a file of results
UNVOUCHED: Final = ("seconds",)


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on the results of sweeps."""
    place = audited.run / sweeps.FOLDER
    for folder in sorted(place.iterdir()) if kind(place) == "folder" else ():
        path = folder / sweeps.RESULTS
        if kind(folder) != "folder" or kind(path) is None:
            continue
        if (problem := misplaced(path)) is not None or path.lstat().st_size > LARGEST:
            yield Finding(path, problem or "larger than any file of results")
            continue
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            try:
                problems = list(_line(audited.run, sweeps.Measured.read(line)))
            except (DecodeError, RunError, OSError) as error:
                problems = [f"cannot be compared with what it was made from ({plain(str(error))})"]
            yield from (Finding(path, problem, number) for problem in problems)


def _line(run: Path, said: sweeps.Measured) -> Iterator[str]:
    """What is wrong with one line. Raises RunError and OSError for results that cannot be read."""
    chain = _chain(run, said.evaluate)
    if "train" not in chain or chain["train"].key != said.train:
        yield f"train: evaluate/{plain(said.evaluate, 40)} is not about the training {plain(said.train, 40)}"
        return
    given = [
        one for one in sweeps.measured(run, said.knobs, said.train, said.evaluate) if one.eval_set == said.eval_set
    ]
    if not given:
        yield f"eval_set: evaluate/{said.evaluate} has no eval set {plain(said.eval_set, 60)}"
        return
    for name in said.__struct_fields__:
        stated, gives = getattr(said, name), getattr(given[0], name)
        if name not in UNVOUCHED and canonical_json(structs.asdict(said)[name]) != canonical_json(gives):
            yield f"{name}: is {plain(str(stated), 60)}, but evaluate/{said.evaluate} gives {plain(str(gives), 60)}"
    for knob, value in said.knobs.items():
        yield from _knob(chain, knob, value)


def _chain(run: Path, evaluation: str) -> dict[str, Manifest]:
    """The manifests of an evaluation and of all that it was made from, whose own files of figures are as they were written."""
    found: dict[str, Manifest] = {}
    waiting = [("evaluate", evaluation)]
    while waiting:
        stage, key = waiting.pop()
        path = run / stage / key / outputs.MANIFEST
        if (
            stage not in STAGES
            or not KEY.fullmatch(key)
            or kind(path.parent) != "folder"
            or misplaced(path) is not None
        ):
            raise RunError(f"{plain(stage, 40)}/{plain(key, 40)}: no such result")
        if stage not in found:
            found[stage] = outputs.read_manifest(path.parent)
            waiting += [(name, parent.key) for name, parent in found[stage].parents.items()]
    figures = run / "evaluate" / evaluation / measure.METRICS
    written = {file.path: file.sha256 for file in found["evaluate"].outputs}
    if kind(figures) != "file" or sha256(figures) != written.get(measure.METRICS):
        raise RunError(f"evaluate/{evaluation}/{measure.METRICS}: missing, or changed since its manifest was written")
    return found


def _knob(chain: Mapping[str, Manifest], knob: str, value: Any) -> Iterator[str]:
    """A finding where a result was made with another value of a setting than the line states."""
    stage, _, rest = knob.partition(".")
    if knob in NOT_IN_KEY or stage not in chain:
        return
    manifest = chain[stage]
    made_with: Any = manifest.settings
    for step in rest.split("."):
        if not isinstance(made_with, dict) or step not in made_with:
            return
        made_with = made_with[step]
    same = canonical_json(sweeps.normal(made_with)) == canonical_json(sweeps.normal(value))
    if not same and _is_plain(made_with):
        told = plain(str(private(made_with)), 60)
        yield f"knobs: {plain(knob, 60)} is {plain(str(value), 60)}, but {stage}/{manifest.key} was made with {told}"


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | str | None) or (isinstance(value, list) and all(map(_is_plain, value)))
