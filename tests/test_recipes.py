from dataclasses import replace

import pytest

from alexnet.model.spec import parameter_count
from alexnet.training.schedule import NET_170, PlateauSchedule
from alexprep.model.recipes import RECIPES, RecipeInputs, make_recipe
from alexprep.model.settings import apply_settings

FULL = RecipeInputs(classes=1000, source=256)
SMALL = RecipeInputs(classes=10, source=64, smoke=True)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_its_full_and_its_smoke_size(name):
    full, small = make_recipe(name, FULL), make_recipe(name, SMALL)
    assert full.model.classes == 1000
    assert small.model.classes == 10
    assert small.augment.crop == small.model.crop == 56
    assert parameter_count(small.model) < parameter_count(full.model) / 8
    assert [row.name for row in small.model.layers] == [row.name for row in full.model.layers]
    assert RECIPES[name].__doc__


def test_code2012_is_the_run_of_the_released_files():
    recipe = make_recipe("code2012", FULL)
    assert parameter_count(recipe.model) == 60_965_224
    assert (recipe.train.epochs, recipe.train.lr, recipe.train.bias_lr) == (91, 0.01, 2.0)
    assert (recipe.train.weight_decay, recipe.train.bias_decay) == (0.0005, 0.0)
    assert (recipe.augment.lighting, recipe.augment.divide, recipe.augment.lighting_epochs) == (
        0.1,
        1.1,
        67,
    )
    assert (recipe.loader.batch, recipe.augment.crop) == (128, 224)


def test_paper_is_its_text_with_one_rate_for_all():
    recipe = make_recipe("paper", FULL)
    assert (recipe.train.bias_lr, recipe.train.bias_decay) == (1.0, 0.0005)
    assert recipe.train.schedule == PlateauSchedule()
    assert (recipe.augment.crop, recipe.augment.divide) == (227, 1.0)
    assert {row.sd for row in recipe.model.layers} == {0.01}


def test_the_colour_noise_ends_at_the_same_part_of_a_shorter_run():
    assert make_recipe("code2012", replace(FULL, epochs=10)).augment.lighting_epochs == 7


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="'code2021' is not a recipe; did you mean 'code2012'"):
        make_recipe("code2021", FULL)


def test_a_full_size_on_small_images_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"crops of 224 .* images of 64.*--smoke"):
        make_recipe("code2012", replace(SMALL, smoke=False))


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
        ("train.compile=on", "train.compile", "on"),
        ("loader.views=10", "loader.views", 10),
        ("augment.sd=none", "augment.sd", None),
        ("augment.mean=[1, 2, 3]", "augment.mean", (1.0, 2.0, 3.0)),
        ('train.layer_lr={"fc8": 10}', "train.layer_lr", {"fc8": 10.0}),
        ("loader.seed=18446744073709551615", "loader.seed", 2**64 - 1),
    ],
)
def test_a_setting_has_the_type_of_its_field(setting, where, value):
    part, field = where.split(".")
    recipe = apply_settings(make_recipe("code2012", FULL), [setting])
    changed = getattr(getattr(recipe, part), field)
    assert changed == value
    assert type(changed) is type(value)


def test_settings_reach_into_schedules_and_layers():
    recipe = make_recipe("paper", FULL)
    recipe = apply_settings(recipe, ["train.schedule.patience=7", "model.conv3.sd=.03"])
    assert recipe.train.schedule == PlateauSchedule(patience=7)
    assert [row.sd for row in recipe.model.layers if row.name == "conv3"] == [0.03]
    recipe = apply_settings(recipe, ["model.conv1.then=act,pool", "model.fc6.sd=none"])
    layers = {row.name: row for row in recipe.model.layers}
    assert (layers["conv1"].then, layers["fc6"].sd) == (("act", "pool"), None)
    recipe = apply_settings(
        recipe, ["train.schedule=constant", "train.schedule.layers.fc8=[[0.5, 0.1]]"]
    )
    assert recipe.train.schedule.layers == {"fc8": ((0.5, 0.1),)}


def test_settings_that_are_valid_only_together_may_come_together():
    recipe = apply_settings(make_recipe("code2012", FULL), ["model.crop=227", "augment.crop=227"])
    assert recipe.model.crop == 227


@pytest.mark.parametrize(
    ("setting", "answer"),
    [
        ("train.lrr=1", "'lrr' is not a field of TrainConfig; did you mean 'lr'"),
        ("trian.lr=1", "did you mean 'train'"),
        ("train.lr", "expects part.field=value"),
        ("train.lr=fast", "--set train.lr: expected a number, got 'fast'"),
        ("train.lr=nan", "--set train.lr: expected a number, got nan"),
        ("loader.timeout=nan", "--set loader.timeout: expected a number, got nan"),
        ("loader.timeout=inf", "expected a number, got inf"),
        ("train.epochs=1.5", "--set train.epochs: expected a whole number, got '1.5'"),
        ("train.precision=half", "expected float32 or bfloat16 or float64, got 'half'"),
        ("train.compile=maybe", "expected off or on or graphs, got 'maybe'"),
        ("loader.views=2", "expected 1 or 10, got '2'"),
        ("loader.order=random", "expected global or window or shards, got 'random'"),
        ("train.schedule=platau", "did you mean 'plateau'"),
        ("train.schedule.patients=3", "'patients' is not a field of .*did you mean"),
        ("train.channels_last=maybe", "expected true or false, got 'maybe'"),
        ("augment.mean=average", "expected image or .* or 3 values"),
        ("augment.mean=1,2", "expected .* or 3 values .*got .'?1"),
        ("model.conv9.sd=1", "did you mean 'conv"),
        ("model.conv1=3", "name a field of the layer, as in model.conv1.sd"),
        ("model.conv1.then=act,pol", "expected a list .each act or lrn or "),
        ("model.dropout.rate=1", "dropout has no fields"),
        ("train.epochs=0", "must be at least 1"),
        ("train.layer_lr=3", "name one"),
        ("train.layer_lr.fc9=10", "'fc9' is not a layer of code2012; did you mean 'fc"),
        ("model.conv1.stride=0", "conv1.stride must be at least 1, got 0"),
        ("model.columns=0", "columns must be at least 1, got 0"),
        ("model.pool_stride=0", "pool_stride must be at least 1, got 0"),
        ("model.lrn_size=-1", "lrn_size must be at least 1, got -1"),
        ("model.layers=[{}]", r"--set model.layers\[0\]: .* needs 'name', which is missing"),
        ("model.layers=[", "--set model.layers: .*truncated"),
        ("model.input_sd=" + "[" * 100_000, "--set model.input_sd: maximum recursion depth"),
        ("train.x=" + "[" * 100_000, "'x' is not a field of TrainConfig"),
        ("loader.batch=99999999999", "batch must be in 1..1048576, got 99999999999"),
        ("loader.batch=" + "9" * 5000, "expected a whole number, got"),
        ("augment.crop=60", "Set model.crop and augment.crop to the same size"),
    ],
)
def test_a_wrong_setting_is_answered_with_what_is_right(setting, answer):
    with pytest.raises(ValueError, match=answer) as caught:
        apply_settings(make_recipe("code2012", FULL), [setting])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
