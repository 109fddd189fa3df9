r"""Whether two golds of one row say the same: as texts at first, by the task's grader where texts differ."""

import re
from collections.abc import Callable, Sequence

from ngrpo.grading.answers import same_integer

Pair = tuple[tuple[str, ...], tuple[str, ...]]
Same = Callable[[Sequence[tuple[str, str]]], Sequence[bool]]  # pairs of golds, one grader call for all of them
SPACING = re.compile(r"\s|\$|\\left(?![a-z])|\\right(?![a-z])|\\[!,;: ]|~")
FRACTION = re.compile(r"\\[dt]frac(?![a-z])")
TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textrm)\{([^{}]*)\}")


def agree(pairs: Sequence[Pair], same: Same | None) -> list[bool]:
    """For each pair of lists of golds, whether a gold of the one is a gold of the other."""
    found = [any(_alike(one, other) for one in left for other in right) for left, right in pairs]
    asked = [at for at, known in enumerate(found) if not known] if same else []
    each = [(at, one, other) for at in asked for one in pairs[at][0] for other in pairs[at][1]]
    if same and each:
        flat = [pair for _, one, other in each for pair in ((one, other), (other, one))]
        verdicts = same(flat)
        for number, (at, _, _) in enumerate(each):
            found[at] = found[at] or verdicts[2 * number] or verdicts[2 * number + 1]
    return found


def _alike(one: str, other: str) -> bool:
    return same_integer(one, other) or squeezed(one) == squeezed(other)


def squeezed(text: str) -> str:
    """A gold without what is only its looks, and without backslashes, which copies lose."""
    text = FRACTION.sub(lambda _: "\\frac", TEXT.sub(r"\1", text))
    return SPACING.sub("", text).replace("\\", "").rstrip(".").casefold()
