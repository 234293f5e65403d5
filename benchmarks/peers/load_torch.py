# pyright: basic
"""torch's DataLoader with two processes, Pillow, and a folder of JPEG files of 256 pixels."""

from pathlib import Path

from batches import BATCH, THREADS, augmented, data, serve
from photographs import files, labels
from torch.utils.data import DataLoader, Dataset


class Photographs(Dataset):
    """Class folders, as torchvision's ImageFolder takes them."""

    def __init__(self, root: Path) -> None:
        self.paths, self.labels = files(root), labels(root)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple:
        path = self.paths[index]
        return augmented(path.read_bytes()), self.labels[path.parent.name]


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
