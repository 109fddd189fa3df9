"""What diagnose.py found out about the embedding table: pictures around anchors, and nearest neighbors of tokens.

It reads coordinates that are there already: it loads no model and knows no vector.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from analysis.load import Study
from analysis.tables import Cell, Table
from ngrpo.rundir.schema import read_run

PLANES, NEIGHBORS = "planes.parquet", "neighbours.parquet"
LISTED = 6  # neighbors of a token in a table; all are in the file


@dataclass(frozen=True)
class Mechanism:
    """One diagnosis: `title`, `planes` (a row per point) and `neighbors` (a row per token and rank)."""

    title: str
    planes: pd.DataFrame
    neighbors: pd.DataFrame


def read(directory: Path) -> Mechanism:
    """The coordinates in a directory of diagnose.py."""
    path = read_run(directory).config["model"]["path"]
    frames = [pq.read_table(directory / name).to_pandas() for name in (PLANES, NEIGHBORS)]
    return Mechanism(Path(path).name, *frames)


def beside(study: Study, roots: Iterable[str | Path]) -> tuple[list[Mechanism], Study]:
    """The finished diagnoses below some directories, and the study, which does not list them as runs that were left out."""
    places = dict.fromkeys(path.parent for root in roots for path in sorted(Path(root).rglob(PLANES)))
    kept = {str(place): found for place in places if (found := _read_if_whole(place))}
    left_out = study.left_out[~study.left_out["path"].isin(list(kept))]
    others = {path: kind for path, kind in study.other_kinds.items() if path not in kept}
    return list(kept.values()), replace(study, left_out=left_out, other_kinds=others)


def _read_if_whole(directory: Path) -> Mechanism | None:
    """What a directory holds; None where it is damaged or no diagnosis, which the study then lists as left out."""
    try:
        return read(directory)
    except (OSError, ValueError, LookupError):
        return None


def tables(found: Sequence[Mechanism]) -> list[Table]:
    """The neighbors of each diagnosis, a row per token."""
    made = []
    for at, one in enumerate(found):
        if one.neighbors.empty:
            continue
        name = "neighbors" if at == 0 else f"neighbors_{at + 1}"
        ranks = [str(rank) for rank in range(1, LISTED + 1)]
        rows = [_row(part, len(ranks)) for _, part in one.neighbors.groupby("token", sort=False)]
        note = ("cosine of the input embeddings; ordinary tokens only. Tokens that were asked for, then the anchors that "
                "exploration met most")  # fmt: skip
        made.append(Table(name, f"Nearest neighbors of tokens ({one.title})", ["token", *ranks], rows, note))
    return made


def _row(part: pd.DataFrame, most: int) -> list[Cell]:
    cells = [Cell(f"{shown(r.neighbor_text)} {r.cosine:.2f}", r.cosine) for r in part.head(most).itertuples()]
    return [Cell(shown(part["text"].iloc[0])), *cells, *[Cell("-")] * (most - len(cells))]


def shown(text: object) -> str:
    """A token's text with blanks and control characters made visible; never empty."""
    marked = "".join(sign if sign.isprintable() and not sign.isspace() else _mark(sign) for sign in str(text))
    return marked or "(empty)"


def _mark(sign: str) -> str:
    return "␣" if sign == " " else repr(sign)[1:-1]
