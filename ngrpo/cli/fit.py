"""Whether values fit one another, the model, the tasks and this machine. It leaves out values that are broken alone.

Torch, which takes seconds to import, is not asked about the machine.
"""

import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from ngrpo import composed, targets
from ngrpo.cli.launchers import elsewhere
from ngrpo.cli.rules import printable
from ngrpo.launched import launched
from ngrpo.models import files
from ngrpo.rundir.schema import leaves

if TYPE_CHECKING:
    from ngrpo.cli.checks import Composed

ESCAPED = re.compile(r"\\([nrt])(?![a-z])")  # a line break as it is written elsewhere; \neq is a formula
ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
TRAINING_PROMPTS = 200  # of a training set are measured against the context; of a benchmark all are
PACKAGES = {  # class of a tracker -> a module that it needs, and what to install for it
    "TensorBoard": {"tensorboard": "tensorboard", "tensorboardX": "tensorboardX"},
    "Wandb": {"wandb": "wandb"},
    "MLflow": {"mlflow": "mlflow-skinny"},  # mlflow itself does not resolve with constraints.txt
    "Trackio": {"trackio": "trackio"},
}
DIRECTORIES = re.compile(r"(save_|root_|log_|default_root_|offline_)?dir(ectory)?")  # settings of loggers
LEADS_OUT = re.compile(r"[/~\\]|[A-Za-z]:|(file|sqlite)[^/]*:")  # an absolute path, or the URL of a file
COUNTS = re.compile(r"exploration\.(\w+\.)?(k|top_k|thinking_top_k|max_topk|answer_top_k)|k")  # of tokens


def model(seen: "Composed") -> Iterator[str]:
    """The model's directory, or the run that evaluate.py is pointed at, has all that is needed and comes alone."""
    run, named = seen.values.get("run"), [key for key in seen.given if key.partition(".")[0] == "model"]
    if run is not None and (refusal := files.run_refusal(run, seen.values.get("trust_changed") is True)):
        seen.broken.add("run")
        yield f"{seen.shown('run')}: {refusal}; run=outputs/<experiment or task>/<run>"
    if run is not None and named:
        yield f"{seen.shown('run')}: a run brings its own model; leave model out, or run"
    if run is None and seen.sound("model.path"):
        remote = bool(seen.values.get("model.trust_remote_code"))
        path = seen.values["model.path"]
        if refusal := files.refusal(path, remote):
            seen.broken.add("model.path")
            yield f"{seen.shown('model.path')}: {refusal}; model=tiny is the bundled one"


def stops(seen: "Composed") -> Iterator[str]:
    """A stop is the text itself: a backslash and an n end no answer, where a line break was meant."""
    if seen.sound("model.stop"):
        texts = seen.tree["model"]["stop"]
        escaped = [text for text in texts if isinstance(text, str) and ESCAPED.search(text)]
        if escaped:
            meant = [ESCAPED.sub(lambda found: ESCAPES[found[1]], text) if text in escaped else text for text in texts]
            typed = json.dumps(meant, ensure_ascii=False).replace("'", "\\'")
            what = f"{printable(escaped[0])} is a backslash and a letter here"
            yield f"{seen.shown('model.stop')}: {what}; model.stop=$'{typed}' in a shell has the character itself"


def packages(seen: "Composed") -> Iterator[str]:
    """Trackers have their optional packages."""
    for path, node in targets.nodes(seen.tree):
        needs = PACKAGES.get(str(node["_target_"]).rpartition(".")[2], {})
        if needs and not any(map(find_spec, needs)):
            group, package = path.partition(".")[0], next(iter(needs.values()))
            what = seen.shown(group if group in seen.given else f"{path}._target_")
            yield f"{what}: needs the package {package}, which is not installed; pip install {package}"


def loggers(seen: "Composed") -> Iterator[str]:
    """Loggers write in the run directory, which they are given, and nowhere else on this machine."""
    logger = seen.tree.get("logger")
    for key, value in leaves(logger, "logger") if isinstance(logger, Mapping) else ():
        place = value is not None and DIRECTORIES.fullmatch(key.rpartition(".")[2])
        if place or (isinstance(value, str) and (LEADS_OUT.match(value) or ".." in re.split(r"[\\/]", value))):
            yield f"{seen.shown(key)}: must not lead out of the run directory, where loggers write; leave it out"


def parallel(seen: "Composed") -> Iterator[str]:
    """There are as many devices as asked for, unless only a plan is; and groups stay whole on them."""
    gpu = seen.sound("trainer.accelerator", "trainer.devices") and seen.values["trainer.accelerator"] == "gpu"
    here = gpu and not (seen.plans or elsewhere(seen.config))
    if here and (refusal := gpu_refusal(seen.values["trainer.devices"])):
        yield f"{seen.shown('trainer.accelerator')}: {refusal}; trainer=cpu"
    cut = (seen.values.get("trainer.strategy"), seen.values.get("trainer.accelerator")) == ("fsdp", "gpu")
    if seen.values.get("trainer.cpu_offload") is True and not cut:
        rule = "only what trainer=fsdp keeps in parts on GPUs can stay in the CPU's memory"
        yield f"{seen.shown('trainer.cpu_offload')}: {rule}; trainer.cpu_offload=false"
    if not seen.sound("trainer.devices", "prompts_per_step"):
        return
    devices, prompts, told = seen.values["trainer.devices"], seen.values["prompts_per_step"], launched()
    if told and devices != told.world:
        yield f"{seen.shown('trainer.devices')}: must be the {told.world} that were launched; leave it out"
    elif prompts % devices:
        rule = f"must divide {seen.shown('prompts_per_step')}, because whole groups stay on one device"
        yield f"{seen.shown('trainer.devices')}: {rule}; prompts_per_step={devices * math.ceil(prompts / devices)}"
    elif seen.sound("algorithm.mini_batches") and seen.values["algorithm.mini_batches"] > (most := prompts // devices):
        rule = f"must be at most {most}, because a device has {most} of the prompts and groups stay whole"
        yield f"{seen.shown('algorithm.mini_batches')}: {rule}; algorithm.mini_batches={most}"


def sizes(seen: "Composed") -> Iterator[str]:
    """The algorithm's sizes fit the group and the longest answer; in a diagnosis a group fits the samples drawn."""
    pairs = [("algorithm.pass_k", "group_size"), ("algorithm.reward_shaping.overlong.buffer", "max_new_tokens")]
    pairs += [("group_size", "n")] if "strategies" in seen.values else []
    for key, most in pairs:
        if seen.sound(key, most) and seen.values[key] > seen.values[most]:
            yield f"{seen.shown(key)}: must be at most {seen.shown(most)}; {key}={seen.values[most]}"


def vocabulary(seen: "Composed") -> Iterator[str]:
    """The vocabulary has as many tokens as a filter keeps, and as many ordinary ones as a mixture has candidates."""
    place = _model_directory(seen)
    rows, words = (files.rows(place), files.ordinary_tokens(place)) if place else (None, None)
    for key in filter(COUNTS.fullmatch, seen.values):
        name, repeats = key.rpartition(".")[2], key != "k" and seen.raw.get(key) == "${k}"
        most, what = (words, " that are neither special nor added") if name == "k" else (rows, "")
        if most is not None and not repeats and seen.sound(key) and seen.values[key] > most:
            reason = f"because the model has {most} tokens{what}"
            yield f"{seen.shown(key)}: must be at most {most}, {reason}; {key}={min(most, 3 if name == 'k' else 20)}"


def precision(seen: "Composed") -> Iterator[str]:
    """What learns is kept in float32: the next bfloat16 is 0.4 % away, so that small updates would leave it."""
    learns = "algorithm" in seen.tree and not seen.values.get("model.lora.r")  # adapters are in float32 anyway
    if learns and seen.sound("model.dtype") and seen.values["model.dtype"] == "bfloat16":
        rule = "weights in bfloat16 swallow updates below 0.4 % of their size; float32 ones may compute in it"
        yield f"{seen.shown('model.dtype')}: {rule}; model.dtype=float32 trainer.precision=bfloat16"


CHECKS = (model, stops, precision, packages, loggers, parallel, sizes, vocabulary)


def tasks(seen: "Composed") -> Iterator[str]:
    """The training set and the benchmarks can be built, are large enough, and prompts fit the model; a plan needs none, and
    an audit is there to say why they cannot be built."""
    nodes = {f"benchmark.{name}": node for name, node in (seen.tree.get("benchmark") or {}).items()}
    nodes |= {"task": seen.tree["task"]} if "task" in seen.tree else {}
    prompts: dict[str, tuple[str, ...]] = {}
    if seen.plans or "audit.rows" in seen.values:
        return
    for path, node in nodes.items():
        broken = any(key == path or key.startswith(f"{path}.") for key in seen.broken)
        if broken:
            continue
        try:
            size, prompts[path], talks = _prompts(json.dumps(node), TRAINING_PROMPTS if path == "task" else None)
        except (ValueError, TypeError, LookupError, OSError, ImportError) as error:
            yield f"{path}: {' '.join(str(error).split())}".replace(" task.", f" {path}.")
            continue
        form = seen.values.get("model.prompt", "chat")
        if talks and form not in ("chat", "no_thinking") and seen.sound("model.prompt"):
            reason = f"because {path} has conversations, with system messages or earlier turns"
            yield f"{seen.shown('model.prompt')}: must be chat, {reason}; model.prompt=chat"
        if path == "task" and seen.sound("prompts_per_step") and size < seen.values["prompts_per_step"]:
            reason = f"because the task has {size} problems"
            yield f"{seen.shown('prompts_per_step')}: must be at most {size}, {reason}; prompts_per_step={size}"
    yield from _context(seen, prompts)


@lru_cache(maxsize=64)  # the jobs of a sweep mostly share their tasks
def _prompts(node: str, most: int | None) -> tuple[int, tuple[str, ...], bool]:
    """(number of problems, the first prompts, whether any is a conversation) of a task, whose module imports neither torch
    nor transformers.

    Of messages only the shortest prompt: those that are too long for the model are left out of the run and counted.
    """
    content = json.loads(node)
    if not isinstance(content, dict) or "_target_" not in content:
        raise ValueError("has no _target_, so there is no task to build")
    problems = composed.task(content).problems
    first = problems[:most]
    if all(problem.is_message for problem in first):
        first = [min(first, key=lambda problem: len(problem.prompt))]
    talks = any(problem.messages for problem in problems)
    return len(problems), tuple(problem.prompt for problem in first), talks


@lru_cache(maxsize=64)
def _longest(prompts: tuple[str, ...], words: Tokenizer) -> int:
    return max(map(len, words.encode_batch(list(prompts))), default=0)


def _context(seen: "Composed", prompts: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    place = _model_directory(seen)
    words, positions = (files.tokenizer(place), files.positions(place)) if place else (None, None)
    if words is None or positions is None or not any(prompts.values()):
        return
    lengths = {path: _longest(texts, words) for path, texts in prompts.items()}
    path = max(lengths, key=lambda path: lengths[path])
    longest, room = lengths[path], positions - lengths[path]
    reason = f"because a prompt of {path} has {longest} tokens and the model {positions} positions"
    if room < 1:
        yield f"{path}: does not fit, {reason}; choose another model or {path.partition('.')[0]}"
    elif seen.sound("max_new_tokens") and seen.values["max_new_tokens"] > room:
        yield f"{seen.shown('max_new_tokens')}: must be at most {room}, {reason}; max_new_tokens={room}"


def gpu_refusal(devices: int) -> str | None:
    """Why a run cannot use `devices` GPUs, as a phrase; None where it looks as if it could."""
    hidden, nodes = os.environ.get("CUDA_VISIBLE_DEVICES"), list(Path("/dev").glob("nvidia[0-9]*"))
    if hidden in ("", "-1") or not (nodes or any(Path(path).exists() for path in ("/dev/kfd", "/dev/dxg"))):
        return "this machine shows no GPU"
    if "cpu" in version("torch"):
        return f"this torch ({version('torch')}) is built for the CPU only"
    count = len(hidden.split(",")) if hidden else len(nodes)
    return f"this machine shows {count} of the {devices} GPUs asked for" if 0 < count < devices else None


def directory_refusal(path: str) -> str | None:
    """Why a run cannot have the directory `path`, which need not exist, as a phrase; None where it can."""
    place = Path(os.path.abspath(path))
    if not path or "\0" in path:
        return "must be a directory"
    if place in Path.cwd().parents or place == Path(place.anchor):
        return "holds much else, and a run needs a directory of its own"
    try:
        while not place.exists():
            place = place.parent
        # Being allowed to write says little: root may write anywhere, and to /proc it still cannot.
        os.rmdir(tempfile.mkdtemp(prefix=".writable-", dir=place))
    except NotADirectoryError:
        return f"{place} is a file, not a directory"
    except OSError as error:
        return f"cannot be written to ({error.strerror or error})"
    return None


def _model_directory(seen: "Composed") -> Path | None:
    if seen.sound("run"):
        return files.directory(f"{seen.values['run']}/hf")
    return files.directory(seen.values["model.path"]) if seen.sound("model.path") else None
