"""Train a ResNet-50 or a ViT-S/16 on shards that alexprep made, in plain PyTorch.

    python examples/train_resnet_vit.py DATASET OUT [--model vit_s16] [--epochs 90]
    torchrun --nproc-per-node 8 examples/train_resnet_vit.py DATASET OUT --batch 1024

You see one line per epoch: the loss of its last batch, and the top-1 accuracy on every validation
image, each counted once whatever the batch and the number of processes:

    epoch 0: loss 6.214, top-1 acc 3.12% of 50,000 images

OUT/last.pt holds weights, optimizer and the loader's position. The same command resumes from it, in
the middle of an epoch too; on one CPU the weights are then bit for bit those of a run that was not
stopped. Parameters have the names of torchvision's ResNet and timm's ViT, to exchange weights.
"""
# ruff: noqa: T201 - it prints

import argparse
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from pipelines import AugmentSpec, Loader, LoaderConfig, open_loader
from pipelines.errors import DataError
from pipelines.format import Manifest

MEAN, SD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Bottleneck(nn.Module):
    """Three convolutions and a shortcut (He et al. 2015, figure 5); the second has the stride."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        nn.init.zeros_(self.bn3.weight)  # each block begins as its shortcut
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, images: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(images)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        return F.relu(self.bn3(self.conv3(inner)) + self.downsample(images))


class ResNet(nn.Module):
    """Of the ImageNet kind; depths (3, 4, 6, 3) and width 64 are the ResNet-50."""

    def __init__(
        self, classes: int, depths: tuple[int, ...] = (3, 4, 6, 3), width: int = 64
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for number, depth in enumerate(depths):
            blocks: list[nn.Module] = []
            for block in range(depth):
                stride = 2 if number and not block else 1
                blocks.append(Bottleneck(inputs, width << number, stride))
                inputs = 4 * (width << number)
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
        self.layers = len(depths)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, 2, 1)
        for number in range(self.layers):
            maps = self.get_submodule(f"layer{number + 1}")(maps)
        return self.fc(maps.mean((2, 3)))


class Attention(nn.Module):
    """Of every token to every token."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, width = tokens.shape
        parts = self.qkv(tokens).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    """The two dense layers of a block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Attention and dense layers, each with a shortcut and a norm before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, 1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, 1e-6)
        self.mlp = Mlp(width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class PatchEmbed(nn.Module):
    """Squares of pixels as tokens."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """Dosovitskiy et al. 2020; 12 blocks of width 384 with 6 heads are the S/16."""

    def __init__(
        self, classes: int, crop: int, *, width: int = 384, blocks: int = 12, heads: int = 6
    ) -> None:
        super().__init__()
        patch = 16
        self.patch_embed = PatchEmbed(width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, (crop // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width, 1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch_embed(images)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.head(self.norm(self.blocks(tokens + self.pos_embed))[:, 0])


def make_model(name: str, classes: int, crop: int, *, toy: bool) -> nn.Module:
    """The network, or one of the same kind that a laptop trains in seconds."""
    if name == "vit_s16":
        return ViT(classes, crop, **({"width": 32, "blocks": 2, "heads": 2} if toy else {}))
    return ResNet(classes, (1, 1), 8) if toy else ResNet(classes)


def make_optimizer(name: str, model: nn.Module, batch: int) -> torch.optim.Optimizer:
    """SGD for the ResNet, AdamW for the ViT; neither decays norms and biases."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    plain = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    if name == "vit_s16":
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=1e-3 * batch / 1024)
    groups = [{"params": decayed, "weight_decay": 5e-5}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=0.5 * batch / 1024, momentum=0.9, nesterov=True)


def lr_factor(step: int, steps: int) -> float:
    """Linear warm-up over 5% of the steps, then half a cosine."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@contextmanager
def processes(device: str) -> Iterator[tuple[int, int, str]]:
    """(rank, world, device) of this process among those that torchrun started, or alone."""
    world, rank = (int(os.environ.get(name, default)) for name, default in WORLD)
    if world == 1:
        yield 0, 1, device
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield rank, world, device
    finally:
        distributed.destroy_process_group()


WORLD = (("WORLD_SIZE", "1"), ("RANK", "0"))


def accuracy(model: nn.Module, loader: Loader) -> tuple[float, int]:
    """Top-1 accuracy, and of how many images: of every process, each image once."""
    device = next(model.parameters()).device
    totals = torch.zeros(2, dtype=torch.int64, device=device)
    if distributed.is_initialized():  # batch norms have seen other images in every process
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)
    model.eval()
    with torch.inference_mode():
        for images, labels in loader:
            totals += torch.stack(
                [(model(images).argmax(1) == labels).sum(), labels.new_tensor(len(labels))]
            )
    model.train()
    if distributed.is_initialized():
        distributed.all_reduce(totals)
    correct, images = totals.tolist()
    return correct / images, images


class Training:
    """A model in training: what a step does, and what OUT/last.pt keeps."""

    def __init__(self, options: argparse.Namespace, loader: Loader, device: str) -> None:
        torch.manual_seed(options.seed)
        model = make_model(options.model, len(loader.classes), options.crop, toy=options.toy)
        self.model = model.to(device, memory_format=torch.channels_last)
        self.optimizer = make_optimizer(options.model, self.model, options.batch)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.loader, self.steps = loader, options.epochs * len(loader)
        self.path: Path = options.out / "last.pt"

    def step(self, network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, after a step of the optimizer."""
        # The position is that of the next batch.
        step = self.loader.epoch * len(self.loader) + self.loader.step - 1
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * lr_factor(step, self.steps)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
            loss = F.cross_entropy(network(images), labels, label_smoothing=0.1)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def save(self) -> None:
        """Write OUT/last.pt whole or not at all."""
        state = {"model": self.model, "optimizer": self.optimizer, "loader": self.loader}
        partial = self.path.with_suffix(".partial")
        torch.save({name: owner.state_dict() for name, owner in state.items()}, partial)
        partial.replace(self.path)

    def resume(self) -> None:
        """Continue from OUT/last.pt if it is there; a message to exit with if it cannot be."""
        if not self.path.exists():
            return
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.loader.load_state_dict(state["loader"])
        except Exception as error:  # noqa: BLE001 - torch raises what pickle, zip and tensors do
            reason = str(error).strip().splitlines()[0]
            sys.exit(f"{self.path} cannot be resumed ({reason}). Give another folder as OUT.")


def train(options: argparse.Namespace) -> None:
    """Train, and print the accuracy on the validation split after every epoch."""
    size = Manifest.load(options.dataset).size
    spec = AugmentSpec(
        source=size,
        crop=options.crop,
        area=(0.08, 1),
        resize=options.resize,
        interpolation="bicubic" if options.model == "vit_s16" else "bilinear",
        mean=MEAN,
        sd=SD,
        lighting=0,
        divide=1,
    )
    with processes(options.device) as (rank, world, device):
        config = LoaderConfig(
            batch=options.batch,
            seed=options.seed,
            rank=rank,
            world=world,
            device=device,
            channels_last=True,
        )
        with (
            open_loader(options.dataset, "train", config, spec) as loader,
            open_loader(options.dataset, "validation", config, spec) as validation,
        ):
            options.out.mkdir(parents=True, exist_ok=True)
            training = Training(options, loader, device)
            training.resume()
            network: nn.Module = training.model
            if world > 1:
                network = DistributedDataParallel(network)
            epochs(training, network, validation, options, leads=rank == 0)


def epochs(
    training: Training,
    network: nn.Module,
    validation: Loader,
    options: argparse.Namespace,
    *,
    leads: bool,
) -> None:
    """All epochs that are not done; the process that leads prints and saves."""
    loader = training.loader
    while loader.epoch < options.epochs:
        epoch, loss = loader.epoch, torch.zeros(())
        for images, labels in loader:
            loss = training.step(network, images, labels)
            if leads and loader.step and loader.step % options.save_steps == 0:
                training.save()
        share, count = accuracy(training.model, validation)
        if leads:
            training.save()
            print(f"epoch {epoch}: loss {loss:.3f}, top-1 acc {share:.2%} of {count:,} images")


def positive(text: str) -> int:
    """An option that is a number of something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", choices=("resnet50", "vit_s16"), default="resnet50")
    parser.add_argument("--epochs", type=positive, default=90)
    parser.add_argument("--batch", type=positive, default=256, help="of all processes together")
    parser.add_argument("--crop", type=positive, default=224)
    parser.add_argument(
        "--resize", type=positive, help="shorter side in evaluation, before the crop"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-steps", type=positive, default=500)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--toy", action="store_true", help="a tiny network, to try the script")
    options = parser.parse_args(arguments)
    if options.model == "vit_s16" and options.crop % 16:
        parser.error(f"--crop must be a multiple of 16 for vit_s16, got {options.crop}")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Train; what is wrong with the command line or the data set is one line."""
    try:
        train(parse(arguments))
    except (DataError, ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
