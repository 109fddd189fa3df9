"""What exploration feeds, seen in the embedding table: explored steps, the tokens nearest to them, neighbors of tokens;
and what the model makes of it: the next token's distribution beside the one after the anchor.

N steps, V tokens, D width.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ngrpo.exploration.base import Exploration
from ngrpo.models.causal import CausalModel
from ngrpo.rollout.engines.transformers import decode_step, prefill
from ngrpo.rollout.records import Rollouts
from ngrpo.rollout.sampling import Answers, fed_vectors

CHUNK = 16_384  # rows of the table that are looked at together
LISTED = 8  # neighbors of a token in the table
Names = Callable[[int], str]  # token id -> its text


def spread(rollouts: Rollouts, most: int) -> Tensor:
    """(N, 2) row and position of at most so many explored steps whose vector the model read, evenly over all of them."""
    where = rollouts.explored.nonzero()
    if len(where) <= most:
        return where
    return where[torch.linspace(0, len(where) - 1, most, device=where.device).long()]


def step_rows(answers: Answers, where: Tensor, strategy: Exploration, table: Tensor) -> list[dict[str, Any]]:
    """What exploration did at `where` (N, 2): anchor, candidates, weights, cosine, displacement, nearest token."""
    if not len(where):
        return []
    rollouts, group = answers.rollouts, answers.rollouts.group_size
    row, time = where.unbind(dim=1)
    steps, (fed, distance, cosine) = rollouts.steps[row, time], fed_vectors(rollouts, where, strategy, table)
    absent = [[]] * len(row)
    ids = absent if steps.mix_ids is None else steps.mix_ids.tolist()
    weights = absent if steps.mix_weights is None else steps.mix_weights.double().tolist()
    columns = {
        "problem_id": [answers.problems[at // group].id for at in row.tolist()],
        "sample_index": [at % group for at in row.tolist()],
        "position": time.tolist(),
        "token": steps.tokens.tolist(),
        "anchor": steps.anchors.tolist(),
        "candidates": ids,
        "weights": weights,
        "cosine": cosine.tolist(),
        "displacement": distance.tolist(),
        "nearest": nearest_tokens(fed, table).tolist(),
    }
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


@torch.no_grad()
def next_token_rows(
    rollouts: Rollouts, where: Tensor, strategy: Exploration, model: CausalModel
) -> list[dict[str, float | bool]]:
    """For each place `where` (N, 2) that the model read: whether the likeliest next token is another than where the anchor
    itself is fed there, all before it being as it was, and KL(after the anchor || after what was fed) in nats."""
    if not len(where):
        return []
    row, time = where.unbind(dim=1)
    found = torch.zeros(len(where), 2, dtype=torch.float64, device=where.device)
    with model.autocast():
        table, last = model.table, int(time.max())
        _, cache = prefill(model, rollouts.prompts[row], rollouts.prompt_mask[row], last + 1)
        cache.fan_out(2)
        for at in range(last + 1):
            steps, here = rollouts.steps[row, at], time == at
            fed = strategy.embed(steps, table, rollouts.draws[row, at])
            anchor = torch.where(here[:, None], table[steps.anchors], fed)
            logits = decode_step(model, torch.stack((anchor, fed), dim=1).flatten(0, 1), cache).unflatten(0, (-1, 2))
            before, after = logits[here].double().log_softmax(dim=-1).unbind(dim=1)
            changed = before.argmax(dim=-1) != after.argmax(dim=-1)
            found[here] = torch.stack(
                (changed.double(), F.kl_div(after, before, reduction="none", log_target=True).sum(-1)), 1
            )
    return [{"next_changed": bool(changed), "next_kl": kl} for changed, kl in found.tolist()]


def nearest_tokens(vectors: Tensor, table: Tensor) -> Tensor:
    """(N,) the row of the table (V, D) with the highest cosine to each vector (N, D); of equal rows any."""
    wanted = F.normalize(vectors.float(), dim=-1)
    best = torch.full((len(vectors),), -torch.inf, device=vectors.device)
    found = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
    for start in range(0, len(table), CHUNK):
        part = F.normalize(table[start : start + CHUNK].float(), dim=-1)
        score, at = (wanted @ part.T).max(dim=-1)
        found = torch.where(score > best, at + start, found)
        best = torch.maximum(best, score)
    return found


def neighbors(tokens: Sequence[int], count: int, table: Tensor, ordinary: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and cosines, both (N, count), of the ordinary rows nearest to each token, itself left out; nearest first.

    ordinary: (V,) bool, which rows may be neighbors. `count` falls to what there is. In float64, ties by lowest id.
    """
    device = table.device
    chosen = torch.tensor(list(tokens), dtype=torch.int64, device=device)
    anchors = F.normalize(table[chosen].double(), dim=-1)
    parts = table.split(CHUNK)
    cosines = torch.cat([anchors @ F.normalize(part.double(), dim=-1).T for part in parts], dim=1)
    cosines[:, ~ordinary] = -torch.inf
    cosines[torch.arange(len(chosen), device=device), chosen] = -torch.inf
    most = min(count, int(ordinary.sum()) - 1)
    ids = cosines.sort(dim=-1, descending=True, stable=True).indices[:, :most]
    return ids, cosines.gather(1, ids)


def frequent_anchors(steps: Sequence[dict[str, Any]], most: int) -> list[int]:
    """The anchors of `steps`, those of most strategies first, then the most frequent."""
    counts = Counter(row["anchor"] for row in steps)
    kinds = Counter(anchor for anchor, _ in {(row["anchor"], row["strategy"]) for row in steps})
    return sorted(counts, key=lambda anchor: (-kinds[anchor], -counts[anchor], anchor))[:most]


def neighbor_rows(tokens: Sequence[int], table: Tensor, ordinary: Tensor, name: Names) -> list[dict[str, Any]]:
    """A row per token and neighbor: token, text, rank from 1, neighbor, its text, cosine."""
    if not len(tokens):
        return []
    ids, cosines = (values.tolist() for values in neighbors(tokens, LISTED, table, ordinary))
    return [
        {"token": token, "text": name(token), "rank": rank, "neighbor": ids[at][rank - 1],
         "neighbor_text": name(ids[at][rank - 1]), "cosine": cosines[at][rank - 1]}
        for at, token in enumerate(tokens) for rank in range(1, len(ids[at]) + 1)
    ]  # fmt: skip
