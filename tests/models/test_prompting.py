"""Prompts by config: one begin-of-text token, never two, and each checkpoint's own words and special tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from ngrpo.models.loading import load_tokenizer, vocabulary
from ngrpo.models.prompting import FULL_WIDTH_BAR, Prompting, Prompts
from ngrpo.rollout.sampling import padded
from ngrpo.tasks.base import Problem, Score, Subset

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %} assistant{% endif %}"
)
WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "user", "assistant", "two", "and", "four"]
ROLE_TOKENS = [f"<{FULL_WIDTH_BAR}{role}{FULL_WIDTH_BAR}>" for role in ("User", "Assistant")]


@pytest.fixture
def tokenizer():
    """Of the kind that puts a begin-of-text token before everything."""
    inner = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    inner.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def test_plain_text_is_read_as_it_is(tokenizer):
    (ids,) = Prompting("plain").encode(tokenizer, ["two and four"])
    assert tokenizer.decode(ids) == "<bos> two and four"


def test_a_template_is_not_given_a_second_begin_of_text(tokenizer):
    tokenizer.chat_template = TEMPLATE
    (ids,) = Prompting("chat").encode(tokenizer, ["two and four"])
    assert tokenizer.decode(ids) == "<bos> user two and four assistant" and ids.count(1) == 1


def test_chat_without_a_template_names_the_way_out(tokenizer):
    with pytest.raises(ValueError, match=r"model\.prompt=plain"):
        Prompting("chat").encode(tokenizer, ["two"])


@pytest.mark.parametrize("own", [True, False])
def test_r1_uses_the_role_tokens_that_the_tokenizer_has(tokenizer, own, monkeypatch):
    if own:
        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in ROLE_TOKENS])
    read = []
    monkeypatch.setattr(
        type(tokenizer), "__call__", lambda self, texts, **kwargs: read.extend(texts) or {"input_ids": [[1]]}
    )
    Prompting("r1").encode(tokenizer, ["two"])
    user, assistant = ROLE_TOKENS if own else ("<|User|>", "<|Assistant|>")
    assert read == [f"{user}two{assistant}<think>\n"]


SHOT = (("system", "four"), ("user", "two"), ("assistant", "four"), ("user", "two and four"))


def test_a_conversation_is_rendered_whole(tokenizer):
    tokenizer.chat_template = TEMPLATE
    prompts = Prompts(tokenizer, Prompting("chat"), 20)
    prompts.read(Questions([Problem("p", "as text", "", is_message=True, messages=SHOT)]))
    rendered = "<bos> <unk> four user two assistant four user two and four assistant"
    assert tokenizer.decode(prompts.ids["as text", True]) == rendered


@pytest.mark.parametrize(
    "form, template, words",
    [
        ("plain", TEMPLATE, "model.prompt=plain: .*model.prompt=chat"),
        ("r1", TEMPLATE, "model.prompt=r1: .*model.prompt=chat"),
        ("chat", "{{ raise_exception('no system') }}", "refuses the messages system, user.*no system"),
        ("chat", "{{ messages[-1].content }}", "leaves a message of the system's out"),
    ],
)
def test_a_form_that_drops_messages_is_refused(tokenizer, form, template, words):
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=words):
        Prompting(form).encode(tokenizer, [(("system", "<pad>"), ("user", "two"))])


@dataclass
class Questions:
    """A task with nothing but problems."""

    problems: list[Problem]
    name: str = "questions"
    version: str = "1"
    answer_start: str | None = None
    answer_prefix: str = ""

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        raise NotImplementedError


def messages(*texts: str) -> list[Problem]:
    return [Problem(f"m{index}", text, "", is_message=True) for index, text in enumerate(texts)]


def test_padding_is_on_the_left_whatever_the_form(tokenizer):
    tokenizer.chat_template = TEMPLATE
    prompts = Prompts(tokenizer, Prompting("chat"), 10)
    task = prompts.read(Questions(messages("two", "two and four")))
    ids, mask = padded([prompts.ids[p.prompt, p.is_message] for p in task.problems], tokenizer.pad_token_id)
    assert (ids[0][~mask[0]] == 0).all() and mask[:, -1].all()
    assert torch.equal(mask.sum(1), torch.tensor([4, 6]))


def test_messages_have_the_model_s_form_and_other_prompts_stand_as_they_are(tokenizer):
    tokenizer.chat_template = TEMPLATE
    prompts = Prompts(tokenizer, Prompting("chat"), 10)
    asked = Questions([*messages("two"), Problem("p", "two", ""), *messages("four")])
    assert prompts.read(asked) is asked
    found = {key: tokenizer.decode(ids) for key, ids in prompts.ids.items()}
    assert found == {
        ("two", True): "<bos> user two assistant",
        ("two", False): "<bos> two",
        ("four", True): "<bos> user four assistant",
    }
    prompts.read(Questions(messages("and")))
    assert len(prompts.ids) == 4, "one run's prompts stand together, whatever tasks they are from"


def test_messages_that_leave_no_room_are_left_out_and_counted(tokenizer):
    prompts = Prompts(tokenizer, Prompting("plain"), 3)
    long, short = "two and four", "two"
    task = prompts.read(Questions(messages(long, short, long)))
    assert isinstance(task, Subset) and task.left_out == 2 and [p.prompt for p in task.problems] == [short]
    assert task.name == "questions"
    with pytest.raises(ValueError, match=r"questions: no prompt leaves room .*max_new_tokens"):
        prompts.read(Questions(messages(long)))


@pytest.mark.parametrize("text", ["two and four", ""])
def test_a_prompt_that_is_no_message_must_fit(tokenizer, text):
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(ValueError, match=r"a prompt has [30] tokens, allowed are 1 to 2"):
        Prompts(tokenizer, Prompting("plain"), 2).read(Questions([Problem("p", text, "")]))


def test_a_model_without_thinking_part_has_nothing_that_ends_it(make_model):
    words, model = load_tokenizer("ngrpo:tiny"), make_model()
    assert vocabulary(words, model, Prompting("plain", None).answer_start, "").answer_start == ()
    assert len(vocabulary(words, model, Prompting().answer_start, "").answer_start) == 1
