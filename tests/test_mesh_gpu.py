"""One column a process over NCCL, against the network on one device; two GPUs."""

import pytest
import torch

from alexnet import build
from alexnet.distributed.feed import Lockstep
from alexnet.distributed.mesh import Replicas, join
from tests.test_mesh import (
    CONFIG,
    Batches,
    assert_same,
    finished,
    joined,
    train,
)

pytestmark = pytest.mark.two_gpus


def nccl_worker(rank, folder):
    team = join(device="cuda")
    model = build(CONFIG, form="columns", team=team, seed=3).double()
    replicas = Replicas(team=team)
    with Lockstep(team, Batches(replicas) if team.column == 0 else None) as loader:
        losses, first = train(model, loader, replicas)
    parts = [
        {name: value.cpu() for name, value in part.items()} for part in (first, model.state_dict())
    ]
    torch.save((losses, *parts), folder / f"{rank}.pt")
    team.close()


def test_two_processes_on_two_gpus_train_as_one_device(tmp_path):
    alone = Replicas()
    model = build(CONFIG, seed=3).double()
    losses, first = train(model, Batches(alone), alone)
    columns = finished(nccl_worker, 2, tmp_path)
    assert columns[0][0] == pytest.approx(losses, rel=1e-9)
    assert_same(joined(columns, 1), first)
    assert_same(joined(columns, 2), model.state_dict())
