r"""The structure of an answer: a number with its unit, a list, an interval, an equation, words, or a formula to compute.

What was folded or dropped on the way is kept as notes. Formulas stay texts; only processes of `workers` compute them.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from ngrpo.grading import leaves, normalize
from ngrpo.grading.brackets import closing, wrapped
from ngrpo.grading.leaves import WORD, Leaf, leaf
from ngrpo.grading.values import number

PRODUCT = re.compile(r"[a-z]{2,3}")  # letters that may be a product: `ab` is `ba`
ENGLISH = {  # and no products
    "no", "yes", "on", "off", "odd", "even", "all", "none", "one", "two", "six", "ten", "in", "out", "up", "am", "pm",
}  # fmt: skip
NAMED = re.compile(r"([a-zA-Z]|\\[a-z]+)(?:_\w|')?(\([a-z]\))?$")
# Beside `=`.
LABEL = re.compile(r"\\text ?\{[^{}]*\}|(?:m ?)?\\angle ?[A-Z]{1,3}|[A-Z]{2,3}|\([a-zA-Z](?:, ?[a-zA-Z]){1,3}\)")
LIST = re.compile(r",? ?\\text ?\{ ?,? ?(?:and|or) ?\}|,? ?(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])|[,;]")
JOINED = re.compile(r"\\text ?\{([^{}]*[^{} ]) (and|or) ?([^{}]*)\}")  # `5 \text{ cm and } 12`
CHAIN = re.compile(r"\\le(?![a-zA-Z])|\\ge(?![a-zA-Z])|<|>")
UNION = re.compile(r"\\cup(?![a-zA-Z])")
EQUAL = re.compile(r"(?<![<>!\\])=")
MEMBER = re.compile(r"^([a-zA-Z]) ?\\in(?![a-zA-Z]) ?(.+)$")
SIGNS = re.compile(r"\\pm(?![a-zA-Z])|\\mp(?![a-zA-Z])")
BUILDER = re.compile(r"^\\?\{? ?[a-zA-Z] ?(?:\\mid(?![a-zA-Z])|\||:) ?(.+?) ?\\?\}?$")
EMPTY = re.compile(r"\\emptyset ?|\\\{ ?\\\}")
REALS = re.compile(r"\\mathbb ?\{?R\}?|\\Re|\\R")
THOUSANDS = re.compile(r"(?<!\d)\d{1,3}(?=,\d{3}(?!\d))")
DEEPEST = 8  # structures in each other
INVERSE = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}


@dataclass(frozen=True)
class Group:
    """Several values. kind: list, set, union, chain, =, or a pair of brackets as `(]`, whose items have an order."""

    kind: str
    items: tuple["Leaf | Group", ...]
    name: str = ""


Node = Leaf | Group


@dataclass(frozen=True)
class Reading:
    """A text as it is compared: in one spelling without spaces, its structure, and what was decided to get there."""

    bare: str
    node: Node
    notes: tuple[str, ...]


@lru_cache(maxsize=2048)
def read(text: str) -> Reading | None:
    """The reading of a text; None for one that is too long or in which nothing stands."""
    if len(text) > normalize.LONGEST:
        return None
    normal = normalize.normalized(text)
    bare = normalize.bare(normal)
    if not bare:
        return None
    notes: list[str] = [] if text.isascii() else ["Unicode translated"]
    node = _node(normal, notes)
    return Reading(bare, node, tuple(dict.fromkeys(notes)))


def cut(text: str, pattern: re.Pattern, inside: bool = False) -> list[tuple[str, str]]:
    """The parts of `text` between the matches outside of all brackets, each with the match that stands before it.

    A comma in a number, as in 1,000, ends no part unless `inside` brackets, where a list is meant.
    """
    if not pattern.search(text):
        return [("", text.strip())]
    depths, depth = [], 0
    for place, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        depths.append(depth if character not in "([{" else depth - 1)
        if character == "\\" and text.startswith("\\text", place):
            depths[-1] = depth
    in_numbers = {found.end() for found in THOUSANDS.finditer(text)}
    parts, start, before = [], 0, ""
    for found in pattern.finditer(text):
        zero = text.startswith("0", found.end())  # no list has (10,050)
        if depths[found.start()] or (found[0] == "," and (zero or not inside) and found.start() in in_numbers):
            continue
        parts.append((before, text[start : found.start()].strip()))
        start, before = found.end(), found[0].strip()
    return [*parts, (before, text[start:].strip())]


def _node(text: str, notes: list[str], depth: int = 0) -> Node:
    while wrapped(text) or (wrapped(text, "()") and len(cut(text[1:-1], LIST, True)) == 1):
        text = text[1:-1].strip()
    if text.isdecimal() or depth > DEEPEST:
        return Leaf(text, number(text))
    if (whole := leaves.read_whole(text, notes)) is not None:
        return whole
    if (words := _words(text)) is not None:
        return words
    if (marked := normalize.TEXT.fullmatch(text)) and _listed(marked[1]):
        text = marked[1].strip()
    for structure in (_set, _several, _brackets, _relation, _signs):
        if (node := structure(text, notes, depth)) is not None:
            return node
    return leaf(text, notes)


def _words(text: str) -> Leaf | None:
    marked = normalize.without_fonts(text.replace("\\ ", " "))
    if not WORD.fullmatch(marked) or number(marked.lower()) is not None or _listed(marked):
        return None
    if marked == text and (len(text) < 2 or (PRODUCT.fullmatch(text) and text not in ENGLISH)):
        return None
    low = marked.lower() if len(marked) > 2 or marked.lower() in ENGLISH else marked
    return Leaf(" ".join(low.rstrip(".!").replace(",", "").split()), words=True)


def _listed(text: str) -> bool:
    """Whether words are numbers in a list: `two and five`; `no and yes` are words."""
    parts = cut(text, LIST)
    return len(parts) > 1 and all(number(part.lower()) is not None or len(part.strip("()")) == 1 for _, part in parts)


def _set(text: str, notes: list[str], depth: int) -> Node | None:
    if EMPTY.fullmatch(text):
        return Group("set", ())
    if REALS.fullmatch(text):
        notes.append("the real numbers")
        return Group("()", (Leaf("-\\infty"), Leaf("\\infty")))
    if found := MEMBER.match(text):
        notes.append(f"{found[1]} \\in dropped")
        node = _node(found[2], notes, depth + 1)
        return node if isinstance(node, Leaf) else replace(node, name=found[1])
    braces = text.startswith("\\{") and text.endswith("\\}") and "\\}" not in text[2:-2]
    condition = BUILDER.match(text) if braces or "\\mid" in text or text.startswith("{") else None
    if condition and CHAIN.search(condition[1]):
        return _node(condition[1], notes, depth + 1)
    if braces:
        items = [_node(part, notes, depth + 1) for _, part in cut(text[2:-2], LIST, True)]
        return Group("set", tuple(dict.fromkeys(items)))
    return None


def _several(text: str, notes: list[str], depth: int) -> Node | None:
    """Parts of a union, a list with commas, `and` or `or`."""
    if len(parts := cut(text, UNION)) > 1:
        return Group("union", tuple(_node(part, notes, depth + 1) for _, part in parts))
    if "\\text" in text:
        text = JOINED.sub(r"\\text{\1} \2 \\text{\3}", text)
    parts = [(sign, part) for sign, part in cut(text, LIST) if part and part != "\\text{}"]
    if len(parts) < 2 or len(parts) > 40:
        return None
    if any("and" in sign for sign, _ in parts) and all(CHAIN.search(part) for _, part in parts):
        return _both([_node(part, notes, depth + 1) for _, part in parts])
    if all(part.isdecimal() for _, part in parts):
        return Group("list", tuple(Leaf(part, number(part)) for _, part in parts))
    items = _shared_unit([_node(part, notes, depth + 1) for _, part in parts])
    ranges = all(isinstance(item, Group) and item.name for item in items)
    return Group("union" if ranges and any("or" in sign for sign, _ in parts) else "list", tuple(items))


def _both(ranges: list[Node]) -> Node | None:
    """`x > 1 and x < 3`: the one's lower and the other's upper bound."""
    if len(ranges) != 2 or not all(isinstance(node, Group) and len(node.items) == 2 and node.name for node in ranges):
        return None
    low, high = (node for node in ranges if isinstance(node, Group))
    if low.items[1] != Leaf("\\infty"):
        low, high = high, low
    if low.name != high.name or low.items[1] != Leaf("\\infty") or high.items[0] != Leaf("-\\infty"):
        return None
    return Group(low.kind[0] + high.kind[1], (low.items[0], high.items[1]), low.name)


def _shared_unit(items: list[Node]) -> list[Node]:
    """`3 and 5 cm`: the unit of the last is that of those before it that have none."""
    last = items[-1]
    if not isinstance(last, Leaf) or last.unit is None:
        return items
    return [replace(item, unit=last.unit) if isinstance(item, Leaf) and item.unit is None else item for item in items]


def _brackets(text: str, notes: list[str], depth: int) -> Node | None:
    if len(text) < 4 or text[0] not in "([" or text[-1] not in ")]" or closing(text) != len(text) - 1:
        return None
    parts = cut(text[1:-1], LIST, True)
    if len(parts) == 1:
        return None
    if not all(part and separator in ("", ",", ";") for separator, part in parts):
        return None
    return Group(text[0] + text[-1], tuple(_node(part, notes, depth + 1) for _, part in parts))


def _relation(text: str, notes: list[str], depth: int) -> Node | None:
    if len(parts := cut(text, CHAIN)) > 1:
        return _range([part for _, part in parts], [sign for sign, _ in parts[1:]], notes, depth)
    parts = cut(text, EQUAL)
    if len(parts) == 1:
        return None
    sides = [part for _, part in parts]
    if len(sides) == 2 and sides[1] and (named := NAMED.fullmatch(sides[0])) and not NAMED.fullmatch(sides[1]):
        node = _node(sides[1], notes, depth + 1)
        return replace(node, name="f(x)" if named[2] else named[0])
    if len(sides) == 2 and sides[1] and LABEL.fullmatch(sides[0]) and not LABEL.fullmatch(sides[1]):
        return replace(_node(sides[1], notes, depth + 1), name=sides[0])
    if not all(sides):
        return None
    return Group("=", tuple(leaf(side, []) for side in sides))


def _range(sides: list[str], signs: list[str], notes: list[str], depth: int) -> Node | None:
    """One variable between bounds, as an interval with the variable's name; `\\ge 3` has none."""
    if len(sides) == 2 and NAMED.fullmatch(sides[1]) and not NAMED.fullmatch(sides[0]):
        sides, signs = sides[::-1], [INVERSE[signs[0]]]
    if len(sides) == 3 and len({sign in ("<", "\\le") for sign in signs}) == 1 and NAMED.fullmatch(sides[1]):
        if signs[0] not in ("<", "\\le"):
            sides, signs = sides[::-1], [INVERSE[sign] for sign in signs[::-1]]
        low, name, high = sides
    elif len(sides) == 2 and (not sides[0] or NAMED.fullmatch(sides[0])):
        name = sides[0]
        below = signs[0] in ("<", "\\le")
        low, high = ("-\\infty", sides[1]) if below else (sides[1], "\\infty")
        signs = ["<", *signs] if below else [*signs, "<"]
    else:
        return Group("chain", tuple(Leaf(side) for side in sides), " ".join(signs))
    if not low or not high:
        return None
    brackets = ("(" if signs[0] in "<>" else "[") + (")" if signs[-1] in "<>" else "]")
    notes.append("an inequality read as an interval")
    return Group(brackets, (_node(low, notes, depth + 1), _node(high, notes, depth + 1)), name)


def _signs(text: str, notes: list[str], depth: int) -> Node | None:
    r"""Both values of `a \pm b`."""
    if not SIGNS.search(text):
        return None
    notes.append("\\pm read as two values")
    pairs = [{"\\pm": "+", "\\mp": "-"}, {"\\pm": "-", "\\mp": "+"}]
    both = [SIGNS.sub(lambda found, signs=signs: signs[found[0]], text) for signs in pairs]
    return Group("list", tuple(_node(one.removeprefix("+").strip(), notes, depth + 1) for one in both))
