"""What `alexprep stats` prints: the numbers, lines to paste elsewhere, others' constants."""

import math

import numpy as np
from numpy.typing import NDArray

from pipelines.imagestats import ImageStats

Floats = NDArray[np.float64]

# Measured by others on ILSVRC2012's training images; RGB, 0..255 unless said otherwise.
# Mean and stdevs that came with the authors' code of 2014 (akrizhevsky/cuda-convnet2, input_meta).
RELEASE_2014_MEAN = (127.30, 119.72, 104.91)
RELEASE_2014_STDEVS = (121.78, 37.09, 19.72)
RELEASE_2014_AXES = (
    (-0.5635, -0.5762, -0.5920),
    (-0.7126, -0.0235, 0.7012),
    (0.4180, -0.8170, 0.3973),
)
# torchvision's reference Normalize, 0..1.
TORCHVISION_MEAN = (0.485, 0.456, 0.406)
TORCHVISION_STD = (0.229, 0.224, 0.225)
# Lighting of fb.resnet.torch: eigenvalues of the covariance of images in 0..1.
FB_RESNET_EIGVAL = (0.2175, 0.0188, 0.0045)


def format_report(stats: ImageStats) -> str:
    """The whole report, in units of 0..255 unless a line says otherwise."""
    return "\n\n".join([_table(stats), _lines_to_paste(stats), _comparison(stats)])


def _table(stats: ImageStats) -> str:
    axes = stats.eigenvectors
    lines = [
        f"{stats.images:,} images of {stats.width}x{stats.height} in split {stats.split}; "
        "RGB in 0..255",
        "",
        f"{'':12}{'red':>12}{'green':>12}{'blue':>12}",
        _row("mean", stats.mean),
        _row("sd", stats.sd),
        *(
            _row(f"cov {name}", row)
            for name, row in zip(("red", "green", "blue"), stats.covariance, strict=True)
        ),
        "",
        f"{'':12}{'red':>12}{'green':>12}{'blue':>12}{'stdev':>12}{'eigenvalue':>14}",
        *(
            f"{_row(f'axis {i + 1}', axes[:, i], 4)}{stats.stdevs[i]:12.2f}"
            f"{stats.eigenvalues[i]:14.2f}"
            for i in range(3)
        ),
    ]
    return "\n".join(lines)


def _lines_to_paste(stats: ImageStats) -> str:
    lighting = ", ".join(f"{value:.4f}" for value in stats.eigenvalues / 255**2)
    vectors = ", ".join(_numbers(row, 4) for row in stats.eigenvectors)
    unit_mean, unit_sd = _numbers(stats.mean / 255, 4), _numbers(stats.sd / 255, 4)
    mean, sd, stdevs = (_numbers(row, 2) for row in (stats.mean, stats.sd, stats.stdevs))
    return f"""\
Lines to paste
torchvision, images in 0..1:
    Normalize(mean={unit_mean}, std={unit_sd})
DALI, images in 0..255:
    fn.crop_mirror_normalize(images, mean={mean}, std={sd})
Lighting of fb.resnet, images in 0..1; eigval are variances there (and multiply as they are):
    eigval = [{lighting}]
    eigvec = [{vectors}]  # a row a channel
Lighting of Krizhevsky et al. 2012, images in 0..255; 0.1 * N(0, 1) * stdevs along the axes:
    stdevs = {stdevs}"""


def _comparison(stats: ImageStats) -> str:
    ours = stats.eigenvalues / 255**2
    rows = [
        ("mean, release of 2014, 0..255", stats.mean, RELEASE_2014_MEAN, 2),
        ("stdevs, release of 2014, 0..255", stats.stdevs, RELEASE_2014_STDEVS, 2),
        ("mean, torchvision, 0..1", stats.mean / 255, TORCHVISION_MEAN, 3),
        ("std, torchvision, 0..1", stats.sd / 255, TORCHVISION_STD, 3),
        ("eigval, fb.resnet, 0..1 squared", ours, FB_RESNET_EIGVAL, 4),
    ]
    lines = ["Compared with what others published for ILSVRC2012"]
    lines.append(f"{'':34}{'measured':>28}{'published':>28}{'ratio':>22}")
    for name, measured, published, digits in rows:
        ratio = [
            value / reference if reference else math.nan
            for value, reference in zip(measured.tolist(), published, strict=True)
        ]
        lines.append(
            f"{name:34}{_numbers(measured, digits):>28}{_numbers(np.array(published), digits):>28}"
            f"{_numbers(np.array(ratio), 2):>22}"
        )
    return "\n".join(lines)


def _row(name: str, values: Floats, digits: int = 2) -> str:
    return f"{name:12}" + "".join(f"{value:12.{digits}f}" for value in values.tolist())


def _numbers(values: Floats, digits: int) -> str:
    return "[" + ", ".join(f"{value:.{digits}f}" for value in values.tolist()) + "]"
