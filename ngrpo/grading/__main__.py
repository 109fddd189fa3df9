r"""`python -m ngrpo.grading < pairs.tsv`: a line for each line of gold, tab, answer.

The answer is what would stand in the box, or a text with a `\boxed`; further columns are ignored, and so is a first line
that begins `gold<TAB>answer`. Each line out is outcome, tab, extracted, tab, reading, with tabs and line ends
of a field written `\t`, `\n` and `\r`. Exit status 0 whatever the outcomes.
"""

import io
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import islice

from ngrpo import streams
from ngrpo.grading.answers import BOX
from ngrpo.grading.latex import Latex

BATCH = 2000  # lines that are graded together, so that memory is bounded however many there are
HEADER = re.compile(r"[^\S\t]*gold[^\S\t]*\tanswer")
ESCAPES = str.maketrans({"\t": "\\t", "\r": "\\r", "\n": "\\n"})


def graded(lines: Iterable[str], grader: Latex) -> Iterator[str]:
    """One line for each line, in order; a line without a tab has an empty answer, which is unparsed."""
    numbered = enumerate(lines)
    while batch := list(islice(numbered, BATCH)):
        rows = [line.rstrip("\r\n").split("\t") for number, line in batch if number or not HEADER.match(line)]
        answers = [row[1] if len(row) > 1 else "" for row in rows]
        texts = [answer if BOX in answer else f"{BOX}{{{answer}}}" for answer in answers]
        for verdict in grader.grade(texts, [row[0] for row in rows]):
            fields = (verdict.outcome, verdict.extracted or "", verdict.reading)
            yield "\t".join(field.translate(ESCAPES) for field in fields)


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
