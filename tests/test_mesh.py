"""Columns in processes of their own, against the network on one device; all in float64."""

import os
import socket

import pytest
import torch
import torch.nn.functional as F
from torch import multiprocessing

from alexnet import build
from alexnet.mesh import join
from alexnet.networks import code2012, smoke
from alexnet.replicas import Replicas
from alexnet.weights import to_grouped

CONFIG = smoke(code2012(), crop=48, classes=10)
BATCH = 8
STEPS = 5


def batches():
    """Five global batches, the same in every process."""
    chance = torch.Generator().manual_seed(5)
    for _ in range(STEPS):
        images = torch.randn(BATCH, 3, 48, 48, generator=chance, dtype=torch.float64) * 60
        yield images, torch.randint(0, 10, (BATCH,), generator=chance)


def train(model, replicas=None):
    """STEPS of SGD on this replica's part of each batch; the losses and the first gradients."""
    replicas = replicas or Replicas()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    losses, first = [], {}
    each = BATCH // replicas.world
    start = replicas.rank * each
    for step, (images, labels) in enumerate(batches()):
        model.set_dropout_position(step * BATCH + start)
        part = slice(start, start + each)
        loss = F.cross_entropy(model(images[part]), labels[part])
        loss.backward()
        replicas.average_gradients(optimizer, each)
        if not first:
            first = {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, first


def start(worker, processes, folder, **environment):
    """Start `processes` of worker(rank, folder); returns the process objects."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(processes))
    started = [context.Process(target=worker, args=(rank, folder)) for rank in range(processes)]
    for process in started:
        process.start()
    return started


def enlist(rank, **options):
    """What torchrun would have set, then join."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    return join(**options)


def train_worker(rank, folder):
    team = enlist(rank)
    model = build(CONFIG, form="columns", team=team, seed=3).double()
    group = team.mesh.get_group("replica")
    replicas = Replicas(rank=team.replica, world=team.replicas, group=group)
    losses, first = train(model, replicas)
    torch.save((losses, first, model.state_dict()), folder / f"{rank}.pt")
    team.close()


@pytest.fixture(scope="module", params=[2, 4], ids=["2 processes", "2 x 2 processes"])
def trained(request, tmp_path_factory):
    """What each process of a run ended with, by (replica, column)."""
    folder = tmp_path_factory.mktemp("ranks")
    for process in start(train_worker, request.param, folder):
        process.join(120)
        assert process.exitcode == 0
    results = [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]
    return [results[rank : rank + 2] for rank in range(0, request.param, 2)]


@pytest.fixture(scope="module")
def oracle():
    model = build(CONFIG, seed=3).double()
    return *train(model), model.state_dict()


def joined(columns, index):
    """States of the columns of one replica in the layout of the one-device form."""
    return to_grouped(columns[0][index] | columns[1][index], CONFIG)


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-10, atol=1e-10, msg=name)


def test_processes_have_the_loss_of_one_device(trained, oracle):
    for replica in trained:
        assert replica[0][0] == replica[1][0]
    means = [sum(parts) / len(trained) for parts in zip(*(r[0][0] for r in trained), strict=True)]
    assert means == pytest.approx(oracle[0], rel=1e-10)


def test_processes_have_the_gradients_of_one_device(trained, oracle):
    for replica in trained:
        assert_same(joined(replica, 1), oracle[1])


def test_processes_have_the_weights_of_one_device_after_five_steps(trained, oracle):
    for replica in trained:
        assert_same(joined(replica, 2), oracle[2])
