r"""Grades LaTeX answers: exact comparison of texts and numbers first, then math-verify in processes that can be killed.

The last complete box counts. A number is matched by equal numbers only (a rounded one is another), `x = 5` is 5 and any other
relation is no value, units and degrees after a value are dropped, p% matches p and p/100, words are compared as words,
sets and intervals by math-verify. What is too long, too deep or too large to be an answer is `unparsed`. It does not know
the problem.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from ngrpo.grading import written
from ngrpo.grading.answers import extract_boxed
from ngrpo.grading.exact import Verdict
from ngrpo.grading.workers import SECONDS, Workers

LARGE = re.compile(r"!\s*!|\)\s*!|\d{4,}\s*!|\^\{?-?\d{4,}|\\(?:sum|prod|int|lim)(?![a-zA-Z])|\d{1001}")
BASE = re.compile(r"[\dA-Za-z]+_\{?\d+\}?")
REMEMBERED = 100_000  # pairs


class Latex:
    """A grader for tasks whose answers are formulas. `workers`: processes; `seconds`: for one comparison."""

    def __init__(self, workers: int = 1, seconds: float = SECONDS):
        self.count, self.seconds = workers, seconds
        self._known: dict[tuple[str, str], str] = {}

    @property
    def workers(self) -> Workers:
        """The processes, the same ones for all graders of these sizes."""
        return _shared(self.count, self.seconds)

    def grade(self, completions: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        """Verdicts, one per pair, in order; it raises on no text."""
        boxes = [extract_boxed(text) for text in completions]
        pairs = [(gold, box) for gold, box in zip(golds, boxes, strict=True) if box]
        asked = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        settled = {pair: settle(*pair) for pair in asked}
        open_ones = [pair for pair, outcome in settled.items() if outcome is None]
        if open_ones:
            formulas = [(written.formula(gold), written.formula(answer)) for gold, answer in open_ones]
            settled |= dict(zip(open_ones, self.workers.compare(formulas), strict=True))
        if len(self._known) > REMEMBERED:
            self._known.clear()
        self._known |= {pair: outcome for pair, outcome in settled.items() if outcome not in (None, "timeout", "error")}
        found = {pair: self._known.get(pair) or settled[pair] for pair in pairs}
        return [
            Verdict(str(found[gold, box]) if box else "unparsed", box) for gold, box in zip(golds, boxes, strict=True)
        ]


@lru_cache
def _shared(count: int, seconds: float) -> Workers:
    return Workers(count, seconds)


def settle(gold: str, answer: str) -> str | None:
    """The outcome of a pair that needs no computation; None where formulas must be compared."""
    if len(answer) > written.LONGEST or written.deep(answer) or not written.balanced(gold):
        return "unparsed"
    want, have = written.spelt(gold), written.spelt(answer)
    short, mine = written.bare(want), written.bare(have)
    if not short or not mine:
        return "unparsed"
    if short == mine:
        return "correct"
    words = written.word(want), written.word(have)
    if all(words):
        return "correct" if words[0] == words[1] else "wrong"
    if BASE.fullmatch(short) or BASE.fullmatch(mine):
        return "wrong"
    value, other = _value(short), _value(mine)
    if value is not None:
        if other is not None:
            return "correct" if other & value else "wrong"
        if written.RELATION.search(mine) or written.RELATION.search(have) or ("," in mine and "," not in short):
            return "wrong"
    if written.RELATION.search(mine) and not written.RELATION.search(short):
        return "wrong"
    if not want.isascii() or not have.isascii() or written.tower(mine) or LARGE.search(mine):
        return "unparsed"
    return None


def _value(text: str) -> set | None:
    """The numbers that a text may stand for: a percentage for itself and for its hundredth."""
    share = written.percent(text)
    value = written.number(text if share is None else share)
    if value is None:
        return None
    return {value} if share is None else {value, value / 100}
