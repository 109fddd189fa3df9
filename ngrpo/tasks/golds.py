r"""The gold answers of every row, and which rows have none or several that disagree.

The gold of a row is the last complete `\boxed{}` of its solution if there is one, because some published answer columns are
damaged copies of it; else the answer column. Where a row has both, or another column with a gold, they must say the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ngrpo.grading.answers import extract_boxed
from ngrpo.tasks import choices
from ngrpo.tasks.agreement import agree
from ngrpo.tasks.cells import PROOF, golds_of, has_no_value
from ngrpo.tasks.items import LEAVE_OUT, Reading, Table, listed

Golds = tuple[str, ...]
Choice = tuple[int, choices.Choices, Any]  # row number, its choices, the answer's cell


def golds(table: Table, reading: Reading) -> list[Golds]:
    """Row by row the right answers; none where a row is left out.

    Raises ValueError, in one line, for unfit cells, and where the task refuses rows without one answer.
    """
    chosen = table.chosen
    named = {column: _of_choices(table, column, reading) for column in (chosen.answer, *chosen.compared)}
    found: list[Golds] = []
    pairs, owners = [], []
    for index, cells in enumerate(table.rows):
        told = _by_column(table, index, named)
        mine = _preferred(table, told, cells)
        reading.boxed += bool(chosen.solution != chosen.answer and mine and mine == told.get(chosen.solution or ""))
        if not mine:
            reading.unanswered[index + 1] = _shown(table, cells)
        for column, others in told.items() if mine else ():
            if others and others != mine:
                pairs.append((mine, others))
                owners.append((index, column, others))
        found.append(mine)
    for (index, column, others), same in zip(owners, agree(pairs, table.ways.same), strict=True):
        if not same:
            says = f"{found[index][0][:60]!r} and, in column {column}, {others[0][:60]!r}"
            reading.disagreeing.setdefault(index + 1, says)
    _refuse(table, reading)
    return [() if index + 1 in reading.disagreeing else mine for index, mine in enumerate(found)]


def _by_column(table: Table, index: int, named: Mapping[str, Mapping[int, Golds]]) -> dict[str, Golds]:
    """Column -> what it says, the solution first."""
    chosen, cells = table.chosen, table.rows[index]
    told: dict[str, Golds] = {}
    for column in dict.fromkeys((chosen.solution, chosen.answer, *chosen.compared)):
        if column is None or (column != chosen.answer and not isinstance(cells.get(column), (str, int, float, list))):
            continue
        if column == chosen.solution and not isinstance(cells.get(column), str):
            continue
        if index in named.get(column, {}):
            told[column] = named[column][index]
        elif not (column in chosen.compared and isinstance(cells.get(column), bool)):
            told[column] = golds_of(table.where(index), column, cells)
    return told


def _preferred(table: Table, told: Mapping[str, Golds], cells: Mapping[str, Any]) -> Golds:
    chosen = table.chosen
    box, answer = told.get(chosen.solution or "", ()), told.get(chosen.answer, ())
    if chosen.options and answer:  # which knows the letter and the text
        return answer
    if str(cells.get(chosen.answer)).strip().lower() in PROOF:
        return ()
    return tuple(dict.fromkeys((*box, *answer))) if len(answer) > 1 else box or answer


def _of_choices(table: Table, column: str, reading: Reading) -> dict[int, Golds]:
    """Row index -> golds, of the rows that have choices; empty where the column's answers are none of them."""
    have = [(index + 1, o) for index, o in enumerate(table.options) if o and o.texts]
    given = [(number, o, _cell(table.rows[number - 1].get(column), o)) for number, o in have]
    answered: list[Choice] = [row for row in given if row[2] is not None]
    main = column == table.chosen.answer
    if not answered or (not (main and table.shown) and not _fit(answered)):
        return {}
    form = (table.ways.answer_form if main else None) or choices.form_of(table.source, column, answered)
    if main:
        counted = {"index": "index, counted from 0", "index_from_1": "index, counted from 1"}.get(form, form)
        reading.note(f"{column} names the right choice by its {counted}")
    return {
        number - 1: () if cell is None else _picked(table, column, form, (number, o, cell)) for number, o, cell in given
    }


def _cell(cell: Any, offered: choices.Choices) -> Any:
    """The answer's cell, None where it says that there is none; -1 is how hubs hide the answers of a test split."""
    cell = cell[0] if isinstance(cell, list) and len(cell) == 1 else cell
    cell = (extract_boxed(cell) or cell) if isinstance(cell, str) else cell
    if cell is None or cell != cell:  # nan
        return None
    if choices.named_by("text", offered, cell) is None and (has_no_value(str(cell)) or str(cell).strip() == "-1"):
        return None
    return cell


def _fit(rows: Sequence[Choice]) -> bool:
    return all(any(choices.named_by(form, o, cell) is not None for form in choices.FORMS) for _, o, cell in rows)


def _picked(table: Table, column: str, form: str, row: Choice) -> Golds:
    number, offered, cell = row
    at = choices.named_by(form, offered, cell)
    if at is None:
        says = f"the answer (column {column}) {str(cell)[:80]!r} is no {form} of its {len(offered.texts)} choices"
        raise ValueError(f"{table.where(number - 1)}: {says}; set task.answer_form={'|'.join(choices.FORMS)}")
    return choices.golds(offered, at, table.shown)


def _shown(table: Table, cells: Mapping[str, Any]) -> str:
    chosen, cell = table.chosen, cells.get(table.chosen.answer)
    if cell is None or not str(cell).strip():
        return "is empty"
    worked = chosen.answer == "solution" or extract_boxed(str(cell)) == ""
    return "has an empty box or none" if worked else f"is {str(cell)[:40]!r}, which is no value"


def _refuse(table: Table, reading: Reading) -> None:
    if table.ways.unanswered == LEAVE_OUT:
        return
    chosen = table.chosen
    if reading.unanswered:
        number, says = next(iter(reading.unanswered.items()))
        line = f"the answer (column {chosen.answer}) {says}, expected a text{_like(reading.unanswered)}"
        raise ValueError(f"{table.where(number - 1)}: {line}; mend the row or set task.unanswered={LEAVE_OUT}")
    if reading.disagreeing:
        number, says = next(iter(reading.disagreeing.items()))
        columns = dict.fromkeys((chosen.answer, *([chosen.solution] if chosen.solution else []), *chosen.compared))
        fix = " or ".join(f"task.columns.answer={column}" for column in columns)
        line = f"the golds disagree: {says}{_like(reading.disagreeing)}"
        raise ValueError(f"{table.where(number - 1)}: {line}; set {fix} or task.unanswered={LEAVE_OUT}")


def _like(rows: Mapping[int, str]) -> str:
    more = list(rows)[1:]
    return f" (so in {len(more)} more: {listed(more)})" if more else ""


def tell(table: Table, found: Sequence[Golds], reading: Reading) -> None:
    """Notes on where the golds come from and which are left out."""
    chosen = table.chosen
    if reading.boxed:
        note = f"the gold is the last box of {chosen.solution} in {reading.boxed} rows, else {chosen.answer}"
        reading.note(note, alters=chosen.solution not in table.rows[0])
    if chosen.compared:
        reading.note(f"{', '.join(chosen.compared)} was compared with the gold", alters=False)
    of_none = [at for at, says in reading.unanswered.items() if "no value" in says]
    empty = [at for at in reading.unanswered if at not in of_none]
    if empty:
        reading.note(f"rows without an answer are left out: {len(empty)} ({listed(empty)})", alters=False)
    if of_none:
        reading.note(f"rows whose answer is no value are left out: {len(of_none)} ({listed(of_none)})")
    if reading.disagreeing:
        rows = list(reading.disagreeing)
        reading.note(f"rows whose golds disagree are left out: {len(rows)} ({listed(rows)})")
    cells = [cells.get(chosen.answer) for cells in table.rows]
    several = [at + 1 for at, golds in enumerate(found) if len(golds) > 1 and not table.options[at]]
    if several:
        reading.note(f"rows with several right answers: {len(several)} ({listed(several)})")
    as_list = [at + 1 for at, cell in enumerate(cells) if isinstance(cell, str) and cell.lstrip().startswith('["')]
    if as_list:
        reading.note(f"rows whose answer is a JSON list of alternatives: {len(as_list)} ({listed(as_list)})")
    decimals = [at + 1 for at, cell in enumerate(cells) if isinstance(cell, float) and "e" in repr(cell)]
    if decimals:
        reading.note(f"rows whose answer is a float, written as a decimal: {len(decimals)} ({listed(decimals)})")
