"""Tables of a report and their formats: terminal, Markdown, CSV, LaTeX, HTML."""

import csv
import html
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from tabulate import tabulate

from analysis.comparison import Comparison
from analysis.load import UNTRAINED

LATEX = str.maketrans(
    {character: f"\\{character}" for character in "_%&#${}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
)
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would take for a formula


@dataclass(frozen=True)
class Cell:
    """`text` as shown, `value` to sort by, `place` 1 for the best of its column and 2 for the second."""

    text: str
    value: float | None = None
    place: int = 0


def words(*texts: str) -> list[Cell]:
    """A cell for each."""
    return [Cell(text) for text in texts]


def number(value: float | None, digits: int, unit: str = "") -> Cell:
    """A number with so many decimals, or a dash if it is missing."""
    return Cell("-") if value is None or np.isnan(value) else Cell(f"{value:,.{digits}f}{unit}", float(value))


def estimate(value: float, low: float, high: float, sign: str = "") -> Cell:
    """`1.2 [0.3, 2.1]`, without brackets where there is no interval; sign="+" for differences."""
    interval = "" if np.isnan(low) else f" [{low:{sign}.1f}, {high:{sign}.1f}]"
    return Cell(f"{value:{sign}.1f}{interval}", float(value))


def p_value(value: float) -> Cell:
    """A p value with three decimals, never 0; a dash if there is no test."""
    return Cell("-") if np.isnan(value) else Cell("< 0.001" if value < 0.001 else f"{value:.3f}", float(value))


@dataclass(frozen=True)
class Table:
    """A named table; `note` says what its numbers are."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""
    groups: list[tuple[str, int]] = field(default_factory=list)  # headings over so many columns each


def of_comparison(comparison: Comparison) -> list[Table]:
    """Every table of a report, the one with the answers first."""
    built = [
        _estimates(comparison, comparison.estimates, "passk", "Mean and Pass@k", PASSK),
        _tests(comparison),
        _curves(comparison),
        _pairs(comparison),
        _noise(comparison),
        _costs(comparison),
        _estimates(comparison, comparison.boot_best, "boot_best", "best@k by bootstrap, as verl prints it", BOOT),
    ]
    return [table for table in built if table.rows]


PASSK = (
    "in %, unbiased pass@k; brackets: 95 % interval for other problems and seeds (of problems alone where there is one seed); "
    "best bold, second best underlined among arms that may be ranked"
)
BOOT = ("in %, the bootstrap with replacement that verl prints and many papers publish; it lies below pass@k and is not to be "
        "compared with it")  # fmt: skip


def _estimates(comparison: Comparison, frame: pd.DataFrame, name: str, title: str, note: str) -> Table:
    """A row per arm, a column per benchmark and metric, and the averages over benchmarks where every arm has all."""
    if frame.empty:
        return Table(name, title, [], [])
    values = {(r.arm, r.benchmark, r.metric): estimate(r.value, r.low, r.high) for r in frame.itertuples()}
    heads = list(dict.fromkeys((r.benchmark, r.metric) for r in frame.itertuples()))
    arms = list(dict.fromkeys(frame["arm"]))
    ranked = {comparison.baseline, *comparison.fairness.ranked} - {UNTRAINED}
    columns = [[values.get((arm, *head), Cell("-")) for arm in arms] for head in heads]
    groups = [(b, sum(head[0] == b for head in heads)) for b in dict.fromkeys(head[0] for head in heads)]
    names = [metric for _, metric in heads]
    for metric in dict.fromkeys(names):
        places = [i for i, head in enumerate(heads) if head[1] == metric]
        if len(places) > 1:
            columns.append([_mean([columns[i][at] for i in places]) for at in range(len(arms))])
            names.append(metric)
    cells = [_ranked(arms, column, ranked) for column in columns]
    if len(names) > len(heads):
        groups.append(("average", len(names) - len(heads)))
    seeds = frame.groupby("arm", sort=False)["seeds"].max()
    rows = [
        [Cell(arm), Cell(str(seeds[arm]), float(seeds[arm])), *(column[i] for column in cells)]
        for i, arm in enumerate(arms)
    ]
    sizes = "; ".join(
        f"{r.benchmark}: {r.problems} problems x {r.n}" for r in frame.drop_duplicates("benchmark").itertuples()
    )
    return Table(name, title, ["method", "seeds", *names], rows, f"{note}; {sizes}", [("", 2), *groups])


def _ranked(arms: Sequence[str], column: Sequence[Cell], ranked: set[str]) -> list[Cell]:
    """Marks best and second best among the ranked arms; values that round to the same number share a place."""
    rounded = [round(cell.value, 1) if cell.value is not None and arm in ranked else None
             for arm, cell in zip(arms, column, strict=True)]  # fmt: skip
    order = sorted((value for value in rounded if value is not None), reverse=True)[:2] if len(ranked) > 1 else []
    if len(set(order)) == 1:  # a shared first place leaves no second
        order = order[:1]
    places = [order.index(value) + 1 if value in order else 0 for value in rounded]
    return [replace(cell, place=place) for cell, place in zip(column, places, strict=True)]


def _mean(cells: Sequence[Cell]) -> Cell:
    values = [cell.value for cell in cells if cell.value is not None]
    return number(float(np.mean(values)) if len(values) == len(cells) else None, 1)


def _tests(comparison: Comparison) -> Table:
    columns = ["method", "against", "benchmark", "metric", "family", "difference", "95 % (Welch)", "df", "p", "p (corrected)",
               "95 % (problems and seeds)", "detectable", "result"]  # fmt: skip
    frame = comparison.tests
    rows = [
        [*words(r.arm, r.against, r.benchmark, r.metric, r.family), _signed(r.gap),
         _range(r.low, r.high), number(r.df, 1), p_value(r.p), p_value(r.adjusted),
         _range(r.two_low, r.two_high), number(r.detectable, 1), Cell(r.words)]
        for family in ("primary", "control", "exploratory") for r in frame[frame["family"] == family].itertuples()
    ]  # fmt: skip
    note = ("points of 100; the unit is the training seed: Welch's t on seed means, df its degrees of freedom; corrected: Holm "
            "within the primary rows and within those of controls, Benjamini-Hochberg over the exploratory ones, which "
            "confirm nothing; detectable: true difference found with 80 % at the level of Holm's first step")  # fmt: skip
    return Table("tests", "Differences, training seed as the unit", columns, rows, note)


def every_k(comparison: Comparison) -> pd.DataFrame:
    """Paired pass@k curves with simultaneous bands, a row for each k."""
    rows = [(f.arm, f.against, f.benchmark, *point, f.scope) for f in comparison.curves
            for point in zip(f.curve.ks, f.curve.value, f.curve.low, f.curve.high, f.curve.verdicts, strict=True)]  # fmt: skip
    columns = ["arm", "baseline", "benchmark", "k", "difference", "low", "high", "verdict", "scope"]
    return pd.DataFrame(rows, columns=columns)


def _curves(comparison: Comparison) -> Table:
    """Where one arm gains and where it loses over k."""
    rows = []
    for found in comparison.curves:
        cells = words(found.arm, found.against, found.benchmark, found.scope)
        for verdict in ("gains", "loses"):
            stretches = found.curve.stretches(verdict)
            cells.append(Cell(found.curve.ranges(verdict) or "-"))
            cells.append(Cell(f"{stretches[0][0]:,}", stretches[0][0]) if stretches else Cell("-"))
        rows.append(cells)
    columns = ["method", "against", "benchmark", "holds for", "gains for k", "first gain", "loses for k", "first loss"]
    note = ("pass@k for every k from 1 to n (256 of them where n is larger), problem by problem, with 95 % bands that hold for "
            "all k and all curves at once; every k with its band is in paired_pass_at_k.csv; these checkpoints: it says "
            "nothing of other training seeds")  # fmt: skip
    return Table("curves", "Pass@k curves compared", columns, rows, note)


def _pairs(comparison: Comparison) -> Table:
    columns = ["method", "against", "benchmark", "difference", "95 % (problems)", "p (permutation)", "wins", "ties", "losses",
               "solved by both", "by it only", "by the other only", "by neither", "p (only)"]  # fmt: skip
    rows = [
        [*words(r.arm, r.against, r.benchmark), _signed(r.gap), _range(r.low, r.high), p_value(r.p),
         *(Cell(str(v), float(v)) for v in (r.wins, r.ties, r.losses, r.both, r.only_it, r.only_other, r.neither)),
         p_value(r.p_only)]
        for r in comparison.pairs.itertuples()
    ]  # fmt: skip
    note = ("mean@n per problem, seeds averaged. It takes the trained checkpoints as given, so a small p says nothing about "
            "training again: where seeds differ at all, such a test rejects true nulls far too often")  # fmt: skip
    return Table("pairs", "Problem by problem: these checkpoints only", columns, rows, note)


def _noise(comparison: Comparison) -> Table:
    rows = []
    for (arm, benchmark), part in comparison.noise.groupby(["arm", "benchmark"], sort=False):
        rejected = int((part["p"] < 0.05).sum())
        largest = part["gap"].abs().max()
        rows.append(
            [*words(arm, benchmark), number(largest, 1), Cell(f"{rejected} of {len(part)}", rejected / len(part))]
        )
    columns = ["method", "benchmark", "largest difference", "pairs of seeds with p < 0.05"]
    note = ("two training seeds of one method, tested problem by problem as if they were two methods: there is nothing to "
            "find, so every rejection is a false alarm of such tests")  # fmt: skip
    return Table("noise", "A/A check: the same method against itself", columns, rows, note)


def _costs(comparison: Comparison) -> Table:
    columns = ["method", "benchmark", "gain", "training tokens", "seconds", "tokens/s", "gain per million tokens",
               "gain per hour", "tokens per answer"]  # fmt: skip
    rows = [
        [*words(r.arm, r.benchmark), _signed(r.gain), number(r.tokens, 0), number(r.seconds, 0),
         number(r.tokens_per_second, 0), number(r.per_million_tokens, 1), number(r.per_hour, 0),
         number(r.answer_tokens, 1)]
        for r in comparison.costs.itertuples()
    ]  # fmt: skip
    note = "gain: points of mean@n over the untrained model; seconds of the RL steps, evaluations not counted; means over seeds"
    return Table("costs", "Cost", columns, rows, note)


def markdown(table: Table) -> str:
    """A pipe table with its title and note."""
    rows = [
        [_marked(cell, "**", "**", "<u>", "</u>", cell.text.replace("|", "\\|")) for cell in row] for row in table.rows
    ]
    body = tabulate(rows, _headings(table), tablefmt="pipe", disable_numparse=True)
    return f"### {table.title}\n\n{body}\n\n*{table.note}.*\n"


def terminal(table: Table) -> str:
    """Plain text; the best of a column has a star."""
    rows = [[cell.text + "*" * (cell.place == 1) for cell in row] for row in table.rows]
    return (
        f"{table.title}\n{tabulate(rows, _headings(table), tablefmt='simple', disable_numparse=True)}\n{table.note}\n"
    )


def latex(table: Table) -> str:
    """A booktabs tabular, without a float around it."""
    lines = [rf"% {table.title}: {table.note}", rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"\toprule"]
    if table.groups:
        lines.append(
            " & ".join(
                rf"\multicolumn{{{n}}}{{c}}{{{g.translate(LATEX)}}}" if g else "& " * (n - 1) for g, n in table.groups
            )
            + r" \\"
        )
    lines += [" & ".join(name.translate(LATEX) for name in table.columns) + r" \\", r"\midrule"]
    for row in table.rows:
        cells = [_marked(cell, r"\textbf{", "}", r"\underline{", "}", cell.text.translate(LATEX)) for cell in row]
        lines.append(" & ".join(cells).replace("-", "--") + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def html_table(table: Table) -> str:
    """A sortable table: its cells carry the values to sort by, empty where there is none; its text is escaped."""
    heads = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{html.escape(name)}</button></th>'
        for name in table.columns
    )
    groups = "".join(f'<th colspan="{n}" scope="colgroup">{html.escape(g)}</th>' for g, n in table.groups)
    body = "".join(f"<tr>{''.join(_td(cell, at) for at, cell in enumerate(row))}</tr>" for row in table.rows)
    over = f"<tr>{groups}</tr>" if groups else ""
    note = f'<p class="sub">{html.escape(table.note)}.</p>'
    head = f"<thead>{over}<tr>{heads}</tr></thead>"
    whole = f'<table class="sortable" id="{html.escape(table.name)}">{head}<tbody>{body}</tbody></table>'
    return f'<div class="wide">{whole}</div>{note}'


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """Figures as they are, for another program; text as in `write_csv`."""
    frame.map(lambda value: _harmless(Cell(value)) if isinstance(value, str) else value).to_csv(path, index=False)


def write_csv(table: Table, path: Path) -> None:
    """Cells as shown; text that a spreadsheet would run as a formula gets a quote in front."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_headings(table))
        for row in table.rows:
            writer.writerow([_harmless(cell) for cell in row])


def _headings(table: Table) -> list[str]:
    over = [group for group, n in table.groups for _ in range(n)] or [""] * len(table.columns)
    return [f"{group} {name}".strip() for group, name in zip(over, table.columns, strict=True)]


def _marked(cell: Cell, best: str, end_best: str, second: str, end_second: str, text: str) -> str:
    if cell.place == 1:
        return f"{best}{text}{end_best}"
    return f"{second}{text}{end_second}" if cell.place == 2 else text


def _td(cell: Cell, at: int) -> str:
    value = "" if cell.text == "-" else cell.text if cell.value is None else cell.value
    tag = 'th scope="row"' if at == 0 else "td"
    text = _marked(cell, "<strong>", "</strong>", "<u>", "</u>", html.escape(cell.text))
    return f'<{tag} data-value="{html.escape(str(value))}">{text}</{tag.split()[0]}>'


def _harmless(cell: Cell) -> str:
    is_number = cell.text[:1] in "+-" and cell.text[1:].replace(".", "", 1).isdigit()
    return f"'{cell.text}" if cell.text.startswith(FORMULA) and not is_number else cell.text


def _signed(value: float) -> Cell:
    return Cell("0.0" if abs(value) < 0.05 else f"{value:+.1f}", value)


def _range(low: float, high: float) -> Cell:
    return Cell("-" if np.isnan(low) or np.isnan(high) else f"{low:+.1f} to {high:+.1f}", low)
