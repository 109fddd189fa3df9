"""What the rows of a data set are read as, in which ways, and what is said about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from ngrpo.tasks.agreement import Same
from ngrpo.tasks.base import Messages
from ngrpo.tasks.choices import FORMS, Choices
from ngrpo.tasks.columns import Chosen, Unused
from ngrpo.tasks.rows import Row

READER = 2  # changes when the same rows are read as other problems
REFUSE, LEAVE_OUT = "refuse", "leave_out"  # what becomes of a row without an answer
FIRST, KEEP = "first", "keep"  # what becomes of a problem that repeats, beside `refuse`
LISTED = 5  # rows that a line names


@dataclass(frozen=True)
class Item:
    """A row as id, problem and right answers, with its number in the source (from 1) and all of its columns.

    question: what is asked, of a conversation the user's last message. messages: the conversation, where there is one.
    """

    number: int
    id: str
    problem: str
    golds: tuple[str, ...]
    cells: Mapping[str, Any]
    question: str = ""
    messages: Messages | None = None

    @property
    def gold(self) -> str:
        """The answer that is recorded."""
        return self.golds[0]


@dataclass(frozen=True)
class Ways:
    """What a task says about its data; columns: tasks.columns.

    unanswered: refuse | leave_out. repeats: first | refuse | keep. answer_form: one of choices.FORMS, None for the rule.
    same: a grader's word on whether golds agree. guarded: refuse where the question may need a column that is not read;
    false for a task with columns of its own, which lists its choices itself.
    Raises ValueError.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    unanswered: str = REFUSE
    repeats: str = REFUSE
    answer_form: str | None = None
    same: Same | None = None
    guarded: bool = True

    def __post_init__(self):
        allowed = {"unanswered": (REFUSE, LEAVE_OUT), "repeats": (FIRST, REFUSE, KEEP)}
        allowed["answer_form"] = (*FORMS, None)
        for name, known in allowed.items():
            if getattr(self, name) not in known:
                words = [str(word) for word in known if word]
                expected = f"{', '.join(words[:-1])} or {words[-1]}{' or null' if None in known else ''}"
                raise ValueError(f"{name} {getattr(self, name)!r}, expected {expected}; set task.{name}={words[0]}")


@dataclass
class Reading:
    """What came of the rows. Row numbers count from 1.

    notes: a line each; altered: those after which the problems are others than the columns alone would give.
    """

    items: list[Item] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    columns: Unused = field(default_factory=Unused)
    boxed: int = 0  # rows whose gold is the box of a solution beside an answer column
    unanswered: dict[int, str] = field(default_factory=dict)  # row -> what stands there
    disagreeing: dict[int, str] = field(default_factory=dict)  # row -> what its columns say
    repeated: dict[int, int] = field(default_factory=dict)  # row -> the row that it repeats

    def note(self, line: str, alters: bool = True) -> None:
        """Adds a line to the notes."""
        self.notes.append(line)
        self.altered += [line] if alters else []

    def version(self, digest: str) -> str:
        """The digest of the rows; another where they are read in other than the plain way."""
        words = "\n".join([str(READER), digest, *self.altered])
        return blake2b(words.encode(), digest_size=8).hexdigest() if self.altered else digest


@dataclass(frozen=True)
class Table:
    """The flat rows of a source with what is read of them; options: the choices of each row."""

    source: str
    rows: Sequence[Row]
    chosen: Chosen
    ways: Ways
    options: Sequence[Choices | None] = ()

    def where(self, index: int) -> str:
        """How a line names a row."""
        return f"{self.source}: row {index + 1}"

    @property
    def shown(self) -> bool:
        """Whether the choices are asked: by the rule always, by the user's words where these have them."""
        return not self.chosen.named or self.chosen.lists_choices


def listed(numbers: Sequence[int]) -> str:
    """Row numbers as a phrase that does not grow with them."""
    more = len(numbers) - LISTED
    return ", ".join(map(str, numbers[:LISTED])) + (f" and {more} more" if more > 0 else "")
