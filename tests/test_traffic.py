import math
from pathlib import Path

import pytest

from alexnet.model import networks
from alexnet.model.columns import exchanges

PAGE = Path(__file__).parents[1] / "docs" / "notes" / "network.md"


def test_the_network_of_2012_sends_what_its_authors_sent_and_the_logits():
    # Floats for an image in both directions, from the layers' sizes in the released code: conv2's
    # pool, conv5's pool and fc6 each way, fc7 to the first; the same again with the gradients.
    assert [exchange.values for exchange in exchanges(networks.code2012())] == [
        *(4 * 128 * 13 * 13, 4 * 128 * 6 * 6, 4 * 2048, 2 * 2048),
        1000,
    ]


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("one_gpu", ["fc8", "loss"]),
        ("no_communication", ["fc8", "loss"]),
        ("six_conv", ["conv3", "conv6", "fc6", "fc7", "fc8", "loss"]),
    ],
)
def test_layers_that_see_both_columns_are_those_that_exchange(name, layers):
    config = getattr(networks, name)()
    table = list(exchanges(config))
    if config.columns == 1:
        assert sum(exchange.values for exchange in table) == 0
    else:
        assert [exchange.layer for exchange in table] == layers


def test_the_page_has_the_bytes_of_a_step_of_the_network_of_2012():
    batch = 64
    lines = []
    for exchange in exchanges(networks.code2012()):
        megabytes = exchange.values * 4 * batch / 1e6
        lines.append(f"{exchange.values:,} | {megabytes:.2f} |")
    total = sum(exchange.values for exchange in exchanges(networks.code2012()))
    images = 3 * 224 * 224
    lines.append(f"{images:,} | {images * 4 * batch / 1e6:.2f} |")
    lines.append(f"{total + images:,} | {(total + images) * 4 * batch / 1e6:.2f} |")
    page = PAGE.read_text().splitlines()
    found = [page.index(next(row for row in page if row.endswith(line))) for line in lines]
    assert found == list(range(found[0], found[0] + len(lines)))


def test_the_page_on_gpus_has_the_price_of_each_exchange():
    batch, rates = 128, (450e3, 64e3, 32e3)  # bytes a microsecond
    page = PAGE.with_name("gpu.md").read_text()
    total = serial = 0.0
    for exchange in exchanges(networks.code2012()):
        if exchange.what != "publish":  # in one process the logits stay where they are
            message = math.prod(exchange.shape) * 2 * batch
            times = " | ".join(f"{message / rate:.0f}" for rate in rates)
            assert f"| {exchange.layer} | {message / 1e6:.2f} | " in page
            assert f" | {times} |\n" in page
            total += 2 * message
            serial += exchange.values * 2 * batch
    for sent in (total, serial):
        times = " | ".join(f"{sent / rate:.0f}" for rate in rates)
        assert f" | {sent / 1e6:.2f} | | {times} |\n" in page
