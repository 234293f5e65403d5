"""Images that the tests draw: no file of them is stored."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def photograph(rng, width=120, height=90, mode="RGB"):
    """A smooth random picture with edges, so that JPEG treats it as it would a photograph."""
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture).copy()
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    pixels[top : top + height // 3, left : left + width // 3] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels).convert(mode)


def jpeg(picture, quality=90, **options):
    """The picture as the bytes of a JPEG file."""
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality, **options)
    return out.getvalue()


def draw_classes(root: Path, rng, classes=("ant", "bee", "cat"), splits=("train", "val"), each=8):
    """A folder of class folders with `each` drawn photographs of differing sizes a class."""
    for split in splits:
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(each):
                width, height = (int(side) for side in rng.integers(60, 200, 2))
                data = jpeg(photograph(rng, width, height))
                (folder / f"{name}_{split}_{number}.JPEG").write_bytes(data)
    return root
