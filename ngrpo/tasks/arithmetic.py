r"""Sums, differences, products and quotients of whole numbers: read without running anything, valued exactly, compared.

A `Tree` is a whole number or (operator, left, right).
"""

import ast
import re
from fractions import Fraction
from typing import Any

Tree = int | tuple[str, Any, Any]

LONGEST = 200  # characters and digits beyond these are no answer to a puzzle of a few small numbers
EXPRESSION = re.compile(r"(?:\s*(?:\d{1,9}(?!\d)|[-+*/()]))*")
TOKEN = re.compile(r"\d+|\S")
OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
SPELLINGS = {
    **dict.fromkeys((r"\times", r"\cdot", "\u00d7", "\u00b7"), "*"),
    **{r"\div": "/", "\u00f7": "/", "\u2212": "-", r"\left": "", r"\right": ""},
}


def read_expression(text: str) -> Tree | None:
    r"""The tree of `(3 + 5) \times 2`; None for anything else, for a sign before a number and for 200 characters."""
    for written, operator in SPELLINGS.items():
        text = text.replace(written, operator)
    text = text.strip()
    if len(text) > LONGEST or not text.isascii() or not EXPRESSION.fullmatch(text):
        return None
    # With spaces, so that two operators beside each other are no operator of Python; int() drops leading zeros.
    source = " ".join(str(int(token)) if token.isdigit() else token for token in TOKEN.findall(text))
    try:
        return _tree(ast.parse(source, mode="eval").body)
    except SyntaxError:
        return None


def _tree(node: ast.expr) -> Tree | None:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.BinOp(left=left, op=operator, right=right):
            sides = _tree(left), _tree(right)
            return None if None in sides else (OPERATORS[type(operator)], *sides)
    return None


def value(tree: Tree) -> Fraction | None:
    """Its exact value; None where it divides by zero."""
    if isinstance(tree, int):
        return Fraction(tree)
    operator, left, right = tree[0], value(tree[1]), value(tree[2])
    if left is None or right is None or (operator == "/" and not right):
        return None
    return {"+": left.__add__, "-": left.__sub__, "*": left.__mul__, "/": left.__truediv__}[operator](right)


def numbers_of(tree: Tree) -> list[int]:
    """The numbers in it, sorted."""
    return [tree] if isinstance(tree, int) else sorted([*numbers_of(tree[1]), *numbers_of(tree[2])])


def normal_form(tree: Tree) -> str:
    """A text that is equal for trees that differ only in brackets, in the order of terms and factors, and in where a
    minus sign was taken out, so that 5-(2-1)*3 and (1-2)*3+5 are one solution."""
    sign, node = _normal(tree)
    return ("-" if sign < 0 else "") + _written(node)


def _normal(tree: Tree) -> tuple[int, Any]:
    """(sign, node): a node is a number, ("sum", ((sign, node), ...)) or ("product", ((power, node), ...))."""
    if isinstance(tree, int):
        return 1, tree
    operation, kind = tree[0], "sum" if tree[0] in "+-" else "product"
    parts, outer = [], 1
    for side, turned in ((tree[1], False), (tree[2], operation in "-/")):
        sign, node = _normal(side)
        inner = node[1] if isinstance(node, tuple) and node[0] == kind else ((1, node),)
        turn = -1 if turned else 1
        if kind == "sum":
            parts += [(sign * turn * mark, member) for mark, member in inner]
        else:
            outer *= sign
            parts += [(turn * mark, member) for mark, member in inner]
    parts.sort(key=lambda part: (_written(part[1]), -part[0]))
    if kind == "sum":
        outer = parts[0][0]
        parts = [(mark * outer, member) for mark, member in parts]
    return outer, (kind, tuple(parts))


def _written(node: Any) -> str:
    if isinstance(node, int):
        return str(node)
    kind, parts = node
    plus, minus = "+-" if kind == "sum" else "*/"
    ordered = sorted(parts, key=lambda part: -part[0]) if kind == "product" else parts
    text = "".join(f"{plus if mark > 0 else minus}{_written(member)}" for mark, member in ordered)
    return f"({text[1:]})"
