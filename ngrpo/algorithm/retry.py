"""Asking again what no answer solved, with random words in front of the prompt: what is written there, and whose answers
take which places. Nothing here knows prompts of models or draws an answer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ngrpo.rollout.keys import Draws
from ngrpo.targets import SettingsError

CHOICE = 3  # what keys differ by from those that strategies (0), selections (1) and controls (2) draw with
LATIN = (
    "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et dolore magna "
    "aliqua enim ad minim veniam quis nostrud exercitation ullamco laboris nisi aliquip ex ea commodo consequat duis aute "
    "irure in reprehenderit voluptate velit esse cillum eu fugiat nulla pariatur excepteur sint occaecat cupidatat non "
    "proident sunt culpa qui officia deserunt mollit anim id est laborum"
)


@dataclass(frozen=True)
class Retry:
    """How a problem is asked again whose group is all wrong.

    prompts     so many, each with words of its own
    answers     to each of them
    words       [fewest, most] of them in front of a prompt, as many as a uniform number says; fewer where these do not fit
    vocabulary  latin: of "lorem ipsum"; tokens: texts of the tokenizer's own tokens
    boundary    a line between the words and the problem; alone where words are [0, 0]

    Source: LoPE, arXiv 2605.05566, as released (shrango/LoPE), whose README counts tokens where its code counts words. The
    paper's appendix was not read, and the boundary's wording is ours. Two shapings that are off there are left out:
    rho / (rho + 0.1) for answers from elsewhere, and statistics over all answers of a group, old and new.
    """

    prompts: int = 6
    answers: int = 4
    words: Sequence[int] = (100, 300)
    vocabulary: str = "latin"
    boundary: str | None = "Reason step by step and give the final answer in \\boxed{}."

    def __post_init__(self) -> None:
        if self.words[0] > self.words[1]:
            found = ",".join(map(str, self.words))
            rule = "the fewest words must be at most the most"
            raise SettingsError(f"algorithm.retry.words=[{found}]: {rule}; algorithm.retry.words=[0,{self.words[1]}]")

    @property
    def each(self) -> int:
        """Answers to a problem that is asked again."""
        return self.prompts * self.answers

    def drawn(self, vocabulary: Sequence[str], key: int) -> list[str]:
        """The words that a key draws, each of the vocabulary as likely as any other."""
        fewest, most = self.words
        first, *others = Draws(torch.tensor(key), torch.arange(most + 1)).token.tolist()
        count = fewest + int(first * (most - fewest + 1))
        return [vocabulary[int(other * len(vocabulary))] for other in others[:count]]

    def text(self, words: Iterable[str]) -> str:
        """What stands in front of a prompt: the words, then the boundary in a line of its own."""
        return "\n".join(line for line in (" ".join(words), self.boundary) if line)


def rescuers(correct: Tensor, keys: Tensor, size: int) -> Tensor:
    """(Q, size) int64: which of n answers to a problem that was asked again takes the place of each answer of its group, -1
    where that stays.

    correct, keys (Q, n). All right ones are taken, in an order that their keys draw, but at most size - 1 of them, so that
    one failure remains to compare with. Source: LoPE, arXiv 2605.05566, as released.
    """
    uniform = Draws(keys ^ CHOICE, torch.zeros_like(keys)).token
    order = F.pad(uniform.masked_fill(~correct, 2).argsort(dim=1), (0, size))[:, :size]
    taken = correct.sum(dim=1, keepdim=True).clamp(max=size - 1)
    return order.masked_fill(torch.arange(size, device=keys.device) >= taken, -1)
