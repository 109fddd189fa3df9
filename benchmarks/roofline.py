"""How near decoding and training come to what the device can do: bytes of memory per second, and matmuls per second.

For a GPU: `--part roofline --device cuda --dtype bfloat16 --model 1.5b`. The device's own rates are measured in the same
run.
"""

import statistics
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.arms import BASELINE, Bench, Workload, equal
from benchmarks.measuring import MIB, resident, timed
from benchmarks.options import Options
from benchmarks.reporting import Table
from ngrpo.exploration.base import Exploration
from ngrpo.models.causal import CausalModel
from ngrpo.rollout.keys import row_keys
from ngrpo.rollout.records import TOKEN, DecodeStep, Rollouts
from ngrpo.training.replay import micro_batches, prompts_of, replay

TITLE = "Share of what the device can do"


@dataclass(frozen=True)
class Sizes:
    """rows decode new_tokens together; a step takes prompts x group answers of step_tokens, micro_rows per pass;
    micro_rows answers of long_tokens are the pass that needs most memory."""

    rows: int
    new_tokens: int
    prompts: int
    group: int
    step_tokens: int
    micro_rows: int
    long_tokens: int
    copy_mib: int
    side: int


LARGE = Sizes(64, 2048, prompts=16, group=8, step_tokens=1024, micro_rows=8, long_tokens=8192, copy_mib=2048, side=8192)
SMALL = Sizes(64, 64, prompts=4, group=8, step_tokens=64, micro_rows=8, long_tokens=128, copy_mib=256, side=2048)
QUICK = Sizes(4, 8, prompts=2, group=2, step_tokens=8, micro_rows=2, long_tokens=8, copy_mib=8, side=128)


def measure(options: Options) -> dict[str, Any]:
    """The device's rates, then decoding, generate beside it, and one step by phase."""
    name = "nano" if options.quick else options.model or ("1.5b" if options.device != "cpu" else "50m")
    sizes = QUICK if options.quick else LARGE if options.device != "cpu" else SMALL
    rates = {"bytes_per_second": copied(options, sizes), "flops_per_second": multiplied(options, sizes)}
    bench = Bench.load(name, options.device, options.precision)
    config = bench.model.model.config
    shape = {"model": name, "parameters": sum(p.numel() for p in bench.model.parameters()), **vars(sizes)}
    workload = equal(sizes.new_tokens, sizes.rows // min(8, sizes.rows), min(8, sizes.rows))
    decoded = _decoding(bench, workload, options)
    decoded["bytes"] = decode_bytes(config, shape["parameters"], workload, decoded["prompt_tokens"], options.precision)
    neighbors = timed(lambda: bench.strategy("neighbor_mix", workload)).seconds
    step = _step(bench, sizes, options)
    return {**shape, **rates, "decoding": decoded, "neighbors": neighbors, "step": step, "long": _long(bench, sizes)}


def copied(options: Options, sizes: Sizes) -> float:
    """Bytes read and written per second by the best of ten copies of a large tensor."""
    source = torch.ones(sizes.copy_mib * MIB // 4, device=options.device)
    target = torch.empty_like(source)
    best = min(timed(lambda: target.copy_(source)).seconds for _ in range(10))
    return 2 * source.numel() * 4 / best


def multiplied(options: Options, sizes: Sizes) -> float:
    """Floating-point operations per second of the best of ten square matmuls in the weights' dtype."""
    left, right = (torch.randn(sizes.side, sizes.side, device=options.device, dtype=options.precision) for _ in "ab")
    out = torch.empty_like(left)
    best = min(timed(lambda: torch.mm(left, right, out=out)).seconds for _ in range(10))
    return 2 * sizes.side**3 / best


def decode_bytes(config: Any, parameters: int, workload: Workload, prompt_tokens: float, dtype: torch.dtype) -> float:
    """The least that all decode steps must read: the weights once per step, and each row's keys and values so far.

    The tied table counts once, as the head; the one row of it that is looked up per token does not count.
    """
    size, steps = torch.finfo(dtype).bits // 8, workload.limit - 1
    width = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
    cached = sum(prompt_tokens + step + 1 for step in range(steps))
    return size * (parameters * steps + 2 * config.num_hidden_layers * width * workload.rows * cached)


def _decoding(bench: Bench, workload: Workload, options: Options) -> dict[str, Any]:
    """Seconds of decoding without the prefill (a call with one new token), and of generate likewise."""
    first = replace(workload, limit=1)
    seconds: dict[str, list[float]] = {}
    for name in ("engine", "generate"):
        for part, piece in (("prefill", first), ("whole", workload)):
            lengths = torch.full((piece.rows,), piece.limit, device=bench.device)
            call = bench.ours(BASELINE, piece) if name == "engine" else bench.theirs(piece, lengths)
            call()
            seconds[f"{name} {part}"] = [timed(call).seconds for _ in range(max(2, options.repeats // 3))]
    _, mask = bench.prompts(workload)
    return {"seconds": seconds, "prompt_tokens": mask.sum(dim=1).double().mean().item()}


def _step(bench: Bench, sizes: Sizes, options: Options) -> dict[str, Any]:
    """One rollout and one update (forward, backward, AdamW) by phase, after a small one that warms up."""
    optimizer = torch.optim.AdamW(bench.model.parameters(), lr=0.0)
    bench.peer.to("cpu")
    phases: dict[str, float] = {}
    for prompts, tokens in ((1, 2), (sizes.prompts, sizes.step_tokens)):
        workload = equal(tokens, prompts, sizes.group)
        _forget_peak(bench.device)
        phases = _phases(bench, workload, sizes.micro_rows, optimizer)
    flops = phases.pop("flops")
    tokens = workload.rows * workload.limit
    return {"seconds": phases, "update_flops": flops, "peak_mib": _peak(bench.device), "tokens": tokens}


def _phases(bench: Bench, workload: Workload, micro_rows: int, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    strategy, drawn = bench.strategy(BASELINE, workload), []
    draw = bench.rollouts(strategy, workload)
    rollout = timed(lambda: drawn.append(draw())).seconds
    flops = training_flops(bench, drawn[0])
    update = timed(lambda: _passes(bench, strategy, drawn[0], micro_rows)).seconds
    step = timed(optimizer.step).seconds
    optimizer.zero_grad()
    return {"rollout": rollout, "passes": update, "optimizer": step, "flops": flops}


def _passes(bench: Bench, strategy: Exploration, rollouts: Rollouts, micro_rows: int) -> None:
    """Forward and backward passes over every row, `micro_rows` at a time."""
    for index in micro_batches(rollouts, micro_rows):
        part = rollouts.rows(index)
        loss: Tensor = -replay(bench.model, strategy, part).log_probs.sum() / len(rollouts.keys)
        loss.backward()


def _long(bench: Bench, sizes: Sizes) -> dict[str, float]:
    """One pass over answers as long as papers allow, each layer computed again in the backward pass."""
    strategy = bench.strategy(BASELINE, equal(1))
    bench.model.zero_grad()
    recomputing = CausalModel(bench.model.model, recompute=True)
    long = Bench(recomputing, None, bench.tokenizer)
    rollouts = _written(bench, sizes.micro_rows, sizes.long_tokens)
    _forget_peak(bench.device)
    seconds = timed(lambda: _passes(long, strategy, rollouts, sizes.micro_rows)).seconds
    return {"seconds": seconds, "flops": training_flops(bench, rollouts, passes=4), "peak_mib": _peak(bench.device)}


def _written(bench: Bench, rows: int, tokens: int) -> Rollouts:
    """Answers of random tokens that nobody has sampled, to one prompt of one token each."""
    drawn = torch.randint(2, len(bench.model.table), (rows, tokens), device=bench.device)
    prompts = torch.full((rows, 1), 2, device=bench.device)
    steps = DecodeStep(drawn, torch.full_like(drawn, TOKEN), torch.zeros_like(drawn, dtype=torch.bool))
    zeros, mask = torch.zeros(rows, tokens, device=bench.device), torch.ones_like(steps.explored)
    keys = row_keys([("long", row) for row in range(rows)], bench.device)
    return Rollouts(prompts, torch.ones_like(prompts, dtype=torch.bool), steps, mask, zeros, zeros, keys, 1)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak(device: torch.device) -> float:
    """MiB allocated at most: on a GPU since `_forget_peak`, of the whole process on a CPU."""
    return torch.cuda.max_memory_allocated() / MIB if device.type == "cuda" else resident()[1]


def training_flops(bench: Bench, rollouts: Rollouts, passes: int = 3) -> float:
    """Of forward and backward: 2 per pass, weight of the layers and token, 6 per weight of the head and answer token, and
    4 * width per pass, layer and pair of tokens that attend, half of them since attention is causal.

    passes: forward 1, backward 2, and 1 where layers are computed again. Tokens are those that are read: a prompt once for
    neighboring rows that share it, and no row's last token.
    """
    config = bench.model.model.config
    head = config.vocab_size * config.hidden_size
    layers = sum(p.numel() for p in bench.model.parameters()) - head
    prompt = prompts_of(rollouts)
    first = torch.cat((prompt.new_ones(1), prompt.diff())).bool()
    fed = rollouts.lengths - 1
    read = (rollouts.prompt_mask[first].sum() + fed.sum()).item()
    rows = (fed + rollouts.prompt_mask.sum(dim=1)).double()
    attention = 4 * passes * config.num_hidden_layers * config.hidden_size * rows.square().sum().item() / 2
    return 2 * passes * layers * read + 6 * head * rollouts.lengths.sum().item() + attention


def tables(measured: dict[str, Any]) -> list[Table]:
    """Rates and shares, then the step."""
    decoded, step = measured["decoding"], measured["step"]
    middle = {name: statistics.median(values) for name, values in decoded["seconds"].items()}
    decoding = {name: middle[f"{name} whole"] - middle[f"{name} prefill"] for name in ("engine", "generate")}
    tokens = measured["rows"] * (measured["new_tokens"] - 1)
    passes = step["update_flops"] / step["seconds"]["passes"]
    rows = [
        ["copy bandwidth (read and write)", f"{measured['bytes_per_second'] / 1e9:,.1f} GB/s"],
        ["matmul rate", f"{measured['flops_per_second'] / 1e12:,.3f} TFLOP/s"],
        *([f"{name}: decoding", f"{tokens / seconds:,.0f} tokens/s"] for name, seconds in decoding.items()),
        *(
            [f"{name}: share of the copy bandwidth", f"{decoded['bytes'] / seconds / measured['bytes_per_second']:.1%}"]
            for name, seconds in decoding.items()
        ),
        ["engine over generate", f"{decoding['generate'] / decoding['engine']:.2f}x"],
        ["training passes: share of the matmul rate", f"{passes / measured['flops_per_second']:.1%}"],
        ["neighbor table", f"{measured['neighbors']:.2f} s"],
        ["peak memory of the step", f"{step['peak_mib']:,.0f} MiB"],
    ]
    long = measured["long"]
    share, rate = long["flops"] / long["seconds"] / measured["flops_per_second"], f"{long['peak_mib']:,.0f} MiB"
    title = f"{measured['micro_rows']} rows of {measured['long_tokens']} tokens in one pass, layers computed again"
    rows += [[f"{title}: share of the matmul rate", f"{share:.1%}"], [f"{title}: peak memory", rate]]
    what = f"{measured['model']}, {measured['rows']} rows, {measured['new_tokens']} new tokens"
    shape = f"{measured['prompts']} prompts x {measured['group']} answers of {measured['step_tokens']} tokens"
    phases = [[name, f"{seconds:.3f}"] for name, seconds in step["seconds"].items()]
    return [Table(what, ("what", "measured"), rows), Table(f"Seconds of a step, {shape}", ("phase", "seconds"), phases)]
