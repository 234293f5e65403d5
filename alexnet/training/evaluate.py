"""Error rates the way the paper counted them: probabilities averaged over views and networks.

Letters: N images, V views, K classes.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

TOP = 5


class Errors(NamedTuple):
    """Shares of images, 0..1."""

    top1: float
    top5: float


def view_probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """Mean of the softmax over the views: float64 (N, K) of images (N, V, C, H, W) or (N, C, H, W).

    The original averages probabilities, not logits (layer.cu).
    """
    if images.ndim == 4:
        return model(images).double().softmax(-1)
    logits_NVK = model(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    return logits_NVK.double().softmax(-1).mean(dim=1)


def predict_probabilities(
    model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Float64 (N, K) probabilities and int64 (N,) labels of a whole loader, on the CPU."""
    training = model.training
    model.eval()
    probabilities: list[Tensor] = []
    labels: list[Tensor] = []
    try:
        with torch.inference_mode():
            for images, batch_labels in loader:
                probabilities.append(view_probabilities(model, images).cpu())
                labels.append(batch_labels.cpu())
    finally:
        model.train(training)
    return torch.cat(probabilities), torch.cat(labels)


def rank_of_label(scores_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Rank of the right class by score, 0 is the first: int64 (N,).

    Equal scores rank in the order of their classes, so that a network whose scores are all equal is
    not right about everything; if a score of an image is NaN, its label ranks last.
    """
    own = scores_NK.gather(1, labels_N[:, None])
    has_lower_class = torch.arange(scores_NK.shape[1], device=scores_NK.device) < labels_N[:, None]
    rank = ((scores_NK > own) | ((scores_NK == own) & has_lower_class)).sum(1)
    return torch.where(scores_NK.isnan().any(1), scores_NK.shape[1] - 1, rank)


def error_rates(probabilities_NK: Tensor, labels_N: Tensor) -> Errors:
    """Top-1 and top-5 error."""
    rank = rank_of_label(probabilities_NK, labels_N)
    return Errors(float((rank >= 1).double().mean()), float((rank >= TOP).double().mean()))


def average(members: Sequence[Tensor], weights: Sequence[float] = ()) -> Tensor:
    """Weighted mean (N, K) of the predictions of several networks; equal weights by default.

    Raises ValueError as `normalized` does.
    """
    total = torch.zeros_like(members[0])
    for member, share in zip(members, normalized(len(members), weights), strict=True):
        total += member * share
    return total


def normalized(members: int, weights: Sequence[float] = ()) -> list[float]:
    """Weights of that many networks, scaled to add up to 1; equal ones by default.

    ValueError unless there is one finite weight a member, none below 0 and one above.
    """
    weights = weights or [1.0] * members
    if len(weights) != members or min(weights) < 0 or not 0 < sum(weights) < math.inf:
        raise ValueError(
            f"Expected {members} weights, one a prediction and none below 0, got {list(weights)}."
        )
    return [weight / sum(weights) for weight in weights]
