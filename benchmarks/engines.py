"""vLLM with and without strategies in it, the engine of transformers and `generate`, on one workload, in turns.

Every call stands between two calls of plain vLLM, which samples by itself, and is compared with their mean.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from itertools import count
from typing import Any

from torch import Tensor

from benchmarks.arms import BASELINE, STRATEGIES, Bench, Workload, equal, imposed, natural
from benchmarks.measuring import between, timed
from benchmarks.options import Options
from benchmarks.reporting import SPREAD, Table
from benchmarks.strategies import overhead_rows, split
from ngrpo.rollout.engines.vllm.engine import VllmEngine

TITLE = "Engines"
TOKENS, LARGE_TOKENS = 48, 24  # of an answer of the two models
SLOTS = 256  # rows decoded at a time
CACHE = 0.5  # GiB: no row of any workload is preempted
HAND_OVERS = 5


def measure(options: Options) -> list[dict[str, Any]]:
    """One entry per model, workload and arm, then one per model for the transfer of its weights."""
    repeats = options.repeats
    small = Bench.load(dtype=options.precision)
    limit = min(TOKENS, options.limit)
    workloads = [equal(limit, 8), equal(limit), imposed(natural(options.limit))]
    rows = _of("tiny", small, workloads, repeats)
    name, limit = ("5m", 4) if options.quick else (options.model or "50m", LARGE_TOKENS)
    workloads = [equal(limit, 8), imposed(natural(limit, 8))]
    return rows + _of(name, Bench.load(name, dtype=options.precision), workloads, max(2, repeats // 3))


def _of(model: str, bench: Bench, workloads: list[Workload], repeats: int) -> list[dict[str, Any]]:
    engine, rows = VllmEngine(rows=SLOTS, kv_cache_gib=CACHE, options={"max_model_len": 512}), []
    hosted = replace(bench, engine=engine)
    for workload in workloads:
        ours = bench.ours(BASELINE, workload)
        lengths = ours()
        names = [BASELINE] if workload.lengths is not None else list(STRATEGIES)
        calls = {f"vLLM, {name}": hosted.ours(name, workload) for name in names}
        calls |= {"transformers engine": ours, "generate": bench.theirs(workload, lengths)}
        timings = between(calls, _plain(hosted, engine, workload, lengths), repeats)
        shape = {"model": model, "workload": workload.name, "tokens": int(lengths.sum())}
        rows += [{**shape, "what": name, **split(pairs)} for name, pairs in timings.items()]
    seconds = [timed(lambda: engine.sync(bench.model, 0)).seconds for _ in range(HAND_OVERS)]
    engine.close()
    return [*rows, {"model": model, "what": "weights handed over", "seconds": seconds}]


def _plain(bench: Bench, engine: VllmEngine, workload: Workload, lengths: Tensor) -> Callable[[], Tensor]:
    """vLLM sampling by itself, in the same engine, with the log-probability of every token."""
    vllm, salts = import_module("vllm"), count()
    ids, mask = bench.prompts(workload)
    texts = [row[there].tolist() for row, there in zip(ids, mask, strict=True)]
    settings = [
        vllm.SamplingParams(temperature=1.0, max_tokens=int(length), ignore_eos=True, logprobs=0, detokenize=False)
        for length in lengths
    ]

    def run() -> Tensor:
        salt = f"plain {next(salts)}"  # as little is shared between calls as there
        prompts = [
            {"prompt_token_ids": texts[row // workload.group], "cache_salt": salt} for row in range(len(lengths))
        ]
        engine.llm.generate(prompts, settings, use_tqdm=False)
        return lengths

    return run


def tables(measured: list[dict[str, Any]]) -> list[Table]:
    """By the clock, by the processor time of all threads, and what a hand-over takes."""
    timed = [row for row in measured if "baseline_seconds" in row]
    titles = {
        "seconds": "Extra time over plain vLLM",
        "cpu_seconds": "The same in processor time, which other people's work disturbs less",
    }
    columns = ("model", "workload", "what", "tokens/s", *SPREAD)
    found = [Table(title, columns, overhead_rows(timed, clock)) for clock, title in titles.items()]
    handed = [
        [row["model"], *(f"{second:.3f}" for second in sorted(row["seconds"]))] for row in measured if row not in timed
    ]
    places = tuple(f"{place}." for place in range(1, HAND_OVERS + 1))
    return [*found, Table("Seconds until vLLM has the policy's weights, fastest first", ("model", *places), handed)]
