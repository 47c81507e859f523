"""push: exactly the listed files arrive, byte for byte; what the audit or the terms refuse does not leave; failures are one line."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import pipeline
from pipeline import outputs
from pipeline.exports import shards, view
from pipeline.files import InputError, RunError
from pipeline.push import parcels, push, unaccepted
from pipeline.signing import generate, private_key, sign
from tests.hub_server import Hub, hub_server

TOKEN = "hf_canaryCanaryCanaryCanaryCanary00"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in endpoint, and a token for it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with hub_server() as server:
        yield server


@pytest.fixture
def run(project: Path) -> Path:
    pipeline.run(project)
    return project.parent / "runs/small"


def test_what_arrives_is_what_the_run_holds_and_nothing_else(run: Path, hub: Hub) -> None:
    assert list(push(run, "ada/small", private=True, endpoint=hub.url)) == [f"{hub.url}/ada/small/commit/1"]
    arrived = hub.files["ada/small"]
    folder = outputs.current(run, "shard")
    assert folder is not None
    names = [file.path for file in shards(outputs.read_manifest(folder))]
    assert len(names) == 2
    stages = ["ingest", "sample", "parse", "dedup", "decontaminate", "quality", "shard"]
    assert sorted(arrived) == sorted(
        ["README.md", "croissant.json", "summary.txt", *names, *(f"manifests/{stage}.json" for stage in stages)]
    )
    for name in names:
        assert arrived[name] == (folder / name).read_bytes()
    for stage in stages:
        in_force = outputs.current(run, stage)
        assert in_force is not None
        assert arrived[f"manifests/{stage}.json"] == (in_force / "manifest.json").read_bytes()
    assert json.loads(arrived["croissant.json"])["url"] == "https://huggingface.co/datasets/ada/small"
    assert hub.made["ada/small"]["type"] == "dataset"
    assert hub.made["ada/small"]["visibility"] == "private"
    assert hub.tokens == {f"Bearer {TOKEN}", ""}  # none goes to where large files are put
    assert TOKEN.encode() not in b"".join(arrived.values())
    assert not re.search(rb"/tmp/|pytest-of-", b"".join(arrived.values()))


def test_what_was_pushed_loads(run: Path, hub: Hub, tmp_path: Path) -> None:
    import datasets
    import mlcroissant

    list(push(run, "ada/small", endpoint=hub.url))
    folder = tmp_path / "clone"
    for name, content in hub.files["ada/small"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    read = mlcroissant.Dataset(folder / "croissant.json")
    for split in ("train", "validation"):
        lines = [json.loads(line) for line in (folder / f"{split}-00000.jsonl").read_bytes().splitlines()]
        assert list(loaded[split]) == lines
        records = [{name.split("/")[1]: value for name, value in row.items()} for row in read.records(f"{split}-00000")]
        assert [{**row, **texts(row)} for row in records] == lines


def texts(row: dict) -> dict:
    return {name: value.decode() for name, value in row.items() if isinstance(value, bytes)}


def test_a_branch_is_made_and_committed_to(run: Path, hub: Hub) -> None:
    list(push(run, "ada/small", revision="audited", endpoint=hub.url))
    assert (hub.branches, hub.revisions) == (["audited"], ["audited"])


def test_the_signature_on_what_is_in_force_is_sent_along(run: Path, tmp_path: Path, hub: Hub) -> None:
    pair = generate(tmp_path / "ada")
    (written,) = sign(run, private_key(pair.private))
    (run / "signatures" / f"{'0' * 16}.dsse.json").write_text("{}")
    (run / "signatures" / "notes.txt").write_text("private")
    names = [name for name in parcels(run, "ada/small")[0].files if name.startswith("signatures")]
    assert names == [f"signatures/{written.name}"]
    for stray in ("notes.txt", f"{'0' * 16}.dsse.json"):
        (run / "signatures" / stray).unlink()
    list(push(run, "ada/small", keys=[pair.public], endpoint=hub.url))
    assert hub.files["ada/small"][f"signatures/{written.name}"] == written.read_bytes()
    with pytest.raises(RunError, match="not sent"):
        list(push(run, "ada/small", keys=[generate(tmp_path / "eve").public], endpoint=hub.url, tell=lambda _: None))


def test_a_run_that_its_audit_finds_fault_with_is_not_sent(run: Path, hub: Hub) -> None:
    folder = outputs.current(run, "shard")
    assert folder is not None
    path = folder / "train-00000.jsonl"
    path.write_bytes(path.read_bytes().replace(b"sports", b"Sports", 1))
    told: list[str] = []
    with pytest.raises(RunError, match="not sent, for its audit found"):
        list(push(run, "ada/small", endpoint=hub.url, tell=told.append))
    assert any("train-00000.jsonl:1" in finding for finding in told)
    assert (hub.made, hub.files) == ({}, {})


def test_rows_of_a_teacher_whose_terms_forbid_it_are_not_sent_without_a_reason(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = view(run)
    shard = plain.results["shard"]
    forbidden = {"recorded": {"training": "forbidden", "license": "House rules"}}
    manifest = shard.manifest.model_copy(update={"settings": {**shard.manifest.settings, "output_terms": forbidden}})
    shown = replace(plain, results={**plain.results, "shard": shard._replace(manifest=manifest)})
    monkeypatch.setattr("pipeline.push.view", lambda folder: shown)
    with pytest.raises(RunError, match=r"not sent: .*recorded.* may not be trained on \(House rules\).*--accept-terms"):
        list(push(run, "ada/small", endpoint=hub.url))
    assert (hub.made, hub.files) == ({}, {})
    for empty in ("", " \n"):
        with pytest.raises(InputError, match=r"--accept-terms: give a reason"):
            list(push(run, "ada/small", accept_terms=empty, endpoint=hub.url))
        with pytest.raises(InputError, match=r"--accept-terms: give a reason"):
            unaccepted(run, empty)
    assert "--accept-terms REASON" in (unaccepted(run, None) or "")
    assert hub.files == {}
    assert list(push(run, "ada/small", accept_terms="agreed in writing", endpoint=hub.url))
    assert "agreed in writing" in hub.descriptions[0]


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_hub_that_refuses_gives_one_line_without_the_token(run: Path, hub: Hub, status: int) -> None:
    hub.refuse = status
    with pytest.raises(RunError, match="did not take it") as error:
        list(push(run, "ada/small", endpoint=hub.url))
    assert "\n" not in str(error.value)
    assert TOKEN not in str(error.value)


def test_a_hub_that_is_not_there_gives_one_line(run: Path, hub: Hub) -> None:
    with pytest.raises(RunError, match="did not take it") as error:
        list(push(run, "ada/small", endpoint="http://127.0.0.1:1"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a b", "ada/small/x", "../x", "", "ada/\x1b[31m", "nope"])
def test_a_name_that_is_none_is_refused_in_one_line_before_anything_is_made(run: Path, hub: Hub, name: str) -> None:
    with pytest.raises(InputError, match="not a name of the Hub; give owner/name") as error:
        list(push(run, name, endpoint=hub.url))
    assert (hub.made, hub.files) == ({}, {})
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)


def test_a_student_that_was_never_trained_cannot_be_sent(run: Path) -> None:
    with pytest.raises(InputError, match="no student was trained"):
        parcels(run, "ada/small", "ada/student")


def test_the_command_lists_and_sends(project: Path, run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    command = [str(Path(sys.executable).with_name("stepdistill")), "push", "ada/small"]

    def call(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], capture_output=True, text=True, check=False, cwd=project.parent)

    listed = call("--dry-run", "--json")
    assert (listed.returncode, hub.files) == (0, {})
    assert "`stepdistill audit runs/small`, which a push has to pass, was not run" in listed.stderr
    assert "would not be sent" not in listed.stderr
    sent = call()
    assert (sent.returncode, sent.stdout) == (0, f"{hub.url}/ada/small/commit/1\n")
    sizes = {one["file"]: one["bytes"] for one in json.loads(listed.stdout)}
    assert sizes == {name: len(content) for name, content in hub.files["ada/small"].items()}
    assert TOKEN not in sent.stdout + sent.stderr + listed.stdout
