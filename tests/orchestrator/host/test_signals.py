"""Stop signals: they interrupt, and where they would do harm they wait."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orchestrator.host.signals import (
    forget_stop_signal,
    last_stop_signal,
    signals_deferred,
    stop_signals_interrupt,
    stopping_after_checkpoint,
)
from tests.orchestrator.conftest import command_environment


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_interrupts(number):
    before = signal.getsignal(number)
    forget_stop_signal()
    assert last_stop_signal() is None
    with pytest.raises(KeyboardInterrupt), stop_signals_interrupt():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before and last_stop_signal() == number


def test_a_deferred_signal_comes_after_the_block():
    reached = []
    with pytest.raises(KeyboardInterrupt), stop_signals_interrupt(), signals_deferred():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        reached.append(True)
    assert reached


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_signals_interrupt(), signals_deferred():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


IMPORTING = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.3)
except BaseException as error:
    raise ImportError("I am broken now") from error
done = True
"""


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ("time.sleep(30)", "interrupted True"),  # the import has ended whole
        ("pass", "interrupted True"),  # the block ends before anybody looks again
        ("with signals_deferred(): time.sleep(0.2); print('whole')", "whole\ninterrupted True"),
    ],
)
def test_an_interrupt_waits_for_the_end_of_an_import(tmp_path: Path, after: str, said: str):
    (tmp_path / "slow_library.py").write_text(IMPORTING)
    script = f"""
import sys, time
from orchestrator.host.signals import signals_deferred, stop_signals_interrupt
sys.path.insert(0, {str(tmp_path)!r})
try:
    with stop_signals_interrupt():
        import slow_library
        {after}
except KeyboardInterrupt:
    print("interrupted", sys.modules["slow_library"].done)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=command_environment(), capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert (done.stdout.strip(), done.returncode) == (said, 0), done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_waits_for_a_checkpoint_and_the_second_does_not(number):
    before, asked = signal.getsignal(number), threading.Event()
    with (
        pytest.raises(KeyboardInterrupt),
        stop_signals_interrupt(),
        stopping_after_checkpoint(asked.set, is_useful=lambda: True, seconds=60) as stop,
    ):
        stop.reached()
        signal.raise_signal(number)
        assert asked.wait(5) and last_stop_signal() == number
        stop.reached()
    with (
        pytest.raises(KeyboardInterrupt),
        stop_signals_interrupt(),
        stopping_after_checkpoint(asked.set, is_useful=lambda: True, seconds=60),
    ):
        signal.raise_signal(number)
        signal.raise_signal(number)
        raise AssertionError("the second signal does not wait")
    assert signal.getsignal(number) is before


def test_a_checkpoint_that_does_not_come_is_waited_for_so_long_and_no_longer():
    begin = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        stop_signals_interrupt(),
        stopping_after_checkpoint(lambda: None, is_useful=lambda: True, seconds=0.2),
    ):
        signal.raise_signal(signal.SIGINT)
        time.sleep(30)
    assert 0.2 <= time.monotonic() - begin < 20


def test_where_there_is_nothing_to_save_the_first_signal_interrupts():
    with (
        pytest.raises(KeyboardInterrupt),
        stop_signals_interrupt(),
        stopping_after_checkpoint(lambda: None, is_useful=lambda: False),
    ):
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it interrupts at once")


def test_a_signal_that_was_waited_with_in_vain_does_not_come_later():
    """The job ended by itself meanwhile."""
    with stop_signals_interrupt():
        with stopping_after_checkpoint(lambda: None, is_useful=lambda: True, seconds=0.2):
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.5)
