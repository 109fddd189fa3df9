"""What a check finds, and the tests of draws against a law: chi-square, Kolmogorov-Smirnov, and plain comparisons."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[Any]
ALPHA = 1e-6  # a test whose p-value is below fails; seeds are fixed, so what passes once passes always
ENOUGH = 5.0  # draws expected in a cell of a chi-square test; cells with fewer are counted together
UNSEEN = 20.0  # expected draws of all that never came up, at most: e^-20 is far below ALPHA


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, the p-value of its test or 1 or 0, and by how much it is off.

    chi_square: the statistic and its degrees of freedom, where it is a chi-square test.
    """

    what: str
    p: float
    detail: str
    chi_square: tuple[float, int] | None = None

    @property
    def fails(self) -> bool:
        """Whether the contract is broken."""
        return not self.p >= ALPHA  # the form that is true of NaN too


def counts(what: str, observed: ArrayLike, law: ArrayLike) -> Finding:
    """Chi-square test of counts against probabilities that sum to 1; where the law has 0, nothing may come up."""
    seen, p = np.asarray(observed, float).ravel(), np.asarray(law, float).ravel()
    total, impossible = seen.sum(), seen[p <= 0].sum()
    if abs(p.sum() - 1) > 1e-4:
        return Finding(what, 0.0, f"probabilities sum to {p.sum():.5f}")
    if impossible:
        return Finding(what, 0.0, f"{impossible:.0f} of {total:.0f} draws where none may be")
    order = np.argsort(p[p > 0])
    seen, expected = seen[p > 0][order], (p[p > 0] * total)[order]
    few = int(np.searchsorted(expected.cumsum(), ENOUGH, side="left")) + 1 if expected[0] < ENOUGH else 1
    few = max(few, int(np.searchsorted(expected, ENOUGH)))
    seen, expected = (np.array([part[:few].sum(), *part[few:]]) for part in (seen, expected))
    if len(seen) == 1:
        return Finding(what, 1.0, f"{total:.0f} draws, one cell")
    statistic, freedom = float(((seen - expected) ** 2 / expected).sum()), len(seen) - 1
    return chi_square(what, statistic, freedom, f"{total:.0f} draws")


def chi_square(what: str, statistic: float, freedom: int, of: str) -> Finding:
    """The finding of a chi-square statistic."""
    p = float(stats.chi2.sf(statistic, freedom))
    return Finding(what, p, f"chi-square {statistic:.1f} with {freedom} degrees of freedom, {of}", (statistic, freedom))


def pooled(findings: Iterable[Finding]) -> Iterator[Finding]:
    """The chi-square tests of one name in several cells as one test: it sees what is a little off in each of them."""
    sums: dict[str, tuple[float, int]] = {}
    for finding in findings:
        if finding.chi_square:
            before, statistic = sums.get(finding.what, (0.0, 0)), finding.chi_square
            sums[finding.what] = (before[0] + statistic[0], before[1] + statistic[1])
    for what, (statistic, freedom) in sums.items():
        yield chi_square(f"all cells: {what}", statistic, freedom, "all cells")


def uniform(what: str, values: ArrayLike) -> list[Finding]:
    """Values (N, M) that should be uniform and independent: Kolmogorov-Smirnov by column, and counts of their halves."""
    u = np.asarray(values, float).reshape(len(np.asarray(values)), -1)
    found = [_kolmogorov_smirnov(f"{what} {column}", u[:, column]) for column in range(u.shape[1])]
    halves = (u[:, :6] >= 0.5).astype(int) @ (2 ** np.arange(min(u.shape[1], 6)))
    cells = 2 ** min(u.shape[1], 6)
    joint = counts(f"{what} together", np.bincount(halves, minlength=cells), np.full(cells, 1 / cells))
    return [*found, joint] if u.shape[1] > 1 else found


def _kolmogorov_smirnov(what: str, u: Array) -> Finding:
    if not len(u) or not np.isfinite(u).all():
        return Finding(what, 0.0, f"{len(u)} values, not all finite" if len(u) else "no values")
    ordered, grid = np.sort(u), np.arange(len(u) + 1) / len(u)
    distance = max((grid[1:] - ordered).max(), (ordered - grid[:-1]).max())
    return Finding(what, float(stats.kstwobign.sf(distance * np.sqrt(len(u)))), f"distance {distance:.4f} of {len(u)}")


def near(what: str, ours: Any, theirs: Any, tolerance: float = 1e-5) -> Finding:
    """Two arrays that agree to `tolerance`, absolute and relative to the second."""
    a, b = np.broadcast_arrays(np.asarray(ours, float), np.asarray(theirs, float))
    off = np.abs(a - b) - tolerance * np.abs(b)
    worst = float(off.max()) if off.size else 0.0
    return Finding(what, 1.0 if worst <= tolerance else 0.0, f"off by {worst:.3g}, at most {tolerance:.0e}")


def holds(what: str, where: Any) -> Finding:
    """Something that is true of every row."""
    wrong = int((~np.asarray(where, bool)).sum())
    return Finding(what, 0.0 if wrong else 1.0, f"{wrong} of {np.asarray(where).size} rows differ")
