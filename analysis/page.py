"""One self-contained HTML page of a report. It takes finished tables and figures and computes nothing.

Model text is escaped by the template, control characters are made visible, and a content security policy lets nothing run
or load but the page's own style and script.
"""

import base64
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup  # comes with jinja2

from analysis.comparison import Comparison
from analysis.load import UNTRAINED, Study
from analysis.tables import Table, html_table

PROBLEMS, SAMPLES = 8, 3  # per benchmark; per problem and method
LONGEST = 4000  # characters of a text
COLUMNS = ("problem_id", "sample_index", "prompt", "completion", "gold", "outcome")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def write(
    study: Study,
    comparison: Comparison,
    tables: Sequence[Table],
    figures: Sequence[tuple[Path, str]],
    path: Path,
    why: str = "",
) -> None:
    """The page at `path`, whole or not at all."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    seeds = "-".join(map(str, sorted(set(study.runs.groupby("arm")["seed"].nunique()))))
    text = environment.get_template("page.html.j2").render(
        nonce=secrets.token_urlsafe(12),
        baseline=visible(comparison.baseline),
        summary=f"{len(study.arms)} methods, {seeds} training seeds, {', '.join(study.benchmarks)}",
        verdict=comparison.verdict,
        why=why,
        tables=[{"name": t.name, "title": t.title, "html": Markup(visible(html_table(t)))} for t in tables],
        figures=[{"data": base64.b64encode(p.read_bytes()).decode(), "caption": caption} for p, caption in figures],
        problems=_problems(study, comparison),
        shown=f"The {PROBLEMS} problems of each benchmark whose solve rates differ most, {SAMPLES} completions a method; "
        "all are in the runs' parquet files.",
        left_out=[visible(f"{row.path}: {row.reason}") for row in study.left_out.itertuples()],
    )
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)


def visible(text: str) -> str:
    """`text` with control characters and half surrogates as the sign for an unknown one; line ends and tabs stay."""
    return CONTROL.sub("\ufffd", text)


def _problems(study: Study, comparison: Comparison) -> list[dict[str, Any]]:
    """For each benchmark the problems on which the baseline and the arm next to it differ most."""
    trained = [arm for arm in (*comparison.fairness.ranked, *comparison.fairness.apart) if arm != comparison.baseline]
    other = next(iter(comparison.fairness.controls), None) or next(iter(trained or [UNTRAINED]))
    shown = []
    for benchmark in study.benchmarks:
        pair = [_samples(study, arm, benchmark) for arm in (comparison.baseline, other)]
        if any(frame is None or frame.empty for frame in pair):
            continue
        rates = [_rates(study, arm, benchmark) for arm in (comparison.baseline, other)]
        gaps = (rates[1] - rates[0]).abs().sort_values(ascending=False, kind="stable")
        for problem in gaps.index[:PROBLEMS]:
            first = pair[0][pair[0]["problem_id"] == problem].iloc[0]  # pyright: ignore
            sides = [
                {"arm": visible(arm), "samples": _rows(frame[frame["problem_id"] == problem])}  # pyright: ignore
                for arm, frame in zip((comparison.baseline, other), pair, strict=True)
            ]
            told = f"solved {rates[0][problem]:.0%} by {comparison.baseline}, {rates[1][problem]:.0%} by {other}"
            texts = {name: _text(first[name]) for name in ("prompt", "gold")}
            shown.append({"id": visible(str(problem)), "benchmark": benchmark, "rates": told, "sides": sides, **texts})
    return shown


def _samples(study: Study, arm: str, benchmark: str) -> Any:
    try:
        return study.samples(arm, benchmark, COLUMNS)
    except (OSError, KeyError, ValueError):  # samples of another tool, without texts
        return None


def _rates(study: Study, arm: str, benchmark: str) -> Any:
    part = study.counts[(study.counts["arm"] == arm) & (study.counts["benchmark"] == benchmark)]
    sums = part.groupby("problem_id")[["c", "n"]].sum()
    return sums["c"] / sums["n"]


def _rows(frame: Any) -> list[Mapping[str, Any]]:
    rows = frame.sort_values(["sample_index", "seed"]).head(SAMPLES).to_dict("records")
    return [{**row, "completion": _text(row["completion"]), "outcome": _text(row["outcome"])} for row in rows]


def _text(value: Any) -> str:
    text = visible(str(value))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text) - LONGEST} more characters)"
