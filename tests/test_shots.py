"""Few-shot examples from a file: which ones a row is shown, in what order, and that its own answer is never among them."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import prompts, provenance, shots
from pipeline.config import load
from pipeline.files import InputError, write_json
from pipeline.outputs import current
from pipeline.project import check
from pipeline.records import Prompt
from pipeline.requests import all_requests, resolve
from pipeline.runner import run
from pipeline.shots import FewShot, Shots
from pipeline.teachers import Server
from pipeline.text import ngrams, normalise, words
from pipeline.trace import trace
from tests.chat_server import chat_server, completion
from tests.conftest import write_jsonl

ROOT = Path(__file__).parents[1]
EXAMPLES = [
    {"text": "A late goal decides the match", "topic": "sports"},
    {"text": "Bake the bread with butter", "topic": "food"},
    {"text": "The keeper saves a late penalty", "topic": "sports"},
    {"text": "Boil the soup with garlic", "topic": "food"},
    {"text": "The bank raises its profit forecast", "topic": "business"},
]


def row(text: str, id: str = "r0") -> Prompt:
    return Prompt(id=id, source="train.jsonl:1", input=text, gold=None, choices=None, columns={"text": text})


def read(path: Path, k: int = 2, choose: Any = "first", input: str = "{{ text }}") -> Shots:
    return shots.load(FewShot(path=path, k=k, choose=choose), input)


def examples(folder: Path, rows: list[dict] = EXAMPLES, name: str = "shots.jsonl") -> Path:
    write_jsonl(folder / name, rows)
    return folder / name


def shown(found: Shots, text: str) -> list[Any]:
    return [example["text"] for example in shots.choose(found, row(text))]


def write_csv(folder: Path) -> Path:
    lines = ["text,topic", *(f"{example['text']},{example['topic']}" for example in EXAMPLES)]
    (folder / "shots.csv").write_text("\n".join(lines) + "\n")
    return folder / "shots.csv"


def write_parquet(folder: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(EXAMPLES), folder / "shots.parquet")
    return folder / "shots.parquet"


@pytest.mark.parametrize("write", [examples, write_csv, write_parquet])
def test_first_shows_every_row_the_same_examples(tmp_path: Path, write: Any) -> None:
    found = read(write(tmp_path), k=3)
    assert shots.choose(found, row("Anything")) == shots.choose(found, row("Else")) == EXAMPLES[:3]


def test_nearest_shows_the_most_similar_last(tmp_path: Path) -> None:
    found = read(examples(tmp_path), k=3, choose="nearest")
    assert shown(found, "Their keeper saves a penalty in the match")[1:] == [EXAMPLES[0]["text"], EXAMPLES[2]["text"]]
    assert shown(found, "Boil garlic with butter, then bake")[1:] == [EXAMPLES[3]["text"], EXAMPLES[1]["text"]]
    nothing_alike = shown(found, "zzz")  # all are equally far: the first of the file, the first of them last
    assert nothing_alike == [example["text"] for example in reversed(EXAMPLES[:3])]


def test_nearest_knows_scripts_without_spaces(tmp_path: Path) -> None:
    rows = [{"text": text} for text in ("今天的足球比赛很精彩", "这家餐厅的面条很好吃", "银行提高了利润预期")]
    found = read(examples(tmp_path, rows), k=1, choose="nearest")
    assert [shown(found, text) for text in ("昨天的足球比赛", "我喜欢吃面条", "银行的利润")] == [
        [example["text"]] for example in rows
    ]


@pytest.mark.parametrize("choose", ["first", "nearest"])
def test_an_example_with_the_rows_own_input_is_never_shown_to_it(tmp_path: Path, choose: str) -> None:
    found = read(examples(tmp_path), k=4, choose=choose)
    for number, example in enumerate(EXAMPLES):
        own = f"  {example['text'].upper()}! "
        others = {other["text"] for other in EXAMPLES} - {example["text"]}
        assert set(shown(found, own)) == others, number
    fewer = read(examples(tmp_path), k=5, choose=choose)
    assert len(shown(fewer, EXAMPLES[0]["text"])) == 4
    assert len(shown(fewer, "another")) == 5


VOCABULARY = ["goal", "match", "soup", "bread", "bank", "profit", "late"]
TEXTS = st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=6).map(" ".join)


def vectors(texts: list[str]) -> tuple[dict[str, float], list[dict[str, float]]]:
    """TF-IDF by its definition: raw counts, smoothed inverse document frequency, length 1."""
    counts = [Counter([*words(text), *ngrams(words(text), 2)]) for text in texts]
    seen = Counter(term for count in counts for term in count)
    weights = {term: math.log((1 + len(texts)) / (1 + number)) + 1 for term, number in seen.items()}
    return weights, [unit(count, weights) for count in counts]


def unit(count: Counter[str], weights: dict[str, float]) -> dict[str, float]:
    found = {term: number * weights[term] for term, number in count.items() if term in weights}
    length = math.sqrt(sum(weight**2 for weight in found.values())) or 1.0
    return {term: weight / length for term, weight in found.items()}


@given(texts=st.lists(TEXTS, min_size=1, max_size=8), text=TEXTS, data=st.data())
def test_nearest_agrees_with_the_definition(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], text: str, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(texts)))
    rows = [{"text": example, "number": number} for number, example in enumerate(texts)]
    found = read(examples(tmp_path_factory.mktemp("shots"), rows), k=k, choose="nearest")
    weights, known = vectors(texts)
    asked = unit(Counter([*words(text), *ngrams(words(text), 2)]), weights)
    similar = [sum(weight * asked.get(term, 0.0) for term, weight in vector.items()) for vector in known]
    usable = [number for number in range(len(texts)) if normalise(texts[number]) != normalise(text)]
    expected = sorted(usable, key=lambda number: (-round(similar[number], 6), number))[:k]
    assert [example["number"] for example in shots.choose(found, row(text))] == expected[::-1]


CHOOSING = """
import sys
from pathlib import Path
from tests.test_shots import read, shown
print([shown(read(Path(sys.argv[1]), k=3, choose="nearest"), text) for text in ("a late match", "bread and soup", "the bank")])
"""


def test_every_process_chooses_the_same(tmp_path: Path) -> None:
    path = examples(tmp_path)
    said = {
        subprocess.run(
            [sys.executable, "-c", CHOOSING, str(path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True, cwd=ROOT,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(said) == 1
    assert EXAMPLES[0]["text"] in said.pop()


@pytest.mark.parametrize("choose", ["first", "nearest"])
def test_a_snapshot_shows_the_same(tmp_path: Path, choose: str) -> None:
    rows = [{"z": [1, 2.5, None], "text": f"{example['text']} é\u2028", "a": {"y": 1, "b": 2}} for example in EXAMPLES]
    found = read(examples(tmp_path, rows), k=3, choose=choose)
    write_json(tmp_path / "shots.json", shots.snapshot(found))
    again = shots.read_snapshot(tmp_path / "shots.json", {"k": 3, "choose": choose, "path": {"sha256": "0"}})
    for text in ("a late goal", "soup", rows[1]["text"]):
        assert json.dumps(shots.choose(again, row(str(text)))) == json.dumps(shots.choose(found, row(str(text))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "a"}\n{"txt": "b"}\n', r"shots\.jsonl:2: .*text: no such column.*which has txt"),
        ('{"text": "a"}\n{"text": " "}\n', r"shots\.jsonl:2: the input of this example is empty"),
        ('{"text": "a"}\n', r"stages\.sample\.few_shot\.k: 2 examples are to be shown, but .*shots\.jsonl holds 1"),
        ('{"text": "a"}\nno\n', r"shots\.jsonl:2: "),
        ('{"text": "a"}\n{"text": "\\ud800"}\n', r"shots\.jsonl:2: "),
        (None, r"stages\.sample\.few_shot\.path: .*shots\.jsonl: no such file"),
    ],
)
def test_examples_that_cannot_be_used_are_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "shots.jsonl").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / "shots.jsonl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": [1], "inputs": ["a"]}', '{"rows": [], "inputs": ["a"]}'])
def test_what_is_no_snapshot_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "shots.json").write_text(content)
    with pytest.raises(InputError, match="not a snapshot of few-shot examples"):
        shots.read_snapshot(tmp_path / "shots.json", {"k": 1, "choose": "first"})


# In the prompt

TEMPLATE = """{% block user %}{% for shot in shots %}{% include "shot.jinja" %}
{% endfor %}{{ text }}{% endblock %}"""


def template(folder: Path, text: str = TEMPLATE) -> Path:
    (folder / "shot.jinja").write_text("{{ shot.text }} = {{ shot.topic }}")
    (folder / "topics.jinja").write_text(text)
    return folder / "topics.jinja"


def settings(folder: Path, **changed: Any) -> dict[str, Any]:
    given = {
        "teacher": [Server(backend="server", base_url="http://127.0.0.1:9/v1", model="m", revision="1")],
        "few_shot": FewShot(path=examples(folder), k=2),
        "prompt": template(folder),
        "input": "{{ text }}",
    }
    return given | changed


def test_the_prompt_shows_the_examples(tmp_path: Path) -> None:
    ((_, request),) = all_requests(resolve(**settings(tmp_path)), row("Late again"))
    assert request.messages is not None
    assert request.messages.messages[0].content == (
        "A late goal decides the match = sports\nBake the bread with butter = food\nLate again"
    )
    assert {"Late again", *(value for example in EXAMPLES[:2] for value in example.values())} <= set(request.row_texts)


def test_whatever_changes_the_shown_examples_changes_the_key(tmp_path: Path) -> None:
    def key(**changed: Any) -> str:
        ((_, request),) = all_requests(resolve(**settings(tmp_path) | changed), row("Late soup"))
        return request.key

    same = key()
    more = examples(tmp_path, [*EXAMPLES, {"text": "one more", "topic": "food"}], "more.jsonl")
    other = examples(tmp_path, [EXAMPLES[0], {**EXAMPLES[1], "topic": "bread"}], "other.jsonl")
    assert key(few_shot=FewShot(path=more, k=2)) == same  # it is the same prompt
    found = [key(few_shot=FewShot(path=more, **given)) for given in ({"k": 3}, {"k": 2, "choose": "nearest"})]
    found.append(key(few_shot=FewShot(path=other, k=2)))
    assert len({same, *found}) == 4


@pytest.mark.parametrize(
    ("text", "changed", "message"),
    [
        ("{% block user %}{{ text }}{% endblock %}", {}, "does not use the variable 'shots'"),
        (TEMPLATE, {"few_shot": None}, "shots: no such column in train.jsonl:1, .*; set stages.sample.few_shot"),
        (TEMPLATE, {"input": None}, "needs task.input"),
        (TEMPLATE.replace("topics", "text"), {"input": "{{ body }}"}, r"shots\.jsonl:1: .*body: no such column"),
    ],
)
def test_settings_and_prompt_must_fit_together(
    tmp_path: Path, text: str, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        list(all_requests(resolve(**settings(tmp_path) | {"prompt": template(tmp_path, text)} | changed), row("a")))


def test_a_column_named_shots_is_the_templates_to_use(tmp_path: Path) -> None:
    prompt = row("a").changed(columns={"text": "a", "shots": [EXAMPLES[3]]})
    ((_, request),) = all_requests(resolve(**settings(tmp_path, few_shot=None)), prompt)
    assert request.messages is not None
    assert request.messages.messages[0].content == "Boil the soup with garlic = food\na"


def test_variables_of_a_template_are_those_of_all_its_files(tmp_path: Path) -> None:
    found = prompts.variables_of(prompts.load(template(tmp_path, "{% set own = a.b %}" + TEMPLATE)))
    assert {"a", "shots", "text"} <= found
    assert "own" not in found


# In a project


def test_a_run_can_be_traced_without_the_file(project: Path) -> None:
    folder = project.parent
    template(folder)
    examples(folder)
    with chat_server(lambda body: completion("It is so and so. So the answer is food.")) as chat:
        text = project.read_text().replace('  input: "{{ text }}"', '  input: "{{ text }}"\n  prompt: topics.jinja')
        teacher = f"{{backend: server, base_url: '{chat.url}', model: m, revision: '1'}}"
        few_shot = "few_shot: {path: shots.jsonl, k: 2, choose: nearest}"
        text = text.replace("{backend: replay, completions: completions.jsonl}", f"{teacher}\n    {few_shot}")
        project.write_text(text)
        assert check(project).startswith("ready: 29 inputs")
        config = load(project)
        run(config, until="parse")
        before = provenance.ask(config, "sample")
        (folder / "shots.jsonl").rename(folder / "renamed.jsonl")
        project.write_text(text.replace("shots.jsonl", "renamed.jsonl"))
        renamed = provenance.ask(load(project), "sample")
        write_jsonl(folder / "renamed.jsonl", EXAMPLES[::-1])
        changed = provenance.ask(load(project), "sample")
    assert before is not None
    assert renamed is not None
    assert changed is not None
    assert before.key == renamed.key != changed.key  # content counts, not where it lies
    assert before.settings["few_shot"]["k"] == 2
    assert "shots.jsonl" in {Path(source.uri).name for source in before.sources}
    sample = current(config.run, "sample")
    assert sample is not None
    (folder / "renamed.jsonl").unlink()
    events = trace(config.run, "r3")
    (prompt,) = [event for event in events if event.verdict == "prompt"]
    assert "its key is the request's" in prompt.place
    said = prompt.row["messages"][0]["content"]
    assert said in [body["messages"][0]["content"] for body in chat.requests]
    assert said.count(" = ") == 2
    (sample / "shots.json").write_text(json.dumps({"rows": EXAMPLES[:2], "inputs": ["x", "y"]}))
    (tampered,) = [event for event in trace(config.run, "r3") if event.verdict == "prompt"]
    assert "NOT the request's" in tampered.place
