# pyright: reportPrivateImportUsage=false
# torch.distributed does not list the stores among its public names, though its manual does.
"""Notices which process of a run has died, so that the others end with its name and do not hang.

Every process counts up a number in the run's store twice a second. One whose number stands still
is lost. Where a collective fails (gloo notices a closed connection at once) the name is known a
few seconds later; where it would wait for ever (a CUDA stream that waits for a dead peer) the
watch itself ends the process after `timeout` seconds of silence. A process that ends because of
something it can name tells it first, and the others give its reason in place of its loss.
"""

import atexit
import os
import sys
import threading
import time
from contextlib import suppress

import torch.distributed as dist

BEAT_SECONDS = 0.5
# Beats a living process cannot miss all of, even on a machine with more work than cores.
LOOK_SECONDS = 6 * BEAT_SECONDS


class Watch:
    """The heartbeat of this process and the eye on the others'."""

    def __init__(self, host: str, port: int, *, rank: int, world: int, timeout: float) -> None:
        self.rank = rank
        self.world = world
        self.timeout = timeout
        # A client each: a request of one thread must not wait for that of another.
        self._beats, self._looks = (_client(host, port) for _ in range(2))
        self._beats.add(f"beat/{rank}", 1)
        self._cause = ""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()
        # A thread inside the store when the interpreter goes away would abort the process.
        atexit.register(self._stop)

    def close(self) -> None:
        """Say goodbye: this process has done its work and is not lost."""
        self._stop()
        self._looks.add(f"done/{self.rank}", 1)

    def _stop(self) -> None:
        self._end.set()
        self._thread.join()

    def tell(self, cause: str) -> None:
        """Say why this process is about to end; the first to tell is the one that is heard.

        Returns once the others know, for the store may end with this process; after LOOK_SECONDS
        at the latest.
        """
        mine = f"rank {self.rank}: {cause}"
        with suppress(dist.DistError, RuntimeError):
            if self._cause or self._looks.check(["lost"]):
                return  # named already
            if self._looks.compare_set("cause", "", mine).decode() != mine:
                return
            until = time.monotonic() + LOOK_SECONDS
            while self._looks.add("heard", 0) < self.world and time.monotonic() < until:
                time.sleep(BEAT_SECONDS / 10)

    def cause(self) -> str:
        """The process that ended first and why, as it told; "" if none did."""
        with suppress(dist.DistError, RuntimeError):
            return self._cause or _told(self._looks)
        return self._cause

    def lost(self) -> str:
        """The processes that stand still, as a text for an error; takes LOOK_SECONDS."""
        try:
            if self._looks.check(["lost"]):
                return self._looks.get("lost").decode()
            before = self._counts(self._looks)
            time.sleep(LOOK_SECONDS)
            after = self._counts(self._looks)
            still = [rank for rank in range(self.world) if before[rank] == after[rank]]
            # Who notices first names it: later the processes that ended because of it stand still.
            return self._looks.compare_set("lost", "", _named(still)).decode()
        except (dist.DistError, RuntimeError):
            return "rank 0 (or the process that holds the run's store)"

    def _counts(self, store: dist.Store) -> list[int]:
        """Beats of every process; those that are done count the time, so never stand still."""
        return [
            store.add(f"beat/{rank}", 0)
            + (time.monotonic_ns() if store.add(f"done/{rank}", 0) else 0)
            for rank in range(self.world)
        ]

    def _watch(self) -> None:
        seen, since = [0] * self.world, [time.monotonic()] * self.world
        while not self._cause:
            if self._end.wait(BEAT_SECONDS):
                return
            try:
                self._beats.add(f"beat/{self.rank}", 1)
                counts = self._counts(self._beats)
                self._hear()
            except (dist.DistError, RuntimeError):
                counts = seen
            now = time.monotonic()
            for rank, count in enumerate(counts):
                if count != seen[rank]:
                    seen[rank], since[rank] = count, now
            silent = [rank for rank in range(self.world) if now - since[rank] > self.timeout]
            if silent:
                silence = f"{_named(silent)}, which was silent for {self.timeout:.0f} s."
                _end_process(self.rank, silence)
        # Nothing more is asked of the store, which may have gone with the process that told.
        if not self._end.wait(self.timeout):
            _end_process(self.rank, self._cause)

    def _hear(self) -> None:
        """Keep what another told, before the store is gone, and let it know."""
        if not self._cause and (told := _told(self._beats)):
            self._cause = told
            self._beats.add("heard", 1)


def _named(ranks: list[int]) -> str:
    return "rank " + ", ".join(map(str, ranks)) if ranks else "a connection, but no rank"


def _told(store: dist.Store) -> str:
    return store.get("cause").decode() if store.check(["cause"]) else ""


def _end_process(rank: int, cause: str) -> None:
    """Leave at once: the main thread may wait inside CUDA, where no exception reaches it."""
    sys.stderr.write(f"Error: rank {rank} ends because of {cause}\n")
    sys.stderr.flush()
    os._exit(1)


def _client(host: str, port: int) -> dist.Store:
    return dist.PrefixStore("alexnet", dist.TCPStore(host, port, is_master=False))
