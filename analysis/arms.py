"""Groups runs into the arms of a comparison, names the arms, and says in what two of them differ."""

import json
from collections.abc import Mapping
from typing import Any

from analysis.samples import LoadError

UNTRAINED = "untrained"  # the arm of the model before its first RL step
# Top-level numbers of a configuration that every run has; all others are knobs of its strategy.
SHARED = ("seed", "steps", "prompts_per_step", "group_size", "temperature", "top_p", "learning_rate", "max_new_tokens",
          "n", "problems", "eval_every", "checkpoint_every", "engine_correction")  # fmt: skip
OF_STRATEGY = ("exploration", "roles", "trainable", "matched")
MATCHED = "strategy."  # in front of the settings of the strategy that a control is matched to, which has a name
# Besides the seed: when, where and on what something runs; data:model says which model it is.
NOT_COMPARED = ("seed", "eval_every", "checkpoint_every", "evaluation.before", "trainer.threads", "model.path")


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Dotted keys in which two runs differ beyond their strategy and seed: what makes a comparison unfair."""
    keys = [key for key in dict.fromkeys([*first, *second]) if first.get(key) != second.get(key)]
    return [k for k in keys if not (k in NOT_COMPARED or is_knob(k) or k.split(".")[0] in OF_STRATEGY)]


def is_knob(key: str) -> bool:
    """Whether a configuration key is a knob of the strategy: a top-level key that other runs need not have."""
    return "." not in key and key not in SHARED and not key.startswith("data:")


def name_arms(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Names arms after what varies: strategy, algorithm, then the keys in which arms of one name differ."""
    several = len({run["algorithm"] for run in runs if run["arm"] is None}) > 1
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    left_out = _seeds(runs)
    for run in runs:
        if run["arm"] is None:
            name = f"{run['exploration']} + {run['algorithm']}" if several else run["exploration"]
            name += f" on {run['control'].replace('_', ' ')}" if run["control"] else ""
            hidden = {*NOT_COMPARED, *left_out.get(run["exploration"], ())}
            rest = {key: value for key, value in run["config"].items() if key not in hidden}
            groups.setdefault(name, {}).setdefault(json.dumps(rest, sort_keys=True, default=str), []).append(run)
    for name, variants in groups.items():
        settings = {text: json.loads(text) for text in variants}
        configs = [{k: v for k, v in of[0]["config"].items() if k in settings[text]} for text, of in variants.items()]
        every = dict.fromkeys(key for config in configs for key in config)
        keys = [key for key in every if len({json.dumps(c.get(key)) for c in configs}) > 1]
        keys = [key for key in keys if not key.startswith("exploration.")] or keys
        keys = [key for key in keys if not key.startswith(f"exploration.{MATCHED}")] or keys
        for members in variants.values():
            label = " ".join([name, *(f"{key}={members[0]['config'].get(key)}" for key in keys)])
            for run in members:
                run["arm"] = label
    for run in runs:
        twins = [o for o in runs if (o["arm"], o["seed"]) == (run["arm"], run["seed"]) and o["path"] != run["path"]]
        if twins and run["arm"] != UNTRAINED:
            raise LoadError(f"{run['path']} and {twins[0]['path']} are both {run['arm']} with seed {run['seed']}")
    return sorted(runs, key=lambda run: (run["arm"] != UNTRAINED, run["arm"], run["seed"]))


def _seeds(runs: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Strategy -> those of its settings that equal the training seed in all of its runs."""
    found: dict[str, list[str]] = {}
    for name in {run["exploration"] for run in runs}:
        own = [run for run in runs if run["exploration"] == name]
        keys = [key for key in own[0]["config"] if key.startswith("exploration.") and key.endswith(".seed")]
        found[name] = [key for key in keys if all(run["config"].get(key) == run["seed"] for run in own)]
    return found
