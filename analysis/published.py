"""Published numbers beside measured ones, each with its estimator; they are not ranked.

The facts are in published_results.csv.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.load import LoadError
from analysis.tables import Cell, Table

FACTS = Path(__file__).with_name("published_results.csv")
NOTE = (
    "in %, as printed there ({source}), one run per cell; the second heading is the estimator: N-GRPO states "
    "unbiased pass@k, but its values are those of the bootstrap with replacement. Not ranked with the measured ones"
)


def tables(papers: Sequence[str], benchmarks: Sequence[str]) -> list[Table]:
    """A table per paper and backbone; only the study's benchmarks where the paper has any of them.

    Raises LoadError for a paper that is not in published_results.csv.
    """
    facts = pd.read_csv(FACTS)
    built = []
    for paper in papers:
        part = facts[facts["paper"] == paper]
        if part.empty:
            raise LoadError(
                f"published={paper}: there is no such paper; there are {', '.join(facts['paper'].unique())}"
            )
        ours = {name.lower().replace("_", "").replace("-", "") for name in benchmarks}
        shared = part[part["benchmark"].str.lower().str.replace("-", "").isin(ours)]
        part = part if shared.empty else shared
        built += [_table(paper, str(backbone), rows) for backbone, rows in part.groupby("backbone", sort=False)]
    return built


def _table(paper: str, backbone: str, rows: pd.DataFrame) -> Table:
    heads = list(dict.fromkeys(zip(rows["benchmark"], rows["estimator"], strict=True)))
    values = {(r.method, r.benchmark, r.estimator): r for r in rows.itertuples()}
    body = []
    for method in dict.fromkeys(rows["method"]):
        cells = [values.get((method, *head)) for head in heads]
        body.append([Cell(method), *(Cell(f"{r.value:.1f}" if r else "-", r.value if r else None) for r in cells)])
    groups = [("", 1), *((b, sum(h[0] == b for h in heads)) for b in dict.fromkeys(h[0] for h in heads))]
    source = f"arXiv {rows['arxiv'].iloc[0]}, read {rows['read'].iloc[0]}, {', '.join(dict.fromkeys(rows['table']))}"
    name = f"published_{paper}_{backbone.lower().replace('-', '_').replace('.', '_')}"
    return Table(
        name, f"Published: {backbone}", ["method", *(e for _, e in heads)], body, NOTE.format(source=source), groups
    )
