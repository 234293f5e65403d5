"""What a step on a GPU that is not there would launch, read and write.

torch's fake tensors know shape, type, layout and device, so that a process without a GPU sees each
operation that a step queues. Builds of torch for CPUs abort in the backward pass of fake CUDA
tensors, therefore the device is "gpu", which torch lets a backend of Python call its own; the casts
of CUDA's autocast that this network meets are written out below.

Call `install` in a process of its own: torch cannot forget a device.
"""

from collections import Counter
from unittest.mock import patch

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alexnet.model import cuda_ops
from alexnet.model.norms_cpu import memory_format
from tests.device_queues import Queues

AUTOCAST = "AutocastPrivateUse1"
GUARD = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
libraries = []  # torch forgets what they register when they go
weights = {}  # what CUDA's autocast keeps of the weights from one use to the next in a step


class Backend(backend_registration._DummyBackendModule, Queues):
    def device_count(self):
        return 2

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


def install():
    """Make torch know the device "gpu", and the network take it for one with Triton's kernels."""
    backend_registration._setup_privateuseone_for_python_backend("gpu", backend_module=Backend())
    cuda_ops.KERNEL_DEVICES.add("gpu")
    torch._C._conv_determine_backend_memory_format = layout_of_cudnn
    libraries.extend([torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")])
    libraries[0].fallback(torch.library.fallthrough_kernel, AUTOCAST)
    register("conv2d", torch.ops.aten.conv2d, lowered)
    register("linear", torch.ops.aten.linear, lowered)
    register("pow.Tensor_Scalar", torch.ops.aten.pow.Tensor_Scalar, widened)


def layout_of_cudnn(images, weight, _backend):
    """How a convolution on CUDA lays its result out; of this torch asks its build for CPUs."""
    if memory_format(images) is memory_format(weight) is torch.contiguous_format:
        return torch.contiguous_format
    return torch.channels_last


def lowered(value):
    """What a product is given under autocast: bfloat16 for float32, weights cast once."""
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return value
    if not (value.is_leaf and value.requires_grad):
        return value.to(torch.bfloat16)
    if id(value) not in weights:
        weights[id(value)] = value.to(torch.bfloat16)
    return weights[id(value)]


def widened(value):
    """What a power is given: float32."""
    return value.float() if isinstance(value, Tensor) else value


def register(name, operator, cast):
    def kernel(*arguments, **options):
        with torch._C._ExcludeDispatchKeyGuard(GUARD):
            return operator(*map(cast, arguments), **options)

    libraries[1].impl(name, kernel, AUTOCAST)


def bytes_of(tree):
    """Of the tensors in a tree, of each once."""
    return sum({id(t): t.nbytes for t in tree_leaves(tree) if isinstance(t, Tensor)}.values())


def kind_of(tensor):
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


class Operations(TorchDispatchMode):
    """The names of what is done with tensors."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


# Operations that launch nothing: views and memory that is not written.
FREE = (
    *("view", "t.default", "transpose", "permute", "slice", "select", "detach", "expand", "alias"),
    *("split", "chunk", "unsqueeze", "squeeze", "as_strided", "_unsafe_view", "empty", "new_empty"),
    *("reshape", "profiler", "is_same_size", "lift_fresh", "prim", "promote_types"),
)
WRITTEN_ONLY = ("copy_", "fill_", "zero_", "new_full", "ones_like")


class Census(TorchDispatchMode):
    """Kernels, and bytes they read and write, by operation.

    An operator of ours is carried out, on tensors without values: what counts is each kernel that
    it launches, with every tensor that the kernel is given, and each operation of torch besides.
    `types` are those of what our operators return; `host` are the operations that copy between the
    device and the host.
    """

    def __init__(self):
        super().__init__()
        self.kernels, self.bytes = Counter(), Counter()
        self.types, self.host = {}, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = str(func).removeprefix("aten.")
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        devices = {t.device.type for t in tensors}
        if len(devices) > 1:
            self.host.append(name)
        if func.namespace == "alexnet":
            self.types.setdefault(name, set()).update(t.dtype for t in tree_leaves(out))
            self._carry_out(func, args, kwargs or {}, out)
        elif devices != {"cpu"} and not name.startswith(FREE):
            inputs = args[1:] if name.startswith(WRITTEN_ONLY) else args
            self._count(name, bytes_of((inputs, kwargs)) + bytes_of(out))
            self._count_bias(name, args, out)
        return out

    def _carry_out(self, func, args, kwargs, expected):
        from triton.runtime.jit import JITFunction  # noqa: PLC0415 - Triton is not everywhere

        def count(kernel, *arguments, grid, warmup, **options):
            self._count(kernel.__name__, bytes_of(arguments))

        function = OPDEFS[func._schema.name]._init_fn
        with self, patch.object(JITFunction, "run", count):
            out = function(*args, **kwargs)
        # Its registered fake gives what it gives itself.
        assert list(map(kind_of, tree_leaves(out))) == list(map(kind_of, tree_leaves(expected)))

    def _count_bias(self, name, args, out):
        """What torch does to a bias apart from cuDNN (ATen/native/Convolution.cpp)."""
        if name == "convolution.default" and args[2] is not None:
            self._count("bias", 2 * out.nbytes)  # output.add_(bias)
        if name == "convolution_backward.default" and args[-1][2]:
            self._count("bias_backward", args[0].nbytes)  # grad_output.sum((0, 2, 3))

    def _count(self, name, count):
        self.kernels[name] += 1
        self.bytes[name] += count
