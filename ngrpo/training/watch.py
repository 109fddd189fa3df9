"""What ranks say to one another beside their work: that they are alive, and that one of them has a signal to stop.

A collective waits for a rank that froze for half an hour, and a short limit on it would end honest work of unequal length.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Self

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from ngrpo.ranks import Ranks
from ngrpo.rundir.interrupts import Interrupts

BEAT = 0.5  # seconds between two signs of life
SILENCE = 20.0  # seconds without one after which a rank counts as lost
GRACE = 20.0  # seconds that an RL step has to end after a signal: clusters kill 30 s after it


class RankLost(RuntimeError):
    """Another process of the run has ended or does not answer; the last checkpoint continues."""


class Watch:
    """Two threads on every rank of several, in `with`; a rank alone has nobody to watch.

    Each rank counts up in a store that rank 0 keeps and reads the counts of the others; a rank whose count stands still is
    lost, and this one ends with a line that names it. A signal to one rank is relayed to all.
    """

    def __init__(self, ranks: Ranks, interrupts: Interrupts):
        self.ranks, self.interrupts = ranks, interrupts
        self._over, self._limited, self._last_answer = threading.Event(), False, time.monotonic()

    def __enter__(self) -> Self:
        if self.ranks.world > 1:
            self.store = self._store()
            self.ranks.barrier()
            for work in (self._watch_ranks, self._watch_store):
                threading.Thread(target=work, daemon=True).start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.ranks.world == 1:
            return
        lost = self._lost_now() if isinstance(error, RuntimeError) else []
        if error is None:
            self.ranks.barrier()  # a rank that goes first would count as lost
        self._over.set()
        if error is not None and self.ranks.rank and not lost:
            self._outlive_first()
        if lost:
            raise RankLost(f"rank {', '.join(map(str, lost))} has ended; the same command continues") from error

    @contextmanager
    def limited(self) -> Iterator[None]:
        """What is abandoned, with the process, where it goes on for GRACE seconds after a signal; saving is not."""
        self._limited = True
        try:
            yield
        finally:
            self._limited = False

    def _store(self) -> TCPStore:
        host, limit = os.environ.get("MASTER_ADDR", "127.0.0.1"), timedelta(seconds=SILENCE)
        first = self.ranks.rank == 0
        own = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=limit) if first else None
        port = self.ranks.gather(own.port if own else 0)[0]
        return own or TCPStore(host, port, wait_for_workers=False, timeout=limit)

    def _counts(self) -> list[int]:
        return [self.store.add(f"count {rank}", 0) for rank in range(self.ranks.world)]

    def _watch_ranks(self) -> None:
        """The first thread."""
        before, changed_at = [-1] * self.ranks.world, [time.monotonic()] * self.ranks.world
        relayed = False
        while not self._over.wait(BEAT):
            try:
                self.store.add(f"count {self.ranks.rank}", 1)
                if self.interrupts.number and not relayed:
                    relayed = self.store.add(f"signal {self.ranks.rank}", self.interrupts.number) > 0
                signaled = max(self.store.add(f"signal {rank}", 0) for rank in range(self.ranks.world))
                counts = self._counts()
            except RuntimeError:
                self._end(0, "has ended")
                return
            self._last_answer = now = time.monotonic()
            if signaled and not self.interrupts.number:
                self.interrupts.relay(signaled)
            changed_at = [now if new != old else at for new, old, at in zip(counts, before, changed_at, strict=True)]
            before = counts
            for rank, then in enumerate(changed_at):
                if now - then > SILENCE:
                    self._end(rank, f"has not answered for {SILENCE:.0f} s")

    def _watch_store(self) -> None:
        """The second: a store whose rank is frozen holds the first for ever."""
        since = None
        while not self._over.wait(BEAT):
            now = time.monotonic()
            if now - self._last_answer > SILENCE:
                self._end(0, f"has not answered for {SILENCE:.0f} s")
            number = self.interrupts.number
            since = (since or now) if number and self._limited else None
            if since and now - since > GRACE:
                what = f"the RL step did not end within {GRACE:.0f} s and is abandoned"
                name = signal.Signals(number).name
                self.interrupts.end(f"stopped by {name}: {what}; the same command continues", 128 + number)

    def _end(self, rank: int, what: str) -> None:
        if not self._over.wait(2 * BEAT):  # at the end of a run all ranks end, one of them first
            self.interrupts.end(f"rank {rank} {what}; the same command continues", 1)

    def _outlive_first(self) -> None:
        """Waits, not for long, until rank 0 has ended: Fabric kills it where another ends before it with an error."""
        until = time.monotonic() + SILENCE / 2
        with suppress(RuntimeError):
            while time.monotonic() < until:
                self._counts()
                time.sleep(BEAT / 5)

    def _lost_now(self) -> list[int]:
        """Ranks that have stopped counting, where a collective has failed."""
        try:
            before = self._counts()
            time.sleep(4 * BEAT)
            return [rank for rank, (old, new) in enumerate(zip(before, self._counts(), strict=True)) if new == old]
        except RuntimeError:
            return [0]
