"""Figure 1 of the paper: epochs to 25% training error on CIFAR-10, ReLU against tanh.

    python benchmarks/figure1.py ROOT OUT --rates .0005,.001,.002,.004 --seeds 1

ROOT is a data set of 32 pixels: `alexprep shard cifar10 ROOT --size 32`, `alexprep stats ROOT`.
The paper gives neither network nor rates: a four-layer network, no regularisation of any kind, the
rate chosen for each by itself. Here: 5x5 convolutions of 32, 32 and 64 maps with overlapping pools
(layers-19pct.cfg without its decay) and a dense layer, batch 128, no crops, no mirror, inputs in
0..255 minus the mean image. OUT/figure1.json has every curve, figure1.md the table.
"""

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import torch

import alexnet
from alexnet.config import TrainConfig
from alexnet.evaluate import places
from alexnet.optim import sgd
from alexnet.schedule import CONSTANT
from alexnet.spec import Conv, Dense, ModelConfig
from alexnet.step import train_step
from alexprep.machine import machine
from pipelines import AugmentSpec, LoaderConfig, open_loader

TARGET = 0.25
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
        Dense(name="fc10", out=10, then=(), whole=True, sd=0.1, bias=0.0),
    ),
)
SPEC = AugmentSpec(source=32, crop=32, mirror=False, lighting=0.0, divide=1.0)


def main() -> None:
    """Train every neuron at every rate until it has learned a quarter or its epochs are over."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rates", default=".0005,.001,.002,.004")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=40)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    images, labels = everything(args.root)
    curves = []
    for seed in range(args.seeds):
        for rate in (float(word) for word in args.rates.split(",")):
            for act in ("relu", "tanh"):
                curve = {"act": act, "rate": rate, "seed": seed}
                curve["errors"] = learn(act, rate, seed, images, labels, args.epochs)
                curve["epochs_to_target"] = epochs_to_target(curve["errors"])
                curves.append(curve)
                sys.stderr.write(f"{curve}\n")
                about = {"machine": machine(), "argv": sys.argv[1:], "curves": curves}
                (args.out / "figure1.json").write_text(json.dumps(about, indent=1) + "\n")
    (args.out / "figure1.md").write_text(table(curves))
    sys.stdout.write(table(curves))


def everything(root: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """All training images and labels, in memory: they are the same in every epoch."""
    config = LoaderConfig(batch=500, channels_last=True)
    with open_loader(root, "train", config, SPEC, train=False) as loader:
        batches = [(images.clone(), labels) for images, labels in loader]
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    return images.contiguous(memory_format=torch.channels_last), labels


def learn(
    act: str, rate: float, seed: int, images: torch.Tensor, labels: torch.Tensor, epochs: int
) -> list[float]:
    """Training error of each epoch, counted while it is learned, as the paper's curve."""
    config = TrainConfig(lr=rate, bias_lr=2.0, weight_decay=0.0, schedule=CONSTANT, seed=seed)
    model = alexnet.build(replace(NETWORK, act=act), seed=seed)
    model.to(memory_format=torch.channels_last).train()
    optimizer = sgd(model, config)
    chance = torch.Generator().manual_seed(seed)
    errors: list[float] = []
    while len(errors) < epochs and (not errors or errors[-1] > TARGET):
        wrong = 0
        for places_of in torch.randperm(len(images), generator=chance).split(128):
            batch = (images[places_of], labels[places_of])
            with torch.no_grad():
                before = places(model(batch[0]), batch[1]) > 0
            wrong += int(before.sum())
            if not math.isfinite(float(train_step(model, optimizer, batch, config))):
                return [*errors, 1.0]
        errors.append(wrong / len(images))
    return errors


def epochs_to_target(errors: list[float]) -> float | None:
    """Between the two epochs around the target, linearly; None if it was not reached."""
    if errors[-1] > TARGET:
        return None
    before = errors[-2] if len(errors) > 1 else 1.0
    return len(errors) - 1 + (before - TARGET) / (before - errors[-1])


def table(curves: list[dict]) -> str:
    """The best rate of each neuron and their ratio, as Markdown."""
    lines = ["| neuron | rate | seed | epochs to 25% training error |", "|---|---|---|---|"]
    best: dict[str, float] = {}
    for curve in curves:
        reached = curve["epochs_to_target"]
        shown = "not reached" if reached is None else f"{reached:.1f}"
        lines.append(f"| {curve['act']} | {curve['rate']:g} | {curve['seed']} | {shown} |")
        if reached is not None:
            best[curve["act"]] = min(reached, best.get(curve["act"], math.inf))
    if len(best) == 2:
        ratio = best["tanh"] / best["relu"]
        lines.append(f"\nAt the best rate of each tanh takes {ratio:.1f} times the epochs.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
