"""Work that a user's pattern or template can make endless, stopped after so many seconds of the processor.

    bounded(re.compile("(a+)+b").fullmatch, "a" * 60)     # raises TooLongError after 10 s

A limit that depends on the machine must not decide what a row becomes: who calls this stops the run, and writes nothing.

Limits: only a program's main thread is stopped (others have no signals), and not in the middle of one long step inside C, such as a power
of huge numbers. ``re`` looks for signals while it matches.
"""

import signal
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

T = TypeVar("T")
SECONDS: Final = 10.0  # of the processor: a match or a rendering takes microseconds


class TooLongError(Exception):
    """It was stopped."""

    def __init__(self) -> None:
        super().__init__(f"takes more than {SECONDS:g} s")


def bounded(call: Callable[..., T], *arguments: Any) -> T:
    """What ``call`` returns. Raises TooLongError where that takes longer than ``SECONDS``."""
    if threading.current_thread() is not threading.main_thread():
        return call(*arguments)
    if signal.getsignal(signal.SIGVTALRM) is not _stop:
        signal.signal(signal.SIGVTALRM, _stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        return call(*arguments)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _stop(number: int, frame: object) -> None:
    raise TooLongError
