"""The rows of a data set as problems with their gold answers, and a note for everything that is not plain about them.

A row without one gold answer (none, a word that says so, or two that disagree) is refused or left out, and so is a problem
that stands there twice.
"""

from collections import Counter
from dataclasses import replace

from ngrpo.tasks import choices, golds
from ngrpo.tasks.base import Messages
from ngrpo.tasks.cells import flattened
from ngrpo.tasks.columns import choose
from ngrpo.tasks.dataset import FIRST, KEEP, REFUSE, Dataset, Item, ReadOptions
from ngrpo.tasks.question_text import check_columns, note_questions, question_of, with_choices
from ngrpo.tasks.rows import Rows

LONGEST_ID = 200


def read_dataset(name: str, source: Rows, options: ReadOptions) -> Dataset:
    """Every row as an item; without an id column the id is `<name>/<row>`, counted from 0.

    Raises ValueError, in one line and with the row's number, for a missing or empty cell, a column that may be needed, an id
    that is taken or unfit, and for what `options` refuses.
    """
    rows = [dict(flattened(row)) for row in source.rows]
    chosen = choose(source.source, rows, options.columns)
    data = Dataset(source.source, rows, replace(chosen, options=()) if options.own_columns else chosen, options)
    questions = [question_of(data, index) for index in range(len(rows))]
    check_columns(data, questions)
    data.choices = [choices.read(data.where(at), data.chosen.options, cells) for at, cells in enumerate(rows)]
    found = golds.golds_of_rows(data)
    for index, question in enumerate(questions):
        if found[index]:
            identity = str(rows[index].get(chosen.id, "")) if chosen.id else f"{name}/{index}"
            messages = with_choices(data, index, question)
            data.items.append(Item(index + 1, identity, messages, found[index], rows[index]))
    note_questions(data, questions)
    golds.note_golds(data, found)
    _resolve_repeats(data)
    return data


def _resolve_repeats(data: Dataset) -> None:
    """Applies `repeats`; a problem repeats one before with its id or, of whatever id, with its messages."""
    repeats = data.options.repeats
    by_id: dict[str, Item] = {}
    by_messages: dict[Messages, Item] = {}
    times: Counter[str] = Counter()
    kept: list[Item] = []
    for item in data.items:
        before = _repeated(data, item, by_id.get(item.id), by_messages.get(item.messages))
        times[item.id] += 1
        if before is not None:
            data.repeated[item.number] = before.number
        if before is None or repeats != FIRST:
            kept.append(item if times[item.id] == 1 else replace(item, id=f"{item.id}#{times[item.id]}"))
        by_id.setdefault(item.id, item)
        by_messages.setdefault(item.messages, item)
    taken = Counter(item.id for item in kept)
    if clash := next((identity for identity, count in taken.items() if count > 1), None):
        raise ValueError(f"{data.source}: {clash!r} is the id of two rows; set task.columns.id=<column>")
    fate = {FIRST: "are left out", KEEP: "are kept, each with an id of its own", REFUSE: "under other ids are kept"}
    data.note_rows(f"rows that repeat a problem {fate[repeats]}", list(data.repeated), repeats != REFUSE)
    data.items = kept


def _repeated(data: Dataset, item: Item, same_id: Item | None, same_messages: Item | None) -> Item | None:
    """The item that this one repeats; refuses unfit ids, ids of two problems, and what the task refuses."""
    where, repeats, by_id = data.where(item.number - 1), data.options.repeats, "set task.columns.id=<column>"
    if refusal := _id_refusal(item.id):
        raise ValueError(f"{where} has the id {item.id[:40]!r}, {refusal}; {by_id}")
    if same_id and same_id.messages != item.messages:
        repeated = f"repeats the id {item.id!r} of row {same_id.number} with another problem"
        raise ValueError(f"{where} {repeated}, expected each id once; {by_id}")
    before = same_id or same_messages
    refused = same_id if repeats == REFUSE else None
    if before and set(before.golds).isdisjoint(item.golds) and (repeats == FIRST or refused):
        repeated = f"repeats the problem of row {before.number} with the answer {item.golds[0][:40]!r}, which there is"
        raise ValueError(f"{where} {repeated} {before.golds[0][:40]!r}; mend the row or set task.repeats={KEEP}")
    if refused:
        repeated = f"repeats the id {item.id!r} of row {refused.number}, expected each problem once"
        raise ValueError(f"{where} {repeated}; set task.repeats={FIRST} or {KEEP}, or task.columns.id=<column>")
    return before


def _id_refusal(identity: str) -> str | None:
    if not identity or len(identity) > LONGEST_ID:
        return f"expected 1 to {LONGEST_ID} characters"
    if not identity.isprintable() or ".." in identity.split("/") or identity.startswith("/"):
        return "expected printable text that is no path out of here"
    return None
