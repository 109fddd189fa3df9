"""The story task: its problems are fixed, its splits disjoint, its scores right on any text."""

import re
import time
from hashlib import blake2b
from pathlib import Path
from random import Random

import pytest
import yaml

from ngrpo.tasks import story_math, story_text
from ngrpo.tasks.base import OUTCOMES
from ngrpo.tasks.story_math import Story, StoryMath, draw_story

CONF = Path(__file__).parents[2] / "conf"
BENCHMARKS = {
    "story_math": "b54b6f7b70133ac7",
    "story_math_easy": "bc2b83cd8175150d",
    "story_math_hard": "e5d3d30ad90364b4",
    "story_math_ood": "ecf70d05a9149c55",
    "story_math_val": "2f4af66c9091ff7e",
}


def load(path):
    keys = yaml.safe_load(path.read_text())
    assert keys.pop("_target_") == "ngrpo.tasks.story_math.StoryMath"
    return StoryMath(**keys)


def benchmark(name):
    return load(CONF / "benchmark" / f"{name}.yaml")


def told_answer(prompt):
    """The answer of a story by reading its sentences, without the task's own bookkeeping."""
    verbs = {verb: sign for wording in story_text.WORDINGS.values() for verb, sign in
             [(verb, 1) for verb in wording.gains] + [(verb, -1) for verb in wording.losses]}  # fmt: skip
    total = 0
    for sentence in re.split(r"[.?]", prompt):
        values = [story_text.VALUES[word] for word in sentence.split() if word in story_text.VALUES]
        signs = [verbs[word] for word in sentence.split() if word in verbs]
        assert len(values) <= 1 and len(signs) <= 1
        total += sum(values) * (signs[0] if signs else 1)
    return total


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_content_never_changes(name):
    task = benchmark(name)
    text = "\n".join(f"{problem.id}\t{problem.prompt}\t{problem.gold}" for problem in task.problems)
    assert blake2b(text.encode(), digest_size=8).hexdigest() == BENCHMARKS[name]
    assert task.version == story_math.VERSION == "v1"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_file_says_where_it_goes_and_how_to_run_it(name):
    first, second = (CONF / "benchmark" / f"{name}.yaml").read_text().splitlines()[:2]
    assert first == f"# @package benchmark.{name}"
    assert second == f"# python evaluate.py model=tiny benchmark={name}"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_gold_is_the_answer_that_the_words_tell(name):
    for problem in benchmark(name).problems:
        assert story_text.VALUES[problem.gold] == told_answer(problem.prompt)


def test_benchmarks_share_no_problem():
    prompts = [problem.prompt for name in BENCHMARKS for problem in benchmark(name).problems]
    ids = [problem.id for name in BENCHMARKS for problem in benchmark(name).problems]
    assert len(prompts) == len(set(prompts)) == len(set(ids)) == 48 * len(BENCHMARKS)


def test_splits_share_no_arithmetic():
    """A story is assigned by its numbers alone, so a held-out story is not in training in other words either."""
    stories = {
        split: {(draw.start, draw.changes) for draw in (draw_story(rng, level, split) for level in (1, 2, 4) * 300)}
        for split, rng in ((split, Random(0)) for split in story_math.SPLITS)
    }
    assert not stories["train"] & (stories["val"] | stories["test"]) and not stories["val"] & stories["test"]
    assert all(Story(*story).split == split for split, drawn in stories.items() for story in drawn)


def test_training_task_asks_nothing_from_a_benchmark():
    training = {problem.prompt for problem in load(CONF / "task" / "story_math.yaml").problems}
    assert not training & {problem.prompt for name in BENCHMARKS for problem in benchmark(name).problems}


def test_held_out_words_are_never_in_common_stories():
    words = {word for problem in StoryMath("train", range(1, 9), 2000).problems for word in problem.prompt.split()}
    held_out, common = story_text.HELD_OUT, story_text.COMMON
    for field in ("women", "men", "objects", "containers", "gains", "losses", "people"):
        assert not set(getattr(held_out, field)) & (words | set(getattr(common, field)))


def test_a_problem_depends_on_its_own_index_only():
    few, many = StoryMath("train", [3], 5).problems, StoryMath("train", [3], 500).problems
    assert list(few) == many[:5] == [many[at] for at in range(5)] and few[-1] == few[4]
    mixed = StoryMath("train", [2, 3], 6).problems
    assert [problem.id[-7:-5] for problem in mixed] == ["l2", "l3"] * 3 and mixed[3] == many[3]
    with pytest.raises(IndexError):
        few[5]


def test_values_stay_in_the_vocabulary_and_prompts_are_short():
    vocabulary = set(story_text.vocabulary()) | {story_text.THINK}
    for wording in story_text.WORDINGS:
        for problem in StoryMath("train", range(1, 9), 400, wording).problems:
            assert set(problem.prompt.split()) <= vocabulary
            assert len(problem.prompt.split()) < 110 and problem.prompt.endswith(" <think>")


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"split": "dev"}, "task.split"),
        ({"levels": []}, "task.levels"),
        ({"levels": [9]}, "task.levels"),
        ({"size": 0}, "task.size"),
        ({"wording": "rare"}, "task.wording"),
    ],
)
def test_a_wrong_setting_names_its_override(keys, word):
    with pytest.raises(ValueError, match=word):
        StoryMath(**{"split": "train", "levels": [4], "size": 8} | keys)


def score(completion, gold="fifteen"):
    task = StoryMath("test", [2], 1)
    problem = story_math.Problem(id="p", prompt="", gold=gold)
    (verdict,) = task.score([problem], [completion])
    assert verdict.outcome in OUTCOMES and verdict.reward == float(verdict.outcome == "correct")
    return verdict


@pytest.mark.parametrize(
    ("completion", "outcome", "extracted"),
    [
        (r"so ten plus five is fifteen . </think> \boxed{ fifteen }", "correct", "fifteen"),
        (r"</think> \boxed{15}", "correct", "15"),
        (r"</think> \boxed{ sixteen } \boxed{ fifteen }", "correct", "fifteen"),
        (r"</think> \boxed{ sixteen }", "wrong", "sixteen"),
        (r"\boxed{ fifteen }", "unparsed", None),
        (r"\boxed{ fifteen } </think>", "unparsed", None),
        (r"</think> \boxed{ fifteen", "unparsed", None),
        (r"</think> \boxed{ apples }", "unparsed", "apples"),
        ("", "unparsed", None),
    ],
)
def test_outcomes(completion, outcome, extracted):
    verdict = score(completion)
    assert (verdict.outcome, verdict.extracted) == (outcome, extracted)


@pytest.mark.parametrize("text", ["\ud800", "\x00\x1b[2J", "{" * 10**6, "\\boxed{" * 10**5, "one plus " * 10**5])
def test_any_text_gets_a_verdict_quickly(text):
    began = time.perf_counter()
    for completion in (text, f"{text}</think>{text}", f"</think> \\boxed{{{text}}}"):
        assert score(completion).outcome == "unparsed"
    assert time.perf_counter() - began < 5


def test_solution_path_tells_groupings_apart_but_not_wordings():
    end = r"</think> \boxed{ ten }"
    forward = f"first ten plus three is thirteen . then thirteen minus two equals eleven . {end}"
    reworded = f"so three and ten makes thirteen . thirteen without two leaves eleven . {end}"
    regrouped = f"first ten minus two is eight . then eight plus three is eleven . {end}"
    assert score(forward).solution_path == score(reworded).solution_path == "3+10=13;13-2=11"
    assert score(regrouped).solution_path not in ("", score(forward).solution_path)
    assert score(f"{end} ten plus three is thirteen").solution_path == ""
