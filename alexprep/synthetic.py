"""Draw a source laid out like ILSVRC: ten classes of shapes that no mean colour gives away.

    SOURCE/synsets.txt              wnid <TAB> names
    SOURCE/train/<wnid>/*.JPEG      SOURCE/val/<wnid>/*.JPEG

A picture is a shape or texture in one random colour over another, under uneven light and noise,
somewhere near the middle of a frame of 60 to 700 pixels a side. As in ILSVRC, some files are
grayscale, one is a CMYK JPEG, one a PNG named .JPEG and one carries an EXIF orientation.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]
EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawConfig:
    """How many pictures are drawn, and from which seed."""

    train: int = 60
    validation: int = 20
    shortest: int = 60
    longest: int = 700
    gray_every: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        if not 16 <= self.shortest <= self.longest:
            raise ValueError(
                f"DrawConfig.shortest must be in 16..longest ({self.longest}), got {self.shortest}."
            )
        if min(self.train, self.validation) < 1:
            raise ValueError(
                f"DrawConfig.train and .validation must be at least 1, got {self.train} and "
                f"{self.validation}."
            )


def _ripple(wave: Floats) -> Floats:
    return np.sin(2 * np.pi * wave)


def _box(x: Floats, y: Floats) -> Floats:
    return np.maximum(np.abs(x), np.abs(y))


def _triangle(x: Floats, y: Floats) -> Floats:
    return 0.45 - np.maximum(0.87 * np.abs(x) + 0.5 * y, -y)


def _cross(x: Floats, y: Floats) -> Floats:
    return np.maximum(
        np.minimum(0.75 - np.abs(x), 0.2 - np.abs(y)),
        np.minimum(0.2 - np.abs(x), 0.75 - np.abs(y)),
    )


def _dots(x: Floats, y: Floats) -> Floats:
    u, v = (np.mod(2.2 * axis, 1) - 0.5 for axis in (x, y))
    return 0.3 - np.hypot(u, v)


# Each is positive inside the shape, for x and y in -1..1 over the square in the middle.
SHAPES: Mapping[str, tuple[str, Callable[[Floats, Floats], Floats]]] = {
    "n00000001": ("horizontal stripes", lambda x, y: _ripple(2.2 * y)),
    "n00000002": ("vertical stripes", lambda x, y: _ripple(2.2 * x)),
    "n00000003": ("checkerboard", lambda x, y: _ripple(1.4 * x) * _ripple(1.4 * y)),
    "n00000004": ("polka dots", _dots),
    "n00000005": ("disc", lambda x, y: 0.6 - np.hypot(x, y)),
    "n00000006": ("ring", lambda x, y: 0.16 - np.abs(np.hypot(x, y) - 0.55)),
    "n00000007": ("triangle", _triangle),
    "n00000008": ("cross", _cross),
    "n00000009": ("square frame", lambda x, y: 0.14 - np.abs(_box(x, y) - 0.55)),
    "n00000010": ("target", lambda x, y: _ripple(2.6 * np.hypot(x, y) + 0.25)),
}


def picture(wnid: str, config: DrawConfig, rng: np.random.Generator) -> Image.Image:
    """One picture of a class: uint8 RGB of `shortest` to `longest` pixels a side."""
    width, height = (int(side) for side in rng.integers(config.shortest, config.longest + 1, 2))
    half = min(width, height) / 2
    zoom, tilt = rng.uniform(0.85, 1.2), rng.uniform(-0.15, 0.15)
    shift_x, shift_y = rng.uniform(-0.15, 0.15, 2)
    x = ((np.arange(width) - width / 2) / half - shift_x)[np.newaxis, :] / zoom
    y = ((np.arange(height) - height / 2) / half - shift_y)[:, np.newaxis] / zoom
    shape = SHAPES[wnid][1](
        x * np.cos(tilt) - y * np.sin(tilt), x * np.sin(tilt) + y * np.cos(tilt)
    )
    coverage = np.clip(shape * half / 2, 0, 1)[..., np.newaxis]
    ink, paper = _two_colours(rng)
    light = 1 + rng.uniform(-0.25, 0.25) * x + rng.uniform(-0.25, 0.25) * y
    pixels = (paper + (ink - paper) * coverage) * np.clip(light, 0.5, 1.5)[..., np.newaxis]
    pixels += rng.normal(scale=rng.uniform(2, 10), size=(height, width, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _two_colours(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Two colours that a grayscale copy still tells apart."""
    while True:
        ink, paper = rng.uniform(0, 255, (2, 3))
        if abs(float((ink - paper).mean())) > 60:
            return ink, paper


def draw_source(root: Path, config: DrawConfig) -> Iterator[Path]:
    """Draw all pictures under `root`, yielding each path when its file is there."""
    root.mkdir(parents=True, exist_ok=True)
    lines = [f"{wnid}\t{name}\n" for wnid, (name, _) in SHAPES.items()]
    (root / "synsets.txt").write_text("".join(lines))
    for split, count in (("train", config.train), ("val", config.validation)):
        for wnid in SHAPES:
            folder = root / split / wnid
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                path = folder / f"{wnid}_{split}_{number:05d}.JPEG"
                seed = [config.seed, zlib.crc32(path.name.encode())]
                drawn = picture(wnid, config, np.random.default_rng(seed))
                _save(drawn, path, _oddity(wnid, split, number, config))
                yield path


def _oddity(wnid: str, split: str, number: int, config: DrawConfig) -> str:
    """What sets this file apart from a plain JPEG, if anything does."""
    odd = {"n00000003": "cmyk", "n00000004": "png", "n00000005": "exif"}
    if split == "train" and number == 0 and wnid in odd:
        return odd[wnid]
    return "gray" if number % config.gray_every == config.gray_every - 1 else ""


def _save(drawn: Image.Image, path: Path, oddity: str) -> None:
    if oddity == "png":
        drawn.save(path, "PNG")
    elif oddity == "cmyk":
        drawn.convert("CMYK").save(path, "JPEG", quality=90)
    elif oddity == "exif":
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = 6
        drawn.save(path, "JPEG", quality=90, exif=exif)
    else:
        drawn.convert("L" if oddity == "gray" else "RGB").save(path, "JPEG", quality=90)
