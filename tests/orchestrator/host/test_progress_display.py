"""What the user sees while a job runs."""

from __future__ import annotations

import io

from jobs.events import Progress
from orchestrator.host.progress_display import PlainDisplay, RichDisplay, SilentDisplay, make_display


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
    assert lines[2] == "distil 60/400  10.0/s  0:34 left  loss 0.5"
    assert lines[-3] == "distil 400/400  10.0/s  loss 0.5"
    assert lines[-2:] == ["warning: a word of warning", "a word"]
    assert len(lines) == 11


def test_long_times_and_slow_steps_are_readable():
    stream, clock = io.StringIO(), Clock()
    display = PlainDisplay(stream, every_seconds=0, clock=clock)
    display.event(fit(0))
    clock.now = 30
    display.event(fit(10, seconds_left=7384))
    assert stream.getvalue().splitlines()[-1] == "distil 10/400  3.0 s each  2:03:04 left"


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
