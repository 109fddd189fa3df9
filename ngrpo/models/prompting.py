"""How the words of a problem become the ids that a model reads, and what ends the part in which it thinks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ngrpo.tasks.base import Messages, Problem, Subset, Task

FULL_WIDTH_BAR = "\uff5c"  # stands in the role tokens of the R1 tokenizers

# A problem's text as the model is asked, and whether the tokenizer puts its own begin-of-text token in front.
Rendered = tuple[str, bool]


def plain(tokenizer: PreTrainedTokenizerBase, text: str) -> Rendered:
    """The text as it is, after the begin-of-text token where the tokenizer puts one."""
    return text, True


def chat(tokenizer: PreTrainedTokenizerBase, text: str | Messages) -> Rendered:
    """A conversation, or a text as a user's message, in the checkpoint's chat template, up to where the assistant begins.

    A template writes its own begin-of-text token, so the tokenizer must not add a second one. Raises ValueError where
    the checkpoint has no template, and where its template does not take all that was said to the model.
    """
    if not tokenizer.chat_template:
        raise ValueError("model.prompt=chat: the tokenizer has no chat template; model.prompt=plain or model.prompt=r1")
    said = (("user", text),) if isinstance(text, str) else text
    turns = [{"role": role, "content": content} for role, content in said]
    try:
        rendered = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:  # some templates know no system message
        roles = ", ".join(role for role, _ in said)
        refusal = f"model.prompt=chat: the tokenizer's chat template refuses the messages {roles} ({error})"
        raise ValueError(f"{refusal}; choose another model or data without them") from None
    if not isinstance(text, str) and (
        role := next((r for r, t in said if r != "assistant" and t not in rendered), None)
    ):
        drops = f"model.prompt=chat: the tokenizer's chat template leaves a message of the {role}'s out"
        raise ValueError(f"{drops}; choose another model or data without it")
    return rendered, False


def r1(tokenizer: PreTrainedTokenizerBase, text: str) -> Rendered:
    """The raw prompt `<|User|> ... <|Assistant|><think>` (arXiv 2606.10768, appendix A).

    Where the tokenizer has DeepSeek's own tokens for the two roles, with full-width bars, these are used: spelt with
    ASCII bars they would be read as ordinary text by the models that were trained on the tokens.
    """
    roles = ["<|User|>", "<|Assistant|>"]
    wide = [role.replace("|", FULL_WIDTH_BAR) for role in roles]
    user, assistant = wide if set(wide) <= set(tokenizer.get_vocab()) else roles
    return f"{user}{text}{assistant}<think>\n", True


FORMS: Mapping[str, Callable[[PreTrainedTokenizerBase, Any], Rendered]] = {"plain": plain, "chat": chat, "r1": r1}


@dataclass(frozen=True)
class Prompting:
    """What a model wants to be asked with: the form of a prompt, and the text that ends its thinking part.

    form          a name in FORMS
    answer_start  None: the model has no thinking part, so strategies that act while it thinks act on the whole answer
    """

    form: str = "plain"
    answer_start: str | None = "</think>"

    def encode(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str | Messages]) -> list[list[int]]:
        """Ids of the prompts for the texts or conversations of problems; only `chat` has a form for conversations."""
        if self.form != "chat" and any(not isinstance(text, str) for text in texts):
            told = "the problems are conversations with system messages or earlier turns, which only a chat template can ask"
            raise ValueError(f"model.prompt={self.form}: {told}; model.prompt=chat or task.columns.problem=<column>")
        rendered = [FORMS[self.form](tokenizer, text) for text in texts]
        if not rendered:
            return []
        found: Any = tokenizer([text for text, _ in rendered], add_special_tokens=rendered[0][1])
        return found["input_ids"]


PLAIN = Prompting()


@dataclass(frozen=True)
class Prompts:
    """Every prompt that a run may ask, encoded once, before it begins, by its text and whether it is a message.

    room: the tokens that a prompt may have.
    """

    tokenizer: PreTrainedTokenizerBase
    prompting: Prompting
    room: int
    ids: dict[tuple[str, bool], np.ndarray] = field(default_factory=dict)

    def read(self, task: Task) -> Task:
        """Encodes the task's prompts and returns the task, without the messages that leave no room for the answer.

        Raises ValueError where nothing is left, or where a prompt that is no message is empty or does not fit.
        """
        problems = list(task.problems)
        for message, form in ((True, self.prompting), (False, PLAIN)):
            asked = [problem for problem in problems if problem.is_message is message]
            encoded = form.encode(self.tokenizer, [problem.messages or problem.prompt for problem in asked])
            for problem, ids in zip(asked, encoded, strict=True):
                self.ids[problem.prompt, message] = np.asarray(ids, np.int32)
        kept = [problem for problem in problems if self._fits(problem)]
        if not kept:
            raise ValueError(f"{task.name}: no prompt leaves room for the answer; set max_new_tokens")
        return task if len(kept) == len(problems) else Subset(task, kept)

    def _fits(self, problem: Problem) -> bool:
        width = len(self.ids[problem.prompt, problem.is_message])
        if not problem.is_message and not 0 < width <= self.room:
            raise ValueError(f"a prompt has {width} tokens, allowed are 1 to {self.room}: {problem.prompt[:80]!r}")
        return 0 < width <= self.room
