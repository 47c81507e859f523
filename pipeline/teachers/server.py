"""A teacher behind any OpenAI-compatible endpoint: `vllm serve`, or a provider's.

    teacher: {backend: server, base_url: "http://127.0.0.1:8000/v1", model: Qwen/Qwen3-32B, revision: 9216db57, concurrency: 64}

Each request is one call of ``/chat/completions``. ``regex`` is sent as ``structured_outputs``, and an assistant prefix as a last
assistant turn with ``continue_final_message``: both are vLLM's own fields, another server may refuse them. 408, 409, 429, 5xx and
broken connections are tried again after a growing pause (the server's ``Retry-After``, where it sends one); then, or after another
refusal, the request becomes a failure. Where not one request of a chunk could be delivered, or the server refuses the key or does not
know the model, the run stops: that is no row's fault.

Limits: what runs behind the address cannot be verified; ``revision`` is what you say it is, and once it is given the address no longer
counts for the request's key. Special tokens that a row spells cannot be seen here. Other fields of the answer, such as a reasoning
model's ``reasoning_content``, are not stored.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from pipeline.files import InputError, RunError, plain, strict_json
from pipeline.teachers.contract import Answer, Failure, Request, Sampling, Teacher, further

if TYPE_CHECKING:
    import httpx

TRY_AGAIN: Final = {408, 409, 429}
SETTINGS_WRONG: Final = {401, 403, 404}
LONGEST_PAUSE: Final = 60.0  # seconds
REFUSED_SAMPLING: Final = {
    "n": "set stages.sample.n",
    "seed": "set stages.sample.seed",
    "structured_outputs": "set stages.sample.regex",
    **dict.fromkeys(("model", "messages", "stream"), "the backend sets it"),
    **dict.fromkeys(("add_generation_prompt", "continue_final_message"), "the prompt's block assistant_prefix sets it"),
    **dict.fromkeys(("logprobs", "top_logprobs", "prompt_logprobs"), "log-probabilities are not stored"),
}


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an address such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query:
        raise ValueError("settings are no place for secrets; name an environment variable in api_key_env")
    return url.rstrip("/")


class Server(BaseModel):
    """Settings. ``api_key_env`` is the name of an environment variable; the key itself never stands in a file."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    backend: Literal["server"]
    base_url: Annotated[str, AfterValidator(_address)]
    model: str = Field(min_length=1)
    revision: str | None = Field(
        None, description="what runs there, in words of yours; a change asks for everything anew"
    )
    api_key_env: str | None = None
    concurrency: int = Field(16, ge=1, description="requests under way at once")
    timeout: float = Field(300.0, gt=0, description="seconds for one try")
    retries: int = Field(5, ge=0, description="further tries after the first")
    pause: float = Field(1.0, ge=0, description="seconds before the second try, doubled for each that follows")


class _WrongSettings(Exception):
    """The server refused what no row can change."""


class _Undelivered(Failure):
    """The request never got an answer, for no fault of its own."""


def name(settings: Server) -> str:
    """What responses and reports call this teacher."""
    return settings.model


def identity(settings: Server) -> dict[str, JsonValue]:
    """Model and revision as the settings name them; the address where there is no revision."""
    found: dict[str, JsonValue] = {"backend": "server", "model": settings.model, "revision": settings.revision}
    return found if settings.revision else {**found, "base_url": settings.base_url}


@contextmanager
def connect(settings: Server, sampling: Sampling) -> Iterator[Teacher]:
    """Connections to the server for the time of the block.

    Raises InputError where the key's environment variable is not set or a sampling parameter is not the user's to set.
    """
    import httpx
    from anyio.from_thread import start_blocking_portal

    more = further(sampling, REFUSED_SAMPLING)
    headers = {}
    if settings.api_key_env is not None:
        key = os.environ.get(settings.api_key_env)
        if not key:
            raise InputError(
                f"stages.sample.teacher.api_key_env: the environment variable {plain(settings.api_key_env)} is not set; set it to the key"
            )
        headers["Authorization"] = f"Bearer {key}"
    limits = httpx.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency)
    # An event loop in a thread of its own: it works in a notebook, whose thread has one already, and Ctrl-C cancels what is under way.
    with start_blocking_portal() as portal:
        client = httpx.AsyncClient(headers=headers, timeout=settings.timeout, limits=limits)

        def answer(requests: Sequence[Request]) -> list[Answer | Failure]:
            try:
                results: list[Answer | Failure] = portal.call(
                    _ask_all, client, settings, [_body(settings, sampling, more, request) for request in requests]
                )
            except _WrongSettings as error:
                raise InputError(f"stages.sample.teacher: {error}") from None
            if results and all(isinstance(result, _Undelivered) for result in results):
                failure = results[0]
                assert isinstance(failure, Failure)
                raise RunError(
                    f"teacher: {settings.base_url}: no request could be delivered ({plain(str(failure.evidence['problem']))}); "
                    "start the server or check base_url, then run again"
                )
            return results

        try:
            yield answer
        finally:
            portal.call(client.aclose)


def _body(settings: Server, sampling: Sampling, more: dict[str, JsonValue], request: Request) -> dict[str, Any]:
    assert request.messages is not None
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": [message.model_dump() for message in request.messages.messages],
        "temperature": sampling["temperature"],
        "top_p": sampling["top_p"],
        "max_tokens": sampling["max_tokens"],
        "seed": request.seed,
        **more,
    }
    if sampling["stop"]:
        body["stop"] = sampling["stop"]
    if sampling["regex"] is not None:
        body["structured_outputs"] = {"regex": sampling["regex"]}
    if request.messages.assistant_prefix:
        body["messages"].append({"role": "assistant", "content": request.messages.assistant_prefix})
        body |= {"add_generation_prompt": False, "continue_final_message": True}
    return body


async def _ask_all(
    client: "httpx.AsyncClient", settings: Server, bodies: list[dict[str, Any]]
) -> list[Answer | Failure]:
    """One result for each body, in their order, at most ``concurrency`` at once."""
    import anyio

    results: list[Answer | Failure | None] = [None] * len(bodies)
    wrong: list[_WrongSettings] = []
    slots = anyio.CapacityLimiter(settings.concurrency)
    async with anyio.create_task_group() as group:

        async def ask(place: int) -> None:
            async with slots:
                try:
                    results[place] = await _ask(client, settings, bodies[place])
                except _WrongSettings as error:
                    wrong.append(error)
                    group.cancel_scope.cancel()

        for place in range(len(bodies)):
            group.start_soon(ask, place)
    if wrong:
        raise wrong[0]
    return [result for result in results if result is not None]


async def _ask(client: "httpx.AsyncClient", settings: Server, body: dict[str, Any]) -> Answer | Failure:
    import anyio
    import httpx

    url = f"{settings.base_url}/chat/completions"
    problem, status = "", None
    for attempt in range(settings.retries + 1):
        pause = settings.pause * 2**attempt
        try:
            response = await client.post(url, json=body)
        except httpx.RequestError as error:
            problem, status = f"{type(error).__name__}: {error}".removesuffix(": "), None
        else:
            status = response.status_code
            if status == HTTPStatus.OK:
                return _result(response.content)
            problem = plain(response.text)
            if status in SETTINGS_WRONG:
                raise _WrongSettings(f"{url} answers {status}: {problem}; check model, base_url and api_key_env")
            if status not in TRY_AGAIN and status < HTTPStatus.INTERNAL_SERVER_ERROR:
                return Failure("refused", {"status": status, "problem": problem})
            pause = max(pause, _seconds(response.headers.get("retry-after")))
        if attempt < settings.retries:
            await anyio.sleep(min(pause, LONGEST_PAUSE))
    return _Undelivered("server_error", {"status": status, "problem": plain(problem), "tries": settings.retries + 1})


def _seconds(retry_after: str | None) -> float:
    try:
        seconds = float(retry_after or 0)
    except ValueError:  # an HTTP date
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def _result(content: bytes) -> Answer | Failure:
    try:
        found = strict_json(content)
        choice, usage = found["choices"][0], found.get("usage") or {}
        text, reason = choice["message"]["content"], choice["finish_reason"]
        tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return Failure("unreadable_answer", {"answer": plain(content[:1000].decode(errors="replace"))})
    if not isinstance(text, str) or not isinstance(reason, str):
        return Failure(
            "no_text", {"finish_reason": plain(str(reason)), "answer": plain(content[:1000].decode(errors="replace"))}
        )
    return Answer(text, reason, *tokens)
