"""Files that are written whole or not at all: JSON, CSV and parquet that read back as what was written."""

import csv
import errno
import json
import math
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import pyarrow

from ngrpo.rundir.lock import refuse_gone

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Libraries that write by themselves have errors of their own for it.
SAYS_FULL = re.compile("No space left on device|Disk quota exceeded|File too large|disk is full", re.IGNORECASE)
KEPT = "what was written before it is kept, and the same command goes on from there once there is room"
QUOTED = re.compile('[",\r\n\0]|^ | $')
SURROGATE = re.compile("[\ud800-\udfff]")


class DiskFull(OSError):
    """There is no room for a file; (errno, one line with its name, what was needed, and what is kept)."""

    def __str__(self) -> str:
        return self.args[1]


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object] | bytes) -> None:
    """Writes `path` whole or not at all, whenever the process dies: temporary file beside it, fsync, replace.

    Args:
        path: its directory is made if it is missing.
        write: the content, or a function that writes it to the binary file that it is given.
    Raises:
        DiskFull: the old file is then intact.
        Gone: the file is one of a run directory that was deleted or moved since this process locked it.
    """
    path = Path(path)
    refuse_gone(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".{path.name[:100]}.{uuid.uuid4().hex}.part"
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with open(descriptor, "w+b") as file:
            file.write(write) if isinstance(write, bytes) else write(file)
            file.flush()
            os.fsync(descriptor)
        os.replace(part, path)
    except BaseException as error:
        wrote = part.stat().st_size if part.exists() else 0
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            needed = f"{len(write):,}" if isinstance(write, bytes) else f"more than {wrote:,}"
            raise _disk_full(path, error, needed) from error
        raise
    sync_directory(path.parent)


def write_json(content: object, path: str | Path) -> None:
    """Strict JSON, keys in the order given: nan and infinities become null, lone surrogates U+FFFD.

    Raises:
        TypeError: something that JSON has no form for, naming where it stands.
    """
    text = json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def write_over(content: Mapping[str, Any], path: Path) -> None:
    """JSON in place of a file that is no shorter, for a disk without room for another: one write, which needs none.

    A crash of the machine could tear it. Raises OSError where the file is shorter.
    """
    text = json.dumps(plain(content), ensure_ascii=False, allow_nan=False).encode()
    with open(path, "r+b", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if len(text) >= size:
            raise OSError(errno.ENOSPC, f"{path} is too short for what it should say")
        file.write(text.ljust(size - 1) + b"\n")
        os.fsync(file.fileno())


def write_csv(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """One line per row under the union of the columns in first-seen order.

    A missing or None cell is empty and an empty text is `""`; floats keep every digit. Text comes back unchanged from
    `read_csv` and from `pandas.read_csv(path, dtype=str, keep_default_na=False)`, but for lone surrogates (U+FFFD).
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, *([row.get(name) for name in columns] for row in rows)]
    write_atomically(path, "".join(map(_line, lines)).encode())


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """The rows of a file of `write_csv`, every cell as its text; an empty list where there is no file."""
    if not Path(path).exists():
        return []
    csv.field_size_limit(sys.maxsize)
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_parquet(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Rows as one parquet file under the union of their columns; lone surrogates become U+FFFD."""
    import pyarrow

    names = dict.fromkeys(name for row in rows for name in row)
    write_table(pyarrow.table({name: pyarrow.array([clean(row.get(name)) for row in rows]) for name in names}), path)


def write_table(table: "pyarrow.Table", path: str | Path) -> None:
    """A table as one parquet file, with a checksum of each page."""
    import pyarrow.parquet

    write_atomically(path, lambda file: pyarrow.parquet.write_table(table, file, write_page_checksum=True))


def read_table(path: str | Path) -> "pyarrow.Table | None":
    """The table in a parquet file whose checksums hold; None where there is none, or one that is damaged."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path, page_checksum_verification=True)
    except (OSError, ValueError, pyarrow.ArrowException):
        return None


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def plain(value: Any, where: str = "$", number: Callable[[float], Any] = _finite_or_none) -> Any:
    """`value` in JSON's containers; `number` says what becomes of a float, `where` leads to the value."""
    if hasattr(value, "tolist"):  # a number or an array of numpy or torch
        value = value.tolist()
    if isinstance(value, Mapping):
        return {clean(str(key)): plain(item, f"{where}.{key}", number) for key, item in value.items()}
    if isinstance(value, (list, tuple)) or (isinstance(value, Sequence) and not isinstance(value, (str, bytes))):
        return [plain(item, f"{where}[{index}]", number) for index, item in enumerate(value)]
    if isinstance(value, float):
        return number(float(value))
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, (str, Path)):
        return clean(str(value))
    raise TypeError(f"{where} is a {type(value).__name__}, for which JSON has no form")


def clean(value: Any, text: bool = False) -> Any:
    """`value` with U+FFFD for lone surrogates, which no UTF-8 file can hold; as a text where a `text` is due."""
    if isinstance(value, str):
        return SURROGATE.sub("\ufffd", value)
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    return clean(str(value)) if text and value is not None else value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if not isinstance(value, str):
        raise TypeError(f"a CSV cell holds a number, a text or nothing, got {type(value).__name__} {str(value)[:40]!r}")
    # Python 3.11 leaves a lone carriage return without quotes and then reads it as the end of the row.
    return '"' + clean(value).replace('"', '""') + '"' if value == "" or QUOTED.search(value) else clean(value)


def _line(cells: Sequence[Any]) -> str:
    return (",".join(map(_cell, cells)) or '""') + "\n"  # a blank line would be no row


def no_room(error: BaseException) -> DiskFull | None:
    """A full disk as the one line that it is, whoever met it while writing what; None where `error` is another."""
    seen: BaseException | None = error
    for _ in range(20):
        if seen is None or isinstance(seen, DiskFull):
            return seen
        number, file = getattr(seen, "errno", None), getattr(seen, "filename", None)
        if number in DISK_FULL or SAYS_FULL.search(str(seen)):
            told = " ".join(str(seen).split())[:300]
            why = "the disk is full" if file else told
            return DiskFull(errno.ENOSPC, f"{file or 'a file'} was not written: {why}; {KEPT}")
        seen = seen.__cause__ or seen.__context__
    return None


def _disk_full(path: Path, error: OSError, needed: str) -> DiskFull:
    free = shutil.disk_usage(path.parent).free
    why = f"{error.strerror}, it needs {needed} bytes and there are {free:,} bytes free on its disk"
    return DiskFull(error.errno, f"{path} was not written: {why}; {KEPT}")


def sync_directory(path: Path) -> None:
    """What a directory lists is on the disk when it returns."""
    # Some network file systems refuse to sync a directory; the file itself is safe by then.
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
