r"""Countdown: make a target from given numbers, each used once; most puzzles have many solutions, told apart exactly.

A problem depends only on version, seed, split and index.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from random import Random

from ngrpo.grading.answers import extract_boxed
from ngrpo.tasks.arithmetic import Tree, normal_form, numbers_of, read_expression, value
from ngrpo.tasks.base import ANSWER_PREFIX, Problem, Score, answer_part
from ngrpo.tasks.questions import with_instruction

VERSION = "v1"
SPLITS = ("train", "test")
FEWEST, MOST = 2, 6


@dataclass
class Countdown:
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
    name: str = field(default="countdown", init=False)
    version: str = field(default=VERSION, init=False)
    answer_prefix: str = field(default=ANSWER_PREFIX, init=False)
    problems: Sequence[Problem] = field(default=(), init=False)

    def __post_init__(self):
        if self.split not in SPLITS:
            raise ValueError(f"countdown: unknown split {self.split!r}, expected train or test; set task.split")
        if not FEWEST <= self.count <= MOST:
            raise ValueError(f"countdown: count {self.count}, expected {FEWEST} to {MOST}; set task.count")
        if self.size < 1 or self.largest < 2 or self.largest_target < 1:
            raise ValueError("countdown: size and largest_target must be at least 1, largest at least 2; set task.size")
        self.problems = [self._draw(index) for index in range(self.size)]

    def _draw(self, index: int) -> Problem:
        sizes = f"{self.count}-{self.largest}-{self.largest_target}-s{self.seed}"
        identity = f"countdown-{VERSION}-{self.split}-{sizes}-{index:05d}"
        rng = Random(blake2b(identity.encode(), digest_size=16).digest())
        while True:
            numbers = [rng.randint(1, self.largest) for _ in range(self.count)]
            tree = _join(rng, [*numbers])
            target = value(tree)
            if target is None or target.denominator != 1 or not 1 <= target <= self.largest_target:
                continue
            if _split_of(numbers, int(target)) == self.split:
                break
        puzzle = f"Numbers: {', '.join(map(str, numbers))}. Target: {target}."
        gold = f"{_plain(tree)} = {target}"
        return Problem(identity, with_instruction(puzzle, self.instruction), gold, True, puzzle)

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        """Verdicts, one per pair, in order; never raises on any text, and runs none."""
        return [self._score_one(problem, text) for problem, text in zip(problems, completions, strict=True)]

    def _score_one(self, problem: Problem, completion: str) -> Score:
        extracted = extract_boxed(answer_part(completion, self.answer_start))
        gold, target = _puzzle(problem.gold)
        left, _, right = (extracted or "").partition("=")
        tree = read_expression(left)
        if tree is None:
            return Score.of("unparsed", extracted)
        makes_target = right.strip() in ("", str(target)) and value(tree) == target
        correct = makes_target and numbers_of(tree) == numbers_of(gold)
        return Score.of("correct" if correct else "wrong", extracted, normal_form(tree))


def _split_of(numbers: list[int], target: int) -> str:
    digest = blake2b(f"{VERSION} {sorted(numbers)} {target}".encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest) % 10 == 9 else "train"


def _join(rng: Random, parts: list[Tree]) -> Tree:
    while len(parts) > 1:
        left = parts.pop(rng.randrange(len(parts)))
        right = parts.pop(rng.randrange(len(parts)))
        parts.append((rng.choice("+-*/"), left, right))
    return parts[0]


def _plain(tree: Tree) -> str:
    return str(tree) if isinstance(tree, int) else f"({_plain(tree[1])} {tree[0]} {_plain(tree[2])})"


def _puzzle(gold: str) -> tuple[Tree, int]:
    left, _, right = gold.partition("=")
    tree = read_expression(left)
    if tree is None or not right.strip().isdigit():
        raise ValueError(f"countdown: the gold answer {gold!r} is no solution")
    return tree, int(right)
