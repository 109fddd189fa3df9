r"""Other ways to write a gold answer that a model may well choose, so that an audit can ask a grader whether it takes them.

A number with a unit is tried alone, a fraction as a decimal and the other way round, a very small or large number as
$a \times 10^b$, a value with the letter of a choice as the value. Only what means the same is tried.
"""

import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction

from ngrpo.tasks.cells import labeled

NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+"
# A unit is words in brackets, in \text or as they are, or degrees; an exponent after it belongs to it.
NAME = r"\\(?:text|mathrm|textrm|mbox)\{[^{}]*[A-Za-z]{2}[^{}]*\}|\([A-Za-z][A-Za-z .]+\)|[A-Za-z]{3,}[A-Za-z .]*"
UNIT = rf"(?:\\?\s|~)*(?:{NAME})"
MEASURED = re.compile(rf"(?:[A-Za-z]\s*=\s*)?(?:\\?\$)?\s*({NUMBER})(?:{UNIT}(?:\^\{{?\d\}}?)?|\^\{{?\\circ\}}?)?\.?")
RATIO = re.compile(r"([-+]?)(?:\\[dt]?frac\{(\d+)\}\{(\d+)\}|(\d+)/(\d+))")
POWER = re.compile(rf"({NUMBER})\s*(?:\\times|\\cdot|\*|\u00d7)\s*10\^\{{?([-+]?\d+)\}}?|({NUMBER})[eE]([-+]?\d+)")
SHORT = 6  # digits that a person would write before a power of ten
SMALL, LARGE = Decimal("0.001"), Decimal(10**9)
LARGEST_EXPONENT = 40
DIGITS = 28  # more are rounded by decimal arithmetic
LARGEST_DENOMINATOR = 10_000


def respellings(gold: str) -> list[str]:
    """Other texts for the same answer, none of them the gold itself."""
    text = gold.strip().strip("$").strip()
    return [other for other in dict.fromkeys(_spellings(text)) if other not in (gold, text)]


def _spellings(text: str) -> Iterator[str]:
    yield from labeled(text)
    value = _value(text)
    if value is not None:
        yield from _decimal(value)
        return
    ratio = RATIO.fullmatch(text)
    if ratio:
        top, bottom = int(ratio[2] or ratio[4]), int(ratio[3] or ratio[5])
        yield from (f"{ratio[1]}{top}/{bottom}", f"{ratio[1]}\\frac{{{top}}}{{{bottom}}}")
        if bottom and (decimal := _terminating(Fraction(top, bottom))):
            yield ("-" if ratio[1] == "-" else "") + decimal


def _value(text: str) -> Decimal | None:
    """The number that a text is, alone or with a unit; None for anything else."""
    if power := POWER.fullmatch(text):
        digits, exponent = power[1] or power[3], int(power[2] or power[4])
    elif measured := MEASURED.fullmatch(text):
        digits, exponent = measured[1], 0
    else:
        return None
    value = Decimal(digits.replace(",", ""))
    fits = abs(exponent) <= LARGEST_EXPONENT and len(value.as_tuple().digits) <= DIGITS
    return value.scaleb(exponent) if fits else None


def _decimal(value: Decimal) -> Iterator[str]:
    short = value.normalize()
    plain = f"{short:f}"
    yield plain
    digits, exponent = short.as_tuple().digits, short.adjusted()
    if short and len(digits) <= SHORT and (abs(short) < SMALL or abs(short) >= LARGE):
        mantissa = f"{short.scaleb(-exponent):f}"
        yield f"{mantissa} \\times 10^{{{exponent}}}"
    exact = Fraction(short) if abs(exponent) <= LARGEST_EXPONENT else Fraction(0)
    if 1 < exact.denominator <= LARGEST_DENOMINATOR:
        sign = "-" if exact < 0 else ""
        yield f"{sign}\\frac{{{abs(exact.numerator)}}}{{{exact.denominator}}}"


def _terminating(value: Fraction) -> str | None:
    """As a decimal of at most SHORT places; None where it has more."""
    scaled = value * 10**SHORT
    if scaled.denominator != 1:
        return None
    return f"{Decimal(int(scaled)).scaleb(-SHORT).normalize():f}"
