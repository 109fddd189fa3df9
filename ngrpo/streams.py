"""Standard output and error that may lose their reader: the process goes on without printing."""

import io
import os
import sys


class Forgiving(io.FileIO):
    """A descriptor whose writes never fail: once nobody takes them (a closed pipe, a lost terminal, a full disk) they go
    nowhere."""

    def write(self, data) -> int | None:
        try:
            return super().write(data)
        except BlockingIOError:
            raise
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nowhere, self.fileno())  # what C code and children print goes there too
            os.close(nowhere)
            return len(memoryview(data).cast("B"))


def forgive() -> None:
    """Makes the standard streams forgiving, and closed ones (`>&-`) lead nowhere.

    A descriptor of theirs that stayed closed would be given to the next file that is opened, and printed into.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free, which is this one
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        if old is not None and isinstance(getattr(old.buffer, "raw", None), Forgiving):
            continue
        if old is not None:
            old.flush()
        encoding, errors = (old.encoding, old.errors) if old is not None else ("utf-8", "backslashreplace")
        lines = old.line_buffering if old is not None else False
        buffered = io.BufferedWriter(Forgiving(descriptor, "w", closefd=False))
        new = io.TextIOWrapper(buffered, encoding, errors, line_buffering=lines, write_through=name == "stderr")
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
