"""Combinations that would make a published method into something else are refused, each with its reason."""

from functools import partial

import pytest

from ngrpo.algorithm import advantages, bonus, groups, losses
from ngrpo.algorithm.algorithm import Algorithm
from ngrpo.algorithm.combinations import refusals
from ngrpo.algorithm.critic import generalized
from ngrpo.algorithm.retry import Retry
from ngrpo.targets import SettingsError

OVERLONG = {"overlong": partial(groups.overlong_punishment, buffer=4)}
CRITIC = {"critic": {"learning_rate": 1e-4, "clip": 0.5}, "advantage": generalized}
MAX_RL, UCPO = partial(groups.over_success_rate), partial(groups.uniform_correct, tau=0.1)
ZVP = partial(advantages.zero_variance, alpha=0.2)


def made(**changes) -> Algorithm:
    parts = {"advantage": advantages.group_normalized, "loss": losses.clipped_surrogate, "aggregation": "token_mean"}
    return Algorithm(**{**parts, "kl": {"coefficient": 0.0}, **changes})


FORBIDDEN = {
    "RL-ZVP with dynamic sampling": (
        {"token_advantage": ZVP, "group_filter": groups.mixed},
        r"algorithm\.group_filter: leaves out .* RL-ZVP learns; keep it or algorithm\.token_advantage, .*",
    ),
    "MaxRL with shaped rewards": (
        {"reweight": MAX_RL, "reward_shaping": OVERLONG},
        r"algorithm\.reward_shaping\.overlong: MaxRL divides .*; keep it or algorithm\.reweight, .*",
    ),
    "UCPO with rewards that are not binary": (
        {"reweight": UCPO, "reward_shaping": OVERLONG},
        r"algorithm\.reward_shaping\.overlong: UCPO .* 0 and 1.*; keep it or algorithm\.reweight, .*",
    ),
    **{
        f"{name} and then whitening": (
            {"reweight": weigh, **CRITIC},
            r"algorithm\.critic: whitens advantages .*; keep it or algorithm\.reweight, .*",
        )
        for name, weigh in {"MaxRL": MAX_RL, "F-GRPO": groups.focal, "UCPO": UCPO, "gate": groups.boundary}.items()
    },
    "RepExp and then whitening": (
        {"bonus": bonus.elliptical, **CRITIC},
        r"algorithm\.critic: whitens advantages .*; keep it or algorithm\.bonus, .*",
    ),
    "RL-ZVP and whitening": (
        {"token_advantage": ZVP, **CRITIC},
        r"algorithm\.critic: whitens advantages .*; keep it or algorithm\.token_advantage, .*",
    ),
    "LoPE without a ratio": (
        {"retry": Retry(), "loss": partial(losses.reinforce)},
        r"algorithm\.retry: the loss has no ratio .*; keep it or algorithm\.loss, .*",
    ),
    "LoPE with a control's verdicts": (
        {"retry": Retry(), "control": groups.shuffled_rewards},
        r"algorithm\.control: replaces the verdicts .*; keep it or algorithm\.retry, .*",
    ),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_may_not_be_combined_is_refused_in_one_line_with_its_reason(name):
    changes, words = FORBIDDEN[name]
    with pytest.raises(SettingsError, match=f"^{words}$") as refused:
        made(**changes)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("weigh", [MAX_RL, UCPO])
def test_rewards_that_are_added_to_the_tasks_are_no_verdicts(weigh):
    found = refusals(made(reweight=weigh), ["brevity"])
    assert len(found) == 1 and found[0].startswith("extra_rewards.brevity: ")
    assert found[0].endswith("; keep it or algorithm.reweight, algorithm=grpo has neither")
    assert not refusals(made(reweight=weigh))


def test_what_only_resembles_a_forbidden_combination_is_allowed():
    made(token_advantage=partial(advantages.entropy_shaped), group_filter=groups.mixed, reward_shaping=OVERLONG)
    made(token_advantage=partial(advantages.entropy_shaped), **CRITIC)
    made(reweight=groups.focal, group_filter=groups.mixed, reward_shaping=OVERLONG)
    made(retry=Retry(), group_filter=groups.mixed, loss=losses.clipped_weight, bonus=bonus.elliptical)
    made(loss=losses.reinforce, control=groups.random_rewards)
