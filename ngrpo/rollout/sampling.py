"""Problems to answered, scored rollouts, and what is said of a batch of them: what training and evaluation share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ngrpo.algorithm.advantages import homogeneous
from ngrpo.algorithm.inputs import Groups
from ngrpo.exploration.base import Exploration
from ngrpo.models.prompting import Prompts
from ngrpo.rollout.engines.base import Engine
from ngrpo.rollout.keys import row_keys
from ngrpo.rollout.perturbed import Perturbed
from ngrpo.rollout.records import DecodeStep, Rollouts, Vocabulary
from ngrpo.rundir.schema import READING
from ngrpo.tasks.base import OUTCOMES, UNGRADED, Problem, Score, Task

STEP_ROWS = 64  # explored steps of one RL step that samples/steps.parquet keeps
MEASURED_STEPS = 4096  # displacement is averaged over at most so many explored steps: enough for three digits


class Ungraded(RuntimeError):
    """More answers have no verdict than may: they would count as wrong, and the score would be too low."""

    exit_code = 3


@dataclass(frozen=True)
class Sampler:
    """Everything that turns a problem into a completion; `max_new_tokens` is the longest answer. `perturbed` are the prompts
    of problems that are asked again, where any are."""

    engine: Engine
    strategy: Exploration
    prompts: Prompts
    max_new_tokens: int
    perturbed: Perturbed | None = None


@dataclass(frozen=True)
class Answers:
    """Completions of P problems, G each, rows of one problem together: B = P * G texts and scores for `rollouts`.

    asked: the B prompts that were answered, where not all are those of the problems; `rollouts.log_probs` are under these.
    """

    problems: Sequence[Problem]
    rollouts: Rollouts
    completions: Sequence[str]
    scores: Sequence[Score]
    asked: Sequence[str] | None = None

    @property
    def prompts(self) -> Sequence[str]:
        """The B prompts that were answered."""
        own = [problem.prompt for problem in self.problems for _ in range(self.rollouts.group_size)]
        return own if self.asked is None else self.asked


def answer(
    sampler: Sampler,
    task: Task,
    problems: Sequence[Problem],
    identities: Sequence[tuple],
    asked: Sequence[tuple[str, np.ndarray]] | None = None,
) -> Answers:
    """Completions of P problems for B = P * G rows, each drawn from the key of its identity, and their scores.

    asked: text and ids of P prompts that stand for the problems' own. Raises rollout.records.NotFinite.
    """
    rollouts = generate(sampler, problems, identities, None if asked is None else [ids for _, ids in asked])
    texts = [
        row[:length] for row, length in zip(rollouts.steps.tokens.tolist(), rollouts.lengths.tolist(), strict=True)
    ]
    completions = [sampler.strategy.vocabulary.text(row) for row in texts]
    every = [problem for problem in problems for _ in range(rollouts.group_size)]
    prompted = None if asked is None else [text for text, _ in asked for _ in range(rollouts.group_size)]
    return Answers(problems, rollouts, completions, task.score(every, completions), prompted)


def generate(
    sampler: Sampler, problems: Sequence[Problem], identities: Sequence[tuple], ids: Sequence[np.ndarray] | None = None
) -> Rollouts:
    """Rollouts of P problems for B = P * G rows, each drawn from the key of its identity.

    ids: of P prompts that stand for the problems' own, which the sampler's prompts have read.
    """
    ids = [sampler.prompts.ids[p.prompt, p.is_message] for p in problems] if ids is None else ids
    prompts, mask = padded(ids, sampler.prompts.tokenizer.pad_token_id or 0)  # pyright: ignore[reportArgumentType]
    return sampler.engine.generate(sampler.strategy, prompts, mask, row_keys(identities), sampler.max_new_tokens)


def padded(ids: Sequence[np.ndarray], pad: int) -> tuple[Tensor, Tensor]:
    """Prompts as ids and mask, both (P, S), left-padded."""
    width, lengths = max(map(len, ids)), torch.tensor([len(row) for row in ids])
    rows = [np.concatenate((np.full(width - len(row), pad), row)) for row in ids]
    return torch.from_numpy(np.stack(rows)).long(), torch.arange(width)[None] >= width - lengths[:, None]


def truncated(rollouts: Rollouts, strategy: Exploration) -> Tensor:
    """(B,) bool: answers that do not end with a stop."""
    rows = zip(rollouts.steps.tokens.tolist(), rollouts.lengths.tolist(), strict=True)
    ended = [strategy.vocabulary.stopped(row[:length]) for row, length in rows]
    return ~torch.tensor(ended, device=rollouts.mask.device)


def groups_of(answers: Answers, sampler: Sampler) -> Groups:
    """What algorithms may know of the answers of a batch."""
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

    labels: run, benchmark, exploration, algorithm, step, seed. `explored_steps` are those whose vector the model read.
    """
    rollouts = answers.rollouts
    tokens, lengths = rollouts.steps.tokens.tolist(), rollouts.lengths.tolist()
    log_probs = rollouts.log_probs.double().sum(dim=1).tolist()
    entropies = [None] * len(lengths)
    if rollouts.entropy is not None:
        entropies = (rollouts.entropy.double().sum(dim=1) / rollouts.lengths).tolist()
    explored = rollouts.explored.sum(dim=1).tolist()
    rows, prompts = [], answers.prompts
    for row, (text, score) in enumerate(zip(answers.completions, answers.scores, strict=True)):
        problem = answers.problems[row // rollouts.group_size]
        ids = tokens[row][: lengths[row]]
        rows.append(
            {
                **labels,
                "problem_id": problem.id,
                "sample_index": row % rollouts.group_size,
                "prompt": prompts[row],
                "completion": text,
                "token_ids": ids,
                "n_tokens": lengths[row],
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
    """The figures of one RL step that need no second look at the model; `table` is the policy's embedding (V, D)."""
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


def fed_vectors(rollouts: Rollouts, where: Tensor, strategy: Exploration, table: Tensor) -> Tensor:
    """(N, D) float32: what the model read at `where` (N, 2), rebuilt from the record."""
    row, time = where.unbind(dim=1)
    with torch.no_grad():
        return strategy.embed(rollouts.steps[row, time], table, rollouts.draws[row, time]).float()


def displacement(fed: Tensor, steps: DecodeStep, table: Tensor) -> tuple[Tensor, Tensor]:
    """||fed - E[anchor]|| / ||E[anchor]|| and the cosine between the two, both (N,), for `fed_vectors` (N, D)."""
    anchor = F.embedding(steps.anchors, table).float()
    distance = (fed - anchor).norm(dim=-1) / anchor.norm(dim=-1).clamp(min=1e-12)
    return distance, F.cosine_similarity(fed, anchor, dim=-1)


def _exploration(rollouts: Rollouts, strategy: Exploration, table: Tensor) -> dict[str, float]:
    """What was fed at explored steps that the model read; anchor_weight, alpha(v*), where the record has recipes."""
    where = rollouts.explored.nonzero()[:MEASURED_STEPS]
    share = rollouts.explored.sum().double() / rollouts.consumed.sum().clamp(min=1)
    if not len(where):
        return {"explored": 0.0, "displacement": 0.0}
    fed, steps = fed_vectors(rollouts, where, strategy, table), rollouts.steps[*where.unbind(dim=1)]
    found = {"explored": share.item(), "displacement": displacement(fed, steps, table)[0].mean().item()}
    return found if steps.mix_weights is None else found | {"anchor_weight": steps.mix_weights[:, 0].mean().item()}


def path_column(score: Score) -> str:
    """What stands in the column solution_path: the way to the answer, or else how the answer was read."""
    return score.solution_path or (f"{READING}{score.reading}" if score.reading else "")


def refuse_ungraded(where: str, shares: Mapping[str, float], limit: float) -> None:
    """Raises Ungraded where the shares of answers without a verdict, by outcome, add up to more than `limit`."""
    shares = {name: shares[name] for name in UNGRADED}
    if sum(shares.values()) > limit:
        text = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
        fix = "the same command tries again, a higher grading.max_ungraded_share lets them count as wrong"
        raise Ungraded(f"{where}: too many answers without a verdict ({text}), at most {100 * limit:g} % may be; {fix}")
