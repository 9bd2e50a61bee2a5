"""What the user sees while a job runs."""

from __future__ import annotations

import io
import sys
import time

import pytest

from diffusion.checkpoints.source import TOYBOX
from jobs.events import Progress
from orchestrator.host import first_words
from orchestrator.host.progress_display import PlainDisplay, RichDisplay, SilentDisplay, make_display
from orchestrator.prior.source import loading


def test_who_waits_for_imports_is_told_so_unless_a_display_speaks(capsys, monkeypatch):
    monkeypatch.setattr(first_words, "FIRST_WORDS_SECONDS", 0.05)
    with first_words.first_words("one moment"):
        time.sleep(0.3)
    with first_words.first_words("too late"), make_display(stream=sys.stderr):
        time.sleep(0.3)
    with first_words.first_words("too quick"):
        pass
    time.sleep(0.2)
    assert capsys.readouterr().err == "one moment\n"


def test_the_size_of_a_prior_is_said_while_it_is_loaded():
    stream = io.StringIO()
    PlainDisplay(stream).event(loading("toybox"))
    megabytes = sum(
        path.stat().st_size for part in ("unet", "vae", "text_encoder") for path in (TOYBOX / part).glob("*.safetensors")
    )
    assert stream.getvalue() == f"load the prior  {megabytes / 1e6:.0f} MB\n"


class Clock:
    """Seconds that a test moves by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def fit(step: int, **changes) -> Progress:
    return Progress(stage="fit", step=step, total=400, **changes)


def test_plain_lines_come_at_the_ends_and_every_few_seconds():
    stream, clock = io.StringIO(), Clock()
    with PlainDisplay(stream, every_seconds=5, clock=clock) as display:
        display.event(Progress(stage="prepare", step=0, total=1))
        display.event(Progress(stage="prepare", step=1, total=1))
        for step in range(0, 401, 20):
            clock.now = step / 10
            display.event(fit(step, seconds_left=(400 - step) / 10, metrics={"loss": 0.5, "seconds_render": 1.0}))
        display.message("a word of warning", "warning")
        display.message("a word")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "prepare"
    assert lines[1] == "distil 0/400  0:40 left  loss 0.5"
    assert lines[2] == "distil 60/400  0:34 left  10.0/s  loss 0.5"
    assert lines[-3] == "distil 400/400  10.0/s  loss 0.5"
    assert lines[-2:] == ["warning: a word of warning", "a word"]
    assert len(lines) == 11


def test_long_times_and_slow_steps_are_readable():
    stream, clock = io.StringIO(), Clock()
    display = PlainDisplay(stream, every_seconds=0, clock=clock)
    display.event(fit(0))
    clock.now = 30
    display.event(fit(10, seconds_left=7384))
    assert stream.getvalue().splitlines()[-1] == "distil 10/400  2:03:04 left  3.0 s each"


def test_bars_show_stage_step_rate_and_time_left():
    stream = io.StringIO()
    with RichDisplay(stream) as display:
        display.event(fit(0))
        display.event(fit(200, seconds_left=61.0))
        display.message("a [bracketed] word", "warning")
    shown = stream.getvalue()
    assert "distil" in shown and "200/400" in shown and "1:01 left" in shown and "a [bracketed] word" in shown


def test_a_stream_that_is_no_terminal_gets_plain_lines():
    assert isinstance(make_display(stream=io.StringIO()), PlainDisplay)


def test_silence():
    with SilentDisplay() as display:
        display.event(fit(1))
        display.message("x")


@pytest.mark.parametrize(("columns", "with_metrics"), [(40, False), (80, True), (200, True)])
def test_on_a_narrow_terminal_the_count_and_the_time_left_stay(monkeypatch, columns, with_metrics):
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = io.StringIO()
    with RichDisplay(stream) as display:
        metrics = {"loss": 0.5, "opacity": 0.25, "occupied": 0.125}
        display.event(Progress(stage="start", step=0, total=30000))
        display.event(Progress(stage="start", step=12345, total=30000, seconds_left=7384, metrics=metrics))
    lines = stream.getvalue().splitlines()
    assert all(len(line.rstrip()) <= columns for line in lines)
    assert "12345/30000" in lines[-1] and "2:03:04 left" in lines[-1] and ("loss" in lines[-1]) == with_metrics


def test_a_dumb_terminal_gets_plain_lines_and_no_text_steers_one(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    display = make_display(stream=stream)
    assert isinstance(display, PlainDisplay)
    display.message("red \x1b[31m and turned \u202e", "warning")
    assert stream.getvalue() == "warning: red \\u001b[31m and turned \\u202e\n"
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(make_display(stream=Terminal()), RichDisplay)
