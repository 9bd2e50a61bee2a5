"""Stop signals: they interrupt, and where they would do harm they wait."""

from __future__ import annotations

import signal

import pytest

from orchestrator.signals import signals_deferred, stop_signals_interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_interrupts(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), stop_signals_interrupt():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


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
