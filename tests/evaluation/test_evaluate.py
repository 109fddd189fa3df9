"""Evaluation: estimates from the samples on disk, whatever the strategy of the run, interrupted or not."""

import json
import os
import signal
import time

import numpy as np
import pandas as pd
import pytest
import torch
import warm
from transformers import AutoModelForCausalLM, AutoTokenizer

from ngrpo.evaluation.benchmarks import batch_plan, merge, partial_file
from ngrpo.rundir import checkpoints, files
from ngrpo.rundir.schema import SAMPLE_TYPES, eval_samples, read_run

TINY = [
    "trainer.threads=1", "steps=1", "prompts_per_step=2", "group_size=2", "benchmark=[story_math,story_math_easy]",
    "n=4", "problems=5", "evaluation.rows_per_batch=8", "max_new_tokens=40",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One RL step under neighbor mixing at two settings and under token sampling, evaluated before and after."""
    folder, directories = tmp_path_factory.mktemp("runs"), {}
    arms = {
        "mix": ["exploration=neighbor_mix", "mix_rate=0.9", "k=3"],
        "other_mix": ["exploration=neighbor_mix", "mix_rate=0.1", "k=5"],
        "plain": ["exploration=token_sampling"],
    }
    for name, overrides in arms.items():
        directories[name] = folder / name
        warm.finish("train.py", folder / f"{name}.log", *TINY, *overrides, f"hydra.run.dir={folder / name}")
    return directories


def samples(directory, benchmark, step):
    return pd.read_parquet(eval_samples(directory, benchmark, step))


def test_the_base_is_evaluated_alike_whatever_the_strategy(runs):
    frames = [samples(directory, "story_math", 0) for directory in runs.values()]
    for frame in frames[1:]:
        assert frame["token_ids"].map(tuple).tolist() == frames[0]["token_ids"].map(tuple).tolist()
        assert frame["explored_steps"].sum() == 0


def test_results_are_those_of_the_samples(runs):
    results = json.loads((runs["mix"] / "results.json").read_text())
    assert set(results) == {"story_math", "story_math_easy"}
    for benchmark, steps in results.items():
        assert list(steps) == ["0", "1"]
        for step, entry in steps.items():
            frame = samples(runs["mix"], benchmark, int(step))
            assert tuple(frame.columns) == tuple(SAMPLE_TYPES) and len(frame) == 20
            assert not frame.duplicated(["problem_id", "sample_index"]).any()
            right = (frame["outcome"] == "correct").to_numpy().reshape(5, 4)
            assert entry["mean@n"]["value"] == pytest.approx(right.mean(), abs=1e-12)
            any_of_all = np.mean([row.any() for row in right])
            assert entry["pass@k"]["4"]["value"] == pytest.approx(any_of_all, abs=1e-12)
            pairs = np.mean([[row[i] or row[j] for i in range(4) for j in range(i)] for row in right])
            assert entry["pass@k"]["2"]["value"] == pytest.approx(pairs, abs=1e-12)


def test_the_hub_folder_loads_and_is_the_trained_model(runs):
    model = AutoModelForCausalLM.from_pretrained(runs["mix"] / "hf")
    tokenizer = AutoTokenizer.from_pretrained(runs["mix"] / "hf")
    assert tokenizer.decode(tokenizer.encode("seven </think>")) == "seven </think>"
    found = checkpoints.newest(runs["mix"] / "checkpoints")
    assert found is not None and found[0] == 1
    trained = found[1]["model"]
    assert trained and all(
        torch.equal(model.state_dict()[name.removeprefix("model.")], trained[name]) for name in trained
    )


def test_evaluating_a_run_again_gives_the_same_samples(runs, tmp_path):
    where = f"hydra.run.dir={tmp_path / 'again'}"
    same = ["n=4", "rows_per_batch=8", "max_new_tokens=40", "benchmark=story_math_easy"]
    text = warm.finish("evaluate.py", tmp_path / "log", f"run={runs['plain']}", *same, where)
    assert "mean@4" in text and str(tmp_path / "again") in text
    again, first = samples(tmp_path / "again", "story_math_easy", 1), samples(runs["plain"], "story_math_easy", 1)
    kept = again[again["problem_id"].isin(first["problem_id"])]
    assert kept["completion"].tolist() == first["completion"].tolist()
    kinds = {read_run(place).kind for place in runs.values()}
    assert kinds == {"run"} and read_run(tmp_path / "again").kind == "evaluation"
    assert "already evaluated" in warm.finish("evaluate.py", tmp_path / "log", f"run={runs['plain']}", *same, where)


def test_a_named_strategy_is_used_for_inference(runs, tmp_path):
    settings = ["n=2", "benchmark=story_math_easy", "exploration=neighbor_mix", "mix_rate=0.5"]
    warm.finish(
        "evaluate.py", tmp_path / "log", f"model={runs['mix'] / 'hf'}", *settings, f"hydra.run.dir={tmp_path / 'e'}"
    )
    frame = samples(tmp_path / "e", "story_math_easy", 0)
    assert frame["explored_steps"].sum() > 0 and set(frame["exploration"]) == {"neighbor_mix"}


def test_an_interrupted_evaluation_continues(tmp_path):
    settings = ["model=tiny", "n=4", "rows_per_batch=8", "benchmark=story_math_easy"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    warm.finish("evaluate.py", tmp_path / "log", *settings, f"hydra.run.dir={whole}")
    for number, status in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        process = warm.start("evaluate.py", tmp_path / "log", *settings, f"hydra.run.dir={cut}")
        before = len(list(cut.glob("samples/eval/partial/*.parquet")))
        while process.is_alive() and len(list(cut.glob("samples/eval/partial/*.parquet"))) <= before:
            time.sleep(0.002)
        assert process.pid is not None
        os.kill(process.pid, number)
        process.join(timeout=60)
        assert process.exitcode == status
    drawn = {path: path.stat().st_mtime_ns for path in cut.glob("samples/eval/partial/*.parquet")}
    assert 2 <= len(drawn) < 24
    warm.finish("evaluate.py", tmp_path / "log", *settings, f"hydra.run.dir={cut}")
    first, second = (samples(path, "story_math_easy", 0).drop(columns="run") for path in (whole, cut))
    pd.testing.assert_frame_equal(first, second)
    assert not (cut / "samples" / "eval" / "partial").exists()


def test_the_batch_plan_covers_every_problem_once():
    for problems, n, rows in ((48, 32, 512), (5, 4, 8), (3, 100, 8), (1, 1, 1)):
        covered = [i for start, end in batch_plan(problems, n, rows) for i in range(start, end)]
        assert covered == list(range(problems))
        assert all((end - start) * n <= max(rows, n) for start, end in batch_plan(problems, n, rows))


def test_merging_twice_is_harmless(tmp_path):
    target = eval_samples(tmp_path, "b", 0)
    for index in range(2):
        files.write_parquet([{"problem_id": str(index), "sample_index": 0}], partial_file(target, index))
    merge(target, [(0, 1), (1, 2)])
    merge(target, [(0, 1), (1, 2)])
    assert pd.read_parquet(target)["problem_id"].tolist() == ["0", "1"]
    assert not list(tmp_path.rglob("partial"))


def test_one_thought_for_all_samples_is_flagged(tmp_path):
    log = tmp_path / "log"
    small = [
        "n=2",
        "rows_per_batch=32",
        "benchmark=story_math_easy",
        "max_new_tokens=40",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    warm.finish("evaluate.py", log, "exploration=soft_thinking", *small)
    entry = json.loads((tmp_path / "run" / "results.json").read_text())["story_math_easy"]["0"]
    assert entry["same_thinking"] == 1.0 and "pass@k not meaningful for 100% of problems" in log.read_text()
    frame = samples(tmp_path / "run", "story_math_easy", 0)
    assert (frame.groupby("problem_id")["explored_steps"].nunique() == 1).all() and (frame["explored_steps"] > 0).all()


def test_what_a_strategy_learned_goes_with_the_model(tmp_path):
    from safetensors.torch import load_file

    run = tmp_path / "run"
    warm.finish("train.py", tmp_path / "log", *TINY, "exploration=hrpo", "learning_rate=1e-3", f"hydra.run.dir={run}")
    learned = load_file(run / "hf" / "exploration.safetensors")
    state = checkpoints.newest(run / "checkpoints")
    assert state is not None and {"Lambda", "reset.weight", "input.bias"} <= set(learned)
    assert all(torch.equal(value, state[1]["strategy"][name]) for name, value in learned.items())
    assert AutoModelForCausalLM.from_pretrained(run / "hf").num_parameters() > 0
    found = {}
    for name in ("learned", "forgotten"):
        if name == "forgotten":
            (run / "hf" / "exploration.safetensors").unlink()
        place = tmp_path / name
        warm.finish(
            "evaluate.py", tmp_path / f"{name}.log", f"run={run}", "exploration=hrpo", "n=2", "rows_per_batch=96",
            "benchmark=story_math_easy", "max_new_tokens=40", f"hydra.run.dir={place}",
            f"trust_changed={str(name == 'forgotten').lower()}",
        )  # fmt: skip
        found[name] = samples(place, "story_math_easy", 1)["logprob_sum"]
    assert not np.allclose(found["learned"], found["forgotten"], atol=1e-9)
