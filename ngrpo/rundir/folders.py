"""A checkpoint that is a folder: tensors in parts, as ranks have written them, the rest in one file, and their checksums."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ngrpo.rundir.files import write_json

STATE = "state.pt"  # all that is not in parts
FILES = "files.json"  # sha256 and bytes of every other file


def seal(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Lists the files of a folder, which are on the disk by now."""
    write_json(files, folder / FILES)


def entry(folder: Path) -> dict[str, Any]:
    """What a manifest of checkpoints says of a sealed folder: its checksum is that of its list."""
    size = sum(file["bytes"] for file in json.loads((folder / FILES).read_bytes()).values())
    return {"step": int(folder.name[5:13]), "sha256": sha256(folder / FILES), "bytes": size}


def is_whole(folder: Path) -> bool:
    """Whether every file is there as it was listed."""
    with suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
        files = json.loads((folder / FILES).read_bytes())
        return STATE in files and all(sha256(folder / name) == file["sha256"] for name, file in files.items())
    return False


def sha256(path: Path) -> str:
    """Of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
