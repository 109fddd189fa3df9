"""The comparison that was declared before the results were seen: which metrics count, what is too small to matter."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analysis.load import LoadError

PRIMARY = re.compile(r"(?P<benchmark>.+)/(?P<metric>(mean|pass)@(?P<k>[1-9][0-9]*))")
OTHER_DISTRIBUTION = "_ood"  # how the names of benchmarks end that are no test of what was trained


@dataclass(frozen=True)
class Declared:
    """What the user said: `primary` as <benchmark>/<metric>, `margin` and `detect` in points of 100."""

    primary: Sequence[str] = ()
    margin: float | None = None
    detect: float | None = None


def primary_metrics(declared: Declared, samples: Mapping[str, int]) -> list[tuple[str, str]]:
    """(benchmark, metric) of the family that is corrected; `samples`: benchmark -> n.

    Unless named, mean@n of every benchmark that is in distribution, or of all where none is.
    """
    if declared.primary:
        return list(dict.fromkeys(_primary(str(text), samples) for text in declared.primary))
    inside = [name for name in samples if not name.endswith(OTHER_DISTRIBUTION)] or list(samples)
    return [(name, f"mean@{samples[name]}") for name in inside]


def _primary(text: str, samples: Mapping[str, int]) -> tuple[str, str]:
    found = PRIMARY.fullmatch(text)
    if not found:
        name, n = next(iter(samples.items()))
        example = f"primary={name}/pass@{min(8, n)}"
        raise LoadError(f"primary={text}: must be <benchmark>/mean@n or <benchmark>/pass@k; {example}")
    benchmark, k = found["benchmark"], int(found["k"])
    if benchmark not in samples:
        raise LoadError(f"primary={text}: there is no such benchmark; there are {', '.join(samples)}")
    n = samples[benchmark]
    if k > n or (found["metric"].startswith("mean") and k != n):
        allowed = f"{benchmark}/mean@{n} or {benchmark}/pass@k with k in 1..{n}"
        raise LoadError(f"primary={text}: {benchmark} has n={n} samples per problem; {allowed}")
    return benchmark, found["metric"]
