"""One mask per rollout: where it acts, where it does not, and that a replay has the same."""

import copy

import pytest
import torch
from thinning import thinned
from torch import Tensor

from ngrpo.exploration.rollout_dropout import RolloutDropout
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.models.causal import CausalModel
from ngrpo.rollout.records import Rollouts
from ngrpo.training.replay import replay


def weighted(model: CausalModel, strategy, rollouts: Rollouts) -> Tensor:
    """A loss in which every token has a weight of its own."""
    return (replay(model, strategy, rollouts).log_probs * rollouts.draws.token * rollouts.loss_mask).sum()


def gradients(model: CausalModel, strategy, rollouts: Rollouts) -> list[Tensor]:
    return list(torch.autograd.grad(weighted(model, strategy, rollouts), list(model.parameters())))


def test_entries_that_stay_make_up_for_those_that_are_dropped(make_keys):
    masks = RolloutDropout(0.2).masks(make_keys(64), layers=3, width=40)
    assert masks is not None and masks.shape == (64, 3, 40) and masks.dtype == torch.float32
    assert set(masks.unique().tolist()) == {0.0, 1.25}
    kept = (masks > 0).double()
    assert abs(kept.mean() - 0.8) < 5 * (0.16 / kept.numel()) ** 0.5
    rows = kept.flatten(1) - 0.8
    alike = (rows @ rows.T / rows.shape[1] / 0.16).fill_diagonal_(0)
    assert alike.abs().max() < 5.5 / rows.shape[1] ** 0.5, "rows have masks of their own"
    layers = (kept - 0.8).transpose(0, 1).flatten(1)
    assert (layers @ layers.T / layers.shape[1] / 0.16).fill_diagonal_(0).abs().max() < 5 / layers.shape[1] ** 0.5


def test_a_mask_is_a_function_of_its_key(make_keys):
    keys = make_keys(12)
    whole = RolloutDropout(0.3).masks(keys, 2, 10)
    part = RolloutDropout(0.3).masks(keys[[7, 2]], 2, 10)
    assert whole is not None and part is not None and torch.equal(part, whole[[7, 2]])


def test_without_dropout_it_is_token_sampling_to_the_bit(make_model, make_vocabulary, ready, make_rollouts):
    model, vocabulary = make_model(), make_vocabulary()
    ours, plain = (ready(strategy, model, vocabulary) for strategy in (RolloutDropout(0.0), TokenSampling()))
    drawn = [make_rollouts(model, strategy) for strategy in (ours, plain)]
    assert torch.equal(drawn[0].steps.tokens, drawn[1].steps.tokens)
    assert torch.equal(drawn[0].log_probs, drawn[1].log_probs)
    pairs = zip(gradients(model, ours, drawn[0]), gradients(model, plain, drawn[1]), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_only_the_first_token_is_drawn_as_without_dropout(make_model, make_vocabulary, ready, make_rollouts):
    """It follows the prompt, which rows share and which is read without a mask; every later one follows a masked token."""
    model, vocabulary = make_model(dtype=torch.float64), make_vocabulary()
    ours, plain = (ready(strategy, model, vocabulary) for strategy in (RolloutDropout(0.3), TokenSampling()))
    rollouts = make_rollouts(model, ours, prompts=6, group=4)
    gap = (replay(model, plain, rollouts).log_probs - rollouts.log_probs).detach().abs()
    assert gap[:, 0].max() < 1e-9
    assert gap[:, 1:][rollouts.mask[:, 1:]].min() > 1e-6


def test_the_gradient_is_that_of_the_stock_model_with_the_same_entries_dropped(
    make_model, make_vocabulary, ready, make_rollouts
):
    model, stock = make_model(dtype=torch.float64), make_model(dtype=torch.float64).model
    stock.set_attn_implementation("sdpa")
    strategy = ready(RolloutDropout(0.3), model, make_vocabulary())
    rollouts, total = make_rollouts(model, strategy), torch.zeros((), dtype=torch.float64)
    masks = strategy.masks(rollouts.keys, *model.attended)
    for row, length in enumerate(rollouts.lengths.tolist()):
        prompt, answer = rollouts.prompts[row][rollouts.prompt_mask[row]], rollouts.steps.tokens[row, :length]
        fed = stock.get_input_embeddings().weight[torch.cat((prompt, answer[:-1]))]  # of padding too, unlike the module
        with thinned(stock, masks, row, len(prompt)):
            logits = stock(inputs_embeds=fed[None]).logits[0, len(prompt) - 1 :]
        log_probs = logits.log_softmax(-1).gather(1, answer[:, None]).squeeze(1)
        total = total + (log_probs * rollouts.draws.token[row, :length]).sum()
    expected = torch.autograd.grad(total, list(stock.parameters()))
    for ours, theirs in zip(gradients(model, strategy, rollouts), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * max(1.0, float(theirs.abs().max())))


def test_layers_that_are_computed_again_have_the_same_mask(make_model, make_vocabulary, ready, make_rollouts):
    """Another replay, of other rows, comes between the forward and the backward pass."""
    model = make_model(dtype=torch.float64)
    saving = CausalModel(copy.deepcopy(model.model), recompute=True, compared=True)
    strategy = ready(RolloutDropout(0.3), model, make_vocabulary())
    rollouts = make_rollouts(model, strategy)
    loss = weighted(saving, strategy, rollouts)
    weighted(saving, strategy, rollouts.rows(torch.tensor([3, 1])))
    found = torch.autograd.grad(loss, list(saving.parameters()))
    for ours, theirs in zip(found, gradients(model, strategy, rollouts), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_share_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="dropout=1"):
        RolloutDropout(1)
