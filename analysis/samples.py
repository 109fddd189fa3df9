"""Sample files of our own runs, read by column: how often each problem was solved, and samples of chosen problems."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

pc: Any = pyarrow.compute  # makes most of its functions when it is imported, which no checker sees
COUNTED = ("problem_id", "sample_index", "outcome", "n_tokens")
ROWS = 1 << 12  # of a batch
LONGEST = 512  # tokens of an answer that are returned at most: nothing here needs more


class LoadError(ValueError):
    """Runs or samples that cannot be compared; a one-line message."""

    one_line, exit_code = True, 2


@dataclass(frozen=True)
class SampleFile:
    """One `samples/eval/<benchmark>-<step>.parquet`, read on demand."""

    path: Path

    def counts(self) -> pd.DataFrame:
        """problem_id, n samples, c correct ones, their tokens; no text is read.

        Raises LoadError for rows that are there twice or a column that is not there.
        """
        need(self.path, COUNTED)
        table = pq.read_table(self.path, columns=list(COUNTED), read_dictionary=["problem_id", "outcome"])
        pairs = table.group_by(["problem_id", "sample_index"]).aggregate([([], "count_all")])
        if pairs.num_rows < table.num_rows:
            row = pairs.filter(pc.greater(pairs["count_all"], 1)).slice(0, 1).to_pylist()[0]
            place = f"column problem_id={row['problem_id']}, sample_index={row['sample_index']}"
            raise LoadError(f"{self.path}: {place} is there {row['count_all']} times")
        correct = pc.cast(pc.equal(pc.cast(table["outcome"], pa.string()), "correct"), pa.int64())
        grouped = pa.table(
            {"problem_id": pc.cast(table["problem_id"], pa.string()), "c": correct, "tokens": table["n_tokens"]}
        ).group_by("problem_id", use_threads=False)
        frame = grouped.aggregate([("c", "sum"), ("c", "count"), ("tokens", "sum")]).to_pandas()
        return frame.rename(columns={"c_sum": "c", "c_count": "n", "tokens_sum": "tokens"})

    def read(self, columns: Sequence[str], problems: Collection[str] | None) -> pd.DataFrame:
        """The columns of the samples of these problems, or of all; token_ids hold the first LONGEST.

        Raises LoadError for a column that is not there.
        """
        need(self.path, columns)
        chosen = None if problems is None else pa.array(sorted(problems), pa.string())
        parts = [pq.read_schema(self.path).empty_table().select(list(columns))]
        # A batch at a time: what is left out, or cut, of long answers never lies in memory as a whole.
        for batch in pq.ParquetFile(self.path).iter_batches(ROWS, columns=[*columns, "problem_id"]):
            table = pa.Table.from_batches([batch])
            if chosen is not None:
                table = table.filter(pc.is_in(pc.cast(table["problem_id"], pa.string()), chosen))
            parts.append(_cut(table.select(list(columns))))
        return pa.concat_tables(parts).to_pandas()

    def prompts(self) -> dict[str, str]:
        """problem_id -> the text of the problem, of its first sample; empty where there are no texts."""
        found: dict[str, str] = {}
        if "prompt" not in pq.read_schema(self.path).names:
            return found
        file = pq.ParquetFile(self.path, read_dictionary=["problem_id", "prompt"])
        for batch in file.iter_batches(1 << 16, columns=["problem_id", "prompt"]):
            pairs = pa.Table.from_batches([batch]).group_by(["problem_id", "prompt"]).aggregate([]).to_pylist()
            for row in pairs:
                found.setdefault(str(row["problem_id"]), row["prompt"] or "")
        return found


def _cut(table: pa.Table) -> pa.Table:
    at = table.schema.get_field_index("token_ids")
    if at < 0:
        return table
    return table.set_column(at, table.schema.field(at), pc.list_slice(table["token_ids"], 0, LONGEST))


def need(path: Path, columns: Sequence[str]) -> None:
    """Raises LoadError where the file lacks one of the columns."""
    there = pq.read_schema(path).names
    if missing := [column for column in columns if column not in there]:
        raise LoadError(f"{path}: has no column {missing[0]}; it has {', '.join(there)}")
