"""What was measured, as tables for people and as files."""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.measuring import interval

SPREAD = ("median", "95 % of it", "middle half", "range")


@dataclass(frozen=True)
class Table:
    """Cells as they are printed and written."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """For a file, and as readable in a terminal."""
        alignment = ["left", *["right"] * (len(self.columns) - 1)]
        body = tabulate(self.rows, self.columns, tablefmt="pipe", colalign=alignment, disable_numparse=True)
        return f"**{self.title}**\n\n{body}\n"


def figures(values: Sequence[float], form: str = ".2f", unit: str = "") -> list[str]:
    """Cells for the median, its 95 % bootstrap interval, quartiles and range."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    pairs = (interval(values), (low, high), (min(values), max(values)))
    return [f"{median:{form}}{unit}", *(f"{low:{form}} to {high:{form}}{unit}" for low, high in pairs)]


def rate(tokens: float, seconds: Sequence[float]) -> str:
    """Cell of generated tokens per second."""
    return f"{tokens / statistics.median(seconds):,.0f}"


def heading(context: Mapping[str, Any]) -> str:
    """A line on where, when and how one part was measured."""
    machine, versions = context["hardware"], context["versions"]
    names = ("python", "torch", "transformers", "trl", "ngrpo")
    libraries = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    return (
        f"`{context['command']}` on {context['date']}, {context['minutes']:.1f} minutes, "
        f"commit {context['git_commit'] or 'unknown'}; "
        f"{', '.join([machine['cpu'], *machine['gpus']])}, {machine['cores']} cores, threads: {context['threads']}, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB; {libraries}; repeats: {context['repeats']}; "
        f"load average {context['load_before'][0]} before, {context['load_after'][0]} after\n"
    )


def folder_of(context: Mapping[str, Any], results: Path) -> Path:
    """`<machine>-<threads>-threads`, where every part measured on that machine has its file."""
    machine = context["hardware"]["gpus"][0] if context["device"] != "cpu" else context["hardware"]["cpu"]
    name = re.sub(r"[^a-z0-9]+", "-", machine.lower().replace("(r)", "")).strip("-") or "machine"
    return results / f"{name}-{context['threads']}-threads"


def write(part: str, context: Mapping[str, Any], measured: Any, folder: Path) -> None:
    """`<part>.json` with every single timing."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"context": context, "measured": measured}, indent=1)
    (folder / f"{part}.json").write_text(f"{content}\n", encoding="utf-8")


def write_summary(sections: Mapping[str, tuple[str, Sequence[Table], Sequence[str]]], folder: Path) -> Path:
    """README.md of a results folder: a section per part, from title to heading, tables and names of pictures."""
    lines = [f"# {folder.name}", ""]
    for title, (header, tables, pictures) in sections.items():
        lines += [f"## {title}", "", header, *(table.markdown() for table in tables)]
        lines += [f"![{name}]({name})\n" for name in pictures]
    path = folder / "README.md"
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return path
