"""A study that outlives its workers: storage, claims, dead workers, search spaces.

Several processes may work on one study.
"""

import errno
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import OptunaError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from ngrpo.evaluation.journal import mend, open_journal

COUNTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
HOST = socket.gethostname()
JOURNAL = "journal.log"
SAMPLERS = {"tpe": "TPESampler", "random": "RandomSampler", "qmc": "QMCSampler", "gp": "GPSampler",
            "cmaes": "CmaEsSampler", "nsga2": "NSGAIISampler"}  # fmt: skip
ASKS_FIRST = {"pool_pre_ping": True}  # a connection that nobody used for the hours of a run may be gone
NAMELESS = 10.0  # seconds after which a running trial that names no worker counts as dead: names follow within one


class StudyError(ValueError):
    """A study that cannot be worked on as asked."""

    one_line, exit_code = True, 2  # told without a traceback, as a mistake of the command


def distribution(override: Override) -> BaseDistribution:
    """What a swept override may be: Hydra's own sweep syntax as a distribution of Optuna. Raises StudyError."""
    value, text, key = override.value(), str(override.input_line), override.key_or_group
    try:
        if isinstance(value, IntervalSweep):
            assert value.start is not None and value.end is not None
            log = "log" in value.tags
            if isinstance(value.start, int) and isinstance(value.end, int):
                return IntDistribution(value.start, value.end, log=log)
            return FloatDistribution(value.start, value.end, log=log)
        members = list(override.sweep_string_iterator())
        if isinstance(value, RangeSweep) and all(isinstance(n, int) for n in (value.start, value.stop, value.step)):
            return IntDistribution(int(members[0]), int(members[-1]), step=int(value.step))
    except (ValueError, IndexError) as error:
        raise StudyError(f"{text}: {error}; {key}=interval(<low>,<high>)") from error
    if not members:
        raise StudyError(f"{text}: lists no value; {key}=choice(<value>,<value>)")
    return CategoricalDistribution(members)


def suggest(trial: Trial, key: str, space: BaseDistribution) -> str:
    """The value of one key in a trial, as one would type it."""
    if isinstance(space, FloatDistribution):
        return repr(trial.suggest_float(key, space.low, space.high, log=space.log))
    if isinstance(space, IntDistribution):
        return str(trial.suggest_int(key, space.low, space.high, step=space.step, log=space.log))
    assert isinstance(space, CategoricalDistribution)
    return str(trial.suggest_categorical(key, space.choices))


def sampler(
    name: str, seed: int, spaces: Mapping[str, BaseDistribution], place: str = ""
) -> optuna.samplers.BaseSampler:
    """The sampler of that name; workers in different places draw different numbers from one seed.

    Raises StudyError for `grid` over a range without steps.
    """
    if name == "grid":
        listed: dict[str, list[Any]] = {}
        for key, space in spaces.items():
            if isinstance(space, IntDistribution):
                listed[key] = list(range(space.low, space.high + 1, space.step))
            elif isinstance(space, CategoricalDistribution):
                listed[key] = list(space.choices)
            else:
                raise StudyError(f"sweep.sampler=grid: {key} has no listed values; sweep.sampler=tpe")
        return optuna.samplers.GridSampler(listed, seed)
    own = int.from_bytes(blake2b(f"{seed} {place}".encode(), digest_size=4).digest(), "little")
    return getattr(optuna.samplers, SAMPLERS[name])(seed=own)


def open_storage(url: str | None, folder: Path, directions: Sequence[str] = ("maximize",)) -> BaseStorage:
    """The database at `url`, or the journal in `folder`, which is named after its study; damaged records are told of."""
    if url:
        return _patiently(lambda: RDBStorage(url, engine_kwargs=ASKS_FIRST), f"sweep.storage={shown(url)}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / JOURNAL
    try:
        if path.exists() and (told := mend(path, folder.name, directions)):
            print(told, flush=True)
        return open_journal(path)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP):
            raise
        fix = "use a local disk, or a database with sweep.storage="
        raise StudyError(f"{path} cannot be locked ({error.strerror}): {fix}") from error


def database(url: str | None) -> str | None:
    """The URL with the driver of our extra `postgres`, where it names none: SQLAlchemy 2.1 takes another than 2.0."""
    return url and re.sub(r"^postgres(ql)?://", "postgresql+psycopg2://", url)


def shown(url: str) -> str:
    """A URL as it may be printed, without its password."""
    return re.sub(r"(://[^:/@]*):[^/]*@", r"\1:***@", url)


def _patiently(make: Callable[[], Any], what: str, tries: int = 5) -> Any:
    """Workers that start together may all find a database without tables: all but one have to try again."""
    try:
        return make()
    except ImportError as error:
        raise StudyError(
            f"{what}: its driver is not installed; PostgreSQL's is pip install 'ngrpo[postgres]'"
        ) from error
    except Exception as error:
        from sqlalchemy.exc import ArgumentError  # a fifth of a second to import

        if tries == 1 or isinstance(error, ArgumentError):  # what is no address becomes none
            words = " ".join(str(error).split())[:200]
            raise StudyError(f"{what}: {words}; sweep.storage=null keeps a journal file") from error
    time.sleep(6.4 / 2**tries)
    return _patiently(make, what, tries - 1)


def open_study(storage: BaseStorage, name: str, identity: Mapping[str, Any], directions: Sequence[str]) -> optuna.Study:
    """The study of that name, new or continued; `identity`, from which the name is made, is kept with it.

    Raises StudyError where the name belongs to another search.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options = {"directions": list(directions), "load_if_exists": True}
    study = _patiently(lambda: optuna.create_study(storage=storage, study_name=name, **options), f"study {name}")
    own = json.dumps(identity, sort_keys=True)
    if study.user_attrs.get("identity", own) != own:
        raise StudyError(f"study {name}: the storage has another search of that name; sweep.storage=<another database>")
    study.set_user_attr("identity", own)
    return study


class Worker:
    """One process at work on a study: it claims trials, shows that it lives, and takes over from the dead."""

    def __init__(self, study: optuna.Study, n_trials: int, grace_seconds: float):
        self.study, self.n_trials, self.grace = study, n_trials, grace_seconds
        self.own: set[int] = set()  # ids of the trials that are running here
        self.place = self._register()
        self._stop = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def _register(self) -> str:
        """What tells this worker from all others of the study, and is the same for the first one of every new study.

        Whoever registers later sees more workers; those that see equally many see the same ones, and differ in rank.
        """
        name = f"worker {HOST} {os.getpid()} {_born(os.getpid())}"
        self.study.set_user_attr(name, True)
        seen = sorted(key for key in self.study.user_attrs if key.startswith("worker "))
        return f"{len(seen)} {seen.index(name) if len(seen) > 1 else 0}"

    def close(self) -> None:
        self._stop.set()

    def reclaim(self) -> None:
        """Fails running trials whose worker is dead and queues their parameters again."""
        for trial in self._running():
            if trial._trial_id not in self.own and self._is_dead(trial):
                with suppress(ValueError, RuntimeError):  # another worker was faster
                    self.study.tell(trial.number, state=TrialState.FAIL)
                    self.study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})

    def claim(self) -> Trial | None:
        """The next trial, None once there are enough. Two that ask at once cannot both get the last one."""
        if self._counted() >= self.n_trials:
            return None
        trial = self.study.ask()
        for key, value in {"host": HOST, "pid": os.getpid(), "born": _born(os.getpid()), "beat": time.time()}.items():
            trial.set_user_attr(key, value)
        if self._counted(trial.number) >= self.n_trials:
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        self.own.add(trial._trial_id)
        return trial

    def nameless(self) -> bool:
        """Whether a trial runs of which it is not known yet whose it is."""
        return any("beat" not in trial.user_attrs for trial in self._running())

    def finish(self, trial: Trial, state: TrialState, values: Sequence[float] | None = None) -> None:
        """Tells what became of a trial, with the values of a complete one."""
        self.study.tell(trial, values, state=state)
        self.own.discard(trial._trial_id)

    def _running(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _counted(self, before: int | None = None) -> int:
        """How many of the trials with smaller numbers than `before` are at work or done, be it by failing for a reason."""
        trials = [trial for trial in self.study.get_trials(deepcopy=False) if before is None or trial.number < before]
        return sum(trial.state in COUNTED or "reason" in trial.user_attrs for trial in trials)

    def _is_dead(self, trial: FrozenTrial) -> bool:
        seen = trial.user_attrs
        if "beat" not in seen:
            started = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
            return time.time() - started > NAMELESS
        if seen["host"] == HOST:
            return _born(int(seen["pid"])) != seen["born"]
        return time.time() - float(seen["beat"]) > self.grace

    def _beat(self) -> None:
        while not self._stop.wait(self.grace / 4):
            for trial_id in list(self.own):
                with suppress(OSError, RuntimeError, OptunaError):  # the worker's own next write tells what is wrong
                    self.study._storage.set_trial_user_attr(trial_id, "beat", time.time())


def _born(pid: int) -> str | None:
    """When the process with this id was started, so that an id in use again is not taken for the old process."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[19]
    with suppress(OSError):  # a system without /proc
        os.kill(pid, 0)
        return "running"
    return None
