"""Gaussian noise on fed vectors."""

import numpy as np
import pytest
import torch
from decode_step import TRAPS, D, V, bound, draws_of, one_step, ordinary_logits, random, towards, trapped_table
from scipy import stats
from strategies import gaussian_noise

from ngrpo.exploration.gaussian_noise import root_mean_square
from ngrpo.exploration.token_sampling import TokenSampling


@pytest.fixture
def table() -> torch.Tensor:
    return trapped_table()


@pytest.mark.parametrize("scale", [0.1, 0.33, 1.0])
def test_noise_has_the_size_of_its_name_in_every_coordinate(table, scale):
    strategy, rows = bound(gaussian_noise(1.0, scale), table), 2000
    draws, logits = draws_of(rows), ordinary_logits(rows)
    step = strategy.sample(logits, strategy.start(rows, logits.device), draws, table)[0]
    noise = (strategy.embed(step, table, draws) - table[step.tokens]).double()
    sigma = scale * np.sqrt((table.double().numpy() ** 2).mean())
    assert (
        step.explored.all()
        and step.scale is not None
        and step.scale.tolist() == pytest.approx([sigma] * rows, rel=1e-6)
    )
    assert stats.kstest((noise.flatten() / sigma).numpy(), "norm").pvalue > 1e-3
    assert noise.square().sum(-1).mean().item() == pytest.approx(D * sigma**2, rel=0.05)
    assert noise.square().mean(0).sqrt().numpy() == pytest.approx([sigma] * D, rel=0.1)
    assert root_mean_square(table).item() == pytest.approx(sigma / scale, rel=1e-6)


def test_noise_does_not_change_the_tokens_of_its_own_step(table):
    logits = random(100, V, scale=2)
    assert torch.equal(
        one_step(bound(gaussian_noise(0.5, 1.0), table), logits, table).tokens,
        one_step(TokenSampling(), logits, table).tokens,
    )


def test_reserved_stop_padded_and_delimiter_tokens_are_fed_without_noise(table):
    strategy = bound(gaussian_noise(1.0, 1.0), table)
    step = one_step(strategy, towards(torch.arange(V)), table)
    assert (~step.explored).nonzero().squeeze(1).tolist() == TRAPS
    assert torch.equal(strategy.embed(step, table, draws_of(V))[TRAPS], table[TRAPS])
    state = strategy.start(1, torch.device("cpu"))
    step, state = strategy.sample(towards(torch.tensor([10])), state, draws_of(1, 0), table)
    assert step.explored.all()
    step, state = strategy.sample(towards(torch.tensor([11])), state, draws_of(1, 1), table)
    assert not step.explored.any()


def test_noise_keeps_its_size_once_recorded_though_the_table_moves(table):
    strategy = bound(gaussian_noise(1.0, 0.5), table)
    step, draws = one_step(strategy, ordinary_logits(20), table), draws_of(20)
    before = strategy.embed(step, table, draws) - table[step.tokens]
    larger = 3 * table
    strategy.prepare(larger, 1)
    torch.testing.assert_close(strategy.embed(step, larger, draws) - larger[step.tokens], before, rtol=0, atol=1e-5)
