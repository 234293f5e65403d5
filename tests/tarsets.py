"""Data sets written to the letter of the on-disk contract, without the program under test.

The tars come from the standard library's tarfile; names, order, padding, index and manifest follow
the docstring of pipelines/format.py. What the loader reads from them is no echo of our own writer.
"""

import hashlib
import io
import json
import tarfile
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.format import MTIME
from pipelines.imagestats import ImageStats
from tests.drawing import jpeg, photograph


class Item(NamedTuple):
    """One sample before it is written."""

    key: str
    jpg: bytes
    label: int


def drawn_items(rng, count, size=64, classes=3, prefix="item"):
    """`count` drawn square photographs as 4:2:0 JPEG files, labels going round."""
    return [
        Item(f"{prefix}_{n:05d}", jpeg(photograph(rng, size, size), 95, subsampling=2), n % classes)
        for n in range(count)
    ]


def _member(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), 0o644, MTIME
    tar.addfile(info, io.BytesIO(data))
    return tar.offset - -(-len(data) // 512) * 512


def write_shard(root, name, items, width=4):
    """One tar and its index; the manifest's entry for it."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (root / "index").mkdir(exist_ok=True)
    lines = [f"v1.2 {len(items)}"]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for item in items:
            source = {"wnid": f"n{item.label:08d}", "width": 500, "height": 375, "fixes": ""}
            source["sha256"] = hashlib.sha256(item.key.encode()).hexdigest()
            files = {
                "jpg": item.jpg,
                "cls": b"%0*d" % (width, item.label),
                "json": json.dumps(source).encode(),
            }
            words = []
            for kind, data in files.items():
                offset = _member(tar, f"{item.key}.{kind}", data)
                words += [kind, str(offset), str(len(data)), f"{item.key}.{kind}"]
            lines.append(" ".join(words))
    (root / "index" / f"{path.stem}.idx").write_text("\n".join(lines) + "\n")
    data = path.read_bytes()
    return {
        "name": name,
        "samples": len(items),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "md5": hashlib.md5(data).hexdigest(),
    }


def write_dataset(root, splits, *, size, name="drawn", shards=3, classes=3):
    """ROOT with `splits` (name -> items), each cut into `shards` tars of about the same length."""
    root = Path(root)
    described = {}
    for split, items in splits.items():
        bounds = np.linspace(0, len(items), shards + 1).astype(int)
        entries = [
            write_shard(root, f"{split}/{name}-{split}-{n:06d}.tar", items[a:b])
            for n, (a, b) in enumerate(pairwise(bounds))
        ]
        counts = np.bincount([item.label for item in items], minlength=classes).tolist()
        described[split] = {"shards": entries, "counts": counts}
    names = [[f"n{label:08d}", f"class {label}"] for label in range(classes)]
    jpgs = [len(item.jpg) for items in splits.values() for item in items]
    manifest = {
        "version": 1,
        "name": name,
        "alexprep": "0",
        "codec": {"name": "pillow"},
        "config": {"size": size},
        "source": {"kind": "drawn"},
        "classes": names,
        "cls_width": 4,
        "size": size,
        "largest_jpg": max(jpgs),
        "fixes": {},
        "mended": {},
        "left_out": [],
        "splits": described,
    }
    (root / "synsets.txt").write_text("".join(f"{wnid}\t{text}\n" for wnid, text in names))
    (root / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return root


def measured(root=None, size=64):
    """ImageStats of made-up colours; of the shards in `root` and written there, if one is given."""
    rng = np.random.default_rng(7)
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    eigenvalues = np.array([13188.0, 1148.0, 288.0])
    covariance = axes @ np.diag(eigenvalues) @ axes.T
    shards = {}
    if root is not None:
        manifest = json.loads((root / "manifest.json").read_text())
        entries = manifest["splits"]["train"]["shards"]
        shards = {shard["name"]: shard["sha256"] for shard in entries}
    stats = ImageStats(
        split="train",
        images=1000,
        height=size,
        width=size,
        mean_image_HWC=rng.uniform(90, 140, (size, size, 3)),
        mean=np.array([125.2, 117.7, 105.2]),
        sd=np.sqrt(np.diag(covariance)),
        covariance=covariance,
        eigenvalues=eigenvalues,
        stdevs=np.sqrt(eigenvalues),
        eigenvectors=axes,
        shards=shards,
    )
    if root is not None:
        stats.save(root)
    return stats
