"""Read a final answer out of a text and compare integers exactly. It does not know which model or task wrote it."""

UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

BOX = "\\boxed"
BLANKS = 8  # between the command and its brace
# An integer written longer than this is not an answer, and int() is quadratic in its length.
LONGEST = 128

_UNIT_VALUES = {word: value for value, word in enumerate(UNITS)}
_TENS_VALUES = {word: 10 * value for value, word in enumerate(TENS, start=2)}
_SCALES = {"thousand": 1000, "million": 1000**2}


def extract_boxed(text: str, answer_start: str | None = None) -> str | None:
    r"""Contents of the complete `\boxed{...}` that opens last, stripped; None when there is none.

    Only the text after the first `answer_start` counts; where that marker is missing, so is the answer.
    One pass with a stack, so the time is linear however many braces are left open. Escaped braces count as braces.
    """
    if answer_start is not None:
        _, found, text = text.partition(answer_start)
        if not found:
            return None
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
    digits = text.lstrip("+-") if text[:2] not in ("++", "--", "+-", "-+") else ""
    if digits and _grouped(digits):
        value = int(digits.replace(",", ""))
        return -value if text[0] == "-" else value
    words = text.lower().replace("-", " ").split() if not text.startswith("-") else []
    if words and words[0] == "minus":
        value = _read_words(words[1:])
        return None if value is None else -value
    return _read_words(words)


def same_integer(left: str, right: str) -> bool:
    """Whether both texts are integers and the same one; `forty-two` equals `42`."""
    value = parse_integer(left)
    return value is not None and value == parse_integer(right)


def _grouped(digits: str) -> bool:
    first, *rest = digits.split(",")
    plain = all(part.isascii() and part.isdigit() for part in (first, *rest))
    return plain and (not rest or (len(first) <= 3 and all(len(part) == 3 for part in rest)))


def _read_words(words: list[str]) -> int | None:
    """The value of `two thousand one hundred and five`; None where the words do not make one number."""
    total, last_scale = 0, 1000**3
    group: list[str] = []
    for word in words:
        if word not in _SCALES:
            group.append(word)
            continue
        value = _read_below_thousand(group)
        if not value or _SCALES[word] >= last_scale:
            return None
        total, last_scale, group = total + value * _SCALES[word], _SCALES[word], []
    if not group:
        return total or None
    if total and group[0] == "and":
        group = group[1:]
    value = _read_below_thousand(group)
    return None if value is None or (total and value == 0) else total + value


def _read_below_thousand(words: list[str]) -> int | None:
    hundreds = 0
    if len(words) >= 2 and words[1] == "hundred":
        hundreds = 100 * _UNIT_VALUES.get(words[0], 0)
        if not 100 <= hundreds <= 900:
            return None
        words = words[2:]
        if not words:
            return hundreds
        words = words[1:] if words[0] == "and" else words
    value = _read_below_hundred(words)
    return None if value is None or (hundreds and value == 0) else hundreds + value


def _read_below_hundred(words: list[str]) -> int | None:
    if len(words) == 1:
        return _UNIT_VALUES.get(words[0], _TENS_VALUES.get(words[0]))
    if len(words) == 2 and words[0] in _TENS_VALUES and 1 <= _UNIT_VALUES.get(words[1], 0) <= 9:
        return _TENS_VALUES[words[0]] + _UNIT_VALUES[words[1]]
    return None
