"""Encode 256x256 centre crops to latents, as latent diffusion models train on them.

    python examples/encode_latents.py DATASET OUT [--split train] [--crop 256] [--batch 64]

You see one line at the end, and can stop and start it at any time:

    OUT: 1,281,167 latents of 4x32x32 in the order of keys.txt

OUT/latents.npy is float16 (N, 4, side / 8, side / 8), OUT/labels.npy int64 (N,), OUT/keys.txt the
key of each row: row i is sample i of the split, whatever the batch. With --mirror OUT/mirrored.npy
holds the latents of the mirrored pictures as well.

The encoder is A STAND-IN: the four lowest frequencies of 8x8 blocks (a discrete cosine transform),
which has the shapes of Stable Diffusion's and no parameters. Put yours into `encoder`:

    vae = diffusers.AutoencoderKL.from_pretrained("stabilityai/sd-vae-ft-mse").to(device).eval()
    return lambda images: vae.encode(images).latent_dist.mean * 0.18215

Pictures are RGB in -1..1, as such encoders expect. `alexprep shard` has resized them: the shorter
side to 256 by an antialiased triangle filter, where guided-diffusion's center_crop_arr takes boxes
and a cubic.
"""
# ruff: noqa: T201 - it prints

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from torch.nn import functional as F

from pipelines import AugmentSpec, Loader, LoaderConfig, open_loader
from pipelines.errors import DataError
from pipelines.format import Manifest

Encoder = Callable[[Tensor], Tensor]
BLOCK, CHANNELS = 8, 4
LUMA = (0.299, 0.587, 0.114)


def encoder(device: str) -> Encoder:
    """The stand-in: (N, 3, H, W) in -1..1 to (N, 4, H / 8, W / 8)."""
    places = torch.arange(BLOCK, dtype=torch.float64) + 0.5
    waves = torch.stack([torch.cos(math.pi / BLOCK * places * k) for k in range(2)])
    waves /= waves.norm(dim=1, keepdim=True)
    filters = torch.einsum("ay,bx,c->abcyx", waves, waves, torch.tensor(LUMA, dtype=torch.float64))
    weight = filters.reshape(CHANNELS, 3, BLOCK, BLOCK).float().to(device)
    return lambda images: F.conv2d(images, weight, stride=BLOCK)


def open_rows(path: Path, shape: tuple[int, ...], dtype: type, *, new: bool) -> np.memmap:
    """An array on disk, written anew or continued; ValueError if it is another one."""
    if new:
        return open_memmap(path, "w+", dtype, shape)
    rows = open_memmap(path, "r+")
    if rows.shape != shape or rows.dtype != dtype:
        raise ValueError(
            f"{path} is {rows.dtype} {rows.shape}, this run would write {np.dtype(dtype)} {shape}. "
            "Give another folder as OUT."
        )
    return rows


def resume(progress: Path, loader: Loader, names: list[str]) -> int:
    """Set the loader to where an earlier run was; the row it comes to next."""
    try:
        saved = json.loads(progress.read_text())
        loader.load_state_dict(saved["loader"])
        row = int(saved["row"])
        if saved["arrays"] != names:
            raise ValueError(f"it has {saved['arrays']}, this run would write {names}")
    except FileNotFoundError:
        return 0
    except (DataError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{progress}: {str(error).rstrip('.')}. Give another folder as OUT."
        ) from error
    return row


def encode_split(loader: Loader, encode: Encoder, options: argparse.Namespace) -> str:
    """Write the latents of all samples that are not written yet; the shape of one."""
    side = options.crop // BLOCK
    shape = (loader.samples, CHANNELS, side, side)
    names = ["latents.npy", *(["mirrored.npy"] if options.mirror else [])]
    progress = options.out / "progress.json"
    row = resume(progress, loader, names)
    (options.out / "keys.txt").write_text("".join(f"{key}\n" for key in loader.keys))
    arrays = [open_rows(options.out / name, shape, np.float16, new=not row) for name in names]
    labels = open_rows(options.out / "labels.npy", shape[:1], np.int64, new=not row)
    with torch.inference_mode():
        for images, classes in loader if row < loader.samples else ():
            rows = slice(row, row + len(images))
            for array, pictures in zip(arrays, (images, images.flip(3)), strict=False):
                array[rows] = encode(pictures).half().cpu().numpy()
            labels[rows] = classes.cpu().numpy()
            row = rows.stop
            for array in (*arrays, labels):  # on disk before the position that counts on it
                array.flush()
            saved = {"loader": loader.state_dict(), "row": row, "arrays": names}
            partial = progress.with_suffix(".partial")
            partial.write_text(json.dumps(saved))
            partial.replace(progress)
    return "x".join(map(str, shape[1:]))


def run(options: argparse.Namespace) -> None:
    """Encode one split."""
    size = Manifest.load(options.dataset).size
    crop = options.crop = options.crop or size
    if crop % BLOCK:
        raise ValueError(f"--crop must be a multiple of {BLOCK}, got {crop}.")
    middle = (127.5, 127.5, 127.5)
    spec = AugmentSpec(source=size, crop=crop, mean=middle, sd=middle, lighting=0, divide=1)
    config = LoaderConfig(batch=options.batch, device=options.device)
    with open_loader(options.dataset, options.split, config, spec, train=False) as loader:
        options.out.mkdir(parents=True, exist_ok=True)
        shape = encode_split(loader, encoder(options.device), options)
        print(f"{options.out}: {loader.samples:,} latents of {shape} in the order of keys.txt")


def positive(text: str) -> int:
    """An option that is a number of something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--crop", type=positive, help="pixels a side  [default: the stored size]")
    parser.add_argument("--batch", type=positive, default=64)
    parser.add_argument("--mirror", action="store_true", help="the mirrored pictures as well")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Encode; what is wrong with the command line or the data set is one line."""
    try:
        run(parse(arguments))
    except (DataError, ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
