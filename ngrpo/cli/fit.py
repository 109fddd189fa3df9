"""Whether values fit one another, the model, the tasks and this machine. It leaves out values that are invalid alone.

Torch, which takes seconds to import, is not asked about the machine.
"""

import json
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
    from ngrpo.cli.checks import Settings

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


def model(settings: "Settings") -> Iterator[str]:
    """The model's directory, or the run that evaluate.py is pointed at, has all that is needed and comes alone."""
    run, path = settings.values.get("run"), settings.get("model.path")
    if run is not None:
        if refusal := files.run_refusal(run, settings.values.get("trust_changed") is True):
            settings.invalid.add("run")
            yield settings.problem("run", refusal, "run=outputs/<experiment or task>/<run>")
        if any(key.partition(".")[0] == "model" for key in settings.given):
            yield settings.problem("run", "a run brings its own model", "leave model out, or run")
    elif path is not None and (refusal := files.refusal(path, bool(settings.values.get("model.trust_remote_code")))):
        settings.invalid.add("model.path")
        yield settings.problem("model.path", refusal, "model=tiny is the bundled one")


def stops(settings: "Settings") -> Iterator[str]:
    """A stop is the text itself: a backslash and an n end no answer, where a line break was meant."""
    texts = settings.get("model.stop") or []
    escaped = [text for text in texts if isinstance(text, str) and ESCAPED.search(text)]
    if escaped:
        meant = [ESCAPED.sub(lambda found: ESCAPES[found[1]], text) if text in escaped else text for text in texts]
        typed = json.dumps(meant, ensure_ascii=False).replace("'", "\\'")
        rule = f"{printable(escaped[0])} is a backslash and a letter here"
        yield settings.problem("model.stop", rule, f"model.stop=$'{typed}' in a shell has the character itself")


def precision(settings: "Settings") -> Iterator[str]:
    """What learns is kept in float32: the next bfloat16 is 0.4 % away, so that small updates would leave it."""
    learns = "algorithm" in settings.tree and not settings.values.get("model.lora.r")  # adapters are in float32 anyway
    if learns and settings.get("model.dtype") == "bfloat16":
        rule = "weights in bfloat16 swallow updates below 0.4 % of their size; float32 ones may compute in it"
        yield settings.problem("model.dtype", rule, "model.dtype=float32 trainer.precision=bfloat16")


def packages(settings: "Settings") -> Iterator[str]:
    """Trackers have their optional packages."""
    for path, node in targets.nodes(settings.tree):
        needs = PACKAGES.get(str(node["_target_"]).rpartition(".")[2], {})
        if needs and not any(find_spec(module) for module in needs):
            package, group = next(iter(needs.values())), path.partition(".")[0]
            key = group if group in settings.given else f"{path}._target_"
            yield settings.problem(
                key, f"needs the package {package}, which is not installed", f"pip install {package}"
            )


def loggers(settings: "Settings") -> Iterator[str]:
    """Loggers write in the run directory, which they are given, and nowhere else on this machine."""
    logger = settings.tree.get("logger")
    for key, value in leaves(logger, "logger") if isinstance(logger, Mapping) else ():
        place = value is not None and DIRECTORIES.fullmatch(key.rpartition(".")[2])
        if place or (isinstance(value, str) and (LEADS_OUT.match(value) or ".." in re.split(r"[\\/]", value))):
            yield settings.problem(key, "must not lead out of the run directory, where loggers write", "leave it out")


def parallel(settings: "Settings") -> Iterator[str]:
    """There are as many devices as asked for, unless only a plan is; and groups stay whole on them."""
    devices, prompts = settings.get("trainer.devices"), settings.get("prompts_per_step")
    gpu, processes = settings.get("trainer.accelerator") == "gpu", launched()
    here = gpu and devices and not (settings.only_planned or elsewhere(settings.config))
    if here and (refusal := gpu_refusal(devices)):
        yield settings.problem("trainer.accelerator", refusal, "trainer=cpu")
    if settings.values.get("trainer.cpu_offload") is True and not (gpu and settings.get("trainer.strategy") == "fsdp"):
        rule = "only what trainer=fsdp keeps in parts on GPUs can stay in the CPU's memory"
        yield settings.problem("trainer.cpu_offload", rule, "trainer.cpu_offload=false")
    if not devices or not prompts:
        return
    most = prompts // devices
    if processes and devices != processes.world:
        yield settings.problem("trainer.devices", f"must be the {processes.world} that were launched", "leave it out")
    elif prompts % devices:
        rule = f"must divide {settings.override('prompts_per_step')}, because whole groups stay on one device"
        yield settings.problem("trainer.devices", rule, f"prompts_per_step={devices * (most + 1)}")
    elif (settings.get("algorithm.mini_batches") or 0) > most:
        reason = f"because a device has {most} of the prompts and groups stay whole"
        yield settings.too_large("algorithm.mini_batches", most, reason)


def sizes(settings: "Settings") -> Iterator[str]:
    """The algorithm's sizes fit the group and the longest answer; in a diagnosis a group fits the samples drawn."""
    pairs = [("algorithm.pass_k", "group_size"), ("algorithm.reward_shaping.overlong.buffer", "max_new_tokens")]
    pairs += [("group_size", "n")] if "strategies" in settings.values else []
    for key, other in pairs:
        most = settings.get(other)
        if most is not None and (settings.get(key) or 0) > most:
            yield settings.problem(key, f"must be at most {settings.override(other)}", f"{key}={most}")


def vocabulary(settings: "Settings") -> Iterator[str]:
    """The vocabulary has as many tokens as a filter keeps, and as many ordinary ones as a mixture has candidates."""
    place = _model_directory(settings)
    rows, words = (files.rows(place), files.ordinary_tokens(place)) if place else (None, None)
    for key in filter(COUNTS.fullmatch, settings.values):
        name, repeats = key.rpartition(".")[2], key != "k" and settings.unresolved.get(key) == "${k}"
        most, which = (words, " that are neither special nor added") if name == "k" else (rows, "")
        if most is not None and not repeats and (settings.get(key) or 0) > most:
            reason = f"because the model has {most} tokens{which}"
            yield settings.too_large(key, most, reason, min(most, 3 if name == "k" else 20))


CHECKS = (model, stops, precision, packages, loggers, parallel, sizes, vocabulary)


def tasks(settings: "Settings") -> Iterator[str]:
    """The training set and the benchmarks can be built, are large enough, and prompts fit the model; a plan needs none, and
    an audit is there to say why they cannot be built."""
    nodes = {f"benchmark.{name}": node for name, node in (settings.tree.get("benchmark") or {}).items()}
    nodes |= {"task": settings.tree["task"]} if "task" in settings.tree else {}
    prompts: dict[str, tuple[str, ...]] = {}
    if settings.only_planned or "audit.rows" in settings.values:
        return
    for path, node in nodes.items():
        if any(f"{key}.".startswith(f"{path}.") for key in settings.invalid):
            continue
        try:
            size, prompts[path], talks = _prompts(json.dumps(node), TRAINING_PROMPTS if path == "task" else None)
        except (ValueError, TypeError, LookupError, OSError, ImportError) as error:
            yield f"{path}: {' '.join(str(error).split())}".replace(" task.", f" {path}.")
            continue
        if talks and settings.get("model.prompt") not in ("chat", "no_thinking", None):
            reason = f"because {path} has conversations, with system messages or earlier turns"
            yield settings.problem("model.prompt", f"must be chat, {reason}", "model.prompt=chat")
        if path == "task" and size < (settings.get("prompts_per_step") or 0):
            yield settings.too_large("prompts_per_step", size, f"because the task has {size} problems")
    yield from _context(settings, prompts)


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
def _longest(prompts: tuple[str, ...], tokenizer: Tokenizer) -> int:
    return max(map(len, tokenizer.encode_batch(list(prompts))), default=0)


def _context(settings: "Settings", prompts: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    place = _model_directory(settings)
    tokenizer, positions = (files.tokenizer(place), files.positions(place)) if place else (None, None)
    if tokenizer is None or positions is None or not any(prompts.values()):
        return
    longest, path = max(
        ((_longest(texts, tokenizer), path) for path, texts in prompts.items()), key=lambda pair: pair[0]
    )
    room, reason = (
        positions - longest,
        f"because a prompt of {path} has {longest} tokens and the model {positions} positions",
    )
    if room < 1:
        yield f"{path}: does not fit, {reason}; choose another model or {path.partition('.')[0]}"
    elif (settings.get("max_new_tokens") or 0) > room:
        yield settings.too_large("max_new_tokens", room, reason)


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


def _model_directory(settings: "Settings") -> Path | None:
    run, path = settings.get("run"), settings.get("model.path")
    return files.directory(f"{run}/hf" if run else path) if run or path else None
