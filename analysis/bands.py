"""Whole pass@k curves of two arms compared: bands that hold for every k at once.

S training seeds, P problems, n samples, K values of k.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from analysis.intervals import Array, parts

NEITHER = "–"  # noqa: RUF001, a dash and no minus sign
DRAWS = 20_000  # 17 of them lie outside a band that is one of twelve
MOST_K = 256


@dataclass(frozen=True)
class Curve:
    """The difference of two pass@k curves: (K,) values with a simultaneous band, and the verdict for each k."""

    ks: list[int]
    value: Array
    low: Array
    high: Array

    @property
    def verdicts(self) -> list[str]:
        """`gains` where the band lies above 0, `loses` where it lies below, else a dash."""
        return [
            "gains" if low > 0 else "loses" if high < 0 else NEITHER
            for low, high in zip(self.low, self.high, strict=True)
        ]

    def stretches(self, verdict: str) -> list[tuple[int, int]]:
        """The (first, last) k of each unbroken run of this verdict."""
        runs = [[k for k, _ in run] for found, run in groupby(zip(self.ks, self.verdicts, strict=True), lambda pair: pair[1])
                if found == verdict]  # fmt: skip
        return [(run[0], run[-1]) for run in runs]

    def ranges(self, verdict: str) -> str:
        """The same as text, such as `1 to 8, 32`; empty if there is none."""
        return ", ".join(
            f"{first} to {last}" if last > first else str(first) for first, last in self.stretches(verdict)
        )


def every_k(n: int) -> list[int]:
    """1 to n; of more than MOST_K values as many of them, evenly on a scale of ratios."""
    return list(range(1, n + 1)) if n <= MOST_K else np.unique(np.geomspace(1, n, MOST_K).round().astype(int)).tolist()


def curves(n: int, correct: Array, ks: Sequence[int], top: float = 100.0) -> Array:
    """(S, P, K) of pass@k from (S, P) right answers of n each: 1 - C(n-c, k) / C(n, k) as a product over k."""
    counts, places = np.unique(np.asarray(correct, dtype=np.int64), return_inverse=True)
    drawn = np.arange(max(ks))
    wrong = np.cumprod(np.maximum(n - counts[:, None] - drawn, 0) / (n - drawn), axis=1)
    known: Array = (top * (1 - wrong[:, np.asarray(ks) - 1])).astype(np.float64)
    return known[places.reshape(np.shape(correct))]


def paired_curves(
    ks: Sequence[int],
    first: Array,
    second: Array,
    *,
    training_runs: bool = False,
    level: float = 0.95,
    draws: int = DRAWS,
    top: float = 100.0,
) -> Curve:
    """pass@k of the second arm less that of the first, problem by problem, with a band that holds for all k at once.

    For these checkpoints: a sup-t band by Gaussian multipliers over problems (arXiv 2609.22547), with the chi-square of an
    estimated variance and the pseudo-problems of `passk.steadied_gap`. For training runs the half width is the root of the
    sum of the squares of two, the one over problems and one over seeds whose multipliers belong to the seed means.

    Args:
        first, second: (S, P, K) and (S', P, K) of `curves`, the same problem in the same column.
        training_runs: whether the band speaks of other training seeds as well; needs two seeds of one arm.
    """
    arms = [first, second]
    gaps = second.mean(axis=0) - first.mean(axis=0)
    found, rng = parts(arms, top), np.random.default_rng(0)
    squares = found.of_problems * _limit(gaps - gaps.mean(axis=0), len(gaps) - 1, level, draws, rng) ** 2
    if training_runs:
        several = [values.mean(axis=1) / np.sqrt(len(values) * (len(values) - 1)) for values in arms if len(values) > 1]
        off = np.concatenate([means - means.mean(axis=0) for means in several])
        df = float(found.df_seeds[found.of_seeds > 0].min(initial=sum(len(means) - 1 for means in several)))
        squares = squares + found.of_seeds * _limit(off, df, level, draws, rng) ** 2
    half = np.sqrt(squares)
    low, high = np.clip([found.center - half, found.center + half], -top, top)
    return Curve(list(ks), gaps.mean(axis=0), low, high)


def _limit(off: Array, df: float, level: float, draws: int, rng: np.random.Generator) -> float:
    """The quantile of the largest |t| over K columns of (rows, K) deviations, each with a variance of `df` degrees of freedom.

    Normal multipliers of the rows are drawn through the triangle of their QR decomposition: the same law at a cost that does
    not grow with the rows.
    """
    spread = np.sqrt((off**2).sum(axis=0))
    varied = spread > 1e-9 * max(spread.max(), 1e-9)
    triangle: Any = np.linalg.qr(off[:, varied] / spread[varied], mode="r")
    if not triangle.size:  # nothing varies: what one k would get
        triangle = np.ones((1, 1))
    largest = np.abs(rng.standard_normal((draws, len(triangle))) @ triangle).max(axis=1)
    return float(np.quantile(largest / np.sqrt(rng.chisquare(df, draws) / df), level))
