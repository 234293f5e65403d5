"""Draw the first layer of both columns of a network that `alexprep train` trained.

    python examples/draw_kernels.py RUN [kernels.png]

RUN is the folder of a run, or one of its checkpoints. You see a picture of the kernels of conv1, a
block per column, each kernel scaled by its own largest weight (gray is zero), and two lines that
say how colourful the columns are:

    column 1: 48 kernels of 11x11, colour share 0.61 in the median, from 0.20 to 0.97

The colour share of a kernel is the part of its energy that remains when the mean of red, green and
blue is subtracted: 0 responds to brightness only, 1 to colour only, random weights have 2/3. In the
paper's figure 3 the columns have specialized: one is gray, the other coloured. Does this happen in
your run, after how many epochs, and with a single column?
"""
# ruff: noqa: T201 - it prints

import base64
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from alexnet.errors import RunError
from alexprep.model.trained import load_trained
from alexprep.report.pictures import colour_share, kernel_sheet

WIDTH, BETWEEN = 600, 24


def columns_of(run: Path) -> list[np.ndarray]:
    """The kernels of conv1, (N, 3, H, W) for each column."""
    trained = load_trained(run)
    weight = trained.model.get_parameter("conv1.weight").detach().double()
    return [kernels.numpy() for kernels in weight.chunk(trained.model.config.columns)]


def picture(columns: list[np.ndarray]) -> Image.Image:
    """The kernels of every column as a block, one block below the other."""
    sheets = [Image.open(io.BytesIO(sheet_png(kernels))).convert("RGB") for kernels in columns]
    zoom = max(1, WIDTH // sheets[0].width)
    large = [sheet.resize((sheet.width * zoom, sheet.height * zoom), 0) for sheet in sheets]
    height = sum(sheet.height + BETWEEN for sheet in large) - BETWEEN
    canvas = Image.new("RGB", (large[0].width, height), "white")
    top = 0
    for sheet in large:
        canvas.paste(sheet, (0, top))
        top += sheet.height + BETWEEN
    return canvas


def sheet_png(kernels: np.ndarray) -> bytes:
    """The sheet that `alexprep report` shows, as a file."""
    return base64.b64decode(kernel_sheet(kernels).partition(",")[2])


def main() -> None:
    """Draw the run named on the command line."""
    run, *out = sys.argv[1:] or sys.exit(__doc__)
    try:
        columns = columns_of(Path(run))
    except RunError as error:
        sys.exit(str(error))
    for number, kernels in enumerate(columns, start=1):
        share = np.sort(colour_share(kernels))
        size = "x".join(map(str, kernels.shape[2:]))
        print(
            f"column {number}: {len(kernels)} kernels of {size}, colour share "
            f"{np.median(share):.2f} in the median, from {share[0]:.2f} to {share[-1]:.2f}"
        )
    path = Path(out[0] if out else "kernels.png")
    picture(columns).save(path)
    print(path)


if __name__ == "__main__":
    main()
