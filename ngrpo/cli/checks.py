"""Whether a composed configuration can be run at all, told from YAML, json and tokenizer files in under a second.

Every problem is one line: `key=value: what is allowed, because ...; the override that fixes it`.
"""

import math
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
from ngrpo.cli.rules import Rule, allowed, as_override, example, is_plain, obeys, printable, rule_of, wrong_words
from ngrpo.targets import SettingsError

INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")
ASKS = re.compile(r"\$\{\w+:")
REFUSED = "is refused here, because"  # a strategy that is fine by itself and has no meaning beside another choice
BUILT = ("exploration", "algorithm", "engine", "task")  # nodes that become objects
OF_STRATEGIES = ("roles", "trainable")  # keys that the file of a strategy sets, and nobody else


@dataclass
class Composed:
    """A configuration as the checks see it. `broken` collects keys whose values no later check should look at.

    reference: what the YAML files alone compose to under the same choices; lines offer its values.
    given: dotted key -> value as typed, so that a line repeats what its reader wrote.
    """

    config: DictConfig
    reference: DictConfig | None = None
    given: Mapping[str, str] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)

    @cached_property
    def raw(self) -> dict[str, Any]:
        """Leaves by dotted key, interpolations as they stand."""
        return flat(self.config)

    @cached_property
    def usual(self) -> dict[str, Any]:
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
    def words(self) -> dict[str, Rule]:
        """What the YAML files say of keys, also of those that stand for another: of `k`, and so of `exploration.k: ${k}`."""
        node = self.config.get("schema")
        plain: Any = OmegaConf.to_container(node) if isinstance(node, DictConfig) else {}
        words: dict[str, Rule] = {str(key): rule for key, rule in plain.items()} if isinstance(plain, dict) else {}
        for key, value in (self.raw if self.reference is None else flat(self.reference)).items():
            source = INTERPOLATION.fullmatch(value) if isinstance(value, str) else None
            if source and source[1] in words and self.raw.get(key) != value:
                words.setdefault(key, words[source[1]])
        return words

    @property
    def plans(self) -> bool:
        """Whether it is only counted what a run would need."""
        return "plan" in self.tree

    def shown(self, key: str) -> str:
        """`key=value`, as typed where it was typed; what a file leaves to the machine or a launcher as it came out."""
        usual = (self.values if ASKS.match(str(self.raw.get(key))) else self.raw).get(key)
        value = self.given[key] if key in self.given else as_override(usual)
        return f"{key}={printable(value)}"

    def sound(self, *keys: str) -> bool:
        """Whether all of these keys have a value and none of them is broken."""
        return all(self.values.get(key) is not None and key not in self.broken for key in keys)


def check(config: DictConfig) -> None:
    """For the jobs of a multirun, which compose their own configuration. Raises SettingsError with all problems."""
    found = problems(Composed(config))
    if found:
        raise SettingsError(found)


def problems(seen: Composed) -> list[str]:
    """All problems, one line each and without a leading `error:`; an empty list if it can be run."""
    match = seen.raw.get(matched.KEY)
    if match is not None and (refusal := matched.refusal(match)):  # before its node is looked for
        return [f"{seen.shown(matched.KEY)}: {refusal}"]
    try:
        if line := presets.missing(seen):  # first and alone: what else is wrong can be mended when that is here
            return [line]
        found = [line for examine in (_values, _matched, _targets, *fit.CHECKS) for line in examine(seen)]
        found = found or list(fit.tasks(seen))  # which may import a user's package
    except (OmegaConfBaseException, RecursionError) as error:  # an interpolation
        key = str(getattr(error, "full_key", None) or next((k for k, v in seen.given.items() if "${" in v), "conf"))
        usual = {} if seen.reference is None else flat(seen.reference)
        fix = "give the value itself" if usual.get(key) is None else f"{key}={as_override(usual[key])}"
        return [f"{seen.shown(key)}: leads nowhere; {fix}"]
    return list(dict.fromkeys(found))


def notes(seen: Composed) -> list[str]:
    """What can be run but hardly means what it says, one line each. There must be no problems."""
    found = []
    updates = [seen.values.get(f"algorithm.{name}") for name in ("inner_epochs", "mini_batches")]
    clips = [key for key in seen.given if key.startswith("algorithm.loss.") and "clip" in key]
    if clips and updates == [1, 1]:
        found.append(f"{seen.shown(clips[0])} acts only after a first update; algorithm.mini_batches=2 makes a second")
    warmup, schedule = seen.values.get("optimizer.warmup_steps"), seen.values.get("optimizer.schedule")
    if warmup and schedule == "constant":
        found.append(f"{seen.shown('optimizer.warmup_steps')} has no effect under optimizer.schedule=constant")
    elif warmup and warmup >= seen.values.get("steps", math.inf):
        found.append(f"{seen.shown('optimizer.warmup_steps')}: {seen.shown('steps')} end before the warm-up does")
    return found


def _values(seen: Composed) -> Iterator[str]:
    """Each value by itself: given at all, of the type of its default, and as the schema of its key wants it."""
    for key, words in seen.words.items():
        if refusal := wrong_words(words):
            yield f"schema.{key}={printable(str(words))}: is no rule, {refusal}; correct the file that has it"
            return
    for key, value in seen.values.items():
        if key not in seen.raw:  # of a node that stands for another, which has rules of its own
            continue
        usual, words = seen.usual.get(key), seen.words.get(key, {})
        source = INTERPOLATION.fullmatch(str(seen.raw[key]))
        if value == "???":
            line = f"{key}: has no value and needs one; {key}=<value>"
        elif key in OF_STRATEGIES:
            line = _of_strategy(seen, key, words)
        elif source and source[1] in seen.values and not words:
            continue  # told of the key that it stands for
        else:
            line = _value(seen, key, rule_of(usual, words))
        if line:
            seen.broken.add(key)
            yield line


def _value(seen: Composed, key: str, rule: Rule) -> str | None:
    value, usual = seen.values[key], seen.usual.get(key)
    underflows = _underflows(seen.given.get(key, ""), value)
    if obeys(value, rule) and not underflows:
        return None
    must = f"{allowed(rule)}{' (this one is rounded to 0)' if underflows else ''}"
    if isinstance(value, int) and not is_plain(value):
        must = "a whole number of at most 64 bits"
    fix = None if usual is None and key in seen.usual and obeys(None, rule) else example(value, rule, usual)
    unknown = fix is None and not (usual is None and obeys(None, rule))
    return f"{seen.shown(key)}: must be {must}; {key}={'<value>' if unknown else as_override(fix)}"


def _of_strategy(seen: Composed, key: str, words: Rule) -> str | None:
    if key in seen.given:
        return f"{seen.shown(key)}: is what the file of a strategy says of it; leave it out"
    chosen = seen.shown("exploration") if "exploration" in seen.given else "this exploration"
    good = obeys(seen.values[key], words)
    return None if good else f"{chosen}: {REFUSED} {words['description']}; exploration=token_sampling"


def _underflows(text: str, value: Any) -> bool:
    """1e-999 is read as 0, which is not what was written."""
    digits = re.match(r"[-+]?([\d._]+)", text)
    return type(value) in (int, float) and value == 0 and bool(digits and digits[1].strip("0._"))


def _matched(seen: Composed) -> Iterator[str]:
    """What the strategy that this one is matched to is set to, by the rules of its own file."""
    if matched.KEY in seen.raw:
        given = {key.removeprefix(f"{MATCHED}."): text for key, text in seen.given.items()}
        yield from _values(Composed(matched.config_of(seen.config), given=given))


def _targets(seen: Composed) -> Iterator[str]:
    """Nodes with a `_target_` that may not be built, or with another one than their file names."""
    for name in (name for name in BUILT if isinstance(seen.tree.get(name), (list, str, int, float))):
        seen.broken.add(name)
        yield f"{seen.shown(name)}: must be a node with a _target_; correct the file that has it"
    for path, node in targets.nodes(seen.tree):
        target, key = node["_target_"], f"{path}._target_"
        usual = seen.usual.get(key) if key in seen.raw else None
        refusal = targets.refusal(target, path)
        if not refusal and usual is not None and target != usual:
            refusal = f"a file names the class of {path}, because its other keys belong to it"
        if refusal:
            seen.broken.update((key, path))
            fix = usual if usual != target else None
            yield f"{key}={printable(str(target))}: {refusal}; {f'{key}={fix}' if fix else 'leave it out'}"


def _tree(config: DictConfig) -> dict[str, Any]:
    own = {str(name): node for name, node in config.items_ex(resolve=False) if name not in OF_NO_JOB}
    content = OmegaConf.to_container(OmegaConf.create(own), resolve=True)
    assert isinstance(content, dict)
    return {str(name): node for name, node in content.items()}
