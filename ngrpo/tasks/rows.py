"""Rows of a user's file or of a public data set, as plain mappings with a digest of their content.

Every refusal is one line with the row's number.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

Row = dict[str, Any]
KINDS = (".jsonl", ".parquet")


class Unreadable(ValueError):
    """There is no such file or data set."""


@dataclass(frozen=True)
class Rows:
    """The rows of one source; the same content has the same `digest` wherever it lies."""

    source: str
    digest: str
    rows: tuple[Row, ...]


def rows_of(
    name: str, path: str | None, directory: str | None, dataset: str | None, subset: str | None, split: str | None
) -> Rows:
    """The rows of the first source that is given, of path, directory (which has a file with this name) and data set."""
    if path is not None:
        return read_file(Path(path).expanduser())
    if directory is not None:
        places = [Path(directory).expanduser() / f"{name}{kind}" for kind in KINDS]
        if place := next((place for place in places if place.is_file()), None):
            return read_file(place)
        raise Unreadable(f"{name}: {directory} holds neither {places[0].name} nor {places[1].name}; set task.path")
    if dataset is None:
        raise Unreadable(f"{name}: has no file; set task.path=<file.jsonl or .parquet>")
    return _download(name, dataset, subset, split)


def read_file(place: Path) -> Rows:
    """The rows of a .jsonl or .parquet file. Raises ValueError, in one line, where there are none or one cannot be read."""
    if not place.is_file():
        raise Unreadable(f"{place}: there is no such file; set task.path=<file.jsonl or .parquet>")
    if place.suffix not in KINDS:
        raise Unreadable(f"{place}: must end in {' or '.join(KINDS)}; set task.path")
    known = place.stat()
    return _read(place.resolve(), known.st_mtime_ns, known.st_size)


@lru_cache(maxsize=16)  # one job builds its tasks several times: to check them, to name the run, to use them
def _read(place: Path, changed: int, size: int) -> Rows:
    content = place.read_bytes()
    rows = tuple(_parquet(place) if place.suffix == ".parquet" else _lines(place, content))
    if not rows:
        raise ValueError(f"{place}: holds no rows, expected at least one problem; set task.path")
    return Rows(str(place), blake2b(content, digest_size=8).hexdigest(), rows)


def _lines(place: Path, content: bytes) -> Iterator[Row]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{place}: row {number} is not UTF-8 ({error.reason}); save it as UTF-8") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place}: row {number} is not JSON ({error}); expected one object per line") from None
        if not isinstance(row, dict):
            raise ValueError(f"{place}: row {number} is a {type(row).__name__}, expected an object with named columns")
        yield row


def _parquet(place: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(place).to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise Unreadable(f"{place}: is no readable parquet file ({error}); set task.path") from None


@lru_cache(maxsize=16)
def _download(name: str, dataset: str, subset: str | None, split: str | None) -> Rows:
    import datasets
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()  # or every retry is logged
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(dataset, subset, split=split)
    except Exception as error:  # the hub raises what its HTTP library of the day does
        reason = (" ".join(str(error).split()) or type(error).__name__)[:160]
        fix = f"set task.path=<file> or paths.data=<directory with {name}.jsonl>"
        raise Unreadable(f"{name}: the data set {dataset} cannot be loaded ({reason}); {fix}") from error
    if isinstance(loaded, dict):
        raise Unreadable(f"{name}: {dataset} has the splits {sorted(map(str, loaded))}; set task.split")
    rows = tuple(dict(row) for row in loaded)
    if not rows:
        raise ValueError(f"{name}: {dataset} holds no rows in split {split}; set task.split")
    digest = blake2b(digest_size=8)
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return Rows(dataset, digest.hexdigest(), rows)
