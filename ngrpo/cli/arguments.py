"""All that is wrong with the arguments of an entry point, and the arguments as Hydra wants them.

Nothing is written, built or run here, and nothing heavy imported. It does not know what the job does.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from ngrpo.cli import compared
from ngrpo.cli.complaints import of_renamed
from ngrpo.cli.jobs import Job, jobs_of
from ngrpo.cli.overrides import listed, parse, read_one
from ngrpo.cli.reading import register_resolvers
from ngrpo.cli.schema import Schema, alike
from ngrpo.cli.settings.composed import printable
from ngrpo.cli.settings.values import REFUSED

CONF = Path(__file__).resolve().parents[2] / "conf"
VERSION_BASE = "1.3"
SHOWING = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}
OPTIONS = SHOWING | {"--resolve", "--run", "-r", "--multirun", "-m", "--package", "-p", "--config-dir", "-cd"}
WITH_VALUE = {"--cfg", "-c", "--package", "-p", "--config-dir", "-cd"}
LONGEST = 600  # signs of a line
OF_INFO = {"all", "config", "defaults", "defaults-tree", "plugins", "searchpath"}


@dataclass
class Examined:
    """What came of a command line: the arguments for Hydra, what is wrong with them, and what is odd."""

    argv: list[str]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def examine(config_name: str, argv: list[str]) -> Examined:
    """All that is wrong with a command line, found by composing it as Hydra will; nothing is written."""
    register_resolvers()
    options, tokens, problems = _sort(argv)
    with initialize_config_dir(str(CONF), job_name=config_name, version_base=VERSION_BASE):
        search_path = [token for token in tokens if token.startswith("hydra.searchpath=")]
        schema = Schema(GlobalHydra.instance().config_loader(), config_name, search_path)
        tokens = [part for token in tokens for part in _as_hydra_says(token, schema)]
        overrides, unread = _read(tokens, schema)
        examined = Examined([*tokens, *options], problems + unread)
        several = bool({"-m", "--multirun"} & set(options)) or "hydra.mode=MULTIRUN" in tokens
        if not several:
            for override in [override for override in overrides if override.is_sweep_override()]:
                key, text = override.key_or_group, str(override.input_line)
                fix = f"'{key}=[{text[len(key) + 1 :]}]'" if schema.takes_several(key) else f"-m {text}"
                told = "several values need -m, one job for each, or brackets for one list"
                examined.problems.append(f"{text}: {told}; {fix}")
                overrides.remove(override)
        if overrides or not SHOWING & set(options):
            swept, unfit = compared.as_sweep(schema, overrides)
            examined.problems += unfit
            jobs = jobs_of(schema, swept, several)
            _examine_jobs(examined, jobs, values=not SHOWING & set(options))
            if not examined.problems:
                alone = not several and swept == overrides  # else each job or strategy has short names of its own
                tokens = [_in_full(token, jobs[0].full) for token in tokens] if alone else tokens
                examined.argv = [*compared.added(schema, overrides, tokens), *options]
    examined.problems = list(dict.fromkeys(printable(line, LONGEST) for line in examined.problems))
    return examined


def each_strategy(config_name: str, argv: list[str]) -> tuple[dict[str, DictConfig], list[str]]:
    """Strategy -> what the arguments compose to with it, of those that `exploration=a,b` names or else of all that there
    are; and what is wrong with the arguments. A knob goes to every strategy that has it, as in a multirun."""
    register_resolvers()
    _, tokens, problems = _sort(argv)
    with initialize_config_dir(str(CONF), job_name=config_name, version_base=VERSION_BASE):
        search_path = [token for token in tokens if token.startswith("hydra.searchpath=")]
        schema = Schema(GlobalHydra.instance().config_loader(), config_name, search_path)
        overrides, unread = _read(tokens, schema)
        named = [part for o in overrides if o.key_or_group == compared.GROUP for part in listed(o)]
        names = [str(part.value()) for part in named] or schema.choices(compared.GROUP)
        rest = [o for o in overrides if o.key_or_group != compared.GROUP]
        unread += [
            f"{o.input_line}: takes one value here; {listed(o)[0].input_line}" for o in rest if o.is_sweep_override()
        ]
        rest = [o for o in rest if not o.is_sweep_override()]
        jobs = {name: Job(schema, [read_one(f"{compared.GROUP}={name}"), *rest]) for name in names}
        examined = Examined([], problems + unread)
        _examine_jobs(examined, list(jobs.values()), values=True)
        if examined.problems:
            return {}, [printable(line, LONGEST) for line in dict.fromkeys(examined.problems)]
        return {name: compared.composed(job) for name, job in jobs.items()}, []


def _read(tokens: list[str], schema: Schema) -> tuple[list[Override], list[str]]:
    """The overrides that can be read and whose key is not an old one, and a problem for each of the others."""
    overrides, unread = parse(tokens, schema.loader)
    renamed = {id(override): line for override in overrides if (line := of_renamed(override))}
    return [override for override in overrides if id(override) not in renamed], [*unread, *renamed.values()]


def _examine_jobs(examined: Examined, jobs: list[Job], values: bool) -> None:
    unknown = {id(job): job.unknown() for job in jobs}
    found_somewhere = {o.key_or_group for job in jobs for o in job.overrides if o not in unknown[id(job)]}
    for override in unknown[id(jobs[0])] if jobs[0].reference is not None else ():
        if override.key_or_group not in found_somewhere:  # in a sweep over strategies a knob need not suit each of them
            examined.problems += jobs[0].unknown_problem(override)
    for job in jobs:
        found, notes = job.check() if values else ([], [])
        if len(jobs) > 1:  # a grid may have such cells: each tells its own when its turn comes
            found = [line for line in found if REFUSED not in line]
        examined.problems += [*job.problems, *found]
        examined.notes += [note for note in notes if note not in examined.notes]


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
            stray = f" {rest.pop(0)}" if rest and not value and re.fullmatch(r"[^-~=][^=]*", rest[0]) else ""
            fix = (
                f"{name.lstrip('-')}={value}"
                if value
                else alike(name, OPTIONS, cutoff=0.8) or "--help lists the options"
            )
            problems.append(f"{token}{stray}: is no option here; {fix}")
        elif name in WITH_VALUE and not value and not rest:
            problems.append(f"{token}: needs a value; {token} <value>")
        else:
            of_info = name in ("--info", "-i") and bool(rest) and rest[0] in OF_INFO
            follows = of_info or (name in WITH_VALUE and not value)
            value = rest.pop(0) if follows else value
            if name in ("--config-dir", "-cd"):
                # Appended to the search path: own files add to ours and cannot stand in for them.
                tokens.append(f"hydra.searchpath=[file://{Path(value).absolute()}]")
            else:
                options += [name, value] if value else [name]
    return options, tokens, problems


def _in_full(token: str, full: Mapping[str, str]) -> str:
    """An argument whose key was typed short, with the key that Hydra knows."""
    signs, key, value = re.fullmatch(r"([+~]*)([^=]*)(.*)", token, re.DOTALL).groups()  # pyright: ignore
    return f"{signs}{full.get(key, key)}{value}"


def _as_hydra_says(token: str, schema: Schema) -> list[str]:
    """What Hydra has other words for: `model=<directory or hub id>`, `logger=null`, and the file of `benchmark=jsonl`."""
    group, _, value = token.partition("=")
    if group == "benchmark.path":
        return [f"benchmark.jsonl.path={value}"]
    if value == "null" and group in schema.defaults and schema.defaults[group] is None:
        return [f"~{group}"]
    match = re.fullmatch(r"model=(['\"]?)(.+)\1", token)
    if not match or match[2].startswith(("[", "{", "$")):
        return [token]
    places = [match[2]] if match[1] or Path(match[2]).is_dir() else match[2].split(",")
    choices = schema.choices("model")
    if not all(place not in choices and ("/" in place or Path(place).is_dir()) for place in places):
        return [token]
    paths = [os.path.expanduser(place) for place in places]
    quoted = [path if re.fullmatch(r"[\w./-]+", path) else "'" + path.replace("'", r"\'") + "'" for path in paths]
    return ["model=hf", f"model.path={','.join(quoted)}"]
