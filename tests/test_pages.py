"""What the README and the pages of docs/ tell a reader to type is accepted, and does what they say."""

import re
import shlex
import subprocess
import sys

import configurations
import pytest
from places import REPOSITORY

from ngrpo.cli import command, launchers

README = REPOSITORY / "README.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ENTRY = re.compile(r"python ((train|evaluate|diagnose|report|plan|audit)\.py.*)")
PAGES = [README, *sorted((REPOSITORY / "docs").glob("*.md"))]
# What is not here, or would take long, and what stands in for it.
ELSEWHERE = {
    "/path/to/checkpoint": "tiny",
    "<directory or hub id>": "tiny",
    "<file>": "train.jsonl",
    "trainer=gpu": "trainer=cpu",
    "seed=0,1,2": "seed=0",
    "max_new_tokens=2048": "max_new_tokens=256",  # the bundled model has 512 positions
}
NOT_HERE = ("<run>", "--config-dir")  # a finished run; the files of plugins.md, which has a test of its own


def blocks(page, language: str = "") -> list[str]:
    """The fenced blocks of a page that are of a language."""
    return [block for name, block in FENCE.findall(page.read_text("utf-8")) if name == language]


def commands(page) -> list[str]:
    """The lines of a page that call an entry point, comments and all."""
    lines = [line for block in blocks(page) for line in block.splitlines()]
    return [found[1] for line in lines if (found := ENTRY.fullmatch(line))]


def run(place, *words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with the files that the first hour writes."""
    folder = tmp_path_factory.mktemp("hour")
    run(folder, "-c", blocks(REPOSITORY / "docs" / "first_hour.md", "python")[0])
    return folder


def test_the_readme_is_short():
    text = README.read_text("utf-8")
    assert len(text.splitlines()) <= 150 and len(text.split()) <= 1400


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.stem)
def test_commands_are_accepted(page, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(launchers, "problems", lambda config, several: [])  # SLURM and Ray
    with configurations.command_line():  # for which the files below conf/ are read once
        for line in commands(page):
            if any(words in line for words in NOT_HERE):
                continue
            for words, here in ELSEWHERE.items():
                line = line.replace(words, here)
            script, *overrides = shlex.split(line, comments=True)
            name = script.removesuffix(".py")
            assert command.examine("config" if name == "train" else name, overrides).problems == [], line


def test_the_readme_s_report_says_what_stands_under_its_picture(tmp_path):
    line = next(line for line in commands(README) if "samples=" in line)
    told = run(REPOSITORY, *shlex.split(line), f"out={tmp_path}")
    gains = re.search(r"gains for k = (\d+) to (\d+) and loses for k = (\d+) to (\d+)", told)
    assert gains and gains[0] in README.read_text("utf-8")


@pytest.mark.slow
def test_the_first_hour_as_it_stands_but_smaller(place):
    smaller = {
        "diagnose.py": ["problems=4", "n=8", "strategies=[token_sampling]"],
        "train.py": ["trainer=smoke", "trainer.threads=1"],
        "report.py": ["kinds=[smoke]"],
    }
    for line in commands(REPOSITORY / "docs" / "first_hour.md"):
        script, *words = shlex.split(line.replace("seed=0,1,2", "seed=0").replace("steps=20", "steps=1"))
        told = run(place, str(REPOSITORY / script), *words, *smaller.get(script, []))
        assert told
    assert (place / "outputs" / "jsonl" / "report" / "report.html").exists()
