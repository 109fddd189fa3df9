"""Own functions of reward: found by name in packages that the user allows, checked before anything runs, and no verdict."""

import hashlib
import json
import sys
from pathlib import Path

import configurations
import pandas as pd
import pytest
import warm

from ngrpo import targets
from ngrpo.cli.command import examine
from ngrpo.rundir.schema import TRAIN_SAMPLES, eval_samples
from ngrpo.tasks.base import Problem, Score
from ngrpo.tasks.rewards import NoReward, Rewarded, well_formed

OWN = """
def brief(problem, completion, score, *, per_character=0.001):
    return -per_character * len(completion) if score.outcome == "correct" else 0.0
def two(problem, completion):
    return 0.0
def more(problem, completion, score, weight):
    return weight
class Thing:
    pass
import pathlib
pathlib.Path(__file__).with_name("imported").touch()
"""
PROBLEM, SCORE = Problem("p", "?", "7"), Score(1.0, "correct", "7", "")


class Seven:
    name, version, answer_start, answer_prefix, problems = "seven", "v1", "</think>", "", (PROBLEM,)

    def score(self, problems, completions):
        return [Score(float("7" in text), "correct" if "7" in text else "wrong", text, "") for text in completions]


@pytest.fixture(autouse=True)
def command_line():
    with configurations.command_line():
        yield


@pytest.fixture
def own(tmp_path):
    (tmp_path / "my_rewards.py").write_text(OWN)
    return tmp_path


def command(overrides: list[str], log: Path, folder: Path) -> None:
    """train.py where NGRPO_PLUGINS=my_rewards and the package can be imported."""
    sys.path.insert(0, str(folder))
    targets.PLUGINS = frozenset({"my_rewards"})
    warm.command("train.py", overrides, log)


def train(folder: Path, *overrides: str) -> tuple[int | None, str]:
    log = folder / "log"
    process = warm.server.Process(target=command, args=([f"hydra.run.dir={folder / 'run'}", *overrides], log, folder))
    process.start()
    process.join(timeout=240)
    return process.exitcode, log.read_text()


@pytest.mark.parametrize(
    ("node", "allowed", "told"),
    [
        ("_target_: my_rewards.brief", "", "NGRPO_PLUGINS"),
        ("_target_: my_rewards.brief", "my_reward", "NGRPO_PLUGINS"),
        ("_target_: os.system", "my_rewards", "NGRPO_PLUGINS"),
        ("_target_: ngrpo.algorithm.losses.clipped_surrogate", "my_rewards", "below ngrpo.tasks.rewards"),
        ("_target_: my_rewards.nothing", "my_rewards", "defines no nothing"),
        ("_target_: my_rewards.pathlib", "my_rewards", "defines no pathlib"),
        ("_target_: my_rewards.two", "my_rewards", "must take problem, completion and score"),
        ("_target_: my_rewards.more", "my_rewards", "must take problem, completion and score"),
        ("_target_: my_rewards.Thing", "my_rewards", "must be a function"),
    ],
)
def test_what_is_no_allowed_function_is_refused_without_importing_it(own, monkeypatch, node, allowed, told):
    monkeypatch.syspath_prepend(own)
    monkeypatch.setattr(targets, "PLUGINS", frozenset({allowed}))
    (problem,) = examine("config", [f"+extra_rewards.own={{{node}}}"]).problems
    assert problem.startswith("extra_rewards.own") and told in problem
    assert not (own / "imported").exists()


def test_the_command_line_names_no_other_class_of_a_task(own, monkeypatch):
    monkeypatch.syspath_prepend(own)
    monkeypatch.setattr(targets, "PLUGINS", frozenset({"my_rewards"}))
    problems = examine("config", ["task._target_=my_rewards.brief"]).problems
    assert any("a file names the class of task" in problem for problem in problems)


def test_no_configuration_can_allow_a_package(own, monkeypatch):
    monkeypatch.syspath_prepend(own)
    environment = "+hydra.job.env_set.NGRPO_PLUGINS=my_rewards"
    problems = examine("config", [environment, "+extra_rewards.own={_target_: my_rewards.brief}"]).problems
    assert any("NGRPO_PLUGINS names" in problem for problem in problems) and "NGRPO_PLUGINS" not in targets.PLUGINS


def test_a_run_with_own_rewards_keeps_the_verdicts_and_notes_the_code(own):
    overrides = ["trainer=smoke", "steps=1", "evaluation.before=false", "benchmark=story_math", "trainer.threads=1"]
    overrides.append("+extra_rewards.own={_target_: my_rewards.brief, per_character: 0.01}")
    status, text = train(own, *overrides)
    assert status == 0, text
    rows = pd.read_parquet(own / "run" / TRAIN_SAMPLES.format(step=1))
    right = rows["outcome"] == "correct"
    expected = 1 - 0.01 * rows.loc[right, "completion"].str.len()
    assert rows.loc[right, "reward"].tolist() == pytest.approx(expected.tolist())
    assert (rows.loc[~right, "reward"] == 0).all()
    evaluated = pd.read_parquet(eval_samples(own / "run", "story_math", 1))
    assert set(evaluated["reward"]) <= {0.0, 1.0}
    noted = json.loads((own / "run" / "run.json").read_text())["data"]
    assert noted["my_rewards.brief"] == hashlib.sha256(OWN.encode()).hexdigest()
    (own / "my_rewards.py").write_text(OWN + "# another\n")
    status, text = train(own, *overrides)
    assert status == 1 and "my_rewards.brief" in text and "Traceback" not in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "1"])
def test_what_is_no_number_is_told_by_name(value):
    task = Rewarded(Seven(), {"fine": lambda *_: 0.5, "odd": lambda *_: value})
    with pytest.raises(NoReward, match=r"extra_rewards.odd: returned .* for p, expected a finite number"):
        task.score([PROBLEM], ["7"])


def test_values_are_added_and_outcomes_stay():
    task = Rewarded(Seven(), {"a": lambda p, text, s: len(text), "b": lambda p, text, s: -s.reward / 2})
    scores = task.score([PROBLEM] * 2, ["7", "one"])
    assert [s.reward for s in scores] == [1 + 1 - 0.5, 3.0] and [s.outcome for s in scores] == ["correct", "wrong"]
    assert (task.name, task.version, task.answer_start) == ("seven", "v1", "</think>")


@pytest.mark.parametrize(
    ("text", "start", "value"),
    [
        ("so </think> \\boxed{7}", "</think>", 0.25),
        ("so \\boxed{7} </think>", "</think>", 0.0),
        ("so </think> </think> \\boxed{7}", "</think>", 0.0),
        ("so \\boxed{7}", "</think>", 0.0),
        ("so </think> \\boxed{7", "</think>", 0.0),
        ("so </think> \\boxed{}", "</think>", 0.0),
        ("so \\boxed{7}", None, 0.25),
    ],
)
def test_a_well_formed_answer_ends_its_thinking_once_and_boxes_after_it(text, start, value):
    assert well_formed(PROBLEM, text, SCORE, weight=0.25, answer_start=start) == value
