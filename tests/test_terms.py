"""Terms of a teacher's outputs: what the table says of whom, who may be trained on, and that manifests agree on it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from typer.testing import CliRunner

from pipeline import outputs, provenance, teachers, terms
from pipeline.audits import Audited, Result
from pipeline.audits import terms as audited_terms
from pipeline.cli import app
from pipeline.config import load
from pipeline.files import InputError, sha256
from pipeline.project import check, train_alone
from pipeline.records import Manifest
from pipeline.runner import run
from pipeline.teachers import Replay, Server, Vllm
from pipeline.terms import OutputTerms, of_repository, table
from pipeline.train import train_on_shards

ALLOWED = "{training: allowed, license: MIT}"
CONDITIONAL = "{training: conditional, license: Own, obligations: [the name begins with Own, a notice goes along]}"
FORBIDDEN = "{training: forbidden, license: Own terms}"


def state(project: Path, stated: str | None, more: str = "") -> Path:
    """The project with these output_terms and, instead of ``train: false``, these settings of train."""
    teacher = "{backend: replay, completions: completions.jsonl%s}"
    text = re.sub(
        r"teacher: .*", "teacher: " + teacher % (f", output_terms: {stated}" if stated else ""), project.read_text()
    )
    project.write_text(re.sub(r"  train: .*\n", f"  train: {more or 'false'}\n", text))
    return project


@pytest.mark.parametrize(
    ("repository", "training", "license"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "allowed", "Apache-2.0"),
        ("Qwen/Qwen2.5-7B-Instruct", "allowed", "Apache-2.0"),
        ("Qwen/Qwen2.5-3B-Instruct", "conditional", "Qwen Research License Agreement"),
        ("Qwen/Qwen2.5-32B", "allowed", "Apache-2.0"),
        ("Qwen/Qwen2.5-72B-Instruct", "conditional", "Qwen License Agreement"),
        ("Qwen/Qwen3-32B", "allowed", "Apache-2.0"),
        ("meta-llama/Llama-2-7b-chat-hf", "forbidden", "Llama 2 Community License"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "forbidden", "Meta Llama 3 Community License"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "conditional", "Llama 3.1 Community License"),
        ("meta-llama/Llama-3.3-70B-Instruct", "conditional", "Llama 3.3 Community License"),
        ("deepseek-ai/DeepSeek-R1", "allowed", "MIT"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "allowed", "MIT"),
        (
            "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
            "conditional",
            "MIT, on top of the Llama 3.1 or 3.3 Community License",
        ),
        ("deepseek-ai/DeepSeek-V3", "conditional", "DeepSeek License Agreement 1.0"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "allowed", "Apache-2.0"),
        ("mistralai/Mistral-Large-Instruct-2411", "conditional", "MRL-0.1"),
        ("google/gemma-3-4b-it", "conditional", "Gemma Terms of Use"),
        ("google/gemma-2b-it", "conditional", "Gemma Terms of Use"),
        ("google/gemma-4-31B-it", "allowed", "Apache-2.0"),
        ("microsoft/Phi-4-mini-instruct", "allowed", "MIT"),
        ("openai/gpt-oss-20b", "allowed", "Apache-2.0"),
        ("allenai/OLMo-2-1124-7B", "allowed", "Apache-2.0"),
        ("qwen/QWEN3-0.6b", "allowed", "Apache-2.0"),
        ("evil/Llama-3-Qwen", "unknown", None),
        ("evil/Qwen3-32B", "unknown", None),
        ("Qwen3-32B", "unknown", None),
        ("evil-Qwen/Qwen3-32B", "unknown", None),
        ("Qwen/../evil/Qwen3-32B", "unknown", None),
        ("meta-llama/Llama-Guard-4-12B", "unknown", None),
    ],
)
def test_whose_terms_the_table_knows(repository: str, training: str, license: str | None) -> None:
    found = of_repository(repository)
    assert (found.training, found.license) == (training, license)


@given(st.text(st.characters(codec="ascii", exclude_characters="/"), min_size=1), st.text(max_size=20))
def test_only_an_owners_own_repositories_match(owner: str, name: str) -> None:
    owners = {pattern.partition("/")[0].lower() for family in table() for pattern in family.hub}
    if owner.lower() not in owners:
        assert of_repository(f"{owner}/{name}") == terms.UNKNOWN


def test_every_entry_of_the_table_says_where_its_terms_stand_and_how_it_knows() -> None:
    assert len({family.name for family in table()}) == len(table())
    for family in table():
        assert not set("*?[") & set("".join(pattern.partition("/")[0] for pattern in family.hub)), family.name
        assert all(pattern.count("/") == 1 for pattern in family.hub), family.name
        assert family.terms.license and family.terms.as_of and family.terms.known_from
        assert (family.terms.source or "").startswith("https://")
        assert family.terms.training in ("allowed", "conditional", "forbidden")
        assert (family.terms.training == "allowed") or family.terms.obligations
        first = [other.name for other in table() if set(other.hub) & set(family.hub)]
        assert first in ([], [family.name])


def test_a_teacher_has_the_terms_stated_or_those_that_its_settings_prove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    known = terms.of_embedded()
    assert teachers.terms(Vllm(backend="vllm", model="embedded")) == known != terms.UNKNOWN
    assert teachers.terms(Vllm(backend="vllm", model="Qwen/Qwen3-8B")).license == "Apache-2.0"
    assert teachers.terms(Vllm(backend="vllm", model="embedded", adapter=tmp_path)) == terms.UNKNOWN
    (tmp_path / "Qwen" / "Qwen3-8B").mkdir(parents=True)  # a folder of that name, with anything in it
    assert teachers.terms(Vllm(backend="vllm", model="Qwen/Qwen3-8B")) == terms.UNKNOWN
    assert teachers.terms(Vllm(backend="vllm", model="./Qwen/Qwen3-0.6B")) == terms.UNKNOWN
    served = Server(backend="server", base_url="http://127.0.0.1:8000/v1", model="Qwen/Qwen3-32B")
    assert teachers.terms(served) == terms.UNKNOWN
    for host in ("api.openai.com", "API.OpenAI.com", "api.anthropic.com", "generativelanguage.googleapis.com"):
        provider = served.model_copy(update={"base_url": f"https://{host}/v1"})
        assert teachers.terms(provider).training == "forbidden"
    assert teachers.terms(served.model_copy(update={"base_url": "https://api.openai.com.evil.org/v1"})) == terms.UNKNOWN
    recording = {"backend": "replay", "completions": Path("x.jsonl"), "name": "openai/gpt-oss-20b"}
    assert teachers.terms(Replay.model_validate(recording)) == terms.UNKNOWN
    stated = Replay.model_validate({**recording, "output_terms": "palm-540b-step-by-step"})
    assert teachers.terms(stated).license == "Apache-2.0"


@pytest.mark.parametrize(
    ("stated", "problem"),
    [
        ("qwen4", "no entry of this name in the table of terms; did you mean 'qwen"),
        ("{license: MIT}", "training"),
        ("{training: yes}", "training"),
        ("{training: allowed, as_of: yesterday}", "as_of"),
        ("{training: allowed, text: {sha256: abc}}", "sha256"),
        ("{training: allowed, licence: MIT}", "unknown setting; did you mean 'license'"),
    ],
)
def test_terms_that_are_none(project: Path, stated: str, problem: str) -> None:
    with pytest.raises(InputError, match=rf"stages\.yaml:\d+: stages\.sample\.teacher.*{problem}"):
        load(state(project, stated))


def manifests(project: Path) -> dict[str, Manifest]:
    return {outcome.stage: outcome.manifest for outcome in run(project, until="shard")}


def test_manifests_hold_terms_and_licences_and_no_key_of_sample_depends_on_them(project: Path) -> None:
    settings = project.read_text()
    bare = manifests(project)
    assert bare["sample"].models["teacher recorded"]["terms"]["training"] == "unknown"  # type: ignore[call-overload, index]
    (project.parent / "LICENCE.txt").write_text("Do what you like.\n")
    text = settings.replace("  name: small\n", "  name: small\n  license: CC0-1.0\n")
    project.write_text(text.replace("{path: test.jsonl}", "{path: test.jsonl, license: CC-BY-4.0}"))
    state(project, "{training: allowed, license: Own, text: LICENCE.txt, source: 'https://example.org', as_of: '2024'}")
    config = load(project)
    for stage in ("ingest", "sample", "parse", "dedup", "decontaminate", "quality"):
        asked = provenance.ask(config, stage)
        assert asked is not None
        assert asked.key == bare[stage].key
    run(project, until="shard", force=True)
    (project.parent / "LICENCE.txt").rename(project.parent / "moved.txt")
    digest = sha256(project.parent / "moved.txt")
    stated_now = f"license: Own, text: {{sha256: {digest}}}, source: 'https://example.org', as_of: '2024'"
    state(project, f"{{training: allowed, {stated_now}}}")
    found = {outcome.stage: outcome for outcome in run(project, until="shard")}
    assert not any(outcome.ran for outcome in found.values())  # a licence's digest stands in for its text
    stated = {
        "training": "allowed", "license": "Own", "text": {"sha256": digest}, "obligations": [],
        "source": "https://example.org", "as_of": "2024", "known_from": None,
    }  # fmt: skip
    assert found["sample"].manifest.models["teacher recorded"]["terms"] == stated
    assert found["shard"].manifest.settings["output_terms"] == {"recorded": stated}
    assert found["shard"].manifest.settings["license"] == "CC0-1.0"
    assert found["shard"].manifest.key != bare["shard"].key
    assert [source.license for source in found["ingest"].manifest.sources] == ["CC0-1.0"]
    assert [source.license for source in found["decontaminate"].manifest.sources] == ["CC-BY-4.0"]


@pytest.mark.parametrize(
    ("stated", "problem"), [(None, "it is not known whether"), (FORBIDDEN, "may not be trained on")]
)
def test_training_without_permission_stops_before_anything_is_asked(
    project: Path, stated: str | None, problem: str
) -> None:
    state(project, stated, "{}")
    for stopped in (lambda: run(project), lambda: run(project, ["train"]), lambda: check(project)):
        with pytest.raises(InputError, match=rf"stages\.yaml:\d+: stages\.train\.accept_terms: .*{problem}") as error:
            stopped()
        assert "'recorded'" in str(error.value)
        assert "--accept-terms" in str(error.value)
        assert "\n" not in str(error.value)
    assert not (project.parent / "runs" / "small" / "responses").exists()
    assert [outcome.stage for outcome in run(project, until="shard")][-1] == "shard"  # nothing is trained there
    reasoned = load(project, accept_terms="my own model: no")
    assert reasoned.stages["train"]["accept_terms"] == "my own model: no"
    keys = {provenance.ask(one, "shard").key for one in (load(project), reasoned)}  # type: ignore[union-attr]
    assert len(keys) == 1


def test_a_reason_where_nothing_is_trained_is_refused(project: Path) -> None:
    with pytest.raises(InputError, match="switched off"):
        load(project, accept_terms="because")


@pytest.mark.parametrize("reason", ["''", "'  '", "true", "[]"])
def test_a_reason_says_something(project: Path, reason: str) -> None:
    with pytest.raises(InputError, match="accept_terms"):
        load(state(project, None, f"{{accept_terms: {reason}}}"))


@pytest.mark.parametrize(
    ("stated", "refused"), [(ALLOWED, False), (CONDITIONAL, False), (FORBIDDEN, True), (None, True)]
)
def test_shards_carry_their_terms_to_a_training_elsewhere(
    project: Path, tmp_path: Path, stated: str | None, refused: bool
) -> None:
    """Who trains has only the folder of shards: its manifest says under which terms."""
    from pipeline.student import StudentSettings

    shards = run(state(project, stated), until="shard")[-1].folder
    given: dict[str, Any] = {
        "student": StudentSettings.model_validate({"from": str(tmp_path / "no model")}), "out": tmp_path / "out",
        "targets": None, "output_terms": None,
    }  # fmt: skip
    with pytest.raises(InputError, match="accept-terms" if refused else "no such folder"):
        train_on_shards(shards, **given)
    with pytest.raises(InputError, match="no such folder"):
        train_on_shards(shards, **given, accept_terms="our own teacher")
    told = (shards, str(tmp_path / "no model"), tmp_path / "out", None, ["alpha=0.3"])
    with pytest.raises(InputError, match="accept-terms" if refused else "no such folder"):
        train_alone(*told)
    with pytest.raises(InputError, match="no such folder"):
        train_alone(*told, "our own teacher")
    (shards / outputs.MANIFEST).unlink()
    with pytest.raises(InputError, match="it is not known"):
        train_on_shards(shards, **given)
    assert not (tmp_path / "out").exists()


def test_conditions_are_said_in_a_line_each() -> None:
    stated = TypeAdapter(terms.Stated).validate_python(
        {"training": "conditional", "license": "Own\x1b[2J", "obligations": ["a\nb", "c"]}
    )
    assert stated is not None
    assert terms.refused({"x": stated}) is None
    (line,) = terms.conditions({"x": stated, "y": OutputTerms.model_validate({"training": "allowed"})})
    assert line == r"teacher 'x' (Own\x1b[2J): a\x0ab; c"


json_values = st.recursive(
    st.none() | st.booleans() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(max_size=4), json_values) | st.just({}), json_values)
def test_what_a_manifest_does_not_say_clearly_is_unknown(settings: dict[str, Any], value: Any) -> None:
    found = terms.of_manifest({**settings, "output_terms": value})
    assert found
    for one in found.values():
        assert one.training in ("allowed", "conditional", "forbidden", "unknown")
    assert terms.of_manifest({}) == {"unnamed": terms.UNKNOWN}


def changed(result: Result, **fields: Any) -> Result:
    return Result(result.folder, result.manifest.model_copy(update=fields))


def audited(project: Path) -> Audited:
    """The run with a training as its manifest would tell of it."""
    results = {outcome.stage: Result(outcome.folder, outcome.manifest) for outcome in run(project, until="shard")}
    shard = results["shard"].manifest
    told = {"output_terms": shard.settings["output_terms"], "accept_terms": None}
    parents = {"shard": shard.parents["quality"].model_copy(update={"key": shard.key})}
    train = shard.model_copy(update={"stage": "train", "settings": told, "parents": parents})
    results["train"] = Result(project.parent / "runs" / "small" / "train" / "0", train)
    return Audited(project.parent / "runs" / "small", results)


def problems(found: Audited) -> list[str]:
    return [str(finding) for finding in audited_terms.check(found)]


def test_the_audit_finds_terms_that_do_not_agree(project: Path) -> None:
    found = audited(state(project, CONDITIONAL))
    assert problems(found) == []
    laxer = {
        "recorded": {**found.results["shard"].manifest.settings["output_terms"]["recorded"], "training": "allowed"}
    }  # type: ignore[index, call-overload, dict-item]
    settings = {**found.results["shard"].manifest.settings, "output_terms": laxer}
    found.results["shard"] = changed(found.results["shard"], settings=settings)
    shard, train = problems(found)
    assert "says allowed (Own), but sample was made under conditional (Own)" in shard
    assert "says conditional (Own), but shard was made under allowed (Own)" in train
    found.results["shard"] = changed(found.results["shard"], settings={**settings, "output_terms": {}})
    assert "says nothing, but sample was made under conditional" in problems(found)[0]


def test_the_audit_finds_a_training_that_nobody_gave_a_reason_for(project: Path) -> None:
    found = audited(state(project, FORBIDDEN))
    (problem,) = problems(found)
    assert "trained without a recorded reason: the outputs of the teacher 'recorded' may not be trained on" in problem
    train = found.results["train"]
    reasoned = {**train.manifest.settings, "accept_terms": "it does not compete"}
    found.results["train"] = changed(train, settings=reasoned)
    assert problems(found) == []
    for nothing in (" ", 1, None, {}):
        found.results["train"] = changed(train, settings={**reasoned, "accept_terms": nothing})
        assert len(problems(found)) == 1
    found.results["train"] = changed(train, settings={**reasoned, "output_terms": "none"})
    assert any("but shard was made under" in problem for problem in problems(found))


def test_terms_stated_after_the_asking_are_no_finding_and_changed_ones_are(project: Path) -> None:
    run(project, until="shard")
    assert problems(audited(state(project, ALLOWED))) == []
    run(project, until="shard", force=True)
    assert problems(audited(project)) == []
    (problem,) = problems(audited(state(project, CONDITIONAL)))
    assert "run --from sample --force" in problem
    run(project, until="shard", force=True)
    assert problems(audited(project)) == []


def test_facts_about_the_embedded_teacher_come_from_its_record() -> None:
    from pipeline import embedded

    settings = Vllm(backend="vllm", model="embedded", engine={"tensor_parallel_size": 2, "quantization": "fp8"})
    identity = teachers.identity(settings)
    facts = teachers.facts(settings, identity)
    assert facts["model"] == {**identity["model"], "files": embedded.files()}  # type: ignore[dict-item]
    assert "model.safetensors" in embedded.files()
    assert facts["chat_template"] == embedded.files()["chat_template.jinja"]
    assert facts["parallel"] == {"tensor_parallel": 2, "pipeline_parallel": 1, "data_parallel": 1}
    assert facts["quantization"] == "fp8"
    assert facts["dtype"] == {"asked": "auto", "stored": "bfloat16"}
    assert json.dumps(facts)


def test_facts_about_a_folder_repeat_the_digests_of_its_identity(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"torch_dtype": "float16", "quantization_config": {"quant_method": "awq"}}')
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    settings = Vllm(backend="vllm", model=str(tmp_path))
    identity = teachers.identity(settings)
    (tmp_path / "model.safetensors").write_bytes(b"others")
    facts = teachers.facts(settings, identity)
    assert facts["model"] == identity["model"]
    assert facts["quantization"] == "awq"
    assert facts["dtype"] == {"asked": "auto", "stored": "float16"}
    assert facts["chat_template"] is not None
    assert teachers.facts(settings.model_copy(update={"chat": False}), identity)["chat_template"] is None


def test_a_broken_table_entry_is_noticed() -> None:
    with pytest.raises(ValidationError):
        terms.Family.model_validate({"name": "x", "hub": [], "terms": {"license": "MIT"}})


def test_where_nothing_would_be_trained_no_reason_is_asked(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The training that a reason was given for is there, and stays in force without it; what would train anew is refused."""
    run(state(project, FORBIDDEN, "{}"), until="shard")
    asked = provenance.ask(load(project), "train")
    assert asked is not None
    shard = outputs.current(project.parent / "runs/small", "shard")
    assert shard is not None
    made = {
        "stage": "train",
        "key": asked.key,
        "asked": asked.asked,
        "settings": asked.settings,
        "parents": asked.parents,
    }
    manifest = outputs.read_manifest(shard).model_copy(update={**made, "identities": asked.identities, "outputs": []})
    folder = project.parent / "runs/small/train" / asked.key
    folder.mkdir(parents=True)
    outputs.write_manifest(folder, manifest.model_copy(update={"digest": outputs.manifest_digest(manifest)}))
    assert not any(outcome.ran for outcome in run(project))
    assert [outcome.stage for outcome in run(project, ["train"])] == ["train"]
    for anew in (
        {"force": True},
        {"overrides": ["train.alpha=0.3"]},
        {"overrides": ["quality.filters=[label_in_set]"]},
    ):
        capsys.readouterr()
        with pytest.raises(InputError, match="accept-terms"):
            run(project, **anew)  # type: ignore[arg-type]
        assert "running" not in capsys.readouterr().err


def test_a_plan_says_what_the_run_would_refuse(project: Path) -> None:
    told = CliRunner().invoke(app, ["plan", "-c", str(state(project, FORBIDDEN, "{}"))])
    assert told.exit_code == 0
    assert "run would be refused: " in told.stdout
    assert "--accept-terms" in told.stdout
