"""A preset that bears a paper's name runs with the paper's weights and data, or says in one line what is missing.

Its file says under `preset` what they are, and which experiment has the method on the bundled model (`demo`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngrpo.models import architectures, files
from ngrpo.tasks.rows import KINDS

if TYPE_CHECKING:
    from ngrpo.cli.checks import Settings


def missing(settings: "Settings") -> str | None:
    """What a preset lacks on this machine, where it comes from, and what runs without; None where nothing is missing."""
    preset = settings.tree.get("preset")
    if preset is None or settings.only_planned:
        return None
    lacking = [line for line in (_weights(settings, preset["weights"]), _data(settings, preset["data"])) if line]
    name = f"experiment={settings.given['experiment']}" if "experiment" in settings.given else "this experiment"
    demo = f"experiment={preset['demo']} has its method on the bundled model"
    return f"{name}: {' and '.join(lacking)}; {demo}" if lacking else None


def _weights(settings: "Settings", known: list[str]) -> str | None:
    path, names = settings.values.get("model.path"), " or ".join(known)
    if path in known:
        fetch = f"hf download {path}, or model.path=<directory>"
        return None if files.cached(path, "model") else f"the weights of {path} are not here ({fetch})"
    if settings.given.get("model") == "hf":  # whose file asks it otherwise
        return f"model=<directory> does not say how {names} is asked (model.path=<directory> keeps that)"
    place = files.directory(path) if isinstance(path, str) else None
    shape = files.text_settings(place) if place else {}
    if any(architectures.has_shape(shape, name) for name in known):
        return None
    return f"{settings.override('model.path')} is not {names}"


def _data(settings: "Settings", trained: str) -> str | None:
    task, benchmarks = settings.tree["task"], settings.tree.get("benchmark") or {}
    if task.get("dataset") != trained:
        return f"{settings.override('task')} is not {trained}"
    lacking = dict.fromkeys(node["dataset"] for node in (task, *benchmarks.values()) if not _is_here(node))
    fetch = "hf download --repo-type dataset <name>, or paths.data=<directory>"
    return f"data sets are not here: {', '.join(lacking)} ({fetch})" if lacking else None


def _is_here(node: Mapping[str, Any]) -> bool:
    if node.get("path") or "dataset" not in node:  # one's own file, which others look at, or problems that are made
        return True
    if node["directory"]:
        return any(Path(node["directory"], f"{node['name']}{kind}").expanduser().is_file() for kind in KINDS)
    return files.cached(node["dataset"], "dataset")
