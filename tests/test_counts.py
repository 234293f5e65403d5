"""Neurons and multiplications, counted on the modules as they run and not from the tables."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from alexnet.model import networks
from alexnet.model.grouped import Grouped
from alexnet.model.spec import sizes
from tests.test_spec import PARAMETERS

# The text of 2012, section 3.5: the input is 150,528-dimensional, and the number of neurons in
# the network's remaining layers is ...
INPUTS = 150_528
NEURONS = (253_440, 186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000)
# Multiplications of one image, as the articles round them.
MILLIONS = {"code2012": 724, "ungrouped": 1135, "torchvision": 714}


def counted(config):
    """Outputs of every weight layer, and multiplications of all, for one image without memory."""
    with torch.device("meta"):
        model = Grouped(config, seed=0).eval()
        images = torch.empty(1, 3, config.crop, config.crop)
    outputs = {}
    for row in config.layers:
        model.get_submodule(row.name).register_forward_hook(
            lambda _module, _inputs, output, name=row.name: outputs.update({name: output.numel()})
        )
    # It counts an addition beside every multiplication.
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        model(images)
    return outputs, flops.get_total_flops() // 2


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_tables_count_what_the_layers_do(name):
    config = getattr(networks, name)()
    outputs, multiplications = counted(config)
    assert outputs == {size.name: size.neurons for size in sizes(config)}
    assert multiplications == sum(size.macs for size in sizes(config))


@pytest.mark.parametrize("name", MILLIONS)
def test_multiplications_are_those_that_articles_name(name):
    _, multiplications = counted(getattr(networks, name)())
    assert round(multiplications / 1e6) == MILLIONS[name]


def test_neurons_are_those_of_the_paper_but_for_its_first_layer():
    config = networks.code2012()
    outputs, _ = counted(config)
    first, *others = outputs.values()
    assert tuple(others) == NEURONS[1:]
    # 55 x 55 x 96 outputs; the paper's number is 55 x 48 x 96, which no stride of 4 gives.
    assert (first, NEURONS[0]) == (55 * 55 * 96, 55 * 48 * 96)
    assert 3 * config.crop**2 == INPUTS
