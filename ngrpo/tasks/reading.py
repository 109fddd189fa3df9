"""The rows of a data set as problems with their gold answers, and a note for everything that is not plain about them.

A row without one gold answer (none, a word that says so, or two that disagree) is refused or left out, and so is a problem
that stands there twice.
"""

from collections import Counter
from dataclasses import replace

from ngrpo.tasks import asking, choices, golds
from ngrpo.tasks.cells import flat
from ngrpo.tasks.columns import choose
from ngrpo.tasks.items import FIRST, KEEP, REFUSE, Item, Reading, Table, Ways, listed
from ngrpo.tasks.rows import Rows

LONGEST_ID = 200


def read_items(name: str, source: Rows, ways: Ways) -> Reading:
    """Every row as an item; without an id column the id is `<name>/<row>`, counted from 0.

    Raises ValueError, in one line and with the row's number, for a missing or empty cell, a column that may be needed, an id
    that is taken or unfit, and for what `ways` refuses.
    """
    flattened, reading = [dict(flat(row)) for row in source.rows], Reading()
    chosen = choose(source.source, flattened, ways.columns)
    table = Table(source.source, flattened, chosen if ways.guarded else replace(chosen, options=()), ways)
    questions = [asking.asked(table, index) for index in range(len(flattened))]
    asking.guard(table, questions, reading)
    offered = [choices.read(table.where(at), table.chosen.options, cells) for at, cells in enumerate(flattened)]
    table = replace(table, options=offered)
    found = golds.golds(table, reading)
    for index, (question, mine) in enumerate(zip(questions, found, strict=True)):
        if mine:
            reading.items.append(_item(name, table, index, question, mine))
    asking.tell(table, questions, reading)
    golds.tell(table, found, reading)
    _without_repeats(table, reading)
    return reading


def _item(name: str, table: Table, index: int, question: asking.Asked, mine: golds.Golds) -> Item:
    cells, column = table.rows[index], table.chosen.id
    identity = str(cells.get(column, "")) if column else f"{name}/{index}"
    last, messages = asking.whole(table, index, question)
    text = last if messages is None else asking.transcript(messages)
    return Item(index + 1, identity, text, mine, cells, last, messages)


def _without_repeats(table: Table, reading: Reading) -> None:
    """Applies the way with repeats; a problem repeats one before with its id or, of whatever id, with its text."""
    ids: dict[str, Item] = {}
    texts: dict[str, Item] = {}
    times: Counter[str] = Counter()
    kept: list[Item] = []
    for item in reading.items:
        before = _before(table, item, ids.get(item.id), texts.get(item.problem))
        times[item.id] += 1
        if before is not None:
            reading.repeated[item.number] = before.number
        if before is None or table.ways.repeats != FIRST:
            kept.append(item if times[item.id] == 1 else replace(item, id=f"{item.id}#{times[item.id]}"))
        ids.setdefault(item.id, item)
        texts.setdefault(item.problem, item)
    taken = Counter(item.id for item in kept)
    if clash := next((identity for identity, count in taken.items() if count > 1), None):
        raise ValueError(f"{table.source}: {clash!r} is the id of two rows; set task.columns.id=<column>")
    if reading.repeated:
        fate = {FIRST: "are left out", KEEP: "are kept, each with an id of its own"}
        told = fate.get(table.ways.repeats, "under other ids are kept")
        rows = list(reading.repeated)
        reading.note(f"rows that repeat a problem {told}: {len(rows)} ({listed(rows)})", table.ways.repeats != REFUSE)
    reading.items = kept


def _before(table: Table, item: Item, same: Item | None, alike: Item | None) -> Item | None:
    """The item that this one repeats; refuses unfit ids, ids of two problems, and what the task refuses."""
    where, by_id = table.where(item.number - 1), "set task.columns.id=<column>"
    if refusal := _id_refusal(item.id):
        raise ValueError(f"{where} has the id {item.id[:40]!r}, {refusal}; {by_id}")
    if same is not None and same.problem != item.problem:
        repeated = f"repeats the id {item.id!r} of row {same.number} with another problem"
        raise ValueError(f"{where} {repeated}, expected each id once; {by_id}")
    before = same or alike
    differs = before is not None and set(before.golds).isdisjoint(item.golds)
    if before is not None and differs and (table.ways.repeats == FIRST or (same and table.ways.repeats == REFUSE)):
        repeated = f"repeats the problem of row {before.number} with the answer {item.gold[:40]!r}, which there is"
        raise ValueError(f"{where} {repeated} {before.gold[:40]!r}; mend the row or set task.repeats={KEEP}")
    if same is not None and table.ways.repeats == REFUSE:
        repeated = f"repeats the id {item.id!r} of row {same.number}, expected each problem once"
        raise ValueError(f"{where} {repeated}; set task.repeats={FIRST} or {KEEP}, or task.columns.id=<column>")
    return before


def _id_refusal(identity: str) -> str | None:
    if not identity or len(identity) > LONGEST_ID:
        return f"expected 1 to {LONGEST_ID} characters"
    if not identity.isprintable() or ".." in identity.split("/") or identity.startswith("/"):
        return "expected printable text that is no path out of here"
    return None
