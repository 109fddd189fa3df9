"""Answers of several draws as one batch: what resampling of groups needs."""

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ngrpo.rollout.records import Rollouts, Step, neutral
from ngrpo.rollout.sampling import Answers


def join(draws: Sequence[Answers], groups: Tensor) -> Answers:
    """The groups numbered `groups` of several draws, counted through, as one batch."""
    rollouts = join_rollouts([draw.rollouts for draw in draws])
    size = rollouts.group_size
    rows = (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()
    problems = [problem for draw in draws for problem in draw.problems]
    texts = [text for draw in draws for text in draw.completions]
    scores = [score for draw in draws for score in draw.scores]
    return Answers(
        [problems[i] for i in groups.tolist()],
        replace(rollouts.rows(rows), group_size=size),
        [texts[i] for i in rows.tolist()],
        [scores[i] for i in rows.tolist()],
    )


def join_rollouts(parts: Sequence[Rollouts]) -> Rollouts:
    """Rows of several batches with the same group size as one: prompts padded on the left, answers on the right."""
    width = max(part.prompts.shape[1] for part in parts)
    length = max(part.mask.shape[1] for part in parts)

    def left(values: Sequence[Tensor]) -> Tensor:
        return torch.cat([F.pad(value, (width - value.shape[1], 0)) for value in values])

    def right(values: Sequence[Tensor]) -> Tensor:
        padding = [(0, 0) * (value.dim() - 2) + (0, length - value.shape[1]) for value in values]
        return torch.cat([F.pad(value, pad) for value, pad in zip(values, padding, strict=True)])

    columns = {}
    for f in fields(Step):
        values = [getattr(part.steps, f.name) for part in parts]
        like = next((value for value in values if value is not None), None)
        if like is None:
            columns[f.name] = None
            continue
        pairs = zip(parts, values, strict=True)
        columns[f.name] = right([neutral(f.name, part.steps, like) if v is None else v for part, v in pairs])
    return Rollouts(
        prompts=left([part.prompts for part in parts]),
        prompt_mask=left([part.prompt_mask for part in parts]),
        steps=Step(**columns),
        mask=right([part.mask for part in parts]),
        log_probs=right([part.log_probs for part in parts]),
        entropy=None if any(part.entropy is None for part in parts) else right([part.entropy for part in parts]),  # pyright: ignore
        keys=torch.cat([part.keys for part in parts]),
        group_size=parts[0].group_size,
    )
