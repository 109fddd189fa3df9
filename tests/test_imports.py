"""Imports go one way, and each room refuses to know what the design says it refuses to know."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "ngrpo"
ENTRY_POINTS = ("train", "evaluate", "audit", "report", "diagnose")
ROOMS = ("ngrpo", "analysis", "hydra_plugins", "experiments", "benchmarks")


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_name(path): path
    for path in sorted(
        [*REPOSITORY.glob("*.py"), *(file for room in ROOMS for file in (REPOSITORY / room).rglob("*.py"))]
    )
}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in FILES.items()}
OURS = [name for name in FILES if name.split(".")[0] == "ngrpo"]


def run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that only a type checker sees."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        waiting.extend(node.orelse if typing_only else ast.iter_child_nodes(node))


def imports(name: str) -> set[str]:
    """Dotted names of the modules that a module imports, inside functions too; of ours, down to the file."""
    found = set()
    for node in run_time(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = inner & set(FILES)
            found |= modules | ({node.module} if modules != inner else set())
    return found


def test_the_files_are_there():
    rooms = [
        "keys",
        "rollouts",
        "engine",
        "replay",
        "advantages",
        "losses",
        "policy",
        "reference",
        "evaluate",
        "passk",
        "records",
    ]
    assert {f"ngrpo.{room}" for room in rooms} <= set(FILES)
    assert "ngrpo.exploration.base" in imports("ngrpo.rollout.engines.transformers") and "torch" in imports(
        "ngrpo.rollout.engines.transformers"
    )


def inside(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def our_imports(name: str) -> set[str]:
    return {found for found in imports(name) if inside(found, "ngrpo")}


# Each may import those after it only: entry points, policy, evaluate, engine and replay, exploration, rollouts.
CHAIN = (
    ("ngrpo.training.policy",),
    ("ngrpo.training.collect",),
    ("ngrpo.rollout.sampling",),
    ("ngrpo.rollout.engines.transformers", "ngrpo.training.replay"),
    ("ngrpo.exploration",),
    ("ngrpo.rollout.records",),
    ("ngrpo.rollout.keys",),
)


@pytest.mark.parametrize("name", OURS)
def test_imports_go_one_way(name):
    level = next((i for i, rooms in enumerate(CHAIN) if any(inside(name, room) for room in rooms)), None)
    assert not {found.split(".")[0] for found in imports(name)} & set(ENTRY_POINTS), "nothing imports an entry point"
    if level is None:
        return
    above = [room for rooms in CHAIN[:level] for room in rooms]
    beside = [room for room in CHAIN[level] if not inside(name, room)]
    wrong = {found for found in our_imports(name) if any(inside(found, room) for room in (*above, *beside))}
    assert not wrong


def test_no_circle_of_imports():
    seen: dict[str, bool] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in seen:
            for found in our_imports(name) & set(FILES):
                visit(found, (*path, name))
            seen[name] = True

    packages = {name for name, path in FILES.items() if path.name == "__init__.py"}
    for name in OURS:
        if name not in packages:
            visit(name, ())


# What a room may import of ours; rooms that are not named here are bound by the chain alone.
ONLY = {
    "ngrpo.rollout.keys": (),
    "ngrpo.rollout.records": ("ngrpo.rollout.keys",),
    "ngrpo.exploration": ("ngrpo.exploration", "ngrpo.rollout.records", "ngrpo.rollout.keys"),
    "ngrpo.rollout.engines.transformers": (
        "ngrpo.exploration.base",
        "ngrpo.exploration.scores",
        "ngrpo.models.attention",
        "ngrpo.models.causal",
        "ngrpo.rollout.records",
        "ngrpo.rollout.keys",
    ),
    "ngrpo.training.replay": (
        "ngrpo.exploration",
        "ngrpo.exploration.base",
        "ngrpo.exploration.scores",
        "ngrpo.models.attention",
        "ngrpo.models.causal",
        "ngrpo.models.head",
        "ngrpo.rollout.records",
        "ngrpo.rollout.keys",
    ),
    "ngrpo.algorithm.advantages": (),
    "ngrpo.algorithm.losses": (),
    "ngrpo.algorithm.groups": (),
    "ngrpo.algorithm.selections": (),
    "ngrpo.algorithm.algorithm": ("ngrpo.algorithm.groups", "ngrpo.algorithm.losses", "ngrpo.algorithm.selections"),
    "ngrpo.training.critic": (
        "ngrpo.exploration.base",
        "ngrpo.models.causal",
        "ngrpo.training.replay",
        "ngrpo.rollout.records",
    ),
    "ngrpo.evaluation.passk": (),
    "ngrpo.rundir.records": (
        "ngrpo",
        "ngrpo.rundir.files",
        "ngrpo.rundir.lock",
        "ngrpo.rundir.provenance",
        "ngrpo.tasks.base",
    ),
    "ngrpo.grading": ("ngrpo.grading",),
    "ngrpo.tasks": ("ngrpo.tasks", "ngrpo.grading"),
    "ngrpo.models": ("ngrpo.models", "ngrpo.exploration.base", "ngrpo.tasks"),
    "analysis": ("analysis", "ngrpo.evaluation.passk", "ngrpo.rundir.records"),
    "hydra_plugins": ("hydra_plugins",),
}


@pytest.mark.parametrize("room", ONLY)
def test_a_room_knows_what_it_may_know(room):
    for name in FILES:
        if inside(name, room):
            allowed = ONLY[room]
            found = {f for f in imports(name) if f.split(".")[0] in (*ROOMS, *ENTRY_POINTS)}
            wrong = {
                f for f in found if f not in allowed and not any(inside(f, part) for part in allowed if part != "ngrpo")
            }
            assert not wrong, name


STRATEGIES = {name for name in FILES if inside(name, "ngrpo.exploration")} - {
    "ngrpo.exploration",
    "ngrpo.exploration.base",
    "ngrpo.exploration.scores",
}


@pytest.mark.parametrize("name", [name for name in FILES if not inside(name, "ngrpo.exploration")])
def test_strategies_are_named_in_configs_only(name):
    if not name.startswith(("benchmarks", "experiments")):
        assert not imports(name) & STRATEGIES


LIBRARIES = {
    "hydra": (*ENTRY_POINTS, "ngrpo.cli", "hydra_plugins"),
    "lightning": (*ENTRY_POINTS, "ngrpo.training.policy", "ngrpo.training.reference", "ngrpo.training.critic"),
    "pytorch_lightning": (),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_stays_in_its_rooms(library):
    for name in FILES:
        if not any(inside(name, room) for room in (*LIBRARIES[library], "benchmarks", "experiments")):
            assert not any(inside(found, library) for found in imports(name)), name


FORBIDDEN = {
    "analysis": ("torch", "transformers", "hydra", "lightning", "omegaconf"),
    "ngrpo.tasks": ("torch", "transformers", "tokenizers"),
    "ngrpo.grading": ("torch", "transformers", "tokenizers"),
    "ngrpo.evaluation.passk": ("torch", "matplotlib", "pandas"),
    "ngrpo.rundir.records": ("torch", "matplotlib", "pandas"),
    "ngrpo.rollout.records": ("transformers",),
    "ngrpo.exploration": ("transformers", "omegaconf"),
    "ngrpo.algorithm.advantages": ("transformers", "omegaconf"),
    "ngrpo.algorithm.losses": ("transformers", "omegaconf"),
    "ngrpo.algorithm.groups": ("transformers", "omegaconf"),
    "ngrpo.algorithm.selections": ("transformers", "omegaconf"),
    "ngrpo.algorithm.algorithm": ("transformers", "omegaconf"),
}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_stays_light(room):
    for name in FILES:
        if inside(name, room):
            assert not {found.split(".")[0] for found in imports(name)} & set(FORBIDDEN[room]), name


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


@pytest.mark.parametrize("name", FILES)
def test_nothing_runs_what_it_reads(name):
    assert list(dangers(TREES[name])) == []


def test_the_check_for_dangers_sees_them():
    lines = ["eval(x)", "pickle.load(f)", "torch.load(f, weights_only=False)", "load(x, trust_remote_code=True)"]
    text = "\n".join([*lines, "model.eval()", "re.compile('x')"])
    assert len(list(dangers(ast.parse(text)))) == 4


@pytest.mark.parametrize("name", FILES)
def test_only_known_libraries_are_imported(name):
    known = {
        "torch",
        "numpy",
        "scipy",
        "transformers",
        "tokenizers",
        "safetensors",
        "lightning",
        "hydra",
        "omegaconf",
        "pyarrow",
        "pandas",
        "matplotlib",
    }
    known |= {
        "rich",
        "jinja2",
        "markupsafe",
        "tabulate",
        "faiss",
        "optuna",
        "yaml",
        "psutil",
        "math_verify",
        "latex2sympy2_extended",  # this and the next two come with math_verify
        "antlr4",
        "sympy",
        "peft",
        "huggingface_hub",
        "datasets",
        "reasoning_gym",
        "PIL",  # a part of what matplotlib needs
    }
    found = {f.split(".")[0] for f in imports(name)} - set(sys.stdlib_module_names) - set(ROOMS) - set(ENTRY_POINTS)
    if not name.startswith(("benchmarks", "experiments")):
        assert found <= known
