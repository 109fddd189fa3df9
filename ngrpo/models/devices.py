"""GPUs that a plan may name, which overrides make a run fit on them, and how long it takes; no device is queried.

Time is that of a roofline. A decode step reads all weights and the keys and values of every unfinished row, and multiplies
its tokens with all weights: it takes as long as the slower of the two. An update multiplies every token with all weights
once in the forward pass and twice in the backward pass. Devices reach fixed shares of their peaks, which are assumptions
and not measurements.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from ngrpo.models.causal import head_width
from ngrpo.models.sizes import BYTES, GIB, Plan, Sizes, key_width, needs, skeleton

TERA = 10**12
USABLE = 0.94  # of the memory: the rest goes to the driver's context and to fragmentation
NODES = (2, 4, 8, 16, 32, 64)  # numbers of devices that a run may be sharded over
MATMUL, READING = 0.4, 0.6  # assumed shares of peak arithmetic and of peak bandwidth

Change = tuple[str, dict[str, Any]]  # an override, and the fields of Sizes that it sets
MILD, STRONG = ("recompute", "rows", "precision"), ("lora", "parts", "engine")  # kinds of changes


@dataclass(frozen=True)
class Device:
    """Peaks of a GPU: memory in GiB, dense bfloat16 arithmetic in 10^12 operations/s, bandwidth in 10^12 bytes/s."""

    memory: float
    arithmetic: float
    bandwidth: float

    @property
    def free(self) -> int:
        """Bytes that a process can use."""
        return int(self.memory * GIB * USABLE)


# From NVIDIA's data sheets: tensor cores without sparsity and with float32 accumulation, SXM variants where there are several.
# Memory is what the driver reports: error correction takes 3 of the L40S's 48, and of a B200's 192 GB 180 are enabled.
DEVICES = {
    "rtx4090": Device(24, 165, 1.008),
    "l40s": Device(45, 362, 0.864),
    "a100-40gb": Device(40, 312, 1.555),
    "a100-80gb": Device(80, 312, 2.039),
    "h20": Device(95.5, 148, 4.0),
    "h20-3e": Device(140.4, 148, 4.8),
    "h100": Device(79.6, 989, 3.35),
    "h200": Device(140.4, 989, 4.8),
    "b200": Device(178.3, 2250, 7.7),
}


@dataclass(frozen=True)
class Work:
    """The work of a run: RL steps, the mean answer in tokens, rows that the engine decodes at a time (None: all), and passes
    over the batch with a gradient and without (old log-probabilities, a reference)."""

    steps: int
    answer_tokens: int
    slots: int | None
    learning_passes: int
    scoring_passes: int


@dataclass(frozen=True)
class Time:
    """Operations and seconds of an RL step, on each device."""

    rollout_operations: float
    update_operations: float
    rollout_seconds: float
    update_seconds: float

    @property
    def seconds(self) -> float:
        """Of the whole RL step."""
        return self.rollout_seconds + self.update_seconds


def time(config: PreTrainedConfig, plan: Plan, work: Work, device: Device) -> Time:
    """How long an RL step takes; `plan` is for one of its processes."""
    sizes, tied = plan.sizes, bool(getattr(config, "tie_word_embeddings", False))
    weights = plan.parameters - (0 if tied else config.vocab_size * config.hidden_size)  # the table is looked up only
    per_pair = 4 * config.num_hidden_layers * config.num_attention_heads * head_width(config)  # of query and key
    answers, prompts = sizes.rows * work.answer_tokens, sizes.prompts * sizes.prompt_tokens
    context = sizes.prompt_tokens + work.answer_tokens / 2
    forward = 2 * weights * (answers + prompts) + per_pair * (answers * context + prompts * sizes.prompt_tokens / 2)
    passes = 3 * work.learning_passes + work.learning_passes * sizes.recompute + work.scoring_passes
    waves = -(-sizes.rows // (work.slots or sizes.rows))
    decode_steps = waves * sizes.new_tokens  # the longest answer of a wave decides
    running = answers / decode_steps
    compute = BYTES["bfloat16"] if "bfloat16" in (sizes.precision, sizes.dtype, sizes.engine_dtype) else 4
    read = plan.parameters * compute + running * context * 2 * config.num_hidden_layers * key_width(config) * compute
    operations = 2 * weights * running + per_pair * running * context
    decoding = decode_steps * max(
        read / (READING * device.bandwidth * TERA), operations / (MATMUL * device.arithmetic * TERA)
    )
    prefill = 2 * weights * prompts / (MATMUL * device.arithmetic * TERA)
    return Time(forward, passes * forward, decoding + prefill, passes * forward / (MATMUL * device.arithmetic * TERA))


def fitting(config: PreTrainedConfig, sizes: Sizes, device: Device, devices: int = 1) -> tuple[list[str], Plan]:
    """The mildest overrides that make a run on `devices` devices fit, and the plan with all of them; the strongest where
    none do.

    Another engine is milder than more devices, and both are milder than training adapters only.
    """
    changes = _changes(sizes, devices)
    models: dict[bool, PreTrainedModel] = {}  # skeletons without and with adapters, which take a moment to build

    def plan(chosen: Mapping[str, Change]) -> Plan:
        changed = replace(sizes, **{name: value for _, values in chosen.values() for name, value in values.items()})
        adapted = bool(changed.lora and changed.lora["r"])
        if adapted not in models:
            models[adapted] = skeleton(config, changed.lora)
        return needs(config, changed, models[adapted])

    if (least := plan({})).peak <= device.free:
        return [], least
    chosen: dict[str, Change] = {}
    mild = {kind: changes[kind][-1] for kind in MILD if changes[kind]}
    for strong in product(*([None, *changes[kind]] for kind in STRONG)):
        chosen = mild | {kind: change for kind, change in zip(STRONG, strong, strict=True) if change}
        if plan(chosen).peak <= device.free:
            break
    else:
        return [override for override, _ in chosen.values()], plan(chosen)
    for kind in reversed(mild):
        others = {key: change for key, change in chosen.items() if key != kind}
        milder = [others, *({**others, kind: change} for change in changes[kind])]
        chosen = next(some for some in milder if plan(some).peak <= device.free)
    return [chosen[kind][0] for kind in changes if kind in chosen], plan(chosen)


def _changes(sizes: Sizes, devices: int) -> dict[str, list[Change]]:
    """Kind of change -> its overrides, mildest first; none where the run has it already."""
    rows, prompts = sizes.micro_rows, sizes.prompts * devices
    lora = {"lora": {"r": 16, "alpha": 32, "target_modules": "all-linear"}, "copies": 0}
    halves = [rows >> shift for shift in range(1, rows.bit_length())]
    parts = [n for n in NODES if n >= devices and prompts % n == 0 and (n, sizes.ranks) != (devices, devices)]
    found: dict[str, list[Change]] = {
        "recompute": [("trainer.gradient_checkpointing=true", {"recompute": True})] * (not sizes.recompute),
        "rows": [(f"trainer.micro_batch_rows={half}", {"micro_rows": half}) for half in halves],
        "precision": [("trainer.precision=bfloat16", {"precision": "bfloat16"})] * (sizes.precision == "float32"),
        "parts": [(f"trainer=fsdp trainer.devices={n}", _sharded(sizes, n, prompts // n)) for n in parts],
        "engine": [("engine=vllm engine.dtype=bfloat16", {"engine_cache": GIB, "engine_dtype": "bfloat16"})],
        "lora": [("model.lora.r=16", lora), ("model.lora.r=16 model.dtype=bfloat16", {**lora, "dtype": "bfloat16"})],
    }
    found["engine"] *= not sizes.engine_cache
    found["lora"] *= not (sizes.lora and sizes.lora["r"])
    return found


def _sharded(sizes: Sizes, ranks: int, prompts: int) -> dict[str, Any]:
    """The sizes of each of `ranks` processes that have `prompts` prompts and a shard of the weights."""
    updated = sizes.update_rows and sizes.update_rows * prompts // sizes.prompts
    rows = sizes.rows * prompts // sizes.prompts
    return {"ranks": ranks, "replicas": False, "prompts": prompts, "rows": rows, "update_rows": updated}


def describe(name: str, count: int, work: Work, time: Time, runs: int, tokens: int) -> str:
    """Operations, hours and GPU-hours as lines of text; tokens: of all answers of an RL step on all devices."""
    hours = work.steps * time.seconds / 3600
    share = f"{MATMUL:.0%} of the peak in arithmetic and {READING:.0%} in reading are assumed, not measured"
    lines = [
        f"answers           {work.answer_tokens:>18,}  tokens on average (plan.answer_tokens), {work.steps:,} RL steps",
        f"rollout           {time.rollout_operations * count / TERA:>14,.0f} x 10^12 operations, {time.rollout_seconds:,.0f} s",
        f"update            {time.update_operations * count / TERA:>14,.0f} x 10^12 operations, {time.update_seconds:,.0f} s",
        f"a run             {hours:>14,.1f} h    on {count} x {name}, {hours * count:,.1f} GPU-hours, evaluations not counted",
    ]
    if runs > 1:
        every = work.steps * tokens * runs
        lines.append(f"{runs} runs{'':<{max(1, 12 - len(str(runs)))}}{hours * runs:>15,.1f} h    one after another, "
                     f"{hours * count * runs:,.1f} GPU-hours, {every:,} tokens of answers")  # fmt: skip
    return "\n".join([*lines, f"  {share}"])
