"""What the log says of a few steps: loss, speed, and how long there was no data to compute on."""

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]


class Taken(NamedTuple):
    """Sums over some steps; `loss` is the sum of the losses of the images."""

    steps: int = 0
    images: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0

    def plus(self, more: "Taken") -> "Taken":
        return Taken(
            steps=self.steps + more.steps,
            images=self.images + more.images,
            loss=self.loss + more.loss,
            seconds=self.seconds + more.seconds,
            waited=self.waited + more.waited,
        )

    @property
    def mean_loss(self) -> float:
        return self.loss / max(self.images, 1)

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / max(self.seconds, 1e-9)

    @property
    def waiting(self) -> float:
        """Share of the time that went by without data."""
        return self.waited / max(self.seconds, 1e-9)


class Meter:
    """Adds up since the last `take`; only `take` looks at tensors, so a GPU never waits for it.

    Waiting, on a CPU, is the time spent asking for batches. On a GPU it is the gaps between the end
    of a step and the start of the next as the device's own events saw them: the host runs ahead of
    the device, so its clock would call waiting what was not.
    """

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        self.device = device
        self.loss = torch.zeros((), device=device, dtype=torch.float32)
        self.steps = self.images = 0
        self.waited = 0.0
        self.began = time.perf_counter()
        self._gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._ended: torch.cuda.Event | None = None

    def batches(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of the loader; what happens between two of them counts as computing."""
        self.began = time.perf_counter()
        self._ended = None
        iterator = iter(loader)
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            if batch is None:
                return
            self._came(asked)
            yield batch
            if self.gpu:
                self._ended = _mark(self.device)

    def add(self, loss: Tensor, images: int) -> None:
        """One step: the mean loss of its images."""
        self.loss += loss * images
        self.images += images
        self.steps += 1

    def take(self) -> Taken:
        """The sums since the last call."""
        loss = float(self.loss)  # waits for the device, so the seconds below are those of the steps
        for ended, began in self._gaps:
            self.waited += ended.elapsed_time(began) / 1000
        now = time.perf_counter()
        taken = Taken(self.steps, self.images, loss, now - self.began, self.waited)
        self.loss.zero_()
        self.steps = self.images = 0
        self.waited, self.began = 0.0, now
        self._gaps.clear()
        return taken

    def _came(self, asked: float) -> None:
        if not self.gpu:
            self.waited += time.perf_counter() - asked
        elif self._ended is not None:
            self._gaps.append((self._ended, _mark(self.device)))


def _mark(device: torch.device) -> torch.cuda.Event:
    """An event in the work of this device, which need not be torch's current one."""
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event
