r"""The gold answers of every row, and which rows have none or several that disagree.

The gold of a row is the last complete `\boxed{}` of its solution if there is one, because some published answer columns are
damaged copies of it; else the answer column. Where a row has both, or another column with a gold, they must say the same:
as texts at first, by the task's grader where texts differ.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ngrpo.grading.answers import extract_boxed, same_integer
from ngrpo.tasks import choices
from ngrpo.tasks.cells import FONTS, PROOF, alone, golds_of, has_no_value, is_empty
from ngrpo.tasks.dataset import LEAVE_OUT, Dataset, Same, listed

Golds = tuple[str, ...]
Answer = tuple[int, choices.Choices, Any]  # row number, the row's choices, the answer's cell
SPACING = re.compile(r"\s|\$|\\left(?![a-z])|\\right(?![a-z])|\\[!,;: ]|~")
FRACTION = re.compile(r"\\[dt]frac(?![a-z])")


def golds_of_rows(data: Dataset) -> list[Golds]:
    """Row by row the right answers; none where a row is left out.

    Raises ValueError, in one line, for unfit cells, and where the task refuses rows without one answer.
    """
    chosen = data.chosen
    by_choice = {column: _of_choices(data, column) for column in (chosen.answer, *chosen.compared)}
    found: list[Golds] = []
    others: list[tuple[int, str, Golds]] = []  # row index, another column and what it says
    for index, cells in enumerate(data.rows):
        by_column = _by_column(data, index, by_choice)
        golds = _preferred(data, by_column, cells)
        data.boxed += bool(chosen.solution != chosen.answer and golds and golds == by_column.get(chosen.solution or ""))
        if not golds:
            data.unanswered[index + 1] = _no_gold(data, cells)
        others += [(index, *other) for other in by_column.items() if golds and other[1] and other[1] != golds]
        found.append(golds)
    same = _agree([(found[index], golds) for index, _, golds in others], data.options.same)
    for (index, column, golds), agrees in zip(others, same, strict=True):
        if not agrees:
            says = f"{found[index][0][:60]!r} and, in column {column}, {golds[0][:60]!r}"
            data.disagreeing.setdefault(index + 1, says)
    _refuse(data)
    return [() if index + 1 in data.disagreeing else golds for index, golds in enumerate(found)]


def _by_column(data: Dataset, index: int, by_choice: Mapping[str, Mapping[int, Golds]]) -> dict[str, Golds]:
    """Column -> what it says, the solution first."""
    chosen, cells = data.chosen, data.rows[index]
    kinds: dict[str | None, Any] = {chosen.solution: str, chosen.answer: object}  # of cells that may hold a gold
    kinds |= {chosen.solution: str, **dict.fromkeys(chosen.compared, (str, int, float, list))}
    found: dict[str, Golds] = {}
    for column, kind in kinds.items():
        if column is None or not isinstance(cells.get(column), kind):
            continue
        if index in by_choice.get(column, {}):
            found[column] = by_choice[column][index]
        elif not (column in chosen.compared and isinstance(cells[column], bool)):
            found[column] = golds_of(data.where(index), column, cells)
    return found


def _preferred(data: Dataset, by_column: Mapping[str, Golds], cells: Mapping[str, Any]) -> Golds:
    chosen = data.chosen
    box, answer = by_column.get(chosen.solution or "", ()), by_column.get(chosen.answer, ())
    if chosen.options and answer:  # which knows the letter and the text
        return answer
    if str(cells.get(chosen.answer)).strip().lower() in PROOF:
        return ()
    return tuple(dict.fromkeys((*box, *answer))) if len(answer) > 1 else box or answer


def _agree(pairs: Sequence[tuple[Golds, Golds]], same: Same | None) -> list[bool]:
    """For each pair of lists of golds, whether a gold of the one is a gold of the other."""
    found = [any(_alike(one, other) for one in left for other in right) for left, right in pairs]
    unlike = [at for at, alike in enumerate(found) if not alike]
    each = [(at, one, other) for at in unlike for one in pairs[at][0] for other in pairs[at][1]]
    if same and each:
        verdicts = iter(same([pair for _, one, other in each for pair in ((one, other), (other, one))]))
        for (at, _, _), *either in zip(each, verdicts, verdicts, strict=True):
            found[at] = found[at] or any(either)
    return found


def _alike(one: str, other: str) -> bool:
    return same_integer(one, other) or _squeezed(one) == _squeezed(other)


def _squeezed(text: str) -> str:
    """A gold without what is only its looks, and without backslashes, which copies lose."""
    text = FRACTION.sub(lambda _: "\\frac", FONTS.sub(r"\1", text))
    return SPACING.sub("", text).replace("\\", "").rstrip(".").casefold()


def _of_choices(data: Dataset, column: str) -> dict[int, Golds]:
    """Row index -> golds, of the rows that have choices; empty where the column's answers are none of them."""
    rows = enumerate(zip(data.choices, data.rows, strict=True), start=1)
    given = [(number, each, _cell(cells.get(column), each)) for number, (each, cells) in rows if each and each.texts]
    answered: list[Answer] = [row for row in given if row[2] is not None]
    main = column == data.chosen.answer
    if not answered or (not (main and data.asks_choices) and not _fit(answered)):
        return {}
    form = (data.options.answer_form if main else None) or choices.form_of(data.source, column, answered)
    if main:
        counted = {"index": "index, counted from 0", "index_from_1": "index, counted from 1"}.get(form, form)
        data.note(f"{column} names the right choice by its {counted}")
    return {row[0] - 1: () if row[2] is None else _picked(data, column, form, row) for row in given}


def _cell(cell: Any, offered: choices.Choices) -> Any:
    """The answer's cell, None where it says that there is none; -1 is how hubs hide the answers of a test split."""
    cell = alone(cell)
    cell = (extract_boxed(cell) or cell) if isinstance(cell, str) else cell
    if cell is None or cell != cell:  # nan
        return None
    if choices.index_named("text", offered, cell) is None and (has_no_value(str(cell)) or str(cell).strip() == "-1"):
        return None
    return cell


def _fit(rows: Sequence[Answer]) -> bool:
    return all(any(choices.index_named(form, o, cell) is not None for form in choices.FORMS) for _, o, cell in rows)


def _picked(data: Dataset, column: str, form: str, row: Answer) -> Golds:
    number, offered, cell = row
    at = choices.index_named(form, offered, cell)
    if at is None:
        says = f"the answer (column {column}) {str(cell)[:80]!r} is no {form} of its {len(offered.texts)} choices"
        raise ValueError(f"{data.where(number - 1)}: {says}; set task.answer_form={'|'.join(choices.FORMS)}")
    return choices.golds_of(offered, at, data.asks_choices)


def _no_gold(data: Dataset, cells: Mapping[str, Any]) -> str:
    """What stands in the place of a gold, for a line about the row."""
    chosen, cell = data.chosen, cells.get(data.chosen.answer)
    if is_empty(cell):
        return "is empty"
    worked = chosen.answer == "solution" or extract_boxed(str(cell)) == ""
    return "has an empty box or none" if worked else f"is {str(cell)[:40]!r}, which is no value"


def _refuse(data: Dataset) -> None:
    if data.options.unanswered == LEAVE_OUT:
        return
    chosen = data.chosen
    if data.unanswered:
        number, says = next(iter(data.unanswered.items()))
        line = f"the answer (column {chosen.answer}) {says}, expected a text{_more(data.unanswered)}"
        raise ValueError(f"{data.where(number - 1)}: {line}; mend the row or set task.unanswered={LEAVE_OUT}")
    if data.disagreeing:
        number, says = next(iter(data.disagreeing.items()))
        columns = dict.fromkeys(filter(None, (chosen.answer, chosen.solution, *chosen.compared)))
        fix = " or ".join(f"task.columns.answer={column}" for column in columns)
        line = f"the golds disagree: {says}{_more(data.disagreeing)}"
        raise ValueError(f"{data.where(number - 1)}: {line}; set {fix} or task.unanswered={LEAVE_OUT}")


def _more(rows: Mapping[int, str]) -> str:
    more = list(rows)[1:]
    return f" (so in {len(more)} more: {listed(more)})" if more else ""


def note_golds(data: Dataset, found: Sequence[Golds]) -> None:
    """Notes on where the golds come from and which are left out."""
    chosen = data.chosen
    if data.boxed:
        note = f"the gold is the last box of {chosen.solution} in {data.boxed} rows, else {chosen.answer}"
        data.note(note, alters=chosen.solution not in data.rows[0])
    if chosen.compared:
        data.note(f"{', '.join(chosen.compared)} was compared with the gold", alters=False)
    no_value = [number for number, says in data.unanswered.items() if "no value" in says]
    empty = [number for number in data.unanswered if number not in no_value]
    data.note_rows("rows without an answer are left out", empty, alters=False)
    data.note_rows("rows whose answer is no value are left out", no_value)
    data.note_rows("rows whose golds disagree are left out", list(data.disagreeing))
    cells = [cells.get(chosen.answer) for cells in data.rows]
    several = [at + 1 for at, golds in enumerate(found) if len(golds) > 1 and not data.choices[at]]
    data.note_rows("rows with several right answers", several)
    lists = [at for at, cell in enumerate(cells, start=1) if isinstance(cell, str) and cell.lstrip().startswith('["')]
    data.note_rows("rows whose answer is a JSON list of alternatives", lists)
    decimals = [at for at, cell in enumerate(cells, start=1) if isinstance(cell, float) and "e" in repr(cell)]
    data.note_rows("rows whose answer is a float, written as a decimal", decimals)
