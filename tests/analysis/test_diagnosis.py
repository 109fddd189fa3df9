"""What is concluded from samples before training: the estimates by enumeration, the rules on samples with a known truth."""

import itertools

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from analysis import diagnosis_page, neighbors, tables
from analysis.diagnosis import Answers, Sampled, diagnose, distinct, estimate, group_shares
from analysis.recommendation import FEWEST, kind_of, recommend, stability
from analysis.statistics import paired
from ngrpo.evaluation.passk import pass_at_k

N, GROUP = 16, 8


def answers(counts, malformed=0.0, *, n=N, paths=True, explored=0, seed=0, rewards=False) -> Answers:
    """Answers with so many right ones for each problem, of which the last `malformed` of the wrong ones are no answers."""
    counts = np.asarray(counts)
    correct = np.arange(n)[None] < counts[:, None]
    unparsed = (np.arange(n)[None] >= n - round(malformed * n)) & ~correct
    rng = np.random.default_rng(seed)
    texts = rng.integers(0, 2**40, correct.shape).astype(str)
    ways = np.where(correct, "right", rng.integers(0, 5, correct.shape).astype(str))
    nothing = np.full(correct.shape, "")
    told, cut = ways if paths else nothing, np.zeros_like(correct)
    return Answers(correct, unparsed, cut, texts, told, ways, 1000, explored, 2.0, rewards)


def sampled(**arms: Answers) -> Sampled:
    config = {"group_size": GROUP, "max_new_tokens": 96, "temperature": 1.0, "rows_per_batch": 256,
              "strategies": list(arms), "model": {"path": "some/model"}}  # fmt: skip
    steps = pd.DataFrame({"strategy": ["mix", "mix"], "nearest": [1, 2], "anchor": [1, 1], "displacement": [0.2, 0.4],
                          "cosine": [0.9, 0.8]})  # fmt: skip
    return Sampled(arms, steps, config, {}, "stories")


def advice(**arms: Answers):
    return recommend(diagnose(sampled(**arms)))


def test_shares_of_groups_are_those_of_all_groups():
    for n, group in ((5, 2), (6, 3), (4, 4)):
        for c in range(n + 1):
            verdicts = [True] * c + [False] * (n - c)
            groups = list(itertools.combinations(verdicts, group))
            right, wrong = group_shares([c], n, group)
            assert right[0] == pytest.approx(np.mean([all(g) for g in groups]), abs=1e-12)
            assert wrong[0] == pytest.approx(np.mean([not any(g) for g in groups]), abs=1e-12)
            assert 1 - wrong[0] == pytest.approx(pass_at_k(n, [c], group)[0], abs=1e-12)


def test_the_interval_of_a_share_that_was_never_met_is_about_the_exact_binomial_one():
    # Clopper and Pearson for 0 of 64: 1 - 0.025^(1/64)
    value, low, high = estimate(np.zeros(64))
    assert (value, low) == (0, 0) and high == pytest.approx(100 * (1 - 0.025 ** (1 / 64)), rel=0.2)
    assert estimate(np.ones(64))[1] == pytest.approx(100 - high)
    value, low, high = estimate(np.repeat([0.0, 1.0], 50))
    assert low < 50 == value < high and high - low == pytest.approx(2 * 1.96 * 5, rel=0.1)


@pytest.mark.parametrize(
    ("shares", "kind"),
    [
        ((0.5, 0.9, 0.1), "format"),
        ((0.4, 0.8, 0.2), "solved"),
        ((0.4, 0.1, 0.8), "too_hard"),
        ((0.4, 0.25, 0.25), "signal"),
        ((0.4, 0.3, 0.4), "stuck"),
        ((0.4, 0.4, 0.3), "easy"),
    ],
)
def test_the_first_rule_that_holds_is_the_answer(shares, kind):
    assert kind_of(*shares) == kind


@pytest.mark.parametrize(
    ("counts", "malformed", "kind", "words"),
    [
        ([16] * 64, 0, "solved", "100 % [95, 100] of groups of 8 are all right, and pass@16 is 0 points [0, 5] above"),
        ([0] * 64, 0, "too_hard", "100 % [95, 100] of groups of 8 are all wrong, and pass@16 is 0 % [0, 5]"),
        ([0] * 64, 0.9, "format", "88 % [84, 89] of the answers of token_sampling are not well-formed"),
        ([4, 6, 8, 10] * 16, 0, "signal", "of groups of 8 mix right and wrong answers, and pass@16 is 56 points"),
        ([0, 0, 0, 16, 6] * 13, 0, "stuck", "of groups of 8 are all wrong and 20 % [10, 30] are mixed"),
        ([16, 16, 16, 0, 6] * 13, 0, "easy", "60 % [48, 72] of groups of 8 are all right"),
    ],
)
def test_each_answer_names_its_figure_with_the_interval(counts, malformed, kind, words):
    found = advice(token_sampling=answers(counts, malformed))
    assert found.kind == kind and words in found.head, found.head


def test_head_room_that_half_of_the_problems_lack_is_no_reason_to_call_it_solved():
    # Always or never solved: pass@k shows no room above the mean, and yet half of the groups are all wrong.
    found = advice(token_sampling=answers([0] * 40 + [16] * 24))
    assert found.kind == "stuck" and "pass@16 is 0 points" in found.head


@pytest.mark.parametrize("problems", [1, 4, FEWEST - 1])
def test_few_problems_tell_nothing_even_if_they_agree(problems):
    found = advice(token_sampling=answers([16] * problems))
    assert found.kind == "too_small" and f"{problems} problem" in found.head and f"{FEWEST} are needed" in found.head


def test_a_share_near_its_border_needs_more_problems_and_the_number_suffices():
    found = advice(token_sampling=answers([8] * 17 + [0] * 13))  # 57 % of groups are mixed, the border is 50 %
    assert found.kind == "too_small" and "about problems=" in found.head and "57 % [38, 75] of groups" in found.head
    needed = int(found.head.partition("about problems=")[2].partition(" ")[0])
    mixed = round(17 / 30 * needed)
    assert 60 < needed < 600
    assert advice(token_sampling=answers([8] * mixed + [0] * (needed - mixed))).kind == "signal"


def test_the_answer_is_wrong_or_withheld_in_few_samples_of_a_known_truth():
    rng = np.random.default_rng(0)
    given = []
    for _ in range(40):  # problems that are solved at 40 % or never; 60 % of them never: stuck is the truth
        counts = rng.binomial(N, 0.4 * (rng.random(64) < 0.4))
        right, wrong = group_shares(counts, N, GROUP)
        shares = stability(np.stack([np.zeros(64), right, wrong], axis=1), draws=200)
        given.append(max(shares, key=shares.__getitem__) if max(shares.values()) >= 0.95 else "too_small")
    assert given.count("stuck") + given.count("too_small") >= 39 and given.count("stuck") > 8


def test_what_one_strategy_solves_and_another_does_not():
    base = answers([0] * 30 + [16] * 2 + [4] * 8)
    other = answers([4] * 24 + [0] * 6 + [16] * 2 + [0] * 3 + [4] * 5)
    found = diagnose(sampled(token_sampling=base, mix=other))
    row = found.pairs.iloc[0]
    assert (row["both"], row["only_it"], row["only_other"], row["neither"]) == (7, 24, 3, 6)
    words = "mix reaches problems that token_sampling does not: 24 problems only by it, 3"
    assert any(words in line for line in recommend(found).lines)
    swapped = advice(token_sampling=other, mix=base)
    assert any("mix misses problems that token_sampling solves" in line for line in swapped.lines)


def test_p_values_of_several_strategies_are_corrected_as_one_family():
    base = answers([4] * 20)
    arms = {f"m{i}": answers([4] * (20 - i) + [6] * i) for i in (2, 5, 9)}
    found = diagnose(sampled(token_sampling=base, **arms)).pairs
    raw = [paired(base.solved / N, arm.solved / N).p for arm in arms.values()]
    assert found["p"].to_numpy() == pytest.approx(multipletests(raw, method="fdr_bh")[1]) and (found["p"] > raw).any()


def test_a_strategy_that_solves_what_sampling_never_does_makes_a_hard_task_worth_a_try():
    nothing = answers([0] * 64)
    assert advice(token_sampling=nothing, mix=nothing).kind == "too_hard"
    assert "No strategy is shown to reach problems" in advice(token_sampling=nothing, mix=nothing).lines[1]
    found = advice(token_sampling=nothing, mix=answers([3] * 30 + [0] * 34))
    assert found.kind == "stuck" and any("mix reaches problems" in line for line in found.lines)


def test_text_that_becomes_invalid_is_counted_pair_by_pair_both_ways():
    base, other = answers([4] * 20, 0.25), answers([4] * 20, 0.5)
    row = diagnose(sampled(token_sampling=base, mix=other)).pairs.iloc[0]
    assert (row["broken"], row["mended"], row["valid"], row["answers"]) == (80, 0, 240, 320)
    worse = answers([4] * 20, 0.25)
    worse.unparsed[:, 12:] = False
    worse.unparsed[:10, 4:12] = True
    found = diagnose(sampled(token_sampling=base, mix=worse))
    assert (found.pairs.iloc[0]["broken"], found.pairs.iloc[0]["mended"]) == (80, 80)
    assert found.pairs.iloc[0]["ill_change"] == pytest.approx(0)
    damaged = answers([4] * 20)
    damaged.unparsed[:10, 8:] = True
    lines = advice(token_sampling=answers([4] * 20), mix=damaged).lines
    assert any("mix turns valid text into invalid: 80 of 320 valid answers broken" in line for line in lines)


def test_ways_are_counted_where_the_task_tells_them_and_final_answers_elsewhere():
    values = np.array([["a", "b", "a", ""], ["", "", "", ""]])
    assert distinct(values).tolist() == [2, 0]
    assert distinct(values, np.array([[True, False, True, True], [True] * 4])).tolist() == [1, 0]
    told, untold = (diagnose(sampled(token_sampling=answers([4] * 20, paths=paths))) for paths in (True, False))
    assert "different solution paths" in diagnosis_page.page_tables(told)[1].columns
    variety = diagnosis_page.page_tables(untold)[1]
    assert "different final answers" in variety.columns and "tells no solution path" in variety.note


def test_the_control_of_neighbor_mixing_is_found_by_what_it_is_built_from():
    base = answers([4] * 20)
    study = sampled(token_sampling=base, mix=base, greedy=base, other=base)
    built = {"mix": {"_target_": "M", "rate": 0.1, "k": 3}, "greedy": {"_target_": "M", "rate": 0.1, "k": 1},
             "other": {"_target_": "M", "rate": 0.3, "k": 1}, "token_sampling": {"_target_": "T"}}  # fmt: skip
    study = Sampled(study.answers, study.steps, study.config, built, "stories")
    pairs = diagnose(study).pairs
    assert list(zip(pairs["strategy"], pairs["against"], strict=True))[-1] == ("mix", "greedy")
    assert (pairs["p"] == 1).all()


def test_one_strategy_alone_has_a_page_too():
    found = diagnose(sampled(token_sampling=answers([4] * 20)))
    assert [table.name for table in diagnosis_page.page_tables(found)] == ["room", "variety"]
    assert all(tables.markdown(table) for table in diagnosis_page.page_tables(found))


def test_tokens_are_shown_so_that_nothing_of_them_is_lost():
    assert [neighbors.visible(text) for text in (" so", "\n", "", "a|b", "\x1b")] == [
        "␣so",
        "\\n",
        "(empty)",
        "a|b",
        "\\x1b",
    ]
