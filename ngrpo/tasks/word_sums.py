"""One addition or subtraction told in a sentence, asked of a base model after worked examples, answered on one line.

A problem depends only on version, split, largest and index.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from random import Random

from ngrpo.grading.answers import parse_integer, same_integer
from ngrpo.tasks.base import Problem, Score

VERSION = "v1"
SPLITS = {"train": range(6), "val": range(6, 7), "test": range(7, 10)}
SMALLEST = 2  # the smallest number that a sentence mentions
NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*")  # the last number of a line, so that 7.5 is not read as 5

NAMES = (
    *("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry"),
    *("Julia", "Kevin", "Laura", "Mark", "Nina", "Oscar", "Paul", "Rosa"),
)
OBJECTS = (
    *("apples", "balls", "books", "cards", "coins", "cups", "eggs", "hats"),
    *("keys", "pens", "plums", "shells", "stamps", "stones", "tickets", "toys"),
)
GAINS = ("buys {} more", "finds {} more", "gets {} more", "makes {} more", "wins {} more")
LOSSES = ("drops {}", "gives away {}", "loses {}", "sells {}", "uses {}")


@dataclass
class WordSums:
    """A task of `size` problems, each one sum of two numbers or one difference, with numbers of 2 to `largest` told.

    split: `train`, `val` or `test`. A sum and the differences that undo it (7 + 5 = 12, 12 - 5 = 7, 12 - 7 = 5) belong to
    one split, so no held-out problem has arithmetic of the training's. examples: what stands before every question, worked
    problems that end in a line break. The answer is the last number on the first line of the completion; there is no
    thinking part. Raises ValueError for an unknown split and for sizes that make no problems.
    """

    split: str
    size: int
    examples: str = ""
    largest: int = 30
    name: str = field(default="word_sums", init=False)
    version: str = field(default=VERSION, init=False)
    answer_start: str | None = field(default=None, init=False)
    answer_prefix: str = field(default="", init=False)
    problems: Sequence[Problem] = field(init=False)

    def __post_init__(self):
        if self.split not in SPLITS:
            raise ValueError(f"word_sums: unknown split {self.split!r}, expected one of {list(SPLITS)}; set task.split")
        if self.largest < 10:  # fewer numbers may leave a split without sums
            raise ValueError(f"word_sums: largest {self.largest}, expected at least 10; set task.largest")
        if self.size < 1:
            raise ValueError(f"word_sums: size {self.size}, expected at least 1; set task.size")
        self.problems = [self._draw(index) for index in range(self.size)]

    def _draw(self, index: int) -> Problem:
        identity = f"word_sums-{VERSION}-{self.split}-{self.largest}-{index:04d}"
        rng = Random(blake2b(identity.encode(), digest_size=16).digest())
        start, change = draw_sum(rng, self.largest, self.split)
        name, objects = rng.choice(NAMES), rng.choice(OBJECTS)
        event = rng.choice(GAINS if change > 0 else LOSSES).format(abs(change))
        question = f"{name} has {start} {objects} and {event}. How many {objects} does {name} have?"
        return Problem(identity, f"{self.examples}{question} Answer:", str(start + change), question=question)

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        """Verdicts, one per pair, in order; never raises on any text."""
        return [self._score_one(problem, text) for problem, text in zip(problems, completions, strict=True)]

    def _score_one(self, problem: Problem, completion: str) -> Score:
        line, *_ = completion.strip().splitlines() or [""]
        extracted = (NUMBER.findall(line) or [None])[-1]
        if extracted is None or parse_integer(extracted) is None:
            return Score.of("unparsed", extracted)
        return Score.of("correct" if same_integer(extracted, problem.gold) else "wrong", extracted)


def draw_sum(rng: Random, largest: int, split: str) -> tuple[int, int]:
    """A start and a signed change of `split`, as often a gain as a loss; the result of a loss is SMALLEST at least."""
    while True:
        gain = rng.random() < 0.5
        start, amount = rng.randint(SMALLEST, largest), rng.randint(SMALLEST, largest)
        result = start + amount if gain else start - amount
        if result >= SMALLEST and split_of(start if gain else result, amount) == split:
            return start, amount if gain else -amount


def split_of(left: int, right: int) -> str:
    """The split of the sum of two numbers, in either order, and of its differences, in any words."""
    digest = blake2b(f"{VERSION} {min(left, right)} {max(left, right)}".encode(), digest_size=8).digest()
    return next(split for split, shares in SPLITS.items() if int.from_bytes(digest) % 10 in shares)
