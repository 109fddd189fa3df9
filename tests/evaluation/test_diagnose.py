"""Sampling before training: shared random numbers, what was fed as the table sees it, and the whole command."""

import subprocess
import sys
import time

import configurations
import numpy as np
import pandas as pd
import pytest
import torch
import warm
from places import REPOSITORY
from study import make_run
from torch.nn import functional as F
from transformers import AutoTokenizer

from analysis import report
from analysis.diagnosis import diagnose, read
from analysis.load import LoadError, load
from ngrpo.cli.command import examine
from ngrpo.evaluation import mechanism
from ngrpo.evaluation.diagnosis import token_of
from ngrpo.models.files import BUNDLED
from ngrpo.rollout.engines.transformers import generate
from ngrpo.rollout.sampling import fed_vectors
from ngrpo.rundir.schema import read_run

TINY = BUNDLED["ngrpo:tiny"]
SMALL = ["problems=4", "n=2", "group_size=2", "rows_per_batch=4", "max_new_tokens=24"]
RUN = [*SMALL, "strategies=[token_sampling,gaussian_noise,neighbor_mix]", "mix_rate=0.5", "tokens=[seven]"]
RUN += ["exploration.scale=0.2", "exploration.metric=dot"]


@pytest.mark.parametrize("name", ["gaussian_noise", "neighbor_mix", "rate_matched_greedy"])
def test_the_same_keys_give_the_same_tokens_until_exploration_acts(name, setting, make_strategy, make_rollouts):
    model, vocabulary = setting
    plain = make_rollouts(model, make_strategy("token_sampling", model, vocabulary), seed="shared")
    other = make_rollouts(model, make_strategy(name, model, vocabulary, rate=0.3), seed="shared")
    foreign = make_rollouts(model, make_strategy("token_sampling", model, vocabulary), seed="others")
    alike, differ = 0, 0
    for row in range(len(plain.keys)):
        acted = other.steps.explored[row].nonzero()
        first = min(int(acted[0]) if len(acted) else 99, int(plain.lengths[row]), int(other.lengths[row]))
        assert torch.equal(plain.steps.tokens[row, :first], other.steps.tokens[row, :first])
        alike += first
        shorter = min(int(plain.lengths[row]), int(foreign.lengths[row]))
        differ += int((plain.steps.tokens[row, :shorter] != foreign.steps.tokens[row, :shorter]).sum())
    assert alike > 40 and differ > 40
    assert plain.steps.tokens.tolist() != other.steps.tokens.tolist()


def test_neighbors_and_nearest_tokens_are_those_of_brute_force(monkeypatch):
    monkeypatch.setattr(mechanism, "CHUNK", 7)  # so that the table comes in several parts
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(40, 6, generator=generator)
    table[11] = table[10]  # a tie
    ordinary = torch.ones(40, dtype=torch.bool)
    ordinary[[3, 10, 25]] = False
    ids, cosines = mechanism.neighbors([0, 5, 11, 25], 4, table, ordinary)
    rows = F.normalize(table.double(), dim=-1).numpy()
    for at, token in enumerate([0, 5, 11, 25]):
        scores = {other: rows[token] @ rows[other] for other in range(40) if ordinary[other] and other != token}
        wanted = sorted(scores, key=lambda other: (-scores[other], other))[:4]
        assert ids[at].tolist() == wanted
        assert np.allclose(cosines[at], [scores[other] for other in wanted], atol=1e-12)
    vectors = torch.cat([table[[9, 30]] * 3, torch.randn(6, 6, generator=generator)])
    found = mechanism.nearest_tokens(vectors, table)
    brute = F.cosine_similarity(vectors[:, None].double(), table[None].double(), dim=-1).argmax(dim=1)
    assert torch.equal(found, brute) and found[:2].tolist() == [9, 30]
    assert mechanism.neighbors([0], 99, table, ordinary)[0].shape == (1, 36)


def test_steps_are_taken_evenly_from_the_whole_batch(setting, make_strategy, make_rollouts):
    model, vocabulary = setting
    rollouts = make_rollouts(model, make_strategy("gaussian_noise", model, vocabulary))
    every = (rollouts.steps.explored & rollouts.consumed).nonzero()
    assert torch.equal(mechanism.spread(rollouts, 10_000), every)
    some = mechanism.spread(rollouts, 7)
    assert len(some) == 7 and torch.equal(some[[0, -1]], every[[0, -1]]) and len(some.unique(dim=0)) == 7
    strategy = make_strategy("gaussian_noise", model, vocabulary)
    fed, *_ = fed_vectors(rollouts, some, strategy, model.table.detach())
    anchor = F.embedding(rollouts.steps.tokens[some[:, 0], some[:, 1]], model.table)
    assert ((fed - anchor).norm(dim=-1) > 0.05 * anchor.norm(dim=-1)).all()


@pytest.mark.parametrize("name", ["neighbor_mix", "norm_matched_noise"])
def test_what_was_fed_changes_the_next_token_as_in_a_whole_forward_pass(
    name, make_model, make_vocabulary, make_strategy
):
    model, vocabulary = make_model(dtype=torch.float64), make_vocabulary()
    strategy = make_strategy(name, model, vocabulary)
    prompts, mask = torch.tensor([[0, 0, 9, 8], [5, 6, 7, 4]]), torch.tensor([[False, False, True, True], [True] * 4])
    rollouts = generate(model, strategy, prompts, mask, torch.arange(12), 10)
    where = mechanism.spread(rollouts, 20)
    found = pd.DataFrame(mechanism.next_token_rows(rollouts, where, strategy, model))
    fed = strategy.embed(rollouts.steps, model.table, rollouts.draws)
    fed = fed.detach()
    for place, (row, at) in enumerate(where.tolist()):
        text = torch.cat((model.table[rollouts.prompts[row][rollouts.prompt_mask[row]]], fed[row, : at + 1]))
        plain = torch.cat((text[:-1], model.table[rollouts.steps.anchors[row, at]][None]))
        after, before = (model.model(inputs_embeds=x[None]).logits[0, -1].detach().softmax(-1) for x in (text, plain))
        assert found["next_changed"][place] == bool(after.argmax() != before.argmax())
        assert found["next_kl"][place] == pytest.approx(float((before * (before / after).log()).sum()), abs=1e-9)
    assert found["next_kl"].max() > 1e-4 and len(where) >= 10


def test_a_token_is_named_by_its_text():
    words = AutoTokenizer.from_pretrained(TINY)
    assert words.decode([token_of(words, "seven")]).strip() == "seven"
    with pytest.raises(ValueError, match="tokens=seven plus: must name single tokens"):
        token_of(words, "seven plus")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One diagnosis of the bundled model at the smallest size: its directory, and what was printed."""
    place = tmp_path_factory.mktemp("diagnosis")
    run = place / "run"
    text = warm.finish("diagnose.py", place / "log", *RUN, f"hydra.run.dir={run}")
    return run, text


def test_the_page_says_what_the_samples_say(finished):
    run, text = finished
    assert "The sample is too small to tell: 4 problems, and at least 14 are needed" in text
    page = (run / "diagnose.md").read_text("utf-8")
    assert "mix right and wrong" in page or "all wrong" in page or "not well-formed" in page
    numbers = pd.read_csv(run / "diagnose.csv").set_index("strategy")
    assert list(numbers.index) == ["token_sampling", "gaussian_noise", "neighbor_mix"]
    for name in numbers.index:
        frame = pd.read_parquet(run / "samples" / f"{name}.parquet")
        assert len(frame) == 8 and set(frame["exploration"]) == {name}
        assert numbers.loc[name, "mean"] == pytest.approx(100 * (frame["outcome"] == "correct").mean())
        assert numbers.loc[name, "cut"] == pytest.approx(100 * (frame["finish_reason"] == "length").mean())
        explored = frame["explored_steps"].sum() / frame["n_tokens"].sum()
        assert numbers.loc[name, "explored"] == pytest.approx(100 * explored)
    assert numbers.loc["token_sampling", "speed"] == 1 and (numbers["tokens_per_second"] > 0).all()
    assert not (run / "parts").exists()
    record = read_run(run)
    assert (record.status, record.kind) == ("finished", "diagnosis")
    built = record.content["compositions"]
    assert built["gaussian_noise"]["recipe"]["scale"] == 0.2 and built["neighbor_mix"]["recipe"]["metric"] == "dot"
    assert set(built["token_sampling"]) == {"_target_", "temperature", "top_p", "top_k", "min_p"}


def test_steps_and_neighbors_are_those_of_the_model(finished):
    run, _ = finished
    steps, listed = (pd.read_parquet(run / f"{name}.parquet") for name in ("steps", "neighbors"))
    assert set(steps["strategy"]) == {"gaussian_noise", "neighbor_mix"} and "fed" not in steps
    assert (steps["displacement"] > 0).any() and not (run / "planes.parquet").exists()
    first = listed.iloc[0]
    assert first["text"].strip() == "seven" and first["rank"] == 1 and first["cosine"] >= listed.iloc[1]["cosine"]
    assert first["neighbor_text"].strip() in {"six", "eight", "five"}  # number words lie together


def test_a_finished_diagnosis_is_told_again_and_not_sampled_again(finished, tmp_path):
    run, text = finished
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.p*") if path.is_file()}
    again = warm.finish("diagnose.py", tmp_path / "log", *RUN, f"hydra.run.dir={run}")
    told = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("asked: "))
    assert again.startswith("already diagnosed") and again.partition("\n")[2] == told
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_killed_diagnosis_goes_on_and_ends_with_the_same_samples(finished, tmp_path):
    run, _ = finished
    cut = tmp_path / "cut"
    arguments = [*RUN, f"hydra.run.dir={cut}"]
    process = warm.start("diagnose.py", tmp_path / "log", *arguments)
    while process.is_alive() and not list(cut.glob("parts/*.json")):
        time.sleep(0.002)
    process.kill()
    process.join(timeout=60)
    assert process.exitcode == -9 and not (cut / "diagnose.md").exists()
    with pytest.raises(LoadError, match="no finished diagnosis"):
        read(cut)
    warm.finish("diagnose.py", tmp_path / "log", *arguments)
    for path in sorted((run / "samples").glob("*.parquet")):
        first, second = (pd.read_parquet(p).drop(columns="run") for p in (path, cut / "samples" / path.name))
        pd.testing.assert_frame_equal(first, second)
    for name in ("steps.parquet", "neighbors.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(run / name), pd.read_parquet(cut / name))
    left, right = (diagnose(read(place)).pairs for place in (run, cut))
    pd.testing.assert_frame_equal(left, right)


def test_a_report_shows_the_neighbors_that_lie_beside_its_runs(finished, tmp_path):
    run, _ = finished
    rng = np.random.default_rng(0)
    for name in ("token_sampling", "gaussian_noise"):
        make_run(tmp_path / "runs", name, 0, rng.binomial(8, 0.5, 10), rng.binomial(8, 0.2, 10))
    roots = [tmp_path / "runs", run]
    report.write(load(roots), "token_sampling", tmp_path / "out", None, [], roots)
    html = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "Nearest neighbors of tokens (ngrpo:tiny)" in html and "seven" in html
    assert str(run) not in html
    report.write(load(roots[:1]), "token_sampling", tmp_path / "plain", None, [], roots[:1])
    assert "Nearest neighbors" not in (tmp_path / "plain" / "report.html").read_text("utf-8")


WRONG = {
    "strategies=[neighbor_mix]": "with token_sampling among them|'strategies=[token_sampling,neighbor_mix]'",
    "strategies=neighbor_mix": "is a list|'strategies=[token_sampling,neighbor_mix]'",
    "strategies=[token_sampling,neighbour_mix]": "neighbor_mix|neighbor_mix",
    "strategies=[token_sampling,stht,stht]": "a list of different ones|'strategies=[token_sampling,stht]'",
    "strategies=[]": "with token_sampling",
    "exploration=stht": "strategies is a list|'strategies=[token_sampling,stht]'",
    "strategies.0=stht": "strategies.0=stht: strategies is a list|'strategies=[token_sampling,stht]'",
    "mix_rate=2": "mix_rate=2|from 0 to 1",
    "strategies=[token_sampling,stht] mix_rate=0.2": "mix_rate=0.2|exploration=neighbor_mix",
    "mixrate=0.2": "mixrate=0.2|mix_rate",
    "top_p=0.9": "top_p=0.9|must be 1|Gaussian",
    "n=1": "n=1|at least 2",
    "group_size=17": "group_size=17|at most n=16|group_size=16",
    "problems=0": "problems=0|at least 1",
    "steps=3": "steps=3|there is no steps",
    "benchmark=story_math": "there is no benchmark here",
    "task=nothing": "task=nothing|story_math",
    "model=./nothing": "model.path=./nothing|is no directory",
    "exploration.scale=-1": "exploration.scale=-1|at least 0",
    "max_new_tokens=5000": "max_new_tokens=5000|positions",
    "tokens=seven": "tokens=seven|must be a list",
}


@pytest.fixture
def command_line():
    with configurations.command_line():
        yield


@pytest.mark.parametrize("line", WRONG)
def test_each_mistake_is_one_line(line, command_line):
    found = examine("diagnose", line.split(" ")).problems
    assert found and all(word in found[0] for word in WRONG[line].split("|")), found
    assert len(found) == 1 or line == "exploration.scale=-1", found


def test_knobs_go_to_the_strategies_that_have_them(command_line):
    examined = examine("diagnose", ["mix_rate=0.3", "seed=3", "exploration.scale=0.5"])
    assert examined.problems == [] and examined.argv == ["+mix_rate=0.3", "seed=3", "+exploration.scale=0.5"]
    assert examine("diagnose", ["seed=3"]).argv == ["seed=3"]


def test_the_entry_point_ends_with_status_2_and_leaves_nothing(tmp_path):
    command = [sys.executable, REPOSITORY / "diagnose.py", "strategies=[stht]", "n=0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 2
    assert all(line.startswith("error: ") for line in done.stderr.splitlines()) and list(tmp_path.iterdir()) == []


def test_a_text_that_is_no_token_is_told_in_one_line(tmp_path):
    text = warm.finish(
        "diagnose.py", tmp_path / "log", *SMALL, "tokens=[seven plus]", f"hydra.run.dir={tmp_path / 'run'}", status=2
    )
    assert text.startswith("error: tokens=seven plus: must name single tokens") and len(text.splitlines()) == 1
