"""The stage that runs the filters in order: reasons, evidence, settings, files."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import filters, outputs
from pipeline.binding import Call, Problem, bind
from pipeline.config import load, verify
from pipeline.files import InputError
from pipeline.filters import ASKED_FOR, FILTERS
from pipeline.quality import judge, known, quality
from pipeline.records import Drop
from pipeline.runner import run
from tests.conftest import SETTINGS
from tests.rows import example, judgement, votes

VALUES: dict[str, Any] = {
    "task.labels": ["sports", "food"],
    "task.gold": None,
    "task.prompt": None,
    "stages.sample.few_shot": None,
    "stages.sample.logprobs": False,
    "stages.parse.label_type": "text",
    "stages.judge.on": False,
}


def test_every_function_that_the_package_names_is_a_filter() -> None:
    own = {
        name
        for name, value in vars(filters).items()
        if callable(value) and value.__module__.startswith("pipeline.filters")
    }
    assert own == set(FILTERS)
    assert set(ASKED_FOR) < set(FILTERS)


def calls(entries: list[object]) -> list[Call]:
    found: list[Call] = bind(quality, {"filters": entries}, lookup=VALUES.__getitem__, folder=Path())["filters"]
    return found


def test_the_first_filter_that_objects_gives_the_reason() -> None:
    row = example(label="football", rationale="No.", finish_reason="length")
    (verdict,) = quality([row], filters=calls(["finish_reason", {"min_words": 2}, "label_in_set"]))
    assert verdict == Drop(
        id=row.id,
        reason="finish_reason",
        evidence={
            "why": "the response ended with 'length', not with stop or recorded",
            "label": "football",
            "rationale": "No.",
            "settings": {"allowed": ["stop", "recorded"]},
        },
    )
    (verdict,) = quality([row], filters=calls(["label_in_set"]))
    assert verdict is not None and (verdict.reason, verdict.evidence["settings"]) == (
        "label_in_set",
        {"labels": ["sports", "food"]},
    )


def test_one_verdict_a_row_in_order() -> None:
    rows = [example("a"), example("b", rationale="No."), example("c")]
    verdicts = list(quality(rows, filters=calls([{"min_words": 4}])))
    assert [verdict and verdict.id for verdict in verdicts] == [None, "b", None]
    assert list(quality(rows, filters=[])) == [None, None, None]


def test_what_is_dropped_by_votes_or_judge_shows_them() -> None:
    row = example(agreement=0.5, entropy=1.0, votes=votes("sports", "food"), judgement=judgement(1, "Wrong."))
    (verdict,) = quality([row], filters=calls(["min_agreement"]))
    assert verdict is not None and verdict.reason == "min_agreement"
    assert verdict.evidence["votes"] == [vote.plain() for vote in row.votes]
    (verdict,) = quality([row], filters=calls([{"min_judge_score": 2}]))
    assert verdict is not None and verdict.evidence["settings"] == {"minimum": 2}
    assert verdict.evidence["judgement"] == {
        "score": 1,
        "reason": "Wrong.",
        "judge": "a judge",
        "request": "request-j",
    }
    assert Drop.read(verdict.line()) == verdict


def test_the_verdict_of_one_filter_alone() -> None:
    row = example(label="football", rationale="No.")
    found = [judge(row, call) for call in calls(["label_in_set", {"min_words": 1}, {"min_words": 2}])]
    assert [drop and drop.reason for drop in found] == ["label_in_set", None, "min_words"]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("min_judge_score", {"judged": False}, "needs a judge; add stages.judge, or remove the filter"),
        ("matches_gold", {"gold": None}, "needs true labels; set task.gold, or remove the filter"),
        (
            "mean_logprob",
            {"logprobs": False},
            "needs log-probabilities; set stages.sample.logprobs: true, or remove the filter",
        ),
    ],
)
def test_a_filter_needs_its_evidence(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        quality([], filters=calls(["label_in_set", name]), **given)
    assert str(caught.value) == f"stages.quality.filters: {name} {message}"
    assert list(quality([example()], filters=calls(["label_in_set"]), **given)) == [None]


def test_without_a_list_all_filters_run_but_those_to_be_asked_for() -> None:
    bound = bind(quality, {}, lookup=VALUES.__getitem__, folder=Path())
    assert [call.name for call in bound["filters"]] == [name for name in FILTERS if name not in ASKED_FOR]
    rows = [example(), example(label="x"), example(rationale="So 1 + 1 = 3 goals were shot.")]
    assert [verdict and verdict.reason for verdict in quality(rows, **bound)] == [None, "label_in_set", "wrong_step"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["label_in_sets"], "unknown name; did you mean 'label_in_set'?"),
        ([{"min_words": {"minimun": 4}}], "unknown setting; did you mean 'minimum'?"),
        ([{"min_words": -1}], "greater than or equal to 0"),
        ([{"repetition": {"top": [1.5]}}], "less than or equal to 1"),
        ([{"min_agreement": 60}], "less than or equal to 1"),
        ([{"max_entropy": -1}], "greater than or equal to 0"),
        ([{"min_judge_score": 6}], "less than or equal to 5"),
        ([{"mean_logprob": 0.5}], "less than or equal to 0"),
        ([{"label_in_set": {"labels": ["a"]}}], "unknown setting"),
        ([{"refusal": "no"}], "found 'no'"),
        (["tokens"], "'tokenizer' is missing"),
        ([{"language": "english"}], "unknown language; write its code, such as en"),
        ([{"language": "xy"}], "unknown language; write its code, such as en"),
        ([{"private_data": {"kinds": ["mail"]}}], "found 'mail'"),
        ([{"private_data": {"region": "usa"}}], "found 'usa'"),
        ([{"block_list": {"patterns": ["fine", "(a"]}}], "no regular expression (missing ), unterminated subpattern"),
        ([{"block_list": {"phrases": [" "]}}], "an empty phrase would stand everywhere"),
        ([{"allow_list": {"phrases": ["a"], "where": ["rational"]}}], "found 'rational'"),
        ("label_in_set", "expected a list"),
    ],
)
def test_bad_lists_are_refused(entries: Any, message: str) -> None:
    with pytest.raises(Problem) as caught:
        calls(entries)
    assert message in caught.value.message


def with_filter(project: Path, line: str) -> int:
    """Adds a filter to the small project; the number of its line in the settings."""
    changed = SETTINGS.replace("      - {min_words: 3}\n", f"      - {{min_words: 3}}\n      - {line}\n")
    project.write_text(changed)
    return changed.split("\n").index(f"      - {line}") + 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{block_list: {patterns: ['(a']}}", "block_list.patterns[0]: no regular expression"),
        ("{block_list: {file: none.txt}}", "block_list: {folder}/none.txt: cannot be read (No such file or directory)"),
        ("{block_list: {file: empty.txt}}", "block_list: {folder}/empty.txt: no phrase in this file; write one a line"),
        (
            "{block_list: {file: latin.txt}}",
            "block_list: {folder}/latin.txt: not UTF-8 text (byte 3); save it as UTF-8",
        ),
        ("allow_list", "allow_list: nothing is listed; give phrases, patterns or a file"),
        ("{tokens: {tokenizer: empty.txt}}", "tokens: {folder}/empty.txt: no tokenizer ("),
        ("{tokens: {tokenizer: none.json}}", "tokens: {folder}/none.json: no tokenizer ("),
    ],
)
def test_a_file_or_pattern_that_cannot_be_used_is_told_by_its_line(project: Path, line: str, message: str) -> None:
    (project.parent / "empty.txt").write_text("# nothing\n\n")
    (project.parent / "latin.txt").write_bytes("Café".encode("latin-1"))
    number = with_filter(project, line)
    with pytest.raises(InputError) as caught:
        verify(load(project))
    assert str(caught.value).startswith(
        f"{project}:{number}: stages.quality.filters[2].{message.format(folder=project.parent)}"
    )


def test_the_content_of_a_list_is_part_of_the_key_and_evidence_names_the_file_alone(project: Path) -> None:
    listed = project.parent / "lists"
    listed.mkdir()
    (listed / "blocked.txt").write_text("nowhere\n")
    with_filter(project, "{block_list: {file: lists/blocked.txt}}")
    first = run(project, until="quality")[-1]
    assert "block_list" not in first.manifest.counts.reasons
    assert [source.uri for source in first.manifest.sources] == ["lists/blocked.txt"]
    (listed / "blocked.txt").write_text("of goal\n")
    second = run(project, until="quality")[-1]
    assert second.manifest.key != first.manifest.key and second.manifest.counts.reasons["block_list"] > 0
    drops = [drop for drop in outputs.read_drops(second.folder) if drop.reason == "block_list"]
    assert drops[0].evidence["settings"]["file"] == "blocked.txt"
    assert drops[0].evidence["why"] == "the rationale holds 'of goal', which is on the block list"


_SOME = st.lists(
    st.sampled_from(
        [
            {"min_words": {"minimum": 2}},
            {"min_words": {"minimum": 6}},
            {"max_words": {"maximum": 3}},
            {"max_words": {"maximum": 8}},
            {"finish_reason": {"allowed": ["stop"]}},
            {"finish_reason": {"allowed": ["length"]}},
            {"repeats_label": {}},
            {"label_in_set": {"labels": ["sports", "food"]}},
            {"label_in_set": {"labels": ["sports"]}},
            {"refusal": {"phrases": ["a b"]}},
        ]
    ),
    max_size=5,
    unique_by=lambda call: next(iter(call)),
)
_ROWS = st.lists(
    st.builds(
        lambda text, label, end: {"rationale": text, "label": label, "finish_reason": end},
        st.lists(st.sampled_from(["a", "b", "sports", "goal"]), max_size=9).map(" ".join),
        st.sampled_from(["sports", "food", "golf"]),
        st.sampled_from(["stop", "length"]),
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(_SOME, _SOME, _ROWS)
def test_what_an_earlier_result_tells_changes_no_verdict(
    before: list[dict[str, Any]], now: list[dict[str, Any]], fields: list[dict[str, Any]]
) -> None:
    rows = [example(f"r{number}", **one) for number, one in enumerate(fields)]
    earlier, later = ([Call(*next(iter(one.items()))) for one in calls] for calls in (before, now))
    drops = [drop for drop in quality(rows, filters=earlier) if drop is not None]
    told = known({"filters": before}, {"filters": now}, drops)
    assert list(quality(rows, told, filters=later)) == list(quality(rows, filters=later))


def test_filters_that_did_not_change_are_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [example("a"), example("b", rationale="No."), example("c", finish_reason="length")]
    before = [{"finish_reason": {"allowed": ["stop"]}}, {"min_words": {"minimum": 4}}]
    now = [before[0], {"min_words": {"minimum": 1}}]
    drops = [drop for drop in quality(rows, filters=[Call(*next(iter(one.items()))) for one in before]) if drop]
    told = known({"filters": before}, {"filters": now}, drops)
    asked = []
    whole = FILTERS["finish_reason"]
    monkeypatch.setitem(FILTERS, "finish_reason", lambda row, **knobs: asked.append(row.id) or whole(row, **knobs))
    (verdict,) = [drop for drop in quality(rows, told, filters=[Call(*next(iter(one.items()))) for one in now]) if drop]
    assert verdict.id == "c" and [name for name in asked if name] == ["c", "c"]  # the verdict, and the evidence


def test_a_filter_named_twice_tells_nothing() -> None:
    twice = {"filters": [{"min_words": {"minimum": 2}}, {"min_words": {"minimum": 4}}]}
    assert known(twice, twice, []) is None


def test_a_changed_threshold_gives_the_bytes_of_a_first_run(project: Path) -> None:
    def tree(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("run")}

    changed = ["quality.filters=[label_in_set, {min_words: 9}, {max_words: 12}]"]
    run(project, until="decontaminate")
    fresh = run(project, ["quality"], overrides=changed)[0].folder
    expected = tree(fresh)
    run(project, ["quality"], overrides=["quality.filters=[label_in_set, {min_words: 9}, repeats_label]"])
    assert tree(run(project, ["quality"], overrides=changed, force=True)[0].folder) == expected
    earlier = run(project, ["quality"], overrides=["quality.filters=[{max_words: 10}, label_in_set, {min_words: 9}]"])[
        0
    ]
    for path in fresh.iterdir():
        path.unlink()
    assert tree(run(project, ["quality"], overrides=changed)[0].folder) == expected
    assert earlier.manifest.counts.dropped
