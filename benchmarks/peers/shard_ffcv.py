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

    def __getitem__(self, place: int) -> tuple:
        path = self.paths[place]
        return square(path.read_bytes()), self.labels[path.parent.name]


if __name__ == "__main__":
    asked = arguments(__doc__ or "")
    asked.out.mkdir()
    image = RGBImageField(write_mode="jpg", jpeg_quality=QUALITY)
    writer = DatasetWriter(
        str(asked.out / "train.beton"),
        {"image": image, "label": IntField()},
        num_workers=asked.workers,
    )
    writer.from_indexed_dataset(Photographs(asked.source), chunksize=25)
