r"""What reads foreign bytes, each as one function of bytes that judges itself: what coverage-guided fuzzing drives (scripts/fuzz.py).

    with ExitStack() as closing:
        attempt = TARGETS["csv"].begin(tmp_path, closing)  # a folder to write in
        attempt(b'id,text\nr1,"a')                         # nothing: one clear line is said of it; an AssertionError where it is not

A target's docstring is its oracle: what must hold, whatever the bytes. Where there is a second reader, both must read the same. Two of
them are written here in plain Python, so that the fuzzer sees their branches and finds its way into a grammar that C code hides from it.

Limits: a second reader that shares a mistake with the first shows nothing. JSON that is nested too deeply for the plain one, which
needs several frames a level, is compared with msgspec alone.
"""

import html
import json
import json.scanner
import math
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock
from urllib.parse import unquote

import msgspec

from pipeline import responses, sources
from pipeline.files import DIGITS, InputError, RowError, RunError, canonical_json, scan_jsonl, strict_json
from pipeline.ingest import prompts
from pipeline.prompts import Message, Messages
from pipeline.records import Drop, Prompt
from pipeline.responses import Stored
from pipeline.teachers import Answer, Failure, Request, Server, completions, connect, server
from pipeline.teachers.replay import recorded

Attempt = Callable[[bytes], None]
KEY = "sk-1234/5678+abcdefgh"
LABELS = ["sports", "food", "food and drink"]
REASONS = {
    "server_error", "rate_limited", "timed_out", "connection_failed", "refused", "unreadable_answer", "no_text",
    "not_finished", "other_model", "key_in_answer",
}  # fmt: skip


class Target(NamedTuple):
    """``begin`` takes an empty folder, and a stack for what must be closed; ``seeds`` are what to begin from, ``words`` what they hold."""

    begin: Callable[[Path, ExitStack], Attempt]
    seeds: Callable[[], list[bytes]]
    words: tuple[bytes, ...]


# What all have in common


def one_line(error: Exception | str) -> None:
    """It can be shown on a terminal: one line, not endless, that nothing in the bytes acts through."""
    assert str(error) and str(error).isprintable() and len(str(error)) < 6000, ascii(str(error))


def same(one: object, other: object) -> bool:
    """Equal as JSON is: 1, 1.0 and true are three values."""
    return canonical_json(one) == canonical_json(other)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key stands there twice")
    return dict(pairs)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError("too long for a whole number")
    return int(digits)


_PLAIN: Any = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number, parse_int=_whole)
_PLAIN.parse_string = json.decoder.py_scanstring  # type: ignore[attr-defined]
_PLAIN.scan_once = json.scanner.py_make_scanner(_PLAIN)  # type: ignore[attr-defined]


def json_is_read_alike(text: str) -> None:
    """``strict_json``, Python's decoder without its C part, and msgspec, in what they take and in what they make of it."""
    wanted: Any = None
    grammatical = True
    try:
        wanted = strict_json(text)
        refused = False
    except json.JSONDecodeError:
        refused, grammatical = True, False
    except ValueError:
        refused = True
    with suppress(RecursionError):
        try:
            value = _PLAIN.decode(text)
            canonical_json(value)
        except ValueError:
            assert refused, "only strict_json takes it"
        else:
            assert not refused and same(value, wanted), "Python's decoder reads it otherwise"
    if refused and grammatical:  # duplicate keys and the like: msgspec may have its own mind
        return
    try:
        other = msgspec.json.decode(text.encode("utf-8", "surrogatepass"))
    except (msgspec.DecodeError, UnicodeDecodeError):
        assert refused, "msgspec does not take it"
    except RecursionError:
        return
    else:
        assert not refused and same(other, wanted), "msgspec reads it otherwise"


def accepted(path: Path, rows: int) -> None:
    """Ingest makes of each row a prompt or a drop, and the next stage reads what was written."""
    count = 0
    for row in prompts(path, input="{{ text }}", gold="topic", choices=None, id="id", on_bad_row="drop"):
        count += 1
        assert type(row).read(row.line()) == row
        if isinstance(row, Prompt):
            assert same(row.columns, Prompt.read(row.line()).columns)
        else:
            one_line(row.evidence["problem"])
    assert count == rows


# Rows and recordings


def rows(folder: Path, closing: ExitStack) -> Attempt:
    r"""A JSONL file, as rows of a source and as recorded completions.

    Each line that is not blank is an object or one clear line, with its number; lines end at ``\n`` alone. Ingest takes what was read,
    and reads back what it wrote. A recording is answers or one clear line, and says the same when it is written anew.
    """
    path, again = folder / "rows.jsonl", folder / "again.jsonl"

    def attempt(content: bytes) -> None:
        path.write_bytes(content)
        found = dict(scan_jsonl(path))
        lines = {number: raw for number, raw in enumerate(content.split(b"\n"), 1) if raw.strip()}
        assert list(found) == list(lines)
        for number, raw in lines.items():
            row = found[number]
            if isinstance(row, RowError):
                one_line(row)
            try:
                text = raw.decode().removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
            except UnicodeDecodeError:
                assert isinstance(row, RowError)
                continue
            json_is_read_alike(text)
            if not isinstance(row, RowError):
                assert same(msgspec.json.decode(text.lstrip("\x1e")), row)
        with suppress(InputError):
            accepted(path, len(found))
        try:
            answers = recorded(path)
        except InputError as error:
            one_line(error)
            return
        assert list(answers) == [row["id"] for row in found.values() if not isinstance(row, RowError)]
        again.write_bytes(b"".join(canonical_json(_as_recorded(*one)) + b"\n" for one in answers.items()))
        assert recorded(again) == answers

    return attempt


def _as_recorded(name: str, answers: list[Answer]) -> dict[str, Any]:
    return {
        "id": name,
        "completion": [one.text for one in answers],
        "finish_reason": [one.finish_reason for one in answers],
        "prompt_tokens": [one.prompt_tokens for one in answers],
        "completion_tokens": [one.completion_tokens for one in answers],
    }


def row_seeds() -> list[bytes]:
    row = {"id": "r1", "text": "Late goal sinks the league leaders", "topic": "sports"}
    said = {"id": "r2", "completion": "A goal is scored. So the answer is sports.", "finish_reason": "stop"}
    several = {"id": "r3", "completion": ["a", "b"], "finish_reason": ["stop", "length"], "prompt_tokens": [5, 6]}
    odd = {"id": 7, "text": 1.5e-7, "topic": True, "more": [None, {"a": [[-0.0]]}, "\u2028\U0001f600", 2**70]}
    plain = [canonical_json(one) for one in (row, said, {**several, "completion_tokens": 3}, odd)]
    return [
        *plain,
        b"\n".join(plain) + b"\n",
        b"\r\n".join(plain[:2]),
        b"\xef\xbb\xbf" + plain[0] + b"\n\n \n" + json.dumps(odd, indent=1).encode(),
        json.dumps({**row, "text": '\U0001f600 caf\xe9 \x7f "quoted" \\ back/slash \b\f\n\r\t'}).encode(),
        plain[0][:-1] + b',"id":"r9"}',
        plain[0][:-1] + b',"more":' + b"[" * 300 + b"]" * 300 + b"}",
        *(plain[0][:-1] + b',"more":' + sign + b"9" * digits + b"}" for sign in (b"", b"-") for digits in (400, 4300)),
        plain[1] + b"\n" + plain[1],
        b'{"id": "r1", "completion": "caf\xe9"}',
        b'{"id": "r1", "completion": "\\ud800", "prompt_tokens": NaN}',
    ]


ROW_WORDS = (
    b'{"', b'":', b'"}', b"[]", b"{}", b"null", b"true", b"false", b"NaN", b"-Infinity", b"1e999", b"-0.0", b"1E-7", b"0x1",
    b'"id"', b'"text"', b'"topic"', b'"completion"', b'"finish_reason"', b'"prompt_tokens"', b'"completion_tokens"', b'"self"',
    b"\\u", b"\\ud83d\\ude00", b"\\ud800", b"\\u0000", b"\\/", b"\n", b"\r\n", b"\r", b"\x00", b"\x1e", b"\x1b[2J",
    b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"\xc2\x85", b"\xf0\x9f\x98\x80", b"\xff", b"99999999999999999999",
)  # fmt: skip


# Tables


def csv(folder: Path, closing: ExitStack) -> Attempt:
    """A CSV file: the rows, with the lines where they end, that a reader written from the rules finds; or one clear line."""
    path = folder / "rows.csv"

    def attempt(content: bytes) -> None:
        path.write_bytes(content)
        found: list[sources.Row] = []
        problem = False
        try:
            found.extend(sources.read(path))
        except InputError as error:
            one_line(error)
            problem = True
        wanted, right = _csv_rows(content)
        assert len(found) <= len(wanted)
        for (place, row), (line, values) in zip(found, wanted, strict=False):
            assert place == f"rows.csv:{line}"
            if isinstance(row, RowError):
                one_line(row)
                assert values is None
            else:
                assert row == values and list(row) == list(values or {})
        if not problem:
            assert right and len(found) == len(wanted)
            with suppress(InputError):
                accepted(path, len(found))
        else:
            assert not right

    return attempt


def _csv_rows(content: bytes) -> tuple[list[tuple[int, dict[str, str] | None]], bool]:
    """Line and row of all that stands before the first thing that is no CSV (None: too many or too few values); whether there is none."""
    found: list[tuple[int, dict[str, str] | None]] = []
    content = content.removeprefix(b"\xef\xbb\xbf")
    try:
        text, right = content.decode(), True
    except UnicodeDecodeError as error:
        text, right = content[: error.start].decode(), False
    try:
        records = _csv_records(text)
        _, header = next(records, (1, []))
        if not header or len(set(header)) != len(header):
            return found, False
        for line, values in records:
            if values:
                found.append((line, dict(zip(header, values, strict=True)) if len(values) == len(header) else None))
    except ValueError:
        return found, False
    return found, right


def _csv_records(text: str) -> Iterator[tuple[int, list[str]]]:
    r"""RFC 4180, with ``\n`` or ``\r`` for an end of a line too, and a quote inside a value that has none around it taken as it is.

    Line and values of each record, a blank one included. Raises ValueError for text behind a closing quote, and one that is not closed.
    """
    place, line = 0, 1
    values: list[str] = []
    while place < len(text):
        value = ""
        if text[place] == '"':
            place += 1
            while True:
                if place == len(text):
                    raise ValueError("a quote is not closed")
                if text[place] == '"':
                    if text[place + 1 : place + 2] != '"':
                        break
                    place += 1
                elif text[place] == "\n" or (text[place] == "\r" and text[place + 1 : place + 2] != "\n"):
                    line += 1
                value += text[place]
                place += 1
            place += 1
            if text[place : place + 1] not in ("", ",", "\r", "\n"):
                raise ValueError("text behind a quote")
        else:
            while place < len(text) and text[place] not in ",\r\n":
                value += text[place]
                place += 1
        end = text[place : place + 1]
        if value or values or end == "," or text[place - 1 : place] == '"':
            values.append(value)
        place += 1
        if end == ",":
            if place < len(text):
                continue
            values.append("")
        elif end == "\r" and text[place : place + 1] == "\n":
            place += 1
        yield line, values
        values = []
        line += 1


def csv_seeds() -> list[bytes]:
    head, good = b"id,text,topic\n", b"r1,one two three,food\n"
    return [
        head + good,
        (head + good).replace(b"\n", b"\r\n"),
        (head + good).replace(b"\n", b"\r"),
        b"\xef\xbb\xbf" + head + b'r1,"one, two",food\nr2,"say ""no"" now",food\n',
        head + b'r1,"one\ntwo\r\nthree\rfour",food\n\n\nr2,a "b" c,\n',
        head + b'"r1",,""\nr2,one\nr3,a,b,c',
        head + b'r1,"one" two,food\n',
        head + b'r1,"one two,food\n',
        head + "r1,caf\xe9 \u2028 \U0001f600,food\n".encode() + b"r2,\xff,food\n",
        b'"id","te\nxt","topic"\r\n' + good,
        b"id,text,text\n" + good,
        b"\n" + head + good,
        head + b"r1,one\0two,=1+1\n" + b"r2," + b"x" * 2000 + b",food",
    ]


CSV_WORDS = (
    b",", b'"', b'""', b'","', b'",', b',"', b'"\n', b'"\r\n', b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\x00", b";", b"\t", b" ",
    b"\xef\xbb\xbf", b"\xff", b"\xe2\x80\xa8", b"\xc2\x85", b"id,text,topic\n", b"id", b"text", b"topic", b"\x0b", b"\x0c",
)  # fmt: skip


def parquet(folder: Path, closing: ExitStack) -> Attempt:
    """A Parquet file: rows that JSON can hold and ingest takes, or one clear line; never a crash of the library underneath."""
    path = folder / "rows.parquet"

    def attempt(content: bytes) -> None:
        path.write_bytes(content)
        count = 0
        try:
            for _, row in sources.read(path):
                count += 1
                if isinstance(row, RowError):
                    one_line(row)
                else:
                    assert same(strict_json(canonical_json(row)), row)
        except InputError as error:
            one_line(error)
            return
        with suppress(InputError):
            accepted(path, count)

    return attempt


def parquet_seeds() -> list[bytes]:
    import datetime
    import io

    import pyarrow
    import pyarrow.parquet

    day = datetime.datetime(2024, 2, 29, 12, 30, 45)
    plain: dict[str, Any] = {"id": ["r1", "r2"], "text": ["a b", "c d"], "topic": ["food", None]}
    tables = [
        plain,
        {**plain, "when": [day, None], "on": [day.date(), None], "score": [1.5, math.nan]},
        {**plain, "when": pyarrow.array([0, 10**18], pyarrow.timestamp("us"))},
        {**plain, "many": [[1, 2], []], "in": [{"a": "b", "c": [True]}, None], "raw": [b"\xff", b""]},
    ]
    found = []
    for columns in tables:
        for options in ({}, {"compression": "none", "use_dictionary": False}, {"data_page_version": "2.0"}):
            file = io.BytesIO()
            pyarrow.parquet.write_table(pyarrow.table(columns), file, store_schema=False, **options)
            found.append(file.getvalue())
    return found


PARQUET_WORDS = (b"PAR1", b"PARE", b"\x15\x00", b"\x19\x1c", b"\xff\xff\xff\xff\x0f", b"\x00\x00\x00\x00", b"schema")


# What a server sends back


def _request(chat: bool) -> Request:
    sampling: dict[str, Any] = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 20, "stop": [], "structured": None}
    return Request(
        key="0" * 32,
        family="1" * 32,
        prompt_id="r1",
        prompt_digest="2" * 32,
        sample=0,
        seed=0,
        sampling={
            **sampling,
            "logprobs": True,
            "soft_labels": {"after": "answer is" if chat else "", "labels": [*LABELS]},
        },
        messages=Messages(messages=[Message(role="user", content="Goal!")], assistant_prefix=""),
    )


def _settings(**more: Any) -> Server:
    return Server.model_validate({"backend": "server", "base_url": "http://127.0.0.1:9/v1", "model": "m", **more})


def is_well(result: Answer | Failure) -> None:
    """An answer that the store takes and gives back; or a failure with a known reason whose drop is read back. The key is in neither."""
    assert result.prompt_tokens >= 0 and result.completion_tokens >= 0
    if isinstance(result, Failure):
        assert result.reason in REASONS, result.reason
        drop = Drop(id="r1#0", reason=result.reason, evidence=result.evidence)
        assert Drop.read(drop.line()) == drop
        for value in result.evidence.values():
            assert not isinstance(value, str) or value.isprintable()
        assert not tells_the_key(drop.line().decode())
        return
    assert result.finish_reason in ("stop", "length") and KEY not in result.text
    assert 0 <= result.cached_tokens <= result.prompt_tokens
    numbers = [*(result.label_logprobs or {}).values(), *([] if result.mean_logprob is None else [result.mean_logprob])]
    assert all(math.isfinite(number) and number <= 0 for number in numbers)
    assert set(result.label_logprobs or {}) <= set(LABELS)
    record = Stored(
        key="0" * 32, family="1" * 32, max_tokens=20, finish_reason=result.finish_reason, teacher="m", identity="3" * 32,
        prompt="2" * 32, sampling={}, seed=0, sample=0, prompt_tokens=result.prompt_tokens,
        completion_tokens=result.completion_tokens, text=result.text, mean_logprob=result.mean_logprob,
        label_logprobs=result.label_logprobs,
    )  # fmt: skip
    assert responses.record(responses.encoded(record), "here") == record


def tells_the_key(text: str) -> bool:
    """Whether anybody can read the key in a text, also as JSON, addresses and pages spell it."""
    for _ in range(2):  # a JSON text that quotes another one
        text = re.sub(r"\\+u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), text)
        text = html.unescape(unquote(re.sub(r"\\+/", "/", text)))
    between = r"(?:\\+x00){0,3}"  # UTF-16 and UTF-32 as they are shown
    return re.search(between.join(map(re.escape, KEY)), text) is not None


class _Completion(msgspec.Struct):
    choices: list[dict[str, Any]]


def answers(folder: Path, closing: ExitStack) -> Attempt:
    """The body of an answer, of either protocol: an answer, with the text that a second reader finds there; or a failure of the row."""
    is_asked = partial(server._is_asked, _settings())
    hide = server.hidden(KEY)

    def attempt(content: bytes) -> None:
        for chat in (True, False):
            result = completions.read(
                content, _request(chat), chat=chat, is_asked=is_asked, hide=hide, refuses_key=True
            )
            is_well(result)
            if isinstance(result, Answer):
                body = msgspec.json.decode(content.removeprefix(b"\xef\xbb\xbf"), type=_Completion)
                alone = len(body.choices) == 1
                first = [
                    one for one in body.choices if same(one.get("index"), 0) or (alone and one.get("index") is None)
                ]
                texts = [choice["message"]["content"] if chat else choice["text"] for choice in first]
                assert texts == [result.text]

    return attempt


def answer_seeds() -> list[bytes]:
    text = "A goal is scored. So the answer is sports."
    usage = {"prompt_tokens": 7, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}
    top = [
        {"token": " sports", "logprob": -0.1},
        {"token": " food", "logprob": -3.0},
        {"token": " fo", "logprob": -9999.0},
    ]
    tokens = [
        {"token": "So the answer is", "logprob": -0.5, "top_logprobs": []},
        {"token": " food", "logprob": -1e-9, "top_logprobs": top},
        {"token": " and", "logprob": -0.25, "top_logprobs": [{"token": "and drink", "logprob": -2}]},
    ]
    chat: dict[str, Any] = {
        "id": "x", "object": "chat.completion", "model": "m", "usage": usage,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
    }  # fmt: skip
    soft = json.loads(json.dumps(chat))
    soft["choices"][0] |= {"logprobs": {"content": tokens}, "message": {"content": "So the answer is food and"}}
    old = {"choices": [{"text": "sports", "finish_reason": "length", "logprobs": None}], "usage": usage}
    listed = {
        "tokens": ["spo", "rts"],
        "token_logprobs": [-0.1, -0.2],
        "top_logprobs": [{"spo": -0.1, "fo": -2.5, "food": -3}, None],
    }
    scored = {"choices": [{"index": 0, "text": "sports", "finish_reason": "eos_token", "logprobs": listed}]}
    two: dict[str, Any] = {
        **chat,
        "choices": [{**chat["choices"][0], "index": 1, "message": {"content": "no"}}, *chat["choices"]],
    }
    odd = [
        {**chat, "model": "m-mini"},
        {**chat, "choices": []},
        {**chat, "choices": [{"message": {"content": None}, "finish_reason": "tool_calls"}]},
        {**chat, "choices": [{"message": {"content": None}, "finish_reason": "stop"}]},
        {**chat, "choices": [{"message": {"content": f"my key is {KEY}"}, "finish_reason": "stop"}]},
        {"error": {"message": f"Incorrect key {KEY}", "code": 400}},
    ]
    error = json.dumps({"error": f"Incorrect key {KEY}"})
    spelt = [
        error.replace("+", "\\u002B"),
        error.replace("/", "\\/").replace("-", "\\u002d"),
        error.replace("/", "%2F").replace("+", "%2b"),
        error.replace("/", "&#x2F;").replace("+", "&#43;"),
        json.dumps(error),
    ]
    return [
        *(json.dumps(one).encode() for one in (chat, soft, old, scored, two, *odd)),
        *(one.encode() for one in spelt),
        error.encode("utf-16-le"),
        json.dumps(chat, indent=2).encode("utf-16"),
        b"\xef\xbb\xbf" + json.dumps(chat).encode(),
        b"<html><body>502 Bad Gateway</body></html>",
        b'{"choices": [{"message": {"content": "\\ud800"}, "finish_reason": "stop"}]}',
    ]


ANSWER_WORDS = (
    *ROW_WORDS, KEY.encode(), b"sk-1234\\/5678", b'"choices"', b'"message"', b'"content"', b'"index"', b'"logprobs"', b'"stop"',
    b'"length"', b'"usage"', b'"model"', b'"m"', b'"top_logprobs"', b'"token"', b'"logprob"', b'"tokens"', b'"token_logprobs"',
    b'"cached_tokens"', b'"prompt_tokens_details"', b"sports", b"food", b"food and drink", b"answer is", b"-9999.0", b"-1e5",
)  # fmt: skip


def http(folder: Path, closing: ExitStack) -> Attempt:
    """All that comes over a connection, head and body: what is said of it is an answer, a failure of the row, or one clear line.

    The bytes come in two pieces, in place of a connection's; all else is the backend as it is, with its own client.
    """
    import anyio

    class Connection(anyio.abc.ByteStream):
        def __init__(self, content: bytes) -> None:
            middle = len(content) // 2
            self.left = [piece for piece in (content[:middle], content[middle:]) if piece]

        async def receive(self, max_bytes: int = 65536) -> bytes:
            if not self.left:
                raise anyio.EndOfStream
            piece, rest = self.left[0][:max_bytes], self.left[0][max_bytes:]
            self.left[:1] = [rest] if rest else []
            return piece

        async def send(self, item: bytes) -> None:
            pass

        async def send_eof(self) -> None:
            pass

        async def aclose(self) -> None:
            pass

    sent = well = http_seeds()[0]

    async def connected(*arguments: object, **named: object) -> Connection:
        return Connection(sent)

    impatient = {"retries": 0, "pause": 0, "longest_pause": 0, "patience": 0, "concurrency": 1, "timeout": 5}
    settings = _settings(api_key_env="TEACHER_KEY", **impatient)
    asked = _request(chat=True)
    with mock.patch.dict("os.environ", TEACHER_KEY=KEY):
        teacher = closing.enter_context(connect(settings, asked.sampling))

    def ask(content: bytes) -> Answer | Failure:
        nonlocal sent
        sent = content
        ((request, result),) = teacher(iter([asked]))
        assert request is asked
        return result

    def attempt(content: bytes) -> None:
        with mock.patch("anyio.connect_tcp", connected):
            try:
                is_well(ask(content))
            except (InputError, RunError) as error:
                one_line(error)
                assert not tells_the_key(str(error))
                assert isinstance(ask(well), Answer)  # and the next request is served as if nothing had been

    attempt(well)
    return attempt


def http_seeds() -> list[bytes]:
    import gzip
    import zlib

    body, error = answer_seeds()[0], json.dumps({"error": f"Incorrect key {KEY}"}).encode()

    def of(status: str, content: bytes, *headers: bytes, length: bool = True) -> bytes:
        told = [b"Content-Length: %d" % len(content)] if length else []
        return b"\r\n".join(
            [b"HTTP/1.1 " + status.encode(), b"Content-Type: application/json", *headers, *told, b"", content]
        )

    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:50], body[50:])) + b"0\r\n\r\n"
    return [
        of("200 OK", body),
        of("200 OK", body, length=False),
        of("200 OK", chunks, b"Transfer-Encoding: chunked", length=False),
        of("200 OK", gzip.compress(body, mtime=0), b"Content-Encoding: gzip"),
        of("200 OK", zlib.compress(body), b"Content-Encoding: deflate"),
        of("200 OK", gzip.compress(body, mtime=0)[:-9], b"Content-Encoding: x-gzip", length=False),
        of("200 OK", body, b"Content-Encoding: br"),
        of(
            "200 OK", body, b"Set-Cookie: a=b; expires=Wed, 21 Oct 2099 07:28:00 GMT; path=/", b"Connection: keep-alive"
        ),
        b"HTTP/1.1 100 Continue\r\n\r\n" + of("200 OK", body),
        of("429 Too Many Requests", error, b"Retry-After: 1e9"),
        of("503 Down", error, b"Retry-After: Wed, 21 Oct 2099 07:28:00 GMT"),
        of("408 Timeout", error),
        of("400 Bad Request", error),
        of("401 Unauthorized", error, b"WWW-Authenticate: Bearer"),
        of("404 Not Found", b"<html>no such model</html>"),
        of("307 Temporary Redirect", b"", b"Location: http://elsewhere:80/v1?key=" + KEY.encode()),
        of("302 Found", b"", b"Location: //[::1]:99999/\xff"),
        of("204 No Content", b"", length=False),
        b"SSH-2.0-OpenSSH_9.6\r\n",
    ]


HTTP_WORDS = (
    *ANSWER_WORDS[-20:], b"HTTP/1.1 ", b"HTTP/1.0 ", b"HTTP/2 ", b"\r\n", b"\r\n\r\n", b" 200 OK\r\n", b" 429 X\r\n", b" 301 X\r\n",
    b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"Content-Encoding: gzip\r\n", b"Content-Encoding: ", b"deflate",
    b"Retry-After: ", b"inf", b"nan", b"-1", b"Location: ", b"http://", b"//", b"?", b"#", b"@", b"[::1]", b":0", b"xn--", b"%", b" 401 ",
    b"Set-Cookie: ",
    b"; domain=", b"; max-age=", b"Connection: close\r\n", b"Connection: upgrade\r\n", b"Upgrade: h2c\r\n", b"\x00", b"\xff", KEY.encode(),
)  # fmt: skip


# The response store


def segments(folder: Path, closing: ExitStack) -> Attempt:
    """A segment of the response store: records that ``verify`` has no more to say of than of any, or one clear line that it says too.

    What a record says by itself is what the index says of it. A writer keeps every record, and cuts off at most an unfinished last line.
    Lines that begin with "=" are given their check, so that what follows the check is reached.
    """
    store = folder / "store"
    store.mkdir()
    path = store / "segment-00000.jsonl"
    closing.enter_context(mock.patch("pipeline.responses.say_line"))  # what was cut off

    def unfinished_alone(content: bytes) -> None:
        kept = path.read_bytes()
        assert content.startswith(kept) and b"\n" not in content[len(kept) :], "more was cut off"

    def attempt(content: bytes) -> None:
        lines = content.split(b"\n")
        framed = [responses._framed(line[1:])[:-1] if line[:1] == b"=" else line for line in lines]
        content = b"\n".join(framed)
        path.write_bytes(content)
        told = list(responses.verify(store))
        for line in told:
            one_line(line)
        try:
            found = [record for _, _, record in responses.read_store(store)]
        except RunError as error:
            one_line(error)
            assert str(error) in told
            with suppress(RunError), responses.open_store(store):
                pass
            unfinished_alone(content)
            return
        for record in found:
            assert responses.record(responses.encoded(record), "here") == record
        with responses.open_store(store) as opened:
            for record in found:
                assert opened.get(record.family, record.max_tokens) == _first(found, record.family, record.max_tokens)
        unfinished_alone(content)
        assert [record for _, _, record in responses.read_store(store)] == found

    return attempt


def _first(found: list[Stored], family: str, max_tokens: int) -> Stored:
    """The first record that answers a request."""
    return next(
        one
        for one in found
        if one.family == family
        and (one.max_tokens == max_tokens or (one.max_tokens < max_tokens and one.finish_reason == "stop"))
    )


def _record(number: int, text: str, max_tokens: int = 20, finish_reason: str = "stop", **more: Any) -> Stored:
    asked: dict[str, Any] = {
        "identity": "3" * 32, "prompt": f"p{number}", "sampling": {"top_p": 1.0, "stop": []}, "seed": 0, "sample": 0,
    }  # fmt: skip
    family = responses.family_key(**asked)
    return Stored(
        key=responses.request_key(family, max_tokens), family=family, max_tokens=max_tokens, teacher="test", text=text,
        finish_reason=finish_reason, prompt_tokens=3, completion_tokens=1, **asked, **more,
    )  # fmt: skip


def odd_segments() -> dict[str, bytes]:
    """Records that fit their check, and that no store writes."""
    record = _record(1, "yes")
    bare, family = b"=" + record.line(), record.family.encode()
    spelt = bare.replace(b'"finish_reason":"stop"', b'"finish_reason":"st\\u006fp"')
    return {
        "two keys": bare[:-1] + b',"key":"' + b"f" * 32 + b'"}\n',
        "two families": bare.replace(family, b"f" * 32)[:-1] + b',"family":"' + family + b'"}\n',
        "an end that is spelt otherwise": spelt + b"\n" + bare.replace(b":20,", b":40,") + b"\n",
        "sampling that no JSON can say": bare.replace(b'"top_p":1.0', b'"top_p":NaN') + b"\n",
        "nothing": b"={}\n",
    }


def segment_seeds() -> list[bytes]:
    some = [
        _record(1, "yes"),
        _record(2, "cut", finish_reason="length"),
        _record(2, 'caf\xe9 \u2028 \U0001f600 "quoted" \\ \n', max_tokens=40, mean_logprob=-0.25),
        _record(3, "", label_logprobs={"sports": -0.1}),
    ]
    whole = [responses.encoded(one) for one in some]
    bare = [b"=" + one.line() for one in some]
    return [
        b"".join(whole),
        b"".join(whole)[:-10],
        b"".join(whole)[:-1],
        whole[0],
        whole[0].replace(b"yes", b"no"),
        whole[0] + whole[0],
        *(one + b"\n" for one in bare),
        b"\n".join([*bare, b""]),
        *odd_segments().values(),
    ]


SEGMENT_WORDS = (
    *ROW_WORDS[:24], b"\n=", b'={"key":"', b'"family":"', b'"max_tokens":', b'"finish_reason":"', b'"stop"', b'"st\\u006fp"', b'"teacher"',
    b'"identity"', b'"prompt"', b'"sampling"', b'"seed"', b'"sample"', b'"text"', b'"mean_logprob"', b'"label_logprobs"', b',"check":"',
    b"0" * 32, b"0123456789abcdef", b"9999999999",
)  # fmt: skip


# Defects that were put there


def planted(folder: Path, closing: ExitStack) -> Attempt:
    """No oracle, but a defect to be found, of which neither seeds nor words tell: branches alone lead to it."""

    def attempt(content: bytes) -> None:
        if content[0:1] != b"o":
            return
        if content[1:2] != b"h":
            return
        if content[2:3] != b"n":
            return
        if content[3:4] != b"o":
            return
        raise AssertionError("the defect that was put there")

    return attempt


def endless(folder: Path, closing: ExitStack) -> Attempt:
    """No oracle, but an input that takes for ever: the first."""

    def attempt(content: bytes) -> None:
        if content == b"seeds":
            threading.Event().wait()

    return attempt


PLANTED = ("planted", "endless")
TARGETS = {
    "rows": Target(rows, row_seeds, ROW_WORDS),
    "csv": Target(csv, csv_seeds, CSV_WORDS),
    "answers": Target(answers, answer_seeds, ANSWER_WORDS),
    "segments": Target(segments, segment_seeds, SEGMENT_WORDS),
    "http": Target(http, http_seeds, HTTP_WORDS),
    "parquet": Target(parquet, parquet_seeds, PARQUET_WORDS),
    "planted": Target(planted, lambda: [b"seeds"], ()),
    "endless": Target(endless, lambda: [b"seeds"], ()),
}
