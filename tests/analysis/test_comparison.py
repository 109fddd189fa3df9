"""The declared comparison: what is corrected, what is named, what cannot be said."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests
from study import make_run

from analysis import budgets, foreign, plots
from analysis.bands import NEITHER
from analysis.comparison import _curves as curves_of
from analysis.comparison import compare
from analysis.declared import Declared
from analysis.load import LoadError, load
from analysis.power import detectable
from analysis.rates import Rates, normalized
from analysis.report import write
from analysis.tables import every_k, of_comparison
from analysis.verdict import _beats as beats
from analysis.verdict import headline, verdict

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two arms against plain sampling on two benchmarks: one is better on both, one on the first alone."""
    levels = {
        "token_sampling": {"main": 0.3, "main_ood": 0.5},
        "gaussian_noise": {"main": 0.6, "main_ood": 0.8},
        "random_noise": {"main": 0.6, "main_ood": 0.1},
    }
    root = tmp_path_factory.mktemp("two")
    for arm, found in levels.items():
        for seed in range(3):
            for name, level in found.items():
                make_run(root / name, arm, seed, RNG.binomial(8, level, 30), RNG.binomial(8, 0.2, 30), benchmark=name)
    for place in (root / "main").iterdir():
        (other,) = (root / "main_ood").glob(f"{place.name.rpartition('-')[0]}-*")
        for file in (other / "samples" / "eval").glob("*.parquet"):
            (place / "samples" / "eval" / file.name).write_bytes(file.read_bytes())
    return load([root / "main"])


def test_by_default_one_metric_of_each_benchmark_in_distribution_is_declared(two):
    tests = compare(two, "token_sampling").tests
    declared = tests[tests["family"] == "primary"]
    assert set(zip(declared["benchmark"], declared["metric"], strict=True)) == {("main", "mean@8")}
    assert len(declared) == 2 and set(tests[tests["benchmark"] == "main_ood"]["family"]) == {"exploratory"}


def test_only_the_declared_family_is_corrected_with_holm_and_the_rest_with_benjamini_hochberg(two):
    plan = Declared(primary=["main/pass@2", "main_ood/mean@8"])
    tests = compare(two, "token_sampling", declared=plan).tests
    for family, method in (("primary", "holm"), ("exploratory", "fdr_bh")):
        part = tests[tests["family"] == family]
        assert len(part) >= 4
        assert part["adjusted"].to_numpy() == pytest.approx(multipletests(part["p"], method=method)[1])
        assert (part["adjusted"] > part["p"]).any()


def test_the_detectable_difference_is_at_the_level_that_is_used(two):
    comparison = compare(two, "token_sampling")
    row = comparison.tests[comparison.tests["family"] == "primary"].iloc[0]
    seeds = [comparison.rates.values("main", arm, "mean@8").mean(axis=1) for arm in ("token_sampling", row["arm"])]
    assert row["detectable"] == pytest.approx(detectable(*seeds, alpha=0.05 / 2))
    assert comparison.tests[comparison.tests["family"] == "exploratory"]["detectable"].isna().all()


def test_what_is_worse_elsewhere_is_not_named(two):
    lines = verdict(compare(two, "token_sampling"))
    assert lines[0].startswith(
        "Better than token_sampling: gaussian_noise. random_noise is better in a declared metric and worse"
    )
    row = compare(two, "token_sampling").tests.set_index(["arm", "benchmark", "metric"]).loc["random_noise"]
    assert row.loc[("main", "mean@8"), "words"] == "better" and row.loc[("main_ood", "mean@8"), "words"] == "worse"


def test_the_headline_says_sizes_interval_and_what_could_have_been_found(two):
    comparison = compare(two, "token_sampling")
    row = next(comparison.tests[comparison.tests["arm"] == "gaussian_noise"].itertuples())
    line = headline(row, 2, {})
    assert line in verdict(comparison)
    assert line.startswith(f"gaussian_noise minus token_sampling on main mean@8: {row.gap:+.1f} points [{row.low:+.1f}")
    assert "after Holm over 2, 3 seeds, 30 problems: better" in line
    assert f"differences over {row.detectable:.1f} would have been found, as far as so few seeds tell." in line


def test_unequal_numbers_of_seeds_are_told_of_both_arms(tmp_path):
    for arm, seeds in (("token_sampling", 3), ("gaussian_noise", 5)):
        for seed in range(seeds):
            make_run(tmp_path, arm, seed, RNG.binomial(8, 0.4, 30))
    comparison = compare(load([tmp_path]), "token_sampling")
    assert any("5 and 3 seeds, 30 problems" in line for line in verdict(comparison))


def test_equal_arms_rarely_gain_or_lose_anywhere_on_any_benchmark(tmp_path):
    """Five arms of one law on two benchmarks, eighty reports: a band of 95 % each would name one in a quarter of them."""
    rng, named = np.random.default_rng(3), 0
    for _ in range(80):
        level = rng.beta(1, 1, (2, 40))
        files = []
        for arm in range(5):
            counts = rng.binomial(8, level)
            files.append(tmp_path / f"a{arm}.csv")
            lines = [f"b{b},{p},8,{counts[b, p]}\n" for b in range(2) for p in range(40)]
            files[-1].write_text("benchmark,id,n,c\n" + "".join(lines))
        matches = [(f"a{arm}", "a0", "primary") for arm in range(1, 5)]
        found = curves_of(Rates(foreign.load([*map(str, files)])), matches)
        assert len(found) == 8
        named += any(said != NEITHER for curve in found for said in curve.curve.verdicts)
    assert named <= 9  # of 80: 4 expected at most, 9 is the 99th percentile


def test_tests_are_written_for_programs_with_all_their_digits(two, tmp_path):
    write(two, "token_sampling", tmp_path, None, ())
    read, made = pd.read_csv(tmp_path / "tests.csv"), compare(two, "token_sampling").tests
    assert list(read) == list(made)
    for column in ("gap", "low", "high", "p", "adjusted", "detectable", "equivalence"):
        np.testing.assert_allclose(read[column], made[column].astype(float), rtol=1e-12)


def test_a_line_break_in_the_name_of_an_arm_breaks_no_table(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,n,c\n" + "".join(f"{p},4,{p % 4}\n" for p in range(9)))
    study = foreign.load([f"one\ntwo={path}"], {})
    assert study.arms == ["one two"]


def test_one_seed_cannot_be_tested_and_is_told_so(tmp_path):
    for arm in ("token_sampling", "gaussian_noise"):
        make_run(tmp_path, arm, 0, RNG.binomial(8, 0.4, 30))
    comparison = compare(load([tmp_path]), "token_sampling")
    assert set(comparison.tests["words"]) == {"cannot be tested: 1 seed, 3 needed"}
    assert any("1 seed, 30 problems; cannot be tested: 1 seed, 3 needed." in line for line in verdict(comparison))
    assert "no difference shown" not in " ".join(verdict(comparison))


def test_equal_arms_are_equivalent_within_a_margin_that_is_declared(tmp_path):
    for arm in ("token_sampling", "gaussian_noise"):
        for seed in range(4):
            make_run(tmp_path, arm, seed, RNG.binomial(8, 0.5, 400), RNG.binomial(8, 0.2, 400))
    study = load([tmp_path])
    words = [
        compare(study, "token_sampling", declared=Declared(margin=margin)).tests["words"][0]
        for margin in (None, 10, 0.01)
    ]
    assert words == ["no difference shown", "equivalent within 10", "no difference shown"]


def test_seeds_that_are_needed_are_told_for_these_and_for_more_problems(two):
    comparison = compare(two, "token_sampling", declared=Declared(detect=2.0))
    needed = comparison.needed
    assert needed["problems"].tolist() == [30, 120, 30, 120] and (needed["seeds"] >= 2).all()
    for _, part in needed.groupby("arm"):
        assert part["seeds"].is_monotonic_decreasing
    assert any(line.startswith("To find 2 points of mean@8 on main between") for line in verdict(comparison))


@pytest.mark.parametrize(
    ("primary", "words"),
    [
        ("main", "must be <benchmark>/mean@n or <benchmark>/pass@k; primary=main/pass@8"),
        ("other/pass@2", "there is no such benchmark; there are main, main_ood"),
        ("main/pass@9", "has n=8 samples per problem"),
        ("main/mean@4", "has n=8 samples per problem"),
    ],
)
def test_a_metric_that_is_not_there_is_refused_in_one_line(two, primary, words):
    with pytest.raises(LoadError, match="primary=") as error:
        compare(two, "token_sampling", declared=Declared(primary=[primary]))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_problems_are_paired_by_their_ids_whatever_the_order_of_a_file(tmp_path):
    solved = np.arange(12) % 9
    for seed in range(2):
        make_run(tmp_path / "a", "token_sampling", seed, solved)
        place = make_run(tmp_path / "a", "gaussian_noise", seed, solved)
        for file in (place / "samples" / "eval").glob("*.parquet"):
            frame = pd.read_parquet(file)
            frame.sample(frac=1, random_state=seed).to_parquet(file)
    study = load([tmp_path / "a"])
    pairs = compare(study, "token_sampling").pairs.iloc[0]
    assert (pairs["wins"], pairs["ties"], pairs["losses"]) == (0, 12, 0)


def test_pairs_say_which_of_the_two_solves_a_problem(tmp_path):
    make_run(tmp_path, "token_sampling", 0, [8, 8, 8, 0, 0, 0])
    make_run(tmp_path, "gaussian_noise", 0, [8, 0, 0, 8, 0, 0])
    pairs = compare(load([tmp_path]), "token_sampling").pairs.iloc[0]
    assert (pairs["both"], pairs["only_it"], pairs["only_other"], pairs["neither"]) == (1, 1, 2, 2)
    table = next(t for t in of_comparison(compare(load([tmp_path]), "token_sampling")) if t.name == "pairs")
    row = dict(zip(table.columns, (cell.text for cell in table.rows[0]), strict=True))
    assert (row["by it only"], row["by the other only"]) == ("1", "2") and "these checkpoints only" in table.title


def test_problems_of_one_text_count_once_and_are_told(tmp_path):
    texts = ["What is  two plus two?", "what is two plus two?", "Another", "a third"]
    for arm, solved in (("token_sampling", [0, 8, 4, 4]), ("gaussian_noise", [8, 8, 4, 4])):
        place = make_run(tmp_path, arm, 0, solved)
        for file in (place / "samples" / "eval").glob("*.parquet"):
            frame = pd.read_parquet(file)
            frame["prompt"] = frame["problem_id"].map(dict(zip([f"p{i:02d}" for i in range(4)], texts, strict=True)))
            frame.to_parquet(file)
    comparison = compare(load([tmp_path]), "token_sampling")
    values = comparison.rates.values("bench", "token_sampling", "mean@8")
    assert values.tolist() == [[50.0, 50.0, 50.0]]
    assert set(comparison.estimates["problems"]) == {3} and comparison.tests["problems"].tolist() == [3, 3]
    assert any("bench: 1 of 4 problems have the text of another one" in line for line in verdict(comparison))
    assert comparison.rates.curves("bench", "gaussian_noise", [1])[0, :, 0].tolist() == [100.0, 50.0, 50.0]


def test_texts_are_equal_whatever_their_spaces_case_and_encoding():
    assert normalized("  A\u0301  b\n\tC ") == normalized("\u00e1 B c") != normalized("\u00e1b c")
    assert len({normalized(text) for text in ("Compute 3\u00b2", "Compute 32", "x\u00bd", "x1/2")}) == 4


def test_every_k_has_a_row_with_its_band_and_verdict(two):
    frame = every_k(compare(two, "token_sampling"))
    assert list(frame)[:8] == ["arm", "baseline", "benchmark", "k", "difference", "low", "high", "verdict"]
    part = frame[(frame["arm"] == "gaussian_noise") & (frame["benchmark"] == "main")]
    assert part[part["scope"] == "these checkpoints"]["k"].tolist() == list(range(1, 9))
    assert (part["low"] <= part["difference"]).all() and (part["difference"] <= part["high"]).all()
    assert {*frame["verdict"]} <= {"gains", "loses", NEITHER} and {*frame["scope"]} == {
        "these checkpoints",
        "training runs",
    }
    gaps = compare(two, "token_sampling").tests.set_index(["arm", "benchmark", "metric"])["gap"]
    assert part["difference"].iloc[7] == pytest.approx(gaps["gaussian_noise", "main", "pass@8"])


def test_methods_are_compared_at_the_same_budget(tmp_path):
    """The cheaper arm spends half of the tokens for each step; both were evaluated on their way."""
    for arm, level, tokens in (("token_sampling", 4, 100), ("gaussian_noise", 5, 50)):
        for seed in range(2):
            place = make_run(tmp_path, arm, seed, np.full(20, level + 2))
            for step in (1, 2):
                other = make_run(tmp_path.parent / f"at-{arm}-{seed}-{step}", arm, seed, np.full(20, level + step - 2))
                content = (other / "samples" / "eval" / "bench-4.parquet").read_bytes()
                (place / "samples" / "eval" / f"bench-{step}.parquet").write_bytes(content)
            timings = [{"step": t, "tokens": tokens, "seconds": 2.0} for t in range(1, 5)]
            pd.DataFrame(timings).to_csv(place / "timings.csv", index=False)
    study = load([tmp_path])
    table = budgets.table(compare(study, "token_sampling"))
    shown = [[cell.text.partition(" [")[0] for cell in row] for row in table.rows if row[1].text == "mean@8"]
    assert table.columns[3:5] == ["gaussian_noise", "token_sampling"]
    # cheapest: 200 tokens and 8 seconds; plain sampling has an evaluation from 100 tokens on
    assert [row[2:5] for row in shown if "tokens" in row[2]] == [
        ["0.0001 million tokens", "62.5", "37.5"],
        ["0.0002 million tokens", "87.5", "50.0"],
    ]
    assert [row[3:5] for row in shown if "hours" in row[2]] == [["50.0", "37.5"], ["62.5", "50.0"], ["87.5", "75.0"]]
    figures = plots.draw(study, compare(study, "token_sampling"), tmp_path)
    assert "budget" in {path.stem for path, _ in figures}
    assert all(row[5].text.startswith("gaussian_noise, +") for row in table.rows if row[1].text == "mean@8")


def test_with_the_same_tokens_a_method_of_longer_answers_has_fewer_of_them(tmp_path):
    """Two problems, eight answers each; of 28 pairs of answers with four right ones 6 miss, of 70 fours 1 or, with two, 15."""
    answers = {"token_sampling": (4, [2, 4]), "gaussian_noise": (8, [4, 8]), "random_noise": (2, [2, 4])}
    for arm, (tokens, right) in answers.items():
        for seed in range(2):
            make_run(tmp_path, arm, seed, right, right, samples={"n_tokens": tokens})
    study = load([tmp_path])
    table = budgets.best_of(study, compare(study, "token_sampling"))
    shown = [
        {name: cell.text.partition(" [")[0] for name, cell in zip(table.columns, row, strict=True)}
        for row in table.rows
    ]
    assert [row["answers of token_sampling"] for row in shown] == ["1", "2", "4", "8"]
    assert [row["tokens"] for row in shown] == ["4", "8", "16", "32"]
    assert [row["gaussian_noise"] for row in shown] == ["-", "1: 75.0", "2: 89.3", "4: 99.3"]
    assert [row["token_sampling"] for row in shown][:3] == ["1: 37.5", "2: 62.5", "4: 88.6"]
    assert [row["random_noise"] for row in shown][1:] == ["4: 88.6", "8: 100.0", "8+: 100.0"]


def test_without_evaluations_on_the_way_there_is_no_table_of_budgets(two):
    assert budgets.table(compare(two, "token_sampling")).rows == []


def test_gains_are_shown_against_random_rewards_too(tmp_path):
    cases: list[tuple[str, float, Any]] = [
        ("token_sampling", 0.3, {}),
        ("gaussian_noise", 0.6, {}),
        ("token_sampling", 0.6, {"extra_rewards": {"random": {"_target_": "mine.coin"}}}),
    ]
    for arm, level, more in cases:
        for seed in range(3):
            make_run(tmp_path, arm, seed, RNG.binomial(8, level, 30), RNG.binomial(8, 0.2, 30), **more)
    study = load([tmp_path])
    chance = next(arm for arm in study.arms if "coin" in arm)
    base = next(arm for arm in study.arms if arm.startswith("token_sampling") and arm != chance)
    comparison = compare(study, base)
    assert comparison.fairness.random_rewards == [chance] and not comparison.fairness.unranked
    rows = comparison.tests[comparison.tests["against"] == chance]
    assert set(rows["arm"]) == {base, "gaussian_noise"} and "control" in set(rows["family"])
    assert verdict(comparison)[0] == f"No strategy is shown to beat {base}."


def arms(root, benchmark, **solved):
    """Runs of `benchmark`: method -> a level of right answers, or a row of them for each seed."""
    for arm, level in solved.items():
        for seed in range(3):
            own = RNG.binomial(8, level, 30) if isinstance(level, float) else level[seed]
            make_run(root, arm, seed, own, RNG.binomial(8, 0.2, 30), benchmark=benchmark)
    return load([root])


def test_copies_of_a_run_are_no_seeds_and_name_no_winner(tmp_path):
    same = RNG.binomial(8, 0.9, 30)
    lines = verdict(compare(arms(tmp_path, "main", token_sampling=0.3, gaussian_noise=[same] * 3), "token_sampling"))
    assert lines[0] == "No winner is named, because this comparison is not complete."
    assert "of gaussian_noise, seed 1, 2 solved the same as an earlier one: no seed of its own" in lines


def test_seeds_that_are_all_right_may_be_equal(tmp_path):
    study = arms(tmp_path, "main", token_sampling=1.0, gaussian_noise=1.0)
    lines = verdict(compare(study, "token_sampling", declared=Declared(detect=2.0)))
    assert not any("no seed of its own" in line for line in lines)
    assert any("cannot be tested: seeds do not differ" in line for line in lines) and "nan" not in "".join(lines)
    assert any("the seeds at hand do not differ, so that nothing can be told" in line for line in lines)


def test_a_declared_benchmark_that_an_arm_lacks_is_said(tmp_path):
    def file(name, *benchmarks):
        rows = [
            {"id": p, "benchmark": b, "correct": (p + s) % 3 == 0}
            for b in benchmarks
            for p in range(9)
            for s in range(4)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / f"{name}.jsonl")

    study = foreign.load([file("both", "main", "other"), file("one", "main")])
    lines = verdict(compare(study, "both", declared=Declared(primary=["other/mean@4"])))
    assert any(line.startswith("one cannot be compared with both on other, which was declared") for line in lines)


def test_a_winner_beats_baseline_and_control_in_the_same_metric():
    columns = ["arm", "against", "benchmark", "metric", "family", "words"]
    rows = [
        ("a", "base", "x", "mean@8", "primary", "better"),
        ("a", "base", "y", "mean@8", "primary", "no difference shown"),
        ("a", "control", "x", "mean@8", "control", "no difference shown"),
        ("a", "control", "y", "mean@8", "control", "better"),
    ]
    tests = pd.DataFrame(rows, columns=columns)
    assert not beats(tests, "a", ["base", "control"]) and beats(tests, "a", ["base"])
    tests.loc[2, "words"] = "better"
    assert beats(tests, "a", ["base", "control"])


def test_one_text_for_all_problems_does_not_make_them_one(tmp_path):
    rows = [
        {"id": p, "prompt": "Look at the picture.", "correct": (p + s) % 3 == 0} for p in range(9) for s in range(4)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compare(foreign.load([str(path)], {"problem": "id"}), "a")
    assert found.estimates["problems"].eq(9).all() and not any("have the text" in note for note in found.notes)


def test_copies_of_a_problem_count_once_as_their_mean_for_every_estimate(tmp_path):
    texts = ["one", "two", "One ", "three", "two", "two"]
    rows = [{"id": p, "prompt": text, "correct": (p * s) % 4 < 2} for p, text in enumerate(texts) for s in range(4)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rates = compare(foreign.load([str(path)], {"problem": "id"}), "a").rates
    single = np.array([[np.mean([row["correct"] for row in rows if row["id"] == p]) for p in range(6)]])
    expected = 100 * np.stack([single[:, [0, 2]].mean(1), single[:, [1, 4, 5]].mean(1), single[:, 3]], axis=1)
    found = rates.values("samples", "a", "mean@4")
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(rates.curves("samples", "a", [1])[..., 0], expected)
    assert rates.size("samples") == 3 and rates.copies["samples"] == 3
