"""What may not be combined in an algorithm, each with its reason: functions declare what they cannot do without."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

SLOTS = ("reweight", "token_advantage", "loss")  # whose functions declare


def requires(**reasons: str) -> Callable[[Callable[..., Any]], Any]:
    """Declares what a function requires of the rest of its algorithm, names of RULES, and why."""

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        function.requires = reasons  # pyright: ignore[reportFunctionMemberAccess]
        return function

    return declare


def plain_rewards(algorithm: Any, extra_rewards: Iterable[str]) -> list[str]:
    """Nothing shapes the task's rewards or adds to them."""
    shaped = [f"algorithm.reward_shaping.{name}" for name in algorithm.reward_shaping or {}]
    return shaped + [f"extra_rewards.{name}" for name in extra_rewards]


def every_group(algorithm: Any, extra_rewards: Iterable[str]) -> list[str]:
    """No group is left out."""
    return [] if algorithm.group_filter is None else ["algorithm.group_filter"]


def no_whitening(algorithm: Any, extra_rewards: Iterable[str]) -> list[str]:
    """Advantages are not whitened over the batch, as those of a critic are."""
    return [] if algorithm.critic is None else ["algorithm.critic"]


def no_other_prompt(algorithm: Any, extra_rewards: Iterable[str]) -> list[str]:
    """Every answer that is learned from was given to the problem's own prompt."""
    return [] if algorithm.retry is None else ["algorithm.retry"]


# Name -> the keys that break the rule.
RULES: Mapping[str, Callable[[Any, Iterable[str]], list[str]]] = {
    rule.__name__: rule for rule in (plain_rewards, every_group, no_whitening, no_other_prompt)
}


def refusals(algorithm: Any, extra_rewards: Iterable[str] = ()) -> list[str]:
    """One line for each combination that is forbidden: what, why, and what mends it."""
    found, extra = [], tuple(extra_rewards)
    for slot in SLOTS:
        function = getattr(algorithm, slot)
        reasons: Mapping[str, str] = getattr(getattr(function, "func", function), "requires", {})
        found += [(key, reason, slot) for name, reason in reasons.items() for key in RULES[name](algorithm, extra)]
    for slot in ("reweight", "bonus"):
        if getattr(algorithm, slot) is not None:
            reason = "whitens advantages over the batch, which undoes what they were given before"
            found += [(key, reason, slot) for key in no_whitening(algorithm, extra)]
    if algorithm.retry is not None and algorithm.control is not None:
        reason = "takes the place of the verdicts by which answers to a problem that was asked again are exchanged"
        found.append(("algorithm.control", reason, "retry"))
    return [f"{key}: {reason}; keep it or algorithm.{slot}, algorithm=grpo has neither" for key, reason, slot in found]
