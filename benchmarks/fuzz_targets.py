"""What `make fuzz` feeds: of each kind of file a whole one, and the reader that gets changed ones.

A reader gets the path of a changed file, in a small data set or run that is whole otherwise. It may
return, or refuse with an error of ours; anything else is a defect. What reads many samples or tars
reads few of them here, so that a second has a thousand inputs.
"""

import contextlib
import gzip
import io
import itertools
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from alexnet.training import checkpoint
from alexnet.training.pretrained import first_weights
from alexnet.training.run import TrainState
from alexprep.dataset import codec
from alexprep.dataset.card import Card
from alexprep.dataset.checksums import SUMS, checksum_faults
from alexprep.dataset.croissant import CROISSANT, croissant_faults
from alexprep.dataset.decode import store_planes
from alexprep.dataset.lookup import read_sample
from alexprep.dataset.manifest import begin
from alexprep.dataset.moments import Moments
from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.dataset.shard_writer import ShardRecord
from alexprep.dataset.splits import plan_source
from alexprep.dataset.stats import PartialSums, compute_stats
from alexprep.dataset.store import LocalStore
from alexprep.dataset.verify import CheckTask, check_shard
from alexprep.demo import Demo, DemoConfig
from alexprep.model.evaluation import EvalOptions, evaluate, read_labels
from alexprep.model.predictions import Predictions
from alexprep.model.run_folder import read_config
from alexprep.model.run_log import read_log
from alexprep.model.trained import load_trained
from alexprep.model.training import TrainOptions, train
from alexprep.report.dataset_summary import survey
from alexprep.report.run_summary import read_run
from alexprep.sources import wds
from alexprep.sources.find import find_source
from alexprep.sources.ilsvrc import find_truth
from alexprep.sources.synsets import named, read_classes
from alexprep.tar import TarStream, scan_tar
from pipelines import jpeg
from pipelines.augment import AugmentSpec
from pipelines.format import Manifest
from pipelines.imagestats import ImageStats
from pipelines.order import BatchSchedule
from pipelines.planesfile import PlanesFile
from pipelines.planestore import PlanesReader
from pipelines.remote import RemoteReader
from pipelines.shards import SplitReader
from tests.drawing import draw_classes, photograph

Read = Callable[[Path], object]
SIZE, SPLIT = 64, "validation"
SIDE = 48  # of single pictures
NETWORK = [
    {"name": "conv1", "out": 2, "kernel": 11, "stride": 8, "then": ["act", "lrn"]},
    {"name": "fc8", "out": 3, "then": []},
]


class Target(NamedTuple):
    """A file, whose whole contents are the seed, and its reader.

    `message_names_file` is off for readers of bytes, whose callers add the path, and for files that
    are read with others, one of which may be named.
    """

    path: Path
    read: Read
    message_names_file: bool = True


def make_dataset(folder: Path) -> Path:
    """A data set of ten images with all that can lie in one: statistics, planes, keys, a card."""
    source = draw_classes(folder / "source", np.random.default_rng(8), each=2)
    shutil.rmtree(source / "val" / "cat")
    root = folder / "set"
    shard(source, root, dataset_config(), RunOptions(workers=1))
    compute_stats(root, workers=1)
    store_planes(root, workers=1)
    read_sample(root, "ant_val_0")
    return root


def dataset_config() -> ShardConfig:
    """Two shards for training, and one for validation."""
    return ShardConfig(size=SIZE, shards={"train": 2, SPLIT: 1})


def run_options() -> TrainOptions:
    """A network of 2,000 weights, two epochs of three steps."""
    layers = f"model.layers={json.dumps(NETWORK)}"
    settings = (layers, "loader.batch=2", "train.log_steps=1", "train.lr=1e-6")
    return TrainOptions(smoke=True, epochs=2, devices=("cpu",), settings=settings)


def make_run(root: Path, run: Path) -> Path:
    """A finished run on the data set, with predictions."""
    train(root, run, run_options())
    evaluate([run], root, EvalOptions(device="cpu"), save=run / "a.predictions")
    return run


def make_targets(folder: Path) -> dict[str, Target]:
    """All targets by name, on a data set and a run that are made in `folder`."""
    root = make_dataset(folder)
    run = make_run(root, folder / "run")
    groups = (_dataset(root), _run(run), _states(folder, root), _sources(folder), _images(folder))
    return dict(itertools.chain.from_iterable(group.items() for group in groups))


class _DataSet:
    """Readers of the files of a data set, one of which has changed."""

    def __init__(self, root: Path) -> None:
        self.root, self.manifest = root, Manifest.load(root)
        self.shard = self.manifest.splits[SPLIT].shards[0]
        self.tar = (root / self.shard.name).read_bytes()
        self.task = CheckTask(
            root=root,
            shard=self.shard,
            size=SIZE,
            wnids=tuple(wnid for wnid, _ in self.manifest.classes),
            cls_width=self.manifest.cls_width,
        )

    def read_split(self, _: Path) -> None:
        manifest = Manifest.load(self.root)
        reader = SplitReader(self.root, manifest, SPLIT, check="sha256")
        for index in range(manifest.split(SPLIT, self.root).samples):
            reader.read(index)

    def stream_split(self, _: Path) -> None:
        spec = AugmentSpec(source=SIZE, crop=SIZE - 8)
        with closing(
            RemoteReader(str(self.root), self.manifest, SPLIT, streams=1, timeout=9)
        ) as reader:
            places = {"seed": 0, "rank": 0, "world": 1, "window": 1}
            schedule = BatchSchedule(
                lengths=reader.lengths, spec=spec, train=False, batch=4, order="shards", **places
            )
            for plan in itertools.islice(reader.batches(schedule, 0, 0), schedule.steps):
                for index in plan.indices:
                    reader.read(int(index))

    def verify_shard(self, path: Path) -> None:
        if not check_shard(self.task).faults and path.read_bytes() != self.tar:
            raise AssertionError("verify finds no fault in a changed shard")

    def read_planes(self, _: Path) -> None:
        reader = PlanesReader(self.root, self.manifest, SPLIT, check="sha256")
        for index in range(reader.split.samples):
            reader.read(index)

    def check_planes(self, _: Path) -> None:
        file = PlanesFile(self.root, self.shard, SIZE)
        file.check_body()
        file.labels()

    def read_keys(self, _: Path) -> None:
        read_sample(self.root, "ant_val_0")
        read_sample(self.root, "bee_val_1.JPEG")

    def read_stats(self, _: Path) -> None:
        ImageStats.load(self.root, self.manifest)

    def read_card(self, _: Path) -> None:
        card = Card.load(self.root)
        card.edited, card.publication  # noqa: B018 - properties that parse

    def check_sums(self, _: Path) -> None:
        checksum_faults(self.root, self.manifest)

    def check_croissant(self, path: Path) -> None:
        croissant_faults(path, self.manifest)

    def survey(self, _: Path) -> None:
        survey(self.root, self.manifest, SPLIT)


def _dataset(root: Path) -> dict[str, Target]:
    data = _DataSet(root)
    shard, index = root / data.shard.name, root / data.shard.index
    planes = root / "planes" / f"{shard.stem}.planes"
    keys = next((root / "index").glob("by-hash-*.npy"))
    named = {
        "shard, verify": Target(shard, data.verify_shard),
        "planes": Target(planes, data.check_planes),
        "planes, loader": Target(planes, data.read_planes),
        "README.md": Target(root / "README.md", data.read_card),
        "croissant.json": Target(root / CROISSANT, data.check_croissant),
        "SHA256SUMS": Target(root / SUMS, data.check_sums),
    }
    readers: dict[str, tuple[Path, Read]] = {
        "manifest": (root / "manifest.json", data.read_split),
        "index": (index, data.read_split),
        "index, report": (index, data.survey),
        "shard": (shard, data.read_split),
        "shard, streamed": (shard, data.stream_split),
        "shard, report": (shard, data.survey),
        "stats.json": (root / "stats.json", data.read_stats),
        "stats.npz": (root / "stats.npz", data.read_stats),
        "keys": (keys, data.read_keys),
    }
    return named | {
        name: Target(path, read, message_names_file=False) for name, (path, read) in readers.items()
    }


def _run(run: Path) -> dict[str, Target]:
    newest = checkpoint.steps(run)[-1]

    def read_state(path: Path) -> None:
        saved = checkpoint.load(path, ("model", "velocity", "chance"))
        with checkpoint.damage_named(path):
            TrainState.from_dict(saved.meta["progress"])

    def report(path: Path) -> None:
        read_run(path.parent, "cpu")

    return {
        "checkpoint, predict": Target(newest, load_trained),
        "checkpoint, resume": Target(newest, read_state),
        "predictions": Target(run / "a.predictions", Predictions.load),
        "metrics": Target(run / "metrics.jsonl", lambda path: read_log(path.parent)),
        "config": Target(run / "config.json", lambda path: read_config(path.parent)),
        "config, report": Target(run / "config.json", report, message_names_file=False),
    }


def _states(folder: Path, root: Path) -> dict[str, Target]:
    """What an interrupted run leaves, and what a resumed one reads."""
    manifest = Manifest.load(root)
    plan = plan_source(folder / "source", dataset_config(), workers=1)
    store = LocalStore(folder / "begun")
    store.root.mkdir()
    begin(store, plan)
    (store.root / "train").mkdir()  # else a damaged plan would be written anew
    nothing = Moments.none(SIZE, SIZE)
    sums = PartialSums(folder / "a.sums", nothing)
    sums.add(manifest.splits[SPLIT].shards[0], nothing)
    record = ShardRecord(
        shard=manifest.splits[SPLIT].shards[0],
        largest_jpg=100,
        source_bytes=2000,
        mended={"png": ["a"]},
        faults=[],
    )
    demo = Demo(folder / "demo", DemoConfig())
    demo.stage("draw", lambda: (1, "drawn"))

    def read_record(path: Path) -> None:
        data = path.read_bytes()
        if b"\n" in data and ShardRecord.from_bytes(data) not in (None, record):
            raise AssertionError("a changed record is believed in spite of its checksum")

    return {
        "plan.json": Target(
            folder / "begun" / ".alexprep" / "plan.json",
            lambda _: begin(store, plan),
            message_names_file=False,
        ),
        "record": Target(_file(folder, "record.json", record.to_bytes()), read_record),
        "sums": Target(
            sums.path,
            lambda path: PartialSums(path, nothing).restore({}),
        ),
        "demo.json": Target(
            folder / "demo" / "demo.json",
            lambda path: Demo(path.parent, DemoConfig()),
            message_names_file=False,
        ),
    }


def _sources(folder: Path) -> dict[str, Target]:
    """What people bring: lists, tables, tars and weights."""
    wnids = b"n01440764 tench, Tinca tinca\nn01443537\tgoldfish\nn01484850 great white shark\n"
    solution = b"ImageId,PredictionString\na,n01440764 1 2 3 4\nb,n01443537 5 6 7 8\n"
    annotations = b"a.JPEG\tn01440764\t0\t0\t9\t9\nb.JPEG\tn01443537\t0\t0\t9\t9\n"
    truth = b"490\n361\n"
    names = [b"a.JPEG", b"b.JPEG"]
    classes = (("n01440764", "tench"), ("n01443537", "goldfish"))
    labels = json.dumps({"a": [0, classes[1][0]], "b": 1}).encode()
    weights, pickled = io.BytesIO(), io.BytesIO()
    torch.save({"conv1.weight": torch.ones(2, 3)}, weights)
    torch.save({"conv1.weight": torch.ones(2, 3)}, pickled, _use_new_zipfile_serialization=False)

    def truths(path: Path) -> None:
        find_truth([path.parent], names)

    def read_table(path: Path) -> None:
        source = find_source(path.parent)
        for samples in source.splits.values():
            for _ in samples.items.read():
                pass

    return {
        "classes": Target(_file(folder, "classes.txt", wnids), read_classes),
        "synsets.txt": Target(
            _file(folder, "synsets.txt", wnids), lambda path: named(["n01440764"], path.parent)
        ),
        "labels": Target(
            _file(folder, "labels.json", labels), lambda path: read_labels(path, ("a",), classes)
        ),
        "csv": Target(_file(folder, "LOC_val_solution.csv", solution), truths),
        "annotations": Target(_file(folder, "val_annotations.txt", annotations), truths),
        "truth": Target(_file(folder, "ILSVRC2012_validation_ground_truth.txt", truth), truths),
        "devkit": Target(_file(folder, "ILSVRC2012_devkit_t12.tar.gz", _devkit(truth)), truths),
        "tar, by headers": Target(_file(folder, "scan.tar", _tar()), _scan),
        "tar, as a stream": Target(_file(folder, "stream.tar", _tar()), _stream),
        "WebDataset tar": Target(
            _file(folder, "a-000000.tar", _sample_tar(b'{"label": 3}')), _list_samples
        ),
        "JSON in a tar": Target(
            _file(folder, "a.json", b'{"label": 3, "width": 500, "wnid": "n01440764"}'),
            _list_with_json,
            message_names_file=False,
        ),
        "parquet": Target(
            _file(folder, "train-00000-of-00001.parquet", _parquet()),
            read_table,
            message_names_file=False,
        ),
        ".pth": Target(_file(folder, "weights.pth", weights.getvalue()), first_weights),
        ".pth of old": Target(_file(folder, "pickled.pth", pickled.getvalue()), first_weights),
    }


def _images(folder: Path) -> dict[str, Target]:
    targets: dict[str, Target] = {}
    for kind, data in _pictures():
        path = _file(folder, f"image.{kind.lower().replace(' ', '-')}", data)
        targets[f"image, {kind}"] = Target(path, _encode, message_names_file=False)
    path = _file(folder, "stored.jpg", _saved(_picture(), "JPEG"))
    targets["JPEG in a shard"] = Target(path, _decode, message_names_file=False)
    return targets


def _file(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name / name
    path.parent.mkdir()
    path.write_bytes(data)
    return path


def _picture() -> Image.Image:
    return photograph(np.random.default_rng(3), SIDE, SIDE)


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return data.getvalue()


def _pictures() -> Iterator[tuple[str, bytes]]:
    """Every format and form of pixels that `alexprep shard` reads."""
    import imagecodecs  # noqa: PLC0415 - slow to import

    picture = _picture()
    pixels_HWC = np.asarray(picture)
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "JPEG", _saved(picture, "JPEG", exif=exif)
    yield "progressive JPEG", _saved(picture, "JPEG", progressive=True)
    yield "gray JPEG", _saved(picture.convert("L"), "JPEG")
    yield "CMYK JPEG", _saved(picture.convert("CMYK"), "JPEG")
    yield "PNG", _saved(picture, "PNG")
    yield "palette PNG", _saved(picture.convert("P"), "PNG", transparency=3)
    yield "16-bit PNG", imagecodecs.png_encode(pixels_HWC.astype(np.uint16) * 257)
    yield "GIF", _saved(picture, "GIF")
    yield "BMP", _saved(picture, "BMP")
    yield "PPM", _saved(picture, "PPM")
    yield "TIFF", _saved(picture, "TIFF")
    yield "LZW TIFF", imagecodecs.tiff_encode(pixels_HWC, compression="lzw")
    yield "deflate TIFF", imagecodecs.tiff_encode(pixels_HWC, compression="deflate")
    yield "WebP", imagecodecs.webp_encode(pixels_HWC, level=80)
    yield "lossless WebP", imagecodecs.webp_encode(pixels_HWC, lossless=True)


def _encode(path: Path) -> None:
    codec.encode(path.read_bytes(), size=32, quality=95)


def _decode(path: Path) -> None:
    data = np.frombuffer(path.read_bytes(), np.uint8)
    # Callers turn it into a DataError with the shard and the sample.
    with contextlib.suppress(ValueError):
        jpeg.check_jpeg(data.tobytes(), SIDE)
        jpeg.decode(data)


def _tar_of(members: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def _tar() -> bytes:
    names = ("a.JPEG", "b" * 150 + "/c.JPEG", "größe.JPEG")
    return _tar_of(dict.fromkeys(names, bytes(700)))


def _sample_tar(notes: bytes) -> bytes:
    return _tar_of({"a.jpg": b"\xff\xd8", "a.json": notes, "b.jpg": b"\xff\xd8", "b.cls": b"3"})


def _list_with_json(path: Path) -> None:
    tar = path.with_suffix(".tar")
    tar.write_bytes(_sample_tar(path.read_bytes()))
    _list_samples(tar)


def _list_samples(path: Path) -> None:
    wds.list_tar(wds.Tar(path, None, None))


def _devkit(truth: bytes) -> bytes:
    name = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    return gzip.compress(_tar_of({name: truth}), mtime=0)


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

    images = [{"bytes": _saved(_picture(), "JPEG"), "path": f"{n}.jpg"} for n in range(3)]
    data = io.BytesIO()
    features = {"label": {"names": ["tench", "goldfish"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"image": images, "label": [0, 1, 0]}).replace_schema_metadata(metadata)
    parquet.write_table(table, data)
    return data.getvalue()
