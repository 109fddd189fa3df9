"""A run stops where too many answers have no verdict, loses nothing by it, and no such score is ever written."""

import hashlib
from pathlib import Path

import pandas as pd
import pytest
import warm

from ngrpo.rollout.sampling import Ungraded, refuse_ungraded
from ngrpo.rundir.schema import TRAIN_SAMPLES, eval_samples, read_results, read_run

TRAIN = [
    "trainer.threads=1", "prompts_per_step=2", "group_size=4", "benchmark=story_math", "n=2",
    "problems=4", "max_new_tokens=40", "checkpoint_every=1", "learning_rate=1e-3",
]  # fmt: skip
EVALUATE = ["benchmark=[story_math,story_math_hard]", "n=2", "max_new_tokens=40", "rows_per_batch=32"]


def command(script: str, overrides: list[str], log: Path, lost: dict[str, int]) -> None:
    """The command, with a grader that has no verdict on every so many problems of some tasks."""
    from dataclasses import replace

    from ngrpo.tasks.story_math import StoryMath

    score = StoryMath.score

    def broken(self, problems, completions):
        every = lost.get(f"{self.split}{self.levels[0]}", 10**9)
        ids = {problem.id for problem in self.problems[every - 1 :: every]}
        rows = zip(problems, score(self, problems, completions), strict=True)
        return [replace(s, outcome="error", reward=0.0) if problem.id in ids else s for problem, s in rows]

    StoryMath.score = broken
    warm.command(script, overrides, log)


def run(script: str, directory: Path, *overrides: str, status: int = 0, lost: dict[str, int] | None = None) -> str:
    log = directory.with_suffix(".log")
    words = [*(TRAIN if script == "train.py" else EVALUATE), f"hydra.run.dir={directory}", *overrides]
    process = warm.server.Process(target=command, args=(script, words, log, lost or {}))
    process.start()
    process.join(timeout=240)
    assert process.exitcode == status, log.read_text()
    return log.read_text()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    run("train.py", folder / "train", "steps=2", "evaluation.before=false")
    run("evaluate.py", folder / "evaluate")
    return folder


def test_training_stops_and_the_same_command_ends_as_if_nothing_had_been(sound, tmp_path):
    directory = tmp_path / "run"
    text = run("train.py", directory, "steps=2", "evaluation.before=false", status=3, lost={"train4": 1})
    lines = [line for line in text.splitlines() if line.startswith("error:")]
    assert (
        len(lines) == 1
        and "RL step 1" in lines[0]
        and "error 100.0 %" in lines[0]
        and "grading.max_ungraded_share" in lines[0]
    )
    assert read_run(directory).status == "failed"
    rows = pd.read_parquet(directory / TRAIN_SAMPLES.format(step=1))
    assert set(rows["outcome"]) == {"error"} and not list(directory.glob("checkpoints/*.pt"))
    run("train.py", directory, "steps=2", "evaluation.before=false")
    for name in ("metrics.csv", "hf/model.safetensors"):
        assert digest(directory / name) == digest(sound / "train" / name)


def test_a_higher_limit_continues_the_same_run(tmp_path):
    directory = tmp_path / "run"
    text = run("train.py", directory, "steps=1", "grading.max_ungraded_share=0.2", status=3, lost={"test4": 4})
    assert "story_math at RL step 0" in text and not (directory / "results.json").exists()
    text = run("train.py", directory, "steps=1", "grading.max_ungraded_share=0.25", lost={"test4": 4})
    assert "story_math at 0: answers without a verdict count as wrong (error 25.0%)" in text
    assert read_results(directory)["story_math"]["0"]["outcomes"]["error"] == 0.25


def test_evaluation_writes_no_such_score_and_grades_again_without_sampling_again(sound, tmp_path):
    directory = tmp_path / "run"
    text = run("evaluate.py", directory, status=3, lost={"test4": 4})
    assert "Traceback" not in text and "story_math at RL step 0" in text
    assert set(read_results(directory)) == {"story_math_hard"}
    path = eval_samples(directory, "story_math", 0)
    assert "error" in set(pd.read_parquet(path)["outcome"])
    run("evaluate.py", directory)
    assert read_results(directory) == read_results(sound / "evaluate")
    expected = pd.read_parquet(eval_samples(sound / "evaluate", "story_math", 0)).drop(columns="run")
    pd.testing.assert_frame_equal(pd.read_parquet(path).drop(columns="run"), expected)


def test_the_limit_is_the_last_share_that_is_allowed():
    refuse_ungraded("here", {"error": 0.02, "timeout": 0.03}, 0.05)
    with pytest.raises(Ungraded, match=r"here: .*timeout 3.1 %, error 2.0 %.*at most 5 %"):
        refuse_ungraded("here", {"error": 0.02, "timeout": 0.031, "unparsed": 0.9}, 0.05)
