r"""Grades a final answer in `\boxed{}` by exact comparison, as text without spaces or as whole numbers.

It never takes a wrong answer for a right one, and does not know that two formulas can mean the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ngrpo.grading.answers import extract_boxed, parse_integer, same_integer


@dataclass(frozen=True)
class Verdict:
    """`outcome`: correct, wrong or unparsed; `extracted`: the answer as it stood in the text, None without one."""

    outcome: str
    extracted: str | None


@dataclass(frozen=True)
class Exact:
    """For tasks whose answers are whole numbers or short fixed texts."""

    def grade(self, completions: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        """Verdicts, one per pair, in order; an empty or missing box, or no number where the gold is one, is unparsed."""
        return [_grade_one(text, gold) for text, gold in zip(completions, golds, strict=True)]


def _grade_one(completion: str, gold: str) -> Verdict:
    extracted = extract_boxed(completion)
    if not extracted or (parse_integer(gold) is not None and parse_integer(extracted) is None):
        return Verdict("unparsed", extracted)
    same = same_integer(extracted, gold) or "".join(extracted.split()) == "".join(gold.split())
    return Verdict("correct" if same else "wrong", extracted)
