"""`ngrpo <command>`: one name for all entry points, and what a shell may complete of them."""

import os
import subprocess
import sys

import pytest
from places import REPOSITORY

from ngrpo.__main__ import COMMANDS


def ngrpo(*words: str, folder=REPOSITORY, **environment: str) -> subprocess.CompletedProcess:
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    command = [sys.executable, "-m", "ngrpo", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=variables)


def test_every_entry_point_is_a_command():
    scripts = {path.stem for path in REPOSITORY.glob("*.py")} - {"setup"}
    rooms = {path.stem for path in (REPOSITORY / "ngrpo" / "commands").glob("*.py")} - {"__init__"}
    assert scripts == rooms == {*COMMANDS}


def test_what_is_no_command_is_told_those_that_there_are():
    done = ngrpo("trian", "seed=1")
    assert done.returncode == 2 and done.stderr.startswith("error: trian: is no command; ngrpo <command>")
    assert all(name in done.stderr for name in COMMANDS) and all(name in ngrpo().stdout for name in COMMANDS)


def test_wrong_words_are_told_as_those_of_the_entry_point(tmp_path):
    done = ngrpo("train", "steps=0", folder=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: steps=0: must be a whole number at least 1; steps=50\n")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ngrpo ", " ".join(COMMANDS)),
        ("ngrpo tr", " ".join(COMMANDS)),  # of which the shell takes those that begin so
        ("ngrpo train exploration=neighb", "exploration=neighbor_mix"),
        ("ngrpo evaluate benchmark=aime", "benchmark=aime24 benchmark=aime25"),
    ],
)
def test_words_are_completed(line, words):
    done = ngrpo("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert done.stdout.split() == words.split(), done.stderr


def test_a_script_completes_its_words_too():
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COMP_LINE": "python train.py algorithm=dr_"}
    command = [sys.executable, "train.py", "-sc", "query=bash"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    assert done.stdout.split() == ["algorithm=dr_grpo"], done.stderr


def test_the_function_for_the_shell_is_that_of_the_command(tmp_path):
    script = tmp_path / "ngrpo"
    script.write_text("from ngrpo.__main__ import main\nmain()\n")
    command = [sys.executable, str(script), "-sc", "install=bash"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 0 and done.stdout.rstrip().endswith("-F hydra_bash_completion ngrpo"), done.stderr
