"""What is asked in a row: columns joined by the template, the choices after them, or a conversation as it is."""

from collections.abc import Sequence
from typing import Any

from ngrpo.tasks.base import Messages
from ngrpo.tasks.cells import is_empty, messages_of, plain_name, text_of
from ngrpo.tasks.columns import CHOICES, FIELD, MayBeNeeded, candidates, unused
from ngrpo.tasks.dataset import Dataset, listed


def question_of(data: Dataset, index: int) -> Messages:
    """The messages in which a row is asked, mostly one, still without its choices.

    Raises ValueError, in one line, for empty or unfit cells.
    """
    chosen, where, cells = data.chosen, data.where(index), data.rows[index]
    if chosen.template is None:
        found = messages_of(where, chosen.problem, cells.get(chosen.problem))
        return found or (("user", text_of(where, "problem", chosen.problem, cells)),)
    if all(is_empty(cells.get(part)) for part in chosen.parts):
        raise ValueError(f"{where}: the problem (columns {', '.join(chosen.parts)}) is empty; mend or drop the row")
    if not chosen.named:  # by the rule, a story may be empty and its question may not
        text_of(where, "problem", chosen.problem, cells)
    text = FIELD.sub(lambda match: _part(data, where, plain_name(match[1]), cells), chosen.template).strip()
    return (("user", text),)


def _part(data: Dataset, where: str, part: str, cells: Any) -> str:
    if part == CHOICES and data.chosen.options:
        return f"{{{CHOICES}}}"
    found = messages_of(where, part, cells.get(part))
    if found and len(found) > 1:
        joins = "is a conversation and cannot be joined with other columns"
        raise ValueError(f"{where}: column {part} {joins}; set task.columns.problem={part}")
    if is_empty(cells.get(part)):
        return ""
    return found[0][1] if found else text_of(where, "problem", part, cells)


def with_choices(data: Dataset, index: int, question: Messages) -> Messages:
    """The messages with the row's choices in the last one."""
    text, choices = question[-1][1], data.choices[index]
    if data.chosen.lists_choices:
        text = text.replace(f"{{{CHOICES}}}", choices.listed() if choices else "").strip()
    elif choices and data.asks_choices and not choices.listed_in(text):
        text = f"{text}\n\n{choices.listed()}"
    return (*question[:-1], ("user", text))


def transcript(messages: Messages) -> str:
    """A conversation as one text, for people to read; one message as it is."""
    return messages[0][1] if len(messages) == 1 else "\n\n".join(f"{role}: {content}" for role, content in messages)


def check_columns(data: Dataset, questions: Sequence[Messages]) -> None:
    """Finds the columns that are not read. Raises MayBeNeeded unless the user named the columns."""
    chosen = data.chosen
    data.unused, needed = unused(data.rows, chosen, [transcript(question) for question in questions])
    data.needed = [] if data.options.own_columns else needed
    if data.needed and not chosen.named:
        line = f"the question may need {' and '.join(needed)}, which no rule joins to {' and '.join(chosen.parts)}"
        raise MayBeNeeded(f"{data.source}: {line}; {candidates(chosen, needed)}", chosen.problem)


def note_questions(data: Dataset, questions: Sequence[Messages]) -> None:
    """Notes on what the questions are made of."""
    chosen = data.chosen
    if chosen.template is not None:
        by = "as the configuration says" if chosen.named else "by rule"
        data.note(f"the problem is {chosen.template!r}, joined {by}")
        for part in chosen.parts:
            empty = [index + 1 for index, cells in enumerate(data.rows) if is_empty(cells.get(part))]
            if empty:
                data.note(f"{part} is empty in {len(empty)} rows ({listed(empty)})", alters=False)
    if conversations := sum(len(question) > 1 for question in questions):
        data.note(f"{conversations} problems are conversations, asked with all of their messages")
    _note_choices(data, questions)
    if data.unused:
        data.note(f"columns not used: {', '.join(data.unused)[:300]}", alters=False)


def _note_choices(data: Dataset, questions: Sequence[Messages]) -> None:
    if not any(data.choices):
        return
    names = ", ".join(data.chosen.options)[:100]
    if not data.asks_choices:
        data.note(f"the choices ({names}) are not asked, as the configuration says")
        return
    pairs = enumerate(zip(data.choices, questions, strict=True))
    changed = sum(bool(choices) and question != with_choices(data, at, question) for at, (choices, question) in pairs)
    data.note(f"the choices ({names}) are listed after the question in {changed} of {len(data.rows)} problems")
