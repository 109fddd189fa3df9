"""Searches whose study is in a database: workers that start together, on several machines, and what is refused."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import optuna
import pytest
from searches import SPACE, search, start_search

from hydra_plugins.ngrpo_sweeper import _study as study
from hydra_plugins.ngrpo_sweeper._study import open_storage, open_study


def trials_of(url: str) -> list[optuna.trial.FrozenTrial]:
    (name,) = optuna.get_all_study_names(url)
    return optuna.load_study(study_name=name, storage=url).trials


def check_database(folder, url):
    workers = [start_search(folder, *SPACE, "sweep.n_trials=5", f"sweep.storage={url}") for _ in range(3)]
    assert [worker.communicate(timeout=600)[1] for worker in workers] == [""] * 3
    trials = trials_of(url)
    states = [trial.state.name for trial in trials]
    assert len({str(trial.params) for trial in trials if trial.params}) == 5, "workers draw different numbers"
    assert states.count("COMPLETE") == 5 and not {"RUNNING", "WAITING"} & set(states)


def test_a_database_serves_workers_that_start_together(tmp_path):
    check_database(tmp_path, f"sqlite:///{tmp_path}/study.db")


@pytest.fixture
def postgres():
    """The URL of a server of one's own, run by an unprivileged user; `make services` installs the programs."""
    pytest.importorskip("psycopg2")
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not places:
        pytest.skip("PostgreSQL is not installed: make services")
    programs, folder = places[-1].parent, Path(tempfile.mkdtemp(prefix="ngrpo-postgres-"))
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    if as_nobody:
        os.chown(folder, 65534, 65534)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]

    def run(program, *arguments):
        command = [*as_nobody, str(programs / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, timeout=60)

    run("initdb", "-U", "ngrpo", "--auth=trust")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    run("pg_ctl", "-w", "-o", options, "-l", str(folder / "log"), "start")
    yield f"postgresql+psycopg2://ngrpo@127.0.0.1:{port}/postgres"
    run("pg_ctl", "-w", "-m", "immediate", "stop")
    shutil.rmtree(folder)


def test_a_server_serves_too(tmp_path, postgres):
    check_database(tmp_path, postgres)


@pytest.mark.slow
def test_a_search_of_two_machines_ends_complete_without_the_one_that_was_killed(tmp_path, postgres):
    command = [*SPACE, "sweep.n_trials=12", f"sweep.storage={postgres}", "sweep.grace_seconds=5"]
    workers = {}
    for machine in ("one", "two"):
        (tmp_path / machine).mkdir()
        workers[machine] = start_search(tmp_path / machine, *command, MACHINE=machine, NAP="1")
    begun = tmp_path / "one" / "ran.txt"
    while not begun.exists() or len(begun.read_text().splitlines()) < 2:
        time.sleep(0.05)
    workers["one"].kill()
    workers["one"].communicate(timeout=60)
    out, err = workers["two"].communicate(timeout=600)
    assert workers["two"].returncode == 0 and "12 trials complete, 0 pruned, 0 failed, 0 running elsewhere" in out, err
    trials = trials_of(postgres)
    (again,) = [trial for trial in trials if "retry_of" in trial.user_attrs]
    lost = trials[again.user_attrs["retry_of"]]
    assert (lost.user_attrs["host"], again.user_attrs["host"]) == ("one", "two")
    assert again.params == lost.params and again.state.name == "COMPLETE"
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert len(complete) == 12 and {trial.user_attrs["host"] for trial in complete} == {"one", "two"}
    assert not {"RUNNING", "WAITING"} & {trial.state.name for trial in trials}


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("postgresql://me:secret@127.0.0.1:1/none", ["postgresql+psycopg2://me:***@127.0.0.1:1/none", "refused"]),
        ("mysql+nothing://me:secret@host/none", ["mysql+nothing://me:***@host/none"]),
    ],
)
def test_a_wrong_address_is_one_line_without_the_password(tmp_path, address, words):
    status, _, err = search(tmp_path, *SPACE, f"sweep.storage={address}")
    assert status == 2 and len(err.strip().splitlines()) == 1 and all(word in err for word in words), err
    assert "secret" not in err and not list(tmp_path.glob("outputs/*/sweeps/*"))


def test_a_name_that_another_search_has_is_refused(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path}/study.db", tmp_path)
    for _ in range(2):
        open_study(storage, "name", {"space": "a"}, ["maximize"])
    # Hydra executes plug-ins anew where it looks for them, so the class is asked for at the last moment.
    with pytest.raises(study.StudyError, match=r"study name: the storage has another search .* sweep.storage="):
        open_study(storage, "name", {"space": "b"}, ["maximize"])


def test_a_search_whose_database_is_lost_ends_in_one_line(tmp_path):
    place = tmp_path / "study.db"
    worker = start_search(tmp_path, *SPACE, "sweep.n_trials=2", f"sweep.storage=sqlite:///{place}", NAP="3")
    while not (tmp_path / "ran.txt").exists():
        time.sleep(0.05)
    place.write_bytes(b"no database")
    _, err = worker.communicate(timeout=600)
    assert worker.returncode == 1 and len(err.splitlines()) == 1, err
    assert err.startswith(f"error: sweep.storage=sqlite:///{place}: ") and err.endswith(
        "; the same command continues\n"
    )
