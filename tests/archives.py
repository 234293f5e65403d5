"""The same few images in every layout that ILSVRC comes in."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from drawing import jpeg, photograph
from scipy.io import savemat

from alexprep.sources.ilsvrc import (
    DEVKIT,
    DEVKIT_TAR,
    MAPPING,
    SOLUTION,
    TRAIN_TAR,
    TRUTH,
    VALIDATION_TAR,
)
from alexprep.sources.synsets import ilsvrc2012

WNIDS = ("n01440764", "n01443537", "n02105855", "n07583066")


def draw_ilsvrc(rng, each=6, validation=10):
    """({train name: bytes}, {validation name: (bytes, wnid)}) with the names of ILSVRC."""
    train = {
        f"{wnid}_{number}.JPEG": jpeg(photograph(rng, *map(int, rng.integers(60, 120, 2))))
        for wnid in WNIDS
        for number in rng.choice(20_000, each, replace=False)
    }
    held_out = {
        f"ILSVRC2012_val_{number + 1:08d}.JPEG": (
            jpeg(photograph(rng, *map(int, rng.integers(60, 120, 2)))),
            WNIDS[int(rng.integers(len(WNIDS)))],
        )
        for number in range(validation)
    }
    return train, held_out


def add(archive, name, data, **fields):
    """Append a regular file, or what `fields` make of it, to an open tar."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))


def tar_bytes(files, **options):
    """A tar of {name: bytes}."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as archive:
        for name, data in files.items():
            add(archive, name, data)
    return out.getvalue()


def ground_truth(held_out):
    """A 1-based ILSVRC2012_ID a line, for the names in sorted order."""
    ids = {synset.wnid: synset.id for synset in ilsvrc2012()}
    return "".join(f"{ids[wnid]}\n" for _, (_, wnid) in sorted(held_out.items()))


def write_archives(folder: Path, train, held_out):
    """The three archives as they are downloaded; the order in them is not the sorted one."""
    folder.mkdir()
    classes = {}
    for name, data in reversed(train.items()):
        classes.setdefault(name.split("_")[0], {})[name] = data
    inner = {f"{wnid}.tar": tar_bytes(files) for wnid, files in reversed(classes.items())}
    (folder / TRAIN_TAR).write_bytes(tar_bytes(inner))
    shuffled = dict(reversed([(name, data) for name, (data, _) in held_out.items()]))
    (folder / VALIDATION_TAR).write_bytes(tar_bytes(shuffled))
    with tarfile.open(folder / DEVKIT_TAR, "w:gz") as devkit:
        add(devkit, f"{DEVKIT}/data/meta.mat", b"MATLAB 5.0 MAT-file")
        add(devkit, f"{DEVKIT}/data/{TRUTH}", ground_truth(held_out).encode())
    return folder


def write_2010(folder: Path, train, held_out):
    """The archives of ILSVRC2010 as downloaded, with ids of their own in its devkit."""
    folder.mkdir()
    classes = {}
    for name, data in train.items():
        classes.setdefault(name.split("_")[0], {})[name] = data
    (folder / "ILSVRC2010_images_train.tar").write_bytes(
        tar_bytes({f"{wnid}.tar": tar_bytes(files) for wnid, files in classes.items()})
    )
    names = {name: f"val/{name.replace('2012', '2010')}" for name in sorted(held_out, reverse=True)}
    (folder / "ILSVRC2010_images_val.tar").write_bytes(
        tar_bytes({path: held_out[name][0] for name, path in names.items()})
    )
    ids = {wnid: number for number, wnid in enumerate(sorted(classes, reverse=True), start=1)}
    fields = [("ILSVRC2010_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(ident, wnid, f"words of {wnid}", 0) for wnid, ident in ids.items()]
    rows.append((len(ids) + 1, "n00001740", "entity", 2))
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=fields)})
    truth = "".join(f"{ids[held_out[name][1]]}\n" for name in sorted(held_out))
    with tarfile.open(folder / "ILSVRC2010_devkit-1.0.tar.gz", "w:gz") as devkit:
        add(devkit, "devkit-1.0/data/meta.mat", meta.getvalue())
        add(devkit, "devkit-1.0/data/ILSVRC2010_validation_ground_truth.txt", truth.encode())
    return folder


def write_class_tars(folder: Path, train):
    """A folder of class tars, as winter21 is unpacked."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = {}
    for name, data in train.items():
        classes.setdefault(name.split("_")[0], {})[name] = data
    for wnid, files in classes.items():
        (folder / f"{wnid}.tar").write_bytes(tar_bytes(files))
    return folder


def write_tree(images: Path, train, held_out):
    """train/<wnid>/ and a flat val/."""
    for name, data in train.items():
        path = images / "train" / name.split("_")[0] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (images / "val").mkdir()
    for name, (data, _) in held_out.items():
        (images / "val" / name).write_bytes(data)


def write_extracted(folder: Path, train, held_out):
    """The extracted tree with a flat val/ and the extracted devkit."""
    write_tree(folder, train, held_out)
    truth = folder / DEVKIT / "data" / TRUTH
    truth.parent.mkdir(parents=True)
    truth.write_text(ground_truth(held_out))
    return folder


def write_sorted(folder: Path, train, held_out):
    """The extracted tree with validation images in class folders."""
    write_tree(folder, train, held_out)
    for name, (_, wnid) in held_out.items():
        (folder / "val" / wnid).mkdir(exist_ok=True)
        (folder / "val" / name).rename(folder / "val" / wnid / name)
    return folder


def write_kaggle(folder: Path, train, held_out):
    """Kaggle's tree, with its unlabelled test images."""
    images = folder / "ILSVRC" / "Data" / "CLS-LOC"
    write_tree(images, train, held_out)
    (images / "test").mkdir()
    (images / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(next(iter(train.values())))
    rows = [f"{name[:-5]},{wnid} 1 2 3 4 \n" for name, (_, wnid) in held_out.items()]
    (folder / SOLUTION).write_text("ImageId,PredictionString\n" + "".join(rows))
    names = [f"{synset.wnid} {synset.names}\n" for synset in ilsvrc2012()]
    (folder / MAPPING).write_text("".join(names))
    return folder


def write_parquet(folder: Path, train, held_out):
    """Hugging Face's layout: names carry the wnid, labels index the class list in the schema."""
    label = {"names": list(WNIDS), "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, "label": label}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = {
        "train": [(name, data, name.split("_")[0]) for name, data in train.items()],
        "validation": [(name, data, wnid) for name, (data, wnid) in held_out.items()],
    }
    (folder / "data").mkdir(parents=True)
    for split, listed in rows.items():
        table = [
            {
                "image": {"bytes": data, "path": name.replace(".JPEG", f"_{wnid}.JPEG")},
                "label": WNIDS.index(wnid),
            }
            for name, data, wnid in listed
        ]
        path = folder / "data" / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(table, schema), path, row_group_size=5)
    return folder


def contents(root: Path, pattern="**/*"):
    """sha256 of every file below, by path."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.glob(pattern))
        if path.is_file()
    }


def shard_hashes(root: Path):
    """sha256 of the tars by split and number, whatever the data set is called."""
    return {
        (path.parent.name, path.stem.rpartition("-")[2]): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in sorted(root.glob("*/*.tar"))
    }
