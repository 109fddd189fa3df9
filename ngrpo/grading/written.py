r"""Answers as they are written: one spelling for many, and exact numbers. No formula is computed here.

Every rule is one pass over the text, so hostile texts cost what their length costs. It does not know which answer is gold.
"""

import re
import unicodedata
from fractions import Fraction

LONGEST = 2000  # characters of an answer; longer ones are not answers
DEEPEST = 128  # nested braces
DIGITS = 1000  # of one number
SPACES = re.compile(r"(?<!\\)\\[,;:! ]|\\q?quad\b|~|\s+")  # a double backslash ends the row of a matrix
DELIMITERS = re.compile(r"(?<!\\)\\[$()\[\]]|\$")
INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad]")
SIZES = re.compile(r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle|textstyle)(?![a-zA-Z])")
FRACTIONS = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
BARE_FRACTION = re.compile(r"\\frac\s*(\\pi|\w)\s*(\\pi|\w|(?=\{))")
TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textit|mbox|operatorname|rm|bf)\{([^{}]*)\}")
UNIT = re.compile(
    r"(?<=[\d}])\s*(?:(?:square|sq|cubic|cu)\.? )?"
    r"(?:[mck]m|ft|feet|foot|inch(?:es)?|yards?|miles?|(?:centi|kilo|milli)?met(?:er|re)s?|kg|lbs?|pounds?|ounces?|grams?|"
    r"lit(?:er|re)s?|hours?|minutes?|seconds?|min|sec|days?|weeks?|months?|years?|degrees?|dollars?|cents?|mph|units?)"
    r"(?:\^\{?[23]\}?)?$"
)
SUBSCRIPT = re.compile(r"_\{(\w+)\}")
DEGREES = re.compile(r"\^(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})|\\degree(?![a-zA-Z])|°")
FACTORS = re.compile(r"(?<![\w.^}])(\d+(?:\.\d+)?) ?(?=\()")
SIGNS = str.maketrans(
    {"\u2212": "-", "\u2013": "-", "\u2014": "-", "\u00d7": "*", "\u00b7": "*", "\u2044": "/", "\uff1d": "="}
)
DOUBLE = re.compile(r"\^(?:\\[a-zA-Z]+|[^{}\\\s])\s*\^")  # a^b^c
LETTER = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]")  # of a name, not of a command
NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d*)(?:\.\d*)?")
REPEATING = re.compile(r"([+-]?\d*)\.(\d*)\\overline\{(\d+)\}")
RATIO = re.compile(r"([+-]?)(\d*)\\frac\{([+-]?[\d.,]+)\}\{([+-]?[\d.,]+)\}")
SLASH = re.compile(r"([+-]?[\d.,]+)/([+-]?[\d.,]+)")
NAMED = re.compile(r"[a-zA-Z](?:_\{?\w\}?)?(?:\([a-z]\))?=(?!.*[=<>])")
WORD = re.compile(r"[^\W\d_]+(?:[-' ][^\W\d_]+)*")
RELATION = re.compile(
    r"[=<>]|\\(?:neq?|leq?|geq?|lt|gt|approx|sim|equiv|pm|mp|not|notin|in)(?![a-zA-Z])|\b(?:or|and|not)\b"
)


def deep(text: str) -> bool:
    """Whether braces, brackets or parentheses are nested too deep to be an answer."""
    depth = 0
    for sign in text:
        depth += (sign in "{([") - (sign in "})]")
        if depth > DEEPEST:
            return True
    return False


def balanced(text: str) -> bool:
    """Whether every brace that opens closes, in order."""
    depth = 0
    for sign in text:
        depth += (sign == "{") - (sign == "}")
        if depth < 0:
            return False
    return depth == 0


def spelt(text: str) -> str:
    """One spelling for what is written alike: Unicode, spacing, sizes of brackets, fractions, degrees, dollars, full stop."""
    text = INVISIBLE.sub("", unicodedata.normalize("NFKC", text).translate(SIGNS))
    text = DELIMITERS.sub("", text)
    text = SUBSCRIPT.sub(r"_\1", FRACTIONS.sub(r"\\frac", SIZES.sub("", text))).replace("{,}", ",")
    text = BARE_FRACTION.sub(_braced, text)
    text = SPACES.sub(" ", DEGREES.sub("", text)).strip().rstrip(".").strip()
    while wrapped(text):
        text = text[1:-1].strip()
    return text


def wrapped(text: str) -> bool:
    """Whether one pair of braces stands around all of a text."""
    if not (text.startswith("{") and text.endswith("}")) or text.endswith("\\}"):
        return False
    depth = 0
    for place, sign in enumerate(text):
        depth += (sign == "{") - (sign == "}")
        if depth == 0:
            return place == len(text) - 1
    return False


def tower(text: str) -> bool:
    """Whether a power of numbers stands in an exponent: its value may have more digits than there is memory."""
    opened: list[tuple[int, bool]] = []  # of each open brace its place, and whether it holds an exponent
    for place, sign in enumerate(text):
        if sign == "{":
            opened.append((place, text.startswith("^", place - 1)))
        elif sign == "}" and opened:
            start, raised = opened.pop()
            inner = text[start:place]
            if raised and (text.startswith("^", place + 1) or ("^" in inner and not LETTER.search(inner))):
                return True
    return bool(DOUBLE.search(text))


def _braced(fraction: re.Match) -> str:
    above, below = fraction.groups()
    return f"\\frac{{{above}}}" + (f"{{{below}}}" if below else "")


def without_unit(text: str) -> str:
    """`text`, as `spelt` left it, without the name of one unit after a value, and without \\text around all of it."""
    units = list(TEXT.finditer(text))
    if len(units) == 1 and units[0].span() == (0, len(text)):
        return units[0][1].strip()
    if len(units) == 1 and units[0].end() >= len(text.rstrip("^23 {}")) and text[: units[0].start()].strip():
        return text[: units[0].start()].strip()
    return UNIT.sub("", text)


def formula(text: str) -> str:
    """What of `text` is compared as a formula; 2(3) gets its sign of multiplication, as a parser takes it for 2 + 3."""
    return FACTORS.sub(r"\1\\cdot ", without_unit(spelt(text)))


def bare(text: str) -> str:
    """`text`, as `spelt` left it, without spaces, without `x =` before a value and without a unit after it."""
    text = without_unit(text)
    text = text.replace(" ", "")
    named = NAMED.match(text)
    text = text[named.end() :] if named else text
    while wrapped(text):
        text = text[1:-1]
    return text


def number(text: str) -> Fraction | None:
    """The exact value of an integer, decimal, repeating decimal, fraction or mixed number as `bare` writes it; else None."""
    if len(text) > DIGITS or not text:
        return None
    if NUMBER.fullmatch(text) and any(sign.isdigit() for sign in text):
        return Fraction(text.replace(",", "").rstrip(".") or "0") if text.isascii() else None
    try:
        if found := REPEATING.fullmatch(text):
            whole, fixed, again = found.groups()
            tail = Fraction(int(fixed + again) - int(fixed or 0), (10 ** len(again) - 1) * 10 ** len(fixed))
            return int(whole or 0) + (-tail if whole.startswith("-") else tail)
        if found := RATIO.fullmatch(text):
            sign, whole, above, below = found.groups()
            value = int(whole or 0) + Fraction(above.replace(",", "")) / Fraction(below.replace(",", ""))
            return -value if sign == "-" else value
        if found := SLASH.fullmatch(text):
            return Fraction(found[1].replace(",", "")) / Fraction(found[2].replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None
    return None


def percent(text: str) -> str | None:
    """The text before a percent sign; None where there is none."""
    for sign in ("\\%", "%"):
        if text.endswith(sign):
            return text[: -len(sign)]
    return None


def word(text: str) -> str | None:
    """Plain lowercase words, without \\text around them; None for anything else."""
    text = TEXT.sub(r"\1", text).strip()
    return " ".join(text.lower().split()) if WORD.fullmatch(text) and len(text.replace(" ", "")) > 1 else None
