# pyright: basic, reportMissingImports=false
"""Lets torchvision be imported beside a torch it was not compiled for.

streaming imports it without need; what it would fail on is that these operators are not declared.
"""

import torch

operators = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
