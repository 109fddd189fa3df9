"""The words of the arithmetic stories: which there are, and how a story and a worked solution are told in them.

Every word is one token of the bundled model.
"""

from dataclasses import dataclass
from random import Random

from ngrpo.grading.answers import NUMBER_WORDS
from ngrpo.tasks.base import ANSWER_PREFIX

LIMIT = 49  # the largest value that a story or a solution mentions

NUMBERS = NUMBER_WORDS[: LIMIT + 1]
VALUES = {word: value for value, word in enumerate(NUMBERS)}

THINK, ANSWER_START = "<think>", "</think>"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


@dataclass(frozen=True)
class Wording:
    """The words that one set of stories draws from. A question-first story also puts the source before the verb."""

    women: tuple[str, ...]
    men: tuple[str, ...]
    objects: tuple[str, ...]
    containers: tuple[str, ...]
    gains: tuple[str, ...]
    losses: tuple[str, ...]
    people: tuple[str, ...]
    question_first: bool


COMMON = Wording(
    women=("mia", "anna", "lucy", "emma"),
    men=("tom", "ben", "leo", "max"),
    objects=_words("apples pears plums marbles coins shells cards stamps books pencils"),
    containers=_words("basket box bag jar drawer tin"),
    gains=_words("finds gets buys receives wins earns collects picks"),
    losses=_words("loses sells drops breaks spends donates returns uses"),
    people=_words("friend neighbor sister teacher uncle"),
    question_first=False,
)
HELD_OUT = Wording(
    women=("zoe", "ruth"),
    men=("sam", "paul"),
    objects=_words("peaches buttons beads stickers ribbons"),
    containers=_words("bucket crate sack"),
    gains=_words("gathers obtains borrows discovers gains"),
    losses=_words("misplaces trades lends discards wastes"),
    people=_words("cousin farmer"),
    question_first=True,
)
WORDINGS = {"common": COMMON, "held_out": HELD_OUT}

LINKS = ("then", "later", "next")
PLUS, MINUS = ("plus", "and", "with"), ("minus", "less", "without")
EQUALS = ("is", "makes", "equals", "leaves")
OPENERS = ("first", "so", "well", "now", "start")
STORY_WORDS = _words("she he has have in a the how many does now left after this more of them from to . ? ,")


def vocabulary() -> list[str]:
    """Every word once, in a fixed order: the tokenizer's ids are positions in this list."""
    words = [*STORY_WORDS, *NUMBERS, *LINKS, *OPENERS, *PLUS, *MINUS, *EQUALS, ANSWER_PREFIX, "}"]
    for wording in WORDINGS.values():
        words += [word for group in vars(wording).values() if isinstance(group, tuple) for word in group]
    return list(dict.fromkeys(words))


def tell_story(rng: Random, start: int, changes: tuple[int, ...], wording: Wording) -> str:
    """One question, ending in ` <think>`: someone has `start` things, and each change adds or removes some."""
    woman = rng.random() < 0.5
    name, pronoun = rng.choice(wording.women if woman else wording.men), "she" if woman else "he"
    objects = rng.choice(wording.objects)
    opening = f"{name} has {NUMBERS[start]} {objects}"
    if rng.random() < 0.4:
        opening += f" in a {rng.choice(wording.containers)}"
    events = [tell_change(rng, pronoun, change, wording) for change in changes]
    if wording.question_first:
        return f"how many {objects} does {name} have after this ? {opening} . {' '.join(events)} {THINK}"
    ending = rng.choice((f"does {name} have now", f"does {pronoun} have", f"has {pronoun} left"))
    return f"{opening} . {' '.join(events)} how many {objects} {ending} ? {THINK}"


def tell_change(rng: Random, pronoun: str, change: int, wording: Wording) -> str:
    """One sentence: a gain if `change` is positive, a loss if negative."""
    verb, amount = rng.choice(wording.gains if change > 0 else wording.losses), NUMBERS[abs(change)]
    link = f"{rng.choice(LINKS)} " if rng.random() < 0.4 else ""
    if wording.question_first and rng.random() < 0.5:
        side = "from" if change > 0 else "to"
        return f"{side} a {rng.choice(wording.people)} {pronoun} {verb} {amount} ."
    tails = (" more", "", "", f" from a {rng.choice(wording.people)}") if change > 0 else (" of them", "", "")
    return f"{link}{pronoun} {verb} {amount}{rng.choice(tails)} ."
