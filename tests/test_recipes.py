from dataclasses import replace

import pytest

from alexnet.model.spec import parameter_count
from alexnet.training.schedule import NET_170, Plateau
from alexprep.model.recipes import RECIPES, Target, recipe
from alexprep.model.settings import apply_settings

FULL = Target(classes=1000, source=256)
SMALL = Target(classes=10, source=64, smoke=True)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_its_full_and_its_smoke_size(name):
    full, small = recipe(name, FULL), recipe(name, SMALL)
    assert full.model.classes == 1000
    assert small.model.classes == 10
    assert small.augment.crop == small.model.crop == 56
    assert parameter_count(small.model) < parameter_count(full.model) / 8
    assert [row.name for row in small.model.layers] == [row.name for row in full.model.layers]
    assert RECIPES[name].__doc__


def test_code2012_is_the_run_of_the_released_files():
    made = recipe("code2012", FULL)
    assert parameter_count(made.model) == 60_965_224
    assert (made.train.epochs, made.train.lr, made.train.bias_lr) == (91, 0.01, 2.0)
    assert (made.train.weight_decay, made.train.bias_decay) == (0.0005, 0.0)
    assert (made.augment.lighting, made.augment.divide, made.augment.lighting_epochs) == (
        0.1,
        1.1,
        67,
    )
    assert (made.loader.batch, made.augment.crop) == (128, 224)


def test_paper_is_its_text_with_one_rate_for_all():
    made = recipe("paper", FULL)
    assert (made.train.bias_lr, made.train.bias_decay) == (1.0, 0.0005)
    assert made.train.schedule == Plateau()
    assert (made.augment.crop, made.augment.divide) == (227, 1.0)
    assert {row.sd for row in made.model.layers} == {0.01}


def test_the_colour_noise_ends_at_the_same_part_of_a_shorter_run():
    assert recipe("code2012", replace(FULL, epochs=10)).augment.lighting_epochs == 7


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="'code2021'; did you mean 'code2012'"):
        recipe("code2021", FULL)


def test_a_full_size_on_small_images_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"crops of 224 .* images of 64.*--smoke"):
        recipe("code2012", replace(SMALL, smoke=False))


@pytest.mark.parametrize(
    ("setting", "where", "value"),
    [
        ("train.lr=.02", "train.lr", 0.02),
        ("train.epochs=7", "train.epochs", 7),
        ("train.channels_last=no", "train.channels_last", False),
        ("train.precision=float32", "train.precision", "float32"),
        ("augment.mean=channel", "augment.mean", "channel"),
        ("augment.mean=1,2,3.5", "augment.mean", (1.0, 2.0, 3.5)),
        ("augment.lighting_epochs=none", "augment.lighting_epochs", None),
        ("augment.lighting_epochs=3", "augment.lighting_epochs", 3),
        ("loader.threads=8", "loader.threads", 8),
        ("model.dropout=0", "model.dropout", 0.0),
        ("train.layer_lr.fc8=10", "train.layer_lr", {"fc8": 10.0}),
        ("train.schedule=net_170", "train.schedule", NET_170),
    ],
)
def test_a_setting_has_the_type_of_its_field(setting, where, value):
    part, field = where.split(".")
    changed = getattr(getattr(apply_settings(recipe("code2012", FULL), [setting]), part), field)
    assert changed == value
    assert type(changed) is type(value)


def test_settings_reach_into_schedules_and_layers():
    made = recipe("paper", FULL)
    made = apply_settings(made, ["train.schedule.patience=7", "model.conv3.sd=.03"])
    assert made.train.schedule == Plateau(patience=7)
    assert [row.sd for row in made.model.layers if row.name == "conv3"] == [0.03]


def test_settings_that_are_valid_only_together_may_come_together():
    made = apply_settings(recipe("code2012", FULL), ["model.crop=227", "augment.crop=227"])
    assert made.model.crop == 227


@pytest.mark.parametrize(
    ("setting", "answer"),
    [
        ("train.lrr=1", "'lrr' is not a field of TrainConfig; did you mean 'lr'"),
        ("trian.lr=1", "did you mean 'train'"),
        ("train.lr", "wants part.field=value"),
        ("train.lr=fast", "wants a number, got 'fast'"),
        ("train.epochs=1.5", "wants a whole number"),
        ("train.precision=half", "'half' is none of float32, bfloat16, float64"),
        ("train.schedule=platau", "did you mean 'plateau'"),
        ("train.channels_last=maybe", "wants true or false"),
        ("model.conv9.sd=1", "did you mean 'conv"),
        ("train.epochs=0", "must be at least 1"),
        ("train.layer_lr=3", "name one"),
        ("augment.crop=60", "Set model.crop and augment.crop alike"),
    ],
)
def test_a_wrong_setting_is_answered_with_what_is_right(setting, answer):
    with pytest.raises(ValueError, match=answer):
        apply_settings(recipe("code2012", FULL), [setting])
