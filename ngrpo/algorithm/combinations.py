"""What may not be combined in an algorithm, each with its reason: functions declare what they cannot do without."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

SLOTS = ("reweight", "token_advantage", "loss")  # whose functions declare
Forbidden = Iterator[tuple[str, str]]  # the key that may not be there, the override that takes it or its rival away


def requires(**reasons: str) -> Callable[[Callable[..., Any]], Any]:
    """Declares what a function requires of the rest of its algorithm, names of RULES, and why."""

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        function.requires = reasons  # pyright: ignore[reportFunctionMemberAccess]
        return function

    return declare


def plain_rewards(algorithm: Any, slot: str, extra_rewards: Iterable[str]) -> Forbidden:
    """Nothing shapes the task's rewards or adds to them."""
    for name in algorithm.reward_shaping or {}:
        yield f"algorithm.reward_shaping.{name}", f"~algorithm.reward_shaping.{name}"
    for name in extra_rewards:
        yield f"extra_rewards.{name}", f"~extra_rewards.{name}"


def every_group(algorithm: Any, slot: str, extra_rewards: Iterable[str]) -> Forbidden:
    """No group is left out."""
    if algorithm.group_filter is not None:
        yield "algorithm.group_filter", "algorithm.group_filter=null"


def no_whitening(algorithm: Any, slot: str, extra_rewards: Iterable[str]) -> Forbidden:
    """Advantages are not whitened over the batch, as those of a critic are."""
    if algorithm.critic is not None:
        yield "algorithm.critic", f"algorithm.{slot}=null"


def no_other_prompt(algorithm: Any, slot: str, extra_rewards: Iterable[str]) -> Forbidden:
    """Every answer that is learned from was given to the problem's own prompt."""
    if algorithm.retry is not None:
        yield "algorithm.retry", "algorithm.retry=null"


RULES: Mapping[str, Callable[[Any, str, Iterable[str]], Forbidden]] = {
    rule.__name__: rule for rule in (plain_rewards, every_group, no_whitening, no_other_prompt)
}


def refusals(algorithm: Any, extra_rewards: Iterable[str] = ()) -> list[str]:
    """One line for each combination that is forbidden: what, why, and the override that mends it."""
    found = []
    for slot in SLOTS:
        function = getattr(algorithm, slot)
        reasons: Mapping[str, str] = getattr(getattr(function, "func", function), "requires", {})
        for name, reason in reasons.items():
            found += [f"{key}: {reason}; {fix}" for key, fix in RULES[name](algorithm, slot, tuple(extra_rewards))]
    for slot in ("reweight", "bonus"):
        if getattr(algorithm, slot) is not None:
            reason = f"whitens advantages over the batch, which undoes algorithm.{slot}"
            found += [f"{key}: {reason}; {fix}" for key, fix in no_whitening(algorithm, slot, ())]
    if algorithm.retry is not None and algorithm.control is not None:
        reason = "takes the place of the verdicts by which answers to a problem that was asked again are exchanged"
        found.append(f"algorithm.control: {reason}; algorithm.retry=null")
    return found
