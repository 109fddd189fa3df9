"""Standard output and error that may lose their reader: the process goes on without printing."""

import io
import os
import sys


class Tolerant(io.FileIO):
    """A descriptor whose writes do not fail: where nobody reads them any more (a closed pipe, a lost terminal) or the disk
    is full, this one and all later ones go to os.devnull."""

    def write(self, data) -> int | None:
        try:
            return super().write(data)
        except BlockingIOError:
            raise
        except OSError:
            devnull = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(devnull, self.fileno())  # what C code and children print goes there too
            os.close(devnull)
            return len(memoryview(data).cast("B"))


def tolerate_lost_readers() -> None:
    """Makes the standard streams `Tolerant`, and opens os.devnull for closed ones (`>&-`).

    A descriptor of theirs that stayed closed would be given to the next file that is opened, and printed into.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free, which is this one
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        old, encoding, errors, lines = getattr(sys, name), "utf-8", "backslashreplace", False
        if old is not None:
            if isinstance(getattr(old.buffer, "raw", None), Tolerant):
                continue
            old.flush()
            encoding, errors, lines = old.encoding, old.errors, old.line_buffering
        buffered = io.BufferedWriter(Tolerant(descriptor, "w", closefd=False))
        new = io.TextIOWrapper(buffered, encoding, errors, line_buffering=lines, write_through=name == "stderr")
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
