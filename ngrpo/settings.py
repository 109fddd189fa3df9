"""Whether a composed configuration can be run at all, found out from YAML, json and tokenizer files in well under a second.

Every problem is one line, `key=value: what is allowed, because ...; the override that fixes it`. It does not know how
the configuration came about: the command line is another room.
"""

import importlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ngrpo import machine, targets
from ngrpo.limits import allowed, as_override, example, is_plain, obeys
from ngrpo.models import files

TASKS = "ngrpo.tasks."
TRAINING_PROMPTS = 200  # of a training set are measured against the context; of a benchmark all are
INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")
UNRESOLVED = object()


class SettingsError(ValueError):
    """A configuration that cannot be run; `lines` has one line per problem."""

    def __init__(self, lines: list[str]):
        super().__init__("\n".join(lines))
        self.lines = lines


def check(config: DictConfig) -> None:
    """For the jobs of a multirun, which compose their own configuration.

    Raises:
        SettingsError: with all problems, one line each.
    """
    found = problems(config)
    if found:
        raise SettingsError(found)


def problems(
    config: DictConfig, reference: DictConfig | None = None, given: Mapping[str, str] | None = None
) -> list[str]:
    """All problems of `config`, one line each and without the leading `error:`; an empty list if it can be run.

    Args:
        config: composed, without the `hydra` node.
        reference: what the YAML files alone compose to; keys that it lacks are not looked at twice.
        given: dotted key -> value as typed, so that a line repeats what its reader wrote.
    """
    seen = Composed(config, reference, given or {})
    found = [line for examine in (_unresolved, _limits, _leaves, _targets, _model, _run) for line in examine(seen)]
    for examine in (_parallel, _neighbours, _tasks):  # these compare values that are fine one by one
        found += examine(seen)
    return list(dict.fromkeys(found))


def notes(config: DictConfig, given: Mapping[str, str] | None = None) -> list[str]:
    """What can be run but hardly means what it says, one line each."""
    seen, found = Composed(config, None, given or {}), []
    updates = [seen.values.get(f"algorithm.{name}") for name in ("inner_epochs", "mini_batches")]
    clips = [key for key in seen.given if key.startswith("algorithm.loss.") and "clip" in key]
    if clips and updates == [1, 1]:
        found.append(f"{seen.shown(clips[0])} acts only after a first update; algorithm.mini_batches=2 makes a second")
    warmup, schedule = seen.values.get("optimizer.warmup_steps"), seen.values.get("optimizer.schedule")
    if isinstance(warmup, int) and warmup > 0 and schedule == "constant":
        found.append(f"{seen.shown('optimizer.warmup_steps')} has no effect with optimizer.schedule=constant")
    elif isinstance(warmup, int) and warmup >= (seen.values.get("steps") or math.inf):
        found.append(f"{seen.shown('optimizer.warmup_steps')}: {seen.shown('steps')} end before the warm-up does")
    return found


@dataclass
class Composed:
    """A configuration as the checks see it. `broken` collects keys whose values no further check should look at."""

    config: DictConfig
    reference: DictConfig | None
    given: Mapping[str, str]
    broken: set[str] = field(default_factory=set)

    @cached_property
    def raw(self) -> dict[str, Any]:
        return flat(self.config)

    @cached_property
    def usual(self) -> dict[str, Any]:
        """The leaves of the YAML files alone, by dotted key."""
        return {} if self.reference is None else resolved(self.reference)

    @cached_property
    def values(self) -> dict[str, Any]:
        return resolved(self.config)

    @cached_property
    def tree(self) -> dict[str, Any]:
        """The configuration as plain mappings and lists, without what does not resolve."""
        tree: dict[str, Any] = {}
        for key, value in self.values.items():
            *parents, name = key.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            if value is not UNRESOLVED:
                node[name] = value
        return tree

    @property
    def rules(self) -> dict[str, dict[str, Any]]:
        """The limits, also for keys that stand for another: what holds for `k` holds for `exploration.k: ${k}`."""
        limits = self.config.get("limits")
        rules = dict(OmegaConf.to_container(limits)) if isinstance(limits, DictConfig) else {}
        for key, value in (flat(self.reference) if self.reference is not None else self.raw).items():
            source = INTERPOLATION.fullmatch(value) if isinstance(value, str) else None
            if source and source[1] in rules and key not in rules and self.raw.get(key) != value:
                rules[key] = {**rules[source[1]], "stands_for": source[1]}
        return rules

    def shown(self, key: str) -> str:
        """`key=value`, as typed where it was typed."""
        value = self.given[key] if key in self.given else as_override(self.raw.get(key))
        printable = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in value)
        return f"{key}={printable if len(printable) <= 100 else printable[:97] + '...'}"

    def sound(self, *keys: str) -> bool:
        """Whether all of these keys are there and none of them is broken."""
        return all(self.values.get(key) is not None and key not in self.broken for key in keys)


def flat(config: DictConfig) -> dict[str, Any]:
    """Dotted key -> leaf, interpolations as they stand, without the limits; lists and empty mappings are leaves."""
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return dict(_leaves_of({name: node for name, node in plain.items() if name not in ("limits", "hydra")}, ""))


def resolved(config: DictConfig) -> dict[str, Any]:
    """Dotted key -> value; UNRESOLVED where an interpolation leads nowhere."""
    return {key: _select(config, key) if _interpolates(leaf) else leaf for key, leaf in flat(config).items()}


def _leaves_of(node: Mapping[Any, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, child in node.items():
        key = f"{path}.{name}" if path else str(name)
        if isinstance(child, Mapping) and child:
            yield from _leaves_of(child, key)
        else:
            yield key, child


def _interpolates(leaf: Any) -> bool:
    return "${" in leaf if isinstance(leaf, str) else isinstance(leaf, list) and any(map(_interpolates, leaf))


def _select(config: DictConfig, key: str) -> Any:
    try:
        value = OmegaConf.select(config, key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except (OmegaConfBaseException, RecursionError, ValueError):
        return UNRESOLVED


def _unresolved(seen: Composed) -> Iterator[str]:
    for key, value in seen.values.items():
        usual = seen.usual.get(key)
        if value is UNRESOLVED:
            fix = "give the value itself" if usual in (None, UNRESOLVED, "???") else f"{key}={as_override(usual)}"
            yield f"{seen.shown(key)}: leads nowhere; {fix}"
        elif value == "???":
            yield f"{key}: has no value and needs one; {key}=<value>"
        else:
            continue
        seen.broken.add(key)


def _limits(seen: Composed) -> Iterator[str]:
    for key, rule in seen.rules.items():
        parent = key.rpartition(".")[0]
        if key in seen.broken:
            continue
        if key not in seen.values:
            inside = not parent or any(name.startswith(f"{parent}.") for name in seen.values)
            built = f"{parent}._target_" in seen.values  # its signature is checked instead
            if inside and not built and not rule.get("optional"):
                seen.broken.add(key)
                yield f"{key}: is missing; {key}={as_override(example(None, rule))}"
        elif not obeys(seen.values[key], rule) or _underflows(seen, key):
            seen.broken.add(key)
            fix = example(seen.values[key], rule, seen.usual.get(key))
            yield f"{seen.shown(key)}: must be {allowed(rule)}" + (f"; {key}={as_override(fix)}" if fix is not None else "")


def _underflows(seen: Composed, key: str) -> bool:
    """1e-999 is read as 0, which is not what was written."""
    digits = re.match(r"[-+]?([\d._]+)", seen.given.get(key, ""))
    return seen.values[key] == 0.0 and bool(digits and digits[1].strip("0._"))


def _leaves(seen: Composed) -> Iterator[str]:
    """Values without a rule: no nan, and of the kind that the YAML files give them."""
    for key, value in seen.values.items():
        if key in seen.broken or key in seen.rules:
            continue
        usual = seen.usual.get(key)
        fits = usual is None or usual in (UNRESOLVED, "???") or value is None or _kind(value) == _kind(usual)
        if fits and all(is_plain(member) for member in (value if isinstance(value, list) else [value])):
            continue
        seen.broken.add(key)
        fix = f"; {key}={as_override(usual)}" if usual not in (None, UNRESOLVED, "???") else ""
        yield f"{seen.shown(key)}: must be {_kind(usual) if usual is not None else 'a finite number'}{fix}"


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a finite number", float: "a finite number", str: "a text", list: "a list"}
    return kinds.get(type(value), "a mapping")


def _targets(seen: Composed) -> Iterator[str]:
    for path, node in targets.nodes(seen.tree):
        target, key = node["_target_"], f"{path}._target_"
        refusal = targets.refusal(target)
        if refusal:
            seen.broken.update((key, path))
            fix = f"; {key}={seen.usual[key]}" if seen.usual.get(key) not in (None, target) else ""
            yield f"{seen.shown(key)}: {refusal}{fix}"
            continue
        signature, name = targets.signature(target), target.rpartition(".")[2]
        given = set(node) - targets.RESERVED
        for extra in sorted(given - set(signature.takes)) if signature.takes is not None else ():
            seen.broken.add(path)
            yield f"{seen.shown(f'{path}.{extra}')}: {name} takes {', '.join(signature.takes)}; ~{path}.{extra}"
        for lacking in [] if node.get("_partial_") else [need for need in signature.needs if need not in given]:
            seen.broken.add(path)
            yield f"{path}.{lacking}: is missing, {name} needs it; +{path}.{lacking}=<value>"


def _model(seen: Composed) -> Iterator[str]:
    if not seen.sound("model.path") or seen.values.get("run") is not None:
        return
    refusal = files.refusal(seen.values["model.path"])
    if refusal:
        seen.broken.add("model.path")
        yield f"{seen.shown('model.path')}: {refusal}; model=tiny is the bundled one"


def _run(seen: Composed) -> Iterator[str]:
    """The run that evaluate.py is pointed at."""
    run = seen.values.get("run")
    if run is None or "run" in seen.broken:
        return
    refusal = files.run_refusal(run)
    if refusal:
        seen.broken.add("run")
        yield f"{seen.shown('run')}: {refusal}; run=outputs/<experiment or task>/<run>"
    if any(key == "model" or key.startswith("model.") for key in seen.given):
        yield f"{seen.shown('run')}: a run brings its own model; leave model out, or run"


def _parallel(seen: Composed) -> Iterator[str]:
    accelerator, devices = seen.values.get("trainer.accelerator"), seen.values.get("trainer.devices")
    if accelerator == "gpu" and seen.sound("trainer.accelerator", "trainer.devices"):
        refusal = machine.gpu_refusal(int(devices))
        if refusal:
            yield f"{seen.shown('trainer.accelerator')}: {refusal}; trainer=cpu"
    if not seen.sound("trainer.devices", "prompts_per_step"):
        return
    prompts = seen.values["prompts_per_step"]
    if prompts % devices:
        fix = f"prompts_per_step={devices * math.ceil(prompts / devices)}"
        yield f"{seen.shown('trainer.devices')}: must divide {seen.shown('prompts_per_step')}, because whole groups stay on one device; {fix}"
    elif seen.sound("algorithm.mini_batches") and seen.values["algorithm.mini_batches"] > prompts // devices:
        reason = f"because each device has {prompts // devices} prompts and whole groups stay together"
        fix = f"algorithm.mini_batches={prompts // devices}"
        yield f"{seen.shown('algorithm.mini_batches')}: must be at most {prompts // devices}, {reason}; {fix}"


def _neighbours(seen: Composed) -> Iterator[str]:
    place = _model_directory(seen)
    words = files.ordinary_tokens(place) if place else None
    for key in ("k", "exploration.k") if words is not None else ():
        repeats = key != "k" and seen.raw.get(key) == "${k}"
        if seen.sound(key) and not repeats and seen.values[key] > words:
            reason = f"because the model has {words} tokens that are neither special nor added"
            yield f"{seen.shown(key)}: must be at most {words}, {reason}; {key}={min(words, 3)}"


def _model_directory(seen: Composed) -> Any:
    if seen.sound("run"):
        return files.directory(f"{seen.values['run']}/hf")
    return files.directory(seen.values["model.path"]) if seen.sound("model.path") else None


def _tasks(seen: Composed) -> Iterator[str]:
    """The training set and the benchmarks can be built, are large enough, and their prompts fit the model."""
    benchmarks = seen.tree.get("benchmark")
    nodes = {f"benchmark.{name}": node for name, node in (benchmarks or {}).items()}
    nodes |= {"task": seen.tree["task"]} if "task" in seen.tree else {}
    place = _model_directory(seen)
    for path, node in nodes.items():
        if any(key == path or key.startswith(f"{path}.") for key in seen.broken):
            continue
        try:
            task = _build(node)
        except (ValueError, TypeError, LookupError, OSError, ImportError) as error:
            yield f"{path}: {' '.join(str(error).split())}"
            continue
        prompts = [problem.prompt for problem in task.problems[: TRAINING_PROMPTS if path == "task" else None]]
        if path == "task" and seen.sound("prompts_per_step") and len(task.problems) < seen.values["prompts_per_step"]:
            size = len(task.problems)
            yield f"{seen.shown('prompts_per_step')}: must be at most {size}, because the task has {size} problems; prompts_per_step={size}"
        if place is not None:
            yield from _context(seen, path, prompts, place)


def _build(node: Any) -> Any:
    target = node.get("_target_", "") if isinstance(node, Mapping) else ""
    if not target.startswith(TASKS):
        raise ValueError(f"_target_={target or None}: must be a class below {TASKS[:-1]}, so that it can be read without a model")
    module, _, name = target.rpartition(".")
    build: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return build(**{key: value for key, value in node.items() if key not in targets.RESERVED})


def _context(seen: Composed, path: str, prompts: list[str], place: Any) -> Iterator[str]:
    words, positions = files.tokenizer(place), files.positions(place)
    if words is None or positions is None or not prompts:
        return
    longest = max(len(encoding.ids) for encoding in words.encode_batch(prompts))
    room = positions - longest
    if room < 1:
        yield f"{path}: its longest prompt has {longest} tokens, and the model only {positions} positions; choose another model or {path.partition('.')[0]}"
    elif seen.sound("max_new_tokens") and seen.values["max_new_tokens"] > room:
        reason = f"because a prompt of {path} has {longest} tokens and the model {positions} positions"
        yield f"{seen.shown('max_new_tokens')}: must be at most {room}, {reason}; max_new_tokens={room}"
