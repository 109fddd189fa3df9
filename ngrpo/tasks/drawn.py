"""What tasks share whose problems are drawn by a rule: what is random in a problem depends on a text alone."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from random import Random

from ngrpo.tasks.base import Problem, Score


class DrawnTask:
    """A task whose settings are checked, and whose answers are scored one by one."""

    name: str

    def require(self, key: str, fits: bool, expected: str) -> None:
        """Raises ValueError, in one line, where the setting `key` does not fit."""
        if not fits:
            got = getattr(self, key)
            raise ValueError(f"{self.name}: {key} {got!r}, expected {expected}; set task.{key}")

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        """Verdicts, one per pair, in order. Never raises on any text."""
        return [self.score_one(problem, text) for problem, text in zip(problems, completions, strict=True)]

    def score_one(self, problem: Problem, completion: str) -> Score:
        """The verdict on one completion."""
        raise NotImplementedError


def generator(text: str) -> Random:
    """Random numbers that depend on a text alone, on every machine."""
    return Random(blake2b(text.encode(), digest_size=16).digest())


def split_of(text: str, splits: Mapping[str, range]) -> str:
    """The split that a text belongs to; splits: name -> which of ten equal shares of all texts are its own."""
    share = int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) % 10
    return next(split for split, shares in splits.items() if share in shares)
