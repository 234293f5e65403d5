"""What a trained network predicts for validation images, and what follows from it.

Letters: N images, K classes, F units of the last hidden layer.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.errors import RunError
from alexnet.model.grouped import Grouped
from alexnet.training.evaluate import error_rates, predict_probabilities
from alexprep.model.trained import Trained
from alexprep.progress import ProgressBar
from alexprep.report.run_summary import ErrorRow
from pipelines.config import LoaderConfig
from pipelines.format import Manifest
from pipelines.loader import open_loader
from pipelines.shards import SplitReader

SPLIT = "validation"
CROPS = 128  # in a batch
EXAMPLES = 8
QUERIES, NEAREST = 6, 6
CONFUSED = 10  # classes
PAIRS = 1_000  # images whose nearest neighbour is looked up for `neighbour_accuracy`


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitPredictions:
    """Predictions for the first images of the validation split, whose order is shuffled.

    probabilities: views -> float64 (N, K); labels: int64 (N,); features: float32 (N, F).
    `split_images` is the number of images in the split.
    """

    root: Path
    manifest: Manifest
    split_images: int
    labels: NDArray[np.int64]
    probabilities: dict[int, NDArray[np.float64]]
    features: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)

    def errors(self, views: int, title: str = "") -> ErrorRow:
        rates = error_rates(
            torch.as_tensor(self.probabilities[views]), torch.as_tensor(self.labels)
        )
        return ErrorRow(title, *rates, len(self), self.split_images)

    def class_name(self, label: int) -> str:
        """The first name of a class."""
        return self.manifest.classes[label][1].split(",")[0]

    def true_probabilities(self, views: int) -> NDArray[np.float64]:
        """Probability of the true class of each image, (N,)."""
        return np.take_along_axis(self.probabilities[views], self.labels[:, None], axis=1)[:, 0]

    def jpegs(self, indices: Iterable[int]) -> list[bytes]:
        """The stored files of some images."""
        reader = SplitReader(self.root, self.manifest, SPLIT)
        try:
            return [reader.read(index).jpg.tobytes() for index in indices]
        finally:
            reader.close()


def predict_split(root: Path, trained: Trained, *, images: int, device: str) -> SplitPredictions:
    """Predict the first `images` of the validation split, with one view and with ten.

    DataError for a damaged data set, RunError for one of other classes.
    """
    manifest = Manifest.load(root)
    split_images = manifest.split(SPLIT, root).samples
    if [wnid for wnid, _ in manifest.classes] != [wnid for wnid, _ in trained.classes]:
        raise RunError(f"{root} has other classes than the network was trained on.")
    count = min(images, split_images)
    with ProgressBar("report", 2 * count) as progress, torch.inference_mode():

        def batches(views: Literal[1, 10]) -> Iterator[tuple[Tensor, Tensor]]:
            config = LoaderConfig(batch=CROPS // views, device=device, views=views)
            with open_loader(root, SPLIT, config, trained.augment, stats=trained.stats) as loader:
                remaining = count
                for images, labels in loader:
                    size = min(remaining, len(labels))
                    yield images[:size], labels[:size]
                    progress.advance(size)
                    remaining -= size
                    if not remaining:
                        return

        # The hidden layer is that of the centre crop, so each number of views is a pass of its own.
        features, centre, labels = _last_hidden(trained, batches(1))
        ten, _ = predict_probabilities(trained.model, batches(10))
    return SplitPredictions(
        root=root,
        manifest=manifest,
        split_images=split_images,
        labels=labels.numpy(),
        probabilities={1: centre.numpy(), 10: ten.numpy()},
        features=features.numpy(),
    )


def _last_hidden(trained: Trained, batches: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Last hidden layer (N, F), probabilities (N, K) and labels (N,), on the CPU."""
    model = trained.model
    assert isinstance(model, Grouped)
    classifier = model.get_submodule(model.layers[-1])
    outputs: list[tuple[Tensor, Tensor, Tensor]] = []
    for images, labels in batches:
        features = model.features(images)
        probabilities = classifier(features).double().softmax(-1)
        outputs.append((features.cpu(), probabilities.cpu(), labels.cpu()))
    return [torch.cat(column) for column in zip(*outputs, strict=True)]


def evenly_spaced(items: Sequence[int], count: int) -> list[int]:
    """`count` of the items (all, if there are fewer) at equal steps."""
    count = min(count, len(items))
    return [items[(2 * n + 1) * len(items) // (2 * count)] for n in range(count)]


def examples(predictions: SplitPredictions) -> list[int]:
    """Images at equal steps from the surest right answer to the surest wrong one (Figure 4)."""
    order = np.argsort(-predictions.true_probabilities(1), kind="stable")
    return evenly_spaced(order.tolist(), EXAMPLES)


def queries(predictions: SplitPredictions) -> list[int]:
    """The first image of each of some classes, at equal steps over all labels."""
    labels: list[int] = predictions.labels.tolist()
    return [labels.index(label) for label in evenly_spaced(sorted(set(labels)), QUERIES)]


def neighbours(
    features_NF: NDArray[np.float32], images: Sequence[int], count: int
) -> NDArray[np.int64]:
    """Indices of the `count` nearest neighbours of some images, (images, count), nearest first.

    By Euclidean distance; an image is not its own neighbour.
    """
    features = features_NF.astype(np.float64)
    selected = features[list(images)]
    squares = (features**2).sum(axis=1)
    # |a - b|^2 = |a|^2 - 2 a.b + |b|^2: one matrix product instead of (images, N, F) differences
    distances = (selected**2).sum(axis=1)[:, None] - 2 * selected @ features.T + squares
    distances[np.arange(len(selected)), list(images)] = np.inf
    return np.argsort(distances, axis=1, kind="stable")[:, : min(count, len(features) - 1)]


def neighbour_accuracy(predictions: SplitPredictions) -> float:
    """Share of the first PAIRS images whose nearest neighbour is of the same class."""
    if len(predictions) < 2:
        return 0.0
    images = range(min(PAIRS, len(predictions)))
    nearest = neighbours(predictions.features, images, 1)[:, 0]
    labels = predictions.labels
    return float((labels[: len(nearest)] == labels[nearest]).mean())


def chance_accuracy(predictions: SplitPredictions) -> float:
    """Share of all pairs of images that are of the same class."""
    counts = np.bincount(predictions.labels)
    total = len(predictions)
    return float((counts * (counts - 1)).sum() / max(total * (total - 1), 1))


class ConfusedClass(NamedTuple):
    """How often images of a class were predicted as each class."""

    label: int
    guesses: Counter[int]

    @property
    def images(self) -> int:
        return self.guesses.total()

    @property
    def error(self) -> float:
        return 1 - self.guesses[self.label] / self.images

    def mistakes(self) -> list[tuple[int, int]]:
        """(wrong label, images), the most frequent first."""
        return [(guess, n) for guess, n in self.guesses.most_common() if guess != self.label]


def confused_classes(predictions: SplitPredictions, views: int) -> list[ConfusedClass]:
    """The CONFUSED classes with the highest top-1 error, highest first.

    With few images a class many have the same error: the mean probability of the true class
    decides between them.
    """
    best = predictions.probabilities[views].argmax(axis=1)
    true = predictions.true_probabilities(views)
    guesses: dict[int, Counter[int]] = {}
    for label, guess in zip(predictions.labels.tolist(), best.tolist(), strict=True):
        guesses.setdefault(label, Counter())[guess] += 1
    classes = [ConfusedClass(label, counts) for label, counts in guesses.items()]
    trust = {label: float(true[predictions.labels == label].mean()) for label in guesses}
    return sorted(classes, key=lambda entry: (-entry.error, trust[entry.label]))[:CONFUSED]
