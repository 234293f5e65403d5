"""The page of a data set, continued: its colours, and its images with and without augmentation."""

from pathlib import Path

import numpy as np

from alexprep.report import page as html
from alexprep.report.images import photograph, swatch
from alexprep.report.page import short
from alexprep.report.samples import DRAWS, Shown, training_images
from pipelines.format import Manifest
from pipelines.imagestats import ImageStats


def colours(stats: ImageStats) -> str:
    """The mean image, and the mean colour along each principal axis."""
    mean_image = html.picture(
        photograph(stats.mean_image_HWC), "The mean of all training images", style="mean"
    )
    axes = stats.eigenvectors
    share = stats.eigenvalues / stats.eigenvalues.sum()
    rows = [
        (
            n + 1,
            f"{stats.stdevs[n]:.2f}",
            f"{share[n]:.1%}",
            *(f"{value:+.2f}" for value in axes[:, n]),
        )
        for n in range(3)
    ]
    strips = "".join(
        _strip(stats, n, f"Axis {n + 1}: {share[n]:.1%} of the variance") for n in range(3)
    )
    numbers = html.table(
        ("", "red", "green", "blue"),
        [
            ("mean", *(f"{value:.2f}" for value in stats.mean)),
            ("standard deviation", *(f"{value:.2f}" for value in stats.sd)),
        ],
        numbers=(1, 2, 3),
        caption=f"Grey levels, 0 to 255, over every pixel of {stats.images:,} images.",
    )
    vectors = html.table(
        ("axis", "sd", "variance", "red", "green", "blue"),
        rows,
        numbers=(1, 2, 3, 4, 5),
    )
    left = html.figure(mean_image, f"The mean image of {stats.split}, what training subtracts.")
    return html.pair(left + numbers, f"<h3>Principal colours</h3>{strips}{vectors}")


def _strip(stats: ImageStats, number: int, caption: str) -> str:
    """The mean colour moved along an axis, from -2 to +2 standard deviations."""
    steps = np.linspace(-2, 2, 7) * stats.stdevs[number]
    cells = "".join(
        f'<span style="background:{swatch(stats.mean + step * stats.eigenvectors[:, number])}">'
        "</span>"
        for step in steps.tolist()
    )
    bar = f'<div class="swatches" role="img" aria-label="{html.text(caption)}">{cells}</div>'
    return html.figure(bar, f"{caption}; from 2 sd below the mean colour to 2 above.")


def images(root: Path, manifest: Manifest, split: str, stats: ImageStats | None) -> str:
    """Some images as they are stored, and as the epochs show them to the network."""
    shown = training_images(root, manifest, split, stats if split == "train" else None)
    lit = (
        "cropped, mirrored and lit" if stats else "cropped and mirrored (lighting wants statistics)"
    )
    rows = "".join(
        f'<ul class="row">{_row(short(manifest.classes[each.label][1]), each)}</ul>'
        for each in shown
    )
    return (
        html.paragraph(
            f"Left, an image as it is stored. Right of it the same image {lit}, as the first "
            f"{DRAWS} epochs with seed 0 show it to the network; the mean is added again."
        )
        + rows
    )


def _row(name: str, each: Shown) -> str:
    stored = html.picture(photograph(each.stored_HWC), f"{name}, as stored")
    drawn = "".join(
        f"<li>{html.picture(photograph(image), f'{name}, in epoch {n}')}epoch {n}</li>"
        for n, image in enumerate(each.drawn_NHWC, start=1)
    )
    return f"<li>{stored}{html.text(name)}</li>{drawn}"
