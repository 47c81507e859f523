"""A student labels files: a tiny one that learned to answer with the first letter of its input, and to say so as its rationale."""

import csv
import fcntl
import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import answering
from pipeline import predict as predicting
from pipeline.cli import main
from pipeline.config import load as load_config
from pipeline.files import InputError, RunError
from pipeline.predict import Summary, predict
from tests.test_train import make_model, pair, run, write_shards

ROOT = Path(__file__).parents[1]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    rows = [row for number in range(16) for row in pair(number)]
    model = make_model(folder / "tiny", hidden_size=64)  # heads of 32, the fewest that vLLM's attention takes on a CPU
    run(
        write_shards(folder / "shards", rows),
        folder / "out",
        model,
        epochs=20,
        batch_size=8,
        learning_rate=1e-2,
        baseline=False,
    )
    return folder / "out" / "student"


def text(number: int) -> str:
    return f"{'ab'[number % 2] * 9} {number}"


def write(path: Path, rows: list[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    return [json.loads(line) for line in lines]


def label(student: Path, data: Path, out: Path, **more: Any) -> tuple[list[dict[str, Any]], Summary]:
    summary = predict(str(student), str(data), out=out, **{"backend": "transformers", **more})
    return read(out), summary


def test_every_row_gets_the_label_and_the_rationale_that_were_learned(tmp_path: Path, student: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [{"key": f"k{n}", "text": text(n)} for n in range(10)])
    rows, summary = label(student, data, tmp_path / "out.jsonl", rationale=True, id="key", labels=["a", "b"])
    assert [row["id"] for row in rows] == [f"k{n}" for n in range(10)]
    for number, row in enumerate(rows):
        letter = "ab"[number % 2]
        assert row == {
            "id": f"k{number}",
            "input": text(number),
            "label": letter,
            "text": letter,
            "finished": True,
            "problem": None,
            "detail": None,
            "rationale": f"It begins with {letter}.",
            "rationale_finished": True,
        }
    assert (summary.rows, summary.answered, summary.problems, summary.without_rationale) == (10, 10, {}, 0)
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "out.jsonl"}


def test_answers_are_those_that_evaluate_sees(tmp_path: Path, student: Path) -> None:
    texts = ["bbb", "ab ab", "7", "Zeile zwei", "a" * 60]
    data = write(tmp_path / "rows.jsonl", [{"text": one} for one in texts])
    rows, _ = label(student, data, tmp_path / "out.jsonl", max_new_tokens=12)
    asked = answering.generate(answering.load(str(student)), [f"[label] {one}" for one in texts], max_new_tokens=12)
    assert [(row["text"], row["finished"]) for row in rows] == [(one.text, one.finished) for one in asked]


def test_csv_parquet_and_folders_are_read_as_everywhere(tmp_path: Path, student: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = [text(n) for n in range(5)] + ['a, "quoted"\nand on']
    folder = tmp_path / "folder"
    folder.mkdir()
    with (folder / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["n", "input"], *enumerate(texts)])
    pyarrow.parquet.write_table(pyarrow.table({"n": range(6), "input": texts}), folder / "b.parquet")
    write(folder / "c.jsonl", [{"n": n, "input": one} for n, one in enumerate(texts)])
    together, _ = label(student, folder, tmp_path / "all.jsonl", input="{{ input }}")
    assert [row["input"] for row in together] == texts * 3
    for place, name in enumerate(("a.csv", "b.parquet", "c.jsonl")):
        alone, _ = label(student, folder / name, tmp_path / f"{name}.out")
        assert alone == together[6 * place : 6 * place + 6]


def test_rows_that_cannot_be_answered_stay_and_say_why(tmp_path: Path, student: Path) -> None:
    rows = ['{"text": "a"', {"other": 1}, {"text": ""}, {"text": "a" * 250}, {"text": text(4)}, {"text": None}]
    data = write(tmp_path / "rows.jsonl", rows)
    out, summary = label(student, data, tmp_path / "out.jsonl", labels=["b"], input="{{ text }}", rationale=True)
    problems = ["bad_row", "bad_row", "bad_row", "too_long", "not_in_set", "bad_row"]
    assert [row["problem"] for row in out] == problems
    assert [row["label"] for row in out] == [None] * 6
    assert [row["id"] for row in out if row["problem"] == "bad_row"] == ["row-1", "row-2", "row-3", "row-6"]
    assert out[0]["detail"].startswith("rows.jsonl:1: ")
    assert "rows.jsonl:2: " in out[1]["detail"]
    assert "no such column" in out[1]["detail"]
    assert out[3]["detail"] == "259 tokens, and 32 for the answer, are more than the model's 256"
    assert out[3]["input"] == "a" * 250
    assert (out[4]["text"], out[4]["finished"], out[4]["rationale"]) == ("a", True, "It begins with a.")
    assert summary.problems == dict(Counter(problems).most_common())
    assert (summary.rows, summary.answered, summary.without_rationale) == (6, 0, 5)
    assert summary.told().startswith(f"{tmp_path / 'out.jsonl'}: 6 rows, 0 answered, bad_row 4, ")


def test_an_answer_that_was_cut_off_or_says_nothing_is_no_label(tmp_path: Path, student: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [{"text": text(n)} for n in range(2)])
    cut, _ = label(student, data, tmp_path / "cut.jsonl", max_new_tokens=1)
    assert [(row["problem"], row["label"], row["text"], row["finished"]) for row in cut] == [
        ("not_finished", None, letter, False) for letter in "ab"
    ]
    number, _ = label(student, data, tmp_path / "number.jsonl", label_type="number")
    assert [(row["problem"], row["text"]) for row in number] == [("no_label", "a"), ("no_label", "b")]


def test_a_response_is_a_label_only_where_something_says_how_it_is_read(tmp_path: Path, student: Path) -> None:
    data = write(
        tmp_path / "rows.jsonl", [{"text": f"[label] {text(n)}"} for n in range(2)]
    )  # the bare input is the prompt
    free, _ = label(student, data, tmp_path / "free.jsonl", task="response", max_new_tokens=8)
    assert [(row["label"], row["text"], row["problem"]) for row in free] == [(None, letter, None) for letter in "ab"]
    closed, _ = label(student, data, tmp_path / "closed.jsonl", task="response", max_new_tokens=8, labels=["A", "c"])
    assert [(row["label"], row["problem"]) for row in closed] == [("A", None), (None, "not_in_set")]
    data = write(tmp_path / "why.jsonl", [{"text": text(0)}])
    why, _ = label(student, data, tmp_path / "why.out", task="rationale")
    assert [(row["label"], row["text"], row["problem"]) for row in why] == [(None, "It begins with a.", None)]


HOSTILE = [
    "<end>",
    "aaa<end>",
    "{{ 7 * 7 }}",
    "a\n[rationale] b",
    "a\u2028b\x85",
    "\x1b[31mred",
    '","label":"x"}',
    "\x00",
]


def test_hostile_text_stays_text(tmp_path: Path, student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "rows.jsonl", [{"text": one, "\x1b[2J": one} for one in HOSTILE])
    rows, summary = label(student, data, tmp_path / "out.jsonl")
    assert [row["input"] for row in rows] == HOSTILE
    assert (tmp_path / "out.jsonl").read_bytes().count(b"\n") == len(HOSTILE)
    with pytest.raises(InputError) as refused:
        label(student, write(tmp_path / "b.jsonl", [{"\x1b[2J": "x"}]), tmp_path / "b.out")
    assert "\x1b" not in summary.told() + str(refused.value) + capsys.readouterr().err


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300) | st.sampled_from(HOSTILE)
lines = st.one_of(
    texts.map(lambda one: json.dumps({"text": one})),
    texts.map(lambda one: json.dumps({"text": one}, ensure_ascii=False)),
    st.sampled_from(
        ['{"text": 5}', '{"text": [1]}', "{", "null", '{"a": 1}', '{"text": "\\ud800"}', '{"text":1,"text":2}']
    ),
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(lines, max_size=12))
def test_as_many_rows_come_out_as_go_in_and_in_their_order(
    tmp_path_factory: pytest.TempPathFactory, student: Path, given_lines: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    data = write(folder / "rows.jsonl", given_lines)
    rows, summary = label(student, data, folder / "out.jsonl", input="{{ text }}", labels=["a", "b"], max_new_tokens=4)
    assert len(rows) == len(given_lines) == summary.rows == summary.answered + sum(summary.problems.values())
    for line, row in zip(given_lines, rows, strict=True):
        assert (row["label"] is None) == (row["problem"] is not None)
        if row["problem"] != "bad_row":
            assert row["input"] == str(json.loads(line)["text"])
        elif isinstance(good := json.loads(line) if line != "{" else None, dict) and isinstance(good.get("text"), str):
            assert not good["text"].strip() or "\ud800" in good["text"]


def stopped(monkeypatch: pytest.MonkeyPatch, after: int) -> list[int]:
    """Have the model stop at its call number ``after`` as Ctrl-C would; how many prompts each call had."""
    calls: list[int] = []
    complete = answering.complete

    def interrupted(checkpoint: Any, prompts: Any, **more: Any) -> Any:
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(len(prompts))
        return complete(checkpoint, prompts, **more)

    monkeypatch.setattr(answering, "complete", interrupted)
    return calls


def test_a_call_that_was_stopped_goes_on_behind_the_last_whole_row(
    tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predicting, "BLOCK", {"transformers": 4})
    data = write(tmp_path / "rows.jsonl", [{"text": text(n)} if n != 2 else {"x": 1} for n in range(14)])
    out, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    whole, _ = label(student, data, tmp_path / "whole.jsonl", rationale=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        assert stopped(patch, 4) is not None
        label(student, data, out, rationale=True)
    assert not out.exists()
    assert read(part) == whole[:8]

    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[:7]) + lines[7][:20])  # killed while it wrote
    with monkeypatch.context() as patch:
        calls = stopped(patch, 99)
        _, summary = label(student, data, out, rationale=True)
    assert calls == [1, 1, 4, 4, 2, 2]  # what was missing of the second block, then whole ones
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert (summary.rows, summary.answered, summary.problems, summary.resumed) == (14, 13, {"bad_row": 1}, 7)
    assert "7 of 14 rows are there" in capsys.readouterr().err
    assert not part.exists()


def test_what_is_whole_but_for_its_name_needs_no_model(
    tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(tmp_path / "rows.jsonl", [{"text": text(n)} for n in range(3)])
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr(predicting, "BLOCK", {"transformers": 2})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stopped(patch, 1)
        label(student, data, out)
    rest, _ = label(student, data, tmp_path / "whole.jsonl")
    with (tmp_path / "out.jsonl.part").open("a") as file:
        file.write(json.dumps(rest[2]) + "\n")
    monkeypatch.setattr(answering, "load", None)
    rows, summary = label(student, data, out)
    assert rows == rest
    assert summary.resumed == 3


def test_a_file_begun_with_something_else_is_left_alone(
    tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "BLOCK", {"transformers": 2})
    data = write(tmp_path / "rows.jsonl", [{"text": text(n)} for n in range(6)])
    out, part, header = (tmp_path / f"out.jsonl{end}" for end in ("", ".part", ".part.json"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stopped(patch, 1)
        label(student, data, out)
    begun = part.read_bytes()
    other = make_model(tmp_path / "other")
    changed = write(tmp_path / "other.jsonl", [{"text": text(n)} for n in range(7)])
    tried: list[tuple[Path, Path, dict[str, Any], str]] = [
        (student, changed, {}, "was begun with other rows; remove it"),
        (other, data, {}, "with another model; "),
        (student, data, {"labels": ["a"], "max_new_tokens": 5}, r"with other settings \(labels, max_new_tokens\)"),
        (
            other,
            changed,
            {"rationale": True},
            r"other rows and with another model and with other settings \(rationale\)",
        ),
    ]
    for model, rows, more, problem in tried:
        with pytest.raises(InputError, match=problem):
            label(model, rows, out, **more)
    header.write_text("{")
    with pytest.raises(InputError, match=r"not known \(out\.jsonl\.part\.json is missing or damaged\)"):
        label(student, data, out)
    assert part.read_bytes() == begun

    part.unlink()  # nothing is left of it, so the damaged header stands for nothing
    label(student, data, out)
    with pytest.raises(InputError, match="is there already"):
        label(student, data, out)
    with pytest.raises(InputError, match="there is no folder"):
        label(student, data, tmp_path / "absent" / "out.jsonl")


def test_foreign_lines_and_another_writer_are_noticed(
    tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "BLOCK", {"transformers": 2})
    data = write(tmp_path / "rows.jsonl", [{"text": text(n)} for n in range(6)])
    out, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stopped(patch, 1)
        label(student, data, out)
    with part.open("a") as file:
        file.write('{"mine": 1}\n')
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process is writing it"):
            label(student, data, out)
    with pytest.raises(InputError, match=r"out\.jsonl\.part:3: no row of predict"):
        label(student, data, out)


def test_a_moved_model_is_the_same_model(tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(predicting, "BLOCK", {"transformers": 2})
    data = write(tmp_path / "rows.jsonl", [{"text": text(n)} for n in range(4)])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stopped(patch, 1)
        label(student, data, tmp_path / "out.jsonl")
    moved = shutil.copytree(student, tmp_path / "moved")
    assert label(moved, data, tmp_path / "out.jsonl")[1].resumed == 2


def test_what_cannot_be_used_is_named(tmp_path: Path, student: Path) -> None:
    data, out = write(tmp_path / "rows.jsonl", [{"title": "a", "body": "b"}]), tmp_path / "out.jsonl"
    tried: list[tuple[dict[str, Any], str]] = [
        ({}, r"--input: say what the student is to see.*the rows have title, body"),
        ({"input": "{{ title"}, "not a valid Jinja template"),
        ({"input": "{{ title | nosuch }}"}, "not a valid Jinja template"),
        ({"task": "labels", "input": "x"}, r"--task: 'labels' is not known; did you mean 'label'"),
        ({"backend": "vlm", "input": "x"}, "did you mean 'vllm'"),
        ({"label_type": "int", "input": "x"}, "--label-type: 'int' is not known"),
        ({"labels": ["a", "b", "a"], "input": "x"}, "--labels: 'a' stands there twice or is empty"),
        ({"labels": ["a", ""], "input": "x"}, "--labels: '' stands there twice or is empty"),
        ({"task": "rationale", "rationale": True, "input": "x"}, "--rationale: .*leave it out"),
    ]
    for more, problem in tried:
        with pytest.raises(InputError, match=problem):
            label(student, data, out, **more)
    with pytest.raises(InputError, match="no such file"):
        label(student, tmp_path / "absent.jsonl", out)
    with pytest.raises(InputError, match=r"^--model: .*no such folder"):
        label(tmp_path / "absent", data, out, input="x")
    assert not out.exists()
    assert not list(tmp_path.glob("*.part*"))
    (tmp_path / "broken.csv").write_bytes(b"text\na\n\xff\n")
    with pytest.raises(InputError, match="save it as CSV in UTF-8"):
        label(student, tmp_path / "broken.csv", out)


def test_no_rows_make_an_empty_file(tmp_path: Path, student: Path) -> None:
    rows, summary = label(student, write(tmp_path / "rows.jsonl", []), tmp_path / "out.jsonl")
    assert rows == []
    assert (summary.rows, summary.rows_per_second) == (0, None)


def test_stages_yaml_says_what_is_left_out(tmp_path: Path, student: Path, project: Path) -> None:
    config = load_config(project)
    data = write(tmp_path / "rows.jsonl", [{"text": text(0), "input": "zzz"}])
    rows, summary = label(student, data, tmp_path / "out.jsonl", config=config)
    assert (summary.input, summary.task) == ("{{ text }}", "label")
    assert (rows[0]["input"], rows[0]["text"], rows[0]["problem"]) == (text(0), "a", "not_in_set")
    rows, summary = label(student, data, tmp_path / "other.jsonl", config=config, labels=["a"], input="{{ input }}")
    assert (summary.input, rows[0]["input"]) == ("{{ input }}", "zzz")


def test_a_rows_own_choices_are_its_labels(tmp_path: Path, student: Path, project: Path) -> None:
    project.write_text(project.read_text().replace("  labels: [sports, food]\n", "  choices: options\n"))
    config = load_config(project, ["parse.label_type=choice"])
    options = [["a", "b"], ["b", "c"], None]
    data = write(tmp_path / "rows.jsonl", [{"text": text(0), "options": one} for one in options])
    rows, _ = label(student, data, tmp_path / "out.jsonl", config=config)
    # "a" is the letter of the second row's first choice
    assert [(row["label"], row["problem"]) for row in rows] == [("a", None), ("b", None), (None, "bad_row")]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["stepdistill", "predict", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def test_the_command(
    tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", [{"text": text(n)} for n in range(3)] + [{"text": 7}])
    asked = ["--model", str(student), "--data", "rows.jsonl", "--labels", "a, b"]
    assert command(monkeypatch, *asked) == 0
    said = capsysbinary.readouterr()
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [row["label"] for row in rows][:3] == ["a", "b", "a"]
    assert b"predict: transformers on " in said.err
    assert said.err.splitlines()[-1].startswith(b"predict: 4 rows, ")

    assert command(monkeypatch, *asked, "--json") == 2
    assert b"--json: without --out" in capsysbinary.readouterr().err
    assert command(monkeypatch, *asked, "--out", "out.jsonl", "--json") == 0
    found = json.loads(capsysbinary.readouterr().out)
    assert (found["rows"], found["out"], found["model"]) == (4, "out.jsonl", str(student))
    assert read(tmp_path / "out.jsonl") == rows
    assert command(monkeypatch, *asked, "--out", "out.jsonl") == 2
    assert (
        capsysbinary.readouterr().err
        == b"stepdistill: out.jsonl: is there already; remove it, or name another file with --out\n"
    )
    assert command(monkeypatch, *asked, "-c", "absent.yaml") == 2

    (tmp_path / "stages.yaml").write_text("run: [")
    assert command(monkeypatch, *asked) == 2  # it is read where it is there
    assert b"stages.yaml:1" in capsysbinary.readouterr().err


def test_rows_go_to_any_stream_block_by_block(tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "BLOCK", {"transformers": 2})
    data = write(tmp_path / "rows.jsonl", [{"text": text(n)} for n in range(5)])
    stream = io.BytesIO()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stopped(patch, 2)
        predict(str(student), str(data), stream=stream, backend="transformers")
    assert stream.getvalue().count(b"\n") == 4  # what was answered before it was stopped is out


IN_VLLM = """
import sys
from pathlib import Path
from pipeline.predict import predict
if __name__ == "__main__":
    model, data, out = sys.argv[1:]
    print(predict(model, data, out=Path(out), backend="vllm", rationale=True, labels=["a", "b"], batch_size=8).model_dump_json())
"""


@pytest.mark.slow
def test_vllm_answers_both_tasks_as_transformers_does(tmp_path: Path, student: Path) -> None:
    rows = [{"text": one} for one in [*map(text, range(12)), "a" * 250, *HOSTILE]]
    data = write(tmp_path / "rows.jsonl", rows)
    (tmp_path / "in_vllm.py").write_text(IN_VLLM)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "in_vllm.py"), str(student), str(data), str(tmp_path / "vllm.jsonl")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["backend"], summary["rows"], summary["problems"]["too_long"]) == ("vllm", len(rows), 1)
    found = read(tmp_path / "vllm.jsonl")
    expected, _ = label(student, data, tmp_path / "transformers.jsonl", rationale=True, labels=["a", "b"])
    assert [row["input"] for row in found] == [row["input"] for row in expected]
    assert found[:13] == expected[:13]  # what it learned; on the rest it babbles, where a last digit decides
