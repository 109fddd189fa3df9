"""`python -m ngrpo.grading`: a line out for each line in, and what was decided is told."""

import subprocess
import sys
import time

import pytest

from ngrpo.grading.answers import Verdict
from ngrpo.grading.exact import Exact
from ngrpo.grading.latex import Latex, settle


def command(content: bytes) -> list[str]:
    done = subprocess.run([sys.executable, "-m", "ngrpo.grading"], input=content, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().split("\n")[:-1]


def test_each_line_has_one_line_of_three_fields():
    lines = [
        "gold\tanswer\tequal", "7\t8\ty",
        "6 1/2\t\\frac{13}{2}", "9\tit is \\boxed{9}.", "9\tno \\boxed{8 \\boxed {9}", "4", "",
        "4\t\t", "30\\%\t0.3\tn\tmore", "\\sqrt{18}\t3\u221a2", "2\t2 \\text{ cm}\r", "gold\tanswer", "\u2028\t\u2028",
    ]  # fmt: skip
    found = [line.split("\t") for line in command("\n".join(lines).encode())]
    assert [len(fields) for fields in found] == [3] * 12
    assert [fields[0] for fields in found] == [
        *("wrong", "correct", "correct", "correct", "unparsed", "unparsed", "unparsed"),
        *("correct", "correct", "correct", "wrong"),
        "unparsed",
    ]
    assert found[2][1] == found[3][1] == "9"
    assert "hundredth" in found[7][2] and "Unicode" in found[8][2] and "cm dropped" in found[9][2]


def test_bytes_that_are_no_text_and_odd_fields_cost_no_line():
    found = command(b"5\t\xff\xfe\n5\t5\x0b\n5\t\x005\n\\text{a\x85b}\t7\n" + b"x" * 5000 + b"\ty\n")
    assert len(found) == 5 and all(line.count("\t") == 2 for line in found)
    assert command(b"") == [] and command(b"gold\tanswer\n") == []


@pytest.mark.parametrize(
    ("gold", "answer", "told"),
    [
        ("8", "8 \\text{ kg}", "unit kg dropped"), ("150 cm", "1.5 m", "m converted to cm"), ("2k", "x = 2k", "name x dropped"),
        ("k", "x = k", "right side"),
        ("0.4", "40\\%", "hundredth"), ("12", "twelve", "twelve read as 12"), ("(2,\\infty)", "x > 2", "interval"),
        ("[\"8\", \"9\"]", "9", "alternative 2 of 2"), ("\\textbf{(C)} 4", "C", "letter"),
        ("0.30000000000000004", "0.3", "double"),
    ],
)  # fmt: skip
def test_what_decided_is_told(gold, answer, told):
    (verdict,) = Latex().grade([f"\\boxed{{{answer}}}"], [gold])
    assert verdict.outcome in ("correct", "wrong") and told in verdict.reading
    assert Latex().grade(["\\boxed{5}"], ["5"]) == [Verdict("correct", "5", "")]


def test_notes_of_the_gold_come_first_in_every_process():
    assert settle("\\frac{1}{2}", "\u00bd").note == "\\frac{1}{2} read as 1/2; Unicode translated"


def test_the_name_of_older_configurations_is_the_same_grader():
    assert issubclass(Exact, Latex) and set(vars(Exact)) <= {"__module__", "__doc__"}


UNITS = [
    "a ", "1 ", "1,", "{", "(", "\\text{a and ", "\\frac", "\\pm 1", "\\cup ", "x<", "= ", "\\in ", "1e", "10^",
    "\u221a", "\u00b2", "\u00bd",
    "\\{", "a and ", "1 hour ", "%", "\\$", "one hundred ", "(1,", "^\\circ", "sqrt(", "[", "'", "0.", "million ", "m/",
    "(A) ", "a per ",
]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_what_is_written_again_and_again_costs_little(unit):
    for frame in ("{}", "({})", "\\text{{{}}}", "1 {}"):
        text = frame.format((unit * 2000)[:1980])
        started = time.perf_counter()
        for pair in (("5", text), (text, "5"), (text, text[:-1]), (text, text)):
            assert settle(*pair).outcome in ("correct", "wrong", "unparsed", None)
        assert time.perf_counter() - started < 3  # generous, for a busy machine; a tenth of a second alone
