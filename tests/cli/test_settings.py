"""What is allowed, and what a line about it says."""

import json
import math
import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from places import REPOSITORY

from ngrpo.cli import checks, fit
from ngrpo.cli.command import examine
from ngrpo.cli.rules import allowed, as_override, example, malformed, obeys, printable, rule_of
from ngrpo.models import files
from ngrpo.targets import SettingsError

NUMBERS = st.integers() | st.floats()
RULES = st.fixed_dictionaries(
    {"type": st.sampled_from(["integer", "number"])},
    optional={
        "minimum": st.integers(-9, 0),
        "exclusiveMinimum": st.integers(-9, 0),
        "maximum": st.integers(1, 9),
        "exclusiveMaximum": st.integers(2, 9),
    },
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RULES, NUMBERS)
def test_bounds_types_and_infinities(rule, value):
    inside = (
        value >= rule.get("minimum", -math.inf)
        and value > rule.get("exclusiveMinimum", -math.inf)
        and value <= rule.get("maximum", math.inf)
        and value < rule.get("exclusiveMaximum", math.inf)
    )
    finite = math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63
    whole = isinstance(value, int) or rule["type"] == "number"
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
    assert not obeys(value, {"type": "number"})
    assert not obeys(value, {"type": "integer"})


@pytest.mark.parametrize(
    ("default", "good", "bad"),
    [
        (3, [0, -7], [0.5, 3.0, True, "3", None, [3], 2**63]),
        (0.5, [0.1, 2], [True, "x", None, math.nan, [0.5]]),
        (True, [False], [1, 0, "true", None]),
        ("a", ["", "b"], [1, True, None, ["a"]]),
        ([1, 2], [[], [5]], [1, [0.5], [True], None, "ab"]),
        ([], [["a"], [1]], [{}, "a", None]),
        ({}, [{}], [[], "a", None, 0]),
        (None, [None, 1, "a", [2]], [math.nan, [math.inf], 2**63]),
    ],
)
def test_the_type_is_that_of_the_default(default, good, bad):
    rule = rule_of(default, {})
    assert all(obeys(value, rule) for value in good)
    assert not any(obeys(value, rule) for value in bad)


def test_words_come_before_the_default():
    assert obeys(None, rule_of(3, {"type": ["integer", "null"]}))
    assert not obeys(0, rule_of(3, {"minimum": 1})) and not obeys(1.5, rule_of(3, {"minimum": 1}))


def test_choices_are_told_apart_by_type_too():
    rule = rule_of(1, {"enum": [0, 1]})
    assert obeys(1, rule)
    assert not any(obeys(value, rule) for value in (True, 1.0, "1", None))
    assert obeys(None, {"enum": [0, 1, None]})
    assert example("cosinee", {"enum": ["dot", "cosine"]}) == "cosine"


def test_lists_have_a_length_and_members():
    items = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
    rule = rule_of([0.9, 0.999], {"minItems": 2, "maxItems": 2, "items": items})
    assert obeys([0, 0.9], rule)
    assert not any(obeys(value, rule) for value in ([0.9], [0.9, 1], [0.9, math.nan], "ab", 0.9, [0.9, None]))
    assert allowed(rule) == "a list of 2, each a number at least 0 and below 1"


def test_rules_in_words():
    assert allowed({"type": "number", "minimum": 0, "maximum": 1, "description": "it is a probability"}) == (
        "a number from 0 to 1, because it is a probability"
    )
    assert allowed({"type": ["integer", "null"], "minimum": 1}) == "a whole number at least 1 or null"
    assert allowed({"type": "integer", "minimum": 1, "maximum": 1}) == "1"
    assert allowed({"type": "boolean"}) == "true or false"
    assert allowed({"type": ["null", "integer"]}) == "a whole number or null"
    assert allowed({"type": "null"}) == "null"
    assert allowed({"enum": ["a", True, 1.5, None]}) == "one of a, true, 1.5 or null"


def test_words_that_are_no_schema_are_told():
    assert malformed({"minimum": 1, "description": "why"}) is None
    strange = ({"$ref": "file:///x"}, {"minimun": 1}, {"pattern": "a"}, {"enum": []}, {"maximum": math.nan}, {}, True)
    for words in ({"minimum": "one"}, {"type": "int"}, {"enum": 3}, {"items": {"type": "x"}}, [1], "x", *strange):
        assert malformed(words)


def test_values_as_overrides():
    assert as_override({"a": [1, None, "b"], "c": False}) == "{a: [1,null,b],c: false}"


def config(text: str) -> DictConfig:
    made = OmegaConf.create(text)
    assert isinstance(made, DictConfig)
    return made


def problems(text: str, reference: DictConfig | None = None) -> list[str]:
    return checks.problems(checks.Settings(config(text), reference))


def test_a_job_is_checked_without_a_reference():
    schema = "schema: {steps: {type: integer, minimum: 1}, a.b: {type: integer}, gone.x: {type: integer}}"
    assert problems(f"steps: 3\na: {{b: 1}}\n{schema}") == []
    assert problems(f"steps: 0\na: {{b: x}}\n{schema}") == [
        "steps=0: must be a whole number at least 1; steps=1",
        "a.b=x: must be a whole number; a.b=<value>",
    ]
    with pytest.raises(SettingsError) as caught:
        checks.check(config(f"steps: 0\na: {{b: x}}\n{schema}"))
    assert len(caught.value.lines) == 2
    assert pickle.loads(pickle.dumps(caught.value)).lines == caught.value.lines


def test_words_hold_for_what_stands_for_their_key():
    text = "k: {}\nexploration:\n  size: {}\nschema: {{k: {{minimum: 1}}}}"
    reference = config(text.format(3, "${k}"))
    assert problems(text.format(3, "${k}"), reference) == []
    assert problems(text.format(0, "${k}"), reference) == ["k=0: must be a whole number at least 1; k=3"]
    assert problems(text.format(3, 0), reference) == [
        "exploration.size=0: must be a whole number at least 1; exploration.size=3"
    ]


@pytest.mark.parametrize("words", ["", "schema: {x: {exclusiveMinimum: 0}}"])
def test_nan_is_refused_without_words_as_well(words):
    for value in (".nan", ".inf", "-.inf", "[1.0, .nan]"):
        assert len(problems(f"x: {value}\n{words}")) == 1


def test_a_file_with_words_that_are_no_schema_is_told(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "odd.yaml").write_text("# @package _global_\nschema: {steps: {minimum: one}}\n")
    (line,) = examine("config", ["--config-dir", str(tmp_path), "experiment=odd"]).problems
    assert line.startswith("schema.steps={'minimum': 'one'}: is no rule, minimum: 'one' is not of type 'number'; ")


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
    assert "run.json" in str(files.run_refusal(str(run), False))
    (run / "run.json").write_text("{}")
    assert "hf/" in str(files.run_refusal(str(run), False))
    model.rename(run / "hf")
    assert files.run_refusal(str(run), False) is None
    assert examine("evaluate", [f"run={run}"]).problems == []
    assert "leave model out" in examine("evaluate", [f"run={run}", "model=tiny"]).problems[0]
    settings_of = json.loads((run / "hf" / "config.json").read_text())
    (run / "hf" / "config.json").write_text(json.dumps(settings_of | {"max_position_embeddings": 100}))
    assert "100 positions" in examine("evaluate", [f"run={run}"]).problems[0]
    (run / "hf" / "config.json").write_text(json.dumps(settings_of | {"max_position_embeddings": 10}))
    assert "does not fit" in examine("evaluate", [f"run={run}"]).problems[0]


def test_directories_that_can_be_made(tmp_path):
    assert fit.directory_refusal(str(tmp_path / "a" / "b")) is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert "is a file" in str(fit.directory_refusal(str(tmp_path / "file" / "x")))
    assert "cannot be written" in str(fit.directory_refusal(str(tmp_path / ("x" * 256))))
    assert fit.directory_refusal("/proc/x")
    assert fit.directory_refusal("/sys/x")
    assert fit.directory_refusal("")


def test_gpus_are_counted_without_torch(monkeypatch):
    monkeypatch.setattr(fit, "version", lambda name: "2.9.0")
    monkeypatch.setattr(fit.Path, "glob", lambda self, pattern: [fit.Path(f"/dev/nvidia{n}") for n in (0, 1)])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert fit.gpu_refusal(2) is None
    assert "2 of the 4" in str(fit.gpu_refusal(4))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert "1 of the 2" in str(fit.gpu_refusal(2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "no GPU" in str(fit.gpu_refusal(1))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(fit, "version", lambda name: "2.9.0+cpu")
    assert "CPU only" in str(fit.gpu_refusal(1))


def test_optional_packages_are_asked_for(monkeypatch):
    monkeypatch.setattr(fit, "find_spec", lambda name: None)
    assert examine("config", ["logger=wandb"]).problems == [
        "logger=wandb: needs the package wandb, which is not installed; pip install wandb"
    ]
    assert examine("config", ["logger=[csv,mlflow]"]).problems == [
        "logger=[csv,mlflow]: needs the package mlflow-skinny, which is not installed; pip install mlflow-skinny"
    ]
    monkeypatch.setattr(fit, "find_spec", lambda name: name == "tensorboardX" or None)
    assert examine("config", ["logger=tensorboard"]).problems == []
    assert examine("config", ["logger=null", "experiment=null"]).argv == ["logger=[]", "~experiment"]
    assert examine("config", ["logger=none"]).argv == examine("config", ["~logger"]).argv == ["logger=[]"]


@pytest.mark.parametrize(
    ("group", "content", "header"),
    [
        ("experiment", "steps: 3", "_global_"),
        ("trainer", "trainer: {threads: 1}", "_global_"),
        ("exploration", "exploration: {rate: 0.3}", "_global_"),
        ("benchmark", "_target_: ngrpo.tasks.story_math.StoryMath\nsplit: test", "benchmark.<name>"),
        ("logger", "_target_: lightning.pytorch.loggers.CSVLogger", "logger.<name>"),
    ],
)
def test_a_file_whose_keys_land_where_nobody_reads_them_is_told_its_first_line(tmp_path, group, content, header):
    problems = {}
    for name, first in (("without", ""), ("with", f"# @package {header.replace('<name>', 'mine')}\n")):
        place = tmp_path / name / group / "mine.yaml"
        place.parent.mkdir(parents=True)
        place.write_text(first + content)
        problems[name] = examine("config", ["--config-dir", str(tmp_path / name), f"{group}=mine"]).problems
    (problem,) = problems["without"]
    assert problem.startswith(f"{group}=mine: ") and problem.endswith(f"begin its file with '# @package {header}'")
    assert not [line for line in problems["with"] if "@package" in line]


GOOD = [
    "exploration=neighbor_mix mix_rate=0.3 k=5 seed=7",
    "algorithm=rloo learning_rate=0 temperature=1",
    "benchmark=[story_math,story_math_val] problems=null n=4",
    "benchmark=story_math_easy",
    "++steps=3 trainer.threads=2 hydra.run.dir=some/where",
    "optimizer={schedule: cosine}",
    "experiment=method/stht exploration.soft_temperature=1e-4",
    "trainer=ddp trainer.accelerator=cpu prompts_per_step=6",
    "trainer=fsdp trainer.accelerator=cpu trainer.devices=4",
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


@pytest.mark.parametrize(
    ("part", "told"), [("advantage: 5", "algorithm.advantage=5"), ("loss: null", "algorithm.loss=null")]
)
def test_a_part_that_is_no_function_is_told(tmp_path, part, told):
    (tmp_path / "algorithm").mkdir()
    (tmp_path / "algorithm" / "odd.yaml").write_text(f"# @package _global_\nalgorithm:\n  {part}\n")
    found = examine("config", ["--config-dir", str(tmp_path), "algorithm=odd"]).problems
    assert found == [f"{told}: must be a mapping; algorithm.{part.partition(':')[0]}=<value>"]


def test_a_line_that_is_too_long_keeps_its_fix():
    line = printable(f"key={'x' * 900}: must be a number; key=3", 600)
    assert len(line) == 600 and line.startswith("key=x") and line.endswith("x: must be a number; key=3")
    assert printable("a\nb") == "a\\nb" and printable("x" * 100) == "x" * 100


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


PREFIXES = st.sampled_from(["", "+", "++", "~"])
KEYS = st.sampled_from(
    ["steps", "k", "exploration", "benchmark", "model.path", "optimizer.betas", "hydra.mode", "x.y", "task"]
)
TEXTS = st.sampled_from(
    ["", "0", "nan", "null", "[1]", "{a: 1}", "${k}", "${nope}", "a/b", "1,2", "glob(*)", "'q'", "é"]
)
OVERRIDES = st.builds("{}{}={}".format, PREFIXES, KEYS, TEXTS | st.text(max_size=5))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(OVERRIDES, max_size=3), st.sampled_from(["config", "evaluate"]))
def test_no_command_line_breaks_the_examination(argv, name):
    assert all(line.isprintable() for line in examine(name, argv).problems)


OUTSIDE = ["save_dir: /tmp/x", "name: ../../x", "version: /tmp/y", "sub_dir: a/../../b", "csv: {dir: ../..}"]


@pytest.mark.parametrize("line", OUTSIDE)
def test_a_logger_writes_nowhere_but_in_the_run_directory(tmp_path, line):
    (tmp_path / "logger").mkdir()
    for name, more in (("outside", line), ("inside", "name: a/b\nsave_dir: null")):
        content = f"# @package logger.{name}\n_target_: lightning.pytorch.loggers.CSVLogger\n{more}\n"
        (tmp_path / "logger" / f"{name}.yaml").write_text(content)
    (problem,) = examine("config", ["--config-dir", str(tmp_path), "logger=outside"]).problems
    assert problem.startswith("logger.") and "must not lead out of the run directory" in problem
    assert examine("config", ["--config-dir", str(tmp_path), "logger=inside"]).problems == []


@pytest.mark.parametrize("folder", ["method", "controls"])
def test_every_method_and_every_set_of_controls_composes(folder):
    files_of = sorted((REPOSITORY / "conf/experiment" / folder).glob("*.yaml"))
    assert files_of
    for file in files_of:
        sweep, trained = ["-m"] if folder == "controls" else [], "python train.py" in file.read_text()
        words = [*sweep, f"experiment={folder}/{file.stem}", *([] if trained else ["model=tiny"])]
        assert examine("config" if trained else "evaluate", words).problems == [], file
