"""Batches beside the step, and the time without them, on queues of a GPU that is not there.

Only a GPU shows that its streams do as these (tests/test_dali_gpu.py, tests/test_step_gpu.py).
"""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from alexnet.training.metrics import DeviceWaits, Meter
from pipelines import AugmentSpec, LoaderConfig, open_loader
from pipelines.finish import SideStream
from tests.device_queues import Queues
from tests.tarsets import drawn_items, write_dataset

GPU = torch.device("privateuseone:0")
FINISH, STEP, STEPS = 1.0, 4.0, 10
EARLY = 2  # batches that DALI decodes before they are asked for


@pytest.fixture
def queues(monkeypatch):
    queues = Queues()
    # As a backend of Python adds its module to torch.
    monkeypatch.setattr(torch, GPU.type, queues, raising=False)
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
