"""The density contract of every strategy, and that it would notice one that is not what it says."""

import copy
import itertools
import math
from dataclasses import replace

import configurations
import numpy as np
import pytest
import torch
from laws import claims_of
from oracle import uniform
from places import CONF
from torch.nn import functional as F

from ngrpo.cli import each_strategy
from ngrpo.contract import (
    ALPHA,
    ROWS,
    TEMPERATURES,
    VOCABULARY,
    Setting,
    built,
    counts,
    examine,
    main,
    mutant,
    mutations,
    near,
    noticed,
    pooled,
)
from ngrpo.exploration.base import Exploration
from ngrpo.exploration.gaussian_noise import GaussianNoise
from ngrpo.exploration.mixing import Mixing
from ngrpo.exploration.scores import tempered, token_log_prob
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.records import TOKEN, DecodeStep

STRATEGIES = sorted(path.stem for path in (CONF / "exploration").glob("*.yaml"))
LONGEST = ("dirichlet_soft", 1.0)  # between the temperatures that are always tried


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting(ROWS)


@pytest.fixture(scope="module")
def composed():
    """Strategy -> configuration, of all that there are."""
    with configurations.command_line():
        configs, problems = each_strategy([])
    assert problems == [] and sorted(configs) == STRATEGIES
    return configs


@pytest.mark.parametrize(
    ("name", "temperature"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] if case == LONGEST else [])
        for case in itertools.product(STRATEGIES, TEMPERATURES)
    ],
)
def test_what_is_drawn_is_what_is_claimed(setting, composed, name, temperature):
    strategy = built(composed[name], temperature, setting)
    findings = list(examine(strategy, setting, ROWS, claims_of(strategy, setting)))
    assert len(findings) >= 40 and [finding for finding in findings if finding.fails] == []


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_mutation_is_noticed(setting, composed, name):
    strategy = built(composed[name], 1.0, setting)
    mutants, claims = mutations(strategy, setting), claims_of(strategy, setting)
    if isinstance(strategy, Mixing):
        sampler = copy.deepcopy(strategy)
        sampler.pick = lambda logits, tokens: logits.topk(2, dim=-1).indices[:, 1]
        mutants["anchor: the second likeliest"] = mutant(strategy, sampler=sampler)
    assert any("temperature" in mutation for mutation in mutants) and any("stream" in mutation for mutation in mutants)
    assert [mutation for mutation, made in mutants.items() if not noticed(made, setting, claims)] == []


# Settings that lead through other lines than those of conf/exploration.
SETTINGS = [
    "neighbor_mix exploration.anchor=sampled",
    "neighbor_mix exploration.text_token=sampled",
    "neighbor_mix exploration.anchor=sampled exploration.text_token=sampled",
    "neighbor_mix exploration.compat=released_sglang",
    "neighbor_mix exploration.weights=filtered top_p=0.8 exploration.metric=l1",
    "neighbor_mix exploration.loss_on_mixed_steps=mask exploration.metric=dot",
    "neighbor_mix exploration.entropy_threshold=1.5 exploration.metric=l2",
    "neighbor_mix mix_rate=null",
    "neighbor_mix mix_rate=0",
    "orthogonal_noise exploration.noise=elementwise mix_rate=0.5",
    "topk_gumbel_select exploration.text_token=sampled mix_rate=0.5",
    "topk_gumbel_select mix_rate=null k=2",
    "gumbel_soft exploration.clamp=null exploration.thinking_top_p=1.0",
    "dirichlet_soft exploration.concentration=0.5",
    "gaussian_soft exploration.sigma=0.5",
    "stht exploration.soft_temperature=1e-4",
    "token_sampling top_p=0.5 exploration.top_k=4",
    "hrpo top_p=0.7",
]


@pytest.mark.parametrize("words", SETTINGS)
def test_other_settings_keep_the_contract(setting, words):
    name, *knobs = words.split()
    with configurations.command_line():
        configs, problems = each_strategy([f"exploration={name}", *knobs])
    assert problems == []
    strategy = built(configs[name], 0.8, setting)
    findings = list(examine(strategy, setting, 60_000, claims_of(strategy, setting)))
    assert [finding for finding in findings if finding.fails] == []


# --- strategies that are not what they say ---------------------------------------------------------------------------


class Colder(TokenSampling):
    """Scores at another temperature than it samples at."""

    def log_prob(self, steps, logits, table):
        return token_log_prob(tempered(logits, 0.95 * self.temperature), steps.tokens)


class Nosy(TokenSampling):
    """Explores where its token's uniform says so, though as often as it should."""

    rate = 0.25

    def sample(self, logits, state, draws, table):
        step, state = super().sample(logits, state, draws, table)
        return replace(step, explored=draws.token < 0.25), state


class Blend(TokenSampling):
    """A share of the mean embedding at a rate: a strategy of one's own, which names no law."""

    def __init__(self, rate: float, share: float):
        super().__init__()
        self.rate, self.share = rate, share

    def sample(self, logits, state, draws, table):
        step, state = super().sample(logits, state, draws, table)
        return replace(step, explored=draws.explore < self.rate), state

    def embed(self, steps, table, draws):
        fed = F.embedding(steps.tokens, table)
        return torch.where(steps.explored[..., None], torch.lerp(fed, table.mean(dim=0), self.share), fed)


class Leaky(Blend):
    """Feeds something else although it says that it did not explore."""

    def embed(self, steps, table, draws):
        return super().embed(replace(steps, explored=draws.explore < 2 * self.rate), table, draws)


class Silent(Exploration):
    """Has nothing that could be tampered with."""

    deviates = "it draws nothing"

    def sample(self, logits, state, draws, table):
        tokens = torch.full((len(logits),), 5)
        return DecodeStep(tokens, torch.full_like(tokens, TOKEN), tokens < 0), state

    def log_prob(self, steps, logits, table):
        return torch.zeros(steps.tokens.shape)


def failures(strategy: Exploration, setting: Setting) -> list[str]:
    strategy.bind(VOCABULARY, setting.table)
    return [finding.what for finding in examine(strategy, setting, ROWS) if finding.fails]


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        (Colder(0.6), "all cells: tokens"),
        (Nosy(), "explored whatever the token's stream"),
        (Leaky(0.1, 0.5), "plain rows are fed their token's embedding"),
    ],
    ids=["temperature", "stream", "feed"],
)
def test_a_strategy_that_is_not_what_it_says_is_rejected(setting, strategy, words):
    assert any(words in what for what in failures(strategy, setting))


def test_a_strategy_of_one_s_own_has_checks_and_mutations_without_naming_any(setting):
    strategy = Blend(0.1, 0.5)
    assert failures(strategy, setting) == []
    found = mutations(strategy, setting)
    assert {"temperature=0.9", "rate=0.09", "stream: exploration by the token's uniform"} <= set(found)
    assert all(noticed(m, setting) for m in found.values())


def test_a_strategy_without_mutations_is_an_error(setting, monkeypatch, capsys):
    silent = Silent()
    silent.bind(VOCABULARY, setting.table)
    assert mutations(silent, setting) == {}
    monkeypatch.setattr("ngrpo.contract.built", lambda *given: silent)
    monkeypatch.setattr("ngrpo.contract.Setting", lambda: setting)
    with configurations.command_line():
        assert main(["exploration=token_sampling"]) == 1
    assert "has no mutation" in capsys.readouterr().out


def test_a_mutant_leaves_the_strategy_as_it_is(setting, composed):
    strategy = built(composed["gaussian_noise"], 1.0, setting)
    for made in mutations(strategy, setting).values():
        assert made is not strategy and type(made) is type(strategy)
    assert isinstance(strategy, Mixing) and isinstance(strategy.recipe, GaussianNoise)
    assert (strategy.temperature, strategy.gate.rate, strategy.recipe.relative_scale) == (1.0, 0.1, 0.33)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def command_line(monkeypatch, setting):
    monkeypatch.setattr("ngrpo.contract.Setting", lambda: setting)
    with configurations.command_line():
        yield


def test_the_command_prints_a_line_for_each_strategy_and_temperature(command_line, capsys, tmp_path):
    (tmp_path / "exploration").mkdir()
    (tmp_path / "exploration" / "mine.yaml").write_text(
        "# @package _global_\nexploration:\n  _target_: ngrpo.exploration.token_sampling.TokenSampling\n"
        "  temperature: ${temperature}\n  top_p: 0.8\n"
    )
    assert main(["--config-dir", str(tmp_path), "exploration=mine,token_sampling", "exploration.min_p=0.3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"{name} {rest}"
        for name in ("mine", "token_sampling")
        for rest in (*(f"at temperature {t}" for t in TEMPERATURES), "tampered with")
    ]
    assert all("checks hold" in line or "noticed" in line for line in lines)


def test_what_fails_is_told_with_its_size(command_line, capsys, monkeypatch):
    monkeypatch.setattr(TokenSampling, "log_prob", Colder.log_prob)
    assert main(["exploration=token_sampling"]) == 1
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("token_sampling at temperature 0.6: ") and " checks fail: " in line and "chi-square" in line


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["exploration=neighbour_mix"], "exploration=neighbor_mix"),
        (["exploration=neighbor_mix", "mix_rate=2"], "mix_rate=2: must be a number from 0 to 1"),
        (["exploration=neighbor_mix", "mix_rate=0.1,0.2"], "mix_rate=0.1,0.2: takes one value here; mix_rate=0.1"),
        (["exploration=stht", "exploration.realisation=sampled"], "exploration.text_token=sampled"),
    ],
)
def test_wrong_words_end_with_status_2(command_line, capsys, argv, words):
    assert main(argv) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: ") and words in told.err and len(told.err.splitlines()) == 1


# --- the tests themselves --------------------------------------------------------------------------------------------


def test_counts_are_judged_by_chi_square():
    rng, law = np.random.default_rng(0), np.array([0.5, 0.3, 0.199, 0.001, 0.0])
    ps = [counts("", rng.multinomial(4000, law), law).p for _ in range(400)]
    assert 0.02 < np.mean(np.array(ps) < 0.05) < 0.09 and min(ps) > ALPHA
    assert counts("", rng.multinomial(4000, [0.6, 0.2, 0.199, 0.001, 0]), law).fails
    assert counts("", [2000, 1200, 796, 3, 1], law).fails, "one draw where none may be"
    assert counts("", [10, 10], [0.5, 0.4]).fails, "no distribution"
    assert not counts("", [10], [1.0]).fails


def test_a_small_deviation_in_every_cell_is_seen_by_all_together():
    rng = np.random.default_rng(1)
    single = [counts("share", rng.multinomial(4000, [0.54, 0.46]), [0.5, 0.5]) for _ in range(12)]
    assert sum(finding.fails for finding in single) < 12 and all(finding.fails for finding in pooled(single))


def test_uniform_and_independent_columns_are_judged():
    u = np.random.default_rng(2).random((5000, 3))
    assert not any(finding.fails for finding in uniform("", u))
    assert any(finding.fails for finding in uniform("", u**1.1))
    assert any(finding.fails for finding in uniform("", np.stack((u[:, 0], u[:, 0], u[:, 1]), axis=1)))
    assert any(finding.fails for finding in uniform("", np.full((10, 1), math.nan)))
    assert not near("", [1.0, 1e6], [1.0, 1e6 + 1]).fails and near("", [1.0], [1.1]).fails
