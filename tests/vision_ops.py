"""torchvision for tests: its operators are compiled for CUDA, next to a PyTorch for CPUs.

What is used of it here calls none of them, but importing it wants two of them declared.
"""

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import torch

for library in Path(find_spec("torchvision").origin).parent.glob("_C*.so"):
    with suppress(OSError):
        torch.ops.load_library(library)
if not hasattr(torch.ops.torchvision, "nms"):
    OPS = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        OPS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from torchvision.transforms import InterpolationMode, RandomResizedCrop  # noqa: E402
from torchvision.transforms import functional as transforms  # noqa: E402

__all__ = ["InterpolationMode", "RandomResizedCrop", "transforms"]
