"""Read the same shards with five libraries, a few lines each.

    python examples/read_shards.py DATASET [webdataset|wids|datasets|dali|torch]...

You see a line a library: how many samples the training split has, and key, label and size of the
first one; all five say the same. None of them imports alexprep: the shards are plain WebDataset
tars with a DALI index for each in another folder. Wanted are the libraries you name (pip install
webdataset wids datasets nvidia-dali-cuda130 torch). timm needs no code:

    python train.py --dataset wds/ --data-dir DATASET --train-split train --val-split validation
"""
# ruff: noqa: PLC0415, T201 - it prints, and imports each library where it is shown

import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Found(NamedTuple):
    """How many samples there are, and what the first one is."""

    samples: int
    key: str
    label: int
    size: tuple[int, int]


def with_webdataset(root: Path) -> Found:
    """One sample after the other, as they stand in the tars."""
    import webdataset

    tars = sorted(str(path) for path in (root / "train").glob("*.tar"))
    samples = webdataset.WebDataset(tars, shardshuffle=False).decode("pil")
    found = [(sample["__key__"], sample["cls"], sample["jpg"].size) for sample in samples]
    return Found(len(found), *found[0])


def with_wids(root: Path) -> Found:
    """Any sample by its number: wids is the indexed webdataset. It gives open files."""
    import wids
    from PIL import Image

    about = str(root / "wids-train.json")
    with tempfile.TemporaryDirectory() as cache:
        samples = wids.ShardListDataset(about, cache_dir=cache, transformations=[])
        first = samples[0]
        label, image = int(first[".cls"].read()), Image.open(first[".jpg"])
        return Found(len(samples), first["__key__"], label, image.size)


def with_datasets(root: Path) -> Found:
    """Hugging Face datasets, streaming: nothing is copied into its cache."""
    from datasets import load_dataset

    samples = load_dataset("webdataset", data_dir=str(root), split="train", streaming=True)
    found = [(sample["__key__"], sample["cls"], sample["jpg"].size) for sample in samples]
    return Found(len(found), *found[0])


def with_dali(root: Path) -> Found:
    """DALI's own reader and our index files; device_id=0 and "mixed" decode on a GPU."""
    from nvidia.dali import fn, pipeline_def

    tars = sorted(str(path) for path in (root / "train").glob("*.tar"))
    indexes = sorted(str(path) for path in (root / "index").glob("*-train-*.idx"))

    @pipeline_def(batch_size=32, num_threads=2, device_id=None)
    def pipeline():  # noqa: ANN202 - nodes of a graph
        jpg, digits = fn.readers.webdataset(
            paths=tars, index_paths=indexes, ext=["jpg", "cls"], name="shards"
        )
        return fn.decoders.image(jpg), digits

    pipe = pipeline()
    images, digits = pipe.run()
    height, width, _ = images.at(0).shape
    first = Path(indexes[0]).read_text().splitlines()[1].split(" ")[3]
    key = first.removesuffix(".jpg")
    return Found(pipe.epoch_size("shards"), key, int(bytes(digits.at(0))), (width, height))


def with_torch(root: Path) -> Found:
    """A map-style dataset of PyTorch in ten lines: the index says where each file lies."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    class Shards(Dataset[tuple[str, int, Image.Image]]):
        def __init__(self, root: Path, split: str) -> None:
            self.rows: list[tuple[Path, list[str]]] = []
            for tar in sorted((root / split).glob("*.tar")):
                _, *lines = (root / "index" / f"{tar.stem}.idx").read_text().splitlines()
                self.rows += [(tar, line.split(" ")) for line in lines]

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, place: int) -> tuple[str, int, Image.Image]:
            tar, words = self.rows[place]
            with tar.open("rb") as file:
                jpg, cls = (_read(file, int(words[at]), int(words[at + 1])) for at in (1, 5))
            return words[3].removesuffix(".jpg"), int(cls), Image.open(io.BytesIO(jpg))

    samples = Shards(root, "train")
    key, label, image = next(iter(DataLoader(samples, batch_size=None)))
    return Found(len(samples), key, label, image.size)


def _read(file: io.BufferedReader, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


READERS: dict[str, Callable[[Path], Found]] = {
    "webdataset": with_webdataset,
    "wids": with_wids,
    "datasets": with_datasets,
    "dali": with_dali,
    "torch": with_torch,
}


def main() -> None:
    """Run the readers named on the command line, or all."""
    root, *names = sys.argv[1:] or sys.exit(__doc__)
    for name in names or READERS:
        samples, key, label, (width, height) = READERS[name](Path(root))
        print(f"{name}: {samples} samples; the first is {key}, label {label}, {width}x{height}")


if __name__ == "__main__":
    main()
