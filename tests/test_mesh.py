"""Columns in processes of their own, against the network on one device; all in float64."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from alexnet import build
from alexnet.distributed.averaging import GradientAverage
from alexnet.distributed.feed import Lockstep
from alexnet.distributed.mesh import Replicas, join
from alexnet.errors import RunError
from alexnet.model.columns import exchanges
from alexnet.model.networks import code2012, smoke
from alexnet.model.spec import Conv, with_rows
from alexnet.model.weights import to_grouped
from tests.ranks import ended, start_ranks

SMOKE = smoke(code2012(), crop=48, classes=10)
# Few maps and units, for float64.
CONFIG = with_rows(
    SMOKE,
    **{row.name: {"out": 16 if isinstance(row, Conv) else 32} for row in SMOKE.layers[:-1]},
)
BATCH = 8
STEPS = 5


def batches():
    """Five global batches, the same in every process."""
    chance = torch.Generator().manual_seed(5)
    for _ in range(STEPS):
        images = torch.randn(BATCH, 3, 48, 48, generator=chance, dtype=torch.float64) * 60
        yield images, torch.randint(0, 10, (BATCH,), generator=chance)


class Batches:
    """The loader of one replica: its part of each global batch, channels last, and a position."""

    def __init__(self, replicas):
        self.replicas = replicas
        self.given = 0

    def __len__(self):
        return STEPS

    def __iter__(self):
        each = BATCH // self.replicas.world
        part = slice(self.replicas.rank * each, (self.replicas.rank + 1) * each)
        for images, labels in batches():
            self.given += 1
            yield images[part].to(memory_format=torch.channels_last), labels[part]

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.given = state["given"]


def train(model, loader, replicas):
    """STEPS of SGD on this replica's part of each batch; the losses and the first gradients."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    losses, first = [], {}
    average = GradientAverage(model.parameters(), replicas)
    each = BATCH // replicas.world
    for step, (images, labels) in enumerate(loader):
        model.set_dropout_position(step * BATCH + replicas.rank * each)
        loss = F.cross_entropy(model(images), labels)
        with average(each):
            loss.backward()
        if not first:
            first = {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if "given" in loader.state_dict():
            assert loader.state_dict() == {"given": step + 1}
    assert len(losses) == len(loader) == STEPS
    return losses, first


# Largest differences of the logits and of conv1's gradient, relative to plain float64. There what
# rounding may turn (a neuron near 0, two pixels of a pool) is too rare to be met.
MODES = {
    "plain": (1e-12, 1e-11),
    "channels_last": (1e-12, 1e-11),
    "bf16": (0.02, 0.3),
    "compiled": (1e-12, 1e-11),
}


def one_step(mode, **build_options):
    """Logits and the gradient of conv1 of one step, in a mode of running."""
    # autocast lowers float32 alone, so that bf16 must begin there
    dtype = torch.float32 if mode == "bf16" else torch.float64
    model = build(SMOKE, seed=3, **build_options).to(dtype)
    chance = torch.Generator().manual_seed(5)
    images, labels = torch.randn(4, 3, 48, 48, generator=chance) * 60, torch.arange(4)
    images = images.to(dtype)
    if mode == "channels_last":
        model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    run = torch.compile(model, backend="aot_eager") if mode == "compiled" else model
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "bf16"):
        logits = run(images)
        loss = F.cross_entropy(logits, labels)
    loss.backward()
    gradient = next(p.grad for n, p in model.named_parameters() if n.endswith("conv1.weight"))
    return logits.detach().double(), gradient


CALL = """
import os, sys, torch
from importlib import import_module
from pathlib import Path
torch.set_num_threads(1)
module, worker, folder = sys.argv[1:]
getattr(import_module(module), worker)(int(os.environ["RANK"]), Path(folder))
"""


def start(worker, processes, folder, **environment):
    """`processes` that call worker(rank, folder)."""
    module = f"tests.{worker.__module__.rpartition('.')[2]}"
    command = [sys.executable, "-c", CALL, module, worker.__name__, folder]
    return start_ranks(processes, command, env=os.environ | environment)


def train_worker(rank, folder):
    team = join()
    model = build(CONFIG, form="columns", team=team, seed=3).double()
    replicas = Replicas(team=team)
    with Lockstep(team, Batches(replicas) if team.column == 0 else None) as loader:
        losses, first = train(model, loader, replicas)
    sent = dict(team.sent)
    # In the same processes: starting some takes longer than what they do.
    modes = MODES if team.replicas == 1 else ()
    steps = {mode: one_step(mode, form="columns", team=team) for mode in modes}
    torch.save((losses, first, model.state_dict(), sent, steps), folder / f"{rank}.pt")
    team.close()


def finished(worker, processes, folder):
    """What each process of worker(rank, folder) wrote, once all have ended well."""
    assert ended(start(worker, processes, folder))[0] == [0] * processes
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]


@pytest.fixture(scope="module", params=[2, 4], ids=["2 processes", "2 x 2 processes"])
def trained(request, tmp_path_factory):
    """What each process of a run ended with, by (replica, column)."""
    results = finished(train_worker, request.param, tmp_path_factory.mktemp("ranks"))
    return [results[rank : rank + 2] for rank in range(0, request.param, 2)]


@pytest.fixture(scope="module")
def oracle():
    model = build(CONFIG, seed=3).double()
    alone = Replicas()
    return *train(model, Batches(alone), alone), model.state_dict()


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


def test_columns_send_each_other_what_the_table_of_the_network_says(trained):
    images = BATCH // len(trained) * STEPS
    for replica in trained:
        sent = Counter(replica[0][3]) + Counter(replica[1][3])
        for there in exchanges(CONFIG):
            values = images * there.sent * math.prod(there.shape)
            forward = sent.pop((there.what, there.shape))
            back = sent.pop((f"{there.what}, gradient", there.shape), 0)
            assert (forward, back) == (8 * values, 8 * values * there.returns), there
        # One loader feeds both columns: its batches travel once, and a header each to the end.
        assert replica[1][3].keys().isdisjoint({("images", (48, 48, 3)), ("labels", ())})
        assert sent == {
            ("images", (48, 48, 3)): 8 * images * 48 * 48 * 3,
            ("labels", ()): 8 * images,
            ("header", ()): 8 * 9 * (STEPS + 1),
            ("length", ()): 8,
        }


@pytest.mark.parametrize("trained", [2], indirect=True, ids=["2 processes"])
def test_processes_run_channels_last_bf16_and_compiled_within_tolerance(trained):
    logits, gradient = one_step("plain")
    first, second = (process[4] for process in trained[0])
    for mode, (logit_limit, gradient_limit) in MODES.items():
        assert torch.equal(first[mode][0], second[mode][0])
        assert (first[mode][0] - logits).norm() <= logit_limit * logits.norm(), mode
        found = torch.cat([first[mode][1], second[mode][1]])
        assert (found - gradient).norm() <= gradient_limit * gradient.norm(), mode


def broken_worker(rank, folder):
    """Trains until the last rank dies or stands still; the errors of the others go to files."""
    team = join(timeout=float(os.environ["TIMEOUT"]))
    for group in (team.group, team.mesh.get_group("replica"), team.feed):
        options = group._get_backend(torch.device("cpu")).options
        assert options._timeout == timedelta(seconds=float(os.environ["TIMEOUT"]))
    model = build(CONFIG, form="columns", team=team, seed=3)
    last = rank == int(os.environ["WORLD_SIZE"]) - 1
    began = time.monotonic()
    try:
        for step in range(1000):
            if last and step == 2:
                began = time.monotonic()
                os.kill(os.getpid(), int(os.environ["SIGNAL"]))
            images, labels = torch.zeros(2, 3, 48, 48), torch.tensor([0, 1])
            began = time.monotonic()
            F.cross_entropy(model(images), labels).backward()
            for parameter in model.parameters():
                team.exchange(dist.all_reduce, parameter.grad, group=team.mesh.get_group("replica"))
    except RunError as error:
        (folder / str(rank)).write_text(f"{time.monotonic() - began:.1f} {error}")
        sys.exit(1)


@pytest.mark.parametrize(
    ("processes", "number", "timeout"),
    [(2, signal.SIGKILL, 100), (4, signal.SIGKILL, 100), (2, signal.SIGSTOP, 8)],
    ids=["one of two dies", "one of 2 x 2 dies", "one of two stands still"],
)
def test_a_lost_process_ends_the_others_in_time_with_one_line(tmp_path, processes, number, timeout):
    # A process that is gone is noticed long before the timeout, one that stands still at its end.
    limit = 60
    environment = {"SIGNAL": str(int(number)), "TIMEOUT": str(timeout)}
    started = start(broken_worker, processes, tmp_path, **environment)
    *others, lost = started
    for process in others:
        assert process.wait(200) == 1
    lost.kill()
    lost.wait()
    for rank in range(processes - 1):
        seconds, _, text = (tmp_path / str(rank)).read_text().partition(" ")
        assert float(seconds) < limit
        assert text.startswith(f"Rank {rank} lost the connection to another process. ")
        assert "\n" not in text


DIES = """
import os, signal, sys, torch
import torch.distributed as dist
from alexnet.distributed.mesh import join
team = join(timeout=60.0)
for step in range(1000):
    if step == 2 and dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    team.exchange(dist.all_reduce, torch.zeros(1))
"""


def test_torchrun_ends_the_others_and_names_the_process_that_died(tmp_path):
    (tmp_path / "dies.py").write_text(DIES)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    command = [*torchrun, "--standalone", str(tmp_path / "dies.py")]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == 1
    first = done.stderr.partition("Root Cause (first observed failure):")[2]
    assert re.search(r"rank\s*: 1 \(local_rank: 1\)\s+exitcode\s*: -9 ", first), done.stderr


def odd_worker(rank, folder):
    try:
        join()
    except RunError as error:
        (folder / str(rank)).write_text(str(error))


def test_processes_that_make_no_replicas_are_refused(tmp_path):
    for process in start(odd_worker, 1, tmp_path):
        assert process.wait(60) == 0
    assert "1 processes do not make replicas of 2 columns" in (tmp_path / "0").read_text()
