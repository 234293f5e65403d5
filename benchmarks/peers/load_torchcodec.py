# pyright: basic, reportMissingImports=false
"""torch's DataLoader with two processes and torchcodec's decoder, a folder of JPEG files."""

from pathlib import Path

import torch
from batches import BATCH, THREADS, cropped, data, serve
from photographs import files, labels
from torch.utils.data import DataLoader, Dataset
from torchcodec.decoders import decode_jpeg


class Photographs(Dataset):
    """Class folders, as torchvision's ImageFolder takes them."""

    def __init__(self, root: Path) -> None:
        self.paths, self.labels = files(root), labels(root)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple:
        path = self.paths[index]
        pixels = decode_jpeg(torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8))
        return cropped(pixels), self.labels[path.parent.name]


if __name__ == "__main__":
    loader = DataLoader(
        Photographs(data()),
        batch_size=BATCH,
        shuffle=True,
        num_workers=THREADS,
        persistent_workers=True,
        drop_last=True,
    )
    serve(lambda: loader)
