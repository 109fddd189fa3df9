r"""One value of an answer: a number or a formula with its unit, its percent sign and the name before it.

What was folded or dropped on the way is kept as notes.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from ngrpo.grading import normalize
from ngrpo.grading.units import LETTERS, Unit, unit
from ngrpo.grading.values import PARTS, SCALES, number

WORD = re.compile(r"[^\W\d_]+(?:(?:[-' ]|, )[^\W\d_]+)*[.!]?")
DATE = re.compile(r"\d{4}-\d\d-\d\d|\d\d?/\d\d?/\d{4}")
COMPONENT = re.compile(r"(\d+(?:\.\d+)?) ?([a-zA-Z]+)")
COMPOUND = re.compile(rf"{COMPONENT.pattern}(?:(?:,| and)? {COMPONENT.pattern}){{1,2}}")
WHOLE_UNIT = re.compile(
    r"^(.*?[\d}!)%a-z])(?: ?\\(?:text|mathrm|textbf|mbox|rm|textit) ?\{([^{}]*)\}|"
    r" ([a-zA-Z\u20ac\u00a3\u00a5/ .]+)|(?<=[\d})])([a-zA-Z]{2,}(?:/[a-z]+)?)|( ?\([a-zA-Z ]+\)))((?: ?\^ ?\{? ?\d ?\}?)?)$"
)
RAISED_UNIT = re.compile(r"^(.*[\d}]) ?((?:[a-zA-Z]+ ?/ ?)?[a-zA-Z]+ ?\^ ?\{? ?[23] ?\}?(?:/[a-zA-Z]+)?)$")
CURRENCY = re.compile(r"([-+]?) ?(\\\$|[\u20ac\u00a3\u00a5\u20b9]|(?:US|USD|EUR) ?(?:\\\$)?(?= ?\d)) ?(.*)")
PERCENT = re.compile(r"^(.*?) ?(?:%|\\text ?\{ ?(?:%|percent|per cent) ?\}|percent|per cent)$")
MARKS = {'"': "inch", "''": "inch", "'": "foot", "\u20ac": "euro", "\u00a3": "gbp", "\u00a5": "yen", "\\$": "$"}
NO_UNIT = {  # words that say more of a value than what it counts
    *("and", "or", "to", "of", "out", "mod", "choose", "more", "less", "plus", "minus", "times", "if", "when", "where"),
    *("for", "not", "than", "from"),
    *(name for name in PARTS if not name.startswith("quarter")),  # a quarter is a coin, too
}
ANNOUNCED = re.compile(r"\\text ?\{[^{}]*(?: is|:|=) ?\} ?")  # `\text{The answer is } 5`


@dataclass(frozen=True)
class Leaf:
    """One value: `text` is its formula; number: its exact value where it has one; words: it is no value but a text."""

    text: str
    number: Fraction | None = None
    percent: bool = False
    unit: Unit | None = None
    name: str = ""  # of the variable before it
    words: bool = False

    kind = ""  # of groups: how their values belong together


def read_whole(text: str, notes: list[str]) -> Leaf | None:
    """What must be read before lists and formulas are looked for: numbers in words, dates, 1 hour 30 minutes."""
    if DATE.fullmatch(text):
        return Leaf(text, words=True)
    plain = normalize.without_fonts(text)
    if plain[:1].isalpha() and (value := number(plain.lower())) is not None:
        notes.append(f"{plain} read as {value}")
        return Leaf(plain, value)
    words = plain.split(" ")
    if plain[:1].isalpha() and WORD.fullmatch(plain) and len(words) <= 12:
        for end in range(len(words) - 1, 0, -1):
            if (value := number(" ".join(words[:end]).lower())) is not None:
                if words[end].lower() in NO_UNIT - {"of"}:
                    break
                return Leaf(plain, value, unit=unit(" ".join(words[end:])))
    return _compound(plain, notes)


def _compound(text: str, notes: list[str]) -> Leaf | None:
    """A quantity in two or three units, each smaller than the one before it."""
    if not COMPOUND.fullmatch(text):
        return None
    parts = [(number(amount), unit(name)) for amount, name in COMPONENT.findall(text)]
    units = [part for _, part in parts if part is not None and part.known]
    sizes = [part.size for part in units]
    if len(units) < len(parts) or len({part.kinds for part in units}) > 1 or sizes != sorted(set(sizes), reverse=True):
        return None
    value = sum((amount or 0) * size for (amount, _), size in zip(parts, sizes, strict=True)) / sizes[0]
    notes.append(f"{text} read as {value} {units[0].name}")
    return Leaf(text, value, unit=units[0])


def leaf(text: str, notes: list[str], measured: bool = False) -> Leaf:
    """One value without its percent sign, and without its unit unless that is `measured`, that is taken off already."""
    if found := ANNOUNCED.match(text):
        notes.append("words before it dropped")
        text = text[found.end() :]
    value = number(text)
    if value is not None:
        if not text.replace(".", "", 1).lstrip("-").isdecimal():
            notes.append(f"{text} read as {value}")
        return Leaf(text, value)
    if found := PERCENT.match(text):
        return Leaf(found[1], number(found[1]), percent=True)
    if not measured and (parts := _measured(text)) is not None:
        return replace(leaf(parts[0], notes, measured=True), unit=parts[1])
    plain = normalize.without_fonts(text)
    value = number(plain.lower())
    if value is not None:
        notes.append(f"{plain} read as {value}")
    elif plain != text and PERCENT.match(plain):
        return leaf(plain, notes, measured)
    return Leaf(text, value)


def _measured(text: str) -> tuple[str, Unit] | None:
    """A value and the unit beside it."""
    if found := CURRENCY.fullmatch(text):
        money = unit(MARKS.get(found[2], "$" if "\\$" in found[2] else found[2].strip()))
        return (found[1] + found[3], money) if money and found[3] else None
    for mark, name in MARKS.items():
        if text.endswith(mark) and number(text[: -len(mark)]) is not None:
            return text[: -len(mark)].strip(), unit(name)  # pyright: ignore[reportReturnType]
    if found := normalize.DEGREES.search(text):
        rest = text[: found.start()].strip()
        scale = normalize.without_fonts(text[found.end() :]).strip()
        if rest and (not scale or scale in ("C", "F")) and not normalize.TRIGONOMETRY.search(rest) and rest[-1] != "-":
            return rest, unit({"C": "celsius", "F": "fahrenheit"}.get(scale, "degree"))  # pyright: ignore
        return None
    return _suffix(text)


def _suffix(text: str) -> tuple[str, Unit] | None:
    if found := RAISED_UNIT.match(text):
        rest, name = found[1], found[2].replace("{", "").replace("}", "")
        measure = unit(name)
        return (rest.strip(), measure) if measure and measure.known and number(rest) is not None else None
    if not (found := WHOLE_UNIT.match(text)):
        return None
    rest, marked, spaced, glued, beside, power = found.groups()
    name = next(part for part in (marked, spaced, glued, beside) if part is not None).strip("() ")
    if name.partition(" ")[0].lower() in NO_UNIT:
        return None
    scale, _, rest_of_name = name.partition(" ")
    if rest_of_name and scale.lower().removesuffix("s") in SCALES:  # `1 million dollars`
        rest, name = f"{rest} {scale}", rest_of_name
    measure = unit(name + (f"^{power.strip(' ^{}')}" if power.strip() else ""))
    plain = marked is None and beside is None
    if measure is None or not rest.strip() or rest.endswith("\\"):
        return None
    sure = measure.known and name not in LETTERS and rest[-1] in "0123456789})"
    if plain and not sure and number(rest) is None:
        return None  # `2 x`, `\sin x`: no name of a unit
    if plain and (glued or len(name) == 1) and (not measure.known or (glued and name in LETTERS)):
        return None  # `2ab`, `5 x`
    return rest.strip(), measure
