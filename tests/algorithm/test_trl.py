"""Losses, their gradients, aggregations and KL against those of TRL on the same float64 tensors."""

import math
import os
from collections import defaultdict
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from ngrpo.algorithm.algorithm import Algorithm
from ngrpo.algorithm.inputs import Counts, LossInputs, Tokens
from ngrpo.algorithm.losses import (
    clipped_surrogate,
    clipped_weight,
    geometric_surrogate,
    sequence_surrogate,
)
from ngrpo.algorithm.selections import high_entropy, selected_only

trl = pytest.importorskip("trl")

ROWS, LENGTH, LIMIT = 10, 13, 20
ACCELERATOR = SimpleNamespace(
    num_processes=1,
    sync_gradients=True,
    gather=lambda values: values,
    reduce=lambda values, reduction: values,
    pad_across_processes=lambda values, dim, pad_index: values,
)


@pytest.fixture(scope="module")
def trainer():
    return trl.GRPOTrainer


@pytest.fixture(scope="module")
def geometric_trainer():
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    return pytest.importorskip("trl.experimental.gmpo").GMPOTrainer


def inputs(seed: int, spread: float = 0.3) -> dict[str, torch.Tensor]:
    """An advantage per answer, log-probabilities of three policies, entropies and ragged masks without empty answers."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    old = -normal(ROWS, LENGTH).exp()
    lengths = torch.randint(1, LENGTH + 1, (ROWS, 1), generator=generator)
    return {
        "log_probs": old + spread * normal(ROWS, LENGTH),
        "old": old,
        "reference": old + 0.5 * normal(ROWS, LENGTH),
        "advantages": 1.5 * normal(ROWS, 1),
        "entropy": normal(ROWS, LENGTH).abs().float().double(),  # TRL compares entropies with a float32 threshold
        "mask": torch.arange(LENGTH) < lengths,
    }


def theirs(trainer, given, **settings):
    """TRL's loss of one batch, with its own defaults for what is not given, and the gradient of the log-probabilities."""
    leaf, entropy, mask = given["log_probs"].clone().requires_grad_(), given["entropy"], given["mask"].long()
    stub = SimpleNamespace(
        args=SimpleNamespace(delta=settings.pop("delta", None), use_bias_correction_kl=False, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        accelerator=ACCELERATOR,
        loss_type="grpo",
        importance_sampling_level="token",
        epsilon_low=0.2,
        epsilon_high=0.2,
        beta=0.0,
        top_entropy_quantile=1.0,
        max_completion_length=LIMIT,
        current_gradient_accumulation_steps=1,
        use_vllm=False,
        aux_loss_enabled=False,
        off_policy_mask_threshold=None,
        use_adaptive_entropy=False,
        _entropy_bonus_enabled="entropy_coef" in settings,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (leaf, entropy, None),
    )
    for name, value in settings.items():
        setattr(stub, name, value)
    stub.get_high_entropy_mask = partial(trainer.get_high_entropy_mask, stub)
    batch = {
        "prompt_ids": mask[:, :1],
        "prompt_mask": mask[:, :1],
        "completion_ids": mask,
        "completion_mask": mask,
        "advantages": given["advantages"][:, 0],
        "old_per_token_logps": given["old"],
        "ref_per_token_logps": given["reference"],
        "num_items_in_batch": mask.sum(),
    }
    loss = trainer._compute_loss(stub, None, batch)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def ours(given, loss, aggregation, *, beta=0.0, entropy_bonus=0.0, selected=None):
    leaf, mask = given["log_probs"].clone().requires_grad_(), given["mask"]
    kl = {"coefficient": beta, "estimator": "k3", "placement": "loss"}
    algorithm = Algorithm(lambda rewards: rewards, loss, aggregation, kl, entropy_bonus=entropy_bonus)
    entropy = given["entropy"] if entropy_bonus else None
    facts = LossInputs(
        leaf, given["old"], given["advantages"].expand_as(leaf), mask, selected=selected, entropy=entropy
    )
    tokens, _ = algorithm.token_loss(facts, given["reference"] if beta else None)
    counts = Counts(mask.sum().double(), mask.any(dim=1).sum().double(), LIMIT)
    total = (tokens.loss * algorithm.token_weights(mask, counts)).sum()
    return total.detach(), torch.autograd.grad(total, leaf)[0]


def agree(made, expected):
    torch.testing.assert_close(made, expected, rtol=1e-6, atol=1e-9)
    assert expected[1].any()


AGGREGATIONS = {
    "grpo": "sequence_mean_token_mean",
    "dapo": "token_mean",
    "bnpo": "token_mean",
    "dr_grpo": "sequence_mean_token_sum_norm",
    "luspo": "sequence_mean_token_sum",
}


@pytest.mark.parametrize("loss_type", AGGREGATIONS)
@pytest.mark.parametrize(("low", "high", "delta"), [(0.2, 0.2, None), (0.2, 0.28, None), (0.2, 0.2, 1.4)])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_token_ratios_and_aggregations(trainer, loss_type, low, high, delta, beta, spread):
    given = inputs(0, spread)
    settings = {"epsilon_low": low, "epsilon_high": high, "delta": delta, "beta": beta}
    loss = partial(clipped_surrogate, clip_low=low, clip_high=high, dual_clip=delta)
    expected = theirs(trainer, given, loss_type=loss_type, **settings)
    agree(ours(given, loss, AGGREGATIONS[loss_type], beta=beta), expected)


def test_delta_is_the_dual_clip(trainer):
    given = inputs(1, 1.0)
    without, bounded = (theirs(trainer, given, delta=delta) for delta in (None, 1.4))
    assert without[0] > bounded[0] + 1e-3
    agree(ours(given, partial(clipped_surrogate, dual_clip=1.4), "sequence_mean_token_mean"), bounded)


@pytest.mark.parametrize(
    ("low", "high", "delta"), [(3e-4, 4e-4, None), (3e-4, 4e-4, 1.05), (0.05, 0.05, 1.1), (0.2, 0.2, None)]
)
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_sequence_ratios(trainer, low, high, delta, beta):
    given = inputs(2)
    settings = {"epsilon_low": low, "epsilon_high": high, "delta": delta, "beta": beta}
    expected = theirs(trainer, given, importance_sampling_level="sequence", **settings)
    loss = partial(sequence_surrogate, clip_low=low, clip_high=high, dual_clip=delta)
    agree(ours(given, loss, "sequence_mean_token_mean", beta=beta), expected)


@pytest.mark.parametrize("bound", [5.0, 1.2])
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_bounded_weights(trainer, bound, beta):
    given = inputs(3, 1.0)
    expected = theirs(trainer, given, loss_type="cispo", epsilon_high=bound, beta=beta)
    loss = partial(clipped_weight, clip_low=1.0, clip_high=bound - 1)
    agree(ours(given, loss, "token_mean", beta=beta), expected)


@pytest.mark.parametrize("clip", [0.4, 0.1])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_geometric_mean(geometric_trainer, clip, beta, spread):
    given = inputs(4, spread)
    expected = theirs(geometric_trainer, given, epsilon_low=clip, epsilon_high=clip, beta=beta)
    agree(ours(given, partial(geometric_surrogate, clip=clip), "sequence_mean_token_mean", beta=beta), expected)


def test_entropy_bonus(trainer):
    given = inputs(5)
    expected = theirs(trainer, given, loss_type="dapo", entropy_coef=0.02)
    assert abs(expected[0] - theirs(trainer, given, loss_type="dapo")[0]) > 1e-3
    agree(ours(given, clipped_surrogate, "token_mean", entropy_bonus=0.02), expected)


def high_entropy_tokens(given, share):
    facts = [given[name].expand(ROWS, LENGTH) for name in ("old", "advantages", "entropy", "entropy", "mask", "old")]
    return high_entropy(Tokens._make(facts), share=share)


def their_mask(trainer, given, share):
    return trainer.get_high_entropy_mask(
        SimpleNamespace(accelerator=ACCELERATOR), given["entropy"], given["mask"].long(), 1 - share
    )


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_loss_of_the_tokens_of_high_entropy(trainer, loss_type, beta):
    given, share = inputs(8), 0.2  # 58 tokens, of which both definitions take 12
    selected = high_entropy_tokens(given, share)
    assert torch.equal(selected, their_mask(trainer, given, share))
    expected = theirs(trainer, given, loss_type=loss_type, top_entropy_quantile=share, beta=beta)
    agree(ours(given, selected_only, AGGREGATIONS[loss_type], beta=beta, selected=selected), expected)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.77])
def test_an_interpolated_quantile_differs_from_a_rounded_share_by_one_token_at_most(trainer, share):
    """TRL selects what reaches the interpolated quantile 1 - share: 1 + floor(share (n - 1)) of n tokens; ours is
    round(share n) of them. Both take the highest and, at the threshold, all that tie."""
    differences = set()
    for seed in range(40):
        given = inputs(seed)
        mine, other = high_entropy_tokens(given, share), their_mask(trainer, given, share)
        tokens = int(given["mask"].sum())
        assert mine.sum() == round(share * tokens) and other.sum() == 1 + math.floor(share * (tokens - 1))
        assert not (mine & ~other).any() or not (other & ~mine).any()
        differences.add(int(other.sum()) - int(mine.sum()))
    assert 0 in differences and differences <= {-1, 0, 1}


def test_ties_at_the_threshold_of_entropy(trainer):
    given = inputs(7)
    given["mask"] = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) < 11
    given["entropy"] = torch.tensor([0.5, 1.0, 2.0, 2.0, 2.0, 2.0, 3.0, 0.5, 0.5, 0.5, 0.5] + [9.0] * 119).double()
    given["entropy"] = given["entropy"].view(ROWS, LENGTH)
    made = high_entropy_tokens(given, 0.2)
    assert made.sum() == 5 and torch.equal(made, their_mask(trainer, given, 0.2))
