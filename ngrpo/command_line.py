"""The command line of the entry points: mistakes are told before anything heavy is imported, then Hydra runs the job.

It does not know what the job does.
"""

import functools
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ngrpo import __version__, records, settings, targets
from ngrpo.jobs import Job
from ngrpo.overrides import parse, variants
from ngrpo.schema import Schema, alike
from ngrpo.settings import SettingsError

CONF = Path(__file__).resolve().parents[1] / "conf"
VERSION_BASE = "1.3"
SHOWING = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}
OPTIONS = SHOWING | {"--resolve", "--run", "-r", "--multirun", "-m", "--package", "-p", "--config-dir", "-cd"}
WITH_VALUE = {"--cfg", "-c", "--package", "-p", "--config-dir", "-cd"}
OF_INFO = {"all", "config", "defaults", "defaults-tree", "plugins", "searchpath"}


@dataclass
class Examined:
    """What came of a command line: the arguments for Hydra, what is wrong with them, and what is odd."""

    argv: list[str]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def prepare(config_name: str) -> None:
    """Checks `sys.argv` and rewrites it for Hydra, before `run`.

    Problems go to stderr, one line each, and end the process with status 2. `--version` ends it with status 0;
    `--help`, `--cfg` and `--info` are left to Hydra.
    """
    if "--version" in sys.argv[1:]:
        print(f"ngrpo {__version__}")
        sys.exit(0)
    examined = examine(config_name, sys.argv[1:])
    if examined.problems:
        _end(examined.problems, 2)
    for note in examined.notes:
        print(f"note: {note}", file=sys.stderr)
    sys.argv[1:] = examined.argv


def examine(config_name: str, argv: list[str]) -> Examined:
    """All that is wrong with a command line, found by composing it as Hydra will; nothing is written."""
    _register_resolvers()
    options, tokens, problems = _sort(argv)
    with initialize_config_dir(str(CONF), job_name=config_name, version_base=VERSION_BASE):
        search_path = [token for token in tokens if token.startswith("hydra.searchpath=")]
        schema = Schema(GlobalHydra.instance().config_loader(), config_name, search_path)
        tokens = [part for token in tokens for part in _own_model(token, schema)]
        overrides, unread = parse(tokens)
        examined = Examined([*tokens, *options], problems + unread)
        if not {"-m", "--multirun"} & set(options) and "hydra.mode=MULTIRUN" not in tokens:
            for override in [override for override in overrides if override.is_sweep_override()]:
                text = str(override.input_line)
                examined.problems.append(f"{text}: several values need -m, one job for each; -m {text}")
                overrides.remove(override)
        if overrides or not SHOWING & set(options):
            jobs = [Job(schema, job) for job in variants(overrides)]
            _examine_jobs(examined, jobs, values=not SHOWING & set(options))
    examined.problems = list(dict.fromkeys(examined.problems))
    return examined


def run(main: Callable[[DictConfig], Any], config_name: str = "config") -> None:
    """Lets Hydra run `main` (decorated by `hydra.main` or not), once or for each job of a multirun.

    A mistake in the settings of a job ends the process with status 2, another error of ours with 1 and one line, an
    interrupt with 130; anything else is a bug and keeps its traceback. In a multirun the other jobs go on.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints part of a traceback and exits itself
    job, failures = inspect.unwrap(main), []

    @functools.wraps(job)
    def guarded(config: DictConfig) -> Any:
        several = HydraConfig.get().mode == RunMode.MULTIRUN
        try:
            if several:
                settings.check(config)
            return job(config)
        except Exception as error:
            failures.append(error)
            if several:  # the sweeper has to see it; alone, Hydra would only print the overrides again
                _tell(error, f"{HydraConfig.get().job.override_dirname}: ")
                raise
            return None

    try:
        hydra.main(config_path=str(CONF), config_name=config_name, version_base=VERSION_BASE)(guarded)()
    except KeyboardInterrupt:
        _end(["interrupted"], 130)
    except Exception as error:
        if error not in failures:
            failures.append(error)
            _tell(error)
    else:
        if len(failures) == 1 and not _is_ours(failures[0]):
            raise failures[0]
        for error in failures if len(failures) == 1 else ():
            _tell(error)
    if failures:
        sys.exit(2 if all(isinstance(error, (SettingsError, ConfigCompositionException)) for error in failures) else 1)


def build(node: DictConfig | Mapping[str, Any], **kwargs: Any) -> Any:
    """The object that a node with a `_target_` describes; `kwargs` go to it as they are.

    Raises:
        SettingsError: a target, here or further inside, that is not on the list of what may be built.
    """
    plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)
    assert isinstance(plain, dict)
    found = [(path, inner["_target_"], targets.refusal(inner["_target_"])) for path, inner in targets.nodes(plain)]
    lines = [f"{f'{path}.' if path else ''}_target_={target}: {refusal}" for path, target, refusal in found if refusal]
    if lines or "_target_" not in plain:
        raise SettingsError(lines or ["_target_: is missing, so there is nothing to build"])
    try:
        make = hydra.utils.instantiate({**plain, "_partial_": True}, _convert_="all")
    except InstantiationException as error:
        raise error.__cause__ or error
    return functools.partial(make, **kwargs) if plain.get("_partial_") else make(**kwargs)


def _examine_jobs(examined: Examined, jobs: list[Job], values: bool) -> None:
    unknown = {id(job): job.unknown() for job in jobs}
    found_somewhere = {o.key_or_group for job in jobs for o in job.values if o not in unknown[id(job)]}
    for job in jobs:
        for override in unknown[id(job)]:
            # In a sweep over strategies a knob need not suit each of them.
            if override.key_or_group not in found_somewhere and job.reference is not None:
                examined.problems += job.unknown_problem(override)
        if values:
            problems, notes = job.check()
            examined.problems += problems
            examined.notes += [note for note in notes if note not in examined.notes]
        examined.problems[:0] = job.problems


def _sort(argv: list[str]) -> tuple[list[str], list[str], list[str]]:
    """(options, overrides, problems): Hydra wants its options together, and reads some that are not for users."""
    options: list[str] = []
    tokens: list[str] = []
    problems: list[str] = []
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        name, _, value = token.partition("=")
        if not token.startswith("-"):
            tokens.append(token)
        elif name not in OPTIONS:
            near = alike(name, OPTIONS)
            fix = f"{name.lstrip('-')}={value}" if value else near or "--help lists the options"
            problems.append(f"{token}: is no option; {fix}")
        elif name in WITH_VALUE and not value and not rest:
            problems.append(f"{token}: needs a value; {token} <value>")
        else:
            follows = name in WITH_VALUE and not value or name in ("--info", "-i") and rest[:1] and rest[0] in OF_INFO
            value = rest.pop(0) if follows else value
            if name in ("--config-dir", "-cd"):
                # Appended to the search path: own files add to ours and cannot stand in for them.
                tokens.append(f"hydra.searchpath=[file://{Path(value).absolute()}]")
            else:
                options += [name, value] if value else [name]
    return options, tokens, problems


def _own_model(token: str, schema: Schema) -> list[str]:
    """`model=<directory or hub id>`, several of them too, means `model=hf model.path=<...>`."""
    match = re.fullmatch(r"model=(['\"]?)(.+)\1", token)
    if not match or match[2].startswith(("[", "{", "$")):
        return [token]
    places = [match[2]] if match[1] else match[2].split(",")
    choices = schema.choices("model")
    if not all(place not in choices and ("/" in place or Path(place).is_dir()) for place in places):
        return [token]
    paths = [os.path.expanduser(place) for place in places]
    quoted = [path if re.fullmatch(r"[\w./-]+", path) else "'" + path.replace("'", r"\'") + "'" for path in paths]
    return ["model=hf", f"model.path={','.join(quoted)}"]


def _register_resolvers() -> None:
    OmegaConf.register_new_resolver("run_directory", _run_directory, replace=True)


def _run_directory(*, _root_: DictConfig) -> str:
    """The resolver `${run_directory:}`. Only what is outside the hydra node is resolved: the node asks for this name."""
    plain = OmegaConf.to_container(_root_, resolve=False)
    assert isinstance(plain, dict)
    choices = {group: choice for group, choice in _root_.hydra.runtime.choices.items() if "/" not in str(group)}
    own = OmegaConf.create({name: node for name, node in plain.items() if name != "hydra"})
    config = OmegaConf.to_container(own, resolve=True)
    assert isinstance(config, dict)
    if "algorithm" not in choices:  # nothing is trained: the directory is named after the model
        choices |= {"experiment": "evaluate", "algorithm": Path(config.get("run") or choices["model"]).name}
    return records.run_directory({str(name): node for name, node in config.items()}, choices)


def _is_ours(error: BaseException) -> bool:
    known = isinstance(error, (SettingsError, ConfigCompositionException)) or getattr(error, "one_line", False)
    return known or type(error).__module__.partition(".")[0] == "ngrpo"


def _tell(error: BaseException, where: str = "") -> None:
    if not _is_ours(error):
        traceback.print_exception(error)
        return
    lines = error.lines if isinstance(error, SettingsError) else [" ".join(f"{error} {error.__cause__ or ''}".split())]
    print("\n".join(f"error: {where}{line}" for line in lines), file=sys.stderr)


def _end(lines: list[str], status: int) -> NoReturn:
    print("\n".join(f"error: {line}" for line in lines), file=sys.stderr)
    sys.exit(status)
