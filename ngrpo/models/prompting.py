"""How the words of a problem become the ids that a model reads, and what ends the part in which it thinks.

It does not know what the words ask for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

FULL_WIDTH_BAR = "\uff5c"  # stands in the signs of the R1 tokenizers, each of which is a single token


def plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The text as it is, after the begin-of-text token where the tokenizer puts one."""
    return tokenizer.encode(text)


def chat(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The text as a user's message in the checkpoint's chat template, up to where the assistant begins.

    A template writes its own begin-of-text token, so the tokenizer must not add a second one. Raises ValueError where
    the checkpoint has no template.
    """
    if not tokenizer.chat_template:
        raise ValueError("model.prompt=chat: the tokenizer has no chat template; model.prompt=plain or model.prompt=r1")
    turn = [{"role": "user", "content": text}]
    written = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(str(written), add_special_tokens=False)


def r1(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The raw prompt `<|User|> ... <|Assistant|><think>` (arXiv 2606.10768, appendix A).

    Where the tokenizer has DeepSeek's own signs for the two roles, with full-width bars, these are used: spelt with
    ASCII bars they would be read as ordinary text by the models that were trained on the signs.
    """
    own = tokenizer.get_vocab()
    signs = ["<|User|>", "<|Assistant|>"]
    wide = [sign.replace("|", FULL_WIDTH_BAR) for sign in signs]
    user, assistant = wide if set(wide) <= set(own) else signs
    return tokenizer.encode(f"{user}{text}{assistant}<think>\n")


FORMS: Mapping[str, Callable[[PreTrainedTokenizerBase, str], list[int]]] = {"plain": plain, "chat": chat, "r1": r1}


@dataclass(frozen=True)
class Prompting:
    """What a model wants to be asked with: the form of a prompt, and the text that ends its thinking part.

    form          a name in FORMS
    answer_start  None: the model has no thinking part, so strategies that act while it thinks act on the whole answer
    """

    form: str = "plain"
    answer_start: str | None = "</think>"

    def encode(self, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        """Ids of the prompt for a problem's text."""
        return FORMS[self.form](tokenizer, text)


PLAIN = Prompting()
