"""All that is wrong with the arguments of an entry point, and the arguments as Hydra wants them.

Nothing is written, built or run here, and nothing heavy imported. It does not know what the job does.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from ngrpo.cli import compared
from ngrpo.cli.jobs import Job, jobs_of
from ngrpo.cli.overrides import parse
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
        overrides, unread = parse(tokens, schema.loader)
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
            _examine_jobs(examined, jobs_of(schema, swept, several), values=not SHOWING & set(options))
            if not examined.problems:
                examined.argv = [*compared.added(schema, overrides, tokens), *options]
    examined.problems = list(dict.fromkeys(printable(line, LONGEST) for line in examined.problems))
    return examined


def _examine_jobs(examined: Examined, jobs: list[Job], values: bool) -> None:
    unknown = {id(job): job.unknown() for job in jobs}
    found_somewhere = {o.key_or_group for job in jobs for o in job.values if o not in unknown[id(job)]}
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
