r"""Puzzles of the reasoning-gym library, by name from a list of those whose scorers neither run an answer nor pay for a
wrong one.

The library draws the puzzles. Where one answer is right it is compared here; where several are, the library's check
decides, and only its full mark counts. Of the other puzzles some scorers evaluate the
answer as code, some give the full mark to almost anything, some raise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ngrpo.grading.answers import extract_boxed, integer_outcome
from ngrpo.tasks.base import ANSWER_PREFIX, Problem, Score, answer_part, with_instruction
from ngrpo.tasks.drawn import DrawnTask

LONGEST = 4096  # characters of an answer: the longest right one has a tenth of them


def _integer(puzzles: Any, answer: str, entry: dict[str, Any]) -> str:
    return integer_outcome(answer, str(entry["answer"]))


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
class ReasoningGym(DrawnTask):
    r"""A task of `size` puzzles `puzzle`, one of ALLOWED, drawn from `seed`; the answer stands in the last `\boxed{}`.

    Training and benchmarks need different seeds. `solution_path` is the answer without spaces. Raises ValueError for a
    puzzle that is not on the list and ImportError without the library.
    """

    puzzle: str
    size: int
    seed: int = 0
    instruction: str | None = None
    answer_start: str | None = None

    name, version, answer_prefix = "reasoning_gym", "", ANSWER_PREFIX

    def __post_init__(self):
        self.require("puzzle", self.puzzle in ALLOWED, f"one of {sorted(ALLOWED)}")
        self.require("size", self.size >= 1, "at least 1")
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

    def score_one(self, problem: Problem, completion: str) -> Score:
        extracted = extract_boxed(answer_part(completion, self.answer_start))
        if not extracted or len(extracted) > LONGEST:
            return Score.of("unparsed", extracted)
        outcome = ALLOWED[self.puzzle](self._puzzles, extracted, self._entries[problem.id])
        return Score.of(outcome, extracted, "".join(extracted.split()))
