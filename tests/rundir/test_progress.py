"""What is told of how far something is: a line a minute where there is no terminal, with the time that is left."""

import io

import pytest
from rich.console import Console

from ngrpo.rundir import progress
from ngrpo.rundir.progress import Progress, left


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where a test says so."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


@pytest.fixture
def lines(monkeypatch):
    """What is printed without a terminal, line by line."""
    out = io.StringIO()
    monkeypatch.setattr(progress, "get_console", lambda: Console(file=out, width=40))
    return lambda: out.getvalue().splitlines()


@pytest.mark.parametrize(
    ("elapsed", "done", "total", "words"),
    [
        (10, 1, 4, "about 30 s left"),
        (60, 10, 40, "about 3 min left"),
        (3600, 1, 3, "about 2 h 0 min left"),
        (60, 0, 40, ""),
        (60, 40, 40, ""),
    ],
)
def test_the_rest_takes_as_long_for_each_as_what_is_done(elapsed, done, total, words):
    assert left(elapsed, done, total) == words


def test_a_run_tells_its_first_and_last_step_and_one_a_minute(clock, lines):
    shown = Progress(100)
    shown.start(0)
    for step in range(1, 101):
        clock(20)
        shown.step(step, 0.5, 1234.4)
    told = [line.split("  ")[0].removeprefix("RL step ") for line in lines()]
    assert told == [f"{step}/100" for step in (1, *range(4, 100, 3), 100)]  # the first is at 20 s, the next 60 s later
    assert lines()[1] == "RL step 4/100  reward 0.500  1,234 tokens/s  about 32 min left"
    assert lines()[-1] == "RL step 100/100  reward 0.500  1,234 tokens/s"


def test_a_run_that_goes_on_counts_only_what_it_does_itself(clock, lines):
    shown = Progress(100)
    shown.start(90)
    clock(10)
    shown.step(91, 0.5, 1.0)
    assert lines() == ["RL step 91/100  reward 0.500  1 tokens/s  about 90 s left"]


def test_an_evaluation_of_a_minute_is_silent_and_a_long_one_is_not(clock, lines):
    shown = Progress(2)
    shown.evaluation(0, 4)
    for seconds in (29, 29, 29, 29):
        clock(seconds)
        shown.batch("story_math")
    shown.evaluated()
    assert lines() == ["evaluate at 0 3/4  story_math  about 29 s left"]


def test_what_was_counted_leaves_a_terminal_as_it_was(monkeypatch):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, _environ={"TERM": "xterm"})
    monkeypatch.setattr(progress, "get_console", lambda: console)
    assert list(progress.counted("abc", "reading")) == ["a", "b", "c"]
    shown = out.getvalue()
    assert (
        "reading" in shown and shown.rstrip().endswith("\x1b[2K") and "\x1b[?25h" in shown
    )  # erased; the cursor is back
