"""What is asked of whom: shares, seeds, forms of answers, and a key for everything that can change an answer."""

import itertools
import json
import re
import string
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import outputs, prompts, report
from pipeline import project as projects
from pipeline.config import load
from pipeline.files import InputError, canonical_json, digest
from pipeline.parse import parse
from pipeline.prompts import Messages
from pipeline.records import Drop, Example, Prompt, Response
from pipeline.requests import Asking, SoftLabels, all_requests, from_manifest, requests_of, resolve, sent_of
from pipeline.responses import family_key
from pipeline.runner import run
from pipeline.shots import FewShot
from pipeline.teachers import Replay, Request, Server
from pipeline.trace import trace
from tests.chat_server import Reply, chat_server, completion
from tests.rows import response

LABELS = ["sports", "food & drink (hot)", "a|b", "C++", "5.0 $", "[x]", "{y}", "\\w", "^"]
IDS = [f"row-{number}" for number in range(2000)]


def row(id: str = "r0", text: str = "Late goal", **fields: Any) -> Prompt:
    given = {"id": id, "source": f"train.jsonl:{id[1:]}", "input": text, "gold": None, "choices": None}
    return Prompt(**(given | {"columns": {"text": text}} | fields))


def server(model: str = "m", share: float = 1.0, **fields: Any) -> Server:
    return Server(backend="server", base_url="http://127.0.0.1:9/v1", model=model, revision="1", share=share, **fields)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "topics.jinja"
    path.write_text("{% block user %}Text: {{ text }}{% endblock %}")
    return path


def asked(template: Path | None, *teachers: Any, **changed: Any) -> Asking:
    return resolve(**{"teacher": list(teachers) or [server()], "prompt": template, **changed})


def requests(asking: Asking, prompt: Prompt | None = None) -> list[Request]:
    return [request for _, request in all_requests(asking, prompt or row())]


@given(
    st.text(),
    st.text(),
    st.dictionaries(st.sampled_from(["top_k", "min_p", "bad_words"]), st.integers() | st.floats(0, 1) | st.none()),
    st.sampled_from([None, "label", "json"]),
)
def test_keys_are_digests_of_the_canonical_json(text: str, id: str, more: dict, structured: Any) -> None:
    identities: Any = {"m": {"model": "m"}}
    source = {"name": "t", "templates": {"t": "{% block user %}{{ text }}{% endblock %}"}}
    shared = {"n": 2, "greedy_first": True, "temperature": 0.5, "top_p": 0.9, "max_tokens": 9, "stop": [], "seed": 1}
    shapes = {"structured": structured, "regex": None, "logprobs": False, "soft_labels": None, "rationalise": False}
    teacher = [{"backend": "server", "name": "m", "model": "m", "share": 1.0}]
    settings = {"teacher": teacher, **shared, **shapes, "sampling": more, "labels": LABELS}
    asking = from_manifest(settings, identities, prompts.from_snapshot(source), None)
    for choices in (None, ["a", text]):
        prompt = row(id, text, choices=choices)
        for request in requests(asking, prompt):
            sent = digest(sent_of(prompt, request.messages))
            sampling = {name: value for name, value in request.sampling.items() if name != "max_tokens"}
            about: dict[str, Any] = {"identity": digest({"model": "m"}), "seed": request.seed, "sample": request.sample}
            assert request.prompt_digest == sent
            assert request.family == family_key(prompt=sent, sampling=sampling, **about)


# Several teachers


def parts(asking: Asking) -> dict[str, list[str]]:
    """The rows of each teacher."""
    prompts = [row(id) for id in IDS]
    return {one.name: [prompt.id for prompt in prompts if one.takes(prompt)] for one in asking.respondents}


@settings(max_examples=25)
@given(weights=st.lists(st.integers(1, 50), min_size=2, max_size=8))
def test_shares_that_add_up_to_one_part_the_rows(template: Path, weights: list[int]) -> None:
    teachers = [server(f"m{n}", weight / sum(weights)) for n, weight in enumerate(weights)]
    found = parts(asked(template, *teachers))
    assert Counter(id for ids in found.values() for id in ids) == Counter(IDS)  # each row once
    for teacher in teachers:
        assert len(found[teacher.model]) / len(IDS) == pytest.approx(
            teacher.share, abs=0.04
        )  # 3.6 deviations at a half


@given(
    cuts=st.lists(st.integers(1, 999_999_999), max_size=6, unique=True),
    names=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=20),
)
def test_no_row_falls_between_two_shares(template: Path, cuts: list[int], names: list[str]) -> None:
    edges = [0, *sorted(cuts), 1_000_000_000]
    shares = [(after - before) / 1e9 for before, after in itertools.pairwise(edges)]
    asking = asked(template, *(server(f"m{n}", share) for n, share in enumerate(shares)))
    assert [sum(one.takes(row(name)) for one in asking.respondents) for name in names] == [1] * len(names)


def test_a_whole_share_is_every_row_and_larger_sums_overlap(template: Path) -> None:
    found = parts(asked(template, server("all"), server("most", 0.7), server("more", 0.7)))
    assert found["all"] == IDS
    both = Counter([*found["most"], *found["more"]])
    assert set(both) == set(IDS)
    assert sum(number == 2 for number in both.values()) / len(IDS) == pytest.approx(0.4, abs=0.04)


@given(shares=st.lists(st.integers(1, 999), max_size=5), n=st.integers(1, 3), place=st.integers(0, 5))
def test_another_teacher_changes_no_key_of_the_first(template: Path, shares: list[int], n: int, place: int) -> None:
    alone = asked(template, server("first"), n=n, temperature=0.5)
    others = [server(f"m{number}", share / 1000) for number, share in enumerate(shares)]
    teachers = [*others[:place], server("first"), *others[place:]]
    together = asked(template, *teachers, n=n, temperature=0.5)
    for prompt in (row("r1"), row("r2", "other")):
        own = [request.key for one, request in all_requests(together, prompt) if one.name == "first"]
        assert own == [request.key for request in requests(alone, prompt)]


def test_neither_name_nor_share_nor_price_is_in_the_key(template: Path) -> None:
    other = asked(template, server(share=0.5, name="x", price={"hour": 2.0}), server("n", 0.5))
    assert list(requests_of(other, other.respondents[0], row())) == requests(asked(template))


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        ([server("m"), server("m")], r"stages\.sample\.teacher\[1\]\.name: m: two teachers have this name"),
        ([server("m"), server("n"), server("o", name="m")], r"teacher\[2\]\.name: m: two teachers have this name"),
        ([server("m", 0.5), server("n", 0.4)], r"the shares add up to 0\.9, so some rows would have no teacher"),
        ([server("m", 0.5), server("n", 0.4999)], r"the shares add up to 0\.9999, so"),
    ],
)
def test_teachers_that_do_not_go_together(template: Path, teachers: list[Server], message: str) -> None:
    with pytest.raises(InputError, match=message):
        asked(template, *teachers)
    names = [one.model_copy(update={"name": f"t{number}", "share": 1.0}) for number, one in enumerate(teachers)]
    assert [one.name for one in asked(template, *names).respondents] == [one.name for one in names]


# Samples


def test_samples_have_seeds_of_their_own_and_the_first_may_be_greedy(template: Path) -> None:
    found = requests(asked(template, n=4, temperature=0.7, top_p=0.9, seed=11, greedy_first=True))
    assert [(request.sample, request.seed) for request in found] == [(0, 11), (1, 12), (2, 13), (3, 14)]
    assert [request.sampling["temperature"] for request in found] == [0.0, 0.7, 0.7, 0.7]
    assert [request.sampling["top_p"] for request in found] == [1.0, 0.9, 0.9, 0.9]
    assert len({request.key for request in found}) == len({request.family for request in found}) == 4
    usual = requests(asked(template, n=4, temperature=0.7, top_p=0.9, seed=11))
    assert [request.key for request in usual[1:]] == [request.key for request in found[1:]]  # they need no asking anew
    assert usual[0].key != found[0].key


@pytest.mark.parametrize("greedy_first", [False, True])
def test_equal_samples_are_refused(template: Path, greedy_first: bool) -> None:
    with pytest.raises(InputError, match=r"sample\.n: at temperature 0 all samples are the same"):
        asked(template, n=2, greedy_first=greedy_first)


# Keys

SAMPLINGS = st.fixed_dictionaries(
    {},
    optional={
        "n": st.integers(1, 3),
        "temperature": st.sampled_from([0.5, 0.7]),
        "top_p": st.sampled_from([0.9, 1.0]),
        "stop": st.sampled_from([[], ["a"], ["a", "b"], ["ab"]]),
        "seed": st.integers(0, 2),
        "max_tokens": st.sampled_from([20, 21]),
        "greedy_first": st.booleans(),
        "structured": st.sampled_from(["rationale_then_label", "label", "json"]),
        "logprobs": st.booleans(),
        "soft_labels": st.sampled_from([None, SoftLabels(), SoftLabels(after="")]),
        "sampling": st.sampled_from([None, {}, {"top_k": 4}, {"top_k": 5}, {"min_p": 4}]),
        "labels": st.sampled_from([["a", "b"], ["a", "c"], ["a", "b", "c"]]),
        "teacher": st.sampled_from([[server()], [server("n")], [server(), server("n")], [server(name="other name")]]),
    },
)
PROMPTS = st.builds(
    lambda text, choices: row(text=text, choices=choices),
    st.sampled_from(["a", "b", "{{ text }}"]),
    st.sampled_from([None, ["x"], ["x", "y"]]),
)


def told(asking: Asking, prompt: Prompt) -> dict[str, bytes]:
    """Key -> all that can change the answer."""
    return {
        request.key: canonical_json(
            {
                "identity": one.identity,
                "messages": request.messages.model_dump() if request.messages is not None else None,
                "sampling": dict(request.sampling),
                "seed": request.seed,
                "sample": request.sample,
            }
        )
        for one, request in all_requests(asking, prompt)
    }


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=SAMPLINGS, second=SAMPLINGS, prompts=st.tuples(PROMPTS, PROMPTS))
def test_two_requests_have_one_key_where_nothing_differs_and_only_there(
    template: Path, first: dict[str, Any], second: dict[str, Any], prompts: tuple[Prompt, Prompt]
) -> None:
    usual = {"temperature": 0.6, "labels": ["a", "b"]}
    found = [
        told(asked(template, **(usual | changed)), prompt)
        for changed, prompt in zip((first, second), prompts, strict=True)
    ]
    for key, asked_for in found[0].items():
        assert all((key == other) == (asked_for == theirs) for other, theirs in found[1].items())
    assert all(len(set(one.values())) == len(one) for one in found)


def test_max_tokens_changes_the_key_and_not_the_family(template: Path) -> None:
    (short,), (long,) = (requests(asked(template, max_tokens=limit)) for limit in (20, 2000))
    assert short.key != long.key
    assert short.family == long.family


def test_a_manifest_says_what_was_asked(template: Path, tmp_path: Path) -> None:
    """The same requests again from what a manifest holds: resolved settings as JSON, and the teachers' identities."""
    teachers = [server("a", 0.5), server("b", 0.5), server("c", name="third")]
    given = {"n": 2, "temperature": 0.5, "structured": "json", "soft_labels": SoftLabels(), "labels": ["x", "y"]}
    asking = asked(template, *teachers, **given)
    defaults = {"greedy_first": False, "top_p": 1.0, "max_tokens": 256, "stop": [], "seed": 0, "regex": None}
    settings = {**defaults, "sampling": None, "logprobs": False, "rationalise": False, **given}
    settings |= {
        "teacher": [one.model_dump(mode="json") for one in teachers],
        "soft_labels": {"after": "So the answer is "},
    }
    identities = {f"teacher {one.name}": one.identity for one in asking.respondents}
    again = from_manifest(json.loads(json.dumps(settings)), identities, asking.template, None)
    for id in IDS[:50]:
        assert [request.key for request in requests(again, row(id))] == [
            request.key for request in requests(asking, row(id))
        ]


# Forms of answers


def structured(template: Path, prompt: Prompt | None = None, **given: Any) -> Any:
    (request,) = requests(asked(template, **given), prompt)
    return request.sampling["structured"]


SAYABLE = st.text(alphabet=string.ascii_letters + string.digits + " .,'-é中", min_size=10, max_size=120).filter(
    lambda text: text == " ".join(text.split()) and "So the answer is" not in text
)
PATTERN = r"(?s)(?P<rationale>.*?)\s*So the answer is (?P<label>.+?)\.?"


@given(rationale=SAYABLE, label=st.sampled_from(LABELS), own=st.booleans())
def test_rationale_then_label_is_what_the_documented_pattern_reads(
    template: Path, rationale: str, label: str, own: bool
) -> None:
    prompt = row(choices=LABELS if own else None)  # the row's own choices, or the task's labels
    given = {"labels": ["other"], "choices": "options"} if own else {"labels": LABELS}
    regex = structured(template, prompt, structured="rationale_then_label", **given)["regex"]
    text = f"{rationale} So the answer is {label}."
    assert re.fullmatch(regex, text)
    assert not re.fullmatch(regex, text.replace(f"{label}.", "something else."))
    assert not re.fullmatch(regex, text.replace(" ", "\n", 1))
    assert not re.fullmatch(regex, text + " And more.")
    assert not re.fullmatch(regex, f"Short. So the answer is {label}.")
    (found,) = parse([response(text)], pattern=PATTERN, labels=LABELS)
    assert isinstance(found, Example)
    assert (found.label, found.rationale) == (label, rationale)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_the_form_allows_ends_in_a_label(template: Path, data: st.DataObject) -> None:
    regex = structured(template, structured="rationale_then_label", labels=LABELS)["regex"]
    text = data.draw(st.from_regex(regex.replace("[^\\n]{", "[a-z ]{"), fullmatch=True))
    assert re.fullmatch(regex, text)
    assert any(text.endswith(f" So the answer is {label}.") for label in LABELS)


@pytest.mark.slow  # xgrammar brings torch along
def test_the_engines_grammar_agrees(template: Path) -> None:
    xgrammar = pytest.importorskip("xgrammar", exc_type=ImportError)
    accepts = pytest.importorskip("xgrammar.testing", exc_type=ImportError)._is_grammar_accept_string
    for form in (
        {"structured": "rationale_then_label"},
        {"regex": "The text is so, by and large. So the answer is {labels}[.]"},
    ):
        regex = structured(template, labels=LABELS, **form)["regex"]
        grammar = xgrammar.Grammar.from_regex(regex)
        for label in [*LABELS, "another"]:
            text = f"The text is so, by and large. So the answer is {label}."
            assert accepts(grammar, text) == (label in LABELS) == bool(re.fullmatch(regex, text)), label
    schema = structured(template, structured="json", labels=LABELS)["json"]
    grammar = xgrammar.Grammar.from_json_schema(json.dumps(schema))
    assert accepts(grammar, json.dumps({"rationale": "So.", "label": LABELS[1]}))
    assert not accepts(grammar, json.dumps({"rationale": "So.", "label": "another"}))
    assert not accepts(grammar, json.dumps({"label": LABELS[1], "rationale": "So."}))  # the reason comes first


def test_a_label_alone_is_one_of_the_choices(template: Path) -> None:
    assert structured(template, structured="label", labels=LABELS) == {"choice": LABELS}
    own = structured(template, row(choices=["river", "bank"]), structured="label", choices="options")
    assert own == {"choice": ["river", "bank"]}
    (found,) = parse([response(LABELS[1])], pattern="(?P<label>.+)", labels=LABELS, targets=["label"])
    assert isinstance(found, Example)
    assert found.label == LABELS[1]


@pytest.mark.parametrize("labels", [LABELS, None])
def test_json_is_an_object_with_rationale_and_label(template: Path, labels: list[str] | None) -> None:
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    schema = structured(template, structured="json", labels=labels)["json"]
    validator.check_schema(schema)
    good = {"rationale": "It speaks of soup.", "label": LABELS[1]}
    assert validator(schema).is_valid(good)
    bad = [
        {**good, "more": 1},
        {"label": LABELS[1]},
        {"rationale": "So."},
        {**good, "rationale": ""},
        {**good, "label": 3},
        [],
    ]
    bad += [{**good, "label": "another"}] if labels else [{**good, "label": ""}]
    assert [validator(schema).is_valid(answer) for answer in bad] == [False] * len(bad)
    (found,) = parse([response(json.dumps(good))], format="json", labels=labels)
    assert isinstance(found, Example)
    assert (found.label, found.rationale) == (LABELS[1], "It speaks of soup.")


def test_rows_choices_take_the_place_of_the_labels(template: Path) -> None:
    asking = asked(template, structured="json", choices="options")
    found = [requests(asking, row(choices=choices))[0] for choices in (["a", "b"], ["c"])]
    shown: list[Any] = [request.sampling["structured"] for request in found]
    assert [one["json"]["properties"]["label"]["enum"] for one in shown] == [["a", "b"], ["c"]]
    assert found[0].key != found[1].key


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"structured": "label"}, "label needs task.labels or task.choices"),
        ({"structured": "rationale_then_label"}, "rationale_then_label needs task.labels"),
        ({"structured": "json", "regex": "a"}, "structured already says what answers look like"),
        ({"soft_labels": SoftLabels()}, "soft_labels: needs task.labels"),
        ({"rationalise": True}, "rationalise: needs task.gold"),
        ({"rationalise": True, "gold": "topic"}, "rationalise: the prompt does not use the variable 'gold'"),
        ({"gold": "text"}, "task.prompt: the prompt shows the column 'text', which is task.gold; leave it out, or set"),
        ({"sampling": {"stop": ["a"]}}, "set stages.sample.stop instead"),
    ],
)
def test_settings_that_do_not_go_together(template: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        asked(template, **changed)


# Rationalise


def shown(request: Request) -> str:
    assert isinstance(request.messages, Messages)
    return request.messages.messages[-1].content


@pytest.mark.parametrize("variable", ["gold", "topic"])
def test_rationalise_shows_the_true_label(tmp_path: Path, variable: str) -> None:
    path = tmp_path / "why.jinja"
    path.write_text(f"{{% block user %}}{{{{ text }}}}: why {{{{ {variable} }}}}?{{% endblock %}}")
    prompt = row(gold="Sports ", columns={"text": "Late goal", "topic": "Sports "})
    (request,) = requests(asked(path, rationalise=True, gold="topic"), prompt)
    assert shown(request) == "Late goal: why Sports ?"
    assert "Sports " in request.row_texts
    with pytest.raises(InputError, match=r"train\.jsonl:0: has no true label"):
        requests(asked(path, rationalise=True, gold="topic"), row(columns={"text": "a", "topic": "b"}))


def test_without_rationalise_the_true_label_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "why.jinja"
    path.write_text("{% block user %}{{ text }}: why {{ gold }}?{% endblock %}")
    prompt = row(gold="sports", columns={"text": "Late goal", "topic": "sports"})
    with pytest.raises(InputError, match="gold: no such column in .*; set stages.sample.rationalise"):
        requests(asked(path, gold="topic"), prompt)
    with pytest.raises(InputError, match="task.prompt: the prompt shows the column 'gold'"):
        asked(path, gold="gold")
    (tmp_path / "part.jinja").write_text("{{ topic }}")
    path.write_text("{% block user %}{{ text }}{% if text %}{% include 'part.jinja' %}{% endif %}{% endblock %}")
    with pytest.raises(InputError, match="task.prompt: the prompt shows the column 'topic'"):
        asked(path, gold="topic")
    path.write_text(
        "{% block user %}{{ labels }}{{ text }}{% endblock %}"
    )  # the task's labels, not the column of that name
    assert requests(asked(path, gold="labels", labels=["a"]), prompt)


def test_recorded_completions_cannot_be_told_anything(tmp_path: Path, template: Path) -> None:
    (tmp_path / "said.jsonl").write_text("")
    recorded = Replay(backend="replay", completions=tmp_path / "said.jsonl")
    with pytest.raises(InputError, match="recorded completions are shown no label"):
        asked(template, server(), recorded, rationalise=True, gold="topic")
    with pytest.raises(InputError, match="recorded completions are shown no examples"):
        asked(None, recorded, few_shot=FewShot(path=tmp_path / "said.jsonl"), input="{{ text }}")


# A run


def says(topic: str) -> Any:
    def reply(body: dict[str, Any]) -> Reply:
        if "keeper1 " in body["messages"][-1]["content"] and topic == "sports":
            return 400, {}, b"no"
        return completion(f"It speaks of something like {topic}, at {body['seed']}. So the answer is {topic}.")

    return reply


def test_three_teachers_from_source_to_report(project: Path) -> None:
    """Two servers and a recording: every vote says whose it is, and every request is accounted for."""
    folder = project.parent
    (folder / "topics.jinja").write_text("{% block user %}{{ text }}{% endblock %}")
    with chat_server(says("sports")) as first, chat_server(says("food")) as second:
        teachers = f"""teacher:
      - {{backend: server, base_url: '{first.url}', model: first-model, share: 0.5, retries: 0, revision: '1'}}
      - {{backend: server, base_url: '{second.url}', model: two, name: second-name, share: 0.5, revision: '2'}}
      - {{backend: replay, completions: completions.jsonl, name: old-recording}}
    n: 2
    temperature: 0.5
    greedy_first: true
    seed: 3"""
        text = project.read_text().replace('  input: "{{ text }}"', '  input: "{{ text }}"\n  prompt: topics.jinja')
        project.write_text(text.replace("teacher: {backend: replay, completions: completions.jsonl}", teachers))
        assert projects.check(project).startswith("ready: 29 inputs")
        config = load(project)
        run(config)
    sample, parsed, ingest = (outputs.current(config.run, stage) for stage in ("sample", "parse", "ingest"))
    assert sample is not None
    assert parsed is not None
    assert ingest is not None
    manifest = outputs.read_manifest(sample)
    responses = list(outputs.read(sample, Response))
    drops = [Drop.read(line) for line in (sample / "dropped.jsonl").read_bytes().splitlines()]
    prompts = [prompt.id for prompt in outputs.read(ingest, Prompt)]
    assert len(prompts) == 29

    # Conservation, and the teachers' own figures
    names = ["first-model", "second-name", "old-recording"]
    per_teacher = Counter(response.teacher for response in responses)
    failed = Counter(str(drop.evidence["teacher"]) for drop in drops)
    assert per_teacher["first-model"] + failed["first-model"] + per_teacher["second-name"] == 29 * 2
    assert per_teacher["old-recording"] + failed["old-recording"] == 29 * 2
    assert min(per_teacher["first-model"], per_teacher["second-name"]) > 8
    assert manifest.counts.rows_in == 29 * 4 == len(responses) + len(drops)
    assert len(first.requests) == per_teacher["first-model"] + failed["first-model"]
    assert len(second.requests) == per_teacher["second-name"]
    details: Any = manifest.details["teachers"]
    assert {name: (details[name]["requests"], details[name]["responses"]) for name in names} == {
        name: (per_teacher[name] + failed[name], per_teacher[name]) for name in names
    }
    assert failed["old-recording"] == 29  # it has one sample a row
    assert set(manifest.identities) == {f"teacher {name}" for name in names}
    assert {body["temperature"] for body in second.requests if body["seed"] == 3} == {0.0}
    assert {body["temperature"] for body in second.requests if body["seed"] == 4} == {0.5}

    # Ids are numbered through a row's teachers, and every vote says whose it is
    by_id = {response.id: response for response in responses}
    assert len(by_id) == len(responses)
    said = {"first-model": "sports", "second-name": "food"}
    votes = 0
    for example in outputs.read(parsed, Example):
        numbers = [int(vote.response.rpartition("#")[2]) for vote in example.votes]
        assert numbers == sorted(set(numbers))
        for vote in example.votes:
            votes += 1
            assert (vote.teacher, vote.request) == (by_id[vote.response].teacher, by_id[vote.response].request)
            assert vote.label == said.get(vote.teacher, vote.label)
        assert {"first-model", "second-name"} & {vote.teacher for vote in example.votes}
    assert votes == sum("So the answer is" in response.text for response in responses)

    # Every response can be traced to the prompt that was sent
    for number, teacher in ((0, {"first-model", "second-name"}), (2, {"old-recording"})):
        found = trace(config.run, f"r1#{number}")
        proofs = [event for event in found if event.verdict == "prompt"]
        assert len(proofs) == sum(response.prompt == "r1" for response in responses)
        assert all("its key is the request's" in event.place for event in proofs)
        assert by_id[f"r1#{number}"].teacher in teacher
    stored = [event.row for event in trace(config.run, "r1") if event.verdict == "stored"]
    assert {event["teacher"] for event in stored} == {by_id["r1#0"].teacher, "old-recording"}

    page = report.build(config.run).read_text()
    assert all(name in page for name in names)
