"""What exploration adds to a decode step, and what evaluation adds to decoding.

Every call stands between two calls of its baseline and is compared with their mean, in time of the clock and of the
processor.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.arms import BASELINE, STRATEGIES, Bench, Workload, equal, natural
from benchmarks.measuring import Timing, between
from benchmarks.options import Options
from benchmarks.reporting import SPREAD, Table, figures
from ngrpo.evaluation.benchmarks import evaluate_benchmark
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.keys import row_keys
from ngrpo.rollout.sampling import Sampler

TITLE = "What exploration and evaluation cost"
TOKENS = 48  # of an answer: a call takes a second, so that its neighbors see the same machine
LARGE_TOKENS = 24  # the same with the larger model
ROUNDS = 2  # per repeat


def measure(options: Options) -> list[dict[str, Any]]:
    """One entry per model and strategy, then evaluation, each with its timings."""
    limit, repeats = min(TOKENS, options.limit), options.repeats if options.quick else ROUNDS * options.repeats
    bench = Bench.load(device=options.device, dtype=options.precision, peer=False)
    rows = _of("tiny", bench, equal(limit), repeats)
    name, limit = ("nano", 4) if options.quick else (options.model or "50m", LARGE_TOKENS)
    large = Bench.load(name, options.device, options.precision, peer=False)
    rows += _of(name, large, equal(limit, 8), max(2, repeats // 3))
    return [*rows, _evaluation(bench, options, repeats)]


def _of(model: str, bench: Bench, workload: Workload, repeats: int) -> list[dict[str, Any]]:
    calls = {name: bench.ours(name, workload) for name in STRATEGIES}
    timings = between(calls, bench.ours(BASELINE, workload), repeats)
    shape = {"model": model, "workload": workload.name, "tokens": workload.rows * workload.limit}
    return [{**shape, "what": name, **split(pairs)} for name, pairs in timings.items()]


def _evaluation(bench: Bench, options: Options, repeats: int) -> dict[str, Any]:
    """A batch of a benchmark, sampled, graded and written, beside its sampling alone; answers end by themselves."""
    workload = natural(options.limit)
    task, strategy = workload.task, bench.ready(TokenSampling(temperature=0.6, top_p=0.95), workload)
    sampler = Sampler(bench.engine, strategy, bench.read(workload), workload.limit)
    keys = row_keys(
        [(0, "benchmark", problem.id, i) for problem in task.problems for i in range(workload.group)], bench.device
    )
    prompts, mask = bench.prompts(workload)
    labels = {"run": "r", "exploration": "e", "algorithm": "a", "step": 0, "seed": 0, "benchmark": "benchmark"}

    def plain() -> int:
        return int(bench.engine.generate(strategy, prompts, mask, keys, workload.limit).lengths.sum())

    def evaluation() -> int:
        with TemporaryDirectory() as folder:
            target, plan = Path(folder) / "samples.parquet", [(0, len(task.problems))]
            return sum(evaluate_benchmark(sampler, task, plan, workload.group, target, labels))

    tokens = plain()
    assert tokens == evaluation(), "evaluation and plain generation made different answers"
    pairs = between({"evaluation": evaluation}, plain, repeats)["evaluation"]
    return {"model": "tiny", "workload": workload.name, "tokens": tokens, "what": "evaluation", **split(pairs)}


def split(pairs: list[tuple[Timing, Timing]]) -> dict[str, list[float]]:
    """Wall-clock and processor seconds of the calls and of the surrounding baseline calls."""
    names = ("seconds", "cpu_seconds")
    own = {name: [getattr(timing, name) for timing, _ in pairs] for name in names}
    return own | {f"baseline_{name}": [getattr(timing, name) for _, timing in pairs] for name in names}


def overheads(row: dict[str, Any], clock: str) -> list[float]:
    """Percent over the baseline, repeat by repeat."""
    return [100 * (own / base - 1) for own, base in zip(row[clock], row[f"baseline_{clock}"], strict=True)]


def overhead_rows(measured: list[dict[str, Any]], clock: str) -> list[list[str]]:
    """Cells of a table: what was measured, its tokens per second, and what it takes over its baseline."""
    return [
        [
            row["model"],
            row["workload"],
            row["what"],
            f"{row['tokens'] / sorted(row[clock])[len(row[clock]) // 2]:,.0f}",
            *figures(overheads(row, clock), "+.1f", " %"),
        ]
        for row in measured
    ]


def tables(measured: list[dict[str, Any]]) -> list[Table]:
    """By the clock, and by the processor time of all threads."""
    titles = {
        "seconds": "Extra time over token sampling, of evaluation over plain generation; token sampling's own row is noise",
        "cpu_seconds": "The same in processor time, which other people's work disturbs less",
    }
    columns = ("model", "workload", "what", "tokens/s", *SPREAD)
    return [Table(title, columns, overhead_rows(measured, clock)) for clock, title in titles.items()]
