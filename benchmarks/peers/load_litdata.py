# pyright: basic, reportMissingImports=false
"""LitData's StreamingDataset and StreamingDataLoader with two processes, from the local disk."""

from batches import BATCH, THREADS, augmented, data, serve
from litdata import StreamingDataLoader, StreamingDataset


class Photographs(StreamingDataset):
    """Decoded and cropped samples."""

    def __getitem__(self, index: int) -> tuple:
        sample = super().__getitem__(index)
        return augmented(sample["image"]), sample["label"]


if __name__ == "__main__":
    loader = StreamingDataLoader(
        Photographs(str(data()), shuffle=True, drop_last=True),
        batch_size=BATCH,
        num_workers=THREADS,
        persistent_workers=True,
        drop_last=True,
    )
    serve(lambda: loader)
