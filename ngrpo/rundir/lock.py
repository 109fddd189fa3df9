"""One process at a time in a directory: a lock that dies with its holder."""

import errno
import fcntl
import os
import time
from pathlib import Path


class RunLocked(RuntimeError):
    """Another process is at work in the run directory."""


class Gone(RuntimeError):
    """The run directory was deleted or moved while this process held it."""


_held: dict[int, Path] = {}  # descriptor -> the directory, where it was when it was locked


def acquire(path: Path) -> int:
    """Descriptor of the locked file `.lock`; the system unlocks it when this process dies, however it dies."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = _owner(lock)
        os.close(lock)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise type(error)(error.errno, f"{path} cannot be locked ({error.strerror}): use a local disk") from error
        raise RunLocked(
            f"{path} is in use by pid {owner}: wait for it, or choose another directory with hydra.run.dir="
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    _held[lock] = Path(os.path.abspath(path))
    return lock


def unwritable(path: Path, error: OSError) -> OSError:
    """The same kind of error, with one line that names the directory and the override that chooses another."""
    advice = f"the run directory {path} cannot be written ({error.strerror}): choose another with hydra.run.dir="
    return type(error)(error.errno, advice)


def holds(lock: int) -> bool:
    """Whether this process has the lock; a forked child has not."""
    return lock in _held


def is_gone(lock: int) -> bool:
    """Whether the directory that this process has locked is no longer where it was."""
    try:
        there = os.stat(_held[lock] / ".lock", follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (KeyError, OSError):  # not held here, or a disk that does not answer
        return False
    here = os.fstat(lock)
    return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)


def refuse_gone(path: Path) -> None:
    """Raises Gone where `path` is to be written in a directory that this process has locked and that is gone."""
    place = Path(os.path.abspath(path))
    for lock, held in _held.items():
        if (held == place or held in place.parents) and is_gone(lock):
            raise gone(held)


def gone(place: Path) -> Gone:
    return Gone(
        f"{place} was deleted or moved while its run was at work, so it stopped: "
        "the same command starts anew, hydra.run.dir=<where it is now> continues"
    )


def _owner(lock: int) -> str:
    for _ in range(50):
        if pid := os.pread(lock, 20, 0).decode().strip():
            return pid
        time.sleep(0.01)  # it has the lock and has yet to write its pid
    return "unknown"


def release(lock: int) -> None:
    if lock in _held:
        del _held[lock]
        os.ftruncate(lock, 0)
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


def _forget_locks() -> None:
    # A forked child shares the lock; if it outlived a killed parent, the directory would stay locked.
    for lock in _held:
        os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_forget_locks)
