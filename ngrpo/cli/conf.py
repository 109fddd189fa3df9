"""The files below `conf/`, ours and the user's, as they stand on disk: which there are, and which keys they define.

Hydra composes them. It does not tell which file has a key that nobody chose, nor what a file says that stands in another.
"""

import re
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
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
PARTS = "part"  # of a group: files that others are put together from, no choices of their own
PLACES = [CONF]


def search(overrides: Iterable[str]) -> None:
    """From now on files are also looked for where `hydra.searchpath=[file://...,pkg://...]` among these points to."""
    texts = [text for text in overrides if text.startswith("hydra.searchpath=")]
    found = [match for text in texts for match in re.findall(r"(file|pkg)://([^,\]'\"]+)", text)]
    PLACES[1:] = [Path(path) if kind == "file" else _package(path) for kind, path in found]


def is_group(name: str) -> bool:
    """Whether `name`, with slashes for sub-groups, is a group of files."""
    return bool(re.fullmatch(r"\w+(/\w+)*", name)) and any((place / name).is_dir() for place in PLACES)


def choices(group: str) -> list[str]:
    """The choices of a group, those of its sub-groups as `sub/choice`."""
    inside = [path for place in PLACES for path in (place / group).glob("*")]
    names = sorted({path.stem for path in inside if path.suffix == ".yaml"})
    subs = sorted({path.name for path in inside if path.is_dir() and path.name != PARTS})
    return [*names, *(f"{sub}/{choice}" for sub in subs for choice in choices(f"{group}/{sub}"))]


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
            content: Any = LOADER(text).get_single_data()
        except (OSError, ValueError, yaml.YAMLError):  # reported when it is chosen
            continue
        header = HEADER.search(text)
        package = header[1] if header else f"{group}/{name}".rpartition("/")[0].replace("/", ".")
        own = {key: node for key, node in content.items() if key not in OF_NO_JOB} if isinstance(content, dict) else {}
        yield from (key if package == "_global_" else f"{package}.{key}" for key, _ in leaves(own))
        for part in _parts(group, content.get("defaults", ())) if own else ():
            yield from keys(group, part)


def _package(path: str) -> Path:
    """The folder of a package, found without importing it; the top one may be the user's."""
    top, *inner = re.split(r"[./]", path)
    spec = find_spec(top)
    return Path(*(spec.submodule_search_locations or ()) if spec else (), *inner)


def _paths(group: str, name: str) -> list[Path]:
    return [path for place in PLACES if (path := place / group / f"{name}.yaml").is_file()]


def _parts(group: str, defaults: Iterable[Any]) -> list[str]:
    """Names of the files of the same group that a file is put together from, at the place that they name themselves."""
    own = (part.removeprefix(f"/{group}/") for part in defaults if isinstance(part, str))
    return [part for part in own if part != "_self_" and "@" not in part]
