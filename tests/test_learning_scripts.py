"""The scripts that compare recipes and neurons: what they write down of curves that are known."""

import json
import xml.etree.ElementTree as ET
from itertools import islice

import pytest
import torch

from alexprep.model.recipes import RecipeInputs, make_recipe
from alexprep.model.settings import apply_settings
from benchmarks import compare_recipes, figure1

CURVES = [
    {"act": "relu", "rate": 0.001, "seed": 0, "errors": [0.5, 0.3, 0.2], "epochs_to_target": 2.5},
    {"act": "relu", "rate": 0.002, "seed": 0, "errors": [0.6, 0.4, 0.3], "epochs_to_target": None},
    {"act": "tanh", "rate": 0.001, "seed": 0, "errors": [0.7] * 9 + [0.25], "epochs_to_target": 10},
]


def test_the_target_is_met_between_two_epochs():
    assert figure1.epochs_to_target([0.5, 0.3, 0.2]) == pytest.approx(2.5)
    assert figure1.epochs_to_target([0.25]) == pytest.approx(1.0)
    assert figure1.epochs_to_target([0.5, 0.26]) is None
    assert figure1.epochs_to_target([0.5, float("nan")]) is None


def test_the_table_holds_the_best_rate_of_each_neuron_against_the_other():
    said = figure1.table(CURVES)
    assert "| relu | 0.002 | 0 | given up after 3 at 30.0% |" in said
    assert "tanh 10.0: 4.0 times as many" in said


def test_other_seeds_judge_the_rate_that_one_seed_chose():
    again = [{**CURVES[0], "seed": seed, "epochs_to_target": 3.0 + seed} for seed in (1, 2)]
    assert figure1.fastest([*CURVES, *again], "relu") == (CURVES[0]["rate"], 4.0)
    stuck = {**again[1], "errors": [0.4], "epochs_to_target": None}
    assert figure1.fastest([*CURVES, again[0], stuck], "relu") is None


def test_the_picture_has_a_line_for_every_curve_and_names_the_best():
    drawn = ET.fromstring(figure1.picture(CURVES))
    space = "{http://www.w3.org/2000/svg}"
    assert len(drawn.findall(f"{space}polyline")) == 3
    named = {text.text for text in drawn.findall(f"{space}text")}
    assert {"relu, 0.001", "tanh, 0.001", "epochs"} <= named


@pytest.mark.parametrize("act", ["relu", "tanh"])
def test_both_neurons_learn_which_half_is_bright(act):
    torch.manual_seed(0)
    labels = torch.randint(0, 2, (512,))
    images = torch.randn(512, 3, 32, 32) * 20
    images[labels == 1, :, :16] += 60
    images[labels == 0, :, 16:] += 60
    errors = list(islice(figure1.learn({"act": act, "rate": 0.002, "seed": 0}, images, labels), 6))
    assert errors[-1] < 0.1 < errors[0]


def test_only_runs_with_their_last_epoch_are_summed_up(tmp_path):
    for name, epochs in (("a", 2), ("b", 1)):
        (tmp_path / name).mkdir()
        lines = [{"kind": "step", "step": 10, "epoch": 0, "loss": 2.0}]
        lines += [
            {"kind": "epoch", "epoch": n, "loss": 1.5 - n, "top1": 0.5, "top5": 0.25}
            for n in range(epochs)
        ]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (tmp_path / name / "metrics.jsonl").write_text(text)
    assert compare_recipes.finished(tmp_path / "a", 2)
    assert not compare_recipes.finished(tmp_path / "b", 2)
    assert not compare_recipes.finished(tmp_path / "c", 2)
    row = compare_recipes.summary("paper", [tmp_path / "a"], tmp_path, together=False)
    assert row["loss_by_step"] == [[(10, 2.0)]]
    assert "| paper | 1 | 0.500 | 50.00% | 25.00% |" in compare_recipes.table([row])


def test_standard_deviations_grow_with_the_smoke_size_alone():
    assert compare_recipes.at_size("model.conv3.sd=.03", smoke=False) == "model.conv3.sd=.03"
    grown = compare_recipes.at_size("model.conv3.sd=.03", smoke=True)
    assert float(grown.partition("=")[2]) > 0.03
    assert compare_recipes.at_size("train.lr=.01", smoke=True) == "train.lr=.01"


@pytest.mark.parametrize("experiment", compare_recipes.EXPERIMENTS)
def test_the_recipes_and_settings_of_every_experiment_exist(experiment):
    inputs = RecipeInputs(classes=20, source=256)
    for recipe, settings in compare_recipes.EXPERIMENTS[experiment].values():
        assert apply_settings(make_recipe(recipe, inputs), settings)
