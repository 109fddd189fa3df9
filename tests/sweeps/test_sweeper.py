"""Grids of jobs: which cells there are, which run again, and what the shell is told."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
import warm
from places import REPOSITORY
from searches import SEARCHED, SPACE, search, start_search, states, study

from analysis.load import LoadError, load
from ngrpo.rundir.schema import read_run

JOB = """
import json, os, signal, sys
from pathlib import Path
from ngrpo.rundir import interrupts
interrupts.begin()
from hydra.core.hydra_config import HydraConfig
from ngrpo import cli
class Broken(RuntimeError):
    one_line = True
class Stopped(RuntimeError):
    one_line, exit_code = True, 143
def main(config):
    runtime, rate = HydraConfig.get().runtime, config.get("mix_rate")
    path = Path(runtime.output_dir)
    print("job", runtime.choices["exploration"], config.seed, rate)
    if config.seed == 7: raise Broken("the run broke")
    if config.seed == 8: raise Stopped("the run was stopped")
    if os.environ.get("LATE"):
        with interrupts.INTERRUPTS.polled(): os.kill(os.getpid(), signal.Signals[os.environ["LATE"]])
    (path / "run.json").write_text(json.dumps({"status": "running" if config.seed == 9 else "finished"}))
cli.prepare("config")
cli.run(main)
"""


def sweep(folder, *arguments, **environment):
    return jobs_of(warm.run(JOB, "-m", *arguments, folder=folder, **environment))


def cold_sweep(folder, *arguments):
    """In a new interpreter, as launchers begin their processes with what this one was begun with."""
    command = [sys.executable, "-c", JOB, "-m", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return jobs_of(subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment))


def jobs_of(done: subprocess.CompletedProcess[str]) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
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


def test_a_single_value_of_a_knob_goes_to_the_strategies_that_have_it(tmp_path):
    done, jobs = sweep(tmp_path, "exploration=token_sampling,neighbor_mix", "mix_rate=0.1", "seed=0")
    assert done.returncode == 0 and jobs == [["token_sampling", "0", "None"], ["neighbor_mix", "0", "0.1"]], done.stderr


def test_a_short_name_is_the_key_that_each_strategy_has(tmp_path):
    """stht has a scale of its own, Gaussian noise one of its recipe, and token sampling none."""
    done, jobs = sweep(tmp_path, "exploration=token_sampling,gaussian_noise,stht", "exploration.scale=0.1,0.2")
    assert done.returncode == 0 and len(jobs) == 5, done.stderr
    rows = record(tmp_path)["runs"]
    assert sorted(row["overrides"][-1] for row in rows) == [
        "exploration.recipe.scale=0.1", "exploration.recipe.scale=0.2", "exploration.scale=0.1", "exploration.scale=0.2",
        "exploration=token_sampling",
    ]  # fmt: skip
    assert [row["status"] for row in rows] == ["finished"] * 5


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
    done, jobs = sweep(tmp_path, "exploration=stht,token_sampling", "algorithm=gspo,grpo")
    assert len(jobs) == 3 and done.returncode == 0
    assert "this exploration: is refused here, because one ratio per answer" in done.stderr
    assert done.stdout.splitlines()[-1] == "3 finished, 0 finished before, 1 refused, 0 failed"


def test_an_interrupt_ends_the_sweep(tmp_path):
    done, jobs = sweep(tmp_path, "seed=0,8,1")
    assert [seed for _, seed, _ in jobs] == ["0", "8"] and done.returncode == 143
    assert done.stderr.count("the run was stopped") == 1


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("SIGTERM", 143),
        pytest.param("SIGINT", 130, marks=pytest.mark.slow),
        pytest.param("SIGHUP", 129, marks=pytest.mark.slow),
    ],
)
def test_a_signal_that_comes_too_late_for_a_run_ends_the_sweep(tmp_path, name, status):
    done, jobs = sweep(tmp_path, "seed=0,1", LATE=name)
    assert [seed for _, seed, _ in jobs] == ["0"] and done.returncode == status
    assert done.stderr.splitlines()[-1] == f"error: stopped by {name}; the same command continues"
    assert [seed for _, seed, _ in sweep(tmp_path, "seed=0,1")[1]] == ["1"]


@pytest.mark.parametrize("wrong", ["mix_rate=interval(0.1,0.4)", "nothing=1,2"])
def test_what_is_no_grid_is_told_in_one_line(tmp_path, wrong):
    done, jobs = sweep(tmp_path, "exploration=neighbor_mix", wrong)
    assert not jobs and done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("outputs/*/sweeps"))


def test_a_preset_lists_its_values_and_what_is_typed_prevails(tmp_path):
    presets = tmp_path / "mine" / "experiment"
    presets.mkdir(parents=True)
    for name, values in {
        "rates": 'mix_rate: "0,0.1,0.4"',
        "metrics": 'exploration.recipe.metric: "cosine,dot,l2"',
    }.items():
        lines = [
            "# @package _global_",
            "defaults: [{override /exploration: neighbor_mix}]",
            "hydra:",
            "  sweeper:",
            "    params:",
        ]
        (presets / f"{name}.yaml").write_text("\n".join([*lines, f"      {values}"]))
    own = ("--config-dir", str(tmp_path / "mine"))
    _, jobs = sweep(tmp_path, *own, "experiment=rates")
    assert [rate for _, _, rate in jobs] == ["0", "0.1", "0.4"]
    _, jobs = sweep(tmp_path, *own, "experiment=rates", "mix_rate=0.3", "seed=1")
    assert jobs == [["neighbor_mix", "1", "0.3"]]
    done, jobs = sweep(tmp_path, *own, "experiment=metrics", "exploration.metric=dot,l1")
    assert len(jobs) == 2, done.stderr


def test_a_preset_of_controls_runs_rewards_that_tell_nothing_besides_and_what_is_typed_goes_to_all(tmp_path):
    done, jobs = sweep(tmp_path, "experiment=controls/neighbor_mix", "seed=0", "mix_rate=0.2")
    mixing = ["neighbor_mix", "rate_matched_greedy", "random_neighbor_mix", "norm_matched_noise"]
    assert [(name, rate) for name, _, rate in jobs] == [
        ("token_sampling", "None"), *((name, "0.2") for name in mixing), ("entropy_temperature", "None"),
        ("neighbor_mix", "0.2"),
    ], done.stderr  # fmt: skip
    typed = [run["overrides"] for run in record(tmp_path)["runs"]]
    assert {"+matched.mix_rate=0.2", "exploration.match=neighbor_mix"} <= {*typed[5]}
    assert [("reward_shaping=random" in overrides) for overrides in typed] == [False] * 6 + [True]


# --- searches ---------------------------------------------------------------------------------------------------------------


def test_a_search_reaches_its_total_and_the_same_command_adds_nothing(tmp_path):
    status, _, err = search(tmp_path, *SPACE, "sweep.n_trials=4")
    assert status == 0 and states(tmp_path) == ["COMPLETE"] * 4, err
    before = [(trial.number, trial.params, trial.values) for trial in study(tmp_path)[0].trials]
    assert search(tmp_path, *SPACE, "sweep.n_trials=4")[0] == 0
    status, out, err = search(tmp_path, *SPACE, "sweep.n_trials=6")
    assert status == 0 and "6 trials complete, 0 pruned, 0 failed" in out, err
    after = [(trial.number, trial.params, trial.values) for trial in study(tmp_path)[0].trials]
    assert after[:4] == before and len(after) == 6
    folder = study(tmp_path)[1].parent
    assert {"sweep_summary.md", "trials.csv", "history.png", "surface.png", "importances.png"} <= {
        p.name for p in folder.iterdir()
    }
    best = max(value[0] for *_, value in after)
    assert f"{best:.4g}" in (folder / "sweep_summary.md").read_text()


def test_a_knob_is_suggested_only_where_a_choice_has_it_and_seeds_are_averaged(tmp_path):
    space = ["sweep=optuna", "exploration=token_sampling,neighbor_mix", "mix_rate=tag(log,interval(0.02,0.4))"]
    status, _, err = search(
        tmp_path, *space, "sweep.n_trials=8", "sweep.seeds=[0,1]", "sweep.sampler=random",
        "sweep.objectives=[story_math_val/pass@8,timings/tokens_per_second]", "sweep.directions=[maximize,maximize]",
    )  # fmt: skip
    trials = study(tmp_path)[0].trials
    assert status == 0 and len(trials) == 8, err
    for trial in trials:
        assert ("mix_rate" in trial.params) == (trial.params["exploration"] == "neighbor_mix")
        first, second = trial.user_attrs["seeds"]
        assert trial.values == pytest.approx([(a + b) / 2 for a, b in zip(first, second, strict=True)])
        assert trial.user_attrs["spread"] == pytest.approx([0.0005, 0.0]) and trial.values[1] == 20
    assert {trial.params["exploration"] for trial in trials} == {"token_sampling", "neighbor_mix"}


def test_failing_trials_are_recorded_with_their_reason_and_count(tmp_path):
    status, out, _ = search(tmp_path, *SPACE, "sweep.n_trials=8", "sweep.sampler=random", BREAKS="0.2", NAN="1")
    trials = study(tmp_path)[0].trials
    reasons = [trial.user_attrs["reason"] for trial in trials if trial.state.name == "FAIL"]
    assert status == 1 and len(trials) == 8 and reasons
    assert set(reasons) <= {"the run broke", "story_math_val/pass@8 is nan"}
    assert f"{8 - len(reasons)} trials complete, 0 pruned, {len(reasons)} failed" in out


def test_two_workers_with_the_same_values_share_a_run(tmp_path):
    command = ["sweep=optuna", "exploration=neighbor_mix", "k=choice(1,2)", "sweep.n_trials=6", "sweep.sampler=random"]
    workers = [start_search(tmp_path, *command, NAP="0.5", LOCKS="1") for _ in range(2)]
    for worker in workers:
        worker.communicate(timeout=120)
    assert states(tmp_path) == ["COMPLETE"] * 6


def test_a_full_disk_ends_a_search_and_costs_no_trial(tmp_path):
    status, _, err = search(tmp_path, *SPACE, "sweep.n_trials=2", FULL="1")
    assert status == 1 and "a.csv was not written: the disk is full" in err and len(err.splitlines()) == 1, err
    assert search(tmp_path, *SPACE, "sweep.n_trials=2")[0] == 0 and states(tmp_path).count("COMPLETE") == 2


def test_a_worker_that_waits_for_another_ones_run_hears_a_signal(tmp_path):
    command = ["sweep=optuna", "exploration=neighbor_mix", "k=choice(1,1)", "sweep.n_trials=2", "sweep.sampler=random"]
    workers = [start_search(tmp_path, *command, NAP="20", LOCKS="1") for _ in range(2)]
    ran = tmp_path / "ran.txt"
    while not ran.exists() or len(ran.read_text().splitlines()) < 2:
        time.sleep(0.05)
    time.sleep(0.5)
    for worker in workers:
        worker.terminate()
    assert [worker.communicate(timeout=10) and worker.returncode for worker in workers] == [143, 143]


@pytest.mark.parametrize("pruner", ["median", pytest.param("wilcoxon", marks=pytest.mark.slow)])
def test_poor_trials_stop_early_and_count(tmp_path, pruner):
    settings = ["sweep.n_trials=12", "sweep.sampler=random", "sweep.seeds=[0,1]", f"sweep.pruner={pruner}"]
    settings.append("sweep.objectives=[story_math_val/mean@32]")
    status, out, err = search(tmp_path, *SPACE, *settings, REPORTS="1")
    trials = study(tmp_path)[0].trials
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert status == 0 and len(trials) == 12 and 1 <= len(pruned) <= 7, err
    best = max((trial for trial in trials if trial not in pruned), key=lambda trial: trial.params["mix_rate"])
    assert all(trial.params["mix_rate"] < best.params["mix_rate"] for trial in pruned)
    assert f"{12 - len(pruned)} trials complete, {len(pruned)} pruned, 0 failed" in out


@pytest.mark.parametrize("moment", [pytest.param(0.5, marks=pytest.mark.slow), 2.0])
def test_after_a_killed_worker_the_study_reaches_exactly_its_total(tmp_path, moment):
    command = [*SPACE, "sweep.n_trials=9", "sweep.sampler=random"]
    workers = [start_search(tmp_path, *command, NAP="0.6") for _ in range(3)]
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("ran.txt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(moment)
    workers[0].kill()
    for worker in workers:
        worker.communicate(timeout=120)
    status, _, err = search(tmp_path, *command)
    found = study(tmp_path)[0].trials
    reasons = [trial.user_attrs["reason"] for trial in found if "reason" in trial.user_attrs]
    assert status == 0 and not reasons and [trial.state.name for trial in found].count("COMPLETE") == 9, err
    assert not any(trial.state.name in ("RUNNING", "WAITING") for trial in found)
    assert len({trial.number for trial in found}) == len(found)


@pytest.mark.parametrize(
    "kept", [pytest.param(1, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.slow), -1]
)
def test_a_torn_journal_goes_on(tmp_path, kept):
    assert search(tmp_path, *SPACE, "sweep.n_trials=3")[0] == 0
    path = study(tmp_path)[1]
    whole = path.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    path.write_bytes(whole[: last + kept] if kept > 0 else whole[:kept])
    status, out, err = search(tmp_path, *SPACE, "sweep.n_trials=4")
    assert status == 0, err
    assert "moved aside" in out and states(tmp_path).count("COMPLETE") == 4


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["mix_rate=interval(0.4,0.02)"], ["mix_rate", "0.4"]),
        (["sweep.sampler=best"], ["sweep.sampler=best", "tpe, random, grid"]),
        (["sweep.objectives=[story_math/pass@8]"], ["story_math/pass@8", "story_math_val/mean@32"]),
        (["sweep.sampler=grid"], ["mix_rate has no listed values"]),
        (["sweep.storage=sqlite:////nowhere/at/all.db"], ["sweep.storage=sqlite:////nowhere/at/all.db"]),
        (["seed=0,1"], ["sweep.seeds"]),
        (["sweep.n_trials=0"], ["sweep.n_trials=0", "at least 1"]),
    ],
)  # fmt: skip
def test_a_search_that_cannot_be_is_told_in_one_line(tmp_path, wrong, words):
    keys = {text.partition("=")[0] for text in wrong}
    command = [text for text in SPACE if text.partition("=")[0] not in keys]
    status, _, err = search(tmp_path, *command, *wrong)
    assert status == 2 and len(err.strip().splitlines()) == 1 and all(word in err for word in words), err
    assert not list(tmp_path.glob("outputs/*/sweeps/*/journal.log"))


@pytest.mark.parametrize(
    ("launcher", "package"), [("joblib", "joblib_launcher"), ("submitit_local", "submitit_launcher")]
)
def test_other_launchers_place_the_runs(tmp_path, launcher, package):
    pytest.importorskip(f"hydra_plugins.hydra_{package}")
    settings = [f"hydra/launcher={launcher}", *(["hydra.launcher.n_jobs=2"] if launcher == "joblib" else [])]
    done, _ = cold_sweep(tmp_path, "seed=0,7,1", *settings)
    assert done.stdout.splitlines()[-1] == "2 finished, 0 finished before, 0 refused, 1 failed", done.stderr
    assert done.returncode == 1 and "error: 1 of 3 runs failed" in done.stderr
    assert [row["error"] is None for row in record(tmp_path)["runs"]] == [True, False, True]


def test_a_search_over_real_runs(tmp_path):
    small = ["prompts_per_step=2", "group_size=2", "max_new_tokens=40", "n=8", "problems=3"]
    budget = ["steps=2", "eval_every=1", "evaluation.before=false", "trainer.threads=1", "sweep.n_trials=6"]
    log = tmp_path / "log"
    text = warm.finish("train.py", log, "-m", *SPACE, *small, *budget, f"hydra.sweep.dir={tmp_path}")
    trials = study(tmp_path)[0].trials
    assert len(trials) == 6 and {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}, text
    assert all(list(trial.intermediate_values) == [1] for trial in trials)
    complete = [trial for trial in trials if trial.values]
    runs = [read_run(path.parent) for path in tmp_path.glob("outputs/*/*/run.json")]
    assert len(complete) == sum(run.status == "finished" for run in runs) >= 3
    assert {run.kind for run in runs} == {"trial"}
    with pytest.raises(
        LoadError, match=rf"{len(runs)} of kind trial; kinds='\[trial\]' takes"
    ):  # no arms of a comparison
        load([tmp_path])
    assert len(load([tmp_path], ["trial"]).runs) == len(complete)
    for trial in complete:
        (run,) = [r for r in runs if r.config["mix_rate"] == trial.params["mix_rate"]]
        assert str(run.config["k"]) == trial.params["k"] and list(run.config["benchmark"]) == ["story_math_val"]


def test_the_trials_are_shown_on_a_terminal_while_they_run(tmp_path):
    import pty

    control, terminal = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm", "COLUMNS": "140", "LINES": "40"}
    environment["NAP"] = "1.5"  # seconds of a trial, as the table looks every two
    command = [sys.executable, "-c", SEARCHED, "-m", *SPACE, "sweep.n_trials=3"]
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, cwd=tmp_path, env=environment)
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(control, 65536)
        except OSError:  # the last one to write has gone
            break
    os.close(control)
    assert process.wait(timeout=60) == 0, shown
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    last = text[text.rindex("3 complete") :]
    assert "1 running" in text and "3 to reach" in last and "story_math_val/pass@8" in last
    assert all(f"{trial.values[0]:.4g}" in last for trial in study(tmp_path)[0].trials)
