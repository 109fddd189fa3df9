"""JSON lines, JSON, CSV and parquet as batches of the columns asked for, so that memory does not grow with the texts.

It knows file formats.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv as arrow_csv
from pyarrow import json as arrow_json

from analysis.samples import LoadError

CHUNK = 1 << 23  # bytes of text that are parsed at once
ROWS = 1 << 13  # of a batch of parquet: 250 MB of texts of 30 kB
LOOKED_AT = 1000  # rows whose keys are the columns of a JSON file
Batches = Iterator[pa.RecordBatch]


def names(path: Path) -> list[str]:
    """The columns of a file. Raises LoadError where there is no such file, of a known kind, with a row in it."""
    if not path.is_file():
        raise LoadError(f"samples: {path} is no file")
    if path.suffix not in KINDS:
        raise LoadError(f"samples: {path} must end in {', '.join(KINDS)}")
    found = _read_or_refuse(path, lambda: KINDS[path.suffix][0](path))
    if not found:
        raise LoadError(f"samples: {path} has no rows")
    twice = [name for at, name in enumerate(found) if name in found[:at]]
    if twice:
        raise LoadError(f"samples: {path} has two columns {twice[0]}")
    return found


def batches(path: Path, wanted: Sequence[str]) -> Batches:
    """All rows of these columns, in the order of the file; a column that a batch lacks is null in it."""
    source = KINDS[path.suffix][1](path, wanted)
    while (batch := _read_or_refuse(path, lambda: next(source, None))) is not None:
        yield batch


def _read_or_refuse(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except LoadError:
        raise
    except (ValueError, OSError, pa.ArrowException, csv.Error) as error:
        raise LoadError(f"samples: {path} cannot be read: {' '.join(str(error).split())[:200]}") from error


def _parquet(path: Path, wanted: Sequence[str]) -> Batches:
    yield from pq.ParquetFile(path).iter_batches(ROWS, columns=list(wanted))


def _csv_names(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return next(csv.reader(file), [])


def _csv(path: Path, wanted: Sequence[str]) -> Batches:
    """Every cell as the text that it is: "007" and "None" are answers."""
    as_text = arrow_csv.ConvertOptions(
        include_columns=list(wanted), column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=False
    )
    yield from arrow_csv.open_csv(
        path, arrow_csv.ReadOptions(block_size=CHUNK), arrow_csv.ParseOptions(newlines_in_values=True), as_text
    )


def _json_names(path: Path) -> list[str]:
    records = json.loads(path.read_bytes()) if path.suffix == ".json" else _lines(path, LOOKED_AT)
    if not isinstance(records, list):
        raise LoadError(f"samples: {path} must hold a list of objects, one per sample; lines of objects are .jsonl")
    return list(dict.fromkeys(key for record in records[:LOOKED_AT] for key in _object(path, record)))


def _lines(path: Path, most: int) -> list[Any]:
    with path.open("rb") as file:
        return [json.loads(line) for line in islice(file, most) if line.strip()]


def _json(path: Path, wanted: Sequence[str]) -> Batches:
    yield _plain(path, json.loads(path.read_bytes()), wanted)


def _json_lines(path: Path, wanted: Sequence[str]) -> Batches:
    """pyarrow parses a chunk at a time; one whose columns hold values of several kinds is read value by value."""
    first = _lines(path, LOOKED_AT)
    # What is text stays text: a problem that is named like a date would become one.
    texts = [name for name in wanted if any(isinstance(row.get(name), str) for row in first)]
    options = arrow_json.ParseOptions(explicit_schema=pa.schema([(name, pa.string()) for name in texts]))
    with path.open("rb") as file:
        while lines := [line for line in file.readlines(CHUNK) if line.strip()]:
            chunk = b"".join(lines)
            try:
                table = arrow_json.read_json(
                    io.BytesIO(chunk), arrow_json.ReadOptions(block_size=len(chunk) + 1), options
                )
            except pa.ArrowException:
                yield _plain(path, [json.loads(line) for line in lines], wanted)
                continue
            columns = [
                table[name].combine_chunks() if name in table.column_names else pa.nulls(len(table)) for name in wanted
            ]
            yield pa.RecordBatch.from_arrays([_whole(column) for column in columns], list(wanted))


def _whole(column: Any) -> pa.Array:
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def _plain(path: Path, records: Any, wanted: Sequence[str]) -> pa.RecordBatch:
    """Values of any kind as text; half a surrogate pair, which no file can hold as UTF-8, as a question mark."""
    cells = {name: [_text(_object(path, record).get(name)) for record in records] for name in wanted}
    return pa.RecordBatch.from_pydict({name: pa.array(column, pa.string()) for name, column in cells.items()})


def _object(path: Path, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise LoadError(f"samples: {path} must hold an object per sample, got {json.dumps(record)[:60]}")
    return record


def _text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "replace").decode("utf-8")


KINDS: dict[str, tuple[Callable[[Path], list[str]], Callable[[Path, Sequence[str]], Batches]]] = {
    ".parquet": (lambda path: pq.read_schema(path).names, _parquet),
    ".csv": (_csv_names, _csv),
    ".jsonl": (_json_names, _json_lines),
    ".json": (_json_names, _json),
}
