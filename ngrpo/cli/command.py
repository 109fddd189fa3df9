"""All that is wrong with the arguments of an entry point, and the arguments as Hydra wants them.

Nothing is written, built or run here, and nothing heavy imported.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ngrpo import targets
from ngrpo.cli import checks, compared, complaints, conf, fit, launchers
from ngrpo.cli.composition import Job, Schema, in_full, is_choice, listed, read_one, values_of
from ngrpo.cli.conf import CONF
from ngrpo.cli.identity import register_resolvers
from ngrpo.cli.rules import as_override, printable

VERSION_BASE = "1.3"
COMPOSING = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError,
             AssertionError, RecursionError)  # fmt: skip
NOT_OURS = ("config_path", "config_name", "experimental_rerun")  # options of Hydra that would leave conf/ behind
TEMPLATE = ".columns.problem"  # a setting whose value may have braces
LONGEST = 600  # characters of a line


@dataclass
class Examined:
    """What came of a command line: the arguments for Hydra, what is wrong with them, and what is odd."""

    argv: list[str]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shows: bool = False  # instead of running
    completes: bool = False  # a shell asks for words; those that it has are not ours to judge


def examine(config_name: str, argv: list[str]) -> Examined:
    """All that is wrong with a command line, found by composing it as Hydra will; nothing is written."""
    examined, words, options = _read_options(argv)
    if examined.completes:
        return Examined(argv)
    conf.search(words)
    if lines := complaints.of_aliases():  # before anything composes what they stand for
        return Examined(argv, [*examined.problems, *lines])
    several = is_multirun([*options, *words])
    with _schema(config_name, words) as schema:
        try:
            schema.reference()
        except COMPOSING as error:  # a search path, or a file of everybody's
            path = next((word for word in words if word.startswith("hydra.searchpath=")), "conf")
            examined.problems.append(complaints.of_composition(error, [], path))
            return examined
        tokens = [part for token in words for part in _as_hydra_says(token, schema)]
        overrides, unread = _read(tokens)
        examined.problems += unread
        for override in list(overrides):
            swept = override.is_sweep_override() and not several
            if line := complaints.of_renamed(override) or (complaints.of_sweep(override) if swept else None):
                examined.problems.append(line)
                overrides.remove(override)
        if not argv and "run" in schema.reference():
            examined.problems.append("there is nothing to evaluate; run=<run directory> or model=<directory or hub id>")
        as_sweep, unfit = compared.as_sweep(schema, overrides)
        jobs = _jobs(schema, as_sweep)
        if several and jobs[0].composes and (more := jobs[0].presets()):
            jobs = _jobs(schema, [*as_sweep, *more])
        examined.problems += unfit
        _examine_jobs(examined, jobs, several)
        if not examined.problems:
            compares = compared.KEY in schema.reference()
            mixed = several or compares  # then each job, or strategy, has short names and knobs of its own
            tokens = _left_to_jobs(schema, overrides, tokens, compares) if mixed else _in_full(tokens, jobs[0])
            examined.argv = [*tokens, *options]
    examined.problems = list(dict.fromkeys(printable(line, LONGEST) for line in examined.problems))
    return examined


def each_strategy(argv: list[str]) -> tuple[dict[str, DictConfig], list[str]]:
    """Strategy -> what the arguments compose to with it, of those that `exploration=a,b` names or else of all that there
    are; and what is wrong with the arguments. A knob goes to every strategy that has it, as in a multirun."""
    problems = [line for line in examine("config", ["-m", *argv]).problems if checks.REFUSED not in line]
    words = _read_options(argv)[1]
    with _schema("config", words) as schema:
        overrides = [] if problems else _read(words)[0]
        names = [str(one.value()) for o in overrides if o.key_or_group == compared.GROUP for one in listed(o)]
        rest = [o for o in overrides if o.key_or_group != compared.GROUP]
        problems += [
            f"{o.input_line}: takes one value here; {listed(o)[0].input_line}" for o in rest if o.is_sweep_override()
        ]
        names = names or conf.choices(compared.GROUP)
        return {} if problems else {name: compared.composed(schema, name, rest) for name in names}, problems


@contextmanager
def _schema(config_name: str, words: list[str]) -> Iterator[Schema]:
    """Hydra initialized with our files, and the user's own where the arguments name some."""
    from hydra_plugins.ngrpo_sweeper.sweeper import GridSweeper  # which imports from here

    Plugins.instance().register(
        GridSweeper
    )  # Hydra lists the folders of installed plug-ins: an editable install has none
    register_resolvers(words)
    with initialize_config_dir(str(CONF), job_name=config_name, version_base=VERSION_BASE):
        launchers.files_prevail(CONF / "hydra" / "launcher")
        yield Schema(config_name)


def is_multirun(argv: list[str]) -> bool:
    """Whether the arguments ask for several jobs."""
    return not {"-m", "--multirun", "hydra.mode=MULTIRUN"}.isdisjoint(argv)


def _read(tokens: list[str]) -> tuple[list[Override], list[str]]:
    """The overrides that can be read, and a problem for each that cannot, or that gives a key a second time."""
    read: list[Override] = []
    problems: list[str] = []
    for token in tokens:
        key, equals, value = token.partition("=")
        try:
            override = read_one(token)
            override.config_loader = GlobalHydra.instance().config_loader()  # which knows what a `glob()` stands for
        except COMPOSING:
            fix = f"{token}=<value>" if not equals else f"text with such characters in it needs quotes: \"{key}='...'\""
            problems.append(f"{token}: cannot be read as key=value; {fix}")
            continue
        before = [o.input_line for o in read if o.key_or_group == override.key_or_group and not o.is_hydra_override()]
        if before or not override.key_or_group:
            what = f"{key} is given before, as {before[0]}" if before else "names no key"
            problems.append(f"{token}: {what}; {'keep one of the two' if before else f'<key>={value}'}")
        else:
            read.append(override)
    return read, problems


def _jobs(schema: Schema, overrides: list[Override]) -> list[Job]:
    """Jobs that between them show every listed value: one changes at a time, where its key is known."""
    values = [listed(override) for override in overrides]
    jobs = [_job(schema, [members[0] for members in values])]
    places = sorted(range(len(values)), key=lambda place: not conf.is_group(overrides[place].key_or_group))
    for place in (place for place in places if len(values[place]) > 1):
        homes = [job for job in jobs if job.overrides[place] not in job.unknown()]
        home = (homes or jobs)[0].overrides
        jobs += [_job(schema, [*home[:place], value, *home[place + 1 :]]) for value in values[place][1:]]
    return jobs


def _job(schema: Schema, overrides: list[Override]) -> Job:
    """A job of what its choices were probably meant to be, and what is wrong with them."""
    choices: list[str] = []
    job = Job(schema, overrides, choices)
    for override in (o for o in overrides if is_choice(o)):
        own = override.is_hydra_override()
        problem, right = (None, str(override.input_line)) if own else complaints.of_choice(override, schema)
        job.problems += [problem] if problem else []
        choices += [right] if right else []
    try:
        job.composes = job.reference is not None
    except COMPOSING as error:
        job.composes = False
        job.problems.append(complaints.of_composition(error, overrides))
    if job.composes and (lines := complaints.of_packages(job)):
        job.problems += lines
        job.composes = False  # what else is wrong comes of it
    return job


def _examine_jobs(examined: Examined, jobs: list[Job], several: bool) -> None:
    missing = [{o.get_key_element() for o in job.unknown()} for job in jobs]
    for override in jobs[0].unknown():
        if all(override.get_key_element() in keys for keys in missing):  # a knob need not suit each job of a sweep
            examined.problems += complaints.of_unknown(override, jobs[0])
    for job in jobs:
        found, notes = _check(job, several) if job.composes and not examined.shows else ([], [])
        if len(jobs) > 1:  # a grid may have such cells: each tells its own when its turn comes
            found = [line for line in found if checks.REFUSED not in line]
        examined.problems += [*job.problems, *found]
        examined.notes += [note for note in notes if note not in examined.notes]


def _check(job: Job, several: bool) -> tuple[list[str], list[str]]:
    """(problems, notes) of the shapes and values of a job's known keys."""
    unknown = job.unknown()
    known = [(o, complaints.of_shape(o, job.known)) for o in job.values if o not in unknown]
    found = [problem for _, problem in known if problem]
    usable = [o for o, problem in known if not problem or o.is_add()]  # a value after a wrong character counts too
    given = {job.full.get(o.key_or_group, o.key_or_group): complaints.typed(o) for o in job.overrides}
    given |= {key: as_override(leaf) for o in usable for key, leaf in values_of(o).items() if key not in given}
    try:
        config = job.composed(usable)
    except COMPOSING as error:
        return found or [complaints.of_composition(error, usable)], []
    settings = checks.Settings(config, job.reference, given)
    found += checks.problems(settings)
    found += targets.hydra_refusals(OmegaConf.to_container(config.hydra, resolve=False))
    found += launchers.problems(config, several)
    if not found and (several or not unknown):  # tasks take time to build, and may import a user's package
        found = [*fit.tasks(settings)] or _directory(config, several)
    notes = [] if found else checks.notes(settings)
    return _as_typed(found, job), _as_typed(notes, job)


def _as_typed(lines: list[str], job: Job) -> list[str]:
    for key, full in job.full.items():
        lines = [re.sub(rf"(?<![\w.]){re.escape(full)}(?![\w.])", key, line) for line in lines]
    return lines


def _directory(config: DictConfig, several: bool) -> list[str]:
    """Whether the directory that the job would make can be made."""
    key, path = "hydra.sweep.dir" if several else "hydra.run.dir", ""
    try:
        path = str(OmegaConf.select(config, key) or "")
        refusal = fit.directory_refusal(path)
    except (OmegaConfBaseException, ValueError) as error:
        refusal = " ".join(str(error).split())
    return [f"{key}={path}: {refusal}; {key}=outputs/<name>"] if refusal else []


def _read_options(argv: list[str]) -> tuple[Examined, list[str], list[str]]:
    """(what is wrong with the options, overrides, options), each of its own, because Hydra wants its options together."""
    parser, examined = get_args_parser(), Examined(list(argv))

    def fail(message: str):
        raise ValueError(message)

    parser.error = fail
    try:
        read, strange = parser.parse_known_intermixed_args(argv)
    except ValueError as error:
        examined.problems.append(f"{' '.join(argv)}: {error}; --help lists the options")
        return examined, [], []
    strange += [f"--{name.replace('_', '-')} {value}" for name in NOT_OURS if (value := getattr(read, name))]
    for token in strange:
        near = complaints.alike(token, parser._option_string_actions, cutoff=0.8)
        fix = token.lstrip("-") if "=" in token else near or "--help lists the options"
        examined.problems.append(f"{token}: is no option here; {fix}")
    examined.problems += targets.RENAMED_VARIABLE
    examined.shows = bool(read.help or read.hydra_help or read.cfg or read.info)
    examined.completes = bool(read.shell_completion)
    if examined.shows and read.multirun:
        examined.problems.append(f"{' '.join(argv)}: shows the configuration of one job; leave -m out")
    words, options = list(read.overrides), [token for token in argv if token not in read.overrides]
    if read.config_dir is not None and not (read.config_dir and Path(read.config_dir).is_dir()):
        examined.problems.append(f"--config-dir={read.config_dir}: is no directory; --config-dir=<directory>")
    elif read.config_dir is not None:  # appended to the search path: own files add to ours and cannot stand in for them
        words.append(f"hydra.searchpath=[file://{Path(read.config_dir).absolute()}]")
        place = next(at for at, token in enumerate(options) if token.startswith(("--config-dir", "-cd")))
        del options[place : place + 1 + ("=" not in options[place])]
    return examined, words, options


def _left_to_jobs(schema: Schema, overrides: list[Override], tokens: list[str], compares: bool) -> list[str]:
    """The arguments, where a key that only some of several jobs have is one that Hydra takes anyway: added where strategies
    are compared in one job, in a grid with a list of one value."""
    fixed = [override for override in overrides if not override.is_sweep_override()]
    lines = {str(override.input_line) for override in Job(schema, fixed).unknown()}
    for at, token in enumerate(tokens):
        key, _, value = token.partition("=")
        if token in lines and key[0] not in "+~":
            tokens[at] = f"+{token}" if compares else f"{key}=choice({value})"
    return tokens


def _in_full(tokens: list[str], job: Job) -> list[str]:
    """The arguments of one job, keys that were typed short as Hydra knows them."""
    keys = [token.partition("=")[0].lstrip("+~") for token in tokens]
    pairs = zip(tokens, keys, strict=True)
    return [in_full(token, key, job.full[key]) if key in job.full else token for token, key in pairs]


def _as_hydra_says(token: str, schema: Schema) -> list[str]:
    """What Hydra has other words for: `model=<directory or hub id>`, `logger=none`, `experiment=null`, the file
    of `benchmark=jsonl`, `samples=[<name>=<file>]`, and a template of columns, whose quotes the shell takes."""
    group, _, value = token.partition("=")
    if group == "benchmark.path":
        return [f"benchmark.jsonl.path={value}"]
    if token in ("logger=none", "logger=null", "~logger"):
        return ["logger=[]"]
    if value == "null" and group in schema.defaults and schema.defaults[group] is None:
        return [f"~{group}"]
    if group == "samples" and "=" in value and not set(value) & set("'\"\\"):
        items = value[1:-1].split(",") if value.startswith("[") and value.endswith("]") else [value]
        quoted = ",".join(f'"{item.strip()}"' for item in items)
        return [f"{group}=[{quoted}]"]
    if group.endswith(TEMPLATE) and "{" in value and value[0] not in "'\"":  # to Hydra a bare brace opens a mapping
        quoted = value.replace("'", r"\'")
        return [f"{group}='{quoted}'"]
    if group != "model" or not value or value.startswith(("[", "{", "$")):
        return [token]
    value = os.path.expanduser(value.strip("'\""))
    places = [value] if Path(value).is_dir() else value.split(",")
    if any(place in conf.choices("model") or not ("/" in place or Path(place).is_dir()) for place in places):
        return [token]
    quoted = [place if re.fullmatch(r"[\w./-]+", place) else "'" + place.replace("'", r"\'") + "'" for place in places]
    return ["model=hf", f"model.path={','.join(quoted)}"]
