"""predict: the likeliest classes of image files."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from alexnet.training.evaluate import view_probabilities
from alexprep.dataset.codec import ImageError, encode
from alexprep.errors import checking_options
from alexprep.model.placement import usable_device
from alexprep.model.trained import Trained, check_finite, load_trained
from alexprep.progress import DELAY, ProgressBar
from pipelines.augment import centre, colours
from pipelines.jpeg import decode
from pipelines.normalize import VIEWS, Normalize, Preprocess
from pipelines.regions import cut_box, finish_box, set_regions

STDIN = "-"
QUALITY = 95  # of the JPEG in shards: networks were trained on no other images


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictOptions:
    """Views that are averaged, classes that are named, device."""

    views: Literal[1, 10] = 10
    top: int = 5
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.top < 1 or self.views not in (1, VIEWS):
            raise ValueError(
                f"PredictOptions expects top >= 1 and views 1 or 10, got {self.top}, {self.views}."
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
        lines = [f"{probability:8.2%}  {wnid} {names}" for wnid, names, probability in self.classes]
        return "\n".join([f"{self.path}:", *lines])

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        if self.problem:
            return {"path": self.path, "problem": self.problem}
        return {
            "path": self.path,
            "classes": [
                {"wnid": wnid, "names": names, "probability": probability}
                for wnid, names, probability in self.classes
            ],
        }


def predict(
    checkpoint: Path, images: Sequence[Path | str], options: PredictOptions
) -> Iterator[Prediction]:
    """Predictions of a checkpoint or run for image files, "-" being standard input.

    A file that is not an image gets a Prediction with `problem`; the others are still classified.
    RunError for a checkpoint that cannot be used.
    """
    with checking_options():
        options = replace(options, device=usable_device(options.device))
    trained = load_trained(checkpoint, options.device)
    with ProgressBar("predict", len(images), delay=DELAY) as progress:
        for image in images:
            yield _predict_image(trained, str(image), options)
            progress.advance(1)


def _predict_image(trained: Trained, path: str, options: PredictOptions) -> Prediction:
    try:
        data = sys.stdin.buffer.read() if path == STDIN else Path(path).read_bytes()
        pixels = preprocess(data, trained, options)
    except OSError as error:
        return Prediction(path=path, problem=f"cannot be read ({error.strerror or error})")
    except ImageError as error:
        return Prediction(path=path, problem=f"{error}")
    with torch.inference_mode():
        probabilities = view_probabilities(trained.model, pixels)[0].cpu()
    check_finite(probabilities, trained.path)
    best = [
        int(label) for label in probabilities.argsort(descending=True, stable=True)[: options.top]
    ]
    classes = tuple((*trained.classes[label], float(probabilities[label])) for label in best)
    return Prediction(path=path, classes=classes)


def preprocess(data: bytes, trained: Trained, options: PredictOptions) -> torch.Tensor:
    """One image as evaluation gets it: (1, C, crop, crop) or (1, 10, C, crop, crop).

    It goes through the codec of `alexprep shard`. ImageError if the bytes are not a whole image.
    """
    spec = replace(trained.augment, square=True)  # as the codec makes it
    jpg = encode(data, size=spec.source, quality=QUALITY).jpg
    work = Preprocess(spec, colours(spec, trained.stats), options.views)
    normalize = Normalize(work)
    pixels_HWC = decode(np.frombuffer(jpg, np.uint8))
    draws = set_regions(work, centre(spec, 1), np.array([pixels_HWC.shape[:2]]))
    assert draws.regions is not None
    pixels_HWC = finish_box(cut_box(pixels_HWC, draws.regions, 0), draws.regions, 0, work)
    out = np.empty(normalize.shape(1), np.float32)
    if options.views == VIEWS:
        normalize.ten_crops(out[0], pixels_HWC)
    else:
        normalize.write(out, pixels_HWC[np.newaxis], normalize.factors(draws))
    return torch.as_tensor(out).to(options.device)
