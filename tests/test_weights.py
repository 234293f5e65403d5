import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from alexnet import build
from alexnet.errors import RunError
from alexnet.model.networks import caffe, code2012, paper, six_conv, smoke, torchvision
from alexnet.model.weights import initial_state, to_columns, to_grouped
from alexnet.training import checkpoint
from alexnet.training.one_device import copy_fitting, load_weights
from alexnet.training.pretrained import first_weights, from_torchvision, read_weights

SMALL = smoke(code2012(), crop=48, classes=5)


def assert_equal_states(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_weights_start_with_the_sd_and_biases_of_the_table():
    # fc6 and fc7 alone have 54 million values: their rows are as good in the smoke size.
    config = smoke(code2012(), crop=112)
    state = initial_state(config, seed=0)
    for row in config.layers:
        weight = state[f"{row.name}.weight"]
        assert weight.std().item() == pytest.approx(row.sd, rel=4 / (2 * weight.numel()) ** 0.5)
        assert (state[f"{row.name}.bias"] == row.bias).all()


def test_the_published_starts_differ_where_the_paper_and_the_code_do():
    def starts(config):
        return [(row.sd, row.bias) for row in config.layers]

    ones = [(0.01, 0.0), (0.01, 1.0)]
    dense = [(0.01, 1.0), (0.01, 1.0), (0.01, 0.0)]
    assert starts(code2012()) == [*ones, (0.03, 0.0), (0.03, 1.0), (0.03, 1.0), *dense]
    assert starts(paper()) == [*ones, (0.01, 0.0), (0.01, 1.0), (0.01, 1.0), *dense]
    assert [bias for _, bias in starts(caffe())] == [0.0, 0.1, 0.0, 0.1, 0.1, 0.1, 0.1, 0.0]


def test_pytorchs_default_start_is_that_of_its_layers():
    config = smoke(torchvision(), crop=112)
    state = initial_state(config, seed=0)
    layer = torch.nn.Conv2d(3, 32, 5)
    ours, theirs = state["conv1.weight"], layer.weight
    assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.01)
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.05)


def test_a_start_is_a_function_of_the_seed():
    assert_equal_states(initial_state(SMALL, seed=1), initial_state(SMALL, seed=1))
    one, other = initial_state(SMALL, seed=1), initial_state(SMALL, seed=2)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_every_form_starts_with_the_same_weights():
    grouped = build(SMALL, seed=4).state_dict()
    columns = build(SMALL, form="columns", seed=4).state_dict()
    assert_equal_states(to_grouped(columns, SMALL), grouped)
    assert_equal_states(to_columns(grouped, SMALL), columns)


def test_the_columns_hold_what_the_two_gpus_held():
    columns = to_columns(initial_state(code2012(), seed=0), code2012())
    count = {"column0": 0, "column1": 0}
    for name, tensor in columns.items():
        count[name.partition(".")[0]] += tensor.numel()
    assert count == {"column0": 32_531_112, "column1": 28_434_112}


class TorchvisionsAlexNet(nn.Module):
    """Laid out and named as torchvision.models.alexnet, whose package wants Pillow."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
        )
        self.classifier = nn.Sequential(
            *(nn.Dropout(), nn.Linear(256 * 6 * 6, 4096), nn.ReLU()),
            *(nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()),
            nn.Linear(4096, 1000),
        )

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def test_torchvisions_weights_compute_what_torchvisions_alexnet_computes():
    torch.manual_seed(0)
    theirs = TorchvisionsAlexNet().double().eval()
    ours = build(torchvision()).double().eval()
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    pixels = torch.rand(2, 3, 224, 224, dtype=torch.float64)
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)[:, None, None]
    sd = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)[:, None, None]
    with torch.no_grad():
        expected = theirs((pixels - mean) / sd)
        torch.testing.assert_close(ours(255 * (pixels - mean)), expected, rtol=1e-10, atol=1e-12)


def test_fine_tuning_copies_all_but_the_last_layer():
    source = initial_state(SMALL, seed=1)
    target = build(smoke(code2012(), crop=48, classes=7), seed=2)
    copied, fresh = copy_fitting(target, source)
    assert fresh == ["fc8.weight", "fc8.bias"]
    assert [*copied, *fresh] == list(source)
    for name in copied:
        assert torch.equal(target.state_dict()[name], source[name]), name


def test_six_convolutions_start_from_five():
    source = initial_state(SMALL, seed=1)
    config = smoke(six_conv(), crop=48, classes=5)
    target, expected = build(config, seed=2), initial_state(config, seed=2)
    # fc6 sees conv6's maps, which are as many as conv5's.
    _, fresh = copy_fitting(target, {n: t for n, t in source.items() if n.startswith("conv")})
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, expected[name] if name in fresh else source[name]), name
    assert {name.partition(".")[0] for name in fresh} == {"conv6", "fc6", "fc7", "fc8"}


def test_weights_of_another_network_are_listed_by_name_and_shape(tmp_path):
    state = initial_state(SMALL, seed=0)
    state["conv2.bias"] = state["conv2.bias"][:3]
    state["conv9.bias"] = state.pop("fc7.bias")
    with pytest.raises(RunError) as error:
        load_weights(build(SMALL), state, tmp_path / "a.safetensors")
    for difference in ("conv2.bias is (3,), not (", "fc7.bias is missing", "conv9.bias is unknown"):
        assert difference in str(error.value)


def test_first_weights_are_those_of_a_checkpoint_or_of_torchvisions_file(tmp_path):
    state = initial_state(smoke(torchvision(), crop=48, classes=10), seed=4)
    numbers = dict(zip(("0", "3", "6", "8", "10"), range(1, 6), strict=True))
    theirs = {f"features.{n}": f"conv{layer}" for n, layer in numbers.items()}
    theirs |= {"classifier.1": "fc6", "classifier.4": "fc7", "classifier.6": "fc8"}
    renamed = {
        f"{name}.{kind}": state[f"{layer}.{kind}"]
        for name, layer in theirs.items()
        for kind in ("weight", "bias")
    }
    torch.save(renamed, tmp_path / "alexnet.pth")
    save_file(renamed, tmp_path / "theirs.safetensors")
    save_file(state, tmp_path / "plain.safetensors")
    checkpoint.save(tmp_path / "ours.safetensors", {}, {"model": state})
    for path in tmp_path.iterdir():
        assert_equal_states(first_weights(path), state)


def test_both_kinds_of_files_are_read(tmp_path):
    state = initial_state(SMALL, seed=0)
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        assert_equal_states(read_weights(tmp_path / name), state)


class Trap:
    """Runs a command where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_file_that_would_run_code_is_refused_and_not_run(tmp_path, kind):
    path, mark = tmp_path / "w.pth", tmp_path / "it ran"
    if kind == "torch":
        torch.save({"conv1.weight": Trap(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Trap(mark), protocol=2))
    with pytest.raises(RunError, match="without running code"):
        read_weights(path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 half a zip"])
def test_a_damaged_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=name):
        read_weights(tmp_path / name)
    with pytest.raises(RunError, match="is not a file"):
        read_weights(tmp_path / "absent.pth")


def test_a_file_of_something_else_is_named(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(RunError, match="something other than named tensors"):
        read_weights(tmp_path / "list.pth")
    with pytest.raises(RunError, match=r"it has no layer1\.0\.weight"):
        from_torchvision({"layer1.0.weight": torch.zeros(1)})
