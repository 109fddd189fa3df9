"""Writes a report: Markdown, CSV, LaTeX, figures and one HTML page, of runs or of other tools' samples."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from analysis import budgets, diversity, neighbors, page, plots, provenance, published, tables
from analysis.comparison import Comparison, compare
from analysis.declared import Declared
from analysis.load import MOST, Study, describe_kinds
from analysis.tables import Table
from analysis.verdict import verdict
from ngrpo.rundir.files import write_atomically

WHY_SEEDS = (
    "The headline test takes the training seed as its unit. Resampling problems alone treats one lucky training run as the "
    "method: in simulations with no difference at all it rejects in a third to a half of comparisons once seeds differ by 0.2 "
    "logits (tests/analysis/test_statistics.py), where Welch's test on seed means stays below 7 % at level 5 %."
)


def write(
    study: Study,
    baseline: str,
    out: Path,
    ks: Sequence[int] | None,
    papers: Sequence[str],
    roots: Sequence[str | Path] = (),
    declared: Declared | None = None,
) -> list[str]:
    """All files of a report in `out`; returns the lines for the terminal. `roots`: where diagnoses may lie besides runs;
    `declared`: what was declared before the results were seen.

    Raises:
        LoadError: where the arms cannot be compared, before anything is written.
    """
    comparison = compare(study, baseline, ks, declared)
    sentences = verdict(comparison)
    known = published.tables(papers, study.benchmarks)
    results = tables.of_comparison(comparison)
    diagnoses, study = neighbors.beside(study, roots)
    about = provenance.table(study)
    results += [t for t in (budgets.table(comparison), budgets.best_of(study, comparison)) if t.rows]
    results += [*_of_samples(study), *neighbors.tables(diagnoses), *known]
    out.mkdir(parents=True, exist_ok=True)
    figures = plots.draw(study, comparison, out)
    for table in (about, *results):
        (out / f"{table.name}.tex").write_text(tables.latex(table), "utf-8")
        tables.write_csv(table, out / f"{table.name}.csv")
    whole = {"results": comparison.estimates, "paired_pass_at_k": tables.every_k(comparison), "tests": comparison.tests}
    for name, frame in whole.items():  # the cells of the table of tests are rounded
        tables.write_frame(frame, out / f"{name}.csv")
    write_atomically(out / "report.md", _markdown(study, comparison, sentences, [about, *results], figures).encode())
    page.write(study, comparison, sentences, [about, *results], figures, out / "report.html", WHY_SEEDS)
    unread = study.left_out[~study.left_out["path"].isin(list(study.other_kinds))]  # the files list those too
    notes = [
        *study.column_notes,
        *_left_out(unread),
        *describe_kinds(study.other_kinds),
        *_without_texts(study, results),
    ]
    lines = ["", *sentences, *notes, "", str(out / "report.html")]
    return [tables.terminal(results[0]), *lines]


def _of_samples(study: Study) -> list[Table]:
    """The diversity tables; a note says where only some problems were read."""
    parts = {
        benchmark: len(chosen)
        for benchmark in study.benchmarks
        if (chosen := study.problems_read(benchmark)) is not None
    }
    counts = "; ".join(f"{benchmark}: {count} problems, drawn at random" for benchmark, count in parts.items())
    more = f"; of a method with more than {MOST:,} samples, some problems only ({counts})" if parts else ""
    return [replace(t, note=t.note + more * (t.name == "diversity")) for t in diversity.tables(study)]


def _markdown(
    study: Study,
    comparison: Comparison,
    sentences: Sequence[str],
    results: Sequence[Table],
    figures: Sequence[tuple[Path, str]],
) -> str:
    parts = [f"# Comparison against {comparison.baseline}", "", *(f"- {line}" for line in sentences), ""]
    parts += [f"{WHY_SEEDS}", ""]
    parts += [line for table in results for line in (tables.markdown(table), "")]
    parts += [f"![{caption}]({path.name})\n\n*{caption}*\n" for path, caption in figures]
    parts += [*(f"- {line}" for line in study.column_notes), *_left_out(study.left_out)]
    return "\n".join(parts) + "\n"


def _without_texts(study: Study, results: Sequence[Table]) -> list[str]:
    """A note if tables are left out because the files have no texts."""
    there = any(table.name == "diversity" for table in results)
    return ["left out: diversity and samples: no texts"] if study.column_notes and not there else []


def _left_out(rows: pd.DataFrame) -> list[str]:
    return [f"left out: {row.path}: {row.reason}" for row in rows.itertuples()]
