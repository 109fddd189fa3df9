"""What is written in front of a problem that is asked again, and whose answers take which places."""

from collections import Counter

import pytest
import torch

from ngrpo.algorithm.advantages import group_normalized
from ngrpo.algorithm.retry import LATIN, Retry, rescuers
from ngrpo.rollout.keys import row_key
from ngrpo.targets import SettingsError

WORDS = LATIN.split()


def asked(right: int, of: int = 24, problems: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Verdicts with the right ones at random places, and keys."""
    order = torch.rand(problems, of, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    return order < right, torch.tensor([[row_key(seed, p, i) for i in range(of)] for p in range(problems)])


@pytest.mark.parametrize(("right", "placed"), [(0, 0), (1, 1), (6, 6), (7, 7), (8, 7), (24, 7)])
def test_right_answers_take_places_until_one_failure_remains(right, placed):
    correct, keys = asked(right, problems=20)
    made = rescuers(correct, keys, 8)
    for row, verdicts in zip(made.tolist(), correct.tolist(), strict=True):
        taken = [at for at in row if at >= 0]
        assert len(taken) == len(set(taken)) == placed and all(verdicts[at] for at in taken)
        assert row[:placed] == taken


def test_a_rescued_group_has_the_advantages_of_its_new_members():
    for right, best, rest in ((1, 2.474867, -0.353552), (24, 0.353552, -2.474867)):
        rewards = (rescuers(*asked(right), 8) >= 0).double()
        assert group_normalized(rewards)[0].sort().values.tolist() == pytest.approx(
            sorted([best] * int(rewards.sum()) + [rest] * int(8 - rewards.sum())), abs=1e-5
        )


def test_of_too_many_right_answers_each_is_as_likely_to_be_taken():
    keys = torch.tensor([[row_key(p, i) for i in range(6)] for p in range(6000)])
    correct = torch.tensor([True, True, False, True, True, True]).expand(6000, 6)
    taken = rescuers(correct, keys, 4)
    counts = Counter(taken.flatten().tolist())
    assert counts[-1] == 6000 and 2 not in counts
    assert [counts[i] / 6000 for i in (0, 1, 3, 4, 5)] == pytest.approx([3 / 5] * 5, abs=0.03)


def test_a_group_of_one_keeps_its_failure_and_few_answers_leave_places_as_they_are():
    assert rescuers(*asked(5), 1).tolist() == [[-1]]
    made = rescuers(torch.tensor([[True, True]]), torch.tensor([[7, 9]]), 8)
    assert sorted(made[0].tolist()) == [-1] * 6 + [0, 1]


def test_the_words_in_front_are_so_many_and_all_alike_likely():
    retry = Retry(words=(3, 6), boundary="Then:")
    texts = [retry.prefix(retry.draw_words(WORDS, row_key("filler", i))) for i in range(4000)]
    lines = [text.split("\n") for text in texts]
    assert {line[1] for line in lines} == {"Then:"} and len(set(texts)) > 3990
    sizes = Counter(len(line[0].split()) for line in lines)
    assert [sizes[n] / 4000 for n in (3, 4, 5, 6)] == pytest.approx([0.25] * 4, abs=0.03)
    counts = Counter(word for line in lines for word in line[0].split())
    expected = sum(counts.values()) / len(WORDS)
    assert set(counts) == set(WORDS) and len(set(WORDS)) == len(WORDS)
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 1.6 * len(WORDS)
    assert (
        retry.prefix(retry.draw_words(WORDS, 5))
        == retry.prefix(retry.draw_words(WORDS, 5))
        != retry.prefix(retry.draw_words(WORDS, 6))
    )


def test_words_and_boundary_can_each_stand_alone():
    assert (retry := Retry(words=(0, 0), boundary="Then:")).prefix(retry.draw_words(WORDS, 1)) == "Then:"
    text = (retry := Retry(words=(2, 2), boundary=None)).prefix(retry.draw_words(WORDS, 1))
    assert "\n" not in text and len(text.split()) == 2


def test_more_words_at_least_than_at_most_are_refused():
    with pytest.raises(SettingsError, match=r"words=\[5,2\]: .*; algorithm\.retry\.words=\[0,2\]$"):
        Retry(words=(5, 2))
