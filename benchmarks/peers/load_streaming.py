# pyright: basic, reportMissingImports=false
"""MosaicML streaming's StreamingDataset in torch's DataLoader with two processes, local disk."""

import torchvision_ops  # noqa: F401 - before streaming
from batches import BATCH, THREADS, augmented, data, serve
from streaming import StreamingDataset
from torch.utils.data import DataLoader


class Photographs(StreamingDataset):
    """Decoded and cropped samples."""

    def __getitem__(self, index: int) -> tuple:
        sample = super().__getitem__(index)
        return augmented(sample["image"]), sample["label"]


if __name__ == "__main__":
    loader = DataLoader(
        Photographs(local=str(data()), shuffle=True, batch_size=BATCH),
        batch_size=BATCH,
        num_workers=THREADS,
        persistent_workers=True,
        drop_last=True,
    )
    serve(lambda: loader)
