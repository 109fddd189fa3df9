"""One process at a time in a directory: a lock that dies with its holder."""

import errno
import fcntl
import os
import time
from pathlib import Path


class RunLocked(RuntimeError):
    """Another process is at work in the run directory."""


_held: set[int] = set()


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
    _held.add(lock)
    return lock


def unwritable(path: Path, error: OSError) -> OSError:
    """The same kind of error, with one line that names the directory and the override that chooses another."""
    advice = f"the run directory {path} cannot be written ({error.strerror}): choose another with hydra.run.dir="
    return type(error)(error.errno, advice)


def holds(lock: int) -> bool:
    """Whether this process has the lock; a forked child has not."""
    return lock in _held


def _owner(lock: int) -> str:
    for _ in range(50):
        if pid := os.pread(lock, 20, 0).decode().strip():
            return pid
        time.sleep(0.01)  # it has the lock and has yet to write its pid
    return "unknown"


def release(lock: int) -> None:
    if lock in _held:
        _held.discard(lock)
        os.ftruncate(lock, 0)
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


def _forget_locks() -> None:
    # A forked child shares the lock; if it outlived a killed parent, the directory would stay locked.
    for lock in _held:
        os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_forget_locks)
