"""Runs with engine=vllm from the command line: training, killed and continued, evaluation, diagnosis."""

import json
import os
import subprocess
import sys
import time

import pandas
import pytest
import warm
from places import REPOSITORY
from test_resume import traces

from ngrpo.rollout.engines.vllm import installed

if installed.found() is None:
    pytest.skip("vLLM is not installed: make test-vllm", allow_module_level=True)

ENGINE = ("engine=vllm", "engine.kv_cache_gib=0.0625", "engine.rows=8")
TRAIN = [
    "exploration=neighbor_mix", "mix_rate=0.3", "trainer.threads=1", "steps=2", "prompts_per_step=4", "group_size=4",
    "checkpoint_every=1", "benchmark=story_math", "n=2", "problems=4", "evaluation.rows_per_batch=4", "max_new_tokens=40",
    "exploration.refresh_every=2", "learning_rate=1e-3",
]  # fmt: skip
DIFFERING = 16  # at most one row in so many, where a draw lies at an edge


def run(script: str, directory, *overrides: str) -> str:
    return warm.finish(script, directory.with_suffix(".log"), f"hydra.run.dir={directory}", *overrides)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("vllm") / "whole"
    began = time.monotonic()
    run("train.py", directory, *TRAIN, *ENGINE)
    return directory, time.monotonic() - began


def samples(directory, name: str) -> pandas.DataFrame:
    return pandas.read_parquet(directory / "samples" / name)


def test_the_first_step_has_the_reference_engine_s_samples(trained, tmp_path):
    run("train.py", tmp_path / "reference", *TRAIN)
    pairs = [(samples(place, "train/1.parquet")) for place in (trained[0], tmp_path / "reference")]
    same = [list(a) == list(b) for a, b in zip(*(frame["token_ids"] for frame in pairs), strict=True)]
    assert len(same) == 16 and same.count(False) <= len(same) / DIFFERING
    assert pairs[0]["explored_steps"].sum() > 0


def test_the_gap_to_the_policy_is_small_and_its_correction_is_told(trained):
    metrics = pandas.read_csv(trained[0] / "metrics.csv")
    assert metrics["engine_gap"].between(0, 1e-4).all() and (metrics["engine_gap"] > 0).all()
    assert metrics["effective_sample_size"].between(0.999, 1 + 1e-6).all()


def test_run_json_names_the_engine_and_its_version(trained):
    record = json.loads((trained[0] / "run.json").read_text("utf-8"))
    found = installed.found()
    assert found and record["versions"][found[0]] == found[1]
    assert (
        record["config"]["engine"]["_target_"].endswith("VllmEngine")
        and record["config"]["engine"]["dtype"] == "float32"
    )
    assert record["config"]["algorithm"]["correction"] == "tis"


def test_an_engine_in_bfloat16_is_corrected_for(tmp_path):
    run("train.py", tmp_path / "short", *TRAIN, *ENGINE, "engine.dtype=bfloat16")
    metrics = pandas.read_csv(tmp_path / "short" / "metrics.csv")
    assert metrics["engine_gap"].between(1e-4, 0.03).all()
    assert metrics["effective_sample_size"].between(0.95, 1 - 1e-6).all()


def test_a_kill_leaves_no_trace(trained, tmp_path):
    whole, seconds = trained
    directory = tmp_path / "killed"
    overrides = (f"hydra.run.dir={directory}", *TRAIN, *ENGINE)
    process = warm.start("train.py", directory.with_suffix(".log"), *overrides)
    deadline = time.monotonic() + 10 * seconds
    while not list(directory.glob("checkpoints/*")) and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.join()
    assert json.loads((directory / "run.json").read_text("utf-8"))["status"] == "running"
    run("train.py", directory, *TRAIN, *ENGINE)
    assert traces(directory) == traces(whole)


def test_two_processes_with_an_engine_each_have_the_answers_of_one(trained, tmp_path):
    """Those of the second step too, whose weights both ranks made together and each engine was given."""
    words = (*TRAIN, *ENGINE, "trainer.strategy=ddp", "trainer.devices=2", f"hydra.run.dir={tmp_path / 'two'}")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "train.py", *words], cwd=REPOSITORY, env=environment, check=True, timeout=600)
    for step in (1, 2):
        pairs = [samples(place, f"train/{step}.parquet") for place in (trained[0], tmp_path / "two")]
        rows = [frame.sort_values(["problem_id", "sample_index"])["token_ids"] for frame in pairs]
        same = [list(a) == list(b) for a, b in zip(*rows, strict=True)]
        assert len(same) == 16 and same.count(False) <= len(same) / DIFFERING


def test_evaluation_and_diagnosis_go_through_the_engine_mixing_included(trained, tmp_path):
    asked = ("n=2", "problems=4", "max_new_tokens=40")
    mixing = ("exploration=neighbor_mix", "mix_rate=0.5", "k=3", "benchmark=story_math", *asked)
    for name, engine in (("ours", ENGINE), ("reference", ())):
        run("evaluate.py", tmp_path / name, f"run={trained[0]}", *mixing, *engine)
    ours, theirs = (samples(tmp_path / name, "eval/story_math-2.parquet") for name in ("ours", "reference"))
    assert ours["explored_steps"].sum() > 0
    assert sum(list(a) != list(b) for a, b in zip(ours["token_ids"], theirs["token_ids"], strict=True)) == 0
    text = run(
        "diagnose.py",
        tmp_path / "diagnosis",
        "strategies=[token_sampling,neighbor_mix]",
        *asked,
        *ENGINE,
        "group_size=2",
    )
    assert "neighbor_mix" in text
