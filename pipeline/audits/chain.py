"""Each manifest lies where it says, has the key that its settings and parents give, and its parents are those it was made from."""

import re
from collections.abc import Iterator

from pipeline import outputs, provenance
from pipeline.audits import Audited, Finding
from pipeline.files import plain, sha256
from pipeline.stages import STAGES

KEY = re.compile(r"[0-9a-f]{32}")


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on manifests, without a look at rows."""
    for folder, manifest in (*audited.results.values(), *audited.others):
        place = folder / outputs.MANIFEST
        stage = folder.parent.name
        if manifest.stage != stage or manifest.key != folder.name:
            yield Finding(
                place, f"says {plain(manifest.stage)} {plain(manifest.key)}, but lies under {stage}/{folder.name}"
            )
        key = provenance.key_of(
            manifest.stage, manifest.version, manifest.settings, manifest.parents, manifest.identities
        )
        if manifest.key != key:
            yield Finding(place, f"key: its settings, parents and models give {key}")
        if manifest.root != outputs.root(manifest.outputs):
            yield Finding(place, "root: not that of its row files")
        for parent, record in manifest.parents.items():
            path = audited.run / parent / record.key / outputs.MANIFEST
            if not KEY.fullmatch(record.key) or parent not in STAGES or not path.is_file():
                yield Finding(place, f"parents.{plain(parent)}: no result {plain(record.key)} on disk")
            elif sha256(path) != record.manifest:
                yield Finding(path, f"not the manifest that {stage} was made from")
        counts = manifest.counts
        if counts.rows_in != counts.kept + counts.dropped or counts.dropped != sum(counts.reasons.values()):
            yield Finding(place, f"counts: {counts.rows_in} in is not {counts.kept} kept + {counts.dropped} dropped")
