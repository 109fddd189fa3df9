"""The strategy that `exploration.match` names: what its own file says, and with which settings.

It is not the one that is chosen, so Hydra composes it nowhere; what was typed for it stands under `matched`.
"""

import difflib
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ngrpo import composed
from ngrpo.cli import conf
from ngrpo.cli.conf import OF_NO_JOB
from ngrpo.rundir.schema import leaves

KEY, GROUP = "exploration.match", "exploration"
MATCHED = "matched"  # the node with what was typed for the strategy
OF_THE_CHOSEN = ("roles", "trainable")  # what a file says of the strategy in it, and of no other


def refusal(match: Any) -> str | None:
    """Why no strategy can be matched to this name, with the override that mends it; None where one can."""
    names = [name for name in conf.choices(GROUP) if KEY not in conf.keys(GROUP, name)]
    near = (difflib.get_close_matches(str(match), names, n=1) or ["neighbor_mix"])[0]
    return None if match in names else f"must be another strategy, one of {', '.join(names)}; {KEY}={near}"


def config_of(root: DictConfig) -> DictConfig:
    """What a configuration would be with the strategy that it is matched to in the place of its own; the rules of that
    strategy's file, and no others, are its `schema`."""
    left_out = (*OF_NO_JOB, *OF_THE_CHOSEN, GROUP, MATCHED)
    own = {str(name): node for name, node in root.items_ex(resolve=False) if name not in left_out}
    its = conf.read(GROUP, OmegaConf.select(root, KEY))
    merged: Any = OmegaConf.merge(its, OmegaConf.create(own), root[MATCHED])
    return merged


def strategy(*, _root_: DictConfig) -> dict[str, Any]:
    """The resolver `${matched_strategy:}`: the node of the strategy."""
    return composed.plain(config_of(_root_)[GROUP])


def settings(config: DictConfig, match: Any = None) -> dict[str, Any]:
    """`matched.<key>` -> default of all that may be set of the strategy `match`, or of the one that a configuration names;
    {} where it names none."""
    usual = OmegaConf.select(config, KEY) if isinstance(config.get(GROUP), DictConfig) else None
    match = usual if match is None else match
    if usual is None or refusal(match):
        return {}
    its: Any = OmegaConf.to_container(conf.read(GROUP, match))
    its = {name: node for name, node in its.items() if name not in (*OF_NO_JOB, *OF_THE_CHOSEN)}
    return {f"{MATCHED}.{key}": value for key, value in leaves(its)}
