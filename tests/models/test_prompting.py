"""Prompts by config: one begin-of-text token, never two, and each checkpoint's own words and signs."""

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from ngrpo.models.causal import encode
from ngrpo.models.prompting import FULL_WIDTH_BAR, Prompting

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %} assistant{% endif %}"
)
WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "user", "assistant", "two", "and", "four"]
SIGNS = [f"<{FULL_WIDTH_BAR}{role}{FULL_WIDTH_BAR}>" for role in ("User", "Assistant")]


@pytest.fixture
def tokenizer():
    """Of the kind that puts a begin-of-text token before everything."""
    inner = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    inner.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def test_plain_text_is_read_as_it_is(tokenizer):
    assert tokenizer.decode(Prompting("plain").encode(tokenizer, "two and four")) == "<bos> two and four"


def test_a_template_is_not_given_a_second_begin_of_text(tokenizer):
    tokenizer.chat_template = TEMPLATE
    ids = Prompting("chat").encode(tokenizer, "two and four")
    assert tokenizer.decode(ids) == "<bos> user two and four assistant" and ids.count(1) == 1


def test_chat_without_a_template_names_the_way_out(tokenizer):
    with pytest.raises(ValueError, match=r"model\.prompt=plain"):
        Prompting("chat").encode(tokenizer, "two")


@pytest.mark.parametrize("own", [True, False])
def test_r1_uses_the_signs_that_the_tokenizer_has(tokenizer, own, monkeypatch):
    if own:
        tokenizer.add_tokens([AddedToken(sign, special=True, normalized=False) for sign in SIGNS])
    read = []
    monkeypatch.setattr(type(tokenizer), "encode", lambda self, text, **kwargs: read.append(text) or [1])
    Prompting("r1").encode(tokenizer, "two")
    user, assistant = SIGNS if own else ("<|User|>", "<|Assistant|>")
    assert read == [f"{user}two{assistant}<think>\n"]


def test_padding_is_on_the_left_whatever_the_form(tokenizer):
    tokenizer.chat_template = TEMPLATE
    ids, mask = encode(tokenizer, ["two", "two and four"], 10, Prompting("chat"))
    assert (ids[0][~mask[0]] == 0).all() and mask[:, -1].all()
    assert torch.equal(mask.sum(1), torch.tensor([4, 6]))


def test_a_model_without_thinking_part_has_nothing_that_ends_it(make_model):
    from ngrpo.models import causal
    from ngrpo.models.tiny.recipe import build_tokenizer

    words, model = build_tokenizer(), make_model()
    assert causal.vocabulary(words, model, Prompting("plain", None).answer_start, "").answer_start == ()
    assert len(causal.vocabulary(words, model, Prompting().answer_start, "").answer_start) == 1
