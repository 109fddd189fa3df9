"""Wrong command lines: each is refused with one line per mistake, before anything heavy is imported or written."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import warm
from places import REPOSITORY

HEAVY = ("torch", "lightning", "transformers", "pandas", "faiss")
TARGET = "ngrpo.exploration.mixing.Mixing"

# Arguments, then for each expected line the words in it, separated by "|".
WRONG = {
    # keys
    "mixrate=0.1": ["mixrate=0.1|mix_rate|exploration=neighbor_mix"],
    "extra_rewards={brief:1}": ["extra_rewards.brief=1|extra_rewards|_target_|+extra_rewards.brief="],
    "reward={brief:1}": ["reward={brief:1}|now called extra_rewards; extra_rewards={brief:1}"],
    "+reward.brief._target_=os.system": ["+reward.brief._target_=os.system|extra_rewards.brief._target_=os.system"],
    "grading.max_errors=0.2": ["grading.max_errors=0.2|now called grading.max_ungraded_share; grading.max_ungraded_share=0.2"],
    "evaluation.n=64": ["evaluation.n=64: evaluation.n is now called n; n=64"],
    "evaluation.problems=5": ["evaluation.problems=5: evaluation.problems is now called problems; problems=5"],
    "evaluation={n:64}": ["evaluation={n:64}|now called n; n=64"],
    "trains=false": ["trains=false: trains is now called trainable; trainable=false"],
    "trainable=false": ["trainable=false|file of a strategy|leave it out"],
    "roles=[token]": ["roles=[token]|file of a strategy|leave it out"],
    "learning_rat=1": ["learning_rat=1|nearest|learning_rate=1"],
    "lr=0.1": ["lr=0.1|learning_rate=0.1"],
    "weight_decay=0.1": ["weight_decay=0.1|optimizer.weight_decay=0.1"],
    "algorithm.reward={}": ["algorithm.reward={}|now called algorithm.reward_shaping; algorithm.reward_shaping={}"],
    "algorithm=dapo algorithm.reward.overlong.buffer=8": [
        "algorithm.reward.overlong.buffer=8|now called|; algorithm.reward_shaping.overlong.buffer=8"
    ],
    "+algorithm.reward.own={_target_: ngrpo.algorithm.groups.unlikeliness}": [
        "own={_target_: ngrpo.algorithm.groups.unlikeliness}|now called|; +algorithm.reward_shaping.own={_target_: "
    ],
    "algorithm=rloo algorithm.carry_surplus=true": ["algorithm.carry_surplus=true|no ratio|algorithm.carry_surplus=false"],
    "algorithm.loss=5": ["algorithm.loss=5|has parts"],
    f"learning_rate={'x' * 900}": ["learning_rate=xxx|must be a number at least 0; learning_rate=3e-05"],
    "algorithm.select_per=batch": ["algorithm.select_per=batch|step, update|algorithm.select_per=step"],
    "algorithm.kl.estimator=k4": ["algorithm.kl.estimator=k4|k1, k2, k3 or null|algorithm.kl.estimator=null"],
    "explorations=stht": ["explorations=stht|exploration=stht"],
    "exploration.foo=1": ["exploration.foo=1|temperature, top_p"],
    "+typo=1": ["typo=1|there is no typo"],
    "++stepss=1": ["stepss=1|steps=1"],
    "+exploration.temprature=1": ["exploration.temprature=1|exploration.temperature=1"],
    "mix_rate=0.1": ["mix_rate=0.1|exploration=token_sampling has no mix_rate|exploration=neighbor_mix"],
    "exploration=stht k=3": ["k=3|exploration=stht has no k|exploration=neighbor_mix"],
    "exploration=stht exploration.metric=dot": ["exploration.metric=dot|exploration=stht|exploration=neighbor_mix"],
    "benchmark.story_math_val.size=4": ["benchmark.story_math_val.size=4|benchmark=story_math_val"],
    "seed.x=3": ["seed.x=3|there is no seed.x"],
    "steps=1 steps=2": ["steps=2|steps=1|keep one"],
    "steps=1 ++steps=2": ["++steps=2|steps=1|keep one"],
    "schema={}": ["schema={}|there is no schema"],
    "+schema.seed.minimum=-9 seed=-9": ["schema.seed.minimum=-9|there is no schema", "seed=-9|from 0"],
    # grammar
    "steps": ["steps: cannot be read|steps=<value>"],
    "steps==": ["steps==|cannot be read"],
    "steps=[1": ["steps=[1|cannot be read"],
    "a\u0007=1": ["a\\x07=1|cannot be read"],
    "=3": ["=3|names no key"],
    "seed=1,2": ["seed=1,2|-m seed=1,2"],
    "benchmark=story_math,story_math_hard": ["benchmark=story_math,story_math_hard|[story_math,story_math_hard]"],
    "seed=range(1,3)": ["seed=range(1,3)|-m"],
    "+steps=3": ["+steps=3|is there already"],
    "~steps": ["~steps|cannot be left out|steps=50"],
    "~optimizer.betas": ["~optimizer.betas|cannot be left out"],
    "~foo": ["~foo|there is no foo"],
    "optimizer=3": ["optimizer=3|has parts"],
    "optimizer={scheduel: cosine}": ["optimizer.scheduel=cosine|optimizer.schedule"],
    "steps={a: 1}": ["steps.a=1|steps"],
    # groups
    "exploration=neighbour_mix": ["exploration=neighbour_mix|gaussian_noise, gaussian_soft|exploration=neighbor_mix"],
    "exploration=neighbour_mix mix_rate=7": ["exploration=neighbour_mix|neighbor_mix", "mix_rate=7|from 0 to 1"],
    "exploration=": ["exploration=|is one of"],
    "exploration=null": ["exploration=null|is one of"],
    "exploration=[token_sampling]": ["exploration=[token_sampling]|is one of"],
    "+exploration=stht": ["+exploration=stht|is one of"],
    "~exploration": ["~exploration|cannot be left out"],
    "~benchmark": ["~benchmark|cannot be left out"],
    "experiment/method=stht": ["experiment/method=stht|experiment=method/stht"],
    "experiment=method/sthht": ["experiment=method/sthht|experiment=method/stht"],
    "benchmark=[story_math,story_mth]": ["benchmark=[story_math,story_mth]|[story_math,story_math]"],
    "benchmark=[]": ["benchmark=[]|is one of"],
    "algorithm=grop": ["algorithm=grop|algorithm=grpo"],
    "trainer=smkoe": ["trainer=smkoe|trainer=smoke"],
    "task=stories": ["task=stories|task is one of"],
    "logger=nothing": ["logger=nothing|logger is one of"],
    "hydra/launcher=nope": ["hydra/launcher=nope|basic"],
    "hydra/launcher=[]": ["hydra.launcher|hydra/launcher=basic"],
    "-m ~hydra/sweeper": ["hydra.sweeper|hydra/sweeper=ngrpo"],
    "hydra.searchpath=3": ["hydra.searchpath=3|list of strings"],
    "+checkpoints=[1]": ["+checkpoints=[1]|has parts; checkpoints.keep=2"],
    "hydra.foo=1": ["hydra.foo=1|hydra.foo"],
    # values
    "seed=abc": ["seed=abc|whole number|seed=0"],
    "steps=0": ["steps=0|at least 1|steps=50"],
    "steps=2.5": ["steps=2.5|whole number"],
    "steps=true": ["steps=true|whole number"],
    "steps=null": ["steps=null|whole number"],
    "group_size=08": ["group_size=08|whole number"],
    "group_size=1": ["group_size=1|at least 2|because|group_size=8"],
    "group_size=99999999999999999999": ["group_size=99999999999999999999|64 bits"],
    "temperature=nan": ["temperature=nan|above 0"],
    "temperature=inf": ["temperature=inf|above 0"],
    "temperature=1e400": ["temperature=1e400|above 0"],
    "temperature=0": ["temperature=0|above 0|because a softmax"],
    "learning_rate=1e-999": ["learning_rate=1e-999|rounded to 0"],
    "learning_rate=-1": ["learning_rate=-1|at least 0"],
    "top_p=1.5": ["top_p=1.5|at most 1"],
    "fresh=yes": ["fresh=yes|true or false|fresh=false"],
    "optimizer.schedule=cosin": ["optimizer.schedule=cosin|constant, |optimizer.schedule=cosine"],
    "optimizer.betas=[0.9]": ["optimizer.betas=[0.9]|list of 2"],
    "optimizer.betas.1=1.5": ["optimizer.betas=[0.9,1.5]|below 1"],
    "problems=0": ["problems=0|or null"],
    "trainer.precision=bf16": ["trainer.precision=bf16|float32, bfloat16"],
    "model.dtype=float8": ["model.dtype=float8|model.dtype=float32"],
    r'model.stop=["\n",5]': [r"""is a backslash and a letter|model.stop=$'["\n", 5]'"""],
    "model.path=3": ["model.path=3|text"],
    "task.size=many": ["task.size=many|whole number"],
    "task.split=tset": ["task|'tset'|train"],
    "benchmark.story_math.levels=[99]": ["benchmark.story_math|99|benchmark.story_math.levels"],
    "steps=${nope}": ["steps=${nope}|leads nowhere|steps=50"],
    "steps=${steps}": ["steps=${steps}|leads nowhere"],
    "model=${model}": ["model=${model}|hf, llama_3_2_1b"],
    "model=hf": ["model.path: has no value"],
    "exploration=neighbor_mix mix_rate=1.5": ["mix_rate=1.5|from 0 to 1|because it is a probability|mix_rate=0.1"],
    **{
        f"exploration=param_noise algorithm.correction={kind}": [
            f"algorithm.correction={kind}|tis, mis|because answers come from weights with noise|algorithm.correction=tis"
        ]
        for kind in ("none", "bypass", "rejection")
    },
    "exploration=param_noise exploration.targets=mpl": ["exploration.targets=mpl|all, mlp|exploration.targets=mlp"],
    "exploration=rollout_dropout exploration.dropout=1": ["exploration.dropout=1|below 1|because it is a share"],
    "exploration=neighbor_mix k=0": ["k=0|at least 1|k=3"],
    "exploration=neighbor_mix exploration.k=0": ["exploration.k=0|at least 1|exploration.k=3"],
    "exploration=neighbor_mix exploration.metric=cosinee": ["exploration.metric=cosinee|exploration.metric=cosine"],
    "exploration=neighbor_mix exploration.metrik=dot": ["exploration.metrik=dot|exploration.recipe.metric=dot"],
    "exploration=neighbor_mix +exploration.metric=dot": ["+exploration.metric=dot|is there already|exploration.metric=dot"],
    "exploration=neighbor_mix exploration.rate=2": ["exploration.rate=2|from 0 to 1|exploration.rate=0.1"],
    "exploration=neighbor_mix exploration.k=2 exploration.recipe.k=3": ["exploration.k=2|given as well|keep one"],
    "exploration=neighbor_mix exploration.realisation=sampled": [
        "exploration.realisation=sampled|is now called exploration.text_token|exploration.text_token=sampled"
    ],
    "exploration=stht exploration.realisation=sampled": ["exploration.realisation=sampled|exploration.text_token=sampled"],
    "-m exploration=neighbor_mix,stht exploration.realisation=anchor,sampled": [
        "exploration.realisation=anchor,sampled|exploration.text_token=anchor,sampled"
    ],
    # values that do not fit each other, the model or the machine
    "exploration.top_k=5000": ["exploration.top_k=5000|at most|because the model has|exploration.top_k="],
    "exploration=gumbel_soft exploration.thinking_top_k=99999": ["exploration.thinking_top_k=99999|at most"],
    "exploration=neighbor_mix k=5000": ["k=5000|at most|neither special nor added"],
    "exploration=stht algorithm.inner_epochs=2": ["algorithm.inner_epochs=2|must be 1|Gaussian"],
    "exploration=stht algorithm.kl.coefficient=0.1": ["algorithm.kl.coefficient=0.1|must be 0|Gaussian"],
    "trainer.devices=3": ["trainer.devices=3|must divide prompts_per_step=32|prompts_per_step=33"],
    "algorithm.mini_batches=33": ["algorithm.mini_batches=33|at most 32"],
    "max_new_tokens=100000": ["max_new_tokens=100000|positions|max_new_tokens="],
    "task.size=3": ["prompts_per_step=32|3 problems"],
    "trainer=gpu": ["trainer.accelerator=gpu|no GPU|trainer=cpu"],
    "model=./nothing": ["model.path=./nothing|is no directory"],
    "model=conf/nothing": ["model.path=conf/nothing|is no directory"],
    "model=a/b/c": ["model.path=a/b/c|is no directory"],
    "model.path=nothing": ["model.path=nothing|is no directory"],
    "model=conf": ["model.path=conf|config.json"],
    "hydra.run.dir=/proc/x": ["hydra.run.dir=/proc/x|cannot be written"],
    "hydra.run.dir=train.py/x": ["hydra.run.dir=train.py/x|is a file"],
    "hydra.run.dir=/": ["hydra.run.dir=/|a directory of its own|hydra.run.dir=outputs/"],
    "hydra.run.dir=..": ["hydra.run.dir=..|a directory of its own"],
    "hydra.run.dir=''": ["hydra.run.dir=|must be a directory"],
    # what may be built
    "exploration._target_=os.system": ["exploration._target_=os.system|may be built"],
    "exploration._target_=ngrpo.exploration.stht.torch.load": ["ngrpo.exploration.stht.torch.load|no module"],
    "exploration._target_=ngrpo.exploration.stht.SoftToken": ["SoftToken: |defines no SoftToken, but SoftTokens"],
    "exploration._target_=ngrpo.algorithm.losses.__loader__": ["_target_=ngrpo.algorithm.losses.__loader__|private"],
    "exploration._target_=ngrpo.rundir.files.write_atomically": ["ngrpo.rundir.files.write_atomically|may be built"],
    f"task._target_={TARGET}": [f"task._target_={TARGET}|below ngrpo.tasks"],
    f"evaluation.exploration._target_={TARGET}": [f"evaluation.exploration._target_={TARGET}|a file names the class"],
    "optimizer.betas=[{_target_: os.system},1]": ["optimizer.betas=|list of 2", "os.system|may be built"],
    "+hydra.callbacks.x._target_=hydra_plugins.ngrpo_sweeper.sweeper.Path": ["sweeper.Path: only launchers"],
    "+hydra.callbacks.x._target_=logging.os.PathLike": ["logging.os.PathLike: only launchers"],
    "+hydra.callbacks.x._target_=os.system": ["hydra.callbacks.x._target_=os.system|leave it out"],
    "+hydra.job_logging.formatters={x: {(): os.system}}": ["cannot be read"],
    "+hydra.job_logging.handlers={x: {class: os.system}}": ["handlers.x.class=os.system|leave it out"],
    # options
    "--lr=1": ["--lr=1|is no option|lr=1"],
    "--multirum": ["--multirum|--multirun"],
    "--cfg": ["--cfg|expected one argument|--help"],
    "--experimental-rerun x": ["--experimental-rerun x|is no option"],
    "--config-path x": ["--config-path x|is no option"],
    "--cfg job mixrate=1": ["mixrate=1|mix_rate"],
    # sweeps
    "-m seed=1,-2": ["seed=-2|from 0"],
    "-m group_size=range(1,4)": ["group_size=1|at least 2"],
    "-m learning_rate=interval(-1,1)": ["learning_rate=-1|at least 0"],
    "-m exploration=token_sampling,neighbour_mix": ["exploration=neighbour_mix|exploration=neighbor_mix"],
    "-m exploration=token_sampling,neighbor_mix mix_rate=0.1,2": ["mix_rate=2|from 0 to 1"],
    "-m experiment=controls/nothing seed=-1": ["experiment=controls/nothing|controls/neighbor_mix", "seed=-1|from 0"],
    "-m exploration=token_sampling,stht mix_rate=0.1": ["mix_rate=0.1|exploration=neighbor_mix"],
    "-m model=./a,./b": ["model.path=./a|is no directory", "model.path=./b|is no directory"],
    # all at once
    "steps=2.5 fresh=maybe lr=1 exploration=neighbor_mix mix_rate=1.5 algorithm.loss.dual_clip=0.5": [
        "lr=1|learning_rate", "steps=2.5|whole", "fresh=maybe|true", "mix_rate=1.5|from 0", "dual_clip=0.5|null",
    ],
}  # fmt: skip
WRONG_EVALUATION = {
    "": ["nothing to evaluate|run=|model="],
    "run=nothing": ["run=nothing|is no directory"],
    "run=conf": ["run=conf|run.json"],
    "run=conf model=tiny": ["run=conf|run.json", "run=conf|leave model out"],
    "n=0": ["n=0|at least 1|n=32"],
    "steps=3": ["steps=3|there is no steps"],
    "algorithm=grpo": ["algorithm=grpo|there is no algorithm here"],
    "mix_rate=0.1": ["mix_rate=0.1|exploration=neighbor_mix"],
    "exploration=neighbor_mix mix_rate=3": ["mix_rate=3|from 0 to 1"],
    "benchmark=nothing": ["benchmark=nothing|story_math"],
    "max_new_tokens=5000": ["max_new_tokens=5000|positions"],
}
CASES = [("config", line) for line in WRONG] + [("evaluate", line) for line in WRONG_EVALUATION]


def split(line: str) -> list[str]:
    """Arguments apart, but for the few with blanks inside braces."""
    return [line] if "{" in line and " " in line else line.split()


PROGRAM = f"""
import json, sys
from ngrpo.cli import command, conf
from ngrpo.cli.composition import Schema
schemas = {{}}  # the YAML files stay the same: read once for all cases
command.Schema = lambda name: schemas.setdefault((name, *conf.PLACES), Schema(name))
found = [command.examine(name, argv).problems for name, argv in json.load(sys.stdin)]
print(json.dumps([found, [name for name in {HEAVY} if name in sys.modules]]))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """What becomes of all cases, found out in one fresh process in an empty directory."""
    place = tmp_path_factory.mktemp("place")
    (place / "train.py").touch()
    (place / "conf").mkdir()
    cases = json.dumps([(name, split(line)) for name, line in CASES])
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, input=cases, capture_output=True, text=True, cwd=place, env=environment)
    assert done.returncode == 0, done.stderr
    found, heavy = json.loads(done.stdout)
    return dict(zip(CASES, found, strict=True)), heavy, sorted(path.name for path in place.iterdir())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}: {case[1]}"[:60])
def test_each_mistake_is_one_line_with_key_value_and_what_is_allowed(refusals, case):
    name, line = case
    expected = (WRONG if name == "config" else WRONG_EVALUATION)[line]
    lines = refusals[0][case]
    assert len(lines) == len(expected), lines
    for words in expected:
        assert any(all(word in shown for word in words.split("|")) for shown in lines), (words, lines)
    assert all(shown.isprintable() and len(shown) <= 600 for shown in lines)


def test_nothing_heavy_is_imported_and_nothing_written(refusals):
    _, heavy, files = refusals
    assert heavy == []
    assert files == ["conf", "train.py"]


def entry_point(script: str, *argv: str, cwd: Path) -> subprocess.CompletedProcess:
    return warm.run(script, *argv, folder=cwd)


@pytest.mark.parametrize(
    ("line", "mistakes"),
    [
        ("train.py mixrate=0.1 exploration=neighbor_mix mix_rate=1.5 k=0 --multirum", 4),
        ("train.py steps=[1 hydra.run.dir=/proc/x", 2),
        ("train.py -m seed=1,-1", 1),
        ("train.py -m experiment=controls/nothing seed=0,1", 1),
        ("train.py exploration=neighbour_mix", 1),
        ("train.py exploration.top_k=5000", 1),
        ("train.py exploration._target_=os.system", 1),
        ("train.py model=./nothing", 1),
        ("train.py hydra.run.dir=/", 1),
        ("evaluate.py", 1),
        ("evaluate.py run=nothing n=0", 2),
        ("diagnose.py strategies=[neighbor_mix]", 1),
        ("report.py runs=outputs kinds=[nothing]", 1),
        ("plan.py plan.device=h1000", 1),
        ("audit.py benchmark=nothing", 1),
    ],
)
def test_the_entry_points_end_with_status_2(tmp_path, line, mistakes):
    done = entry_point(*line.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == mistakes and all(re.fullmatch(r"error: .+; .+", shown) for shown in lines), done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argv", [["--version"], ["--help"], ["--cfg", "job", "seed=3"], ["seed=3", "--info", "defaults"]]
)
def test_questions_are_answered(tmp_path, argv):
    done = entry_point("train.py", *argv, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout
    assert list(tmp_path.iterdir()) == []


JOB = """
import sys
from pathlib import Path
from hydra.core.hydra_config import HydraConfig
from ngrpo import cli
from ngrpo.targets import SettingsError
class Locked(RuntimeError):
    one_line = True
def main(config):
    runtime = HydraConfig.get().runtime
    print("seed", config.seed, runtime.choices["exploration"], Path(runtime.output_dir).name[:19])
    if config.seed == 1: raise Locked("the run is at work elsewhere")
    if config.seed == 2: raise KeyError("a bug")
    if config.seed == 3: raise KeyboardInterrupt
    if config.seed == 4: raise SettingsError(["a=1: must be 2; a=2", "b=1: must be 2; b=2"])
cli.prepare("config")
cli.run(main)
"""


@pytest.mark.parametrize(
    ("argv", "status", "errors"),
    [
        (["seed=2"], 1, ["Traceback", "KeyError: 'a bug'"]),
        (["seed=3"], 130, ["error: interrupted"]),
        (["seed=4"], 2, ["error: a=1: must be 2; a=2", "error: b=1: must be 2; b=2"]),
        (["-m", "seed=1,2,0"], 1, ["error: seed=1: the run is at work elsewhere", "KeyError: 'a bug'"]),
    ],
    ids=["bug", "interrupt", "settings", "multirun"],
)
def test_how_a_job_ends_is_the_exit_status(tmp_path, argv, status, errors):
    done = warm.run(JOB, *argv, folder=tmp_path)
    assert done.returncode == status, done.stderr
    assert all(error in done.stderr for error in errors)
    assert ("Traceback" in done.stderr) == any("KeyError" in error for error in errors)
    seeds = argv[-1].removeprefix("seed=").split(",")
    told = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("seed ")]
    assert told == seeds  # the other jobs of a multirun go on
