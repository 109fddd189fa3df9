r"""The grader: exact comparison of numbers, units, lists and words first, then math-verify in processes that can be killed.

The last complete box counts. A number is matched by equal numbers only (a rounded one is another), a lone unit or name is
dropped, p% matches p and p/100, words are compared as words, lists without order, pairs and intervals with it. What is too
long, too deep or too large to be an answer is `unparsed`. A verdict's `reading` tells what was folded or dropped. It does
not know the problem.
"""

import re
from collections import ChainMap
from collections.abc import Sequence
from typing import Any, NamedTuple

from ngrpo.grading import normalize
from ngrpo.grading.answers import Verdict, extract_boxed
from ngrpo.grading.brackets import balanced, deep
from ngrpo.grading.choices import alternatives, option
from ngrpo.grading.comparing import requests, same, texts, undecidable
from ngrpo.grading.reading import read
from ngrpo.grading.workers import Workers

LARGE = re.compile(
    r"!\s*!|\)\s*!|\d{4,}\s*!|\^\{?-?\d{4,}|\\(?:sum|prod|int|lim)(?![a-zA-Z])|\d{1001}"
    r"|\\[dt]?binom\{[^{}]*(?:\d{5}|\^|[*!]|\\(?:cdot|times))"  # its value may have more digits than there is memory
)
REMEMBERED = 20_000  # pairs
SHORT = 500  # characters of a pair that is remembered
LISTED = 16  # alternatives that are tried
TOGETHER = 8  # of them that a process computes, in the time of one

BETTER = ("correct", None, "wrong", "unparsed")  # of the outcomes of a gold's alternatives the first one counts


class Settled(NamedTuple):
    """What is known of a pair before anything is computed.

    outcome: None where formulas must be compared, which `requests` then ask of a process, one for each form of the gold.
    note: what was folded or dropped.
    """

    outcome: str | None
    note: str = ""
    requests: Sequence[Any] = ()


class Latex:
    """The grader of all tasks with final answers."""

    workers = Workers()  # the same processes for all graders

    def __init__(self):
        self._known: dict[tuple[str, str], tuple[str, str]] = {}

    def grade(self, completions: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        """Verdicts, one per pair, in order; it raises on no text."""
        pairs = [(gold, extract_boxed(text)) for text, gold in zip(completions, golds, strict=True)]
        new = [(gold, box) for gold, box in dict.fromkeys(pairs) if box and (gold, box) not in self._known]
        found = self._compare(new)
        known = ChainMap(found, self._known)
        verdicts = []
        for gold, box in pairs:
            outcome, note = known[gold, box] if box else ("unparsed", "")
            verdicts.append(Verdict(outcome, box, note))
        if len(self._known) > REMEMBERED:
            self._known.clear()
        lasting = {pair: one for pair, one in found.items() if one[0] not in ("timeout", "error")}
        self._known |= {pair: one for pair, one in lasting.items() if len(pair[0]) + len(pair[1]) <= SHORT}
        return verdicts

    def _compare(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[str, str]]:
        settled = {pair: settle(*pair) for pair in pairs}
        requests = {pair: one.requests for pair, one in settled.items() if one.outcome is None}
        outcomes = dict(zip(requests, self.workers.compare(list(requests.values())), strict=True)) if requests else {}
        return {pair: (one.outcome or outcomes[pair], one.note) for pair, one in settled.items()}


def settle(gold: str, answer: str) -> Settled:
    """The outcome of a pair where that needs no computation, or what must be computed for it."""
    if len(answer) > normalize.LONGEST or deep(answer):
        return Settled("unparsed")
    if gold.strip() == answer.strip() and balanced(gold) and read(gold):
        return Settled("correct")
    forms = alternatives(gold)[:LISTED]
    found = [_by_option(form, answer) for form in forms]
    best = min(range(len(found)), key=lambda place: BETTER.index(found[place].outcome))
    outcome, note, _ = found[best]
    if len(forms) > 1 and outcome == "correct":
        note = _joined(note, f"alternative {best + 1} of {len(forms)}")
    return Settled(outcome, note, [one.requests for one in found if one.outcome is None][:TOGETHER])


def _by_option(gold: str, answer: str) -> Settled:
    """Options by letter, or by what stands beside the letter; then values."""
    want, have = option(gold), option(answer)
    if want and have:
        if want[0] != have[0]:
            return Settled("wrong")
        return Settled("correct", "" if want[1] == have[1] else "by its letter")
    letter, rest = want or have or ("", "")
    if not rest:
        return _by_value(gold, answer)
    found = _by_value(rest, answer) if want else _by_value(gold, rest)
    return found._replace(note=_joined(found.note, f"option {letter} dropped"))


def _by_value(gold: str, answer: str) -> Settled:
    want, have = read(gold), read(answer)
    if want is None or have is None or not balanced(gold):
        return Settled("unparsed")
    notes = [*want.notes, *have.notes]
    verdict = True if want.bare == have.bare else same(want.node, have.node, notes)
    note = _joined(*dict.fromkeys(notes))
    if verdict is not None:
        return Settled("correct" if verdict else "wrong", note)
    asked = requests(want.node, have.node)
    of_gold, of_answer = map(texts, asked)
    too_large = any(normalize.tower(text) or LARGE.search(text) for text in of_answer)
    if undecidable(want, have) or too_large or any(map(normalize.WORDS.search, of_gold + of_answer)):
        return Settled("unparsed")
    return Settled(None, note, asked)


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))
