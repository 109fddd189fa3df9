"""JSON lines, JSON, CSV and parquet as batches of the columns asked for, so that memory does not grow with the texts.

JSON lines and CSV may be compressed (.gz), a .json may hold lines or evalplus' results.
"""

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv as arrow_csv
from pyarrow import json as arrow_json

from analysis.samples import LoadError, pc

CHUNK = 1 << 23  # bytes of text that are parsed at once
ROWS = 1 << 13  # of a batch of parquet: 250 MB of texts of 30 kB
LOOKED_AT = 1000  # rows whose keys are the columns of a JSON file
Batches = Iterator[pa.RecordBatch]


def names(path: Path) -> list[str]:
    """The columns of a file. Raises LoadError unless it exists, is of a known kind and has a row."""
    if not path.is_file():
        what = "is a directory, not a file of samples" if path.is_dir() else "is no file"
        raise LoadError(f"samples: {path} {what}")
    if _kind(path) not in KINDS:
        raise LoadError(f"samples: {path} must end in {', '.join(KINDS)}{_why_not(path)}")
    found = _read_or_refuse(path, lambda: KINDS[_kind(path)][0](path))
    if not found:
        raise LoadError(f"samples: {path} has no rows")
    twice = [name for at, name in enumerate(found) if name in found[:at]]
    if twice:
        raise LoadError(f"samples: {path} has two columns {twice[0]}")
    return found


def stem(path: Path) -> str:
    """The name of a file without its extensions."""
    return path.name.removesuffix(".gz").rpartition(".")[0] or path.name


def _kind(path: Path) -> str:
    packed = path.suffix == ".gz" and Path(path.stem).suffix in (".jsonl", ".csv")
    return Path(path.stem).suffix if packed else path.suffix


def _why_not(path: Path) -> str:
    unsafe = path.suffix in (".pt", ".pth", ".pkl", ".pickle")
    return "; a pickle may run code when it is read: write its samples as JSON lines" if unsafe else ""


def _open(path: Path) -> IO[bytes]:
    """Opens a file and skips its byte order mark, if any."""
    file: Any = gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115 - the caller closes it
    if file.read(3) != codecs.BOM_UTF8:
        file.seek(0)
    return file


def batches(path: Path, wanted: Sequence[str]) -> Batches:
    """All rows of these columns, in file order; a column that a batch lacks is null there."""
    source = KINDS[_kind(path)][1](path, wanted)
    while (batch := _read_or_refuse(path, lambda: next(source, None))) is not None:
        _read_or_refuse(path, lambda: batch.validate(full=True))  # parquet may hold texts that are not UTF-8
        yield batch


def first(path: Path, name: str) -> Any:
    """The cell of a column in the first row."""
    return next(batches(path, [name])).column(name)[0].as_py()


def _read_or_refuse(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except LoadError:
        raise
    except (ValueError, OSError, EOFError, RecursionError, zlib.error, pa.ArrowException, csv.Error) as error:
        raise LoadError(f"samples: {path} cannot be read: {' '.join(str(error).split())[:200]}") from error


def _parquet(path: Path, wanted: Sequence[str]) -> Batches:
    for batch in pq.ParquetFile(path).iter_batches(ROWS, columns=list(wanted)):
        views = [pa.types.is_string_view(column.type) for column in batch.columns]  # which pyarrow cannot take from
        cells = [pc.cast(c, pa.string()) if view else c for c, view in zip(batch.columns, views, strict=True)]
        yield pa.RecordBatch.from_arrays(cells, batch.schema.names) if any(views) else batch


def _csv_names(path: Path) -> list[str]:
    with _open(path) as file:
        return next(csv.reader(io.TextIOWrapper(file, "utf-8", newline="")), [])


def _csv(path: Path, wanted: Sequence[str]) -> Batches:
    """Every cell as text: "007" and "None" are answers."""
    as_text = arrow_csv.ConvertOptions(
        include_columns=list(wanted), column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=False
    )
    yield from arrow_csv.open_csv(
        pa.PythonFile(_open(path), mode="r"),
        arrow_csv.ReadOptions(block_size=CHUNK),
        arrow_csv.ParseOptions(newlines_in_values=True),
        as_text,
    )


def _json_names(path: Path) -> list[str]:
    records = _records(path) if path.suffix == ".json" else _lines(path, LOOKED_AT)
    return list(dict.fromkeys(key for record in records[:LOOKED_AT] for key in _object(path, record)))


def _lines(path: Path, most: int | None = None) -> list[Any]:
    with _open(path) as file:
        return [json.loads(line) for line in islice(file, most) if line.strip()]


def _json(path: Path, wanted: Sequence[str]) -> Batches:
    yield _plain(path, _records(path), wanted)


def _records(path: Path) -> list[Any]:
    """The objects of a JSON file: a list, lines, or the `eval` of evalplus, which lists the answers to each task."""
    try:
        content = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        return _lines(path)
    tasks = content.get("eval") if isinstance(content, dict) else None
    if isinstance(tasks, dict) and all(isinstance(answers, list) for answers in tasks.values()):
        return [{"task_id": task, **_object(path, answer)} for task, answers in tasks.items() for answer in answers]
    if not isinstance(content, list):
        raise LoadError(f"samples: {path} must hold a list of objects, one per sample; lines of objects are .jsonl")
    return content


def _json_lines(path: Path, wanted: Sequence[str]) -> Batches:
    """pyarrow parses a chunk at a time; one whose columns hold values of several kinds is read value by value."""
    first = _lines(path, LOOKED_AT)
    # What is text stays text: a problem that is named like a date would become one.
    texts = [name for name in wanted if any(isinstance(row.get(name), str) for row in first)]
    options = arrow_json.ParseOptions(explicit_schema=pa.schema([(name, pa.string()) for name in texts]))
    with _open(path) as file:
        while lines := [line for line in file.readlines(CHUNK) if line.strip()]:
            chunk = b"".join(lines)
            try:
                table = arrow_json.read_json(
                    io.BytesIO(chunk), arrow_json.ReadOptions(block_size=len(chunk) + 1), options
                )
                if any(map(_rounded, table.columns)):
                    raise pa.ArrowInvalid("numbers too long for a double")
            except pa.ArrowException:
                yield _plain(path, [json.loads(line) for line in lines], wanted)
                continue
            columns = [
                table[name].combine_chunks() if name in table.column_names else pa.nulls(len(table)) for name in wanted
            ]
            yield pa.RecordBatch.from_arrays([_whole(column) for column in columns], list(wanted))


def _rounded(column: Any) -> bool:
    """Whether whole numbers may have been rounded to doubles, which pyarrow does with those of 64 bits and more."""
    if not pa.types.is_floating(column.type):
        return False
    most = pc.max(pc.abs(column)).as_py()
    return most is not None and most >= 2**53


def _whole(column: Any) -> pa.Array:
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def _plain(path: Path, records: Any, wanted: Sequence[str]) -> pa.RecordBatch:
    """Values of several kinds as text; half a surrogate pair, which no file can hold as UTF-8, as a question mark."""
    columns = {}
    for name in wanted:
        cells = [_object(path, record).get(name) for record in records]
        kinds = {type(cell) for cell in cells} - {type(None)}
        alike = kinds in ({bool}, {float}) or (kinds == {int} and all(abs(cell or 0) < 1 << 63 for cell in cells))
        columns[name] = pa.array(cells if alike else map(_text, cells), None if alike else pa.string())
    return pa.RecordBatch.from_pydict(columns)


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
