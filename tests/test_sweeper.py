"""Grids of jobs: which cells there are, which run again, and what the shell is told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
JOB = """
import json, os, sys
from ngrpo import command_line
class Broken(RuntimeError):
    one_line = True
class Stopped(RuntimeError):
    one_line, exit_code = True, 143
def main(config):
    path = command_line.run_path()
    rate = config.get("mix_rate")
    print("job", command_line.choices("exploration")["exploration"], config.seed, rate)
    if config.seed == 7: raise Broken("the run broke")
    if config.seed == 8: raise Stopped("the run was stopped")
    (path / "run.json").write_text(json.dumps({"status": "running" if config.seed == 9 else "finished"}))
command_line.prepare("config")
command_line.run(main)
"""


def sweep(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", JOB, "-m", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    jobs = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("job ")]
    return done, jobs


def record(folder) -> dict:
    (path,) = folder.glob("outputs/*/sweeps/*.json")
    return json.loads(path.read_text())


def test_a_knob_is_dropped_where_it_is_lacking_and_what_becomes_equal_runs_once(tmp_path):
    done, jobs = sweep(tmp_path, "exploration=token_sampling,neighbor_mix", "mix_rate=0.1,0.2", "seed=0,1")
    mixed = [["neighbor_mix", seed, rate] for rate in ("0.1", "0.2") for seed in ("0", "1")]
    assert sorted(jobs) == sorted([["token_sampling", "0", "None"], ["token_sampling", "1", "None"], *mixed])
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "6 finished, 0 finished before, 0 refused, 0 failed"
    rows = record(tmp_path)["runs"]
    assert len({row["directory"] for row in rows}) == 6
    assert [row["overrides"] for row in rows if "token" in row["directory"]] == [
        ["exploration=token_sampling", f"seed={seed}"] for seed in (0, 1)
    ]


def test_a_failing_run_is_recorded_and_does_not_stop_the_others(tmp_path):
    done, jobs = sweep(tmp_path, "seed=0,7,1")
    assert [seed for _, seed, _ in jobs] == ["0", "7", "1"] and done.returncode == 1
    assert "error: seed=7: the run broke" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1] == "2 finished, 0 finished before, 0 refused, 1 failed"
    assert [(row["status"], row["error"]) for row in record(tmp_path)["runs"]] == [
        ("finished", None), ("failed", "the run broke"), ("finished", None),
    ]  # fmt: skip


def test_the_same_command_runs_only_what_is_missing(tmp_path):
    assert len(sweep(tmp_path, "seed=0,9")[1]) == 2
    done, jobs = sweep(tmp_path, "seed=0,9")
    assert [seed for _, seed, _ in jobs] == ["9"]
    assert done.stdout.splitlines()[-1] == "1 finished, 1 finished before, 0 refused, 0 failed"
    assert [seed for _, seed, _ in sweep(tmp_path, "seed=0,1")[1]] == ["1"]


def test_a_cell_without_a_meaning_is_refused_and_is_no_failure(tmp_path):
    done, jobs = sweep(tmp_path, "exploration=token_sampling,stht", "algorithm=grpo,gspo")
    assert len(jobs) == 3 and done.returncode == 0
    assert "this exploration: is refused here, because one ratio per answer" in done.stderr
    assert done.stdout.splitlines()[-1] == "3 finished, 0 finished before, 1 refused, 0 failed"


def test_an_interrupt_ends_the_sweep(tmp_path):
    done, jobs = sweep(tmp_path, "seed=0,8,1")
    assert [seed for _, seed, _ in jobs] == ["0", "8"] and done.returncode == 143
    assert done.stderr.count("the run was stopped") == 1


@pytest.mark.parametrize("wrong", ["mix_rate=interval(0.1,0.4)", "nothing=1,2"])
def test_what_is_no_grid_is_told_in_one_line(tmp_path, wrong):
    done, jobs = sweep(tmp_path, "exploration=neighbor_mix", wrong)
    assert not jobs and done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("outputs/*/sweeps"))


def test_a_preset_lists_its_values_and_what_is_typed_prevails(tmp_path):
    _, jobs = sweep(tmp_path, "experiment=ablation/mix_rate")
    assert [rate for _, _, rate in jobs] == ["0", "0.05", "0.1", "0.15", "0.2", "0.4", "1"]
    _, jobs = sweep(tmp_path, "experiment=ablation/mix_rate", "mix_rate=0.3", "seed=1")
    assert jobs == [["neighbor_mix", "1", "0.3"]]
