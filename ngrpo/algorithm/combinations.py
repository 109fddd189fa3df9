"""Combinations within an algorithm that are refused, each with its reason; a function declares what it requires."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

SLOTS = ("reweight", "token_advantage", "loss")  # the parts whose functions declare requirements
# Requirement -> the part of the algorithm that breaks it where it is set. One more, `plain_rewards`: nothing shapes the
# task's rewards or adds to them.
BROKEN_BY = {
    "every_group": "group_filter",  # no group is left out
    "no_whitening": "critic",  # advantages are not whitened over the batch, as those of a critic are
    "no_other_prompt": "retry",  # every answer in the loss was given to the problem's own prompt
}


def requires(**reasons: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declares what a function requires of the rest of its algorithm, `plain_rewards` or keys of BROKEN_BY, and why."""

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        function.requires = reasons  # pyright: ignore[reportFunctionMemberAccess]
        return function

    return declare


def refusals(algorithm: Any, extra_rewards: Iterable[str] = ()) -> list[str]:
    """One line for each forbidden combination: what, why, and what fixes it."""
    found, added = [], [f"extra_rewards.{name}" for name in extra_rewards]

    def offenders(requirement: str) -> list[str]:
        if requirement == "plain_rewards":
            return [f"algorithm.reward_shaping.{name}" for name in algorithm.reward_shaping or {}] + added
        part = BROKEN_BY[requirement]
        return [] if getattr(algorithm, part) is None else [f"algorithm.{part}"]

    for slot in SLOTS:
        function = getattr(algorithm, slot)
        reasons: Mapping[str, str] = getattr(getattr(function, "func", function), "requires", {})
        found += [(key, reason, slot) for name, reason in reasons.items() for key in offenders(name)]
    for slot in ("reweight", "bonus"):
        if getattr(algorithm, slot) is not None:
            reason = "whitens advantages over the batch, which undoes what they were given before"
            found += [(key, reason, slot) for key in offenders("no_whitening")]
    if algorithm.retry is not None and algorithm.control is not None:
        reason = "replaces the verdicts by which the answers to a retried problem are exchanged"
        found.append(("algorithm.control", reason, "retry"))
    return [f"{key}: {reason}; keep it or algorithm.{slot}, algorithm=grpo has neither" for key, reason, slot in found]
