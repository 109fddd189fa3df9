"""Draws the plane of the embedding table around an anchor: tokens, and what strategies fed instead of it.

It draws coordinates as they were written; how they came about, it does not know.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

from analysis.mechanism import Mechanism, shown
from analysis.plots import COLORS, MARKERS, STYLE

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CAPTION = (
    "Fed vectors on the plane of the two principal components of the anchor, its nearest neighbors and the tokens that came "
    "nearest to a fed vector. The plane shows little of a noise in many dimensions: the legend gives the median length of what "
    "it does not show, in lengths of the anchor."
)


def draw(found: Sequence[Mechanism], directory: Path) -> list[tuple[Path, str]]:
    """A figure for each diagnosis with anything to show, as (path of a PNG, caption)."""
    figures = []
    for at, one in enumerate(found):
        content = png(one.planes)
        if content:
            path = directory / ("planes.png" if at == 0 else f"planes_{at + 1}.png")
            path.write_bytes(content)
            figures.append((path, f"{one.title}: {CAPTION}"))
    return figures


def png(points: pd.DataFrame) -> bytes | None:
    """The picture of all anchors of a diagnosis; None where exploration moved nothing."""
    if points.empty:
        return None
    parts = [part for _, part in points.groupby("anchor", sort=False)]
    strategies = list(dict.fromkeys(points["strategy"].dropna()))
    with plt.rc_context(STYLE):
        columns = min(2, len(parts))
        lines = -(-len(parts) // columns)
        size = (3.5 * columns, 2.9 * lines)
        figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
        for axis in axes.flat[len(parts) :]:
            axis.axis("off")
        for axis, part in zip(axes.flat, parts, strict=False):
            _panel(axis, part, strategies)
        drawn = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in axes.flat]
        handles = {label: handle for pairs in drawn for handle, label in pairs}
        texts = [_with_distance(label, points) for label in handles]
        figure.legend(list(handles.values()), texts, loc="outside lower center", ncols=2)
        target = BytesIO()
        figure.savefig(target, format="png")
        plt.close(figure)
    return target.getvalue()


def _panel(axis: Any, part: pd.DataFrame, strategies: Sequence[str]) -> None:
    tokens, first = part[part["kind"] != "fed"], part.iloc[0]
    for at, name in enumerate(strategies):
        own = part[(part["kind"] == "fed") & (part["strategy"] == name)]
        if len(own):
            axis.plot(own["x"], own["y"], linestyle="", marker=MARKERS[at % 7], color=COLORS[at % 6 + 1], markersize=3.5,
                      alpha=0.6, markeredgewidth=0, label=name)  # fmt: skip
    around = tokens[tokens["kind"] != "anchor"]
    axis.plot(around["x"], around["y"], linestyle="", marker=".", color="#555555", markersize=4, label="tokens")
    axis.plot(*tokens[tokens["kind"] == "anchor"][["x", "y"]].iloc[0], linestyle="", marker="*", color=COLORS[0],
              markersize=9, label="anchor")  # fmt: skip
    # Texts on alternate sides, so that few of them meet.
    for at, row in enumerate(tokens.sort_values("y").itertuples()):
        side = 1 if at % 2 else -1
        axis.annotate(_plain(row.text), (row.x, row.y), xytext=(4 * side, 2), textcoords="offset points", fontsize=6,
                      ha="left" if side > 0 else "right", fontweight="bold" if row.kind == "anchor" else "normal",
                      color="#222222")  # fmt: skip
    axis.margins(0.15)
    axis.locator_params(nbins=5)
    axis.set_title(f"around {_plain(first['anchor_text'])}")
    axis.set(xlabel=f"first component ({first['share_x']:.0%})", ylabel=f"second ({first['share_y']:.0%})")


def _with_distance(label: str, points: pd.DataFrame) -> str:
    own = points[(points["kind"] == "fed") & (points["strategy"] == label)]
    return f"{label} (beside the plane: {own['off_plane'].median():.2f})" if len(own) else label


def _plain(text: object) -> str:
    # matplotlib would read dollars as formulas, and has no glyph for most of the world's scripts.
    return shown(text).encode("ascii", "backslashreplace").decode().replace("$", r"\$")[:16]
