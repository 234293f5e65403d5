"""Training on a GPU: every way to run a step against the plain one, and memory that stays."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from alexnet import build
from alexnet.model.networks import code2012, smoke
from alexnet.model.weights import to_grouped
from alexnet.training.config import TrainConfig
from alexnet.training.graph import make_step
from alexnet.training.metrics import Meter
from alexnet.training.optim import set_rates, sgd
from alexnet.training.step import prepare_model, set_channels_last
from alexprep.bench.step_bench import Case, trainer_step
from tests.test_columns import assert_same, small, train

pytestmark = pytest.mark.gpu

CONFIG = smoke(code2012(), crop=48, classes=10)


@pytest.fixture(autouse=True)
def _uncompiled():
    torch.compiler.reset()


@pytest.fixture
def exact():
    """Float32 products in float32: TF32 would hide what differs."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def batch(count=32, crop=48):
    chance = torch.Generator().manual_seed(3)
    images = torch.randn(count, 3, crop, crop, generator=chance) * 60
    images = images.cuda().to(memory_format=torch.channels_last)
    return images, (torch.arange(count) % 10).cuda()


def network(config=CONFIG):
    model = build(config, devices=("cuda:0",), seed=4)
    set_channels_last(model)
    return model


def case(*, bf16, graphs):
    precision = "bfloat16" if bf16 else "float32"
    return Case(
        network=CONFIG, batch=32, precision=precision, compile="graphs" if graphs else "off"
    )


def trained(steps=5, **how):
    """Weights after some steps of the trainer's."""
    model = network()
    step = partial(trainer_step(model, case(**how)), batch())
    for _ in range(steps):
        step()
    return model.state_dict()


class OnGpu(torch.nn.Module):
    """Takes what `train` of the columns' test makes on a CPU."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images.cuda()).cpu()

    def set_dropout_position(self, position):
        self.model.set_dropout_position(position)


@pytest.mark.parametrize("form", ["grouped", "columns"])
@pytest.mark.parametrize("name", ["code2012", "paper", "torchvision"])
def test_the_gpu_trains_as_the_cpu_in_float64(form, name):
    config = small(name)
    here = build(config, seed=2).double()
    losses, gradients = train(here, config)
    there = OnGpu(build(config, form=form, devices=("cuda:0",), seed=2).double())
    found, found_gradients = train(there, config)
    assert found == pytest.approx(losses, rel=1e-9)
    plain = {n.removeprefix("model."): g.cpu() for n, g in found_gradients.items()}
    state = {n: value.cpu() for n, value in there.model.state_dict().items()}
    if form == "columns":
        plain, state = to_grouped(plain, config), to_grouped(state, config)
    assert_same(plain, gradients)
    assert_same(state, here.state_dict())


def assert_near(found, expected, share):
    """Every weight within `share` of the largest of its tensor; biases from 0 are all change."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        room = share * float(value.abs().max())
        assert float((found[name] - value).abs().max()) <= room, name


@pytest.mark.usefixtures("exact")
def test_compiled_with_cuda_graphs_it_learns_what_the_eager_step_learns():
    assert_near(trained(bf16=False, graphs=True), trained(bf16=False, graphs=False), 5e-3)


def train_steps(cuda_graph, sizes, *, precision="float32", freeze_after=None, crop=48, fuse="off"):
    """Weights and losses after steps of these sizes; conv1 is frozen after some of them."""
    config = TrainConfig(lr=1e-3, precision=precision, cuda_graph=cuda_graph, fuse_conv1=fuse)
    model = network(smoke(code2012(), crop=crop, classes=10))
    prepare_model(model, config)
    # What differs between kernels that are chosen by trial would hide what the capture changes.
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    optimizer = sgd(model, config)
    step = make_step(model, optimizer, config)
    factors = {}
    losses = []
    for number, size in enumerate(sizes):
        if number == freeze_after:
            factors["conv1"] = 0.0
        set_rates(
            optimizer,
            # Rates that fall with each step show that a replay reads the present one.
            lambda layer, _kind, number=number: factors.get(layer, 1.0) / (1 + number),
            velocity_has_lr=True,
        )
        model.set_dropout_position(number * 1000)
        losses.append(float(step(batch(size, crop))))
    torch.backends.cudnn.deterministic = False
    return model.state_dict(), losses, step


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_captured_step_learns_what_the_eager_step_learns_bit_for_bit(precision):
    sizes = (32,) * 8 + (19, 32, 32)
    state, losses, _ = train_steps(False, sizes, precision=precision)
    captured, captured_losses, step = train_steps(True, sizes, precision=precision)
    assert step.captures == 1
    assert captured_losses == losses
    assert all(torch.equal(captured[name], value) for name, value in state.items())


def test_a_captured_step_with_conv1_in_one_kernel_learns_the_same_bit_for_bit():
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("The kernel is for Hopper GPUs.")
    sizes = (32,) * 6 + (19, 32)
    how = {"precision": "bfloat16", "crop": 116, "fuse": "on"}  # conv1 of 11 x 11, as crops of 224
    state, losses, _ = train_steps(False, sizes, **how)
    captured, captured_losses, step = train_steps(True, sizes, **how)
    assert step.captures == 1
    assert captured_losses == losses
    assert all(torch.equal(captured[name], value) for name, value in state.items())
    # Nearly what cuDNN's convolution learns: both round to 8 bits.
    other, _, _ = train_steps(False, sizes, **(how | {"fuse": "off"}))
    assert_near(state, other, 5e-2)


def test_a_frozen_layer_stands_still_in_a_step_that_is_captured_anew():
    sizes = (32,) * 14
    state, losses, _ = train_steps(False, sizes, freeze_after=6)
    captured, captured_losses, step = train_steps(True, sizes, freeze_after=6)
    assert step.captures == 2
    assert captured_losses == losses
    assert all(torch.equal(captured[name], value) for name, value in state.items())


def test_bf16_points_where_float32_points(record_property):
    gradients = []
    for bf16 in (False, True):
        model, (images, labels) = network().train(), batch()
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            F.cross_entropy(model(images), labels).backward()
        gradients.append(torch.cat([p.grad.double().flatten() for p in model.parameters()]))
    cosine = F.cosine_similarity(*gradients, dim=0).item()
    record_property("bf16 gradient against float32, cosine", cosine)
    assert cosine > 0.98


@pytest.mark.parametrize("way", [{}, {"compile": "graphs"}, {"cuda_graph": True}])
def test_memory_is_flat_over_many_steps(way):
    how = replace(case(bf16=True, graphs=False), **way)
    step = partial(trainer_step(network(), how), batch())
    for _ in range(20):
        step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_reserved()
    for _ in range(2000):
        step()
    torch.cuda.synchronize()
    assert torch.cuda.memory_reserved() <= before


def test_a_batch_that_the_gpu_still_makes_counts_as_waiting():
    # The host never waits: the wait lies between the events around the loader's.
    side = torch.cuda.Stream()

    def batches():
        for _ in range(3):
            with torch.cuda.stream(side):
                torch.cuda._sleep(1_000_000_000)
                batch = torch.ones(2, device="cuda"), torch.zeros(2, device="cuda")
            torch.cuda.current_stream().wait_stream(side)
            yield batch

    meter = Meter(torch.device("cuda:0"))
    for images, _ in meter.batches(batches()):
        meter.add(images.sum(), 2)
    interval = meter.flush()
    # The first batch is before the first step, and counts as nobody's.
    assert 0.5 < interval.stall < 0.75
