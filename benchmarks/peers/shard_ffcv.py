# pyright: basic, reportMissingImports=false
"""FFCV's DatasetWriter: its processes call the data set, encode with OpenCV and write one file."""

from pathlib import Path

from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter
from photographs import QUALITY, arguments, files, labels, square


class Photographs:
    """Squares with labels, as DatasetWriter wants them; FFCV's own resize keeps the whole image."""

    def __init__(self, source: Path) -> None:
        self.paths, self.labels = files(source), labels(source)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple:
        path = self.paths[index]
        return square(path.read_bytes()), self.labels[path.parent.name]


if __name__ == "__main__":
    options = arguments(__doc__ or "")
    options.out.mkdir()
    image = RGBImageField(write_mode="jpg", jpeg_quality=QUALITY)
    writer = DatasetWriter(
        str(options.out / "train.beton"),
        {"image": image, "label": IntField()},
        num_workers=options.workers,
    )
    writer.from_indexed_dataset(Photographs(options.source), chunksize=25)
