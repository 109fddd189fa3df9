"""Decoding with fed vectors over an unmodified transformers model: prefill once per prompt, fan out, decode, compact.

In reading order: `generate`, `prefill`, `decode`, `decode_step`, and `assemble`, which turns the recorded steps into
Rollouts. On an accelerator nothing is read back within a decode step.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ngrpo.exploration.base import Exploration
from ngrpo.exploration.scores import entropy
from ngrpo.models.attention import KeyValueCache, Masks, PackedRows, common_prefix
from ngrpo.models.causal import CausalModel
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import FORCED, DecodeStep, Rollouts, combine

COMPACT_BELOW = 0.95  # finished rows leave once fewer than this share of the batch is unfinished
DRAW_BLOCK = 64  # decode steps whose uniforms are computed at once
SYNC_EVERY = 16  # decode steps after which an accelerator counts unfinished rows; a CPU does after every one


class TransformersEngine:
    """The reference engine: decodes with the model that is trained, in this process; see engines.base.Engine."""

    model: CausalModel | None = None

    def refuses(self, strategy: Exploration, model: str) -> str | None:
        return None  # it runs every model that can be loaded

    def sync(self, model: CausalModel, step: int, *strategies: Exploration) -> Mapping[str, float]:
        self.model = model
        with model.gathered():
            prepared = [s.prepare(model.table.detach(), step, model.head.detach()) for s in strategies]
        return {name: value for figures in prepared for name, value in figures.items()}

    def generate(self, strategy: Exploration, prompts: Tensor, mask: Tensor, keys: Tensor, limit: int) -> Rollouts:
        if self.model is None:
            raise RuntimeError("the engine has no weights yet: sync comes before generate")
        device = self.model.head.device
        with self.model.gathered():
            return generate(self.model, strategy, prompts.to(device), mask.to(device), keys.to(device), limit)

    def sleep(self) -> None:
        """There is nothing to free: a cache lives as long as the call that fills it."""

    def close(self) -> None:
        self.model = None


@torch.no_grad()
def generate(
    model: CausalModel, strategy: Exploration, prompts: Tensor, prompt_mask: Tensor, keys: Tensor, limit: int
) -> Rollouts:
    """Engine.generate, for a model in eval mode and tensors on its device."""
    with strategy.perturbed(model), model.autocast():
        logits, cache = prefill(model, prompts, prompt_mask, limit)
        cache.fan_out(len(keys) // len(prompts))
        masks = strategy.masks(keys, *model.attended)
        cache.masks = None if masks is None else Masks(masks)
        fan = torch.arange(len(prompts), device=prompts.device).repeat_interleave(cache.group)
        rows = decode(model, strategy, logits[fan], cache, keys, limit)
    return assemble(rows, prompts[fan], prompt_mask[fan], keys, cache.group)


def prefill(model: CausalModel, prompts: Tensor, prompt_mask: Tensor, new_tokens: int) -> tuple[Tensor, KeyValueCache]:
    """Logits (P, V) after the left-padded prompts (P, S) and the cache that holds them, with room for `new_tokens`."""
    cache = KeyValueCache(prompt_mask, new_tokens, common_prefix(prompts, prompt_mask))
    columns = torch.arange(int(cache.lengths.max()), device=prompts.device)
    source = columns + (prompts.shape[1] - cache.lengths)[:, None]  # padded on the right, which no query sees
    ids = prompts.gather(1, source.clamp(max=prompts.shape[1] - 1))
    layout = PackedRows.of_prompts(len(prompts), len(columns), cache.shared, ids.device)
    line, positions = ids.flatten()[layout.places], layout.places % len(columns)
    hidden = model.hidden(F.embedding(line[None], model.table), positions[None], layout, cache)[0]
    return model.logits(hidden[layout.tokens.gather(1, cache.lengths[:, None] - 1)[:, 0]]), cache


def decode(
    model: CausalModel, strategy: Exploration, logits: Tensor, cache: KeyValueCache, keys: Tensor, limit: int
) -> "Decoding":
    """Decode steps, from the first logits (B, V) until all rows have ended or have `limit` tokens."""
    device = logits.device
    rows = Decoding(len(keys), strategy, device)
    sync_every = 1 if device.type == "cpu" else SYNC_EVERY
    block, table = draws_from(keys, 0), model.table
    for position in range(limit):
        if position and position % DRAW_BLOCK == 0:
            block = draws_from(keys, position)
        draws = block[rows.alive, position % DRAW_BLOCK]
        step, log_prob, rows.state = strategy.sample_and_log_prob(logits, rows.state, draws, table)
        rows.record(step, log_prob, entropy(logits))
        if position + 1 == limit:
            break
        fed = strategy.embed(step, table, draws)
        keep = rows.shrink() if (position + 1) % sync_every == 0 else None
        if keep is not None:
            if not len(keep):
                break
            fed = fed[keep]
            cache.select(keep)
        logits = decode_step(model, fed, cache)
    return rows


def decode_step(model: CausalModel, fed: Tensor, cache: KeyValueCache) -> Tensor:
    """Logits (B, V) after feeding one vector (B, D) per row."""
    hidden = model.hidden(fed[:, None], cache.positions[:, None], cache, cache)
    cache.positions = cache.positions + 1
    return model.logits(hidden[:, -1])


def draws_from(keys: Tensor, position: int) -> Draws:
    """The random numbers (B, DRAW_BLOCK) of every row from a decode position on, with uniforms precomputed."""
    steps = torch.arange(position, position + DRAW_BLOCK, device=keys.device)
    return Draws(keys[:, None], steps[None]).precompute()


class Decoding:
    """The rows still being decoded (`alive`, their numbers), and what was recorded at every decode step: rows, step,
    log-probability, entropy, and which of the rows had not finished before."""

    def __init__(self, rows: int, strategy: Exploration, device: torch.device):
        self.alive = torch.arange(rows, device=device)
        self.finished = torch.zeros(rows, dtype=torch.bool, device=device)
        self.state = strategy.start(rows, device)
        self.stopping, self.read = strategy.stopping, strategy.stopping.start(rows, device)
        self.recorded: list[tuple[Tensor, DecodeStep, Tensor, Tensor, Tensor]] = []

    def record(self, step: DecodeStep, log_prob: Tensor, entropies: Tensor) -> None:
        log_prob = log_prob.masked_fill(step.role == FORCED, 0)
        self.recorded.append((self.alive, step, log_prob, entropies, ~self.finished))
        self.finished, self.read = self.stopping.push(self.read, step.tokens)

    def shrink(self) -> Tensor | None:
        """Indices of the rows to keep, if enough have finished to drop them: the last rows fill their gaps."""
        unfinished = (~self.finished).nonzero().squeeze(-1)
        if len(unfinished) and len(unfinished) > COMPACT_BELOW * len(self.alive):
            return None
        keep = torch.arange(len(unfinished), device=unfinished.device)
        keep[self.finished[: len(unfinished)]] = unfinished[unfinished >= len(unfinished)]
        self.alive, self.finished = self.alive[keep], self.finished[keep]
        self.state = {name: value[keep] for name, value in self.state.items()}
        self.read = {name: value[keep] for name, value in self.read.items()}
        return keep


def assemble(decoding: Decoding, prompts: Tensor, prompt_mask: Tensor, keys: Tensor, group: int) -> Rollouts:
    """One (B, T) record of all decode steps."""
    alive, steps, log_probs, entropies, unfinished = zip(*decoding.recorded, strict=True)

    def place(values: Sequence[Tensor]) -> Tensor:
        whole = values[0].new_zeros(len(keys), len(values), *values[0].shape[1:])
        for time, (rows, value, mask) in enumerate(zip(alive, values, unfinished, strict=True)):
            whole[rows, time] = value * mask.view(-1, *[1] * (value.dim() - 1))
        return whole

    whole = combine(steps, place).without_unused_recipes()
    return Rollouts(prompts, prompt_mask, whole, place(unfinished), place(log_probs), place(entropies), keys, group)
