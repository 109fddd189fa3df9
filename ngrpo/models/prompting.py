"""From the text of a problem to the ids of a prompt, and what ends the model's thinking part and its turn."""

import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.exceptions import SecurityError
from transformers import PreTrainedTokenizerBase

from ngrpo.rollout.records import Vocabulary
from ngrpo.targets import SettingsError
from ngrpo.tasks.base import Messages, Problem, Subset, Task

FULL_WIDTH_BAR = "\uff5c"  # in the role tokens of the R1 tokenizers
# The date in chat templates that print one, whatever day it is, so that prompts are the same tomorrow. It is the one that
# Llama 3's template falls back to.
DATE = datetime(2024, 7, 26)
DATE_CODES = ("-d", "-m", *"aAbBcdHIjmMpSwxXyYe")  # format codes that a template may use
PLACEHOLDER = "Said."  # in place of a message, where only the text around it matters
SWITCH = "enable_thinking"  # the template variable that turns thinking off
SECONDS = 10  # that a template may take for a prompt
LAST_TOKENS = 8  # of the first prompt, printed one by one


def _refused(reason: str, fix: str = "model.prompt=plain") -> SettingsError:
    return SettingsError(f"model.prompt=chat: the tokenizer's chat template {reason}; {fix}")


def chat(tokenizer: PreTrainedTokenizerBase, text: str | Messages, **settings: Any) -> str:
    """A conversation, or a text as a user's message, in the checkpoint's chat template, up to where the assistant begins.

    settings: other variables of the template. Raises ValueError where the checkpoint has no template, and where its
    template leaves out one of the messages.
    """
    if not tokenizer.chat_template:
        raise SettingsError(
            "model.prompt=chat: the tokenizer has no chat template; model.prompt=plain or model.prompt=r1"
        )
    messages = (("user", text),) if isinstance(text, str) else text
    turns = [{"role": role, "content": content} for role, content in messages]
    try:
        rendered = render(tokenizer, turns, add_generation_prompt=True, **settings)
    except TemplateError as error:  # some templates know no system message
        roles = ", ".join(role for role, _ in messages)
        fix = "choose another model or data without them"
        raise _refused(f"refuses the messages {roles} ({error})", fix) from None
    if isinstance(text, str):  # which a template may trim or escape, so that only a placeholder has to come through
        probe = [{"role": "user", "content": PLACEHOLDER}]
        role = "user" if text not in rendered and PLACEHOLDER not in render(tokenizer, probe) else None
    else:
        role = next((role for role, t in messages if role != "assistant" and t not in rendered), None)
    if role:
        raise _refused(f"leaves a message of the {role}'s out", "choose another model or data without it")
    return rendered


def no_thinking(tokenizer: PreTrainedTokenizerBase, text: str | Messages) -> str:
    """`chat` with thinking turned off, for a model whose template has a switch for it, as Qwen3's.

    Raises ValueError where the template has none.
    """
    if SWITCH not in (tokenizer.chat_template or ""):
        raise SettingsError(
            f"model.prompt=no_thinking: the tokenizer's chat template has no {SWITCH}; model.prompt=chat"
        )
    return chat(tokenizer, text, **{SWITCH: False})


def render(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Mapping[str, str]], date: datetime = DATE, **settings: Any
) -> str:
    """The checkpoint's chat template, rendered for the turns of a conversation on a date."""
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:  # transformers passes no functions to a template, so a macro is prepended
        replaced = "".join(f"|replace('%{code}', '{date.strftime('%' + code)}')" for code in DATE_CODES)
        template = f"{{%- macro strftime_now(text) %}}{{{{ text{replaced} }}}}{{%- endmacro %}}{{{{ '' }}}}{template}"
    settings = settings | {"chat_template": template, "tokenize": False}
    try:
        with _at_most(SECONDS):
            return str(tokenizer.apply_chat_template(turns, **settings))  # pyright: ignore[reportArgumentType]
    except (TemplateSyntaxError, SecurityError) as error:
        raise _refused(f"is refused ({error})") from None
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        if isinstance(error, SettingsError):
            raise
        message = " ".join(f"{type(error).__name__}: {error}".split())
        raise _refused(f"fails ({message})") from None


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """Stops a template that would run forever; in the main thread only, as others get no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise _refused(f"takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def turn_end(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template writes after an assistant's message: an added token, else text; empty where it writes nothing.

    Base models often come with a template whose turn end is not their end-of-text token.
    """
    if not tokenizer.chat_template:  # which problems that are not messages do not need
        return ""
    turns = [{"role": "user", "content": PLACEHOLDER}, {"role": "assistant", "content": PLACEHOLDER}]
    try:
        _, _, after = render(tokenizer, turns).rpartition(PLACEHOLDER)
    except TemplateError:  # where the template refuses assistant messages
        return ""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    after = after.strip()
    return max((token for token in added if after.startswith(token)), key=len, default=after)


def affixes(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special ids that the tokenizer puts before and after every text.

    Raises ValueError where it does anything else to the ids.
    """
    bare, full = (tokenizer.encode("a", add_special_tokens=special) for special in (False, True))
    if not bare:  # the tokenizer lacks the letter
        return full, []
    for begin in range(len(full) - len(bare) + 1):
        if full[begin : begin + len(bare)] == bare:
            return full[:begin], full[begin + len(bare) :]
    raise SettingsError(
        "model.path: the tokenizer reads a text otherwise with its special tokens; choose another model"
    )


def r1(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The raw prompt `<|User|> ... <|Assistant|><think>` (arXiv 2606.10768, appendix A).

    Where the tokenizer has DeepSeek's tokens for the two roles, with full-width bars, these are used: with ASCII bars,
    models that were trained on the tokens would read ordinary text.
    """
    roles = ["<|User|>", "<|Assistant|>"]
    wide = [role.replace("|", FULL_WIDTH_BAR) for role in roles]
    user, assistant = wide if set(wide) <= set(tokenizer.get_vocab()) else roles
    return f"{user}{text}{assistant}<think>\n"


FORMS: Mapping[str, Callable[[PreTrainedTokenizerBase, Any], str]] = {
    "plain": lambda tokenizer, text: text,
    "chat": chat,
    "no_thinking": no_thinking,
    "r1": r1,
}
CHATS = ("chat", "no_thinking")  # those that use the checkpoint's template


@dataclass(frozen=True)
class Prompting:
    """How a model is prompted: the form of its prompts, and the texts that end its thinking part and its answers.

    form          a name in FORMS
    answer_start  ends the thinking part; None: there is none, and strategies that act on it act on the whole answer
    stop          ids or texts that end an answer, besides the end-of-text tokens and, in a chat, the template's turn end
    """

    form: str = "plain"
    answer_start: str | None = "</think>"
    stop: tuple[int | str, ...] = ()

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise SettingsError(f"model.prompt={self.form}: must be one of {', '.join(FORMS)}; model.prompt=plain")
        if self.form == "no_thinking" and self.answer_start:
            reason = "must be null, because under model.prompt=no_thinking there is no thinking part that it could end"
            raise SettingsError(f"model.answer_start={self.answer_start}: {reason}; model.answer_start=null")

    def encode(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str | Messages]) -> list[list[int]]:
        """Ids of the prompts for the texts or conversations of problems. What the tokenizer puts in front is there once,
        also where a text begins with it already; what it puts at the end is left out, as an answer follows. Only chat
        forms take conversations."""
        if self.form not in CHATS and any(not isinstance(text, str) for text in texts):
            kinds = "the problems are conversations with system messages or earlier turns, which only a chat template can ask"
            raise SettingsError(
                f"model.prompt={self.form}: {kinds}; model.prompt=chat or task.columns.problem=<column>"
            )
        rendered = [FORMS[self.form](tokenizer, text) for text in texts]
        if not rendered:
            return []
        found: Any = tokenizer(rendered, add_special_tokens=False)
        before = [] if self.form in CHATS else affixes(tokenizer)[0]  # a template writes its own begin-of-text token
        return [ids if ids[: len(before)] == before else [*before, *ids] for ids in found["input_ids"]]

    def stops(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int | str, ...]:
        """What ends an answer besides the end-of-text tokens."""
        ends = turn_end(tokenizer) if self.form in CHATS else ""
        return (*self.stop, ends) if ends else self.stop

    def settled(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """For run.json, what was decided without a setting: the date in the template, ids that were not appended."""
        found: dict[str, Any] = {}
        if self.form in CHATS and tokenizer.chat_template:
            turns, other = [{"role": "user", "content": PLACEHOLDER}], DATE.replace(year=1999, month=1, day=2)
            if render(tokenizer, turns) != render(tokenizer, turns, other):
                found["date"] = DATE.date().isoformat()
        after = [] if self.form in CHATS else affixes(tokenizer)[1]
        return found | ({"not_appended": tokenizer.convert_ids_to_tokens(after)} if after else {})


PLAIN = Prompting()


@dataclass(frozen=True)
class Prompts:
    """Every prompt of a run, encoded once before it begins, by its text and whether it is a message.

    room: tokens that a prompt may have, at most; rows: of the model's table, None: ids are not checked against it.
    """

    tokenizer: PreTrainedTokenizerBase
    prompting: Prompting
    room: int
    rows: int | None = None
    ids: dict[tuple[str, bool], np.ndarray] = field(default_factory=dict)

    def read(self, task: Task, spare: int = 0) -> Task:
        """Encodes the task's prompts and returns the task without the messages that leave no room for an answer and
        `spare` more tokens.

        Raises ValueError where no problem is left, or where a prompt that is not a message is empty or does not fit.
        """
        problems = list(task.problems)
        for message, form in ((True, self.prompting), (False, PLAIN)):
            alike = [problem for problem in problems if problem.is_message is message]
            encoded = form.encode(self.tokenizer, [problem.messages or problem.prompt for problem in alike])
            for problem, ids in zip(alike, encoded, strict=True):
                self.ids[problem.prompt, message] = np.asarray(ids, np.int32)
                self._refuse_unknown(f"{task.name}: a prompt", ids)
        for key, text in (("model.answer_start", self.prompting.answer_start), (task.name, task.answer_prefix)):
            self._refuse_unknown(f"{key}={text}:", self.tokenizer.encode(text or "", add_special_tokens=False))
        kept = [problem for problem in problems if self._fits(problem, self.room - spare)]
        if not kept:
            raise SettingsError(f"{task.name}: no prompt leaves room for the answer; set max_new_tokens")
        return task if len(kept) == len(problems) else Subset(task, kept)

    def with_prefix(self, text: str, problem: Problem) -> np.ndarray:
        """Ids of a problem's prompt after a text: in a chat this is a system message, or the beginning of an existing one."""
        form = self.prompting if problem.is_message else PLAIN
        prompt: str | Messages = f"{text}\n{problem.prompt}"
        if form.form in CHATS:
            messages = problem.messages or (("user", problem.prompt),)
            system = "".join(f"\n{content}" for role, content in messages[:1] if role == "system")
            prompt = (("system", text + system), *(messages[1:] if system else messages))
        return np.asarray(form.encode(self.tokenizer, [prompt])[0], np.int32)

    def _fits(self, problem: Problem, room: int) -> bool:
        width = len(self.ids[problem.prompt, problem.is_message])
        if not problem.is_message and not 0 < width <= room:
            raise SettingsError(f"a prompt has {width} tokens, allowed are 1 to {room}: {problem.prompt[:80]!r}")
        return 0 < width <= room

    def _refuse_unknown(self, what: str, ids: Sequence[int]) -> None:
        """Raises ValueError for added tokens that have no row in the table, as the image token in Gemma's text models."""
        if self.rows is not None and (most := max(ids, default=0)) >= self.rows:
            token = self.tokenizer.convert_ids_to_tokens(most)
            problem = f"{what} has the token {token!r} (id {most}), and the model's table ends at {self.rows - 1}"
            raise SettingsError(f"{problem}; take it out or choose another model")

    def report(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """Prints, and returns for run.json, how the model is prompted: the first prompt as rendered, its last tokens, what
        ends an answer and its thinking part, and what was decided without a setting."""
        names, first = self.tokenizer.convert_ids_to_tokens, next(iter(self.ids.values())).tolist()
        facts = {
            "prompt": self.tokenizer.decode(first, clean_up_tokenization_spaces=False),
            "last_tokens": names(first[-LAST_TOKENS:]),
            "stops": dict(zip(names(list(vocabulary.stops)), vocabulary.stops, strict=True)),
            "stop_texts": list(vocabulary.stop_texts),
            "delimiter": {"text": vocabulary.delimiter or None, "tokens": names(list(vocabulary.answer_start))},
            **self.prompting.settled(self.tokenizer),
        }
        for name, value in facts.items():
            print(f"asked: {name} {json.dumps(value, ensure_ascii=False)}")
        return facts
