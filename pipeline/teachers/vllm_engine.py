"""vLLM's engine while it runs: requests one at a time, labels' log-probabilities between them, and its processes, which end with ours."""

import ctypes
import multiprocessing
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count, takewhile
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

from pipeline.files import InputError, RunError
from pipeline.teachers.continuous import EngineDied
from pipeline.teachers.contract import Answer, Failure, Request, one_line

FOLLOWS: Final = re.compile(r"\s*(?:\w+|[^\w\s]+)|\s+")
NO_SPECIALS: Final = re.compile(r"(?!)")  # for an engine that is asked for no labels' log-probabilities


@dataclass
class _Asked:
    """A request that the engine has; with its answer, once that is there and its labels are looked at."""

    number: int
    request: Request
    prompt: list[int]
    answer: Answer | None = None
    scores: dict[str, float] = field(default_factory=dict)
    missing: int = 0


@dataclass
class _Scored:
    """A label whose log-probability the engine is asked for: that of the tokens from ``first`` on, behind the prompt."""

    asked: _Asked
    label: str
    tokens: list[int]
    first: int


class Engine:
    """vLLM's engine, as ``continuous`` wants one. What ``LLM.generate`` does with its requests is done here one request at a time."""

    def __init__(
        self,
        llm: Any,
        processes: list[BaseProcess],
        make_parameters: Any,
        encode: Callable[[Request], list[int] | Failure],
        special: re.Pattern[str],
        adapter: Path | None,
    ) -> None:
        import zmq
        from vllm.exceptions import VLLMClientError, VLLMError
        from vllm.inputs import tokens_input
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.exceptions import EngineDeadError

        self.tokens_input = tokens_input
        self.dead = (EngineDeadError, zmq.ZMQError)
        self.refusals = (ValueError, TypeError, RuntimeError, ArithmeticError, VLLMClientError)
        self.failures = (VLLMError, RuntimeError, ArithmeticError, OSError, zmq.ZMQError)
        self.engine = llm.llm_engine
        self.make_parameters = make_parameters
        self.tokenizer = llm.get_tokenizer()
        self.specials = special
        self.context = int(self.engine.model_config.max_model_len)
        self.encode = encode
        # As many again wait inside the engine as it computes at once, so that it goes on while its last answers are looked at.
        self.room = 2 * int(self.engine.vllm_config.scheduler_config.max_num_seqs)
        self.lora = None if adapter is None else LoRARequest("adapter", 1, str(adapter.resolve()))
        self.names = count()
        self.has: dict[str, _Asked | _Scored] = {}
        self.took = False
        self.death: EngineDied | None = None
        self.end = _watch(self.engine.engine_core, processes)

    def submit(self, number: int, request: Request) -> Answer | Failure | None:
        """As ``continuous.Engine``. Raises InputError where the very first request is not taken."""
        if self.death is not None:
            raise self.death
        tokens = self.encode(request)
        if isinstance(tokens, Failure):
            return tokens
        parameters = self.make_parameters(request.sampling, request.seed)
        try:
            self._add(_Asked(number, request, tokens), tokens, parameters)
        except _Refused as refused:
            if not self.took:  # the very first: it is hardly the row
                raise InputError(f"stages.sample: vLLM refuses the request: {refused}") from None
            return Failure("refused", {"problem": str(refused)})
        self.took = True
        return None

    def step(self) -> list[tuple[int, Answer | Failure]]:
        """As ``continuous.Engine``."""
        if self.death is not None:
            raise self.death
        try:
            outputs = self.engine.step()
        except self.failures as error:
            raise self._died(error) from None
        found: list[tuple[int, Answer | Failure]] = []
        for output in outputs:
            if not output.finished:
                continue
            asked = self.has.pop(output.request_id)
            try:
                result = self._scored(asked, output) if isinstance(asked, _Scored) else self._answered(asked, output)
            except EngineDied as death:  # what else this step brought is good, and is given first
                self.death = death
                continue
            if result is not None:
                found.append(((asked.asked if isinstance(asked, _Scored) else asked).number, result))
        return found

    def close(self) -> None:
        """As ``continuous.Engine``."""
        self.has.clear()
        self.engine.engine_core.shutdown()

    def _add(self, asked: _Asked | _Scored, tokens: list[int], parameters: Any) -> None:
        """Give the engine a request. Raises _Refused where it does not take it, EngineDied."""
        name = str(next(self.names))
        self.has[name] = asked
        try:
            self.engine.add_request(name, self.tokens_input(tokens), parameters, lora_request=self.lora)
        except self.dead as error:
            raise self._died(error) from None
        except self.refusals as error:
            del self.has[name]
            raise _Refused(one_line(error)) from None

    def _died(self, error: Exception) -> EngineDied:
        """How it died: by its process's end, where that is known, which says more than vLLM's words."""
        with suppress(TimeoutError):
            return EngineDied(self.end.result(timeout=2))
        return EngineDied(one_line(error))

    def _answered(self, asked: _Asked, output: Any) -> Answer | Failure | None:
        """The result, or None where its labels have to be looked at first."""
        completion = output.outputs[0]
        prompt_tokens, completion_tokens = len(asked.prompt), len(completion.token_ids)
        if completion.finish_reason not in ("stop", "length"):
            return Failure(
                "not_finished", {"finish_reason": str(completion.finish_reason)}, prompt_tokens, completion_tokens
            )
        sampling = asked.request.sampling
        mean = None
        if sampling.get("logprobs") and completion_tokens:
            mean = float(completion.cumulative_logprob) / completion_tokens
        asked.answer = Answer(
            completion.text,
            completion.finish_reason,
            prompt_tokens,
            completion_tokens,
            cached_tokens=max(0, int(output.num_cached_tokens or 0)),
            mean_logprob=mean,
        )
        soft: Any = sampling.get("soft_labels")
        if soft is None:
            return asked.answer
        ended_by: str | int | None = None
        if completion.finish_reason == "stop":
            ended_by = completion.stop_reason
            if not isinstance(ended_by, str):
                ended_by = int(completion.token_ids[-1])
            elif sampling.get("include_stop_str_in_output"):
                ended_by = None
        variants = label_variants(completion.text, ended_by, soft["after"], soft["labels"], self._encode_answer)
        if variants is None or len(asked.prompt) + max(map(len, variants.values())) >= self.context:
            return asked.answer
        columns = zip(*variants.values(), strict=False)
        first = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        for label, tokens in variants.items():
            asked.scores[label] = 0.0
            if len(tokens) > first:
                asked.missing += 1
                self._score(_Scored(asked, label, tokens, first), from_cache=True)
        return None if asked.missing else replace(asked.answer, label_logprobs=asked.scores)

    def _encode_answer(self, text: str) -> list[int] | None:
        if self.specials.search(text):
            return None
        return [int(token) for token in self.tokenizer.encode(text, add_special_tokens=False)]

    def _score(self, scored: _Scored, *, from_cache: bool) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # vLLM by itself computes the whole prompt anew for this; only the tokens behind the last common one are wanted.
        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            prompt_logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_reading_prefix_cache=not from_cache,
            skip_clone=True,
        )
        try:
            self._add(scored, scored.asked.prompt + scored.tokens, parameters)
        except _Refused as refused:
            raise RunError(f"teacher: vLLM refuses to compute labels' log-probabilities: {refused}") from None

    def _scored(self, scored: _Scored, output: Any) -> Answer | None:
        """The answer, where this was the last of its labels."""
        asked, wanted = scored.asked, scored.tokens[scored.first :]
        # The row that foretells a token is that of the token before; rows of cached tokens are absent, or hold whatever was in memory.
        computed = len(asked.prompt) + len(scored.tokens) - 1 - int(output.num_cached_tokens or 0)
        rows = (output.prompt_logprobs or [])[-len(wanted) :]
        if computed < len(wanted) or len(rows) < len(wanted):
            self._score(scored, from_cache=False)
            return None
        asked.scores[scored.label] = sum(float(row[token].logprob) for row, token in zip(rows, wanted, strict=True))
        asked.missing -= 1
        assert asked.answer is not None
        return None if asked.missing else replace(asked.answer, label_logprobs=asked.scores)


class _Refused(Exception):
    """vLLM does not take a request."""


def label_variants(
    text: str,
    ended_by: str | int | None,
    after: str,
    labels: Sequence[str],
    encode: Callable[[str], list[int] | None],
) -> dict[str, list[int]] | None:
    """For each label the answer's tokens with that label in the place of its own, up to what followed that one; None without a place.

    ``ended_by`` is the stop text or token that ended the answer, None where it was cut. White space behind ``after`` is the answer's own.
    Where none of the labels stands there, it is not known what would follow, and nothing does.
    """
    place = text.rfind(after) if after else 0
    if place < 0:
        return None
    place += len(after)
    place += len(text[place:]) - len(text[place:].lstrip())
    there = [label for label in labels if _stands(label, text, place)]
    follows: str = ""
    ender: list[int] = []
    if there:
        end = place + max(map(len, there))
        rest = text[end:] + (ended_by if isinstance(ended_by, str) else "")
        found = FOLLOWS.match(rest)
        if found:
            follows = found[0]
        elif isinstance(ended_by, int):
            ender = [ended_by]
    variants: dict[str, list[int]] = {}
    for label in labels:
        tokens = encode(text[:place] + label + follows)
        if tokens is None:
            return None
        variants[label] = tokens + ender
    return variants


def _stands(label: str, text: str, place: int) -> bool:
    """Whether the label stands there, and not just as the beginning of a longer word."""
    end = place + len(label)
    return text.startswith(label, place) and not (label[-1:].isalnum() and text[end : end + 1].isalnum())


GUARD: Final = """
import os, signal, sys

def end(process):
    os.kill(process, signal.SIGSTOP)  # so that it starts no more
    children = []
    for thread in os.listdir(f"/proc/{process}/task"):
        with open(f"/proc/{process}/task/{thread}/children") as file:
            children += map(int, file.read().split())
    os.kill(process, signal.SIGKILL)
    for child in children:
        end(child)

handles = {}
for line in sys.stdin:
    try:
        handles[int(line)] = os.pidfd_open(int(line))
    except ProcessLookupError:
        pass
for process, handle in handles.items():
    try:
        signal.pidfd_send_signal(handle, 0)  # raises where it has ended, and its number may be another's
        end(process)
    except OSError:
        pass
"""


@contextmanager
def guard(who: str = "teacher") -> Iterator[Callable[..., Any]]:
    """Gives a function that starts an engine, with its processes, which end with this block and with this process, even where it is killed.

    By themselves they would live on then, and keep their memory (vLLM 0.32). A small process waits for the end of a pipe that only this
    process holds, and then ends those it was told of, with all that they started: after a regular end there are none left. The start
    itself runs in a thread, since it waits in a way that Ctrl-C does not interrupt. Ctrl-C is for this process alone: each of the
    engine's would print a traceback of wherever it met it.
    """
    command = [sys.executable, "-I", "-S", "-c", GUARD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True) as process:

        def start(make: Callable[[], Any], *expected: type[Exception]) -> tuple[Any, list[BaseProcess]]:
            before = multiprocessing.active_children()
            processes: list[BaseProcess] = []
            made: list[Any] = []
            failed: list[Exception] = []
            ended = threading.Event()  # a thread's join that Ctrl-C interrupts takes it for ended (Python 3.11)

            def work() -> None:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # in this thread alone, and in what it starts
                try:
                    made.append(make())
                except expected as error:
                    failed.append(error)
                finally:
                    ended.set()

            def tell() -> None:
                for child in multiprocessing.active_children():
                    if child not in before and child not in processes:
                        processes.append(child)
                        print(child.pid, file=process.stdin, flush=True)

            resource_tracker.ensure_running()  # started in the thread, it would let Ctrl-C through again
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            try:
                while not ended.wait(0.1):
                    tell()
                tell()
            except BaseException:
                _end_at_its_next_line(thread)
                ended.wait(0.1)  # it may be starting a process; later it starts none
                tell()
                process.communicate()
                ended.wait(2)  # it waited for the engine, which has ended
                raise
            for error in failed:
                raise error
            if not made:
                raise RunError(f"{who}: vLLM did not start; the error stands above")
            return made[0], processes

        yield start


def _end_at_its_next_line(thread: threading.Thread) -> None:
    """The thread ends when it is to go on in Python; what it is waiting for outside has to end first."""
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))


def _watch(core: Any, processes: list[BaseProcess]) -> "Future[str]":
    """See to it that the end of an engine's process is told to who waits for its answers; gives how it ended, once it did.

    By itself vLLM 0.32 would let it wait for ever where the process could say nothing before its end, as after SIGKILL.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    waiting = getattr(core, "outputs_queue", None)
    end: Future[str] = Future()
    poll = select.poll()
    try:
        handles = [os.pidfd_open(process.pid) for process in processes if process.pid is not None]
    except ProcessLookupError:
        raise EngineDied("its process ended as soon as it was there") from None
    for handle in handles:
        poll.register(handle, select.POLLIN)

    def watch() -> None:
        ended = poll.poll()[0][0]
        how = "its process ended"
        with suppress(ChildProcessError):  # somebody else has asked for it
            found = os.waitid(os.P_PIDFD, ended, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if found is not None:
                by_signal = found.si_code != os.CLD_EXITED
                how += f" by {signal.Signals(found.si_status).name}" if by_signal else f" with code {found.si_status}"
        for handle in handles:
            os.close(handle)
        end.set_result(how)
        if waiting is not None:
            waiting.put(EngineDeadError())

    if handles:
        threading.Thread(target=watch, name="engine's end", daemon=True).start()
    return end
