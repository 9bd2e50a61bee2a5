"""Ctrl-C and SIGTERM: both mean "stop, keep what is done", and both wait where they would do harm."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

__all__ = [
    "Stopping",
    "forget_stop_signal",
    "last_stop_signal",
    "signals_deferred",
    "stop_signals_interrupt",
    "stopping_after_checkpoint",
]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECONDS_FOR_CHECKPOINT = 2.0
SECONDS_FOR_IMPORTS = 10.0
SECONDS_BETWEEN_TRIES = 0.05

_last: int | None = None


def last_stop_signal() -> int | None:
    """The stop signal that came last in a block of this module, whatever became of its interrupt; None if none came.

    A library may turn the interrupt into an error of its own, which says nothing of a signal.
    """
    return _last


def forget_stop_signal() -> None:
    """A command begins: what came before was not for it."""
    global _last
    _last = None


@contextlib.contextmanager
def stop_signals_interrupt() -> Iterator[None]:
    """Inside the block SIGTERM raises KeyboardInterrupt, as Ctrl-C does; both wait for the end of an import.

    The interrupt's only argument is the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupter = _Interrupter()
    before = {number: signal.signal(number, interrupter) for number in STOP_SIGNALS if _can_be_handled(number)}
    try:
        yield
    finally:
        waiting = interrupter.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    if waiting is not None:
        raise KeyboardInterrupt(waiting)


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Inside the block stop signals are only noted; if there was one, KeyboardInterrupt follows the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[int] = []
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS if _can_be_handled(number)}
    for number in before:
        signal.signal(number, lambda number, frame: noted.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if noted:
            _note(noted[-1])
    if noted:
        raise KeyboardInterrupt(noted[-1])


class Stopping:
    """A stop that waits for a checkpoint; see `stopping_after_checkpoint`."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def reached(self) -> None:
        """A checkpoint is written. Raises KeyboardInterrupt where that was waited for."""
        if self.signal is not None:
            raise KeyboardInterrupt(self.signal)


@contextlib.contextmanager
def stopping_after_checkpoint(
    ask: Callable[[], None], *, is_useful: Callable[[], bool], seconds: float = SECONDS_FOR_CHECKPOINT
) -> Iterator[Stopping]:
    """Inside the block the first stop signal asks for a checkpoint instead of interrupting.

    The next one interrupts at once, and so does the end of some seconds in which no checkpoint came.

    Args:
        ask: has a checkpoint made; called in a thread of its own, because a signal may come in the middle of anything.
        is_useful: whether there is anything to save now; if not, the first signal interrupts.
    """
    stopping = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in STOP_SIGNALS if _can_be_handled(number)}
    timers: list[threading.Timer] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stopping.signal is None and is_useful():
            stopping.signal = number
            _note(number)
            threading.Thread(target=ask, daemon=True).start()
            timers.append(threading.Timer(seconds, os.kill, (os.getpid(), number)))
            timers[0].daemon = True
            timers[0].start()
            return
        _cancel(timers)
        handler = before[number]
        if callable(handler):
            handler(number, frame)
        else:
            raise KeyboardInterrupt(number)

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield stopping
    finally:
        _cancel(timers)
        for number, handler in before.items():
            signal.signal(number, handler)


def _cancel(timers: list[threading.Timer]) -> None:
    for timer in timers:
        timer.cancel()


class _Interrupter:
    """A signal handler that raises KeyboardInterrupt, but not in the middle of an import.

    There the interrupt would surface as whatever the imported library makes of it, and leave a module half imported. So an
    alarm sends the signal again until no import is under way, or one has taken too long.
    """

    def __init__(self) -> None:
        self._first_at: float | None = None
        self._waiting: int | None = None
        self._handler_before: signal._HANDLER = None
        self._has_alarm = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        _note(number)
        now = time.monotonic()
        if self._first_at is None:
            self._first_at = now
        if _is_importing(frame) and now - self._first_at < SECONDS_FOR_IMPORTS:
            self._send_again(number)
            return
        self._first_at = None
        raise KeyboardInterrupt(number)

    def close(self) -> int | None:
        """End the alarm; the signal that still waits for an import."""
        if self._has_alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._handler_before)
        return self._waiting

    def _send_again(self, number: int) -> None:
        def again(_: int, frame: FrameType | None) -> None:
            self._waiting = None
            signal.raise_signal(number)  # by then it may be `signals_deferred` that has it

        before = signal.signal(signal.SIGALRM, again)
        if not self._has_alarm:
            self._handler_before, self._has_alarm = before, True
        self._waiting = number
        signal.setitimer(signal.ITIMER_REAL, SECONDS_BETWEEN_TRIES)


def _note(number: int) -> None:
    global _last
    _last = number


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _can_be_handled(number: int) -> bool:
    """A signal that the parent made us ignore (`nohup`, a background job of a shell) stays ignored."""
    return signal.getsignal(number) not in (signal.SIG_IGN, None)
