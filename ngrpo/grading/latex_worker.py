"""The process in which formulas are compared: reads `[gold, answer]` lines, writes an outcome for each.

It may be killed at any moment, and ends itself where a comparison takes too long or its parent is gone: the watchdog is
a thread of C code, so it also ends computations that never return to Python. It imports no torch and opens no file.
"""

import contextlib
import faulthandler
import json
import logging
import os
import resource
import sys
from pathlib import Path

PLACES = 50  # decimal places to which two values must agree: a rounded number is another number
ROOM = 320 * 2**20  # bytes that comparisons may add to what the imports take


def compare(gold: str, answer: str) -> str:
    """correct, wrong or unparsed (no formula can be read in the answer), as math-verify finds; gold first."""
    from math_verify import parse, verify

    want = parse(f"\\boxed{{{gold}}}", parsing_timeout=None)  # pyright: ignore
    have = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)  # pyright: ignore
    if not want or not have:
        return "unparsed"
    same = verify(want, have, float_rounding=PLACES, numeric_precision=PLACES + 10, timeout_seconds=None)
    return "correct" if same else "wrong"


def main(seconds: float) -> None:
    """Until the input ends. A line on which this process dies has no answer."""
    logging.disable(logging.CRITICAL)
    compare("\\frac{1}{2}", "\\frac{2}{4}")  # imports everything, and warms the parser
    statm = Path("/proc/self/statm")
    size = int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 2**31
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(os.devnull, "w") as nowhere:
        print("ready", flush=True)
        for line in sys.stdin:
            faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
            try:
                outcome = compare(*json.loads(line))
            except Exception:  # noqa: BLE001 - a parser that fails on a text says nothing of the text
                outcome = "error"
            faulthandler.cancel_dump_traceback_later()
            print(outcome, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
