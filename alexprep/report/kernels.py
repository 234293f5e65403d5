"""The page of a run, continued: the first layer, as in Figure 3 of the paper."""

import torch

from alexnet.model.grouped import Grouped
from alexprep.model.trained import Trained
from alexprep.report import page as html
from alexprep.report.charts import ranked
from alexprep.report.images import colour_share, kernel_sheet

RANDOM = 2 / 3  # share of colour in independent random weights


def kernels(trained: Trained) -> str:
    """Figure 3 of the paper: the kernels of conv1, a column beside the other."""
    model = trained.model
    assert isinstance(model, Grouped)
    weight: torch.Tensor = model.get_parameter(f"{model.layers[0]}.weight")
    columns = [part.detach().cpu().double().numpy() for part in weight.chunk(model.config.columns)]
    shares = {f"column {n}": colour_share(part) for n, part in enumerate(columns, start=1)}
    side = weight.shape[-1]
    sheets = [
        html.figure(
            html.picture(
                kernel_sheet(part),
                f"The {len(part)} kernels of {name}, {side} x {side} pixels each",
                style="pixels",
            ),
            f"{name}: {len(part)} kernels of {side} x {side} x 3",
        )
        for (name, _), part in zip(shares.items(), columns, strict=True)
    ]
    rows = [
        (name, len(each), f"{sorted(each)[len(each) // 2]:.0%}", f"{(each > RANDOM).mean():.0%}")
        for name, each in shares.items()
    ]
    chart = html.chart(
        "colourful",
        ranked({name: each.tolist() for name, each in shares.items()}, RANDOM),
        says="Colour share of every kernel, by column, smallest first.",
    )
    head = ("", "kernels", "colour share, median", "kernels above random")
    words = html.paragraph(
        "Each kernel is scaled by its own largest weight; gray is zero. The colour share of a "
        "kernel is the part of its energy (sum of squares) that is left when the mean of red, "
        "green and blue is taken away at each pixel: 0% sees only brightness, 100% only colour, "
        "and random weights have 67%. In the paper one column turned to brightness and the other "
        "to colour."
    )
    return words + html.pair(*sheets) + html.pair(chart, html.table(head, rows, numbers=(1, 2, 3)))
