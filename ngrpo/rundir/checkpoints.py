"""Checkpoints that survive a kill at any moment: plain containers, a checksum in each file, never a pickle that runs."""

import errno
import hashlib
import json
import os
import random
import re
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ngrpo.rundir.files import DiskFull, sync_directory, write_atomically, write_json
from ngrpo.rundir.schema import file_digest

MANIFEST = "manifest.json"
STATE, FILES = "state.pt", "files.json"  # in a folder: what `save` is given; sha256 and bytes of every other file
# A file of torch is a zip archive, which may end with a comment and the length of it: here the checksum of all before.
SEAL = (7 + 64).to_bytes(2, "little") + b"sha256:"
TAIL = len(SEAL) + 64
CHUNK = 1 << 20  # bytes that are read at once
CHECKPOINT = re.compile(r"step-(\d{8})(-replaced)?(\.pt)?")
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
ATOMS = {type(None), bool, int, float, str, bytes, torch.dtype, torch.device, torch.Size}
TENSORS = {torch.Tensor, torch.nn.Parameter}

Entries = dict[str, dict[str, Any]]
Write = Callable[[Path], dict[str, Any]]


class CheckpointError(RuntimeError):
    """There are checkpoints, and none of them can be used, or a state that could not be loaded again."""


def save(directory: str | Path, step: int, state: Mapping[str, Any], keep: int = 2, write: Write | None = None) -> Path:
    """Writes `state` as `step-<8 digits>.pt` and lists it, with its sha256, in manifest.json.

    At every moment of it the newest listed and undamaged file is a whole checkpoint: the file is in place before the
    manifest names it, and older ones go only after that. Checkpoints of later steps go too, as those steps are being
    done again. Each file also holds its own checksum, so that a lost manifest costs nothing.

    Args:
        directory: is made if it is missing; one process at a time.
        step: RL steps done, 0 to 99,999,999.
        state: dicts, lists and tuples of tensors, numbers, texts, bytes and None, as `torch.load` accepts them with
            weights_only=True.
        keep: how many checkpoints stay, this one included.
        write: writes what is not in `state` to a folder and returns sha256 and bytes of its files, by their names. The
            checkpoint is then that folder, `step-<8 digits>`, with `state` in it, and appears whole.
    Returns:
        the file or folder.
    Raises:
        CheckpointError: `state` holds something else; the message has its key path.
        ValueError: a URL, a step or a `keep` out of range.
        OSError: the disk is full or cannot be written; the older checkpoints are then intact.
    """
    directory = _local(directory)
    if not 0 <= step < 10**8 or keep < 1:
        raise ValueError(f"a checkpoint needs 0 <= step < 10**8 and keep >= 1, got step={step}, keep={keep}")
    _refuse_unloadable(state, "state")
    entries = _tidy(directory)
    path = directory / f"step-{step:08d}{'' if write else '.pt'}"
    if path.name in entries:
        _set_aside(path, entries)
    entry = {"step": step, **(_write_folder(path, state, write) if write else _write(path, state))}
    earlier = {name: other for name, other in entries.items() if other["step"] < step}
    kept = dict(sorted({**earlier, path.name: entry}.items())[-keep:])
    write_json(kept, directory / MANIFEST)
    _remove_unlisted(directory, kept)
    return path


def unfinished(directory: str | Path, step: int) -> Path:
    """The folder that `save` gives to `write`, for the other processes that write to it."""
    return Path(directory) / f".step-{step:08d}.part"


def refuse_full(run: Path, size: int, model: int, most: int) -> None:
    """Raises DiskFull where a run has no room for `most` checkpoints of `size` bytes and for hf/ of `model` bytes.

    One more than are kept is there while one is written. What is there already is taken into account.
    """
    there = sum(file.stat().st_size for folder in ("checkpoints", "hf") for file in Path(run, folder).rglob("*.*"))
    needed, free = most * size + model, shutil.disk_usage(run).free + there
    if needed > free:
        what = f"{most} checkpoints of {size / 2**20:,.0f} MiB and a model of {model / 2**20:,.0f} MiB"
        have = f"{needed / 2**20:,.0f} MiB are needed for {what}, and {free / 2**20:,.0f} MiB are free"
        fix = "make room, set checkpoints.keep=1, or choose another disk with hydra.run.dir="
        raise DiskFull(errno.ENOSPC, f"{run} has no room: {have}; nothing was begun: {fix}")


def newest(directory: str | Path) -> tuple[int, dict[str, Any]] | None:
    """(step, state) of the newest checkpoint whose checksum holds, tensors on the CPU; None where none was saved. Of one that
    is a folder the state has its path as `folder`.

    A damaged or missing file is passed over for the one before it, with a RuntimeWarning that names it; a damaged or
    missing manifest is made anew from the files, with another.

    Raises:
        CheckpointError: there are checkpoints, but none that can be used.
        ValueError: a URL.
    """
    directory = _local(directory)
    entries = _read_manifest(directory)
    reasons = []
    # Of two files of one step the one that was set aside, whose name is longer, is the older.
    for name, entry in sorted(entries.items(), key=lambda item: (item[1]["step"], -len(item[0])), reverse=True):
        try:
            state = _load(directory / name, entry)
        except (OSError, CheckpointError) as error:
            reasons.append(f"{name}: {error}")
            continue
        for reason in reasons:
            warnings.warn(f"{directory}: passed over {reason}; continuing from {name}", RuntimeWarning, stacklevel=2)
        return entry["step"], state
    if reasons:
        raise CheckpointError(f"{directory} has no usable checkpoint ({'; '.join(reasons)}): fresh=true starts anew")
    return None


def rng_state() -> dict[str, Any]:
    """States of the global generators of python, numpy, torch on the CPU and on every CUDA device in use."""
    version, words, gauss = random.getstate()
    name, words_of_numpy, position, has_gauss, cached = np.random.get_state(legacy=True)
    keys = torch.from_numpy(np.asarray(words_of_numpy, np.int64))
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(name), keys, int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        # Asking for the state would start CUDA on every device of a run that does not use it.
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Puts the generators back to a `rng_state`; a RuntimeWarning tells if the number of CUDA devices differs."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    saved, present = len(state["cuda"]), torch.cuda.device_count()
    if saved > present:
        warnings.warn(f"the checkpoint has {saved} CUDA generators, here are {present}", RuntimeWarning, stacklevel=2)
    for device, generator in enumerate(state["cuda"][:present]):
        torch.cuda.set_rng_state(generator, device)


def _write(path: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """One file, ended by a comment with the checksum of all before it; returns the sha256 and bytes of the whole."""
    written: dict[str, Any] = {}

    def stream(file: BinaryIO) -> None:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # torch answers a failed write with an error of its own, which says nothing of the disk.
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        file.seek(-2, os.SEEK_END)  # the length of the comment, which was 0
        file.truncate()
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256")  # pyright: ignore[reportArgumentType]
        tail = SEAL + digest.hexdigest().encode()
        file.write(tail)
        digest.update(tail)
        written.update(sha256=digest.hexdigest(), bytes=file.tell())

    write_atomically(path, stream)
    return written


def _write_folder(path: Path, state: Mapping[str, Any], write: Write) -> dict[str, Any]:
    """Makes the checkpoint by one rename of a folder whose files are on the disk."""
    part = unfinished(path.parent, int(path.name[5:13]))
    part.mkdir()
    files = write(part)
    write_json({STATE: _write(part / STATE, state), **files}, part / FILES)
    part.replace(path)
    sync_directory(path.parent)
    return _folder_entry(path)


def _folder_entry(folder: Path) -> dict[str, Any]:
    """The manifest's entry of a folder, whose checksum is that of its list of files."""
    files = json.loads((folder / FILES).read_bytes())
    size = sum(file["bytes"] for file in files.values())
    return {"step": int(folder.name[5:13]), "sha256": file_digest(folder / FILES), "bytes": size}


def _is_whole_folder(folder: Path) -> bool:
    """Whether every file is there as it was listed."""
    with suppress(OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        files = json.loads((folder / FILES).read_bytes())
        return STATE in files and all(file_digest(folder / name) == file["sha256"] for name, file in files.items())
    return False


def _entry(path: Path) -> dict[str, Any] | None:
    """The manifest's entry of a checkpoint, from the checkpoint alone; None where its own checksums do not hold."""
    if path.is_dir():
        return _folder_entry(path) if _is_whole_folder(path) else None
    size, digest = path.stat().st_size, hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(max(0, min(CHUNK, size - TAIL - file.tell()))):
            digest.update(chunk)
        tail = file.read()
    intact = tail == SEAL + digest.hexdigest().encode()
    digest.update(tail)
    return {"step": int(path.name[5:13]), "sha256": digest.hexdigest(), "bytes": size} if intact else None


def _load(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    folder = path.is_dir()
    # Files of 0.1 have no checksum of their own, but that of the manifest.
    if _entry(path) is None and (folder or file_digest(path) != entry["sha256"]):
        what = "files" if folder else f"{path.stat().st_size} bytes"
        raise CheckpointError(f"its {what} do not match their checksum")
    try:
        state = torch.load(path / STATE if folder else path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle can fail in any way, and each of them means: not this one
        raise CheckpointError(f"refused by torch ({str(error).splitlines()[0][:120]})") from error
    return {**state, "folder": str(path)} if folder else state


def _tidy(directory: Path) -> Entries:
    """The listed checkpoints that exist, after the remains of a killed save were removed."""
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / MANIFEST).exists() and not _files(directory):
        # Then a file without a manifest is never the remains of a first save, but always a lost manifest.
        write_json({}, directory / MANIFEST)
    entries = {name: entry for name, entry in _read_manifest(directory).items() if (directory / name).exists()}
    _remove_unlisted(directory, entries)
    for part in directory.glob(".*.part"):
        _remove(part)
    return entries


def _set_aside(path: Path, entries: Entries) -> None:
    """Renames an earlier checkpoint of the same step, listed under both names while it happens."""
    aside = path.with_stem(f"{path.stem}-replaced")
    entries[aside.name] = entries[path.name]
    write_json(entries, path.parent / MANIFEST)
    path.replace(aside)


def _remove_unlisted(directory: Path, entries: Entries) -> None:
    for path in _files(directory):
        if path.name not in entries:
            _remove(path)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.glob("step-*") if CHECKPOINT.fullmatch(path.name)]


def _read_manifest(directory: Path) -> Entries:
    """What is listed; where that cannot be read, what the files themselves say, with a RuntimeWarning."""
    path, files = directory / MANIFEST, _files(directory)
    if not path.exists() and not files:
        return {}
    with suppress(OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        entries = json.loads(path.read_bytes())
        named = [(CHECKPOINT.fullmatch(name), entry) for name, entry in entries.items()]
        if all(at and int(at[1]) == entry["step"] and isinstance(entry["sha256"], str) for at, entry in named):
            return entries
    found = {file.name: entry for file in sorted(files) if (entry := _entry(file))}
    what = f"{path} is {'damaged' if path.exists() else 'gone'}"
    if files and not found:
        raise CheckpointError(f"{what}, and no checkpoint beside it is whole: fresh=true starts anew")
    told = f"made anew from {', '.join(found)}" if found else "there is no checkpoint"
    warnings.warn(f"{what}: {told}", RuntimeWarning, stacklevel=3)
    return found


def _refuse_unloadable(value: Any, where: str) -> None:
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            if type(key) not in (str, int):
                raise CheckpointError(f"{where} has the key {key!r}: a checkpoint takes keys that are str or int")
            _refuse_unloadable(item, f"{where}.{key}")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _refuse_unloadable(item, f"{where}[{index}]")
    elif type(value) not in ATOMS | TENSORS:
        kind = f"{type(value).__module__}.{type(value).__name__}"
        raise CheckpointError(f"{where} is a {kind}: a checkpoint takes tensors, numbers, texts and plain containers")


def _local(directory: str | Path) -> Path:
    if URL.match(str(directory)):
        raise ValueError(f"checkpoints are kept in local directories, not at {directory}")
    return Path(directory)
