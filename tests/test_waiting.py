"""Batches beside the step, and the time without them, on queues of a GPU that is not there.

Only a GPU shows that its streams do as these (tests/test_dali_gpu.py, tests/test_step_gpu.py).
"""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from alexnet.distributed.feed import Lockstep
from alexnet.distributed.mesh import Team
from alexnet.training.metrics import DeviceWaits, Meter
from pipelines import AugmentSpec, LoaderConfig, open_loader
from pipelines.finish import SideStream
from tests.device_queues import Queues
from tests.fake_gpus import Mesh
from tests.tarsets import drawn_items, write_dataset

GPU = torch.device("privateuseone:0")
FINISH, TRANSFER, STEP, STEPS = 1.0, 1.0, 4.0, 10
EARLY = 2  # batches that DALI decodes before they are asked for


@pytest.fixture
def queues(monkeypatch):
    queues = Queues()
    # As a backend of Python adds its module to torch.
    monkeypatch.setattr(torch, GPU.type, queues, raising=False)
    monkeypatch.setitem(sys.modules, f"torch.{GPU.type}", queues)
    torch.get_device_module.cache_clear()
    yield queues
    torch.get_device_module.cache_clear()


@pytest.fixture
def meter():
    meter = Meter(torch.device("cpu"))
    meter.waits = DeviceWaits(GPU)
    return meter


class Decoder:
    """As DALI on a GPU: it decodes early, on a stream of its own, while it has memory for it."""

    def __init__(self, queues, seconds):
        self.queues, self.seconds = queues, seconds
        self.own = queues.Stream(GPU)
        self.free = [0.0] * EARLY  # when the memory of each batch is free again
        self.ends = []  # of what finishes each batch

    def batch(self):
        """Queue a batch on the current stream."""
        self.own.ready = max(self.own.ready, self.free.pop(0))
        self.own.work(self.seconds)
        current = self.queues.current_stream(GPU)
        current.wait_stream(self.own)
        _, end = current.work(FINISH)
        self.free.append(end)
        self.ends.append(end)


def batches_beside(queues, decoder):
    """As the loader makes them."""
    side = SideStream(GPU)
    for _ in range(STEPS):
        with side.use():
            decoder.batch()
        side.hand_over(())
        yield None, ()


def trained(queues, batches, meter):
    """Begin and end of each step; the steps' stream has nothing else to do."""
    return [queues.current_stream(GPU).work(STEP) for _ in meter.batches(batches)]


def idle(steps):
    """The time between the first step and the last in which there was none."""
    return steps[-1][1] - steps[0][0] - STEP * len(steps)


@pytest.mark.parametrize("decoding", [0.5, 2.0, 3.9, 5.0, 12.0])
def test_batches_are_made_beside_the_step_and_the_wait_for_them_is_told(queues, meter, decoding):
    decoder = Decoder(queues, decoding)
    steps = trained(queues, batches_beside(queues, decoder), meter)
    assert all(begin >= end for (begin, _), end in zip(steps, decoder.ends, strict=True))
    # The slower of the two sets the pace: what finishes a batch runs while others train.
    assert idle(steps) == pytest.approx((STEPS - 1) * max(0.0, decoding - STEP))
    assert meter.flush().stalled == pytest.approx(idle(steps))
    assert queues.current_stream(GPU).worked == steps


def test_a_host_that_comes_late_with_a_batch_is_told_and_one_that_is_early_is_not(queues, meter):
    def batches():
        for late in (0, 1, 10, 0, 3, 30):
            queues.host += late  # a thread that reads, say
            yield None, ()

    steps = trained(queues, batches(), meter)
    assert idle(steps) == pytest.approx((11 - 8) + (44 - 23))
    assert meter.flush().stalled == pytest.approx(idle(steps))


def test_these_queues_show_what_one_stream_for_both_does(queues, meter):
    """The next batch, asked for by a thread amid a step, waits in the step, which hides it."""
    decoder, current = Decoder(queues, 2 * STEP), queues.current_stream(GPU)
    decoder.batch()
    begin = current.moment()
    for _ in meter.batches([(None, ())] * STEPS):
        current.work(STEP / 2)
        decoder.batch()
        current.work(STEP / 2)
    waited = current.moment() - begin - (STEP + FINISH) * STEPS
    assert waited > STEPS
    assert meter.flush().stalled == 0


class Uses(TorchDispatchMode):
    """The stream of every operation, and of memory that is kept for another."""

    def __init__(self, queues):
        super().__init__()
        self.queues = queues
        self.streams, self.kept = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.record_stream.default:
            self.kept.append((args[0].data_ptr(), args[1]))
            return None
        if (kwargs or {}).get("device") == GPU:
            return args[0]  # what is there and what is here are one
        self.streams.append(self.queues.current_stream(GPU))
        return func(*args, **(kwargs or {}))


def test_the_loader_makes_its_batches_there_and_keeps_their_memory(tmp_path, queues):
    items = drawn_items(np.random.default_rng(1), 8, size=32)
    write_dataset(tmp_path, {"train": items}, size=32, shards=1)
    config = LoaderConfig(batch=4, backend="torch", threads=1, readers=1)
    spec = AugmentSpec(source=32, crop=24, mean="none", lighting=0, divide=1)
    current = queues.current_stream(GPU)
    with open_loader(tmp_path, config=config, augment=spec) as loader, Uses(queues) as uses:
        side = loader._side = SideStream(GPU)  # a loader for a GPU makes it itself
        side.own.work(7.0)  # of what makes the batch
        images, labels = next(iter(loader))
    assert uses.streams
    assert set(uses.streams) == {side.own}
    assert uses.kept == [(images.data_ptr(), current), (labels.data_ptr(), current)]
    assert current.ready == 7.0
    assert current.worked == []


class Nccl(Team):
    """A team whose broadcasts take a second of a queue of their own."""

    __slots__ = ("queue",)

    def exchange(self, collective, *args, **options):
        if collective is not dist.broadcast:
            return collective(*args)
        if not options["async_op"]:
            return None  # of the host's memory: headers
        module = torch.get_device_module(GPU)
        self.queue.wait_stream(module.current_stream(GPU))
        self.queue.work(TRANSFER)
        arrived = module.Event()
        arrived.record(self.queue)
        return SimpleNamespace(wait=lambda: module.current_stream(GPU).wait_event(arrived))


class Beside:
    """A loader of the first column, which makes its batches as `batches_beside` has it."""

    def __init__(self, queues, decoder):
        self.queues, self.decoder = queues, decoder

    def __len__(self):
        return STEPS

    def __iter__(self):
        for _ in batches_beside(self.queues, self.decoder):
            yield torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)

    def state_dict(self):
        return {}


def test_a_step_of_a_column_waits_for_its_own_batch_not_for_the_one_behind_it(queues, meter):
    """The process of the first column sends a batch while it trains on the one before it."""
    team = Nccl(mesh=Mesh(replica=0, column=0, replicas=1), device=GPU, feed=None)
    object.__setattr__(team, "queue", queues.Stream(GPU))
    decoder = Decoder(queues, seconds=3 * STEP)
    with Uses(queues) as uses, Lockstep(team, Beside(queues, decoder)) as lockstep:
        steps = trained(queues, lockstep, meter)
    current = queues.current_stream(GPU)
    # Images and labels are each a broadcast.
    ready = [end + 2 * TRANSFER for end in decoder.ends]
    assert [begin for begin, _ in steps] == ready
    assert meter.flush().stalled == pytest.approx(idle(steps))
    assert current.worked == steps
    assert [stream for _, stream in uses.kept if stream == current] == [current] * 2 * STEPS
