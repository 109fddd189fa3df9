r"""What one cell of a row holds: a text, chat messages, or gold answers.

A gold that is a list of texts, also one written as JSON in a string, is a list of alternatives. Words that say that there
is no answer (`nan`, `N/A`, `proof`) are no gold. A float is written as a decimal; one that is a fraction or a short
decimal up to the rounding of floats has that as an alternative.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from typing import Any

from ngrpo.grading.answers import extract_boxed
from ngrpo.tasks.base import Messages

SOLUTION = ("solution", "extra_info.solution", "reward_model.solution", "reward_model.ground_truth.solution")
NO_VALUE = {
    *("", "nan", "none", "null", "nil", "n/a", "n.a.", "#n/a", "<na>", "not available", "not applicable", "notfound"),
    *("not found", "not_found", "no answer", "no_answer", "unanswerable", "unanswered", "missing", "tbd", "todo"),
    *("proof", "see proof", "see solution", "?", "??", "???", "--", "---", "...", "…", "[]", "{}"),
}
PROOF = {"proof", "see proof"}  # said of the problem, where the others are said of the column
FONTS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textrm)\{([^{}]*)\}")
LABELED = re.compile(
    r"\\(?:text|textbf|mathrm|mathbf|textrm)\{\s*\(([A-Ja-j])\)[.:]?\s*([^{}]*)\}(?:\s|[~:]|\\[ ,;:]|\\q?quad)*(.*)",
    re.DOTALL,
)
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "developer": "system"}
LARGEST_DENOMINATOR = 1000
DIGITS = 15  # that a float keeps of every decimal


def plain_name(name: str) -> str:
    """A column's name as names are compared."""
    return name.strip().lower().replace(" ", "_")


def flattened(row: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every column and its cell; a nested one is called `outer.inner`."""
    for name, cell in row.items():
        key = f"{path}{plain_name(str(name))}"
        yield key, cell
        if isinstance(cell, Mapping):
            yield from flattened(cell, f"{key}.")


def text_of(where: str, role: str, column: str, cells: Mapping[str, Any]) -> str:
    """A cell as text, a whole number without its `.0`. Raises ValueError, in one line, where it is none, nan included."""
    cell = alone(cells.get(column))
    if isinstance(cell, float):
        cell = next(iter(decimals(cell)), None)
    if is_empty(cell):
        state = "is empty" if column in cells else "is missing"
        raise ValueError(f"{where}: the {role} (column {column}) {state}, expected a text; mend or drop the row")
    if isinstance(cell, bool) or not isinstance(cell, (str, int)):
        inner = ", ".join(key for key in cells if key.startswith(f"{column}."))[:200]
        kind = f"{type(cell).__name__}{f' of {inner}' if inner else ''}"
        fix = f"task.columns.{role}=<column>"
        raise ValueError(f"{where}: the {role} (column {column}) is a {kind}, expected a text; {fix}")
    return str(cell).strip()


def decimals(number: float) -> tuple[str, ...]:
    """How a float is written, the value that it most likely was before it was one in front; none for nan and infinity."""
    if not math.isfinite(number):
        return ()
    exact = Decimal(repr(number))
    own = _digits(exact)
    if len(exact.as_tuple().digits) <= DIGITS:
        return (own,)
    rounded = Decimal(f"{number:.{DIGITS - 1}e}").normalize()
    if len(rounded.as_tuple().digits) <= DIGITS - 3:
        return (_digits(rounded), own)
    near = Fraction(number).limit_denominator(LARGEST_DENOMINATOR)
    return (own, f"{near.numerator}/{near.denominator}") if float(near) == number else (own,)


def _digits(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def messages_of(where: str, column: str, cell: Any) -> Messages | None:
    """The chat messages in a cell, whole and in order, as (role, content); None where it holds none.

    Raises ValueError, in one line, for messages without a role or a text, and where the last is not the user's.
    """
    cell = parsed(cell)
    if not (isinstance(cell, list) and cell and all(isinstance(part, Mapping) for part in cell)):
        return None
    found = []
    for number, part in enumerate(cell, start=1):
        role = part.get("role", part.get("from"))
        role = ROLES.get(str(role), role)
        content = _content(part.get("content", part.get("value")))
        if role not in ("system", "user", "assistant") or not content:
            got = f"role {role!r} and {'a text' if content else 'no text'}"
            expected = "expected system, user or assistant and a text"
            raise ValueError(f"{where}: message {number} of column {column} has {got}, {expected}; mend the row")
        found.append((role, content))
    if found[-1][0] != "user":
        last = f"the last message of column {column} is the {found[-1][0]}'s, expected the user's"
        raise ValueError(f"{where}: {last}; cut the answer off or set task.columns.problem=<column>")
    return tuple(found)


def _content(content: Any) -> str:
    if isinstance(content, list) and all(isinstance(part, Mapping) and "text" in part for part in content):
        content = "\n".join(str(part["text"]) for part in content)
    return content.strip() if isinstance(content, str) else ""


def parsed(cell: Any) -> Any:
    """What a cell that is a list or an object written as JSON holds; other cells as they are."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        with suppress(ValueError, RecursionError):
            return json.loads(cell)
    return cell


def alone(cell: Any) -> Any:
    """The member of a list of one; other cells as they are."""
    return cell[0] if isinstance(cell, list) and len(cell) == 1 else cell


def is_empty(cell: Any) -> bool:
    """Whether nothing stands in a cell."""
    return cell is None or not str(cell).strip()


def has_no_value(text: str) -> bool:
    """Whether a gold says that there is none."""
    return FONTS.sub(r"\1", text).strip().strip("$").strip().rstrip(".").lower() in NO_VALUE or text in NO_VALUE


def golds_of(where: str, column: str, cells: Mapping[str, Any]) -> tuple[str, ...]:
    r"""The gold answers in a cell, any of which is right; empty where there is none.

    Of each only the last box or what follows `####` counts, where it has one; of a solution nothing else does. A value
    with the letter of a choice, as `\textbf{(C) }3`, is right as a value, as the letter and as it stands. Raises
    ValueError, in one line, for a cell that is neither text nor number nor a list of these.
    """
    cell = cells.get(column)
    golds = parsed(cell)
    if not isinstance(golds, list) or (golds is not cell and not all(isinstance(gold, str) for gold in golds)):
        golds = [cell]
    found: list[str] = []
    for gold in golds:
        if isinstance(gold, float):
            found += decimals(gold)
        elif not is_empty(gold):
            found += labeled(_final(column, text_of(where, "answer", column, {column: gold})))
    return tuple(dict.fromkeys(text for text in found if not has_no_value(text)))


def _final(column: str, text: str) -> str:
    boxed = extract_boxed(text)
    if boxed is not None:
        return boxed
    return "" if column in SOLUTION and "####" not in text else text.rpartition("####")[2].strip()


def labeled(text: str) -> tuple[str, ...]:
    r"""A gold, or of `\textbf{(C) }3` the value, the letter and all of it."""
    match = LABELED.fullmatch(text)
    value = f"{match[2]}{match[3]}".strip() if match else ""
    has_value = any(map(str.isalnum, value))  # `\text{(E)},` is a letter
    return (value, match[1].upper(), text) if match and has_value else (text,)
