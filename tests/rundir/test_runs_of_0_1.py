"""Run directories that 0.1 wrote: read, reported and evaluated as ever, and never continued."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import warm
import yaml
from places import REPOSITORY

from analysis import diagnosis, neighbors
from analysis.load import UNTRAINED, load
from ngrpo.rundir.directory import ForeignRun, RunDirectory
from ngrpo.rundir.schema import config_hash, eval_samples, read_results, read_run

WRITTEN = REPOSITORY / "tests" / "data" / "runs_0.1"
KINDS = {"finished": "smoke", "evaluation": "evaluation", "diagnosis": "diagnosis", "killed": "run"}


@pytest.fixture
def old(tmp_path) -> Path:
    return Path(shutil.copytree(WRITTEN, tmp_path / "old"))


def test_their_kinds_are_told_from_what_was_typed():
    records = {name: read_run(WRITTEN / name) for name in KINDS}
    assert {name: record.kind for name, record in records.items()} == KINDS
    assert {name: record.status for name, record in records.items() if record.status != "finished"} == {
        "killed": "running"
    }
    for record in records.values():
        assert record.results_version is None and record.seed == 0 and record.data["story_math"] == "v1"
        assert record.content["batch_plan"]["n"] == record.config.get("n", 4) and len(record.config_hash or "") == 64


def test_their_results_are_those_of_their_samples():
    assert {name: list(read_results(WRITTEN / name)) for name in KINDS} == {
        "finished": ["story_math_easy"], "evaluation": ["story_math_easy"], "killed": ["story_math_easy"], "diagnosis": [],
    }  # fmt: skip
    for name, step in (("finished", 0), ("finished", 2), ("evaluation", 2), ("killed", 0)):
        entry = read_results(WRITTEN / name)["story_math_easy"][str(step)]
        frame = pd.read_parquet(eval_samples(WRITTEN / name, "story_math_easy", step))
        assert entry["mean@n"]["value"] == pytest.approx((frame["outcome"] == "correct").mean(), abs=1e-12)


def test_a_report_takes_the_evaluation_and_says_what_it_left_out(old):
    study = load([old])
    assert study.arms == ["token_sampling"] and study.runs["run"].tolist() == ["evaluation"]
    reasons = {Path(path).name: reason for path, reason in study.left_out.itertuples(index=False)}
    assert reasons == {
        "finished": "is of kind smoke",
        "diagnosis": "is of kind diagnosis",
        "killed": "is running, not finished",
    }
    assert {Path(path).name: kind for path, kind in study.other_kinds.items()} == {
        name: KINDS[name] for name in ("finished", "diagnosis")
    }
    assert load([old], ["smoke"]).arms == [UNTRAINED, "neighbor_mix"]


def test_the_report_of_the_folder_shows_the_diagnosis_and_counts_the_rest_by_kind(old, tmp_path):
    text = warm.finish("report.py", tmp_path / "log", f"runs={old}", f"out={tmp_path / 'out'}")
    assert "left out: 1 of kind smoke; kinds='[smoke]' takes those instead" in text.splitlines()
    listed = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert f"left out: {old / 'finished'}: is of kind smoke" in listed.splitlines()
    assert str(old / "diagnosis") not in listed and "Nearest neighbors of tokens (small)" in listed
    where = f"out={tmp_path / 'smoke'}"
    text = warm.finish("report.py", tmp_path / "log", f"runs={old}", where, "kinds=[smoke]", "baseline=neighbor_mix")
    assert "left out: 1 of kind run, 1 of kind evaluation; kinds='[run,evaluation]' takes those instead" in text
    estimates = pd.read_csv(tmp_path / "smoke" / "results.csv").set_index(["arm", "metric"])["value"]
    written = read_results(old / "finished")["story_math_easy"]
    assert estimates["neighbor_mix", "mean@4"] == pytest.approx(100 * written["2"]["mean@n"]["value"])
    assert estimates["untrained", "pass@4"] == pytest.approx(100 * written["0"]["pass@k"]["4"]["value"])


def test_a_diagnosis_is_read_with_its_neighbors():
    found = diagnosis.diagnose(diagnosis.read(WRITTEN / "diagnosis"))
    kept = pd.read_csv(WRITTEN / "diagnosis" / "diagnose.csv").set_index("strategy")
    for name, row in found.arms.set_index("strategy").iterrows():
        assert row["mean"] == pytest.approx(kept.loc[name, "mean"]) and row["speed"] == pytest.approx(
            kept.loc[name, "speed"]
        )
    assert found.sampled.compositions["neighbor_mix"]["k"] == 3
    listed = neighbors.read(WRITTEN / "diagnosis")
    assert listed.title == "small" and {"token", "text", "rank", "neighbor", "neighbor_text", "cosine"} == set(
        listed.rows
    )
    assert len(neighbors.tables([listed])[0].rows) == listed.rows["token"].nunique() > 0


def test_a_damaged_diagnosis_beside_runs_costs_its_neighbors_and_not_the_report(old):
    (old / "diagnosis" / "run.json").write_text("{")
    found, study = neighbors.beside(load([old]), [old])
    assert found == [] and study.arms == ["token_sampling"]
    left_out = dict(study.left_out.itertuples(index=False))
    assert left_out[str(old / "diagnosis")].startswith("run.json is damaged")


def test_the_model_of_a_finished_run_is_evaluated_as_it_was(old, tmp_path):
    same = ["n=4", "benchmark=[story_math_easy]", "benchmark.story_math_easy.size=8"]
    place = tmp_path / "again"
    warm.finish("evaluate.py", tmp_path / "log", f"run={old / 'finished'}", *same, f"hydra.run.dir={place}")
    record = read_run(place)
    assert (record.kind, record.status) == ("evaluation", "finished")
    assert list(read_results(place)["story_math_easy"]) == ["2"]
    before, after = (pd.read_parquet(eval_samples(run, "story_math_easy", 2)) for run in (old / "evaluation", place))
    assert after["problem_id"].tolist() == before["problem_id"].tolist()
    alike = after["completion"] == before["completion"]  # but where another machine rounds a draw to the other side
    assert alike.mean() > 0.9 and np.allclose(
        after["logprob_sum"][alike], before["logprob_sum"][alike], rtol=0, atol=1e-3
    )


def test_a_run_that_was_killed_is_not_continued_and_nothing_of_it_is_touched(old, tmp_path):
    place = old / "killed"
    record, before = read_run(place), contents(place)
    with pytest.raises(ForeignRun) as error:
        RunDirectory.open(place, record.config, hash=config_hash(record.config, record.data), versions=record.data)
    refusal = str(error.value)
    typed = [word for word in overrides(place) if not word.startswith("model.path=")]
    where = [f"model.path={old / 'finished' / 'hf'}", f"hydra.run.dir={place}"]
    told = warm.finish("train.py", tmp_path / "log", *typed, *where, status=1)
    assert told == f"error: {refusal}\n" and len(told.splitlines()) == 1
    assert all(words in told for words in (str(place), "ngrpo 0.1.0", "fresh=true", "hydra.run.dir="))
    assert contents(place) == before


def test_where_a_run_of_0_1_lies_one_may_start_anew(old):
    place = old / "killed"
    config = {"seed": 0}
    with RunDirectory.open(place, config, hash=config_hash(config), fresh=True) as run:
        assert run.status is None and read_run(place).kind == "run"
    assert set(contents(place)) == {"run.json"}


def overrides(place: Path) -> list[str]:
    return yaml.safe_load((place / ".hydra" / "overrides.yaml").read_text())


def contents(place: Path) -> dict[str, bytes]:
    """What the run itself wrote: neither the lock nor what Hydra writes before a job begins."""
    files = (path for path in place.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(place)): path.read_bytes() for path in files if ".hydra" not in path.parts}
