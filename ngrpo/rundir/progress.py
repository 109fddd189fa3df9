"""How far something is and how long the rest will take: bars in a terminal, a line a minute anywhere else."""

import time
from collections.abc import Generator, Iterable
from typing import TypeVar

from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

SECONDS_BETWEEN_LINES = 60.0

Item = TypeVar("Item")


def left(elapsed: float, done: float, total: float) -> str:
    """How long the rest will take, in words, where `done` of `total` took `elapsed` seconds; empty where none can tell."""
    if done <= 0 or done >= total:
        return ""
    seconds = elapsed / done * (total - done)
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"about {seconds:.0f} s left"
    return f"about {minutes} min left" if minutes < 100 else f"about {minutes // 60} h {minutes % 60} min left"


class Count:
    """One thing that is counted: a bar, or lines. Other lines may come between."""

    def __init__(self, bars: Bars, name: str, total: int, done: int = 0):
        self.bars, self.name, self.total, self.done = bars, name, total, done
        self.first, self.began = done, time.monotonic()
        self.told = self.began
        self.bar: TaskID = bars.add_task(name, total=total, completed=done, note="")

    def advance(self, note: str = "", by: int = 1, always: bool = False) -> None:
        """So many more are done. always: says so in any case, without waiting for the minute."""
        self.done += by
        self.bars.update(self.bar, completed=self.done, note=note)
        now = time.monotonic()
        if self.bars.disable and (always or now >= self.told + SECONDS_BETWEEN_LINES):
            self.told = now
            rest = left(now - self.began, self.done - self.first, self.total - self.first)
            line = "  ".join(filter(None, (f"{self.name} {self.done}/{self.total}", note, rest)))
            self.bars.console.print(line, highlight=False, soft_wrap=True)

    def end(self) -> None:
        """The rest was there already."""
        self.bars.update(self.bar, completed=self.total, note="")


class Progress:
    """What a run shows of its RL steps and evaluations, or of whatever else is counted."""

    def __init__(self, steps: int = 0, quiet: bool = False):
        self.console = Console(quiet=True) if quiet else get_console()  # shared: a sweep shows its trials around ours
        self.steps = steps
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        times = (TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self.bars = Bars(*columns, *times, console=self.console, disable=not self.console.is_terminal)
        self.training: Count | None = None
        self.evaluating: Count | None = None
        self.warned = False

    def count(self, name: str, total: int, done: int = 0) -> Count:
        """Something else that is counted, of which so many are done."""
        return Count(self.bars, name, total, done)

    def start(self, done: int) -> None:
        """Show the bars from RL step `done` on."""
        self.bars.start()
        self.training = self.count("RL step", self.steps, done)

    def stop(self) -> None:
        """Leave the terminal in order."""
        self.bars.stop()

    def step(self, step: int, reward: float, rate: float) -> None:
        """One RL step is done. The first tells at what rate they come, the last how it ended."""
        if self.training is not None:
            first_or_last = self.training.done == self.training.first or step == self.steps
            note = f"reward {reward:.3f}  {rate:,.0f} tokens/s"
            self.training.advance(note, step - self.training.done, always=first_or_last)

    def warn(self, line: str) -> None:
        """Says, the first time only, what a run's figures go on to show."""
        if not self.warned:
            self.console.print(f"note: {line}", highlight=False)
        self.warned = True

    def evaluation(self, step: int, batches: int) -> None:
        """An evaluation of so many batches begins."""
        self.evaluating = self.count(f"evaluate at {step}", batches)

    def batch(self, benchmark: str) -> None:
        """One batch of it is done."""
        if self.evaluating is not None:
            self.evaluating.advance(benchmark)

    def evaluated(self) -> None:
        """The evaluation is over."""
        if self.evaluating is not None:
            self.evaluating.end()
        self.evaluating = None


def counted(items: Iterable[Item], name: str) -> Generator[Item, None, None]:
    """The items, one by one, with their progress shown; a bar goes when all are done."""
    items, progress = list(items), Progress()
    progress.bars.live.transient = True
    count = progress.count(name, len(items))
    with progress.bars:
        for item in items:
            yield item
            count.advance()
