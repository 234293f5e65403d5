"""Predictions from standard input and from files that are no images, without a trained network."""

import io
import json
from dataclasses import asdict

import pytest
import torch

import alexnet
from alexnet.errors import RunError
from alexnet.training import checkpoint
from alexprep.model.predict import PredictOptions, predict
from alexprep.model.recipes import RecipeInputs, make_recipe
from tests.drawing import jpeg, photograph


@pytest.fixture
def network(tmp_path):
    """A checkpoint of a network that has learned nothing."""
    recipe = make_recipe("code2012", RecipeInputs(classes=3, source=64, smoke=True))
    weights = dict(alexnet.build(recipe.model).named_parameters())
    raw = json.loads(json.dumps(asdict(recipe)))
    raw["augment"] |= {"mean": [120.0, 110.0, 100.0], "lighting": 0.0}
    classes = [[f"n{n:08d}", f"class {n}"] for n in range(3)]
    meta = {"recipe": raw, "classes": classes, "stats": None}
    checkpoint.save(tmp_path / "net.safetensors", meta, {"model": weights})
    return tmp_path / "net.safetensors"


def test_an_image_on_standard_input_is_classified_as_the_same_file_is(
    network, tmp_path, rng, monkeypatch
):
    data = jpeg(photograph(rng, 90, 120))
    (tmp_path / "a.jpg").write_bytes(data)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    piped, file = predict(network, ["-", tmp_path / "a.jpg"], PredictOptions())
    assert piped.classes == file.classes
    assert sum(share for _, _, share in piped.classes) == pytest.approx(1)


def test_one_view_is_the_centre_of_the_ten(network, tmp_path, rng):
    (tmp_path / "a.jpg").write_bytes(jpeg(photograph(rng, 64, 64)))
    (one,) = predict(network, [tmp_path / "a.jpg"], PredictOptions(views=1))
    (ten,) = predict(network, [tmp_path / "a.jpg"], PredictOptions(views=10))
    assert {wnid for wnid, _, _ in one.classes} == {wnid for wnid, _, _ in ten.classes}
    assert one.classes != ten.classes


def test_what_is_no_image_is_said_and_the_others_are_still_looked_at(network, tmp_path, rng):
    (tmp_path / "a.jpg").write_bytes(jpeg(photograph(rng))[:200])
    (tmp_path / "b.png").write_bytes(b"nothing")
    (tmp_path / "c.jpg").write_bytes(jpeg(photograph(rng, mode="L")))
    names = ["a.jpg", "b.png", "none", "c.jpg"]
    found = list(predict(network, [tmp_path / name for name in names], PredictOptions()))
    assert [bool(one.problem) for one in found] == [True, True, True, False]
    assert json.loads(json.dumps(found[3].to_dict()))["classes"][0]["probability"] <= 1
    assert str(tmp_path / "b.png") in found[1].text()


def test_a_file_of_weights_alone_is_refused(tmp_path):
    checkpoint.save(tmp_path / "w", {}, {"model": {"conv1.weight": torch.zeros(1)}})
    with pytest.raises(RunError, match="holds no network of `alexprep train`"):
        next(predict(tmp_path / "w", [], PredictOptions()), None)


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="top >= 1"):
        PredictOptions(top=0)
