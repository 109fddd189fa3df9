"""Whether values fit one another, the model, the tasks and this machine. It leaves out values that are broken alone."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from ngrpo import build, targets
from ngrpo.cli.settings import machine
from ngrpo.cli.settings.composed import Composed
from ngrpo.models import files

TRAINING_PROMPTS = 200  # of a training set are measured against the context; of a benchmark all are


def model(seen: Composed) -> Iterator[str]:
    """The model's directory, if it is one, has all that is needed."""
    if not seen.sound("model.path") or seen.values.get("run") is not None:
        return
    refusal = files.refusal(seen.values["model.path"])
    if refusal:
        seen.broken.add("model.path")
        yield f"{seen.shown('model.path')}: {refusal}; model=tiny is the bundled one"


def run(seen: Composed) -> Iterator[str]:
    """The run that evaluate.py is pointed at is one, and brings the only model."""
    path = seen.values.get("run")
    if path is None or "run" in seen.broken:
        return
    refusal = files.run_refusal(path)
    if refusal:
        seen.broken.add("run")
        yield f"{seen.shown('run')}: {refusal}; run=outputs/<experiment or task>/<run>"
    if any(key == "model" or key.startswith("model.") for key in seen.given):
        yield f"{seen.shown('run')}: a run brings its own model; leave model out, or run"


def packages(seen: Composed) -> Iterator[str]:
    """What is to be built has its optional packages."""
    for path, node in targets.nodes(seen.tree):
        refusal = machine.package_refusal(str(node["_target_"]))
        if refusal:
            yield f"{seen.shown(path if path in seen.given else f'{path}._target_')}: {refusal}"


def parallel(seen: Composed) -> Iterator[str]:
    """There are as many devices as asked for, unless only a plan is; and groups stay whole on them."""
    if (
        not _plans(seen)
        and seen.values.get("trainer.accelerator") == "gpu"
        and seen.sound("trainer.accelerator", "trainer.devices")
    ):
        refusal = machine.gpu_refusal(seen.values["trainer.devices"])
        if refusal:
            yield f"{seen.shown('trainer.accelerator')}: {refusal}; trainer=cpu"
    if not seen.sound("trainer.devices", "prompts_per_step"):
        return
    devices, prompts = seen.values["trainer.devices"], seen.values["prompts_per_step"]
    if prompts % devices:
        rule = f"must divide {seen.shown('prompts_per_step')}, because whole groups stay on one device"
        yield f"{seen.shown('trainer.devices')}: {rule}; prompts_per_step={devices * math.ceil(prompts / devices)}"
    elif seen.sound("algorithm.mini_batches") and seen.values["algorithm.mini_batches"] > prompts // devices:
        most = prompts // devices
        reason = f"because a device has {most} of the prompts and groups stay whole"
        fix = f"algorithm.mini_batches={most}"
        yield f"{seen.shown('algorithm.mini_batches')}: must be at most {most}, {reason}; {fix}"


def sizes(seen: Composed) -> Iterator[str]:
    """The algorithm's sizes fit the group and the longest answer, and a group fits the samples that are drawn."""
    pairs = (("algorithm.pass_k", "group_size"), ("algorithm.reward_shaping.overlong.buffer", "max_new_tokens"))
    for key, most in (*pairs, ("group_size", "n")):
        if seen.sound(key, most) and seen.values[key] > seen.values[most]:
            yield f"{seen.shown(key)}: must be at most {seen.shown(most)}; {key}={seen.values[most]}"


def neighbors(seen: Composed) -> Iterator[str]:
    """The vocabulary has as many ordinary tokens as a mixture has candidates."""
    place = _model_directory(seen)
    words = files.ordinary_tokens(place) if place else None
    if words is None:
        return
    for key in [key for key in seen.values if key == "k" or re.fullmatch(r"exploration\.(\w+\.)?k", key)]:
        repeats = key != "k" and seen.raw.get(key) == "${k}"
        if seen.sound(key) and not repeats and seen.values[key] > words:
            reason = f"because the model has {words} tokens that are neither special nor added"
            yield f"{seen.shown(key)}: must be at most {words}, {reason}; {key}={min(words, 3)}"


def tasks(seen: Composed) -> Iterator[str]:
    """The training set and the benchmarks can be built, are large enough, and prompts fit the model; a plan needs none."""
    if _plans(seen):
        return
    nodes = {f"benchmark.{name}": node for name, node in (seen.tree.get("benchmark") or {}).items()}
    nodes |= {"task": seen.tree["task"]} if "task" in seen.tree else {}
    prompts: dict[str, tuple[str, ...]] = {}
    for path, node in nodes.items():
        if any(key == path or key.startswith(f"{path}.") for key in seen.broken):
            continue
        try:
            most = TRAINING_PROMPTS if path == "task" else None
            size, prompts[path] = _prompts(json.dumps(node), most)
        except (ValueError, TypeError, LookupError, OSError, ImportError) as error:
            yield f"{path}: {' '.join(str(error).split())}".replace(" set task.", f" set {path}.")
            continue
        if path == "task" and seen.sound("prompts_per_step") and size < seen.values["prompts_per_step"]:
            reason = f"because the task has {size} problems"
            yield f"{seen.shown('prompts_per_step')}: must be at most {size}, {reason}; prompts_per_step={size}"
    yield from _context(seen, prompts)


@lru_cache(maxsize=64)  # the jobs of a sweep mostly share their tasks
def _prompts(node: str, most: int | None) -> tuple[int, tuple[str, ...]]:
    """(number of problems, the first prompts) of a task, whose module imports neither torch nor transformers.

    Of messages only the shortest prompt: those that are too long for the model are left out of the run and counted.
    """
    content = json.loads(node)
    if not isinstance(content, dict) or "_target_" not in content:
        raise ValueError("has no _target_, so there is no task to build")
    problems = build.task(content).problems
    first = problems[:most]
    if all(problem.is_message for problem in first):
        first = [min(first, key=lambda problem: len(problem.prompt))]
    return len(problems), tuple(problem.prompt for problem in first)


@lru_cache(maxsize=64)
def _longest(prompts: tuple[str, ...], words: Tokenizer) -> int:
    return max(map(len, words.encode_batch(list(prompts))), default=0)


def _context(seen: Composed, prompts: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    place = _model_directory(seen)
    words, positions = (files.tokenizer(place), files.positions(place)) if place else (None, None)
    if words is None or positions is None or not any(prompts.values()):
        return
    lengths = {path: _longest(texts, words) for path, texts in prompts.items()}
    path = max(lengths, key=lambda path: lengths[path])
    longest, room = lengths[path], positions - lengths[path]
    reason = f"because a prompt of {path} has {longest} tokens and the model {positions} positions"
    if room < 1:
        yield f"{path}: does not fit, {reason}; choose another model or {path.partition('.')[0]}"
    elif seen.sound("max_new_tokens") and seen.values["max_new_tokens"] > room:
        yield f"{seen.shown('max_new_tokens')}: must be at most {room}, {reason}; max_new_tokens={room}"


def _plans(seen: Composed) -> bool:
    return any(key.startswith("plan.") for key in seen.values)


def _model_directory(seen: Composed) -> Path | None:
    if seen.sound("run"):
        return files.directory(f"{seen.values['run']}/hf")
    return files.directory(seen.values["model.path"]) if seen.sound("model.path") else None
