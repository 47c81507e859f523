"""Croissant 1.1 with its fields for responsible AI and for provenance: what ``mlcroissant`` and search engines for data sets read.

    {"@type": "sc:Dataset", "conformsTo": ["http://mlcommons.org/croissant/1.1", ..], "distribution": [{"@id": "train-00000.jsonl",
     "sha256": "9f..", ..}], "recordSet": [{"@id": "train-00000", "field": [..]}], "prov:wasGeneratedBy": [..], "rai:..": ..}

One file object and one record set a shard: a field of the format has one file as its source, and only a file object has a SHA-256, which
readers check as they read. ``contentUrl`` is relative to where the export lies. Sources: Croissant Format Specification 1.1 (its sections
on resources, record sets and provenance) and Croissant RAI specification 1.0, both of MLCommons.

Limits: the specification asks for ``datePublished``, ``creator`` and ``url``, which no manifest knows; ``url`` stands there once the data
set has a name on the Hub. mlcroissant 1.1 reads JSON lines through pandas, which takes a column of a file for numbers where each of its
texts is one ("07" becomes "7.0"), and is off in the last of a number's 17 digits. ``example`` is therefore cut out of ``id``, which is
never a number; ``completion`` can be hit where all rows of a file answer with bare numbers. The files are right all the same.
"""

import json
from typing import Any, Final

from pipeline import terms
from pipeline.cards import fact
from pipeline.exports import (
    HUB,
    View,
    detail,
    inputs,
    known_licence,
    licences,
    made_by,
    models,
    named,
    rows_by_split,
    setting,
    shards,
    title,
)
from pipeline.files import plain
from pipeline.records import OutputFile, Source, TrainingRow, features
from pipeline.stages import STAGES

VERSIONS: Final = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
CONTEXT: Final = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "prov": "http://www.w3.org/ns/prov#",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
} | {
    term: f"cr:{term}"
    for term in (
        "arrayShape citeAs column containedIn equivalentProperty extract field fileProperty fileObject fileSet format includes isArray "
        "isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated replace samplingRate separator source "
        "subField transform"
    ).split()
}
TYPES: Final = {"string": "sc:Text", "float64": "cr:Float64", "int64": "cr:Int64", "bool": "sc:Boolean"}
WHAT: Final = {
    "id": "<example>/<task>",
    "example": "the input that the row was made from; its rows share it, and stand in one split",
    "task": "what the row teaches: label, rationale, response or chain_of_thought",
    "split": "train or validation",
    "prompt": "what the student sees",
    "completion": "what it is to answer",
    "difficulty": "entropy of the answers that teachers gave to the example, in bits; null where there was one alone",
    "distribution": "label -> probability as a JSON object in a text, where that is learned instead of the completion; else null",
}


def render(shown: View) -> str:
    """The data set as Croissant's JSON-LD."""
    return json.dumps(_data_set(shown), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _data_set(shown: View) -> dict[str, Any]:
    files = shards(shown.shard)
    rows = ", ".join(f"{rows:,} {split}" for split, rows in rows_by_split(shown).items())
    found = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": title(shown),
        "description": f"Rows to train a small model on: inputs with the answers that a larger model gave to them ({rows or 'no rows'}).",
        "conformsTo": VERSIONS,
        "license": [_licence(one) for one in licences(shown)] or ["unknown"],
        "version": f"1.0.0+{(shown.shard.root or 'empty')[:16]}",
        "keywords": ["synthetic", "distillation"],
        "url": f"{HUB}/{shown.repository}" if shown.repository else None,
        "usageInfo": [_usage(name, found) for name, found in terms.of_manifest(shown.shard.settings).items()],
        "distribution": [_file(file, shown.base) for file in files],
        "recordSet": [_records(file) for file in files],
        **_provenance(shown),
        **_responsible(shown),
    }
    return {name: value for name, value in found.items() if value not in (None, [])}


def _licence(text: str | None) -> str:
    known = known_licence(text)
    return f"https://spdx.org/licenses/{known}" if known else plain(text or "unknown")


def _usage(name: str, found: terms.OutputTerms) -> dict[str, Any]:
    told = [f"training on its outputs: {found.training}", *found.obligations]
    more = {"url": plain(found.source)} if found.source else {}
    text = plain("; ".join(told), 2000)
    return {"@type": "CreativeWork", "name": plain(f"terms of the teacher {name}"), "text": text} | more


def _file(file: OutputFile, base: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": file.path,
        "name": file.path,
        "contentUrl": f"{base}{file.path}",
        "contentSize": f"{file.bytes} B",
        "encodingFormat": "application/jsonlines",
        "sha256": file.sha256,
        "prov:wasGeneratedBy": {"@id": "stage/shard"},
    }


def _records(file: OutputFile) -> dict[str, Any]:
    name = file.path.removesuffix(".jsonl")
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": f"{file.rows:,} rows of the split {name.partition('-')[0]}",
        "key": {"@id": f"{name}/id"},
        "field": [_field(name, file, column, kind) for column, kind in features(TrainingRow).items()],
    }


def _field(records: str, file: OutputFile, column: str, kind: str) -> dict[str, Any]:
    source: dict[str, Any] = {"fileObject": {"@id": file.path}, "extract": {"column": column}}
    if column == "example":  # its own column may look like numbers, which a reader may take for some
        source = {
            "fileObject": {"@id": file.path},
            "extract": {"column": "id"},
            "transform": {"regex": "(?s)^(.*)/[a-z]+$"},
        }
    return {
        "@type": "cr:Field",
        "@id": f"{records}/{column}",
        "name": column,
        "description": WHAT[column],
        "dataType": TYPES[kind],
        "source": source,
    }


def _provenance(shown: View) -> dict[str, Any]:
    """PROV: what the data set was derived from, by which activities, and whom it is attributed to."""
    teachers = [model for stage in ("sample", "judge") for model in models(shown, stage)]
    return {
        "prov:wasDerivedFrom": [_entity(source) for source in inputs(shown)],
        "prov:wasGeneratedBy": [_activity(shown, stage) for stage in made_by(shown)],
        "prov:wasAttributedTo": [
            {"@type": "prov:SoftwareAgent", "prov:label": _software(shown)},
            *({"@type": "prov:SoftwareAgent", "prov:label": plain(named(model))} for model in teachers),
        ],
    }


def _software(shown: View) -> str:
    return plain(f"{shown.shard.code.package} {shown.shard.code.version}")


def _entity(source: Source) -> dict[str, Any]:
    """A source: a file by its digest, a data set of the Hub by its address."""
    found = {
        "@type": "prov:Entity",
        "@id": f"urn:sha256:{source.sha256}" if source.sha256 else f"{HUB}/{plain(source.uri).removeprefix('hub:')}",
        "prov:label": plain(source.uri, 1000),
        "version": plain(source.revision) if source.revision else None,
        "license": _licence(source.license),
        "sha256": source.sha256,
    }
    return {name: value for name, value in found.items() if value is not None}


def _activity(shown: View, stage: str) -> dict[str, Any]:
    manifest, counts = shown.results[stage].manifest, shown.results[stage].manifest.counts
    used = [{"@id": f"stage/{parent}"} for parent in manifest.parents]
    agents = [{"@type": "prov:SoftwareAgent", "prov:label": plain(named(model))} for model in models(shown, stage)]
    found = {
        "@type": "prov:Activity",
        "@id": f"stage/{stage}",
        "prov:label": f"{stage}: {STAGES[stage].what}",
        "description": f"{counts.rows_in:,} {plain(counts.unit)} in, {counts.kept:,} kept, {counts.dropped:,} dropped",
        "identifier": f"sha256:{shown.manifest_digest(stage)}",
        "prov:wasInformedBy": used,
        "prov:used": [_entity(source) for source in manifest.sources] if stage != "ingest" else [],
        "prov:wasAssociatedWith": agents,
    }
    return {name: value for name, value in found.items() if value != []}


def _responsible(shown: View) -> dict[str, Any]:
    """The fields of the RAI vocabulary that manifests can answer."""
    teachers = [plain(named(model)) for model in models(shown, "sample")]
    answers = setting(shown, "sample", "n")
    steps = [
        plain(f"{stage}: {STAGES[stage].what} (dropped: {fact(dict(counts.reasons)) or 'none'})", 1000)
        for stage in made_by(shown)
        for counts in [shown.results[stage].manifest.counts]
    ]
    checked = detail(shown, "decontaminate", "eval_sets")
    against = ", ".join(plain(str(name)) for name in checked) if isinstance(checked, dict) else ""
    return {
        "rai:dataCollection": "Inputs were read from the sources named in prov:wasDerivedFrom; a teacher model answered them, and rules "
        "kept or dropped the answers. Each dropped row is kept apart with its reason.",
        "rai:dataCollectionType": ["Secondary Data analysis", "Others"],
        "rai:dataCollectionRawData": plain("; ".join(source.uri for source in inputs(shown)), 2000) or "unknown",
        "rai:dataPreprocessingProtocol": steps,
        "rai:dataAnnotationProtocol": ["Labels and rationales are a model's; no person wrote or checked them."],
        "rai:annotationsPerItem": f"no human ones; {fact(answers) or 'an unknown number of'} by each of {len(teachers)} models",
        "rai:machineAnnotationTools": [*teachers, _software(shown)],
        "rai:dataUseCases": ["Training of a smaller model on the task that the inputs are of."],
        "rai:dataLimitations": [
            "Expect wrong labels, and rationales that sound right without being the reason for the label.",
            f"Overlap with eval sets was searched for in: {against}."
            if against
            else "No overlap with any eval set was searched for.",
        ],
        "rai:dataBiases": [
            "Those of the inputs and of the teacher; labels were not balanced beyond what the steps say, and no bias was measured."
        ],
        "rai:personalSensitiveInformation": ["What the inputs hold of it was kept, save where a step says otherwise."],
    }
