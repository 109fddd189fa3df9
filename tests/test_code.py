"""Nothing runs what it reads, every library is a declared one, and imports keep the contracts of pyproject.toml."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from places import REPOSITORY

ROOMS = ("ngrpo", "analysis", "hydra_plugins", "experiments", "benchmarks")
FILES = sorted([*REPOSITORY.glob("*.py"), *(file for room in ROOMS for file in (REPOSITORY / room).rglob("*.py"))])
TREES = {str(path.relative_to(REPOSITORY)): ast.parse(path.read_text("utf-8")) for path in FILES}


def test_imports_keep_the_contracts():
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def dangers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in ("eval", "exec", "compile", "__import__", "os.system", "yaml.load", "yaml.unsafe_load"):
            yield f"{node.lineno}: {called}"
        if called.split(".")[0] in ("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"):
            yield f"{node.lineno}: {called}"
        for keyword in node.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if (keyword.arg, value) in (
                ("weights_only", False),
                ("trust_remote_code", True),
                ("allow_pickle", True),
                ("shell", True),
            ):
                yield f"{node.lineno}: {keyword.arg}={value}"


@pytest.mark.parametrize("name", TREES)
def test_nothing_runs_what_it_reads(name):
    assert list(dangers(TREES[name])) == []


def test_the_check_for_dangers_sees_them():
    lines = ["eval(x)", "pickle.load(f)", "torch.load(f, weights_only=False)", "load(x, trust_remote_code=True)"]
    text = "\n".join([*lines, "model.eval()", "re.compile('x')"])
    assert len(list(dangers(ast.parse(text)))) == 4


OWNERS = packages_distributions()  # import name -> distributions


@cache
def declared(optional: bool = True) -> set[str]:
    """Distributions that pyproject.toml names, but for development, and all that these need; `optional`: of extras too."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [names for extra, names in project["optional-dependencies"].items() if optional and extra != "dev"]
    waiting, found = [*project["dependencies"], *(name for names in extras for name in names)], set()
    while waiting:
        name = re.split(r"[^A-Za-z0-9._-]", waiting.pop().strip())[0].lower().replace("_", "-")
        if name not in found:
            found.add(name)
            try:
                waiting += [need for need in requires(name) or [] if "extra ==" not in need]
            except PackageNotFoundError:  # an extra that is not installed here
                continue
    return found


@pytest.mark.parametrize("name", [name for name in TREES if not name.startswith(("benchmarks", "experiments"))])
def test_only_declared_libraries_are_imported(name):
    for node in (node for node in ast.walk(TREES[name]) if isinstance(node, ast.Import | ast.ImportFrom)):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{name}:{node.lineno}: a relative import"
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        for top in {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - set(ROOMS):
            found = {owner.lower().replace("_", "-") for owner in OWNERS.get(top, (top,))}  # not installed
            always = node in TREES[name].body and "/vllm/" not in name  # an import that every run may meet
            assert found & declared(not always), f"{name}:{node.lineno}: {top} comes with no declared dependency"
