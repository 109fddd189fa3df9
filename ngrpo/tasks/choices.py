"""The choices of a question, how they are asked, and which of them an answer names.

An answer names a choice by its letter or label, by its index or by its text. Which of these a data set means is what fits
all of its rows; where two fit and mean other choices, it is for the user to say.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase as LETTERS
from typing import Any

from ngrpo.tasks.cells import has_no_value, is_empty, parsed

LISTS = ("choices", "options", "endings", "answer_choices", "question.choices", "mc1_targets.choices")
MEMBER = re.compile(r"((?:option|choice|ending|op|sol|answer|alternative)?_?)([a-j]|\d)")
MARKED = re.compile(r"\s*\(?([A-Ja-j])\s?[).:]\s*(.+)", re.DOTALL)
INLINE = re.compile(r"\b([A-Ja-j])\s?[).:]\s*(.+?)(?=\s*[,;\n]\s*[A-Ja-j]\s?[).:]|\s*$)", re.DOTALL)  # a ) 3 , b ) 4
LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
FORMS = ("label", "letter", "index", "index_from_1", "text")


@dataclass(frozen=True)
class Choices:
    """Texts in the order of the data set, with the labels that it gives them; `verbatim`: a list written as one text."""

    texts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    verbatim: str = ""

    def listed(self) -> str:
        """One line a choice, with letters in the data set's order."""
        lines = [f"{letter}) {text}" for letter, text in zip(LETTERS, self.texts, strict=False)]
        return self.verbatim or "\n".join(lines)

    def listed_in(self, question: str) -> bool:
        """Whether the question lists them already, each after its letter."""
        marked = (rf"\b{letter}\s*[).:]\W*{re.escape(text)}" for letter, text in zip(LETTERS, self.texts, strict=False))
        return bool(self.texts) and all(re.search(pattern, question) for pattern in marked)


def columns_of(names: Iterable[str]) -> tuple[str, ...]:
    """The columns that hold choices: one with a list, or one for each choice in order; none where there are none."""
    names = list(names)
    if found := next((name for name in LISTS if name in names), None):
        return (found,)
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        if match := MEMBER.fullmatch(name):
            groups.setdefault(match[1], {})[match[2]] = name
    for prefix, group in groups.items():
        for first in ("a", "0", "1") if prefix else ("a",):
            run = [chr(ord(first) + at) for at in range(len(group))]
            if len(group) > (1 if prefix else 2) and all(key in group for key in run):
                return tuple(group[key] for key in run)
    return ()


def read(where: str, columns: Sequence[str], cells: Mapping[str, Any]) -> Choices | None:
    """The choices of a row; None where it has none. Raises ValueError, in one line, for what is no list of texts."""
    if not columns:
        return None
    cell = parsed(cells.get(columns[0]))
    if len(columns) > 1:
        texts = [cells.get(column) for column in columns]
        while texts and _text(texts[-1]) is None:  # fewer choices than other rows have
            texts.pop()
        labels = [match[2] for match in map(MEMBER.fullmatch, columns[: len(texts)]) if match]
    elif cell is None or cell in ([], "", {}):
        return None
    elif isinstance(cell, str):
        parts = INLINE.findall(cell)
        in_order = len(parts) > 1 and _in_order(mark for mark, _ in parts)
        return Choices(tuple(text for _, text in parts)) if in_order else Choices(verbatim=cell.strip())
    elif isinstance(cell, Mapping):
        texts, labels = (cell["text"], cell.get("label") or ()) if "text" in cell else (cell.values(), cell)
    elif isinstance(cell, list) and all(isinstance(part, Mapping) for part in cell):
        texts, labels = [part.get("text") for part in cell], [part.get("label") for part in cell]
    else:
        texts, labels = cell if isinstance(cell, list) else [None], ()
    return _choices(where, columns[0], [_text(text) for text in texts], labels)


def _in_order(marks: Iterable[str]) -> bool:
    return all(mark.upper() == letter for mark, letter in zip(marks, LETTERS, strict=False))


def _text(cell: Any) -> str | None:
    fits = isinstance(cell, (str, int, float)) and not isinstance(cell, bool) and not is_empty(cell)
    return str(cell).strip() if fits else None


def _choices(where: str, column: str, texts: Sequence[str | None], labels: Iterable[Any]) -> Choices | None:
    if not texts:
        return None
    if any(text is None for text in texts) or not 1 < len(texts) <= len(LETTERS):
        expected = f"expected a list of 2 to {len(LETTERS)} texts"
        raise ValueError(f"{where}: the choices (column {column}) are no such list, {expected}; mend the row")
    known = tuple(str(text) for text in texts)
    marks = [MARKED.fullmatch(text) for text in known]
    if all(marks) and _in_order(mark[1] for mark in marks if mark):
        known = tuple(mark[2].strip() for mark in marks if mark)
    named = tuple(str(label) for label in labels if label is not None)
    return Choices(known, named if len(named) == len(known) else ())


def index_named(form: str, choices: Choices, cell: Any) -> int | None:
    """Which choice an answer names if answers have this form; None where it names none."""
    text = str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()
    if form == "label":
        return _only(choices.labels, text)
    if form == "letter":
        match = LETTER.fullmatch(text)
        at = LETTERS.index(match[1].upper()) if match else len(LETTERS)
    elif form == "text":
        return _only([_same(each) for each in choices.texts], _same(text))
    else:
        at = int(text) - (form == "index_from_1") if text.isascii() and text.isdigit() else len(LETTERS)
    return at if 0 <= at < len(choices.texts) else None


def _only(texts: Sequence[str], text: str) -> int | None:
    return texts.index(text) if text in texts else None


def _same(text: str) -> str:
    return " ".join(text.split()).casefold()


def form_of(source: str, column: str, rows: Sequence[tuple[int, Choices, Any]]) -> str:
    """The form that the answers in a column have, where every row fits it; rows: number, choices and the answer's cell.

    Of an index, counting from 0 goes before counting from 1. Raises ValueError, in one line, where no form fits or two
    mean other choices.
    """
    picked = {form: [index_named(form, choices, cell) for _, choices, cell in rows] for form in FORMS}
    fits = [form for form in FORMS if all(pick is not None for pick in picked[form])]
    if "index" in fits and "index_from_1" in fits:
        fits.remove("index_from_1")
    fix = f"set task.answer_form={'|'.join(FORMS)}"
    if not fits:
        best = max(FORMS, key=lambda form: sum(pick is not None for pick in picked[form]))
        number, choices, cell = next(row for row, pick in zip(rows, picked[best], strict=True) if pick is None)
        named = f"the answer (column {column}) is {str(cell)[:80]!r}, expected one of the {len(choices.texts)} choices"
        raise ValueError(f"{source}: row {number}: {named}; mend the row or {fix}")
    for other in fits[1:] if fits[0] != "label" else ():  # labels are what answers are given for
        pairs = zip(rows, picked[fits[0]], picked[other], strict=True)
        if differs := next((row for row, one, two in pairs if one != two), None):
            number, choices, cell = differs
            found = {form: index_named(form, choices, cell) or 0 for form in (fits[0], other)}
            read = " or ".join(f"{choices.texts[at]!r} ({form})" for form, at in found.items())
            raise ValueError(f"{source}: row {number}: the answer {str(cell)[:80]!r} means {read}; {fix}")
    return fits[0]


def golds_of(choices: Choices, at: int, with_letters: bool) -> tuple[str, ...]:
    """What names the choice: its letter where the letters are asked, and its text where that is no other's letter."""
    letter, text = LETTERS[at], choices.texts[at]
    if not with_letters:
        return (text,)
    return (letter,) if text.upper() in LETTERS[: len(choices.texts)] or has_no_value(text) else (letter, text)
