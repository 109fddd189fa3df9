r"""Characters outside ASCII as the LaTeX that means the same: `²` is an exponent, `½` a fraction, `π` a letter.

Compatibility folding would make 102 of `10²`; here a character is translated or stays, and never becomes another value.
"""

import re
import unicodedata
from itertools import groupby
from operator import itemgetter

from ngrpo.grading.brackets import closing

INVISIBLE = re.compile("[\u200b-\u200f\u2060-\u2064\ufeff\u00ad\ufe0f]")
SAME = {"font", "wide", "narrow", "noBreak"}  # of a decomposition: another shape of the same characters
SYMBOLS = {
    **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\u2014\u2015\ufe63", "-"),
    **dict.fromkeys("\u00d7\u2a2f\u2715", r"\times "),
    **dict.fromkeys("\u00b7\u22c5\u2219\u2217", r"\cdot "),
    **dict.fromkeys("\u00f7\u2044\u2215", "/"),
    **dict.fromkeys("\u2264\u2a7d\u2266", r"\le "),
    **dict.fromkeys("\u2265\u2a7e\u2267", r"\ge "),
    **dict.fromkeys("\u2205\u2300\u00f8", r"\emptyset "),
    **dict.fromkeys("\u00b0\u00ba\u02da", r"^\circ "),
    **dict.fromkeys("\u2018\u2019\u2032", "'"),
    **dict.fromkeys("\u201c\u201d\u2033", '"'),
    **dict.fromkeys("\uff0c\u3001", ","),
    **dict.fromkeys("\u2223\u01c0", "|"),
    **{"\u2260": r"\ne ", "\u2248": r"\approx ", "\u00b1": r"\pm ", "\u2213": r"\mp ", "\u221e": r"\infty "},
    **{"\u2208": r"\in ", "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2220": r"\angle ", "\u2192": r"\to "},
    **{"\u211d": r"\mathbb{R}", "\u2124": r"\mathbb{Z}", "\u2115": r"\mathbb{N}", "\u211a": r"\mathbb{Q}"},
    **{"\u2236": ":", "\u3002": ".", "\u2211": r"\sum ", "\u222b": r"\int ", "\u00ac": r"\neg "},
    **{"\u03d5": r"\phi ", "\u03b5": r"\epsilon ", "\u2030": r"\permil "},
}
ROOTS = {"\u221a": r"\sqrt", "\u221b": r"\sqrt[3]", "\u221c": r"\sqrt[4]"}
MOST_ROOTS = 30  # of one answer; each costs a pass over the text
RADICAND = re.compile(r"\d+(?:\.\d+)?|\\[a-zA-Z]+|[a-zA-Z]")
PAIRS = {"(": ")", "{": "}"}  # that may stand around a radicand


def translated(text: str) -> str:
    """`text` with LaTeX for what is not ASCII; a character that is not known stays, so that nothing takes it for a value."""
    if text.isascii():
        return text
    pieces = groupby(map(_translate, INVISIBLE.sub("", text)), key=itemgetter(0))  # raised neighbors are one exponent
    joined = ((kind, "".join(latex for _, latex in group)) for kind, group in pieces)
    return _radicals("".join(f"{kind}{{{latex}}}" if kind else latex for kind, latex in joined))


def _translate(character: str) -> tuple[str, str]:
    """(`^` for a raised character, `_` for a lowered one, else nothing; its LaTeX)."""
    if character.isascii() or character in ROOTS:
        return "", character
    if character in SYMBOLS:
        return "", SYMBOLS[character]
    if character.isspace():
        return "", " "
    name = unicodedata.name(character, "")
    if name.startswith("GREEK ") and " LETTER " in name and " WITH " not in name:
        letter = name.rpartition(" ")[2].lower().replace("lamda", "lambda")
        return "", f"\\{letter.capitalize() if 'CAPITAL' in name else letter} "
    tag, _, codes = unicodedata.decomposition(character).partition("> ")
    plain = "".join(chr(int(code, 16)) for code in codes.split()) if codes else ""
    if tag in ("<super", "<sub"):
        return "^" if tag == "<super" else "_", plain.replace("\u2212", "-")
    if tag == "<fraction":
        above, _, below = plain.partition("\u2044")
        return "", f"\\frac{{{above}}}{{{below}}}" if below else character
    if tag[1:] in SAME:
        return _translate(plain) if len(plain) == 1 else ("", plain)
    digit = unicodedata.decimal(character, None)
    return "", character if digit is None else str(digit)


def _radicals(text: str) -> str:
    """Root signs with their radicands in braces: what stands in brackets, a number, a letter or a command."""
    if sum(text.count(sign) for sign in ROOTS) > MOST_ROOTS:
        return text
    for sign, command in ROOTS.items():
        while (place := text.rfind(sign)) >= 0:  # from the right, so that a root under a root is there already
            rest = text[place + 1 :].lstrip()
            if rest[:1] in PAIRS and (end := closing(rest, 0, rest[0], PAIRS[rest[0]])):
                inner, rest = rest[1:end], rest[end + 1 :]
            elif found := RADICAND.match(rest):
                end = found.end() if not rest.startswith("\\sqrt") else _command_end(rest)
                inner, rest = rest[:end], rest[end:]
            else:
                inner = ""
            text = f"{text[:place]}{command}{{{inner}}}{rest}"
    return text


def _command_end(text: str) -> int:
    start = text.find("{")
    return max(closing(text, start, "{", "}"), start) + 1 if start >= 0 else len("\\sqrt")
