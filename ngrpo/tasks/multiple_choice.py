r"""Questions with four options in a seeded order (GPQA), answered by a letter; how the letter is read is configured.

`strict` and `lenient` are the two rules that published numbers differ by.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ngrpo.grading.answers import extract_boxed
from ngrpo.tasks.base import Problem, Score, answer_part
from ngrpo.tasks.dataset import Item, ReadOptions
from ngrpo.tasks.drawn import generator
from ngrpo.tasks.questions import FromRows

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


@dataclass(kw_only=True)
class MultipleChoice(FromRows):
    """A task of four-option questions.

    Columns: `Question` (or what tasks.columns takes for a problem), `Correct Answer`, `Incorrect Answer 1` to `3`.
    seed: of the order of the options, which depends on it and on the question's id alone. read: text -> letter or None.
    Other arguments: questions.FromRows. Raises ValueError for rows that cannot be used.
    """

    read: Callable[[str], str | None]
    seed: int = 0

    def __post_init__(self):
        given = {role: column for role, column in self.columns.items() if column}
        # The questions' own columns are known, and they stand among a dozen of prose about them.
        columns = {"answer": "correct_answer", **given}
        self.read_rows(ReadOptions(columns, repeats=self.repeats, own_columns=True), self._problem)

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        """Verdicts, one per pair, in order; `solution_path` is empty."""
        pairs = zip(problems, completions, strict=True)
        letters = [(problem.gold, self.read(answer_part(text, self.answer_start))) for problem, text in pairs]
        outcomes = ["unparsed" if found is None else "correct" if found == gold else "wrong" for gold, found in letters]
        return [Score.of(outcome, found) for outcome, (_, found) in zip(outcomes, letters, strict=True)]

    def _problem(self, item: Item) -> Problem:
        texts = [(column, item.cells.get(column)) for column in WRONG]
        missing = next((column for column, text in texts if not isinstance(text, str) or not text.strip()), None)
        options = [item.golds[0], *(str(text).strip() for _, text in texts)]
        where = f"{self.data.source}: row {item.number}"
        if missing:
            raise ValueError(f"{where} has no text in {missing}, expected four options; mend the row")
        if len(set(options)) < len(options):
            raise ValueError(f"{where} has an option twice, expected four different ones; mend the row")
        order = list(range(len(options)))
        generator(f"{self.seed} {item.id}").shuffle(order)
        listed = "\n".join(f"{letter}) {options[at]}" for letter, at in zip(LETTERS, order, strict=True))
        return self.as_problem(item, f"{item.question}\n\n{listed}\n", LETTERS[order.index(0)])
