"""What `make fuzz` feeds: of each kind of file a whole one, and the reader that gets changed ones.

A reader gets the path of a changed file, in a small data set or run that is whole otherwise. It may
return, or refuse with an error of ours; anything else is a defect.
"""

import contextlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from alexnet.training import checkpoint
from alexprep.dataset import codec
from alexprep.dataset.decode import store_planes
from alexprep.dataset.lookup import read_sample
from alexprep.dataset.shard_writer import ShardRecord
from alexprep.model.evaluation import EvalOptions, evaluate, read_labels
from alexprep.model.predictions import Predictions
from alexprep.model.run_folder import read_config
from alexprep.model.trained import load_trained
from alexprep.report.run_summary import read_log
from alexprep.sources.find import find_source
from alexprep.sources.synsets import read_classes
from alexprep.sources.tables import read_csv
from alexprep.tar import TarStream, scan_tar
from pipelines import jpeg
from pipelines.format import Manifest
from pipelines.imagestats import ImageStats
from pipelines.planesfile import PlanesFile
from pipelines.shards import SplitReader
from tests.reports import make_dataset, make_run

Read = Callable[[Path], object]
SPLIT = "validation"


class Target(NamedTuple):
    """A file, whose whole contents are the seed, and its reader.

    `message_names_file` is off for readers of bytes, whose callers add the path.
    """

    path: Path
    read: Read
    message_names_file: bool = True


def make_targets(folder: Path) -> dict[str, Target]:
    """All targets by name, on a data set and a run that are made in `folder`."""
    root, run = make_dataset(folder / "set"), folder / "run"
    make_run(root, run)
    store_planes(root, workers=1)
    manifest = Manifest.load(root)
    shard = manifest.splits[SPLIT].shards[0]
    key = next(iter(SplitReader(root, manifest, SPLIT).keys()))
    read_sample(root, key)
    evaluate([run], root, EvalOptions(), save=run / "a.predictions")

    def read_split(_: Path) -> None:
        manifest = Manifest.load(root)
        reader = SplitReader(root, manifest, SPLIT, check="sha256")
        for index in range(manifest.split(SPLIT, root).samples):
            reader.read(index)

    def read_planes(_: Path) -> None:
        file = PlanesFile(root, shard, manifest.size)
        file.check_body()
        file.labels()

    def read_stats(_: Path) -> None:
        ImageStats.load(root, manifest)

    newest = checkpoint.steps(run)[-1]
    targets = {
        "manifest": Target(root / "manifest.json", read_split, message_names_file=False),
        "index": Target(root / shard.index, read_split, message_names_file=False),
        "shard": Target(root / shard.name, read_split, message_names_file=False),
        "stats.json": Target(root / "stats.json", read_stats, message_names_file=False),
        "stats.npz": Target(root / "stats.npz", read_stats, message_names_file=False),
        "planes": Target(next((root / "planes").rglob(f"{Path(shard.name).stem}*")), read_planes),
        "lookup": Target(
            next((root / "index").glob("by-hash-*.npy")),
            lambda _: read_sample(root, key),
            message_names_file=False,
        ),
        "checkpoint": Target(newest, load_trained),
        "predictions": Target(run / "a.predictions", Predictions.load),
        "metrics": Target(run / "metrics.jsonl", lambda path: read_log(path.parent)),
        "config": Target(run / "config.json", lambda path: read_config(path.parent)),
    }
    targets |= _loose_files(folder, manifest, key)
    return targets


def _loose_files(folder: Path, manifest: Manifest, key: str) -> dict[str, Target]:
    def file(name: str, data: bytes) -> Path:
        path = folder / name / name
        path.parent.mkdir()
        path.write_bytes(data)
        return path

    classes = manifest.classes
    wnids = "".join(f"{wnid} {name}\n" for wnid, name in classes).encode()
    labels = json.dumps({key: [0, classes[1][0]], "other": 2}).encode()
    record = ShardRecord(
        shard=manifest.splits[SPLIT].shards[0],
        largest_jpg=100,
        source_bytes=2000,
        mended={"png": ["a"]},
        faults=[],
    )
    targets = {
        "classes": Target(file("classes.txt", wnids), read_classes),
        "labels": Target(
            file("labels.json", labels), lambda path: read_labels(path, (key,), classes)
        ),
        "record": Target(
            file("record.json", record.to_bytes()),
            lambda path: ShardRecord.from_bytes(path.read_bytes()),
        ),
        "csv": Target(
            file("a.csv", b"ImageId,PredictionString\na,n01440764 1 2 3 4\nb,n01443537 5 6 7 8\n"),
            lambda path: list(read_csv(path, ("ImageId", "PredictionString"))),
        ),
        "tar, by headers": Target(file("scan.tar", _tar()), _scan),
        "tar, as a stream": Target(file("stream.tar", _tar()), _stream),
        "parquet": Target(
            file("train-00000-of-00001.parquet", _parquet()),
            lambda path: find_source(path.parent),
        ),
    }
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF"):
        path = file(f"image.{kind.lower()}", _picture(kind))
        targets[f"image, {kind}"] = Target(path, _encode, message_names_file=False)
    path = file("stored.jpg", _picture("JPEG"))
    targets["JPEG in a shard"] = Target(path, _decode, message_names_file=False)
    return targets


def _picture(kind: str) -> bytes:
    data = io.BytesIO()
    pixels = np.random.default_rng(3).integers(0, 255, (48, 48, 3), np.uint8)
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


def _encode(path: Path) -> None:
    codec.encode(path.read_bytes(), size=32, quality=95)


def _decode(path: Path) -> None:
    data = np.frombuffer(path.read_bytes(), np.uint8)
    # Callers turn it into a DataError with the shard and the sample.
    with contextlib.suppress(ValueError):
        jpeg.decode(data)


def _tar() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.JPEG", "b" * 150 + "/c.JPEG", "größe.JPEG"):
            info = tarfile.TarInfo(name)
            info.size = 700
            tar.addfile(info, io.BytesIO(bytes(700)))
    return data.getvalue()


def _scan(path: Path) -> None:
    with path.open("rb") as file:
        scan_tar(path, file.fileno())


def _stream(path: Path) -> None:
    with TarStream(path) as tar:
        for _ in tar:
            pass


def _parquet() -> bytes:
    import pyarrow as pa  # noqa: PLC0415 - an extra
    from pyarrow import parquet  # noqa: PLC0415

    images = [{"bytes": _picture("JPEG"), "path": f"{n}.jpg"} for n in range(3)]
    data = io.BytesIO()
    parquet.write_table(pa.table({"image": images, "label": [0, 1, 0]}), data)
    return data.getvalue()
