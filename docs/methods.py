"""Writes docs/methods.md: what every method computes, its source, knobs, cost and tests, and which preset uses it.

python docs/methods.py

All of it is read from where it is said first: files below conf/, docstrings, names of tests, committed measurements.
"""

import ast
import json
import re
import statistics
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir

from ngrpo import plans, targets
from ngrpo.cli.identity import register_resolvers
from ngrpo.cli.matched import CONF
from ngrpo.cli.rules import allowed, rule_of

ROOT = CONF.parent
PAGE = Path(__file__).with_suffix(".md")
GROUPS = {
    "exploration": "Strategies",
    "algorithm": "Algorithms",
    "reward_shaping": "Controls of rewards",
}
INTRODUCTION = """# Methods

Made by `python docs/methods.py` from the files below conf/, docstrings, names of tests and committed measurements: mend those,
not this page.

Every strategy passes the density contract (`python -m ngrpo.contract`: 200,000 draws at three temperatures against its
log-probability) and the replay of its rollouts. Every pair of a strategy and an algorithm takes a training step or is
refused with the reason. Every algorithm has the same gradient whatever its micro-batches. What a method was held against
besides stands under it.
"""
SHOWN = 6  # tests of a method


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for group, title in GROUPS.items():
        files = sorted((CONF / group).glob("*.yaml"))
        counted = Counter(target for path in files for target in set(targets_of(path)))
        parts.append(f"## {title}\n")
        parts += [method(group, path, counted) for path in files]
        shared = sorted(target for target, count in counted.items() if count > 1)
        parts += [f"### What several {title.lower()} have in common\n"] * bool(shared)
        parts += [f"#### {short(target)}\n\n{quoted(docstring(target))}\n" for target in shared]
    return "\n".join(parts)


def method(group: str, path: Path, counted: Counter[str]) -> str:
    """The section of one file."""
    name, (command, said) = path.stem, head(path)
    lines = [f"### {name}\n", *([said, ""] if said else []), f"`{command}`", ""]
    for target in dict.fromkeys(targets_of(path)):
        if counted[target] > 1:
            lines += [f"[`{short(target)}`](#{anchor(target)}) is shared.", ""]
        else:
            lines += [f"`{short(target)}`:", "", quoted(docstring(target)), ""]
    if rows := list(knobs(group, path)):
        lines += ["| knob | default | what it may be | |", "|---|---|---|---|", *rows, ""]
    lines += [f"- Cost: {cost(group, name)}"]
    lines += [f"- Held against: {found}" for found in [evidence(name, targets_of(path), counted)] if found]
    lines += [f"- Presets: {found}" for found in [presets(group, name)] if found]
    return "\n".join(lines) + "\n"


def head(path: Path) -> tuple[str, str]:
    """(the command, what else is said) of the comments that a file begins with."""
    lines = path.read_text("utf-8").splitlines()
    comments = [line[2:] for line in lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")]]
    said = [line for line in comments if not line.startswith(("@package", "python "))]
    return next(line for line in comments if line.startswith("python ")), cell(" ".join(said))


@cache
def content_of(path: Path) -> dict[str, Any]:
    """What a file says; every method asks every preset."""
    return yaml.safe_load(path.read_text("utf-8")) or {}


def files_of(path: Path) -> list[Path]:
    """A file after the parts that it is put together from."""
    parts = [part for part in content_of(path).get("defaults", ()) if isinstance(part, str)]
    found = [path.parent / f"{part}.yaml" for part in parts if part != "_self_"]
    return [*(inner for part in found for inner in files_of(part)), path]


@cache
def leaves_of(path: Path) -> list[tuple[str, Any, str]]:
    """(dotted key, value, comment) of all that a file sets."""
    text = path.read_text("utf-8")
    lines = text.splitlines()

    def walk(node: yaml.Node | None, key: str) -> Iterator[tuple[str, Any, str]]:
        if not isinstance(node, yaml.MappingNode):
            at = node.start_mark.line if node else 0
            comments = [lines[at].partition(" # ")[2]]
            while comments[0] and at + 1 < len(lines) and re.match(r"\s{8,}# ", lines[at + 1]):
                at += 1
                comments.append(lines[at].strip("# "))
            yield key, yaml.safe_load(yaml.serialize(node)) if node else None, " ".join(comments).strip()
        else:
            for name, child in node.value:
                yield from walk(child, f"{key}.{name.value}" if key else name.value)

    return list(walk(yaml.compose(text, yaml.SafeLoader), ""))


def knobs(group: str, path: Path) -> Iterator[str]:
    """A row of the table for every setting of a file and its parts."""
    content = [leaf for file in files_of(path) for leaf in leaves_of(file)]
    rules: dict[str, Any] = {}
    for file in files_of(path):
        rules |= content_of(file).get("schema", {})
    shown = {key: (value, comment) for key, value, comment in content if is_knob(key, value)}
    for key, (value, comment) in shown.items():
        rule = rule_of(value, rules.get(key, {}))
        default = json.dumps(value) if not isinstance(value, str) else value
        yield f"| `{key}` | `{default}` | {cell(allowed(rule))} | {cell(comment)} |"


def is_knob(key: str, value: Any) -> bool:
    """Whether a leaf of a file is something to set, and not structure, a rule or the name of another key."""
    structure = key.startswith(("schema.", "defaults", "roles", "trainable")) or key.rpartition(".")[2].startswith("_")
    return not structure and value != {} and not (isinstance(value, (str, list)) and "${" in str(value))


def targets_of(path: Path) -> list[str]:
    """The classes and functions that a file and its parts name; a later file's stand in for those of a part's."""
    found = {k: v for file in files_of(path) for k, v, _ in leaves_of(file) if k.endswith("_target_") and v != "???"}
    return list(found.values())


@cache
def docstring(target: str) -> str:
    """What a class or function says of itself, without importing it."""
    source, name = targets.source_file(target), target.rpartition(".")[2]
    assert source is not None
    tree = ast.parse(source.read_text("utf-8"))
    node = next(node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name)
    return ast.get_docstring(node) or ast.get_docstring(tree) or ""


def cost(group: str, name: str) -> str:
    """What was measured, or else what is counted."""
    if group == "exploration":
        return "; ".join(measured(name)) or "its part of a decode step is in no committed measurement yet"
    if group == "reward_shaping":
        return "none: it replaces numbers"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("plan", [f"algorithm={name}"])
    work, more = plans.work(config), config.algorithm.max_resamples
    passes = f"{work.learning_passes} learning and {work.scoring_passes} scoring pass{'es' * (work.scoring_passes != 1)} a step"
    return passes + (f", up to {more} more draws of prompts" if more else "")


@cache
def measurements() -> list[tuple[str, dict[str, Any]]]:
    """(machine, entry) of all committed measurements of strategies."""
    paths = sorted(ROOT.glob("benchmarks/results/*/strategies.json"))
    read = [json.loads(path.read_text("utf-8")) for path in paths]
    return [(content["context"]["hardware"]["cpu"], entry) for content in read for entry in content["measured"]]


def measured(name: str) -> Iterator[str]:
    """Sentences on the time of decoding beside that of token sampling, the median of its repeats."""
    for machine, entry in measurements():
        if entry["what"] == name and entry["model"] in ("tiny", "50m"):
            pairs = zip(entry["seconds"], entry["baseline_seconds"], strict=True)
            ratio = statistics.median(seconds / baseline for seconds, baseline in pairs)
            yield f"{100 * (ratio - 1):+.0f} % of the time of decoding ({entry['model']} model, {machine.replace('(R)', '')})"


@cache
def tests() -> list[tuple[str, str, str]]:
    """(file, name, text) of all tests of strategies, algorithms and training."""
    found = []
    for path in sorted(ROOT.glob("tests/*/test_*.py")):
        if path.parent.name in ("exploration", "algorithm", "training"):
            lines = path.read_text("utf-8").splitlines()
            for node in ast.parse("\n".join(lines)).body:
                if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                    text = "\n".join(lines[first - 1 : node.end_lineno])
                    found.append((path.relative_to(ROOT).as_posix(), node.name, text))
    return found


def evidence(name: str, its: list[str], counted: Counter[str]) -> str:
    """The tests that name a method or what it alone is made of."""
    own = [target.rpartition(".")[2] for target in its if counted[target] == 1]
    words = re.compile("|".join([rf'"{name}"', rf"\b{name}\(", *(rf"\b{re.escape(word)}\b" for word in own)]))
    found = [(file, test) for file, test, text in tests() if words.search(text)]
    shown = [f"[{test.removeprefix('test_').replace('_', ' ')}](../{file})" for file, test in found[:SHOWN]]
    more = [f"{len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return ", ".join([*shown, *more])


def presets(group: str, name: str) -> str:
    """The experiments that choose a method, alone or in a list."""
    found = []
    for path in sorted((CONF / "experiment").rglob("*.yaml")):
        content = content_of(path)
        chosen = [part.get(f"override /{group}") for part in content.get("defaults", ()) if isinstance(part, dict)]
        sweeper = content.get("hydra", {}).get("sweeper", {})
        for listed in (sweeper.get("params") or {}, *(sweeper.get("besides") or ())):
            chosen += str(listed.get(group, "")).split(",")
        if name in chosen:
            found.append(f"[{path.relative_to(CONF / 'experiment').with_suffix('')}](../{path.relative_to(ROOT)})")
    return ", ".join(found)


def short(target: str) -> str:
    """Module and name, without the package and room."""
    return ".".join(target.split(".")[-2:])


def anchor(target: str) -> str:
    """The anchor that a heading has."""
    return short(target).lower().replace(".", "")


def quoted(text: str) -> str:
    """A docstring as it stands: its formulas are laid out."""
    return f"```text\n{text}\n```"


def cell(text: str) -> str:
    """Text for a table or a paragraph, in which nothing is markup."""
    return re.sub(r"([|<*])", r"\\\1", text)


if __name__ == "__main__":
    register_resolvers()
    PAGE.write_text(page(), "utf-8")
