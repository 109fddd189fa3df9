"""GPUs that a plan may name, what of a run fits them, and how long it takes by a stated model; no device is asked.

The model of time. A decode step reads all weights and the keys and values of every row that still runs, and multiplies its
tokens with all weights: it takes as long as the slower of the two. An update multiplies every token with all weights,
forward and, twice that, backward. Devices reach the stated shares of their peaks, which are assumptions, not measurements.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from transformers import PreTrainedConfig

from ngrpo.models.sizes import BYTES, GIB, Plan, Sizes, head_width, key_width, needs

TERA = 10**12
USABLE = 0.94  # of the memory: the rest goes to the driver's context and to gaps between blocks
MATMUL, READING = 0.4, 0.6  # assumed shares of peak arithmetic and of peak bandwidth


@dataclass(frozen=True)
class Device:
    """Peaks of one GPU: memory in GiB, dense bfloat16 arithmetic in 10^12 operations/s, bandwidth in 10^12 bytes/s."""

    memory: float
    arithmetic: float
    bandwidth: float

    @property
    def free(self) -> int:
        """Bytes that a process can have."""
        return int(self.memory * GIB * USABLE)


# NVIDIA's data sheets: tensor cores without sparsity and with float32 sums, SXM variants where there are several. Memory is
# what the driver reports: error correction takes 3 of the L40S's 48, and a B200 has 180 of its 192 GB switched on.
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
    """What a run repeats: RL steps, the mean answer in tokens, rows that an engine decodes at a time (None: all), passes over
    the batch that learn, and that only score (log-probabilities before the update, a reference)."""

    steps: int
    answer_tokens: int
    slots: int | None
    learning_passes: int
    scoring_passes: int


@dataclass(frozen=True)
class Time:
    """Of one RL step on every device: operations, seconds by the model of this module."""

    rollout_operations: float
    update_operations: float
    rollout_seconds: float
    update_seconds: float

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.rollout_seconds + self.update_seconds


def time(config: PreTrainedConfig, plan: Plan, work: Work, device: Device) -> Time:
    """How long an RL step takes; `plan.sizes` is what one process of it has."""
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


def fitting(config: PreTrainedConfig, sizes: Sizes, device: Device) -> tuple[list[str], Plan]:
    """Overrides that make a run fit the device, each on top of those before it, and the plan with all of them.

    The list ends where it fits, or where nothing is left to try.
    """
    overrides: dict[str, str] = {}  # by what they set: of several numbers of rows only the last is needed
    plan = needs(config, sizes)
    for override, changed in _smaller(sizes):
        if plan.peak <= device.free:
            break
        smaller = needs(config, changed)
        if smaller.peak < plan.peak:
            overrides[override.partition("=")[0]], plan = override, smaller
    return list(overrides.values()), plan


def _smaller(sizes: Sizes) -> Iterator[tuple[str, Sizes]]:
    """What costs least first: time, then precision, then what is trained."""
    if not sizes.recompute:
        sizes = replace(sizes, recompute=True)
        yield "trainer.gradient_checkpointing=true", sizes
    if sizes.precision == "float32":
        sizes = replace(sizes, precision="bfloat16")
        yield "trainer.precision=bfloat16", sizes
    while sizes.micro_rows > 1:
        sizes = replace(sizes, micro_rows=sizes.micro_rows // 2)
        yield f"trainer.micro_batch_rows={sizes.micro_rows}", sizes
    if not sizes.engine_cache:
        sizes = replace(sizes, engine_cache=GIB, engine_dtype="bfloat16")
        yield "engine=vllm engine.dtype=bfloat16", sizes
    if not (sizes.lora and sizes.lora["r"]):
        lora = {"r": 16, "alpha": 32, "target_modules": "all-linear"}
        sizes = replace(sizes, lora=lora, copies=0)
        yield "model.lora.r=16", sizes
    if sizes.dtype == "float32":
        sizes = replace(sizes, dtype="bfloat16")
        yield "model.dtype=bfloat16", sizes


def describe(name: str, count: int, work: Work, time: Time, runs: int, tokens: int) -> str:
    """Operations, hours and GPU-hours as lines of text; tokens: of all answers of one RL step on all devices."""
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
