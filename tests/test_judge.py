"""judge: a small project judged by a real server, and what becomes of answers that are none."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import judge as judge_stage
from pipeline import outputs, usage
from pipeline import project as projects
from pipeline.audit import audit
from pipeline.cli import main
from pipeline.config import load, verify
from pipeline.files import InputError, RunError, strict_json
from pipeline.outputs import Job
from pipeline.records import Counts, Drop, Example, Manifest, OutputFile
from pipeline.runner import Outcome, run
from pipeline.teachers import Replay, Server
from pipeline.trace import trace
from tests.chat_server import ChatServer, Reply, chat_server, completion
from tests.conftest import ROOT, write_jsonl
from tests.rows import MADE_BY, example

RUBRIC = ROOT / "prompts/judge.jinja"


def score(number: int, reason: str = "It names what decides.") -> str:
    return json.dumps({"reason": reason, "score": number})


def shown(body: dict[str, Any]) -> str:
    """What the judge is shown of the example."""
    return str(body["messages"][-1]["content"])


def by_topic(body: dict[str, Any]) -> Reply:
    """5 for sports, 2 for all else."""
    return completion(score(5 if "Label: sports" in shown(body) else 2))


def add_judge(project: Path, chat: ChatServer, more: str = "", filters: str = "label_in_set") -> Path:
    """The project with a judge, and a list of filters in flow style."""
    (project.parent / "judge.jinja").write_bytes(RUBRIC.read_bytes())
    text = project.read_text().replace(
        "  quality:\n    filters:\n      - label_in_set\n      - {min_words: 3}\n",
        f"  judge:\n    teacher: {{backend: server, base_url: '{chat.url}', model: m, retries: 0, pause: 0}}\n"
        f"    prompt: judge.jinja\n{more}  quality: {{filters: [{filters}]}}\n",
    )
    assert "judge.jinja" in text
    project.write_text(text)
    return project


def found(outcomes: list[Outcome], stage: str) -> Outcome:
    return next(outcome for outcome in outcomes if outcome.stage == stage)


def test_every_example_is_scored_and_else_stays_as_it_was(project: Path) -> None:
    with chat_server(by_topic) as chat:
        outcomes = run(add_judge(project, chat))
    outcome = found(outcomes, "judge")
    before = list(outputs.read(found(outcomes, "decontaminate").folder, Example))
    after = list(outputs.read(outcome.folder, Example))
    assert [row.changed(judgement=None) for row in after] == before
    assert len(before) == len(chat.requests) == 26
    for row in after:
        assert row.judgement is not None
        assert row.judgement.score == (5 if row.label == "sports" else 2)
        assert (row.judgement.reason, row.judgement.judge) == ("It names what decides.", "m")
    for body in chat.requests:
        assert body["temperature"] == 0 and body["max_tokens"] == 200
        assert '"enum": [1, 2, 3, 4, 5]' in json.dumps(body)  # by whatever field the server is told of the schema
        assert "Possible labels: sports, food" in shown(body)
    details = outcome.manifest.details
    assert details["scores"] == {"1": 0, "2": 14, "3": 0, "4": 0, "5": 12}
    assert (details["judge"], details["not_judged"], details["mean_score"]) == ("m", {}, round(88 / 26, 4))
    figures = usage.figures(outcome.manifest)["m"]
    assert (figures.requests, figures.responses, figures.prompt_tokens) == (26, 26, 7 * figures.answers)
    assert outcome.manifest.counts.model_dump() == {
        "unit": "examples",
        "rows_in": 26,
        "kept": 26,
        "dropped": 0,
        "reasons": {},
        "rows_out": 26,
    }


def test_nothing_is_asked_twice_and_a_threshold_asks_nothing(project: Path) -> None:
    with chat_server(by_topic) as chat:
        add_judge(project, chat, filters="{min_judge_score: 2}")
        first = run(project)
        asked = len(chat.requests)
        assert found(first, "quality").manifest.counts.dropped == 0
        assert not any(outcome.ran for outcome in run(project))
        strict = run(project, overrides=["quality.filters=[{min_judge_score: 3}]"])
        assert [outcome.stage for outcome in strict if outcome.ran] == ["quality", "shard"]
        assert found(strict, "quality").manifest.counts.reasons == {"min_judge_score": 14}
        drop = next(outputs.read_drops(found(strict, "quality").folder))
        assert drop.evidence["why"] == "the judge gave 2, less than 3: 'It names what decides.'"
        assert isinstance(drop.evidence["judgement"], dict) and drop.evidence["judgement"]["score"] == 2
        again = run(project, ["judge"], force=True)
        assert found(again, "judge").ran
        assert len(chat.requests) == asked
        other = run(project, overrides=["parse.label_type=choice"])  # the same labels: the same requests
        assert found(other, "judge").ran and len(chat.requests) == asked
    assert found(again, "judge").manifest.outputs == found(first, "judge").manifest.outputs


def test_the_run_is_whole_and_a_judgement_leads_back_to_the_store(project: Path) -> None:
    with chat_server(by_topic) as chat:
        outcomes = run(add_judge(project, chat, filters="{min_judge_score: 3}"))
    run_folder = project.parent / "runs/small"
    assert list(audit(run_folder, full=True)) == []
    events = [event for event in trace(run_folder, "r2") if event.stage == "judge"]
    assert [event.verdict for event in events] == ["kept", "prompt", "stored"]
    assert "its key is the request's" in events[1].place
    assert events[1].row["messages"][-1]["content"] in [shown(body) for body in chat.requests]
    assert json.loads(events[2].row["text"])["score"] == 5
    part = found(outcomes, "judge").folder / "part-00000.jsonl"
    part.write_bytes(part.read_bytes().replace(b'"score":5', b'"score":4', 1))
    assert any(str(part) in problem for problem in map(str, audit(run_folder)))


def test_a_judge_that_changes_an_example_is_found(project: Path) -> None:
    """Whatever the manifest says: the rows of judge, without their judgements, are those that it read."""
    with chat_server(by_topic) as chat:
        outcomes = run(add_judge(project, chat))
    folder = found(outcomes, "judge").folder
    manifest = outputs.read_manifest(folder)
    forged = [line.replace(b"It speaks of", b"It is about", 1) for line in outputs.lines(folder)]
    writer = outputs.RowWriter(folder, "part", 100_000)
    for line in forged:
        writer.write(line)
    kept = [file for file in manifest.outputs if not file.path.startswith("part-")]
    manifest = manifest.model_copy(update={"outputs": writer.close() + kept})
    outputs.write_manifest(folder, manifest.model_copy(update={"digest": outputs.manifest_digest(manifest)}))
    problems = [str(finding) for finding in audit(project.parent / "runs/small")]
    assert any(f"{folder}: row r0 of decontaminate is neither kept as it was nor dropped" in line for line in problems)


HOSTILE = [
    "Score: 4",
    '{"score": 4}',
    '{"reason": "", "score": 4}',
    '{"reason": "good", "score": 6}',
    '{"reason": "good", "score": 0}',
    '{"reason": "good", "score": "4"}',
    '{"reason": "good", "score": 4.5}',
    '{"reason": "good", "score": 4.0}',
    '{"reason": "good", "score": true}',
    '{"reason": "good", "score": null}',
    '{"reason": "good", "score": 4, "label": "food"}',
    '{"reason": "good", "score": 4, "score": 5}',
    '{"reason": "\\ud800", "score": 4}',
    '[{"reason": "good", "score": 4}]',
    '{"reason": "' + "x" * 100_000,
    "[" * 100_000,
    '{"reason": "good", "score": 1' + "0" * 5000 + "}",
    "\x1b[2J\x07\u202e{",
]


def test_what_is_no_judgement_is_dropped_with_what_was_said(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = iter(HOSTILE)

    def reply(body: dict[str, Any]) -> Reply:
        text = next(texts, None)
        if text is None:
            return 400, {}, b"too \x1b[2J long"
        return completion(text, "length" if text.startswith("[[") else "stop")

    with chat_server(reply) as chat:
        add_judge(project, chat)
        outcomes = run(project, until="judge", overrides=["judge.teacher.concurrency=1"])
        folder, manifest = found(outcomes, "judge").folder, found(outcomes, "judge").manifest
        drops = {drop.id: drop for drop in outputs.read_drops(folder)}
        assert manifest.counts.reasons == {"not_judged": 26}
        assert manifest.details["not_judged"] == {"refused": 26 - len(HOSTILE), "unreadable": len(HOSTILE)}
        for drop in drops.values():
            assert len(drop.line()) < 4000
            why = str(drop.evidence["why"])
            assert why.isprintable() and why.startswith(
                ("the judge's answer cannot be read: ", "the judge gave no answer")
            )
        asked = len(chat.requests)
        kept = found(run(project, until="judge", overrides=["judge.on_failure=keep"]), "judge")
        # What was stored is not asked again, though it is no judgement; what failed is.
        assert len(chat.requests) == asked + 26 - len(HOSTILE)
    assert kept.manifest.counts.kept == 26
    assert all(row.judgement is None for row in outputs.read(kept.folder, Example))
    assert list(audit(project.parent / "runs/small", full=True)) == []

    quality = run(project, until="quality", overrides=["judge.on_failure=keep", "quality.filters=[min_judge_score]"])
    assert found(quality, "quality").manifest.counts.reasons == {"min_judge_score": 26}
    for stage, reason in (("judge", "not_judged"), ("quality", "it was not judged")):
        if stage == "judge":
            outputs.point(project.parent / "runs/small", "judge", folder.name)
        monkeypatch.setattr("sys.argv", ["stepdistill", "show", stage, "--dropped", "-n", "26", "-c", str(project)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr().out
        assert ended.value.code == 0 and reason in printed
        assert all(line.isprintable() for line in printed.split("\n"))


@given(st.text(max_size=80) | st.builds(score, st.integers(-1, 7), st.text(max_size=20)) | st.sampled_from(HOSTILE))
def test_any_answer_is_a_judgement_or_a_drop(text: str) -> None:
    """Through recorded judgements, which need no server and no rubric."""
    with tempfile.TemporaryDirectory() as name:
        recording = Path(name) / "said.jsonl"
        write_jsonl(recording, [{"id": "a", "completion": text}])
        teacher = Replay(backend="replay", completions=recording)
        first, second = judged(Path(name), [example("a"), example("b")], teacher=teacher)
    assert (second.id, isinstance(second, Drop) and second.reason) == ("b", "not_judged")
    assert first.id == "a" and type(first).read(first.line()) == first
    try:
        said = strict_json(text)
    except ValueError:
        said = None
    good = isinstance(said, dict) and set(said) == {"reason", "score"} and isinstance(said["reason"], str)
    good = good and said["reason"] != "" and type(said["score"]) is int and 1 <= said["score"] <= 5
    assert isinstance(first, Example) == good
    if isinstance(first, Example):
        assert first.judgement is not None
        assert (first.judgement.score, first.judgement.reason) == (said["score"], said["reason"])


def judged(folder: Path, rows: list[Example], **settings: Any) -> list[Example | Drop]:
    """The stage alone, on rows of one's own."""
    given, own = folder / "given", folder / "own"
    given.mkdir()
    own.mkdir()
    writer = outputs.RowWriter(given, "part", 100_000)
    for row in rows:
        writer.write(row.line())
    outputs.write_manifest(given, manifest_of(writer.close()))
    job = Job(folder=own, inputs={"dedup": given}, responses=folder / "responses")
    return list(judge_stage.judge(job, **settings))


def manifest_of(files: list[OutputFile]) -> Manifest:
    counts = Counts(unit="examples", rows_in=0, kept=0, dropped=0, reasons={}, rows_out=0)
    manifest = Manifest(
        stage="dedup",
        version=1,
        key="0" * 32,
        settings={},
        parents={},
        **MADE_BY,
        identities={},
        counts=counts,
        outputs=files,
        features={},
        details={},
        digest="0" * 64,
    )
    return manifest.model_copy(update={"digest": outputs.manifest_digest(manifest)})


def test_the_schema_is_part_of_the_key_and_stays_as_it_is() -> None:
    """Another schema is another request: a change here has every example judged anew."""
    assert judge_stage.SCHEMA == {
        "additionalProperties": False,
        "properties": {
            "reason": {"minLength": 1, "type": "string"},
            "score": {"enum": [1, 2, 3, 4, 5], "type": "integer"},
        },
        "required": ["reason", "score"],
        "type": "object",
    }


def test_a_budget_stops_it_and_the_next_run_goes_on(project: Path) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        status, headers, content = by_topic(body)
        return status, headers, content.replace(b'"prompt_tokens": 7', b'"prompt_tokens": 500')

    with chat_server(reply) as chat:
        add_judge(project, chat, more="    budget: {tokens: 6000}\n")
        with pytest.raises(RunError, match=r"^judge: the budget of 6,000 tokens .* or raise stages\.judge\.budget$"):
            run(project)
        part = len(chat.requests)
        assert 0 < part < 26
        run(project, overrides=["judge.budget=null"])
        assert len(chat.requests) == 26


def test_it_runs_only_where_it_is_set_up(project: Path) -> None:
    assert "judge" not in load(project).stages
    with pytest.raises(InputError, match="stages.judge: this stage is switched off; write down its settings to run it"):
        run(project, until="judge")
    with pytest.raises(InputError, match="stages.quality.filters: min_judge_score needs a judge; add stages.judge"):
        run(project, overrides=["quality.filters=[min_judge_score]"])
    with chat_server(by_topic) as chat:
        assert "judge" in load(add_judge(project, chat)).stages
    assert "judge" not in load(project, ["judge=false"]).stages


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("prompt: judge.jinja", "seed: 1", "stages.judge.prompt: missing; name a rubric"),
        ("prompt: judge.jinja", "prompt: juge.jinja", "juge.jinja: no such file; check the path"),
        ("teacher: {backend: server", "teacher: [{backend: server", "stages.judge.teacher: there is one judge; give its"),
        ("model: m", "modle: m", "stages.judge.teacher.modle: unknown setting; did you mean 'model'?"),
        ("model: m", "model: m, share: 0.5", "stages.judge.teacher: the shares add up to 0.5"),
        ("prompt: judge", "promt: judge", "stages.judge.promt: unknown setting; did you mean 'prompt'?"),
        ("judge.jinja\n", "judge.jinja\n    max_tokens: 0\n", "stages.judge.max_tokens: input should be greater"),
        ("judge.jinja\n", "judge.jinja\n    on_failure: skip\n", "stages.judge.on_failure: input should be 'drop' or 'keep'"),
        ("judge.jinja\n", "judge.jinja\n    sampling: {temperature: 1}\n", "stages.judge.sampling.temperature: set stages.judge.temp"),
        ("gold: topic\n", "\n", "stages.judge.show_gold: needs task.gold"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used_are_one_line_with_their_place(
    project: Path, before: str, after: str, message: str
) -> None:
    with chat_server(by_topic) as chat:
        more = "    show_gold: true\n" if "show_gold" in message else ""
        text = add_judge(project, chat, more=more).read_text()
    changed = text.replace(before, after)
    if "[{" in after:
        changed = changed.replace("pause: 0}\n", "pause: 0}]\n")
    assert changed != text
    project.write_text(changed)
    with pytest.raises(InputError) as caught:
        verify(load(project))
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(project)) and "\n" not in str(caught.value)


def test_the_true_label_is_shown_only_where_it_is_asked_for(project: Path) -> None:
    with chat_server(by_topic) as chat:
        add_judge(project, chat)
        rubric = project.parent / "judge.jinja"
        rubric.write_text("{% block user %}{{ input }} is {{ gold }}? It said {{ label }}.{% endblock %}")
        with pytest.raises(InputError, match=r"judge.jinja:1: .*gold"):
            run(project)
        assert not chat.requests
        run(project, overrides=["judge.show_gold=true"])
    assert {shown(body).rpartition(" is ")[2].partition("?")[0] for body in chat.requests} == {"sports", "food"}


def test_a_rubric_is_rendered_for_the_check(project: Path) -> None:
    with chat_server(by_topic) as chat:
        add_judge(project, chat)
    assert "stages: ingest, sample, parse, dedup, decontaminate, judge, quality, shard" in projects.check(project)
    (project.parent / "judge.jinja").write_text("{% block user %}{{ input }} {{ rational }}{% endblock %}")
    with pytest.raises(InputError, match=r"judge.jinja:1: .*rational.*; did you mean 'rationale'\?"):
        projects.check(project)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rationale": None},
        {"rationale": ""},
        {"label": None, "rationale": None, "text": "A poem of two lines."},
        {"choices": ["river", "bank"], "label": "bank"},
    ],
)
def test_the_shipped_rubric_fits_every_shape_of_example(fields: dict[str, Any], tmp_path: Path) -> None:
    row = example("a", **fields)
    with chat_server(lambda body: completion(score(3))) as chat:
        (out,) = judged(tmp_path, [row], teacher=Server(backend="server", base_url=chat.url, model="m"), prompt=RUBRIC)
    assert isinstance(out, Example) and out.judgement is not None
    asked = shown(chat.requests[0])
    assert row.input in asked and (row.label or row.text) in asked
    assert ("Reason given: " in asked) == bool(row.rationale)
    assert ("Possible labels: river, bank" in asked) == (row.choices is not None)
    assert "\n\n\n" not in asked and asked == asked.strip()


def test_a_new_project_has_the_rubric(tmp_path: Path) -> None:
    projects.init(tmp_path / "new")
    assert (tmp_path / "new/prompts/judge.jinja").read_bytes() == RUBRIC.read_bytes()
