r"""Puzzles of the reasoning-gym library, by name from a list of those whose scorers neither run an answer nor pay for a
wrong one.

The library draws the puzzles. Where one answer is right it is compared here; where several are, the library's check
decides, and only its full mark counts. Of the other puzzles some scorers evaluate the
answer as code, some give the full mark to almost anything, some raise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ngrpo.grading.answers import extract_boxed, parse_integer, same_integer
from ngrpo.tasks.base import ANSWER_PREFIX, Problem, Score, answer_part
from ngrpo.tasks.questions import with_instruction

LONGEST = 4096  # characters of an answer: the longest right one has a tenth of them


def _integer(puzzles: Any, answer: str, entry: dict[str, Any]) -> str:
    if parse_integer(answer) is None:
        return "unparsed"
    return "correct" if same_integer(answer, str(entry["answer"])) else "wrong"


def _text(puzzles: Any, answer: str, entry: dict[str, Any]) -> str:
    return "correct" if " ".join(answer.split()) == " ".join(str(entry["answer"]).split()) else "wrong"


def _full_mark(puzzles: Any, answer: str, entry: dict[str, Any]) -> str:
    try:
        return "correct" if puzzles.score_answer(answer, entry) == 1.0 else "wrong"
    except Exception:  # noqa: BLE001 - another library's scorer on any text: its crash is told as an error, not as wrong
        return "error"


Scorer = Callable[[Any, str, dict[str, Any]], str]
ALLOWED: dict[str, Scorer] = {
    **dict.fromkeys(("basic_arithmetic", "chain_sum", "gcd", "lcm", "letter_counting", "products"), _integer),
    **dict.fromkeys(("spell_backward",), _text),
    **dict.fromkeys(("graph_color", "jugs", "shortest_path", "tower_of_hanoi", "word_ladder"), _full_mark),
}


@dataclass
class ReasoningGym:
    r"""A task of `size` puzzles `puzzle`, one of ALLOWED, drawn from `seed`; the answer stands in the last `\boxed{}`.

    Training and benchmarks need different seeds. `solution_path` is the answer without spaces. Raises ValueError for a
    puzzle that is not on the list and ImportError without the library.
    """

    puzzle: str
    size: int
    seed: int = 0
    instruction: str | None = None
    answer_start: str | None = None
    name: str = field(default="", init=False)
    version: str = field(default="", init=False)
    answer_prefix: str = field(default=ANSWER_PREFIX, init=False)
    problems: Sequence[Problem] = field(default=(), init=False)

    def __post_init__(self):
        if self.puzzle not in ALLOWED:
            raise ValueError(
                f"reasoning_gym: puzzle {self.puzzle!r}, expected one of {sorted(ALLOWED)}; set task.puzzle"
            )
        if self.size < 1:
            raise ValueError(f"reasoning_gym: size {self.size}, expected at least 1; set task.size")
        try:
            import reasoning_gym
        except ImportError:
            raise ImportError("reasoning_gym: the library is not installed; pip install reasoning-gym") from None
        from importlib.metadata import version

        self.name, self.version = f"reasoning_gym-{self.puzzle}", version("reasoning-gym")
        self._puzzles = reasoning_gym.create_dataset(self.puzzle, seed=self.seed, size=self.size)
        self._entries = {f"{self.name}-s{self.seed}-{at:05d}": entry for at, entry in enumerate(self._puzzles)}
        self.problems = [self._problem(identity, entry) for identity, entry in self._entries.items()]

    def _problem(self, identity: str, entry: dict[str, Any]) -> Problem:
        prompt = with_instruction(entry["question"].strip(), self.instruction)
        return Problem(identity, prompt, str(entry["answer"] or ""), True, entry["question"])

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        """Verdicts, one per pair, in order."""
        return [self._score_one(problem, text) for problem, text in zip(problems, completions, strict=True)]

    def _score_one(self, problem: Problem, completion: str) -> Score:
        extracted = extract_boxed(answer_part(completion, self.answer_start))
        if not extracted or len(extracted) > LONGEST:
            return Score.of("unparsed", extracted)
        outcome = ALLOWED[self.puzzle](self._puzzles, extracted, self._entries[problem.id])
        return Score.of(outcome, extracted, "".join(extracted.split()))
