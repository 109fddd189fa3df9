"""What a run sends to its trackers while it trains: figures in groups, evaluations, a few answers, its configuration.

There, figures are called `reward/mean` or `eval/story_math/pass@8`; the files of a run keep their own names, which are
contracts. A tracker that fails is left out with a note, and the run goes on.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet

from ngrpo.training.trackers import Tracker

SAMPLES = 10  # answers of an evaluation that are sent as text
COLUMNS = ("problem_id", "sample_index", "outcome", "reward", "gold", "prompt", "completion")
GROUPS = {
    "reward": ("all_correct", "all_wrong", "informative"),
    "rollout": ("unparsed", "timeout", "error", "distinct", "length", "truncated", "entropy", "explored", "displacement",
                "anchor_weight", "engine_gap", "effective_sample_size", "surplus", "kept_length", "tokens"),
    "optimizer": ("grad_norm", "moved_weights", "learning_rate"),
    "time": ("tokens_per_second",),
}  # fmt: skip
NAMES = {name: f"{group}/{name}" for group, names in GROUPS.items() for name in names} | {
    "reward": "reward/mean",
    "loss": "loss/mean",
    "seconds": "time/step",
    "rollout_tokens_per_second": "rollout/tokens_per_second",
}
PHASE = "seconds_"  # the prefix of columns of timings.csv with the seconds of a phase


def grouped(figures: Mapping[str, Any]) -> dict[str, float]:
    """Columns of metrics.csv and timings.csv under the names that trackers show; one without a group is a part of the loss."""
    names = {name: f"time/{name.removeprefix(PHASE)}" if name.startswith(PHASE) else f"loss/{name}" for name in figures}
    return {NAMES.get(name, names[name]): float(value) for name, value in figures.items() if value is not None}


def sample_texts(samples: Path) -> str:
    """Ten answers of a file of benchmark samples, spread over its problems, as Markdown."""
    table = pyarrow.parquet.read_table(samples, columns=list(COLUMNS))
    places = range(0, len(table), max(1, len(table) // SAMPLES))[:SAMPLES]
    return "\n\n".join(_answer(row) for row in table.take(list(places)).to_pylist())


def _answer(row: Mapping[str, Any]) -> str:
    head = f"### {row['problem_id']}, sample {row['sample_index']}: {row['outcome']}, reward {row['reward']:g}"
    # Four tildes: an answer may have a block of three backticks in it.
    return f"{head}\n\n~~~~\n{row['prompt']}\n~~~~\n\n~~~~\n{row['completion']}\n~~~~\n\ngold: {row['gold']}"


class Trackers:
    """All trackers of a run as one. links: name -> where to see the run there."""

    def __init__(self, makers: Mapping[str, Callable[[], Any]], config: Mapping[str, Any]):
        """makers: name -> what makes a Tracker or a logger of Lightning. config: the composed configuration."""
        self.open: dict[str, Tracker] = {}
        self.links: dict[str, str | None] = {}
        for name, make in makers.items():
            with self._left_out_on_error(name):
                logger = make()
                tracker = logger if isinstance(logger, Tracker) else Tracker(logger)
                tracker.configuration(config)
                self.links[name] = tracker.link
                self.open[name] = tracker

    def step(self, step: int, metrics: Mapping[str, Any], timings: Mapping[str, Any]) -> None:
        """The figures of an RL step."""
        figures = grouped({**metrics, **timings})
        self._each(lambda tracker: tracker.figures(figures, step))

    def evaluation(self, benchmark: str, step: int, entry: Mapping[str, Any], samples: Path) -> None:
        """The results of a benchmark at an RL step as figures and as a table with intervals, and a few of its answers."""
        above, n = f"eval/{benchmark}", entry["n_samples"]
        estimates = {f"mean@{n}": entry["mean@n"]} | {f"pass@{k}": found for k, found in entry["pass@k"].items()}
        rows = [[name, found["value"], found["low"], found["high"]] for name, found in estimates.items()]
        text = sample_texts(samples)

        def send(tracker: Tracker) -> None:
            tracker.figures({f"{above}/{row[0]}": row[1] for row in rows}, step)
            tracker.table(f"{above}/table", ["metric", "value", "low", "high"], rows, step)
            tracker.text(f"{above}/samples", text, step)

        self._each(send)

    def close(self, succeeded: bool) -> None:
        """Nothing more is sent."""
        self._each(lambda tracker: tracker.close(succeeded))
        self.open.clear()

    def _each(self, send: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.open.items()):
            with self._left_out_on_error(name):
                send(tracker)

    @contextmanager
    def _left_out_on_error(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - of somebody's library, server or network: no run ends for it
            self.open.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"note: logger={name} failed and is left out from here on: {reason}")
