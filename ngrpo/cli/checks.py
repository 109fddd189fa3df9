"""Whether a composed configuration can be run at all, found out from YAML, JSON and tokenizer files in under a second.

Every problem is one line: `key=value: what is allowed, because ...; the override that fixes it`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ngrpo import targets
from ngrpo.cli import fit, matched, presets
from ngrpo.cli.composition import flat
from ngrpo.cli.conf import OF_NO_JOB
from ngrpo.cli.matched import MATCHED
from ngrpo.cli.rules import Rule, allowed, as_override, example, is_plain, malformed, obeys, printable, rule_of
from ngrpo.targets import SettingsError

INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")
ASKS = re.compile(r"\$\{\w+:")
REFUSED = "is refused here, because"  # a strategy that is fine by itself and has no meaning beside another choice
BUILT = ("exploration", "algorithm", "engine", "task")  # nodes that become objects
OF_STRATEGIES = ("roles", "trainable")  # keys that the file of a strategy sets, and nobody else


@dataclass
class Settings:
    """A configuration as the checks see it. `invalid` collects keys whose values no later check should look at.

    reference: what the YAML files alone compose to under the same choices; lines offer its values.
    given: dotted key -> value as typed, so that a line repeats what its reader wrote.
    """

    config: DictConfig
    reference: DictConfig | None = None
    given: Mapping[str, str] = field(default_factory=dict)
    invalid: set[str] = field(default_factory=set)

    @cached_property
    def unresolved(self) -> dict[str, Any]:
        """Leaves by dotted key, interpolations as they stand."""
        return flat(self.config)

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The leaves of the YAML files alone, by dotted key."""
        return {} if self.reference is None else flat(_tree(self.reference))

    @cached_property
    def tree(self) -> dict[str, Any]:
        """Plain mappings and lists, interpolations resolved. OmegaConf's error passes where one leads nowhere."""
        return _tree(self.config)

    @cached_property
    def values(self) -> dict[str, Any]:
        """The leaves of the tree by dotted key."""
        return flat(self.tree)

    @cached_property
    def rules(self) -> dict[str, Rule]:
        """What the YAML files say of keys, also of those that stand for another: of `k`, and so of `exploration.k: ${k}`."""
        node = self.config.get("schema")
        plain: Any = OmegaConf.to_container(node) if isinstance(node, DictConfig) else {}
        rules: dict[str, Rule] = {str(key): rule for key, rule in plain.items()} if isinstance(plain, dict) else {}
        for key, value in (self.unresolved if self.reference is None else flat(self.reference)).items():
            source = INTERPOLATION.fullmatch(value) if isinstance(value, str) else None
            if source and source[1] in rules and self.unresolved.get(key) != value:
                rules.setdefault(key, rules[source[1]])
        return rules

    @property
    def only_planned(self) -> bool:
        """Whether it is only counted what a run would need."""
        return "plan" in self.tree

    def get(self, key: str) -> Any:
        """Its value; None also where it is invalid, or nothing has the key."""
        return None if key in self.invalid else self.values.get(key)

    def override(self, key: str) -> str:
        """`key=value`, as typed where it was typed; what a file leaves to the machine or a launcher as it came out."""
        value = (self.values if ASKS.match(str(self.unresolved.get(key))) else self.unresolved).get(key)
        return f"{key}={printable(self.given.get(key, as_override(value)))}"

    def problem(self, key: str, rule: str, fix: str) -> str:
        """A line about the value of a key: what is allowed, and the override that mends it."""
        return f"{self.override(key)}: {rule}; {fix}"

    def too_large(self, key: str, most: int, reason: str, fix: int | None = None) -> str:
        """The line about a number above `most`; a `fix` is offered where the largest is not what one would want."""
        return self.problem(key, f"must be at most {most}, {reason}", f"{key}={most if fix is None else fix}")


def check(config: DictConfig) -> None:
    """For the jobs of a multirun, which compose their own configuration. Raises SettingsError with all problems."""
    settings = Settings(config)
    if found := problems(settings) or list(fit.tasks(settings)):
        raise SettingsError(found)


def problems(settings: Settings) -> list[str]:
    """All problems, one line each and without a leading `error:`, but for those of the tasks (`fit.tasks`), which are built
    to find them; an empty list if there are none."""
    match = settings.unresolved.get(matched.KEY)
    if match is not None and (refusal := matched.refusal(match)):  # before its node is looked for
        return [f"{settings.override(matched.KEY)}: {refusal}"]
    try:
        if line := presets.missing(settings):  # first and alone: what else is wrong can be mended when that is here
            return [line]
        found = [line for examine in (_values, _matched, _targets, *fit.CHECKS) for line in examine(settings)]
    except (OmegaConfBaseException, RecursionError) as error:  # an interpolation
        key = str(getattr(error, "full_key", None) or next((k for k, v in settings.given.items() if "${" in v), "conf"))
        default = None if settings.reference is None else flat(settings.reference).get(key)
        fix = "give the value itself" if default is None else f"{key}={as_override(default)}"
        return [settings.problem(key, "leads nowhere", fix)]
    return list(dict.fromkeys(found))


def notes(settings: Settings) -> list[str]:
    """What can be run but hardly means what it says, one line each. There must be no problems."""
    found, values, override = [], settings.values, settings.override
    clips = [key for key in settings.given if key.startswith("algorithm.loss.") and "clip" in key]
    if clips and values["algorithm.inner_epochs"] == values["algorithm.mini_batches"] == 1:
        found.append(f"{override(clips[0])} acts only after a first update; algorithm.mini_batches=2 makes a second")
    warmup = values.get("optimizer.warmup_steps")
    if warmup and values["optimizer.schedule"] == "constant":
        found.append(f"{override('optimizer.warmup_steps')} has no effect under optimizer.schedule=constant")
    elif warmup and warmup >= values["steps"]:
        found.append(f"{override('optimizer.warmup_steps')}: {override('steps')} end before the warm-up does")
    return found


def _values(settings: Settings) -> Iterator[str]:
    """Each value by itself: given at all, of the type of its default, and as the schema of its key wants it."""
    for key, rule in settings.rules.items():
        if refusal := malformed(rule):
            yield f"schema.{key}={printable(str(rule))}: is no rule, {refusal}; correct the file that has it"
            return
    for key, value in settings.values.items():
        if key not in settings.unresolved:  # of a node that stands for another, which has rules of its own
            continue
        rule, source = settings.rules.get(key, {}), INTERPOLATION.fullmatch(str(settings.unresolved[key]))
        if value == "???":
            line = f"{key}: has no value and needs one; {key}=<value>"
        elif key in OF_STRATEGIES:
            line = _of_strategy(settings, key, rule)
        elif source and source[1] in settings.values and not rule:
            continue  # the line is about the key that it stands for
        else:
            line = _value(settings, key, rule_of(settings.defaults.get(key), rule))
        if line:
            settings.invalid.add(key)
            yield line


def _value(settings: Settings, key: str, rule: Rule) -> str | None:
    value, default = settings.values[key], settings.defaults.get(key)
    underflows = _underflows(settings.given.get(key, ""), value)
    if obeys(value, rule) and not underflows:
        return None
    must = f"{allowed(rule)}{' (this one is rounded to 0)' if underflows else ''}"
    if isinstance(value, int) and not is_plain(value):
        must = "a whole number of at most 64 bits"
    null = default is None and obeys(None, rule)
    fix = None if null and key in settings.defaults else example(value, rule, default)
    text = "<value>" if fix is None and not null else as_override(fix)
    return settings.problem(key, f"must be {must}", f"{key}={text}")


def _of_strategy(settings: Settings, key: str, rule: Rule) -> str | None:
    if key in settings.given:
        return settings.problem(key, "is what the file of a strategy says of it", "leave it out")
    chosen = settings.override("exploration") if "exploration" in settings.given else "this exploration"
    fits = obeys(settings.values[key], rule)
    return None if fits else f"{chosen}: {REFUSED} {rule['description']}; exploration=token_sampling"


def _underflows(text: str, value: Any) -> bool:
    """1e-999 is read as 0, which is not what was written."""
    digits = re.match(r"[-+]?([\d._]+)", text)
    return type(value) in (int, float) and value == 0 and bool(digits and digits[1].strip("0._"))


def _matched(settings: Settings) -> Iterator[str]:
    """What the strategy that this one is matched to is set to, by the rules of its own file."""
    if matched.KEY in settings.unresolved:
        given = {key.removeprefix(f"{MATCHED}."): text for key, text in settings.given.items()}
        yield from _values(Settings(matched.config_of(settings.config), given=given))


def _targets(settings: Settings) -> Iterator[str]:
    """Nodes with a `_target_` that may not be built, or with another one than their file names."""
    for name in (name for name in BUILT if isinstance(settings.tree.get(name), (list, str, int, float))):
        settings.invalid.add(name)
        yield settings.problem(name, "must be a node with a _target_", "correct the file that has it")
    for path, node in targets.nodes(settings.tree):
        target, key = node["_target_"], f"{path}._target_"
        default = settings.defaults.get(key) if key in settings.unresolved else None
        refusal = targets.refusal(target, path)
        if not refusal and default not in (None, target):
            refusal = f"a file names the class of {path}, because its other keys belong to it"
        if refusal:
            settings.invalid.update((key, path))
            fix = "leave it out" if default in (None, target) else f"{key}={default}"
            yield f"{key}={printable(str(target))}: {refusal}; {fix}"


def _tree(config: DictConfig) -> dict[str, Any]:
    own = {str(name): node for name, node in config.items_ex(resolve=False) if name not in OF_NO_JOB}
    content = OmegaConf.to_container(OmegaConf.create(own), resolve=True)
    assert isinstance(content, dict)
    return {str(name): node for name, node in content.items()}
