"""Pairs of a gold and an answer that are, or are not, equal: a file of them, and other examples of each kind."""

from pathlib import Path

import pytest

from ngrpo.grading.latex import Latex

FILE = Path(__file__).parents[1] / "data" / "grading_pairs.tsv"
PAIRS = [line.split("\t") for line in FILE.read_text(encoding="utf-8").splitlines()[1:]]


@pytest.fixture(scope="module")
def grader():
    made = Latex(workers=1)
    yield made
    made.workers.close()


def verdicts(grader, pairs):
    return grader.grade([f"so \\boxed{{{answer}}}" for _, answer, *_ in pairs], [gold for gold, *_ in pairs])


def test_every_pair_of_the_file_comes_out_as_it_says(grader):
    assert len(PAIRS) >= 189
    found = [verdict.outcome == "correct" for verdict in verdicts(grader, PAIRS)]
    assert [pair for pair, right in zip(PAIRS, found, strict=True) if right != (pair[2] == "y")] == []


KINDS = {
    "white space between numbers": [
        ("7 2/5", "\\frac{37}{5}", "y"), ("\\frac{11}{4}", "2 3/4", "y"), ("23/4", "2 3/4", "n"), ("73", "7 3", "n"),
        ("-4 1/2", "-4.5", "y"), ("35", "3\\ 5", "n"), ("7 \\; 8", "78", "n"), ("(1 2)", "12", "n"), ("3.5", "3 5/10", "y"),
        ("x = 3 1/4", "3.25", "y"), ("6", "2 3", "n"), ("11/3", "3 \\frac{2}{3}", "y"), ("56", "5\\quad6", "n"),
        ("1 234 567", "1234567", "y"), ("(2 1/2, 3)", "(2.5, 3)", "y"), ("(21/2, 3)", "(2 1/2, 3)", "n"),
    ],
    "characters outside ASCII": [
        ("2\u00b3", "8", "y"), ("23", "2\u00b3", "n"), ("8", "2\u00b3", "y"), ("3\u00be", "3.75", "y"), ("33/4", "3\u00be", "n"),
        ("2\\pi", "2\u03c0", "y"), ("3\\sqrt{5}", "3\u221a5", "y"), ("\\sqrt{x+1}", "\u221a(x+1)", "y"), ("-6", "\u22126", "y"),
        ("12", "3\u00d74", "y"), ("4", "12\u00f73", "y"), ("x \\le 4", "x \u2264 4", "y"), ("\u2153", "\\frac13", "y"),
        ("2", "\u221b8", "y"), ("x^{10}", "x\u00b9\u2070", "y"), ("x^{10}", "x10", "n"), ("10^{-2}", "10\u207b\u00b2", "y"),
        ("\\theta", "\u03b8", "y"), ("(-\\infty, 2)", "(-\u221e, 2)", "y"), ("\\uff17", "7", "n"), ("\uff17\uff12", "72", "y"),
        ("x_1", "x\u2081", "y"), ("60", "60\u00b0", "y"), ("\\sqrt{2}+\\sqrt{3}", "\u221a2+\u221a3", "y"), ("5", "\u2164", "n"),
        ("\\pm 3", "\u00b13", "y"), ("\\frac{\\sqrt{3}}{2}", "\u221a3/2", "y"), ("\\sqrt{3/2}", "\u221a3/2", "n"),
        ("\u2460", "1", "n"), ("\U0001d7d9", "1", "y"),
    ],
    "percent": [
        ("40\\%", "0.4", "y"), ("40\\%", "0.4\\%", "n"), ("0.25", "25\\%", "y"), ("25", "25 \\text{ percent}", "y"),
        ("3\\%", "300", "n"), ("60 percent", "\\frac{3}{5}", "y"), ("12.5\\%", "\\frac{1}{8}", "y"), ("7\\%", "0.07%", "n"),
        ("\\frac{1}{3}", "33\\%", "n"), ("0.005", "0.5\\%", "y"), ("50", "0.5", "n"), ("33\\frac{1}{3}\\%", "\\frac{1}{3}", "y"),
        ("x = 30\\%", "30\\%", "y"), ("10\\%, 20\\%", "20\\%, 10\\%", "y"), ("10\\%, 20\\%", "0.1, 0.2", "y"),
    ],
    "e-notation": [
        ("1.6e-19", "1.6 \\times 10^{-19}", "y"), ("7.2e11", "7.2\\cdot 10^{11}", "y"), ("3e5", "300{,}000", "y"),
        ("3e5", "3 \\times 10^{6}", "n"), ("2.50e2", "250", "y"), ("9.1 \\times 10^{-31}", "9.1e-31", "y"), ("1e-3", "\\frac{1}{1000}", "y"),
        ("1E6", "10^6", "y"), ("-2e3", "-2000", "y"), ("3e", "3", "n"), ("2e", "e+e", "y"), ("8e0", "8", "y"),
        ("6.67e-11", "6.67 \\times 10^{-11} \\text{ N}", "y"), ("1.5e8", "1.5 x 10^8", "y"), ("1e5", "100001", "n"),
    ],
    "words and scales": [
        ("12", "twelve", "y"), ("Seven", "7", "y"), ("2000000", "2 million", "y"), ("\\$2.5 \\text{ million}", "2500000", "y"),
        ("3 billion", "3000000", "n"), ("twenty", "20.0", "y"), ("4", "\\text{four}", "y"), ("4", "\\text{fourteen}", "n"),
        ("5 thousand", "5{,}000", "y"), ("two", "three", "n"), ("2 and 5", "\\text{two and five}", "y"), ("\\$7 million", "\\$7,000,000", "y"),
    ],
    "units": [
        ("3 m", "300 cm", "y"), ("3 m", "3 km", "n"), ("90 \\text{ minutes}", "1.5 \\text{ hours}", "y"), ("2 kg", "2 m", "n"),
        ("2 ft", "24 inches", "y"), ("7 \\text{ m}^2", "7", "y"), ("7 \\text{ m}^2", "7 \\text{ m}", "n"), ("1 \\text{ m}^2", "10000 \\text{ cm}^2", "y"),
        ("60 mph", "60 \\text{ miles per hour}", "y"), ("36 km/h", "10 m/s", "y"), ("8 square feet", "8 \\text{ ft}^2", "y"),
        ("\\$4.50", "450 \\text{ cents}", "y"), ("\\$5", "\u20ac5", "n"), ("12", "12 \\text{ marbles}", "y"), ("12 apples", "12 pears", "n"),
        ("5\\pi \\text{ cm}", "5\\pi", "y"), ("5\\pi \\text{ cm}", "5\\pi \\text{ m}", "n"), ("\\sqrt{2} \\text{ m}", "100\\sqrt{2} \\text{ cm}", "y"),
        ("30^\\circ", "30", "y"), ("2 L", "2000 mL", "y"), ("2 days", "48 hours", "y"), ("10 euros", "10", "y"), ("6", "6'", "y"),
        ("5m", "5", "n"), ("4 dozen", "4", "y"), ("\\$18.00", "18", "y"), ("18", "\\$18.00", "y"), ("$7.25", "\\$7.25", "y"),
        ("3 \\text{ boys}", "3 \\text{ boy}", "y"), ("8 \\text{ units}", "8 \\text{ cm}", "y"), ("20 cm^3", "20 \\text{ cubic centimeters}", "y"),
        ("5 \\text{ cm}, 12 \\text{ cm}", "5, 12", "y"), ("5 and 12 cm", "5 \\text{ cm and } 12 \\text{ cm}", "y"), ("9:00 am", "9:00 pm", "n"),
    ],
    "degrees under functions": [
        ("\\frac{1}{2}", "\\cos 60^\\circ", "y"), ("1", "\\tan 45^{\\circ}", "y"), ("\\cos 60", "\\cos 60^\\circ", "n"),
        ("\\frac{\\sqrt{3}}{2}", "\\sin(60\\degree)", "y"), ("\\sin 20^\\circ", "\\cos 70^\\circ", "y"), ("0", "\\cos 90\u00b0", "y"),
        ("\\tan 30^\\circ", "\\frac{1}{\\sqrt{3}}", "y"), ("2\\sin 15^\\circ", "2 \\sin 15", "n"),
    ],
    "forms that math-verify takes": [
        ("xy", "yx", "y"), ("abc", "cab", "y"), ("x \\in (2,5]", "(2,5]", "y"), ("(2,5]", "2 < x \\le 5", "y"), ("3,4", "x=3, x=4", "y"),
        ("3", "\\log_{10} 1000", "y"), ("120", "{10 \\choose 3}", "y"), ("6", "\\binom{4}{2}", "y"), ("7, 9", "7 \\text{ and } 9", "y"),
        ("512", "2^{3^{2}}", "y"), ("81", "3^{2^{2}}", "y"), ("64", "2^{3^{2}}", "n"), ("8", "(" * 20 + "8" + ")" * 20, "y"), ("2,7", "x=2 \\text{ or } x=7", "y"),
        ("x>3", "3<x", "y"), ("x \\geq 3", "[3,\\infty)", "y"), ("(3,\\infty)", "x \\geq 3", "n"), ("x<1 \\text{ or } x>2", "(-\\infty,1)\\cup(2,\\infty)", "y"),
        ("(1,3)", "x > 1 \\text{ and } x < 3", "y"), ("x>1 \\text{ and } x<3", "(-\\infty,3)\\cup(1,\\infty)", "n"),
        ("4", "\\sqrt{16}", "y"), ("24", "4!", "y"), ("2\\pi", "2*pi", "y"), ("\\sqrt{7}", "sqrt(7)", "y"), ("8", "2**3", "y"), ("x^2", "x*x", "y"),
        ("\\frac{3}{5}", "{3 \\over 5}", "y"), ("|x|", "\\lvert x \\rvert", "y"), ("3x+2y=5", "6x+4y=10", "y"), ("3x+2y=5", "3x+2y=6", "n"),
        ("x=4, y=7", "(4,7)", "y"), ("(4,7)", "x=7, y=4", "n"), ("y=3x", "x=3y", "n"), ("\\{4,4,5\\}", "\\{5,4\\}", "y"), ("3", "\\{3\\}", "y"),
        ("\\{1,2\\}", "\\{1,3\\}", "n"), ("(0,1)\\cup(1,2)", "(1,2)\\cup(0,1)", "y"), ("[0,1]\\cup[1,2]", "[0,2]", "y"), ("x=5", "y=5", "n"),
        ("p=2x", "2x", "y"), ("\\frac{\\pi}{6}+2\\pi k", "2 \\pi k + \\frac{\\pi}{6}", "y"), ("x \\in \\mathbb{R}", "(-\\infty,\\infty)", "y"),
    ],
    "lists and words": [
        ("(3,4)", "(4,3)", "n"), ("3,4", "4,3", "y"), ("3,4", "3,4,4", "n"), ("1,000", "1000", "y"), ("(1,000)", "1,000", "y"), ("\\text{red, blue}", "Red, blue", "y"),
        ("B", "\\text{(B)}", "y"), ("\\textbf{(D)}\\ 12", "12", "y"), ("\\textbf{(D)}\\ 12", "D", "y"), ("\\textbf{(D)}\\ 12", "E", "n"),
        ("17", "\\textbf{(A)}\\ 17", "y"), ("17", "\\textbf{(A)}\\ 18", "n"), ("D. 9", "D", "y"), ("A", "a", "y"), ("n", "N", "n"), ("(10,050)", "10050", "y"), ("(10,50)", "1050", "n"), ("\\text{False}", "false", "y"), ("False", "0", "n"),
        ("[\"7\", \"seven apples\"]", "7", "y"), ("[\"7\", \"9\"]", "9", "y"), ("[\"7\", \"9\"]", "8", "n"), ("['\\\\sqrt{2}', '1']", "\\sqrt 2", "y"), ("even", "\\text{odd}", "n"),
    ],
    "doubles printed in full": [
        ("0.7999999999999999", "0.8", "y"), ("0.1111111111111111", "\\frac{1}{9}", "y"), ("\\frac{1}{9}", "0.1111111111111111", "n"),
        ("0.1111111", "\\frac{1}{9}", "n"), ("100000000000000000000000", "10^{23}", "y"), ("12345678901234567", "12345678901234568", "n"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_other_examples_of_each_kind(grader, kind):
    found = [verdict.outcome == "correct" for verdict in verdicts(grader, KINDS[kind])]
    assert [pair for pair, right in zip(KINDS[kind], found, strict=True) if right != (pair[2] == "y")] == []
