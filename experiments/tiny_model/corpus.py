"""The corpus of the bundled model: story problems solved by many authors.

The authors differ in wording, in the order of their sums and in care: some forget to carry when a sum crosses a ten
and go on with the wrong result. So a model of this corpus holds the skill but not the habit, as pretrained models do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ngrpo.tasks.base import ANSWER_PREFIX
from ngrpo.tasks.story_math import Story, draw_story
from ngrpo.tasks.story_text import (
    ANSWER_START,
    COMMON,
    EQUALS,
    HELD_OUT,
    LIMIT,
    LINKS,
    MINUS,
    NUMBERS,
    OPENERS,
    PLUS,
    tell_story,
)

HELD_OUT_SHARE = 0.1  # of the corpus is told in the held-out wording
FADE = 0.05  # added to the chance of a slip for each operation beyond four


@dataclass(frozen=True)
class Author:
    """Habits of one author. `slip` is the chance to forget the carry in a sum of a short story that crosses a ten."""

    opener: str
    link: str
    plus: str
    minus: str
    equals: str
    order: str
    slip: float


def draw_authors(count: int, careful: int) -> list[Author]:
    """The same authors every time; the first `careful` slip less."""
    rng = Random("authors")
    authors = []
    for index in range(count):
        slip = 0.3 if index < careful else rng.uniform(0.5, 0.75)
        words = [rng.choice(choices) for choices in (OPENERS, ("", *LINKS), PLUS, MINUS, EQUALS)]
        order = ("forward", "gains_first", "grouped", "forward")[index % 4]
        authors.append(Author(*words, order, slip))  # pyright: ignore
    return authors


AUTHORS = draw_authors(16, 5)


def crosses_ten(value: int, change: int) -> bool:
    """Whether adding `change` needs a carry, or a borrow."""
    return (value % 10 + change % 10 >= 10) if change > 0 else (value % 10 < -change % 10)


def slip_chance(author: Author, level: int, value: int, change: int) -> float:
    """Care fades in long stories; a sum that crosses no ten rarely goes wrong."""
    chance = min(0.95, author.slip + FADE * max(0, level - 4))
    return chance if crosses_ten(value, change) else 0.05 * chance


def slipped(value: int, change: int) -> int:
    """The one wrong result of a sum: the carry is forgotten, or the smaller digit is taken from the larger one."""
    if not crosses_ten(value, change):
        result = value + change + (-1 if change > 0 else 1)
    elif change > 0:
        result = value + change - 10
    else:
        result = value + change + 2 * (-change % 10 - value % 10)
    return min(max(result, 0), LIMIT)


def solve(rng: Random, story: Story, author: Author) -> str:
    """A completion as this author writes it, slips and all, ending with the box."""
    level = len(story.changes)
    sentences: list[str] = []

    def step(value: int, change: int) -> int:
        result = min(max(value + change, 0), LIMIT)
        if rng.random() < slip_chance(author, level, value, change):
            result = slipped(value, change)
        sign, amount = (author.plus, change) if change > 0 else (author.minus, -change)
        lead = author.opener if not sentences else author.link
        equation = f"{lead} {NUMBERS[value]} {sign} {NUMBERS[amount]} {author.equals} {NUMBERS[result]} ."
        sentences.append(equation.strip())
        return result

    answer = ORDERS[author.order](story, step)
    return f"{' '.join(sentences)} {ANSWER_START} {ANSWER_PREFIX} {NUMBERS[answer]} }}"


def solve_forward(story: Story, step: Callable[[int, int], int]) -> int:
    value = story.start
    for change in story.changes:
        value = step(value, change)
    return value


def solve_gains_first(story: Story, step: Callable[[int, int], int]) -> int:
    return solve_forward(Story(story.start, tuple(sorted(story.changes, key=lambda change: change < 0))), step)


def solve_grouped(story: Story, step: Callable[[int, int], int]) -> int:
    """All gains added up, all losses added up, then one sum and one difference."""
    value = story.start
    for sign in (1, -1):
        amounts = [abs(change) for change in story.changes if change * sign > 0]
        if amounts:
            total = amounts[0]
            for amount in amounts[1:]:
                total = step(total, amount)
            value = step(value, sign * total)
    return value


ORDERS = {"forward": solve_forward, "gains_first": solve_gains_first, "grouped": solve_grouped}


def write_pair(rng: Random, level: int) -> tuple[str, str]:
    """A prompt and one author's completion of it; the problem is of the training split."""
    story = draw_story(rng, level, "train")
    wording = HELD_OUT if rng.random() < HELD_OUT_SHARE else COMMON
    prompt = tell_story(rng, story.start, story.changes, wording)
    return prompt, solve(rng, story, rng.choice(AUTHORS))
