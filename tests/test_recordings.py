"""What goes into the response store by `responses import`, what comes out of it, and what the command line says of it."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import cli, recordings, results, runner
from pipeline.config import Config, load
from pipeline.files import InputError, RunError
from pipeline.recordings import Imported, description, export_completions, import_completions, story
from pipeline.responses import open_store, read_store, verify
from pipeline.revocations import Revocation, write
from pipeline.teachers.replay import recorded
from tests.conftest import write_jsonl, write_project
from tests.test_responses import record

ABOUT = {"model": "palm-540b", "terms": "research"}
PALM = f"{{backend: replay, name: palm, about: {json.dumps(ABOUT)}}}"


def with_teacher(project: Path, teacher: str, **more: object) -> Path:
    """The project with another teacher and further settings of its sample stage."""
    text = project.read_text()
    start = text.index("    teacher: ") + len("    teacher: ")
    rest = text[text.index("\n  parse:", start) :]
    project.write_text(
        text[:start] + teacher + "".join(f"\n    {name}: {value}" for name, value in more.items()) + rest
    )
    return project


@pytest.fixture
def palm(project: Path) -> Path:
    """The small project, with a teacher whose answers are to be imported."""
    return with_teacher(project, PALM)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def stored_texts(project: Path) -> list[str]:
    return [found.text for _, _, found in read_store(load(project).run / "responses")]


def test_an_import_stands_in_for_the_file(project: Path, tmp_path: Path) -> None:
    runner.run(load(project))
    wanted = [(row["prompt"], row["text"]) for row in results.rows(load(project), "sample")]
    other = with_teacher(write_project(tmp_path / "other"), PALM)
    told = import_completions(load(other), other.parent / "completions.jsonl", teacher="palm", about=ABOUT)
    assert told == Imported(added=29)
    (other.parent / "completions.jsonl").unlink()
    runner.run(load(other))
    assert [(row["prompt"], row["text"]) for row in results.rows(load(other), "sample")] == wanted
    assert {row["teacher"] for row in results.rows(load(other), "sample")} == {"palm"}
    assert len(stored_texts(other)) == 29  # nothing was asked
    assert list(verify(load(other).run / "responses")) == []
    (teacher,) = (load(other).run / "responses" / "teachers").iterdir()
    assert json.loads(teacher.read_text()) == {"backend": "replay", "name": "palm", "about": ABOUT}


def test_what_was_not_imported_is_dropped_with_its_reason(palm: Path) -> None:
    path = palm.parent / "some.jsonl"
    write_jsonl(path, lines(palm.parent / "completions.jsonl")[:20])
    told = import_completions(load(palm), path, teacher="palm")
    assert (told.added, told.unanswered, len(told.prompts_without)) == (20, 9, 9)
    runner.run(load(palm), ["ingest", "sample"])
    dropped = list(results.rows(load(palm), "sample", dropped=True))
    assert [row["reason"] for row in dropped] == ["no_completion"] * 9


def test_another_description_is_another_teacher(palm: Path) -> None:
    import_completions(load(palm), palm.parent / "completions.jsonl", teacher="palm")
    assert results.estimate(load(palm)).to_ask == 0
    with_teacher(palm, PALM.replace("540b", "62b"))
    assert results.estimate(load(palm)).to_ask == 29


def test_nothing_that_is_left_out_goes_unsaid(palm: Path) -> None:
    with_teacher(palm, PALM, n=2)
    path = palm.parent / "mixed.jsonl"
    write_jsonl(
        path,
        [
            {"id": "r0", "completion": ["a", "b", "c"]},
            {"id": "r1", "completion": "d"},
            {"id": "r2", "completion": []},
            *({"id": f"stranger \x1b{number}", "completion": "e"} for number in range(7)),
        ],
    )
    told = import_completions(load(palm), path, teacher="palm")
    assert (told.added, told.surplus, told.unanswered) == (3, 1, 29 * 2 - 3)
    assert told.strangers == [f"stranger \x1b{number}" for number in range(7)]
    assert told.prompts_without == [f"r{number}" for number in range(2, 29)]
    assert sorted(stored_texts(palm)) == ["a", "b", "d"]
    write_jsonl(path, [{"id": "r0", "completion": ["a", "other"]}, {"id": "r1", "completion": ["d", "f"]}])
    again = import_completions(load(palm), path, teacher="palm")
    assert (again.added, again.there, again.differing) == (1, 2, ["r0#1"])
    assert sorted(stored_texts(palm)) == ["a", "b", "d", "f"]  # the first stays
    assert list(story(told)) == [
        "3 completions added, 0 were there already",
        "7 rows of the file belong to no prompt that this teacher is asked about: "
        "stranger \\x1b0, stranger \\x1b1, stranger \\x1b2, stranger \\x1b3, stranger \\x1b4 ..",
        "1 completions go beyond stages.sample.n and were left out",
        "55 requests have no completion in the file, 27 prompts have none: r2, r3, r4, r5, r6 ..",
    ]
    assert "1 are in the store with another text, which stays: r0#1" in list(story(again))


def test_each_completion_is_counted_once(palm: Path) -> None:
    """Completions in the file = added + there + differing + surplus + those of strangers; requests = these + unanswered."""
    with_teacher(palm, PALM, n=3)
    path = palm.parent / "mixed.jsonl"
    rows = [
        {"id": f"r{number}", "completion": [f"{number}-{one}" for one in range(number % 6)]} for number in range(35)
    ]
    write_jsonl(path, rows)
    for _ in range(2):
        told = import_completions(load(palm), path, teacher="palm")
        known = told.added + told.there + len(told.differing)
        strange = sum(len(row["completion"]) for row in rows if row["id"] in told.strangers)
        assert known + told.surplus + strange == sum(len(row["completion"]) for row in rows)
        assert known + told.unanswered == 29 * 3


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"id": "r1", "completion": "x", "finish_reason": 1}, "finish_reason: expected text, found 1"),
        ({"id": "r1", "completion": ["x", "y"], "finish_reason": ["stop"]}, "finish_reason: has 1 values for 2"),
        ({"id": "r1", "completion": "x", "prompt_tokens": -1}, "prompt_tokens: expected a number of tokens, found -1"),
        ({"id": "r1", "completion": "x", "completion_tokens": True}, "completion_tokens: expected a number of tokens"),
        ({"id": "r1", "completion": "x", "completion_tokens": 1.5}, "completion_tokens: expected a number of tokens"),
        ({"id": "r1", "completion": None}, "completion: expected text or a list of texts, found None"),
        ({"id": "r1"}, "completion: expected text or a list of texts, found None"),
        ({"id": 1, "completion": "x"}, "id: expected text, found 1"),
        ({"id": "r0", "completion": "x"}, "id: 'r0' stands in line 1 already; keep one of them"),
        ("r1", "each line must be one JSON object"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_imported(palm: Path, row: object, problem: str) -> None:
    path = palm.parent / "bad.jsonl"
    path.write_text(json.dumps({"id": "r0", "completion": "x"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError) as caught:
        import_completions(load(palm), path, teacher="palm")
    assert str(caught.value).startswith(f"{path}:2: ")
    assert problem in str(caught.value)
    assert not (load(palm).run / "responses").exists()


def test_what_a_file_tells_beside_the_text_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "told.jsonl"
    row = {
        "completion": ["x", "y"],
        "finish_reason": ["stop", "length"],
        "prompt_tokens": 7,
        "completion_tokens": [1, 2],
    }
    write_jsonl(path, [{"id": "a", **row}, {"id": "b", "completion": "z", "finish_reason": None, "date": "2024"}])
    found = recorded(path)
    told = [(one.text, one.finish_reason, one.prompt_tokens, one.completion_tokens) for one in found["a"]]
    assert told == [("x", "stop", 7, 1), ("y", "length", 7, 2)]
    assert [asdict(one) for one in found["b"]] == [{**asdict(found["b"][0]), "text": "z", "finish_reason": "recorded"}]


@pytest.mark.parametrize(
    ("teacher", "asked_for", "problem"),
    [
        (
            PALM,
            "gpt",
            'has no gpt; write {backend: replay, name: "gpt", about: {"model": "palm-540b", "terms": "research"}}',
        ),
        (
            "{backend: replay, name: palm, about: {model: other}}",
            "palm",
            "describes palm in other words than --about; write",
        ),
        (
            "{backend: replay, name: palm, completions: completions.jsonl}",
            "palm",
            "completions.jsonl; write {backend: ",
        ),
        (
            "{backend: server, base_url: 'http://localhost:1', model: palm}",
            "palm",
            "palm is a teacher that is asked; write",
        ),
        ("{backend: replay, name: palm}", "palm", "set completions, the file of the recorded answers (or about"),
        ("{backend: replay, name: palm, about: {x: .nan}}", "palm", "about: "),
    ],
)
def test_the_teacher_must_stand_in_stages_yaml(project: Path, teacher: str, asked_for: str, problem: str) -> None:
    with_teacher(project, teacher)
    with pytest.raises(InputError) as caught:
        import_completions(load(project), project.parent / "completions.jsonl", teacher=asked_for, about=ABOUT)
    assert str(caught.value).startswith(f"{project}")
    assert "stages.sample.teacher" in str(caught.value)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_of_several_teachers_can_be_imported(project: Path) -> None:
    """The others are not resolved for it: a server that is not there, rows that are another's share."""
    half = PALM.replace("}}", "}, share: 0.5}")
    other = "{backend: replay, name: other, completions: nowhere.jsonl, share: 0.5}"
    with_teacher(project, f"[{other}, {half}]")
    told = import_completions(load(project), project.parent / "completions.jsonl", teacher="palm")
    assert 0 < told.added < 29
    assert told.added + len(told.strangers) == 29
    with pytest.raises(InputError, match="--teacher: name one of the teachers of .*: other, palm"):
        export_completions(load(project), str(project.parent / "out.jsonl"))
    done = export_completions(load(project), str(project.parent / "out.jsonl"), teacher="palm")
    assert (done.rows, done.answers, done.unanswered) == (told.added, told.added, 0)
    with pytest.raises(InputError, match="--teacher gpt: none of the teachers of .*; there are other, palm"):
        export_completions(load(project), str(project.parent / "out.jsonl"), teacher="gpt")


@pytest.fixture(scope="module")
def anew(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Config]:
    """The small project with two samples, each time with an empty run folder."""
    config = load(with_teacher(write_project(tmp_path_factory.mktemp("anew") / "project"), PALM, n=2))
    return lambda: replace(config, run=tmp_path_factory.mktemp("run"))


@settings(max_examples=30)
@given(
    said=st.dictionaries(
        st.sampled_from([f"r{number}" for number in range(29)]),
        st.lists(st.tuples(st.text(), st.sampled_from(["stop", "length", "recorded"]), st.integers(0, 9)), max_size=2),
    )
)
def test_what_is_exported_can_be_imported_again(anew: Callable[[], Config], said: dict) -> None:
    one, two = anew(), anew()
    folder = one.run
    rows = [
        {
            "id": name,
            "completion": [text for text, _, _ in answers],
            "finish_reason": [reason for _, reason, _ in answers],
            "prompt_tokens": [tokens for _, _, tokens in answers],
            "completion_tokens": [tokens for _, _, tokens in answers],
        }
        for name, answers in said.items()
    ]
    write_jsonl(folder / "given.jsonl", rows)
    import_completions(one, folder / "given.jsonl", teacher="palm")
    done = export_completions(one, str(folder / "exported.jsonl"))
    assert (done.answers, done.behind_a_gap) == (sum(map(len, said.values())), 0)
    assert {row["id"]: row for row in lines(folder / "exported.jsonl")} == {
        row["id"]: row for row in rows if row["completion"]
    }
    import_completions(two, folder / "exported.jsonl", teacher="palm")
    export_completions(two, str(folder / "again.jsonl"))
    assert (folder / "again.jsonl").read_bytes() == (folder / "exported.jsonl").read_bytes()


def test_an_answer_behind_a_gap_is_left_out_and_said(palm: Path) -> None:
    """A list of completions has no place for a sample that is missing."""
    with_teacher(palm, PALM, n=3)
    path = palm.parent / "given.jsonl"
    write_jsonl(path, [{"id": "r0", "completion": ["a", "b", "c"]}])
    import_completions(load(palm), path, teacher="palm")
    store = load(palm).run / "responses"
    kept = [found for _, _, found in read_store(store) if found.sample != 1]
    (store / "segment-00000.jsonl").unlink()
    with open_store(store) as opened:
        opened.append(kept)
    done = export_completions(load(palm), str(path))
    assert (done.rows, done.answers, done.behind_a_gap, done.unanswered) == (1, 1, 1, 29 * 3 - 2)
    assert lines(path)[0]["completion"] == ["a"]


def test_revoked_answers_are_not_exported_as_completions(palm: Path) -> None:
    with_teacher(palm, PALM, n=3)
    path = palm.parent / "given.jsonl"
    write_jsonl(path, [{"id": name, "completion": ["a", "b", "c"]} for name in ("r0", "r1")])
    config = load(palm)
    import_completions(config, path, teacher="palm")
    stored = next(one for _, _, one in read_store(config.run / "responses") if one.sample == 1)
    write(config.run, [Revocation(kind="response", id=stored.key, reason="copied")])
    done = export_completions(load(palm), str(path))
    assert (done.rows, done.answers, done.revoked, done.behind_a_gap) == (2, 4, 1, 1)
    assert [row["completion"] for row in lines(path)] == [["a"], ["a", "b", "c"]]
    assert done.unanswered == 27 * 3


def test_an_export_holds_every_record_and_appears_whole_or_not_at_all(palm: Path) -> None:
    import_completions(load(palm), palm.parent / "completions.jsonl", teacher="palm")
    store, target = load(palm).run / "responses", palm.parent / "export.jsonl"
    assert recordings.export(store, str(target)) == 29
    wanted = [found.model_dump(mode="json") for _, _, found in read_store(store)]
    assert lines(target) == wanted
    before = target.read_bytes()
    segment = store / "segment-00000.jsonl"
    segment.write_bytes(segment.read_bytes().replace(b"gardening", b"Gardening"))
    with pytest.raises(RunError, match=r"segment-00000\.jsonl:28: the record is damaged"):
        recordings.export(store, str(target))
    assert target.read_bytes() == before
    assert not list(palm.parent.glob(".*tmp"))
    for nowhere in (palm.parent, palm.parent / "nowhere" / "file"):
        with pytest.raises(InputError, match="cannot be written; give the name of a file"):
            recordings.export(store, str(nowhere))


def test_counts_and_lists_are_those_of_the_records(tmp_path: Path) -> None:
    store = tmp_path / "responses"
    given = [
        record(number, max_tokens=limit, finish_reason=reason, teacher=teacher)
        for number in range(5)
        for limit, reason in ((10, "length"), (20, "stop"))
        for teacher in ("one", "two")[: 1 + number % 2]
    ]
    with open_store(store) as opened:
        opened.append(given)
    figures = recordings.count(store)
    assert (figures.records, figures.families, figures.segments) == (14, 7, 1)
    assert figures.bytes == (store / "segment-00000.jsonl").stat().st_size
    assert (figures.prompt_tokens, figures.completion_tokens) == (14 * 3, 14)
    assert dict(figures.finish_reasons) == {"length": 7, "stop": 7}
    assert {name: part.records for (name, _), part in figures.teachers.items()} == {"one": 10, "two": 4}
    assert list(recordings.records(store)) == given
    assert recordings.some(recordings.records(store), 3) == given[-3:]
    assert recordings.some(recordings.records(store), 3, first=True) == given[:3]
    two = [one for one in given if one.teacher == "two" and one.finish_reason == "stop"]
    assert list(recordings.records(store, teacher="two", finish_reason="stop")) == two


@pytest.mark.parametrize("given", ['{"model": "x"}', ' {"model": "x"}', "about.json"])
def test_a_description_is_json_or_a_file_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("about.json").write_text('{"model": "x"}\n')
    assert description(given) == {"model": "x"}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ('{"model": ', "--about: "),
        ('{"a": 1, "a": 2}', "--about: key 'a' stands there twice"),
        ("nowhere.json", "nowhere.json: cannot be read"),
        ("list.json", "list.json: expected a JSON object"),
        ("bytes.json", "bytes.json: not UTF-8 text"),
    ],
)
def test_what_is_no_description_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.json").write_text("[1]")
    Path("bytes.json").write_bytes(b"{\xff}")
    with pytest.raises(InputError) as caught:
        description(given)
    assert str(caught.value).startswith(problem)


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def told(palm: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """A function that gives a `stepdistill responses` command in the project's folder, within this process."""
    monkeypatch.chdir(palm.parent)

    def give(*arguments: str) -> Done:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["stepdistill", "responses", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, *capfd.readouterr())

    return give


def test_a_session_with_the_store(palm: Path, told: Callable[..., Done]) -> None:
    evil = {"id": "r0", "completion": "\x1b[2J\x07 [bold]x[/bold]\nforged: line", "finish_reason": "stop\x1b[31m"}
    rows = [evil, *lines(palm.parent / "completions.jsonl")[1:]]
    write_jsonl(palm.parent / "completions.jsonl", rows)
    assert told("count").stdout.startswith("runs/small/responses: 0 records of 0 families")
    done = told("import", "completions.jsonl", "--teacher", "palm", "--about", json.dumps(ABOUT), "--json")
    assert (done.returncode, json.loads(done.stdout)["added"]) == (0, 29)
    done = told("import", "completions.jsonl", "--teacher", "palm")
    assert done.stdout == "completions.jsonl: 0 completions added, 29 were there already\n"

    shown = told("list", "--first", "-n", "2").stdout
    assert "\x1b" not in shown
    assert "\nforged" not in shown
    assert "\\x1b[2J\\x07 [bold]x" in shown
    found = [json.loads(line) for line in told("list", "-n", "40", "--json").stdout.splitlines()]
    assert [record["text"] for record in found] == [row["completion"] for row in rows]
    assert told("list", "--teacher", "gpt").stdout == "runs/small/responses: no such records\n"

    counted = json.loads(told("count", "--json").stdout)
    assert (counted["records"], counted["teachers"][0]["teacher"]) == (29, "palm")
    assert "29 records of 29 families in 1 segments" in told("count").stdout
    assert told("compact").stdout.startswith("runs/small/responses: 29 records kept, 0 that nothing can reach")
    assert json.loads(told("compact", "--keep-teacher", "palm", "--json").stdout)["kept"] == 29

    exported = told("export", "-", "--completions", "--json")
    assert [json.loads(line)["id"] for line in exported.stdout.splitlines()] == [f"r{number}" for number in range(29)]
    assert json.loads(exported.stderr)["answers"] == 29
    assert told("export", "out.jsonl").stdout == "out.jsonl: 29 records\n"
    assert len(lines(palm.parent / "out.jsonl")) == 29

    verified = told("verify")
    assert (verified.returncode, verified.stdout) == (
        0,
        "runs/small/responses: whole: every record is as it was written\n",
    )
    segment = palm.parent / "runs/small/responses/segment-00000.jsonl"
    segment.write_bytes(segment.read_bytes().replace(b"gardening", b"Gardening"))
    verified = told("verify")
    assert (verified.returncode, verified.stdout.count("\n")) == (1, 2)
    assert verified.stdout.startswith("runs/small/responses/segment-00000.jsonl:28: ")
    assert len(json.loads(told("verify", "--json").stdout)["problems"]) == 1
    failed = told("compact")
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (1, "", 1)
    assert "segment-00000.jsonl:28: the record is damaged" in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "nowhere.jsonl", "--teacher", "palm"], "nowhere.jsonl: cannot be read"),
        (["import", "completions.jsonl", "--teacher", "gpt"], "has no gpt; write {backend: replay, name: "),
        (["export", "nowhere/out.jsonl"], "nowhere/out.jsonl: cannot be written; give the name of a file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(told: Callable[..., Done], arguments: list[str], message: str) -> None:
    done = told(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr
