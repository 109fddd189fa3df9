"""Run directories with known numbers, made without a model."""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ngrpo.rundir import files
from ngrpo.rundir.recorder import write_samples
from ngrpo.rundir.schema import eval_samples

BASE = {
    "steps": 4,
    "prompts_per_step": 2,
    "group_size": 4,
    "temperature": 1,
    "learning_rate": 1e-5,
    "max_new_tokens": 16,
}
TOKEN = {"_target_": "ngrpo.exploration.token_sampling.TokenSampling", "temperature": 1}
MIX = {"_target_": "ngrpo.exploration.neighbor_mix.NeighborMix", "temperature": 1}


def sample_row(problem: str, index: int, outcome: str, **changes) -> dict:
    """One row of a sample file; `changes` replace its cells."""
    row = {
        "run": "made", "benchmark": "bench", "problem_id": problem, "sample_index": index, "prompt": f"What is {problem}?",
        "completion": f"so {index} </think> \\boxed{{{index}}}", "token_ids": [index, 1, 2], "n_tokens": 3,
        "finish_reason": "stop", "gold": "0", "extracted": str(index), "solution_path": "", "outcome": outcome,
        "reward": float(outcome == "correct"), "exploration": "token_sampling", "algorithm": "grpo", "step": 4, "seed": 0,
        "logprob_sum": -1.0, "entropy_mean": 0.5, "explored_steps": 0,
    }  # fmt: skip
    return row | changes


def make_run(
    root: Path,
    exploration: str,
    seed: int,
    solved: Sequence[int] | np.ndarray,
    before: Sequence[int] | np.ndarray | None = None,
    /,
    n: int = 8,
    **config,
) -> Path:
    """A finished run in which problem i has solved[i] correct samples of n, and before[i] at RL step 0.

    `config` is laid over a composed configuration; `benchmark`, `samples` (extra cells of a row), `status` and `kind` are
    special.
    """
    special = {
        key: config.pop(key, default)
        for key, default in (("benchmark", "bench"), ("samples", {}), ("status", "finished"), ("kind", "run"))
    }
    place = root / f"{exploration}-grpo-s{seed}-{zlib.crc32(str(config).encode()):08x}"
    strategy = {"exploration": MIX | {"rate": 0.1, "k": 3} if "mix" in exploration else TOKEN}
    whole = {**BASE, "seed": seed, **strategy, "benchmark": {special["benchmark"]: {"size": len(solved)}}, **config}
    record = {"status": special["status"], "kind": special["kind"], "config": whole, "data": {"bench": "v1"}}
    record |= {"seed": seed, "wall_seconds": 10.0}
    place.mkdir(parents=True)
    (place / "run.json").write_text(json.dumps(record))
    text = special["samples"].get("prompt")  # of every problem, with its name in front: problems of one text are one
    labels = {
        "exploration": exploration,
        "seed": seed,
        "benchmark": special["benchmark"],
        **{key: value for key, value in special["samples"].items() if key != "prompt"},
    }

    def prompt_of(problem: int) -> dict[str, str]:
        return {"prompt": f"p{problem:02d} {text}"} if text is not None else {}

    for step, counts in ((0, before), (4, solved)):
        if counts is not None:
            rows = [
                sample_row(f"p{i:02d}", j, "correct" if j < c else "wrong", step=step, **labels, **prompt_of(i))
                for i, c in enumerate(counts)
                for j in range(n)
            ]
            write_samples(rows, eval_samples(place, special["benchmark"], step))
    files.write_csv(
        [{"step": t, "reward": 0.1 * t, "entropy": 1.0, "informative": 0.5} for t in range(1, 5)], place / "metrics.csv"
    )
    files.write_csv([{"step": t, "tokens": 100, "seconds": 2.0} for t in range(1, 5)], place / "timings.csv")
    return place
