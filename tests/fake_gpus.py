"""Training steps on two GPUs that do not exist: what crosses, what waits, in which order.

Tensors without memory on a device that torch lets a backend of Python call its own, "gpu". It needs
a process of its own (the registration holds for good), prints JSON and is run by test_fake_gpus.py:

    python -m tests.fake_gpus code2012 six_conv
"""

import json
import sys
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alexnet.distributed.averaging import GradientAverage
from alexnet.distributed.mesh import Replicas, Team, TeamSeam
from alexnet.model import columns, networks
from alexnet.training.config import TrainConfig
from alexnet.training.optim import sgd
from alexnet.training.step import count_errors, image_type, set_channels_last, train_step
from tests import census

IMAGES = 8
CONFIG = TrainConfig(precision="bfloat16")  # as GPUs train
# Operators by which the host waits for a device.
WAITS = ("_local_scalar_dense", "nonzero", "item", "is_nonzero")
# Of operators on the clock of the queues; all others take none.
SECONDS = {"convolution": 10.0, "_to_copy": 4.0, "cat": 1.0}


class Log(TorchDispatchMode):
    """Every operator that takes or gives tensors of two devices, or that waits for one.

    In `crossed` are the operator, shape and type of what it takes, its bytes on either side, and
    the devices. In `order` are copies to another device and concatenations, as they are queued.
    `copies` are begin and end of those copies on the clock of the devices' queues, and `races` the
    operators that begin there before what they take has been computed.
    """

    def __init__(self):
        super().__init__()
        self.crossed = []
        self.order = []
        self.waits = []
        self.copies = []
        self.races = []
        self.ends = {}  # of what was written to each memory last
        self.held = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        name = func.overloadpacket._qualified_op_name.partition("::")[2]
        if name in WAITS:
            self.waits.append(name)
        devices = sorted({str(tensor.device) for tensor in tensors})
        if len(devices) > 1:
            first, last = tensors[0], tensors[-1]
            kind = str(first.dtype).removeprefix("torch.")
            crossing = [name, list(first.shape), kind, [first.nbytes, last.nbytes], devices]
            self.crossed.append(crossing)
            self.order.append("copy")
            self.copies.append(copy_between(first.device, last.device))
        elif name == "cat":
            self.order.append("cat")
        self._time(name, tensors, out)
        return out

    def _time(self, name, tensors, out):
        written = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        if not written or written[0].device.type != "gpu":
            return
        if len({tensor.device for tensor in tensors}) > 1:
            interval = self.copies[-1]
        else:
            seconds = SECONDS.get(name, 0)
            interval = torch.gpu.current_stream(written[0].device).work(seconds)
        storages = {id(tensor): tensor.untyped_storage() for tensor in tensors}
        self.held += storages.values()  # or their addresses would be those of others later
        memories = {number: storage._cdata for number, storage in storages.items()}
        new = {id(tensor) for tensor in written}
        for number, memory in memories.items():
            if number not in new and self.ends.get(memory, 0) > interval[0]:
                self.races.append(name)
        for number in new:
            memory = memories[number]
            self.ends[memory] = max(self.ends.get(memory, 0), interval[1])


def copy_between(source, target):
    """Begin and end of a copy: on the stream of its source, after what both have queued."""
    source, target = (torch.gpu.current_stream(device) for device in (source, target))
    source.wait_stream(target)
    interval = source.work(SECONDS["_to_copy"])
    target.wait_stream(source)
    return interval


def move(module, device):
    """Give a module of the device "meta" parameters and buffers on a device that is fake."""
    for owner in module.modules():
        for name, p in owner._parameters.items():
            if p is not None:
                empty = torch.empty_strided(p.shape, p.stride(), dtype=p.dtype, device=device)
                owner._parameters[name] = nn.Parameter(empty)
        for name, buffer in owner._buffers.items():
            owner._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)


def batch(config, images, device):
    shape = (images, 3, config.crop, config.crop)
    dtype = getattr(torch, image_type(CONFIG, "cuda"))
    return (
        torch.empty(shape, dtype=dtype, device=device).to(memory_format=torch.channels_last),
        torch.zeros(images, dtype=torch.int64, device=device),
    )


def network(config, seam):
    with torch.device("meta"):
        model = columns.Columns(config, seam, seed=0)
    for column in model.local:
        # conv1 in one kernel with what follows it; the other networks have it by itself.
        column.stages.fuse_first = config == networks.code2012()
    set_channels_last(model)
    return model


def optimizer_of(model):
    optimizer = sgd(model, CONFIG)
    optimizer.defaults["fused"] = False  # torch has no fake of the fused update
    return optimizer


def split_step(name):
    """A step and a batch of validation on two devices; what crossed, what waited, what is where."""
    config = getattr(networks, name)()
    seam = columns.LocalSeam(devices=(torch.device("gpu:0"), torch.device("gpu:1")))
    model = network(config, seam)
    with FakeTensorMode(), torch.autograd.set_multithreading_enabled(False):
        for column, device in zip(model.local, seam.devices, strict=True):
            move(column, device)
        optimizer = optimizer_of(model)
        examples = batch(config, IMAGES, "gpu:0")
        census.weights.clear()
        with Log() as trained:
            loss = train_step(model.train(), optimizer, examples, CONFIG)
        strangers = [
            name
            for name, p in model.named_parameters()
            if optimizer.state[p]["momentum_buffer"].device != p.device
        ]
        census.weights.clear()
        with torch.no_grad(), Log() as validated:
            errors = count_errors(model.eval(), examples, CONFIG)
    return {
        "crossed": trained.crossed,
        "validation crossed": validated.crossed,
        "validation order": validated.order,
        "validation copies": validated.copies,
        "races": trained.races + validated.races,
        "waits": trained.waits + validated.waits,
        "results": [str(loss.device), str(errors.device)],
        "velocities elsewhere": strangers,
    }


def mutant_step(name):
    """The same where columns put parts together without moving them; the name of the error."""

    def without_moving(self, parts):
        return [torch.cat(list(parts), dim=1) for _ in self.devices]

    with patch.object(columns.LocalSeam, "gather", without_moving):
        try:
            split_step(name)
        except RuntimeError as error:
            return type(error).__name__
    return "survived"


def wide_step(name):
    """The same where maps are widened to float32 before they cross."""
    move = columns._move

    def widened(maps, device):
        return move(maps.float(), device).to(maps.dtype)

    with patch.object(columns, "_move", widened):
        return split_step(name)


class Recorder(Team):
    """A process of a team that writes down what it would exchange."""

    __slots__ = ("log",)

    def exchange(self, collective, *args, **options):
        tensors = [x for x in tree_leaves(args) if isinstance(x, torch.Tensor)]
        if "group" in options:
            peer = options.get("group_src", options.get("group_dst"))
            shapes = [[list(x.shape), str(x.dtype)] for x in tensors]
            self.log.append([collective.__name__, options["group"], peer, shapes])
        return SimpleNamespace(wait=lambda: None)


class Mesh:
    def __init__(self, replica, column, replicas):
        self.ranks = {"replica": replica, "column": column}
        self.sizes = (replicas, 2)

    def get_local_rank(self, axis):
        return self.ranks[axis]

    def size(self, axis):
        return self.sizes[axis]

    def get_group(self, axis):
        return axis


def rank_step(config, replica, column, replicas):
    """What one process exchanges in a step, and what crossed or waited."""
    team = Recorder(mesh=Mesh(replica, column, replicas), device=torch.device("gpu:0"), feed="feed")
    object.__setattr__(team, "log", [])
    model = network(config, TeamSeam(team=team, apply=lambda function, *a: function.apply(*a)))
    with FakeTensorMode(), torch.autograd.set_multithreading_enabled(False):
        move(model, "gpu:0")
        average = GradientAverage(model.parameters(), Replicas(team=team))
        with Log() as log:
            examples = batch(config, IMAGES // replicas, "gpu:0")
            census.weights.clear()
            train_step(model.train(), optimizer_of(model), examples, CONFIG, average)
            events = len(team.log)
    return {"exchanges": team.log[:events], "crossed": log.crossed, "waits": log.waits}


def main(names):
    census.install()
    steps = {name: split_step(name) for name in names}
    steps["mutant"] = mutant_step("code2012")
    steps["wide"] = wide_step("code2012")
    ranks = {
        f"{name} {replicas}": [
            rank_step(getattr(networks, name)(), replica, column, replicas)
            for replica in range(replicas)
            for column in range(2)
        ]
        for name in names
        for replicas in (1, 2)
    }
    sys.stdout.write(json.dumps({"steps": steps, "ranks": ranks}))


if __name__ == "__main__":
    main(sys.argv[1:])
