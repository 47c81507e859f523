"""exports: valid by the tools that they are for, the very rows, nothing that a hostile text could alter, and audited byte by byte."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline
from pipeline import measure, outputs
from pipeline.audit import audit
from pipeline.export import FOLDER, FORMATS, export
from pipeline.exports import Result, View, hub_licence, shards, view
from pipeline.files import InputError, RunError, sha256
from pipeline.metrics import Metrics
from pipeline.records import Parent, Source
from tests.conftest import write_jsonl, write_project

HOSTILE = [
    'a: "b"\n---\nconfigs: []\n',
    "| x |\n|---|\n# Heading <script>alert(1)</script> [y](z) ![p](q)",
    "\x1b[31mred\x00\u2028\u0085\ufeff\U0001f600 `code` \\ & &lt;",
    '"}],"license":"mit","x":[{"',
    "- item\n    1.2 Model identification",
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that no test changes."""
    project = write_project(tmp_path_factory.mktemp("exports") / "project")
    pipeline.run(project)
    return project.parent / "runs/small"


@pytest.fixture
def run(small: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return shutil.copytree(small, tmp_path / "run")


@pytest.fixture(scope="module")
def trained(small: Path, tmp_path_factory: pytest.TempPathFactory) -> "Lent":
    """A view with a student and its figures, as train and evaluate would leave them."""
    shown = view(small)
    shard = shown.results["shard"]
    folder = tmp_path_factory.mktemp("evaluated")
    student = {
        "rows": 10, "answered": 9, "unanswered": 1, "correct": 7, "accuracy": 0.7, "accuracy_interval": (0.397, 0.892),
        "macro_f1": 0.6912345, "labels": {}, "confusion": [], "same_as_teacher": 8, "teacher_rows": 10, "parameters": 5,
        "kind": "student", "macro_f1_interval": None, "exact_match": 0.7, "rouge_l": None, "chrf": None, "slices": {},
        "calibration": None, "rationales": None,
    }  # fmt: skip
    compared = {
        **{
            "first": "student",
            "second": "majority",
            "difference": 0.2,
            "interval": (-0.1, 0.5),
            "both": 4,
            "neither": 2,
        },
        **{"p": 0.6, "sentence": "student 70.0%, majority 50.0%; difference +20.0 points: not shown"},
    }
    metrics = Metrics.model_validate(
        {
            "label_type": "text",
            "interval": measure.INTERVAL,
            "eval_sets": {
                "test": {
                    "rows": 10, "dropped": 0, "classes": ["sports", "food"], "majority": "food",
                    "models": {"student": student, "majority": {**student, "accuracy": 0.5, "macro_f1": None}},
                    "comparisons": [{**compared, "only_first": 3, "only_second": 1}],
                    "contamination": None,
                },
            },
            "safety": None,
        }
    )  # fmt: skip
    path = folder / measure.METRICS
    path.write_bytes(metrics.line())
    figures = {"path": path.name, "bytes": path.stat().st_size, "rows": None, "sha256": sha256(path)}
    base = shard.manifest.model_dump()
    train = type(shard.manifest).model_validate(
        {**base, "stage": "train", "root": None, "outputs": [], "parents": {"shard": cite(shard)},
         "identities": {"student": {"from": "owner/tiny", "revision": "abc"}},
         "settings": {"targets": ["label", "rationale"], "alpha": 0.5, "epochs": 5.0, "student": {"layers": 2}},
         "details": {"examples": {"train": 20}, "target_tokens": {"label": 40}}}
    )  # fmt: skip
    evaluated = type(shard.manifest).model_validate(
        {
            **base,
            "stage": "evaluate",
            "root": None,
            "outputs": [figures],
            "identities": {},
            "settings": {},
            "details": {},
        }
    )
    later = {"train": Result(folder, train), "evaluate": Result(folder, evaluated)}
    found = {**shown.results, **later}
    bare = shard.manifest.environment.model_copy(
        update={"packages": {}}
    )  # a long list, and none of an export's business
    return Lent(
        replace(
            shown,
            results={
                stage: one._replace(manifest=one.manifest.model_copy(update={"environment": bare}))
                for stage, one in found.items()
            },
        )
    )


class Lent:
    """A view in a wrapping that hypothesis prints in a word."""

    def __init__(self, shown: View) -> None:
        self.view = shown


def cite(result: Result) -> Parent:
    return Parent(key=result.manifest.key, manifest=sha256(result.folder / outputs.MANIFEST))


def changed(shown: View, stage: str, **fields: Any) -> View:
    """The view with other fields in the manifest of a stage."""
    result = shown.results[stage]
    manifest = result.manifest.model_copy(update=fields)
    return replace(shown, results={**shown.results, stage: result._replace(manifest=manifest)})


def render(shown: View, name: str) -> str:
    return FORMATS[name].render(shown)


def rows(shown: View) -> Iterator[tuple[str, list[dict]]]:
    for file in shards(shown.shard):
        path = shown.results["shard"].folder / file.path
        yield file.path.removesuffix(".jsonl"), [json.loads(line) for line in path.read_bytes().splitlines()]


def records(croissant: Path, name: str) -> list[dict]:
    import mlcroissant

    return [
        {column.split("/")[1]: value.decode() if isinstance(value, bytes) else value for column, value in row.items()}
        for row in mlcroissant.Dataset(croissant).records(name)
    ]


def metadata(card: str) -> dict[str, Any]:
    """The YAML block of a card, read as the Hub's own library reads it."""
    found: dict[str, Any] = yaml.safe_load(card.split("\n---\n", 1)[0].removeprefix("---\n"))
    return found


def test_mlcroissant_finds_no_fault_and_reads_the_very_rows(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    import mlcroissant

    (path,) = export(run, "croissant")
    found = mlcroissant.Dataset(path).metadata
    assert not found.ctx.issues.errors
    assert {one.partition('"')[2].partition('"')[0].rpartition("/")[2] for one in found.ctx.issues.warnings} == {
        "citeAs",
        "datePublished",
    }
    assert "not standard" not in caplog.text
    for name, expected in rows(view(run)):
        assert expected
        assert records(path, name) == expected


def test_numbers_as_ids_and_unusual_characters_are_read_as_they_are(tmp_path: Path) -> None:
    project = write_project(tmp_path / "project")
    said = {
        f"{number:03d}": f'text {number} of \u2028 \U0001f600 \x85 \\ "quoted" é\t{"ab"[number % 2] * 9}'
        for number in range(8)
    }
    write_jsonl(
        project.parent / "inputs.jsonl", [{"id": name, "text": text, "topic": "food"} for name, text in said.items()]
    )
    write_jsonl(
        project.parent / "completions.jsonl",
        [{"id": name, "completion": f"It is {text}. So the answer is food."} for name, text in said.items()],
    )
    pipeline.run(project, overrides=["dedup.near=1.0", "shard.validation=0.0", "shard.rows_per_shard=6"])
    shown = view(project.parent / "runs/small")
    (path,) = export(project.parent / "runs/small", "croissant")
    found = dict(rows(shown))
    assert len(found) > 1
    assert "007" in {row["example"] for part in found.values() for row in part}
    for name, expected in found.items():
        assert records(path, name) == expected


def test_a_file_with_another_sha256_is_not_read(run: Path) -> None:
    from mlcroissant import GenerationError

    (path,) = export(run, "croissant")
    found = json.loads(path.read_text())
    found["distribution"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(found))
    name = found["recordSet"][0]["@id"]
    with pytest.raises(GenerationError):
        records(path, name)


def test_croissant_tells_where_the_rows_come_from(small: Path) -> None:
    found = json.loads(render(view(small), "croissant"))
    (source,) = found["prov:wasDerivedFrom"]
    assert source["@id"] == f"urn:sha256:{sha256(small.parents[1] / 'inputs.jsonl')}"
    assert source["prov:label"] == "inputs.jsonl"
    activities = {one["@id"]: one for one in found["prov:wasGeneratedBy"]}
    assert list(activities) == [
        f"stage/{one}" for one in "ingest sample parse dedup decontaminate quality shard".split()
    ]
    folder = outputs.current(small, "dedup")
    assert folder is not None
    assert activities["stage/dedup"]["identifier"] == f"sha256:{sha256(folder / outputs.MANIFEST)}"
    assert activities["stage/dedup"]["prov:wasInformedBy"] == [{"@id": "stage/parse"}]
    assert any("exact_duplicate 1" in step for step in found["rai:dataPreprocessingProtocol"])
    assert found["conformsTo"][0] == "http://mlcommons.org/croissant/1.1"


def test_the_data_card_is_valid_and_its_folder_loads(run: Path, tmp_path: Path) -> None:
    import datasets
    from huggingface_hub import DatasetCard, DatasetCardData

    shown = replace(view(run), base="", repository="ada/small")
    card = render(shown, "data-card")
    data = DatasetCard(card).data
    assert isinstance(data, DatasetCardData)
    assert data.license == "unknown"
    assert data.annotations_creators == ["machine-generated"]
    assert data.size_categories == ["n<1K"]
    assert "contaminated" in card
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "README.md").write_text(card)
    for file in shards(shown.shard):
        shutil.copy(shown.results["shard"].folder / file.path, folder)
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    for name, expected in rows(shown):
        assert list(loaded[name.partition("-")[0]]) == expected
    assert loaded["train"].features["difficulty"] == datasets.Value("float64")
    first = sorted(folder.glob("train-*"))[0]
    first.write_bytes(b"".join(first.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(datasets.exceptions.NonMatchingSplitsSizesError):
        datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "other"))


def test_the_model_card_is_valid_and_holds_the_figures(trained: Lent) -> None:
    from huggingface_hub import ModelCard, ModelCardData

    card = render(replace(trained.view, repository="ada/small"), "model-card")
    data = ModelCard(card).data
    assert isinstance(data, ModelCardData)
    assert data.base_model == "owner/tiny"
    assert data.datasets == ["ada/small"]
    assert [(one.dataset_name, one.metric_type, one.metric_value) for one in data.eval_results or []] == [
        ("test", "accuracy", 0.7),
        ("test", "f1", 0.6912),
    ]
    assert "| test | student | 70.0% | 39.7% to 89.2% | 0.691 | 10 | 1 |" in card
    assert trained.view.shard.root is not None
    assert trained.view.shard.root in card


def test_figures_that_are_not_those_of_the_manifest_are_refused(trained: Lent, tmp_path: Path) -> None:
    result = trained.view.results["evaluate"]
    (tmp_path / measure.METRICS).write_bytes((result.folder / measure.METRICS).read_bytes().replace(b"0.7", b"0.9"))
    other = replace(trained.view, results={**trained.view.results, "evaluate": result._replace(folder=tmp_path)})
    with pytest.raises(RunError, match="not the figures that its manifest names"):
        render(other, "model-card")


def test_the_summary_has_the_sections_of_the_template(trained: Lent) -> None:
    text = render(trained.view, "summary")
    numbers = re.findall(r"^(\d(?:\.\d)?) ", text, re.MULTILINE)
    assert numbers == "1 1.1 1.2 1.3 2 2.1 2.2 2.3 2.4 2.5 2.6 3 3.1 3.2 3.3".split()
    assert "recorded" in text.split("2.5 Synthetic data")[1].split("2.6")[0]
    assert "inputs.jsonl" in text.split("2.2 Private")[1].split("2.3")[0]


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ([None], "unknown"),
        (["apache-2.0"], "apache-2.0"),
        (["ODbL-1.0"], "odbl"),
        (["MIT", "MIT"], "mit"),
        (["MIT", "CC-BY-4.0"], "other"),
        (["MIT", None], "unknown"),
        (["of our own"], "other"),
        ([], "unknown"),
    ],
)
def test_the_licence_at_the_head_is_claimed_only_where_it_is_known(small: Path, stated: list, told: str) -> None:
    sources = [Source(uri=f"{number}.jsonl", license=one) for number, one in enumerate(stated)]
    assert hub_licence(changed(view(small), "ingest", sources=sources)) == told


def poisoned(shown: View, text: str) -> View:
    """The view with ``text`` wherever a stranger could put one."""
    shown = changed(
        shown,
        "shard",
        settings={
            **shown.shard.settings,
            "task": text,
            "output_terms": {
                text: {"training": "conditional", "license": text or "x", "obligations": [text], "source": text}
            },
        },
    )
    counts = shown.results["quality"].manifest.counts
    shown = changed(shown, "quality", counts=counts.model_copy(update={"reasons": {text: 2}, "unit": text}))
    shown = changed(shown, "ingest", sources=[Source(uri=text, license=text, revision=text, sha256="0" * 64)])
    shown = changed(
        shown, "decontaminate", details={"eval_sets": {text: {"rows": 3, "dropped": 1}}, "methods": {text: 1}}
    )
    identities = {f"teacher {text}": {"model": {"name": text}, text: text}}
    shown = changed(shown, "sample", identities=identities, models={f"teacher {text}": {text: [text]}})
    held = shown.results["train"].manifest.settings
    return changed(
        shown,
        "train",
        identities={"student": {"from": text, "revision": text}},
        settings={**held, "accept_terms": text},
    )


@settings(max_examples=60)
@given(text=st.one_of(st.sampled_from(HOSTILE), st.text(min_size=1)))
def test_no_text_alters_what_an_export_says(trained: Lent, text: str) -> None:
    clean = poisoned(trained.view, "harmless")
    shown = poisoned(trained.view, text)
    assert shape(json.loads(render(shown, "croissant"))) == shape(json.loads(render(clean, "croissant")))
    for name in ("data-card", "model-card"):
        card = render(shown, name)
        assert shape(metadata(card)) == shape(metadata(render(clean, name)))
        assert skeleton(card) == skeleton(render(clean, name))
        assert "<script" not in card.split("\n---\n", 1)[1]
    assert len(render(shown, "summary").split("\n")) == len(render(clean, "summary").split("\n"))
    for name in ("croissant", "data-card", "model-card", "summary"):
        assert all(character.isprintable() or character == "\n" for character in render(shown, name))


def shape(value: Any) -> Any:
    """A JSON value's form: names and types, no texts."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    return [shape(item) for item in value] if isinstance(value, list) else type(value)


def skeleton(card: str) -> list[tuple[str, int]]:
    """How each line of a card begins, and how many cells it has."""
    return [
        (line[:1], len(re.findall(r"(?<!\\)(?:\\\\)*\|", line))) for line in card.split("\n---\n", 1)[1].splitlines()
    ]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60)
@given(data=st.data())
def test_nothing_is_taken_for_granted_about_settings_and_details(trained: Lent, data: st.DataObject) -> None:
    shown = trained.view
    for stage, result in shown.results.items():
        for part in ("settings", "details", "models", "identities"):
            held = getattr(result.manifest, part)
            names = data.draw(st.sets(st.sampled_from(sorted(held)), max_size=3) if held else st.just(set()))
            drawn = {
                name: data.draw(
                    st.dictionaries(st.text(max_size=3), anything, max_size=2)
                    if part in ("models", "identities")
                    else anything
                )
                for name in sorted(names)
            }
            shown = changed(shown, stage, **{part: {**getattr(shown.results[stage].manifest, part), **drawn}})
    for name in FORMATS:
        assert render(shown, name)


def test_an_audit_knows_every_export_and_what_was_done_to_it(run: Path) -> None:
    written = list(export(run, "all"))
    assert [path.name for path in written] == ["croissant.json", "data-card.md", "statement.json", "summary.txt"]
    assert list(audit(run)) == []
    for path in written:
        raw = path.read_bytes()
        for other in (raw[:-1], raw + b"\n", raw.replace(b"0", b"1", 1), b""):
            path.write_bytes(other)
            assert [finding.path for finding in audit(run)] == [path]
        path.write_bytes(raw)
    assert list(audit(run)) == []


def test_an_audit_names_what_is_no_export(run: Path, tmp_path: Path) -> None:
    (path,) = export(run, "summary")
    (run / FOLDER / "notes.txt").write_text("x")
    (run / FOLDER / ".hidden").write_text("x")
    (tmp_path / "elsewhere.txt").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere.txt")
    (run / FOLDER / "model-card.md").write_text("# A student that never was")
    named = {finding.path.name for finding in audit(run)}
    assert named == {"notes.txt", ".hidden", "summary.txt", "model-card.md"}


def test_an_export_of_earlier_manifests_is_found_until_it_is_made_again(tmp_path: Path) -> None:
    project = write_project(tmp_path / "project")
    folder = project.parent / "runs/small"
    pipeline.run(project)
    written = list(export(folder, "all"))
    pipeline.run(project, overrides=["quality.filters=[label_in_set]"])
    assert {finding.path for finding in audit(folder)} == set(written)
    assert list(export(folder, "all")) == written
    assert list(audit(folder)) == []


def test_the_card_of_a_student_of_earlier_shards_goes_with_all(run: Path) -> None:
    list(export(run, "all"))
    stale = run / FOLDER / "model-card.md"
    stale.write_text("of shards that were rebuilt since")
    assert [finding.path for finding in audit(run)] == [stale]
    told: list[str] = []
    assert stale not in list(export(run, "all", tell=told.append))
    assert told == [f"{stale}: removed, for train has no result on these shards"]
    assert list(audit(run)) == []
    list(export(run, "all", tell=told.append))
    assert len(told) == 1


def test_the_model_card_names_the_licence_of_the_base_model(trained: Lent) -> None:
    base = {"license": "Apache-2.0", "revision": "abc", "files": {"model.safetensors": "5e" * 32}, "layers": 2}
    card = render(changed(trained.view, "train", models={"student": base}), "model-card")
    assert "| licence of the base model | Apache-2.0 |" in card
    assert f"| its files, SHA-256 | model.safetensors {'5e' * 32} |" in card
    assert "commit of the base model" not in card  # its identity says so
    assert "| licence of the base model | unknown |" in render(trained.view, "model-card")


def test_a_summary_of_no_rows_says_so(small: Path) -> None:
    summary = render(changed(view(small), "shard", outputs=[]), "summary")
    assert "Training data size: less than 1 billion tokens (no rows)" in summary


def test_the_same_manifests_give_the_same_bytes_in_another_folder(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two/deeper"):
        project = write_project(tmp_path / name)
        pipeline.run(project)
        found.append([path.read_bytes() for path in export(project.parent / "runs/small", "all")])
    assert found[0] == found[1]
    assert str(tmp_path).encode() not in b"".join(found[0])


def test_o_names_another_file_and_formats_are_told(run: Path, tmp_path: Path) -> None:
    (path,) = export(run, "statement", tmp_path / "out.json")
    assert json.loads(path.read_text())["_type"] == "https://in-toto.io/Statement/v1"
    assert not (run / FOLDER).exists()
    with pytest.raises(InputError, match="no export format of this name.*croissant"):
        list(export(run, "crossaint"))
    with pytest.raises(InputError, match="-o names one file"):
        list(export(run, "all", tmp_path / "x"))
    with pytest.raises(InputError, match="cannot be written"):
        list(export(run, "summary", tmp_path / "absent" / "deep" / "x"))
    with pytest.raises(InputError, match="no student was trained"):
        list(export(run, "model-card"))
    with pytest.raises(InputError, match="no finished shards"):
        list(export(tmp_path, "summary"))


def test_a_licence_that_is_stated_after_ingest_ran_stands_in_the_cards(tmp_path: Path) -> None:
    project = write_project(tmp_path / "project")
    pipeline.run(project)
    project.write_text(project.read_text().replace("  name: small\n", "  name: small\n  license: CC-BY-4.0\n"))
    assert [outcome.stage for outcome in pipeline.run(project) if outcome.ran] == ["shard"]
    (path,) = export(project.parent / "runs/small", "data-card")
    assert "CC-BY-4.0" in path.read_text()
    assert list(audit(project.parent / "runs/small")) == []
