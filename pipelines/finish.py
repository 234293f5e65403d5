"""The last step of every backend, on any device: mean images, ten views, dtype.

Images come in as `(x - mean + shift) / (divide * sd)` per channel; what is left is what a kernel
with one mean a channel cannot do.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.augment import AugmentSpec, Colours, Draws, ten_views

VIEWS = 10


def tensor(values: NDArray[np.float64]) -> Tensor:
    """The same values in float32, in memory of their own."""
    return torch.as_tensor(values.astype(np.float32))


class Finish:
    """Subtracts mean images in place and converts; holds the mean on the device of the images.

    Args:
        spec: what is subtracted, and from which crop.
        colours: the numbers of `spec`.
        dtype: of the images given out.
        channels_last: memory format of the images given out.
    """

    def __init__(
        self, spec: AugmentSpec, colours: Colours, dtype: torch.dtype, *, channels_last: bool
    ) -> None:
        self.spec = spec
        self.dtype = dtype
        self.channels_last = channels_last
        sd = tensor(colours.sd)[:, None, None]
        self.image_CHW = None
        if colours.image_HWC is not None:
            image = tensor(colours.image_HWC).permute(2, 0, 1)
            memory = torch.channels_last if channels_last else torch.contiguous_format
            self.image_CHW = (image / sd)[None].contiguous(memory_format=memory)[0]

    def crops(self, images_NCHW: Tensor, draws: Draws) -> Tensor:
        """Subtract the mean image from crops.

        On a CPU float32 comes back in the memory it came in; on a GPU all of it in torch's own.
        """
        mean, size = self._on(images_NCHW.device), self.spec.crop
        here = images_NCHW.device.type == "cpu"
        out = images_NCHW if here else torch.empty_like(images_NCHW, dtype=self.dtype)
        if mean is None:
            return out.to(self.dtype) if here else out.copy_(images_NCHW)
        if self.spec.mean == "image":
            subtract(images_NCHW, self._centre(mean) / draws.divide, out)
            return out.to(self.dtype)
        mean = mean / draws.divide
        for image, y, x, mirrored, made in zip(
            images_NCHW, draws.y, draws.x, draws.mirror, out, strict=True
        ):
            there = mean[:, y : y + size, x : x + size]
            subtract(image, there.flip(2) if mirrored else there, made)
        return out.to(self.dtype)

    def views(self, images_NCHW: Tensor) -> Tensor:
        """The ten crops of whole images, (N, 10, C, crop, crop)."""
        size, mean = self.spec.crop, self._on(images_NCHW.device)
        if mean is not None and self.spec.mean == "image_at_crop":
            subtract(images_NCHW, mean, images_NCHW)
            mean = None
        out = torch.empty(
            (len(images_NCHW), VIEWS, images_NCHW.shape[1], size, size),
            dtype=images_NCHW.dtype,
            device=images_NCHW.device,
        )
        for number, (y, x, mirrored) in enumerate(ten_views(self.spec)):
            crop = images_NCHW[:, :, y : y + size, x : x + size]
            crop = crop.flip(3) if mirrored else crop
            if mean is None:
                out[:, number] = crop
            else:
                subtract(crop, self._centre(mean), out[:, number])
        return out.to(self.dtype)

    def _centre(self, mean: Tensor) -> Tensor:
        at = (self.spec.source - self.spec.crop) // 2
        return mean[:, at : at + self.spec.crop, at : at + self.spec.crop]

    def _on(self, device: torch.device) -> Tensor | None:
        if self.image_CHW is not None and self.image_CHW.device != device:
            self.image_CHW = self.image_CHW.to(device)
        return self.image_CHW


def subtract(images: Tensor, mean: Tensor, out: Tensor) -> None:
    """`images` - `mean` into `out`, on any device.

    On the CPU by NumPy in this one thread: torch would wake threads of its own, which wait for each
    other in a spin while the decoder's threads have the cores.
    """
    if images.device.type == "cpu":
        np.subtract(images.numpy(), mean.numpy(), out=out.numpy())
    else:
        torch.sub(images, mean, out=out)
