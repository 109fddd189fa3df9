"""What is allowed, and what a line about it says."""

import json
import math
import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from places import REPOSITORY

from ngrpo.cli import settings as rules_of
from ngrpo.cli.arguments import examine
from ngrpo.cli.settings import SettingsError, machine
from ngrpo.cli.settings.limits import allowed, as_override, example, obeys
from ngrpo.models import files

NUMBERS = st.integers() | st.floats()
RULES = st.fixed_dictionaries(
    {"type": st.sampled_from(["int", "float"])},
    optional={
        "low": st.integers(-9, 0),
        "above": st.integers(-9, 0),
        "high": st.integers(1, 9),
        "below": st.integers(2, 9),
        "optional": st.booleans(),
    },
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RULES, NUMBERS)
def test_bounds_types_and_infinities(rule, value):
    inside = (
        value >= rule.get("low", -math.inf)
        and value > rule.get("above", -math.inf)
        and value <= rule.get("high", math.inf)
        and value < rule.get("below", math.inf)
    )
    finite = math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63
    whole = isinstance(value, int) or rule["type"] == "float"
    assert obeys(value, rule) == (inside and finite and whole)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RULES, NUMBERS | st.none() | st.text() | st.booleans(), NUMBERS | st.none())
def test_an_offered_value_obeys(rule, value, usual):
    offered = example(value, rule, usual)
    assert offered is None or obeys(offered, rule)
    if usual is not None and obeys(usual, rule):
        assert offered == usual


@pytest.mark.parametrize("value", [True, False, "1", None, [1], {"a": 1}, math.nan, math.inf, -math.inf, 2**64])
def test_no_number(value):
    assert not obeys(value, {"type": "float"})
    assert not obeys(value, {"type": "int"})


def test_choices_are_told_apart_by_type_too():
    rule = {"choices": [0, 1]}
    assert obeys(1, rule)
    assert not any(obeys(value, rule) for value in (True, 1.0, "1", None))
    assert obeys(None, {**rule, "optional": True})
    assert example("cosinee", {"choices": ["dot", "cosine"]}) == "cosine"


def test_lists_have_a_length_and_members():
    rule = {"type": "float", "low": 0, "below": 1, "length": 2}
    assert obeys([0, 0.9], rule)
    assert not any(obeys(value, rule) for value in ([0.9], [0.9, 1], [0.9, math.nan], "ab", 0.9, [0.9, None]))
    assert allowed(rule) == "a list of 2, each a number at least 0 and below 1"


def test_rules_in_words():
    assert allowed({"type": "float", "low": 0, "high": 1, "because": "it is a probability"}) == (
        "a number from 0 to 1, because it is a probability"
    )
    assert allowed({"type": "int", "low": 1, "optional": True}) == "a whole number at least 1 or null"
    assert allowed({"type": "int", "low": 1, "high": 1}) == "1"
    assert allowed({"type": "bool"}) == "true or false"
    assert allowed({"choices": ["a", True, None, 1.5]}) == "one of a, true, null, 1.5"


def test_values_as_overrides():
    assert as_override({"a": [1, None, "b"], "c": False}) == "{a: [1,null,b],c: false}"


def config(text: str) -> DictConfig:
    made = OmegaConf.create(text)
    assert isinstance(made, DictConfig)
    return made


def problems(text: str, **arguments) -> list[str]:
    return rules_of.problems(config(text), **arguments)


def test_a_job_is_checked_without_a_reference():
    limits = "limits: {steps: {type: int, low: 1}, a.b: {type: int}, gone.x: {type: int}}"
    assert problems(f"steps: 3\na: {{b: 1}}\n{limits}") == []
    assert problems(f"steps: 0\na: {{c: 1}}\n{limits}") == [
        "steps=0: must be a whole number at least 1; steps=1",
        "a.b: is missing; a.b=null",
    ] or problems(f"steps: 0\na: {{c: 1}}\n{limits}")[1].startswith("a.b: is missing")
    with pytest.raises(SettingsError) as caught:
        rules_of.check(config(f"steps: 0\na: {{b: x}}\n{limits}"))
    assert len(caught.value.lines) == 2
    assert pickle.loads(pickle.dumps(caught.value)).lines == caught.value.lines


def test_a_limit_holds_for_what_stands_for_its_key():
    text = "k: {}\nexploration:\n  size: {}\nlimits: {{k: {{type: int, low: 1}}}}"
    reference = OmegaConf.create(text.format(3, "${k}"))
    assert problems(text.format(3, "${k}"), reference=reference) == []
    assert problems(text.format(0, "${k}"), reference=reference) == ["k=0: must be a whole number at least 1; k=3"]
    assert problems(text.format(3, 0), reference=reference) == [
        "exploration.size=0: must be a whole number at least 1; exploration.size=3"
    ]


@pytest.mark.parametrize("limit", ["a number", "above 0"])
def test_nan_is_refused_without_a_rule_as_well(limit):
    rule = "limits: {x: {type: float, above: 0}}" if limit == "above 0" else ""
    for value in (".nan", ".inf", "-.inf", "[1.0, .nan]"):
        assert len(problems(f"x: {value}\n{rule}")) == 1


def test_notes_tell_what_has_no_effect():
    quiet = examine("config", ["optimizer.schedule=cosine", "optimizer.warmup_steps=5"])
    assert (quiet.problems, quiet.notes) == ([], [])
    clip = examine("config", ["algorithm.loss.clip_high=0.28"])
    assert clip.problems == []
    assert len(clip.notes) == 1
    assert "algorithm.mini_batches=2" in clip.notes[0]
    assert examine("config", ["algorithm.loss.clip_high=0.28", "algorithm.mini_batches=2"]).notes == []
    assert "no effect" in examine("config", ["optimizer.warmup_steps=5"]).notes[0]
    assert "before" in examine("config", ["optimizer.schedule=cosine", "optimizer.warmup_steps=60"]).notes[0]


TINY = files.BUNDLED["ngrpo:tiny"]


@pytest.fixture
def model(tmp_path):
    """A directory with the bundled model's files, to be broken."""
    place = tmp_path / "model"
    place.mkdir()
    for path in TINY.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    return place


def test_a_sound_model_directory(model, monkeypatch):
    assert files.refusal(str(model)) is None
    monkeypatch.chdir(model.parent)
    assert files.refusal("model") is None
    assert files.directory("ngrpo:tiny") == TINY and files.refusal("ngrpo:tiny") is None  # a name, wherever one stands
    assert files.directory("ngrpo/models/tiny_qwen2") is None  # and no path is looked up below the package
    assert files.refusal("Qwen/Qwen3-1.7B-Base") is None
    words = files.tokenizer(model)
    assert words is not None
    added, rows = words.get_added_tokens_decoder(), json.loads((model / "config.json").read_text())["vocab_size"]
    assert files.ordinary_tokens(model) == min(words.get_vocab_size() - len(added), rows)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["gone", "empty", "half", "other"])
def test_broken_model_directories_are_refused(model, name, damage):
    path = model / name
    whole = path.read_bytes()
    path.unlink()
    if name == "tokenizer.json" and damage == "gone":
        (model / "tokenizer_config.json").unlink()
    elif damage != "gone":
        path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "other": b"[1, 2]"}[damage])
    refusal = files.refusal(str(model))
    assert refusal is not None
    assert name in refusal or "safetensors" in refusal
    assert "\n" not in refusal


def test_pickled_weights_and_missing_shards_are_refused(model):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-2.safetensors is missing" in str(files.refusal(str(model)))
    (model / "model.safetensors.index.json").unlink()
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "pickles" in str(files.refusal(str(model)))


@pytest.mark.parametrize(
    "path",
    ["", "x", "./x", "/x/y", "a/b/c", "../a", "a/../b", "ngrpo/nothing", "a/b/", "a b/c", "a\nb/c", None, 3, "-a/b"],
)
def test_what_is_neither_directory_nor_hub_id(path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)  # where ngrpo is a directory, and so no owner on a hub
    assert files.refusal(path)


def test_a_model_given_as_a_directory(model, monkeypatch):
    monkeypatch.chdir(model.parent)
    for place in (str(model), "./model", "model"):
        assert examine("config", [f"model={place}"]).argv == ["model=hf", f"model.path={place}"]
    odd = model.rename(model.parent / "it's a model, mine")
    examined = examine("config", [f"model={odd}"])
    assert examined.problems == []
    assert examine("config", examined.argv).problems == []
    assert examine("config", ["model=tiny"]).argv == ["model=tiny"]


def test_the_run_to_evaluate(model, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert "run.json" in str(files.run_refusal(str(run)))
    (run / "run.json").write_text("{}")
    assert "hf/" in str(files.run_refusal(str(run)))
    model.rename(run / "hf")
    assert files.run_refusal(str(run)) is None
    assert examine("evaluate", [f"run={run}"]).problems == []
    assert "leave model out" in examine("evaluate", [f"run={run}", "model=tiny"]).problems[0]
    settings_of = json.loads((run / "hf" / "config.json").read_text())
    (run / "hf" / "config.json").write_text(json.dumps(settings_of | {"max_position_embeddings": 100}))
    assert "100 positions" in examine("evaluate", [f"run={run}"]).problems[0]
    (run / "hf" / "config.json").write_text(json.dumps(settings_of | {"max_position_embeddings": 10}))
    assert "does not fit" in examine("evaluate", [f"run={run}"]).problems[0]


def test_directories_that_can_be_made(tmp_path):
    assert machine.directory_refusal(str(tmp_path / "a" / "b")) is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert "is a file" in str(machine.directory_refusal(str(tmp_path / "file" / "x")))
    assert "longer than" in str(machine.directory_refusal(str(tmp_path / ("x" * 256))))
    assert machine.directory_refusal("/proc/x")
    assert machine.directory_refusal("/sys/x")
    assert machine.directory_refusal("")


def test_gpus_are_counted_without_torch(monkeypatch):
    monkeypatch.setattr(machine, "version", lambda name: "2.9.0")
    monkeypatch.setattr(
        machine.Path, "glob", lambda self, pattern: [machine.Path(f"/dev/nvidia{n}") for n in (0, 1, "ctl")]
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.gpu_refusal(2) is None
    assert "2 of the 4" in str(machine.gpu_refusal(4))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert "1 of the 2" in str(machine.gpu_refusal(2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "no GPU" in str(machine.gpu_refusal(1))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(machine, "version", lambda name: "2.9.0+cpu")
    assert "CPU only" in str(machine.gpu_refusal(1))


def test_optional_packages_are_asked_for(monkeypatch):
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    assert examine("config", ["logger=wandb"]).problems == [
        "logger=wandb: needs the package wandb, which is not installed; pip install wandb"
    ]
    monkeypatch.setattr(machine, "find_spec", lambda name: name == "tensorboardX" or None)
    assert machine.package_refusal("lightning.pytorch.loggers.TensorBoardLogger") is None
    assert examine("config", ["logger=null", "experiment=null"]).argv == ["~logger", "~experiment"]
    assert examine("config", ["~logger"]).problems == []


GOOD = [
    "exploration=neighbor_mix mix_rate=0.3 k=5 seed=7",
    "algorithm=rloo learning_rate=0 temperature=1",
    "benchmark=[story_math,story_math_val] evaluation.problems=null evaluation.n=4",
    "benchmark=story_math_easy",
    "++steps=3 trainer.threads=2 hydra.run.dir=some/where",
    "optimizer={schedule: cosine}",
    "experiment=paper/stht exploration.soft_temperature=1e-4",
    "trainer=ddp trainer.accelerator=cpu prompts_per_step=6",
    "evaluation.exploration._target_=ngrpo.exploration.annealed_temperature.AnnealedTemperature"
    " +evaluation.exploration.start=1.2 +evaluation.exploration.end=0.1 +evaluation.exploration.horizon=25",
    "hydra.run.dir=a hydra.run.dir=b hydra.output_subdir=null hydra.job.name=x",  # as Lightning starts its processes
    "-m seed=1,2 exploration=token_sampling,neighbor_mix mix_rate=0.1,0.2",
    "-m learning_rate=interval(1e-6,1e-4) group_size=choice(4,8)",
]


@pytest.mark.parametrize("line", GOOD)
def test_good_command_lines_pass_unchanged(line):
    argv = [line] if "{" in line else line.split(" ")
    examined = examine("config", argv)
    assert examined.problems == []
    assert sorted(examined.argv) == sorted(argv)


def test_own_files_add_to_ours(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nsteps: 7\n")
    (tmp_path / "experiment" / "bad.yaml").write_text("# @package _global_\nsteps: 0\n")
    assert examine("config", ["--config-dir", str(tmp_path), "experiment=mine"]).problems == []
    assert examine("config", ["--config-dir", str(tmp_path), "experiment=bad"]).problems == [
        "steps=0: must be a whole number at least 1; steps=1"
    ]
    (tmp_path / "experiment" / "torn.yaml").write_text("# @package _global_\nsteps: [7\n")
    assert len(examine("config", ["--config-dir", str(tmp_path), "experiment=torn"]).problems) == 1


SIGNS = st.sampled_from(["", "+", "++", "~"])
KEYS = st.sampled_from(
    ["steps", "k", "exploration", "benchmark", "model.path", "optimizer.betas", "hydra.mode", "x.y", "task"]
)
TEXTS = st.sampled_from(
    ["", "0", "nan", "null", "[1]", "{a: 1}", "${k}", "${nope}", "a/b", "1,2", "glob(*)", "'q'", "é"]
)
OVERRIDES = st.builds("{}{}={}".format, SIGNS, KEYS, TEXTS | st.text(max_size=5))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(OVERRIDES, max_size=3), st.sampled_from(["config", "evaluate"]))
def test_no_command_line_breaks_the_examination(argv, name):
    assert all(line.isprintable() for line in examine(name, argv).problems)
