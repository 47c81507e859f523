"""Budgets: never passed, whatever a teacher takes, and gone on with until all that fits is answered; and what is said beforehand of it."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import embedded, results, sample, spending, teachers
from pipeline.config import load
from pipeline.files import InputError, RunError
from pipeline.prompts import Message, Messages
from pipeline.records import Drop, Prompt
from pipeline.responses import read_store
from pipeline.runner import run
from pipeline.spending import Budget, Meter, Purse, at_most, cost, prompt_bound
from pipeline.teachers import Answer, Failure, Price, Request
from tests.chat_server import ChatServer, Reply, chat_server


def request(number: int, text: str = "", max_tokens: int = 8) -> Request:
    messages = Messages(messages=(Message(role="user", content=text),), assistant_prefix="")
    key = f"{number:032x}"
    return Request(key, key, "r", key, 0, 0, {"max_tokens": max_tokens}, messages)


class Clock:
    """A clock that stands still until it is told to go on."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


PRICES = st.one_of(
    st.none(),
    st.builds(
        Price,
        hour=st.sampled_from([0.0, 0.7, 3600.0]),
        prompt_tokens=st.floats(0, 1000),
        completion_tokens=st.floats(0, 1000),
    ),
)
WANTED = st.lists(
    st.tuples(st.integers(0, 50), st.integers(1, 50), st.floats(0, 1), st.floats(0, 1), st.booleans()), max_size=30
)


@settings(max_examples=200)
@given(
    wanted=WANTED,
    price=PRICES,
    tokens=st.none() | st.integers(1, 600),
    usd=st.none() | st.floats(1e-4, 0.3),
    at_once=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_a_budget_is_never_passed_and_runs_finish_all_that_fits(
    wanted: list[tuple[int, int, float, float, bool]],
    price: Price | None,
    tokens: int | None,
    usd: float | None,
    at_once: int,
    seed: int,
) -> None:
    """A teacher that takes some requests at once and answers in any order, each at no more than it can take; some of them fail."""
    if tokens is None and usd is None:
        tokens = 100
    if price is not None and price.hour:
        price = price.model_copy(update={"hour": 0.0})  # time is not set aside; it has its own test
    budget, chance = Budget(tokens=tokens, usd=usd), random.Random(seed)
    bounds = {f"{place:032x}": one for place, one in enumerate(wanted)}
    left = {name: request(place, max_tokens=one[1]) for place, (name, one) in enumerate(bounds.items())}
    fits = {
        name
        for name, (prompt, most, *_) in bounds.items()
        if (tokens is None or prompt + most <= tokens) and (usd is None or cost(price, prompt, most, 0.0) <= usd)
    }
    calls = 0
    while fits & left.keys():
        calls += 1
        meter = Meter(price)
        purse = Purse(budget, {"other": Meter(Price(hour=1)), "m": meter})
        waiting = list(left.values())
        under_way: list[Request] = []
        settled = 0
        while True:
            while waiting and len(under_way) < at_once:
                if purse.admits(waiting[0], meter, lambda one: bounds[one.key][0]):
                    under_way.append(waiting.pop(0))
                elif purse.never(waiting[0], meter, lambda one: bounds[one.key][0]):
                    assert waiting.pop(0).key not in fits
                else:
                    assert purse.refused
                    break
            if not under_way:
                break
            done = under_way.pop(chance.randrange(len(under_way)))
            prompt, most, read, written, failed = bounds[done.key]
            took = round(prompt * read), round(most * written)
            meter.add(Failure("refused", {}, *took) if failed else Answer("", "stop", *took))
            purse.settle(done)
            del left[done.key]
            settled += 1
            assert tokens is None or meter.prompt_tokens + meter.completion_tokens <= tokens
            assert usd is None or meter.cost <= usd
            assert purse.used is not None
            assert 0 <= purse.used <= 1
        assert settled, "a call with a fresh budget goes on"
    assert calls <= len(wanted)
    assert not fits & left.keys()


def test_nothing_drifts_over_many_requests() -> None:
    """A budget of exactly what twenty thousand requests take holds each of them, and then not one token more."""
    price = Price(prompt_tokens=0.1, completion_tokens=0.3)
    number = 20_000
    meter = Meter(price)
    purse = Purse(Budget(usd=cost(price, 3 * number, 7 * number, 0.0), tokens=10 * number), {"m": meter})
    for place in range(number):
        one = request(place, max_tokens=7)
        assert purse.admits(one, meter, lambda _: 3)
        if place >= 10:
            meter.add(Answer("", "length", 3, 7))
            purse.settle(request(place - 10, max_tokens=7))
    assert not purse.admits(request(number, max_tokens=1), meter, lambda _: 0)
    assert purse.refused == f"{10 * number:,} tokens"


def test_hours_leave_room_for_a_request_as_long_as_the_longest_yet() -> None:
    clock, meter = Clock(), Meter()
    purse = Purse(Budget(hours=1), {"m": meter}, clock)
    assert purse.admits(request(0), meter, None)
    clock.now = 600
    purse.settle(request(0))
    clock.now = 2999
    assert purse.admits(request(1), meter, None)
    assert purse.used == pytest.approx(2999 / 3600)
    clock.now = 3001
    assert not purse.admits(request(2), meter, None)
    assert purse.refused == "1 hours"
    assert not purse.never(request(2), meter, None)


def test_paid_hours_count_against_the_money() -> None:
    clock, meter = Clock(), Meter(Price(hour=36, completion_tokens=1000))
    purse = Purse(Budget(usd=10), {"m": meter}, clock)
    assert purse.admits(request(0, max_tokens=1), meter, None)
    clock.now = meter.seconds = 100
    purse.settle(request(0))
    meter.seconds = 800
    assert purse.admits(request(1, max_tokens=900), meter, None)  # 8 for the time, 1 for its length, 0.9 for its tokens
    assert not purse.admits(request(2, max_tokens=101), meter, None)
    assert purse.refused == "10 usd"


@given(text=st.text(), most=st.integers(1, 500), tokens=st.none() | st.integers(0, 500))
def test_the_most_a_request_can_take(text: str, most: int, tokens: int | None) -> None:
    """Without a tokenizer bytes stand for tokens."""
    count = None if tokens is None else lambda _: tokens
    plain = request(0, text, most)
    read = prompt_bound(plain, count)
    assert read == tokens if tokens is not None else read > len(text.encode())
    assert at_most(plain, read) == (read, most)


def test_recorded_completions_take_nothing() -> None:
    recorded = Request("k", "f", "r", "d", 0, 0, {"max_tokens": 256}, None)
    assert at_most(recorded, prompt_bound(recorded, None)) == (0, 0)


def usage(prompt_tokens: int, completion_tokens: int, text: str = "So the answer is food.") -> Reply:
    body = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
    }
    return 200, {}, json.dumps(body).encode()


class Paid:
    """Answers by the numbers in the text, ``<read> <written>``, and adds up what that takes; a text with ``!`` is refused."""

    def __init__(self) -> None:
        self.tokens = 0

    def __call__(self, body: dict[str, Any]) -> Reply:
        text = body["messages"][-1]["content"]
        if "!" in text:
            return 400, {}, b"no"
        read, written = (int(word) for word in text.split()[1:3])
        self.tokens += read + written
        return usage(read, written)


def rows(texts: list[str]) -> list[Prompt]:
    return [
        Prompt(id=f"r{n}", source=f"t:{n}", input=text, gold=None, choices=None, columns={"text": text})
        for n, text in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def paid() -> Iterator[tuple[Paid, ChatServer]]:
    reply = Paid()
    with chat_server(reply) as chat:
        yield reply, chat


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    wanted=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 30), st.booleans()), min_size=1, max_size=8),
    limit=st.integers(80, 300),
    in_money=st.booleans(),
    concurrency=st.integers(1, 5),
)
def test_any_budget_through_the_store(
    tmp_path_factory: pytest.TempPathFactory,
    paid: tuple[Paid, ChatServer],
    wanted: list[tuple[int, int, bool]],
    limit: int,
    in_money: bool,
    concurrency: int,
) -> None:
    """Over HTTP: no call takes more than its budget, no answer is paid twice, and calls one after the other answer all."""
    reply, chat = paid
    folder = tmp_path_factory.mktemp("run")
    (folder / "ask.jinja").write_text("{% block user %}{{ text }}{% endblock %}")
    texts = [f"n{n} {read} {written}{' !' if bad else ''}" for n, (read, written, bad) in enumerate(wanted)]
    teacher = teachers.Server(
        backend="server", base_url=chat.url, model="m", concurrency=concurrency, retries=0,
        price=Price(prompt_tokens=1e6, completion_tokens=1e6),
    )  # fmt: skip
    asking = {
        "teacher": [teacher],
        "prompt": folder / "ask.jinja",
        "max_tokens": 30,
        "budget": Budget(usd=limit) if in_money else Budget(tokens=limit),
    }
    before = len(chat.requests)
    for _ in range(len(texts) + 1):
        reply.tokens = 0
        meters: dict[str, Meter] = {}
        try:
            found = list(sample.answers(rows(texts), responses=folder / "store", meters=meters, **asking))
            break
        except RunError as error:
            assert "run again to go on with a fresh budget" in str(error)
            assert meters["m"].requests
        finally:
            assert reply.tokens <= limit
            assert reply.tokens == meters["m"].prompt_tokens + meters["m"].completion_tokens
    else:
        pytest.fail("it does not come to an end")
    assert [isinstance(row, Drop) for row in found] == [bad for _, _, bad in wanted]
    stored = [record.key for _, _, record in read_store(folder / "store")]
    assert len(stored) == len(set(stored)) == sum(not bad for _, _, bad in wanted)
    answered = [body for body in chat.requests[before:] if "!" not in body["messages"][-1]["content"]]
    assert len(answered) == len(stored)


def test_what_no_budget_holds_is_named_and_all_else_is_answered(tmp_path: Path) -> None:
    (tmp_path / "ask.jinja").write_text("{% block user %}{{ text }}{% endblock %}")
    with chat_server(Paid()) as chat:
        asking = {
            "teacher": [teachers.Server(backend="server", base_url=chat.url, model="m")],
            "prompt": tmp_path / "ask.jinja",
            "max_tokens": 10,
            "budget": Budget(tokens=100),
        }
        texts = ["a 1 1", "b 1 1 " + "x" * 100, "c 1 1"]
        with pytest.raises(RunError, match="1 requests can each take more than the whole budget"):
            list(sample.answers(rows(texts), responses=tmp_path / "store", **asking))
        assert len(list(read_store(tmp_path / "store"))) == 2
        asking["budget"] = Budget(tokens=200)
        assert len(list(sample.answers(rows(texts), responses=tmp_path / "store", **asking))) == 3
        assert len(chat.requests) == 3


Project = Callable[[str, str], Path]


@pytest.fixture
def priced(project: Path) -> Project:
    """Gives the small project's settings with a server as the teacher: its address, and further settings of the stage."""

    def write(teacher: str, more: str) -> Path:
        (project.parent / "prompt.jinja").write_text("{% block user %}{{ text }}{% endblock %}")
        text = project.read_text().replace(
            "{backend: replay, completions: completions.jsonl}", f"{teacher}\n    {more}"
        )
        project.write_text(text.replace("  labels:", "  prompt: prompt.jinja\n  labels:"))
        return project

    return write


PRICE = "price: {prompt_tokens: 1000, completion_tokens: 2000}"
SAID = "It speaks of this and that. So the answer is food."


@pytest.mark.parametrize(
    ("budget", "tokens", "money"),
    [
        ("{tokens: 400}", 400, 99),
        ("{usd: 0.5}", 9999, 0.5),
        ("{usd: 0.5, tokens: 300}", 300, 0.5),
        ("{usd: 900, hours: 100}", 9999, 900),
    ],
)
def test_a_run_stops_at_its_budget_and_the_next_goes_on(
    priced: Project, budget: str, tokens: int, money: float
) -> None:
    with chat_server(lambda body: usage(7, 11, SAID)) as chat:
        teacher = f"{{backend: server, base_url: '{chat.url}', model: m, concurrency: 4, {PRICE}}}"
        path = priced(teacher, f"max_tokens: 30\n    budget: {budget}")
        store = path.parent / "runs/small/responses"
        calls = 0
        while True:
            calls += 1
            before = len(chat.requests)
            try:
                outcomes = run(load(path), until="shard")
                break
            except RunError as error:
                asked = len(chat.requests) - before
                assert 0 < asked * 18 <= tokens
                assert asked * (7 * 1000 + 11 * 2000) / 1e6 <= money
                assert f"{asked:,} were asked now ({asked * 18:,} tokens, cost {asked * 0.029:,.4g})" in str(error)
                assert len(list(read_store(store))) == len(chat.requests)
        assert len(chat.requests) == len(list(read_store(store))) == 29
        assert (calls > 1) == ("hours" not in budget)
        sampled = next(outcome for outcome in outcomes if outcome.stage == "sample")
        found = results.sampling(sampled.folder)["m"]
        assert found["asked"]["requests"] == 29  # in all calls together
        assert found["asked"]["cost"] == pytest.approx(29 * 0.029)
        assert found["result"] == {
            "requests": 29,
            "responses": 29,
            "answers": 29,
            "prompt_tokens": 29 * 7,
            "completion_tokens": 29 * 11,
            "failures": {},
            "cost_of_tokens": pytest.approx(29 * 0.029),
        }


def test_no_time_left_asks_nothing_and_a_later_run_does(priced: Project) -> None:
    with chat_server(lambda body: usage(7, 11, SAID)) as chat:
        path = priced(f"{{backend: server, base_url: '{chat.url}', model: m}}", "budget: {hours: 1.0e-12}")
        with pytest.raises(RunError, match="the budget of 1e-12 hours does not hold another request; 0 were asked now"):
            run(load(path))
        assert chat.requests == []
        run(load(path, ["sample.budget={hours: 1}"]))
        assert len(chat.requests) == 29


def test_a_plan_says_what_is_expected_and_what_the_budget_holds(priced: Project) -> None:
    """First from nothing, then from what the stopped run left: its answers' mean length, its speed."""
    with chat_server(lambda body: usage(7, 11, SAID)) as chat:
        teacher = f"{{backend: server, base_url: '{chat.url}', model: m, concurrency: 1, {PRICE}}}"
        path = priced(teacher, "max_tokens: 30\n    budget: {tokens: 400}")
        first = results.estimate(load(path))
        assert (first.to_ask, first.stored, first.prompt_tokens_exact) == (29, 0, False)
        assert first.completion_tokens == first.completion_tokens_at_most == 29 * 30
        assert first.teachers[0].foreseen == 0
        assert (first.seconds, first.cost) == (None, pytest.approx(first.prompt_tokens / 1000 + 2 * 0.87))
        assert first.budget is not None
        assert first.budget.runs is not None
        assert first.budget.runs > 1
        with pytest.raises(RunError):
            run(load(path))
        asked = len(chat.requests)
        then = results.estimate(load(path))
        assert (then.to_ask, then.stored) == (29 - asked, asked)
        assert then.completion_tokens == then.to_ask * 11
        assert then.completion_tokens_at_most == then.to_ask * 30
        assert then.teachers[0].foreseen == then.to_ask
        assert then.seconds is not None
        assert then.cost_at_most is not None
        assert then.cost is not None
        assert 0 < then.cost < then.cost_at_most
        changed = results.estimate(load(path, ["sample.seed=9", "sample.temperature=0.5"]))
        assert changed.completion_tokens == 29 * 11  # of another sampling, but of the same teacher
        longer = results.estimate(load(path, ["sample.max_tokens=5"]))
        assert longer.completion_tokens == 29 * 5  # never more than max_tokens
        nothing = results.estimate(load(path, ["sample.budget={tokens: 20}"]))
        assert nothing.budget is not None
        assert (nothing.budget.requests, nothing.budget.runs) == (0, None)
        timed = results.estimate(load(path, ["sample.budget={hours: 100}", "sample.teacher.model=other"]))
        assert timed.budget is not None
        assert timed.budget.not_reckoned == ["hours"]


def test_the_tokens_of_a_plan_are_those_that_are_then_used(priced: Project) -> None:
    """With the model's own tokenizer; the server counts each prompt by itself, as it came over the wire."""
    try:
        folder = embedded.folder()
    except InputError as error:
        pytest.skip(str(error))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def reply(body: dict[str, Any]) -> Reply:
        found = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=True)
        return usage(len(found["input_ids"]), 11, SAID)

    with chat_server(reply) as chat:
        teacher = f"{{backend: server, base_url: '{chat.url}', model: m, tokenizer: '{folder}'}}"
        path = priced(teacher, "n: 2\n    temperature: 0.5\n    max_tokens: 30\n    budget: {tokens: 2000}")
        inputs = path.parent / "inputs.jsonl"
        first = inputs.read_bytes().splitlines(keepends=True)[0]
        inputs.write_bytes(inputs.read_bytes() + first.replace(b'"r0"', b'"again"'))  # the same prompt: asked once
        config = load(path)
        planned = results.estimate(config)
        assert planned.prompt_tokens_exact
        assert planned.to_ask == 29 * 2
        spent = 0
        while True:
            left = results.estimate(config)
            assert left.prompt_tokens == planned.prompt_tokens - spent
            try:
                outcomes = run(config, until="sample")
                break
            except RunError:
                spent = sum(record.prompt_tokens for _, _, record in read_store(config.run / "responses"))
        assert spent, "the budget stopped it at least once"
        found = results.sampling(outcomes[-1].folder)["m"]
        assert found["result"]["prompt_tokens"] == found["asked"]["prompt_tokens"] == planned.prompt_tokens
        assert (found["result"]["requests"], found["result"]["answers"]) == (60, 58)
        assert len(chat.requests) == 58


def test_several_teachers_each_have_their_figures(priced: Project) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        return usage(7, 11, SAID) if body["model"] == "a" else (400, {}, b"no")

    with chat_server(reply) as chat:
        one = f"{{backend: server, base_url: '{chat.url}', model: a, {PRICE}}}"
        two = f"{{backend: server, base_url: '{chat.url}', model: b, name: '[red]b', share: 0.5}}"
        rest = "{backend: replay, completions: completions.jsonl, share: 0.5}"
        path = priced(f"[{one}, {two}, {rest}]", "max_tokens: 30\n    budget: {usd: 50}")
        planned = results.estimate(load(path))
        assert [teacher.teacher for teacher in planned.teachers] == ["a", "[red]b", "recorded"]
        assert sum(teacher.to_ask for teacher in planned.teachers) == planned.to_ask == 58
        assert planned.teachers[2].completion_tokens_at_most == 0
        assert planned.cost == planned.teachers[0].cost
        assert planned.budget is not None
        assert planned.budget.runs == 1
        found = results.sampling(run(load(path), until="sample")[-1].folder)
    refused = planned.teachers[1].to_ask
    assert found["[red]b"]["result"]["failures"] == found["[red]b"]["asked"]["failures"] == {"refused": refused}
    assert found["a"]["asked"]["answers"] == found["a"]["result"]["responses"] == 29
    assert found["recorded"]["result"]["requests"] == 29 - refused
    assert found["recorded"]["asked"]["cost"] == 0


def test_an_answer_from_the_store_costs_nothing(priced: Project) -> None:
    with chat_server(lambda body: usage(7, 11, SAID)) as chat:
        path = priced(f"{{backend: server, base_url: '{chat.url}', model: m, {PRICE}}}", "budget: {tokens: 2000}")
        run(load(path, ["sample.max_tokens=30"]), until="sample")
        outcome = run(load(path, ["sample.max_tokens=40"]), until="sample")[-1]
        assert outcome.ran
        found = results.sampling(outcome.folder)["m"]
        assert (found["asked"], found["result"]["cost_of_tokens"]) == (None, pytest.approx(29 * 0.029))
        assert len(chat.requests) == 29


def test_a_meter_adds_up_answers_failures_and_time() -> None:
    meter = Meter(Price(hour=3600, prompt_tokens=1, completion_tokens=2))
    meter.add(Answer("a", "stop", 10, 20, cached_tokens=4))
    meter.add(Failure("refused", {}, 5, 0))
    meter.seconds = 2.0
    assert (meter.requests, meter.answers, meter.cached_tokens) == (2, 1, 4)
    assert meter.cost == pytest.approx(2 + (15 + 40) / 1e6)


def test_an_hour_is_paid_for_each_engine_and_tokens_once() -> None:
    four = spending.priced(Price(hour=2.0, prompt_tokens=1.0, completion_tokens=3.0), 4)
    assert cost(four, 1_000_000, 2_000_000, 1800) == 4 * 2.0 / 2 + 1.0 + 6.0
    assert spending.priced(None, 4) is None
