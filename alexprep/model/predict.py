"""predict: what a trained network sees in image files."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from alexnet.training.evaluate import view_probabilities
from alexprep.dataset.codec import ImageError, encode
from alexprep.model.trained import Trained, load_trained
from pipelines.augment import centre, colours
from pipelines.jpeg import decode
from pipelines.normalize import VIEWS, Normalize, Preprocess

STDIN = "-"
QUALITY = 95  # of the JPEG that shards would hold: networks have seen no other pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictOptions:
    """Views that are averaged, classes that are named, device."""

    views: Literal[1, 10] = 10
    top: int = 5
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.top < 1 or self.views not in (1, VIEWS):
            raise ValueError(
                f"PredictOptions wants top >= 1 and views 1 or 10, got {self.top}, {self.views}."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The likeliest classes (wnid, names, probability) of an image, or why there are none."""

    path: str
    classes: tuple[tuple[str, str, float], ...] = ()
    problem: str = ""

    def text(self) -> str:
        """For a terminal."""
        if self.problem:
            return f"{self.path}: {self.problem}"
        lines = [f"{share:8.2%}  {wnid} {names}" for wnid, names, share in self.classes]
        return "\n".join([f"{self.path}:", *lines])

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        if self.problem:
            return {"path": self.path, "problem": self.problem}
        return {
            "path": self.path,
            "classes": [
                {"wnid": wnid, "names": names, "probability": share}
                for wnid, names, share in self.classes
            ],
        }


def predict(
    checkpoint: Path, images: Sequence[Path | str], options: PredictOptions
) -> Iterator[Prediction]:
    """Predictions of a checkpoint or run for image files, "-" being standard input.

    A file that is no image gets a Prediction with `problem`; the others are still looked at.
    RunError for a checkpoint that cannot be used.
    """
    trained = load_trained(checkpoint, options.device)
    for image in images:
        yield _one(trained, str(image), options)


def _one(trained: Trained, path: str, options: PredictOptions) -> Prediction:
    try:
        data = sys.stdin.buffer.read() if path == STDIN else Path(path).read_bytes()
        pixels = prepared(data, trained, options)
    except OSError as error:
        return Prediction(path=path, problem=f"cannot be read ({error.strerror or error})")
    except ImageError as error:
        return Prediction(path=path, problem=f"{error}")
    with torch.inference_mode():
        shares = view_probabilities(trained.model, pixels)[0].cpu()
    best = [int(label) for label in shares.argsort(descending=True, stable=True)[: options.top]]
    classes = tuple((*trained.classes[label], float(shares[label])) for label in best)
    return Prediction(path=path, classes=classes)


def prepared(data: bytes, trained: Trained, options: PredictOptions) -> torch.Tensor:
    """One image as evaluation would give it: (1, C, crop, crop) or (1, 10, C, crop, crop).

    It goes through the codec of `alexprep shard`. ImageError if the bytes are no whole image.
    """
    spec = trained.augment
    jpg = encode(data, size=spec.source, quality=QUALITY).jpg
    preprocess = Preprocess(spec, colours(spec, trained.stats), options.views)
    normalize = Normalize(preprocess)
    pixels_HWC = decode(np.frombuffer(jpg, np.uint8))
    out = np.empty(normalize.shape(1), np.float32)
    if options.views == VIEWS:
        normalize.ten_crops(out[0], pixels_HWC)
    else:
        draws = centre(spec, 1)
        y, x = int(draws.y[0]), int(draws.x[0])
        crop_HWC = np.ascontiguousarray(pixels_HWC[y : y + spec.crop, x : x + spec.crop])
        normalize.crop(out[0], crop_HWC, normalize.factors(draws), 0)
    return torch.as_tensor(out).to(options.device)
