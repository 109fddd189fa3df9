"""The strategy that `exploration.match` names: what its own file says, and with which settings.

It is not the one that is chosen, so Hydra composes it nowhere; what was typed for it stands under `matched`.
"""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import ngrpo
from ngrpo import composed
from ngrpo.rundir.schema import leaves

PACKAGE = Path(ngrpo.__file__).resolve().parent
CONF = next(
    place for place in (PACKAGE / "conf", PACKAGE.parent / "conf") if place.is_dir()
)  # installed, or a checkout
KEY, GROUP = "exploration.match", "exploration"
MATCHED = "matched"  # the node with what was typed for the strategy
OF_NO_JOB = ("schema", "hydra", "defaults")  # nodes that no job reads
OF_THE_CHOSEN = ("roles", "trainable")  # what a file says of the strategy in it, and of no other
_places = [CONF]


def search(overrides: Iterable[str]) -> None:
    """From now on files are also looked for where `hydra.searchpath=[file://...]` among these points to."""
    _places[1:] = [Path(place) for text in overrides for place in re.findall(r"file://([^,\]]+)", str(text))]


def refusal(match: Any) -> str | None:
    """Why no strategy can be matched to this name, with the override that mends it; None where one can."""
    files = [path for place in _places for path in (place / GROUP).glob("*.yaml")]
    names = sorted({path.stem for path in files if OmegaConf.select(OmegaConf.load(path), KEY) is None})
    near = (difflib.get_close_matches(str(match), names, n=1) or ["neighbor_mix"])[0]
    return None if match in names else f"must be another strategy, one of {', '.join(names)}; {KEY}={near}"


def read(name: str) -> DictConfig:
    """What the file of a strategy says, with its parts, interpolations as they stand."""
    path = next(path for place in _places if (path := place / GROUP / f"{name}.yaml").is_file())
    own: Any = OmegaConf.load(path)
    parts = [read(part.removeprefix(f"/{GROUP}/")) for part in own.pop("defaults", ()) if part != "_self_"]
    merged: Any = OmegaConf.merge(*parts, own)
    return merged


def config_of(root: DictConfig) -> DictConfig:
    """What a configuration would be with the strategy that it is matched to in the place of its own; the rules of that
    strategy's file, and no others, are its `schema`."""
    left_out = (*OF_NO_JOB, *OF_THE_CHOSEN, GROUP, MATCHED)
    own = {str(name): node for name, node in root.items_ex(resolve=False) if name not in left_out}
    merged: Any = OmegaConf.merge(read(OmegaConf.select(root, KEY)), OmegaConf.create(own), root[MATCHED])
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
    its: Any = OmegaConf.to_container(read(match))
    its = {name: node for name, node in its.items() if name not in (*OF_NO_JOB, *OF_THE_CHOSEN)}
    return {f"{MATCHED}.{key}": value for key, value in leaves(its)}
