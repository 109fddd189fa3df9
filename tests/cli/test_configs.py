"""Every file in conf/ composes, says which command uses it, and names only what may be built."""

import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import configurations
import pytest
from omegaconf import OmegaConf
from places import CONF, REPOSITORY

from ngrpo import targets
from ngrpo.cli import complaints, fit, launchers
from ngrpo.cli.command import examine
from ngrpo.cli.composition import Job, Schema, flat, read_one
from ngrpo.cli.conf import PARTS
from ngrpo.cli.rules import malformed
from ngrpo.composed import instantiate
from ngrpo.models import files
from ngrpo.targets import SettingsError
from ngrpo.tasks import rows

PRIMARY = sorted(CONF.glob("*.yaml"))
CHOICES = [path for path in sorted(CONF.rglob("*.yaml")) if path.parent != CONF and path.parent.name != PARTS]
COMMAND = re.compile(r"# python (train|evaluate|report|audit|diagnose|plan)\.py(.*?)(?:  +\(.*)?$", re.MULTILINE)
FILES = [path for path in CONF.rglob("*.yaml") if path.parent.name != "launcher"]  # which Hydra builds, and not we
TARGETS = sorted({match for path in FILES for match in re.findall(r"_target_: ([\w.]+)", path.read_text())})


def named(path: Path) -> str:
    return str(path.relative_to(CONF))


def choice(path: Path) -> tuple[str, str]:
    """(group, option), where an option of a sub-group is `sub/option`."""
    group, _, option = named(path).removesuffix(".yaml").removeprefix("hydra/").partition("/")
    return f"hydra/{group}" if named(path).startswith("hydra/") else group, option


def heading(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(lines[: next(at for at, line in enumerate(lines) if not line.startswith("#"))])


def used_by(path: Path) -> str:
    """The primary configuration of the first command in the file's heading."""
    script = COMMAND.findall(heading(path))[0][0]
    return "config" if script == "train" else script


@pytest.fixture(autouse=True)
def any_machine(monkeypatch):
    monkeypatch.setattr(fit, "gpu_refusal", lambda devices: None)
    monkeypatch.setattr(fit, "PACKAGES", {})
    monkeypatch.setattr(files, "cached", lambda *repository: True)
    monkeypatch.setattr(launchers, "problems", lambda config, several: [])


@pytest.fixture(autouse=True, scope="module")
def tasks_of_stand_ins():
    """What is built here is not found in the caches by other tests, nor what they built by those here."""
    configurations.forget_tasks()
    yield
    configurations.forget_tasks()


@pytest.fixture(autouse=True)
def public_data_sets(monkeypatch, tasks_of_stand_ins):
    """Rows with the columns of all of them; nothing is downloaded."""
    columns = {f"Incorrect Answer {number}": f"no {number}" for number in (1, 2, 3)} | {"Correct Answer": "yes"}
    made = tuple({"problem": f"What is {at}?", "answer": str(at), **columns} for at in range(1024))
    monkeypatch.setattr(rows, "_download", lambda name, dataset, subset, split: rows.Rows(dataset, "0", made))


def own_files(name: str, directory: Path) -> list[str]:
    """What one has to give beside the choice, where its file leaves that open."""
    file = directory / "own.jsonl"
    file.write_text("".join(json.dumps({"problem": f"What is {at}?", "answer": at}) + "\n" for at in range(64)))
    given = {
        "model/hf.yaml": f"model.path={REPOSITORY}/ngrpo/models/tiny_qwen2",
        "experiment/gemma_270m.yaml": f"model.path={REPOSITORY}/ngrpo/models/tiny_qwen2",
        "task/hf.yaml": "task.dataset=owner/name",
        "task/jsonl.yaml": f"task.path={file}",
        "task/verl_parquet.yaml": f"task.path={file}",
        "benchmark/jsonl.yaml": f"benchmark.path={file}",
    }
    return [given[name]] if name in given else []


@pytest.mark.parametrize("path", [*PRIMARY, *CHOICES], ids=named)
def test_the_heading_holds_commands_that_use_the_file_and_work(path):
    commands = COMMAND.findall(heading(path))
    assert commands, "the first lines of the file are comments with the command that uses it"
    if path in CHOICES:
        group, option = choice(path)
        assert any(re.search(rf"\b{group}=\[?['\"]?{option}\b", line) for _, line in commands)
    for script, line in commands:
        if "<" not in line and "hub id" not in line and "Qwen/" not in line:
            name = "config" if script == "train" else script
            assert examine(name, shlex.split(line)).problems == []


@pytest.mark.parametrize("path", [*PRIMARY, *CHOICES], ids=named)
def test_every_file_composes_without_a_problem_and_describes_keys_that_are_there(path, tmp_path):
    model = ["model=tiny"] if path.stem == "evaluate" else []  # which has nothing to evaluate without
    name, chosen = (path.stem, model) if path in PRIMARY else (used_by(path), ["=".join(choice(path))])
    assert examine(name, [*chosen, *own_files(named(path), tmp_path)]).problems == []
    with configurations.composing():
        config = configurations.schema(name).reference(chosen)
    known = flat(config)
    for key, words in config.get("schema", {}).items():
        assert malformed(OmegaConf.to_container(words)) is None
        node = any(name.startswith(f"{key}.") for name in known)  # null in other files
        optional = node or key.startswith("evaluation.exploration.") or path in PRIMARY
        assert key in known or optional, key


@pytest.mark.parametrize("target", TARGETS)
def test_targets_may_be_built_and_their_arguments_are_read_right(target):
    assert targets.refusal(target) is None
    module, _, name = target.rpartition(".")
    if not module.startswith("ngrpo"):
        return
    built = getattr(import_module(module), name)
    assert callable(built)


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "builtins.eval", "subprocess.Popen", "shutil.rmtree", "pickle.loads", "torch.load",
        "functools.partial", "importlib.import_module", "runpy.run_path", "hydra.utils.instantiate",
        "ngrpo", "ngrpo.algorithm.losses", "ngrpo.exploration.stht", "ngrpo.algorithm.losses.Tensor",
        "ngrpo.algorithm.losses.torch.load", "ngrpo.rundir.files.write_atomically", "ngrpo.rundir.directory.shutil.rmtree",
        "ngrpo.rundir.recorder.write_samples", "ngrpo.training.policy.Policy", "ngrpo.exploration..stht.SoftTokens",
        "ngrpo.exploration.stht.SoftTokens.__init__", "ngrpo.tasks._x.Y", "ngrpo.exploration/../../x.Y",
        "lightning.pytorch.loggers.wandb.os.system", "", 3, None,
    ],
)  # fmt: skip
def test_nothing_else_may_be_built_however_deep_it_stands(target):
    assert targets.refusal(target)
    inner = {
        "_target_": "ngrpo.tasks.story_math.StoryMath",
        "levels": [{"_target_": target}],
        "split": "train",
        "size": 1,
    }
    for node in ({"_target_": target}, inner, OmegaConf.create(inner)):
        with pytest.raises(SettingsError, match="_target_="):
            instantiate(node)


def test_building_hands_on_arguments_as_they_are():
    node = {"_target_": "ngrpo.tasks.story_math.StoryMath", "split": "train", "size": 3}
    levels = (1, 2)
    assert instantiate(node, levels=levels).levels is levels
    assert instantiate({**node, "_partial_": True}, levels=levels)().levels is levels
    with pytest.raises(ValueError, match="split"):  # the error of the class itself, not one of Hydra about it
        instantiate({**node, "split": "nope"}, levels=levels)


def misspelt(word: str) -> list[str]:
    """`word` with one letter dropped, doubled, or swapped with the next."""
    dropped = {word[:at] + word[at + 1 :] for at in range(len(word))}
    doubled = {word[:at] + word[at] + word[at:] for at in range(len(word))}
    swapped = {word[:at] + word[at + 1] + word[at] + word[at + 2 :] for at in range(len(word) - 1)}
    return sorted((dropped | doubled | swapped) - {word, ""})


def test_misspelt_keys_are_understood():
    with configurations.composing():
        schema = Schema("config")
        reference = schema.reference([])
        top = [str(key) for key in reference if key not in ("schema", "hydra")] + ["mix_rate", "logger", "experiment"]
        inner = [key for key in flat(reference) if "." in key and "._" not in key]
        cases = [(key, wrong) for key in (*top, *inner) for wrong in misspelt(key.rpartition(".")[2])][::2]
        right = 0
        for at, (key, wrong) in enumerate(cases):
            parent, dot, _ = key.rpartition(".")
            overrides = [read_one(f"{'+' * (at % 3)}{parent}{dot}{wrong}=1")]
            job = Job(schema, overrides)
            lines = [line for override in job.unknown() for line in complaints.of_unknown(override, job)]
            right += any(re.search(rf"(nearest name is|belongs to .*) {re.escape(key)}[;,]", line) for line in lines)
    assert len(cases) > 250
    assert right >= 0.95 * len(cases)
