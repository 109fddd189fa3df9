r"""The grammar of numbers: what a text in digits, LaTeX or words is worth, exactly.

Integers with thousands separators, decimals, repeating decimals, fractions, mixed numbers, powers of ten, e-notation,
number words and scale words. White space between two numbers separates them: `5 1/3` is 16/3 and `1 2` is no number.
"""

import re
from fractions import Fraction

from ngrpo.grading.answers import parse_integer
from ngrpo.grading.brackets import closing

LONGEST = 1000  # characters of one number
LARGEST = 1000  # the largest power of ten: more digits are not written down by anyone
PLAIN = r"(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?"
DECIMAL = re.compile(PLAIN)
REPEATING = re.compile(r"(\d*)\.(\d*)(?:\\overline ?\{(\d+)\}|\\dot ?\{?(\d)\}?|\((\d+)\))")
FRACTION = re.compile(r"\\frac ?\{([^{}]*)\} ?\{([^{}]*)\}")
MIXED = re.compile(r"(\d+) ?(\\frac.*)|(\d+) (\d+ ?/ ?\d+)")
POWER = re.compile(
    rf"(?:({PLAIN}) ?(?:\\times|\\cdot|\*|x) ?)?10 ?(?:\^|\*\*) ?(?:\{{ ?([+-]? ?\d+) ?\}}|\(([+-]?\d+)\)|([+-]?\d+))"
)
E_NOTATION = re.compile(rf"({PLAIN}) ?[eE]([+-]?\d+)")
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
ORDINALS = ("third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
PARTS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4}
PARTS |= {name + plural: below for below, name in enumerate(ORDINALS, start=3) for plural in ("", "s")}
SCALED = re.compile(r"(.*[\d}]) ?(hundred|thousand|million|billion|trillion)s?", re.IGNORECASE)
FLOAT = re.compile(r"[+-]?\d*(?:\.\d+)?(?:[eE][+-]?\d+)?")
LARGEST_DOUBLE = 1e308
EXACT_DIGITS, ALL_DIGITS = 15, 16  # significant digits that a double always keeps, and from which on it may be rounded


def number(text: str) -> Fraction | None:
    """The exact value of a text whose LaTeX is spelled as `normalize.normalized` does; None for anything else."""
    text = text.strip()
    if not text or len(text) > LONGEST or not text.isascii():
        return None
    if text.isdecimal():
        return Fraction(int(text))
    if text[0] in "+-":
        value = _unsigned(text[1:].strip())
        return value if value is None or text[0] == "+" else -value
    return _unsigned(text)


def _unsigned(text: str) -> Fraction | None:
    text = inner(text)
    if not text or text[0] in "+-":  # -(-3); a sign beside a sign is a slip
        return None
    if text[0].isdigit() or text[0] in ".\\":
        for read in (_decimal, _repeating, _power, _fraction, _mixed, _scaled):
            if (value := read(text)) is not None:
                return value
        return None
    if (words := parse_integer(text)) is not None:
        return Fraction(words)
    part = _word_fraction(text)
    return _words_scaled(text) if part is None else part


def inner(text: str) -> str:
    """`text` without the parentheses or braces around all of it."""
    while len(text) > 1 and text[0] + text[-1] in ("()", "{}") and closing(text, 0, "({", ")}") == len(text) - 1:
        text = text[1:-1].strip()
    return text


def _decimal(text: str) -> Fraction | None:
    if not DECIMAL.fullmatch(text) or text == ".":
        return None
    return Fraction(text.replace(",", "").rstrip(".") or "0")


def _repeating(text: str) -> Fraction | None:
    if not (found := REPEATING.fullmatch(text)):
        return None
    whole, fixed, *again = found.groups()
    repeated = next(part for part in again if part)
    tail = int(fixed + repeated) - int(fixed or 0)
    return int(whole or 0) + Fraction(tail, (10 ** len(repeated) - 1) * 10 ** len(fixed))


def _power(text: str) -> Fraction | None:
    """`a \times 10^b`, `10^b` and `aeb`."""
    if found := POWER.fullmatch(text):
        factor, exponent = found[1], found[2] or found[3] or found[4]
    elif found := E_NOTATION.fullmatch(text):
        factor, exponent = found[1], found[2]
    else:
        return None
    value = Fraction(1) if factor is None else _decimal(factor) if factor else None
    exponent = exponent.replace(" ", "")
    if value is None or len(exponent) > 5 or abs(int(exponent)) > LARGEST:
        return None
    return value * Fraction(10) ** int(exponent)


def _fraction(text: str) -> Fraction | None:
    if found := FRACTION.fullmatch(text):
        return _ratio(found[1], found[2])
    above, slash, below = text.partition("/")
    return _ratio(above, below) if slash and below and below[0] not in "+-" else None


def _ratio(above: str, below: str) -> Fraction | None:
    """Of two plain numbers or powers of ten; no mixed number stands there unmarked."""
    parts = [_signed(part.strip()) for part in (above, below)]
    return parts[0] / parts[1] if parts[0] is not None and parts[1] else None


def _signed(text: str) -> Fraction | None:
    text = inner(text)
    sign, text = (-1, text[1:].strip()) if text.startswith("-") else (1, text.removeprefix("+").strip())
    for read in (_decimal, _power):
        if (value := read(text)) is not None:
            return sign * value
    return None


def _mixed(text: str) -> Fraction | None:
    if not (found := MIXED.fullmatch(text)):
        return None
    whole, part = [group for group in found.groups() if group is not None]
    value = _fraction(part)
    return None if value is None or value < 0 else int(whole) + value


def _scaled(text: str) -> Fraction | None:
    if not (found := SCALED.fullmatch(text)):
        return None
    value = _unsigned(found[1])
    return None if value is None else value * SCALES[found[2].lower()]


def _word_fraction(text: str) -> Fraction | None:
    """`one half`, `two thirds`."""
    first, _, last = text.lower().replace("-", " ").rpartition(" ")
    above, below = parse_integer(first), PARTS.get(last)
    return None if above is None or below is None else Fraction(above, below)


def _words_scaled(text: str) -> Fraction | None:
    """`one billion`: scales that the words of whole numbers do not go up to; `half a million` is not read."""
    first, _, last = text.lower().rpartition(" ")
    value = parse_integer(first) if last in SCALES else None
    return None if value is None else Fraction(value * SCALES[last])


def rounded_double(text: str) -> tuple[Fraction, Fraction] | None:
    """The least and the greatest value that a gold may stand for which is a double printed in full; None for other texts.

    A gold that went through JSON or numpy as a double is `0.30000000000000004` or `601999999999999995805696`, and what it
    stands for is 0.3 and 6.02e23: half a unit of the last place away, or one after a computation.
    """
    digits = sum(character.isdigit() for character in text.lstrip("+-0.").partition("e")[0])
    if not ALL_DIGITS <= digits <= 400 or not FLOAT.fullmatch(text):
        return None
    value, exact = float(text), Fraction(text)
    if abs(value) > LARGEST_DOUBLE:
        return None
    shortest = Fraction(repr(value))
    if "." not in text and "e" not in text.lower():
        kept = len(repr(value).partition("e")[0].strip("-0.").replace(".", ""))
        return (shortest, shortest) if exact == Fraction(value) and kept <= EXACT_DIGITS else None
    step = abs(Fraction(value)) / 2**52
    return (exact - step, exact + step) if shortest == exact else None
