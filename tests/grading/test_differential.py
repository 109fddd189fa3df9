"""Beside math-verify: never less able on ordinary forms, never more generous on another value.

Where the two disagree, the pair is of a kind that is listed here with the reason, or the test fails.
"""

import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from math_verify_oracle import Oracle

from ngrpo.grading.latex import Latex

FILE = Path(__file__).parents[1] / "data" / "grading_pairs.tsv"
PAIRS = [line.split("\t") for line in FILE.read_text(encoding="utf-8").splitlines()[1:]]
FIXED = settings(
    max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
# What math-verify takes and the grader does not, with the reason.
ROUNDED = "six decimal places are enough for math-verify; here a rounded number is another number"
DROPPED = "math-verify drops units and degrees; here two quantities are never equal, and sin 30 is no sin of 30 degrees"
STRICTER = {
    ("\\frac{2}{3}", "0.6666666666"): ROUNDED,
    ("e", "2.718281828"): ROUNDED,
    ("0.1", "0.10000001"): ROUNDED,
    ("5 cm", "5 m"): DROPPED,
    ("5 \\text{ cm}", "5 \\text{ m}"): DROPPED,
    ("2 hours", "2 minutes"): DROPPED,
    ("\\sin 30", "\\sin 30^\\circ"): DROPPED,
}


@pytest.fixture(scope="module")
def grader():
    made = Latex()
    yield made
    made.workers.close()


@pytest.fixture(scope="module")
def oracle():
    made = Oracle()
    yield made
    made.close()


def correct(grader: Latex, gold: str, answer: str) -> bool:
    return grader.grade([f"\\boxed{{{answer}}}"], [gold])[0].outcome == "correct"


def test_what_math_verify_takes_of_the_file_is_taken_or_has_a_reason(grader, oracle):
    stricter = {
        (gold, answer) for gold, answer, _ in PAIRS if oracle.same(gold, answer) and not correct(grader, gold, answer)
    }
    assert stricter == set(STRICTER)
    more = [
        (gold, answer) for gold, answer, _ in PAIRS if correct(grader, gold, answer) and not oracle.same(gold, answer)
    ]
    assert set(more) <= {(gold, answer) for gold, answer, equal in PAIRS if equal == "y"}


def whole(value: int) -> list[str]:
    grouped = f"{abs(value):,}"
    sign = "-" if value < 0 else ""
    spellings = [grouped, grouped.replace(",", "{,}"), f"{abs(value)}.0", f"{abs(value)}", f"\\text{{{abs(value)}}}"]
    return [
        *(sign + text for text in spellings),
        f"\\frac{{{2 * value}}}{{2}}",
        f"({value})",
        f"x={value}",
        f"${value}$",
    ]


def ratio(value: Fraction) -> list[str]:
    sign, (above, below) = ("-" if value < 0 else ""), abs(value).as_integer_ratio()
    spellings = [f"\\frac{{{above}}}{{{below}}}", f"\\dfrac{{{3 * above}}}{{{3 * below}}}", f"{above}/{below}"]
    if above > below > 1:
        spellings += [f"{above // below}\\frac{{{above % below}}}{{{below}}}"]
    return [sign + text for text in spellings]


def surd(factor: int, radicand: int) -> list[str]:
    return [
        f"{factor}\\sqrt{{{radicand}}}", f"\\sqrt{{{factor**2 * radicand}}}",
        f"\\frac{{{factor * radicand}}}{{\\sqrt{{{radicand}}}}}",
        f"\\sqrt{{{radicand}}} \\cdot {factor}", f"{factor} \\cdot {radicand}^{{1/2}}",
    ]  # fmt: skip


def line(slope: int, constant: int) -> list[str]:
    return [
        f"{slope}x+{constant}", f"{constant}+{slope}x", f"{slope} x + {constant}", f"{slope}\\cdot x+{constant}",
        f"y={slope}x+{constant}", f"{slope}(x+1)+{constant - slope}" if constant > slope else f"x\\cdot{slope}+{constant}",
    ]  # fmt: skip


def interval(low: int, high: int) -> list[str]:
    return [f"({low},{high}]", f"\\left({low}, {high}\\right]", f"x \\in ({low},{high}]", f"{low} < x \\le {high}"]


def several(low: int, high: int) -> list[str]:
    return [
        f"{low},{high}",
        f"{high}, {low}",
        f"\\{{{low},{high}\\}}",
        f"x={low}, x={high}",
        f"{low} \\text{{ and }} {high}",
    ]


number = st.integers(-20_000, 20_000)
small = st.integers(2, 30)
VALUES = st.one_of(
    st.tuples(st.just(whole), st.tuples(number), st.tuples(number)),
    st.tuples(
        st.just(ratio),
        st.tuples(st.fractions(-30, 30, max_denominator=30).filter(lambda value: value.denominator > 1)),
        st.tuples(st.fractions(-30, 30, max_denominator=30).filter(lambda value: value.denominator > 1)),
    ),
    st.tuples(
        st.just(surd), st.tuples(small, st.sampled_from([2, 3, 5, 7])), st.tuples(small, st.sampled_from([2, 3, 5, 7]))
    ),
    st.tuples(st.just(line), st.tuples(small, small), st.tuples(small, small)),
    st.tuples(st.just(interval), st.tuples(st.integers(-9, 0), small), st.tuples(st.integers(-9, 0), small)),
    st.tuples(st.just(several), st.tuples(st.integers(-9, 0), small), st.tuples(st.integers(-9, 0), small)),
)


@FIXED
@given(st.data())
def test_respellings_are_the_same_and_other_values_are_not(grader, oracle, data):
    spell, one, other = data.draw(VALUES)
    gold, answer, wrong = (data.draw(st.sampled_from(spell(*values))) for values in (one, one, other))
    assert correct(grader, gold, answer), "the same value in another spelling"
    assert correct(grader, gold, wrong) == (one == other), f"another value; math-verify says {oracle.same(gold, wrong)}"


SHAPES = (
    ["{a}", "-{a}", "\\frac{{{a}}}{{{b}}}", "{a}/{b}", "{a}.{b}", "{a}\\%", "{a},{b}", "({a},{b})", "[{a},{b}]", "{a}x+{b}",
     "{a}\\sqrt{{{b}}}", "{a}^{{{b}}}", "{a}\\pi", "\\{{{a},{b}\\}}", "{b}-{a}", "{a}+{b}i", "x={a}", "{a}^\\circ", "x>{a}",
     "{a} \\cdot {b}", "\\binom{{{b}}}{{{a}}}", "{a}!", "\\sqrt[{a}]{{{b}}}", "{a}{b}", "{a}\\text{{ cm}}", "x^{a}y^{b}",
     "(x+{a})({b}-x)"]
)  # fmt: skip


@pytest.mark.parametrize(("a", "b"), [(2, 3), (4, 2), (1, 1)])
def test_any_two_forms_are_equal_for_both_or_for_a_reason(grader, oracle, a, b):
    forms = [shape.format(a=a, b=b) for shape in SHAPES]
    pairs = [(gold, answer) for gold in forms for answer in forms]
    verdicts = grader.grade([f"\\boxed{{{answer}}}" for _, answer in pairs], [gold for gold, _ in pairs])
    found = [(pair, verdict.outcome == "correct") for pair, verdict in zip(pairs, verdicts, strict=True)]
    assert [(*pair, ours) for pair, ours in found if oracle.same(*pair) != ours and not reason(*pair, ours)] == []


def reason(gold: str, answer: str, ours: bool) -> str | None:
    """Why the two disagree, where that is meant."""
    pair = (gold, answer)
    if any("\\%" in text for text in pair):
        return "p% is p or p/100 here"
    if any("." in text for text in pair) and not ours:
        return ROUNDED
    if sum("cm" in text or "circ" in text for text in pair) == 2 and not ours:
        return DROPPED
    if any(re.search(r"(\d),\1", text) for text in pair):
        return "two equal values in a list or pair are two here, and one interval of no length or one root there"
    brackets = {text[0] for text in pair if "," in text}
    if len(brackets) == 2 and brackets & set("([") and not ours:
        return "the order of a pair, and which end is in an interval, count here; math-verify sorts sets against pairs"
    return None
