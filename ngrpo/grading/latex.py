r"""The grader: exact comparison of numbers, units, lists and words first, then math-verify in processes that can be killed.

The last complete box counts. A number is matched by equal numbers only (a rounded one is another), a lone unit or name is
dropped, p% matches p and p/100, words are compared as words, lists without order, pairs and intervals with it. What is too
long, too deep or too large to be an answer is `unparsed`. A verdict's `reading` tells what was folded or dropped. It does
not know the problem.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ngrpo.grading import written
from ngrpo.grading.answers import extract_boxed
from ngrpo.grading.choices import alternatives, option
from ngrpo.grading.comparing import requests, same, texts, undecidable
from ngrpo.grading.reading import Reading, read
from ngrpo.grading.verdict import Verdict
from ngrpo.grading.workers import SECONDS, Workers

LARGE = re.compile(
    r"!\s*!|\)\s*!|\d{4,}\s*!|\^\{?-?\d{4,}|\\(?:sum|prod|int|lim)(?![a-zA-Z])|\d{1001}"
    r"|\\[dt]?binom\{[^{}]*(?:\d{5}|\^|[*!]|\\(?:cdot|times))"  # its value may have more digits than there is memory
)
REMEMBERED = 20_000  # pairs
SHORT = 500  # characters of a pair that is remembered
LISTED = 16  # alternatives that are tried
TOGETHER = 8  # of them that a process computes, in the time of one

Settled = tuple[str | None, str]
BETTER = ("correct", None, "wrong", "unparsed")  # of the outcomes of a gold's alternatives the first one counts


class Latex:
    """The grader of all tasks with final answers. `workers`: processes; `seconds`: for one comparison."""

    def __init__(self, workers: int = 1, seconds: float = SECONDS):
        self.count, self.seconds = workers, seconds
        self._known: dict[tuple[str, str], tuple[str, str]] = {}

    @property
    def workers(self) -> Workers:
        """The processes, the same ones for all graders of these sizes."""
        return _shared(self.count, self.seconds)

    def grade(self, completions: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        """Verdicts, one per pair, in order; it raises on no text."""
        boxes = [extract_boxed(text) for text in completions]
        pairs = [(gold, box) for gold, box in zip(golds, boxes, strict=True) if box]
        found = self._settle([pair for pair in dict.fromkeys(pairs) if pair not in self._known])
        verdicts = []
        for gold, box in zip(golds, boxes, strict=True):
            outcome, reading = ("unparsed", "") if not box else found.get((gold, box)) or self._known[gold, box]
            verdicts.append(Verdict(outcome, box, reading))
        if len(self._known) > REMEMBERED:
            self._known.clear()
        lasting = {pair: one for pair, one in found.items() if one[0] not in ("timeout", "error")}
        self._known |= {pair: one for pair, one in lasting.items() if len(pair[0]) + len(pair[1]) <= SHORT}
        return verdicts

    def _settle(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[str, str]]:
        settled = {pair: _settled(*pair) for pair in pairs}
        asked = {pair: asked_of for pair in pairs if settled[pair][0] is None and (asked_of := formulas(*pair))}
        outcomes = dict(zip(asked, self.workers.compare(list(asked.values())), strict=True)) if asked else {}
        return {pair: (outcome or outcomes.get(pair, "unparsed"), told) for pair, (outcome, told) in settled.items()}


@lru_cache
def _shared(count: int, seconds: float) -> Workers:
    return Workers(count, seconds)


def settle(gold: str, answer: str) -> str | None:
    """The outcome of a pair that needs no computation; None where formulas must be compared."""
    return _settled(gold, answer)[0]


def _settled(gold: str, answer: str) -> Settled:
    """An outcome, or None where formulas must be compared, and what was decided for it."""
    if len(answer) > written.LONGEST or written.deep(answer):
        return "unparsed", ""
    if gold.strip() == answer.strip() and written.balanced(gold) and read_within(gold):
        return "correct", ""
    forms = alternatives(gold)[:LISTED]
    found = [_option(form, answer) for form in forms]
    best = min(range(len(found)), key=lambda place: BETTER.index(found[place][0]))
    outcome, told = found[best]
    if len(forms) > 1 and outcome == "correct":
        told = "; ".join(filter(None, [told, f"alternative {best + 1} of {len(forms)}"]))
    return outcome, told


def read_within(text: str) -> Reading | None:
    """The reading of a text that is short enough for one."""
    return read(text) if len(text) <= written.LONGEST else None


def _option(gold: str, answer: str) -> Settled:
    """Options by letter, or by what stands beside the letter; then values."""
    want, have = option(gold), option(answer)
    if not (want or have):
        return _values(gold, answer)
    if want and have:
        if want[0] != have[0]:
            return "wrong", ""
        return "correct", "" if want[1] == have[1] else "by its letter"
    letter, rest = want or have or ("", "")
    if not rest:
        return _values(gold, answer)
    outcome, told = _values(rest, answer) if want else _values(gold, rest)
    return outcome, "; ".join(filter(None, [told, f"option {letter} dropped"]))


def _values(gold: str, answer: str) -> Settled:
    want, have = read_within(gold), read_within(answer)
    if want is None or have is None or not written.balanced(gold):
        return "unparsed", ""
    if want.bare == have.bare:
        return "correct", "; ".join({*want.notes, *have.notes})
    notes = [*want.notes, *have.notes]
    verdict = same(want.node, have.node, notes)
    told = "; ".join(dict.fromkeys(notes))
    if verdict is not None:
        return ("correct" if verdict else "wrong"), told
    if undecidable(want, have):
        return "unparsed", ""
    gold_asked, asked = map(texts, requests(want.node, have.node))
    if any(written.tower(text) or LARGE.search(text) for text in asked):
        return "unparsed", ""
    return ("unparsed", "") if any(map(written.WORDS.search, gold_asked + asked)) else (None, told)


def formulas(gold: str, answer: str) -> list[list[Any]]:
    """What a process is asked of a pair that is not settled: for each form of the gold the two requests."""
    asked = []
    have = option(answer)
    for form in alternatives(gold)[:LISTED]:
        letter = option(form)
        one = letter[1] if letter and letter[1] else form
        other = have[1] if have and have[1] else answer
        if _option(form, answer)[0] is None and (want := read(one)) and (found := read(other)):
            asked.append(requests(want.node, found.node))
    return asked[:TOGETHER]
