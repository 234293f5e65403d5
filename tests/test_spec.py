import json
import math
import subprocess
import sys
from dataclasses import asdict

import pytest

from alexnet.model import networks
from alexnet.model.spec import Conv, Dense, ModelConfig, parameter_count, sizes, with_rows
from alexprep.schema import convert

# Counted by hand from the layer files; 145, 145-half and 146 are logged by the released code.
PARAMETERS = {
    "code2012": 60_965_224,
    "paper": 60_965_224,
    "one_gpu": 59_798_312,
    "six_conv": 61_555_304,
    "ungrouped": 62_378_344,
    "caffe": 60_965_224,
    "torchvision": 61_100_840,
    "no_lrn": 60_965_224,
    "no_overlap": 60_965_224,
    "no_communication": 60_714_408,
    "no_dropout": 60_965_224,
    "tanh": 60_965_224,
    "four_conv": 60_965_224 - 663_936,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_network_has_the_parameters_that_are_published_for_it(name):
    assert parameter_count(getattr(networks, name)()) == PARAMETERS[name]


def test_the_layers_of_2012_have_the_parameters_of_the_articles():
    counts = [size.parameters for size in sizes(networks.code2012())]
    assert counts == [
        *(34_944, 307_456, 885_120, 663_936, 442_624),
        *(37_752_832, 16_781_312, 4_097_000),
    ]


def test_the_layers_of_2012_have_659272_neurons_and_724_million_macs():
    table = list(sizes(networks.code2012()))
    assert sum(size.neurons for size in table) == 659_272
    assert sum(size.macs for size in table) == 724_406_816


@pytest.mark.parametrize("name", ["code2012", "paper", "caffe", "torchvision", "six_conv"])
def test_crops_of_224_and_of_227_both_give_maps_of_55_27_13_6(name):
    table = list(sizes(getattr(networks, name)()))
    assert [table[0].conv_side, *(size.side for size in table[:2]), table[4].side] == [
        *(55, 27, 13, 6)
    ]


def test_pools_that_do_not_overlap_give_the_maps_of_the_released_config():
    table = list(sizes(networks.no_overlap()))[:5]
    sides = [side for size in table[:2] for side in (size.side, size.conv_side)]
    assert sides == [28, 55, 13, 26]
    assert (table[4].conv_side, table[4].side) == (11, 6)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_config_survives_json(name):
    config = getattr(networks, name)(classes=7)
    assert convert(json.loads(json.dumps(asdict(config))), ModelConfig) == config
    assert config.classes == 7


@pytest.mark.parametrize("crop", [48, 56, 64, 112, 160, 224])
@pytest.mark.parametrize("name", PARAMETERS)
def test_every_network_has_a_smoke_size_of_its_own_topology(name, crop):
    full = getattr(networks, name)()
    small = networks.smoke(full, crop=crop, classes=10)
    assert small.classes == 10
    assert small.columns == full.columns
    kept = ("name", "sees", "then")
    for row, other in zip(full.layers, small.layers, strict=True):
        assert type(row) is type(other)
        assert [getattr(row, field) for field in kept] == [getattr(other, field) for field in kept]


def test_a_crop_that_no_map_survives_is_refused_with_the_layer():
    with pytest.raises(ValueError, match=r"crop 32 is too small.*conv"):
        ModelConfig(layers=networks.code2012().layers, crop=32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout": 1.0}, "dropout must be in"),
        ({"lrn_size": 4}, "lrn_size must be odd"),
        ({"layers": networks.code2012().layers[:5]}, "end with a Dense"),
        ({"layers": networks.code2012().layers[::-1]}, "end with a Dense"),
        ({"columns": 5}, "does not divide by 5"),
        ({"layers": (Conv(name="a", out=2, kernel=1), Dense(name="a", out=2))}, "different names"),
        (
            {
                "layers": (
                    Dense(name="a", out=2),
                    Conv(name="b", out=2, kernel=1),
                    Dense(name="c", out=2),
                )
            },
            "after a Dense",
        ),
        ({"layers": (Conv(name="a", out=2, kernel=1, then=("x",)), Dense(name="b", out=2))}, "x"),
        ({"columns": 0}, "columns must be at least 1, got 0"),
        ({"pool_stride": 0}, "pool_stride must be at least 1, got 0"),
        ({"pool_size": -1}, "pool_size must be at least 1, got -1"),
        ({"lrn_size": -1}, "lrn_size must be at least 1, got -1"),
        ({"spatial_size": 0}, "spatial_size must be at least 1, got 0"),
        ({"input_sd": (1.0, 0.0, 1.0)}, "input_sd > 0"),
        ({"input_sd": (1.0, math.nan, 1.0)}, "input_sd > 0"),
        ({"lrn_k": 0.0}, "lrn_k > 0, got 0.0001, 0.75 and 0.0"),
        ({"spatial_alpha": math.nan}, "spatial_alpha and spatial_beta >= 0"),
        ({"pad_end": -1}, "pad_end >= 0"),
        (
            {"layers": (Conv(name="a", out=2, kernel=1, stride=0), Dense(name="b", out=2))},
            "a.stride must be at least 1, got 0",
        ),
        ({"layers": (Conv(name="a", out=2, kernel=1), Dense(name="b", out=-2))}, "b.out must be"),
        (
            {"layers": (Conv(name="a", out=2, kernel=1), Dense(name="b", out=10**10))},
            "parameters, at most 10,000,000,000",
        ),
    ],
)
def test_a_config_that_makes_no_network_says_which_field_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{"layers": networks.code2012().layers, **change})


def test_an_unknown_field_or_layer_is_named():
    with pytest.raises(ValueError, match="'dropuot' is not a field of ModelConfig"):
        convert({**asdict(networks.code2012()), "dropuot": 0.1}, ModelConfig)
    with pytest.raises(ValueError, match="conv9"):
        with_rows(networks.code2012(), conv9={"sd": 1.0})


def test_tables_are_read_without_torch():
    program = (
        "import sys, alexnet, alexnet.model.networks as n; n.code2012(); "
        "print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert answer.stdout.strip() == b"False"
