"""Work that a user's pattern or template can make endless, stopped after so many seconds of the processor.

    bounded(re.compile("(a+)+b").fullmatch, "a" * 60)     # raises TooLongError after 10 s

A limit that depends on the machine must not decide what a row becomes: who calls this stops the run, and writes nothing.

Limits: only a program's main thread is stopped (others have no signals), and not in the middle of one long step inside C, such as a power
of huge numbers. ``re`` looks for signals while it matches.
"""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

T = TypeVar("T")
SECONDS: Final = 10.0  # of the processor: a match or a rendering takes microseconds


class TooLongError(Exception):
    """It was stopped."""

    def __init__(self) -> None:
        super().__init__(f"takes more than {SECONDS:g} s")


@dataclass
class _Watch:
    """Which call is under way, by its number, and which one it was when the timer was set; the timer runs on from call to call."""

    number: int = 0
    watched: int = 0
    active: bool = False
    set: bool = False


_WATCH = _Watch()


def bounded(call: Callable[..., T], *arguments: Any) -> T:
    """What ``call`` returns. Raises TooLongError where that takes longer than ``SECONDS``, or at the latest twice as long.

    Costs no system call: millions of calls that end in microseconds share one timer.
    """
    if threading.current_thread() is not threading.main_thread():
        return call(*arguments)
    _WATCH.number += 1
    _WATCH.active = True
    if not _WATCH.set:
        signal.signal(signal.SIGVTALRM, _tick)
        _set()
    try:
        return call(*arguments)
    finally:
        _WATCH.active = False


def _set() -> None:
    _WATCH.watched, _WATCH.set = _WATCH.number, True
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)


def _tick(number: int, frame: object) -> None:
    if _WATCH.active and _WATCH.number == _WATCH.watched:
        _WATCH.set = False
        raise TooLongError
    if _WATCH.active:
        _set()
    else:
        _WATCH.set = False


def _forked() -> None:
    """A child has no timer of its own yet."""
    _WATCH.set = False


os.register_at_fork(after_in_child=_forked)
