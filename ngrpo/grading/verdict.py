"""What a grader says of one answer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """`outcome`: correct, wrong, unparsed, timeout or error.

    extracted: the answer as it stood in the text, None without one. reading: what was folded, dropped or chosen so that
    it could be compared ("unit cm dropped; 5 1/3 read as 16/3"); empty where nothing was.
    """

    outcome: str
    extracted: str | None
    reading: str = ""
