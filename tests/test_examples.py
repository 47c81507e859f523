"""The examples with PaLM 540B's recorded completions, from the files to the shards; skipped where the data is absent."""

import shutil
from pathlib import Path

import pytest

from pipeline import outputs, results
from pipeline.audit import audit
from pipeline.config import load
from pipeline.labels import same
from pipeline.records import Example
from pipeline.runner import run

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("name", "rows", "parsed", "right", "dropped"),
    [
        (
            "svamp",
            800,
            787,
            594,
            {"parse": {"unparsed": 13}, "quality": {"label_has_value": 20, "repeats_input": 1, "wrong_step": 24}},
        ),
        ("cqa", 9741, 9738, 7334, {"parse": {"unparsed": 3}, "quality": {"label_in_set": 313}}),
    ],
)
def test_an_example_runs_as_published(
    tmp_path: Path,
    recorded_data: Path,
    name: str,
    rows: int,
    parsed: int,
    right: int,
    dropped: dict[str, dict[str, int]],
) -> None:
    """787 and 9,738 parse as the data's own page says; docs/log.md tells why more of them count as right here."""
    shutil.copy(ROOT / "examples" / name / "stages.yaml", tmp_path)
    (tmp_path / "data").symlink_to(recorded_data.resolve() / name)
    outcomes = {outcome.stage: outcome.manifest.counts for outcome in run(tmp_path / "stages.yaml")}
    assert list(outcomes) == ["ingest", "sample", "parse", "dedup", "decontaminate", "quality", "shard"]
    assert outcomes["ingest"].kept == outcomes["sample"].kept == rows
    assert outcomes["parse"].kept == parsed
    assert {stage: outcomes[stage].reasons for stage in dropped} == dropped
    config = load(tmp_path / "stages.yaml")
    kind = config.stages["parse"]["label_type"]
    examples = outputs.read(results.result(config, "parse"), Example)
    assert sum(same(example.label, example.gold, kind) for example in examples) == right
    assert list(audit(config.run)) == []
