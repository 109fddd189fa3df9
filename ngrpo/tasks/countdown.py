r"""Countdown: make a target from given numbers, each used once; most puzzles have many solutions, told apart exactly.

A problem depends only on version, seed, split and index.
"""

from dataclasses import dataclass
from random import Random

from ngrpo.grading.answers import extract_boxed
from ngrpo.tasks.arithmetic import Tree, normal_form, numbers_of, read_expression, value
from ngrpo.tasks.base import ANSWER_PREFIX, Problem, Score, answer_part, with_instruction
from ngrpo.tasks.drawn import DrawnTask, generator, split_of

VERSION = "v1"
SPLITS = {"train": range(9), "test": range(9, 10)}
FEWEST, MOST = 2, 6


@dataclass
class Countdown(DrawnTask):
    r"""A task of `size` puzzles with `count` numbers of 1 to `largest` and a target of 1 to `largest_target`.

    split: `train` or `test`, which share no set of numbers with the same target. An answer is an expression in the last
    `\boxed{}`, perhaps with `= target` behind it; it is right where it uses every number exactly once and has the value.
    `solution_path` is its normal form (tasks.arithmetic), so counting different paths of right answers counts solutions.
    Raises ValueError for sizes that make no puzzles.
    """

    split: str
    size: int
    count: int = 4
    largest: int = 13
    largest_target: int = 100
    seed: int = 0
    instruction: str | None = None
    answer_start: str | None = None

    name, version, answer_prefix = "countdown", VERSION, ANSWER_PREFIX

    def __post_init__(self):
        self.require("split", self.split in SPLITS, f"one of {list(SPLITS)}")
        self.require("count", FEWEST <= self.count <= MOST, f"{FEWEST} to {MOST}")
        for key, least in (("size", 1), ("largest", 2), ("largest_target", 1)):
            self.require(key, getattr(self, key) >= least, f"at least {least}")
        self.problems = [self._draw(index) for index in range(self.size)]

    def _draw(self, index: int) -> Problem:
        sizes = f"{self.count}-{self.largest}-{self.largest_target}-s{self.seed}"
        identity = f"countdown-{VERSION}-{self.split}-{sizes}-{index:05d}"
        rng = generator(identity)
        while True:
            numbers = [rng.randint(1, self.largest) for _ in range(self.count)]
            tree = _join(rng, [*numbers])
            target = value(tree)
            if target is None or target.denominator != 1 or not 1 <= target <= self.largest_target:
                continue
            if split_of(f"{VERSION} {sorted(numbers)} {target}", SPLITS) == self.split:
                break
        puzzle = f"Numbers: {', '.join(map(str, numbers))}. Target: {target}."
        gold = f"{_plain(tree)} = {target}"
        return Problem(identity, with_instruction(puzzle, self.instruction), gold, True, puzzle)

    def score_one(self, problem: Problem, completion: str) -> Score:
        extracted = extract_boxed(answer_part(completion, self.answer_start))
        gold, _, target = problem.gold.partition(" = ")
        left, _, right = (extracted or "").partition("=")
        tree = read_expression(left)
        if tree is None:
            return Score.of("unparsed", extracted)
        makes_target = right.strip() in ("", target) and value(tree) == int(target)
        correct = makes_target and numbers_of(tree) == numbers_of(read_expression(gold) or 0)
        return Score.of("correct" if correct else "wrong", extracted, normal_form(tree))


def _join(rng: Random, parts: list[Tree]) -> Tree:
    while len(parts) > 1:
        left = parts.pop(rng.randrange(len(parts)))
        right = parts.pop(rng.randrange(len(parts)))
        parts.append((rng.choice("+-*/"), left, right))
    return parts[0]


def _plain(tree: Tree) -> str:
    return str(tree) if isinstance(tree, int) else f"({_plain(tree[1])} {tree[0]} {_plain(tree[2])})"
