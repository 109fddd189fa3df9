"""A vocabulary that was cut: the same logits on what is left, the same tokens for the texts that it was cut to."""

import json

import pytest
import torch
import warm
from architectures import config_of, stock
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from ngrpo.models import files, trim
from ngrpo.targets import SettingsError

CORPUS = [
    "Anna has 12 coins and finds 9 more. How many coins does Anna have? Answer: 12 + 9 = 21\n",
    "the quick brown fox jumps over the lazy dog, and then it sleeps for a hundred years",
    "caf\u00e9 na\u00efve \u65e5\u672c\u8a9e \u03c0\u03c1\u03ce\u03c4\u03bf\u03c2",
] * 3
TEXTS = ["Anna has 9 coins.", "How many coins does Anna have? Answer: 9 + 12 = 21\n", "Anna finds 12 caf\u00e9s"]
OTHERS = ["the lazy fox", "\u65e5\u672c years", "\U0001f600 zzz \t"]
SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn>"]


def byte_level():
    """As Qwen's and Llama's: pieces over 256 letters that stand for bytes."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=450, special_tokens=SPECIALS, initial_alphabet=alphabet)
    )
    return made


def byte_fallback():
    """As Gemma's: pieces over characters, tokens <0x00> to <0xFF> for what is left."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "\u2581")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    spelt = [f"<0x{byte:02X}>" for byte in range(256)]
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=450, special_tokens=[*SPECIALS, *spelt]))
    words = json.loads(made.to_str())
    words["added_tokens"] = [added for added in words["added_tokens"] if added["content"] in SPECIALS]
    return Tokenizer.from_str(json.dumps(words))


@pytest.fixture(scope="module", params=[(byte_level, "qwen2"), (byte_fallback, "gemma3"), (byte_level, "qwen3")])
def cut(request, tmp_path_factory):
    """Directories of a whole model (tied in qwen2 and gemma3) and of the same one cut to TEXTS."""
    make, architecture = request.param
    whole, out = (tmp_path_factory.mktemp("models") / name for name in ("whole", "cut"))
    words = make()
    words.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 2)])
    size = words.get_vocab_size() + 5  # tables may have more rows than there are tokens
    model = stock(config_of(architecture, vocab_size=size, bos_token_id=2, pad_token_id=0), torch.float32)
    model.generation_config.eos_token_id = [1, 4]
    model.save_pretrained(whole)
    named = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **named).save_pretrained(whole)
    assert (model.get_input_embeddings().weight is model.lm_head.weight) == (architecture != "qwen3")
    return whole, out, trim.trim(whole, TEXTS, 20, out)


def tokens(place, text):
    tokenizer = AutoTokenizer.from_pretrained(place)
    return tokenizer.convert_ids_to_tokens(tokenizer.encode(text))


def test_texts_are_read_as_before_and_any_other_text_can_still_be_spelt(cut):
    whole, out, _ = cut
    assert trim.changed(TEXTS, whole, out) == 0
    assert [tokens(out, text) for text in TEXTS] == [tokens(whole, text) for text in TEXTS]
    assert trim.changed(OTHERS, whole, out) > 0, "else nothing was cut"
    tokenizer = AutoTokenizer.from_pretrained(out)
    for text in [*TEXTS, *OTHERS]:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_logits_on_kept_tokens_are_exactly_those_of_the_whole_model(cut):
    whole, out, found = cut
    models_ = [AutoModelForCausalLM.from_pretrained(place).eval() for place in (whole, out)]
    old, new = (AutoTokenizer.from_pretrained(place) for place in (whole, out))
    places = [old.convert_tokens_to_ids(piece) for piece in new.convert_ids_to_tokens(range(len(new)))]
    assert found["tokens"] == len(new) == models_[1].config.vocab_size < 0.9 * found["of"]
    for text in TEXTS:
        with torch.no_grad():
            logits = [m(torch.tensor([t.encode(text)])).logits for m, t in zip(models_, (old, new), strict=True)]
        assert torch.equal(logits[0][..., places], logits[1])


def test_special_tokens_keep_their_meaning(cut):
    whole, out, _ = cut
    old, new = (AutoTokenizer.from_pretrained(place) for place in (whole, out))
    models_ = [AutoModelForCausalLM.from_pretrained(place) for place in (whole, out)]
    assert (new.pad_token, new.eos_token, new.bos_token) == ("<pad>", "<eos>", "<bos>")
    for settings in ("config", "generation_config"):
        a, b = (getattr(model, settings) for model in models_)
        for name in ("bos_token_id", "eos_token_id"):
            assert old.convert_ids_to_tokens(getattr(a, name)) == new.convert_ids_to_tokens(getattr(b, name))
    assert "<turn>" in new.get_vocab(), "generation_config.json ends a text with it"


def test_a_cut_model_passes_the_checks_of_a_run_and_says_from_which_it_was_cut(cut):
    whole, out, found = cut
    assert files.refusal(str(out)) is None
    assert (
        files.trimmed(str(out))
        == found
        == {"model": files.fingerprint(str(whole)), "tokens": found["tokens"], "of": found["of"]}
    )
    assert files.trimmed(str(whole)) is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({}, "expected model=<directory> texts=<file.jsonl> out=<directory> common=4000"),
        ({"model": "nowhere"}, "is no directory"),
        ({"texts": "nowhere.jsonl"}, "texts=<file.jsonl>"),
        ({"common": "-3"}, "common=4000"),
        ({"out": "."}, "name another directory"),
    ],
)
def test_what_cannot_be_cut_is_one_line(cut, words, told, tmp_path):
    whole, *_ = cut
    (tmp_path / "texts.jsonl").write_text('{"problem": "Anna", "answer": ["9"]}\n')
    asked = {"model": str(whole), "texts": str(tmp_path / "texts.jsonl"), "out": str(tmp_path / "new"), **words}
    with pytest.raises(SettingsError) as error:
        trim.main([f"{name}={value}" for name, value in asked.items()] if words else ["model=x"])
    assert told in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_the_command_ends_with_status_2_and_one_line(tmp_path):
    module = "import runpy; runpy.run_module('ngrpo.models.trim', run_name='__main__')"
    found = warm.run(module, "model=nowhere", "texts=a", "out=b", folder=tmp_path)
    assert found.returncode == 2 and found.stderr.startswith("error: model=nowhere: ") and found.stderr.count("\n") == 1
