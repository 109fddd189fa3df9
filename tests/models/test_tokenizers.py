"""What is settled per tokenizer: pieces, prompts, stops, the delimiter; with published tokenizers and made ones."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from real_tokenizers import CONTEXTS, NAMES, real
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordPiece
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from ngrpo.exploration.thinking import Thinking
from ngrpo.models.loading import vocabulary
from ngrpo.models.pieces import pieces
from ngrpo.models.prompting import Prompting, Prompts, affixes, turn_end
from ngrpo.tasks.base import Problem

USER = "{% for m in messages %}<{{ m.role }}>{{ m.content }}"


def words_of(tokenizer, answer_start=None, stop=(), eos=None):
    model = SimpleNamespace(model=SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=eos)))
    return vocabulary(tokenizer, model, answer_start, "", stop)  # pyright: ignore[reportArgumentType]


def changed(name: str, **names) -> Any:
    """A copy of a published tokenizer."""
    tokenizer = real(name)
    config = {kind: getattr(tokenizer, kind) for kind in ("bos_token", "eos_token", "pad_token")}
    inner = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    return PreTrainedTokenizerFast(tokenizer_object=inner, **{**config, **names})


# --- pieces -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_pieces_make_what_the_tokenizer_decodes_whatever_the_ids(name):
    """Also where ids are no text: bytes that are no UTF-8, special tokens in the middle."""
    tokenizer = real(name)
    made = pieces(tokenizer, ())
    generator = torch.Generator().manual_seed(0)
    for ids in torch.randint(len(tokenizer), (100, 40), generator=generator).tolist():
        theirs = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert made.text(ids).replace("\ufffd", "") == theirs.replace("\ufffd", "")
    for text in [context.format(*["</think>"] * 2) for context in CONTEXTS]:
        assert made.text(tokenizer.encode(text, add_special_tokens=False)) == text


def sentence_piece(*, strip: bool) -> Any:
    """Of the kind of Llama 2 (`strip`) or Gemma: spaces in pieces, bytes for what no piece has."""
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyz.,<>/\\{}0123456789STX", "\u2581it", "</", "think", ">."]
    vocab = {
        token: place
        for place, token in enumerate(["<unk>", "<s>", "</s>", *[f"<0x{n:02X}>" for n in range(256)], *letters])
    }
    inner = Tokenizer(BPE(vocab, [("<", "/")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps = [normalizers.Prepend("\u2581")] if strip else []
    inner.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_piece() -> Any:
    known = ["[UNK]", "[SEP]", "so", "##x", "<", "/", "think", ">", ".", "it", "is", "12"]
    inner = Tokenizer(WordPiece({token: place for place, token in enumerate(known)}, unk_token="[UNK]"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece("##", cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="[SEP]", unk_token="[UNK]")


@pytest.mark.parametrize("strip", [True, False])
def test_pieces_with_marks_for_spaces_and_bytes(strip):
    tokenizer = sentence_piece(strip=strip)
    words = words_of(tokenizer, "</think>")
    for text in ("so it is. caf\u00e9 \u65e5", "<</think>. it", "a \u03c0</think>b"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert words.text(ids) == text
        thinking = Thinking(words, len(tokenizer))
        state, seen = thinking.start(1, torch.device("cpu")), []
        for token in ids:
            _, state = thinking.push(state, torch.tensor([token]))
            seen.append(bool(thinking.active(state)))
        assert seen.count(False) == len([n for n in range(len(ids)) if "</think>" in tokenizer.decode(ids[: n + 1])])


def test_words_that_stand_apart_are_read_as_they_are_decoded():
    tokenizer = word_piece()
    assert words_of(tokenizer).text(tokenizer.encode("sox it is 12", add_special_tokens=False)) == "sox it is 12"


def test_a_tokenizer_whose_tokens_do_not_make_its_text_is_refused(monkeypatch):
    tokenizer = sentence_piece(strip=True)
    monkeypatch.setattr(type(tokenizer), "decode", lambda *given, **named: "something else")
    with pytest.raises(ValueError, match="choose another model"):
        pieces(tokenizer, ())


@pytest.mark.parametrize("name", NAMES)
def test_a_special_delimiter_survives_to_be_graded_and_stops_and_padding_do_not(name):
    tokenizer = real(name, "special")
    words = words_of(tokenizer, "</think>")
    ids = tokenizer.encode("so 7 .</think>\\boxed{4}", add_special_tokens=False)
    (delimiter,) = words.answer_start
    assert delimiter in tokenizer.all_special_ids and delimiter in ids
    ids = [tokenizer.pad_token_id, *ids, tokenizer.eos_token_id]
    assert words.text(ids) == "so 7 .</think>\\boxed{4}", "nor is the space before a full stop taken out"


# --- stops --------------------------------------------------------------------------------------------------------------


def test_stops_are_the_end_of_text_those_of_the_settings_and_one_s_own():
    tokenizer = real("llama")
    known = tokenizer.get_vocab()
    words = words_of(tokenizer, None, [7, "<|eot_id|>", "Question:"], [11, known["<|eom_id|>"]])
    assert set(words.stops) == {7, 11, known["<|eom_id|>"], known["<|eot_id|>"], tokenizer.eos_token_id}
    assert words.stop_texts == ("Question:",)
    for wrong in (-1, len(tokenizer)):
        with pytest.raises(ValueError, match=r"model\.stop=.*the ids 0 to"):
            words_of(tokenizer, None, [wrong])


@pytest.mark.parametrize(
    ("name", "template", "end"),
    [
        ("qwen", None, "<|im_end|>"),
        ("llama", USER + "<|eot_id|>{% endfor %}", "<|eot_id|>"),
        ("llama", USER + "\n### End\n{% endfor %}", "### End"),
        ("deepseek", USER + "\n{% endfor %}", ""),
        ("deepseek", "{% for m in messages %}{{ raise_exception('no') if m.role != 'user' }}{% endfor %}", ""),
    ],
)
def test_the_turn_s_end_of_a_template_is_a_stop_of_chats(name, template, end):
    tokenizer = changed(name, eos_token={"qwen": "<|endoftext|>"}.get(name, real(name).eos_token))
    tokenizer.chat_template = template or real(name).chat_template
    assert turn_end(tokenizer) == end
    assert Prompting("chat", stop=(5,)).stops(tokenizer) == ((5, end) if end else (5,))
    assert Prompting("plain", stop=(5,)).stops(tokenizer) == (5,)
    words = words_of(tokenizer, None, Prompting("chat").stops(tokenizer))
    special = tokenizer.get_vocab().get(end)
    assert (special in words.stops) == (special is not None)
    assert words.stop_texts == ((end,) if end and special is None else ())


def test_an_answer_is_graded_up_to_the_first_text_that_stops_it():
    tokenizer = real("llama")
    words = words_of(tokenizer, None, ["Question:", "\n\nQ", "ion:"])
    ids = tokenizer.encode("It is 4.\n\nQuestion: what", add_special_tokens=False)
    assert words.text(ids) == "It is 4." and words.stopped(ids)
    assert not words.stopped(tokenizer.encode("It is 4. Quest", add_special_tokens=False))
    assert words_of(tokenizer, None, ["ion:", "Question:"]).text(ids) == "It is 4.\n\n", (
        "the longer of two that end together"
    )


# --- prompts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["Two and two?", "<|begin_of_text|>Two and two?"])
def test_a_prompt_begins_once_also_where_it_was_rendered_before(text):
    tokenizer = real("llama")
    (ids,) = Prompting("plain").encode(tokenizer, [text])
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


def test_an_end_that_the_tokenizer_appends_is_undone_and_said():
    tokenizer = changed("deepseek")
    inner, (begin, end) = tokenizer.backend_tokenizer, (tokenizer.bos_token, tokenizer.eos_token)
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (begin, end)]
    inner.post_processor = TemplateProcessing(single=f"{begin} $A {end}", special_tokens=special)
    assert affixes(tokenizer) == ([special[0][1]], [special[1][1]])
    (ids,) = Prompting("r1").encode(tokenizer, ["Two?"])
    assert ids[0] == special[0][1] and special[1][1] not in ids
    assert Prompting("plain").settled(tokenizer) == {"not_appended": [end]}
    assert Prompting("plain").settled(real("deepseek")) == {}


DATED = "  It is {{ strftime_now('%-d %b %Y') }}. " + USER + "{% endfor %}"
LLAMA = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%Y-%m-%d') %}{% endif %}{{ date_string }}"
    " {{ messages[0].content }}"
)


@pytest.mark.parametrize(("template", "said"), [(DATED, "  It is 26 Jul 2024. <user>Two?"), (LLAMA, "2024-07-26 Two?")])
def test_a_template_is_told_the_same_date_every_day_and_run_json_has_it(template, said):
    tokenizer = changed("llama")
    tokenizer.chat_template = template
    (ids,) = Prompting("chat").encode(tokenizer, ["Two?"])
    assert tokenizer.decode(ids) == said
    assert Prompting("chat").settled(tokenizer) == {"date": "2024-07-26"}
    tokenizer.chat_template = USER + "{% endfor %}"
    assert Prompting("chat").settled(tokenizer) == {}


def test_what_is_asked_is_told_once_at_the_start(capsys):
    tokenizer = real("qwen")
    prompts = Prompts(tokenizer, Prompting("chat"), 100)
    problem = Problem("p", "Two and two?", "4", is_message=True)
    task: Any = SimpleNamespace(problems=[problem], name="t", answer_prefix="")
    prompts.read(task)
    words = words_of(tokenizer, "</think>", [*prompts.prompting.stops(tokenizer), "Question:"], 151643)
    asked = prompts.report(words)
    assert asked["prompt"].endswith("<|im_start|>user\nTwo and two?<|im_end|>\n<|im_start|>assistant\n")
    assert asked["last_tokens"][-3:] == ["<|im_start|>", "assistant", "\u010a"]
    assert asked["stops"] == {"<|endoftext|>": 151643, "<|im_end|>": 151645} and asked["stop_texts"] == ["Question:"]
    assert asked["delimiter"] == {"text": "</think>", "tokens": ["</think>"]}
    shown = capsys.readouterr().out
    assert all(f"asked: {name} " in shown for name in asked)


def test_chats_and_templates_know_added_tokens_that_are_not_special():
    tokenizer = changed("llama")
    tokenizer.add_tokens([AddedToken("<stop>", special=False, normalized=False)])
    assert words_of(tokenizer, None, ["<stop>"]).stops[-1] == tokenizer.get_vocab()["<stop>"]
