r"""Which columns of a data set hold the problem, its answer and its id, by one rule for all data sets.

Names are compared in lowercase with `_` for a space, and a nested column is called `outer.inner`. The first name of a
role in RULE that the first row has is its column. A question is asked after the story, passage or system prompt in JOINED,
and an instruction before its input. A column of prose that is neither used nor known to be about something else may be
what the question cannot do without: it is for the user to say. Whoever names the columns means them: `columns.problem`
takes one column as it is, or a template as `'{Body} {Question}'`, in which `{choices}` is the list of choices
and `\\n` a line break.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ngrpo.tasks import choices
from ngrpo.tasks.cells import SOLUTION, plain
from ngrpo.tasks.rows import Row

ANSWERS = ("answer", "final_answer", "gold", "ground_truth", "target", "expected_answer")
NESTED_ANSWERS = ("reward_model.ground_truth.target", "reward_model.ground_truth")
OF_CHOICES = (
    *("answerkey", "answer_key", "correct_answer", "correct_option", "correct_choice", "correct", "correct_option_idx"),
    *("answer_index", "answer_idx", "gold_index", "label", "cop"),
)
RULE = {
    "problem": (
        *("problem", "question", "prompt", "query", "instruction", "input"),
        *("question.stem", "question_stem", "stem", "messages", "conversations", "sentence", "ctx", "goal"),
    ),
    "answer": (*ANSWERS, *NESTED_ANSWERS, "solution"),
    "id": ("id", "unique_id", "problem_id", "record_id", "extra_info.index"),
    "solution": SOLUTION,
}
BODY = ("body",)  # a story whose last sentence is the question
PASSAGE = (
    *("context", "passage", "article", "story", "paragraph", "background", "premise", "scenario", "table", "support"),
)
BEFORE = (*((name, " ") for name in BODY), *((name, "\n\n") for name in PASSAGE))
JOINED = {
    "question": BEFORE,
    "query": BEFORE,
    "problem": BEFORE,
    "question_stem": BEFORE,
    "instruction": (("input", "\n\n"),),  # after it
}
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
        found = [plain(name) for name in FIELD.findall(self.template or "")] if self.template else [self.problem]
        return [name for name in found if name != CHOICES or not self.options]

    @property
    def lists_choices(self) -> bool:
        """Whether the template says where the choices go."""
        return bool(self.options) and f"{{{CHOICES}}}" in (self.template or "").lower()

    @property
    def used(self) -> set[str]:
        """Every column that is read."""
        roles = {self.answer, *(name for name in (self.id, self.solution) if name)}
        return {*roles, *self.parts, *self.options, *self.compared}


def choose(source: str, table: Sequence[Row], columns: Mapping[str, str | None]) -> Chosen:
    """The columns of a data set whose flat rows are `table`. Raises ValueError, in one line, where one is missing."""
    first, every = table[0], list(dict.fromkeys(name for cells in table for name in cells))
    if unknown := set(columns) - {"problem", "answer", "id", "choices", "solution"}:
        raise ValueError(
            f"columns has {', '.join(sorted(unknown))}, expected problem, answer, id, choices; set task.columns"
        )
    template = columns.get("problem") if FIELD.search(columns.get("problem") or "") else None
    template = template.replace("\\n", "\n") if template else None  # a command line has no line breaks
    listed = columns.get(CHOICES)
    options = (plain(listed),) if listed else choices.columns_of(every)
    _require(source, CHOICES, None if listed and options[0] not in every else CHOICES, options, every)
    if template:
        parts = [name for name in map(plain, FIELD.findall(template)) if name != CHOICES or not options]
        lacking = [name for name in parts if name not in every]
        _require(source, "problem", None if lacking else next(iter(parts), None), lacking or ("problem",), every)
        problem = parts[0]
    else:
        problem = str(_column(source, "problem", first, columns, RULE["problem"]))
    asked = RULE["answer"][:-1] + (OF_CHOICES if options else ()) + ("solution",)
    answer = _column(source, "answer", first, columns, asked)
    identity = _column(source, "id", first, columns, RULE["id"])
    means = bool(columns.get("answer"))  # whoever names the column means it
    wanted = (plain(columns["solution"] or ""),) if columns.get("solution") else SOLUTION
    solution = None if means else next((name for name in wanted if name in every), None)
    golds = () if means else _compared(str(answer), every, asked[:-1])
    named = bool(columns.get("problem"))
    template = template or (None if named else _joined(problem, every))
    return Chosen(problem, str(answer), identity, solution, template, named, options, golds)


def _compared(answer: str, every: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in every and name != answer and not answer.startswith(f"{name}."))


def _column(source: str, role: str, first: Row, columns: Mapping[str, str | None], names: Sequence[str]) -> str | None:
    named = columns.get(role)
    names = (plain(named),) if named else names
    # A mapping holds the column and is not it, unless the user says so and is told.
    found = next((name for name in names if name in first and (named or not isinstance(first[name], Mapping))), None)
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
    beside = [(name, gap) for name, gap in JOINED.get(problem, ()) if name in every]
    if not beside:
        return None
    if problem == "instruction":
        return f"{{{problem}}}" + "".join(f"{gap}{{{name}}}" for name, gap in beside)
    return "".join(f"{{{name}}}{gap}" for name, gap in beside) + f"{{{problem}}}"


@dataclass
class Unused:
    """Columns that are not read, and those of them that the question may not be able to do without."""

    names: list[str] = field(default_factory=list)
    needed: list[str] = field(default_factory=list)


def unused(table: Sequence[Row], chosen: Chosen, questions: Sequence[str]) -> Unused:
    """What is left of the columns. questions: the text of each row of `table` as it is asked."""
    used, found = chosen.used, Unused()
    for name in dict.fromkeys(name for cells in table for name in cells):
        inner = any(name == column or name.startswith(f"{column}.") for column in used)
        cells = [row.get(name) for row in table]
        if inner or any(isinstance(cell, Mapping) for cell in cells):
            continue
        found.names.append(name)
        if _may_be_needed(name, cells, questions):
            found.needed.append(name)
    return found


def _may_be_needed(name: str, cells: Sequence[Any], questions: Sequence[str]) -> bool:
    known = name in BODY or name in PASSAGE or name in ("system", "system_prompt")
    if not known and ABOUT.search(name):
        return False
    texts = [
        (_squashed(cell), _squashed(asked)) for cell, asked in zip(cells, questions, strict=True) if _is_text(cell)
    ]
    other = [text for text, asked in texts if text not in asked and asked not in text]
    if known:
        return bool(other)
    prose = [text for text in other if len(text.split()) >= WORDS]
    varied = len(set(prose)) * 2 > len(prose) or len(prose) < 4  # else they are labels of kinds of rows
    return bool(prose) and 2 * len(prose) >= len(texts) and varied


def _is_text(cell: Any) -> bool:
    return isinstance(cell, str) and bool(cell.strip())


def _squashed(text: str) -> str:
    return " ".join(text.split())


def candidates(chosen: Chosen, needed: Sequence[str]) -> str:
    """What the user may say about columns that the question may need."""
    joined = " ".join(f"{{{name}}}" for name in (*needed, *chosen.parts))
    return f"task.columns.problem='{joined}' asks them too, task.columns.problem={chosen.problem} leaves them out"
