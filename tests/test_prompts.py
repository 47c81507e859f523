"""Templates: what is rendered, what is refused and where, and that data stays data."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import prompts
from pipeline.files import InputError

TOPICS = """{% block system %}You label texts.{% endblock %}
{% block user %}{% include "shots.jinja" %}
Text: {{ text }}
One of: {{ labels | join(", ") }}{% endblock %}
{% block assistant_prefix %}The text is about{% endblock %}
"""


def write(folder: Path, text: str, name: str = "topics.jinja") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.fixture
def topics(tmp_path: Path) -> Path:
    write(tmp_path, "Example: {{ text | length }} characters follow.", "shots.jinja")
    return write(tmp_path, TOPICS)


def test_a_row_becomes_messages(topics: Path) -> None:
    found = prompts.render(prompts.load(topics), {"text": "Late goal"}, labels=["sports", "food"])
    assert found.model_dump() == {
        "messages": [
            {"role": "system", "content": "You label texts."},
            {"role": "user", "content": "Example: 9 characters follow.\nText: Late goal\nOne of: sports, food"},
        ],
        "assistant_prefix": "The text is about",
    }


def test_only_user_is_needed_and_a_blank_system_block_is_not_sent(tmp_path: Path) -> None:
    path = write(tmp_path, "{% block system %} \n{% endblock %}{% block user %}{{ text }}{% endblock %}")
    found = prompts.render(prompts.load(path), {"text": "a"})
    assert [message.role for message in found.messages] == ["user"]
    assert found.assistant_prefix == ""


def test_examples_are_turns_between_system_and_user(tmp_path: Path) -> None:
    text = "{% block user %}{{ text }}{% endblock %}{% block system %}s{% endblock %}"
    text += "".join(
        f"{{% block user_{n} %}}q{n}{{% endblock %}}{{% block assistant_{n} %}}a{n}{{% endblock %}}"
        for n in range(1, 12)
    )
    found = prompts.render(prompts.load(write(tmp_path, text)), {"text": "last"})
    assert [message.content for message in found.messages] == [
        "s",
        *(f"{part}{n}" for n in range(1, 12) for part in "qa"),
        "last",
    ]


def test_definitions_beside_the_blocks_are_seen_inside_them(tmp_path: Path) -> None:
    text = "{% set name = 'topic' %}{% macro line(x) %}<{{ x }}>{% endmacro %}{% block user %}{{ name }} {{ line(text) }}{% endblock %}"
    assert prompts.render(prompts.load(write(tmp_path, text)), {"text": "a"}).messages[0].content == "topic <a>"


@given(st.text() | st.sampled_from(["{{ 7 * 7 }}", "{% include 'shots.jinja' %}", "{# gone #}", "<b>&amp;"]))
def test_what_a_row_holds_is_never_rendered(text: str) -> None:
    template = prompts.from_snapshot({"name": "t", "templates": {"t": "{% block user %}{{ text }}{% endblock %}"}})
    assert prompts.render(template, {"text": text}).messages[0].content == text
    assert prompts.render_text("{{ text }}", {"text": text}) == text


@given(
    st.sampled_from(["text", "self", "loop", "super", "caller", "range", "true", "none", "labels"]),
    st.text() | st.integers() | st.booleans() | st.lists(st.text()),
)
def test_one_column_alone_reads_as_any_template_would_show_it(name: str, value: object) -> None:
    def shown(template: str) -> str:
        try:
            return prompts.render_text(template, {name: value})  # type: ignore[dict-item]
        except InputError as error:
            return str(error).partition(": ")[2].partition(": ")[2]

    assert shown(f"{{{{ {name} }}}}") == shown(f"{{{{ {name} }}}}{{{{ '' }}}}")


@given(st.dictionaries(st.sampled_from(["text", "labels", "choices", "other"]), st.text(), min_size=1))
def test_a_snapshot_renders_as_the_file_did(columns: dict[str, str]) -> None:
    sources = {"t": "{% block user %}{% include 'u' %}{% endblock %}", "u": "{{ text | default('none') }}|{{ labels }}"}
    template = prompts.from_snapshot({"name": "t", "templates": sources})
    again = prompts.from_snapshot(prompts.snapshot(template))
    assert prompts.render(template, columns, labels=["a"]) == prompts.render(again, columns, labels=["a"])


def test_a_snapshot_needs_no_files(topics: Path) -> None:
    template = prompts.load(topics)
    before = prompts.render(template, {"text": "x"}, labels=["a"])
    snapshot = prompts.snapshot(template)
    for path in topics.parent.iterdir():
        path.unlink()
    assert prompts.render(prompts.from_snapshot(snapshot), {"text": "x"}, labels=["a"]) == before


def test_the_digest_covers_what_is_included(topics: Path) -> None:
    before = prompts.digest(topics)
    assert prompts.digest(topics) == before
    write(topics.parent, "other", "shots.jinja")
    assert prompts.digest(topics) != before


def test_a_missing_variable_names_place_and_columns(topics: Path) -> None:
    template = prompts.load(topics)
    with pytest.raises(InputError) as error:
        prompts.render(template, {"texts": "a", "id": "7"}, labels=[], source="train.jsonl:3")
    line = str(error.value)
    assert line.startswith(f"{topics.parent / 'shots.jinja'}:1: text: ")
    assert "train.jsonl:3" in line
    assert "texts, id, labels" in line
    assert "did you mean 'texts'?" in line


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{% block system %}a{% endblock %}", "no block 'user'"),
        ("{% block user %}", r"t\.jinja:1: "),
        ("\n{% block user %}{{ text | nosuch }}{% endblock %}", r"t\.jinja:2: .*nosuch"),
        ("{% block user %}{{ [1, 2] | random }}{% endblock %}", "random"),
        ("hello {% block user %}a{% endblock %}", r"t\.jinja:1: text outside the blocks"),
        ("{{ text }}{% block user %}a{% endblock %}", "text outside the blocks"),
        ("{% if true %}{% block user %}a{% endblock %}{% endif %}", "outside the blocks"),
        ("{% block usr %}a{% endblock %}", "did you mean 'user'"),
        ("{% block user %}{% block system %}a{% endblock %}{% endblock %}", "stands inside another block"),
        ("{% block user %}a{% endblock %}{% block user_2 %}a{% endblock %}", "no block 'user_1'"),
        ("{% block user %}a{% endblock %}{% block user_1 %}a{% endblock %}", "no block 'assistant_1'"),
        ("{% extends 'a' %}{% block user %}a{% endblock %}", "extends"),
        ("{% block user %}{% include name %}{% endblock %}", "written out"),
        ("{% block user %}{% include 'nosuch.jinja' %}{% endblock %}", r"t\.jinja:1: nosuch\.jinja: no such template"),
        ("{% block user %}{% include '../secret.jinja' %}{% endblock %}", "no such template"),
        ("{% block user %}{% include 'link.jinja' %}{% endblock %}", "lies outside"),
    ],
)  # fmt: skip
def test_bad_templates_are_refused_when_loaded(tmp_path: Path, text: str, problem: str) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    write(tmp_path, "secret", "secret.jinja")
    (folder / "link.jinja").symlink_to(tmp_path / "secret.jinja")
    with pytest.raises(InputError, match=problem):
        prompts.load(write(folder, text, "t.jinja"))


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("{{ text.__class__.__mro__ }}", "unsafe"),
        ("{{ text + 1 }}", "str"),
        ("{{ nothing }}", "null"),
        ("{{ 1 / 0 }}", "zero"),
        ("{{ range(999999999) | list }}", "too big"),
        ("{% include 't' %}", "recurses"),
        ("{{ items.append(1) }}", "unsafe"),
        ("{{ text.nosuch }}", "nosuch"),
    ],
)
def test_what_fails_while_rendering_is_one_line_with_its_place(expression: str, problem: str) -> None:
    text = f"{{% block user %}}\n\n{expression}{{% endblock %}}"
    template = prompts.from_snapshot({"name": "t", "templates": {"t": text}}, "x")
    with pytest.raises(InputError, match=problem) as error:
        prompts.render(template, {"text": "a", "nothing": None, "items": []})
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("x: t:3: ")


def test_text_templates() -> None:
    assert (
        prompts.render_text("{{ question }} ({{ choices | join('/') }})", {"question": "Q", "choices": ["a", "b"]})
        == "Q (a/b)"
    )
    with pytest.raises(InputError, match=r"^train\.jsonl:4: .*txt: no such column .*did you mean 'text'"):
        prompts.render_text("{{ txt }}", {"text": "a"}, "train.jsonl:4")
    with pytest.raises(InputError, match="not a valid Jinja template"):
        prompts.render_text("{{ text", {"text": "a"})
    with pytest.raises(InputError, match="null"):
        prompts.render_text("{{ text }}", {"text": None})
    with pytest.raises(InputError):
        prompts.render_text("{% include 'a' %}", {"text": "a"})


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such template"):
        prompts.load(tmp_path / "nosuch.jinja")
    bad = tmp_path / "latin.jinja"
    bad.write_bytes("{% block user %}é{% endblock %}".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        prompts.load(bad)
    (tmp_path / "templates.json").write_text("[]")
    with pytest.raises(InputError, match="not a snapshot"):
        prompts.read_snapshot(tmp_path / "templates.json")
