"""Separate columns in one process against the one-device form; all in float64."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from alexnet import build
from alexnet.model import networks
from alexnet.model.spec import Conv, with_rows
from alexnet.model.weights import to_grouped

NAMES = [
    "code2012",
    "paper",
    "one_gpu",
    "six_conv",
    "no_overlap",
    "no_communication",
    "torchvision",
]


def small(name):
    """A network's topology with few maps and units, for float64."""
    config = networks.smoke(getattr(networks, name)(), crop=48, classes=10)
    few = {row.name: {"out": 16 if isinstance(row, Conv) else 32} for row in config.layers[:-1]}
    return with_rows(config, **few)


def train(model, config, steps=5):
    """The losses and the first gradients of some steps of SGD, dropout included."""
    chance = torch.Generator().manual_seed(11)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    losses, first = [], {}
    for step in range(steps):
        shape = (6, 3, config.crop, config.crop)
        images = torch.randn(shape, generator=chance, dtype=torch.float64) * 60
        labels = torch.randint(0, 10, (6,), generator=chance)
        model.set_dropout_position(6 * step)
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        first = first or {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, first


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_columns_train_as_the_network_on_one_device(name):
    config = small(name)
    grouped = build(config, seed=2).double()
    columns = build(config, form="columns", seed=2).double()
    losses, gradients = train(grouped, config)
    columns_losses, columns_gradients = train(columns, config)
    assert columns_losses == pytest.approx(losses, rel=1e-10)
    assert_same(to_grouped(columns_gradients, config), gradients)
    assert_same(to_grouped(columns.state_dict(), config), grouped.state_dict())


def test_features_are_the_same_in_both_forms_and_lead_to_the_logits():
    config = small("code2012")
    grouped = build(config, seed=2).double().eval()
    columns = build(config, form="columns", seed=2).double().eval()
    images = torch.randn(3, 3, 48, 48, dtype=torch.float64) * 60
    with torch.no_grad():
        features = grouped.features(images)
        torch.testing.assert_close(columns.features(images), features, rtol=1e-10, atol=1e-10)
        assert torch.equal(grouped.get_submodule("fc8")(features), grouped(images))
    assert features.shape == (3, config.layers[-2].out)


def test_features_of_a_network_without_hidden_units_are_the_last_maps_in_a_row():
    config = small("code2012")
    config = replace(config, layers=(config.layers[0], config.layers[-1]))
    network = build(config, seed=2).double().eval()
    images = torch.randn(3, 3, 48, 48, dtype=torch.float64) * 60
    with torch.no_grad():
        features, logits = network.features(images), network(images)
    fc8 = network.get_submodule("fc8")
    assert features.dim() == 2
    expected = torch.einsum("nf,kf->nk", features, fc8.weight) + fc8.bias
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


def test_a_norm_across_the_columns_is_refused():
    with pytest.raises(ValueError, match=r"lrn_across is 'all'.*form 'grouped'"):
        build(small("caffe"), form="columns")


def test_a_wrong_number_of_devices_is_refused():
    with pytest.raises(ValueError, match="2 columns need 1 or 2 devices"):
        build(small("code2012"), form="columns", devices=("cpu", "cpu", "cpu"))


@pytest.mark.two_gpus
def test_two_devices_train_as_one():
    config = small("code2012")
    alone = build(config, seed=2).double()
    columns = build(config, form="columns", devices=("cuda:0", "cuda:1"), seed=2).double()
    assert {str(p.device) for p in columns.parameters()} == {"cuda:0", "cuda:1"}
    images = torch.randn(6, 3, 48, 48, dtype=torch.float64) * 60
    labels = torch.arange(6)
    F.cross_entropy(alone(images), labels).backward()
    F.cross_entropy(columns(images), labels.to("cuda:0")).backward()
    gradients = {name: p.grad.cpu() for name, p in columns.named_parameters()}
    assert_same(to_grouped(gradients, config), {n: p.grad for n, p in alone.named_parameters()})
