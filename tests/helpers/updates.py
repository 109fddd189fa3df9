"""RL steps of the bundled model through the loop itself: what a run is made of, and what its steps were, kept in memory."""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import warm
from strategies import neighbor_mix
from torch.distributed.tensor import DTensor

from ngrpo import loop
from ngrpo.algorithm import advantages, critic, losses
from ngrpo.algorithm.algorithm import Algorithm
from ngrpo.evaluation.benchmarks import Evaluation
from ngrpo.exploration.base import Exploration
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.loop import Parts
from ngrpo.models.causal import CausalModel
from ngrpo.models.loading import load, load_tokenizer, vocabulary
from ngrpo.models.prompting import PLAIN, Prompts
from ngrpo.rollout.engines.transformers import TransformersEngine
from ngrpo.rollout.records import Rollouts
from ngrpo.rollout.sampling import Answers, Sampler
from ngrpo.rundir.interrupts import Interrupts
from ngrpo.rundir.progress import Progress
from ngrpo.tasks.base import Score, Task
from ngrpo.tasks.story_math import StoryMath
from ngrpo.training.collect import TrainingConfig
from ngrpo.training.critic import Critic
from ngrpo.training.policy import Batch, Policy
from ngrpo.training.reference import Reference

TINY = "ngrpo:tiny"
NO_KL = {"coefficient": 0.0, "estimator": "k3", "placement": "loss"}
LABELS = {"run": "made", "seed": 3, "exploration": "made", "algorithm": "made"}


class Watched(Policy):
    """A policy that keeps the rollouts of every step and its optimizer; the others below, also what they name."""

    rollouts: list[Rollouts]
    stepper: torch.optim.Optimizer
    gradients: list[torch.Tensor]
    batches: list[Batch]

    def batch(self, drawn, *others):
        self.rollouts = [*getattr(self, "rollouts", []), drawn.answers.rollouts]
        return super().batch(drawn, *others)

    def optimizer(self):
        self.stepper, schedule = super().optimizer()
        return self.stepper, schedule


class Still(Watched):
    """A policy that keeps the gradient of every update and never takes the step."""

    def clip(self, optimizer):
        self.gradients = [*getattr(self, "gradients", []), gradient_of(optimizer)]
        optimizer.zero_grad()  # what has no gradient is not moved
        return 0.0


class Stepping(Watched):
    """A policy that keeps what its batches were and the gradient of every update, and takes the steps."""

    def batch(self, *given):
        made = super().batch(*given)
        self.batches = [*getattr(self, "batches", []), made]
        return made

    def clip(self, optimizer):
        self.gradients = [*getattr(self, "gradients", []), gradient_of(optimizer)]
        return super().clip(optimizer)


def gradient_of(optimizer) -> torch.Tensor:
    """The gradient of all that the optimizer moves, as one vector."""
    learners = [p for group in optimizer.param_groups for p in group["params"]]
    whole = [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in learners]
    return torch.cat([gradient.flatten().clone() for gradient in whole])


@dataclass(frozen=True)
class Outcome:
    """What one RL step left behind: the rollouts that it trained on with what was recorded of them."""

    step: int
    answers: Answers
    metrics: dict[str, float]


@dataclass
class Memory:
    """A recorder that keeps the outcomes in memory."""

    policy: Any
    task: Task

    def __post_init__(self):
        self.outcomes: list[Outcome] = []

    def kept(self, step):
        return {}

    def restore(self, kept, step):
        self.outcomes = [outcome for outcome in self.outcomes if outcome.step <= step]

    def step(self, step, rows, metrics, seconds, explored):
        rollouts, named = self.policy.rollouts[-1], {problem.id: problem for problem in self.task.problems}
        answers = Answers(
            [named[row["problem_id"]] for row in rows[:: rollouts.group_size]],
            rollouts,
            [row["completion"] for row in rows],
            [Score(row["reward"], row["outcome"], row["extracted"], row["solution_path"]) for row in rows],
        )
        self.outcomes.append(Outcome(step, answers, dict(metrics)))

    def result(self, *given):
        """Nothing is kept of evaluations."""

    model = close = result


class Made(Parts):
    """Parts whose steps are kept in memory."""

    policy: Watched

    @property
    def outcomes(self) -> list[Outcome]:
        return self.recorder.outcomes  # pyright: ignore

    @property
    def gradients(self) -> list[torch.Tensor]:
        return self.policy.gradients


def algorithm(**changes) -> Algorithm:
    parts = {
        "advantage": functools.partial(advantages.group_normalized, ddof=1, eps=1e-6),
        "loss": functools.partial(losses.clipped_surrogate, clip_low=0.2, clip_high=0.2),
        "aggregation": "token_mean",
        "kl": NO_KL,
    }
    return Algorithm(**{**parts, **changes})


def training(**changes) -> TrainingConfig:
    parts = {
        "steps": 1, "prompts_per_step": 4, "group_size": 4, "learning_rate": 1e-4, "seed": 3, "micro_batch_rows": 16,
        "weight_decay": 0.0, "betas": (0.9, 0.999), "max_grad_norm": 1.0, "schedule": "constant", "warmup_steps": 0,
    }  # fmt: skip
    return TrainingConfig(**{**parts, **changes})


def assembled(
    model: CausalModel,
    task: Task,
    strategy: Exploration,
    config: TrainingConfig,
    *,
    kind: type[Watched] = Watched,
    answer_start: str | None = "</think>",
    limit: int = 32,
    reference: Reference | None = None,
    valued: Critic | None = None,
    **changes,
) -> Made:
    """What loop.run walks through; nothing is evaluated. `valued` is the critic, `changes` are those of the algorithm."""
    prompts, engine = Prompts(load_tokenizer(TINY), PLAIN, room=512), TransformersEngine()
    task, other = prompts.read(task), TokenSampling(1.0)
    words = vocabulary(prompts.tokenizer, model, answer_start, task.answer_prefix)
    for part in (strategy, other):
        part.bind(words, model.table.detach())
    policy = kind(model, strategy, algorithm(**changes), config, valued)
    return Made(
        policy=policy,
        reference=reference,
        sampler=Sampler(engine, strategy, prompts, limit),
        task=task,
        evaluation=Evaluation(Sampler(engine, other, prompts, limit), {}, n=1, rows_per_batch=1),
        directory=Path("nowhere"),
        labels=LABELS,
        progress=Progress(config.steps, quiet=True),
        interrupts=Interrupts(),
        recorder=Memory(policy, task),  # pyright: ignore
    )


def make(strategy=None, kind: type[Watched] = Still, dtype="float64", model=None, **changes) -> Made:
    """The bundled model at stories of two sums; `changes` are those of the configuration or of the algorithm."""
    config = training(
        **{name: changes.pop(name) for name in list(changes) if name in TrainingConfig.__dataclass_fields__}
    )
    task, strategy = StoryMath("train", [2], 64), strategy or TokenSampling(1.0)
    return assembled(model or load(TINY, dtype), task, strategy, config, kind=kind, **changes)


def fit(parts: Made, directory: Path | None = None, **options) -> Made:
    """Every RL step of the parts, in this process unless `options` say otherwise; checkpoints go to `directory`."""
    with TemporaryDirectory() as folder:
        placed = replace(parts, directory=directory or Path(folder))
        loop.run(placed, **{"accelerator": "cpu", "devices": 1, "strategy": "auto", **options})
    return parts


def verdicts(task, wanted):
    """Replaces the scorer: `wanted(problem, index in its group)` says what is right."""
    seen = {}

    def score(problems, completions):
        found = []
        for problem in problems:
            seen[problem.id] = seen.get(problem.id, -1) + 1
            right = bool(wanted(problem, seen[problem.id] % 4))
            found.append(Score(float(right), "correct" if right else "wrong", None, ""))
        return found

    task.score = score


def difficulty(problem) -> int:
    return int(problem.id.rpartition("-")[2]) % 3


def made(kind=Watched, wanted=lambda problem, index: index == 0, **changes) -> Made:
    parts = make(kind=kind, dtype=changes.pop("dtype", "float32"), **changes)
    verdicts(parts.task, wanted)
    return parts


def written_gradient(target: Path) -> type[Still]:
    """A policy whose first rank leaves its gradients in a file."""

    class Written(Still):
        def clip(self, optimizer):
            norm = super().clip(optimizer)
            if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
                torch.save(self.gradients, target)
            return norm

    return Written


def train_once(processes: int, target: Path, build: Callable[[type[Watched]], Made]) -> None:
    """Runs in a child of its own: one RL step on `processes` ranks, whose gradients are then in `target`."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    options = {"devices": processes, "strategy": "ddp_fork"} if processes > 1 else {}
    parts = build(written_gradient(target))
    fit(parts if processes == 1 else replace(parts, recorder=None), **options)


def difference_of_two_processes(folder: Path, build: Callable[[type[Watched]], Made]) -> float:
    """Relative, of the gradient of two processes to that of one."""
    for processes in (1, 2):
        child = warm.server.Process(target=train_once, args=(processes, folder / f"{processes}.pt", build))
        child.start()
        child.join(timeout=120)
        assert child.exitcode == 0
    one, two = (torch.load(folder / f"{processes}.pt", weights_only=True)[0] for processes in (1, 2))
    return float((one - two).norm() / one.norm())


def mixed(kind: type[Watched]) -> Made:
    """One step of mixtures in uneven micro-batches."""
    return make(neighbor_mix(rate=0.3, k=3), kind, micro_batch_rows=5, aggregation="sequence_mean_token_mean")


def ppo(kind: type[Watched] = Watched, dtype="float64", **changes) -> Made:
    """One step with a critic whose head is not zero."""
    valued = Critic(load(TINY, dtype))
    torch.manual_seed(1)
    torch.nn.init.normal_(valued.head.weight, std=0.05)
    parts = {"critic": {"learning_rate": 1e-3, "clip": 0.5}, "advantage": critic.generalized, **changes}
    return make(kind=kind, dtype=dtype, valued=valued, **parts)


def shared_ppo(kind: type[Watched]) -> Made:
    """The same in uneven micro-batches."""
    return ppo(kind=kind, micro_batch_rows=5)
