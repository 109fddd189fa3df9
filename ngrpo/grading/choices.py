r"""Golds with several forms, and options of a multiple-choice question: which texts a text may stand for.

`["1/2", "0.5"]` is a list of alternatives, `\textbf{(C) }3` the letter C and the value 3.
"""

import ast
import json
import re
from functools import lru_cache

LETTER = re.compile(
    r"^\$?(?:\\(?:text|textbf|mathrm|mathbf|textrm|bf) ?\{ ?\(?([A-J])\) ?\}|"
    r"\\(?:text|textbf|mathrm|mathbf|textrm) ?\{ ?\(?([A-J])\)?[ .:]*\}|\(([A-J])\)(?=$| )|([A-J])(?:[.:]|\))(?=$| )|([A-J])$)"
    r"[\s~.:]*(?:\\(?:quad|qquad|,|;| ))*\s*(.*)$",
    re.DOTALL,
)
OPERATORS = tuple("+*/^_=<>,!)")
NAMED = re.compile(r"(?:\\text ?\{ ?)?(?:[Oo]ption|[Cc]hoice) \(?([A-J])\)?\.? ?\}?")
TWO_FORMS = re.compile(r"^([^:{}]*(?:<|>|\\l|\\g)[^:{}]*):\s*([\[(].*[\])])\s*\$?$")


@lru_cache(maxsize=2048)
def alternatives(gold: str) -> tuple[str, ...]:
    """The texts that a gold lists, or the gold alone."""
    if gold.startswith("[") and gold.endswith("]") and ('"' in gold or "'" in gold):
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(gold)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(found, list) and found and all(isinstance(text, str) and text.strip() for text in found):
                return tuple(found)
    if found := TWO_FORMS.match(gold):
        return (found[1].strip().lstrip("$"), found[2])
    return (gold,)


@lru_cache(maxsize=2048)
def option(text: str) -> tuple[str, str] | None:
    """(letter, the rest) of an option, the rest empty where the letter stands alone; None for what is no option."""
    if named := NAMED.fullmatch(text):
        return named[1], ""
    if len(text) > 400 or not (found := LETTER.match(text)):
        return None
    *letters, rest = found.groups()
    letter = next(letter for letter in letters if letter)
    if rest.startswith(OPERATORS) or (rest.startswith("-") and ")" not in text[: found.start(len(letters) + 1)]):
        return None  # `\text{A} + 1` is a formula
    return letter, rest.strip().strip("$").strip()
