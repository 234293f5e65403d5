"""Train a small ResNet on shards that alexprep made, through the loader alone.

    python examples/train_another_network.py DATASET [--epochs 10] [--batch 128] [--device cuda:0]

You see one line per epoch: the loss of its last batch and the accuracy on the validation split.
Nothing here is specific to AlexNet: the network is plain torch, and the images are normalized as
most networks published for ImageNet expect. DATASET is what `alexprep shard` wrote, with a
validation split; statistics are not needed, since mean and sd are given.
"""
# ruff: noqa: T201 - it prints

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines import AugmentSpec, Loader, LoaderConfig, open_loader
from pipelines.errors import DataError
from pipelines.format import Manifest

MEAN, SD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(images)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(images))


def small_resnet(classes: int) -> nn.Module:
    """About 0.7 million parameters; any crop from 32 pixels up."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 7, 4, 3),
        nn.ReLU(),
        Block(32, 64, 2),
        Block(64, 128, 2),
        Block(128, 128, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, classes),
    )


def accuracy(model: nn.Module, loader: Loader) -> float:
    """Top-1 accuracy on a split, centre crops."""
    model.eval()
    correct = 0
    with torch.inference_mode():
        for images, labels in loader:
            correct += int((model(images).argmax(dim=1) == labels).sum())
    model.train()
    return correct / loader.samples


def train(options: argparse.Namespace) -> None:
    """Train, and print the accuracy on the validation split after every epoch."""
    size = Manifest.load(options.dataset).size
    spec = AugmentSpec(source=size, crop=size * 7 // 8, mean=MEAN, sd=SD, lighting=0, divide=1)
    config = LoaderConfig(batch=options.batch, device=options.device, channels_last=True)
    with (
        open_loader(options.dataset, "train", config, spec) as training,
        open_loader(options.dataset, "validation", config, spec) as validation,
    ):
        model = small_resnet(len(training.classes)).to(
            options.device, memory_format=torch.channels_last
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
        for epoch in range(options.epochs):
            for images, labels in training:
                loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            print(f"epoch {epoch}: loss {loss:.3f}, top-1 acc {accuracy(model, validation):.1%}")


def main() -> None:
    """Read the command line and train; a fault of the data set is one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    try:
        train(parser.parse_args())
    except DataError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
