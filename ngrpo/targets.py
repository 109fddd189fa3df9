"""What a `_target_` may name: a class or function written in this package, or one of a few library classes.

Functions of reward may also come from packages that the user names in the environment variable NGRPO_REWARDS, which no
configuration can set. A configuration file is user input, so names are looked up in the source text: nothing is imported
to find out, and a name that a module merely imports (`ngrpo.rundir.records.os`) is not one of its own. It does not know what a
target is for.
"""

import ast
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
ROOMS = ("exploration", "tasks", "grading", "algorithm", "rollout.engines")  # no room that writes or deletes files
LIBRARY = tuple(
    f"lightning.pytorch.loggers.{name}"
    for name in ("CSVLogger", "TensorBoardLogger", "WandbLogger", "MLFlowLogger", "CometLogger")
)
USERS = frozenset(os.environ.get("NGRPO_REWARDS", "").replace(",", " ").split())  # read once, before any configuration
RESERVED = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


class SettingsError(ValueError):
    """A configuration that cannot be run; `lines` has one line per problem."""

    def __init__(self, lines: list[str]):
        super().__init__("\n".join(lines))
        self.lines = lines

    def __reduce__(self):
        return SettingsError, (self.lines,)


@dataclass(frozen=True)
class Signature:
    """The keyword arguments of a target; `takes` is None where it cannot be told from the source."""

    takes: tuple[str, ...] | None
    needs: tuple[str, ...] = ()


def nodes(tree: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(dotted key, node) of every node with a `_target_`, however deep, lists included."""
    if isinstance(tree, Mapping):
        if "_target_" in tree:
            yield path, tree
        for name, child in tree.items():
            yield from nodes(child, f"{path}.{name}" if path else str(name))
    elif isinstance(tree, Sequence) and not isinstance(tree, str):
        for index, child in enumerate(tree):
            yield from nodes(child, f"{path}.{index}" if path else str(index))


def refusal(target: Any) -> str | None:
    """Why `target` may not be used, as a phrase; None where it may."""
    if not isinstance(target, str):
        return "must be the dotted name of a class or function"
    if target in LIBRARY:
        return None
    parts = target.split(".")
    inside = any(target.startswith(f"{PACKAGE.name}.{room}.") for room in ROOMS)
    if not is_users(target) and not (inside and len(parts) > 2):
        rooms = ", ".join(f"{PACKAGE.name}.{room}" for room in ROOMS)
        return f"only classes and functions of {rooms} and Lightning's loggers may be built"
    if any(not part.isidentifier() or part.startswith("_") for part in parts):
        return "private names may not be built"
    module, source = ".".join(parts[:-1]), _source(parts[:-1])
    if source is None:
        return f"there is no module {module}"
    return None if parts[-1] in _definitions(source) else f"{module} defines no {parts[-1]}"


def nearest(target: Any) -> str | None:
    """The target that a name with a misspelt last part was meant to be."""
    module, _, name = str(target).rpartition(".")
    parts = module.split(".")
    source = _source(parts) if parts[0] == PACKAGE.name and all(map(str.isidentifier, parts)) else None
    alike = difflib.get_close_matches(name, _definitions(source) if source else (), n=1)
    return f"{module}.{alike[0]}" if alike else None


def signature(target: str) -> Signature:
    """The arguments that `target`, a name that `refusal` lets through, takes and needs."""
    if target in LIBRARY:
        return Signature(None)
    *module, name = target.split(".")
    source = _source(module)
    definition = _definitions(source)[name] if source else None
    if isinstance(definition, ast.FunctionDef):
        return _arguments(definition.args, skip=0)
    if not isinstance(definition, ast.ClassDef):
        return Signature(None)
    for statement in definition.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return _arguments(statement.args, skip=1)
    is_dataclass = any("dataclass" in ast.unparse(decorator) for decorator in definition.decorator_list)
    return _fields(definition) if is_dataclass and not definition.bases else Signature(None)


def is_users(target: str) -> bool:
    """Whether a target is in a package that the user has named in NGRPO_REWARDS."""
    top, _, name = target.partition(".")
    return top in USERS and top != PACKAGE.name and bool(name)


def reward_refusal(target: str) -> str | None:
    """Why a target that `refusal` lets through is no function of reward, as a phrase; None where it is."""
    *module, name = target.split(".")
    source = _source(module)
    definition = _definitions(source)[name] if source else None
    if not isinstance(definition, ast.FunctionDef):
        return "must be a function of problem, completion and score"
    first = len(definition.args.posonlyargs) + len(definition.args.args)
    needs = first - len(definition.args.defaults)
    fits = needs <= 3 and (first >= 3 or definition.args.vararg)
    return None if fits else "must take problem, completion and score, in that order, and name all else"


def source_file(target: str) -> Path | None:
    """The file in which a target is defined."""
    return _source(target.split(".")[:-1])


def _source(module: list[str]) -> Path | None:
    root = PACKAGE if module[0] == PACKAGE.name else _users_root(module[0])
    path = root.joinpath(*module[1:]) if root else None
    found = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()] if path else []
    return found[0] if found else None


def _users_root(package: str) -> Path | None:
    """Where a package or module would be imported from, without its ending."""
    spec = find_spec(package)  # of a name without dots, so nothing is imported
    if spec is None or not spec.origin:
        return None
    place = Path(spec.origin)
    return place.parent if place.name == "__init__.py" else place.with_suffix("")


@lru_cache
def _definitions(source: Path) -> dict[str, ast.ClassDef | ast.FunctionDef]:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}


def _arguments(arguments: ast.arguments, skip: int) -> Signature:
    positional = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)][skip:]
    optional = positional[len(positional) - len(arguments.defaults) :] if arguments.defaults else []
    pairs = list(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
    needs = [name for name in positional if name not in optional]
    needs += [argument.arg for argument, default in pairs if default is None]
    takes = None if arguments.kwarg else (*positional, *(argument.arg for argument, _ in pairs))
    return Signature(takes, tuple(needs))


def _fields(definition: ast.ClassDef) -> Signature:
    fields = {
        statement.target.id: ast.unparse(statement.value) if statement.value else None
        for statement in definition.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }
    takes = tuple(name for name, value in fields.items() if "init=False" not in (value or ""))
    bare = {name for name, value in fields.items() if value is None or ("field(" in value and "default" not in value)}
    return Signature(takes, tuple(name for name in takes if name in bare))
