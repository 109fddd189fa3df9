"""What one value may be: the rules in the `limits` nodes of the configuration, and how they read in a sentence.

It does not know which keys exist.

A rule is a mapping of
    type      int, float, bool or str; a whole number is a fine float, 3.0 is no int and true is neither
    low high  inclusive bounds
    above below   exclusive bounds
    choices   the values that are allowed
    length    the value is a list of so many, and the rest of the rule is about its members
    optional  null is fine, and so is a key that is not there
    because   the reason, told to whoever breaks the rule
    about     the choice that sets this value, named in its place where it was typed
    fix       the override that mends it, where no other value of this key would
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

Rule = Mapping[str, Any]

FIELDS = {"type", "low", "high", "above", "below", "choices", "length", "optional", "because", "about", "fix"}
TYPES = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
NAMES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
LARGEST = 2**63 - 1


def obeys(value: Any, rule: Rule) -> bool:
    """Whether `value` is allowed; nan, the infinities and whole numbers beyond 64 bits never are."""
    if value is None:
        return bool(rule.get("optional"))
    if "length" in rule:
        members = {name: field for name, field in rule.items() if name not in ("length", "optional")}
        return (
            isinstance(value, Sequence)
            and not isinstance(value, str)
            and len(value) == rule["length"]
            and all(obeys(member, members) for member in value)
        )
    if not is_plain(value) or not _has_type(value, rule.get("type")):
        return False
    if "choices" in rule:
        return any(type(value) is type(choice) and value == choice for choice in rule["choices"])
    if isinstance(value, (str, bool)):
        return not _bounds(rule)
    return (
        value >= rule.get("low", -math.inf)
        and value <= rule.get("high", math.inf)
        and value > rule.get("above", -math.inf)
        and value < rule.get("below", math.inf)
    )


def is_plain(value: Any) -> bool:
    """Whether a leaf of the configuration is a value at all: no nan, no infinity, no number beyond 64 bits."""
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or abs(value) <= LARGEST


def allowed(rule: Rule) -> str:
    """The rule as a phrase that follows "must be", with its reason."""
    phrase = _phrase(rule)
    if "length" in rule:
        phrase = f"a list of {rule['length']}, each {phrase}"
    if rule.get("optional"):
        phrase += " or null"
    return f"{phrase}, because {rule['because']}" if "because" in rule else phrase


def example(value: Any, rule: Rule, usual: Any = None) -> Any:
    """A value that obeys: the choice that `value` misspells, else `usual`, else the nearest bound; else None."""
    choices = list(rule.get("choices", ()))
    alike = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    spelled = [choice for choice in choices if alike and str(choice) == alike[0]]
    bounds = [rule.get("high"), rule.get("low")] if _exceeds(value, rule) else [rule.get("low"), rule.get("high")]
    beyond = [rule["above"] + 1] if "above" in rule else []
    for candidate in (*spelled, usual, *choices, *bounds, *beyond):
        if candidate is not None and obeys(candidate, rule):
            return candidate
    return None


def _has_type(value: Any, name: str | None) -> bool:
    if name is None:
        return isinstance(value, (str, int, float))
    return isinstance(value, TYPES[name]) and (name == "bool" or not isinstance(value, bool))


def _bounds(rule: Rule) -> bool:
    return any(name in rule for name in ("low", "high", "above", "below"))


def _exceeds(value: Any, rule: Rule) -> bool:
    return isinstance(value, (int, float)) and "high" in rule and value > rule["high"]


def _phrase(rule: Rule) -> str:
    if "choices" in rule:
        names = [as_override(choice) for choice in rule["choices"]]
        return f"one of {', '.join(names)}" if len(names) > 1 else names[0]
    low, high = rule.get("low"), rule.get("high")
    if low is not None and low == high:
        return as_override(low)
    if low is not None and high is not None:
        bounds = f"from {low} to {high}"
    else:
        words = (("low", "at least"), ("above", "above"), ("high", "at most"), ("below", "below"))
        bounds = " and ".join(f"{word} {rule[name]}" for name, word in words if name in rule)
    kind = NAMES[rule["type"]] if "type" in rule else NAMES["float"] if bounds else "a value"
    return f"{kind} {bounds}".strip()


def as_override(value: Any) -> str:
    """A value as one would type it on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}: {as_override(member)}" for name, member in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(as_override(member) for member in value) + "]"
    return str(value)
