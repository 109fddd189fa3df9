r"""`python -m ngrpo.grading < pairs.tsv`: a line for each line of gold, tab, answer.

The answer is what would stand in the box, or a text with a `\boxed`; further columns are ignored, and so is a first line
that begins `gold<TAB>answer`. Each line out is outcome, tab, extracted, tab, reading, with tabs and line ends
of a field written `\t`, `\n` and `\r`. Exit status 0 whatever the outcomes.
"""

import io
import sys
from collections.abc import Iterable, Iterator
from itertools import islice

from ngrpo import streams
from ngrpo.grading.answers import BOX
from ngrpo.grading.latex import Latex

AT_ONCE = 2000  # lines that are graded together, so that memory is bounded however many there are
HEADER = ("gold", "answer")


def graded(lines: Iterable[str], grader: Latex) -> Iterator[str]:
    """One line for each line, in order; a line without a tab has an empty answer, which is unparsed."""
    numbered = enumerate(lines)
    while batch := list(islice(numbered, AT_ONCE)):
        rows = [fields(line) for place, line in batch if place or not is_header(line)]
        texts = [answer if BOX in answer else f"{BOX}{{{answer}}}" for _, answer in rows]
        for verdict in grader.grade(texts, [gold for gold, _ in rows]):
            yield "\t".join((verdict.outcome, escaped(verdict.extracted or ""), escaped(verdict.reading)))


def is_header(line: str) -> bool:
    """Whether the names of the columns stand in a line."""
    gold, _, answer = line.partition("\t")
    return gold.strip() == HEADER[0] and answer.startswith(HEADER[1])


def fields(line: str) -> tuple[str, str]:
    """Gold and answer of a line."""
    gold, *rest = line.rstrip("\r\n").split("\t")
    return gold, rest[0] if rest else ""


def escaped(field: str) -> str:
    r"""A field on one line: tabs and line ends as `\t`, `\n` and `\r`."""
    return field.replace("\t", "\\t").replace("\r", "\\r").replace("\n", "\\n")


def main() -> None:
    """Grade standard input."""
    # Only a line feed ends a line: golds may hold the other characters that Python takes for line ends.
    lines = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", errors="replace", newline="\n")
    out = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", errors="replace", newline="\n")
    grader = Latex()
    for line in graded(lines, grader):
        out.write(line + "\n")
    out.flush()
    grader.workers.close()


if __name__ == "__main__":
    streams.tolerate_lost_readers()
    main()
