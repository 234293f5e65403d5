# pyright: basic, reportMissingImports=false
"""TurboLoader's DataLoader on a tar of JPEGs ("tar"), or on a file of decoded pixels ("tbl").

It has no crop of a fixed size: from the tar every image is resized whole, from the file a region of
random size is. Its normalization of decoded pixels is ImageNet's. Threads are as many as cores.
"""

import sys
from collections.abc import Iterator
from itertools import count

from batches import BATCH, CROP, MEAN, data, serve
from turboloader import DataLoader, ImageNetNormalize, Normalize

if __name__ == "__main__":
    stored = sys.argv[2] == "tbl"
    less = Normalize([value / 255 for value in MEAN], [1 / 255] * 3)
    loader = DataLoader(
        str(data() / f"train.{sys.argv[2]}"),
        batch_size=BATCH,
        image_size=CROP,
        output_format="pytorch",
        shuffle=True,
        drop_last=True,
        train_aug=stored,
        transform=ImageNetNormalize() if stored else less,
    )
    numbers = count()

    def epoch() -> Iterator:
        """Images, and the numbers that labels would be looked up by."""
        loader.set_epoch(next(numbers))
        return ((images, details["indices"]) for images, details in loader)

    serve(epoch)
