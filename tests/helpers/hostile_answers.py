"""Answers that break graders, with what must come of each: (gold, what stands in the box, allowed outcomes).

`WRONG` answers must never be correct, whatever else they are; `RIGHT` ones must be.
"""

NOT = {"wrong", "unparsed", "timeout", "error"}
YES = {"correct"}

TOWERS = [f"{a}^{{{a}^{{{a}^{{{b}}}}}}}" for a in (2, 3, 5, 7, 9, 10) for b in (5, 7, 9, 99)]
POWERS = [f"{a}^{{{b}}}" for a in (2, 5, 7, 9, 10) for b in (10**4, 10**7, 10**12)] + [
    "2^{2^{30}}",
    "10^{10^{10}}",
    "(-2)^{-99999}",
]
FACTORIALS = [f"{n}!" for n in (1000, 10**5, 10**8, 10**9)] + [
    "5!!!!!",
    "((20!)!)!",
    "(10^9)!",
    "\\binom{10^9}{5*10^8}",
    "\\binom{99999}{500}",
]
SUMS = [
    "\\sum_{k=1}^{10^6}\\frac1k",
    "\\prod_{k=1}^{99999}k",
    "\\int_0^1 x^{x^x}dx",
    "\\lim_{n\\to\\infty}n^{n}",
    "\\lfloor e^{10^9}\\rfloor",
    "\\sum_{i=1}^{\\infty}\\frac{1}{i^2}",
    "\\sqrt[99999]{7}",
    "\\log_{10}(10^{10^{9}})",
]
LONG = (
    ["9" * n for n in (400, 5_000, 100_000, 1_000_000)]
    + ["1" + "+1" * n for n in (300, 5000)]
    + [
        "x" * 100_000,
        "\\frac" * 3000,
        "(" * 20_000,
        "\\sqrt{" * 400 + "2" + "}" * 400,
        "{" * 400 + "7" + "}" * 400,
        "\\text{" * 5000,
        "\\left(" * 3000,
        "-" * 500 + "7",
        "\\[ " * 5000 + "7",
        ", ".join(map(str, range(1500))),
        "{" + ",".join(map(str, range(400))) + "}",
        "a" + "_{a" * 100 + "}" * 100,
    ]
)
CODE = [
    "__import__('os').system('touch CANARY')",
    "exec(open('CANARY','w'))",
    "\\text{eval(open('CANARY','w').close())}",
    "(lambda: open('CANARY','w'))()",
    "{{7*7}}",
    "${7*7}$",
    "\\input{/etc/passwd}",
    "\\write18{touch CANARY}",
    "`touch CANARY`",
    "$(touch CANARY)",
    "; touch CANARY",
    "().__class__",
    "Symbol('x').__class__",
    "N(__import__('os'))",
    "%s%s%s%n",
    "\\immediate\\write18{touch CANARY}",
    "import os; os.remove('x')",
]
CONTROLS = [
    "\x00",
    "7\x00",
    "\x1b[31m8",
    "\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace"),
    "\u202e8",
    "\r\n",
    "\t8\x07",
    "\ufeff\u200b8",
    "\U0001d7d6",
    "\u0668",
    "\u096e",
    "eight\x00",
]
HACKS = [
    "7=5",
    "1=2=3=4=5",
    "\\neq 5",
    "5 or 7",
    "5, 7",
    "\\{5,7\\}",
    "5 \\text{ apples and } 3 \\text{ pears}",
    "5\\pm 1",
    "x<5",
    "5\\leq x",
    "[5,6]",
    "5 \\text{ or } 6",
    "\\approx 5",
    "4.9999999",
    "5.0000001",
    "5+",
    "",
    " ",
    "\\text{the answer}",
    "5?6",
    "55",
    "5_6",
    "5=5=6",
    "\\not 5",
    "6-",
    "\\infty",
    "nan",
    "None",
    "5\\%\\%",
    "5^{2}",
    "5i",
    "\\frac{5}{0}",
    "5/0",
    "-5",
    "(5,5)",
    "0x5",
    "5e1",
    "5\\cdot 2",
]
PAIRS = [
    ("101_2", "101_3"),
    ("even", "neve"),
    ("\\frac{1}{3}", "0.333"),
    ("\\pi", "3.14159"),
    ("[0,1)", "[0,1]"),
    ("(1,2)", "(2,1)"),
    ("x+1", "x-1"),
    ("\\sqrt{2}", "1.41421356"),
    ("\\text{Monday}", "\\text{Tuesday}"),
    ("1/2^{99}", "1/2^{98}"),
    ("2^{10}", "1025"),
    ("A", "B"),
    ("x^2", "x^3"),
    ("\\{1,2,3\\}", "\\{1,2\\}"),
    ("10!", "3628801"),
    ("\\frac{\\sqrt{3}}{2}", "\\frac{\\sqrt{2}}{2}"),
    ("3+4i", "3-4i"),
    ("(-\\infty,2)", "(-\\infty,2]"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}2\\\\1\\end{pmatrix}"),
]
SAME = [
    ("5", "5"),
    ("5", "5."),
    ("5", "5.0"),
    ("5", "+5"),
    ("5", "x=5"),
    ("5", "$5$"),
    ("5", "\\text{5}"),
    ("5", "5 \\text{ cm}"),
    ("5", "{5}"),
    ("5", "\uff15"),
    ("1000", "1{,}000"),
    ("1000", "1,000"),
    ("1000", "1\\,000"),
    ("90", "90^\\circ"),
    ("90", "90°"),
    ("\\frac{1}{3}", "0.\\overline{3}"),
    ("-2", "\u22122"),
    ("\\frac{1}{2}", "1/2"),
    ("\\frac{1}{2}", "\\dfrac12"),
    ("\\frac{1}{2}", "0.5"),
    ("0.5", "\\tfrac{1}{2}"),
    ("2\\frac{1}{2}", "2.5"),
    ("33", "33\\%"),
    ("0.33", "33\\%"),
    ("even", "\\text{Even}"),
    ("x+1", "1+x"),
    ("2\\sqrt{3}", "\\sqrt{12}"),
    ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}"),
    ("\\{1,2\\}", "\\{2,1\\}"),
    ("(1,2)", "\\left(1, 2\\right)"),
    ("[0,1)", "[0, 1)"),
    ("x^2+2x+1", "(x+1)^2"),
    ("101_2", "101_{2}"),
    ("\\pi", "\\pi"),
    ("6\\pi", "2\\pi\\cdot 3"),
    ("(-\\infty,2)", "(-\\infty, 2)"),
    ("3+4i", "4i+3"),
    ("2^{10}", "1024"),
    ("-\\frac{1}{2}", "\\frac{-1}{2}"),
    ("\\frac{3}{4}", "\\frac{6}{8}"),
    ("12", "12\\text{ inches}"),
    ("p - q", "p-q"),
]

HOSTILE = [("8", text, NOT) for text in (*TOWERS, *POWERS, *FACTORIALS, *SUMS, *CODE)]
HOSTILE += (
    [("123456", text, NOT) for text in LONG]
    + [("9", text, NOT) for text in CONTROLS]
    + [("5", text, NOT) for text in HACKS]
)
HOSTILE += [(gold, text, NOT) for gold, text in PAIRS] + [(gold, text, YES) for gold, text in SAME]
