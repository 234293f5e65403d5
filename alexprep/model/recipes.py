"""Recipes: a network, its augmentation, its training and its loader under one name. No torch.

Each function takes the Target it is to fit and says in its docstring what it takes and gives. All
have a smoke size for a laptop: the same topology at a third of the width, crops of 7/8 of the
shards' size, the original first rates and a schedule for few epochs. Single values are changed with
--set (alexprep.model.settings).
"""

import difflib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from alexnet.model import networks
from alexnet.model.spec import ModelConfig
from alexnet.training.config import TrainConfig
from alexnet.training.schedule import (
    CAFFE,
    NET_145,
    NET_145_NOISE,
    NET_170,
    SHORT,
    Plateau,
    Schedule,
)
from pipelines.augment import AugmentSpec
from pipelines.config import LoaderConfig

SMOKE_EPOCHS = 15
SMOKE_BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What a recipe is made for: the data set's classes and image side, and the run's options."""

    classes: int
    source: int
    smoke: bool = False
    epochs: int | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides what a run computes."""

    name: str
    model: ModelConfig
    augment: AugmentSpec
    train: TrainConfig
    loader: LoaderConfig

    def __post_init__(self) -> None:
        if self.model.crop != self.augment.crop:
            raise ValueError(
                f"Recipe {self.name}: the network takes crops of {self.model.crop}, the "
                f"augmentation makes {self.augment.crop}. Set model.crop and augment.crop alike."
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def code2012(to: Target) -> Recipe:
    """What the released code ran for the published 40.7/18.2: net 145, rates cut by hand.

    alexprep train imagenet --run run --devices cuda:0,cuda:1
    Its log says 40.66% and 18.21% error with ten views after 91 epochs.
    """
    return _recipe("code2012", networks.code2012, to, epochs=91)


def paper(to: Target) -> Recipe:
    """The text read literally: sd .01 everywhere, one rate and one decay for all parameters.

    Does not leave the plateau of guessing in its first steps: docs/results.md says what frees it.
    Its lighting is scaled by the standard deviation: with the eigenvalue of the text's formula the
    shift would be over 1,000 grey levels.
    """
    recipe = _recipe("paper", networks.paper, to, epochs=90, schedule=Plateau())
    return replace(
        recipe,
        augment=replace(recipe.augment, divide=1.0, lighting_epochs=None),
        train=replace(recipe.train, bias_lr=1.0, bias_decay=recipe.train.weight_decay),
    )


def one_gpu(to: Target) -> Recipe:
    """The comparison net on one GPU, net 145-half: 1.7/1.2 points worse in the paper."""
    return _recipe("one_gpu", networks.one_gpu, to, epochs=96)


def six_conv(to: Target) -> Recipe:
    """The net of the starred rows, 39.0/16.6 after pre-training on the whole of ImageNet.

    alexprep train fall2011 --run big --recipe six_conv
    alexprep train imagenet --run fine --recipe six_conv --init-from big --epochs 54
        --set train.lr=.001 --set train.layer_lr.conv1=.1 --set train.layer_lr.fc8=10
    """
    return _recipe("six_conv", networks.six_conv, to, epochs=90)


def net_170(to: Target) -> Recipe:
    """The network of code2012 with the four equal stages of net 170: 40.53/18.05, by no hand."""
    recipe = _recipe("net_170", networks.code2012, to, epochs=90, schedule=NET_170)
    return replace(recipe, augment=replace(recipe.augment, lighting_epochs=None))


def ungrouped(to: Target) -> Recipe:
    """All maps see all maps: the 62 million parameters that most articles count."""
    return _recipe("ungrouped", networks.ungrouped, to, epochs=90)


def caffe(to: Target) -> Recipe:
    """bvlc_alexnet and its solver: batch 256, no lighting, a tenth every 20 epochs. 42.9/19.8."""
    recipe = _recipe("caffe", networks.caffe, to, epochs=90, schedule=CAFFE)
    return replace(
        recipe,
        augment=replace(_unlit(recipe.augment), mean="image_at_crop"),
        loader=replace(recipe.loader, batch=SMOKE_BATCH if to.smoke else 256),
    )


def torchvision(to: Target) -> Recipe:
    """The alexnet of torchvision under this project's cropping: one colour mean, no lighting."""
    recipe = _recipe("torchvision", networks.torchvision, to, epochs=90, schedule=NET_170)
    return replace(
        recipe,
        augment=replace(_unlit(recipe.augment), mean=(123.675, 116.28, 103.53)),
        train=replace(
            recipe.train, weight_decay=1e-4, bias_decay=1e-4, bias_lr=1.0, velocity_has_lr=False
        ),
    )


def no_lrn(to: Target) -> Recipe:
    """code2012 without its three norms (net 148): 1.4/1.2 points worse in the paper."""
    return _recipe("no_lrn", networks.no_lrn, to, epochs=97)


def no_overlap(to: Target) -> Recipe:
    """code2012 with pools that do not overlap (net 147): .4/.3 points worse in the paper."""
    return _recipe("no_overlap", networks.no_overlap, to, epochs=90)


def no_communication(to: Target) -> Recipe:
    """code2012 with columns that meet only at the end (net 150): 1.2/1.1 points worse."""
    return _recipe("no_communication", networks.no_communication, to, epochs=90)


def no_dropout(to: Target) -> Recipe:
    """code2012 without dropout: "substantial overfitting" in the paper."""
    return _recipe("no_dropout", networks.no_dropout, to, epochs=91)


def no_lighting(to: Target) -> Recipe:
    """code2012 without colour noise: over 1 point worse in the paper."""
    recipe = _recipe("no_lighting", networks.code2012, to, epochs=91)
    return replace(recipe, augment=_unlit(recipe.augment))


def no_crops(to: Target) -> Recipe:
    """code2012 on centre crops, none mirrored: "substantial overfitting" in the paper."""
    recipe = _recipe("no_crops", networks.code2012, to, epochs=91)
    return replace(recipe, augment=replace(recipe.augment, random_crop=False, mirror=False))


def tanh(to: Target) -> Recipe:
    """code2012 with tanh neurons: several times slower in the paper's figure 1."""
    return _recipe("tanh", networks.tanh, to, epochs=91)


def four_conv(to: Target) -> Recipe:
    """code2012 without conv4: about 2 points worse by the paper's discussion."""
    return _recipe("four_conv", networks.four_conv, to, epochs=91)


RECIPES: dict[str, Callable[[Target], Recipe]] = {
    function.__name__: function
    for function in (
        *(code2012, paper, one_gpu, six_conv, net_170, ungrouped, caffe, torchvision),
        *(no_lrn, no_overlap, no_communication, no_dropout, no_lighting, no_crops),
        *(tanh, four_conv),
    )
}


def recipe(name: str, to: Target) -> Recipe:
    """The recipe called `name` for a target; ValueError with the nearest name if there is none."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.0)[0]
        raise ValueError(f"No recipe is called {name!r}; did you mean {near!r}?")
    return RECIPES[name](to)


def _recipe(
    name: str,
    network: Callable[[int], ModelConfig],
    to: Target,
    *,
    epochs: int,
    schedule: Schedule = NET_145,
) -> Recipe:
    epochs = to.epochs or (SMOKE_EPOCHS if to.smoke else epochs)
    model = network(to.classes)
    if to.smoke:
        schedule = replace(schedule, patience=1) if isinstance(schedule, Plateau) else SHORT
        model = networks.smoke(model, to.source * 7 // 8, to.classes)
    elif model.crop > to.source:
        raise ValueError(
            f"Recipe {name} takes crops of {model.crop} pixels; the data set has images of "
            f"{to.source}. Add --smoke for the size that fits them, or make shards of 256 pixels."
        )
    return Recipe(
        name=name,
        model=model,
        augment=AugmentSpec(
            source=to.source, crop=model.crop, lighting_epochs=round(NET_145_NOISE * epochs)
        ),
        train=TrainConfig(
            epochs=epochs,
            seed=to.seed,
            schedule=schedule,
            precision="float32" if to.smoke else "bfloat16",
        ),
        loader=LoaderConfig(batch=SMOKE_BATCH if to.smoke else 128, seed=to.seed),
    )


def _unlit(spec: AugmentSpec) -> AugmentSpec:
    return replace(spec, lighting=0.0, divide=1.0, lighting_epochs=None)
