r"""Which columns of a data set hold the problem, its answer and its id, by one rule for all data sets.

Names are compared in lowercase with `_` for a space, and a nested column is called `outer.inner`. The first name in
PROBLEMS, ANSWERS and IDS that the first row has is the column. A question is asked after the story or passage in BEFORE,
and an instruction before its input. A column of prose that is neither used nor known to be about something else may be
what the question cannot do without: it is for the user to say. Whoever names the columns means them: `columns.problem`
takes one column as it is, or a template as `'{Body} {Question}'`, in which `{choices}` is the list of choices
and `\\n` a line break.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ngrpo.tasks import choices
from ngrpo.tasks.cells import SOLUTION, plain_name
from ngrpo.tasks.rows import Row

PROBLEMS = (
    *("problem", "question", "prompt", "query", "instruction", "input"),
    *("question.stem", "question_stem", "stem", "messages", "conversations", "sentence", "ctx", "goal"),
)
ANSWERS = (  # and the solution last
    *("answer", "final_answer", "gold", "ground_truth", "target", "expected_answer"),
    *("reward_model.ground_truth.target", "reward_model.ground_truth"),
)
OF_CHOICES = (
    *("answerkey", "answer_key", "correct_answer", "correct_option", "correct_choice", "correct", "correct_option_idx"),
    *("answer_index", "answer_idx", "gold_index", "label", "cop"),
)
IDS = ("id", "unique_id", "problem_id", "record_id", "extra_info.index")
BEFORE = {  # a question, and what stands between: a body's last sentence is the question, a passage ends before it
    "body": " ",
    **dict.fromkeys(("context", "passage", "article", "story", "paragraph", "background", "premise"), "\n\n"),
    **dict.fromkeys(("scenario", "table", "support"), "\n\n"),
}
QUESTIONS = ("question", "query", "problem", "question_stem")
CHOICES = "choices"  # in a template, the list of them
FIELD = re.compile(r"\{([^{}\\$]+)\}")
ABOUT = re.compile(
    r"solution|rationale|explanation|reason|thought|cot(?![a-z])|response|completion|output|generat|answer|gold|target"
    r"|label|url|source|link|author|licen[sc]e|date|level|type|subject|categor|topic|domain|tag|difficult|split|(?<![a-z])id"
    r"|uuid|hash|model|score|reward|correct|equation|formula|program|proof|comment|note|hint|metadata|style|abilit|test"
    r"|skill|original|exp$|rubric|feedback|revision|distractor|references?$|citation|concept|rate$"
)
WORDS = 4  # that make a text prose; fewer are a label


class MayBeNeeded(ValueError):
    """The question may need a column that is not read; `column` is what is read."""

    def __init__(self, line: str, column: str):
        super().__init__(line)
        self.column = column


@dataclass(frozen=True)
class Chosen:
    """Which columns are read. template: of the question, None where `problem` alone is it.

    named: the user named the problem's columns. options: the columns with choices. compared: other columns that have a gold
    answer, which must say the same.
    """

    problem: str
    answer: str
    id: str | None
    solution: str | None
    template: str | None = None
    named: bool = False
    options: tuple[str, ...] = ()
    compared: tuple[str, ...] = ()

    @property
    def parts(self) -> list[str]:
        """The columns of the question, without the choices."""
        return _columns_in(self.template, self.options) if self.template else [self.problem]

    @property
    def lists_choices(self) -> bool:
        """Whether the template says where the choices go."""
        return bool(self.options) and f"{{{CHOICES}}}" in (self.template or "").lower()

    @property
    def used(self) -> set[str]:
        """Every column that is read."""
        roles = {self.answer, *(name for name in (self.id, self.solution) if name)}
        return {*roles, *self.parts, *self.options, *self.compared}


def _columns_in(template: str, options: Sequence[str]) -> list[str]:
    return [name for name in map(plain_name, FIELD.findall(template)) if name != CHOICES or not options]


def choose(source: str, table: Sequence[Row], columns: Mapping[str, str | None]) -> Chosen:
    """The columns of a data set whose flat rows are `table`. Raises ValueError, in one line, where one is missing."""
    first, every = table[0], list(dict.fromkeys(name for cells in table for name in cells))
    if unknown := set(columns) - {"problem", "answer", "id", "choices"}:
        got = ", ".join(sorted(unknown))
        raise ValueError(f"columns has {got}, expected problem, answer, id, choices; set task.columns")
    by_user = columns.get("problem")
    # A command line has no line breaks.
    template = by_user.replace("\\n", "\n") if by_user and FIELD.search(by_user) else None
    listed = columns.get(CHOICES)
    options = (plain_name(listed),) if listed else choices.columns_of(every)
    _require(source, CHOICES, None if listed and options[0] not in every else CHOICES, options, every)
    if template:
        parts = _columns_in(template, options)
        lacking = [name for name in parts if name not in every]
        _require(source, "problem", None if lacking else next(iter(parts), None), lacking or ("problem",), every)
        problem = parts[0]
    else:
        problem = str(_column(source, "problem", first, columns, PROBLEMS))
    answers = ANSWERS + (OF_CHOICES if options else ())
    answer = str(_column(source, "answer", first, columns, (*answers, "solution")))
    identity = _column(source, "id", first, columns, IDS)
    solution, compared = None, ()
    if not columns.get("answer"):  # whoever names the column means it
        solution = next((name for name in SOLUTION if name in every), None)
        compared = tuple(
            name for name in answers if name in every and name != answer and not answer.startswith(f"{name}.")
        )
    template = template or (None if by_user else _joined(problem, every))
    return Chosen(problem, answer, identity, solution, template, bool(by_user), options, compared)


def _column(source: str, role: str, first: Row, columns: Mapping[str, str | None], names: Sequence[str]) -> str | None:
    named = columns.get(role)
    names = (plain_name(named),) if named else names
    # A mapping holds the column and is not it, unless there is nothing else.
    found = next((name for name in names if name in first and not isinstance(first[name], Mapping)), None)
    found = found or next((name for name in names if name in first), None)
    if named or role != "id":
        _require(source, role, found, names, list(first))
    return found


def _require(source: str, role: str, found: str | None, names: Sequence[str], have: Sequence[str]) -> None:
    if not found:
        lacks = f"row 1 has no column {' or '.join(names[:6])}; it has {', '.join(have)[:200]}"
        raise ValueError(f"{source}: {lacks}; set task.columns.{role}=<column>")


def _joined(problem: str, every: Sequence[str]) -> str | None:
    """The template that the rule gives a problem's column; None where it stands alone."""
    if problem == "instruction" and "input" in every:
        return "{instruction}\n\n{input}"
    before = [f"{{{name}}}{gap}" for name, gap in BEFORE.items() if name in every and problem in QUESTIONS]
    return f"{''.join(before)}{{{problem}}}" if before else None


def unused(table: Sequence[Row], chosen: Chosen, questions: Sequence[str]) -> tuple[list[str], list[str]]:
    """The columns that are not read, and those of them that the question may need.

    questions: the text of each row of `table` as it is asked.
    """
    used, names, needed = chosen.used, [], []
    for name in dict.fromkeys(name for cells in table for name in cells):
        inner = any(name == column or name.startswith(f"{column}.") for column in used)
        cells = [row.get(name) for row in table]
        if inner or any(isinstance(cell, Mapping) for cell in cells):
            continue
        names.append(name)
        needed += [name] if _may_be_needed(name, cells, questions) else []
    return names, needed


def _may_be_needed(name: str, cells: Sequence[Any], questions: Sequence[str]) -> bool:
    known = name in BEFORE or name in ("system", "system_prompt")
    if not known and ABOUT.search(name):
        return False
    pairs = [(cell, question) for cell, question in zip(cells, questions, strict=True) if isinstance(cell, str)]
    texts = [(_squashed(cell), _squashed(question)) for cell, question in pairs if cell.strip()]
    other = [text for text, question in texts if text not in question and question not in text]
    if known:
        return bool(other)
    prose = [text for text in other if len(text.split()) >= WORDS]
    varied = len(set(prose)) * 2 > len(prose) or len(prose) < 4  # else they are labels of kinds of rows
    return bool(prose) and 2 * len(prose) >= len(texts) and varied


def _squashed(text: str) -> str:
    return " ".join(text.split())


def candidates(chosen: Chosen, needed: Sequence[str]) -> str:
    """What the user may say about columns that the question may need."""
    joined = " ".join(f"{{{name}}}" for name in (*needed, *chosen.parts))
    return f"task.columns.problem='{joined}' asks them too, task.columns.problem={chosen.problem} leaves them out"
