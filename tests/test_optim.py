import numpy as np
import pytest
import torch
from torch import nn

from alexnet.training.config import TrainConfig
from alexnet.training.optim import Sgd, groups, layer_of, set_rates, sgd, velocities


def linear():
    model = nn.Sequential()
    model.add_module("fc", nn.Linear(3, 2))
    return model


def released_code(weight, gradients, rates, decay, momentum=0.9):
    """weights.cu: inc = mom * inc + eps * grad; inc -= wc * eps * w; w += inc (grad upwards)."""
    inc = np.zeros_like(weight)
    for gradient, rate in zip(gradients, rates, strict=True):
        inc = momentum * inc - rate * gradient - decay * rate * weight
        weight = weight + inc
    return weight


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_updates_are_those_of_the_released_code_across_a_change_of_rate(kind):
    torch.manual_seed(0)
    model = linear().double()
    config = TrainConfig(lr=0.1, bias_lr=2.0, weight_decay=0.05)
    optimizer = sgd(model, config)
    parameter = dict(model.named_parameters())[f"fc.{kind}"]
    gradients = torch.randn(8, *parameter.shape, dtype=torch.float64)
    scale, decay = (1.0, 0.05) if kind == "weight" else (2.0, 0.0)
    rates = [0.1 * scale] * 4 + [0.01 * scale] * 4
    expected = released_code(parameter.detach().numpy().copy(), gradients.numpy(), rates, decay)
    for number, gradient in enumerate(gradients):
        if number == 4:
            set_rates(optimizer, lambda _layer, _kind: 0.1, velocity_has_lr=True)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        parameter.grad = gradient.clone()
        optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12)


def test_a_velocity_without_the_rate_is_left_as_it_is():
    model = linear()
    optimizer = sgd(model, TrainConfig())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = {name: v.clone() for name, v in velocities(optimizer)}
    set_rates(optimizer, lambda _layer, _kind: 0.1, velocity_has_lr=False)
    assert all(torch.equal(v, before[name]) for name, v in velocities(optimizer))
    set_rates(optimizer, lambda _layer, _kind: 1.0, velocity_has_lr=True)
    torch.testing.assert_close(dict(velocities(optimizer))["fc.weight"], before["fc.weight"] * 0.1)


def test_a_rate_of_zero_freezes_weight_momentum_and_decay():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    optimizer = sgd(model, TrainConfig(lr=0.1, weight_decay=0.1))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    frozen = model[0].weight.detach().clone()
    set_rates(optimizer, lambda layer, _kind: float(layer == "1"), velocity_has_lr=True)
    for _ in range(3):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert torch.equal(model[0].weight, frozen)
    assert not model[0].weight.requires_grad


def test_layers_have_rates_of_their_own():
    config = TrainConfig(lr=0.1, bias_lr=2.0, layer_lr={"fc": 10.0})
    rates = {(g["layer"], g["kind"]): g["lr"] for g in sgd(linear(), config).param_groups}
    assert rates == pytest.approx({("fc", "weight"): 1.0, ("fc", "bias"): 2.0})


def test_a_rate_for_a_layer_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="'fc9'; layers are \\['fc'\\]"):
        sgd(linear(), TrainConfig(layer_lr={"fc9": 2.0}))


@pytest.mark.parametrize("rate", [-1.0, float("nan"), float("inf")])
def test_a_rate_of_a_layer_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match="layer_lr of fc must be at least 0"):
        TrainConfig(layer_lr={"fc": rate})


def test_the_columns_of_a_layer_share_its_name():
    assert layer_of("column1.conv2.weight") == layer_of("conv2.bias") == "conv2"


def steps_of(optimizer, model, change=lambda _optimizer: None):
    """Weights and velocities after five updates, of which the last three follow a change."""
    for number in range(5):
        if number == 2:
            change(optimizer)
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    buffers = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    return [p.detach() for p in model.parameters()] + buffers


def twins():
    torch.manual_seed(3)
    model, twin = (nn.Sequential(nn.Linear(3, 70), nn.Tanh(), nn.Linear(70, 2)) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    return model, twin, TrainConfig(lr=0.01, bias_lr=2.0, weight_decay=0.05)


@pytest.mark.parametrize("tensor_rates", [False, True])
def test_few_launches_update_the_bits_that_torch_updates_group_by_group(tensor_rates):
    model, twin, config = twins()
    optimizer = Sgd(groups(model, config), lr=0.01, momentum=0.9, tensor_rates=tensor_rates)
    torchs_own = torch.optim.SGD(groups(twin, config), lr=0.01, momentum=0.9, fused=True)

    def change(optimizer):
        for group in optimizer.param_groups:
            group["lr"] *= 0.1 if group["layer"] == "2" else 1.0

    ours, theirs = steps_of(optimizer, model, change), steps_of(torchs_own, twin, change)
    assert all(torch.equal(own, other) for own, other in zip(ours, theirs, strict=True))


def test_equal_rates_and_decays_are_one_launch():
    model, _, config = twins()
    optimizer = sgd(model, config)
    steps_of(optimizer, model)
    assert [len(launch.parameters) for launch in optimizer.launches] == [2, 2]
    set_rates(optimizer, lambda layer, _kind: float(layer == "2"), velocity_has_lr=True)
    assert sorted(len(launch.parameters) for launch in optimizer.launches) == [1, 1, 1, 1]


def test_new_rates_are_written_where_a_captured_step_reads_them():
    model, _, config = twins()
    optimizer = Sgd(groups(model, config), lr=0.01, momentum=0.9, tensor_rates=True)
    steps_of(optimizer, model)
    before, generation = [launch.rate for launch in optimizer.launches], optimizer.generation
    set_rates(optimizer, lambda _layer, _kind: 0.5, velocity_has_lr=True)
    assert all(new.rate is old for new, old in zip(optimizer.launches, before, strict=True))
    assert [rate.item() for rate in before] == pytest.approx([0.005, 0.01])
    assert optimizer.generation == generation
    # A layer that freezes is another step: what was captured is no longer right.
    set_rates(optimizer, lambda layer, _kind: float(layer == "2"), velocity_has_lr=True)
    assert optimizer.generation == generation + 1
