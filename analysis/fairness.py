"""Which arms may be ranked against each other, and what is missing before a winner can be named.

It compares configurations and counts seeds; it looks at no result.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analysis.load import UNTRAINED, Study, differing

SEEDS = 3  # training seeds of an arm below which nothing is ranked
PLAIN = "token_sampling"


@dataclass(frozen=True)
class Fairness:
    """`ranked` arms differ from the baseline in their strategy alone; `apart` ones are shown with the keys that differ.

    `missing` says, a line each, why no winner is named; `controls` maps an arm to the one that feeds the same steps
    without neighbours.
    """

    ranked: list[str]
    apart: dict[str, list[str]]
    missing: list[str]
    controls: dict[str, str]


def judge(study: Study, baseline: str) -> Fairness:
    """What may be said about a study with that baseline, whatever its numbers are."""
    configs: dict[str, Mapping[str, Any]] = {}
    for run in study.runs.itertuples():
        configs.setdefault(str(run.arm), run.config)  # pyright: ignore
    trained = [arm for arm in study.arms if arm not in (UNTRAINED, baseline)]
    apart = {arm: keys for arm in trained if (keys := differing(configs[baseline], configs[arm]))}
    ranked = [arm for arm in trained if arm not in apart]
    among = [baseline, *ranked]
    controls = {arm: other for arm in among if (other := _control(configs, arm, among))}
    return Fairness(ranked, apart, _missing(study, baseline, configs, ranked, apart, controls), controls)


def _missing(
    study: Study,
    baseline: str,
    configs: Mapping[str, Mapping[str, Any]],
    ranked: list[str],
    apart: Mapping[str, list[str]],
    controls: Mapping[str, str],
) -> list[str]:
    lines = []
    if UNTRAINED not in study.arms:
        lines.append("the untrained model is missing: evaluation.before=true, or evaluate.py model=<the base model>")
    plain = study.runs[study.runs["exploration"] == PLAIN]["arm"]
    if not set(plain) - {UNTRAINED}:
        lines.append(f"plain token sampling is missing: train.py exploration={PLAIN}")
    for arm in [baseline, *ranked]:
        if _needs_control(configs[arm]) and arm not in controls:
            rate = configs[arm].get("exploration.rate")
            lines.append(f"{arm} has no rate-matched control: train.py exploration=rate_matched_greedy mix_rate={rate}")
    for arm in [baseline, *ranked]:
        seeds = study.runs[study.runs["arm"] == arm]["seed"].nunique()
        if seeds < SEEDS:
            lines.append(f"{arm} has {seeds} training seed{'s' * (seeds > 1)}, {SEEDS} are needed: -m seed=0,1,2")
    lines += [f"{arm} also differs in {', '.join(keys)}: shown, not ranked" for arm, keys in apart.items()]
    return lines


def _needs_control(config: Mapping[str, Any]) -> bool:
    """Whether a strategy mixes neighbours in at some rate: then greedy steps at that rate may explain its effect."""
    return (config.get("exploration.rate") or 0) > 0 and (config.get("exploration.k") or 1) > 1


def _control(configs: Mapping[str, Mapping[str, Any]], arm: str, among: list[str]) -> str | None:
    config = configs[arm]
    if not _needs_control(config):
        return None
    for other in among:
        here = configs[other]
        same = all(here.get(f"exploration.{key}") == config.get(f"exploration.{key}") for key in ("_target_", "rate"))
        if same and here.get("exploration.k") == 1:
            return other
    return None
