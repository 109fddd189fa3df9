"""From a configuration to objects: each node once in a process, and the same object wherever it is asked for."""

import json
from pathlib import Path

import warm

from ngrpo import composed
from ngrpo.rundir.schema import read_run

NODE = {"_target_": "ngrpo.tasks.story_math.StoryMath", "split": "train", "levels": [2], "size": 8, "wording": "common"}


def test_a_node_is_one_object_whatever_the_order_of_its_keys():
    task = composed.task(NODE)
    assert composed.task(dict(reversed(NODE.items()))) is task
    assert composed.task(NODE | {"size": 9}) is not task


def command(script: str, overrides: list[str], log: Path, built: Path) -> None:
    """The command, with a line in `built` for each task that is constructed."""
    from ngrpo.tasks.story_math import StoryMath

    make = StoryMath.__init__

    def counted(self, *arguments, **settings):
        with open(built, "a") as file:
            file.write(json.dumps([arguments, settings], sort_keys=True, default=list) + "\n")
        make(self, *arguments, **settings)

    StoryMath.__init__ = counted
    warm.command(script, overrides, log)


def constructed(script: str, place: Path, *overrides: str) -> list[str]:
    log, built = place / "log", place / "built"
    process = warm.server.Process(
        target=command, args=(script, [*overrides, f"hydra.run.dir={place / 'run'}"], log, built)
    )
    process.start()
    process.join(timeout=240)
    assert process.exitcode == 0, log.read_text()
    return built.read_text().splitlines()


def test_a_whole_smoke_run_builds_each_task_once(tmp_path):
    words = ["trainer=smoke", "trainer.threads=1", "max_new_tokens=24", "benchmark=[story_math,story_math_easy]"]
    built = constructed("train.py", tmp_path, *words)
    assert len(built) == len(set(built)) == 3
    assert (read_run(tmp_path / "run").kind, read_run(tmp_path / "run").status) == ("smoke", "finished")


def test_so_do_an_evaluation_and_a_diagnosis(tmp_path):
    (tmp_path / "evaluated").mkdir()
    (tmp_path / "diagnosed").mkdir()
    words = ["n=2", "max_new_tokens=24", "benchmark=[story_math,story_math_easy]"]
    built = constructed("evaluate.py", tmp_path / "evaluated", *words)
    assert len(built) == len(set(built)) == 2
    words = ["n=2", "group_size=2", "problems=2", "max_new_tokens=24", "strategies=[token_sampling,neighbor_mix]"]
    assert len(constructed("diagnose.py", tmp_path / "diagnosed", *words)) == 1
