"""What a report says, and what it refuses to say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import warm
from places import REPOSITORY
from study import make_run

from analysis import plots, published, report, tables
from analysis.comparison import compare
from analysis.diversity import bleu, distinct_n, edit_distance
from analysis.fairness import as_uncertain, controls, setting
from analysis.load import LoadError, load
from analysis.verdict import verdict
from ngrpo.evaluation.passk import boot_best_at_k, pass_at_k
from ngrpo.rundir.schema import read_run

RNG = np.random.default_rng(0)


def noisy(level: float) -> np.ndarray:
    return RNG.binomial(8, level, 30)


def arms(root, levels: dict[str, float], seeds=(0, 1, 2), **config):
    for name, level in levels.items():
        for seed in seeds:
            make_run(root, name, seed, noisy(level), noisy(0.2), **config)


def test_estimates_are_those_of_the_estimators(tmp_path):
    solved = [RNG.binomial(8, 0.5, 30) for _ in range(2)]
    for seed, counts in enumerate(solved):
        make_run(tmp_path, "token_sampling", seed, counts)
    found = compare(load([tmp_path]), "token_sampling", [2]).estimates.set_index("metric")["value"]
    assert found["mean@8"] == pytest.approx(100 * np.mean(solved) / 8)
    assert found["pass@2"] == pytest.approx(100 * pass_at_k(8, np.concatenate(solved), 2).mean())
    boot = compare(load([tmp_path]), "token_sampling", [2]).boot_best.set_index("metric")["value"]
    assert boot["boot_best@2"] == pytest.approx(100 * boot_best_at_k(8, np.concatenate(solved), 2).mean())


def test_a_complete_comparison_names_what_is_better(tmp_path):
    arms(tmp_path, {"token_sampling": 0.3, "gaussian_noise": 0.7, "random_noise": 0.3})
    comparison = compare(load([tmp_path]), "token_sampling")
    assert verdict(comparison)[0] == "Better than token_sampling: gaussian_noise."
    (line,) = (line for line in verdict(comparison) if line.startswith("random_noise minus token_sampling"))
    assert ": no difference shown; differences over" in line
    tests = comparison.tests
    assert (tests["adjusted"] >= tests["p"] - 1e-12).all() and {"df", "detectable"} <= set(tests)


@pytest.mark.parametrize(
    ("levels", "seeds", "config", "words"),
    [
        ({"token_sampling": 0.3, "gaussian_noise": 0.7}, (0, 1), {}, "has 2 training seeds, 3 are needed"),
        ({"token_sampling": 0.3, "neighbor_mix": 0.7}, (0, 1, 2), {}, "neighbor_mix has no rate-matched control"),
        ({"gaussian_noise": 0.3, "random_noise": 0.7}, (0, 1, 2), {}, "plain token sampling is missing"),
    ],
)
def test_no_winner_without_seeds_controls_or_baselines(tmp_path, levels, seeds, config, words):
    arms(tmp_path, levels, seeds, **config)
    found = verdict(compare(load([tmp_path]), next(iter(levels))))
    assert found[0].startswith("No winner is named") and any(words in line for line in found)


def test_no_winner_without_the_untrained_model(tmp_path):
    for seed in range(3):
        make_run(tmp_path, "token_sampling", seed, noisy(0.3))
        make_run(tmp_path, "gaussian_noise", seed, noisy(0.7))
    assert any("untrained model is missing" in line for line in verdict(compare(load([tmp_path]), "token_sampling")))


def test_arms_that_differ_in_more_than_their_strategy_are_shown_and_not_ranked(tmp_path):
    arms(tmp_path, {"token_sampling": 0.3, "gaussian_noise": 0.4})
    arms(tmp_path, {"random_noise": 0.9}, learning_rate=1e-3, algorithm={"kl": 1})
    comparison = compare(load([tmp_path]), "token_sampling")
    assert comparison.fairness.unranked == {"random_noise": ["learning_rate", "algorithm.kl"]}
    assert "random_noise" not in set(comparison.tests["arm"]) and "random_noise" in set(comparison.estimates["arm"])
    assert any("random_noise also differs in learning_rate, algorithm.kl" in line for line in verdict(comparison))
    table = tables.of_comparison(comparison)[0]
    row = next(row for row in table.rows if row[0].text == "random_noise")
    assert not any(cell.place for cell in row)


def test_a_control_mixes_nothing_at_the_same_rate_and_no_rate_means_every_step():
    def mixing(rate, k):
        return {"_target_": "mix", "rate": rate, "k": k}

    arms = {"always": mixing(None, 3), "greedy": mixing(None, 1), "tenth": mixing(0.1, 3), "never": mixing(0, 3)}
    assert controls(arms | {"soft": {"_target_": "soft"}}) == {"always": "greedy"}


@pytest.mark.parametrize("dotted", [False, True])
def test_a_control_is_found_whatever_parts_the_settings_belong_to(dotted):
    def mixing(rate, k, recipe="near"):
        parts = {"gate": {"_target_": "gate", "rate": rate}, "recipe": {"_target_": recipe, "k": k}}
        flat = {f"{part}.{name}": value for part, node in parts.items() for name, value in node.items()}
        return {"_target_": "mix", **(flat if dotted else parts)}

    arms = {"near": mixing(0.1, 3), "greedy": mixing(0.1, 1), "random": mixing(0.1, 3, "random"), "tenth": mixing(1, 3)}
    assert controls(arms | {"soft": {"_target_": "soft"}}) == {"near": "greedy", "random": "greedy"}
    assert setting(arms["near"], "rate") == 0.1 and setting(arms["near"], "nothing", 7) == 7


@pytest.mark.parametrize("dotted", [False, True])
def test_a_strategy_s_entropy_control_is_the_one_that_was_matched_to_those_very_settings(dotted):
    def mixing(rate):
        return {"_target_": "mix", "gate.rate": rate} if dotted else {"_target_": "mix", "gate": {"rate": rate}}

    def control(rate):
        its = (
            {f"strategy.{key}": value for key, value in mixing(rate).items()} if dotted else {"strategy": mixing(rate)}
        )
        return {"_target_": "control", "match": "mix", **its}

    arms = {"often": mixing(0.5), "rarely": mixing(0.1), "heat": control(0.1), "other": control(0.2)}
    assert as_uncertain(arms) == {"rarely": "heat"}


def test_a_strategy_has_to_beat_plain_sampling_that_is_as_uncertain(tmp_path):
    node = {"_target_": "ngrpo.exploration.mixing.Mixing", "gate": {"rate": 0}}
    arms(tmp_path, {"token_sampling": 0.3})
    arms(tmp_path, {"gaussian_noise": 0.7}, exploration=node)
    arms(tmp_path, {"entropy_temperature": 0.7}, exploration={"_target_": "heat", "match": "noise", "strategy": node})
    comparison = compare(load([tmp_path]), "token_sampling")
    assert comparison.fairness.controls == {"gaussian_noise": ["entropy_temperature"]}
    tests = comparison.tests[comparison.tests["family"] == "control"]
    assert set(zip(tests["arm"], tests["against"], strict=True)) == {("gaussian_noise", "entropy_temperature")}
    assert verdict(comparison)[0] == "Better than token_sampling: entropy_temperature."


def test_a_strategy_whose_own_seed_is_the_run_s_is_one_arm(tmp_path):
    for seed, rows in ((0, 0), (1, 1), (2, 2), (3, 5), (4, 5), (5, 5)):
        node = {"_target_": "rows", "recipe": {"seed": rows}} if seed < 3 else {"_target_": "fixed", "seed": rows}
        make_run(tmp_path, "its_own" if seed < 3 else "fixed", seed, noisy(0.5), exploration=node)
    make_run(tmp_path, "fixed", 6, noisy(0.5), exploration={"_target_": "fixed", "seed": 7})
    assert load([tmp_path]).arms == ["fixed exploration.seed=5", "fixed exploration.seed=7", "its_own"]


def test_a_run_on_rewards_of_a_control_says_so_in_its_name(tmp_path):
    place = make_run(tmp_path, "token_sampling", 0, noisy(0.5))
    record = json.loads((place / "run.json").read_text()) | {"control": "random_rewards"}
    (place / "run.json").write_text(json.dumps(record))
    assert load([tmp_path]).arms == ["token_sampling on random rewards"]


def test_a_gain_that_the_control_has_too_is_no_win(tmp_path):
    arms(tmp_path, {"token_sampling": 0.3, "neighbor_mix": 0.7})
    mixing = {"_target_": "ngrpo.exploration.neighbor_mix.NeighborMix", "temperature": 1, "rate": 0.1, "k": 1}
    arms(tmp_path, {"rate_matched_greedy": 0.7}, exploration=mixing)
    comparison = compare(load([tmp_path]), "token_sampling")
    assert comparison.fairness.controls == {"neighbor_mix": ["rate_matched_greedy"]}
    assert verdict(comparison)[0] == "Better than token_sampling: rate_matched_greedy."


def test_the_untrained_model_is_never_marked_as_best(tmp_path):
    arms(tmp_path, {"gaussian_noise": 0.1, "token_sampling": 0.1})
    for baseline in ("token_sampling", "untrained"):
        table = tables.of_comparison(compare(load([tmp_path]), baseline))[0]
        (row,) = (row for row in table.rows if row[0].text == "untrained")
        assert not any(cell.place for cell in row)


def test_every_rendering_holds_every_number_and_ranks_as_it_shows(tmp_path):
    arms(tmp_path, {"token_sampling": 0.3, "gaussian_noise": 0.7})
    comparison = compare(load([tmp_path]), "token_sampling")
    table = tables.of_comparison(comparison)[0]
    best = max((row[2] for row in table.rows), key=lambda cell: float(cell.value or 0))
    assert best.place == 1 and f"**{best.text}**" in tables.markdown(table)
    assert rf"\textbf{{{best.text}}}" in tables.latex(table) and r"\toprule" in tables.latex(table)
    assert "gaussian\\_noise" in tables.latex(table) and f"<strong>{best.text}</strong>" in tables.html_table(table)
    for row in table.rows:
        assert all(cell.text in tables.terminal(table) for cell in row)


def test_cells_that_a_spreadsheet_would_run_are_quoted(tmp_path):
    cells = [tables.Cell(text) for text in ("=1+1", "@x", "-2.5", "+3.0", "-x")]
    tables.write_csv(tables.Table("t", "t", list("abcde"), [cells]), tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().splitlines()[1] == "'=1+1,'@x,-2.5,+3.0,'-x"


def test_published_numbers_keep_their_estimator_and_their_source():
    (made, *_) = published.tables(["n_grpo"], ["aime25"])
    assert dict(made.groups[1:]).keys() == {"AIME25"} and "2606.10768" in made.note
    assert "boot_best@32" in made.columns and not any(name.startswith("pass@") for name in made.columns)
    rows = {row[0].text: dict(zip(made.columns, (cell.text for cell in row), strict=True)) for row in made.rows}
    assert rows["Base Model"]["mean@32"] == "20.8"


def test_edit_distance_is_the_textbook_recursion():
    def slow(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    for _ in range(60):
        a, b = (RNG.integers(0, 3, RNG.integers(0, 7)).tolist() for _ in range(2))
        assert edit_distance(a, b) == slow(tuple(a), tuple(b))


def test_bleu_and_distinct_n_by_hand():
    assert bleu([1, 2, 3, 4], [[1, 2, 3, 4]]) == pytest.approx(1.0)
    assert bleu([1, 2], [[3, 4]]) == 0.0
    # unigrams 2/3; bigrams (1 + 1)/(2 + 1); trigrams (0 + 1)/(1 + 1); 4-grams (0 + 1)/(0 + 1)
    assert bleu([1, 2, 9], [[1, 2, 3]]) == pytest.approx((2 / 3 * 2 / 3 * 1 / 2 * 1) ** 0.25)
    assert bleu([1, 2], [[1, 2, 3, 4]], longest=1) == pytest.approx(np.exp(-1))
    assert distinct_n([[1, 2, 3], [1, 2]], 2) == pytest.approx(2 / 3)


def test_what_lies_far_off_does_not_press_an_axis_together_and_is_told():
    low, high = plots._window([-2.0, -1.0, 0.5, -60.0, -3.0, np.nan], 0.0)
    assert -5 < low < -3 and 0.5 < high < 2
    assert plots._off_scale(-60.0, (low, high)) == "◂ -60.0" and plots._off_scale(-1.0, (low, high)) is None
    assert plots._window([5.0, 6.0, 9.0, 14.0])[1] > 14, "unequal values are no outliers"
    assert plots._window([3.0])[0] < 3 < plots._window([3.0])[1]


def test_no_two_of_many_methods_look_alike(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "_forest", lambda study, comparison, looks: drawn.update(looks))
    for name in ("_pass_at_k", "_paired", "_learning", "_rates", "_heat", "_cost", "_budget", "_map"):
        monkeypatch.setattr(plots, name, lambda *_: None)
    arms(tmp_path, {"token_sampling": 0.3, **{f"m{i:02d}": 0.3 for i in range(23)}}, seeds=(0,))
    study = load([tmp_path])
    plots.draw(study, compare(study, "token_sampling"), tmp_path)
    assert len(set(drawn.values())) == len(study.arms) == 25


def test_the_files_of_a_report(tmp_path):
    arms(tmp_path / "runs", {"token_sampling": 0.3, "gaussian_noise": 0.7})
    lines = report.write(load([tmp_path / "runs"]), "token_sampling", tmp_path / "out", None, ["n_grpo"])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        "report.html",
        "report.md",
        "results.csv",
        "passk.tex",
        "forest.png",
        "pass_at_k.png",
        "learning.png",
    } <= names
    assert "Better than token_sampling: gaussian_noise." in lines
    assert len(pd.read_csv(tmp_path / "out" / "results.csv")) == 6
    assert "Welch" in (tmp_path / "out" / "report.md").read_text()


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Three seeds of an arm, evaluated before, and beside them a run of every other kind that would spoil a comparison."""
    arms(tmp_path / "runs", {"token_sampling": 0.3})
    arms(tmp_path / "runs" / "evaluated", {"gaussian_noise": 0.3}, kind="evaluation")
    for kind in ("smoke", "trial"):
        arms(tmp_path / "runs" / kind, {"token_sampling": 0.9}, seeds=(0, 1), kind=kind)
    make_run(tmp_path / "runs" / "diagnosed", "token_sampling", 0, noisy(0.9), kind="diagnosis")
    return tmp_path / "runs"


def test_smoke_runs_trials_and_diagnoses_stay_out_of_a_report_and_are_named(mixed, tmp_path):
    text = warm.finish("report.py", tmp_path / "log", f"runs={mixed}", f"out={tmp_path / 'out'}")
    told = (
        "left out: 2 of kind smoke, 2 of kind trial, 1 of kind diagnosis; kinds='[smoke,trial,diagnosis]' takes those"
    )
    assert [line for line in text.splitlines() if line.startswith("left out")] == [f"{told} instead"]
    estimates = pd.read_csv(tmp_path / "out" / "results.csv")
    assert set(estimates["arm"]) == {"untrained", "token_sampling", "gaussian_noise"} and estimates["seeds"].max() == 3
    listed = [line for line in (tmp_path / "out" / "report.md").read_text().splitlines() if line.startswith("left out")]
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    for place in (path.parent for path in sorted(mixed.rglob("run.json"))):
        kind = read_run(place).kind
        assert (f"left out: {place}: is of kind {kind}" in listed) == (kind not in ("run", "evaluation"))
        assert (str(place) in page) == (kind not in ("run", "evaluation"))


def test_runs_of_other_kinds_are_taken_on_request(mixed, tmp_path):
    for kinds, seeds in (("[smoke]", 2), ("smoke", 2), ("[run,smoke]", None)):
        asked = [f"runs={mixed}", f"out={tmp_path / 'out'}", f"kinds={kinds}"]
        text = warm.finish("report.py", tmp_path / "log", *asked, status=0 if seeds else 2)
        if seeds:
            estimates = pd.read_csv(tmp_path / "out" / "results.csv").set_index(["arm", "metric"])
            assert estimates.loc[("token_sampling", "mean@8"), "value"] > 80 and (estimates["seeds"] == seeds).all()
            assert "left out: 3 of kind run, 2 of kind trial, 3 of kind evaluation, 1 of kind diagnosis" in text
        else:  # they would be pooled
            assert "are both token_sampling with seed 0" in text and len(text.splitlines()) == 1


def test_a_declared_comparison_from_the_command_line(tmp_path):
    arms(tmp_path / "runs", {"token_sampling": 0.3, "gaussian_noise": 0.7})
    asked = [f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}", "primary=bench/pass@2", "margin=5", "detect=2"]
    text = warm.finish("report.py", tmp_path / "log", *asked)
    assert (
        "gaussian_noise minus token_sampling on bench pass@2: +" in text
        and "To find 2 points of pass@2 on bench" in text
    )
    assert "Declared: bench pass@2. The other 2 comparisons are exploratory" in text
    wrong = warm.finish("report.py", tmp_path / "log", asked[0], "primary=bench/pass@9", status=2)
    assert "primary=bench/pass@9: bench has n=8 samples per problem" in wrong and len(wrong.splitlines()) == 1


def test_where_all_runs_are_of_other_kinds_the_line_says_how_to_read_them(tmp_path):
    arms(tmp_path, {"token_sampling": 0.3}, kind="smoke")
    with pytest.raises(LoadError, match=r"holds no finished run \(left out: 3 of kind smoke; kinds='\[smoke\]' takes"):
        load([tmp_path])


def test_help_needs_no_torch_and_mistakes_are_one_line(tmp_path):
    script = str(REPOSITORY / "report.py")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = f"runpy.run_path({script!r}, run_name='__main__')"
    code = f"import runpy, sys\ntry: {run}\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stderr.strip() == "False"
    for wrong, words in (
        (["runs=/nowhere"], "runs=/nowhere: is no directory"),
        ([], "runs= or samples="),
        ([f"runs={tmp_path}"], "holds no finished run"),
        (
            [f"runs={tmp_path}", "kinds=[smok]"],
            "kinds=[smok]: must be a list, each one of run, smoke, trial, evaluation, diagnosis or null; kinds",
        ),
        ([f"runs={tmp_path}", "kinds=[]"], "kinds=[]: must be a list of run, smoke"),
        ([f"runs={tmp_path}", "margin=-1"], "margin=-1: must be"),
        ([f"runs={tmp_path}", "detect=two"], "detect=two: must be"),
    ):
        done = warm.run("report.py", *wrong)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_one_problem_has_an_estimate_and_no_interval(tmp_path):
    for arm in ("token_sampling", "gaussian_noise"):
        make_run(tmp_path, arm, 0, [4])
    table = tables.of_comparison(compare(load([tmp_path]), "token_sampling"))[0]
    assert [row[2].text for row in table.rows] == ["50.0", "50.0"] and "nan" not in tables.markdown(table)
