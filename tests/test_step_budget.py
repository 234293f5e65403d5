"""What a training step on a GPU launches and moves, and in which types, without a GPU."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from alexnet.model import networks
from alexnet.model.cuda_ops import KERNEL_DEVICES
from alexnet.model.grouped import Grouped
from alexnet.training.step import set_channels_last
from tests.census import layout_of_cudnn
from tests.fake_gpus import move


@pytest.fixture
def autocast_of_cuda(monkeypatch):
    """The casts of torch.autocast("cuda"), which does nothing by that name without CUDA."""
    monkeypatch.setattr(torch._C, "_conv_determine_backend_memory_format", layout_of_cudnn)
    absent = "cuda" not in KERNEL_DEVICES
    KERNEL_DEVICES.add("cuda")
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", False)
    torch.clear_autocast_cache()
    if absent:
        KERNEL_DEVICES.remove("cuda")


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("name", ["code2012", "paper", "caffe", "torchvision", "tanh"])
def test_every_stage_gives_back_the_type_and_layout_it_got(name, layout, autocast_of_cuda):
    config = getattr(networks, name)()
    with torch.device("meta"):
        model = Grouped(config, seed=0)
    if layout is torch.channels_last:
        set_channels_last(model)
    with FakeTensorMode(), torch.no_grad():
        move(model, "cuda:0")
        model.requires_grad_(False)
        # Images as every other device has them: torch copies no fake CUDA tensors.
        side = config.crop + config.pad_end
        x = torch.empty(4, 3, side, side, device="cuda:0").to(memory_format=layout)
        for number, layer in enumerate(model.layers[:-1]):
            x = model.get_submodule(layer)(x)
            assert x.dtype == torch.bfloat16
            for pairs in model.stages.then[number]:
                y = model.stages.apply_pairs(x, None, pairs, number)
                assert (y.dtype, y.device) == (x.dtype, x.device), (layer, pairs)
                # What dropout gives back the next layer flattens.
                free = y.dim() == 2 or pairs == (("dropout",),)
                assert free or y.is_contiguous(memory_format=layout), (layer, pairs)
                x = y


CENSUS = """
import json, sys
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from alexnet.model import networks
from alexnet.model.grouped import Grouped
from alexnet.training.config import TrainConfig
from alexnet.training.optim import layer_weights
from alexnet.training.step import logits_of, set_channels_last
from tests import census
from tests.fake_gpus import move, optimizer_of

census.install()
result = {}
for name in sys.argv[2:]:
    config, batch = getattr(networks, name.split()[0])(), int(sys.argv[1])
    with torch.device("meta"):
        model = Grouped(config, seed=0)
    model.stages.fuse_first = name == "code2012"
    set_channels_last(model)
    with FakeTensorMode():
        move(model, "gpu:0")
        images = torch.empty(
            batch, 3, config.crop, config.crop, dtype=torch.bfloat16, device="gpu:0"
        ).to(memory_format=torch.channels_last)
        labels = torch.zeros(batch, dtype=torch.int64, device="gpu:0")
        # As `sgd` does on CUDA.
        optimizer_of(model).round_weights(layer_weights(model), torch.bfloat16)
        census.weights.clear()
        with census.Census() as counted, torch.autograd.set_multithreading_enabled(False):
            F.cross_entropy(
                logits_of(model, images, TrainConfig(precision="bfloat16")), labels
            ).backward()
    own = {n: [str(t) for t in kinds] for n, kinds in counted.types.items() if "alexnet" in n}
    counts = {"kernels": counted.kernels, "bytes": counted.bytes}
    result[name] = {**counts, "types": own, "host": counted.host}
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def censuses():
    """Kernels and bytes of forward and backward of a batch of 1024, by network and operation."""
    pytest.importorskip("triton", reason="Triton comes for Linux alone")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CENSUS, "1024", *BUDGETS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


# Kernels of forward and backward, and kilobytes an image that they read and write, at a batch of
# 1024. Of code2012 the convolutions behind conv1 are 2,910, what follows conv2 2,085, conv3 and
# conv4 1,070 and conv5 300, products 500, all else 165, and conv1 with what follows it 960 in one
# kernel a pass, on Hopper. By cuDNN these are 4,500: the convolution 1,790, images as blocks 610,
# and norm and pooling 2,100. `train` times both (alexnet.training.first_kernel). With biases apart
# from what follows, every norm and pooling a kernel of its own, images in float32 and weights and
# gradients cast in every step it all was 21,727 in 104 kernels (operators of ours counted as one
# kernel each). The update of the weights, which is not counted here, is 1,190.
#
# Left out, by what each would save: computing the spatial norm's roots again, 750 (.18 ms of 1024
# images by an H200's memory, against .45 for the instructions); ReLU in cuDNN's epilogue, 290, for
# it keeps no bits and the backward pass would read the maps again (whether it has one for groups
# only a GPU can tell); the loss as one kernel a pass, 38 in six kernels; conv5's maxima laid out as
# fc6 reads them, 74 in two kernels (.02 ms, and as much for values that the pooling then stores and
# loads one by one). Before a step DALI writes its crops in float32, which `Finish` reads, 600 more
# than in bfloat16: it knows float16, which would round twice.
BUDGETS = {
    "code2012": (55, 7_992),
    "code2012 by cuDNN": (64, 11_522),
    "paper": (65, 11_417),
    "torchvision": (72, 10_502),
}
OPERATORS = ("conv_norm_pool", "norm_pool", "max_pool", "bias_relu", "drop")


@pytest.mark.parametrize("name", BUDGETS)
def test_a_step_launches_and_moves_no_more_than_its_budget(name, censuses):
    kernels, kilobytes = BUDGETS[name]
    census = censuses[name]
    assert sum(census["kernels"].values()) <= kernels
    assert sum(census["bytes"].values()) / 1024 / 1000 <= kilobytes


@pytest.mark.parametrize("name", BUDGETS)
def test_a_step_copies_nothing_from_the_host(name, censuses):
    # A CUDA graph may not, and without one the host would wait for the GPU. (torchvision divides
    # its images by an sd, which once came from the host.)
    assert censuses[name]["host"] == []


def test_our_operators_keep_bfloat16_forward_and_backward(censuses):
    types = censuses["code2012"]["types"]
    assert {f"alexnet.{name}.default" for name in OPERATORS} <= set(types)
    assert {"alexnet.norm_pool_backward.default", "alexnet.conv_norm_pool_backward.default"} <= set(
        types
    )
    for name, kinds in types.items():
        # Besides numbers of pixels, roots of the spatial norm, and sums for the gradient of a bias.
        others = {"torch.int32", "torch.uint8"}
        others |= {"torch.float16"} if name == "alexnet.norm_pool.default" else set()
        others |= {"torch.float32"} if "backward" in name else set()
        assert set(kinds) - others == {"torch.bfloat16"}, name
