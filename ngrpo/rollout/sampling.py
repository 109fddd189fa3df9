"""From problems to scored answers, and the figures of a batch of them: what training and evaluation share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ngrpo.algorithm.advantages import homogeneous
from ngrpo.algorithm.inputs import Groups
from ngrpo.exploration.base import Exploration
from ngrpo.models.prompting import Prompts
from ngrpo.rollout.engines.base import Engine
from ngrpo.rollout.keys import row_keys
from ngrpo.rollout.perturbed import Perturbed
from ngrpo.rollout.records import Rollouts, Vocabulary
from ngrpo.rundir.schema import READING
from ngrpo.tasks.base import OUTCOMES, UNGRADED, Problem, Score, Task

STEP_ROWS = 64  # explored steps of an RL step that samples/steps.parquet keeps
MEASURED_STEPS = 4096  # explored steps that displacement is averaged over, at most: enough for three digits


class Ungraded(RuntimeError):
    """Too many answers have no verdict: they would count as wrong, and the score would be too low."""

    exit_code = 3


@dataclass(frozen=True)
class Sampler:
    """Everything that turns a problem into an answer of at most `max_new_tokens` tokens. `perturbed`: the prompts of
    retries, where the algorithm has any."""

    engine: Engine
    strategy: Exploration
    prompts: Prompts
    max_new_tokens: int
    perturbed: Perturbed | None = None

    def generate(
        self, problems: Sequence[Problem], identities: Sequence[tuple], ids: Sequence[np.ndarray] | None = None
    ) -> Rollouts:
        """Rollouts of P problems in B = P * G rows, each drawn from the key of its identity.

        ids: of P prompts in place of the problems' own, which `prompts` has encoded. Raises rollout.records.NotFinite.
        """
        ids = [self.prompts.ids[p.prompt, p.is_message] for p in problems] if ids is None else ids
        prompts, mask = padded(ids, self.prompts.tokenizer.pad_token_id or 0)  # pyright: ignore[reportArgumentType]
        return self.engine.generate(self.strategy, prompts, mask, row_keys(identities), self.max_new_tokens)


@dataclass(frozen=True)
class Answers:
    """Completions of P problems, G each, rows of one problem together: B = P * G texts and scores for `rollouts`.

    prompt_overrides: the B prompts that were answered, where some are not the problems' own; `rollouts.log_probs` are
    conditioned on these.
    """

    problems: Sequence[Problem]
    rollouts: Rollouts
    completions: Sequence[str]
    scores: Sequence[Score]
    prompt_overrides: Sequence[str] | None = None

    @property
    def prompts(self) -> Sequence[str]:
        """The B prompts that were answered."""
        own = [problem.prompt for problem in self.problems for _ in range(self.rollouts.group_size)]
        return own if self.prompt_overrides is None else self.prompt_overrides


def answer(
    sampler: Sampler,
    task: Task,
    problems: Sequence[Problem],
    identities: Sequence[tuple],
    prompts: Sequence[tuple[str, np.ndarray]] | None = None,
) -> Answers:
    """Completions of P problems in B = P * G rows, as Sampler.generate draws them, and their scores.

    prompts: text and ids of P prompts in place of the problems' own.
    """
    rollouts = sampler.generate(problems, identities, None if prompts is None else [ids for _, ids in prompts])
    completions = [sampler.strategy.vocabulary.text(ids) for ids in rollouts.answer_ids()]
    every = [problem for problem in problems for _ in range(rollouts.group_size)]
    overrides = None if prompts is None else [text for text, _ in prompts for _ in range(rollouts.group_size)]
    return Answers(problems, rollouts, completions, task.score(every, completions), overrides)


def padded(ids: Sequence[np.ndarray], pad: int) -> tuple[Tensor, Tensor]:
    """Prompts as ids and mask, both (P, S), left-padded."""
    rows = [torch.from_numpy(row).long() for row in ids]
    mask = [torch.ones_like(row, dtype=torch.bool) for row in rows]
    left: dict[str, Any] = {"batch_first": True, "padding_side": "left"}
    return pad_sequence(rows, padding_value=pad, **left), pad_sequence(mask, **left)


def truncated(rollouts: Rollouts, strategy: Exploration) -> Tensor:
    """(B,) bool: which answers do not end with a stop."""
    ended = [strategy.vocabulary.stopped(ids) for ids in rollouts.answer_ids()]
    return ~torch.tensor(ended, device=rollouts.mask.device)


def groups_of(answers: Answers, sampler: Sampler) -> Groups:
    """What an algorithm may know of the answers of a batch."""
    rollouts, size = answers.rollouts, answers.rollouts.group_size
    device = rollouts.mask.device
    return Groups(
        rewards=torch.tensor([s.reward for s in answers.scores], dtype=torch.float64, device=device).view(-1, size),
        correct=torch.tensor([s.outcome == "correct" for s in answers.scores], device=device).view(-1, size),
        lengths=rollouts.lengths.view(-1, size),
        truncated=truncated(rollouts, sampler.strategy).view(-1, size),
        log_probs=rollouts.log_probs.double().sum(dim=1).view(-1, size),
        parsed=torch.tensor([s.outcome != "unparsed" for s in answers.scores], device=device).view(-1, size),
        keys=rollouts.keys.view(-1, size),
        limit=sampler.max_new_tokens,
    )


def sample_rows(answers: Answers, vocabulary: Vocabulary, labels: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per completion, with the columns of rundir.schema.SAMPLE_TYPES.

    labels: run, benchmark, exploration, algorithm, step, seed. `explored_steps` counts those whose vector the model read.
    """
    rollouts = answers.rollouts
    log_probs = rollouts.log_probs.double().sum(dim=1).tolist()
    entropies = [None] * len(log_probs)
    if rollouts.entropy is not None:
        entropies = (rollouts.entropy.double().sum(dim=1) / rollouts.lengths).tolist()
    explored = rollouts.explored.sum(dim=1).tolist()
    rows, prompts = [], answers.prompts
    columns = zip(answers.completions, rollouts.answer_ids(), answers.scores, strict=True)
    for row, (text, ids, score) in enumerate(columns):
        problem = answers.problems[row // rollouts.group_size]
        rows.append(
            {
                **labels,
                "problem_id": problem.id,
                "sample_index": row % rollouts.group_size,
                "prompt": prompts[row],
                "completion": text,
                "token_ids": ids,
                "n_tokens": len(ids),
                "finish_reason": "stop" if vocabulary.stopped(ids) else "length",
                "gold": problem.gold,
                "extracted": score.extracted,
                "solution_path": path_column(score),
                "outcome": score.outcome,
                "reward": float(score.reward),
                "logprob_sum": log_probs[row],
                "entropy_mean": entropies[row],
                "explored_steps": explored[row],
            }
        )
    return rows


def rollout_measures(answers: Answers, strategy: Exploration, table: Tensor) -> dict[str, float]:
    """The figures of an RL step that need no forward pass; `table` is the policy's embedding (V, D)."""
    rollouts, group = answers.rollouts, answers.rollouts.group_size
    rewards = torch.tensor([score.reward for score in answers.scores], dtype=torch.float64).view(-1, group)
    outcomes = np.array([score.outcome for score in answers.scores])
    same, correct = homogeneous(rewards), torch.from_numpy(outcomes == "correct").view(-1, group)
    texts = np.array(answers.completions, dtype=object).reshape(-1, group)
    mask, lengths = rollouts.mask, rollouts.lengths.double()
    return {
        "reward": rewards.mean().item(),
        "all_correct": correct.all(dim=1).double().mean().item(),
        "all_wrong": (~correct).all(dim=1).double().mean().item(),
        "informative": (~same).double().mean().item(),
        **{name: float((outcomes == name).mean()) for name in OUTCOMES[2:]},
        "distinct": float(np.mean([len(set(row)) / group for row in texts])),
        "length": lengths.mean().item(),
        "truncated": truncated(rollouts, strategy).double().mean().item(),
        "entropy": math.nan if rollouts.entropy is None else (rollouts.entropy.double().sum() / mask.sum()).item(),
        **_exploration(rollouts, strategy, table),
    }


@torch.no_grad()
def fed_vectors(
    rollouts: Rollouts, where: Tensor, strategy: Exploration, table: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What the model read at `where` (N, 2), rebuilt from the record: fed vectors (N, D), their ||fed - E[anchor]|| /
    ||E[anchor]||, and the cosine of fed and E[anchor], both (N,); float32."""
    row, time = where.unbind(dim=1)
    steps = rollouts.steps[row, time]
    fed = strategy.embed(steps, table, rollouts.draws[row, time]).float()
    anchor = F.embedding(steps.anchors, table).float()
    distance = (fed - anchor).norm(dim=-1) / anchor.norm(dim=-1).clamp(min=1e-12)
    return fed, distance, F.cosine_similarity(fed, anchor, dim=-1)


def _exploration(rollouts: Rollouts, strategy: Exploration, table: Tensor) -> dict[str, float]:
    """Figures of the explored steps whose vector the model read; anchor_weight, alpha(v*), where they have recipes."""
    where = rollouts.explored.nonzero()[:MEASURED_STEPS]
    if not len(where):
        return {"explored": 0.0, "displacement": 0.0}
    share = rollouts.explored.sum().double() / rollouts.consumed.sum()
    _, distance, _ = fed_vectors(rollouts, where, strategy, table)
    found = {"explored": share.item(), "displacement": distance.mean().item()}
    weights = rollouts.steps[where.unbind(dim=1)].mix_weights
    return found if weights is None else found | {"anchor_weight": weights[:, 0].mean().item()}


def path_column(score: Score) -> str:
    """The column solution_path: the solution path, or else how the answer was read."""
    return score.solution_path or (f"{READING}{score.reading}" if score.reading else "")


def refuse_ungraded(where: str, shares: Mapping[str, float], limit: float) -> None:
    """Raises Ungraded where the shares of the outcomes without a verdict add up to more than `limit`."""
    shares = {name: shares[name] for name in UNGRADED}
    if sum(shares.values()) > limit:
        text = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
        fix = "the same command tries again, a higher grading.max_ungraded_share lets them count as wrong"
        raise Ungraded(f"{where}: too many answers without a verdict ({text}), at most {100 * limit:g} % may be; {fix}")
