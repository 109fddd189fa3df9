"""The Pass@k table that a run ends with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from rich import box, get_console
from rich.console import Console
from rich.table import Table

from ngrpo.evaluation import passk
from ngrpo.rundir.schema import Unreadable, eval_samples
from ngrpo.tasks.base import UNGRADED

WIDTH = 120  # characters of a table that goes to a file


def print_results(results: Mapping[str, Mapping[str, Mapping[str, Any]]], directory: Path) -> None:
    """The Pass@k table and the directory, whole also where the output is no terminal."""
    console = get_console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    try:
        console.print(passk_table(results, directory))
    except (LookupError, TypeError, ValueError) as error:  # somebody's own, or what is left of one
        raise Unreadable(
            f"{directory}/results.json holds no results of an evaluation: fresh=true starts anew"
        ) from error
    for name, steps in results.items():
        for step, entry in steps.items():
            shares = {outcome: entry["outcomes"][outcome] for outcome in UNGRADED if entry["outcomes"][outcome]}
            if shares:
                listed = ", ".join(f"{outcome} {share:.1%}" for outcome, share in shares.items())
                print(f"{name} at {step}: answers without a verdict count as wrong ({listed})")
        if same := steps[max(steps, key=int)].get("same_thinking"):
            print(
                f"{name}: pass@k not meaningful for {same:.0%} of problems: all samples of one share a thinking trace"
            )
    print(directory)


def passk_table(results: Mapping[str, Mapping[str, Mapping[str, Any]]], directory: Path) -> Table:
    """Per benchmark and RL step: mean@n and pass@k with 95 % intervals, and the paired change of mean@n."""
    entries = [entry for steps in results.values() for entry in steps.values()]
    n = min(entry["n_samples"] for entry in entries)
    ks = [k for k in dict.fromkeys((8, n)) if k <= n and str(k) in entries[0]["pass@k"]]
    table = Table(
        title="in %, unbiased pass@k, 95 % intervals over problems", title_justify="left", box=box.SIMPLE_HEAD
    )
    for heading in ("benchmark", "step", f"mean@{n}", *(f"pass@{k}" for k in ks), f"change of mean@{n}"):
        table.add_column(heading, justify="left" if heading == "benchmark" else "right", no_wrap=True)
    for name, steps in results.items():
        first, last = (f(steps, key=int) for f in (min, max))
        for step in dict.fromkeys((first, last)):
            entry = steps[step]
            cells = [_interval(entry["mean@n"]), *(_interval(entry["pass@k"][str(k)]) for k in ks)]
            change = "" if step == first else _change(directory, name, int(first), int(last))
            table.add_row(name, step, *cells, change, end_section=step == last)
    return table


def solved(target: Path) -> np.ndarray:
    """(P, n) bool, whether each sample of a file of benchmark samples is correct."""
    table = pyarrow.parquet.read_table(target, columns=["sample_index", "outcome"])
    n = int(max(table["sample_index"].to_pylist())) + 1
    return (np.array(table["outcome"].to_pylist()) == "correct").reshape(-1, n)


def _interval(estimate: Mapping[str, float]) -> str:
    if estimate["low"] is None:  # one problem has no interval
        return f"{100 * estimate['value']:.1f}"
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return f"{value:.1f} [{low:.0f}, {high:.0f}]"


def _change(directory: Path, benchmark: str, first: int, last: int) -> str:
    """Paired difference of mean@n between two RL steps, in points of 100, with its 95 % interval over problems."""
    try:
        before, after = (100 * solved(eval_samples(directory, benchmark, step)).mean(axis=1) for step in (first, last))
    except (OSError, ValueError):  # samples that were lost, and a run that went on without them
        return ""
    low, high = passk.paired_interval(before, after, top=100)
    return f"{(after - before).mean():+.1f} [{low:+.1f}, {high:+.1f}]"
