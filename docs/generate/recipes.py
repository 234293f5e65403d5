"""Every recipe: what it is, what others reported, its settings and where it differs.

For docs/reference/recipes.md and docs/notes/differences.md. The numbers come from
alexprep/model/recipes.py; what is written here are sources and reasons.
"""

import textwrap
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from alexnet.model.spec import ModelConfig
from alexprep.model.recipes import RECIPES, Recipe, RecipeInputs, make_recipe
from docs.generate.tables import table, text

FULL = RecipeInputs(classes=1000, source=256)
# name -> (what it is, error reported elsewhere)
REPORTED = {
    "code2012": (
        "net 145, what the authors ran",
        '40.7/18.2 with ten views (table 2, "1 CNN"); log of layer-params-145.cfg: 40.66/18.21 '
        "after 91 epochs",
    ),
    "paper": (
        "the text of the paper, read literally",
        "the same 40.7/18.2; no released configuration is trained as the text says",
    ),
    "one_gpu": (
        "net 145-half: one column, conv1 to conv4 half as wide",
        "1.7/1.2 worse (section 3.2) on ILSVRC2010's test images; log of "
        "layer-params-145-half.cfg: 39.17/18.23 against 37.47/17.00",
    ),
    "six_conv": (
        "net 146: a sixth convolution after the last pool",
        'after pre-training on ImageNet Fall 2011: 39.0/16.6 (table 2, "1 CNN*"); log of '
        "layers-146-2012-2011.cfg: 38.99/16.62; from scratch: nothing",
    ),
    "net_170": (
        "`code2012` with four equal stages instead of manual learning rate drops",
        "40.53/18.05 for net 170; that its layers are those of net 145 is an assumption",
    ),
    "ungrouped": ("one group per layer: the 62 million parameters that articles count", "nothing"),
    "caffe": (
        "bvlc_alexnet and its solver",
        "42.9/19.8, centre crop (its readme: 57.1% and 80.2% accuracy)",
    ),
    "torchvision": (
        'torchvision\'s alexnet, the network of "One weird trick" (2014)',
        "43.48/20.93, centre crop (its documentation; other crops in training); the author's of "
        "2014: 42.55/19.81, ten views 40.42/18.15",
    ),
    "no_lrn": (
        "net 148: without both LRNs and the spatial norm",
        "1.4/1.2 worse (section 3.3); log 42.03/19.36, ten views",
    ),
    "no_overlap": (
        "net 147: pools of 2x2, stride 2",
        ".4/.3 worse (section 3.4); log 41.06/18.51, ten views",
    ),
    "no_communication": (
        "net 150: the columns are joined in the last layer only",
        "not in the paper; log 41.83/19.33, 1.2/1.1 worse",
    ),
    "no_dropout": ("without dropout", '"substantial overfitting" (section 4.2), no number'),
    "no_lighting": (
        "without colour noise and its division",
        "over 1 point of top-1 worse (section 4.1); no released configuration or log",
    ),
    "no_crops": (
        "centre crops, no mirroring",
        '"substantial overfitting" (section 4.1), no number',
    ),
    "tanh": (
        "tanh instead of ReLU",
        "six times slower to 25% training error, for a network of four layers on CIFAR-10 "
        "(figure 1); of this network nothing",
    ),
    "four_conv": (
        "without conv4",
        "about 2 points of top-1 worse for any middle layer (section 7); no configuration or log",
    ),
}
COMPARED = ("code2012", "paper", "caffe", "torchvision")
DIFFERENCES = {
    "model.crop": "224 is what the code can do (256 minus an even border). The text says 224 and "
    "counts 55 outputs, which 227 gives without padding",
    "model.pad_end": "cuda-convnet rounds 1 + (224 - 11) / 4 up to 55: three rows and columns of "
    "zeros at the right and bottom",
    "model.conv1.pad": "torchvision pads on all sides",
    "model.input_sd": "pixels of 0..255 minus their mean, or divided by their sd: thirty times "
    "less signal at the start ([why](plateau.md#signal-at-the-start))",
    "model.conv3.sd": "and conv4, conv5. The text says .01 for all layers; "
    "[plateau.md](plateau.md) shows the effect",
    "model.fc6.sd": "and fc7",
    "model.conv2.bias": "and conv4, conv5, fc6, fc7; conv1, conv3 and fc8 start at 0",
    "model.conv1.then": "the code normalizes before the ReLU, so negative values count too",
    "model.conv2.then": "the code has a third norm, within each map over 5x5 positions "
    "(`model.spatial_size`, `_alpha`, `_beta`, `_k`)",
    "model.conv5.then": "the same values in either order",
    "model.lrn_alpha": "divided by 5 here, as in the code, Caffe and PyTorch; the formula in the "
    "text does not divide, so its 1e-4 is 5e-4",
    "model.lrn_k": "1 makes the output of every norm 1.68 times larger",
    "model.lrn_across": "each column normalizes its own maps; Caffe's groups share one norm",
    "model.columns": "two columns are one model in two parts that see the same images, not two "
    "copies with different images",
    "model.conv1.out": "of both columns. `one_gpu` has 48-128-192-192-256, torchvision "
    "64-192-384-256-256",
    "model.dropout_kind": "mask: outputs times .5 in evaluation; inverted: twice the signal and "
    "gradient in training",
    "model.fc7.then": "dropout follows fc6 and fc7; torchvision has it before fc6 and fc7",
    "train.bias_lr": "learning rate of the biases relative to the weights; the text has one rate",
    "train.bias_decay": "the code never decays a bias",
    "train.weight_decay": "",
    "train.velocity_has_lr": "after a drop of the rate, the old, larger velocity decays by itself; "
    "PyTorch's SGD scales it at once",
    "train.schedule": "manual drops at 27%, 56% and 87%, conv1 slowed at 74% and frozen at 79%; "
    "by validation error; a tenth every 20 epochs; four equal stages",
    "augment.mean": "the centre of the mean image for every crop; the mean image at the position "
    "of the crop; one colour",
    "augment.lighting_scale": "the text multiplies by the eigenvalue, which would be over 1,000 "
    "grey levels ([lighting.md](lighting.md))",
    "augment.lighting": "sd of the random multipliers, drawn per image",
    "augment.divide": "the code divides training images by 1.1 while colour noise is on; the text "
    "does not say so",
    "augment.lighting_epochs": "the code ends the colour noise after three quarters of the run",
    "augment.chunk": "in the code 32 consecutive images share one crop and mirror draw: "
    "`augment.chunk=32`",
    "loader.order": "the code shuffled once and read its batch files in the same order every epoch",
    "loader.batch": "",
}


def reported() -> str:
    """A row per recipe. KeyError: a recipe has no row."""
    return table(
        ("recipe", "what it is", "reported error"),
        ((f"`{name}`", *REPORTED[name]) for name in RECIPES),
    )


def compared() -> str:
    """The values in which the best-known versions differ, with the reason or effect of each."""
    values = [settings(make_recipe(name, FULL)) for name in COMPARED]
    return table(
        ("field", *(f"`{name}`" for name in COMPARED), "what differs"),
        ((f"`{key}`", *(value[key] for value in values), DIFFERENCES[key]) for key in DIFFERENCES),
    )


def settings(value: Recipe) -> dict[str, str]:
    """Every value of a recipe as `--set` takes it: part.field -> text."""
    return {
        name: text(setting)
        for part in ("model", "augment", "train", "loader")
        for name, setting in _values(getattr(value, part), part)
    }


def _values(owner: Any, path: str) -> Iterator[tuple[str, Any]]:
    for field in fields(owner):
        value = getattr(owner, field.name)
        if isinstance(owner, ModelConfig) and field.name == "layers":
            for row in value:
                yield from _values(row, f"{path}.{row.name}")
        elif field.name != "name":
            yield f"{path}.{field.name}", value


def differences(name: str) -> list[str]:
    """Settings of a recipe that differ from code2012's, and layers added (+) or removed (-)."""
    base, other = settings(make_recipe("code2012", FULL)), settings(make_recipe(name, FULL))
    names = {row.name for row in make_recipe("code2012", FULL).model.layers}
    words: list[str] = []
    for row in make_recipe(name, FULL).model.layers:
        if row.name not in names:
            values = ((k.rpartition(".")[2], v) for k, v in other.items() if f".{row.name}." in k)
            words.append(f"+{row.name}({' '.join(f'{k}={v}' for k, v in values)})")
    words += [f"-{row}" for row in sorted(names) if f"model.{row}.out" not in other]
    return words + [f"{k}={other[k]}" for k, v in base.items() if k in other and other[k] != v]


def listing() -> str:
    """The differences of every recipe from code2012, as a text block."""
    lines: list[str] = []
    for name in list(RECIPES)[1:]:
        lines += textwrap.wrap(
            f"{name:17} {' '.join(differences(name))}",
            width=98,
            subsequent_indent=" " * 18,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "```text\n" + "\n".join(lines) + "\n```\n"
