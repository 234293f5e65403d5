"""Figure 1 of the paper: epochs to 25% training error on CIFAR-10, ReLU against tanh.

    python benchmarks/figure1.py ROOT OUT --rates .002,.001,.004,.0005 --seeds 1

ROOT is a data set of 32 pixels: `alexprep shard cifar10 ROOT --size 32`.
The paper gives neither network nor rates: a four-layer network, no regularisation of any kind, the
rate chosen for each by itself. Here: 5x5 convolutions of 32, 32 and 64 maps with overlapping pools
(layers-19pct.cfg without its decay) and a dense layer, batch 128, no crops, no mirror, inputs in
0..255 minus the mean colour. A rate is given up when it has taken as many epochs as the best one of
its neuron. OUT/figure1.json has every curve, figure1.md the table, figure1.svg the picture; run it
again to train the curves that are missing.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

import alexnet
from alexnet.model.spec import Conv, Dense, ModelConfig
from alexnet.training.config import TrainConfig
from alexnet.training.optim import sgd
from alexnet.training.step import keep_freed_memory
from alexprep.machine import machine
from pipelines import AugmentSpec, LoaderConfig, open_loader

TARGET = 0.25
NEURONS = {"relu": "#1f5fa8", "tanh": "#c2571a"}
NETWORK = ModelConfig(
    columns=1,
    crop=32,
    pad_end=0,
    dropout=0.0,
    layers=(
        # sd 1e-4 in the file's first layer suits inputs of 0..255 and a rate of .001.
        Conv(name="conv1", out=32, kernel=5, pad=2, then=("pool", "act"), sd=0.0001),
        Conv(name="conv2", out=32, kernel=5, pad=2, then=("act", "pool"), sd=0.01),
        Conv(name="conv3", out=64, kernel=5, pad=2, then=("act", "pool"), sd=0.01),
        Dense(name="fc10", out=10, then=(), sd=0.1, bias=0.0),
    ),
)
# CIFAR-10's mean colour: no statistics are needed.
SPEC = AugmentSpec(
    source=32, crop=32, mirror=False, lighting=0.0, divide=1.0, mean=(125.3, 123.0, 113.9)
)


def main() -> None:
    """Train every neuron at every rate until it has learned a quarter or its epochs are over."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rates", default=".002,.001,.004,.0005")
    parser.add_argument("--neurons", default=",".join(NEURONS), help="that learn at these rates")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=40, help="at most")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    images, labels = everything(args.root)
    path = args.out / "figure1.json"
    curves: list[dict] = json.loads(path.read_text())["curves"] if path.exists() else []
    done = {(curve["act"], curve["rate"], curve["seed"]) for curve in curves}
    for seed in range(args.seeds):
        for rate in (float(word) for word in args.rates.split(",")):
            for act in args.neurons.split(","):
                if (act, rate, seed) in done:
                    continue
                curve = {"act": act, "rate": rate, "seed": seed}
                rivals = [c for c in curves if (c["act"], c["seed"]) == (act, seed) and reached(c)]
                limit = min([args.epochs, *(len(rival["errors"]) for rival in rivals)])
                errors = curve["errors"] = []
                for error in learn(curve, images, labels, args.precision):
                    errors.append(round(error, 5))
                    if error <= TARGET or not math.isfinite(error) or len(errors) >= limit:
                        break
                curve["epochs_to_target"] = epochs_to_target(errors)
                curves.append(curve)
                sys.stderr.write(f"{curve}\n")
                record = {"machine": machine(), "argv": sys.argv[1:], "curves": curves}
                path.write_text(json.dumps(record, indent=1) + "\n")
                (args.out / "figure1.md").write_text(table(curves))
                (args.out / "figure1.svg").write_text(picture(curves))
    sys.stdout.write(table(curves))


def everything(root: Path) -> tuple[Tensor, Tensor]:
    """All training images and labels, in memory: they are the same in every epoch."""
    config = LoaderConfig(batch=500, channels_last=True)
    with open_loader(root, "train", config, SPEC, train=False) as loader:
        batches = [(images.clone(), labels) for images, labels in loader]
    images, labels = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    return images.contiguous(memory_format=torch.channels_last), labels


def learn(
    curve: dict, images: Tensor, labels: Tensor, precision: str = "float32"
) -> Iterator[float]:
    """Training error of each epoch, counted while it is learned, as the paper's curve.

    nan once the loss is no number.
    """
    config = TrainConfig(lr=curve["rate"], bias_lr=2.0, weight_decay=0.0)
    model = alexnet.build(replace(NETWORK, act=curve["act"]), seed=curve["seed"])
    model.to(memory_format=torch.channels_last).train()
    optimizer = sgd(model, config)
    chance = torch.Generator().manual_seed(curve["seed"])
    while True:
        wrong, lost = torch.zeros((), dtype=torch.int64), torch.zeros(())
        for indices in torch.randperm(len(images), generator=chance).split(128):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                logits = model(images[indices])
                loss = F.cross_entropy(logits, labels[indices])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            wrong += (logits.argmax(1) != labels[indices]).sum()
            lost += loss.detach()
        yield float(wrong) / len(images) if bool(lost.isfinite()) else math.nan


def reached(curve: dict) -> bool:
    """Whether a curve came down to the target."""
    return curve["epochs_to_target"] is not None


def epochs_to_target(errors: list[float]) -> float | None:
    """Between the two epochs around the target, linearly; None if it was not reached."""
    if not errors[-1] <= TARGET:
        return None
    previous = errors[-2] if len(errors) > 1 else 1.0
    return len(errors) - 1 + (previous - TARGET) / (previous - errors[-1])


def fastest(curves: list[dict], act: str) -> tuple[float, float] | None:
    """The best rate of a neuron and its median epochs over the seeds.

    Of the rates that were tried with most seeds, those at which every one came down: one seed may
    choose the rate, the others say what it is worth.
    """
    tried: dict[float, list[dict]] = {}
    for curve in curves:
        if curve["act"] == act:
            tried.setdefault(curve["rate"], []).append(curve)
    seeds = max(map(len, tried.values()), default=0)
    down = [
        (rate, median(curve["epochs_to_target"] for curve in group))
        for rate, group in tried.items()
        if len(group) == seeds and all(map(reached, group))
    ]
    return min(down, key=lambda rate: rate[1], default=None)


def table(curves: list[dict]) -> str:
    """Every rate of each neuron, and the ratio of the best, as Markdown."""
    lines = ["| neuron | rate | seed | epochs to 25% training error |", "|---|---|---|---|"]
    for curve in curves:
        if reached(curve):
            shown = f"{curve['epochs_to_target']:.1f}"
        else:
            shown = f"given up after {len(curve['errors'])} at {curve['errors'][-1]:.1%}"
        lines.append(f"| {curve['act']} | {curve['rate']:g} | {curve['seed']} | {shown} |")
    relu, tanh = (fastest(curves, act) for act in NEURONS)
    if relu and tanh:
        lines.append(
            f"\nAt the best rate of each, {relu[0]:g} and {tanh[0]:g}, ReLU takes {relu[1]:.1f} "
            f"epochs and tanh {tanh[1]:.1f}: {tanh[1] / relu[1]:.1f} times as many."
        )
    return "\n".join(lines) + "\n"


def picture(curves: list[dict]) -> str:
    """Training error over epochs as SVG: the best rate of each neuron bold, the others faint."""
    width, height, margin, top = 640, 400, 60, 20
    epochs = max(len(curve["errors"]) for curve in curves)

    def x(epoch: float) -> float:
        return round(margin + (width - margin - 90) * epoch / epochs, 1)

    def y(error: float) -> float:
        return round(top + (height - top - 50) * (0.8 - error) / 0.7, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13" fill="#333">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{(margin + width - 90) // 2}" y="{height - 8}" '
        'text-anchor="middle">epochs</text>',
        f'<text x="16" y="{height // 2}" transform="rotate(-90 16 {height // 2})" '
        'text-anchor="middle">training error</text>',
    ]
    for percent in range(10, 81, 10):
        height_of = y(percent / 100)
        parts.append(f'<path d="M{margin} {height_of}H{x(epochs)}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{margin - 8}" y="{height_of + 4}" text-anchor="end">{percent}%</text>'
        )
    for epoch in range(0, epochs + 1, 5 if epochs > 10 else 1):
        parts.append(f'<text x="{x(epoch)}" y="{y(0.1) + 18}" text-anchor="middle">{epoch}</text>')
    parts.append(
        f'<path d="M{margin} {y(TARGET)}H{x(epochs)}" stroke="#333" stroke-dasharray="5 4"/>'
    )
    for curve in curves:
        choice = fastest(curves, curve["act"])
        best = choice is not None and (curve["rate"], curve["seed"]) == (choice[0], 0)
        points = " ".join(
            f"{x(n + 1)},{y(min(error, 0.8))}"
            for n, error in enumerate(curve["errors"])
            if math.isfinite(error)
        )
        colour = NEURONS[curve["act"]]
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" '
            f'stroke-width="{3 if best else 1}" opacity="{1 if best else 0.35}"/>'
        )
        if best:
            end = len(curve["errors"])
            parts.append(
                f'<text x="{x(end) + 6}" y="{y(curve["errors"][-1]) + 18}" fill="{colour}" '
                f'font-weight="bold">{curve["act"]}, {curve["rate"]:g}</text>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
