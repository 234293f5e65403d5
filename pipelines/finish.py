# pyright: basic
"""Batches on a GPU: the stream that they are made on, beside the step's; and what follows DALI.

The last step of images that DALI makes are mean images, ten views, and the type.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.augment import Draws, ten_views
from pipelines.normalize import VIEWS, Preprocess


class Finish:
    """What crop_mirror_normalize, which knows one mean a channel, leaves: mean images, ten views.

    Its images come as `(x - mean + shift) / (divide * sd)`, without the mean image. What is given
    out lies in torch's own memory, not in DALI's.
    """

    def __init__(self, preprocess: Preprocess) -> None:
        self.spec = preprocess.spec
        self.views = preprocess.views
        self.dtype = getattr(torch, preprocess.dtype)
        self._mean_CHW = None
        colours = preprocess.colours
        if colours.image_HWC is not None:
            image, sd = (
                torch.tensor(a, dtype=torch.float32) for a in (colours.image_HWC, colours.sd)
            )
            memory = torch.channels_last if preprocess.channels_last else torch.contiguous_format
            mean = image.permute(2, 0, 1) / sd[:, None, None]
            self._mean_CHW = mean[None].contiguous(memory_format=memory)[0]

    def __call__(self, images_NCHW: Tensor, draws: Draws) -> Tensor:
        """The finished images on the device they are on."""
        if self._mean_CHW is not None and self._mean_CHW.device != images_NCHW.device:
            self._mean_CHW = self._mean_CHW.to(images_NCHW.device)
        if self.views > 1:
            return self._ten_views(images_NCHW)
        return self._crops(images_NCHW, draws)

    def _crops(self, images_NCHW: Tensor, draws: Draws) -> Tensor:
        out = torch.empty_like(images_NCHW, dtype=self.dtype)
        if self._mean_CHW is None:
            return out.copy_(images_NCHW)
        mean = self._mean_CHW / draws.divide
        if self.spec.mean == "image":
            return torch.sub(images_NCHW, self._centre(mean), out=out)
        return torch.sub(images_NCHW, self._crops_of_mean(mean, draws), out=out)

    def _crops_of_mean(self, mean: Tensor, draws: Draws) -> Tensor:
        """The mean image at each crop's place, mirrored with it: (N, C, crop, crop)."""
        pixels = torch.arange(self.spec.crop, device=mean.device)
        y, x, mirror = (
            self._sent(values, mean.device)[:, None] for values in (draws.y, draws.x, draws.mirror)
        )
        columns = x + torch.where(mirror, self.spec.crop - 1 - pixels, pixels)
        return mean[:, (y + pixels)[:, :, None], columns[:, None]].transpose(0, 1)

    def _sent(self, values: np.ndarray, device: torch.device) -> Tensor:
        tensor = torch.as_tensor(values)
        if device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(device, non_blocking=True)

    def _ten_views(self, images_NCHW: Tensor) -> Tensor:
        size, mean = self.spec.crop, self._mean_CHW
        if mean is not None and self.spec.mean == "image_at_crop":
            images_NCHW, mean = images_NCHW - mean, None
        shape = (len(images_NCHW), VIEWS, images_NCHW.shape[1], size, size)
        out = torch.empty(shape, dtype=self.dtype, device=images_NCHW.device)
        for number, (y, x, mirrored) in enumerate(ten_views(self.spec)):
            crop = images_NCHW[:, :, y : y + size, x : x + size]
            crop = crop.flip(3) if mirrored else crop
            out[:, number] = crop if mean is None else crop - self._centre(mean)
        return out

    def _centre(self, mean: Tensor) -> Tensor:
        start = (self.spec.side - self.spec.crop) // 2
        return mean[:, start : start + self.spec.crop, start : start + self.spec.crop]


class SideStream:
    """A stream of a GPU for what is computed ahead, beside the stream that takes the results.

    On one stream for both, results would wait for the step that is queued before them, and the next
    step for them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # torch.cuda: torch has a module with the same names for each kind of device.
        self._streams: Any = torch.get_device_module(device)
        self.own: torch.Stream = self._streams.Stream(device)

    def use(self) -> AbstractContextManager[None]:
        """What is queued inside is queued here."""
        return self._streams.stream(self.own)

    def hand_over(self, results: Iterable[Tensor]) -> None:
        """Let the current stream, not the host, wait for what is queued here until now.

        The memory of the results, which was allocated here, is kept until that stream has used it.
        """
        current = self._streams.current_stream(self.device)
        current.wait_stream(self.own)
        for tensor in results:
            tensor.record_stream(current)
