"""What a trained network says of validation images: probabilities, and the last hidden layer.

Letters: N images, K classes, F units of the last hidden layer.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.errors import RunError
from alexnet.model.grouped import Grouped
from alexnet.training.evaluate import Errors, error_rates, predict_probabilities
from alexprep.model.trained import Trained
from alexprep.progress import Progress
from alexprep.report.page import short
from pipelines.config import LoaderConfig
from pipelines.format import Manifest
from pipelines.loader import open_loader
from pipelines.shards import SplitReader

SPLIT = "validation"
VIEWS: tuple[Literal[1, 10], ...] = (1, 10)
CROPS = 128  # that the network takes at once
# Images whose nearest neighbour is looked up for the share of pairs of one class.
PAIRS = 1_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """The first images of the validation split, which the sharder has mixed.

    probabilities: views -> float64 (N, K); labels: int64 (N,); features: float32 (N, F). `of` is
    how many images the split has.
    """

    root: Path
    manifest: Manifest
    of: int
    labels: NDArray[np.int64]
    probabilities: dict[int, NDArray[np.float64]]
    features: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)

    def errors(self, views: int) -> Errors:
        """Shares of these images."""
        return error_rates(torch.as_tensor(self.probabilities[views]), torch.as_tensor(self.labels))

    def name(self, label: int) -> str:
        """The first name of a class."""
        return short(self.manifest.classes[label][1])

    def jpgs(self, places: Iterable[int]) -> list[bytes]:
        """The stored JPEGs of some images."""
        reader = SplitReader(self.root, self.manifest, SPLIT)
        try:
            return [reader.read(place).jpg.tobytes() for place in places]
        finally:
            reader.close()


def look(root: Path, trained: Trained, *, images: int, device: str) -> Seen:
    """Show the network the first `images` of the validation split, with one view and with ten.

    DataError for a data set that cannot be read, RunError for one of other classes.
    """
    manifest = Manifest.load(root)
    of = manifest.split(SPLIT, root).samples
    if [wnid for wnid, _ in manifest.classes] != [wnid for wnid, _ in trained.classes]:
        raise RunError(f"{root} has other classes than the network learned.")
    count = min(images, of)
    with Progress("report", 2 * count) as progress, torch.inference_mode():

        def views(number: Literal[1, 10]) -> Iterator[tuple[Tensor, Tensor]]:
            config = LoaderConfig(batch=CROPS // number, device=device, views=number)
            with open_loader(root, SPLIT, config, trained.augment, stats=trained.stats) as loader:
                yield from _counted(loader, count, progress)

        features, centre, labels = _hidden(trained, views(1))
        ten, _ = predict_probabilities(trained.model, views(10))
    return Seen(
        root=root,
        manifest=manifest,
        of=of,
        labels=labels.numpy(),
        probabilities={1: centre.numpy(), 10: ten.numpy()},
        features=features.numpy(),
    )


def _counted(
    batches: Iterable[tuple[Tensor, Tensor]], count: int, progress: Progress
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches until there are `count` images."""
    for images, labels in batches:
        take = min(count, len(labels))
        yield images[:take], labels[:take]
        progress.advance(take)
        count -= take
        if not count:
            return


def _hidden(
    trained: Trained, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """The last hidden layer (N, F), probabilities (N, K) and labels (N,), on the CPU."""
    model = trained.model
    assert isinstance(model, Grouped)
    answer = model.get_submodule(model.layers[-1])
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for images, labels in batches:
        features = model.features(images)
        probabilities = answer(features).double().softmax(-1)
        found.append((features.cpu(), probabilities.cpu(), labels.cpu()))
    features, probabilities, labels = zip(*found, strict=True)
    return torch.cat(features), torch.cat(probabilities), torch.cat(labels)


def neighbours(
    features_NF: NDArray[np.float32], queries: Sequence[int], count: int
) -> NDArray[np.int64]:
    """Places of the `count` images nearest to each query, (queries, count), nearest first.

    By Euclidean distance; an image is not its own neighbour.
    """
    features = features_NF.astype(np.float64)
    asked = features[list(queries)]
    squares = (features**2).sum(axis=1)
    distances = (asked**2).sum(axis=1)[:, None] - 2 * asked @ features.T + squares
    distances[np.arange(len(asked)), list(queries)] = np.inf
    return np.argsort(distances, axis=1, kind="stable")[:, : min(count, len(features) - 1)]


def pairs_of_one_class(seen: Seen) -> float:
    """Share of images, of the first PAIRS, whose nearest neighbour is of their own class."""
    if len(seen) < 2:
        return 0.0
    queries = range(min(PAIRS, len(seen)))
    nearest = neighbours(seen.features, queries, 1)[:, 0]
    return float((seen.labels[: len(nearest)] == seen.labels[nearest]).mean())
