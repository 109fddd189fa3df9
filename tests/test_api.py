"""Runs from Python: what a command says is printed and its mistakes are raised; loading and comparing stay light."""

import subprocess
import sys

import pytest
from places import REPOSITORY
from study import make_run

from ngrpo.api import RunFailed, compare, load, run, verdict


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


def test_a_run_is_named_and_what_it_says_is_printed(capsys):
    place = run("train", "trainer.threads=1", trainer="smoke", benchmark=["story_math"])
    said = capsys.readouterr().out
    assert place and (place / "results.json").exists() and "pass@4" in said and str(place) in said
    study = load(["outputs/story_math"], kinds=["smoke"])
    assert study.arms == ["untrained", "token_sampling"] and study.benchmarks == ["story_math"]


def test_mistakes_are_raised_as_they_are_told():
    with pytest.raises(RunFailed, match=r"^steps=0: must be a whole number at least 1; steps=50$") as raised:
        run("train", steps=0)
    assert raised.value.status == 2


def test_comparing_imports_neither_hydra_nor_torch(tmp_path):
    for seed in range(3):
        make_run(tmp_path / "runs", "token_sampling", seed, [0, 1, 1, 8])
        make_run(tmp_path / "runs", "neighbor_mix", seed, [0, 2, 3, 8])
    comparison = compare(load([tmp_path / "runs"]), baseline="token_sampling")
    assert set(comparison.estimates["arm"]) == {"token_sampling", "neighbor_mix"} and verdict(comparison)
    code = (
        "import sys; from ngrpo.api import compare, load, verdict; verdict(compare(load(['runs']), 'token_sampling'));"
        "print({'hydra', 'omegaconf', 'torch', 'transformers'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "set()\n", done.stderr
