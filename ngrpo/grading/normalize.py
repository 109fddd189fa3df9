r"""Answers as they are written: one spelling of LaTeX for many. Nothing is computed here.

Every rule is one pass over the text, so hostile texts cost what their length costs. It does not know which answer is gold.
"""

import re
from functools import lru_cache

from ngrpo.grading.brackets import closing, wrapped
from ngrpo.grading.characters import translated

LONGEST = 2000  # characters of an answer; longer ones are not answers
SPACES = re.compile(r"(?<!\\)\\[,;:! ]|\\q?quad\b|~|\s+")  # a double backslash ends the row of a matrix
DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]")
SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits)(?![a-zA-Z])")
FRACTIONS = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
BARE_FRACTION = re.compile(r"\\frac\s*(\\pi|\w)\s*(\\pi|\w|(?=\{))")
HALF_BARE_FRACTION = re.compile(r"(\\frac\s*\{[^{}]*\})\s*(\w)")
BARE_ROOT = re.compile(r"\\sqrt\s*(\w)")
# Digits in groups of three with a separator that is no list's; a bare space only where no fraction follows.
THOUSANDS = re.compile(r"(?<![\w.,}^])\d{1,3}(?:(?:\\[,;:! ]|\{,\}|,\\!|~| )\d{3})+(?![\d,]|\s*(?:/|\\frac|\d))")
TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textit|textrm|mathit|mathsf|textsf|mbox|rm|bf)\s*\{([^{}]*)\}")
SINGLE = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textit|textrm|mathit|mathsf|mbox|rm|bf)\s*\{\s*(\w|[\d.,]+)\s*\}")
WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|mbox)\s*\{[^{}]*[a-zA-Z]{2}")  # what no parser may take for letters
SUBSCRIPT = re.compile(r"(?<!\\log)_\{(\w+)\}")
LOGARITHM = re.compile(r"\\log ?_(\w)")
SCALE = re.compile(r"\\(?:text|mathrm|textrm) ?\{\s*((?:hundred|thousand|million|billion|trillion)s?)\s*\}")
DEGREES = re.compile(r"\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})|\\degree(?![a-zA-Z])")
COMMANDS = {
    **{
        r"\leqslant": r"\le",
        r"\leq": r"\le",
        r"\geqslant": r"\ge",
        r"\geq": r"\ge",
        r"\neq": r"\ne",
        r"\ast": r"\cdot",
    },
    **{r"\varnothing": r"\emptyset", r"\infin": r"\infty", r"\lbrace": r"\{", r"\rbrace": r"\}", r"\colon": ":"},
    **{r"\lor": r"\text{ or }", r"\lg": r"\log_{10}"},
}
OPERATORS = {"<=": r"\le ", ">=": r"\ge ", "!=": r"\ne ", r"\lt": "<", r"\gt": ">", "**": "^", r"\%": "%"}
OPERATORS |= {r"\langle": "(", r"\rangle": ")"}
COMMAND, OPERATOR = (
    re.compile("|".join(re.escape(name) + "(?![a-zA-Z])" * name[-1].isalpha() for name in table))
    for table in (COMMANDS, OPERATORS)
)
CHOOSE = re.compile(r"\{\s*([^{}]{1,40}?)\s*\\choose\s*([^{}]{1,40}?)\s*\}")
MODULES = re.compile(r"\b(?:np|numpy|math|sympy|sp)\.(?=[a-z])")
FUNCTIONS = re.compile(r"(?<![\\a-zA-Z])(arc(?:sin|cos|tan)|sinh?|cosh?|tanh?|cot|sec|csc|log|ln|exp|pi)(?![a-zA-Z{])")
INFINITY = re.compile(r"(?<![\\a-zA-Z])infinity(?![a-zA-Z])", re.IGNORECASE)
ROOT_CALL = re.compile(r"(?<![\\a-zA-Z])sqrt ?(?=\()")
FACTORS = re.compile(r"(?<![\w.^}])(\d+(?:\.\d+)?) ?(?=\()")
ANGLES = re.compile(r"(\d+(?:\.\d+)?|\([^()]*\)|\b[a-z]|\\[a-z]+) ?" + f"(?:{DEGREES.pattern})")
TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
DOUBLE = re.compile(r"\^(?:\\[a-zA-Z]+|[^{}\\\s])\s*\^")  # a^b^c
SMALL_TOWER = re.compile(r"\^ ?\{ ?(\d) ?\^ ?(?:\{ ?(\d) ?\}|(\d)) ?\}")
LETTER = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]")  # of a name, not of a command
APART = re.compile(r"(?<![\d.])(_?)([\d.]+) +(?=[\d.])")  # two numbers, of which the first is no index


def normalized(text: str) -> str:
    """One spelling for what is written alike: Unicode, spacing, sizes of brackets, fractions, separators, full stop."""
    if text.isdecimal() and text.isascii():
        return text
    text = translated(text)
    is_latex = "\\" in text or "$" in text or "{" in text or "~" in text
    text = _latex(text) if is_latex else THOUSANDS.sub(_joined, text)
    text = SPACES.sub(" ", _as_latex(OPERATOR.sub(lambda found: OPERATORS[found[0]], text))).strip()
    if text.endswith("."):
        text = text.rstrip(". ")
    while wrapped(text):
        text = text[1:-1].strip().removesuffix(".").strip()
    return text


def _latex(text: str) -> str:
    text = THOUSANDS.sub(_joined, DELIMITERS.sub("", _undollared(text)))
    text = FRACTIONS.sub(r"\\frac", SIZES.sub("", COMMAND.sub(lambda found: COMMANDS[found[0]], text)))
    text = LOGARITHM.sub(r"\\log_{\1}", SCALE.sub(r" \1", text))
    text = CHOOSE.sub(r"\\binom{\1}{\2}", SUBSCRIPT.sub(r"_\1", text).replace("{,}", ",").replace("\\text{:}", ":"))
    return BARE_ROOT.sub(r"\\sqrt{\1}", HALF_BARE_FRACTION.sub(r"\1{\2}", BARE_FRACTION.sub(_braced, text)))


def _undollared(text: str) -> str:
    """Without the dollars around formulas; one that stands alone before a digit is money."""
    if "$" not in text:
        return text
    text = text.replace("\\$", "\x00")
    alone = text.count("$") % 2 and re.match(r"\s*[-+]?\s*\$\s*[\d.]", text)
    text = text.replace("$", "\x00", 1).replace("$", "") if alone else text.replace("$", "")
    return text.replace("\x00", "\\$")


def _as_latex(text: str) -> str:
    """Functions that are written as in a program, as LaTeX."""
    if "(" not in text and "pi" not in text and "infinity" not in text.lower():
        return text
    text = MODULES.sub("", INFINITY.sub(r"\\infty", text))
    text = FUNCTIONS.sub(r"\\\1", text) if "\\text" not in text else text
    while found := ROOT_CALL.search(text):
        end = closing(text, found.end())
        if not end:
            break
        text = f"{text[: found.start()]}\\sqrt{{{text[found.end() + 1 : end]}}}{text[end + 1 :]}"
    return text


def without_fonts(text: str) -> str:
    r"""The words of `\text{...}` and its like as they are."""
    return TEXT.sub(r"\1", text).strip() if "\\" in text else text


def _joined(found: re.Match) -> str:
    return re.sub(r"\D", "", found[0])


def _braced(fraction: re.Match) -> str:
    above, below = fraction.groups()
    return f"\\frac{{{above}}}" + (f"{{{below}}}" if below else "")


def tower(text: str) -> bool:
    """Whether a power of numbers stands in an exponent: its value may have more digits than there is memory."""
    opened: list[tuple[int, bool]] = []  # of each open brace its place, and whether it holds an exponent
    for place, character in enumerate(text):
        if character == "{":
            opened.append((place, text.startswith("^", place - 1)))
        elif character == "}" and opened:
            start, raised = opened.pop()
            inner = text[start:place]
            if raised and (text.startswith("^", place + 1) or ("^" in inner and not LETTER.search(inner))):
                return True
    return bool(DOUBLE.search(text))


@lru_cache(maxsize=2048)
def formula(text: str) -> str:
    """What of `text`, as `normalized` left it, is compared as a formula.

    2(3) gets its sign of multiplication, as a parser takes it for 2 + 3; degrees under a sine are a share of pi; a power of
    two digits in an exponent is worked out.
    """
    if TRIGONOMETRY.search(text):
        text = ANGLES.sub(r"(\1 \\cdot \\frac{\\pi}{180})", text)
    text = SMALL_TOWER.sub(lambda found: f"^{{{int(found[1]) ** int(found[2] or found[3])}}}", DEGREES.sub("", text))
    return FACTORS.sub(r"\1\\cdot ", SINGLE.sub(r"\1", text).replace("/ ", "/")).strip()


def bare(text: str) -> str:
    """`text` without its spaces, but for those that keep two numbers apart."""
    if " " not in text:
        return text
    return APART.sub(lambda found: found[0] if found[1] else f"{found[2]}\x00", text).replace(" ", "")
