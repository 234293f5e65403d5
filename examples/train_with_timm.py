"""Train any network of timm on the tars that alexprep made, as timm's own train.py does.

    python examples/train_with_timm.py DATASET [--model resnet50] [--epochs 90] [--device cuda:0]

You see one line per epoch: the loss of its last batch, and the top-1 accuracy on the validation
images:

    epoch 0: loss 6.214, top-1 acc 3.12% of 50,000 images

train.py is in timm's repository, not in its package, and needs nothing of this:

    python train.py --dataset wds/ --data-dir DATASET --train-split train --val-split validation
        --model resnet50 --num-classes 1000 --workers 8

These are its calls in its order, without its options. timm's reader shuffles shards and a buffer of
samples, gives each worker its own shards, and starts an epoch that was stopped from its beginning.
Evaluation is exact because one worker reads all shards; the count shows it.
"""
# ruff: noqa: T201 - it prints

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

try:
    import timm
    from timm.data import create_dataset, create_loader, resolve_data_config
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is not installed (pip install timm torchvision).")

from pipelines.errors import DataError
from pipelines.format import Manifest


def loaders(options: argparse.Namespace, model: nn.Module) -> tuple[Any, Any]:
    """What create_dataset and create_loader give for training and for validation."""
    shape = {"input_size": (3, options.crop, options.crop)} if options.crop else {}
    config = resolve_data_config(shape, model=model)
    given = {
        "input_size": config["input_size"],
        "batch_size": options.batch,
        "interpolation": config["interpolation"],
        "mean": config["mean"],
        "std": config["std"],
        "device": torch.device(options.device),
        "use_prefetcher": options.device.startswith("cuda"),
    }
    splits = [
        create_dataset(
            "wds/",
            root=str(options.dataset),
            split=split,
            is_training=split == "train",
            batch_size=options.batch,
            seed=options.seed,
        )
        for split in ("train", "validation")
    ]
    # Each worker of timm's reader pads its part to whole batches or has shards of its own.
    training = create_loader(
        splits[0], is_training=True, num_workers=options.workers, auto_augment=None, **given
    )
    validation = create_loader(
        splits[1],
        is_training=False,
        num_workers=min(1, options.workers),
        crop_pct=config["crop_pct"],
        **given,
    )
    return training, validation


def accuracy(model: nn.Module, loader: Any, device: torch.device) -> tuple[float, int]:
    """Top-1 accuracy, and of how many images."""
    correct = count = 0
    model.eval()
    with torch.inference_mode():
        for images, labels in loader:
            best = model(images.to(device)).argmax(1)
            correct += int((best == labels.to(device)).sum())
            count += len(labels)
    model.train()
    return correct / count, count


def train(options: argparse.Namespace) -> None:
    """Train as train.py does, and print the accuracy after every epoch."""
    manifest = Manifest.load(options.dataset)
    samples = manifest.split("validation", options.dataset).samples
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    model = timm.create_model(options.model, num_classes=len(manifest.classes)).to(device)
    training, validation = loaders(options, model)
    optimizer = create_optimizer_v2(model, opt="lamb", lr=5e-3, weight_decay=0.02)
    scheduler, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=options.epochs, warmup_epochs=0
    )
    criterion = LabelSmoothingCrossEntropy(0.1).to(device)
    for epoch in range(options.epochs):
        if hasattr(training.dataset, "set_epoch"):  # or every epoch has the order of the first
            training.dataset.set_epoch(epoch)
        loss = torch.zeros(())
        for images, labels in training:
            loss = criterion(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step(epoch + 1)
        share, count = accuracy(model, validation, device)
        print(f"epoch {epoch}: loss {loss:.3f}, top-1 acc {share:.2%} of {count:,} images")
        if count != samples:
            sys.exit(f"timm has read {count:,} validation images of {samples:,}.")


def positive(text: str) -> int:
    """An option that is a number of something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and train; what is wrong with it or the data set is one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--epochs", type=positive, default=90)
    parser.add_argument("--batch", type=positive, default=256)
    parser.add_argument("--crop", type=positive, help="pixels a side  [default: the model's]")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    if options.model not in timm.list_models():
        parser.error(f"timm has no model {options.model!r}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} sees no GPU: use --device cpu")
    try:
        train(options)
    except (DataError, ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
