r"""What one cell of a row holds: a text, chat messages, or gold answers.

A gold that is a list of texts, also one written as JSON in a string, is a list of alternatives. Words that say that there
is no answer (`nan`, `N/A`, `proof`) are no gold. A float is written as a decimal; one that is a fraction or a short
decimal up to the rounding of floats has that as an alternative.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

from ngrpo.grading.answers import extract_boxed
from ngrpo.tasks.base import Messages

SOLUTION = ("solution", "extra_info.solution", "reward_model.solution", "reward_model.ground_truth.solution")
NO_VALUE = frozenset(
    (
        *(
            "",
            "nan",
            "none",
            "null",
            "nil",
            "n/a",
            "n.a.",
            "#n/a",
            "<na>",
            "not available",
            "not applicable",
            "notfound",
        ),
        *("not found", "not_found", "no answer", "no_answer", "unanswerable", "unanswered", "missing", "tbd", "todo"),
        *("proof", "see proof", "see solution", "?", "??", "???", "--", "---", "...", "…", "[]", "{}"),
    )
)
PROOF = frozenset(("proof", "see proof"))  # said of the problem, where the others are said of the column
WORDS_OF = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textrm)\{([^{}]*)\}")
LABELED = re.compile(
    r"\\(?:text|textbf|mathrm|mathbf|textrm)\{\s*\(([A-Ja-j])\)[.:]?\s*([^{}]*)\}(?:\s|[~:]|\\[ ,;:]|\\q?quad)*(.*)",
    re.DOTALL,
)
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "developer": "system"}
LARGEST_DENOMINATOR = 1000
DIGITS = 15  # that a float keeps of every decimal


def plain(name: str) -> str:
    """A column's name as names are compared."""
    return name.strip().lower().replace(" ", "_")


def flat(row: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every column and its cell; a nested one is called `outer.inner`."""
    for name, cell in row.items():
        key = f"{path}{plain(str(name))}"
        yield key, cell
        if isinstance(cell, Mapping):
            yield from flat(cell, f"{key}.")


def text_of(where: str, role: str, column: str, cells: Mapping[str, Any]) -> str:
    """A cell as text, a whole number without its `.0`. Raises ValueError, in one line, where it is none."""
    cell = cells.get(column)
    if isinstance(cell, list) and len(cell) == 1:
        cell = cell[0]
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        state = "is empty" if column in cells else "is missing"
        raise ValueError(f"{where}: the {role} (column {column}) {state}, expected a text; mend or drop the row")
    if isinstance(cell, bool) or not isinstance(cell, (str, int, float)):
        inner = ", ".join(key for key in cells if key.startswith(f"{column}."))[:200]
        kind = f"{type(cell).__name__}{f' of {inner}' if inner else ''}"
        fix = f"task.columns.{role}=<column>"
        raise ValueError(f"{where}: the {role} (column {column}) is a {kind}, expected a text; {fix}")
    return written(cell)[0] if isinstance(cell, float) else str(cell).strip()


def written(number: float) -> tuple[str, ...]:
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
    cell = _parsed(cell) if isinstance(cell, str) and cell.lstrip().startswith("[{") else cell
    if not (isinstance(cell, list) and cell and all(isinstance(part, Mapping) for part in cell)):
        return None
    found = []
    for number, part in enumerate(cell, start=1):
        role = part.get("role", part.get("from"))
        content = _content(part.get("content", part.get("value")))
        role = ROLES.get(str(role), role)
        if role not in ("system", "user", "assistant") or content is None or not content.strip():
            got = f"role {role!r} and {'no text' if content is None or not content.strip() else 'a text'}"
            expected = "expected system, user or assistant and a text"
            raise ValueError(f"{where}: message {number} of column {column} has {got}, {expected}; mend the row")
        found.append((str(role), content.strip()))
    if found[-1][0] != "user":
        last = f"the last message of column {column} is the {found[-1][0]}'s, expected the user's"
        raise ValueError(f"{where}: {last}; cut the answer off or set task.columns.problem=<column>")
    return tuple(found)


def _content(content: Any) -> str | None:
    if isinstance(content, list) and all(isinstance(part, Mapping) and "text" in part for part in content):
        return "\n".join(str(part["text"]) for part in content)
    return content if isinstance(content, str) else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def has_no_value(text: str) -> bool:
    """Whether a gold says that there is none."""
    return WORDS_OF.sub(r"\1", text).strip().strip("$").strip().rstrip(".").lower() in NO_VALUE or text in NO_VALUE


def golds_of(where: str, column: str, cells: Mapping[str, Any]) -> tuple[str, ...]:
    r"""The gold answers in a cell, any of which is right; empty where there is none.

    Of each only the last box or what follows `####` counts, where it has one; of a solution nothing else does. A value
    with the letter of a choice, as `\textbf{(C) }3`, is right as a value, as the letter and as it stands. Raises
    ValueError, in one line, for a cell that is neither text nor number nor a list of these.
    """
    cell = cells.get(column)
    listed = _parsed(cell) if isinstance(cell, str) and cell.lstrip().startswith("[") else cell
    if not isinstance(listed, list) or (listed is not cell and not all(isinstance(part, str) for part in listed)):
        listed = [cell]
    found: list[str] = []
    for part in listed:
        if part is None:
            continue
        if isinstance(part, float):
            found += written(part)
            continue
        text = "" if isinstance(part, str) and not part.strip() else text_of(where, "answer", column, {column: part})
        found += labeled(_final(column, text))
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
