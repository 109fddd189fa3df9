"""The bundled model, and the recipe that made it."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.tiny_model import corpus, recipe
from ngrpo.models import files
from ngrpo.tasks.base import Problem
from ngrpo.tasks.story_math import Story, StoryMath, draw_story
from ngrpo.tasks.story_text import LIMIT, NUMBERS, vocabulary

BUNDLED = files.BUNDLED["ngrpo:tiny"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BUNDLED)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(BUNDLED).eval()


def test_bundle_is_small_and_float32(model):
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) < 8 * 2**20
    assert model.config.model_type == "qwen2" and model.dtype == torch.float32
    assert {parameter.isfinite().all().item() for parameter in model.parameters()} == {True}


def test_vocabulary_is_padded_and_padded_rows_are_never_chosen(model, tokenizer):
    rows = model.get_input_embeddings().weight.shape[0]
    assert rows % 32 == 0 and rows > len(tokenizer)
    encoded = tokenizer([problem.prompt for problem in StoryMath("test", [4], 4).problems], padding=True)
    logits = model(**encoded.convert_to_tensors("pt")).logits[:, -1]
    assert logits.softmax(-1)[:, len(tokenizer) :].max() < 1e-3


@pytest.mark.parametrize("source", ["bundled", "saved again"])
def test_one_word_is_one_token_and_thinking_marks_stay_visible(source, tokenizer, tmp_path):
    if source == "saved again":  # as a finished run does; the model's config beside it decides the tokenizer class
        tokenizer.save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text((BUNDLED / "config.json").read_text())
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = f"{' '.join(vocabulary())} <think> </think> \\boxed{{ forty-two }}"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.split()) and tokenizer.unk_token_id not in ids
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text
    assert tokenizer("tom has no such word")["input_ids"].count(tokenizer.unk_token_id) == 3
    assert tokenizer.padding_side == "left" and tokenizer.bos_token is None


def test_bundled_tokenizer_is_the_recipe_s(tokenizer):
    assert tokenizer.get_vocab() == recipe.build_tokenizer().get_vocab()


def test_bundled_model_has_the_skill_but_not_the_habit(model, tokenizer):
    """Bounds far outside the sampling error of 12 problems x 8 samples around the figures of the model card."""
    torch.manual_seed(0)
    easy = recipe.measure(model, tokenizer, StoryMath("test", [2], 12), 8)
    trained = recipe.measure(model, tokenizer, StoryMath("test", [4], 12), 8)
    assert 0.1 < trained["mean@8"] < 0.65 < trained["pass@8"] and easy["pass@8"] > 0.8
    assert trained["mean_tokens"] < 50


def test_recipe_is_reproducible_and_loads(tmp_path):
    weights = []
    for name in ("first", "second"):
        recipe.make(tmp_path / name, seed=3, steps=3)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert len(AutoTokenizer.from_pretrained(tmp_path / name)) == len(recipe.build_tokenizer())
        weights.append(loaded.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_another_seed_makes_another_corpus():
    def first_batch(seed):
        return next(recipe.batches(Random(seed), recipe.build_tokenizer()))[0]

    assert torch.equal(first_batch(1), first_batch(1)) and not torch.equal(first_batch(1), first_batch(2))


def test_careful_authors_are_right_and_every_slip_is_carried_on():
    """Without slips every order of sums reaches the answer; with slips the box still holds the author's last sum."""
    rng, task = Random(0), StoryMath("train", [4], 1)
    for author in corpus.AUTHORS:
        careful = replace(author, slip=0.0)
        paths = Counter()
        for _ in range(30):
            story = draw_story(rng, 4, "train")
            problem = Problem(id="", prompt="", gold=NUMBERS[story.answer])
            (verdict,) = task.score([problem], [corpus.solve(rng, story, careful)])
            assert verdict.outcome == "correct" and verdict.solution_path.count("=") == 4
            (verdict,) = task.score([problem], [corpus.solve(rng, story, author)])
            assert verdict.solution_path.rpartition("=")[2] == str(NUMBERS.index(verdict.extracted))
            paths[verdict.outcome] += 1
        assert paths["correct"] + paths["wrong"] == 30


@pytest.mark.parametrize(
    ("value", "change", "wrong"), [(27, 5, 22), (32, -5, 33), (32, -15, 23), (27, 2, 28), (27, -2, 26), (3, -9, 6)]
)
def test_a_slip_is_one_wrong_number(value, change, wrong):
    assert corpus.slipped(value, change) == wrong != value + change


def test_no_solution_leaves_the_known_numbers():
    rng = Random(1)
    for level in range(1, 9):
        for author in corpus.AUTHORS:
            reckless = replace(author, slip=1.0)
            completion = corpus.solve(rng, draw_story(rng, level, "train"), reckless).split()
            assert set(completion) <= {*vocabulary(), "</think>"} and len(completion) < 80
    assert Story(3, (2,)).answer == 5 and len(NUMBERS) == LIMIT + 1
