"""What a run leaves on disk, step by step: rows, samples, results, the model. It only writes."""

import csv
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
import pyarrow.parquet
import torch
from safetensors.torch import save_file

from ngrpo.rundir.directory import RunDirectory
from ngrpo.rundir.files import clean, read_csv, write_atomically, write_csv, write_json, write_parquet, write_table
from ngrpo.rundir.lock import refuse_gone
from ngrpo.rundir.schema import (
    SAMPLE_TYPES,
    STEP_SAMPLES,
    STRATEGY_FILE,
    TRAIN_SAMPLES,
    TRUST,
    Changed,
    Unreadable,
    checked_name,
    eval_samples,
    file_digest,
    read_results,
)
from ngrpo.tasks.base import OUTCOMES

if TYPE_CHECKING:
    from ngrpo.training.tracking import Trackers

GROWING = ("metrics.csv", "timings.csv", STEP_SAMPLES, "results.json")  # files that later steps add to
SECONDS_BETWEEN_HEARTBEATS = 30.0


def write_samples(rows: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Sample rows as a parquet file with the columns and types of `SAMPLE_TYPES`, also where all cells are None.

    Raises:
        ValueError: a row with other columns, or an outcome that is not one of `OUTCOMES`.
    """
    rows = list(rows)
    for row in rows:
        if row.keys() != SAMPLE_TYPES.keys():
            raise ValueError(f"a sample row has other columns: {sorted(row.keys() ^ SAMPLE_TYPES.keys())}")
        if row["outcome"] not in OUTCOMES:
            raise ValueError(f"outcome must be one of {', '.join(OUTCOMES)}, got {row['outcome']!r}")
    kinds = {"list<int32>": pyarrow.list_(pyarrow.int32())}
    fields = {name: kinds.get(kind) or pyarrow.type_for_alias(kind) for name, kind in SAMPLE_TYPES.items()}
    cleaned = [{name: clean(row[name], text=SAMPLE_TYPES[name] == "string") for name in fields} for row in rows]
    table = pyarrow.Table.from_pylist(cleaned, pyarrow.schema(list(fields.items())))
    write_table(table, path)


@dataclass
class Recorder:
    """Writes one run directory; trackers are told the same."""

    run: RunDirectory
    trackers: "Trackers | None" = None
    digests: dict[str, str] = field(default_factory=dict)  # of sample files that a checkpoint has listed

    def step(
        self,
        step: int,
        rows: list[dict[str, Any]],
        metrics: Mapping[str, float],
        seconds: Mapping[str, float],
        explored: list[dict[str, Any]],
    ) -> None:
        """One RL step: its sample rows, figures, seconds by phase, and what exploration did at some decode steps."""
        self.append_row("metrics", {"step": step, **metrics})
        tokens, whole = sum(row["n_tokens"] for row in rows), sum(seconds.values())
        tokens += int(metrics.get("retry_tokens", 0))  # answers to what was asked again, most of which are no rows
        rates = {"tokens": tokens, "tokens_per_second": tokens / whole, "seconds": whole}
        rates["rollout_tokens_per_second"] = tokens / seconds["rollout"]
        phases = {f"seconds_{name}": value for name, value in seconds.items()}
        self.append_row("timings", {"step": step, **rates, **phases})
        if self.trackers:
            self.trackers.step(step, metrics, {**rates, **phases})
        write_samples(rows, self.run.path / TRAIN_SAMPLES.format(step=step))
        if explored:
            path = self.run.path / STEP_SAMPLES
            earlier = pyarrow.parquet.read_table(path).to_pylist() if path.exists() else []
            write_parquet([*earlier, *explored], path)
        if time.monotonic() - self.run.saved > SECONDS_BETWEEN_HEARTBEATS:
            self.run.save()

    def append_row(self, name: str, row: Mapping[str, Any]) -> None:
        """Adds a row to `<name>.csv` (metrics, or timings for all that depends on the clock).

        Raises:
            ValueError: no whole number under `step`, or one that is not beyond the last row's.
        """
        path = self.run.path / f"{name}.csv"
        rows = [{key: cell or None for key, cell in row.items()} for row in read_csv(path)]
        step, last = row.get("step"), int(rows[-1]["step"] or -1) if rows else -1
        if not isinstance(step, int) or step <= last:
            raise ValueError(f"{path.name} takes one row per RL step: got step={step!r} after {last}")
        write_csv([*rows, {key: None if value == "" else value for key, value in row.items()}], path)

    def result(self, benchmark: str, step: int, entry: Mapping[str, Any]) -> None:
        """Puts the entry of a benchmark at an RL step in results.json, in place of an earlier one."""
        results = read_results(self.run.path)
        steps = {**results.get(checked_name(benchmark), {}), str(step): entry}
        results[benchmark] = {key: steps[key] for key in sorted(steps, key=int)}
        write_json(results, self.run.path / "results.json")
        samples = eval_samples(self.run.path, benchmark, step)
        if samples.exists():  # so that a flaw that parquet itself does not see is seen when the run goes on
            name = samples.relative_to(self.run.path).as_posix()
            self.run.save(checksums=self.run.record.get("checksums", {}) | {name: file_digest(samples)})
        if self.trackers:
            self.trackers.evaluation(benchmark, step, entry, samples)

    def digest(self, path: Path) -> str | None:
        """What a file of benchmark samples was when its result was recorded; None where none was."""
        return self.run.record.get("checksums", {}).get(path.relative_to(self.run.path).as_posix())

    def kept(self, step: int) -> dict[str, Any]:
        """For the checkpoint of an RL step: which it is, what the files that grow hold, and checksums of the sample files."""
        there = {name: self.run.path / name for name in GROWING}
        grown = {name: path.read_bytes() for name, path in there.items() if path.exists()}
        names = {path.relative_to(self.run.path).as_posix() for path in self.run.path.glob("samples/*/*.parquet")}
        for name in sorted(names - self.digests.keys()):
            self.digests[name] = file_digest(self.run.path / name)
        own = {"run": self.run.record.get("config_hash"), "step": step}
        return {**own, "files": grown, "checksums": {name: self.digests[name] for name in sorted(names)}}

    def restore(self, kept: Mapping[str, Any] | None, step: int) -> None:
        """Puts the files back to where the checkpoint of RL step `step` left them, as later steps are done again.

        A file that had lost something is told. Samples are in no checkpoint: raises Changed where a file of them is not
        what it was, unless the run's `trust_changed`; then run.json lists it under `lost`. `kept` is what `kept` gave, {}
        without a checkpoint, None for one of an older version, which is refused.
        """
        if kept is None:
            raise Unreadable(f"{self.run.path}/checkpoints were written by an older version: fresh=true starts anew")
        if kept and (kept["run"], kept["step"]) != (self.run.record.get("config_hash"), step):
            odd = f"{self.run.path}/checkpoints: the one of RL step {step} is of RL step {kept['step']} or another run"
            raise Unreadable(f"{odd}: take it away, or fresh=true starts anew")
        if not kept and (self.run.path / "metrics.csv").exists():
            print(f"note: {self.run.path} holds no checkpoint: its RL steps are done again from the first")
        self.digests = dict(kept.get("checksums", {}))
        now = {name: path for name in self.digests if (path := self.run.path / name).exists()}
        odd = [name for name, digest in self.digests.items() if name not in now or file_digest(now[name]) != digest]
        for name in odd:
            del self.digests[name]
            what = "was changed" if name in now else "is gone"
            what = f"{self.run.path}/{name} {what}, and its samples cannot be drawn again"
            if not self.run.trust_changed:
                raise Changed(f"{what}: {TRUST} without it, fresh=true starts anew")
            print(f"note: {what}")
        if odd:
            self.run.save(lost=sorted({*self.run.record.get("lost", []), *odd}))
        for name in GROWING:
            path, content = self.run.path / name, kept.get("files", {}).get(name)
            if content is None:
                path.unlink(missing_ok=True)
                continue
            if lost := _lost(name, path, content):
                print(f"note: {path} {lost}; written again as the checkpoint of RL step {step} holds it")
            write_atomically(path, content)

    def model(self, model: Any, tokenizer: Any, learned: Mapping[str, torch.Tensor]) -> None:
        """hf/: the model, its tokenizer and the strategy's own parameters for from_pretrained; whole or not at all."""
        target = self.run.path / "hf"
        refuse_gone(target)
        partial = target.with_name("hf.partial")
        shutil.rmtree(partial, ignore_errors=True)
        model.save(partial)
        tokenizer.save_pretrained(partial)
        if learned:
            save_file({name: v.detach().cpu().contiguous() for name, v in learned.items()}, partial / STRATEGY_FILE)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)

    def close(self) -> None:
        """Lets the trackers write what they hold."""
        if self.trackers:
            self.trackers.close(succeeded=sys.exception() is None)


def _lost(name: str, path: Path, content: bytes) -> str:
    """What a file lacks of what it once held, as a phrase; empty where all is there, whatever was added."""
    if not path.exists():
        return "is gone"
    try:
        before, now = _records(name, content), _records(name, path.read_bytes())
    except (OSError, ValueError, LookupError, AttributeError, csv.Error, pyarrow.ArrowException):
        return "is damaged"
    lacking = sum(now.get(key) != record for key, record in before.items())
    return f"lacks or changes {lacking} of {len(before)} records" if lacking else ""


def _records(name: str, content: bytes) -> dict[Any, Any]:
    """What a file that grows holds, by what none of it changes later: rows by their place, results by benchmark and step."""
    if name.endswith(".json"):
        results = json.loads(content).items()
        return {(benchmark, step): entry for benchmark, steps in results for step, entry in steps.items()}
    if name.endswith(".csv"):
        rows = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    else:
        rows = pyarrow.parquet.read_table(io.BytesIO(content), page_checksum_verification=True).to_pylist()
    # A column that came later is empty in the rows before it.
    return {at: {key: cell for key, cell in row.items() if cell not in (None, "")} for at, row in enumerate(rows)}


class Clock:
    """Seconds by phase of one RL step."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start
