"""What the benchmarks rely on: lengths that both sides keep, counts of work, and that every part runs."""

import json
import os
import subprocess
import sys

import pytest
import torch
from places import REPOSITORY
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import arms, measuring, models, roofline
from ngrpo.models.loading import load_tokenizer


@pytest.fixture(scope="module")
def nano():
    torch.manual_seed(0)
    return arms.Bench.load("nano")


def test_a_random_model_is_the_same_every_time(nano):
    other = models.stock("nano", arms.PEER_ATTENTION)
    assert all(torch.equal(a, b) for a, b in zip(nano.model.model.parameters(), other.parameters(), strict=True))


def test_prompts_have_the_same_tokens_under_every_model(nano):
    bundled = load_tokenizer(str(models.BUNDLED))
    texts = [problem.prompt for problem in arms.natural(8).task.problems]
    assert [nano.tokenizer.encode(text) for text in texts] == [bundled.encode(text) for text in texts]
    assert len(nano.tokenizer) == models.SHAPES["nano"][-1] == len(nano.model.table)


def test_rows_end_where_they_are_told_to(nano):
    lengths = torch.tensor([1, 5, 2, 8, 8, 3, 1, 7])
    workload = arms.Workload("", arms.natural(8, prompts=2).task, 4, 8, stops=False, lengths=lengths)
    assert torch.equal(nano.ours(arms.BASELINE, workload)(), lengths)
    assert torch.equal(nano.theirs(workload, lengths)(), lengths)


def test_trl_finds_stops_where_rows_are_told_to_end():
    pytest.importorskip("trl")
    from benchmarks.step_trl import EndingModel

    model, lengths, stop = EndingModel(models.settings("nano")).eval(), [3, 8, 5, 8, 2], 1
    model.lengths = lengths
    prompts = torch.full((5, 4), 7)
    made = model.generate(
        input_ids=prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=9, do_sample=False,
        pad_token_id=stop, eos_token_id=stop,
    )[:, 4:].tolist()  # fmt: skip
    assert [row.index(stop) + 1 if stop in row else len(row) for row in made] == lengths


def test_every_strategy_runs_to_the_limit_where_nothing_stops(nano):
    workload = arms.equal(6, prompts=2, group=2)
    for name in arms.STRATEGIES:
        assert nano.ours(name, workload)().tolist() == [6] * 4


def test_the_work_of_a_training_pass_is_what_a_counter_of_flops_sees(nano):
    rollouts = roofline._written(nano, 4, 24)
    strategy = nano.strategy(arms.BASELINE, arms.equal(1))
    with FlopCounterMode(display=False) as counter:
        roofline._passes(nano, strategy, rollouts, 4)
    assert roofline.training_flops(nano, rollouts) == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_bytes_of_decoding(nano):
    workload, config = arms.equal(4, prompts=3, group=2), nano.model.model.config
    weights = sum(p.numel() * p.element_size() for p in nano.model.parameters())
    keys_and_values = 2 * config.num_hidden_layers * config.num_key_value_heads * 16 * 4  # heads of 16, float32
    expected = 3 * weights + 6 * keys_and_values * (11 + 12 + 13)  # three steps after the first token, prompts of ten
    assert roofline.decode_bytes(config, weights // 4, workload, 10, torch.float32) == pytest.approx(expected)


def test_a_call_is_compared_with_the_calls_around_it(monkeypatch):
    clock = iter(range(100))  # a machine that slows down by a second per call
    monkeypatch.setattr(measuring, "timed", lambda call: measuring.Timing(next(clock), 0))
    found = measuring.between({"a": lambda: 0, "b": lambda: 0}, lambda: 0, 4)
    assert all(own.seconds == base.seconds for pairs in found.values() for own, base in pairs)


def test_the_interval_of_a_median_covers_it_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(200):
        low, high = measuring.interval(torch.randn(25, generator=generator).tolist(), draws=400)
        inside += low <= 0 <= high
    assert 175 <= inside <= 200


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", ["step", "generation", "strategies", "methods", "memory", "plan", "growth", "roofline"]
)
def test_every_part_runs(part, tmp_path):
    if part == "step":
        pytest.importorskip("trl")
    command = [sys.executable, "-m", "benchmarks.run", "--quick", "--threads=1", f"--part={part}", "--out", tmp_path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    written = json.loads((folder / f"{part}.json").read_text())
    assert written["measured"] and written["context"]["threads"] == 1
    text = (folder / "README.md").read_text()
    assert text.count("## ") == 1 and " | " in text
    assert len(list(folder.glob("*.png"))) == (part == "growth") == ("![growth" in text)
