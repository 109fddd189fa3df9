"""Arithmetic stories told in words, with a verifiable answer: problems drawn by rule, as many as asked for.

A problem depends only on version, split, wording, level and index.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from ngrpo.grading.answers import extract_boxed, integer_outcome
from ngrpo.tasks import story_text
from ngrpo.tasks.base import ANSWER_PREFIX, Problem, Score, answer_part
from ngrpo.tasks.drawn import DrawnTask, generator, split_of

VERSION = "v1"
MAX_LEVEL = 8
SPLITS = {"train": range(8), "val": range(8, 9), "test": range(9, 10)}


@dataclass(frozen=True)
class Story:
    """What happens, without words: a start and signed changes, never below zero nor, gains first, above story_text.LIMIT."""

    start: int
    changes: tuple[int, ...]

    @property
    def answer(self) -> int:
        return self.start + sum(self.changes)

    @property
    def split(self) -> str:
        """The split that this story belongs to in every wording: the same sums never train and test."""
        return split_of(f"{VERSION} {self.start} {self.changes}", SPLITS)


def draw_story(rng: Random, level: int, split: str) -> Story:
    """A story of `level` operations from `split`; from two operations on it has both a gain and a loss."""
    while True:
        changes = tuple(rng.choice((-1, 1)) * rng.randint(2, 9) for _ in range(level))
        story = Story(rng.randint(3, 35), changes)
        if level > 1 and (min(changes) > 0 or max(changes) < 0):
            continue
        lowest = min(story.start + sum(changes[: at + 1]) for at in range(level))
        highest = story.start + sum(change for change in changes if change > 0)
        if lowest >= 0 and highest <= story_text.LIMIT and story.split == split:
            return story


@dataclass
class StoryMath(DrawnTask):
    r"""A task of `size` stories; a story of level n takes n additions or subtractions.

    split: `train`, `val` or `test`, which share no arithmetic in any wording. levels: taken in turn, each in 1..8.
    wording: `common`, or `held_out` for verbs, objects, names and sentence order that `common` never uses.
    The prompt ends in `<think>`; a completion is right if the last `\boxed{}` after `</think>` holds the answer, in
    digits or words (reward 1.0, otherwise 0.0). `solution_path` is the list of equations of the thinking part.
    Raises ValueError for an unknown split, wording or level.
    """

    split: str
    levels: Sequence[int]
    size: int
    wording: str = "common"

    name, version, answer_start, answer_prefix = "story_math", VERSION, story_text.ANSWER_START, ANSWER_PREFIX

    def __post_init__(self):
        self.require("split", self.split in SPLITS, f"one of {list(SPLITS)}")
        self.require("wording", self.wording in story_text.WORDINGS, f"one of {list(story_text.WORDINGS)}")
        levels = tuple(self.levels)
        known = all(level in range(1, MAX_LEVEL + 1) for level in levels)
        self.require("levels", bool(levels) and known, f"some of 1..{MAX_LEVEL}, as [4]")
        self.require("size", self.size >= 1, "at least 1")
        self.problems = [self._draw(index, levels[index % len(levels)]) for index in range(self.size)]

    def _draw(self, index: int, level: int) -> Problem:
        part = self.split if self.wording == "common" else f"{self.split}-{self.wording}"
        identity = f"story_math-{VERSION}-{part}-l{level}-{index:04d}"
        rng = generator(identity)
        story = draw_story(rng, level, self.split)
        prompt = story_text.tell_story(rng, story.start, story.changes, story_text.WORDINGS[self.wording])
        return Problem(id=identity, prompt=prompt, gold=story_text.NUMBERS[story.answer])

    def score_one(self, problem: Problem, completion: str) -> Score:
        """An answer that is no integer is `unparsed`."""
        path = ";".join(read_equations(completion.partition(story_text.ANSWER_START)[0]))
        extracted = extract_boxed(answer_part(completion, self.answer_start))
        return Score.of(integer_outcome(extracted, problem.gold), extracted, path)


def read_equations(text: str) -> list[str]:
    """Equations of a worked solution in their order, in digits: `twelve plus three is fifteen` is `3+12=15`.

    The operands of a sum are sorted and the words for an operation or for equality are not told apart, so two
    wordings of one solution read the same. Anything that is not an equation is passed over; time is linear.
    """
    words, equations = text.split(), []
    for at in range(len(words) - 4):
        left, operation, right, equals, result = words[at : at + 5]
        a, b, c = (story_text.VALUES.get(word) for word in (left, right, result))
        if equals not in story_text.EQUALS or a is None or b is None or c is None:
            continue
        if operation in story_text.PLUS:
            equations.append(f"{min(a, b)}+{max(a, b)}={c}")
        elif operation in story_text.MINUS:
            equations.append(f"{a}-{b}={c}")
    return equations
