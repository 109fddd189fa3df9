"""Brackets of a text: which one closes which, whether all do, and how deep they are nested."""

DEEPEST = 128  # nested brackets of an answer
OPENING, CLOSING = "{([", "})]"


def closing(text: str, start: int = 0, opening: str = OPENING, closed_by: str = CLOSING) -> int:
    """Where the bracket at `start` closes, brackets of all the given kinds alike; 0 where it does not."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] in opening) - (text[place] in closed_by)
        if depth == 0:
            return place
    return 0


def wrapped(text: str, pair: str = "{}") -> bool:
    """Whether one pair of brackets stands around all of a text."""
    ends = text.startswith(pair[0]) and text.endswith(pair[1]) and not text.endswith("\\" + pair[1])
    return ends and closing(text, 0, *pair) == len(text) - 1


def balanced(text: str) -> bool:
    """Whether every brace that opens closes, in order."""
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0


def deep(text: str) -> bool:
    """Whether brackets are nested too deep to be an answer."""
    depth = 0
    for character in text:
        depth += (character in OPENING) - (character in CLOSING)
        if depth > DEEPEST:
            return True
    return False
