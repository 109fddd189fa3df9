"""Groups that a step keeps and has no room for: they are first in the next one, through kills and on other ranks."""

import itertools

import pytest
import torch
from strategies import neighbor_mix
from updates import Stepping, Watched, difficulty, fit, made, make

from ngrpo.algorithm import groups
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.ranks import Ranks
from ngrpo.rollout.join import packed, unpacked
from ngrpo.rollout.keys import row_key
from ngrpo.rundir import checkpoints
from ngrpo.training.collect import problems_of
from ngrpo.training.replay import replay

PROMPTS, STEPS = 6, 5
SETTINGS = {"group_filter": groups.mixed, "max_resamples": 3, "prompts_per_step": PROMPTS, "learning_rate": 1e-3}


def sometimes(problem, index) -> bool:
    """Two thirds of the groups are mixed, so that the second draw of a step mostly keeps more than there is room for."""
    return index < difficulty(problem)


def trained(steps: int = STEPS, strategy=None, folder=None, **changes):
    return fit(made(Stepping, sometimes, strategy=strategy, steps=steps, **{**SETTINGS, **changes}), folder)


def carried(batch) -> int:
    """Groups that were drawn in the step before."""
    return 0 if batch.off_policy is None else int(batch.off_policy[:, 0].sum()) // 4


@pytest.mark.parametrize("carry", [True, False])
def test_a_step_takes_what_waits_then_what_it_keeps_and_leaves_the_rest(carry):
    """The rule again in plain lists: problems in the order of their draws, whole groups, each drawn where it says."""
    parts, waiting = trained(carry_surplus=carry), []
    for outcome, batch in zip(parts.outcomes, parts.policy.batches, strict=True):
        kept, draws = list(waiting), 0
        for draw in range(4):
            every = problems_of(parts.task, parts.policy.config, outcome.step, draw)
            kept += [(outcome.step, draw, problem.id) for problem in every if difficulty(problem) > 0]
            draws += 1
            if len(kept) >= PROMPTS:
                break
        rows = [(3, *group, index) for group in kept[:PROMPTS] for index in range(4)]
        assert outcome.answers.rollouts.keys.tolist() == [row_key(*row) for row in rows]
        assert [problem.id for problem in outcome.answers.problems] == [name for *_, name in kept[:PROMPTS]]
        assert outcome.metrics["draws"] == draws and outcome.metrics["surplus"] == len(kept) - PROMPTS
        assert carried(batch) == len(waiting) and batch.mask.any(dim=1).all()
        waiting = kept[PROMPTS:] if carry else []
    assert {outcome.metrics["surplus"] for outcome in parts.outcomes} > {0.0}


def test_the_ratio_of_a_carried_answer_is_to_the_policy_that_drew_it():
    """The gradient of the second step by hand in float64: rows that waited have a ratio, the others have 1."""
    parts, before = (trained(steps, dtype="float64") for steps in (2, 1))
    batch, outcome, model = parts.policy.batches[1], parts.outcomes[1], before.policy.model
    rollouts, counts = outcome.answers.rollouts, outcome.answers.rollouts.loss_mask
    rewards = torch.tensor([score.reward for score in outcome.answers.scores], dtype=torch.float64).view(PROMPTS, 4)
    advantages = (rewards - rewards.mean(dim=1, keepdim=True)) / (rewards.std(dim=1, keepdim=True) + 1e-6)
    new, advantages = replay(model, before.policy.strategy, rollouts).log_probs, advantages.view(-1, 1)
    waited = torch.arange(4 * PROMPTS)[:, None] < 4 * int(before.outcomes[0].metrics["surplus"])
    ratio = (new - torch.where(waited, rollouts.log_probs.double(), new.detach())).exp()
    assert carried(batch) > 0 and (ratio - 1)[waited & counts].abs().max() > 1e-3

    def gradient(ratio: torch.Tensor) -> torch.Tensor:
        loss = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)[counts].mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)])

    expected, blind = gradient(ratio), gradient((new - new.detach()).exp())
    assert (parts.policy.gradients[1] - expected).norm() < 1e-6 * expected.norm()
    assert (blind - expected).norm() > 1e-3 * expected.norm(), "else the ratio would not matter here"
    assert outcome.metrics["engine_gap"] < 1e-6, "what a step changes is no gap of the engine"


STRATEGIES = {"tokens": lambda: TokenSampling(1.0), "mixtures": lambda: neighbor_mix(0.5, 3)}


@pytest.mark.parametrize("name", [pytest.param("tokens", marks=pytest.mark.slow), "mixtures"])
def test_what_waits_survives_a_stop_after_any_step_to_the_bit(name, tmp_path):
    whole = trained(strategy=STRATEGIES[name]())
    for stop in range(1, STEPS):
        folder = tmp_path / str(stop)
        trained(stop, STRATEGIES[name](), folder)
        saved = checkpoints.newest(folder / "checkpoints")
        assert saved is not None
        state = saved[1]
        assert [part is not None for part in state["waiting"]] == [whole.outcomes[stop - 1].metrics["surplus"] > 0]
        again = trained(strategy=STRATEGIES[name](), folder=folder)
        assert [o.step for o in again.outcomes] == list(range(stop + 1, STEPS + 1))
        for one, other in zip(again.outcomes, whole.outcomes[stop:], strict=True):
            assert {n: v for n, v in one.metrics.items() if v == v} == {
                n: v for n, v in other.metrics.items() if v == v
            }
            assert torch.equal(one.answers.rollouts.log_probs, other.answers.rollouts.log_probs)
        for key, value in whole.policy.model.state_dict().items():
            assert torch.equal(again.policy.model.state_dict()[key], value)
    assert sum(outcome.metrics["surplus"] > 0 for outcome in whole.outcomes[:-1]) >= 2


def test_other_ranks_are_dealt_whole_groups():
    first, second = (outcome.answers for outcome in fit(make(neighbor_mix(0.5, 3), Watched, steps=2)).outcomes)
    parts, device = [packed(first), None, packed(second)], torch.device("cpu")
    for rank, answers in ((0, first), (2, second)):
        found = unpacked(parts, Ranks(rank, 3), device)
        assert found is not None and found.problems == answers.problems and found.scores == answers.scores
        assert torch.equal(found.rollouts.log_probs, answers.rollouts.log_probs)
        weights = [one.rollouts.steps.mix_weights for one in (found, answers)]
        assert weights[0] is not None and weights[1] is not None and torch.equal(weights[0], weights[1])
    assert unpacked(parts, Ranks(1, 3), device) is None and unpacked([None, None], Ranks(0, 1), device) is None
    shares = [share for rank in range(2) if (share := unpacked(parts, Ranks(rank, 2), device)) is not None]
    everything = list(itertools.chain(first.problems, second.problems))
    assert [share.problems for share in shares] == [everything[::2], everything[1::2]]
    keys = torch.cat((first.rollouts.keys, second.rollouts.keys)).view(8, 4)
    assert torch.equal(shares[1].rollouts.keys.view(4, 4), keys[1::2])
