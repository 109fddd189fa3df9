"""The generator and the keys: known answers, distributions, and independence of how rows are put together."""

import numpy as np
import pytest
import torch
from scipy import stats

from ngrpo.rollout.keys import Draws, philox, row_key, row_keys


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(counter, key, expected):
    low, high = words(key)
    packed = torch.tensor(
        [int.from_bytes((high << 32 | low).to_bytes(8, "little"), "little", signed=False)], dtype=torch.uint64
    )
    made = philox(tuple(words(counter)), packed.view(torch.int64))
    assert [int(word) for word in made] == words(expected)


def plain_philox(counter: list[int], key: list[int]) -> list[int]:
    """The algorithm in Python integers, as its paper states it."""
    a, b, c, d = counter
    low, high = key
    for _ in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (second >> 32) ^ b ^ low, second & 0xFFFFFFFF, (first >> 32) ^ d ^ high, first & 0xFFFFFFFF
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return [a, b, c, d]


def test_philox_is_the_published_algorithm_for_any_key_and_counter():
    generator = np.random.default_rng(0)
    counters = generator.integers(0, 2**32, (200, 4))
    keys = generator.integers(0, 2**32, (200, 2))
    packed = torch.from_numpy(
        (keys[:, 1].astype(np.uint64) << np.uint64(32) | keys[:, 0].astype(np.uint64)).view(np.int64)
    )
    made = torch.stack(philox(tuple(torch.from_numpy(counters).unbind(1)), packed), dim=1).tolist()
    assert made == [plain_philox(list(map(int, c)), list(map(int, k))) for c, k in zip(counters, keys, strict=True)]


def test_a_draw_is_the_philox_word_of_its_row_and_step():
    key, step = row_key("some", "row"), 17
    a, b, c, d = plain_philox([step, 0, 0, 0], [key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF])
    draws = Draws(torch.tensor([key]), torch.tensor([step]))
    assert draws.token.item() == ((a >> 5) * 2**26 + (b >> 6)) / 2**53
    assert draws.explore.item() == ((c >> 5) * 2**26 + (d >> 6)) / 2**53


def test_row_keys_are_distinct_signed_and_the_same_in_every_process():
    grid = [
        (seed, step, draw, f"p{p}", i)
        for seed in range(3)
        for step in range(8)
        for draw in range(2)
        for p in range(40)
        for i in range(8)
    ]
    keys = row_keys(grid)
    assert keys.dtype == torch.int64 and len(keys.unique()) == len(grid)
    assert (keys < 0).any() and (keys > 0).any()
    assert row_key(0, 1, 0, "problem", 3) == PINNED
    assert row_keys([(0, 1, 0, "problem", 3)]).item() == PINNED


PINNED = 5935240508326741885  # blake2b of "0\x1f1\x1f0\x1fproblem\x1f3", 8 bytes, little-endian, signed


def test_parts_of_an_identity_do_not_run_together():
    assert row_key("ab", "c") != row_key("a", "bc") != row_key("abc")
    assert row_key(1, 23) != row_key(12, 3)
    assert row_key("\ud800") != row_key("?")  # a lone surrogate is an identity like any other


@pytest.fixture(scope="module")
def block():
    keys = row_keys(("distribution", index) for index in range(400))
    return Draws(keys[:, None], torch.arange(100)[None])


@pytest.mark.parametrize("stream", ["token", "explore"])
def test_uniforms_are_uniform_over_rows_and_over_steps(block, stream):
    values = getattr(block, stream)
    assert values.dtype == torch.float64 and values.shape == (400, 100)
    assert values.min() >= 0 and values.max() < 1
    for sample in (values.flatten(), values[:, 0], values[:, 99], values[0], values[399]):
        assert stats.kstest(sample.numpy(), "uniform").pvalue > 1e-3
    flat = values.flatten()
    for power in (1, 2, 3, 4):  # the moments of a uniform are 1 / (power + 1)
        spread = (1 / (2 * power + 1) - 1 / (power + 1) ** 2) ** 0.5 / len(flat) ** 0.5
        assert abs((flat**power).mean().item() - 1 / (power + 1)) < 4 * spread
    assert len(flat.unique()) == len(flat)


def test_streams_rows_and_steps_are_independent_of_each_other(block):
    token, explore, normal = block.token - 0.5, block.explore - 0.5, block.normal(3)
    pairs = {
        "token, explore": (token, explore),
        "token, normal": (token, normal[..., 0]),
        "explore, normal": (explore, normal[..., 1]),
        "coordinates": (normal[..., 0], normal[..., 1]),
        "blocks of coordinates": (normal[..., 0], normal[..., 2]),
        "next step": (token[:, 1:], token[:, :-1]),
        "next row": (token[1:], token[:-1]),
        "next step of the other stream": (token[:, 1:], explore[:, :-1]),
        "squares of coordinates": (normal[..., 0] ** 2 - 1, normal[..., 1] ** 2 - 1),
    }
    for name, (a, b) in pairs.items():
        correlation = np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1]
        assert abs(correlation) < 4.5 / a.numel() ** 0.5, name
    counts = torch.histc((block.token * 8).floor() * 8 + (block.explore * 8).floor(), 64, 0, 64)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_normals_are_standard_normal(block):
    values = block[:100].normal(33)
    assert values.dtype == torch.float32 and values.shape == (100, 100, 33) and values.isfinite().all()
    for sample in (values.flatten(), values[..., 0].flatten(), values[..., 32].flatten(), values[3, 5:].flatten()):
        assert stats.kstest(sample.numpy(), "norm").pvalue > 1e-3
    lengths = values.double().square().sum(dim=-1).flatten().numpy()
    assert stats.kstest(lengths, stats.chi2(33).cdf).pvalue > 1e-3


def test_normals_do_not_depend_on_the_width_asked_for(block):
    part = block[:3, :4]
    assert torch.equal(part.normal(7), part.normal(64)[..., :7])


def test_draws_do_not_depend_on_the_batch_they_are_made_in(block):
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))[:50]
    for stream in ("token", "explore"):
        whole = getattr(block, stream)
        alone = torch.stack([getattr(Draws(block.rows[i, 0], torch.arange(100)), stream) for i in order.tolist()])
        late = getattr(Draws(block.rows[order], torch.arange(60, 100)[None]), stream)
        assert torch.equal(alone, whole[order])
        assert torch.equal(late, whole[order, 60:])
    assert torch.equal(Draws(block.rows[7, 0], torch.tensor(41)).normal(9), block.normal(9)[7, 41])


def test_indexing_keeps_values_whether_they_were_made_before_or_not(block):
    made, lazy = Draws(block.rows, block.steps).precompute(), Draws(block.rows, block.steps)
    mask = block.token < 0.01
    rows = torch.tensor([5, 5, 2])
    for index in (mask, rows, (rows, 3), (slice(None), torch.tensor([9, 1]))):
        for part in (made[index], lazy[index], made[index].precompute()):
            assert torch.equal(part.token, block.token[index])
            assert torch.equal(part.explore, block.explore[index])
            assert torch.equal(part.normal(4), block.normal(4)[index])


def test_wide_uniforms_are_uniform_and_on_a_stream_of_their_own(block):
    values = block[:100].uniforms(33)
    assert values.dtype == torch.float64 and values.shape == (100, 100, 33)
    assert values.min() >= 0 and values.max() < 1 and len(values.unique()) == values.numel()
    for sample in (values.flatten(), values[..., 0].flatten(), values[..., 32].flatten(), values[3, 5:].flatten()):
        assert stats.kstest(sample.numpy(), "uniform").pvalue > 1e-3
    others = {"token": block.token, "explore": block.explore, "normal": block.normal(3)[..., 0]}
    for name, other in others.items():
        for column in (0, 1):
            wide = block.uniforms(2)[..., column]
            assert abs(np.corrcoef(wide.flatten().numpy(), other.flatten().numpy())[0, 1]) < 0.0225, name
    pair = block.uniforms(3).flatten(0, 1).numpy()
    assert np.abs(np.corrcoef(pair.T) - np.eye(3)).max() < 0.0225


def test_a_wide_uniform_is_the_philox_word_of_its_row_step_and_place():
    key, step = row_key("some", "row"), 17
    made = Draws(torch.tensor([key]), torch.tensor([step])).uniforms(6)[0].tolist()
    for block_index in range(3):
        a, b, c, d = plain_philox([step, block_index, 2, 0], [key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF])
        expected = [((high >> 5) * 2**26 + (low >> 6)) / 2**53 for high, low in ((a, b), (c, d))]
        assert made[2 * block_index : 2 * block_index + 2] == expected


def test_wide_uniforms_do_not_depend_on_width_or_batch(block):
    part = block[:3, :4]
    assert torch.equal(part.uniforms(7), part.uniforms(64)[..., :7])
    assert torch.equal(Draws(block.rows[7, 0], torch.tensor(41)).uniforms(9), block.uniforms(9)[7, 41])
