"""A run that is killed at any moment and started again by the same command ends as if nothing had happened."""

import csv
import hashlib
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import warm
from strategies import neighbor_mix
from updates import Stepping, fit, make

from ngrpo.rundir import checkpoints
from ngrpo.rundir.interrupts import Interrupted, Interrupts
from ngrpo.rundir.schema import read_run

SMALL = [
    "exploration=neighbor_mix", "mix_rate=0.3", "trainer.threads=1", "steps=4", "prompts_per_step=2", "group_size=3",
    "checkpoint_every=1", "eval_every=2", "benchmark=story_math", "n=2", "problems=4",
    "evaluation.rows_per_batch=4", "max_new_tokens=40", "exploration.refresh_every=2", "learning_rate=1e-3",
]  # fmt: skip
ADAPTERS = ["model.lora.r=4", "model.lora.alpha=8", "algorithm.kl.coefficient=0.01"]
QUICK = {"steps=4": "steps=8", "max_new_tokens=40": "max_new_tokens=10", "n=2": "n=1", "problems=4": "problems=1"}
RESULTS = ("metrics.csv", "results.json", "hf/model.safetensors")


def start(directory: Path, *overrides: str):
    return warm.start("train.py", directory.with_suffix(".log"), *SMALL, f"hydra.run.dir={directory}", *overrides)


def finish(directory: Path, *overrides: str) -> str:
    return warm.finish("train.py", directory.with_suffix(".log"), *SMALL, f"hydra.run.dir={directory}", *overrides)


def quick() -> list[str]:
    """A run of more steps, in less time, where its numbers are not compared."""
    return [QUICK.get(word, word) for word in SMALL]


def traces(directory: Path) -> dict[str, str]:
    """Digests of everything that must not depend on interruptions."""
    import pandas

    found = {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in RESULTS}
    for path in sorted(directory.glob("samples/**/*.parquet")):
        frame = pandas.read_parquet(path).drop(columns=["run"], errors="ignore")
        text = frame.to_json(double_precision=15)
        assert text is not None
        found[str(path.relative_to(directory))] = hashlib.sha256(text.encode()).hexdigest()
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("resume") / "whole"
    finish(directory)  # once to warm the server, so that the second measures a run and not an import
    began = time.monotonic()
    finish(directory, "fresh=true")
    return directory, time.monotonic() - began


def kill_and_resume(directory: Path, moment: float) -> None:
    process = start(directory)
    process.join(timeout=moment)
    if process.is_alive():
        process.kill()
        process.join()
    finish(directory)


def check_moments(uninterrupted, tmp_path: Path, count: int, seed: int) -> None:
    whole, duration = uninterrupted
    generator = random.Random(seed)
    for index in range(count):
        directory = tmp_path / f"killed{index}"
        moment = duration * generator.uniform(0.1, 1.0)
        kill_and_resume(directory, moment)
        assert traces(directory) == traces(whole), f"killed after {moment:.2f} of {duration:.2f} s"


def test_three_kills_leave_no_trace(uninterrupted, tmp_path):
    check_moments(uninterrupted, tmp_path, 3, seed=random.SystemRandom().randrange(2**32))


@pytest.mark.slow
def test_twenty_kills_leave_no_trace(uninterrupted, tmp_path):
    check_moments(uninterrupted, tmp_path, 20, seed=random.SystemRandom().randrange(2**32))


def test_kill_inside_a_save_leaves_no_trace(uninterrupted, tmp_path):
    directory = tmp_path / "saving"
    process = start(directory)
    while process.is_alive() and not list(directory.glob("checkpoints/.*.part")):
        time.sleep(0.0005)
    assert process.is_alive(), "no save was caught in the act"
    process.kill()
    process.join()
    finish(directory)
    assert traces(directory) == traces(uninterrupted[0])
    assert not list(directory.rglob("*.part"))


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_signals_save_and_exit_with_their_status(uninterrupted, tmp_path, number, status):
    directory = tmp_path / "stopped"
    process = start(directory)
    while process.is_alive() and not (directory / "metrics.csv").exists():
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(timeout=60)
    text = directory.with_suffix(".log").read_text()
    assert process.exitcode == status, text
    assert "the same command continues" in text and "Traceback" not in text
    assert read_run(directory).status == "interrupted" and read_run(directory).content["reason"] in text
    assert list(directory.glob("checkpoints/step-*.pt"))
    finish(directory)
    assert traces(directory) == traces(uninterrupted[0])


def test_a_run_whose_directory_is_moved_stops_and_does_not_make_it_again(tmp_path):
    directory = tmp_path / "here"
    process = start(directory)
    while process.is_alive() and not (directory / "metrics.csv").exists():
        time.sleep(0.002)
    directory.rename(tmp_path / "there")
    process.join(timeout=60)
    lines = directory.with_suffix(".log").read_text().splitlines()
    assert process.exitcode == 1 and not directory.exists() and "Traceback" not in " ".join(lines)
    assert [line.startswith(f"error: {directory} was deleted or moved") for line in lines].count(True) == 1, lines
    finish(tmp_path / "there")


def test_as_many_checkpoints_are_kept_as_asked_for(tmp_path):
    finish_as([*quick(), "checkpoints.keep=3", "evaluation.before=false"], tmp_path / "kept")
    assert len(list(tmp_path.glob("kept/checkpoints/step-*.pt"))) == 3


def test_a_run_that_goes_on_with_other_threads_is_the_same_run_and_says_so(tmp_path):
    directory = tmp_path / "moved"
    place, log = f"hydra.run.dir={directory}", directory.with_suffix(".log")
    process = warm.start("train.py", log, *quick(), place)
    while process.is_alive() and not list(directory.glob("checkpoints/step-*.pt")):
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join(timeout=60)
    assert process.exitcode == 143
    text = warm.finish("train.py", log, *(word.replace("threads=1", "threads=2") for word in quick()), place)
    notes = [line for line in text.splitlines() if line.startswith("note: continued with")]
    assert len(notes) == 1 and "threads=2, which was 1" in notes[0]
    record = read_run(directory)
    assert (record.status, record.content["threads"], record.content["earlier"]) == ("finished", 2, [{"threads": 1}])


def test_a_finished_run_is_reported_and_left_alone(uninterrupted):
    directory, _ = uninterrupted
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
    assert "already finished" in finish(directory)
    after = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
    changed = {path for path in before | after if before.get(path) != after.get(path) and ".hydra" not in path.parts}
    assert not {path for path in changed if path.name != ".lock"}


def test_another_run_in_the_same_directory_is_refused(uninterrupted):
    directory, _ = uninterrupted
    log, place = directory.with_suffix(".log"), f"hydra.run.dir={directory}"
    text = warm.finish("train.py", log, *SMALL[:-1], "learning_rate=1e-4", place, status=1)
    assert "learning_rate=0.001 there, 0.0001 here" in text and "Traceback" not in text


@pytest.fixture(scope="module")
def adapters_uninterrupted(tmp_path_factory):
    pytest.importorskip("peft", reason="adapters need peft")
    directory = tmp_path_factory.mktemp("adapters") / "whole"
    finish(directory, *ADAPTERS)
    return directory


@pytest.mark.parametrize("number", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGTERM])
def test_adapters_that_are_killed_or_stopped_end_as_if_nothing_had_been(adapters_uninterrupted, tmp_path, number):
    """Only adapters and their optimizer's state are kept; the reference inside them and the KL must come back too."""
    directory, adapter = tmp_path / "cut", "hf/adapter/adapter_model.safetensors"
    process = start(directory, *ADAPTERS)
    while process.is_alive() and not list(directory.glob("checkpoints/step-*.pt")):
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(timeout=60)
    assert process.exitcode in (143, -9) and not (directory / adapter).exists(), directory.with_suffix(
        ".log"
    ).read_text()
    finish(directory, *ADAPTERS)
    assert traces(directory) == traces(adapters_uninterrupted)
    assert (directory / adapter).read_bytes() == (adapters_uninterrupted / adapter).read_bytes()


SIZES = {"prompts_per_step=2": "prompts_per_step=4", "group_size=3": "group_size=6", "steps=4": "steps=6"}
RESAMPLED = [SIZES.get(word, word) for word in SMALL] + ["algorithm=dapo", "algorithm.max_resamples=4"]


def test_groups_that_wait_for_the_next_step_survive_kills(tmp_path):
    """The surplus of resampling is a part of the checkpoint: in the middle of a run with some, two kills leave no trace."""
    whole = tmp_path / "whole"
    finish_as(RESAMPLED, whole)
    surplus = [float(row["surplus"]) for row in csv.DictReader((whole / "metrics.csv").open())]
    assert sum(value > 0 for value in surplus[:-1]) >= 2, surplus
    directory = tmp_path / "killed"
    for step in (at for at, value in enumerate(surplus[:-1], start=1) if value):
        process = warm.start("train.py", directory.with_suffix(".log"), *RESAMPLED, f"hydra.run.dir={directory}")
        while process.is_alive() and not (directory / "checkpoints" / f"step-{step:08d}.pt").exists():
            time.sleep(0.002)
        process.kill()
        process.join()
    finish_as(RESAMPLED, directory)
    assert traces(directory) == traces(whole)


def test_a_signal_in_the_rollout_of_a_step_that_searched_neighbors_leaves_no_trace(tmp_path):
    def four_steps():
        return make(neighbor_mix(rate=0.3, k=3, refresh_every=2), Stepping, steps=4, checkpoint_every=4)

    whole, stopped, asked = fit(four_steps()), four_steps(), []
    drawing, interrupts = stopped.sampler.engine.generate, stopped.interrupts

    def generate(*arguments):
        asked.append(arguments)
        if len(asked) == 3:
            interrupts.number = signal.SIGTERM
            interrupts.check()
        return drawing(*arguments)

    stopped.sampler.engine.generate = generate  # pyright: ignore
    with pytest.raises(Interrupted):
        fit(stopped, tmp_path / "run")
    again = fit(four_steps(), tmp_path / "run")
    assert [outcome.step for outcome in again.outcomes] == [3, 4] and "neighbor_drift" in again.outcomes[0].metrics
    for here, there in zip(again.outcomes, whole.outcomes[2:], strict=True):
        assert here.metrics == pytest.approx(there.metrics, rel=0, abs=0, nan_ok=True)


class Late(Interrupts):
    """A signal that comes after `number` was read so many times."""

    def __init__(self, reads: int):
        self.reads = reads
        super().__init__()

    @property
    def number(self) -> int:
        self.reads -= 1
        return signal.SIGTERM * (self.reads < 0)

    @number.setter
    def number(self, value: int) -> None:
        """No other signal comes."""


@pytest.mark.parametrize("reads", range(8))
def test_whenever_a_signal_comes_the_step_that_is_named_has_a_checkpoint(reads, tmp_path):
    parts = make(kind=Stepping, steps=3, checkpoint_every=3)
    with pytest.raises(Interrupted) as stop:
        fit(replace(parts, interrupts=Late(reads)), tmp_path)
    found = checkpoints.newest(tmp_path / "checkpoints")
    assert (found[0] if found else 0) == stop.value.step


ACTING = {"param_noise": ["exploration.target_kl=1e-5"], "rollout_dropout": []}  # on the model


@pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param("param_noise", signal.SIGKILL, marks=pytest.mark.slow),
        ("param_noise", signal.SIGTERM),
        ("rollout_dropout", signal.SIGKILL),
    ],
)
def test_noise_and_masks_are_the_same_after_a_signal(name, number, tmp_path):
    """Where a signal leaves a rollout, what is saved has no noise."""
    words = [word for word in SMALL if "mix" not in word and "refresh" not in word]
    words += [f"exploration={name}", *ACTING[name]]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish_as(words, whole)
    process = warm.start("train.py", killed.with_suffix(".log"), *words, f"hydra.run.dir={killed}")
    while process.is_alive() and not list(killed.glob("checkpoints/step-*.pt")):
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(timeout=60)
    assert process.exitcode in (143, -9)
    finish_as(words, killed)
    assert traces(killed) == traces(whole)


def finish_as(words: list[str], directory: Path) -> str:
    return warm.finish("train.py", directory.with_suffix(".log"), *words, f"hydra.run.dir={directory}")
