"""Which tokens are selected, against a brute-force computation in numpy; Clip-Cov and KL-Cov against verl's rules."""

from functools import partial

import numpy as np
import pytest
import torch

from ngrpo.algorithm.inputs import LossInputs, Tokens
from ngrpo.algorithm.selections import (
    covariance,
    covariance_band,
    covariance_top,
    high_entropy,
    high_entropy_of_row,
    selected_clipped,
    selected_penalized,
)

SELECTIONS = {
    "high_entropy": partial(high_entropy, share=0.25),
    "high_entropy_of_row": partial(high_entropy_of_row, quantile=0.6),
    "covariance_band": partial(covariance_band, share=0.1, low=0.2, high=3.0),
    "covariance_top": partial(covariance_top, share=0.1),
}


def random_tokens(seed: int = 0, rows: int = 14, length: int = 11) -> Tokens:
    generator = np.random.default_rng(seed)
    mask = generator.random((rows, length)) < 0.7
    mask[0], mask[1], mask[2], mask[2, 3] = True, False, False, True
    log_probs, entropy = -generator.exponential(1.5, (2, rows, length))
    advantages, uniform = generator.normal(0, 1.5, (rows, length)), generator.random((rows, length))
    old = log_probs + generator.normal(0, 0.2, (rows, length))
    return Tokens(*map(torch.tensor, (log_probs, advantages, -entropy, uniform, mask, old)))


def tokens(rows: int = 1, **facts) -> Tokens:
    """Zeros but for the facts that are given as lists."""
    given = {name: torch.as_tensor(value) for name, value in facts.items()}
    length = next(iter(given.values())).shape[1]
    zeros = torch.zeros(rows, length, dtype=torch.float64)
    everything = dict.fromkeys(Tokens._fields, zeros) | {"mask": torch.ones(rows, length).bool()}
    return Tokens(**(everything | given))


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("seed", range(5))
def test_a_token_that_does_not_count_is_never_selected_nor_read(name, seed):
    given = random_tokens(seed)
    made = SELECTIONS[name](given)
    assert made.dtype == torch.bool and made.any() and not made[~given.mask].any()
    for wild in (1e9, -1e9, float("nan")):
        facts = {name: part.masked_fill(~given.mask, wild) for name, part in given._asdict().items() if name != "mask"}
        spoilt = Tokens(**facts, mask=given.mask)
        assert torch.equal(SELECTIONS[name](spoilt), made)


@pytest.mark.parametrize("name", SELECTIONS)
def test_order_of_the_answers_and_width_of_the_padding_do_not_matter(name):
    given = random_tokens()
    made = SELECTIONS[name](given)
    order = torch.randperm(14, generator=torch.Generator().manual_seed(1))
    assert torch.equal(SELECTIONS[name](Tokens(*(part[order] for part in given))), made[order])
    wider = Tokens(*(torch.nn.functional.pad(part, (0, 4)) for part in given))
    assert torch.equal(SELECTIONS[name](wider)[:, :11], made) and not SELECTIONS[name](wider)[:, 11:].any()


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("shape", [(3, 4), (1, 1)])
def test_nothing_is_selected_where_nothing_counts(name, shape):
    nothing = torch.zeros(shape, dtype=torch.bool)
    facts = [torch.rand(shape, generator=torch.Generator().manual_seed(i)).double() for i in range(5)]
    made = SELECTIONS[name](Tokens(*facts[:4], mask=nothing, old=facts[4]))
    assert made.shape == shape and not made.any()


def test_a_single_token():
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[1, 2] = True
    given = random_tokens(rows=3, length=4)._replace(mask=mask)
    assert torch.equal(high_entropy(given), mask)
    assert torch.equal(covariance_top(given), mask)
    assert not covariance(given).any()
    assert torch.equal(covariance_band(given, low=-0.1, high=0.1), mask)
    for empty in (high_entropy_of_row(given), covariance_band(given)):
        assert not empty.any()


@pytest.mark.parametrize("share", [1e-6, 0.1, 0.2, 0.5, 0.999, 1.0])
def test_high_entropy_takes_its_share_of_the_whole_batch(share):
    given = random_tokens()
    values = np.sort(given.entropy.numpy()[given.mask.numpy()])[::-1]
    count = min(len(values), max(1, round(share * len(values))))
    expected = given.mask.numpy() & (given.entropy.numpy() >= values[count - 1])
    made = high_entropy(given, share=share)
    assert np.array_equal(made.numpy(), expected) and made.sum() == count


def test_ties_at_the_threshold_are_all_selected():
    given = tokens(entropy=[[1.0, 3.0, 2.0, 2.0, 2.0, 0.0, 9.0, 9.0]], mask=[[True] * 6 + [False] * 2])
    assert high_entropy(given, share=2 / 6).tolist() == [[False, True, True, True, True, False, False, False]]
    assert high_entropy(given, share=1 / 6).sum() == 1
    alike = tokens(entropy=[[0.5] * 5])
    assert high_entropy(alike, share=0.2).all() and not high_entropy_of_row(alike).any()


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_high_entropy_of_a_row_exceeds_its_own_quantile(quantile):
    given = random_tokens()
    made = high_entropy_of_row(given, quantile=quantile)
    for entropy, mask, chosen in zip(given.entropy.numpy(), given.mask.numpy(), made.numpy(), strict=True):
        if not mask.any():
            assert not chosen.any()
            continue
        ordered = np.sort(entropy[mask])
        place = quantile * (len(ordered) - 1)
        below, above = ordered[int(np.floor(place))], ordered[int(np.ceil(place))]
        assert np.array_equal(chosen, mask & (entropy > below + (place - np.floor(place)) * (above - below)))
    ten = tokens(entropy=[list(range(10))])
    assert high_entropy_of_row(ten, quantile=0.8)[0].tolist() == [False] * 8 + [True] * 2


def cut(given: Tokens, low: float = 0.2, high: float = 0.2) -> np.ndarray:
    """Where a clip leaves no gradient."""
    ratio, advantages = np.exp(given.log_probs.numpy() - given.old.numpy()), given.advantages.numpy()
    return np.where(advantages > 0, ratio > 1 + high, (advantages < 0) & (ratio < 1 - low))


def brute_covariance(given: Tokens) -> np.ndarray:
    """What the tokens that count deviate together; nan elsewhere."""
    log_probs, advantages, mask = given.log_probs.numpy(), given.advantages.numpy(), given.mask.numpy()
    out = np.full(mask.shape, np.nan)
    mean_a, mean_l = advantages[mask].mean(), log_probs[mask].mean()
    for index in zip(*mask.nonzero(), strict=True):
        out[index] = (advantages[index] - mean_a) * (log_probs[index] - mean_l)
    return out


@pytest.mark.parametrize("seed", range(5))
def test_covariance_is_its_formula_and_averages_to_that_of_numpy(seed):
    given = random_tokens(seed)
    made = covariance(given)
    expected = torch.tensor(brute_covariance(given)).nan_to_num(0)
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)
    both = np.cov(given.advantages[given.mask], given.log_probs[given.mask], ddof=0)
    assert made[given.mask].mean().item() == pytest.approx(both[0, 1], rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("share", [2e-4, 0.05, 0.2, 1.0])
@pytest.mark.parametrize(("low", "high"), [(1.0, 5.0), (0.0, 0.5), (-9.0, 0.0)])
def test_the_band_is_thinned_by_the_tokens_own_uniforms(share, low, high):
    given = random_tokens()
    value = brute_covariance(given)
    assert cut(given)[given.mask.numpy()].any()
    inside = [tuple(index) for index in np.argwhere((value > low) & (value < high) & ~cut(given))]
    inside.sort(key=lambda index: -given.uniform[index].item())
    wanted = set(inside[: max(1, int(share * int(given.mask.sum())))])
    made = covariance_band(given, share=share, low=low, high=high)
    assert {tuple(index) for index in made.nonzero().tolist()} == wanted and wanted
    again = covariance_band(given._replace(uniform=1 - given.uniform), share=share, low=low, high=high)
    assert torch.equal(again, made) == (len(wanted) == len(inside))


def test_an_empty_band_selects_nothing():
    assert not covariance_band(random_tokens(), low=100.0, high=101.0).any()


@pytest.mark.parametrize("share", [2e-4, 0.05, 0.2, 1.0])
def test_the_top_of_the_covariance(share):
    given = random_tokens()
    value = brute_covariance(given)
    count = max(1, int(share * int(given.mask.sum())))
    threshold = np.sort(value[given.mask.numpy()])[-count]
    made = covariance_top(given, share=share)
    assert np.array_equal(made.numpy(), np.nan_to_num(value, nan=-np.inf) >= threshold) and made.sum() == count


def test_tied_covariances_give_exactly_their_share():
    given = tokens(advantages=[[1.0, -1.0] * 5], log_probs=[[-1.0, -3.0] * 5])
    assert torch.equal(covariance(given), torch.ones(1, 10, dtype=torch.float64))
    for share, count in ((0.2, 2), (0.5, 5), (1e-9, 1)):
        assert covariance_top(given, share=share).sum() == count


def test_a_rare_word_of_a_right_answer_is_not_what_the_covariance_picks():
    given = tokens(
        rows=2,
        advantages=[[1.0, 1.0], [-1.0, -1.0]],
        log_probs=[[-0.1, -6.0], [-0.2, -6.5]],
    )
    assert covariance_top(given, share=0.5).tolist() == [[True, False], [False, True]]


# --- verl, computed again from the rules of its compute_policy_loss_clip_cov and compute_policy_loss_kl_cov ----------------


def verl_band(given: Tokens, low: float, high: float) -> np.ndarray:
    """What may be drawn from, at one update: covariance within the band, with tokens that clipping cut taken out."""
    value = np.where(given.mask.numpy(), brute_covariance(given), -np.inf)
    value[cut(given, 0.2, 0.28)] = -np.inf
    return (value > low) & (value < high)


def verl_top(given: Tokens, share: float) -> np.ndarray:
    """The highest covariances, at least one, of the tokens that count."""
    value = np.where(given.mask.numpy(), brute_covariance(given), -np.inf)
    count = max(1, int(share * given.mask.numpy().sum()))
    chosen = np.zeros(value.size, bool)
    chosen[np.argsort(-value.ravel(), kind="stable")[:count]] = True
    return chosen.reshape(value.shape)


def graded(given: Tokens, loss, selected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of every token, 0 elsewhere, and the gradient of its mean with respect to the log-probabilities."""
    leaf = given.log_probs.clone().requires_grad_()
    made = loss(LossInputs(leaf, given.old, given.advantages, given.mask, selected=selected)).loss * given.mask
    return made.detach(), torch.autograd.grad(made.sum() / given.mask.sum(), leaf)[0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [2e-4, 0.05, 1.0])
def test_clip_cov_draws_from_what_verl_draws_from_and_has_its_loss_and_gradient(seed, share):
    given, bounds = random_tokens(seed), {"clip_low": 0.2, "clip_high": 0.28}
    made = covariance_band(given, share=share, low=0.2, high=3.0, **bounds)
    allowed = verl_band(given, 0.2, 3.0)
    assert made.sum() == min(max(1, int(share * int(given.mask.sum()))), allowed.sum()) and allowed.sum() > 5
    assert (made.numpy() <= allowed).all() and (share < 1 or np.array_equal(made.numpy(), allowed))
    ratio, advantages = np.exp((given.log_probs - given.old).numpy()), given.advantages.numpy()
    counts, kept = given.mask.numpy(), given.mask.numpy() & ~made.numpy()
    expected = np.maximum(-advantages * ratio, -advantages * np.clip(ratio, 0.8, 1.28)) * kept
    slope = -advantages * ratio * (kept & ~cut(given, 0.2, 0.28)) / counts.sum()
    loss, gradient = graded(given, partial(selected_clipped, **bounds), made)
    torch.testing.assert_close(loss, torch.tensor(expected), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, torch.tensor(slope), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [2e-4, 0.05, 1.0])
def test_kl_cov_chooses_what_verl_chooses_and_has_its_loss_and_gradient(seed, share):
    given = random_tokens(seed)
    made = covariance_top(given, share=share)
    assert np.array_equal(made.numpy(), verl_top(given, share))
    change, advantages = (given.log_probs - given.old).numpy(), given.advantages.numpy()
    expected = (-advantages * np.exp(change) + 0.7 * np.abs(change) * made.numpy()) * given.mask.numpy()
    slope = (-advantages * np.exp(change) + 0.7 * np.sign(change) * made.numpy()) * given.mask.numpy()
    loss, gradient = graded(given, partial(selected_penalized, coefficient=0.7), made)
    torch.testing.assert_close(loss, torch.tensor(expected), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, torch.tensor(slope) / given.mask.sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["covariance_band", "covariance_top"])
def test_a_choice_within_micro_batches_is_another_than_that_of_all_their_tokens(name):
    """Why verl's choice depends on the size of a micro-batch, and ours, of a step's or an update's tokens, does not."""
    given = random_tokens(rows=16)
    whole, halves = (
        SELECTIONS[name](given),
        [Tokens(*(part[rows] for part in given)) for rows in (slice(8), slice(8, 16))],
    )
    apart = torch.cat([SELECTIONS[name](half) for half in halves])
    assert whole.sum() > 3 and apart.sum() > 3 and not torch.equal(apart, whole)
