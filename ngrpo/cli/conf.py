"""The files below `conf/`, ours and the user's, as they stand on disk: which there are, and which keys they define.

Hydra composes them. It does not tell which file has a key that nobody chose, nor what a file says that stands in another.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

import ngrpo
from ngrpo.rundir.schema import leaves

PACKAGE = Path(ngrpo.__file__).resolve().parent
CONF = next(
    place for place in (PACKAGE / "conf", PACKAGE.parent / "conf") if place.is_dir()
)  # installed, or a checkout
OF_NO_JOB = ("schema", "hydra", "defaults")  # nodes that no job reads
HEADER = re.compile(r"^#\s*@package\s+(\S+)", re.MULTILINE)
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML has it
_places = [CONF]


def search(overrides: Iterable[str]) -> None:
    """From now on files are also looked for where `hydra.searchpath=[file://...]` among these points to."""
    _places[1:] = [Path(place) for text in overrides for place in re.findall(r"file://([^,\]]+)", str(text))]


def names(group: str) -> list[str]:
    """The choices of a group, without those of its sub-groups."""
    return sorted({path.stem for place in _places for path in (place / group).glob("*.yaml")})


def read(group: str, name: str) -> DictConfig:
    """What a file says, with the parts of its group that it names, interpolations as they stand."""
    own: Any = OmegaConf.load(_paths(group, name)[0])
    merged: Any = OmegaConf.merge(*(read(group, part) for part in _parts(group, own.pop("defaults", ()))), own)
    return merged


def keys(group: str, name: str) -> Iterator[str]:
    """Dotted keys that a file defines, with the parts that it names; none of a file that cannot be read."""
    for path in _paths(group, name):
        try:
            text = path.read_text("utf-8")
            content: Any = yaml.load(text, LOADER)
        except (OSError, ValueError, yaml.YAMLError):  # told when it is chosen
            continue
        header = HEADER.search(text)
        package = header[1] if header else f"{group}/{name}".rpartition("/")[0].replace("/", ".")
        own = {key: node for key, node in content.items() if key not in OF_NO_JOB} if isinstance(content, dict) else {}
        yield from (key if package == "_global_" else f"{package}.{key}" for key, _ in leaves(own))
        for part in _parts(group, content.get("defaults", ())) if own else ():
            yield from keys(group, part)


def _paths(group: str, name: str) -> list[Path]:
    return [path for place in _places if (path := place / group / f"{name}.yaml").is_file()]


def _parts(group: str, defaults: Iterable[Any]) -> list[str]:
    """Names of the files of the same group that a file is put together from, at the place that they name themselves."""
    own = (part.removeprefix(f"/{group}/") for part in defaults if isinstance(part, str))
    return [part for part in own if part != "_self_" and "@" not in part]
