"""Launchers place the runs of a sweep: stopped half-way, the same command goes on, and each run ends once."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from places import REPOSITORY
from searches import SPACE, search, start_search, states

from ngrpo.cli import launchers
from ngrpo.cli.command import examine
from ngrpo.rundir.lock import acquire, release
from ngrpo.rundir.schema import read_run

RUN = """
import os, time
from ngrpo.rundir import interrupts
interrupts.begin()
from ngrpo import cli
ENTRY, FOLDER, NAP = os.environ["ENTRY"], os.getcwd(), float(os.environ["NAP"])  # travel with `main` to processes elsewhere
def main(config):
    interrupts.INTERRUPTS.listen()
    request = cli.Request(config, "evaluation") if ENTRY == "evaluate" else cli.training_request(config)
    with request.open() as run, interrupts.INTERRUPTS.polled():
        if run.status == "finished": return
        note(config, "begun.txt")
        for _ in range(10):
            time.sleep(NAP / 10)
            interrupts.INTERRUPTS.check()
        run.finish()
        note(config, "ended.txt")
def note(config, name):
    with open(os.path.join(FOLDER, name), "a") as file:
        print(config.seed, os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), file=file)
cli.prepare(ENTRY)
cli.run(main, ENTRY)
"""
SEEDS = range(8)
GRID = ("-m", f"seed=range({len(SEEDS)})")
STARTED: list[subprocess.Popen[str]] = []
JOBLIB = (*GRID, "hydra/launcher=joblib")


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The command in a session of its own, so that a signal to its group reaches nothing else."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "NAP": "0.5", "ENTRY": "config"} | environment
    STARTED.append(subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ))  # fmt: skip
    return STARTED[-1]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """A test that fails leaves no process either."""
    yield
    while STARTED:
        with suppress(ProcessLookupError):
            os.killpg(STARTED.pop().pid, signal.SIGKILL)


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def notes(folder: Path, name: str = "ended.txt") -> list[list[str]]:
    """Seed, process and GPU of each run that has begun or ended."""
    path = folder / name
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def wait(until: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: str) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def stop(folder: Path, process: subprocess.Popen[str], number: int, group: bool, least: int = 3) -> int:
    """Signals the command, or its group, once some runs have ended and others are at work; how many had ended."""
    wait(lambda: len(notes(folder)) >= least and len(notes(folder, "begun.txt")) > len(notes(folder)))
    (os.killpg if group else os.kill)(process.pid, number)
    process.wait(timeout=60)
    wait(lambda: not any(alive(pid) for _, pid, _ in notes(folder, "begun.txt")))  # no run goes on without its sweep
    return len(notes(folder))


def check_continued(folder: Path, before: int, outcome: tuple[int, str, str]) -> None:
    """The same command has ended the grid: each run once, and none that had ended was begun again."""
    status, out, err = outcome
    rest = len(SEEDS) - before
    assert status == 0 and out.splitlines()[-1] == f"{rest} finished, {before} finished before, 0 refused, 0 failed", (
        err
    )
    ended = Counter(int(seed) for seed, *_ in notes(folder))
    assert ended == Counter(SEEDS)
    assert {read_run(path.parent).status for path in folder.glob("outputs/*/*/run.json")} == {"finished"}


def test_a_grid_of_joblib_dies_with_its_command_and_goes_on_and_each_process_has_a_gpu(tmp_path):
    command, machine = (
        (*JOBLIB, "model=tiny"),
        {"CUDA_VISIBLE_DEVICES": "5,7", "TMPDIR": str(tmp_path), "ENTRY": "evaluate"},
    )
    before = stop(tmp_path, start(tmp_path, *command, **machine), signal.SIGKILL, group=False)
    check_continued(tmp_path, before, end(start(tmp_path, *command, **machine | {"NAP": "0.1"})))
    for ended in (notes(tmp_path)[:before], notes(tmp_path)[before:]):
        processes = {(pid, gpu) for _, pid, gpu in ended}
        assert sorted(gpu for _, gpu in processes) == ["5", "7"], "as many processes as GPUs, each with another one"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "group", "status"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143)],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_a_signal_saves_the_runs_of_joblib_and_begins_no_other(tmp_path, number, group, status):
    process = start(tmp_path, *JOBLIB, "hydra.launcher.n_jobs=2", NAP="2")
    before = stop(tmp_path, process, number, group, least=1)
    code, _, err = end(process)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == status and lines[-1] == f"error: stopped by {number.name}; the same command continues", err
    statuses = Counter(read_run(path.parent).status for path in tmp_path.glob("outputs/*/*/run.json"))
    assert statuses == {"finished": before, "interrupted": len(notes(tmp_path, "begun.txt")) - before}


def test_a_process_takes_a_gpu_that_no_other_has(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    monkeypatch.setattr(launchers, "own_gpu", launchers.own_gpu.__wrapped__)  # each call that of another process
    others = acquire(tmp_path / f"ngrpo-{os.getuid()}" / "gpu-0")
    assert launchers.own_gpu() == "3"
    with pytest.raises(launchers.NoGpu, match=r"none of the GPUs 0, 3 is free; hydra.launcher.n_jobs=2"):
        launchers.own_gpu()
    release(others)
    assert launchers.own_gpu() == "0"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("-m hydra/launcher=ray", "needs hydra-ray-launcher, which is not installed; pip install 'ngrpo[ray]'"),
        ("-m hydra/launcher=slurm_1gpu", "there is no sbatch on this machine, which is no login node of SLURM; "
         "hydra/launcher=joblib"),
        ("hydra/launcher=joblib", "places the runs of a sweep, and one run stays here; -m hydra/launcher=joblib"),
        ("-m hydra/launcher=joblib trainer.devices=2", "a run of hydra/launcher=joblib has one process; "
         "trainer.devices=1, or torchrun and one run at a time"),
    ],
)  # fmt: skip
def test_a_launcher_that_cannot_be_is_told_in_one_line(words, line, monkeypatch):
    monkeypatch.setattr(launchers, "find_spec", lambda name: None if "ray" in name else object())
    monkeypatch.setenv("PATH", "")
    assert examine("config", words.split()).problems == [f"{words.split()[-1]}: {line}"]


def test_gpus_of_other_machines_are_not_looked_for_here(monkeypatch):
    monkeypatch.setattr(launchers, "find_spec", lambda name: object())
    monkeypatch.setattr(launchers.shutil, "which", lambda name: name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for launcher in ("ray", "slurm_1gpu"):
        assert examine("config", ["-m", "trainer=gpu", f"hydra/launcher={launcher}"]).problems == []
    assert "shows no GPU" in examine("config", ["-m", "trainer=gpu", "hydra/launcher=joblib"]).problems[0]


# --- SLURM: the launcher writes its script, and stand-ins run it ----------------------------------------------------------

SBATCH = """#!/bin/sh
cp "$1" submitted.sh
for task in $(seq 0 $(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")); do
    SLURM_ARRAY_JOB_ID=$$ SLURM_ARRAY_TASK_ID=$task SLURM_JOB_ID=$$$task SLURM_JOB_NUM_NODES=1 SLURM_NTASKS=1 \
    SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_JOB_NODELIST=node SLURM_JOB_NAME=ngrpo sh "$1" > /dev/null 2>&1 &
done
echo "Submitted batch job $$"
"""
SRUN = """#!/bin/sh
while [ "$1" != "$PYTHON" ]; do shift; done
exec "$@"
"""
SLURM = (*GRID[:1], "seed=0,1", "hydra/launcher=slurm_1gpu", "hydra.launcher.partition=gpu")


@pytest.fixture
def slurm(tmp_path) -> dict[str, str]:
    """The environment of commands on a machine with stand-ins for SLURM's programs."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": "#!/bin/sh\n", "scancel": "#!/bin/sh\n"}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHON": sys.executable}


def submitted(folder: Path) -> set[str]:
    lines = (folder / "submitted.sh").read_text().splitlines()
    return {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}


def test_runs_of_slurm_are_told_before_their_time_is_over_and_the_same_command_goes_on(tmp_path, slurm):
    process = start(tmp_path, *SLURM, NAP="20", **slurm)
    wait(lambda: len(notes(tmp_path, "begun.txt")) == 2)
    asked = {"--signal=TERM@300", "--requeue", "--gpus-per-node=1", "--ntasks-per-node=1", "--nodes=1", "--time=1440",
             "--partition=gpu", "--array=0-1%2", "--job-name=ngrpo"}  # fmt: skip
    assert asked <= submitted(tmp_path)
    for _, pid, _ in notes(tmp_path, "begun.txt"):
        os.kill(int(pid), signal.SIGTERM)
    status, _, err = end(process)
    assert status == 143 and not notes(tmp_path), err
    assert {read_run(path.parent).status for path in tmp_path.glob("outputs/*/*/run.json")} == {"interrupted"}
    status, out, err = end(start(tmp_path, *SLURM, NAP="0.1", **slurm))
    assert status == 0 and out.splitlines()[-1] == "2 finished, 0 finished before, 0 refused, 0 failed", err
    assert Counter(seed for seed, *_ in notes(tmp_path)) == {"0": 1, "1": 1}


# --- Ray: started by the launcher, and one that runs already --------------------------------------------------------------

RAY = (*GRID, "hydra/launcher=ray")
NO_RAY = "Ray is not installed: constraints.txt says how"
OWN_RAY = [f"hydra.launcher.ray.init.{word}" for word in ("address=local", "num_cpus=2", "include_dashboard=false")]


@pytest.fixture(params=["own", "running"])
def ray(request) -> Iterator[list[str]]:
    """The words for a Ray of the launcher's own, or for one that runs on the loopback."""
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason=NO_RAY)
    if request.param == "own":
        yield OWN_RAY
        return
    folder = tempfile.mkdtemp(prefix="ray")  # short: the paths of sockets are
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2",
               "--node-ip-address=127.0.0.1", "--include-dashboard=false", f"--temp-dir={folder}"]  # fmt: skip
    process = subprocess.Popen(command, cwd="/", stdout=subprocess.DEVNULL, start_new_session=True)
    wait(lambda: Path(folder, "ray_current_cluster").exists())
    yield ["hydra.launcher.ray.init.address=auto", "hydra.launcher.ray.init._node_ip_address=127.0.0.1"]
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=60)


@pytest.mark.slow
def test_a_grid_of_ray_dies_with_its_command_and_goes_on(tmp_path, ray):
    before = stop(tmp_path, start(tmp_path, *RAY, *ray, NAP="2"), signal.SIGKILL, group=False)
    check_continued(tmp_path, before, end(start(tmp_path, *RAY, *ray, NAP="0.1")))


# --- searches through each of them ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "slurm_1gpu", "ray"])
def test_a_search_goes_on_and_reaches_its_total(tmp_path, slurm, launcher):
    if launcher == "ray":
        pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason=NO_RAY)
    places = {"joblib": ["hydra.launcher.n_jobs=2"], "ray": OWN_RAY}.get(launcher, [])
    command = [*SPACE, f"hydra/launcher={launcher}", *places, "sweep.trials_at_once=2", "sweep.n_trials=6"]
    worker, begun = start_search(tmp_path, *command, NAP="2", **slurm), tmp_path / "ran.txt"
    wait(lambda: begun.exists() and len(begun.read_text().splitlines()) >= 3)
    worker.kill()
    worker.communicate(timeout=60)
    status, out, err = search(tmp_path, *command, **slurm)
    assert status == 0 and "6 trials complete, 0 pruned, 0 failed" in out, err
    assert Counter(states(tmp_path))["COMPLETE"] == 6 and not {"RUNNING", "WAITING"} & set(states(tmp_path))
