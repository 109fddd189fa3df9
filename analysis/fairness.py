"""Which arms may be ranked against each other, and what is missing before a winner can be named.

It compares configurations and counts seeds; it looks at results only to find copies of a run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analysis.arms import MATCHED, UNTRAINED, differing
from analysis.load import Study
from ngrpo.rundir.schema import leaves

SEEDS = 3  # training seeds that an arm needs to be ranked
SOME = 5  # problems solved in part: equal counts on this many are no coincidence
PLAIN = "token_sampling"


@dataclass(frozen=True)
class Fairness:
    """`ranked` arms differ from the baseline in their strategy alone; `unranked` ones are shown with the keys that differ.

    `missing` says, a line each, why no winner is named. `controls` maps an arm to those that could have its gain without
    its trick: the same steps without neighbors, plain sampling that is as uncertain. `random_rewards` are arms trained
    alike on rewards that tell nothing, whose gain is no learning from rewards (arXiv 2506.10947).
    """

    ranked: list[str]
    unranked: dict[str, list[str]]
    missing: list[str]
    controls: dict[str, list[str]]
    random_rewards: list[str]

    def must_beat(self, arm: str) -> list[str]:
        """What an arm must beat besides the baseline before it is named a winner."""
        return [*self.controls.get(arm, ()), *self.random_rewards]


def judge(study: Study, baseline: str) -> Fairness:
    """Decides what may be said about a study with that baseline, whatever its results."""
    configs: dict[str, Mapping[str, Any]] = {}
    for run in study.runs.itertuples():
        configs.setdefault(str(run.arm), run.config)
    trained = [arm for arm in study.arms if arm not in (UNTRAINED, baseline)]
    unranked = {arm: keys for arm in trained if (keys := differing(configs[baseline], configs[arm]))}
    chance = [arm for arm in unranked if rewards_are_random(configs[arm]) and not rewards_are_random(configs[baseline])]
    unranked = {arm: keys for arm, keys in unranked.items() if arm not in chance}
    ranked = [arm for arm in trained if arm not in unranked and arm not in chance]
    strategies = {arm: strategy_of(configs[arm]) for arm in [baseline, *ranked]}
    greedy, uncertain = controls(strategies), as_uncertain(strategies)
    every = {arm: [pairs[arm] for pairs in (greedy, uncertain) if arm in pairs] for arm in {**greedy, **uncertain}}
    return Fairness(ranked, unranked, _missing(study, baseline, configs, ranked, unranked, greedy), every, chance)


def rewards_are_random(config: Mapping[str, Any]) -> bool:
    """Whether the rewards of a run carry no information: a control of the algorithm, or a reward setting named random."""
    if str(config.get("algorithm.control._target_")).endswith((".random_rewards", ".shuffled_rewards")):
        return True
    return any("reward" in key and "random" in f"{key}={value}".lower() for key, value in config.items() if value)


def controls(strategies: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Name -> the strategy among `strategies`, settings by name, that is built alike and acts at the same rate, with
    nothing but the anchor to mix: then every recipe gives the same."""
    pairs = {}
    for name, mixture in strategies.items():
        for other, settings in strategies.items():
            alike = all(setting(settings, key) == setting(mixture, key) for key in ("_target_", "rate"))
            if _needs_control(mixture) and alike and setting(settings, "k") == 1:
                pairs.setdefault(name, other)
    return pairs


def as_uncertain(strategies: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Name -> the strategy among `strategies` that samples at the temperature at which it is as uncertain."""
    flat, pairs = {name: dict(leaves(strategy)) for name, strategy in strategies.items()}, {}
    for other, settings in flat.items():
        matched = {key.removeprefix(MATCHED): value for key, value in settings.items() if key.startswith(MATCHED)}
        pairs |= {name: other for name, strategy in flat.items() if matched and matched == strategy}
    return pairs


def setting(strategy: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """The value of a setting of a strategy, or else of one of its parts; keys are nested or dotted."""
    parts = [(key, part) for key, part in strategy.items() if isinstance(part, Mapping)]
    dotted = {f"{key}.{inner}": value for key, part in parts for inner, value in part.items()}
    settings = {**dotted, **{key: value for key, value in strategy.items() if not isinstance(value, Mapping)}}
    inner = {key.partition(".")[2]: value for key, value in settings.items() if "." in key}
    return settings.get(name, inner.get(name, default))


def _missing(
    study: Study,
    baseline: str,
    configs: Mapping[str, Mapping[str, Any]],
    ranked: list[str],
    unranked: Mapping[str, list[str]],
    controls: Mapping[str, str],
) -> list[str]:
    arms = [baseline, *ranked]
    if study.column_notes:
        return [*_missing_files(study, arms), *_same_seeds(study, arms)]
    lines = _same_seeds(study, arms)
    if UNTRAINED not in study.arms:
        lines.append("the untrained model is missing: evaluation.before=true, or evaluate.py model=<the base model>")
    plain = study.runs[study.runs["exploration"] == PLAIN]["arm"]
    if not set(plain) - {UNTRAINED}:
        lines.append(f"plain token sampling is missing: train.py exploration={PLAIN}")
    for arm in arms:
        strategy = strategy_of(configs[arm])
        if _needs_control(strategy) and arm not in controls:
            rate = setting(strategy, "rate")
            rate = "null" if rate is None else rate
            lines.append(f"{arm} has no rate-matched control: train.py exploration=rate_matched_greedy mix_rate={rate}")
    for arm, seeds in _few_seeds(study, arms).items():
        lines.append(f"{arm} has {seeds} training seed{'s' * (seeds > 1)}, {SEEDS} are needed: -m seed=0,1,2")
    lines += [f"{arm} also differs in {', '.join(keys)}: shown, not ranked" for arm, keys in unranked.items()]
    return lines


def _same_seeds(study: Study, arms: list[str]) -> list[str]:
    """Seeds that solved the same problems equally often, some of them sometimes, are one run given several times."""
    lines = []
    for arm in arms:
        part = study.counts[study.counts["arm"] == arm]
        wide = part.pivot_table(index=["benchmark", "problem_id"], columns="seed", values="c", sort=False)
        mixed = int(((part["c"] > 0) & (part["c"] < part["n"])).sum()) / max(1, wide.shape[1])
        twins = wide.columns[wide.T.duplicated()]
        if len(twins) and mixed >= SOME:
            seeds = ", ".join(map(str, twins))
            lines.append(f"of {arm}, seed {seeds} solved the same as an earlier one: no seed of its own")
    return lines


def _few_seeds(study: Study, arms: list[str]) -> dict[str, int]:
    """Arm -> number of training seeds, for the arms that have fewer than SEEDS."""
    seeds = {arm: study.runs[study.runs["arm"] == arm]["seed"].nunique() for arm in arms}
    return {arm: count for arm, count in seeds.items() if count < SEEDS}


def _missing_files(study: Study, arms: list[str]) -> list[str]:
    """What a comparison of other tools' files lacks. How they were made is unknown, so it can only ask for more files."""
    if len(arms) == 1:
        return [f"{arms[0]} stands alone: samples='[{arms[0]}=<file>,<method>=<file>]' compares it"]
    if few := list(_few_seeds(study, arms)):
        return [f"fewer than {SEEDS} training seeds of {', '.join(few)}: figures of these checkpoints, not of methods; files "
                f"of other seeds are given as {few[0]}/0=<file>, {few[0]}/1=<file>"]  # fmt: skip
    return []


def strategy_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the strategy of a run."""
    prefix = "exploration."
    return {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}


def _needs_control(strategy: Mapping[str, Any]) -> bool:
    """Whether a strategy mixes in neighbors at some rate, in which case greedy steps at that rate may explain its effect."""
    return setting(strategy, "rate", 0) != 0 and (setting(strategy, "k") or 1) > 1  # a rate of None means every step
