# pyright: basic, reportMissingImports=false
"""FFCV's loader with threads of compiled code, in either memory format.

Its only random crop is the resized one: at this scale and ratio it takes 227 x 227 pixels as they
are.
"""

import sys

import numpy as np
from batches import BATCH, CROP, MEAN, SIZE, THREADS, data, serve
from ffcv.fields.decoders import IntDecoder
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import (
    NormalizeImage,
    RandomHorizontalFlip,
    Squeeze,
    ToTensor,
    ToTorchImage,
)

if __name__ == "__main__":
    share = (CROP / SIZE) ** 2
    crop = RandomResizedCropRGBImageDecoder((CROP, CROP), (share, share), (1, 1))
    less = NormalizeImage(np.array(MEAN), np.ones(3), np.float32)
    layout = ToTorchImage(channels_last=sys.argv[2] == "channels_last")
    pipelines = {
        "image": [crop, RandomHorizontalFlip(), less, ToTensor(), layout],
        "label": [IntDecoder(), ToTensor(), Squeeze()],
    }
    loader = Loader(
        str(data() / "train.beton"),
        batch_size=BATCH,
        num_workers=THREADS,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines=pipelines,
    )
    serve(lambda: loader)
