"""The training step: gradients against an independent computation, whatever the split into micro-batches or processes."""

import math
from functools import partial

import pytest
import torch
from strategies import gaussian_noise, neighbor_ids, neighbor_mix
from updates import TINY, Watched, difference_of_two_processes, fit, make, mixed, training

from ngrpo.algorithm import advantages, groups, losses
from ngrpo.algorithm.inputs import TokenLoss
from ngrpo.algorithm.losses import KL_ESTIMATORS
from ngrpo.exploration.stht import SoftTokens
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.models.loading import load
from ngrpo.rollout.records import NotFinite
from ngrpo.rollout.sampling import groups_of
from ngrpo.rundir import checkpoints
from ngrpo.tasks.base import Score
from ngrpo.tasks.story_math import StoryMath
from ngrpo.training.collect import problems_of
from ngrpo.training.reference import Reference
from ngrpo.training.replay import micro_batches


@pytest.fixture(autouse=True)
def reproducible():
    torch.manual_seed(0)


STRATEGIES = {
    "token_sampling": lambda: TokenSampling(0.8),
    "neighbor_mix": lambda: neighbor_mix(rate=0.4, k=3, temperature=0.8),
    "gaussian_noise": lambda: gaussian_noise(rate=0.4, scale=0.3),
    "stht": lambda: SoftTokens(0.5, 0.33),
}


OF_WHOLES = [name for name in losses.AGGREGATIONS if name != "token_mean_of_micro_batches"]
PAIRS = [(name, "token_mean") for name in STRATEGIES] + [("neighbor_mix", other) for other in OF_WHOLES]


@pytest.mark.parametrize(("name", "aggregation"), dict.fromkeys(PAIRS))
def test_micro_batches_do_not_change_the_gradient(name, aggregation):
    whole, split = (
        fit(make(STRATEGIES[name](), aggregation=aggregation, micro_batch_rows=rows)).gradients[0] for rows in (16, 3)
    )
    # Not closer: a prompt is read once for those of its rows that are together, and the stock norms round to float32.
    assert 0 < (split - whole).norm() < 1e-7 * whole.norm()


def test_a_token_mean_of_micro_batches_is_that_of_the_whole_for_one_of_them_only():
    anew = partial(make, aggregation="token_mean_of_micro_batches")
    split = fit(anew(micro_batch_rows=6))
    rollouts = split.outcomes[0].answers.rollouts
    lengths = [int(rollouts.lengths[index].sum()) for index in micro_batches(rollouts, 6)]
    assert len(lengths) == 3 and len(set(lengths)) > 1
    whole, plain = fit(anew()).gradients[0], fit(make(aggregation="token_mean")).gradients[0]
    assert torch.equal(whole, plain)
    assert (split.gradients[0] - whole).norm() > 0.01 * whole.norm()


def test_the_gradient_is_that_of_the_formula():
    """GRPO by hand: unpadded forward passes of the stock model, one row at a time, float64."""
    parts = fit(make(aggregation="sequence_mean_token_mean"))
    outcome = parts.outcomes[0]
    rollouts, model = outcome.answers.rollouts, load(TINY, "float64").model
    rewards = torch.tensor([score.reward for score in outcome.answers.scores], dtype=torch.float64).view(4, 4)
    loss = torch.zeros((), dtype=torch.float64)
    for row in range(16):
        group = rewards[row // 4]
        advantage = (rewards.flatten()[row] - group.mean()) / (group.std() + 1e-6) if group.std() > 0 else 0.0
        prompt = rollouts.prompts[row][rollouts.prompt_mask[row]]
        answer = rollouts.steps.tokens[row][rollouts.mask[row]]
        logits = model(torch.cat((prompt, answer))[None]).logits[0, len(prompt) - 1 : -1]
        log_probs = logits.log_softmax(-1).gather(1, answer[:, None]).squeeze(1)
        loss = loss - (advantage * (log_probs - log_probs.detach()).exp()).mean() / 16
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (parts.gradients[0] - expected).norm() / expected.norm() < 1e-6  # advantages are float32


def test_rate_zero_gives_the_gradient_of_token_sampling_bit_by_bit():
    plain = fit(make(TokenSampling(1.0), dtype="float32")).gradients[0]
    for idle in (neighbor_mix(rate=0.0, k=3), gaussian_noise(rate=0.0, scale=0.3)):
        assert torch.equal(fit(make(idle, dtype="float32")).gradients[0], plain)


def test_homogeneous_groups_leave_the_weights_alone():
    parts = make(kind=Watched, dtype="float32", steps=2)
    parts.task.score = lambda problems, completions: [Score(1.0, "correct", None, "") for _ in completions]
    before = [p.detach().clone() for p in parts.policy.model.parameters()]
    fit(parts)
    assert len(parts.outcomes) == 2
    assert all(torch.equal(a, b) for a, b in zip(before, parts.policy.model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["token_sampling", "neighbor_mix", "gaussian_noise"])
def test_the_kl_to_an_equal_reference_is_zero(name):
    kl = {"coefficient": 0.1, "estimator": "k3", "placement": "loss"}
    reference = Reference(load(TINY, "float64"))
    parts = fit(make(STRATEGIES[name](), Watched, reference=reference, kl=kl, steps=2, learning_rate=1e-3))
    first, second = (outcome.metrics["kl"] for outcome in parts.outcomes)
    assert abs(first) < 1e-12 and second > 1e-6


def test_kl_in_the_reward_moves_the_advantages():
    kl = {"coefficient": 0.5, "estimator": "k1", "placement": "reward"}
    parts = make(kl=kl, advantage=advantages.group_centered)
    answers = fit(parts).outcomes[0].answers
    old = answers.rollouts.log_probs
    reference = old - 0.1 * answers.rollouts.loss_mask
    rewards = torch.tensor([score.reward for score in answers.scores], dtype=torch.float64)
    rewards = (rewards - 0.5 * 0.1 * answers.rollouts.loss_mask.sum(dim=1)).view(4, 4)
    expected = (rewards - rewards.mean(dim=1, keepdim=True)).flatten()
    penalty = 0.5 * KL_ESTIMATORS["k1"](old, reference)
    made = parts.policy.algorithm.group_advantages(
        groups_of(answers, parts.sampler), penalty, answers.rollouts.loss_mask
    )[:, 0].double()
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)


def test_advantages_can_be_brought_to_the_size_of_grpos():
    """Focal weights make them smaller; matched, the same answers get GRPO's mean size, and each keeps its share of it."""
    weigh = partial(groups.focal, gamma=2.0)
    plain, focal, matched = (
        fit(parts).outcomes[0] for parts in (make(), make(reweight=weigh), make(reweight=weigh, match_norm="grpo"))
    )
    assert focal.metrics["advantage_size"] < 0.9 * plain.metrics["advantage_size"]
    assert matched.metrics["advantage_size"] == pytest.approx(plain.metrics["advantage_size"], rel=1e-5)
    ratio = plain.metrics["advantage_size"] / focal.metrics["advantage_size"]
    assert matched.metrics["loss"] == pytest.approx(ratio * focal.metrics["loss"], rel=1e-4, abs=1e-9)


def test_later_updates_see_ratios_and_clip():
    several = {"inner_epochs": 3, "mini_batches": 2, "learning_rate": 1e-3}
    parts = fit(make(neighbor_mix(rate=0.3, k=3), Watched, dtype="float32", **several))
    metrics = parts.outcomes[0].metrics
    assert metrics["clip_fraction"] > 0 and math.isfinite(metrics["loss"])
    still = fit(make(neighbor_mix(rate=0.3, k=3), Watched, dtype="float32", **{**several, "learning_rate": 0.0}))
    assert still.outcomes[0].metrics["clip_fraction"] == 0
    assert still.outcomes[0].metrics["engine_gap"] < 1e-5


def test_mini_batches_cover_every_row_once():
    whole = fit(make(aggregation="sequence_mean_token_sum")).gradients[0]
    halves = fit(make(aggregation="sequence_mean_token_sum", mini_batches=2)).gradients
    torch.testing.assert_close(sum(halves) / 2, whole, rtol=1e-9, atol=1e-12 * float(whole.abs().max()))


def test_weights_that_are_not_finite_stop_the_run():
    model = load(TINY)
    model.model.model.layers[0].mlp.up_proj.weight.data[0, 0] = math.nan
    with pytest.raises(NotFinite, match=r"RL step 1.*finite"):
        fit(make(kind=Watched, model=model))


def test_a_gradient_that_is_not_finite_stops_the_run():
    def broken(inputs):
        return TokenLoss(inputs.log_probs * math.inf, torch.zeros_like(inputs.mask))

    with pytest.raises(NotFinite, match="gradient"):
        fit(make(kind=Watched, dtype="float32", loss=broken))


def test_every_pass_shows_every_problem_once():
    task, plan = StoryMath("train", [2], 12), training(prompts_per_step=4, steps=6)
    passes = [[p.id for step in steps for p in problems_of(task, plan, step)] for steps in ((1, 2, 3), (4, 5, 6))]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(task.problems[i].id for i in range(12))
    assert passes[0] != passes[1]


def test_two_processes_have_the_gradient_of_one(tmp_path):
    assert difference_of_two_processes(tmp_path, mixed) < 1e-5


def test_a_checkpoint_holds_plain_containers_and_brings_everything_back(tmp_path):
    parts = fit(make(neighbor_mix(rate=0.3, k=3), Watched, dtype="float32", steps=2), tmp_path)
    policy = parts.policy
    found = checkpoints.newest(tmp_path / "checkpoints")
    assert found is not None
    step, state = found
    assert step == 2 and set(state) == {"model", "strategy", "optimizer", "schedule", "rng", "waiting", "recorder"}
    other = make(neighbor_mix(rate=0.3, k=3), Watched, dtype="float32", steps=2)
    assert not all(map(torch.equal, policy.model.parameters(), other.policy.model.parameters()))
    assert not fit(other, tmp_path).outcomes, "no step is left"
    for name, value in policy.model.state_dict().items():
        assert torch.equal(other.policy.model.state_dict()[name], value)
    assert torch.equal(neighbor_ids(other.policy.strategy), neighbor_ids(policy.strategy))
    states = [p.stepper.state.values() for p in (policy, other.policy)]
    moments = [torch.cat([state["exp_avg"].flatten() for state in part]) for part in states]
    assert torch.equal(*moments) and moments[0].norm() > 0
