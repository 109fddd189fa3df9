"""The prompts of a retry: random words in front of a problem's prompt, as text and as ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ngrpo.algorithm.retry import LATIN, Retry
from ngrpo.models.prompting import PLAIN, Prompts
from ngrpo.targets import SettingsError
from ngrpo.tasks.base import Problem, Task


@dataclass(frozen=True)
class Perturbed:
    """The prompts of a run with the words of a retry in front."""

    retry: Retry
    prompts: Prompts

    @cached_property
    def vocabulary(self) -> Sequence[str]:
        """The words that are drawn from."""
        if self.retry.vocabulary == "latin":
            return LATIN.split()
        tokenizer = self.prompts.tokenizer
        ordinary = [i for i in range(tokenizer.vocab_size) if i not in tokenizer.added_tokens_decoder]
        texts = {str(tokenizer.decode([i])).strip() for i in ordinary}
        return sorted(text for text in texts if text.isprintable() and any(map(str.isalpha, text)))

    def prompt(self, problem: Problem, key: int) -> tuple[str, np.ndarray]:
        """The problem's prompt after the words that a key draws, or as many of them as fit: as a transcript and as ids."""
        words = self.retry.draw_words(self.vocabulary, key)
        ids = self.prompts.with_prefix(self.retry.prefix(words), problem)
        while len(ids) > self.prompts.room and len(words) > self.retry.words[0]:
            words = words[: max(self.retry.words[0], len(words) * 7 // 8)]
            ids = self.prompts.with_prefix(self.retry.prefix(words), problem)
        return f"{self.retry.prefix(words)}\n{problem.prompt}", ids

    def read(self, task: Task) -> Task:
        """As Prompts.read, but without messages that leave no room for the fewest words, even if these are the longest ones.

        Raises SettingsError where the model's form of a prompt does not take these problems, and where nothing fits.
        """
        encode, first, fewest = self.prompts.tokenizer.encode, next(iter(task.problems)), self.retry.words[0]
        longest = max(self.vocabulary, key=lambda word: len(encode(f" {word}", add_special_tokens=False)))
        form = self.prompts.prompting if first.is_message else PLAIN
        own = form.encode(self.prompts.tokenizer, [first.messages or first.prompt])[0]
        spare = len(self.prompts.with_prefix(self.retry.prefix([longest] * fewest), first)) - len(own)
        try:
            return self.prompts.read(task, spare)
        except SettingsError as error:
            rule = f"algorithm.retry.words={list(self.retry.words)}: {spare} tokens may stand in front of a prompt"
            raise SettingsError(f"{rule}, and {error}; algorithm.retry.words=[0,{fewest // 2}]") from None
