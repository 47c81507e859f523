"""A function's signature is the schema of its settings."""

from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from pipeline.binding import Call, Calls, From, InputPath, Problem, bind, check, located
from pipeline.teachers import Teachers


class Teacher(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    chunk: int = 8


def min_words(example: object, *, minimum: int = 4) -> None: ...


def label_in_set(example: object, *, labels: Annotated[list[str] | None, From("task.labels")]) -> None: ...


def stage(
    rows: object,
    *,
    near: float = 0.8,
    teacher: Teacher,
    against: InputPath | None = None,
    filters: Annotated[list[Call], Calls({"min_words": min_words, "label_in_set": label_in_set})] = [],  # noqa: B006
    labels: Annotated[list[str] | None, From("task.labels")],
) -> None: ...


def bound(settings: object) -> dict:
    return bind(stage, settings, lookup={"task.labels": ["a", "b"]}.__getitem__, folder=Path("/project"))


def problem(settings: object) -> Problem:
    with pytest.raises(Problem) as caught:
        bound(settings)
    return caught.value


def test_defaults_lookups_and_paths_are_filled_in() -> None:
    assert bound(
        {
            "teacher": {"model": "m"},
            "against": "data/old.jsonl",
            "near": 1,
            "filters": [{"min_words": 6}, "label_in_set"],
        }
    ) == {
        "near": 1.0,
        "teacher": Teacher(model="m"),
        "against": Path("/project/data/old.jsonl"),
        "filters": [Call("min_words", {"minimum": 6}), Call("label_in_set", {"labels": ["a", "b"]})],
        "labels": ["a", "b"],
    }


@pytest.mark.parametrize(
    ("settings", "where", "message"),
    [
        ({"teacher": {"model": "m"}, "nera": 0.8}, ("nera",), "unknown setting; did you mean 'near'?"),
        ({"teacher": {"model": "m"}, "near": "0.8"}, ("near",), "input should be a valid number, found '0.8'"),
        (
            {"teacher": {"model": "m", "chunk": True}},
            ("teacher", "chunk"),
            "input should be a valid integer, found True",
        ),
        ({"teacher": {"model": "m", "chunks": 1}}, ("teacher", "chunks"), "unknown setting; did you mean 'chunk'?"),
        ({"teacher": {}}, ("teacher", "model"), "field required"),
        ({}, (), "'teacher' is missing; it has no default"),
        (
            {"teacher": {"model": "m"}, "labels": ["x"]},
            ("labels",),
            "unknown setting; known: against, filters, near, teacher",
        ),
        (
            {"teacher": {"model": "m"}, "filters": ["min_word"]},
            ("filters", 0, "min_word"),
            "unknown name; did you mean 'min_words'?",
        ),
        (
            {"teacher": {"model": "m"}, "filters": [{"label_in_set": 3}]},
            ("filters", 0, "label_in_set"),
            "takes no settings",
        ),
        (
            {"teacher": {"model": "m"}, "filters": [{"min_words": "x"}]},
            ("filters", 0, "min_words", "minimum"),
            "valid integer",
        ),
        ({"teacher": {"model": "m"}, "filters": "min_words"}, ("filters",), "expected a list, found 'min_words'"),
        ("text", (), "expected settings ('name: value'), found 'text'"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_place(settings: object, where: tuple, message: str) -> None:
    found = problem(settings)
    assert found.where == where
    assert message in found.message


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_value_is_either_bound_or_named(value: object) -> None:
    try:
        bound(value)
    except Problem as found:
        assert "\n" not in str(located(found, "", "stages.yaml", {(): 1}))


NAMES = st.sampled_from(
    ["backend", "model", "modle", "base_url", "share", "price", "hour", "completions", "engine", "vllm"]
)
VALUES = st.recursive(
    st.sampled_from([None, 1, 0.5, -1, "vllm", "server", "replay", "http://127.0.0.1", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


TEACHER = st.builds(
    lambda backend, others: {"backend": backend, **others},
    st.sampled_from(["vllm", "server", "x"]),
    st.dictionaries(NAMES, VALUES, max_size=4),
)


@given(TEACHER | st.lists(TEACHER, max_size=3) | VALUES)
def test_a_problem_inside_one_of_several_models_is_named_by_the_users_own_keys(value: object) -> None:
    try:
        check(Teachers, value, folder=Path("/project"), where=("teacher",))
    except Problem as found:
        *steps, last = found.where
        here = {"teacher": value}
        for step in steps:
            here = here[step]  # type: ignore[assignment,index]
        if "field required" not in found.message:
            here[last]  # type: ignore[index]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_suggestion_is_one_of_the_named_models_settings(wrapped: bool) -> None:
    def message(teacher: dict) -> str:
        with pytest.raises(Problem) as caught:
            check(Teachers, [teacher] if wrapped else teacher, folder=Path("/project"), where=("teacher",))
        assert caught.value.where[:-1] in {("teacher", 0), ("teacher",), ("teacher", 0, "price"), ("teacher", "price")}
        return caught.value.message

    server = {"backend": "server", "model": "m", "base_url": "http://127.0.0.1"}
    assert message({**server, "base_ulr": "x"}) == "unknown setting; did you mean 'base_url'?"
    assert "base_url" not in message({"backend": "vllm", "model": "m", "base_ulr": "x"})
    assert message({**server, "price": {"hours": 1}}) == "unknown setting; did you mean 'hour'?"


def test_a_located_problem_has_line_name_and_no_control_characters() -> None:
    line = located(
        Problem(("stages", "dedup", "ne\x1bra"), "unknown setting"), "", "stages.yaml", {(): 1, ("stages", "dedup"): 13}
    )
    assert str(line) == "stages.yaml:13: stages.dedup.ne\\x1bra: unknown setting"
