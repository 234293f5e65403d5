"""A data set is read, unmodified, by everybody else's libraries.

Each reader runs in a process of its own, as its users would run it, and prints a line a sample;
tarfile says what the lines should be.
"""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from drawing import draw_classes, jpeg, photograph
from PIL import Image

from alexprep.dataset.shard import RunOptions, ShardConfig, shard

SMALL = ShardConfig(size=64, shards={"train": 3, "validation": 2})
SPLITS = ("train", "validation")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readers")
    draw_classes(folder / "zoo", np.random.default_rng(6), each=8)
    shard(folder / "zoo", folder / "plain", SMALL, RunOptions(workers=1))
    # HF datasets settles the types of all columns by the first samples: the only mended file comes
    # last, as one of the rare ones of ILSVRC may.
    last, *_ = samples(folder / "plain", "train")[-1]
    (path,) = (folder / "zoo").rglob(f"{last}.JPEG")
    path.write_bytes(jpeg(photograph(np.random.default_rng(7), mode="L")))
    shard(folder / "zoo", folder / "made", SMALL, RunOptions(workers=1))
    assert samples(folder / "made", "train")[-1][0] == last
    return folder / "made"


def samples(root, split):
    """[(key, sha256 of the jpg, label, sha256 of the pixels)], by tarfile and Pillow."""
    rows = []
    for path in sorted((root / split).glob("*.tar")):
        with tarfile.open(path) as archive:
            files = {member.name: archive.extractfile(member).read() for member in archive}
        for name, jpg in files.items():
            if name.endswith(".jpg"):
                key = name.removesuffix(".jpg")
                with Image.open(io.BytesIO(jpg)) as image:
                    pixels = hashlib.sha256(np.asarray(image).tobytes()).hexdigest()
                label = int(files[f"{key}.cls"])
                rows.append([key, hashlib.sha256(jpg).hexdigest(), label, pixels])
    assert len(rows) == 24
    return rows


HEAD = """
import hashlib, json, sys
import numpy as np
root = sys.argv[1]
def sha256(data):
    return hashlib.sha256(data).hexdigest()
def pixels(image):
    return sha256(np.asarray(image).tobytes())
def say(*row):
    print(json.dumps(row))
"""


def read(tmp_path, code, root):
    """The rows that a script prints, in a folder and with caches of its own."""
    script = tmp_path / "reader.py"
    script.write_text(HEAD + code)
    home = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "PATH": "/usr/bin:/bin"}
    run = subprocess.run(
        [sys.executable, str(script), str(root)],
        cwd=tmp_path,
        env=home | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("[")]


WEBDATASET = """
import webdataset as wds
for split in ("train", "validation"):
    urls = sorted(str(p) for p in __import__("pathlib").Path(root, split).glob("*.tar"))
    for s in wds.WebDataset(urls, shardshuffle=False).decode():
        assert s["json"]["fixes"] in ("", "gray"), s
        say(split, s["__key__"], int(s["cls"]))
    for s in wds.WebDataset(urls, shardshuffle=False):
        say(split, s["__key__"], sha256(s["jpg"]))
"""


def test_webdataset(root, tmp_path):
    rows = read(tmp_path, WEBDATASET, root)
    for split in SPLITS:
        decoded = [row[1:] for row in rows if row[0] == split and isinstance(row[2], int)]
        raw = [row[1:] for row in rows if row[0] == split and isinstance(row[2], str)]
        assert decoded == [[key, label] for key, _, label, _ in samples(root, split)]
        assert raw == [[key, jpg] for key, jpg, _, _ in samples(root, split)]


WIDS = """
import wids
for split in ("train", "validation"):
    there = wids.ShardListDataset(f"{root}/wids-{split}.json", cache_dir=f"cache-{split}")
    for number in range(len(there)):
        s = there[number]
        say(split, s["__key__"], s[".cls"], pixels(s[".jpg"]), s[".json"]["wnid"])
"""


def test_wids(root, tmp_path):
    rows = read(tmp_path, WIDS, root)
    names = ("ant", "bee", "cat")
    for split in SPLITS:
        assert [row[1:] for row in rows if row[0] == split] == [
            [key, label, pixels, names[label]] for key, _, label, pixels in samples(root, split)
        ]


HF = """
import datasets
datasets.disable_progress_bars()
there = datasets.load_dataset(%s)
assert sorted(there) == ["train", "validation"], there
for split, rows in there.items():
    name = rows.features["cls"].int2str if hasattr(rows.features["cls"], "names") else str
    for s in rows:
        label, wide = s["cls"], s["json"]["width"] > 0
        say(split, s["__key__"], label, pixels(s["jpg"]), wide, name(label))
"""


HF_CALLS = (
    '"webdataset", data_dir=root',
    '"webdataset", data_dir=root, streaming=True',
    "root",
    "root, streaming=True",
)


@pytest.fixture(scope="module")
def hf_rows(root, tmp_path_factory):
    """The rows of each call, by one process: `datasets` takes seconds to import."""
    code = "".join(f"say('call', {call!r})\n{HF % call}" for call in HF_CALLS)
    calls = {}
    for row in read(tmp_path_factory.mktemp("hf"), code, root):
        if row[0] == "call":
            rows = calls[row[1]] = []
        else:
            rows.append(row)
    return calls


@pytest.mark.parametrize("call", HF_CALLS)
def test_hugging_face_datasets(root, hf_rows, call):
    for split in SPLITS:
        assert sorted(row[1:5] for row in hf_rows[call] if row[0] == split) == sorted(
            [key, label, pixels, True] for key, _, label, pixels in samples(root, split)
        )


@pytest.mark.parametrize("call", HF_CALLS[2:])
def test_hugging_face_datasets_learns_the_class_names_from_the_card(root, hf_rows, call):
    names = ("ant", "bee", "cat")
    for split in SPLITS:
        assert sorted([row[1], row[5]] for row in hf_rows[call] if row[0] == split) == sorted(
            [key, names[label]] for key, _, label, _ in samples(root, split)
        )


def test_hugging_face_datasets_does_not_take_a_remade_data_set_from_its_cache(tmp_path):
    zoo, root = tmp_path / "zoo", tmp_path / "data"
    draw_classes(zoo, np.random.default_rng(8), each=8)
    labels = []
    for _ in range(2):
        shard(zoo, root, SMALL, RunOptions(workers=1))
        rows = read(tmp_path, HF % "root", root)
        labels.append(dict(row[1:3] for row in rows if row[0] == "train"))
        assert labels[-1] == {key: label for key, _, label, _ in samples(root, "train")}
        # As many images and bytes, of which `datasets` makes the names in its cache.
        shutil.rmtree(root)
        for old, new in (("ant", "x"), ("bee", "ant"), ("x", "bee")):
            (zoo / "train" / old).rename(zoo / "train" / new)
    assert labels[0] != labels[1]


MLCROISSANT = """
import warnings
warnings.simplefilter("ignore")
import mlcroissant
data = mlcroissant.Dataset(jsonld=f"{root}/croissant.json")
issues = data.metadata.ctx.issues
assert not issues.errors, issues.report()
for split in ("train", "validation"):
    for record in data.records(split):
        s = {name.removeprefix(f"{split}/"): value for name, value in record.items()}
        assert s["split"].decode() == split, s
        say(split, s["key"].decode(), s["label"], pixels(s["image"]))
say("classes", [record["classes/name"] for record in data.records("classes")])
"""


def test_mlcroissant_validates_the_description_and_reads_every_record(root, tmp_path):
    *rows, names = read(tmp_path, MLCROISSANT, root)
    assert names == ["classes", ["ant", "bee", "cat"]]
    for split in SPLITS:
        assert sorted(row[1:] for row in rows if row[0] == split) == sorted(
            [key, label, pixels] for key, _, label, pixels in samples(root, split)
        )


DALI = """
from pathlib import Path
from nvidia.dali import fn, pipeline_def
@pipeline_def(batch_size=8, num_threads=1, device_id=None)
def pipe(tars, index):
    ext = ["jpg", "cls", "json"]
    return tuple(fn.readers.webdataset(paths=tars, index_paths=index, ext=ext))
for split in ("train", "validation"):
    tars = sorted(str(p) for p in Path(root, split).glob("*.tar"))
    index = [f"{root}/index/{Path(p).stem}.idx" for p in tars]
    reader = pipe(tars, index)
    reader.build()
    for _ in range(3):
        jpg, cls, notes = reader.run()
        # one width of label: a dense tensor
        labels = cls.as_array()
        assert labels.shape == (8, 4), labels.shape
        for place in range(8):
            about = json.loads(bytes(notes.at(place)))
            say(split, sha256(bytes(jpg.at(place))), int(bytes(labels[place])), about["wnid"])
"""


def test_dali_with_our_index(root, tmp_path):
    rows = read(tmp_path, DALI, root)
    names = ("ant", "bee", "cat")
    for split in SPLITS:
        assert [row[1:] for row in rows if row[0] == split] == [
            [jpg, label, names[label]] for _, jpg, label, _ in samples(root, split)
        ]


TIMM = """
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
import torch
for library in Path(find_spec("torchvision").origin).parent.glob("_C*.so"):
    with suppress(OSError):
        torch.ops.load_library(library)
if not hasattr(torch.ops.torchvision, "nms"):
    # Compiled for CUDA, beside a PyTorch for CPUs. timm never calls them, importing wants them
    # declared.
    ops = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        ops.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from timm.data import create_dataset
for split in ("train", "validation"):
    there = create_dataset("wds/zoo", root=root, split=split, is_training=False, batch_size=4)
    assert len(there) == 24
    for image, label in there:
        say(split, label, pixels(image))
    names = there.filenames(basename=True)
    assert len(names) == 24, names
"""


def test_timm(root, tmp_path):
    rows = read(tmp_path, TIMM, root)
    for split in SPLITS:
        assert sorted(row[1:] for row in rows if row[0] == split) == sorted(
            [label, pixels] for _, _, label, pixels in samples(root, split)
        )
