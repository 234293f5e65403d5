"""Training on a GPU: every way to run a step against the plain one, and memory that stays."""

import pytest
import torch
import torch.nn.functional as F

from alexnet import build
from alexnet.model.networks import code2012, smoke
from alexnet.model.weights import to_grouped
from alexnet.training.step import set_channels_last
from alexprep.bench.step_bench import Case, trainer_step
from benchmarks.gpu.steps import captured
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


def batch(count=32):
    chance = torch.Generator().manual_seed(3)
    images = torch.randn(count, 3, 48, 48, generator=chance) * 60
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
    step = trainer_step(model, batch(), case(**how))
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


@pytest.mark.usefixtures("exact")
def test_a_captured_step_learns_what_the_eager_step_learns():
    states = []
    for capture in (False, True):
        model, (images, labels) = network(), batch()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)

        def step(model=model, images=images, labels=labels, optimizer=optimizer):
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        # Capturing takes three steps, and records one without taking it.
        run = captured(step) if capture else step
        for _ in range(5 if capture else 8):
            run()
        states.append(model.state_dict())
    assert_near(states[1], states[0], 5e-3)


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


@pytest.mark.parametrize("graphs", [False, True])
def test_memory_is_flat_over_many_steps(graphs):
    step = trainer_step(network(), batch(), case(bf16=True, graphs=graphs))
    for _ in range(20):
        step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_reserved()
    for _ in range(500):
        step()
    torch.cuda.synchronize()
    assert torch.cuda.memory_reserved() <= before
