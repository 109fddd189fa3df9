"""The grammar of numbers: exact values, and None for what is no number."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ngrpo.grading.normalize import normalized
from ngrpo.grading.values import number, rounded_double


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12), ("-1,234.5", Fraction("-1234.5")), (".5", Fraction(1, 2)), ("5.", 5), ("+7", 7), ("-0", 0),
        ("\\frac{3}{4}", Fraction(3, 4)), ("\\dfrac34", Fraction(3, 4)), ("3/4", Fraction(3, 4)), ("-9./4", Fraction(-9, 4)),
        ("-2\\frac{1}{2}", Fraction(-5, 2)), ("7 2/3", Fraction(23, 3)), ("7 \\frac23", Fraction(23, 3)),
        ("0.1\\overline{6}", Fraction(1, 6)), ("0.\\overline{27}", Fraction(3, 11)),
        ("4e3", 4000), ("2.5E-3", Fraction(1, 400)), ("7 \\times 10^{-2}", Fraction(7, 100)), ("1.2 \\cdot 10^4", 12000),
        ("10^{6}", 10**6), ("2*10**3", 2000), ("8\u00d710\u2075", 800_000),
        ("eleven", 11), ("Twenty", 20), ("minus three", -3), ("ninety-nine", 99), ("two billion", 2 * 10**9),
        ("3 million", 3 * 10**6), ("1.5 thousand", 1500),
        ("7{,}250", 7250), ("7\\,250", 7250), ("7,\\!250", 7250), ("20 500", 20500), ("((8))", 8), ("{8}", 8),
    ],
)  # fmt: skip
def test_numbers_are_exact(text, value):
    assert number(normalized(text).lower() if text[0].isalpha() else normalized(text)) == value


@pytest.mark.parametrize(
    "text",
    [
        "", "-", ".", "1,23", "1,2345", "3/0", "9" * 2000, "1 2", "7 \\quad 8", "7 3", "--3", "+-3", "1e", "e5", "1e9999",
        "10^{99999}", "1.2.3", "a", "one two", "million", "7/2/3", "5!", "0x10", "1_000", "\u00b2", "1 2 3/4",
    ],
)  # fmt: skip
def test_what_is_no_number_is_none(text):
    assert number(normalized(text)) is None


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(-999_999_999, 999_999_999), st.integers(1, 999), st.integers(1, 999))
def test_all_spellings_of_a_number_have_its_value(whole, above, below):
    sign, size = ("-" if whole < 0 else ""), abs(whole)
    grouped = f"{size:,}"
    spellings = (
        grouped,
        grouped.replace(",", "{,}"),
        grouped.replace(",", "\\,"),
        grouped.replace(",", " "),
        f"{size}.0",
    )
    assert {number(normalized(sign + text)) for text in spellings} == {Fraction(whole)}
    part = Fraction(above, above + below)
    value = (size + part) * (-1 if whole < 0 else 1)
    ratio = f"\\frac{{{part.numerator}}}{{{part.denominator}}}"
    mixed = (f"{size} {part}", f"{size}{ratio}", f"{size} {ratio}", f"{size}\\ {ratio}")
    assert {number(normalized(sign + text)) for text in mixed} == {value}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1e-200, max_value=1e200), st.sampled_from(["", "-"]))
def test_e_notation_is_the_decimal_that_it_spells(value, sign):
    text = f"{value:.6e}"
    factor, _, exponent = text.partition("e")
    expected = Fraction(sign + text)
    for spelling in (text, f"{factor} \\times 10^{{{int(exponent)}}}", f"{factor}\\cdot10^{{{int(exponent)}}}"):
        assert number(normalized(sign + spelling)) == expected


def test_a_double_printed_in_full_is_told_from_a_rounded_number():
    for text, value in (("0.7999999999999999", Fraction(4, 5)), ("0.1111111111111111", Fraction(1, 9))):
        low, high = rounded_double(text) or (Fraction(0), Fraction(0))
        assert low <= value <= high and high - low < Fraction(1, 10**14)
    assert rounded_double("99999999999999991611392") == (10**23, 10**23)
    for text in ("0.111111", "12345678901234567", "1180591620717411303424", "3", "0.3"):
        assert rounded_double(text) is None
