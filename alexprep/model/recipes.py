"""Recipes: a network, its augmentation, its training and its loader under one name. No torch.

A recipe is a function of RecipeInputs; its docstring says what to run and what error to expect.
Each has a smoke size for a laptop: the same topology at a third of the width, crops of 7/8 of the
shards' size, the original first rates and a schedule for few epochs. Single fields are changed with
--set (alexprep.model.settings).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from alexnet.model import networks
from alexnet.model.spec import ModelConfig
from alexnet.training.config import TrainConfig
from alexnet.training.schedule import (
    CAFFE,
    NET_145,
    NET_145_NOISE,
    NET_170,
    SHORT,
    PlateauSchedule,
    Schedule,
)
from alexprep.schema import check_name
from pipelines.augment import AugmentSpec
from pipelines.config import LoaderConfig

SMOKE_EPOCHS = 15
SMOKE_BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeInputs:
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
                f"augmentation makes {self.augment.crop}. Set model.crop and augment.crop to the "
                "same size."
            )
        names = [layer.name for layer in self.model.layers]
        for name in self.train.layer_lr:
            check_name(name, names, "train.layer_lr", f"a layer of {self.name}")


def code2012(inputs: RecipeInputs) -> Recipe:
    """What the released code ran for the published 40.7/18.2: net 145, rates cut by hand.

    alexprep train imagenet --run run --devices cuda:0,cuda:1
    Its log says 40.66% and 18.21% error with ten views after 91 epochs.
    """
    return _recipe("code2012", networks.code2012, inputs, epochs=91)


def paper(inputs: RecipeInputs) -> Recipe:
    """The text read literally: sd .01 everywhere, one rate and one decay for all parameters.

    Does not leave the plateau of guessing in its first steps: docs/notes/plateau.md says why.
    Its lighting is scaled by the standard deviation: with the eigenvalue of the text's formula the
    shift would be over 1,000 grey levels.
    """
    recipe = _recipe("paper", networks.paper, inputs, epochs=90, schedule=PlateauSchedule())
    return replace(
        recipe,
        augment=replace(recipe.augment, divide=1.0, lighting_epochs=None),
        train=replace(recipe.train, bias_lr=1.0, bias_decay=recipe.train.weight_decay),
    )


def one_gpu(inputs: RecipeInputs) -> Recipe:
    """The comparison net on one GPU, net 145-half: 1.7/1.2 points worse in the paper."""
    return _recipe("one_gpu", networks.one_gpu, inputs, epochs=96)


def six_conv(inputs: RecipeInputs) -> Recipe:
    """The net of the starred rows, 39.0/16.6 after pre-training on the whole of ImageNet.

    alexprep train fall2011 --run big --recipe six_conv
    alexprep train imagenet --run fine --recipe six_conv --init-from big --epochs 54
        --set train.lr=.001 --set train.layer_lr.conv1=.1 --set train.layer_lr.fc8=10
    """
    return _recipe("six_conv", networks.six_conv, inputs, epochs=90)


def net_170(inputs: RecipeInputs) -> Recipe:
    """The network of code2012 with the four equal stages of net 170: 40.53/18.05, by no hand."""
    recipe = _recipe("net_170", networks.code2012, inputs, epochs=90, schedule=NET_170)
    return replace(recipe, augment=replace(recipe.augment, lighting_epochs=None))


def ungrouped(inputs: RecipeInputs) -> Recipe:
    """All maps see all maps: the 62 million parameters that most articles count."""
    return _recipe("ungrouped", networks.ungrouped, inputs, epochs=90)


def caffe(inputs: RecipeInputs) -> Recipe:
    """bvlc_alexnet and its solver: batch 256, no lighting, a tenth every 20 epochs. 42.9/19.8."""
    recipe = _recipe("caffe", networks.caffe, inputs, epochs=90, schedule=CAFFE)
    return replace(
        recipe,
        augment=replace(_unlit(recipe.augment), mean="image_at_crop"),
        loader=replace(recipe.loader, batch=SMOKE_BATCH if inputs.smoke else 256),
    )


def torchvision(inputs: RecipeInputs) -> Recipe:
    """The alexnet of torchvision under this project's cropping: one colour mean, no lighting."""
    recipe = _recipe("torchvision", networks.torchvision, inputs, epochs=90, schedule=NET_170)
    return replace(
        recipe,
        augment=replace(_unlit(recipe.augment), mean=(123.675, 116.28, 103.53)),
        train=replace(
            recipe.train, weight_decay=1e-4, bias_decay=1e-4, bias_lr=1.0, velocity_has_lr=False
        ),
    )


def no_lrn(inputs: RecipeInputs) -> Recipe:
    """code2012 without its three norms (net 148): 1.4/1.2 points worse in the paper."""
    return _recipe("no_lrn", networks.no_lrn, inputs, epochs=97)


def no_overlap(inputs: RecipeInputs) -> Recipe:
    """code2012 with pools that do not overlap (net 147): .4/.3 points worse in the paper."""
    return _recipe("no_overlap", networks.no_overlap, inputs, epochs=90)


def no_communication(inputs: RecipeInputs) -> Recipe:
    """code2012 with columns that meet only at the end (net 150): 1.2/1.1 points worse."""
    return _recipe("no_communication", networks.no_communication, inputs, epochs=90)


def no_dropout(inputs: RecipeInputs) -> Recipe:
    """code2012 without dropout: "substantial overfitting" in the paper."""
    return _recipe("no_dropout", networks.no_dropout, inputs, epochs=91)


def no_lighting(inputs: RecipeInputs) -> Recipe:
    """code2012 without colour noise: over 1 point worse in the paper."""
    recipe = _recipe("no_lighting", networks.code2012, inputs, epochs=91)
    return replace(recipe, augment=_unlit(recipe.augment))


def no_crops(inputs: RecipeInputs) -> Recipe:
    """code2012 on centre crops, none mirrored: "substantial overfitting" in the paper."""
    recipe = _recipe("no_crops", networks.code2012, inputs, epochs=91)
    return replace(recipe, augment=replace(recipe.augment, random_crop=False, mirror=False))


def tanh(inputs: RecipeInputs) -> Recipe:
    """code2012 with tanh neurons: several times slower in the paper's figure 1."""
    return _recipe("tanh", networks.tanh, inputs, epochs=91)


def four_conv(inputs: RecipeInputs) -> Recipe:
    """code2012 without conv4: about 2 points worse by the paper's discussion."""
    return _recipe("four_conv", networks.four_conv, inputs, epochs=91)


RECIPES: dict[str, Callable[[RecipeInputs], Recipe]] = {
    function.__name__: function
    for function in (
        *(code2012, paper, one_gpu, six_conv, net_170, ungrouped, caffe, torchvision),
        *(no_lrn, no_overlap, no_communication, no_dropout, no_lighting, no_crops),
        *(tanh, four_conv),
    )
}


def make_recipe(name: str, inputs: RecipeInputs) -> Recipe:
    """The recipe called `name`; ValueError with the nearest name if there is none."""
    check_name(name, RECIPES, "--recipe", "a recipe")
    return RECIPES[name](inputs)


def _recipe(
    name: str,
    network: Callable[[int], ModelConfig],
    inputs: RecipeInputs,
    *,
    epochs: int,
    schedule: Schedule = NET_145,
) -> Recipe:
    epochs = inputs.epochs or (SMOKE_EPOCHS if inputs.smoke else epochs)
    model = network(inputs.classes)
    if inputs.smoke:
        schedule = replace(schedule, patience=1) if isinstance(schedule, PlateauSchedule) else SHORT
        model = networks.smoke(model, inputs.source * 7 // 8, inputs.classes)
    elif model.crop > inputs.source:
        raise ValueError(
            f"Recipe {name} takes crops of {model.crop} pixels; the data set has images of "
            f"{inputs.source}. Add --smoke for a size that fits, or make shards of 256 pixels."
        )
    return Recipe(
        name=name,
        model=model,
        # The authors trained the last quarter without colour noise, whatever the number of epochs.
        augment=AugmentSpec(
            source=inputs.source, crop=model.crop, lighting_epochs=round(NET_145_NOISE * epochs)
        ),
        train=TrainConfig(
            epochs=epochs,
            seed=inputs.seed,
            schedule=schedule,
            precision="float32" if inputs.smoke else "bfloat16",
        ),
        loader=LoaderConfig(batch=SMOKE_BATCH if inputs.smoke else 128, seed=inputs.seed),
    )


def _unlit(spec: AugmentSpec) -> AugmentSpec:
    return replace(spec, lighting=0.0, divide=1.0, lighting_epochs=None)
