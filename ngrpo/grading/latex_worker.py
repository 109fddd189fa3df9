"""The process in which formulas are compared: reads lists of `[gold, answer]`, one a line, writes an outcome for each.

Started once, it imports everything and then forks a process for every two pipes that it is sent, so that a new one is
there in a moment. Those may be killed at any time, and end by themselves where a comparison takes too long or their parent
is gone: the watchdog is a thread of C code, so it also ends computations that never return to Python. It imports no
torch, opens no file and evaluates no text: formulas are read by a grammar of LaTeX alone.
"""

import contextlib
import faulthandler
import gc
import json
import logging
import os
import resource
import signal
import socket
import sys
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

from antlr4.atn.PredictionMode import PredictionMode
from latex2sympy2_extended import NormalizationConfig, latex2sympy2
from math_verify import LatexExtractionConfig, parse, verify
from sympy import (
    Expr,
    FiniteSet,
    Float,
    I,
    Integer,
    Interval,
    Number,
    Pow,
    Rational,
    Symbol,
    Tuple,
    UnevaluatedExpr,
    Union,
    cancel,
)

PLACES = 50  # decimal places to which two values must agree: a rounded number is another number
APART = 1e-6  # values further apart than this, as a share of the larger, are of different formulas
NOISE = 1e-12  # what a value of 0 may be computed as
ROOM = 320 * 2**20  # bytes that comparisons may add to what the imports take
REMEMBERED = 1024  # formulas: a group of answers has one gold
EXPANDED = 30  # the largest exponent of a sum that is multiplied out
SPELLING = NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, boxed="all")
# Without names of units: those of math-verify take the end of "a + b + c" for some.
LATEX = (LatexExtractionConfig(normalization_config=SPELLING),)
WARM = (
    *(r"-\frac{\sqrt{3}}{2}x^{2}", r"2\sqrt{3}-\pi", r"(1, -\pi)", r"(-\infty,-1)\cup[0,1]", r"y=-2x+3", r"3+4i"),
    *(r"2\cdot(x-1)(x+2)", "1, 2", r"\begin{pmatrix} 1 & -\frac{1}{2} \\ 0 & 1 \end{pmatrix}"),
)


class TwoStageParser(latex2sympy2.PSParser):
    """Reads a formula by the fast kind of prediction, and again by the full one where that finds none.

    A tree that the fast one finds is the tree of the full one (SLL and LL, in ANTLR's words), in a fifth of the time.
    """

    def math(self) -> Any:
        self._interp.predictionMode = PredictionMode.SLL
        try:
            return super().math()
        except Exception:  # noqa: BLE001 - its error listener raises plain exceptions
            self.reset()
            self._interp.predictionMode = PredictionMode.LL
            return super().math()


def number(text: str) -> Number:
    """A whole or decimal number, exactly: sympy rounds decimals, and runs them as Python, which costs a millisecond."""
    text = text.replace(",", "")
    return Integer(int(text)) if text.isdecimal() else Rational(*Fraction(text).as_integer_ratio())  # pyright: ignore


def prepare() -> None:
    """Puts our parser and our way to read numbers in their places, and lets the parser learn what it keeps."""
    logging.disable(logging.CRITICAL)
    latex2sympy2.PSParser = TwoStageParser
    latex2sympy2.Number = number
    setattr(latex2sympy2._Latex2Sympy, "parse_number", lambda _, text: number(text))  # noqa: B010 - its type is narrower
    for formula in WARM:
        compare(formula, f"{formula}+1")
    gc.freeze()  # what is there by now stays: collections need not walk it, and forks go on sharing it


@lru_cache(maxsize=REMEMBERED)
def read(formula: str) -> list[Any]:
    """The formula and its text, as math-verify reads them; the text alone, or nothing, where there is no formula."""
    return parse(f"\\boxed{{{formula}}}", LATEX, parsing_timeout=None)  # pyright: ignore


def judge(request: list[Any]) -> str:
    """The best outcome of a list of pairs, one for each form that a gold has."""
    outcomes = {compare_structures(*pair) for pair in request}
    return next(outcome for outcome in ("correct", "wrong", "unparsed") if outcome in outcomes)


def compare_structures(gold: Any, answer: Any) -> str:
    """correct, wrong or unparsed, for formulas and for lists that begin with their kind (comparing.request says which)."""
    kinds = {"" if isinstance(node, str) else node[0].partition(" ")[0] for node in (gold, answer)}
    if kinds == {"="} and len(gold) == len(answer) == 3 and same_equation(gold[1:], answer[1:]):
        return "correct"
    if kinds & {"", "=", "chain", "union"}:
        return compare(latex(gold), latex(answer))
    if kinds == {"list"}:
        return matched(gold[1:], answer[1:])
    outcomes = {compare_structures(one, other) for one, other in zip(gold[1:], answer[1:], strict=False)}
    if len(gold) != len(answer):
        return "wrong"
    return next((outcome for outcome in ("unparsed", "wrong") if outcome in outcomes), "correct")


def matched(gold: list[Any], answer: list[Any]) -> str:
    """Whether each of the gold's values has its own equal in the answer."""
    left = list(answer)
    for one in gold:
        place = next((at for at, other in enumerate(left) if compare_structures(one, other) == "correct"), None)
        if place is None:
            return "wrong"
        left.pop(place)
    return "wrong" if left else "correct"


def latex(node: Any) -> str:
    """The formula of a structure, as math-verify reads it."""
    if isinstance(node, str):
        return node
    kind, *items = node[0], *map(latex, node[1:])
    if kind.startswith("chain"):
        signs = kind.split()[1:]
        return items[0] + "".join(f" {sign} {item}" for sign, item in zip(signs, items[1:], strict=True))
    between = {"list": ", ", "union": "\\cup ", "=": " = "}
    return between[kind].join(items) if kind in between else f"{kind[0]}{', '.join(items)}{kind[1]}"


def same_equation(one: list[str], other: list[str]) -> bool:
    """Whether one equation is a multiple of the other."""
    sides = [read(side) for side in (*one, *other)]
    if not all(side and is_value(side[0]) for side in sides):
        return False
    left, right = (sides[at][0] - sides[at + 1][0] for at in (0, 2))
    if right == 0 or left.free_symbols != right.free_symbols:
        return False
    share = cancel(left / right)
    return not share.free_symbols and share.is_finite is True and share != 0


def compare(gold: str, answer: str) -> str:
    """correct, wrong or unparsed (no formula can be read in the answer), as math-verify finds; gold first."""
    want, have = read(gold), read(answer)
    if not want or not have:
        return "unparsed"
    want, have = imaginary(want), imaginary(have)
    same = decided_quickly(want[0], have[0])
    if same is None:
        same = verify(want, have, float_rounding=PLACES, numeric_precision=PLACES + 10, timeout_seconds=None)
    return "correct" if same else "wrong"


def imaginary(parsed: list[Any]) -> list[Any]:
    """With the imaginary unit for `i` where that is the only letter."""
    letters = parsed[0].free_symbols if is_value(parsed[0]) else ()
    if {str(letter) for letter in letters} != {"i"}:
        return parsed
    return [parsed[0].subs(dict.fromkeys(letters, I)), *parsed[1:]]


def decided_quickly(one: Any, other: Any) -> bool | None:
    """Whether two formulas are equal, where that takes no rewriting; None where it may.

    A value is not several values nor an interval, two values at one point of the variables are no equal formulas, and what
    multiplied out leaves nothing is equal. Percentages and what has a rounded decimal are left to math-verify.
    """
    if is_value(one) and is_value(other):
        if differ_at_a_point(one, other):
            return False
        return True if equal(one, other) else None
    several = other if is_value(one) else one
    if not (is_value(one) or is_value(other)):
        return None
    lists = isinstance(several, (FiniteSet, Tuple)) and len(several) > 1
    return False if lists or isinstance(several, (Interval, Union)) else None


def is_value(formula: Any) -> bool:
    """Whether it is a number or an expression, and no matrix and no percentage."""
    return isinstance(formula, Expr) and not getattr(formula, "is_Matrix", False) and not formula.has(UnevaluatedExpr)


def equal(one: Expr, other: Expr) -> bool:
    """Whether nothing is left of their difference once it is multiplied out."""
    powers = [power for formula in (one, other) for power in formula.atoms(Pow) if power.base.args]
    if any(not power.exp.is_Integer or abs(int(power.exp)) > EXPANDED for power in powers):
        return False
    return not (one.has(Float) or other.has(Float)) and (one - other).doit().expand() == 0


def differ_at_a_point(one: Expr, other: Expr) -> bool:
    """Whether they have different values at one point of their variables; false also where that cannot be told.

    Symbols alone are compared by name, since a word is one in one spelling and a product of letters in another.
    """
    if isinstance(one, Symbol) or isinstance(other, Symbol):
        return False
    names = sorted(one.free_symbols | other.free_symbols, key=str)
    point: dict[Any, Any] = {name: Float(1 + (place + 1) * 0.6180339887498949 % 1) for place, name in enumerate(names)}
    try:
        left, right = (complex(formula.evalf(15, subs=point)) for formula in (one, other))
    except (TypeError, ValueError, ArithmeticError, AttributeError, NotImplementedError):
        return False
    distance, size = abs(left - right), max(abs(left), abs(right))
    return max(APART * size, NOISE) < distance < float("inf")


def work(seconds: float) -> None:
    """Until the input ends. A line on which this process dies has no answer."""
    limit_memory()
    compare(*WARM[:2])  # the first comparison after a fork is slow, and is not to count as anyone's
    with open(os.devnull, "w") as nowhere:
        print(os.getpid(), flush=True)
        for line in sys.stdin:
            faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
            try:
                outcome = judge(json.loads(line))
            except Exception:  # noqa: BLE001 - a parser that fails on a text says nothing of the text
                outcome = "error"
            faulthandler.cancel_dump_traceback_later()
            print(outcome, flush=True)


def limit_memory() -> None:
    """So that a computation that grows ends in a MemoryError, with no core written."""
    statm = Path("/proc/self/statm")
    size = int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 2**31
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(seconds: float) -> None:
    """Forks a process for every byte that comes with two pipes, until the socket that is standard input ends."""
    prepare()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which still has answers to grade
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that end
    requests = socket.socket(fileno=os.dup(0))
    while True:
        message, pipes, _, _ = socket.recv_fds(requests, 1, 2)
        if not message or len(pipes) < 2:
            return
        if os.fork() == 0:
            requests.close()
            for standard, pipe in enumerate(pipes):
                os.dup2(pipe, standard)
                os.close(pipe)
            try:
                work(seconds)
            finally:
                os._exit(0)
        for pipe in pipes:
            os.close(pipe)


if __name__ == "__main__":
    main(float(sys.argv[1]))
