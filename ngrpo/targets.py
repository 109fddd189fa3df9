"""What a `_target_` may name: a class or function written in this package or in one of the user's, or a logger class.

The user's packages are those that the environment variable NGRPO_PLUGINS names, which no configuration can set. A
configuration file is user input, so names are looked up in the source text: nothing is imported to find out, and a name
that a module merely imports (`ngrpo.exploration.stht.torch`) is not one of its own.
"""

import ast
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
# No room that writes or deletes files, but for trackers, which write in the run directory.
ROOMS = ("exploration", "tasks", "grading", "algorithm", "rollout.engines", "training.trackers")
TRACKERS = "ngrpo.training.trackers."
LIBRARY = tuple(
    f"lightning.pytorch.loggers.{name}"
    for name in ("CSVLogger", "TensorBoardLogger", "WandbLogger", "MLFlowLogger", "CometLogger")
)
RESERVED = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}
PLUGINS = frozenset(
    os.environ.get("NGRPO_PLUGINS", "").replace(",", " ").split()
)  # read once, before any configuration
OLD = os.environ.get("NGRPO_REWARDS")
RENAMED_VARIABLE = [f"NGRPO_REWARDS={OLD}: is now called NGRPO_PLUGINS; NGRPO_PLUGINS={OLD}"] if OLD is not None else []
# Hydra builds its launcher, sweeper and callbacks from the configuration too, and logging any `()` or `class`.
OF_HYDRA = re.compile(
    r"hydra\._internal\.core_plugins\.basic_(launcher\.BasicLauncher|sweeper\.BasicSweeper)"
    r"|hydra\.experimental\.callbacks\.[A-Z]\w+Callback"
    r"|hydra_plugins(\._?[a-z]\w*)+\.[A-Z]\w+(Launcher|Sweeper)"
    r"|(optuna\.samplers|colorlog|logging(\.handlers)?)\.[A-Z]\w+"
)
# Where the class of a node must come from, by a pattern of its key; the first that fits.
PLACES = {
    r"(task|benchmark)\..*grader": "ngrpo.grading.",
    r"(task|benchmark)\b": "ngrpo.tasks.",
    r"(evaluation\.)?exploration\b": "ngrpo.exploration.",
    r"algorithm\b": "ngrpo.algorithm.",
    r"engine\b": "ngrpo.rollout.engines.",
    r"extra_rewards\b": "ngrpo.tasks.rewards.",
    r"logger\b": TRACKERS,
}


class SettingsError(ValueError):
    """A configuration that cannot be run; `lines` has one line per problem, or is the one that there is."""

    def __init__(self, lines: list[str] | str):
        self.lines = [lines] if isinstance(lines, str) else lines
        super().__init__("\n".join(self.lines))

    def __reduce__(self):
        return SettingsError, (self.lines,)


def nodes(tree: Any, path: str = "", name: str = "_target_") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(dotted key, node) of every node that has `name` in it, however deep, lists included."""
    if isinstance(tree, Mapping) and name in tree:
        yield path, tree
    members = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in members:
        yield from nodes(child, f"{path}.{key}" if path else str(key), name)


def refusal(target: Any, path: str = "") -> str | None:
    """Why `target` may not be used, at this key of a configuration or (empty) anywhere, as a phrase; None where it may."""
    if not isinstance(target, str):
        return "must be the dotted name of a class or function"
    room, users = _room(path), is_users(target)
    *module, name = target.split(".")
    if not users and target not in LIBRARY and not any(target.startswith(f"{PACKAGE.name}.{room}.") for room in ROOMS):
        rooms = ", ".join(f"{PACKAGE.name}.{name}" for name in ROOMS)
        return f"only classes and functions of {rooms}, Lightning's loggers and packages that NGRPO_PLUGINS names may be built"
    if any(not part.isidentifier() or part.startswith("_") for part in (*module, name)):
        return "private names may not be built"
    logs = room == TRACKERS
    if not target.startswith(room) and not (users and not logs) and not (target in LIBRARY and logs):
        return f"must be found below {room[:-1]} or in a package that NGRPO_PLUGINS names"
    if target in LIBRARY:
        return None
    if (source := _source(module)) is None:
        return f"there is no module {'.'.join(module)}"
    if name not in _definitions(source):
        return f"{'.'.join(module)} defines no {name}, but {', '.join(_definitions(source))}"
    return _reward_refusal(_definitions(source)[name]) if is_reward(path) else None


def unfit(node: Mapping[str, Any], given: Iterable[str], partial: bool) -> str | None:
    """Why what a node names, which is imported for that, cannot take the node's arguments and those that are `given`
    besides, as a phrase; None where it can. partial: more may come."""
    *module, name = node["_target_"].split(".")
    taken = signature(getattr(import_module(".".join(module)), name))
    arguments = dict.fromkeys([*(key for key in node if key not in RESERVED), *given])
    try:
        (taken.bind_partial if partial else taken.bind)(**arguments)
    except TypeError as error:
        return f"{error}; it takes {', '.join(taken.parameters)}"
    return None


def hydra_refusals(node: Any) -> Iterator[str]:
    """A line for each callable in Hydra's own node, as plain mappings and lists, that is none of those that it builds."""
    for name in ("_target_", "()", "class"):
        for path, inner in nodes(node, "hydra", name):
            if not OF_HYDRA.fullmatch(str(inner[name])):
                rule = "only launchers, sweepers, callbacks and loggers belong here"
                yield f"{path}.{name}={inner[name]}: {rule}; leave it out"


def is_users(target: str) -> bool:
    """Whether a target is in a package that the user has named in NGRPO_PLUGINS."""
    top, _, name = target.partition(".")
    return top in PLUGINS and top != PACKAGE.name and bool(name)


def is_reward(path: str) -> bool:
    """Whether what stands at this key is a function of reward."""
    return path.startswith("extra_rewards.")


def source_file(target: str) -> Path | None:
    """The file in which a target is defined."""
    return _source(target.split(".")[:-1])


def _room(path: str) -> str:
    return next((room for place, room in PLACES.items() if re.match(place, path)), "")


def _reward_refusal(definition: ast.ClassDef | ast.FunctionDef) -> str | None:
    if not isinstance(definition, ast.FunctionDef):
        return "must be a function of problem, completion and score"
    first = len(definition.args.posonlyargs) + len(definition.args.args)
    fits = first - len(definition.args.defaults) <= 3 and (first >= 3 or definition.args.vararg)
    return None if fits else "must take problem, completion and score, in that order, and name all else"


def _source(module: list[str]) -> Path | None:
    if module[0] == PACKAGE.name:
        root = PACKAGE
    else:
        spec = find_spec(module[0])  # of a name without dots, so nothing is imported
        inside = list(spec.submodule_search_locations or ()) if spec else []
        origin = spec.origin if spec else None  # None for a package without __init__.py
        root = Path(inside[0]) if inside else Path(origin).with_suffix("") if origin else None
    path = root.joinpath(*module[1:]) if root else None
    found = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()] if path else []
    return found[0] if found else None


@lru_cache
def _definitions(source: Path) -> dict[str, ast.ClassDef | ast.FunctionDef]:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
