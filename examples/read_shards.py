"""Read the same shards with webdataset, Hugging Face datasets and DALI, a few lines each.

    python examples/read_shards.py DATASET [webdataset|datasets|dali]...

Every reader prints how many samples the training split has and what the first one is. None of them
imports alexprep: the shards are plain WebDataset tars with DALI index files beside them.
"""
# ruff: noqa: PLC0415, T201 - it prints, and imports each library where it is shown

import sys
from collections.abc import Callable
from pathlib import Path


def with_webdataset(root: Path) -> tuple[int, str, int, tuple[int, int]]:
    """Samples, and key, label and size of the first."""
    import webdataset

    tars = sorted(str(path) for path in (root / "train").glob("*.tar"))
    samples = webdataset.WebDataset(tars, shardshuffle=False).decode("pil")
    found = [(sample["__key__"], sample["cls"], sample["jpg"].size) for sample in samples]
    return len(found), *found[0]


def with_datasets(root: Path) -> tuple[int, str, int, tuple[int, int]]:
    """The same through Hugging Face datasets, streaming: nothing is copied into its cache."""
    from datasets import load_dataset

    samples = load_dataset("webdataset", data_dir=str(root), split="train", streaming=True)
    found = [(sample["__key__"], sample["cls"], sample["jpg"].size) for sample in samples]
    return len(found), *found[0]


def with_dali(root: Path) -> tuple[int, str, int, tuple[int, int]]:
    """The same through DALI's own reader and our index files, on the CPU."""
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
    label = int(bytes(digits.at(0)))
    height, width, _ = images.at(0).shape
    first = Path(indexes[0]).read_text().splitlines()[1].split(" ")[3]
    return pipe.epoch_size("shards"), first.removesuffix(".jpg"), label, (width, height)


READERS: dict[str, Callable[[Path], tuple[int, str, int, tuple[int, int]]]] = {
    "webdataset": with_webdataset,
    "datasets": with_datasets,
    "dali": with_dali,
}


def main() -> None:
    """Run the readers named on the command line, or all."""
    root, *names = sys.argv[1:] or sys.exit(__doc__)
    for name in names or READERS:
        samples, key, label, (width, height) = READERS[name](Path(root))
        print(f"{name}: {samples} samples; the first is {key}, label {label}, {width}x{height}")


if __name__ == "__main__":
    main()
