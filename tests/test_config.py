"""stages.yaml: what is accepted, and the one line that says what is not."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import load, read_yaml, verify
from pipeline.files import InputError

GOOD = """\
run: runs/demo
task:
  name: demo
  inputs: inputs.jsonl
  prompt: prompt.jinja
  input: "{{ text }}"
  labels: [sports, no, travel]
  gold: topic
eval_sets:
  test: {path: test.jsonl}
stages:
  sample:
    teacher: {backend: vllm, model: embedded}
    max_tokens: 64
  parse: {pattern: '(?P<rationale>.*) So the answer is (?P<label>.+)'}
  dedup: {near: 0.8}
  decontaminate: {ngram: 8}
  quality:
    filters:
      - {min_words: 4}
      - label_in_set
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "stages.yaml"
    path.write_text(text)
    for name in ("inputs.jsonl", "test.jsonl"):
        (folder / name).write_text('{"text": "one", "topic": "sports"}\n')
    (folder / "prompt.jinja").write_text("{% block user %}{{ text }}{% endblock %}")
    return path


def test_a_good_file_is_bound_with_defaults_and_paths(tmp_path: Path) -> None:
    config = load(write(tmp_path, GOOD))
    assert config.run == tmp_path / "runs/demo"
    assert config.task.labels == ["sports", "no", "travel"]
    assert config.eval_sets["test"].path == tmp_path / "test.jsonl"
    assert (config.eval_sets["test"].input, config.eval_sets["test"].gold) == ("{{ text }}", "topic")
    assert config.stages["dedup"]["near"] == 0.8
    assert config.stages["parse"]["labels"] == ["sports", "no", "travel"]
    assert config.stages["sample"]["n"] == 1
    assert list(config.stages)[-1] == "evaluate"


def test_overrides_win_for_one_call(tmp_path: Path) -> None:
    config = load(
        write(tmp_path, GOOD), ["dedup.near=0.5", "sample.teacher.model=other/model", "quality.filters=[label_in_set]"]
    )
    assert config.stages["dedup"]["near"] == 0.5
    assert config.stages["sample"]["teacher"][0].model == "other/model"
    assert [call.name for call in config.stages["quality"]["filters"]] == ["label_in_set"]


def test_a_stage_can_be_switched_off_and_the_next_reads_past_it(tmp_path: Path) -> None:
    config = load(write(tmp_path, GOOD), ["dedup=false", "quality=false"])
    assert "dedup" not in config.stages
    assert config.parents("decontaminate") == ("parse",)
    assert config.parents("shard") == ("decontaminate",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{near: 0.8}", "{nera: 0.8}", "stages.yaml:16: stages.dedup.nera: unknown setting; did you mean 'near'?"),
        (
            "{near: 0.8}",
            "{near: much}",
            "stages.yaml:16: stages.dedup.near: input should be a valid number, found 'much'",
        ),
        ("  dedup:", "  deduplicate:", "stages.yaml:16: stages.deduplicate: unknown stage; did you mean 'dedup'?"),
        (
            "label_in_set",
            "label_in_sett",
            "stages.yaml:21: stages.quality.filters[1].label_in_sett: unknown name; did you mean 'label_in_set'?",
        ),
        ("[sports, no, travel]", "[]", "stages.yaml:7: task.labels: list should have at least 1 item"),
        ("[sports, no, travel]", "[a, a]", "stages.yaml:7: task.labels: stands there twice: a"),
        ("gold: topic", "gold: [topic]", "stages.yaml:8: task.gold: input should be a valid string, found ['topic']"),
        ("gold: topic", "golden: topic", "stages.yaml:8: task.golden: unknown setting; did you mean 'gold'?"),
        ("gold: topic", "gold: !!python/object:os.system x", "stages.yaml:8: YAML tags are not allowed"),
        ("gold: topic", "gold: !x y", "stages.yaml:8: YAML tags are not allowed"),
        ("near: 0.8", "near: &anchor 0.8", "stages.yaml:16: YAML anchors and aliases are not allowed"),
        ("gold: topic", "gold: *alias", "stages.yaml:8: "),
        ("gold: topic", "name: again", "stages.yaml:8: "),
        ("gold: topic", "gold: 2020-01-02", "stages.yaml:8: 2020-01-02: dates and times must be put in quotes"),
        ("gold: topic", "gold: 3\n  5: x", "stages.yaml:9: 5: names must be text"),
        ("backend: vllm", "backend: vlm", "stages.yaml:13: stages.sample.teacher: "),
        ("backend: vllm", "backend: vlm, name: x", "stages.yaml:13: stages.sample.teacher: input tag 'vlm'"),
        (
            "model: embedded",
            "modle: embedded",
            "stages.yaml:13: stages.sample.teacher.modle: unknown setting; did you mean 'model'?",
        ),
        (", model: embedded", "", "stages.yaml:13: stages.sample.teacher.model: field required"),
        (
            "teacher: {backend: vllm, model: embedded}",
            "teacher:\n      - {backend: vllm, model: embedded}\n      - {backend: vllm, modle: m}",
            "stages.yaml:15: stages.sample.teacher[1].modle: unknown setting; did you mean 'model'?",
        ),
        (
            "teacher: {backend: vllm, model: embedded}",
            "teacher:\n      - {backend: vllm, model: embedded}\n      - {backend: vllm,\n         model: m, price: {houre: 1}}",
            "stages.yaml:16: stages.sample.teacher[1].price.houre: unknown setting; did you mean 'hour'?",
        ),
        (
            "teacher: {backend: vllm, model: embedded}",
            "teacher:\n      - {backend: vllm, model: embedded}\n      - {backend: vllm, model: embedded}",
            "stages.yaml:15: stages.sample.teacher[1].name: embedded: two teachers have this name; set another",
        ),
        (
            "teacher: {backend: vllm, model: embedded}",
            "teacher:\n      - {backend: vllm, model: embedded, share: 0.4}\n      - {backend: vllm, model: m, share: 0.5}",
            "stages.yaml:13: stages.sample.teacher: the shares add up to 0.9, so some rows would have no teacher",
        ),
        (
            "teacher: {backend: vllm, model: embedded}",
            "teacher: []",
            "stages.yaml:13: stages.sample.teacher: list should",
        ),
        (
            "test: {path: test.jsonl}",
            "test: {path: test.jsonl, gold: text}",
            "stages.yaml:10: eval_sets.test.gold: the prompt shows the column 'text', so the teacher would be told the answers",
        ),
        ("max_tokens: 64", "rationalise: true", "stages.yaml:14: stages.sample.rationalise: the prompt does not use"),
        ("max_tokens: 64", "few_shot: {path: test.jsonl, k: 1}", "stages.yaml:14: stages.sample.few_shot: the prompt"),
        (
            "gold: topic",
            "gold: text",
            "stages.yaml:5: task.prompt: the prompt shows the column 'text', which is task.gold",
        ),
        ("pattern: ", "# ", "stages.yaml:15: stages.parse.pattern: is missing"),
        ("(?P<label>", "(?P<lable>", "stages.yaml:15: stages.parse.pattern: "),
        ("(?P<label>", "(?P<label", "stages.yaml:15: stages.parse.pattern: "),
        ("  name: demo", "  name: demo: x", "stages.yaml:3: "),
        ("inputs: inputs.jsonl", "inputs: input.jsonl", "stages.yaml:4: task.inputs: "),
        ("inputs: inputs.jsonl", "inputs: prompt.jinja", "stages.yaml:4: task.inputs: "),
        ("prompt: prompt.jinja", "prompt: promt.jinja", "stages.yaml:5: task.prompt: "),
        ("path: test.jsonl", "path: tset.jsonl", "stages.yaml:10: eval_sets.test.path: "),
        ("max_tokens: 64", "n: 2", "stages.yaml:14: stages.sample.n: at temperature 0 all samples are the same"),
        ("run: runs/demo", "", "stages.yaml:1: run: field required"),
        ("  parse: {", "  parse: false #{", "stages.yaml:15: stages.parse: this stage cannot be switched off"),
    ],
)
def test_each_mistake_is_one_line_with_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    if old == "pattern: ":
        text = GOOD.replace("{pattern: '(?P<rationale>.*) So the answer is (?P<label>.+)'}", "{}")
    if not old.startswith("run"):
        assert text != GOOD
    with pytest.raises(InputError) as caught:
        verify(load(write(tmp_path, text)))
    line = str(caught.value).removeprefix(f"{tmp_path}/")
    assert line.startswith(message)
    assert "\n" not in line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dedup.near", "write it as stage.knob=value"),
        ("deduq.near=1", "unknown stage; did you mean 'dedup'?"),
        ("dedup.nera=1", "stages.dedup.nera: unknown setting; did you mean 'near'?"),
        ("dedup.near=!!x 1", "YAML tags are not allowed"),
    ],
)
def test_a_wrong_override_is_one_line(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=".") as caught:
        load(write(tmp_path, GOOD), [override])
    assert message in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stages.yaml: cannot be read"):
        load(tmp_path / "stages.yaml")


@given(st.text(max_size=60) | st.text(alphabet="{}[]:-,&*!|>'\"#%@ \n\tab1", max_size=60))
def test_any_text_is_settings_or_one_line(text: str) -> None:
    try:
        value, places = read_yaml(text, "stages.yaml")
    except InputError as error:
        assert str(error).startswith("stages.yaml")
        assert "\n" not in str(error)
    else:
        assert isinstance(value, dict)
        assert all((name,) in places for name in value)
