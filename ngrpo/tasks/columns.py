r"""Which columns of a data set hold the problem, its answer and its id, by one rule for all data sets.

Names are compared in lowercase with `_` for a space, and a nested column is called `outer.inner`. The first name of
a role in RULE that the first row has is its column; `columns` names others. The gold answer of a row is the last
complete `\boxed{}` of its solution if there is one, because some published answer columns are damaged copies of it; else
the answer column, of which only the last box or what follows `####` counts where it has one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ngrpo.grading.answers import extract_boxed
from ngrpo.tasks.rows import Row, Rows

SOLUTION = ("solution", "extra_info.solution", "reward_model.solution", "reward_model.ground_truth.solution")
RULE = {
    "problem": ("problem", "question", "prompt", "query", "instruction", "input"),
    "answer": (
        *("answer", "final_answer", "gold", "ground_truth", "target", "expected_answer"),
        *("reward_model.ground_truth.target", "reward_model.ground_truth", "solution"),
    ),
    "id": ("id", "unique_id", "problem_id", "record_id", "extra_info.index"),
    "solution": SOLUTION,
}
LONGEST_ID = 200
REFUSE, LEAVE_OUT = "refuse", "leave_out"  # what becomes of a row without an answer


@dataclass(frozen=True)
class Item:
    """A row as id, problem and gold answer, with its number in the source (from 1) and all of its columns."""

    number: int
    id: str
    problem: str
    gold: str
    cells: Mapping[str, Any]


def read_items(name: str, source: Rows, columns: Mapping[str, str | None], unanswered: str = REFUSE) -> list[Item]:
    """Every row as an item; without an id column the id is `<name>/<row>`, counted from 0.

    columns: `problem`, `answer`, `id` -> a column's name, null for the rule. unanswered: `leave_out` passes over rows whose
    answer is empty. Raises ValueError with the row's number for a missing or empty cell or an id that is taken or unfit.
    """
    items: list[Item] = []
    taken: dict[str, int] = {}
    chosen: dict[str, str | None] | None = None
    for number, row in enumerate(source.rows, start=1):
        cells = dict(_flat(row, ""))
        chosen = chosen or _choose(source, cells, columns)
        where = f"{source.source}: row {number}"
        problem = _text(where, "problem", str(chosen["problem"]), cells)
        answer = _gold(where, chosen, cells)
        if not answer and unanswered == LEAVE_OUT:
            continue
        if not answer:
            fix = f"mend the row or set task.unanswered={LEAVE_OUT}"
            raise ValueError(f"{where}: the answer (column {chosen['answer']}) is empty, expected a text; {fix}")
        identity = str(cells.get(chosen["id"], "")) if chosen["id"] else f"{name}/{number - 1}"
        if refusal := _id_refusal(identity):
            raise ValueError(f"{where} has the id {identity[:40]!r}, {refusal}; set task.columns.id=<column>")
        if identity in taken:
            repeated = f"repeats the id {identity!r} of row {taken[identity]}"
            raise ValueError(f"{where} {repeated}, expected each id once; set task.columns.id=<column>")
        taken[identity] = number
        items.append(Item(number, identity, problem, answer, cells))
    return items


def _choose(source: Rows, cells: Row, columns: Mapping[str, str | None]) -> dict[str, str | None]:
    chosen: dict[str, str | None] = {}
    for role, names in RULE.items():
        named = columns.get(role)
        names = (_plain(named),) if named else names
        chosen[role] = next((name for name in names if name in cells), None)
        if chosen[role] is None and (named or role in ("problem", "answer")):
            lacks = f"row 1 has no column {named or ' or '.join(names)}; it has {', '.join(cells)[:200]}"
            raise ValueError(f"{source.source}: {lacks}; set task.columns.{role}=<column>")
    if columns.get("answer"):  # whoever names the column means it
        chosen["solution"] = None
    return chosen


def _flat(row: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, cell in row.items():
        key = f"{path}{_plain(str(name))}"
        yield key, cell
        if isinstance(cell, Mapping):
            yield from _flat(cell, f"{key}.")


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_")


def _text(where: str, role: str, column: str, cells: Row) -> str:
    """A cell as text: of a list of chat messages, what the user says last; a whole number without its `.0`."""
    cell = cells.get(column)
    if isinstance(cell, list) and cell and all(isinstance(part, Mapping) for part in cell):
        said = [part.get("content") for part in cell if part.get("role") == "user"]
        cell = said[-1] if said else None
    elif isinstance(cell, list) and len(cell) == 1:
        cell = cell[0]
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    if cell is None or cell == "" or (isinstance(cell, str) and not cell.strip()):
        state = "is empty" if column in cells else "is missing"
        raise ValueError(f"{where}: the {role} (column {column}) {state}, expected a text; mend or drop the row")
    if isinstance(cell, bool) or not isinstance(cell, (str, int, float)):
        kind = type(cell).__name__
        raise ValueError(
            f"{where}: the {role} (column {column}) is a {kind}, expected a text; task.columns.{role}=<column>"
        )
    return str(cell).strip()


def _gold(where: str, chosen: Mapping[str, str | None], cells: Row) -> str:
    """The gold answer; empty where the row has none."""
    solution, column = cells.get(chosen["solution"] or ""), chosen["answer"] or ""
    boxed = extract_boxed(solution) if isinstance(solution, str) else None
    if boxed:
        return boxed
    if cells.get(column) is None or not str(cells[column]).strip():
        return ""
    text = _text(where, "answer", column, cells)
    boxed = extract_boxed(text)
    if boxed is not None:
        return boxed
    worked = column in SOLUTION and "####" not in text
    return "" if worked else text.rpartition("####")[2].strip()


def _id_refusal(identity: str) -> str | None:
    if not identity or len(identity) > LONGEST_ID:
        return f"expected 1 to {LONGEST_ID} characters"
    if not identity.isprintable() or ".." in identity.split("/") or identity.startswith("/"):
        return "expected printable text that is no path out of here"
    return None
