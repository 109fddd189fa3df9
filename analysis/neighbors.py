"""The nearest neighbors of tokens in the embedding table, as diagnose.py listed them; loads no model."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from analysis.load import Study
from analysis.tables import Cell, Table
from ngrpo.rundir.schema import read_run

FILE, FILE_OF_0_1 = "neighbors.parquet", "neighbours.parquet"
COLUMNS_OF_0_1 = {"neighbour": "neighbor", "neighbour_text": "neighbor_text"}
LISTED = 6  # neighbors of a token in a table; all are in the file


@dataclass(frozen=True)
class Neighbors:
    """The neighbors of one diagnosis: `title` (its model) and `rows`, one per token and rank."""

    title: str
    rows: pd.DataFrame


def read(directory: Path) -> Neighbors:
    """The neighbors in a directory of diagnose.py. Raises Unreadable, LookupError, OSError."""
    path = read_run(directory).config["model"]["path"]
    name = FILE if (directory / FILE).exists() else FILE_OF_0_1
    frame: pd.DataFrame = pq.read_table(directory / name).to_pandas()
    return Neighbors(Path(path).name, frame.rename(columns=COLUMNS_OF_0_1))


def beside(study: Study, roots: Iterable[str | Path]) -> tuple[list[Neighbors], Study]:
    """The finished diagnoses below some directories, and the study, which does not list them as runs that were left out."""
    kept: dict[str, Neighbors] = {}
    for path in (path for root in roots for name in (FILE, FILE_OF_0_1) for path in sorted(Path(root).rglob(name))):
        with suppress(OSError, ValueError, LookupError):  # damaged, or no diagnosis: the study lists it as left out
            kept[str(path.parent)] = read(path.parent)
    left_out = study.left_out[~study.left_out["path"].isin(list(kept))]
    others = {path: kind for path, kind in study.other_kinds.items() if path not in kept}
    return list(kept.values()), replace(study, left_out=left_out, other_kinds=others)


def tables(found: Sequence[Neighbors]) -> list[Table]:
    """The neighbors of each diagnosis, a row per token."""
    built = []
    for at, one in enumerate(found):
        if one.rows.empty:
            continue
        name = "neighbors" if at == 0 else f"neighbors_{at + 1}"
        ranks = [str(rank) for rank in range(1, LISTED + 1)]
        rows = [_row(part, len(ranks)) for _, part in one.rows.groupby("token", sort=False)]
        note = ("cosine of the input embeddings; ordinary tokens only. Tokens that were asked for, then the anchors that "
                "exploration met most")  # fmt: skip
        built.append(Table(name, f"Nearest neighbors of tokens ({one.title})", ["token", *ranks], rows, note))
    return built


def _row(part: pd.DataFrame, most: int) -> list[Cell]:
    nearest = part.head(most)
    pairs = zip(nearest["neighbor_text"], nearest["cosine"], strict=True)
    cells = [Cell(f"{visible(text)} {cosine:.2f}", cosine) for text, cosine in pairs]
    return [Cell(visible(part["text"].iloc[0])), *cells, *[Cell("-")] * (most - len(cells))]


def visible(text: object) -> str:
    """A token's text with blanks and control characters made visible; never empty."""
    return (
        "".join("␣" if c == " " else c if c.isprintable() and not c.isspace() else repr(c)[1:-1] for c in str(text))
        or "(empty)"
    )
