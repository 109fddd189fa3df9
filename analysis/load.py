"""Run directories as tidy frames: what was run, how often each problem was solved, what it cost."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from analysis.arms import UNTRAINED, name_arms
from analysis.samples import LoadError, SampleFile, need
from analysis.sweeps import without_run
from ngrpo.rundir.progress import counted
from ngrpo.rundir.schema import KINDS, Changed, RunRecord, Unreadable, check_files, current_name, leaves, read_run

READ = ("metrics.csv", "timings.csv", "results.json", "samples/eval/")
USUAL = ("run", "evaluation")  # kinds of runs that a report covers by default
MOST = 50_000  # sample rows of an arm on a benchmark; beyond that, only some problems' samples are read


@dataclass(frozen=True)
class Study:
    """Everything that a report is built from.

    Attributes:
        runs: a row per run: run, path, arm, exploration, algorithm, seed, config (dict of dotted keys), tokens
            (generated in training), seconds (of the RL steps), wall_seconds.
        counts: a row per arm, seed, run, benchmark, step and problem_id: n samples, c correct ones, their tokens, and the
            path of the run or file.
        metrics, timings: the runs' csv files, with arm, seed and run.
        left_out: path and reason of what was found and not read.
        other_kinds: path -> kind of those among them that are not of the kinds asked for.
        column_notes: of files of other tools a line each, which column was taken as what; empty for runs.
    """

    runs: pd.DataFrame
    counts: pd.DataFrame
    metrics: pd.DataFrame
    timings: pd.DataFrame
    left_out: pd.DataFrame
    other_kinds: Mapping[str, str] = field(default_factory=dict)
    column_notes: Sequence[str] = ()

    @property
    def arms(self) -> list[str]:
        """The untrained model first, the others by name; those of sample files in the order given."""
        return list(dict.fromkeys(self.runs["arm"]))

    @property
    def benchmarks(self) -> list[str]:
        return list(dict.fromkeys(self.counts["benchmark"]))

    def problems_read(self, benchmark: str) -> list[str] | None:
        """The problems whose samples are read: all (None), or a fixed random choice with about MOST rows."""
        part = self.counts[self.counts["benchmark"] == benchmark]
        per_problem = part.groupby(["arm", "problem_id"])["n"].sum().max()
        problems = part["problem_id"].unique()
        if len(problems) * per_problem <= MOST:
            return None
        order = np.random.default_rng(0).permutation(len(problems))
        return sorted(problems[order[: max(1, int(MOST // per_problem))]])

    def prompts(self, benchmark: str) -> dict[str, str]:
        """problem_id -> the text of the problem, from the first run that has texts."""
        for run in self.runs.itertuples():
            if benchmark in run.files and (found := run.files[benchmark].prompts()):
                return found
        return {}

    def samples(
        self, arm: str, benchmark: str, columns: Sequence[str], problems: Collection[str] | None = None
    ) -> pd.DataFrame:
        """Evaluation samples of an arm, all seeds, of these problems or of the `problems_read`; `seed` is added."""
        chosen = self.problems_read(benchmark) if problems is None else problems
        wanted = [column for column in columns if column != "seed"]
        parts = [
            run.files[benchmark].read(wanted, chosen).assign(seed=run.seed)
            for run in self.runs[self.runs["arm"] == arm].itertuples()
            if benchmark in run.files
        ]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*columns, "seed"])


def load(roots: Iterable[str | Path], kinds: Sequence[str] = USUAL, trust_changed: bool = False) -> Study:
    """All finished runs of these kinds below the given directories; a directory that is a run counts as itself.

    Raises:
        Changed: a file that is read is not what its run left, unless `trust_changed`.
        LoadError: a kind that there is not, a root that is not there, no run that can be read, or sample rows that are
            there twice.
    """
    if not kinds or not {*kinds} <= {*KINDS}:
        raise LoadError(f"kinds={as_list(kinds)}: must be a list of {', '.join(KINDS)}; kinds='{as_list(USUAL)}'")
    found: dict[Path, None] = {}
    for root in map(Path, roots):
        if not root.is_dir():
            raise LoadError(f"runs={root}: is no directory")
        found |= {path.parent: None for path in sorted(root.rglob("run.json"))}
    runs, left_out, others = [], [], {}
    with closing(counted(found, "reading runs")) as directories:
        for place in directories:
            try:
                record = read_run(place, trust_changed=trust_changed)
                if record.kind in kinds:
                    if record.status == "finished" and not trust_changed:
                        check_files(record, *READ)
                    runs += _read_run(record)
                else:
                    others[str(place)] = record.kind
                    left_out.append({"path": str(place), "reason": f"is of kind {record.kind}"})
            except (LoadError, Changed):
                raise
            except (OSError, ValueError, LookupError) as error:
                left_out.append({"path": str(place), "reason": _reason(error, place)})
    runs = _countable(_once(runs), left_out)
    left_out += [row for root in map(Path, roots) for row in without_run(root)]
    if not runs:
        reasons = [f"{row['path']}: {row['reason']}" for row in left_out if row["path"] not in others][:3]
        details = "; ".join([*reasons, *describe_kinds(others)])
        raise LoadError(f"runs={','.join(map(str, roots))}: holds no finished run{f' ({details})' if details else ''}")
    return study_of(name_arms(runs), left_out, others)


def describe_kinds(others: Mapping[str, str]) -> list[str]:
    """One line that counts the runs of other kinds and names the override that includes them; empty if there are none."""
    if not others:
        return []
    counts = Counter(others.values())
    found = sorted(counts, key=KINDS.index)
    listed = ", ".join(f"{counts[kind]} of kind {kind}" for kind in found)
    return [f"left out: {listed}; kinds='{as_list(found)}' takes those instead"]


def as_list(kinds: Sequence[str]) -> str:
    """Kinds as typed on the command line."""
    return f"[{','.join(map(str, kinds))}]"


def _reason(error: Exception, place: Path) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Unreadable):
        words = words.removeprefix(f"{place}/")
    return f"lacks {words}" if isinstance(error, LookupError) else words


def _countable(runs: list[dict[str, Any]], left_out: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The runs whose sample files can all be read, with their `counts`; the others are left out."""
    kept = []
    with closing(counted(runs, "counting samples")) as found:
        for run in found:
            try:
                run["counts"] = {benchmark: file.counts() for benchmark, file in run["files"].items()}
                kept.append(run)
            except LoadError:
                raise
            except (OSError, ValueError) as error:  # of pyarrow, about damaged files
                left_out.append({"path": run["path"], "reason": _reason(error, Path(run["path"]))})
    return kept


def _read_run(record: RunRecord) -> list[dict[str, Any]]:
    """The trained run in a directory and the untrained model that it evaluated first, or an evaluation."""
    place, reason = record.path, record.content.get("reason")
    if record.status != "finished":
        why = f": {' '.join(str(reason).split())}" if reason else ""
        raise ValueError(f"is {record.status or 'damaged'}, not finished{why}")
    files: dict[int, dict[str, SampleFile]] = {}
    for path in sorted(place.glob("samples/eval/*.parquet")):
        benchmark, _, step = path.stem.rpartition("-")
        if not step.isdigit():
            raise ValueError(f"{path.name} is not named <benchmark>-<RL step>.parquet")
        files.setdefault(int(step), {})[benchmark] = SampleFile(path)
    if not files:
        raise ValueError("has no samples/eval/*.parquet")
    labels = _labels(next(iter(files[max(files)].values())).path)
    config = {current_name(key): value for key, value in leaves(record.content["config"])}
    config |= {f"data:{name}": version for name, version in record.data.items()}
    config["results.version"] = record.results_version
    run = {"run": place.name, "path": str(place), "seed": int(record.content["seed"]), "config": config, **labels}
    run |= {name: record.content.get(name) for name in ("control", "wall_seconds")}
    run |= {"step": max(files), "files": files[max(files)], "metrics": None, "timings": None}
    if labels["algorithm"] == "none" and max(files) == 0:
        return [{**run, "arm": UNTRAINED}]
    needed = {"metrics": ["step"], "timings": ["tokens", "seconds"]}
    trained = {**run, "arm": None, **{name: _csv(place / f"{name}.csv", columns) for name, columns in needed.items()}}
    before = {**run, "arm": UNTRAINED, "step": 0, "files": files.get(0)}
    return [before, trained] if 0 in files and max(files) > 0 else [trained]


def _labels(path: Path) -> dict[str, str]:
    need(path, ("exploration", "algorithm"))
    batch = next(pq.ParquetFile(path).iter_batches(1, columns=["exploration", "algorithm"]), None)
    if not batch:
        raise ValueError(f"{path.name} has no rows")
    first = batch.to_pylist()[0]
    return {name: str(value) for name, value in first.items()}


def _csv(path: Path, columns: Sequence[str]) -> pd.DataFrame | None:
    if not path.exists():
        return None
    frame = pd.read_csv(path)
    if missing := [column for column in columns if column not in frame]:
        raise ValueError(f"{path.name} has no column {missing[0]}")
    return frame


def _once(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The untrained model once for each seed: every run of a seed evaluated the same one, with the same random numbers."""
    seen: set[tuple] = set()
    models: dict[str, str] = {}
    kept = []
    for run in sorted(runs, key=lambda run: run["arm"] != UNTRAINED):
        key = (run["seed"], *sorted(run["files"])) if run["arm"] == UNTRAINED else (run["path"],)
        if run["arm"] == UNTRAINED:
            models.setdefault(str(run["config"].get("data:model")), run["path"])
        if key not in seen:
            seen.add(key)
            kept.append(run)
    if len(models) > 1:
        raise LoadError(f"runs of different models: {' and '.join(list(models.values())[:2])}; a report each")
    return kept


def study_of(
    runs: list[dict[str, Any]],
    left_out: list[dict[str, str]],
    other_kinds: Mapping[str, str] | None = None,
    column_notes: Sequence[str] = (),
) -> Study:
    """Runs with their arms as a study; `files` of a run maps benchmarks to a `SampleFile`, or what reads like it."""
    counts, tables = [], {"metrics": [], "timings": []}
    for run in runs:
        run["arm"] = " ".join(run["arm"].split())  # a line break in a value of the command line would end a table's row
        labels = {name: run[name] for name in ("arm", "seed", "run")}
        for benchmark, frame in run.pop("counts").items():
            counts.append(frame.assign(**labels, benchmark=benchmark, step=run["step"], path=run["path"]))
        for name, frames in tables.items():
            if run[name] is not None:
                frames.append(run[name].assign(**labels))
        timings = run["timings"]
        run["tokens"] = None if timings is None else float(timings["tokens"].sum())
        run["seconds"] = None if timings is None else float(timings["seconds"].sum())
    listed = [{key: value for key, value in run.items() if key not in tables} for run in runs]
    frames = {name: pd.concat(parts, ignore_index=True) if parts else pd.DataFrame() for name, parts in tables.items()}
    missing = pd.DataFrame(left_out, columns=["path", "reason"])
    counted = _checked(pd.concat(counts, ignore_index=True))
    others = other_kinds or {}
    return Study(
        pd.DataFrame(listed), counted, **frames, left_out=missing, other_kinds=others, column_notes=column_notes
    )


def _checked(counts: pd.DataFrame) -> pd.DataFrame:
    """The counts, if each problem is there once and has as many samples as the others of its arm and benchmark."""
    twice = counts[counts.duplicated(["arm", "seed", "benchmark", "problem_id"], keep=False)]
    if len(twice):
        row = twice.iloc[0]
        places = twice[(twice["problem_id"] == row["problem_id"]) & (twice["arm"] == row["arm"])]["path"].unique()
        one = f"{row['arm']}, seed {row['seed']}, {row['benchmark']}"
        raise LoadError(f"{' and '.join(places[:2])}: both have {one}, column problem_id={row['problem_id']}")
    for (arm, benchmark), part in counts.groupby(["arm", "benchmark"], sort=False):
        if part["n"].nunique() > 1:
            odd = part[part["n"] != part["n"].mode()[0]].iloc[0]
            raise LoadError(
                f"{odd['path']}: {arm}, seed {odd['seed']}, {benchmark}: column problem_id={odd['problem_id']} has "
                f"{odd['n']} samples, others {part['n'].mode()[0]}; estimators need as many for each problem"
            )
    return counts
