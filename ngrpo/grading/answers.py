"""Read a final answer out of a text and compare integers exactly. It does not know which model or task wrote it."""

import re
from dataclasses import dataclass

_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
NUMBER_WORDS = (*_UNITS, *(f"{ten}-{_UNITS[unit]}" if unit else ten for ten in _TENS for unit in range(10)))  # 0 to 99

BOX = "\\boxed"
BLANKS = 8  # between the command and its brace
# An integer written longer than this is not an answer, and int() is quadratic in its length.
LONGEST = 128
DIGITS = re.compile(r"[-+]?(?:\d+|\d{1,3}(?:,\d{3})+)", re.ASCII)

_BELOW_HUNDRED = {words.replace("-", " "): value for value, words in enumerate(NUMBER_WORDS)}
_HUNDREDS = {f"{_UNITS[digit]} hundred": 100 * digit for digit in range(1, 10)}
_BELOW_THOUSAND = {
    f"{hundreds}{link}{words}": value + rest
    for hundreds, value in _HUNDREDS.items()
    for words, rest in _BELOW_HUNDRED.items()
    for link in (" ", " and ")
    if rest
}
_BELOW_THOUSAND |= _BELOW_HUNDRED | _HUNDREDS
_SCALES = {"thousand": 1000, "million": 1000**2}


@dataclass(frozen=True)
class Verdict:
    """What a grader says of one answer. `outcome`: correct, wrong, unparsed, timeout or error.

    extracted: the answer as it stood in the text, None without one. reading: what was folded, dropped or chosen so that
    it could be compared ("unit cm dropped; 5 1/3 read as 16/3"); empty where nothing was.
    """

    outcome: str
    extracted: str | None
    reading: str = ""


def extract_boxed(text: str) -> str | None:
    r"""Contents of the complete `\boxed{...}` that opens last, stripped; None when there is none.

    One pass with a stack, so the time is linear however many braces are left open. Escaped braces count as braces.
    """
    open_braces: list[int] = []
    last = (-1, -1)
    for position, character in enumerate(text):
        if character == "{":
            open_braces.append(position)
        elif character == "}" and open_braces:
            start = open_braces.pop()
            end = start  # of the command, which a few spaces may follow
            while end > max(start - BLANKS, 0) and text[end - 1].isspace():
                end -= 1
            if text.startswith(BOX, max(end - len(BOX), 0), end):
                last = max(last, (start, position))
    return None if last == (-1, -1) else text[last[0] + 1 : last[1]].strip()


def parse_integer(text: str) -> int | None:
    """The integer that `text` is, written as ASCII digits or as English number words; None for anything else.

    Accepts a sign (`-`, `+`, `minus`), thousands commas in their places, and `forty-two` with a hyphen or a space.
    """
    text = text.strip()
    if not text or len(text) > LONGEST:
        return None
    if found := DIGITS.fullmatch(text):
        return int(found[0].replace(",", ""))
    words = text.lower().replace("-", " ").split() if not text.startswith("-") else []
    value = _read_words(words[1:] if words[:1] == ["minus"] else words)
    return -value if value and words[0] == "minus" else value


def same_integer(left: str, right: str) -> bool:
    """Whether both texts are integers and the same one; `forty-two` equals `42`."""
    value = parse_integer(left)
    return value is not None and value == parse_integer(right)


def integer_outcome(answer: str | None, gold: str) -> str:
    """The outcome of an answer that should be the integer `gold`: `unparsed` for what is no integer."""
    if answer is None or parse_integer(answer) is None:
        return "unparsed"
    return "correct" if same_integer(answer, gold) else "wrong"


def _read_words(words: list[str]) -> int | None:
    """The value of `two thousand one hundred and five`; None where the words do not make one number."""
    total, last_scale = 0, 1000**3
    group: list[str] = []
    for word in words:
        if word not in _SCALES:
            group.append(word)
            continue
        value = _BELOW_THOUSAND.get(" ".join(group))
        if not value or _SCALES[word] >= last_scale:
            return None
        total, last_scale, group = total + value * _SCALES[word], _SCALES[word], []
    if not group:
        return total or None
    if total and group[0] == "and":
        group = group[1:]
    value = _BELOW_THOUSAND.get(" ".join(group))
    return None if value is None or (total and value == 0) else total + value
