"""math-verify as it comes, in a process of its own: the grader's parts change its parser where they are imported."""

import json
import logging
import subprocess
import sys


class Oracle:
    """Answers whether math-verify takes an answer for a gold; false where it fails on one."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def same(self, gold: str, answer: str) -> bool:
        """Of what stands in two boxes."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([gold, answer]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


def main() -> None:
    """One line out for each line in."""
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    for line in sys.stdin:
        try:
            gold, answer = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in json.loads(line))  # pyright: ignore
            same = verify(gold, answer, timeout_seconds=None)
        except Exception:  # noqa: BLE001 - whatever it fails with, it does not take the answer
            same = False
        print(json.dumps(same), flush=True)


if __name__ == "__main__":
    main()
