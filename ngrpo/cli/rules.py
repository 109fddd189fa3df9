"""What one value may be, in the words of JSON Schema, and how that reads in a sentence.

The YAML files say it in their `schema` nodes: dotted key -> a schema, whose `description` is the reason given to whoever
breaks it. A key without a type has that of its default; null has to be allowed by name, as in type: [integer, 'null'].
"""

import difflib
import math
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from jsonschema.validators import extend

Rule = Mapping[str, Any]

KINDS = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "a text"}
KINDS |= {"array": "a list", "object": "a mapping"}
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
LARGEST = 2**63 - 1


def _is_integer(_: Any, value: Any) -> bool:
    return type(value) is int and abs(value) <= LARGEST  # 3.0 is none, and beyond 64 bits torch takes none


def _is_number(_: Any, value: Any) -> bool:
    return _is_integer(_, value) or (type(value) is float and math.isfinite(value))


_CHECKER = Draft202012Validator.TYPE_CHECKER.redefine_many({"integer": _is_integer, "number": _is_number})
VALIDATOR = extend(Draft202012Validator, type_checker=_CHECKER)
TYPE = {"enum": [*KINDS, "null"]}
# What a rule may say: what a sentence can be made of. Other words of JSON Schema may even name a file or an address to read.
RULE = VALIDATOR({
    "type": "object",
    "minProperties": 1,
    "additionalProperties": False,
    "properties": {
        "type": {"anyOf": [TYPE, {"type": "array", "items": TYPE, "minItems": 1}]},
        "enum": {"type": "array", "minItems": 1},
        **{name: {"type": "number"} for name in BOUNDS},
        **{name: {"type": "integer"} for name in ("minLength", "minItems", "maxItems")},
        "items": {"$ref": "#"},
        "description": {"type": "string"},
    },
})  # fmt: skip


def rule_of(default: Any, rule: Rule) -> Rule:
    """The whole rule of a key: what its file says, and the type of its default where that names none."""
    if "type" in rule or type(default) not in TYPES:
        return rule
    members = {"items": rule_of(default[0], {})} if isinstance(default, list) and default else {}
    return {"type": TYPES[type(default)], **members, **rule}


def malformed(rule: Any) -> str | None:
    """Why this is no rule, as a phrase; None where it is one."""
    error = best_match(RULE.iter_errors(rule))
    return error and ": ".join([*map(str, error.path), error.message])


def obeys(value: Any, rule: Rule) -> bool:
    """Whether `value` is allowed; nan, the infinities and whole numbers beyond 64 bits never are."""
    return is_plain(value) and VALIDATOR(rule).is_valid(value)


def is_plain(value: Any) -> bool:
    """Whether all numbers in a leaf of the configuration are finite, whole ones of at most 64 bits."""
    if isinstance(value, list):
        return all(map(is_plain, value))
    return not isinstance(value, (int, float)) or isinstance(value, bool) or _is_number(None, value)


def allowed(rule: Rule) -> str:
    """The rule as a phrase that follows "must be", with its reason."""
    null = " or null" if {"null"} < set(_types(rule)) or None in rule.get("enum", ()) else ""
    return f"{_phrase(rule)}{null}" + (f", because {rule['description']}" if "description" in rule else "")


def example(value: Any, rule: Rule, usual: Any = None) -> Any:
    """A value that obeys: the choice that `value` misspells, else `usual`, else the nearest bound; else None."""
    choices = list(rule.get("enum", ()))
    alike = difflib.get_close_matches(str(value), map(str, choices), n=1)
    bounds = [rule[name] for name in ("minimum", "maximum") if name in rule]
    if _is_number(None, value) and value > rule.get("maximum", math.inf):
        bounds.reverse()
    beyond = [rule["exclusiveMinimum"] + 1] if "exclusiveMinimum" in rule else []
    spelled = [choice for choice in choices if alike and str(choice) == alike[0]]
    candidates = (*spelled, usual, *choices, *bounds, *beyond)
    return next((found for found in candidates if found is not None and obeys(found, rule)), None)


def _types(rule: Rule) -> list[str]:
    named = rule.get("type", [])
    return [str(name) for name in named] if isinstance(named, list) else [str(named)]


def _phrase(rule: Rule) -> str:
    if "enum" in rule:
        names = [as_override(choice) for choice in rule["enum"] if choice is not None]
        return f"one of {', '.join(names)}" if len(names) > 1 else names[0]
    if "items" in rule:
        size = f" of {rule['minItems']}" if "minItems" in rule else ""
        return f"a list{size}, each {_phrase(rule['items'])}"
    low, high = rule.get("minimum"), rule.get("maximum")
    if low is not None and low == high:
        return as_override(low)
    bounds = " and ".join(f"{word} {rule[name]}" for name, word in BOUNDS.items() if name in rule)
    if low is not None and high is not None and "exclusiveMinimum" not in rule:
        bounds = f"from {low} to {high}"
    if _types(rule) == ["null"]:
        return "null"
    kinds = " or ".join(KINDS[name] for name in _types(rule) if name != "null")
    return f"{kinds or ('a number' if bounds else 'a finite number')} {bounds}".strip()


def as_override(value: Any) -> str:
    """A value as one would type it on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}: {as_override(member)}" for name, member in value.items()) + "}"
    return f"[{','.join(map(as_override, value))}]" if isinstance(value, (list, tuple)) else str(value)


def printable(text: str, most: int = 100) -> str:
    """Text as at most so many characters of one line, with control characters escaped; what is too long loses its middle,
    because a line ends in the override that mends it."""
    text = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return text if len(text) <= most else f"{text[: most // 2]}...{text[len(text) - most // 2 + 3 :]}"
