"""docs/plugins.md as it stands: everything of one's own runs from an empty directory, and is refused as what is ours."""

import json
import os
import re
import subprocess
import sys

import pandas as pd
import pytest
from places import REPOSITORY

from ngrpo.rundir.schema import TRAIN_SAMPLES

PAGE = (REPOSITORY / "docs" / "plugins.md").read_text()
FILES = re.compile(r"```(?:python|yaml)\n# (my_\S+)\n(.*?)```", re.DOTALL)
RUN = re.findall(r"```\n(NGRPO_PLUGINS=my_tricks .*trainer=smoke.*)\n```", PAGE)[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    for name, content in FILES.findall(PAGE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        # A strategy's package directive is its first line.
        (folder / name).write_text(content)
    (folder / "my_tricks" / "__init__.py").write_text("print('my_tricks is imported')\n")
    return folder


def command(place, line: str, plugins: str = "my_tricks") -> subprocess.CompletedProcess[str]:
    """A command of the page, with a few more words of the shell."""
    line = re.sub(r"^NGRPO_PLUGINS=my_tricks PYTHONPATH=\. ", "", line).replace("/path/to/ngrpo", str(REPOSITORY))
    line = line.replace("python ", f"{sys.executable} ", 1)
    environment = {**os.environ, "NGRPO_PLUGINS": plugins, "PYTHONPATH": f".:{REPOSITORY}"}
    return subprocess.run(line, shell=True, cwd=place, env=environment, capture_output=True, text=True)


def train(place, words: str, **settings) -> subprocess.CompletedProcess[str]:
    return command(place, f"python /path/to/ngrpo/train.py --config-dir my_conf {words}", **settings)


def test_all_of_ones_own_in_one_run(place):
    done = command(place, f"{RUN} hydra.run.dir=run trainer.threads=1")
    assert done.returncode == 0, done.stderr
    assert "32 rows generated" in done.stdout
    record = json.loads((place / "run" / "run.json").read_text())
    assert record["status"] == "finished"
    own = {
        "blend.Blend",
        "advantages.clipped_centered",
        "doubling.Doubling",
        "counting.CountingEngine",
        "rewards.brief",
    }
    assert {f"my_tricks.{name}" for name in own} <= set(record["data"])
    rows = pd.read_parquet(place / "run" / TRAIN_SAMPLES.format(step=1))
    assert set(rows["exploration"]) == {"blend"} and rows["problem_id"].str.fullmatch(r"p\d+").all()
    again = command(place, f"{RUN} hydra.run.dir=run trainer.threads=1")
    assert again.returncode == 0 and "already finished" in again.stdout
    with open(place / "my_tricks" / "blend.py", "a") as file:
        file.write("# another strategy\n")
    changed = command(place, f"{RUN} hydra.run.dir=run trainer.threads=1")
    assert changed.returncode == 1 and "my_tricks.blend.Blend" in changed.stderr and "Traceback" not in changed.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("exploration=blend blend_rate=2", "blend_rate=2: must be a number from 0 to 1, because it is a probability"),
        ("exploration=blend exploration.shares=0.1", "the nearest name is exploration.share; exploration.share=0.1"),
        ("blend_rate=0.2", "exploration=token_sampling has no blend_rate, it belongs to exploration=blend"),
        ("exploration=blent", "exploration=blend"),
        ("algorithm=clipped_centered algorithm.advantage.most=0", "must be a number above 0"),
        ("task=doubling task.size=x", "task.size=x: must be a whole number; task.size=64"),
        ("task=doubling learning_rate=-1", "learning_rate=-1: must be a number at least 0"),
        ("'+extra_rewards.brief={_target_: my_tricks.rewards.long}'", "my_tricks.rewards defines no long, but brief"),
        ("'+extra_rewards.brief={_target_: my_tricks.advantages.clipped_centered}'", "must take problem, completion"),
        ("logger=tensorboard logger._target_=my_tricks.blend.Blend", "must be found below ngrpo.training.trackers"),
    ],
)
def test_what_is_wrong_with_it_is_told_like_ours_and_nothing_of_it_is_imported(place, words, told):
    done = train(place, words)
    assert done.returncode == 2 and told in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and "imported" not in done.stdout


def test_a_package_that_is_not_named_is_refused(place):
    done = train(place, "exploration=blend", plugins="")
    assert done.returncode == 2 and "packages that NGRPO_PLUGINS names" in done.stderr and "imported" not in done.stdout


def test_arguments_that_do_not_fit_are_told_before_a_model_is_loaded(place):
    reward = "'+extra_rewards.brief={_target_: my_tricks.rewards.brief, per_letter: 1}'"
    done = train(place, f"trainer=smoke hydra.run.dir=unfit {reward}")
    assert done.returncode == 2 and "per_letter" in done.stderr and "per_character" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_old_variable_is_told(place):
    done = command(place, "NGRPO_REWARDS=mine python /path/to/ngrpo/train.py steps=1")
    assert (done.returncode, done.stderr) == (
        2,
        "error: NGRPO_REWARDS=mine: is now called NGRPO_PLUGINS; NGRPO_PLUGINS=mine\n",
    )


def test_it_keeps_the_contract(place):
    line = next(line for line in PAGE.splitlines() if "ngrpo.contract" in line)
    done = command(place, line)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "blend" in done.stdout
