import sys
from dataclasses import replace

import pytest
import torch

from alexnet import build
from alexnet.model.networks import code2012, smoke
from alexprep.bench.step_bench import Case, plain, training_step
from benchmarks.network import layers, two_processes


def test_the_floor_computes_the_network_it_is_the_floor_of():
    config = replace(smoke(code2012(), crop=48, classes=10), dropout=0.0)
    model, floor = build(config, seed=1), plain(config)
    with torch.no_grad():
        for here, there in zip(floor.parameters(), model.parameters(), strict=True):
            here.copy_(there)
        images = torch.randn(3, 3, 48, 48) * 60
        torch.testing.assert_close(floor(images), model(images), rtol=1e-4, atol=1e-5)


def test_every_case_trains(monkeypatch):
    # The bench's memory setting would outlive this test.
    monkeypatch.setattr("alexprep.bench.step_bench.keep_freed_memory", bool)
    small = smoke(code2012(), crop=48, classes=10)
    for case in (
        Case(network=small, batch=2, plain=True),
        Case(network=small, batch=2, form="columns"),
        Case(network=small, batch=2, precision="bfloat16"),
    ):
        training_step(case)()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="bytes are counted by Linux's loopback")
def test_two_processes_send_what_the_released_split_sent():
    rows = {row.name: row.median for row in two_processes(3)}
    forward = 2 * (21_632 + 4_608 + 2_048) + 2_048
    images = 3 * 224 * 224
    parts = [(2 * forward + 1000) * 4 * 64 / 1e6, images * 4 * 64 / 1e6]
    assert rows["of it activations and gradients, by the table"] == pytest.approx(parts[0])
    assert rows["of it images, from the one loader"] == pytest.approx(parts[1])
    assert rows["sent in a step, two processes"] == pytest.approx(sum(parts), rel=0.01)
    assert {row.unit for row in layers(1)} == {"ms a step of 64", "GFLOP/s"}
