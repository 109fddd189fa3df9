"""The temperature at which one strategy is as uncertain as another: found before a run, on held-out problems, and kept."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from scipy.optimize import brentq

from ngrpo.evaluation.benchmarks import batch_plan
from ngrpo.models.causal import CausalModel
from ngrpo.ranks import ALONE, Ranks
from ngrpo.rollout.sampling import Sampler
from ngrpo.rundir.directory import RunDirectory
from ngrpo.tasks.base import Task
from ngrpo.training.replay import replay_in_micro_batches

SAMPLES = 8  # answers to a problem
STRIDE, FARTHEST = 1.25, 8.0  # from one temperature to the next while none lies beyond, and in all, as factors
CLOSE = 0.005  # of the temperature: it moves the entropy by less than another seed does


class Unmatched(RuntimeError):
    """No temperature in reach makes sampling as uncertain as the strategy is."""


@dataclass(frozen=True)
class Matching:
    """Sets the temperature of `sampler`'s strategy by that of `other`, which is called `name`.

    Both answer the same problems of `task` with the same random numbers; rows: of one batch, micro_rows: of one replay.
    run: where what is found is kept and found again; None where nobody keeps it, as on all ranks but the first.
    """

    sampler: Sampler
    other: Sampler
    name: str
    task: Task
    seed: int
    rows: int
    micro_rows: int
    run: RunDirectory | None = None

    def settle(self, model: CausalModel, ranks: Ranks = ALONE) -> Mapping[str, Any]:
        """Sets the temperature to what the run began with, or else to what is found with `model`, whose weights are whole.

        Returns temperature, entropy and that of the strategy (nats per token), and what they were found on: `answers` to
        problems of `task`. Raises Unmatched.
        """
        known = ranks.gather(self.run.record.get("matched") if self.run else None)[0]
        found = known or ranks.gather(self._found(model))[0]  # which may differ in last digits from rank to rank
        self.sampler.strategy.temperature = found["temperature"]
        if self.run and not known:
            self.run.save(matched=found)
        return found

    def _found(self, model: CausalModel) -> Mapping[str, Any]:
        ours, other = self.sampler.strategy, self.other.strategy.to(model.head.device)
        self.sampler.engine.sync(model, 0, ours, other)
        start, target = ours.temperature, self._entropy(model, self.other)

        @cache
        def entropy(temperature: float) -> float:
            ours.temperature = temperature
            return self._entropy(model, self.sampler)

        temperature = crossing(lambda t: entropy(t) - target, start)
        if temperature is None:
            reach = f"no temperature from {start / FARTHEST:.4g} to {start * FARTHEST:.4g}"
            raise Unmatched(
                f"exploration.match={self.name}: has an entropy of {target:.4g} nats per token, which plain sampling has at "
                f"{reach}; exploration=token_sampling temperature=<value> is another control"
            )
        found = {"strategy": self.name, "temperature": temperature, "entropy": entropy(temperature)}
        found |= {"entropy_of_strategy": target, "answers": SAMPLES * len(self.task.problems), "task": self.task.name}
        print(
            f"note: at temperature {temperature:.4g} plain sampling has {found['entropy']:.4g} nats per token, "
            f"{self.name} {target:.4g} ({found['answers']} answers to {self.task.name})"
        )
        return found

    def _entropy(self, model: CausalModel, sampler: Sampler) -> float:
        """Mean nats per token of softmax(logits / temperature), what text tokens are drawn from but for filters, over the
        tokens that have a log-probability, in the contexts that the sampler's strategy makes for itself."""
        total = tokens = 0.0
        for start, end in batch_plan(len(self.task.problems), SAMPLES, self.rows):
            problems = self.task.problems[start:end]
            identities = [("match", self.seed, problem.id, sample) for problem in problems for sample in range(SAMPLES)]
            rollouts, options = sampler.generate(problems, identities), {"entropy": True, "tempered": True}
            entropy = replay_in_micro_batches(model, sampler.strategy, rollouts, self.micro_rows, **options).entropy
            assert entropy is not None
            total += entropy.double().sum().item()
            tokens += rollouts.loss_mask.sum().item()
        return total / max(tokens, 1)


def crossing(value: Callable[[float], float], start: float) -> float | None:
    """Where a function that grows is 0, to CLOSE of `start`; looked for from there outwards. None where it is nowhere
    within a factor of FARTHEST."""
    step = STRIDE if value(start) < 0 else 1 / STRIDE
    near, far = start, start * step
    while (value(far) < 0) == (step > 1) and value(far) != 0:
        if abs(math.log(far / start)) >= math.log(FARTHEST):
            return None
        near, far = far, far * step
    return brentq(value, near, far, xtol=CLOSE * start)  # pyright: ignore[reportReturnType]
