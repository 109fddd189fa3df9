"""Retrying problems that no answer solved, with random words in front of the prompt: the words, and which new answers replace
which old ones. Model prompts and sampling are elsewhere."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ngrpo.rollout.keys import Draws
from ngrpo.targets import SettingsError

CHOICE = 3  # XORed onto a row's key: other numbers than strategies (0), selections (1) and controls (2) draw
LATIN = (
    "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et dolore magna "
    "aliqua enim ad minim veniam quis nostrud exercitation ullamco laboris nisi aliquip ex ea commodo consequat duis aute "
    "irure in reprehenderit voluptate velit esse cillum eu fugiat nulla pariatur excepteur sint occaecat cupidatat non "
    "proident sunt culpa qui officia deserunt mollit anim id est laborum"
)


@dataclass(frozen=True)
class Retry:
    """How a problem whose group is all wrong is retried.

    prompts     prompts per problem, each with its own random words
    answers     answers to each prompt
    words       [fewest, most] words in front of a prompt, uniformly distributed; fewer where they do not fit
    vocabulary  latin: words of "lorem ipsum"; tokens: texts of the tokenizer's own tokens
    boundary    a line between the words and the problem; alone where words are [0, 0]

    Source: LoPE, arXiv 2605.05566, as released (shrango/LoPE), whose README counts tokens where its code counts words. The
    paper's appendix was not read, and the boundary's wording is ours. Two shapings that are off there are not implemented:
    rho / (rho + 0.1) for the new answers, and statistics over all answers of a group, old and new.
    """

    prompts: int = 6
    answers: int = 4
    words: Sequence[int] = (100, 300)
    vocabulary: str = "latin"
    boundary: str | None = "Reason step by step and give the final answer in \\boxed{}."

    def __post_init__(self) -> None:
        fewest, most = self.words
        if fewest > most:
            problem = f"algorithm.retry.words=[{fewest},{most}]: the fewest words must be at most the most"
            raise SettingsError(f"{problem}; algorithm.retry.words=[0,{most}]")

    @property
    def each(self) -> int:
        """New answers to a retried problem."""
        return self.prompts * self.answers

    def draw_words(self, vocabulary: Sequence[str], key: int) -> list[str]:
        """Words drawn uniformly from the vocabulary, by a key."""
        fewest, most = self.words
        length, *uniforms = Draws(torch.tensor(key), torch.arange(most + 1)).token.tolist()
        count = fewest + int(length * (most - fewest + 1))
        return [vocabulary[int(uniform * len(vocabulary))] for uniform in uniforms[:count]]

    def prefix(self, words: Iterable[str]) -> str:
        """The text in front of a prompt: the words, then the boundary on a line of its own."""
        return "\n".join(line for line in (" ".join(words), self.boundary) if line)


def rescuers(correct: Tensor, keys: Tensor, size: int) -> Tensor:
    """(Q, size) int64: which of n new answers to a retried problem replaces each answer of its group, -1 where it stays.

    correct, keys (Q, n). All right answers are used, in random order, but at most size - 1 of them, so that one failure
    remains to compare with. Source: LoPE, arXiv 2605.05566, as released.
    """
    uniform = Draws(keys ^ CHOICE, torch.zeros_like(keys)).token
    order = F.pad(uniform.masked_fill(~correct, 2).argsort(dim=1), (0, size))[:, :size]
    used = correct.sum(dim=1, keepdim=True).clamp(max=size - 1)
    return order.masked_fill(torch.arange(size, device=keys.device) >= used, -1)
