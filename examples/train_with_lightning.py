"""Train a network with Lightning on the tars that alexprep made, or on alexprep's loader.

    python examples/train_with_lightning.py DATASET OUT [--loader tars|alexprep]
        [--model resnet50|vit_small_patch16_224|...] [--epochs 90]

You see Lightning's progress and, after every epoch, the top-1 accuracy on the validation images:

    epoch 0: loss 6.214, top-1 acc 3.12% of 50,000 images

With "tars" the webdataset library reads them in DataLoader workers, and torchvision augments:
shards and a buffer of samples are shuffled, and a run that was stopped starts its epoch anew. With
"alexprep" Lightning's checkpoints hold the position of `open_loader` too, so that `OUT/last.ckpt`
continues in the middle of an epoch with the batch that was next. The same command resumes.
"""
# ruff: noqa: T201 - it prints

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

try:
    import lightning
    import timm
    import webdataset
    from lightning.pytorch.callbacks import ModelCheckpoint
    from torchvision import transforms
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is not installed (pip install lightning timm torchvision webdataset).")

from pipelines import AugmentSpec, LoaderConfig, open_loader
from pipelines.errors import DataError
from pipelines.format import Manifest

MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Classifier(lightning.LightningModule):
    """Any network that ends with a number for each class."""

    def __init__(self, model: nn.Module, epochs: int) -> None:
        super().__init__()
        self.model, self.epochs = model, epochs
        self.correct = self.count = 0

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels, label_smoothing=0.1)
        self.log("loss", loss, batch_size=len(labels), prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, labels = batch
        self.correct += int((self.model(images).argmax(1) == labels).sum())
        self.count += len(labels)

    def on_validation_epoch_end(self) -> None:
        # With several devices Lightning gives each its part: add them up.
        counts = torch.tensor([self.correct, self.count], device=self.device)
        totals = self.all_gather(counts).view(-1, 2).sum(0)
        correct, count = totals.tolist()
        loss = self.trainer.callback_metrics["loss"]
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            share = f"top-1 acc {correct / count:.2%} of {count:,} images"
            print(f"epoch {self.current_epoch}: loss {loss:.3f}, {share}")
        self.correct = self.count = 0

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), 2e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def from_tars(options: argparse.Namespace, manifest: Manifest, split: str) -> Iterable[Any]:
    """Batches by webdataset and torchvision: the tars are read as they are."""
    training = split == "train"
    tars = [str(options.dataset / shard.name) for shard in manifest.split(split, "").shards]
    size = options.crop
    shape = [transforms.Resize(size * 8 // 7), transforms.CenterCrop(size)]
    if training:
        shape = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    steps = transforms.Compose(
        [*shape, transforms.ToTensor(), transforms.Normalize(MEAN, SD)],
    )
    samples = webdataset.WebDataset(
        tars, shardshuffle=len(tars) if training else False, nodesplitter=webdataset.split_by_node
    )
    if training:
        samples = samples.shuffle(5000)
    pairs = samples.decode("pil").to_tuple("jpg", "cls").map_tuple(steps, int)
    workers = min(options.workers, len(tars))  # each has shards of its own
    return torch.utils.data.DataLoader(
        pairs.batched(options.batch), batch_size=None, num_workers=workers
    )


def from_alexprep(options: argparse.Namespace, manifest: Manifest, split: str) -> Iterable[Any]:
    """Batches by alexprep's loader, whose position Lightning saves and loads."""
    spec = AugmentSpec(
        source=manifest.size,
        crop=options.crop,
        area=(0.08, 1),
        resize=options.crop * 8 // 7,
        mean=tuple(255 * value for value in MEAN),
        sd=tuple(255 * value for value in SD),
        lighting=0,
        divide=1,
    )
    config = LoaderConfig(batch=options.batch, seed=options.seed)
    return open_loader(options.dataset, split, config, spec)


def train(options: argparse.Namespace) -> None:
    """Train, or resume from OUT/last.ckpt."""
    manifest = Manifest.load(options.dataset)
    for split in ("train", "validation"):
        manifest.split(split, options.dataset)
    lightning.seed_everything(options.seed)
    model = timm.create_model(options.model, num_classes=len(manifest.classes))
    read = from_tars if options.loader == "tars" else from_alexprep
    checkpoints = ModelCheckpoint(
        dirpath=options.out, save_last=True, every_n_train_steps=options.save_steps, save_top_k=0
    )
    trainer = lightning.Trainer(
        max_epochs=options.epochs,
        max_steps=options.steps,
        accelerator=options.accelerator,
        devices=1,
        default_root_dir=options.out,
        callbacks=[checkpoints],
        logger=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    last = options.out / "last.ckpt"
    trainer.fit(
        Classifier(model, options.epochs),
        read(options, manifest, "train"),
        read(options, manifest, "validation"),
        ckpt_path=last if last.exists() else None,
    )


def positive(text: str) -> int:
    """An option that is a number of something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and train; what is wrong with it or the data set is one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="resnet50", help="of timm")
    parser.add_argument("--loader", choices=("tars", "alexprep"), default="tars")
    parser.add_argument("--epochs", type=positive, default=90)
    parser.add_argument("--steps", type=int, default=-1, help="stop after so many")
    parser.add_argument("--batch", type=positive, default=256)
    parser.add_argument("--crop", type=positive, default=224)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-steps", type=positive, default=500)
    parser.add_argument("--accelerator", default="auto")
    options = parser.parse_args(arguments)
    if options.model not in timm.list_models():
        parser.error(f"timm has no model {options.model!r}")
    try:
        train(options)
    except (DataError, ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
