"""The examples that train other networks and encode latents, at toy size."""

import io
import json
import os
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dctn

from alexprep.dataset.manifest import sidecars
from pipelines import AugmentSpec, LoaderConfig, open_loader
from pipelines.format import Manifest
from tests.shard_sets import all_samples
from tests.tarsets import drawn_items, write_dataset

EXAMPLES = Path(__file__).parents[1] / "examples"
EPOCH = re.compile(r"epoch (\d+): loss (\d+\.\d+), top-1 acc (\d+\.\d+)% of 11 images")


torch.set_num_threads(1)  # its threads spin on busy cores


def example(name):
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """24 training and 11 validation images of 64 pixels, as other libraries expect them too."""
    root = tmp_path_factory.mktemp("examples")
    items = drawn_items(np.random.default_rng(2), 35)
    write_dataset(root, {"train": items[:24], "validation": items[24:]}, size=64, shards=2)
    for name, text in sidecars(Manifest.load(root)).items():
        (root / name).write_text(text)
    return root


def toy(root, out, *more):
    return [
        *map(str, (root, out, "--toy", "--crop", "32", "--batch", "5", "--epochs", "2")),
        *more,
    ]


@pytest.mark.parametrize("model", ["resnet50", "vit_s16"])
def test_a_network_trains_and_counts_every_validation_image_once(root, tmp_path, capsys, model):
    example("train_resnet_vit").main(toy(root, tmp_path, "--model", model, "--device", "cpu"))
    epochs = [EPOCH.fullmatch(line) for line in capsys.readouterr().out.splitlines()]
    assert [match[1] for match in epochs] == ["0", "1"]
    assert all(round(float(match[3]) * 11) % 100 in (0, 1, 99) for match in epochs)


def test_a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(root, tmp_path):
    module = example("train_resnet_vit")

    def options(out):
        parsed = module.parse(toy(root, out, "--device", "cpu", "--save-steps", "3"))
        out.mkdir()
        return parsed

    def opened(split):
        spec = AugmentSpec(
            source=64, crop=32, area=(0.08, 1), mean="none", lighting=0, divide=1, sd=(64, 64, 64)
        )
        return open_loader(root, split, LoaderConfig(batch=5, backend="torch"), spec)

    weights = []
    for stopped in (False, True):
        chosen = options(tmp_path / str(stopped))
        if stopped:
            with opened("train") as loader:
                training = module.Training(chosen, loader, "cpu")
                for images, labels in loader:
                    training.step(training.model, images, labels)
                    if loader.step == 3:
                        break
                training.save()
        with opened("train") as loader, opened("validation") as validation:
            training = module.Training(chosen, loader, "cpu")
            training.resume()
            module.epochs(training, training.model, validation, chosen, leads=True)
        weights.append(training.model.state_dict())
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_that_cannot_be_resumed_says_why_in_one_line(root, tmp_path):
    module = example("train_resnet_vit")
    (tmp_path / "last.pt").write_bytes(b"torn")
    with pytest.raises(
        SystemExit, match=r"last\.pt cannot be resumed \(.*\)\. Give another folder"
    ):
        module.main(toy(root, tmp_path, "--device", "cpu"))
    with pytest.raises(SystemExit):
        module.main(toy(root, tmp_path / "new", "--model", "vit_s16", "--crop", "50"))
    with pytest.raises(SystemExit, match=r"crop must be in 1\.\.resize \(16\), got 32"):
        module.main(toy(root, tmp_path / "new", "--resize", "16", "--device", "cpu"))


NETWORKS = """
import sys
import torch
from torch.testing import assert_close
import tests.vision_ops
import timm
from torchvision.models import resnet50
from tests.test_training_examples import example

module = example("train_resnet_vit")
images = torch.randn(2, 3, 224, 224)
for ours, theirs in (
    (module.ResNet(10), resnet50(num_classes=10)),
    (module.ViT(10, 224), timm.create_model("vit_small_patch16_224", num_classes=10)),
):
    ours.load_state_dict(theirs.state_dict())
    with torch.inference_mode():
        assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-4)
print(sum(p.numel() for p in module.ResNet(1000).parameters()))
"""


def python(code, *arguments):
    """Code in a process of its own: these libraries take seconds to import."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=EXAMPLES.parent,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_networks_are_torchvisions_and_timms():
    assert python(NETWORKS) == "25557032\n"


@pytest.mark.slow
def test_two_processes_count_every_validation_image_once(root, tmp_path):
    arguments = toy(root, tmp_path, "--device", "cpu")
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [sys.executable, *launch, EXAMPLES / "train_resnet_vit.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [EPOCH.fullmatch(line)[1] for line in done.stdout.splitlines()] == ["0", "1"]


REFUSED = """
def refused(main, says, *arguments):
    try:
        main(["nothing", *arguments])
    except SystemExit as end:
        assert says in str(end) and "\\n" not in str(end), end
    else:
        raise AssertionError(f"{arguments} is not refused")
"""
TIMM = """
import sys
import tests.vision_ops
from tests.test_training_examples import example

module = example("train_with_timm")
options = ("--model", "test_resnet", "--crop", "64", "--batch", "4", "--epochs", "2")
module.main([sys.argv[1], *options, "--workers", "1", "--device", "cpu"])
refused(module.main, "nothing is not a folder", "--device", "cpu")
"""


@pytest.mark.slow
def test_timm_trains_on_the_tars(root):
    lines = python(REFUSED + TIMM, root).splitlines()
    assert [EPOCH.fullmatch(line)[1] for line in lines] == ["0", "1"]


LIGHTNING = """
import sys
from pathlib import Path
import torch
import tests.vision_ops
from tests.test_training_examples import example

root, out = sys.argv[1:]
module = example("train_with_lightning")

def train(loader, folder, *more):
    options = ("--crop", "56", "--batch", "5", "--epochs", "2", "--workers", "0")
    options += ("--model", "test_resnet", "--accelerator", "cpu")
    options += ("--save-steps", "1", "--loader", loader)
    module.main([root, f"{out}/{folder}", *options, *more])
    return torch.load(f"{out}/{folder}/last.ckpt", weights_only=False)

train("tars", "tars")
assert train("alexprep", "stopped", "--steps", "3")["global_step"] == 3
resumed, whole = train("alexprep", "stopped"), train("alexprep", "whole")
assert resumed["global_step"] == whole["global_step"] == 10
for name, weight in whole["state_dict"].items():
    assert torch.equal(resumed["state_dict"][name], weight), name
refused(module.main, "nothing is not a folder", f"{out}/nothing")
"""


@pytest.mark.slow
def test_lightning_trains_and_resumes_in_the_middle_of_an_epoch(root, tmp_path):
    epochs = [match[1] for match in EPOCH.finditer(python(REFUSED + LIGHTNING, root, tmp_path))]
    assert epochs == ["0", "1"] * 3


def encode(root, out, *more):
    example("encode_latents").main([*map(str, (root, out, "--batch", 5, "--device", "cpu")), *more])


def test_latents_are_in_the_order_of_the_keys(root, tmp_path, capsys):
    encode(root, tmp_path, "--mirror")
    expected = f"{tmp_path}: 24 latents of 4x8x8 in the order of keys.txt\n"
    assert capsys.readouterr().out == expected
    rows = all_samples(root, "train")
    assert (tmp_path / "keys.txt").read_text().split() == [key for key, *_ in rows]
    assert np.load(tmp_path / "labels.npy").tolist() == [int(label) for _, _, label, _ in rows]
    for name, step in (("latents.npy", 1), ("mirrored.npy", -1)):
        latents = np.load(tmp_path / name)
        assert (latents.dtype, latents.shape) == (np.float16, (24, 4, 8, 8))
        for latent, (_, jpg, _, _) in zip(latents[::7], rows[::7], strict=True):
            luma = (pixels(jpg)[:, ::step] / 127.5 - 1) @ (0.299, 0.587, 0.114)
            blocks = luma.reshape(8, 8, 8, 8).transpose(0, 2, 1, 3)
            lowest = dctn(blocks, axes=(2, 3), norm="ortho")[:, :, :2, :2].reshape(8, 8, 4)
            np.testing.assert_allclose(latent, lowest.transpose(2, 0, 1), atol=0.01)


def pixels(jpg):
    return np.asarray(Image.open(io.BytesIO(jpg)).convert("RGB"))


def test_latents_continue_where_they_were_stopped(root, tmp_path):
    module = example("encode_latents")
    calls = []

    def failing(images):
        calls.append(len(images))
        if len(calls) == 3:
            raise RuntimeError("power cut")
        return module.encoder("cpu")(images)

    out = tmp_path / "stopped"
    out.mkdir()
    options = module.parse([str(root), str(out), "--batch", "5", "--crop", "64"])
    spec = AugmentSpec(source=64, crop=64, mean=(127.5,) * 3, sd=(127.5,) * 3, lighting=0, divide=1)
    with (
        open_loader(root, "train", LoaderConfig(batch=5), spec, train=False) as loader,
        pytest.raises(RuntimeError, match="power cut"),
    ):
        module.encode_split(loader, failing, options)
    assert json.loads((out / "progress.json").read_text())["row"] == 10
    encode(root, out)
    encode(root, tmp_path / "whole")
    for name in ("latents.npy", "labels.npy", "keys.txt"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    encode(root, out)  # all is there


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--crop", "60"], "--crop must be a multiple of 8, got 60"),
        (["--crop", "72"], r"crop must be in 1\.\.source \(64\), got 72"),
        (["--split", "test"], "has no split 'test'; it has train, validation"),
        (["--mirror"], r"this run would write .*mirrored.*Give another folder as OUT"),
        (["--crop", "32"], r"is float16 \(24, 4, 8, 8\), this run would write"),
        (["--split", "validation"], r"samples was 24 and is 11\. Give another folder as OUT"),
    ],
)
def test_latents_of_another_kind_are_refused(latents, root, more, says):
    files = {path.name: path.read_bytes() for path in latents.iterdir()}
    with pytest.raises(SystemExit, match=says):
        encode(root, latents, *more)
    assert {path.name: path.read_bytes() for path in latents.iterdir()} == files


@pytest.fixture(scope="module")
def latents(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("latents")
    encode(root, out)
    return out


@pytest.mark.parametrize("name", ["train_resnet_vit", "encode_latents"])
@pytest.mark.parametrize("number", ["0", "-3", "many"])
def test_a_number_that_is_none_is_named(name, number, tmp_path, capsys):
    with pytest.raises(SystemExit):
        example(name).main([str(tmp_path), str(tmp_path / "out"), f"--batch={number}"])
    *_, last = capsys.readouterr().err.splitlines()
    assert f"argument --batch: '{number}' is not a whole number from 1 on" in last


@pytest.mark.parametrize("name", ["train_resnet_vit", "encode_latents"])
def test_what_is_no_data_set_is_one_line(name, tmp_path):
    with pytest.raises(SystemExit, match=f"{tmp_path}/nothing is not a folder") as caught:
        example(name).main([str(tmp_path / "nothing"), str(tmp_path / "out")])
    assert len(str(caught.value).splitlines()) == 1
