"""The filter of secrets: kinds that it finds, texts that it passes, and that what it finds is written nowhere once more.

The secrets are put together here when the tests run, so that none stands in a file.
"""

import base64
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import limits
from pipeline.binding import Call
from pipeline.files import InputError
from pipeline.filters import FILTERS, credentials
from pipeline.filters.credentials import secrets
from pipeline.filters.private import private_data
from pipeline.quality import HELD_BACK, quality
from pipeline.viewer.story import NOT_SHOWN, story
from tests.conftest import text as of_topic
from tests.conftest import write_project
from tests.counting import counted
from tests.rows import example
from tests.test_cli import call

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
HEX = "0123456789abcdef"
CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
Letters = Callable[[str, int], str]


def claims(letters: Letters) -> str:
    parts = [json.dumps(part).encode() for part in ({"alg": "HS256"}, {"sub": letters(HEX, 9)})]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts) + "." + letters(LETTERS, 44)


PLANTED: dict[str, Callable[[Letters], str]] = {
    "Artifactory Credentials": lambda letters: "AK" + "C" + letters(LETTERS, 24),
    "AWS Access Key": lambda letters: "AK" + "IA" + letters(CAPITALS, 16),
    "Azure Storage Account access key": lambda letters: "Account" + "Key=" + letters(LETTERS, 88),
    "Basic Auth Credentials": lambda letters: "https:" + "//jo:" + letters(LETTERS, 20) + "@a.example.net/",
    "Discord Bot Token": lambda letters: (
        "M" + letters(LETTERS, 23) + "." + letters(LETTERS, 6) + "." + letters(LETTERS, 27)
    ),
    "GitHub Token": lambda letters: "gh" + "p_" + letters(LETTERS, 36),
    "GitLab Token": lambda letters: "glp" + "at-" + letters(LETTERS, 20),
    "JSON Web Token": claims,
    "Mailchimp Access Key": lambda letters: letters(HEX, 32) + "-us" + "12",
    "NPM tokens": lambda letters: "//registry.example.org/:_auth" + "Token=npm_" + letters(LETTERS, 36),
    "OpenAI Token": lambda letters: "sk-" + letters(LETTERS, 20) + "T3Blbk" + "FJ" + letters(LETTERS, 20),
    "Private Key": lambda letters: "-----BEGIN RSA PRI" + "VATE KEY-----" + letters(LETTERS, 64),
    "PyPI Token": lambda letters: "pypi-AgEIcHlwaS5v" + "cmc" + letters(LETTERS, 80),
    "SendGrid API Key": lambda letters: "S" + "G." + letters(LETTERS, 22) + "." + letters(LETTERS, 43),
    "Slack Token": lambda letters: "xox" + "b-" + letters("0123456789", 12) + "-" + letters(HEX, 24),
    "Square OAuth Secret": lambda letters: "sq0" + "csp-" + letters(LETTERS, 43),
    "Stripe Access Key": lambda letters: "sk_" + "live_" + letters(LETTERS, 24),
    "Telegram Bot Token": lambda letters: letters("123456789", 9) + ":" + letters(LETTERS, 35),
    "Twilio API Key": lambda letters: "S" + "K" + letters(HEX, 32),
}
WORDS = st.lists(st.sampled_from(["the", "goal", "decided", "a match,", "é", "😀", "12", "\n", "so"]), max_size=30).map(
    " ".join
)


def drawn(seed: int) -> Letters:
    chosen = random.Random(seed)
    return lambda alphabet, number: "".join(chosen.choice(alphabet) for _ in range(number))


@pytest.mark.parametrize("kind", PLANTED)
@settings(max_examples=500 if os.environ.get("NIGHTLY") else 4, deadline=None)
@given(seed=st.integers(0, 2**32), where=st.sampled_from(["rationale", "label", "text"]), before=WORDS, after=WORDS)
def test_a_secret_is_found_by_kind_and_place_and_its_value_stands_nowhere(
    kind: str, seed: int, where: str, before: str, after: str
) -> None:
    secret = PLANTED[kind](drawn(seed))
    said = f"{before} {secret} {after}"
    fields = {"label": None, "rationale": None, "text": said} if where == "text" else {where: said}
    row = example(**fields)
    why = secrets(row)
    assert why is not None
    found = re.fullmatch(r"the (\w+) holds a secret \((.+)\), at characters ([\d,]+) to ([\d,]+)", why)
    assert found is not None
    start, end = (int(number.replace(",", "")) for number in found.groups()[2:])
    assert found[1] == where
    assert start <= len(before) + 1 + len(secret)
    assert end > len(before) + 1
    counted("rows with a secret")
    for filters in (["secrets"], ["secrets", "min_words"], ["min_words", "secrets"]):
        calls = [Call(name, {"minimum": 999} if name == "min_words" else {}) for name in filters]
        (drop,) = quality([row], filters=calls)
        assert drop is not None
        assert drop.reason == ("secrets" if where == "text" else filters[0])  # min_words looks at rationales alone
        written = repr(drop.plain())
        assert not any(secret[at : at + 12] in written for at in range(len(secret) - 12))


def test_the_kind_is_the_issuers() -> None:
    fixed: Letters = lambda alphabet, number: (alphabet[1:] * 9)[:number]  # noqa: E731
    kinds = {kind: secrets(example(rationale=f"It is {make(fixed)} here.")) for kind, make in PLANTED.items()}
    assert all(f"({kind})" in str(why) for kind, why in kinds.items()), kinds
    assert len(PLANTED) >= 10


def test_what_stands_in_the_input_counts_only_where_it_is_asked_for() -> None:
    secret = "gh" + "p_" + "a1" * 18
    row = example(rationale=f"It is {secret}.", input=f"Is {secret} a key?")
    assert secrets(row) is None
    assert "GitHub Token" in str(secrets(row, given=True))


@pytest.mark.parametrize(
    "text",
    [
        "The password is too long, so the answer is no.",
        "He gave the secret key to the innkeeper: an iron one.",
        "See https://example.org/a/very/long/path/0123456789abcdef0123456789abcdef for more.",
        "Honorificabilitudinitatibus, Donaudampfschifffahrtsgesellschaft, pneumonoultramicroscopicsilicovolcanoconiosis",
        "84 / 2 = 42, 123456789012345678901234567890 and 3.14159265358979323846264338327950288",
        "APPLICATION AND APPARATUS, AKIN",
        "",
    ],
)
def test_running_text_is_passed(text: str) -> None:
    assert secrets(example(rationale=text)) is None


def test_detectors_that_guess_run_where_they_are_named() -> None:
    noise = "'" + base64.b64encode(bytes(range(40))).decode() + "'"
    assert secrets(example(rationale=f"It is {noise} here.")) is None
    assert "Base64 High Entropy String" in str(secrets(example(rationale=f"It is {noise} here."), also=["base64"]))
    assert "Hex High Entropy String" in str(secrets(example(rationale=f"It is '{HEX * 2}'."), also=["hex"]))
    guessed = secrets(example(rationale="The pass" + 'word = "hunter2hunter2"'), also=["keyword"])
    assert guessed == "the rationale holds a secret (Secret Keyword), at characters 17 to 30"


@pytest.mark.parametrize("unit", ["eyJ", "//", "sk-", "a:b@", "key: ", "1-", "\n", "://x:", "AKC", "xox", "cl pass "])
def test_hostile_texts_take_no_more_than_linear_time(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECONDS", 8.0)
    secrets(example(rationale=unit * (20_000 // len(unit)), label=None, text=unit * (20_000 // len(unit))))


def test_a_secret_behind_a_long_line_is_found() -> None:
    secret = "gh" + "p_" + "a1" * 18
    for before in (0, 1, 2_030, 5_000):
        text = "x " * (before // 2) + secret
        assert f"at characters {len(text) - 39:,} to {len(text):,}" in str(secrets(example(rationale=text)))


def test_a_row_that_takes_too_long_stops_the_run_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*given: object) -> None:
        raise limits.TooLongError

    monkeypatch.setattr(credentials, "_first", endless)
    with pytest.raises(InputError, match=r"^quality\.filters\.secrets: row r1: its rationale takes more than 10 s"):
        secrets(example(rationale="a" * 30))


def test_without_the_library_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name="detect_secrets")

    monkeypatch.setattr("importlib.import_module", missing)
    credentials._detectors.cache_clear()
    with pytest.raises(
        InputError, match=r"quality\.filters\[0\]\.secrets: it needs the package detect_secrets; pip install"
    ):
        quality([], filters=[Call("secrets", {})])


def test_warnings_are_shown_as_before_the_library_was_loaded() -> None:
    import logging
    import warnings

    shown = warnings.showwarning
    credentials._detectors.cache_clear()
    assert FILTERS["secrets"](example()) is None
    assert warnings.showwarning is shown
    assert logging.getLogger("py.warnings").handlers == []


def test_a_run_leaves_the_value_only_where_the_teacher_wrote_it(tmp_path: Path) -> None:
    """Not in the drops, the manifests, the report, the viewer's page of the row, or what commands print."""
    secret, address = "gh" + "p_" + "Qz9" * 12, "jo.doe" + "@uni-bonn.de"
    settings = write_project(tmp_path)
    completions = tmp_path / "completions.jsonl"
    rows = [json.loads(line) for line in completions.read_text().splitlines()]
    for row in rows:
        if row["id"] == "r1":
            row["completion"] = f"It speaks of {secret} and more. So the answer is food."
        if row["id"] == "r2":
            row["completion"] = f"It speaks of {address} and more. So the answer is sports."
        if row["id"] == "r4":
            row["completion"] = f"{secret} So the answer is sports."  # too short as well
    completions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings.write_text(
        settings.read_text().replace("{min_words: 3}", "{min_words: 3}\n      - secrets\n      - private_data")
    )
    run = tmp_path / "runs" / "small"
    said = [call(settings, "run"), call(settings, "report")]
    said += [call(settings, "show", "quality", "--dropped", "-n", "99"), call(settings, "status")]
    assert [done.returncode for done in said] == [0, 0, 0, 0], said
    drops = [
        json.loads(line) for path in (run / "quality").glob("*/dropped.jsonl") for line in path.read_text().splitlines()
    ]
    reasons = {drop["id"]: (drop["reason"], drop["evidence"]["why"]) for drop in drops}
    assert reasons["r1"] == ("secrets", "the rationale holds a secret (GitHub Token), at characters 14 to 53")
    assert reasons["r2"] == ("private_data", "it holds an e-mail address, at characters 14 to 31")
    assert reasons["r4"] == ("min_words", HELD_BACK)
    written = [
        path for path in run.rglob("*") if path.is_file() and not {"responses", "sample", "parse"} & {*path.parts}
    ]
    before = ("dedup", "decontaminate")  # stages before the filter keep the row as it is
    for path in written:
        if not (path.relative_to(run).parts[0] in before and path.name.startswith("part-")):
            assert not any(value.encode() in path.read_bytes() for value in (secret, address)), path
    assert any(path.suffix == ".html" for path in written)
    for done in said:
        assert not any(value in done.stdout + done.stderr for value in (secret, address))
    for name in ("r1", "r2", "r4"):
        told = story(run, name)
        assert not any(value in repr(told) for value in (secret, address))
        assert told.answers[0].text == NOT_SHOWN
    assert private_data(example(rationale=address)) is not None
    assert of_topic("food", 1) == story(run, "r1").text
