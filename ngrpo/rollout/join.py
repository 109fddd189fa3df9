"""Answers of several draws joined to one batch, exchanged for one another, or packed for a later step."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ngrpo.ranks import Ranks
from ngrpo.rollout.records import DecodeStep, Rollouts, combine
from ngrpo.rollout.sampling import Answers
from ngrpo.tasks.base import Problem, Score


def join(draws: Sequence[Answers], groups: Tensor) -> Answers:
    """The groups numbered `groups` of several draws, numbered consecutively, as one batch."""
    size = draws[0].rollouts.group_size
    rows = (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()
    problems = [problem for draw in draws for problem in draw.problems]
    rollouts, completions, scores, prompts = _rows(draws, rows)
    overrides = prompts if any(draw.prompt_overrides for draw in draws) else None
    rollouts = replace(rollouts, group_size=size)
    return Answers([problems[i] for i in groups.tolist()], rollouts, completions, scores, overrides)


def exchanged(answers: Answers, others: Answers, source: Tensor) -> Answers:
    """The answers, with the row source (B,) of `others` in place of each, except where source is -1.

    Such a row counts as an answer to the problem's own prompt; its log-probabilities stay those under the prompt it answered.
    """
    own, rows = answers.rollouts, torch.arange(len(source), device=source.device)
    taken = torch.where(source < 0, rows, len(rows) + source)
    rollouts, completions, scores, prompts = _rows([answers, others], taken)
    rollouts = replace(rollouts, prompts=own.prompts, prompt_mask=own.prompt_mask, group_size=own.group_size)
    return Answers(answers.problems, rollouts, completions, scores, prompts)


def _rows(draws: Sequence[Answers], rows: Tensor) -> tuple[Rollouts, list[str], list[Score], list[str]]:
    """Rollouts, completions, scores and prompts of the rows numbered `rows` of several draws, numbered consecutively."""

    def chosen(field: str) -> list[Any]:
        values = [value for draw in draws for value in getattr(draw, field)]
        return [values[i] for i in rows.tolist()]

    rollouts = join_rollouts([draw.rollouts for draw in draws]).rows(rows)
    return rollouts, chosen("completions"), chosen("scores"), chosen("prompts")


def join_rollouts(parts: Sequence[Rollouts]) -> Rollouts:
    """Rows of several batches as one batch of single-row groups: prompts padded on the left, answers on the right."""
    width = max(part.prompts.shape[1] for part in parts)
    length = max(part.mask.shape[1] for part in parts)

    def left(values: Sequence[Tensor]) -> Tensor:
        return torch.cat([F.pad(value, (width - value.shape[1], 0)) for value in values])

    def right(values: Sequence[Tensor]) -> Tensor:
        return torch.cat([F.pad(v, (0, 0) * (v.dim() - 2) + (0, length - v.shape[1])) for v in values])

    return Rollouts(
        prompts=left([part.prompts for part in parts]),
        prompt_mask=left([part.prompt_mask for part in parts]),
        steps=combine([part.steps for part in parts], right),
        mask=right([part.mask for part in parts]),
        log_probs=right([part.log_probs for part in parts]),
        entropy=None if any(part.entropy is None for part in parts) else right([part.entropy for part in parts]),  # pyright: ignore
        keys=torch.cat([part.keys for part in parts]),
        group_size=1,
    )


def packed(answers: Answers) -> dict[str, Any]:
    """The answers as plain containers with tensors on the CPU, as checkpoints need them."""
    scores = [asdict(replace(score, reward=float(score.reward))) for score in answers.scores]
    return {
        "problems": [asdict(problem) for problem in answers.problems],
        "rollouts": _moved(asdict(answers.rollouts), "cpu"),
        "completions": list(answers.completions),
        "asked": None if answers.prompt_overrides is None else list(answers.prompt_overrides),
        "scores": scores,
    }


def unpacked(parts: Sequence[Mapping[str, Any] | None], ranks: Ranks, device: torch.device) -> Answers | None:
    """This rank's part of what all ranks packed (None: nothing). Packed by another number of ranks, whole groups are dealt
    out to the ranks in turn."""
    mine = parts[ranks.rank : ranks.rank + 1] if len(parts) == ranks.world else parts
    found = [_unpacked(part, device) for part in mine if part is not None]
    groups = torch.arange(sum(len(answers.problems) for answers in found), device=device)
    groups = groups if len(parts) == ranks.world else groups[ranks.rank :: ranks.world]
    return join(found, groups) if len(groups) else None


def _unpacked(part: Mapping[str, Any], device: torch.device) -> Answers:
    rollouts = _moved(part["rollouts"], device)
    return Answers(
        [Problem(**problem) for problem in part["problems"]],
        Rollouts(**{**rollouts, "steps": DecodeStep(**rollouts["steps"])}),
        part["completions"],
        [Score(**score) for score in part["scores"]],
        part.get("asked"),
    )


def _moved(values: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """The same with all tensors, nested ones too, on a device."""
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in values.items()}
    return {name: _moved(value, device) if isinstance(value, dict) else value for name, value in moved.items()}
