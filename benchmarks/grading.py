r"""How many answers a second the grader settles, of respellings of a file's golds.

python -m benchmarks.grading math500.jsonl          golds stand in the field `answer` of each line
"""

import json
import random
import re
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from ngrpo.grading.latex import Latex, settle
from ngrpo.grading.normalize import normalized
from ngrpo.grading.values import number

WHOLE = re.compile(r"-?\d+")
RATIO = re.compile(r"(-?)\\frac\{(\d+)\}\{(\d+)\}")


def whole_numbers(gold: str) -> list[str]:
    """Other spellings of an integer."""
    value = int(gold)
    grouped = f"{value:,}"
    spellings = [f"{gold}.0", f"+{gold}" if value >= 0 else gold, grouped, grouped.replace(",", "{,}"), f"{gold}."]
    return [*spellings, f"x = {gold}", f"\\text{{{gold}}}", f"\\frac{{{2 * value}}}{{2}}", f"\\left({gold}\\right)"]


def ratios(gold: str) -> list[str]:
    """Other spellings of a fraction."""
    sign, above, below = RATIO.fullmatch(gold).groups()  # pyright: ignore[reportOptionalMemberAccess]
    value = Fraction(int(above), int(below))
    found = [
        f"{sign}{above}/{below}",
        f"{sign}\\dfrac{{{above}}}{{{below}}}",
        f"{sign}\\frac{{{2 * int(above)}}}{{{2 * int(below)}}}",
    ]
    if value > 1 and value.denominator > 1:
        whole, rest = divmod(value, 1)
        found += [
            f"{sign}{whole}\\frac{{{rest.numerator}}}{{{rest.denominator}}}",
            f"{sign}{whole} {rest.numerator}/{rest.denominator}",
        ]
    if set(_primes(value.denominator)) <= {2, 5}:
        found.append(f"{sign}{float(value)}")
    return found


def _primes(number: int) -> list[int]:
    return [
        prime for prime in range(2, number + 1) if number % prime == 0 and all(prime % low for low in range(2, prime))
    ]


def respellings(gold: str) -> list[str]:
    """Other spellings of a gold that a model might write, equal without any computation."""
    found = [f"${gold}$", f" {gold} ", f"{{{gold}}}", f"\\displaystyle {gold}", gold.replace("\\frac", "\\dfrac")]
    found += [re.sub(r"(?<!\\)([-+=,])(?![ \\])", r"\1 ", gold), gold.replace("(", "\\left(").replace(")", "\\right)")]
    if WHOLE.fullmatch(gold):
        found += whole_numbers(gold)
    elif RATIO.fullmatch(gold):
        found += ratios(gold)
    return [text for text in dict.fromkeys(found) if text != gold and text.count("\\left") == text.count("\\right")]


def computed(gold: str) -> list[str]:
    """Spellings of a formula's value that a parser must read; none for words, lists and relations."""
    if re.search(r"\\text|\\mbox|[=<>,]|\\le|\\ge|\\in|\\begin|_|%|\\%|\\pm|\\circ|\\\$|\d{4}", gold) or re.fullmatch(
        r"[a-zA-Z ]*", gold
    ):
        return []
    plus = f"{gold}+7" if number(normalized(gold)) is None else f"\\sqrt{{49}}+{gold}"
    return [
        f"\\frac{{2\\left({gold}\\right)}}{{2}}",
        f"0+{gold}" if not gold.startswith("-") else f"{gold}+0",
        f"{plus}-7",
    ]


def pairs_of(golds: Sequence[str], parsed: bool) -> list[tuple[str, str]]:
    """Each gold with each of its spellings, those that need the parser or those that do not, in a random order."""
    pairs = [(gold, text) for gold in dict.fromkeys(golds) if gold for text in respellings(gold) + computed(gold)]
    kept = [pair for pair in pairs if (settle(*pair).outcome is None) == parsed]
    random.Random(0).shuffle(kept)
    return kept


def forget() -> None:
    """Empties the caches that choosing the pairs has filled."""
    from ngrpo.grading import choices, normalize, reading

    for function in (choices.alternatives, choices.option, reading.read, normalize.formula):
        function.cache_clear()


def main(path: str) -> None:
    """Print two lines: of spellings that need no parser and of those that do, the rate and how many are found correct."""
    golds = [json.loads(line)["answer"] for line in Path(path).read_text(encoding="utf-8").splitlines()]
    grader = Latex()
    grader.grade(["\\boxed{\\frac{1}{2}}"], ["0.51x"])  # starts the process
    for name, parsed in (("no parser", False), ("parser", True)):
        pairs = pairs_of(golds, parsed)
        forget()
        texts, wanted = [f"\\boxed{{{answer}}}" for _, answer in pairs], [gold for gold, _ in pairs]
        started = time.perf_counter()
        verdicts = grader.grade(texts, wanted)
        speed = len(pairs) / (time.perf_counter() - started)
        missed = [
            (pair, verdict) for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.outcome != "correct"
        ]
        print(f"{name}: {speed:,.0f} answers/s; {len(pairs) - len(missed)} of {len(pairs)} correct")
        for (gold, answer), verdict in missed:
            print(f"  {gold!r} {answer!r} {verdict.outcome}")
    grader.workers.close()


if __name__ == "__main__":
    main(sys.argv[1])
