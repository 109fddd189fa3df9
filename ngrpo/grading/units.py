"""Units after a value: what quantity they are of and how large they are, as exact numbers.

Units of one quantity are converted into each other; names that are not known are counted things, compared as names.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

LENGTH, MASS, TIME, VOLUME, MONEY, ANGLE = "length", "mass", "time", "volume", "money", "angle"
INCH, POUND, GALLON = Fraction("0.0254"), Fraction("453.59237"), Fraction("3.785411784")
TABLE: dict[str, dict[str, Fraction | int]] = {
    LENGTH: {
        "m meter metre": 1, "cm centimeter centimetre": Fraction(1, 100), "mm millimeter millimetre": Fraction(1, 1000),
        "km kilometer kilometre": 1000, "dm decimeter decimetre": Fraction(1, 10), "in inch inche": INCH,
        "ft foot feet": 12 * INCH, "yd yard": 36 * INCH, "mi mile": 63360 * INCH, "nm nanometer": Fraction(1, 10**9),
        "um micrometer micron": Fraction(1, 10**6),
    },
    MASS: {
        "g gram": 1, "kg kilogram kilo": 1000, "mg milligram": Fraction(1, 1000), "lb pound": POUND,
        "oz ounce": POUND / 16, "ton": 2000 * POUND, "tonne": 10**6,
    },
    TIME: {
        "s sec second": 1, "min minute": 60, "h hr hour": 3600, "day": 86400, "week": 7 * 86400, "ms millisecond":
        Fraction(1, 1000), "year yr": 12 * 2629746, "month": 2629746, "decade": 120 * 2629746, "century": 1200 * 2629746,
    },
    VOLUME: {
        "l liter litre": 1, "ml milliliter millilitre": Fraction(1, 1000), "gal gallon": GALLON, "qt quart": GALLON / 4,
        "pt pint": GALLON / 8, "cup": GALLON / 16,
    },
    MONEY: {"$ dollar usd buck": 1, "cent": Fraction(1, 100)},
    "euro": {"euro eur \u20ac": 1}, "sterling": {"\u00a3 gbp": 1}, "yen": {"yen jpy \u00a5": 1},
    "rupee": {"rupee inr \u20b9": 1}, ANGLE: {"degree deg": 1}, "radian": {"radian rad": 1},
    "celsius": {"c celsius": 1}, "fahrenheit": {"f fahrenheit": 1},
    "energy": {"j joule": 1, "kj kilojoule": 1000, "erg": Fraction(1, 10**7), "ev": Fraction("1.602176634e-19")},
    "power": {"w watt": 1, "kw kilowatt": 1000}, "force": {"n newton": 1}, "frequency": {"hz hertz": 1, "khz": 1000},
    "temperature": {"k kelvin": 1}, "voltage": {"v volt": 1},
}  # fmt: skip
KNOWN = {
    name: (kind, Fraction(size)) for kind, row in TABLE.items() for names, size in row.items() for name in names.split()
}
RATIO = "ratio"  # of sizes: no quantity
CAPITAL = set("CFKJWNVL")
ANY = {"unit", ""}  # names that say nothing
LETTERS = {name for name in KNOWN if len(name) == 1 and name.isalpha()}
SPELLED = re.compile(r"(square|sq\.?|cubic|cu\.?)\s+", re.IGNORECASE)
OPERATOR = re.compile(r" ?(/| per |\\cdot|\*| an? (?=\w)) ?")
POWER = re.compile(r"\^ ?\{? ?(-?\d) ?\}?$")
PIECE = re.compile(r"[a-z$\u20ac\u00a3\u00a5\u20b9]+", re.IGNORECASE)
SPEEDS = {"mph": "mile/hour", "kph": "kilometer/hour", "fps": "foot/second", "sqft": "square foot"}


@dataclass(frozen=True)
class Unit:
    """kinds: quantities and their powers, or ("things", name); size: in basic units of them; name: as it was written."""

    kinds: tuple[tuple[str, int], ...]
    size: Fraction
    name: str
    known: bool = True


def singular(word: str) -> str:
    """A name without its plural's s."""
    for plural, end in (("ches", "ch"), ("shes", "sh"), ("ies", "y"), ("ss", "ss"), ("s", "")):
        if word.endswith(plural) and len(word) > len(plural) + 1:
            return word[: -len(plural)] + end
    return word


def unit(text: str) -> Unit | None:
    """The unit that a text names; one of unknown things for other plain words, None for what names nothing."""
    name = " ".join(text.split()).strip(" .")
    plain = SPEEDS.get(name.lower(), name)
    first, *rest = OPERATOR.split(re.sub(r"^per ", "1/", plain))
    kinds: dict[str, int] = {}
    size = Fraction(1)
    for operator, factor in (("*", first), *zip(rest[::2], rest[1::2], strict=True)):
        found = _factor(factor.strip())
        if found is None:
            return _things(name)
        for kind, basic, power in found:
            power = power if operator in ("*", "\\cdot") else -power
            kinds[kind] = kinds.get(kind, 0) + power
            size *= basic**power
    return Unit(tuple(sorted(item for item in kinds.items() if item[1] and item[0] != RATIO)), size, name)


def _factor(text: str) -> list[tuple[str, Fraction, int]] | None:
    """Kinds, sizes and powers of `square feet`, `cm^2` or `meters`; volumes count as cubes of lengths."""
    power = 1
    if spelled := SPELLED.match(text):
        power, text = (2 if spelled[1].lower().startswith("s") else 3), text[spelled.end() :]
    elif raised := POWER.search(text):
        power, text = int(raised[1]), text[: raised.start()].strip()
    if text == "1":
        return []
    low = text if len(text) == 1 else text.lower().rstrip(".")
    known = KNOWN.get(low) or KNOWN.get(singular(low)) or (KNOWN.get(low.lower()) if low in CAPITAL else None)
    if known is None:
        return None
    kind, size = known
    if kind == VOLUME:  # a liter is a cube of 0.1 m
        return [(LENGTH, Fraction(1, 10), 3 * power), (RATIO, size, power)]
    return [(kind, size, power)]


def _things(name: str) -> Unit | None:
    words = PIECE.findall(name)
    if len("".join(words)) < 2 or len(name) > 60 or not re.fullmatch(r"[a-zA-Z' .()/-]+", name):
        return None
    return Unit((("things", 1),), Fraction(1), name, known=False)


def factor_between(one: Unit | None, other: Unit | None) -> Fraction | None:
    """What a value in `one` is multiplied by to be in `other`; 1 where either is no unit, None for two quantities."""
    if one is None or other is None or singular(one.name) in ANY or singular(other.name) in ANY:
        return Fraction(1)
    if not (
        one.known and other.known
    ):  # counted things: `eggs` and `duck eggs` are alike, `apples` and `pears` are not
        words, others = ({singular(word.lower()) for word in PIECE.findall(item.name)} for item in (one, other))
        return Fraction(1) if words & others else None
    return one.size / other.size if one.kinds == other.kinds else None
