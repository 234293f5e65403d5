"""--init-from with rates of their own for some layers: what is copied, what then moves."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from alexnet.errors import RunError
from alexnet.training import checkpoint
from alexprep.model.training import TrainOptions, train
from tests.tarsets import drawn_items, measured, write_dataset

OPTIONS = TrainOptions(
    smoke=True, epochs=1, settings=("loader.batch=8", "train.lr=.001", "train.schedule=constant")
)

ALL = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


def data_set(folder, classes):
    rng = np.random.default_rng(classes)
    splits = {
        "train": drawn_items(rng, 16, classes=classes, prefix="t"),
        "validation": drawn_items(rng, 6, classes=classes, prefix="v"),
    }
    root = write_dataset(folder, splits, size=64, shards=1, classes=classes)
    measured(root)
    return root


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    torch.set_num_threads(1)
    train(data_set(folder / "data", 5), folder / "run", OPTIONS)
    return folder / "run"


def last(run):
    return checkpoint.load(checkpoint.steps(run)[-1]).parts["model"]


def test_layers_move_by_their_own_rates_from_the_copied_weights(pretrained, tmp_path, capfd):
    slow = ("train.layer_lr.conv1=1e-9", "train.layer_lr.conv2=.1", "train.layer_lr.fc8=10")
    root = data_set(tmp_path / "data", 3)
    options = replace(OPTIONS, init_from=pretrained, settings=(*OPTIONS.settings, *slow))
    train(root, tmp_path / "slow", options)
    train(root, tmp_path / "even", replace(OPTIONS, init_from=pretrained))
    said = capfd.readouterr().err
    assert "newly initialized: fc8.weight, fc8.bias" in said  # 3 classes, not 5
    before = checkpoint.load(checkpoint.resolve(pretrained)).parts["model"]

    def moved(run, name):
        return float((last(tmp_path / run)[name] - before[name]).abs().mean())

    # The rate is so small that float32 has no place for the step.
    assert moved("slow", "conv1.weight") == 0 < moved("even", "conv1.weight")
    assert 0 < moved("slow", "conv2.weight") < 0.3 * moved("even", "conv2.weight")
    assert moved("slow", "fc6.weight") > 0.3 * moved("even", "fc6.weight")


def test_the_weights_to_start_from_are_read_once(pretrained, tmp_path, capfd):
    # The second call goes on with its own weights; naming the source again changes nothing.
    root = data_set(tmp_path / "data", 5)
    options = replace(OPTIONS, init_from=pretrained)
    train(root, tmp_path / "run", options)
    capfd.readouterr()
    train(root, tmp_path / "run", replace(options, epochs=2))
    said = capfd.readouterr().err
    assert "copied from" not in said
    assert "resuming from" in said


def test_a_run_starts_from_the_file_of_torchvisions_alexnet(tmp_path, capfd):
    root = data_set(tmp_path / "data", 5)
    options = replace(OPTIONS, recipe="torchvision")
    train(root, tmp_path / "ours", options)
    theirs = {
        f"{module}.{kind}": last(tmp_path / "ours")[f"{layer}.{kind}"]
        for module, layer in TORCHVISION.items()
        for kind in ("weight", "bias")
    }
    torch.save(theirs, tmp_path / "alexnet.pth")
    still = tuple(f"train.layer_lr.{layer}=1e-9" for layer in TORCHVISION.values())
    options = replace(
        options, init_from=tmp_path / "alexnet.pth", settings=(*OPTIONS.settings, *still)
    )
    capfd.readouterr()
    train(root, tmp_path / "run", options)
    assert "newly initialized: nothing" in capfd.readouterr().err
    after = last(tmp_path / "run")
    assert torch.equal(after["conv1.weight"], theirs["features.0.weight"])
    assert torch.equal(after["fc8.weight"], theirs["classifier.6.weight"])


# torchvision.models.alexnet: the indices of its layers with weights.
TORCHVISION = {
    **dict(zip([f"features.{n}" for n in (0, 3, 6, 8, 10)], ALL[:5], strict=True)),
    **dict(zip([f"classifier.{n}" for n in (1, 4, 6)], ALL[5:], strict=True)),
}


def test_a_source_that_is_not_there_is_named(pretrained, tmp_path):
    root = data_set(tmp_path / "data", 5)
    with pytest.raises(RunError, match=f"{tmp_path / 'none'} does not exist"):
        train(root, tmp_path / "run", replace(OPTIONS, init_from=tmp_path / "none"))


def test_a_rate_for_a_layer_that_is_not_there_is_refused(tmp_path):
    root = data_set(tmp_path / "data", 3)
    wrong = replace(OPTIONS, settings=(*OPTIONS.settings, "train.layer_lr.fc9=10"))
    with pytest.raises(ValueError, match="'fc9' is not a layer of code2012; did you mean 'fc"):
        train(root, tmp_path / "run", wrong)
    assert not (tmp_path / "run").exists()
