"""The terms of the teachers' outputs agree all along the way, and no student was trained on what they forbid without a recorded reason."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline import outputs, terms
from pipeline.audits import Audited, Finding, Result
from pipeline.files import plain
from pipeline.requests import TEACHER


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on terms, from the manifests alone."""
    for stage, parent in (("shard", "sample"), ("train", "shard")):
        if stage in audited.results:
            earlier = next((found for name, found in audited.ancestors(stage) if name == parent), None)
            if earlier is not None:
                yield from _differing(audited.results[stage], parent, earlier)
    for result in audited.all:
        if result.manifest.stage == "train":
            yield from _unpermitted(result)


def _differing(result: Result, parent: str, earlier: Result) -> Iterator[Finding]:
    """Terms that are not those of the earlier stage. What was unknown when a teacher was asked may have been stated since."""
    now = _mapping(result.manifest.settings.get("output_terms"))
    before = _mapping(earlier.manifest.settings.get("output_terms")) if parent == "shard" else _of_teachers(earlier)
    for name in sorted({*now, *before}):
        was, found = before.get(name), now.get(name)
        if was != found and not (parent == "sample" and _training(was) in (None, "unknown")):
            problem = f"settings.output_terms.{plain(name, 80)}: says {_shown(found)}, but {parent} was made under {_shown(was)}"
            advice = "; `stepdistill run --from sample --force` takes new terms through the chain, out of the store"
            yield Finding(result.folder / outputs.MANIFEST, problem + (advice if parent == "sample" else ""))


def _of_teachers(sample: Result) -> dict[str, Any]:
    models = sample.manifest.models.items()
    return {name.removeprefix(TEACHER): facts["terms"] for name, facts in models if "terms" in facts}


def _unpermitted(train: Result) -> Iterator[Finding]:
    settings = train.manifest.settings
    reason = settings.get("accept_terms")
    problem = terms.refused(terms.of_manifest(settings))
    if problem and not (isinstance(reason, str) and reason.strip()):
        yield Finding(train.folder / outputs.MANIFEST, f"trained without a recorded reason: {problem}")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _training(value: object) -> object:
    return value.get("training") if isinstance(value, dict) else None


def _shown(value: object) -> str:
    """What the terms come to: ``allowed (Apache-2.0)``."""
    if not isinstance(value, dict):
        return "nothing"
    license = value.get("license")
    shown = f"{value.get('training')}" + (f" ({license})" if license else "")
    return plain(shown, 120)
