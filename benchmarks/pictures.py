"""Pictures that survive a black-and-white printer: dark lines that differ in marker and dash."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt

STYLES = (("#000000", "o", "-"), ("#b04a00", "s", "--"), ("#2a62a8", "^", ":"))  # of three distinct shades of gray
SIZE, DPI = (4.6, 3.1), 130


def curve(
    target: Path,
    axis: str,
    unit: str,
    at: Sequence[float],
    lines: Sequence[tuple[str, Sequence[float], Sequence[float], Sequence[float]]],
) -> None:
    """Log-log lines of medians with bars from the lowest to the highest, one per (name, median, lowest, highest)."""
    figure, axes = plt.subplots(figsize=SIZE, layout="constrained")
    for (name, middle, low, high), (color, marker, dash) in zip(lines, STYLES, strict=False):
        bars = [[m - v for m, v in zip(middle, low, strict=True)], [v - m for m, v in zip(middle, high, strict=True)]]
        axes.errorbar(at, middle, yerr=bars, label=name, color=color, marker=marker, linestyle=dash, capsize=2.5)
    axes.set(xscale="log", yscale="log", xlabel=axis, ylabel=unit)
    axes.set_xticks(at, [f"{value:,}" for value in at])
    axes.minorticks_off()
    lowest, highest = min(min(line[2]) for line in lines), max(max(line[3]) for line in lines)
    axes.set_ylim(lowest / 1.3, highest * 1.3)
    ticks = _ticks(lowest / 1.3, highest * 1.3)
    axes.set_yticks(ticks, [f"{value:,g}" for value in ticks])
    axes.grid(visible=True, color="#cccccc", linewidth=0.5)
    axes.legend(frameon=False)
    figure.savefig(target, dpi=DPI, metadata={"Software": None})
    plt.close(figure)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers within a range, more of them where it is short."""
    bases = (1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 4, 5, 7)
    steps = [base * 10.0**power for power in range(-6, 12) for base in bases]
    return [step for step in steps if low <= step <= high]
