"""What is asked in a row: columns joined by the template, the choices after them, or a conversation as it is."""

from collections.abc import Sequence
from typing import Any

from ngrpo.tasks.base import Messages
from ngrpo.tasks.cells import messages_of, plain, text_of
from ngrpo.tasks.columns import CHOICES, FIELD, MayBeNeeded, candidates, unused
from ngrpo.tasks.items import Reading, Table, listed

Asked = str | Messages


def asked(table: Table, index: int) -> Asked:
    """The question of a row, still without its choices. Raises ValueError, in one line, for empty or unfit cells."""
    chosen, where, cells = table.chosen, table.where(index), table.rows[index]
    if chosen.template is None:
        found = messages_of(where, chosen.problem, cells.get(chosen.problem))
        alone = found and len(found) == 1
        return found[0][1] if found and alone else found or text_of(where, "problem", chosen.problem, cells)
    if not any(_is_given(cells.get(part)) for part in chosen.parts):
        raise ValueError(f"{where}: the problem (columns {', '.join(chosen.parts)}) is empty; mend or drop the row")
    if not chosen.named:  # by the rule, a story may be empty and its question may not
        text_of(where, "problem", chosen.problem, cells)
    return FIELD.sub(lambda match: _part(table, where, plain(match[1]), cells), str(chosen.template)).strip()


def _part(table: Table, where: str, part: str, cells: Any) -> str:
    if part == CHOICES and table.chosen.options:
        return f"{{{CHOICES}}}"
    found = messages_of(where, part, cells.get(part))
    if found and len(found) > 1:
        joins = "is a conversation and cannot be joined with other columns"
        raise ValueError(f"{where}: column {part} {joins}; set task.columns.problem={part}")
    if not _is_given(cells.get(part)):
        return ""
    return found[0][1] if found else text_of(where, "problem", part, cells)


def _is_given(cell: Any) -> bool:
    return cell is not None and bool(str(cell).strip())


def whole(table: Table, index: int, question: Asked) -> tuple[str, Messages | None]:
    """The last message with the row's choices, and the conversation that it ends, None where it is the only one."""
    last = _last(question)
    offered = table.options[index]
    if table.chosen.lists_choices:
        last = last.replace(f"{{{CHOICES}}}", offered.listed() if offered else "").strip()
    elif offered and table.shown and not offered.stand_in(last):
        last = f"{last}\n\n{offered.listed()}"
    return last, None if isinstance(question, str) else (*question[:-1], ("user", last))


def _last(question: Asked) -> str:
    return question if isinstance(question, str) else question[-1][1]


def transcript(messages: Messages) -> str:
    """A conversation as one text, for people to read."""
    return "\n\n".join(f"{role}: {content}" for role, content in messages)


def guard(table: Table, questions: Sequence[Asked], reading: Reading) -> None:
    """Finds the columns that are not read. Raises MayBeNeeded unless the user named the columns."""
    chosen = table.chosen
    texts = [text if isinstance(text, str) else transcript(text) for text in questions]
    reading.columns = unused(table.rows, chosen, texts)
    if not table.ways.guarded:
        reading.columns.needed = []
    needed = reading.columns.needed
    if needed and not chosen.named:
        told = f"the question may need {' and '.join(needed)}, which no rule joins to {' and '.join(chosen.parts)}"
        raise MayBeNeeded(f"{table.source}: {told}; {candidates(chosen, needed)}", chosen.problem)


def tell(table: Table, questions: Sequence[Asked], reading: Reading) -> None:
    """Notes on what the questions are made of."""
    chosen = table.chosen
    if chosen.template is not None:
        by = "as the configuration says" if chosen.named else "by rule"
        reading.note(f"the problem is {chosen.template!r}, joined {by}")
        for part in chosen.parts:
            empty = [index + 1 for index, cells in enumerate(table.rows) if not _is_given(cells.get(part))]
            if empty:
                reading.note(f"{part} is empty in {len(empty)} rows ({listed(empty)})", alters=False)
    talks = [at for at, question in enumerate(questions) if not isinstance(question, str)]
    if talks:
        reading.note(f"{len(talks)} problems are conversations, asked with all of their messages")
    _tell_choices(table, questions, reading)
    if reading.columns.names:
        reading.note(f"columns not used: {', '.join(reading.columns.names)[:300]}", alters=False)


def _tell_choices(table: Table, questions: Sequence[Asked], reading: Reading) -> None:
    have = [at for at, offered in enumerate(table.options) if offered]
    if not have:
        return
    names = ", ".join(table.chosen.options)[:100]
    if not table.shown:
        reading.note(f"the choices ({names}) are not asked, as the configuration says")
        return
    changed = sum(_last(questions[at]) != whole(table, at, questions[at])[0] for at in have)
    reading.note(f"the choices ({names}) are listed after the question in {changed} of {len(table.rows)} problems")
