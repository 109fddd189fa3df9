"""Neighbor mixing and noise over whole texts, with the loss on them."""

import pytest
import torch
from decode_step import random, recipe, thinking_part
from strategies import gaussian_noise, neighbor_mix

from ngrpo.algorithm.inputs import LossInputs
from ngrpo.algorithm.losses import clipped_surrogate
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.engines import transformers as engine
from ngrpo.rollout.engines.transformers import generate
from ngrpo.rollout.records import Vocabulary
from ngrpo.training.replay import replay


def loss_and_gradient(model, strategy, rollouts):
    model.zero_grad()
    log_probs = replay(model, strategy, rollouts).log_probs
    advantages = random(len(rollouts.mask), 1, seed=3).expand(rollouts.mask.shape)
    made = clipped_surrogate(LossInputs(log_probs, log_probs.detach(), advantages, rollouts.loss_mask)).loss
    loss = (made * rollouts.loss_mask).sum()
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(
    "strategy",
    [
        neighbor_mix(0.0, 3),
        neighbor_mix(0.0, 3, text_token="sampled", loss_on_mixed_steps="mask"),
        gaussian_noise(0.0, 0.5),
        gaussian_noise(0.7, 0.0),
    ],
    ids=["mix", "mix sampled", "noise", "noise of size 0"],
)
def test_exploring_nowhere_is_token_sampling_to_the_last_bit(setting, ready, make_rollouts, strategy):
    model, vocabulary = setting
    ours, plain = ready(strategy, model, vocabulary), ready(TokenSampling(), model, vocabulary)
    made, expected = (make_rollouts(model, part, new_tokens=20) for part in (ours, plain))
    assert made.answer_ids() == expected.answer_ids()
    assert torch.equal(made.log_probs, expected.log_probs) and torch.equal(made.entropy, expected.entropy)
    loss, gradient = loss_and_gradient(model, ours, made)
    expected_loss, expected_gradient = loss_and_gradient(model, plain, expected)
    assert torch.equal(loss, expected_loss)
    assert all(torch.equal(a, b) for a, b in zip(gradient, expected_gradient, strict=True))


def test_mixing_everywhere_with_one_candidate_is_greedy_until_the_answer(
    make_model, make_vocabulary, ready, make_rollouts
):
    compared = 0
    for seed in range(4):
        model, vocabulary = make_model(seed=seed), make_vocabulary(seed=seed)
        mixing, greedy = ready(neighbor_mix(1.0, 1), model, vocabulary), ready(TokenSampling(1e-6), model, vocabulary)
        made, expected = (make_rollouts(model, part, group=1, prompts=6) for part in (mixing, greedy))
        for a, b in zip(made.answer_ids(), expected.answer_ids(), strict=True):
            assert thinking_part(a, vocabulary) == thinking_part(b, vocabulary)
            compared += len(thinking_part(a, vocabulary))
    assert compared > 100


def test_mixing_everywhere_makes_thinking_independent_of_the_seed_and_equal_in_a_group(
    make_model, make_vocabulary, ready, make_rollouts
):
    ended = differ = 0
    for seed in range(6):
        model, vocabulary = make_model(seed=seed), make_vocabulary(seed=seed)
        strategy = ready(neighbor_mix(1.0, 3), model, vocabulary)
        runs = [make_rollouts(model, strategy, prompts=6, group=3, seed=s).answer_ids() for s in "ab"]
        for first in range(0, 18, 3):
            group = [text for run in runs for text in run[first : first + 3]]
            thoughts = {tuple(thinking_part(text, vocabulary)) for text in group}
            assert len(thoughts) == 1
            ended += tuple(vocabulary.answer_start) == next(iter(thoughts))[-2:]
            differ += len({tuple(text) for text in group}) > 1
    assert ended and differ, "some texts reach their answer, and answers are sampled"


@pytest.mark.parametrize("text_token", ["anchor", "sampled"])
def test_masking_removes_the_mixed_steps_from_the_loss_and_nothing_else(setting, ready, make_rollouts, text_token):
    model, vocabulary = setting
    keep, mask = (
        ready(neighbor_mix(0.5, 3, text_token=text_token, loss_on_mixed_steps=mode), model, vocabulary)
        for mode in ("keep", "mask")
    )
    kept, masked = (make_rollouts(model, part) for part in (keep, mask))
    assert kept.answer_ids() == masked.answer_ids() and torch.equal(kept.loss_mask, kept.mask)
    assert masked.steps.explored.any() and torch.equal(masked.loss_mask, masked.mask & ~masked.steps.explored)
    log_probs = replay(model, mask, masked).log_probs
    assert not log_probs[masked.steps.explored].any()
    torch.testing.assert_close(log_probs, replay(model, keep, kept).log_probs * masked.loss_mask, rtol=0, atol=1e-5)


def test_top_p_and_mixing_go_together(setting, ready, make_rollouts):
    model, vocabulary = setting
    strategy = ready(neighbor_mix(0.3, 3, top_p=0.7), model, vocabulary)
    rollouts = make_rollouts(model, strategy)
    assert rollouts.log_probs.isfinite().all() and rollouts.steps.explored.any()
    assert (replay(model, strategy, rollouts).log_probs - rollouts.log_probs)[rollouts.loss_mask].abs().max() < 1e-5


@pytest.mark.parametrize("below", [0.0, 0.75, 2.0])
def test_a_chosen_step_that_is_not_mixed_is_recorded_as_it_was_fed(setting, ready, monkeypatch, below):
    """Also where rows left the batch and no step mixed until rows left again."""
    monkeypatch.setattr(engine, "COMPACT_BELOW", below)
    model, _ = setting
    strategy = ready(neighbor_mix(1.0, 3), model, Vocabulary(60, tuple(range(40)), (0, 1, 2, 3)))
    prompts = torch.randint(4, 60, (6, 5), generator=torch.Generator().manual_seed(0))
    rollouts = generate(model, strategy, prompts, torch.ones(6, 5).bool(), torch.arange(6), 12)
    chosen = rollouts.steps.explored & rollouts.mask
    _, weights = recipe(rollouts.steps)
    assert chosen.any() and (weights[..., 0] == 1)[chosen].any()
    weights = weights[chosen].sum(-1)
    torch.testing.assert_close(weights, torch.ones_like(weights), rtol=0, atol=1e-6)
    assert (replay(model, strategy, rollouts).log_probs - rollouts.log_probs)[rollouts.loss_mask].abs().max() < 1e-5
