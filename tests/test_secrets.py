"""No secret and nobody's name in what a run leaves behind or prints: canaries are planted everywhere, and none is found."""

import inspect
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.files import HIDDEN, private
from pipeline.stages import STAGES
from pipeline.teachers.server import Server
from pipeline.teachers.vllm import Vllm
from tests.chat_server import Reply, chat_server, completion
from tests.conftest import SETTINGS, write_project
from tests.test_cli import COMMAND

HOME = "canary-home-7f31"
HOST = "canary-host-51c0"
KEY = "sk-canary-key-9b02aa41d6"
SECRETS = {
    "TEACHER_KEY": KEY,
    "OPENAI_API_KEY": "canary-openai-2e77",
    "HF_TOKEN": "hf_canarytoken4d1b",
    "AWS_SECRET_ACCESS_KEY": "canary-aws-83ab",
    "LICENCE_OF_SOMETHING_ELSE": "canary-variable-6c19",
}
PASSWORD, PARAMETER, REMOTE, MODEL_TOKEN = (
    "canary-pw-118e",
    "canary-sig-44c2",
    "canary-remote-0a9d",
    "canary-about-7be5",
)
CANARIES = [HOME, HOST, *SECRETS.values(), PASSWORD, PARAMETER, REMOTE, MODEL_TOKEN]


def reply(body: dict[str, Any]) -> Reply:
    """Every way in which a server can give the key back: in an answer, a refusal, a name, a reason, broken JSON, a header."""
    numbers = re.findall(r"\d+", body["messages"][-1]["content"])
    kind = int(numbers[0]) % 6 if numbers else 0
    if kind == 1:
        return completion(f"Your key is {KEY}. So the answer is food.")
    if kind == 2:
        return 400, {"Content-Type": "application/json"}, json.dumps({"error": {"message": f"bad {KEY}"}}).encode()
    if kind == 3:
        return 200, {"Content-Type": "application/json", "X-Key": KEY}, f'{{"choices": "{KEY}'.encode()
    if kind == 4:
        return completion("It speaks of soup. So the answer is food.", finish_reason=f"filtered-{KEY}")
    return completion("It speaks of this and that. So the answer is food.")


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """The settings file of a project deep in a home folder, whose inputs, prompt and recording lie elsewhere in that home."""
    home = tmp_path / HOME
    settings = write_project(home / "work" / "project")
    project, elsewhere = settings.parent, home / "elsewhere"
    elsewhere.mkdir()
    for name in ("inputs.jsonl", "completions.jsonl", "test.jsonl"):
        (project / name).rename(elsewhere / name)
    (elsewhere / "prompt.jinja").write_text(
        "{% block user %}What is {{ text }} about?{% endblock %}{% block assistant_prefix %}{% endblock %}"
    )
    (project / ".git").mkdir()
    (project / ".git" / "config").write_text(f'[remote "origin"]\n\turl = https://me:{REMOTE}@example.com/x.git\n')
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        f"import platform, socket\nplatform.node = socket.gethostname = lambda: {HOST!r}\n"
    )
    return settings


def call(settings: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    home = settings.parents[2]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "HF_"))}
    environment = {**inherited, **SECRETS, "HOME": str(home), "PYTHONPATH": str(home.parent / "site")}
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=settings.parent,
        env=environment,
        timeout=120,
    )


def write_settings(settings: Path, teacher: str) -> None:
    home = settings.parents[2]
    text = SETTINGS.replace("inputs.jsonl", str(home / "elsewhere" / "inputs.jsonl"))
    text = text.replace("{path: test.jsonl}", f"{{path: {home}/elsewhere/test.jsonl}}")
    text = text.replace("  labels:", f"  prompt: {home}/elsewhere/prompt.jinja\n  labels:")
    settings.write_text(text.replace("    teacher: {backend: replay, completions: completions.jsonl}\n", teacher))


def found_in(text: bytes) -> list[str]:
    return [canary for canary in CANARIES if canary.encode() in text]


def test_no_canary_in_any_file_or_output(planted: Path) -> None:
    home = planted.parents[2]
    run = planted.parent / "runs" / "small"
    with chat_server(reply) as chat:
        write_settings(
            planted,
            f"""    teacher:
      - backend: server
        base_url: {chat.url}
        model: served
        api_key_env: TEACHER_KEY
        output_terms: {{training: conditional, source: "https://me:{PASSWORD}@example.com/terms?sig={PARAMETER}"}}
      - backend: replay
        completions: {home}/elsewhere/completions.jsonl
        about: {{model: {home}/models/x, api_key: {MODEL_TOKEN}, from: "https://me:{PASSWORD}@example.com/?token={PARAMETER}"}}
""",
        )
        outputs = [call(planted, "run"), call(planted, "run", "--from", "sample", "--force")]
    assert len(chat.requests) >= 29
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in chat.headers)
    outputs += [call(planted, "show", "sample", "--dropped", "-n", "99")]
    outputs += [call(planted, "trace", "r0"), call(planted, "export", "all"), call(planted, "audit", "--full")]
    for done in outputs:
        assert done.returncode == 0 or "audit" in done.args, (
            done.stdout + done.stderr
        )  # clean audits have tests of their own
        assert found_in((done.stdout + done.stderr).encode()) == [], done.args
    dropped = "".join(path.read_text() for path in (run / "sample").glob("*/dropped.jsonl"))
    assert {"key_in_answer", "refused", "unreadable_answer", "not_finished"} <= {
        json.loads(line)["reason"] for line in dropped.splitlines()
    }
    files = [path for path in sorted(run.rglob("*")) if path.is_file()]
    assert len(files) > 20
    for path in files:
        content = path.read_bytes()
        if path.name == "run.json":  # times and the host stand there, and nowhere else
            facts = json.loads(content)
            assert facts.pop("host") == HOST
            content = json.dumps(facts).encode()
        assert found_in(content + str(path.relative_to(run)).encode()) == [], path
    manifest = json.loads(next((run / "sample").glob("*/manifest.json")).read_bytes())
    about = manifest["models"]["teacher recorded"]["about"]
    assert about == {"model": "~/models/x", "api_key": HIDDEN, "from": f"https://example.com/?token={HIDDEN}"}
    assert any(source["uri"].startswith("~/elsewhere/") for source in manifest["sources"])


@pytest.mark.parametrize(
    "teacher",
    [
        f"    teacher: {{backend: server, base_url: 'http://me:{PASSWORD}@127.0.0.1:1/v1', model: m}}\n",
        f"    teacher: {{backend: server, base_url: 'http://127.0.0.1:1/v1?api_key={PARAMETER}', model: m}}\n",
        f"    teacher: {{backend: server, base_url: 'http://127.0.0.1:1/v1', model: m, api_key: {PARAMETER}}}\n",
        f"    teacher: {{backend: vllm, model: embedded, engine: {{hf_token: {MODEL_TOKEN}}}}}\n",
        "    teacher: {backend: server, base_url: 'http://127.0.0.1:1/v1', model: m, api_key_env: TEACHER_KEY, retries: 0}\n",
    ],
)
def test_a_message_about_settings_shows_no_secret(planted: Path, teacher: str) -> None:
    write_settings(planted, teacher)
    done = call(planted, "run")
    assert done.returncode in (1, 2)
    said = [canary for canary in found_in((done.stdout + done.stderr).encode()) if canary != HOME]
    assert said == [], done.stderr
    assert len(done.stderr.strip().splitlines()) >= 1


def test_a_secret_changes_neither_key_nor_manifest(tmp_path: Path) -> None:
    """The same settings with another password give the same key: it can be recomputed without knowing any."""
    from pipeline.config import load
    from pipeline.provenance import ask
    from pipeline.runner import run

    keys = set()
    for password in ("one", "two"):
        settings = write_project(tmp_path / password)
        about = f"about: {{token: {password}, from: 'https://me:{password}@example.com'}}"
        text = settings.read_text().replace(
            "completions: completions.jsonl}", f"completions: completions.jsonl, {about}}}"
        )
        settings.write_text(text)
        run(settings, until="sample")
        asked = ask(load(settings), "sample")
        assert asked is not None
        keys.add(asked.key)
    assert len(keys) == 1


words = st.text(st.characters(codec="utf-8", exclude_characters="/@?#&;=\\:~"), min_size=6)


@given(
    words, st.sampled_from(["https://{}:x@h/v1", "https://x:{}@h/v1?a=b", "http://{}@h", "see https://a:{}@h/ there"])
)
def test_user_information_goes(secret: str, shape: str) -> None:
    if not any(character.isspace() for character in secret) and secret not in shape:
        assert secret not in private(shape.format(secret))


@given(words, st.sampled_from(["api_key", "token", "sig", "X-Amz-Signature", "access_token", "key", "client_secret"]))
def test_parameters_that_are_keys_go(secret: str, name: str) -> None:
    if not any(character.isspace() or character in "\"'<>" for character in secret) and secret not in HIDDEN:
        shown = private(f"https://h/v1?first=1&{name}={secret}&last=2")
        assert shown == f"https://h/v1?first=1&{name}={HIDDEN}&last=2"


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_what_is_private_already_stays_as_it_is(value: Any) -> None:
    """Keys are worked out from manifests again, so taking out twice must be taking out once."""
    once = private(value)
    assert private(once) == once


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens": 64, "tokenizer": "owner/name", "api_key_env": "TEACHER_KEY", "stop_token_ids": [1]},
        {"input": "{{ text }}", "regex": r"a?key=b", "id": "key", "key": "a column"},
        {"price": {"prompt_tokens": 1.0}, "source": "https://example.com/terms?page=2#key=1"},
    ],
)
def test_ordinary_settings_stay(settings: dict[str, Any]) -> None:
    kept = private(settings)
    assert kept == {**settings, **({"regex": kept["regex"]} if "regex" in settings else {})}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("https://user:pa/ss@host/x", "https://host/x"),
        ("see https://user:p#w?o/@rd@[::1]:80/x@y there", "see https://y there"),
        ("https://host:8080/of@v1 and http://[::1]:80/of@v1", "https://host:8080/of@v1 and http://[::1]:80/of@v1"),
        ("https://host/@someone/x: me@example.com", "https://host/@someone/x: me@example.com"),
        ({"token": ["a"], "password": 12345, "api_keys": ["sk-1"], "credentials": {"user": "x"}}, HIDDEN),
        ({"hf_tokens": "a", "Secrets": [0], "X-Api-Keys": {"a": 1}, "passwords": "b"}, HIDDEN),
        ("/var/home/alice/x", "~/x"),
        ("file:///home/alice/x", "file://~/x"),
        ("C:\\Users\\alice\\x", "~\\x"),
        ("d:/users/alice", "~"),
        ("https://example.com/home/alice", "https://example.com/home/alice"),
    ],
)
def test_each_way_of_writing_a_name_or_a_secret(value: Any, shown: Any) -> None:
    assert private(value) == (dict.fromkeys(value, HIDDEN) if isinstance(value, dict) else shown)


pieces = st.sampled_from(
    [
        "://",
        "@",
        ":",
        "/",
        "#",
        "?",
        "&",
        "=",
        " ",
        '"',
        "a",
        "80",
        "key",
        "token",
        "_",
        "[",
        "/home/",
        "/var",
        "C:\\Users\\",
        "~",
    ]
)
texts = st.lists(pieces, max_size=24).map("".join)


@given(texts, st.dictionaries(texts, texts | st.lists(texts) | st.integers(), max_size=3))
def test_what_is_private_already_stays_as_it_is_however_it_is_put_together(text: str, settings: dict[str, Any]) -> None:
    for once in (private(text), private(settings)):
        assert private(once) == once


@given(st.integers(1) | st.floats(1, 1e9) | st.lists(st.integers(), min_size=1))
def test_no_setting_of_a_stage_and_no_count_of_tokens_is_taken_for_a_secret(value: Any) -> None:
    names = {name for stage in STAGES.values() for name in inspect.signature(stage.settings).parameters}
    names |= {name for settings in (Server, Vllm) for name in settings.model_fields}
    names |= set(
        "tokens max_tokens prompt_tokens completion_tokens cached_tokens tokenizer stop_token_ids token_budget".split()
    )
    assert len(names) > 50
    settings = dict.fromkeys(sorted(names), value)
    assert private(settings) == settings


def test_a_row_that_cannot_be_read_names_no_home(planted: Path) -> None:
    """Its drop has the file's name; the message that stops a run has the whole path."""
    inputs = planted.parents[2] / "elsewhere" / "inputs.jsonl"
    write_settings(planted, "    teacher: {backend: replay, completions: ../../elsewhere/completions.jsonl}\n")
    with inputs.open("ab") as file:
        file.write(b'{"id": 1\n')
    stopped = call(planted, "run")
    assert (stopped.returncode, f"{inputs}:30: " in stopped.stderr) == (2, True)
    done = call(planted, "run", "--until", "ingest", "--set", "ingest.on_bad_row=drop")
    assert done.returncode == 0, done.stderr
    (dropped,) = planted.parent.glob("runs/small/ingest/*/dropped.jsonl")
    evidence = json.loads(dropped.read_bytes())["evidence"]
    assert evidence["problem"].startswith("inputs.jsonl:30: line contains invalid json")
    assert found_in(dropped.read_bytes()) == []
