"""One addition or subtraction told in a sentence, asked of a base model after worked examples, answered on one line.

A problem depends only on version, split, largest and index.
"""

import re
from dataclasses import dataclass
from random import Random

from ngrpo.grading.answers import integer_outcome
from ngrpo.tasks.base import Problem, Score
from ngrpo.tasks.drawn import DrawnTask, generator, split_of

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
class WordSums(DrawnTask):
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

    name, version, answer_start, answer_prefix = "word_sums", VERSION, None, ""

    def __post_init__(self):
        self.require("split", self.split in SPLITS, f"one of {list(SPLITS)}")
        self.require("largest", self.largest >= 10, "at least 10")  # fewer numbers may leave a split without sums
        self.require("size", self.size >= 1, "at least 1")
        self.problems = [self._draw(index) for index in range(self.size)]

    def _draw(self, index: int) -> Problem:
        identity = f"word_sums-{VERSION}-{self.split}-{self.largest}-{index:04d}"
        rng = generator(identity)
        start, change = draw_sum(rng, self.largest, self.split)
        name, objects = rng.choice(NAMES), rng.choice(OBJECTS)
        event = rng.choice(GAINS if change > 0 else LOSSES).format(abs(change))
        question = f"{name} has {start} {objects} and {event}. How many {objects} does {name} have?"
        return Problem(identity, f"{self.examples}{question} Answer:", str(start + change), question=question)

    def score_one(self, problem: Problem, completion: str) -> Score:
        line, *_ = completion.strip().splitlines() or [""]
        extracted = (NUMBER.findall(line) or [None])[-1]
        return Score.of(integer_outcome(extracted, problem.gold), extracted)


def draw_sum(rng: Random, largest: int, split: str) -> tuple[int, int]:
    """A start and a signed change of `split`, as often a gain as a loss; the result of a loss is SMALLEST at least."""
    while True:
        gain = rng.random() < 0.5
        start, amount = rng.randint(SMALLEST, largest), rng.randint(SMALLEST, largest)
        result = start + amount if gain else start - amount
        if result >= SMALLEST and split_of_sum(start if gain else result, amount) == split:
            return start, amount if gain else -amount


def split_of_sum(left: int, right: int) -> str:
    """The split of the sum of two numbers, in either order, and of its differences, in any words."""
    return split_of(f"{VERSION} {min(left, right)} {max(left, right)}", SPLITS)
