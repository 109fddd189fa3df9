r"""Questions with four options in a seeded order (GPQA), answered by a letter; how the letter is read is configured.

`strict` and `lenient` are the two rules that published numbers differ by. It does not know what the options say.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from random import Random

from ngrpo.grading.answers import extract_boxed
from ngrpo.tasks.base import Problem, Score, answer_part
from ngrpo.tasks.columns import Item, read_items
from ngrpo.tasks.questions import with_instruction
from ngrpo.tasks.rows import read_rows
from ngrpo.tasks.story_text import ANSWER_PREFIX

LETTERS = "ABCD"
WRONG = tuple(f"incorrect_answer_{number}" for number in (1, 2, 3))
BOXED_LETTER = re.compile(r"(?:\\(?:text|mathrm|textbf|mathbf)\{)?\s*\(?([A-D])\)?\s*\.?\s*\}?")
NAMED_LETTER = re.compile(r"^\W*answer:\s*\W{0,4}([A-D])\W*$", re.IGNORECASE | re.MULTILINE)
ANY_LETTER = re.compile(r"\b([A-Da-d])\b")
TAIL = 500


def strict(text: str) -> str | None:
    r"""The letter in the last `\boxed{}`; without a box the last line `Answer: X`; else none."""
    boxed = extract_boxed(text)
    if boxed is not None:
        match = BOXED_LETTER.fullmatch(boxed)
        return match[1] if match else None
    named = NAMED_LETTER.findall(text[-TAIL:])
    return named[-1].upper() if named else None


def lenient(text: str) -> str | None:
    """As `strict`, and without such a letter the last A-D that stands alone in the last 500 characters, in any case.

    So the word "a" is an answer: the rule of the code released with N-GRPO, kept for comparison with its numbers.
    """
    anywhere = ANY_LETTER.findall(text[-TAIL:])
    return strict(text) or (anywhere[-1].upper() if anywhere else None)


@dataclass
class MultipleChoice:
    """A task of four-option questions.

    Columns: `Question` (or what tasks.columns takes for a problem), `Correct Answer`, `Incorrect Answer 1` to `3`.
    seed: of the order of the options, which depends on it and on the question's id alone. read: text -> letter or None.
    Other arguments as those of tasks.questions.Questions. Raises ValueError for rows that cannot be used.
    """

    name: str
    read: Callable[[str], str | None]
    seed: int = 0
    path: str | None = None
    directory: str | None = None
    dataset: str | None = None
    subset: str | None = None
    split: str | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    instruction: str | None = None
    answer_start: str | None = None
    version: str = field(default="", init=False)
    answer_prefix: str = field(default=ANSWER_PREFIX, init=False)
    problems: Sequence[Problem] = field(default=(), init=False)

    def __post_init__(self):
        source = read_rows(self.name, self.path, self.directory, self.dataset, self.subset, self.split)
        self.version = source.digest
        items = read_items(self.name, source, {"answer": "correct_answer", **_given(self.columns)})
        self.problems = [self._problem(item, source.source) for item in items]

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        """Verdicts, one per pair, in order; `solution_path` is empty."""
        return [self._score_one(problem, text) for problem, text in zip(problems, completions, strict=True)]

    def _problem(self, item: Item, source: str) -> Problem:
        options = [item.gold]
        for column in WRONG:
            option = item.cells.get(column)
            if not isinstance(option, str) or not option.strip():
                raise ValueError(
                    f"{source}: row {item.number} has no text in {column}, expected four options; mend the row"
                )
            options.append(option.strip())
        if len(set(options)) < len(options):
            raise ValueError(
                f"{source}: row {item.number} has an option twice, expected four different ones; mend the row"
            )
        order = list(range(len(options)))
        Random(blake2b(f"{self.seed} {item.id}".encode(), digest_size=16).digest()).shuffle(order)
        listed = "\n".join(f"{letter}) {options[at]}" for letter, at in zip(LETTERS, order, strict=True))
        message = with_instruction(f"{item.problem}\n\n{listed}\n", self.instruction)
        return Problem(item.id, message, LETTERS[order.index(0)], True, item.problem)

    def _score_one(self, problem: Problem, completion: str) -> Score:
        letter = self.read(answer_part(completion, self.answer_start))
        outcome = "unparsed" if letter is None else "correct" if letter == problem.gold else "wrong"
        return Score(float(outcome == "correct"), outcome, letter, "")


def _given(columns: Mapping[str, str | None]) -> dict[str, str]:
    return {role: column for role, column in columns.items() if column}
