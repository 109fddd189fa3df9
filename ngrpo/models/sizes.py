"""The memory and disk that a run will need, from sizes alone: no weights are read and nothing is allocated.

A plan is for one process; under DDP each has a whole copy of everything, under FSDP a shard.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ngrpo.models import architectures, files
from ngrpo.models.adapters import Adapters
from ngrpo.models.causal import chunk_tokens, head_width
from ngrpo.models.loading import read_config

BYTES = {"float32": 4, "bfloat16": 2}
GIB = 2**30
SAVING = (
    "trainer=fsdp, trainer.micro_batch_rows, trainer.gradient_checkpointing=true, model.lora.r=16, "
    "trainer.precision=bfloat16"
)
LOGIT = 4  # bytes


class DoesNotFit(RuntimeError):
    """A device has less memory than the plan needs."""

    exit_code = 1


@dataclass(frozen=True)
class Sizes:
    """Sizes of one process, lengths in tokens.

    rows, prompts    answers that are drawn together, and their prompts
    micro_rows       answers in one forward and backward pass
    dtype            of the weights; precision: of the matmuls; lora: as model.lora
    copies, critics  frozen models and critics beside the policy
    recompute        gradient checkpointing
    k                candidates per anchor, 0 without a neighbor table
    kept             checkpoints on disk
    update_rows      answers of one optimizer step; None: all
    device           cpu or cuda
    engine_cache     bytes of the cache of an engine that has weights of its own, in engine_dtype; 0 without such an engine
    ranks            that each keep a shard; replicas: several processes keep whole copies
    records_vectors  the strategy records a fed vector for every token; acts_on: as Exploration.acts_on
    retry_prompts    prompts of up to retry_tokens that are retried at a time, 0 without retries
    """

    rows: int
    prompts: int
    prompt_tokens: int
    new_tokens: int
    micro_rows: int
    dtype: str = "float32"
    precision: str = "float32"
    lora: Mapping[str, Any] | None = None
    copies: int = 0
    critics: int = 0
    recompute: bool = False
    k: int = 0
    kept: int = 2
    update_rows: int | None = None
    device: str = "cpu"
    engine_cache: int = 0
    engine_dtype: str = "float32"
    ranks: int = 1
    replicas: bool = False
    records_vectors: bool = False
    acts_on: str = ""
    retry_prompts: int = 0
    retry_tokens: int = 0


@dataclass(frozen=True)
class Plan:
    """Bytes that are needed all the time, in each phase only, and on disk; `peak` is that of the largest phase."""

    parameters: int
    trained: int
    sizes: Sizes
    resident: Mapping[str, int]
    rollout: Mapping[str, int]
    update: Mapping[str, int]
    step: Mapping[str, int]
    disk: Mapping[str, int]

    @property
    def peak(self) -> int:
        """Bytes that the device must have free."""
        phases = (self.rollout, self.update, self.step)
        return sum(self.resident.values()) + max(sum(phase.values()) for phase in phases)


def skeleton(config: PreTrainedConfig, lora: Mapping[str, Any] | None) -> PreTrainedModel:
    """The model on the meta device, with adapters where `lora` has a rank: parameters are counted, not estimated."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    if lora and lora["r"]:
        Adapters(model, lora)
    return model


def architecture(path: str) -> PreTrainedConfig:
    """The config of a model, from its directory, for a known checkpoint, or from the hub.

    Raises ValueError where there is none, and for an architecture that is not supported.
    """
    known = architectures.known()
    if path in known and files.directory(path) is None:
        return AutoConfig.for_model(**known[path])
    return read_config(path)


def needs(config: PreTrainedConfig, sizes: Sizes, model: PreTrainedModel | None = None) -> Plan:
    """The plan, in bytes, for a model with P parameters of which p are trained, L layers and a (V, D) table. `model` is its
    skeleton, where the caller has one.

    weights      P of the policy, and P more for a reference and for a critic
    gradients    p, and those of a critic's backbone. They stay until the next update; in the backward pass of a single
                 micro-batch they grow while activations are freed, so only several micro-batches need memory for both
    optimizer    2 p: AdamW's two moments
    neighbors    V k ids of 8 bytes
    engine       P of its own and its cache, for an engine that has both; the rollout then needs no KV cache
    cache        (prompts x prompt, or those of retries, + rows x answer) x L x keys and values, in the dtype of the matmuls
    logits       rows x V: float32 logits and probabilities, float64 cumulative sums
    copies       P of bfloat16 weights, where matmuls are in bfloat16 and weights are not; of table and head only, where
                 layers are sharded
    activations  see `_activations`
    scaled table V D of fed vectors, and of their gradient, where the embedding has a scale
    head         logits of a chunk, whatever the length; see `_head`
    step         AdamW's temporaries: on a CPU two of the largest parameter, on GPUs one of every parameter
    kept weights P while a strategy perturbs the weights
    fed vectors  rows x answer x D in float32 where a strategy records them, twice while the record is assembled
    gathered     with several ranks, the weights, gradients and moments above are one rank's shard. In the rollout, policy
                 and critic are whole. In the update, table and head are whole, with gradients; of the layers, gathered in
                 the dtype of the matmuls, two are, with the gradient of one and its reduced sum
    buckets      p where replicas sum their gradients (DDP)
    disk         checkpoints hold trained weights and moments, hf/ the weights
    """
    model = skeleton(config, sizes.lora) if model is None else model
    counts = [p.numel() for name, p in model.named_parameters() if ".lora_" not in name]
    parameters, vocabulary, size = sum(counts), config.vocab_size, BYTES[sizes.dtype]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in model.parameters())
    learners = trained + sizes.critics * (parameters - _ends(model))
    compute = 2 if "bfloat16" in (sizes.precision, sizes.dtype) else 4
    prompt_tokens = max(sizes.prompts * sizes.prompt_tokens, sizes.retry_prompts * sizes.retry_tokens)
    cached = prompt_tokens + sizes.rows * sizes.new_tokens
    table = vocabulary * config.hidden_size * size * hasattr(model.get_input_embeddings(), "embed_scale")
    several = (sizes.update_rows or sizes.rows) > sizes.micro_rows
    fed, sharded = sizes.rows * sizes.new_tokens * config.hidden_size * 4 * sizes.records_vectors, sizes.ranks > 1
    models, ends = 1 + sizes.critics, _ends(model)
    layers = parameters - ends
    layer = layers // config.num_hidden_layers * (3 * compute + size)

    def shard(size: int) -> int:
        return -(-size // sizes.ranks)

    return Plan(
        parameters=parameters,
        trained=trained,
        sizes=sizes,
        resident={
            "weights": shard(whole * size),
            "reference": shard(sizes.copies * parameters * size),
            "critic": shard(sizes.critics * parameters * size),
            "optimizer": shard(2 * learners * size),
            "neighbors": vocabulary * sizes.k * 8,
            "buckets": learners * size * sizes.replicas,
            "engine": (parameters * BYTES[sizes.engine_dtype] + sizes.engine_cache) * bool(sizes.engine_cache),
        },
        rollout={
            "gathered": models * (layers * min(compute, size) + ends * size) * sharded,
            "gradients": shard(learners * size),
            "KV cache": cached * config.num_hidden_layers * 2 * key_width(config) * compute * (not sizes.engine_cache),
            "logits": sizes.rows * vocabulary * (4 + 4 + 8),
            "fed vectors": 2 * fed,
            "kept weights": whole * size * (sizes.acts_on == "weights"),
            "scaled table": table,
        },
        update={
            "gathered": (2 * models * ends * size + layer) * sharded,
            "gradients": shard(learners * size * several),
            "fed vectors": fed,
            "bfloat16 copies": (ends if sharded else parameters) * 2 * (compute < size),
            "activations": _activations(model, sizes, compute),
            "head": _head(vocabulary, sizes, compute),
            "scaled table": 2 * table,
        },
        step={
            "gradients": shard(learners * size),
            "temporaries": shard(_temporaries(counts, trained, sizes) * size),
        },
        disk={"checkpoints": sizes.kept * 3 * learners * size, "hf": parameters * size},
    )


def _head(vocabulary: int, sizes: Sizes, compute: int) -> int:
    """Bytes for a chunk of logits (causal.chunk_tokens): the log-softmax, its gradient and that of the logits; where there
    are several chunks, the products of the head too; and float32 copies of bfloat16 products."""
    tokens, chunk = sizes.micro_rows * sizes.new_tokens, chunk_tokens(vocabulary, sizes.device)
    copies = 3 + (tokens > chunk) + (compute < LOGIT)
    return copies * LOGIT * vocabulary * min(chunk, tokens)


def _temporaries(counts: Sequence[int], trained: int, sizes: Sizes) -> int:
    """Numbers that AdamW needs besides moments and gradients: parameter by parameter on a CPU, for all at once on a GPU."""
    if sizes.device == "cuda":
        return trained
    return 2 * max(counts) * (trained == sum(counts))


def _activations(model: PreTrainedModel, sizes: Sizes, compute: int) -> int:
    """Bytes that autograd keeps for a micro-batch: of every layer, or with gradient checkpointing of one layer and the inputs
    of all.

    A decoder layer has width D, heads of total width H, keys of width K and an MLP of width I. For every token that is read,
    a prompt's once for all of its rows, it keeps two residual streams and the inputs and outputs of its N norms (2 D + 2 N D,
    float32), attention output in the tokens' order (H), and gate, its activation, up and their product (4 I); norms of
    queries and keys keep H + K twice; a mask on attention keeps H. Attention sees whole rows and keeps queries and output
    (2 H), keys and values (2 K) for every token of each; soft-capped scores are kept before and after their softmax.
    """
    config = model.config
    width, inner, keys = config.hidden_size, config.intermediate_size, key_width(config)
    heads = config.num_attention_heads * head_width(config)
    names = [name for name, _ in model.named_parameters() if ".layers.0." in name and "norm" in name]
    own = 2 * (heads + keys) * any("q_norm" in name for name in names) + heads * (sizes.acts_on == "attention")
    norms = sum("q_norm" not in name and "k_norm" not in name for name in names)
    prompts = -(-sizes.micro_rows * sizes.prompts // sizes.rows)
    read = prompts * sizes.prompt_tokens + sizes.micro_rows * sizes.new_tokens
    places = sizes.micro_rows * (sizes.prompt_tokens + sizes.new_tokens)
    kept = read * width * BYTES[sizes.dtype]
    scores = 0
    if getattr(config, "attn_logit_softcapping", None) is not None:
        length = sizes.prompt_tokens + sizes.new_tokens
        scores = 2 * 4 * sizes.micro_rows * config.num_attention_heads * length**2
    layer = (2 + 2 * norms) * kept + scores + (read * (heads + own + 4 * inner) + places * 2 * (heads + keys)) * compute
    return config.num_hidden_layers * (kept if sizes.recompute else layer) + layer * sizes.recompute + 4 * kept


def key_width(config: PreTrainedConfig) -> int:
    """Width of a token's keys, or values, in a layer."""
    return config.num_key_value_heads * head_width(config)


def _ends(model: PreTrainedModel) -> int:
    """Parameters of the table and the head, which a critic does not train."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return sum(p.numel() for p in {p for end in ends if end is not None for p in end.parameters()})


def available() -> list[tuple[str, int]]:
    """(name, free bytes) of every device that a process could train on: the GPUs, or the machine's memory."""
    if torch.cuda.is_available():
        indices = range(torch.cuda.device_count())
        return [(f"cuda:{i} {torch.cuda.get_device_name(i)}", torch.cuda.mem_get_info(i)[0]) for i in indices]
    lines = Path("/proc/meminfo").read_text("utf-8").splitlines() if Path("/proc/meminfo").exists() else []
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    return [("memory of this machine", free[0])] if free else []


def describe(plan: Plan, devices: list[tuple[str, int]]) -> str:
    """The plan as lines of text, with a verdict for every device."""
    lines = [f"parameters        {plan.parameters:>18,}", f"  trained         {plan.trained:>18,}"]
    sizes = plan.sizes
    lines += [
        f"tokens per step   {sizes.rows * sizes.new_tokens:>18,}  at most",
        f"  {sizes.rows:,} answers of up to {sizes.new_tokens:,} tokens (max_new_tokens) after prompts of up to",
        f"  {sizes.prompt_tokens:,} (plan.prompt_tokens), {sizes.micro_rows:,} in one forward and backward pass",
    ]
    titles = ("all the time", "rollout", "update", "optimizer step", "on disk")
    groups = (plan.resident, plan.rollout, plan.update, plan.step, plan.disk)
    for title, group in zip(titles, groups, strict=True):
        lines.append(f"{title:<18}{sum(group.values()) / 2**30:>14.2f} GiB")
        lines += [f"  {name:<16}{value / 2**30:>14.2f} GiB" for name, value in group.items() if value]
    lines.append(f"{'peak per process':<18}{plan.peak / 2**30:>14.2f} GiB")
    for name, free in devices:
        verdict = "enough" if plan.peak <= free else "NOT enough"
        lines.append(f"{name}: {free / 2**30:.2f} GiB free, {verdict}")
    return "\n".join(lines if devices else [*lines, "no device whose memory is known"])


def check(plan: Plan, devices: list[tuple[str, int]]) -> None:
    """Raises DoesNotFit where the plan needs more than the smallest device has."""
    short = [f"{name} has {free / 2**30:.2f} GiB free" for name, free in devices if plan.peak > free]
    if short:
        needed = f"a process needs {plan.peak / 2**30:.2f} GiB"
        raise DoesNotFit(f"{needed}, {short[0]}: what makes it smaller: {SAVING}, or a smaller max_new_tokens")
