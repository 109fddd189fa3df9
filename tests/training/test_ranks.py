"""Two processes that train together: they stop together, and none waits for one that is gone."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from places import REPOSITORY
from updates import fit, make

from ngrpo.ranks import Ranks
from ngrpo.rundir.interrupts import Interrupted, Interrupts
from ngrpo.rundir.schema import read_run
from ngrpo.training import watch

WORDS = [
    "trainer.threads=1", "steps=40", "prompts_per_step=4", "group_size=4",
    "checkpoint_every=2", "n=2", "problems=8", "max_new_tokens=40", "benchmark=story_math",
]  # fmt: skip


class Pair:
    """A run of two processes, rank 0 and the one that it has started."""

    def __init__(self, directory, strategy: str = "ddp"):
        self.directory, self.log = directory, directory.with_suffix(".log")
        words = [*WORDS, f"trainer.strategy={strategy}", "trainer.devices=2", f"hydra.run.dir={directory}"]
        command = [sys.executable, "train.py", *words]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            self.first = subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        while not (directory / "checkpoints" / "manifest.json").exists():
            assert self.first.poll() is None, self.text
            time.sleep(0.05)

    @property
    def text(self) -> str:
        return self.log.read_text()

    @property
    def ranks(self) -> list[int]:
        """Process ids of both."""
        found = subprocess.run(["pgrep", "-P", str(self.first.pid), "-f", "train.py"], capture_output=True, text=True)
        return [self.first.pid, *map(int, found.stdout.split())]

    def alive(self) -> list[int]:
        """Those that have not ended; frozen ones count as there."""
        group = subprocess.run(["pgrep", "-g", str(self.first.pid), "-f", "train.py"], capture_output=True, text=True)
        return [int(pid) for pid in group.stdout.split() if self.first.poll() is None or int(pid) != self.first.pid]

    def ends(self, within: float, left: int = 0) -> bool:
        """Whether all but `left` of them have ended in so many seconds."""
        until = time.monotonic() + within
        while len(self.alive()) > left and time.monotonic() < until:
            time.sleep(0.1)
        return len(self.alive()) <= left


@pytest.fixture
def pair(tmp_path):
    started = []

    def start(strategy: str = "ddp") -> Pair:
        started.append(Pair(tmp_path / "run", strategy))
        return started[-1]

    yield start
    for one in started:
        os.killpg(one.first.pid, signal.SIGKILL) if one.alive() else None
        one.first.wait()


def check_stop(pair, number: signal.Signals, who: slice, strategy: str = "ddp") -> None:
    run = pair(strategy)
    for pid in run.ranks[who]:
        os.kill(pid, number)
    assert run.ends(30) and run.first.wait() == 128 + number, run.text
    assert run.text.count("error: stopped by") == 2 and "Traceback" not in run.text
    record = read_run(run.directory)
    assert record.status == "interrupted" and number.name in record.content["reason"]
    step = int(record.content["reason"].split("after RL step ")[1].split(";")[0])
    assert (run.directory / "checkpoints" / f"step-{step:08d}{'' if strategy == 'fsdp' else '.pt'}").exists()


def test_a_signal_to_the_second_rank_saves_and_ends_both(pair):
    check_stop(pair, signal.SIGTERM, slice(1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("who", [slice(0, 1), slice(1, 2), slice(0, 2)], ids=["first", "second", "both"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_signal_to_any_rank_saves_and_ends_both(pair, number, who, strategy):
    check_stop(pair, number, who, strategy)


@pytest.mark.slow
def test_two_agents_of_torchrun_train_together_and_say_afterwards_that_it_is_done(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    words = [*(word for word in WORDS if not word.startswith("steps")), "steps=2", f"hydra.run.dir={tmp_path / 'run'}"]
    agent = [str(Path(sys.executable).with_name("torchrun")), "--nnodes=2", "--rdzv-backend=c10d", "--rdzv-id=7"]
    command = [*agent, f"--rdzv-endpoint={place}", "train.py", "trainer=fsdp", *words]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    for told in ("RL step 2/2", "already finished at RL step 2"):
        agents = [
            subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
            )
            for _ in range(2)
        ]
        printed = [agent.communicate(timeout=240)[0] for agent in agents]
        assert [agent.returncode for agent in agents] == [0, 0] and sum(told in text for text in printed) == 1
    assert read_run(tmp_path / "run").content["devices"] == 2


@pytest.mark.parametrize("dead", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rank_that_is_killed_ends_the_other_which_names_it(pair, dead):
    run = pair()
    os.kill(run.ranks[dead], signal.SIGKILL)
    assert run.ends(30), run.text
    assert (
        f"rank {dead} has ended" in run.text or f"[rank: {dead}] Child process" in run.text
    )  # Fabric may be the first


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_rank_that_is_frozen_ends_the_other_which_names_it(pair, frozen):
    run = pair()
    os.kill(run.ranks[frozen], signal.SIGSTOP)
    assert run.ends(30, left=1), run.text
    assert f"rank {frozen} has not answered for 20 s; the same command continues" in run.text


def test_a_step_that_does_not_end_after_a_signal_is_abandoned(monkeypatch):
    told = []
    monkeypatch.setattr(watch, "GRACE", 0.2)
    monkeypatch.setattr(watch, "BEAT", 0.01)
    monkeypatch.setattr(
        Interrupts, "end", lambda self, reason, code: (told.append((reason, code)), guarded._over.set())
    )
    guarded = watch.Watch(Ranks(0, 2), Interrupts())
    guarded.interrupts.number = signal.SIGTERM
    thread = threading.Thread(target=guarded._watch_store)
    thread.start()
    time.sleep(0.5)
    assert not told  # what saves may take its time
    with guarded.limited():
        thread.join(10)
    assert told == [
        ("stopped by SIGTERM: the RL step did not end within 0 s and is abandoned; the same command continues", 143)
    ]


def test_a_stop_in_the_rollouts_keeps_the_steps_before_it_and_the_same_run_goes_on(tmp_path):
    """Asked in the third step's rollouts, two steps after the last checkpoint: nothing but that step is done again."""
    changes: dict[str, Any] = {"steps": 4, "checkpoint_every": 10}
    whole = fit(make(**changes))
    cut = make(**changes)
    drawing = cut.sampler.engine.generate

    def asked(*arguments):
        asked.calls += 1
        if asked.calls == 3:
            cut.interrupts.number = signal.SIGTERM
        return drawing(*arguments)

    asked.calls = 0
    cut.sampler.engine.generate = asked  # pyright: ignore
    with pytest.raises(Interrupted, match="after RL step 2"):
        fit(cut, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.pt")] == ["step-00000002.pt"]
    rest = fit(make(**changes), tmp_path)
    for name, weight in whole.policy.model.state_dict().items():
        assert weight.equal(rest.policy.model.state_dict()[name]), name


def test_work_that_changes_nothing_is_left_at_once(monkeypatch):
    interrupts = Interrupts()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    interrupts.listen()
    try:
        with interrupts.polled():
            assert interrupts.unless_stopped(lambda: 7) == 7
            began = time.monotonic()
            threading.Timer(0.3, partial(interrupts.relay, signal.SIGINT)).start()
            assert interrupts.unless_stopped(lambda: time.sleep(20)) is None
            assert time.monotonic() - began < 10 and interrupts.number == signal.SIGINT
            os.kill(os.getpid(), signal.SIGTERM)  # heard, and outside of such work only noted
            assert interrupts.unless_stopped(lambda: 7) is None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
