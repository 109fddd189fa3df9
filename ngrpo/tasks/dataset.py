"""A data set: its rows, the options with which they are read, and what came of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from ngrpo.tasks.base import Messages
from ngrpo.tasks.choices import FORMS, Choices
from ngrpo.tasks.columns import Chosen
from ngrpo.tasks.rows import Row

READER = 2  # changes when the same rows are read as other problems
REFUSE, LEAVE_OUT = "refuse", "leave_out"  # what becomes of a row without an answer
FIRST, KEEP = "first", "keep"  # what becomes of a problem that repeats, beside `refuse`
LISTED = 5  # rows that a line names
Same = Callable[[Sequence[tuple[str, str]]], Sequence[bool]]  # whether the golds of each pair are equal


@dataclass(frozen=True)
class Item:
    """A row as id, messages of the question and right answers, the recorded one first, with its number from 1 and its cells."""

    number: int
    id: str
    messages: Messages
    golds: tuple[str, ...]
    cells: Mapping[str, Any]

    @property
    def question(self) -> str:
        """What is asked, of a conversation the user's last message."""
        return self.messages[-1][1]


@dataclass(frozen=True)
class ReadOptions:
    """What a task says about its data; columns: tasks.columns.

    unanswered: refuse | leave_out. repeats: first | refuse | keep. answer_form: one of choices.FORMS, None for the rule.
    same: compares golds by the task's grader. own_columns: the task reads columns that no rule knows and lists its choices
    itself, so that no column is taken for choices or for one that the question needs.
    Raises ValueError.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    unanswered: str = REFUSE
    repeats: str = REFUSE
    answer_form: str | None = None
    same: Same | None = None
    own_columns: bool = False

    def __post_init__(self):
        allowed = {"unanswered": (REFUSE, LEAVE_OUT), "repeats": (FIRST, REFUSE, KEEP)}
        allowed["answer_form"] = (*FORMS, None)
        for name, known in allowed.items():
            if getattr(self, name) not in known:
                words = [str(word) for word in known if word]
                expected = f"{', '.join(words[:-1])} or {words[-1]}{' or null' if None in known else ''}"
                raise ValueError(f"{name} {getattr(self, name)!r}, expected {expected}; set task.{name}={words[0]}")


@dataclass
class Dataset:
    """The flat rows of a source, which columns of them are read and how, and what came of them. Row numbers count from 1.

    choices: of each row. notes: a line each; altered: those after which the problems are others than the columns alone
    would give.
    """

    source: str
    rows: Sequence[Row]
    chosen: Chosen
    options: ReadOptions
    choices: Sequence[Choices | None] = ()
    items: list[Item] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)  # columns that are not read
    needed: list[str] = field(default_factory=list)  # those of them that the question may need
    boxed: int = 0  # rows whose gold is the box of a solution beside an answer column
    unanswered: dict[int, str] = field(default_factory=dict)  # row -> what stands there
    disagreeing: dict[int, str] = field(default_factory=dict)  # row -> what its columns say
    repeated: dict[int, int] = field(default_factory=dict)  # row -> the row that it repeats

    def where(self, index: int) -> str:
        """How a line names a row."""
        return f"{self.source}: row {index + 1}"

    @property
    def asks_choices(self) -> bool:
        """Whether the choices are asked: by the rule always, by the user's words where these have them."""
        return not self.chosen.named or self.chosen.lists_choices

    def note(self, line: str, alters: bool = True) -> None:
        """Adds a line to the notes."""
        self.notes.append(line)
        self.altered += [line] if alters else []

    def note_rows(self, what: str, rows: Sequence[int], alters: bool = True) -> None:
        """Adds a line with the number of rows and the first of them, where there are any."""
        if rows:
            self.note(f"{what}: {len(rows)} ({listed(rows)})", alters)

    def version(self, digest: str) -> str:
        """The digest of the rows; another where they are read in other than the plain way."""
        words = "\n".join([str(READER), digest, *self.altered])
        return blake2b(words.encode(), digest_size=8).hexdigest() if self.altered else digest


def listed(numbers: Sequence[int]) -> str:
    """Row numbers as a phrase that does not grow with them."""
    more = len(numbers) - LISTED
    return ", ".join(map(str, numbers[:LISTED])) + (f" and {more} more" if more > 0 else "")
