"""Short names of keys: `a.name`, where there is none, stands for the one key `a.<part>.name` that there is.

So a strategy's knobs keep their names whichever of its parts they belong to: exploration.metric is exploration.recipe.metric.
"""

from collections.abc import Iterable


def stands_for(key: str, other: str) -> bool:
    """Whether `other` is `key` with one part more before its last."""
    parent, dot, name = key.rpartition(".")
    longer, _, last = other.rpartition(".")
    return bool(dot) and last == name and longer.rpartition(".")[0] == parent


def full_key(key: str, known: Iterable[str]) -> str:
    """The key that `key` stands for among the known ones; itself where it is one of them, or stands for none or several."""
    known = set(known)
    found = [other for other in known if stands_for(key, other)]
    return found[0] if key not in known and len(found) == 1 else key


def same_key(key: str, other: str) -> bool:
    """Whether two names may be one key, in short or in full."""
    return key == other or stands_for(key, other) or stands_for(other, key)
