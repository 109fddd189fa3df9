"""Short names of keys: which key they stand for, and that lines about them say what was typed."""

import pytest
from places import REPOSITORY

from ngrpo.cli.command import each_strategy, examine
from ngrpo.cli.composition import full_key
from ngrpo.composed import plain

KNOWN = ["a.b.name", "a.c.name", "a.b.other", "a.b.d.deep", "a.own", "a.b.own", "x.name", "name"]


@pytest.mark.parametrize(
    ("key", "full"),
    [
        ("a.other", "a.b.other"),
        ("a.name", "a.name"),  # two keys might be meant
        ("a.own", "a.own"),  # it is there itself
        ("a.deep", "a.deep"),  # two parts are missing
        ("other", "other"),  # a name without a node stands for itself
        ("a.b.deep", "a.b.d.deep"),
        ("b.other", "b.other"),
        ("a.nothing", "a.nothing"),
    ],
)
def test_a_key_stands_for_the_one_key_with_one_part_more(key, full):
    assert full_key(key, KNOWN) == full


# Strategy -> its knobs as they were typed before strategies had parts.
NAMES = {
    "neighbor_mix": "rate=0.3 k=2 metric=l2 weights=filtered entropy_threshold=0.5 refresh_every=2 anchor=sampled "
    "compat=released_sglang loss_on_mixed_steps=mask text_token=sampled temperature=0.5 top_p=0.9",
    "rate_matched_greedy": "rate=0.3 entropy_threshold=0.5 loss_on_mixed_steps=mask",
    "random_neighbor_mix": "rate=null k=2 seed=3",
    "norm_matched_noise": "rate=0.3 k=2 metric=l1 refresh_every=2",
    "orthogonal_noise": "rate=0.3 k=2 noise=elementwise",
    "gaussian_noise": "rate=0.3 scale=0.2",
    "topk_gumbel_select": "rate=0.3 k=2 text_token=sampled",
    "gumbel_soft": "noise_factor=0.5 soft_temperature=0.2 clamp=null thinking_top_k=4 thinking_top_p=1.0",
    "dirichlet_soft": "concentration=5.0",
    "gaussian_soft": "sigma=0.1",
}


@pytest.mark.parametrize("strategy", NAMES)
@pytest.mark.parametrize("script", ["config", "evaluate", "plan"])
def test_knobs_keep_their_names_whichever_part_they_belong_to(script, strategy):
    typed = [f"exploration.{knob}" for knob in NAMES[strategy].split()]
    examined = examine(script, [f"exploration={strategy}", *typed])
    assert examined.problems == [] and examined.notes == []
    again = examine(script, examined.argv)
    assert again.problems == [] and again.argv == examined.argv, "Hydra is told the keys in full"
    values = [word.partition("=")[2] for word in examined.argv[1:]]
    assert values == [word.partition("=")[2] for word in typed]


def test_only_the_key_is_put_in_full():
    word = "exploration.metric='dot'"
    assert examine("config", ["exploration=neighbor_mix", word]).argv[1] == "exploration.recipe.metric='dot'"
    assert examine("config", ["exploration=neighbor_mix", "k=2"]).argv == ["exploration=neighbor_mix", "k=2"]


@pytest.mark.parametrize("knob", ["metric=3", "refresh_every=0", "weights=row", "rate=-1", "k=5000"])
def test_a_line_says_the_key_as_it_was_typed(knob):
    (line,) = examine("config", ["exploration=neighbor_mix", f"exploration.{knob}"]).problems
    assert line.startswith(f"exploration.{knob}: ") and ".recipe." not in line and ".gate." not in line


def test_a_knob_of_a_strategy_that_is_not_chosen_names_its_owners():
    (line,) = examine("config", ["exploration=stht", "exploration.metric=dot"]).problems
    assert "it belongs to exploration=neighbor_mix and exploration=norm_matched_noise" in line


def test_in_a_multirun_and_a_comparison_each_strategy_has_its_own_full_keys():
    swept = ["-m", "exploration=stht,gaussian_noise,neighbor_mix", "exploration.scale=0.1,0.2", "exploration.metric=l2"]
    examined = examine("config", swept)
    assert examined.problems == []
    assert sorted(examined.argv) == sorted([*swept[:3], "exploration.metric=choice(l2)"]), "which one of them has"
    bad = examine("config", [*swept[:2], "exploration.scale=0.1,-2"]).problems
    assert len(bad) == 1 and bad[0].startswith("exploration.scale=-2: must be a number")
    compared = examine("diagnose", ["exploration.scale=0.1", "exploration.rate=0.2"])
    assert compared.problems == [] and compared.argv == ["+exploration.scale=0.1", "+exploration.rate=0.2"]


def test_the_names_are_those_of_the_files():
    """Another part that takes the same name would leave a short one without a meaning."""
    assert set(NAMES) <= {path.stem for path in (REPOSITORY / "conf" / "exploration").glob("*.yaml")}


def test_what_is_typed_for_a_matched_strategy_reaches_it_and_keeps_its_rules():
    control = ["exploration=entropy_temperature", "exploration.match=random_neighbor_mix"]
    examined = examine("config", [*control, "mix_rate=0.2", "exploration.seed=3", "temperature=0.7"])
    added = ["+matched.mix_rate=0.2", "+matched.exploration.recipe.seed=3", "temperature=0.7"]
    assert examined.problems == [] and examined.argv == [*control, *added]
    (line,) = examine("config", [*control, "mix_rate=2"]).problems
    assert line.startswith("mix_rate=2: must be a number from 0 to 1")
    (line,) = examine("config", [*control, "exploration.scale=1"]).problems
    assert "entropy_temperature has no exploration.scale" in line
    for name in ("entropy_temperature", "neighbour_mix"):
        (line,) = examine("config", [control[0], f"exploration.match={name}"]).problems
        assert line.startswith(f"exploration.match={name}: must be another strategy") and "; exploration.match=" in line


def test_a_control_is_refused_where_its_strategy_is():
    (line,) = examine("config", ["exploration=entropy_temperature", "exploration.match=stht", "top_p=0.9"]).problems
    assert line == "top_p=0.9: must be 1, because a Gaussian density has no nucleus; top_p=1"


def test_the_node_of_a_matched_strategy_is_the_one_that_would_be_chosen():
    config = each_strategy(["exploration=neighbor_mix", "mix_rate=0.2", "k=4", "temperature=0.7"])[0]["neighbor_mix"]
    control = each_strategy(["exploration=entropy_temperature", "mix_rate=0.2", "k=4", "temperature=0.7"])[0]
    assert plain(control["entropy_temperature"].exploration)["strategy"] == plain(config.exploration)


def test_a_strategy_of_one_s_own_can_be_matched_too(tmp_path):
    (tmp_path / "exploration").mkdir()
    node = "exploration: {_target_: ngrpo.exploration.token_sampling.TokenSampling, temperature: 0.9, min_p: 0.2}"
    (tmp_path / "exploration" / "mine.yaml").write_text(f"# @package _global_\n{node}\n")
    typed = ["--config-dir", str(tmp_path), "exploration=entropy_temperature", "exploration.match=mine"]
    examined = examine("config", [*typed, "exploration.min_p=0.3"])
    assert examined.problems == [] and "+matched.exploration.min_p=0.3" in examined.argv
    (line,) = examine("config", typed[2:]).problems
    assert line.startswith("exploration.match=mine: must be another strategy, one of annealed_temperature, ")
