"""revoke: what a bad source or response reached is listed, and the next run does without it; nothing else changes."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import outputs, printed, provenance, results
from pipeline.audit import audit
from pipeline.config import Config, load
from pipeline.files import InputError
from pipeline.project import check
from pipeline.records import Drop, Example
from pipeline.responses import read_store
from pipeline.revocations import FILE, Revocation, by_stage, read, write
from pipeline.revoke import Reach, asked, held, reach, record, undo
from pipeline.runner import run
from pipeline.trace import trace
from tests.chat_server import chat_server, completion
from tests.conftest import write_jsonl
from tests.test_cli import call


def keys(config: Config) -> dict[str, str]:
    return {name: folder.name for name in config.stages if (folder := outputs.current(config.run, name)) is not None}


def ids(config: Config, stage: str) -> list[str]:
    folder = outputs.current(config.run, stage)
    assert folder is not None
    return [json.loads(line)["id"] for line in outputs.lines(folder)]


def drops(config: Config, stage: str) -> dict[str, Drop]:
    folder = outputs.current(config.run, stage)
    assert folder is not None
    return {drop.id: drop for drop in outputs.read_drops(folder)}


def revoke(config: Config, **given: str) -> Reach:
    found = reach(config.run, asked(config.run, **given))
    record(config.run, found.revocation)
    return found


def test_a_revoked_row_is_followed_everywhere_and_gone_with_the_next_run(project: Path) -> None:
    config = load(project)
    run(config)
    before = keys(config)
    found = revoke(config, source="r0", reason="withdrawn")
    for name in ("r0#0", "r0/label", "inputs.jsonl:1", found.results[1].rows[0]["id"]):
        assert asked(config.run, source=name, reason="withdrawn") == found.revocation
    assert found.revocation == Revocation(kind="row", id="r0", source="inputs.jsonl:1", reason="withdrawn")
    assert [(one.stage, one.kept, one.dropped, one.in_force) for one in found.results] == [
        *((stage, 1, 0, True) for stage in ("ingest", "sample", "parse", "dedup", "decontaminate", "quality")),
        ("shard", 2, 0, True),
    ]
    assert [row["id"] for row in found.results[-1].rows] == ["r0/label", "r0/rationale"]
    assert found.duplicates == ["r24"]
    for one in found.results:
        for row in one.rows:
            path, _, line = row["place"].rpartition(":")
            assert json.loads(Path(path).read_bytes().splitlines()[int(line) - 1])["id"] == row["id"]

    config = load(project)
    first = provenance.plan(config)[0]
    assert (first.runs, first.reasons) == (True, ['ingest.revoked: null -> {"row":{"r0":"withdrawn"}}'])
    assert {status.stage: status.state for status in results.status(config)}["ingest"] == "settings changed"
    problems = list(audit(config.run))
    assert {(problem.path.parent.parent.name, problem.line) for problem in problems} >= {("ingest", 1), ("shard", 1)}
    assert all("was revoked" in problem.problem for problem in problems)

    run(config)
    assert drops(config, "ingest")["r0"] == Drop(
        id="r0", reason="revoked", evidence={"source": "inputs.jsonl:1", "because": "withdrawn"}
    )
    for stage in config.stages:
        assert not [row for row in ids(config, stage) if row.split("#")[0].split("/")[0] == "r0"]
    assert "r24" in ids(config, "dedup")
    assert list(audit(config.run, full=True)) == []
    assert [event.verdict for event in trace(config.run, "inputs.jsonl:1")] == ["dropped"]
    assert {one.folder.name for one in held(config.run, read(config.run))} == set(before.values())

    assert undo(config.run, "inputs.jsonl:1") == [found.revocation]
    assert not (config.run / FILE).exists()
    run(load(project))
    assert keys(config) == before


def test_a_run_without_the_file_has_the_keys_that_it_always_had(project: Path) -> None:
    config = load(project)
    assert not any("revoked" in settings for settings in config.stages.values())
    run(config)
    manifests = [outputs.read_manifest(config.run / stage / key) for stage, key in keys(config).items()]
    assert not any("revoked" in manifest.settings for manifest in manifests)
    write(config.run, [])
    assert not any(step.runs for step in provenance.plan(load(project)))


def test_a_whole_file_is_revoked_by_its_name(project: Path) -> None:
    folder = project.parent / "inputs"
    folder.mkdir()
    rows = (project.parent / "inputs.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "good.jsonl").write_bytes(b"".join(rows[:20]))
    (folder / "bad.jsonl").write_bytes(b"".join(rows[20:]))
    project.write_text(project.read_text().replace("inputs: inputs.jsonl", "inputs: inputs"))
    config = load(project)
    run(config)
    found = revoke(config, source="bad.jsonl", reason="no licence")
    assert (found.revocation.kind, found.results[0].kept) == ("file", 9)
    run(load(project))
    assert {drop.reason for drop in drops(config, "ingest").values()} == {"revoked"}
    assert ids(config, "ingest") == [f"r{number}" for number in range(20)]


def test_a_revoked_response_is_dropped_for_every_row_that_shares_it_and_never_asked_again(project: Path) -> None:
    """Two rows with one prompt; their answer is revoked, and so it is where the store has lost it."""
    inputs = [{"id": f"r{n}", "text": text, "topic": "food"} for n, text in enumerate(("bread", "soup", "bread"))]
    write_jsonl(project.parent / "inputs.jsonl", inputs)
    (project.parent / "p.jinja").write_text("{% block user %}{{ text }}{% endblock %}")
    with chat_server(lambda _: completion("It is said. So the answer is food.")) as chat:
        settings = project.read_text().replace(
            "{backend: replay, completions: completions.jsonl}",
            f"{{backend: server, base_url: '{chat.url}', model: m, revision: '1'}}",
        )
        project.write_text(settings.replace("  input: ", "  prompt: p.jinja\n  input: "))
        config = load(project)
        run(config, until="shard")
        assert len(chat.requests) == 2
        shared = next(event.row["request"] for event in trace(config.run, "r0") if event.stage == "sample")
        with pytest.raises(InputError, match=r"2 rows share this answer \(r0, r2\)"):
            trace(config.run, shared)
        found = revoke(config, response=shared[:8], reason="copied")
        family = next(one.family for _, _, one in read_store(config.run / "responses") if one.key == shared)
        assert found.revocation == Revocation(kind="response", id=shared, family=family, reason="copied")
        assert reach(config.run, asked(config.run, response="r2#0")).known
        by = {one.stage: [row["id"] for row in one.rows] for one in found.results}
        assert "ingest" not in by
        assert (by["sample"], by["parse"]) == (["r0#0", "r2#0"], ["r0", "r2"])
        assert len(found.stored) == 1
        config = load(project)
        assert results.estimate(config).to_ask == 0
        run(config, until="sample")
        assert [problem.path.parent.parent.name for problem in audit(config.run) if "revoked" in problem.problem]
        run(config, until="shard")
        assert not [problem for problem in audit(config.run) if "revoked" in problem.problem]
        assert ids(config, "sample") == ["r1#0"]
        dropped = drops(config, "sample")["r2#0"]
        assert (dropped.reason, dropped.evidence["request"], dropped.evidence["because"]) == (
            "revoked",
            shared,
            "copied",
        )
        counts = outputs.read_manifest(config.run / "sample" / keys(config)["sample"]).counts
        assert (counts.rows_in, counts.kept, counts.dropped) == (3, 1, 2)
        for segment in (config.run / "responses").glob("segment-*"):
            segment.unlink()
        run(load(project), ["sample"], force=True)
        assert len(chat.requests) == 3  # r1 alone


def test_of_several_answers_only_the_revoked_one_goes(project: Path) -> None:
    """A vote of two teachers: the example stays, with what the other said."""
    (project.parent / "more.jsonl").write_bytes(
        (project.parent / "completions.jsonl").read_bytes().replace(b"It speaks", b"This speaks")
    )
    project.write_text(
        project.read_text().replace(
            "{backend: replay, completions: completions.jsonl}",
            "[{backend: replay, name: a, completions: completions.jsonl}, {backend: replay, name: b, completions: more.jsonl}]",
        )
    )
    config = load(project)
    run(config)
    found = revoke(config, response="r2#1")
    assert {one.stage: [row["id"] for row in one.rows] for one in found.results}["sample"] == ["r2#1"]
    assert found.results[-1].kept == 2  # its training rows rest on both
    run(load(project))
    (example,) = [one for one in outputs.read(outputs.current(config.run, "parse"), Example) if one.id == "r2"]
    assert [vote.response for vote in example.votes] == ["r2#0"]
    now = reach(config.run, found.revocation)
    assert not [one for one in now.results if one.in_force and one.kept]


def test_exports_and_signatures_that_cover_it_are_named(project: Path) -> None:
    config = load(project)
    run(config)
    root = outputs.read_manifest(outputs.current(config.run, "shard")).root
    (config.run / "exports").mkdir()
    (config.run / "signatures").mkdir()
    (config.run / "exports" / "card.md").write_text(f"root `{root}`")
    (config.run / "exports" / "other.md").write_text("root `0`")
    (config.run / "exports" / "loop").symlink_to("/dev/zero")
    for name, text in (("a", root), ("b", "nothing")):
        payload = base64.b64encode(text.encode()).decode()
        (config.run / "signatures" / f"{name}.dsse.json").write_text(json.dumps({"payload": payload}))
    found = reach(config.run, asked(config.run, source="r0"))
    assert [path.name for path in found.documents] == ["card.md", "a.dsse.json"]
    assert reach(config.run, asked(config.run, source="r26")).documents == []  # parse dropped it


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"source": "zzzzz"}, "no row of"),
        ({"response": "zzzzz"}, "no response or judgement of"),
        ({"response": "r0#7"}, "no response or judgement of"),
        ({"response": ""}, "no response or judgement of"),
    ],
)
def test_what_is_not_there_is_one_line(project: Path, given: dict[str, str], problem: str) -> None:
    config = load(project)
    with pytest.raises(InputError, match="no result yet|no response"):
        asked(config.run, **given)
    run(config)
    with pytest.raises(InputError, match=problem):
        asked(config.run, **given)
    with pytest.raises(InputError, match="revoked is nothing"):
        undo(config.run, "r0")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "revoked.jsonl:2: "),
        (b'{"kind":"row","id":"a","reason":"b"', "newline"),
        (b'{"kind":"row","id":"a","reason":"b","more":1}\n', "more: Extra"),
        (b'{"kind":"row","id":"a","reason":"b","reason":"c"}\n', "twice"),
        (b'{"kind":"rows","id":"a","reason":"b"}\n', "kind"),
        (b'{"kind":"response","id":"../../x","reason":"b"}\n', "32 hexadecimal"),
        (b'{"kind":"row","id":"","reason":"b"}\n', "id"),
        (b'{"kind":"row","id":"a","family":"' + b"0" * 32 + b'","reason":"b"}\n', "only a response"),
        (b'{"kind":"response","id":"' + b"0" * 32 + b'","family":"../x","reason":"b"}\n', "family"),
        (b'{"kind":"row","id":"r1","reason":"again"}\n', "revoked above"),
        (b'{"kind":"row","id":"' + b"a" * 20_000 + b'","reason":"b"}\n', "too long"),
        (b"\xff\n", "revoked.jsonl:2: "),
        (b"[" * 5000 + b"\n", "nested"),
        (b"\n", "revoked.jsonl:2: "),
    ],
)
def test_a_line_that_cannot_be_used_is_named(project: Path, line: bytes, problem: str) -> None:
    config = load(project)
    run(config, until="ingest")
    (config.run / FILE).write_bytes(b'{"kind":"row","id":"r1","reason":"b"}\n' + line)
    with pytest.raises(InputError, match=r"revoked\.jsonl:2: ") as raised:
        load(project)
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)
    assert any(finding.path.name == FILE for finding in audit(config.run))


@given(
    st.lists(
        st.one_of(
            st.builds(Revocation, kind=st.sampled_from(["row", "file"]), id=st.text(min_size=1), reason=st.text()),
            st.builds(
                Revocation,
                kind=st.sampled_from(["response", "judgement"]),
                id=st.text("01234567", min_size=32, max_size=32),
                family=st.none() | st.text("89abcdef", min_size=32, max_size=32),
                reason=st.text(),
            ),
        ),
        unique_by=lambda one: (one.kind, one.id),
    )
)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, revocations: list[Revocation]) -> None:
    folder = tmp_path_factory.mktemp("run")
    write(folder, revocations)
    assert read(folder) == revocations
    told = by_stage(revocations)
    told_of = [name for kinds in told.values() for ids in kinds.values() for name in ids]
    assert set(told_of) == {name for one in revocations for name in (one.id, one.family) if name is not None}
    assert set(told) <= {"ingest", "sample", "judge"}


def test_records_are_lines_without_a_date_and_none_is_there_twice(project: Path) -> None:
    config = load(project)
    run(config, until="ingest")
    for reason in ("first", "second"):
        record(config.run, asked(config.run, source="r1", reason=reason))
    assert (config.run / FILE).read_bytes() == (
        b'{"id":"r1","kind":"row","reason":"first","source":"inputs.jsonl:2"}\n'
    )


def test_a_revoked_judgement_is_not_used_and_what_came_before_stays(project: Path) -> None:
    names = [f"r{number}" for number in range(29)]
    judged = [{"id": name, "completion": f'{{"reason": "of {name}", "score": 4}}'} for name in names]
    write_jsonl(project.parent / "judged.jsonl", judged)
    settings = "  judge: {teacher: {backend: replay, completions: judged.jsonl}, on_failure: ON_FAILURE}\n  quality:"
    project.write_text(project.read_text().replace("  quality:", settings.replace("ON_FAILURE", "drop"), 1))
    config = load(project)
    run(config)
    before = keys(config)
    key = next(event.row["judgement"]["request"] for event in trace(config.run, "r2") if event.stage == "judge")
    assert trace(config.run, key) == trace(config.run, "r2")
    found = revoke(config, response=key[:10], reason="bribed")
    assert (found.revocation.kind, found.revocation.id) == ("judgement", key)
    assert [(one.stage, one.kept) for one in found.results] == [("judge", 1), ("quality", 1), ("shard", 2)]
    assert len(found.stored) == 1
    run(load(project))
    changed = {name for name, one in keys(config).items() if one != before[name]}
    assert changed == {"judge", "quality", "shard"}
    dropped = drops(config, "judge")["r2"]
    assert (dropped.reason, dropped.evidence["because"]) == ("not_judged", "bribed")
    assert not [problem for problem in audit(config.run) if "revoked" in problem.problem]
    assert [event.verdict for event in trace(config.run, key) if event.stage == "judge"] == ["dropped"]

    project.write_text(project.read_text().replace("on_failure: drop", "on_failure: keep"))
    run(load(project))
    (example,) = [one for one in outputs.read(outputs.current(config.run, "judge"), Example) if one.id == "r2"]
    assert example.judgement is None


def test_the_command_says_what_it_does(project: Path) -> None:
    run(load(project))
    told = json.loads(call(project, "revoke", "--source", "r0", "--dry-run", "--json").stdout)
    assert (told["recorded"], told["revocation"]["id"], len(told["results"])) == (False, "r0", 7)
    assert not (project.parent / "runs/small" / FILE).exists()
    shown = call(project, "revoke", "--source", "inputs.jsonl:1", "--reason", "a\x1b[2J\nforged")
    assert "recorded in runs/small/revoked.jsonl; `stepdistill run` builds without it" in shown.stdout
    assert "\x1b" not in shown.stdout
    assert "\nforged" not in shown.stdout
    assert "inputs.jsonl:1" in call(project, "revoke", "--list").stdout
    wrong = call(project, "revoke", "--list", "--undo", "r0")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert call(project, "revoke", "--undo", "r0").returncode == 0


def test_a_revoked_response_does_not_come_back_with_another_max_tokens(project: Path) -> None:
    """The teacher is not asked that anew, whatever the length; a line without the family knows its key alone."""
    config = load(project)
    run(config)
    found = revoke(config, response="r2#0", reason="copied")
    for tokens in (300, 100):
        changed = load(project, [f"sample.max_tokens={tokens}"])
        assert results.estimate(changed).to_ask == 28
        run(changed, until="shard")
        assert drops(changed, "sample")["r2#0"].evidence["because"] == "copied"
        assert drops(changed, "sample")["r2#0"].reason == "revoked"
        assert list(audit(config.run, full=True)) == []
    write(config.run, [found.revocation.model_copy(update={"family": None})])
    assert b"family" not in (config.run / FILE).read_bytes()
    run(load(project))
    assert "r2#0" in drops(config, "sample")
    run(load(project, ["sample.max_tokens=100"]))
    assert "r2#0" in ids(config, "sample")
    answered = [one.folder.name for one in held(config.run, [found.revocation]) if one.stage == "sample"]
    assert keys(config)["sample"] in answered  # known by its family, though under another key


def test_what_is_more_than_can_be_named_is_counted(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.revoke.LISTED", 5)
    config = load(project)
    run(config)
    found = reach(config.run, asked(config.run, source="inputs.jsonl"))
    assert (found.truncated, found.stored_total, len(found.stored)) == (True, 29, 5)
    assert (found.results[0].kept, len(found.results[0].rows)) == (29, 5)
    assert found.duplicates == ["r24"]
    printed.reach(config.run, found, dry_run=True)
    one = reach(config.run, asked(config.run, source="r3"))
    assert (one.truncated, one.stored_total, len(one.stored)) == (False, 1, 1)


def test_many_stored_answers_are_told_by_their_number(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load(project)
    run(config)
    printed.reach(config.run, reach(config.run, asked(config.run, source="inputs.jsonl")), dry_run=True)
    (told,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("answers in the response")]
    assert ": 29, the first: " in told
    assert (told.count("segment-"), told[-4:]) == (3, ", ..")


def test_the_reason_of_before_stays_and_is_the_one_that_is_told(project: Path) -> None:
    run(load(project))
    call(project, "revoke", "--source", "r0", "--reason", "first")
    again = json.loads(call(project, "revoke", "--source", "r0", "--reason", "second", "--json").stdout)
    assert (again["recorded"], again["known"], again["revocation"]["reason"]) == (False, True, "first")
    shown = call(project, "revoke", "--source", "r0", "--reason", "second").stdout
    assert "row r0 (inputs.jsonl:1): first" in shown
    assert "was revoked before" in shown


def test_what_was_given_then_takes_it_back(project: Path) -> None:
    config = load(project)
    run(config)
    by_id = revoke(config, response="r2#0").revocation
    assert by_id.source == "r2#0"
    by_beginning = revoke(config, response=asked(config.run, response="r3#0").id[:8]).revocation
    row = revoke(config, source="r4#0").revocation
    with pytest.raises(InputError, match="not in"):
        undo(config.run, "")
    assert undo(config.run, "r2#0") == [by_id]
    assert undo(config.run, by_beginning.id[:8]) == [by_beginning]
    assert undo(config.run, "r4#0") == [row]
    write(config.run, [Revocation(kind="row", id=name, reason="") for name in ("long1", "long2")])
    with pytest.raises(InputError, match="several that are revoked begin so"):
        undo(config.run, "long")
    assert len(read(config.run)) == 2


def test_what_repair_moved_away_is_said_not_to_be_looked_through(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(project)
    run(config)
    assert reach(config.run, asked(config.run, source="r0")).not_looked_through == []
    printed.revoked([], [], [])
    assert capsys.readouterr().out == "nothing is revoked\n"
    (config.run / "damaged").mkdir()
    found = revoke(config, source="r0")
    assert found.not_looked_through == [config.run / "damaged"]
    printed.reach(config.run, found, dry_run=False)
    assert f"not looked through: {config.run / 'damaged'}\n" in capsys.readouterr().out
    assert "not looked through" in call(project, "revoke", "--list").stdout


def test_a_check_tells_revoked_rows_from_bad_ones(project: Path) -> None:
    config = load(project)
    run(config, until="ingest")
    revoke(config, source="r0")
    assert check(project).startswith("ready: 28 inputs, 1 revoked rows; ")
