# pyright: basic
# torch.distributed is typed too loosely for the strict mode.
"""Gradients averaged over replicas while backward still computes others.

Gradients are collected in buckets, in the order of backward; one that is full is summed in the
background at once. DistributedDataParallel does the same, but takes shares of different size for
equal, and has to be built anew when a schedule freezes a layer. With two gloo processes on two busy
cores a step took .96 (smoke size) and .85 (full size, 8 images) of its time, in turns
(benchmarks/averaging.py).
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from alexnet.distributed.mesh import Replicas

BUCKET_BYTES = 25 * 2**20
# The last layers come first: a small bucket lets the exchange begin early.
FIRST_BUCKET_BYTES = 2**20


@dataclass(kw_only=True, slots=True)
class Bucket:
    """Gradients that are summed together.

    Attributes:
        buffer: their values one after the other.
        views: each of them in the buffer, in the shape of its parameter.
        missing: how many backward has yet to compute in this step.
        work: torch's handle of the sum, once it has begun.
    """

    buffer: Tensor
    views: dict[nn.Parameter, Tensor]
    missing: int
    work: Any = None


class GradientAverage:
    """Turns the gradients of each share's mean loss into those of the whole batch's.

        average = GradientAverage(model.parameters(), replicas)
        with average(len(labels)):
            loss.backward()

    Without other replicas it does nothing. All replicas have to compute their gradients in the same
    order, as equal networks do.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], replicas: Replicas) -> None:
        self.replicas = replicas
        self._parameters = list(parameters)
        self._trained: list[int] = []  # of the parameters, by number, that the buckets are for
        self._buckets: list[Bucket] = []
        self._bucket_of: dict[nn.Parameter, Bucket] = {}
        self._images = 0
        self._sent = 0  # buckets of this step
        if replicas.world > 1:
            for parameter in self._parameters:
                parameter.register_post_accumulate_grad_hook(self._collect)

    @contextmanager
    def __call__(self, images: int) -> Generator[None]:
        """Average the gradients that backward computes inside, of a mean loss over `images`.

        `images` may differ between replicas. RunError if another process is gone.
        """
        if self.replicas.world == 1:
            yield
            return
        self._prepare()
        # The sum of all shares stays on the device: to read it, the host would wait for backward.
        total = torch.full_like(self._buckets[0].buffer[:1], float(images))
        counted = self.replicas.start_total(total)
        self._images = images
        yield
        self._send(len(self._buckets))  # also one in which a parameter took no part in the loss
        self.replicas.wait(counted)
        for bucket in self._buckets:
            self.replicas.wait(bucket.work)
            bucket.buffer.div_(total)
        self._images = 0

    def _prepare(self) -> None:
        """Empty the buckets; make new ones when a schedule has frozen or freed a layer."""
        trained = [i for i, p in enumerate(self._parameters) if p.requires_grad]
        if trained != self._trained:
            self._trained = trained
            self._buckets = list(_buckets([self._parameters[i] for i in reversed(trained)]))
            self._bucket_of = {p: bucket for bucket in self._buckets for p in bucket.views}
        for bucket in self._buckets:
            bucket.missing, bucket.work = len(bucket.views), None
        self._sent = 0

    def _collect(self, parameter: nn.Parameter) -> None:
        """Move a finished gradient to its bucket; backward calls this."""
        if not self._images or parameter.grad is None:
            return
        bucket = self._bucket_of[parameter]
        view = bucket.views[parameter]
        torch.mul(parameter.grad, self._images, out=view)
        parameter.grad = view
        bucket.missing -= 1
        # In the same order everywhere, as the exchange demands: a full bucket waits for those
        # before it.
        full = self._sent
        while full < len(self._buckets) and not self._buckets[full].missing:
            full += 1
        self._send(full)

    def _send(self, stop: int) -> None:
        """Begin to sum the buckets before number `stop` that are not on their way yet."""
        for bucket in islice(self._buckets, self._sent, stop):
            bucket.work = self.replicas.start_total(bucket.buffer)
        self._sent = stop


def _buckets(parameters: Iterable[nn.Parameter]) -> Generator[Bucket]:
    """Buckets that hold the gradients of these parameters in their order."""
    members: list[nn.Parameter] = []
    size, limit = 0, FIRST_BUCKET_BYTES
    for parameter in parameters:
        if members and (size >= limit or parameter.dtype != members[0].dtype):
            yield _bucket(members)
            members, size, limit = [], 0, BUCKET_BYTES
        members.append(parameter)
        size += parameter.nbytes
    if members:
        yield _bucket(members)


def _bucket(members: list[nn.Parameter]) -> Bucket:
    buffer = members[0].new_zeros(sum(p.numel() for p in members))
    views: dict[nn.Parameter, Tensor] = {}
    start = 0
    for parameter in members:
        # In the layout of the parameter, which is not the plain one with channels_last.
        views[parameter] = buffer.as_strided(parameter.shape, parameter.stride(), start)
        start += parameter.numel()
    return Bucket(buffer=buffer, views=views, missing=len(members))
