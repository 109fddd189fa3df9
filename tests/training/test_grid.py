"""Every strategy under every algorithm, as the configs build them: one RL step of a very small model, or a refusal."""

import functools
import itertools
import json
import math
import random
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from places import CONF
from transformers import Qwen2Config, Qwen2ForCausalLM
from updates import LABELS, TINY, Still

from ngrpo import build, loop
from ngrpo.cli.checks import Settings, problems
from ngrpo.cli.identity import register_resolvers
from ngrpo.composed import plain
from ngrpo.models.loading import load, load_tokenizer
from ngrpo.rundir import interrupts

STRATEGIES = sorted(path.stem for path in (CONF / "exploration").glob("*.yaml"))
ALGORITHMS = sorted(path.stem for path in (CONF / "algorithm").glob("*.yaml"))
DRAWN = 60


def pairs() -> list:
    """All pairs; those that are not among the drawn ones are slow. Each strategy and each algorithm is drawn."""
    order = random.Random(0)
    strategies, algorithms = order.sample(STRATEGIES, len(STRATEGIES)), order.sample(ALGORITHMS, len(ALGORITHMS))
    turns = zip(itertools.cycle(strategies), itertools.cycle(algorithms), strict=False)
    drawn = set(
        itertools.islice(dict.fromkeys(itertools.islice(turns, math.lcm(len(strategies), len(algorithms)))), DRAWN)
    )
    every = itertools.product(STRATEGIES, ALGORITHMS)
    return [pytest.param(*pair, marks=[] if pair in drawn else pytest.mark.slow) for pair in every]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> str:
    """A model of fewer than 50,000 parameters with the bundled tokenizer, as a directory."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = load_tokenizer(TINY)
    words = tokenizer.get_vocab()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=192,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=words["<eos>"],
        pad_token_id=words["<pad>"],
    )
    model = Qwen2ForCausalLM(config)
    assert model.num_parameters() <= 50_000
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@functools.cache
def composed(exploration: str, algorithm: str, path: str):
    register_resolvers()
    sizes = ["steps=1", "prompts_per_step=4", "group_size=8", "max_new_tokens=24", "benchmark=[story_math]"]
    chosen = [f"exploration={exploration}", f"algorithm={algorithm}", "trainer=smoke", "model=hf", *sizes]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=[*chosen, "trainer.threads=1", f"model.path={path}"])


class Rewarded:
    """A task whose answers are right by a hash of their text, so that a random model earns something."""

    def __init__(self, task):
        self.task = task

    def __getattr__(self, name):
        return getattr(self.task, name)

    def score(self, problems, completions):
        scores = self.task.score(problems, completions)
        right = [sum(map(ord, text)) % 2 for text in completions]
        return [
            replace(score, reward=float(r), outcome="correct" if r else "wrong")
            for score, r in zip(scores, right, strict=True)
        ]


class Memory:
    """A recorder that keeps the figures of the last step."""

    def step(self, step, rows, metrics, seconds, explored):
        self.metrics = dict(metrics)

    def restore(self, *given):
        """Nothing else is kept."""

    result = model = close = restore

    def kept(self, step):
        return {}


@pytest.fixture(autouse=True)
def signals():
    """A run notes signals in its own way; the tests do not."""
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def one_step(config, directory: Path, keep: bool = True) -> tuple[Still, dict[str, float]]:
    """The policy after one RL step and its metrics; keep=False leaves gradients in `policy.gradients` instead."""
    job = SimpleNamespace(config=config, directory=directory, labels=lambda *groups: LABELS)
    parts = build.training(job, None)  # pyright: ignore
    policy, recorder = cast(Still, parts.policy), Memory()  # which it is, as far as `keep` asks
    if not keep:
        policy.gradients, policy.clip = [], functools.partial(Still.clip, policy)
    nothing, task = replace(parts.evaluation, benchmarks={}), Rewarded(parts.task)
    loop.run(
        replace(parts, task=task, evaluation=nothing, recorder=recorder),
        accelerator="cpu", devices=1, strategy="auto",
    )  # fmt: skip
    return policy, recorder.metrics


@pytest.mark.parametrize(("exploration", "algorithm"), pairs())
def test_every_pair_takes_a_step_or_is_refused_in_one_line(exploration, algorithm, model_path, tmp_path):
    config = composed(exploration, algorithm, model_path)
    refused = problems(Settings(config))
    if refused:
        assert all("because" in line and "\n" not in line for line in refused)
        return
    torch.manual_seed(0)
    policy, metrics = one_step(config, tmp_path)
    before = load(model_path).state_dict()
    moved = any(not torch.equal(value, before[name]) for name, value in policy.model.state_dict().items())
    assert all(math.isfinite(value) for name, value in metrics.items() if name != "kl")
    assert metrics["engine_gap"] < (1e-3 if policy.strategy.acts_on != "weights" else 0.1)
    assert moved and metrics["grad_norm"] > 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_micro_batches_change_no_algorithm(algorithm, model_path, tmp_path):
    gradients = []
    for rows in (32, 5):
        config = OmegaConf.merge(
            composed("neighbor_mix", algorithm, model_path), {"trainer": {"micro_batch_rows": rows}}
        )
        if algorithm == "boundary_gate":
            config.algorithm.reweight.threshold = 0  # else groups with as many right answers as here count for nothing
        config.model.dtype = "float64"
        torch.manual_seed(0)
        gradients.append(one_step(config, tmp_path / str(rows), keep=False)[0].gradients[0])
    whole, split = gradients
    assert whole.norm() > 0
    torch.testing.assert_close(split, whole, rtol=1e-6, atol=1e-7 * float(whole.abs().max()))


@pytest.mark.parametrize("exploration", STRATEGIES)
def test_the_kl_of_every_strategy_to_an_equal_reference_is_zero(exploration, model_path, tmp_path):
    config = OmegaConf.merge(composed(exploration, "grpo", model_path), {"algorithm": {"kl": {"coefficient": 0.1}}})
    assert isinstance(config, DictConfig)
    if problems(Settings(config)):
        return
    _, metrics = one_step(config, tmp_path)
    assert abs(metrics["kl"]) < 1e-9 and metrics["grad_norm"] > 0


def test_most_pairs_are_not_refused(model_path):
    """One algorithm stands for each kind of rule; a rule that spreads too far would hide behind its refusals."""
    refused = {
        name: {e for e in STRATEGIES if problems(Settings(composed(e, name, model_path)))}
        for name in ("grpo", "gspo", "clip_cov")
    }
    densities = {e for e in STRATEGIES if set(plain(composed(e, "grpo", model_path))["roles"]) - {"token"}}
    assert refused["grpo"] == {"soft_thinking"}
    assert refused["gspo"] == refused["clip_cov"] == {"soft_thinking"} | densities
    assert json.dumps(sorted(densities)) and "stht" in densities
