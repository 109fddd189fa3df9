"""From run directories and foreign samples to one study: what is read, named, left out and refused."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from places import CONF
from study import make_run, sample_row

from analysis import foreign
from analysis.arms import SHARED, differing
from analysis.comparison import compare
from analysis.load import UNTRAINED, LoadError, load
from ngrpo.rundir.recorder import write_samples
from ngrpo.rundir.schema import eval_samples

SOLVED, BEFORE = np.array([8, 4, 0, 2]), np.array([1, 0, 0, 2])


def test_counts_are_those_of_the_files_and_the_untrained_model_is_there_once_per_seed(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path, "token_sampling", seed, SOLVED, BEFORE)
        make_run(tmp_path, "gaussian_noise", seed, SOLVED[::-1], BEFORE)
    study = load([tmp_path])
    assert study.arms == [UNTRAINED, "gaussian_noise", "token_sampling"]
    assert study.runs["arm"].value_counts().to_dict() == {UNTRAINED: 2, "gaussian_noise": 2, "token_sampling": 2}
    part = study.counts[(study.counts["arm"] == "token_sampling") & (study.counts["seed"] == 1)]
    assert part["c"].tolist() == SOLVED.tolist() and (part["n"] == 8).all() and (part["tokens"] == 24).all()
    assert study.counts[study.counts["arm"] == UNTRAINED]["c"].tolist() == BEFORE.tolist() * 2
    trained = study.runs[study.runs["arm"] != UNTRAINED]
    assert (trained["tokens"] == 400).all() and (trained["seconds"] == 8).all()


def test_runs_that_cannot_be_read_are_listed_with_the_reason(tmp_path):
    make_run(tmp_path, "token_sampling", 0, SOLVED)
    make_run(tmp_path, "token_sampling", 1, SOLVED, status="running")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "run.json").write_text(json.dumps({"status": "finished", "config": {}, "seed": 0}))
    study = load([tmp_path])
    reasons = {path.rpartition("/")[2][:6]: reason for path, reason in study.left_out.itertuples(index=False)}
    assert (
        len(study.runs) == 1
        and reasons["token_"] == "is running, not finished"
        and reasons["empty"].startswith("has no samples")
    )
    assert "broken" in reasons


def test_jobs_and_trials_without_a_run_of_their_own_are_listed_with_the_reason(tmp_path):
    root = tmp_path / "outputs" / "task"
    there = make_run(root, "token_sampling", 0, SOLVED)
    failed = make_run(root, "token_sampling", 1, SOLVED, status="failed")
    record = json.loads((failed / "run.json").read_text()) | {"reason": "out of\nmemory"}
    (failed / "run.json").write_text(json.dumps(record))
    jobs = [
        {"overrides": ["seed=0"], "directory": f"outputs/task/{there.name}", "status": "finished", "error": None},
        {"overrides": ["seed=1"], "directory": f"outputs/task/{failed.name}", "status": "failed", "error": "x"},
        {"overrides": ["k=0", "seed=2"], "directory": "outputs/task/a", "status": "refused", "error": "k=0: too few"},
        {"overrides": ["seed=3"], "directory": "outputs/task/b", "status": "waiting", "error": None},
        {"overrides": ["seed=4"], "directory": "outputs/task/c", "status": "finished", "error": None},
        {"overrides": ["task=o"], "directory": "outputs/other/d", "status": "refused", "error": "of another tree"},
    ]
    search = root / "sweeps" / "0a1b"
    search.mkdir(parents=True)
    (root / "sweeps" / "1234.json").write_text(json.dumps({"arguments": [], "runs": jobs}))
    (root / "sweeps" / "5678.json").write_text("[]")
    trials = "number,state,k,mix_rate,bench/mean@8,spread,seconds,reason\n"
    trials += "0,COMPLETE,1,0.1,0.5,,9,\n1,FAIL,2,0.2,,,9,no such file\n2,PRUNED,3,0.3,,,9,\n3,FAIL,4,0.4,,,,\n"
    (search / "trials.csv").write_text(trials)
    (root / "sweeps" / "beef").mkdir()
    (root / "sweeps" / "beef" / "journal.log").write_text("")
    found = {path.removeprefix(f"{root}/"): reason for path, reason in load([root]).left_out.itertuples(index=False)}
    assert found.pop("sweeps/5678.json").startswith("is no record of a sweep")
    assert found == {
        failed.name: "is failed, not finished: out of memory",
        "a (k=0 seed=2)": "refused: k=0: too few",
        "b (seed=3)": "waiting: its sweep ended before it",
        "c (seed=4)": "finished: is no longer there",
        "sweeps/0a1b trial 1 (k=2, mix_rate=0.2)": "no such file",
        "sweeps/0a1b trial 3 (k=4, mix_rate=0.4)": "its worker died or had no room for it",
        "sweeps/beef": "its search has not ended: trials that failed are not known yet",
    }


def test_arms_are_named_after_what_varies_and_never_pooled(tmp_path):
    for rate in (0.1, 0.2):
        knobs = {"mix_rate": rate, "exploration": {"_target_": "ngrpo.x.Mix", "rate": rate, "k": 3}}
        make_run(tmp_path, "neighbor_mix", 0, SOLVED, **knobs)
    assert load([tmp_path]).arms == ["neighbor_mix mix_rate=0.1", "neighbor_mix mix_rate=0.2"]
    make_run(tmp_path / "other", "neighbor_mix", 0, SOLVED, samples={"algorithm": "dapo"})
    assert "neighbor_mix + dapo" in load([tmp_path]).arms


def test_a_key_that_only_some_runs_have_keeps_arms_apart_and_the_place_of_a_model_does_not(tmp_path):
    make_run(tmp_path, "token_sampling", 0, SOLVED, model={"path": "a"})
    make_run(tmp_path, "token_sampling", 1, SOLVED, model={"path": "b"})
    assert load([tmp_path]).arms == ["token_sampling"]
    make_run(tmp_path, "token_sampling", 2, SOLVED, model={"path": "a"}, optimizer={"warmup_steps": 5})
    arms = ["token_sampling optimizer.warmup_steps=5", "token_sampling optimizer.warmup_steps=None"]
    assert sorted(load([tmp_path]).arms) == sorted(arms)


def test_runs_of_different_versions_of_the_results_are_never_pooled(tmp_path):
    for seed, version in ((0, {}), (1, {"results_version": 1}), (2, {"results_version": 1})):
        place = make_run(tmp_path, "token_sampling", seed, SOLVED)
        record = json.loads((place / "run.json").read_text()) | version  # 0.1 wrote none
        (place / "run.json").write_text(json.dumps(record))
    study = load([tmp_path])
    assert sorted(study.arms) == ["token_sampling results.version=1", "token_sampling results.version=None"]
    assert differing(*(study.runs["config"][at] for at in (0, 2))) == ["results.version"]


def test_two_runs_of_one_arm_and_seed_are_refused(tmp_path):
    make_run(tmp_path / "a", "token_sampling", 0, SOLVED)
    make_run(tmp_path / "b", "token_sampling", 0, SOLVED)
    with pytest.raises(LoadError, match=r"are both token_sampling with seed 0"):
        load([tmp_path])


def test_keys_outside_of_the_strategy_make_a_comparison_unfair():
    one = {
        "seed": 0,
        "steps": 50,
        "exploration.rate": 0.1,
        "mix_rate": 0.1,
        "learning_rate": 1e-5,
        "trainer.threads": 1,
    }
    two = {**one, "seed": 1, "exploration.rate": 0.4, "mix_rate": 0.4, "trainer.threads": 2}
    assert differing(one, two) == []
    assert differing(one, {**two, "learning_rate": 2e-5, "algorithm.kl.coefficient": 0.1}) == [
        "learning_rate", "algorithm.kl.coefficient",
    ]  # fmt: skip


def test_shared_values_are_the_scalars_of_the_composed_configuration():
    files = (CONF / "part" / "sampling.yaml", CONF / "config.yaml")
    config = {key: value for file in files for key, value in yaml.safe_load(file.read_text()).items()}
    scalars = {key for key, value in config.items() if isinstance(value, (int, float, str))}
    assert scalars - {"fresh", "trust_changed", "trainable"} | {"problems"} == set(SHARED)


def test_rows_that_are_there_twice_and_unequal_n_are_refused_by_file_and_column(tmp_path):
    place = make_run(tmp_path, "token_sampling", 0, SOLVED)
    path = eval_samples(place, "bench", 4)
    rows = [sample_row("p00", 0, "correct"), sample_row("p00", 0, "wrong")]
    write_samples(rows, path)
    with pytest.raises(LoadError, match=r"bench-4.parquet: column problem_id=p00, sample_index=0 is there 2 times"):
        load([tmp_path])
    write_samples([sample_row("p00", 0, "correct"), sample_row("p01", 0, "wrong"), sample_row("p01", 1, "wrong")], path)
    with pytest.raises(LoadError, match=r"samples, others \d; estimators need as many"):
        load([tmp_path])
    pd.DataFrame({"problem_id": ["a"]}).to_parquet(path)
    with pytest.raises(LoadError, match="has no column exploration"):
        load([tmp_path])


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_foreign_samples_of_every_kind_give_the_same_study(tmp_path, kind):
    frame = pd.DataFrame(
        {"question_id": ["007", "007", "b", "b"], "label": [1, 0, 0, 0], "output": ["x y", "x", "None", ""]}
    )
    path = tmp_path / f"samples.{kind}"
    writers = {
        "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        "csv": lambda: frame.to_csv(path, index=False),
        "parquet": lambda: frame.to_parquet(path),
    }
    writers[kind]()
    study = foreign.load([f"ours={path}", f"ours/1={path}", f"theirs={path}"])
    assert study.arms == ["ours", "theirs"] and study.counts["problem_id"].tolist() == ["007", "b"] * 3
    assert study.counts["c"].tolist() == [1, 0] * 3 and (study.counts["n"] == 2).all()
    assert study.runs["seed"].tolist() == [0, 1, 0]
    assert study.samples("ours", "samples", ["completion"])["completion"].tolist()[:3] == ["x y", "x", "None"]


def test_verl_and_lm_eval_columns_are_known(tmp_path):
    verl, lm_eval = tmp_path / "1.jsonl", tmp_path / "samples_aime.jsonl"
    verl.write_text(
        "".join(
            json.dumps({"input": q, "output": "a", "gts": "1", "score": s, "step": 1}) + "\n"
            for q, s in (("q", 1.0), ("q", 0.0))
        )
    )
    lm_eval.write_text(json.dumps({"doc_id": 3, "target": "5", "exact_match": 1.0}) + "\n")
    study = foreign.load([f"a={verl}"])
    assert study.counts[["problem_id", "n", "c"]].values.tolist() == [["q", 2, 1]]
    assert foreign.load([f"a={lm_eval}"]).counts["c"].tolist() == [1]


def test_texts_are_read_when_asked_for_and_of_the_problems_asked_for(tmp_path, monkeypatch):
    from analysis import formats

    frame = pd.DataFrame({"id": np.repeat(list("abc"), 2), "correct": 1, "output": [f"x y{i}" for i in range(6)],
                          "seed": [0, 1] * 3, "data_source": ["u", "u", "v", "v", "v", "v"], "unused": "z"})  # fmt: skip
    frame.to_parquet(tmp_path / "s.parquet")
    read = []
    real = formats._parquet
    monkeypatch.setitem(
        formats.KINDS, ".parquet", (formats.KINDS[".parquet"][0], lambda p, w: read.append(w) or real(p, w))
    )
    study = foreign.load([f"a={tmp_path / 's.parquet'}"])
    assert read == [["id", "data_source", "seed", "correct"], ["id", "data_source"]] and study.benchmarks == ["u", "v"]
    found = study.samples("a", "v", ["problem_id", "completion", "token_ids", "n_tokens", "gold"], ["c"])
    assert found["completion"].tolist() == ["x y4", "x y5"] and found["seed"].tolist() == [0, 1]
    assert found["n_tokens"].tolist() == [2, 2] and found["gold"].tolist() == ["", ""]
    study.samples("a", "u", ["problem_id", "completion", "token_ids", "n_tokens", "gold"], ["c"])
    assert read[2:] == [["output"]], "a second benchmark of the file is read from memory"


def test_of_very_many_samples_a_part_of_the_problems_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.load.MOST", 16)
    make_run(tmp_path, "token_sampling", 0, SOLVED)
    study = load([tmp_path])
    shown = study.problems_read("bench")
    assert shown is not None and len(shown) == 2 and study.counts["c"].tolist() == SOLVED.tolist()
    assert sorted(study.samples("token_sampling", "bench", ["problem_id"])["problem_id"].unique()) == shown
    assert study.samples("token_sampling", "bench", ["problem_id"], ["p00"])["problem_id"].tolist() == ["p00"] * 8
    long = make_run(tmp_path / "long", "token_sampling", 1, SOLVED, samples={"token_ids": list(range(2000))})
    cells = load([long]).samples("token_sampling", "bench", ["token_ids"])["token_ids"]
    assert {len(ids) for ids in cells} == {512}, "answers of any length lie in memory as their first tokens"


def test_json_values_of_several_kinds_dates_and_broken_surrogates_are_read(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text(
        '{"id": "2024-01-01", "correct": true, "output": "\\ud800 x\\u0000"}\n'
        '{"id": 7, "correct": "0", "output": ["y"]}\n{"id": 7.5, "correct": {"none": 1.0}, "extra": 1}\n'
    )
    study = foreign.load([f"a={path}"])
    assert study.counts[["problem_id", "c"]].values.tolist() == [["2024-01-01", 1], ["7", 0], ["7.5", 1]]
    assert study.samples("a", "samples", ["completion"])["completion"].tolist() == ["? x\0", '["y"]', ""]
    path.write_text('{"id": "2024-01-01", "correct": 1}\n{"id": "2024-01-02", "correct": 0.0}\n')
    assert foreign.load([f"a={path}"]).counts["problem_id"].tolist() == ["2024-01-01", "2024-01-02"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"id": 1}\n', "has no verdict column"),
        ('{"correct": 1}\n', "has no problem column"),
        ('{"id": 1, "correct": "maybe"}\n', "column correct, row 1: 'maybe'"),
        ('{"id": 1, "correct": 1, "sample_index": 0}\n{"id": 1, "correct": 1, "sample_index": 0}\n', "more than once"),
        ('{"id": 1, "correct": 1}\n{"id": 1, "correct": 1}\n{"id": 2, "correct": 1}\n', "estimators need as many"),
        ("{", "cannot be read"),
        ("", "has no rows"),
        ('{"id": 1, "correct": 0.5}\n', "column correct, row 1: '0.5' is neither right"),
        ('{"id": 1, "correct": 1}\n{"id": 1, "correct": NaN}\n', "column correct, row 2"),
        ('{"id": 1, "correct": 1}\n{"correct": 1}\n', "column id, row 2"),
        ('{"id": 1, "correct": 1, "seed": 0.5}\n', "column seed, row 1: '0.5' is no whole number"),
        ('{"id": 1, "correct": 1, "seed": "x"}\n', "column seed: .*x"),
        ('{"id": 1, "correct": 1, "n_tokens": "x"}\n', "column n_tokens: .*x"),
        ("[1]\n", "must hold an object per sample"),
        (
            '{"id": 1, "correct": 1, "filter": "a"}\n{"id": 1, "correct": 1, "filter": "b"}\n',
            "column filter holds 2, a, b, so",
        ),
    ],
)
def test_foreign_samples_that_make_no_sense_are_told_by_file_and_column(tmp_path, content, words):
    path = tmp_path / "s.jsonl"
    path.write_text(content)
    with pytest.raises(LoadError, match=words.replace("(", r"\(")):
        foreign.load([f"a={path}"])


def test_damaged_runs_are_left_out_with_a_reason_that_says_where(tmp_path):
    make_run(tmp_path, "token_sampling", 0, SOLVED)

    def broken(seed, break_it):
        place = make_run(tmp_path, "token_sampling", seed, SOLVED)
        break_it(place)

    path = eval_samples
    broken(1, lambda place: (place / "samples/eval/zzz-4.parquet").write_bytes(b"PAR1" + b"x" * 30))
    broken(2, lambda place: (place / "timings.csv").write_text("step\n1\n"))
    broken(3, lambda place: (place / "run.json").write_text("[]"))
    broken(4, lambda place: pd.read_parquet(path(place, "bench", 4)).iloc[:0].to_parquet(path(place, "bench", 4)))
    broken(5, lambda place: path(place, "bench", 4).rename(place / "samples/eval/bench.parquet"))
    broken(6, lambda place: (place / "run.json").write_text('{"status": "finished"}'))
    study = load([tmp_path])
    reasons = {path.split("-s")[1][0]: reason for path, reason in study.left_out.itertuples(index=False)}
    assert len(study.runs) == 1 and reasons.pop("1").startswith("Parquet magic bytes not found")
    assert reasons == {
        "2": "timings.csv has no column tokens",
        "3": "run.json is damaged (it is no object)",
        "4": "bench-4.parquet has no rows",
        "5": "bench.parquet is not named <benchmark>-<RL step>.parquet",
        "6": "lacks 'config'",
    }


def test_files_that_do_not_fit_together_are_told_by_name(tmp_path):
    def file(name, problems, n):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f'{{"id": "{p}", "correct": 1}}\n' * n for p in problems))
        return path

    four, three, other = file("four", "ab", 4), file("three", "ab", 3), file("other", "ac", 4)
    with pytest.raises(LoadError, match=r"four\.jsonl: both have a, seed 0, samples, column problem_id=a"):
        foreign.load([f"a={four}", f"a={four}"])
    with pytest.raises(
        LoadError, match=r"three\.jsonl: a, seed 1, samples: column problem_id=a has 3 samples, others 4"
    ):
        foreign.load([f"a={four}", f"a/1={three}", f"a/2={four}"])
    for wrong, words in (
        (three, "three.jsonl: b: samples has 3 samples"),
        (other, "other.jsonl: b: samples has other"),
    ):
        with pytest.raises(LoadError, match=words):
            compare(foreign.load([f"a={four}", f"b={wrong}"]), "a")
    study = foreign.load([f"a={four}"])
    with pytest.raises(LoadError, match="has no text column"):
        study.samples("a", "samples", ["token_ids"])


def test_k_beyond_n_other_problems_and_unknown_baselines_are_refused(tmp_path):
    make_run(tmp_path, "token_sampling", 0, SOLVED)
    study = load([tmp_path])
    with pytest.raises(LoadError, match=r"pass_k=16: bench has n=8 samples per problem, so k must lie in 1\.\.8"):
        compare(study, "token_sampling", [16])
    with pytest.raises(LoadError, match=r"baseline=x: there is no such arm; there are token_sampling"):
        compare(study, "x")
    make_run(tmp_path, "gaussian_noise", 0, SOLVED[:3])
    with pytest.raises(LoadError, match="has other problems"):
        compare(load([tmp_path]), "token_sampling")
