"""Values looked at one by one: resolved, within their limits, of the right kind, built only from what may be built.

It does not compare one value with another.
"""

import re
from collections.abc import Iterator
from typing import Any

from ngrpo import targets
from ngrpo.cli.settings.composed import INTERPOLATION, UNRESOLVED, Composed, printable
from ngrpo.cli.settings.limits import Rule, allowed, as_override, example, is_plain, obeys

NO_VALUE = (None, UNRESOLVED, "???")
ROOMS = {  # where the class of a node must come from; a task is even built before the run, without torch
    "task": "ngrpo.tasks.",
    "benchmark": "ngrpo.tasks.",
    "exploration": "ngrpo.exploration.",
    "evaluation.exploration": "ngrpo.exploration.",
    "engine": "ngrpo.rollout.engines.",
    "reward": "ngrpo.tasks.rewards.",
}
PARTS = {"grader": "ngrpo.grading."}  # of a task

REFUSED = "is refused here, because"  # a choice that is fine by itself and has no meaning beside another one


def unresolved(seen: Composed) -> Iterator[str]:
    """Interpolations that lead nowhere, and values that one has to give."""
    for key, value in seen.values.items():
        usual = seen.usual.get(key)
        if value is UNRESOLVED:
            fix = "give the value itself" if usual in NO_VALUE else f"{key}={as_override(usual)}"
            yield f"{seen.shown(key)}: leads nowhere; {fix}"
        elif value == "???":
            yield f"{key}: has no value and needs one; {key}=<value>"
        else:
            continue
        seen.broken.add(key)


def limits(seen: Composed) -> Iterator[str]:
    """Values that break their rule, and keys with a rule that are gone."""
    for key, rule in seen.rules.items():
        if key in seen.broken:
            continue
        if "about" in rule and key in seen.given:
            seen.broken.add(key)
            yield f"{seen.shown(key)}: is what the file of a choice says of it; leave it out"
        elif key not in seen.values:
            if not rule.get("optional") and _belongs(seen, key):
                seen.broken.add(key)
                yield f"{key}: is missing; {key}={as_override(example(None, rule))}"
        elif not obeys(seen.values[key], rule) or _underflows(seen, key):
            seen.broken.add(key)
            yield _broken(seen, key, rule)


def kinds(seen: Composed) -> Iterator[str]:
    """Values without a rule: no nan, and of the kind that the YAML files give them."""
    for key, value in seen.values.items():
        source = INTERPOLATION.fullmatch(str(seen.raw[key]))
        if key in seen.broken or key in seen.rules or (source and source[1] in seen.values):
            continue
        usual = seen.usual.get(key)
        known = usual not in NO_VALUE
        plain = all(is_plain(member) for member in (value if isinstance(value, list) else [value]))
        if plain and (not known or value is None or _fits(value, usual)):
            continue
        seen.broken.add(key)
        fix = f"; {key}={as_override(usual)}" if known else ""
        yield f"{seen.shown(key)}: must be {_kind(usual) if known else 'a finite number'}{fix}"


def targets_allowed(seen: Composed) -> Iterator[str]:
    """Nodes with a `_target_` that may not be built, or not with these arguments."""
    for path, node in targets.nodes(seen.tree):
        target, key = node["_target_"], f"{path}._target_"
        room = next((room for place, room in ROOMS.items() if path == place or path.startswith(f"{place}.")), "")
        room = PARTS.get(path.rpartition(".")[2], room) if room == "ngrpo.tasks." else room
        refusal = _refusal(room, target)
        if refusal:
            seen.broken.update((key, path))
            fix = targets.nearest(target) if str(target).startswith(room) else None
            fix = fix if fix != target else None
            usual = seen.usual.get(key)
            fix = fix or (usual if usual != target else None)
            yield f"{key}={printable(str(target))}: {refusal}; {f'{key}={fix}' if fix else 'leave it out'}"
        else:
            for line in _arguments(seen, path, node):
                seen.broken.add(path)
                yield line


def _refusal(room: str, target: Any) -> str | None:
    """Why `target` may not be used in a place whose classes come from `room`, as a phrase."""
    refusal, users, rewards = targets.refusal(target), targets.is_users(str(target)), room == ROOMS["reward"]
    if rewards and not users and not str(target).startswith(room):
        return f"only functions of {room[:-1]} and of packages that NGRPO_REWARDS names (a variable of the shell) may be used"
    if refusal:
        return refusal
    if users and not rewards:
        return "may stand below reward only"
    if not users and not target.startswith(room):
        return f"must be found below {room[:-1]}"
    return targets.reward_refusal(target) if rewards else None


def _arguments(seen: Composed, path: str, node: Any) -> Iterator[str]:
    signature, name = targets.signature(node["_target_"]), node["_target_"].rpartition(".")[2]
    given = set(node) - targets.RESERVED
    for extra in sorted(given - set(signature.takes)) if signature.takes is not None else ():
        yield f"{seen.shown(f'{path}.{extra}')}: {name} takes {', '.join(signature.takes or ())}; ~{path}.{extra}"
    given |= set(signature.takes[:3]) if path.startswith("reward.") and signature.takes else set()
    for lacking in [] if node.get("_partial_") else [need for need in signature.needs if need not in given]:
        yield f"{path}.{lacking}: is missing, {name} needs it; +{path}.{lacking}=<value>"


def _broken(seen: Composed, key: str, rule: Rule) -> str:
    about = rule.get("about", key)
    if about != key:
        choice = seen.shown(about) if about in seen.given else f"this {about}"
        return f"{choice}: {REFUSED} {rule['because']}; {rule['fix']}"
    return f"{seen.shown(key)}: must be {_why(seen, key, rule)}; {rule.get('fix') or f'{key}={_fix(seen, key, rule)}'}"


def _belongs(seen: Composed, key: str) -> bool:
    """Whether a missing key should be there: its node is, and is not one whose signature is checked instead."""
    parent = key.rpartition(".")[0]
    inside = not parent or any(name.startswith(f"{parent}.") for name in seen.values)
    return inside and f"{parent}._target_" not in seen.values


def _why(seen: Composed, key: str, rule: Rule) -> str:
    value = seen.values[key]
    if isinstance(value, int) and not is_plain(value):
        return "a whole number of at most 64 bits"
    return f"{allowed(rule)} (this one is rounded to 0)" if _underflows(seen, key) else allowed(rule)


def _fix(seen: Composed, key: str, rule: Rule) -> str:
    usual = seen.usual.get(key)
    if usual is None and key in seen.usual and obeys(None, rule):
        return "null"
    fix = example(seen.values[key], rule, usual)
    return "<value>" if fix is None else as_override(fix)


def _underflows(seen: Composed, key: str) -> bool:
    """1e-999 is read as 0, which is not what was written."""
    digits = re.match(r"[-+]?([\d._]+)", seen.given.get(key, ""))
    value = seen.values[key]
    return type(value) in (int, float) and value == 0 and bool(digits and digits[1].strip("0._"))


def _fits(value: Any, usual: Any) -> bool:
    if isinstance(usual, list):
        return isinstance(value, list) and (not usual or all(_fits(member, usual[0]) for member in value))
    return type(value) is type(usual) or (isinstance(usual, float) and type(value) is int)


def _kind(usual: Any) -> str:
    if isinstance(usual, list):
        return f"a list, each {_kind(usual[0])}" if usual else "a list"
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}
    return names.get(type(usual), "a mapping")
