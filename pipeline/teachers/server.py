"""A teacher behind any OpenAI-compatible endpoint: `vllm serve`, or a provider's.

    teacher: {backend: server, base_url: "http://127.0.0.1:8000/v1", model: Qwen/Qwen3-32B, revision: 9216db57, concurrency: 64}

Each request is one call of ``/chat/completions``, or of ``/completions`` with ``api: completions``, which is sent the blocks' texts one
after the other. ``concurrency`` of them are under way, and the next one is sent as soon as one is answered. A JSON schema is sent as the
standard's ``response_format``, a regular expression or a choice as vLLM's ``structured_outputs``, and for chat an assistant prefix as a
last assistant turn with vLLM's ``continue_final_message``: another server may refuse those two.

What becomes of a request: 408, 409, 5xx, time-outs and broken connections are tried again, ``retries`` times, after a growing pause or
the server's ``Retry-After``. 429 makes all requests wait and fewer of them be sent at once; it costs a request none of its retries, for
``patience`` seconds. What then has no answer is a failure of its row, with one of these reasons: ``server_error``, ``rate_limited``,
``timed_out``, ``connection_failed``, ``refused`` (another status), ``unreadable_answer`` (no JSON of the protocol, or far too long),
``no_text``, ``not_finished`` (neither stopped nor cut by ``max_tokens``: filtered, say, or calling a tool), ``other_model`` and
``key_in_answer``. Where a key or model is not accepted (401, 403, 404), or nothing can be delivered, the run stops: no row is at fault.

The retry loop is the backend's own because all requests share one pause, and because answers are read byte by byte against limits of
time and size, which the clients that retry by themselves do not do. Every request has its own connection: on a shared one a server that
sends too much would have the surplus taken for the answer to the next request.

Limits: what runs behind the address cannot be verified; ``revision`` is what you say it is, and once it is given the address no longer
counts for the request's key. A sampling parameter that is not set is whatever the server takes for it (vLLM's looks into the model's
``generation_config.json``). The server makes the tokens: special tokens that a row spells can be seen here only where ``tokenizer`` is
set. Then such a row becomes the failure ``special_token`` and is not sent; without it the row is sent as it stands, and it depends on the
server whether it can forge a turn. Turns that a chat template marks by words are never seen. Other fields, such as a reasoning model's
``reasoning_content``, are not stored. A server may have been paid for a try that timed out or broke.
"""

import json
import math
import os
import random
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, JsonValue

from pipeline import control, embedded, foreign
from pipeline.files import InputError, RunError, plain, private
from pipeline.prompts import FAILURES
from pipeline.teachers import completions
from pipeline.teachers.contract import Answer, Common, Failure, Request, Sampling, Teacher, further
from pipeline.teachers.forged import by_letters, by_tokens, refusal
from pipeline.terms import OutputTerms, of_address

if TYPE_CHECKING:
    import httpx
    from anyio import CancelScope

OK: Final = 200
TOO_MANY: Final = 429
TRY_AGAIN: Final = {408, 409}
SETTINGS_WRONG: Final = {401, 403, 404}
SERVER_ERROR: Final = 500
ANSWER_BYTES: Final = 16 * 2**20  # an answer without log-probabilities is not longer
LOGPROB_BYTES: Final = 256  # what one token and its log-probability may add to that
ERROR_BYTES: Final = 2**16  # read of a refusal
TOP_TOKENS: Final = 20  # the most that the protocol and vLLM give
FEWEST_TO_STOP: Final = 4  # requests in a row that cannot be delivered, before that is taken to be no request's fault
MORE_TO_STOP: Final = 64  # the same, once there were answers
SHORTEST_STORM_PAUSE: Final = 0.01  # seconds
VERSION: Final = re.compile(r"([-:@]([0-9]{3,}|[0-9]{4}-[0-9]{2}-[0-9]{2}|latest))?(\.gguf)?")  # after a model's name
NAMED: Final = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos", "/": "sol", "+": "plus", "=": "equals"}
SECRET_LENGTH: Final = 16  # shorter keys ("EMPTY") are no secrets, and occur in answers
REFUSED_SAMPLING: Final = {
    "n": "set stages.sample.n",
    "seed": "set stages.sample.seed",
    **dict.fromkeys(("structured_outputs", "response_format"), "set stages.sample.structured or regex"),
    **dict.fromkeys(("model", "messages", "prompt", "stream"), "the backend sets it"),
    **dict.fromkeys(("add_generation_prompt", "continue_final_message"), "the prompt's block assistant_prefix sets it"),
    **dict.fromkeys(("top_logprobs", "prompt_logprobs"), "set stages.sample.soft_labels"),
    **dict.fromkeys(("echo", "suffix", "best_of"), "an answer is stored as the model continued the prompt"),
}


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:  # a wrong port raises ValueError
        raise ValueError("must be an address such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query:
        raise ValueError("settings are no place for secrets; name an environment variable in api_key_env")
    return url.rstrip("/")


class Server(Common):
    """Settings. ``api_key_env`` is the name of an environment variable; the key itself never stands in a file."""

    backend: Literal["server"]
    base_url: Annotated[str, AfterValidator(_address)] = Field(description="the address up to and with /v1")
    model: str = Field(min_length=1)
    revision: str | None = Field(
        default=None, description="what runs there, in words of yours; a change asks for everything anew"
    )
    answers_as: str | None = Field(
        default=None,
        min_length=1,
        description="what the server calls the model in its answers, where that is another name; any other is a failure",
    )
    api: Literal["chat", "completions"] = Field(
        default="chat", description="completions: the prompt's blocks are sent as one text, without a chat template"
    )
    tokenizer: str | None = Field(
        default=None,
        min_length=1,
        description="folder or hub repository (in the local cache) of the model's tokenizer, to count prompt tokens beforehand, "
        "and to set rows apart that spell its special tokens",
    )
    tokenizer_revision: str | None = Field(
        default=None, min_length=1, description="branch, tag or commit of the tokenizer's repository"
    )
    api_key_env: str | None = Field(default=None, description="name of the environment variable with the key")
    concurrency: int = Field(default=16, ge=1, description="requests under way at once")
    timeout: float = Field(default=300.0, gt=0, description="seconds for one try, from connecting to the last byte")
    retries: int = Field(default=5, ge=0, description="further tries after the first")
    pause: float = Field(
        default=1.0,
        ge=0,
        description="seconds before the second try, doubled for each that follows, less a random part",
    )
    longest_pause: float = Field(
        default=60.0, ge=0, description="seconds between two tries at most, whatever the server asks for"
    )
    patience: float = Field(
        default=900.0,
        ge=0,
        description="seconds for which a request goes on being asked while the server says to slow down (429)",
    )


class _WrongSettings(Exception):
    """The server refused what no row can change."""


class _Undelivered(Failure):
    """The request never got an answer, for no fault of its own."""


def name(settings: Server) -> str:
    """What responses and reports call this teacher."""
    return settings.name or settings.model


def identity(settings: Server) -> dict[str, JsonValue]:
    """Model and revision as the settings name them; the address where there is no revision."""
    found: dict[str, JsonValue] = {"backend": "server", "model": settings.model, "revision": settings.revision}
    if settings.api != "chat":
        found["api"] = settings.api
    return found if settings.revision else {**found, "base_url": settings.base_url}


def terms(settings: Server) -> OutputTerms:
    """The provider's, by the address; the name under which a model is served tells nothing."""
    return of_address(settings.base_url)


def facts(settings: Server, identity: Mapping[str, Any]) -> dict[str, JsonValue]:
    """Where it was asked, and for what."""
    return {
        "backend": "server",
        "base_url": settings.base_url,
        "api": settings.api,
        "model": settings.model,
        "revision": settings.revision,
        "answers_as": settings.answers_as,
    }


def counter(settings: Server) -> Callable[[Request], int] | None:
    """Counts a prompt's tokens as vLLM's server does, with the setting ``tokenizer``; None without it. 0 for a prompt that is not sent.

    Raises InputError where the tokenizer is not there or, when it counts, where its chat template refuses a prompt.

    Limits: a server started with a chat template of its own is not known here.
    """
    if settings.tokenizer is None:
        return None
    tokenizer = _tokenizer(settings.tokenizer, settings.tokenizer_revision)

    forged = _forged(tokenizer)

    def count(request: Request) -> int:
        assert request.messages is not None
        if forged(request) is not None:
            return 0
        more = further(request.sampling, REFUSED_SAMPLING)
        if settings.api == "completions":
            special = more.get("add_special_tokens", True)
            return len(tokenizer(_text(request), add_special_tokens=special)["input_ids"])
        variables: dict[str, Any] = {}
        if "reasoning_effort" in more:
            variables = {
                "reasoning_effort": more["reasoning_effort"],
                "enable_thinking": more["reasoning_effort"] != "none",
            }
        given = more.get("chat_template_kwargs")
        variables |= given if isinstance(given, dict) else {}
        variables["add_generation_prompt"] = not request.messages.assistant_prefix
        variables["continue_final_message"] = bool(request.messages.assistant_prefix)
        if "chat_template" in more:
            variables["chat_template"] = more["chat_template"]
        try:
            text = tokenizer.apply_chat_template(_turns(request), tokenize=False, **variables)
        except FAILURES as error:
            raise InputError(
                f"task.prompt: the chat template of {plain(str(settings.tokenizer))} refuses the prompt: {plain(str(error))}"
            ) from None
        return len(tokenizer(text, add_special_tokens=more.get("add_special_tokens", False))["input_ids"])

    return count


@lru_cache(maxsize=4)
def _tokenizer(source: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    path = str(Path(source).expanduser()) if source.startswith("~") else source
    if source == "embedded":
        path = str(embedded.folder())
    try:
        return AutoTokenizer.from_pretrained(path, revision=revision, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        if (problem := foreign.told(error, path)) is not None:
            raise InputError(f"stages.sample.teacher.tokenizer: {plain(source)}: {problem}") from None
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise InputError(
            f"stages.sample.teacher.tokenizer: {plain(source)}: no tokenizer there ({plain(lines[0] if lines else '', 200)}); "
            f"give its folder, or download it first (`hf download {plain(source)}`)"
        ) from None


def _forged(tokenizer: Any) -> Callable[[Request], str | None]:
    """A function that gives the special token that a request's row spells."""
    spelling = control.spelling(tokenizer)
    return lambda request: by_letters(spelling, request) or by_tokens(tokenizer, request)


@contextmanager
def connect(settings: Server, sampling: Sampling) -> Iterator[Teacher]:
    """Connections to the server for the time of the block.

    Raises InputError where the key's environment variable is not set or a sampling parameter is not the user's to set.
    """
    from anyio.from_thread import start_blocking_portal

    further(sampling, REFUSED_SAMPLING)
    key = _key(settings)
    forged = (
        None if settings.tokenizer is None else _forged(_tokenizer(settings.tokenizer, settings.tokenizer_revision))
    )
    # An event loop in a thread of its own: it works in a notebook, whose thread has one already, and Ctrl-C cancels what is under way.
    with start_blocking_portal() as portal:
        line = portal.call(_Line, settings, key)
        watch = _Watch(settings)
        reading = partial(
            completions.read,
            chat=settings.api == "chat",
            is_asked=partial(_is_asked, settings),
            hide=line.hide,
            refuses_key=line.secret,
        )

        def answer(requests: Iterator[Request]) -> Iterator[tuple[Request, Answer | Failure]]:
            done: SimpleQueue[Future[bytes | Failure | None]] = SimpleQueue()
            under_way: dict[Future[bytes | Failure | None], tuple[int, Request]] = {}
            asked, ended = 0, False
            try:
                while True:
                    # An answer that is there is given before the iterator is asked, which may take its time.
                    while not ended and len(under_way) < settings.concurrency and done.empty():
                        request = next(requests, None)
                        if request is None:
                            ended = True
                            break
                        if forged is not None and (token := forged(request)) is not None:
                            yield request, refusal(token)
                            continue
                        body = json.dumps(_body(settings, request), ensure_ascii=False).encode()
                        future = portal.start_task_soon(line.ask, body, _longest(request))
                        under_way[future] = (asked, request)
                        asked += 1
                        future.add_done_callback(done.put)
                    if not under_way:
                        break
                    future = done.get()
                    number, request = under_way.pop(future)
                    try:
                        came = future.result()
                    except _WrongSettings as error:
                        raise InputError(f"stages.sample.teacher: {error}") from None
                    if came is None:
                        raise RunError("teacher: the connections to the server were closed while it was being asked")
                    result = reading(came, request) if isinstance(came, bytes) else came
                    watch.note(number, result, nothing_left=ended and not under_way)
                    yield request, result
            finally:
                if under_way and not line.closed:
                    portal.call(line.cancel)
                    wait(under_way)

        try:
            yield answer
        finally:
            portal.call(line.close)


class _Watch:
    """Notices where it is no row's fault that there is no answer: all first requests, or very many in a row, come to nothing."""

    def __init__(self, settings: Server) -> None:
        self.settings = settings
        self.first = max(settings.concurrency, FEWEST_TO_STOP)
        self.well = False  # whether there ever was an answer
        self.lost = 0  # of the first requests; later, in a row

    def note(self, number: int, result: Answer | Failure, *, nothing_left: bool) -> None:
        """Raises RunError or InputError that says what to do. Requests are numbered in the order in which they were sent."""
        another = isinstance(result, Failure) and result.reason == "other_model"
        if not isinstance(result, _Undelivered) and not another:
            self.well, self.lost = True, 0
            return
        assert isinstance(result, Failure)
        if self.well:
            self.lost += 1
            # Those that are told to slow down have waited long already, all of them at the same time.
            hopeless = self.lost >= (
                self.first if result.reason == "rate_limited" else max(4 * self.first, MORE_TO_STOP)
            )
        else:
            self.lost += number < self.first
            hopeless = self.lost >= self.first or nothing_left
        if not hopeless:
            return
        if another:
            model = str(result.evidence["model"])
            raise InputError(
                f"stages.sample.teacher.model: the server's answers say that they are of {model!r}, not of "
                f"{plain(self.settings.model)!r}; if that is the same model, set answers_as: {model}"
            )
        stored = "what was answered before is stored; " if self.well else ""
        raise RunError(
            f"teacher: {self.settings.base_url}: no request could be delivered ({result.evidence['problem']}); "
            f"{stored}start the server or check base_url, then run again"
        )


def _key(settings: Server) -> str | None:
    if settings.api_key_env is None:
        return None
    where = f"stages.sample.teacher.api_key_env: the environment variable {plain(settings.api_key_env)}"
    key = os.environ.get(settings.api_key_env)
    if not key:
        raise InputError(f"{where} is not set; set it to the key")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"{where} holds a space or a character that no key has; set it to the key alone")
    return key


def _turns(request: Request) -> list[dict[str, Any]]:
    assert request.messages is not None
    turns: list[dict[str, Any]] = [
        {"role": message.role, "content": message.content} for message in request.messages.messages
    ]
    if request.messages.assistant_prefix:
        turns.append({"role": "assistant", "content": request.messages.assistant_prefix})
    return turns


def _text(request: Request) -> str:
    """The prompt of ``api: completions``."""
    return "".join(turn["content"] for turn in _turns(request))


def _body(settings: Server, request: Request) -> dict[str, Any]:
    assert request.messages is not None
    sampling = request.sampling
    chat = settings.api == "chat"
    body: dict[str, Any] = {
        "model": settings.model,
        **({"messages": _turns(request)} if chat else {"prompt": _text(request)}),
        "temperature": sampling["temperature"],
        "top_p": sampling["top_p"],
        "max_tokens": sampling["max_tokens"],
        "seed": request.seed,
        **further(sampling, REFUSED_SAMPLING),
    }
    if sampling["stop"]:
        body["stop"] = sampling["stop"]
    structured: Any = sampling["structured"]
    if structured is not None and "json" in structured:
        schema = {"name": "answer", "schema": structured["json"], "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif structured is not None:
        body["structured_outputs"] = structured
    if chat and request.messages.assistant_prefix:
        body |= {"add_generation_prompt": False, "continue_final_message": True}
    soft = sampling.get("soft_labels") is not None
    if soft or sampling.get("logprobs"):
        body["logprobs"] = True if chat else TOP_TOKENS if soft else 1
    if soft and chat:
        body["top_logprobs"] = TOP_TOKENS
    return body


def _longest(request: Request) -> int:
    """Bytes that the answer to a request can have."""
    tokens = 0
    if request.sampling.get("soft_labels") is not None:
        tokens = 1 + TOP_TOKENS
    elif request.sampling.get("logprobs"):
        tokens = 2
    return ANSWER_BYTES + min(request.max_tokens, 2**20) * tokens * LOGPROB_BYTES


@dataclass(frozen=True)
class _Reply:
    """What came of one try. Without a status the connection broke, or the time was up."""

    status: int | None
    content: bytes = b""
    problem: str = ""
    retry_after: float = 0.0
    too_late: bool = False


class _Line:
    """The way to the server, used in one event loop: it sends bodies and knows how fast that may go. Ends with ``close``."""

    def __init__(self, settings: Server, key: str | None) -> None:
        import anyio
        import httpx

        self.settings = settings
        self.url = f"{settings.base_url}/{'chat/completions' if settings.api == 'chat' else 'completions'}"
        self.hide = hidden(key)
        self.secret = key is not None and len(key) >= SECRET_LENGTH
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", "Connection": "close"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        try:
            httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise InputError(f"stages.sample.teacher.base_url: {plain(str(error))}; check the address") from None
        self.client = httpx.AsyncClient(
            headers=headers,
            timeout=None,  # a try is timed as a whole
            limits=httpx.Limits(max_connections=settings.concurrency, max_keepalive_connections=0),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )
        self.slots = anyio.CapacityLimiter(settings.concurrency)
        self.scopes: set[CancelScope] = set()
        self.closed = False
        self.wait_until = self.slowed_at = -math.inf
        self.storm = 0  # times in a row that the server said to slow down
        self.answered = 0  # since the number of slots last changed

    async def ask(self, body: bytes, longest: int) -> bytes | Failure | None:
        """The answer's bytes or a failure; None where it was cancelled. Raises _WrongSettings."""
        import anyio

        with anyio.CancelScope() as scope:
            self.scopes.add(scope)
            try:
                return await self._ask(body, longest)
            finally:
                self.scopes.discard(scope)
        return None

    async def cancel(self) -> None:
        """End all that is under way."""
        for scope in self.scopes:
            scope.cancel()

    async def close(self) -> None:
        """End all that is under way, and let go of the connections."""
        self.closed = True
        await self.cancel()
        await self.client.aclose()

    async def _ask(self, body: bytes, longest: int) -> bytes | Failure:
        import anyio

        tries = retries = 0
        refused = ""
        patient_until = math.inf
        while True:
            if not await self._turn(patient_until):
                return _Undelivered("rate_limited", {"status": TOO_MANY, "problem": refused, "tries": tries})
            sent = anyio.current_time()
            try:
                reply = await self._try(body, longest)
            finally:
                self.slots.release()
            tries += 1
            problem = plain(private(self.hide(reply.problem)))
            if reply.status == TOO_MANY:
                self._slow_down(sent, reply.retry_after)
                refused = problem
                patient_until = min(patient_until, sent + self.settings.patience)
                continue
            if reply.status is not None and reply.status < SERVER_ERROR:
                self._speed_up()
                if reply.status == OK:
                    return Failure("unreadable_answer", {"problem": problem}) if problem else reply.content
                if reply.status in SETTINGS_WRONG:
                    raise _WrongSettings(
                        f"{self.url} answers {reply.status}: {problem}; check model, base_url and api_key_env"
                    )
                if reply.status not in TRY_AGAIN:
                    return Failure("refused", {"status": reply.status, "problem": problem})
            if retries == self.settings.retries:
                reason = "timed_out" if reply.too_late else "connection_failed"
                if reply.status is not None:
                    reason = "server_error"
                return _Undelivered(reason, {"status": reply.status, "problem": problem, "tries": tries})
            retries += 1
            await anyio.sleep(self._pause(self.settings.pause, retries, reply.retry_after))

    async def _turn(self, until: float) -> bool:
        """Wait for a slot, which is then taken, and for the end of everybody's pause; False where that is not before ``until``."""
        import anyio

        with anyio.CancelScope(deadline=until):
            await self.slots.acquire()
            try:
                while (left := self.wait_until - anyio.current_time()) > 0:
                    await anyio.sleep(left)
            except anyio.get_cancelled_exc_class():
                self.slots.release()
                raise
            return True
        return False

    async def _try(self, body: bytes, longest: int) -> _Reply:
        import anyio
        import httpx

        with anyio.move_on_after(self.settings.timeout):
            try:
                async with self.client.stream("POST", self.url, content=body) as response:
                    status = response.status_code
                    content = bytearray()
                    problem = await _receive(response, content, longest if status == OK else ERROR_BYTES)
                    if status == OK:
                        return _Reply(status, bytes(content), problem)
                    if "location" in response.headers:
                        problem = f"redirects to {response.headers['location']}"
                    else:
                        problem = content.decode(errors="replace") or problem
                    return _Reply(status, problem=problem, retry_after=_seconds(response.headers.get("retry-after")))
            except (httpx.RequestError, httpx.InvalidURL) as error:  # the latter for a redirection
                return _Reply(None, problem=f"{type(error).__name__}: {error}".removesuffix(": "))
        return _Reply(None, problem=f"no whole answer within {self.settings.timeout:g} seconds", too_late=True)

    def _slow_down(self, sent: float, retry_after: float) -> None:
        """Let all requests wait, and have half as many under way; once for all of those that were sent together."""
        import anyio

        now = anyio.current_time()
        if sent >= self.slowed_at:
            self.slowed_at = now
            self.storm += 1
            self.answered = 0
            self.slots.total_tokens = max(1, int(self.slots.total_tokens) // 2)
        pause = self._pause(max(self.settings.pause, SHORTEST_STORM_PAUSE), self.storm, retry_after)
        self.wait_until = max(self.wait_until, now + pause)

    def _speed_up(self) -> None:
        """One more under way, up to ``concurrency``, for each round that went well."""
        self.storm = 0
        self.answered += 1
        if self.answered >= self.slots.total_tokens < self.settings.concurrency:
            self.answered = 0
            self.slots.total_tokens += 1

    def _pause(self, first: float, tries: int, retry_after: float) -> float:
        pause = first * 2.0 ** min(tries - 1, 30) * random.uniform(0.5, 1)
        return min(max(pause, retry_after), self.settings.longest_pause)


async def _receive(response: "httpx.Response", content: bytearray, longest: int) -> str:
    """Read a body into ``content``, no more than ``longest`` bytes of it even where it is packed; what is wrong with it, or ''."""
    coding = response.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        return f"encoded as {coding}, which was not asked for"
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32) if coding not in ("", "identity") else None
    try:
        async for raw in response.aiter_raw():
            content += raw if unpack is None else unpack.decompress(raw, longest + 1 - len(content))
            if len(content) > longest:
                del content[longest:]
                return f"longer than {longest:,} bytes"
    except zlib.error:
        return f"not encoded as {coding}, though it says so"
    return f"its {coding} encoding breaks off" if unpack is not None and not unpack.eof else ""


def _seconds(retry_after: str | None) -> float:
    """How long ``Retry-After`` says to wait: a number of seconds, or a date. 0 where it says nothing that can be understood."""
    if retry_after is None:
        return 0.0
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return 0.0 if math.isnan(seconds) else max(seconds, 0.0)


def hidden(key: str | None) -> Callable[[str], str]:
    r"""What takes the key out of a text, each of its characters in any way that a server's JSON, addresses or pages may spell it.

    ``+`` is also ``\u002B``, which .NET writes for it, ``%2b`` or ``&#43;``, and ``\\u002b`` where a text quotes another one.
    """
    if key is None:
        return lambda text: text
    gap = "\0{0,3}"  # what UTF-16 and UTF-32 have between characters
    pattern = re.compile(gap.join(_spellings(character) for character in key))
    return lambda text: pattern.sub("[key]", text)


def _spellings(character: str) -> str:
    """A pattern of them: as itself, escaped, or by its number or name. Repeats are bounded: an answer can be 16 MB of backslashes."""
    code, number, itself = f"{ord(character):02x}", ord(character), re.escape(character)
    name = f"|{NAMED[character]}" if character in NAMED else ""
    spelt = rf"\\{{1,4}}u00{code}|%(?:25){{0,2}}{code}|&(?:#x0{{0,4}}{code}|#0{{0,4}}{number}{name});"
    return rf"(?:{itself}|(?i:{spelt}))" if character.isalnum() else rf"(?:{itself}|\\{{1,4}}{itself}|(?i:{spelt}))"


def _is_asked(settings: Server, model: object) -> bool:
    """Whether an answer's model is the one asked for: by its name without owner, to which a version may be added (gpt-4o-2024-08-06)."""
    if settings.answers_as is not None or not isinstance(model, str):
        return model == settings.answers_as
    asked, answered = (name.rstrip("/").rpartition("/")[2].lower() for name in (settings.model, model))
    asked = asked.removesuffix("latest").rstrip("-:@") or asked
    return answered.startswith(asked) and VERSION.fullmatch(answered, len(asked)) is not None
