"""Averaged gradients of two processes, against those of the whole batch in one; in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alexnet.distributed import averaging
from alexnet.distributed.averaging import GradientAverage
from alexnet.distributed.mesh import Replicas, join
from tests.test_mesh import assert_same, finished

IMAGES = 5  # one process has three of them, the other two
# Which layers a schedule has frozen in each step.
FROZEN = ((), (), ("0.weight", "0.bias"), ())


def network():
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 16), nn.Linear(16, 4)
    )
    return layers.double().to(memory_format=torch.channels_last)


def gradients(average, share):
    """Of every step; None of a frozen parameter."""
    model, chance = network(), torch.Generator().manual_seed(1)
    average = average(model)
    steps = []
    for frozen in FROZEN:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)
            parameter.grad = None
        images = torch.randn(IMAGES, 3, 8, 8, generator=chance, dtype=torch.float64)
        labels = torch.randint(0, 4, (IMAGES,), generator=chance)
        loss = F.cross_entropy(model(images[share]), labels[share])
        with average(len(labels[share])):
            loss.backward()
        steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        assert all(p.grad.stride() == p.stride() for p in model.parameters() if p.grad is not None)
    return steps


def worker(rank, folder):
    averaging.FIRST_BUCKET_BYTES, averaging.BUCKET_BYTES = 100, 3000
    team = join(columns=1)
    replicas = Replicas(team=team)
    computed = gradients(
        lambda model: GradientAverage(model.parameters(), replicas), slice(rank, None, 2)
    )
    torch.save(computed, folder / f"{rank}.pt")
    team.close()


def test_shares_of_different_size_and_frozen_layers_average_to_the_batch(tmp_path):
    expected = gradients(lambda model: GradientAverage(model.parameters(), Replicas()), slice(None))
    for computed in finished(worker, 2, tmp_path):
        for step, step_expected in zip(computed, expected, strict=True):
            assert_same(step, step_expected)
    assert "0.weight" not in expected[2]
    assert "0.weight" in expected[3]


@pytest.mark.parametrize(("first", "limit", "sizes"), [(0, 0, [1] * 6), (1 << 20, 1 << 20, [6])])
def test_buckets_hold_every_gradient_in_the_order_of_backward(monkeypatch, first, limit, sizes):
    monkeypatch.setattr(averaging, "FIRST_BUCKET_BYTES", first)
    monkeypatch.setattr(averaging, "BUCKET_BYTES", limit)
    parameters = list(network().parameters())
    buckets = list(averaging._buckets(reversed(parameters)))
    assert [len(bucket.views) for bucket in buckets] == sizes
    order = [parameter for bucket in buckets for parameter in bucket.views]
    assert [id(parameter) for parameter in order] == [id(p) for p in reversed(parameters)]
    for bucket in buckets:
        assert sum(view.numel() for view in bucket.views.values()) == len(bucket.buffer)


def timeouts_worker(rank, folder):
    team = join(timeout=70.0)
    groups = (team.feed, team.group, team.mesh.get_group("replica"))
    limits = [group._get_backend(torch.device("cpu")).options._timeout for group in groups]
    torch.save([limit.total_seconds() for limit in limits], folder / f"{rank}.pt")
    team.close()


def test_the_timeout_holds_in_every_group(tmp_path):
    assert finished(timeouts_worker, 2, tmp_path) == [[70.0] * 3] * 2
