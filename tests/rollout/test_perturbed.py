"""Prompts with words in front: where they stand, and that they fit."""

import pytest
from updates import TINY

from ngrpo.algorithm.retry import Retry
from ngrpo.models.loading import load_tokenizer
from ngrpo.models.prompting import PLAIN, Prompting, Prompts
from ngrpo.rollout.keys import row_key
from ngrpo.rollout.perturbed import Perturbed
from ngrpo.targets import SettingsError
from ngrpo.tasks.base import Problem
from ngrpo.tasks.story_math import StoryMath

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} . {% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)
TASK = StoryMath("train", [2], 16)
LONGEST = max(len(load_tokenizer(TINY).encode(problem.prompt)) for problem in TASK.problems)


def perturbed(room: int, **changes) -> Perturbed:
    retry = Retry(**{"words": (3, 9), "vocabulary": "tokens", "boundary": None, **changes})
    return Perturbed(retry, Prompts(load_tokenizer(TINY), PLAIN, room))


def test_words_are_the_tokenizer_s_own_and_none_of_its_special_ones():
    words = perturbed(100).vocabulary
    assert {"apples", "twenty-one"} <= set(words) and not {"<think>", "</think>", "<eos>", "<unk>", ".", ""} & set(
        words
    )


def test_the_ids_are_those_of_the_words_and_then_of_the_prompt():
    asker = perturbed(100)
    asker.read(TASK)
    for problem in TASK.problems:
        text, ids = asker.prompt(problem, row_key(problem.id))
        own = asker.prompts.ids[problem.prompt, False].tolist()
        words = text.removesuffix(f"\n{problem.prompt}").split(" ")
        assert asker.prompts.tokenizer.convert_ids_to_tokens(ids.tolist()[: -len(own)]) == words
        assert ids.tolist()[-len(own) :] == own and 3 <= len(words) <= 9


def test_no_prompt_outgrows_its_room_nor_falls_below_the_fewest_words():
    room = LONGEST + 4
    asker, wide = perturbed(room), perturbed(1000)
    for one in (asker, wide):
        one.read(TASK)
    cut = 0
    for problem in TASK.problems:
        text, ids = asker.prompt(problem, row_key(problem.id))
        whole, _ = wide.prompt(problem, row_key(problem.id))
        own = len(asker.prompts.ids[problem.prompt, False])
        assert own + 3 <= len(ids) <= room and whole.startswith(text.partition("\n")[0])
        cut += text != whole
    assert cut > 0, "else nothing had to be cut"


def test_what_leaves_no_room_for_the_fewest_words_is_refused_before_anything_is_asked():
    with pytest.raises(
        SettingsError, match=r"^algorithm\.retry\.words=\[40, 50\]: 40 .*; algorithm\.retry\.words=\[0,20\]$"
    ):
        perturbed(LONGEST + 30, words=[40, 50]).read(TASK)


def test_in_a_chat_the_words_are_a_system_message_which_one_that_is_there_follows():
    tokenizer = load_tokenizer(TINY)
    tokenizer.chat_template = TEMPLATE
    prompts = Prompts(tokenizer, Prompting("chat", None), 100)
    alone = Problem("p", "how many apples", "", is_message=True)
    talk = Problem("q", "as text", "", is_message=True, messages=(("system", "then"), ("user", "how many pears")))
    assert tokenizer.decode(prompts.with_prefix("coins cards", alone)) == tokenizer.decode(
        tokenizer.encode("system : coins cards . user : how many apples . assistant")
    )
    assert tokenizer.decode(prompts.with_prefix("coins cards", talk)) == tokenizer.decode(
        tokenizer.encode("system : coins cards then . user : how many pears . assistant")
    )
