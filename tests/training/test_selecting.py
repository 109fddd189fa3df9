"""When tokens are selected: once per step, or before each update among the tokens of its mini-batch."""

from functools import partial
from typing import Any

import pytest
import torch
from updates import Stepping, fit, made

from ngrpo.algorithm import selections
from ngrpo.algorithm.inputs import Tokens
from ngrpo.training.replay import replay

SHARE, LOW, HIGH = 0.03, 0.1, 5.0
RULES = {
    "clip_cov": (partial(selections.covariance_band, share=SHARE, low=LOW, high=HIGH), selections.selected_clipped),
    "kl_cov": (partial(selections.covariance_top, share=SHARE), selections.selected_penalized),
    "high_entropy": (partial(selections.high_entropy, share=0.3), selections.selected_only),
}
SEVERAL = {"inner_epochs": 2, "mini_batches": 2, "learning_rate": 3e-3}


class Choosing(Stepping):
    """A policy that also keeps what every update was given, with log-probabilities and entropy of the moment."""

    seen: list[tuple[Any, torch.Tensor, torch.Tensor]]

    def mini_batches(self, batch):
        for part in super().mini_batches(batch):
            now = replay(self.model, self.strategy, part.rollouts, entropy=True)
            assert now.entropy is not None
            self.seen = [*getattr(self, "seen", []), (part, now.log_probs.detach(), now.entropy.detach())]
            yield part


def updates(name: str, **changes) -> Choosing:
    select, loss = RULES[name]
    policy = fit(made(Choosing, dtype="float64", select=select, loss=loss, **changes)).policy
    assert isinstance(policy, Choosing)
    return policy


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
def test_with_one_update_a_choice_per_update_is_that_of_the_step(name):
    step, update = (updates(name, select_per=per) for per in ("step", "update"))
    assert torch.equal(step.seen[0][0].selected, update.seen[0][0].selected) and step.seen[0][0].selected.any()
    assert torch.equal(step.gradients[0], update.gradients[0])


def chosen_by_verl(name: str, part, log_probs: torch.Tensor) -> tuple[torch.Tensor, int]:
    """What verl's rule would choose from, and how many of it, given an update's tokens at once; see test_selections.py."""
    mask, advantages = part.mask, part.advantages.double()
    value = (advantages - advantages[mask].mean()) * (log_probs - log_probs[mask].mean())
    count = max(1, int(SHARE * int(mask.sum())))
    if name == "kl_cov":
        return mask & (value >= value[mask].sort(descending=True).values[count - 1]), count
    ratio = (log_probs - part.old).exp()
    cut = torch.where(advantages > 0, ratio > 1.2, (advantages < 0) & (ratio < 0.8))
    return mask & ~cut & (value > LOW) & (value < HIGH), count


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
def test_a_choice_per_update_is_verls_with_the_mini_batch_for_its_micro_batch(name):
    fine, coarse = (updates(name, select_per="update", micro_batch_rows=rows, **SEVERAL) for rows in (3, 16))
    step = updates(name, micro_batch_rows=16, **SEVERAL)
    moved = 0
    for (part, log_probs, _), (whole, *_), (once, *_) in zip(fine.seen, coarse.seen, step.seen, strict=True):
        allowed, count = chosen_by_verl(name, part, log_probs)
        assert not part.selected[~allowed].any() and part.selected.sum() == min(count, int(allowed.sum()))
        assert torch.equal(part.selected, whole.selected), "a micro-batch has no say in it"
        moved += int((part.selected & ~once.selected).sum())
    assert moved > 0, "later updates choose others than the step did"


def test_a_choice_per_update_sees_entropies_of_the_moment():
    for part, log_probs, entropy in updates("high_entropy", select_per="update", **SEVERAL).seen:
        facts = Tokens(log_probs, part.advantages, entropy, log_probs, part.mask, part.old)
        assert torch.equal(part.selected, RULES["high_entropy"][0](facts))
