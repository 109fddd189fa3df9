"""What a bonus on representations adds to the training step, with stock transformers as the oracle of representations."""

import functools

import pytest
import torch
from strategies import neighbor_mix
from updates import TINY, Still, Watched, fit, made

from ngrpo.algorithm.advantages import group_normalized
from ngrpo.algorithm.bonus import elliptical
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.models.loading import load
from ngrpo.rollout.keys import row_key
from ngrpo.rollout.sampling import groups_of
from ngrpo.training.reference import Reference
from ngrpo.training.replay import replay

BONUS = functools.partial(elliptical, beta=0.5, dimensions=8, ridge=3.0)


def test_features_are_the_mean_of_the_last_hidden_states_over_the_answer():
    parts = fit(made(Still, dtype="float64"))
    reference, rollouts = Reference(load(TINY, "float64")), parts.outcomes[0].answers.rollouts
    found = reference.features(TokenSampling(1.0), rollouts, 5)
    for row in range(16):
        prompt = rollouts.prompts[row][rollouts.prompt_mask[row]]
        answer = rollouts.steps.tokens[row][rollouts.mask[row]]
        hidden = reference.model.model.model(torch.cat((prompt, answer))[None]).last_hidden_state[0]
        torch.testing.assert_close(found[row], hidden[len(prompt) :].mean(dim=0).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", [TokenSampling(1.0), neighbor_mix(0.5, 3)], ids=["tokens", "mixtures"])
def test_features_know_neither_micro_batches_nor_padding_nor_the_order_of_rows(strategy):
    parts = fit(made(Still, dtype="float64", strategy=strategy))
    reference, rollouts = Reference(load(TINY, "float64")), parts.outcomes[0].answers.rollouts
    whole = reference.features(strategy, rollouts, 16)
    order = torch.tensor([9, 2, 14, 0, 7])
    for rows in (1, 3):
        torch.testing.assert_close(reference.features(strategy, rollouts, rows), whole, rtol=1e-6, atol=1e-6)
        part = reference.features(strategy, rollouts.rows(order), rows)
        torch.testing.assert_close(part, whole[order], rtol=1e-6, atol=1e-6)


def test_the_gradient_with_a_bonus_is_that_of_rewards_with_it():
    """Two groups of the four have a right answer; the others get no bonus and have no advantage."""

    def wanted(problem, index) -> bool:
        return index == 0 and int(problem.id[-1]) % 2 == 0

    changes = {"dtype": "float64", "micro_batch_rows": 5, "reference": Reference(load(TINY, "float64"))}
    parts = fit(made(Still, wanted, bonus=BONUS, **changes))
    policy, answers = parts.policy, parts.outcomes[0].answers
    features = changes["reference"].features(policy.strategy, answers.rollouts, 16).double().view(4, 4, -1)
    groups = groups_of(answers, parts.sampler)
    earned = groups.rewards + BONUS(groups, features, row_key("features", 3, 1))
    advantages = group_normalized(earned).view(-1, 1)
    new, mask = replay(policy.model, policy.strategy, answers.rollouts).log_probs, answers.rollouts.loss_mask
    loss = -((new - new.detach()).exp() * advantages)[mask].mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.model.parameters()))])
    assert (parts.gradients[0] - expected).norm() < 1e-6 * expected.norm()
    plain = fit(made(Still, wanted, dtype="float64")).gradients[0]
    assert (plain - expected).norm() > 1e-2 * expected.norm(), "else the bonus would not matter here"
    assert torch.equal((earned != groups.rewards).any(dim=1), groups.correct.any(dim=1))


def test_representations_are_those_of_the_model_before_training_and_resume_with_it(tmp_path):
    def trained(steps, folder):
        reference = Reference(load(TINY))
        changes = {"bonus": BONUS, "reference": reference, "learning_rate": 1e-2}
        return reference, fit(made(Watched, steps=steps, **changes), folder)

    reference, whole = trained(3, tmp_path / "whole")
    for name, value in load(TINY).state_dict().items():
        assert torch.equal(reference.model.state_dict()[name], value)
    trained(1, tmp_path / "cut")
    _, again = trained(3, tmp_path / "cut")
    for name, value in whole.policy.model.state_dict().items():
        assert torch.equal(again.policy.model.state_dict()[name], value)
    assert all(outcome.metrics["kl"] != outcome.metrics["kl"] for outcome in whole.outcomes), "no KL was asked for"
