"""What was measured, as tables for people and as files. It does not know how anything was measured."""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import Spread
from rich.table import Table as RichTable

SHORTEST = 1e-3  # seconds; shorter phases are not shown
SPREAD = ("median", "middle half", "range")


@dataclass(frozen=True)
class Table:
    """Cells as they are printed and written."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def rich(self) -> RichTable:
        """For the terminal."""
        table = RichTable(title=self.title, title_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For a file."""
        rule = [":---", *["---:"] * (len(self.columns) - 1)]
        lines = [f"| {' | '.join(cells)} |" for cells in (self.columns, rule, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines, ""])


def figures(values: Sequence[float], form: str = ".2f", unit: str = "") -> list[str]:
    """Cells for median, quartiles and range."""
    spread = Spread.of(values)
    pairs = ((spread.low, spread.high), (spread.lowest, spread.highest))
    return [f"{spread.median:{form}}{unit}", *(f"{low:{form}} to {high:{form}}{unit}" for low, high in pairs)]


def rate(row: Mapping[str, Any], seconds: str = "seconds") -> str:
    """Cell of generated tokens per second."""
    return f"{row['tokens'] / statistics.median(row[seconds]):,.0f}"


def tables(measured: Mapping[str, Any]) -> list[Table]:
    """One for each part."""
    parts = {"generate": _generate, "strategies": _strategies, "training": _training, "memory": _memory}
    return [show(measured[name]) for name, show in parts.items()]


def _generate(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = ("workload", "lengths (quartiles)", "generate tokens/s", "engine tokens/s", *SPREAD)
    cells = [
        [row["workload"], " ".join(map(str, row["lengths"])), rate(row, "generate_seconds"), rate(row)] for row in rows
    ]
    spreads = [figures(row["ratios"], unit="x") for row in rows]
    return Table("Speed-up over transformers generate, same lengths", columns, _joined(cells, spreads))


def _strategies(rows: Sequence[Mapping[str, Any]]) -> Table:
    title = "Extra time over token sampling, same number of decode steps; its own row is the noise of the machine"
    cells = [[row["strategy"], rate(row)] for row in rows]
    spreads = [figures(row["overhead_percent"], "+.1f", " %") for row in rows]
    return Table(title, ("strategy", "tokens/s", *SPREAD), _joined(cells, spreads))


def _training(rows: Sequence[Mapping[str, Any]]) -> Table:
    shown = [row for row in rows if statistics.median(row["seconds"]) >= SHORTEST]
    cells = [[row["strategy"], row["phase"]] for row in shown]
    spreads = [figures(row["seconds"], ".3f") for row in shown]
    columns = ("strategy", "phase", *SPREAD)
    return Table("Seconds of a training step, 32 prompts x 8 answers", columns, _joined(cells, spreads))


def _memory(rows: Sequence[Mapping[str, Any]]) -> Table:
    sizes = [(row["before_mib"], row["peak_mib"], row["peak_mib"] - row["before_mib"]) for row in rows]
    cells = [[row["arm"], *(f"{size:,.0f}" for size in three)] for row, three in zip(rows, sizes, strict=True)]
    title = "Resident memory of one batch, equal lengths, 32 x 8 (MiB)"
    return Table(title, ("arm", "before", "peak", "added"), cells)


def _joined(left: Sequence[list[str]], right: Sequence[list[str]]) -> list[list[str]]:
    return [[*a, *b] for a, b in zip(left, right, strict=True)]


def heading(measured: Mapping[str, Any]) -> str:
    """Where, when and how, above the tables of the written report."""
    machine, versions = measured["hardware"], measured["versions"]
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "transformers", "ngrpo"))
    return (
        f"`{measured['command']}` on {measured['date']}, commit {measured['git_commit'] or 'unknown'}\n\n"
        f"{machine['cpu']}, {machine['cores']} cores, threads: {measured['threads']}, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB; {libraries}; repeats: {measured['repeats']}; "
        f"load average {measured['load_before'][0]} before, {measured['load_after'][0]} after\n"
    )


def write(measured: Mapping[str, Any], folder: Path) -> Path:
    """`<date>-<machine>-<threads>-threads.json` with every single timing, and latest.md; returns the former's path."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = re.sub(r"[^a-z0-9]+", "-", measured["hardware"]["cpu"].lower().replace("(r)", "")).strip("-") or "machine"
    path = folder / f"{measured['date'][:10]}-{machine}-{measured['threads']}-threads.json"
    path.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    text = "\n".join([heading(measured), *(table.markdown() for table in tables(measured))])
    (folder / "latest.md").write_text(text, encoding="utf-8")
    return path
