"""Compares two readings: at once where exact numbers, words and structure decide, else as a request to a process.

Every comparison is true, false or None, which says that formulas must be computed.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from ngrpo.grading import normalize
from ngrpo.grading.leaves import Leaf
from ngrpo.grading.reading import Group, Node, Reading
from ngrpo.grading.units import factor_between
from ngrpo.grading.values import rounded_double

BASE = re.compile(r"[\dA-Za-z]+_\{?\d+\}?")
RELATION = re.compile(r"[=<>]|\\(?:ne|approx|sim|equiv|cong|not|notin|to|mapsto|pmod|bmod|mod)(?![a-zA-Z])")
UNORDERED = ("list", "set", "union")


def same(gold: Node, answer: Node, notes: list[str]) -> bool | None:
    """Whether two nodes are equal; what was dropped for that is added to the notes."""
    if "=" in (gold.kind, answer.kind):
        gold, answer = equation(gold), equation(answer)
    if gold.name != answer.name:
        if gold.name and answer.name and "f(x)" not in (gold.name, answer.name):
            return False
        notes.append(f"name {gold.name or answer.name} dropped")
    if isinstance(gold, Leaf) and isinstance(answer, Leaf):
        return _same_leaf(gold, answer, notes)
    if isinstance(gold, Group) and isinstance(answer, Group):
        return _same_group(gold, answer, notes)
    group, other = (gold, answer) if isinstance(gold, Group) else (answer, gold)
    if isinstance(group, Group) and len(group.items) == 1 and group.kind in UNORDERED:
        notes.append("a set of one value")
        return same(group.items[0], other, notes)
    if isinstance(other, Leaf) and (other.words or other.number is not None):
        return False
    if not isinstance(group, Group) or group.kind not in ("=", "chain", "union"):
        return False
    notes.append("the right side of an equation" if group.kind == "=" else "compared as formulas")
    return None


def equation(node: Node) -> Node:
    """`y = ...` as an equation, to be compared with another; other nodes as they are."""
    named = isinstance(node, Leaf) and node.name and node.name != "f(x)" and not node.words
    return Group("=", (Leaf(node.name), replace(node, name=""))) if named else node


def _same_group(gold: Group, answer: Group, notes: list[str]) -> bool | None:
    kinds = {gold.kind, answer.kind}
    if "=" in kinds or "chain" in kinds:
        if len(kinds) > 1 or gold.name != answer.name:
            return False
        reversed_too = answer.items[::-1] if gold.kind == "=" else answer.items
        return True if gold.items in (answer.items, reversed_too) else None
    if "union" in kinds and gold.items and answer.items and kinds != {"union"}:
        return None
    if kinds == {"set", "list"}:  # a set has each value once
        gold, answer = (replace(node, items=tuple(dict.fromkeys(node.items))) for node in (gold, answer))
    if len(gold.items) != len(answer.items):
        return None if kinds == {"union"} else False
    if gold.kind in UNORDERED and answer.kind in UNORDERED:
        found = _matched(gold.items, answer.items, notes)
        return None if kinds == {"union"} and found is False else found
    if len(kinds) == 1:
        return _all(gold.items, answer.items, notes)
    if "list" in kinds and "()" in kinds:
        notes.append("a list compared in order")
        return _all(_by_name(gold.items), _by_name(answer.items), notes)
    return False


def _by_name(items: Sequence[Node]) -> Sequence[Node]:
    """`y=3, x=5` in the order of the names, which is that of a point's coordinates."""
    return sorted(items, key=lambda item: item.name) if all(item.name for item in items) else items


def _all(gold: Sequence[Node], answer: Sequence[Node], notes: list[str]) -> bool | None:
    found = [same(one, other, notes) for one, other in zip(gold, answer, strict=True)]
    return False if False in found else None if None in found else True


def _matched(gold: Sequence[Node], answer: Sequence[Node], notes: list[str]) -> bool | None:
    """Whether each has its own equal; None where some must be computed."""
    left, open_ones = list(answer), []
    for one in gold:
        place = next((at for at, other in enumerate(left) if same(one, other, notes)), None)
        if place is None:
            open_ones.append(one)
        else:
            left.pop(place)
    if any(all(same(one, other, []) is False for other in left) for one in open_ones):
        return False
    return None if open_ones else True


def _same_leaf(gold: Leaf, answer: Leaf, notes: list[str]) -> bool | None:
    factor = factor_between(answer.unit, gold.unit)
    if factor is None:
        return False
    if (gold.unit is None) != (answer.unit is None):
        notes.append(f"unit {(gold.unit or answer.unit).name} dropped")  # pyright: ignore[reportOptionalMemberAccess]
    elif factor != 1 and gold.unit and answer.unit:
        notes.append(f"{answer.unit.name} converted to {gold.unit.name}")
    if len(gold.text) == len(answer.text) == 1 and gold.text.isalpha() and answer.text.isalpha():
        return _same_letter(gold.text, answer.text, notes)
    if gold.words or answer.words:
        return gold.words and answer.words and gold.text == answer.text
    if gold.number is None or answer.number is None:
        same_text = normalize.bare(gold.text) == normalize.bare(answer.text) and gold.percent == answer.percent
        if same_text and factor == 1:
            return True
        if BASE.fullmatch(gold.text) or BASE.fullmatch(answer.text):
            return False  # a parser drops the base
        return None if bool(RELATION.search(gold.text)) == bool(RELATION.search(answer.text)) else False
    want, have = gold.number, answer.number * factor
    if gold.percent != answer.percent:
        share, value = (want, have) if gold.percent else (have, want)
        if share != value and share / 100 == value:
            notes.append("percent read as a hundredth")
            return True
        notes.append("percent sign dropped")
    if want != have and not answer.percent and (range_ := rounded_double(gold.text)):
        notes.append("the gold read as a double printed in full")
        return range_[0] <= have <= range_[1]
    return want == have


def _same_letter(gold: str, answer: str, notes: list[str]) -> bool:
    """The letters of options in any case, of variables in their own."""
    if gold != answer and gold in "ABCDEFGHIJ" and gold == answer.upper():
        notes.append("case folded")
        return True
    return gold == answer


def undecidable(gold: Reading, answer: Reading) -> bool:
    """Whether no process may see the answer, for what it would make of it: numbers apart, rows, unknown characters."""
    texts = (gold.bare, answer.bare)
    if any("\x00" in text or not text.isascii() for text in texts):
        return True
    return any("\\\\" in text and "\\begin" not in text for text in texts)


def requests(gold: Node, answer: Node) -> list[Any]:
    """What a process is asked: the two nodes, the answer in the gold's unit."""
    if "=" in (gold.kind, answer.kind):
        gold, answer = equation(gold), equation(answer)
    return [request(gold), request(answer, gold)]


def request(node: Node, unit_of: Node | None = None) -> Any:
    """The node as JSON: a formula, or a list of its kind and what stands in it; in the unit of `unit_of` where it has one."""
    if isinstance(node, Leaf):
        target = unit_of.unit if isinstance(unit_of, Leaf) else None
        factor = factor_between(node.unit, target) or Fraction(1)
        text = normalize.formula(node.text) if node.number is None else _ratio(node.number)
        text = text if factor == 1 else f"{_ratio(factor)}\\cdot\\left({text}\\right)"
        return f"\\frac{{{text}}}{{100}}" if node.percent else text
    kind = "list" if node.kind == "set" else node.kind
    return [kind + (f" {node.name}" if kind == "chain" else ""), *(request(item) for item in node.items)]


def _ratio(value: Fraction) -> str:
    above, below = abs(value).as_integer_ratio()
    return ("-" if value < 0 else "") + (f"{above}" if below == 1 else f"\\frac{{{above}}}{{{below}}}")


def texts(node: Any) -> list[str]:
    """The formulas of a request."""
    return [node] if isinstance(node, str) else [text for item in node[1:] for text in texts(item)]
