"""Read the same shards with five libraries, a few lines each.

    python examples/read_shards.py DATASET [webdataset|wids|datasets|dali|torch]...

You see one line per library: the number of training samples, and key, label and size of the first
one. None of them imports alexprep: the shards are plain WebDataset tars with a DALI index for each
in another folder. A library that is not installed is skipped. timm needs no code:

    python train.py --dataset wds/ --data-dir DATASET --train-split train --val-split validation
"""
# ruff: noqa: PLC0415, T201 - it prints, and imports each library where it is shown

import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class FirstSample(NamedTuple):
    """The number of samples of the training split, and its first sample."""

    samples: int
    key: str
    label: int
    size: tuple[int, int]


def with_webdataset(root: Path) -> FirstSample:
    """One sample after the other, in the order of the tars."""
    import webdataset

    tars = sorted(str(path) for path in (root / "train").glob("*.tar"))
    dataset = webdataset.WebDataset(tars, shardshuffle=False).decode("pil")
    samples = [(sample["__key__"], sample["cls"], sample["jpg"].size) for sample in dataset]
    return FirstSample(len(samples), *samples[0])


def with_wids(root: Path) -> FirstSample:
    """Any sample by its number: wids is the indexed webdataset. It returns open files."""
    import wids
    from PIL import Image

    shards = str(root / "wids-train.json")
    with tempfile.TemporaryDirectory() as cache:
        samples = wids.ShardListDataset(shards, cache_dir=cache, transformations=[])
        first = samples[0]
        label, image = int(first[".cls"].read()), Image.open(first[".jpg"])
        return FirstSample(len(samples), first["__key__"], label, image.size)


def with_datasets(root: Path) -> FirstSample:
    """Hugging Face datasets, streaming: nothing is copied into its cache."""
    from datasets import load_dataset

    dataset = load_dataset("webdataset", data_dir=str(root), split="train", streaming=True)
    samples = [(sample["__key__"], sample["cls"], sample["jpg"].size) for sample in dataset]
    return FirstSample(len(samples), *samples[0])


def with_dali(root: Path) -> FirstSample:
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
    return FirstSample(pipe.epoch_size("shards"), key, int(bytes(digits.at(0))), (width, height))


def with_torch(root: Path) -> FirstSample:
    """A map-style dataset of PyTorch in ten lines: the index has the offset of each file."""
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

        def __getitem__(self, number: int) -> tuple[str, int, Image.Image]:
            tar, words = self.rows[number]
            with tar.open("rb") as file:
                jpg, cls = (_read(file, int(words[i]), int(words[i + 1])) for i in (1, 5))
            return words[3].removesuffix(".jpg"), int(cls), Image.open(io.BytesIO(jpg))

    samples = Shards(root, "train")
    key, label, image = next(iter(DataLoader(samples, batch_size=None)))
    return FirstSample(len(samples), key, label, image.size)


def _read(file: io.BufferedReader, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


READERS: dict[str, Callable[[Path], FirstSample]] = {
    "webdataset": with_webdataset,
    "wids": with_wids,
    "datasets": with_datasets,
    "dali": with_dali,
    "torch": with_torch,
}


def main() -> None:
    """Run the readers named on the command line, or all."""
    root, *names = sys.argv[1:] or sys.exit(__doc__)
    if not (Path(root) / "manifest.json").is_file():
        sys.exit(f"{root} is not a data set. Create one with `alexprep shard SOURCE {root}`.")
    for name in names or READERS:
        if name not in READERS:
            sys.exit(f"{name} is none of {', '.join(READERS)}.")
        try:
            samples, key, label, (width, height) = READERS[name](Path(root))
        except ModuleNotFoundError as error:
            print(f"{name}: skipped, {error.name} is not installed (pip install {error.name})")
            continue
        print(f"{name}: {samples} samples; the first is {key}, label {label}, {width}x{height}")


if __name__ == "__main__":
    main()
