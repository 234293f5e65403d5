"""What an earlier commit made is read, verified, finished and resumed: users keep it for years.

fixtures/made_at_edc7d49.tar.xz was written by alexprep at commit edc7d49: the drawn source, its
data set, two runs of two epochs (one with the schedule that follows the validation error),
predictions, a data set whose `shard` was killed after two of five shards, and expected.json: what
that commit itself made of them afterwards. Never write it anew: its age is its use.
"""

import hashlib
import json
import tarfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from alexprep.cli import cli
from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from pipelines import AugmentSpec, LoaderConfig, open_loader

FIXTURE = Path(__file__).parent / "fixtures" / "made_at_edc7d49.tar.xz"
SMALL = tuple(
    f"--set={setting}"
    for setting in (
        *("loader.batch=20", "train.log_steps=1", "train.keep=1"),
        *("model.conv1.out=8", "model.conv2.out=16", "model.conv3.out=16", "model.conv4.out=16"),
        *("model.conv5.out=8", "model.fc6.out=16", "model.fc7.out=16"),
    )
)
PLATEAU = (
    *("--recipe", "paper", "--set=train.schedule.patience=1", "--set=augment.mean=image_at_crop"),
)
# Two float32 steps from equal weights on another processor: the loss is a mean over 20 images of
# values near ln(10), each the end of sums of at most 3,000 products (conv3 at this width has 144,
# fc6 the most) whose order may differ: |error| <= sqrt(3000) * 2**-24 * 2.3 = 7.5e-6 an image.
LOSS = 1e-5


@pytest.fixture
def old(tmp_path):
    """A fresh copy of everything that edc7d49 made."""
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def expected(old):
    """What edc7d49 itself made of it afterwards."""
    return json.loads((old / "expected.json").read_text())


def alexprep(*words):
    """A command as a user calls it; its standard output."""
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


# What data sets have had since: nothing that the old ones had has changed for it.
ADDED = {"README.md", "SHA256SUMS", "croissant.json"}
ADDED_CODEC = "png_gif_bmp_ppm_tiff"


def assert_only_added(root, before):
    """Every file of the old data set has the same bytes, and only ADDED are new.

    The manifest has them without what it says of the decoder of the PNG in the source.
    """
    after = digests(root)
    manifest = json.loads((root / "manifest.json").read_text())
    assert manifest["codec"].pop(ADDED_CODEC).startswith("pillow ")
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    after["manifest.json"] = hashlib.sha256(text.encode()).hexdigest()
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == ADDED


def test_an_old_data_set_is_verified_and_its_source_gives_the_same_bytes_today(old, expected):
    assert digests(old / "dataset") == expected["dataset"]
    alexprep("verify", old / "dataset", "--source", old / "source", "--rebuild", 2)
    again = old / "again"
    alexprep("shard", old / "source", again, "--size", 64, "--shards", 2, "--workers", 2)
    alexprep("stats", again, "--workers", 2)
    assert_only_added(again, expected["dataset"])


def test_a_shard_command_that_was_killed_then_is_finished_now(old, expected):
    root = old / "unfinished"
    kept = {path: path.stat().st_mtime_ns for path in root.glob("train/*.tar")}
    config = ShardConfig(size=64, shards={"train": 3, "validation": 2})
    shard(old / "source", root, config, RunOptions(workers=1))
    assert_only_added(root, expected["finished"])
    assert len(kept) == 2
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


RAW = {"mean": "none", "lighting": 0.0, "divide": 1.0}
LOADERS = {
    "uint8, global": ({"dtype": "uint8"}, RAW),
    "uint8, window": ({"dtype": "uint8", "order": "window", "window": 2}, RAW),
    "uint8, shards": ({"dtype": "uint8", "order": "shards"}, RAW),
    "uint8, ten views": ({"dtype": "uint8", "views": 10}, RAW),
    "float32, image": ({}, {}),
    "float32, image_at_crop": ({}, {"mean": "image_at_crop"}),
    "float32, channel, channels_last": ({"channels_last": True}, {"mean": "channel"}),
    "float16, ten views": ({"dtype": "float16", "views": 10}, {}),
}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("backend", ["dali", "torch"])
def test_the_loader_gives_the_pixels_and_the_order_that_it_gave(backend, name, old, expected):
    config, augment = LOADERS[name]
    split = "validation" if "views" in config else "train"
    spec = AugmentSpec(source=64, crop=56, **augment)
    options = LoaderConfig(batch=12, seed=5, backend=backend, **config)
    digest = hashlib.sha256()
    with open_loader(old / "dataset", split, options, spec) as loader:
        for _ in range(2 if split == "train" else 1):
            for images, labels in loader:
                digest.update(images.contiguous().numpy().tobytes())
                digest.update(labels.numpy().tobytes())
    assert digest.hexdigest() == expected["pixels"][backend][name]


@pytest.mark.parametrize(("name", "options"), [("run", ()), ("plateau", PLATEAU)])
def test_an_old_run_is_resumed_and_goes_where_it_would_have_gone(name, options, old, expected):
    words = ("train", old / "dataset", "--run", old / name, "--smoke", "--epochs", 3)
    alexprep(*words, *SMALL, *options)
    lines = (old / name / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == len(expected[name])
    for record, before in zip(records, expected[name], strict=True):
        for field, value in before.items():
            if isinstance(value, float):
                assert record[field] == pytest.approx(value, rel=0, abs=LOSS), (field, record)
            else:
                assert record[field] == value


def test_old_checkpoints_and_predictions_are_evaluated_as_they_were(old):
    for member in ("run", "run.predictions"):
        words = ("eval", old / member, "--data", old / "dataset", "--views", 10, "--json")
        result = json.loads(alexprep(*words))
        assert (result["images"], result["top1_error"], result["top5_error"]) == (20, 0.9, 0.5)


def test_old_data_sets_and_runs_are_reported_on(old):
    for folder, words in (("dataset", "Colour statistics"), ("run", "10 views: corners")):
        page = old / f"{folder}.html"
        moved = ("--data", old / "dataset") if folder == "run" else ()
        alexprep("report", old / folder, "--out", page, *moved)
        assert words in page.read_text()


def test_an_old_checkpoint_holds_the_weights_that_were_saved(old):
    from safetensors.torch import load_file  # noqa: PLC0415 - an oracle of another library

    newest = max((old / "run" / "checkpoints").glob("step-*.safetensors"))
    tensors = load_file(newest)
    weights = {name: tensor for name, tensor in tensors.items() if "model" in name}
    assert sum(tensor.numel() for tensor in weights.values()) == 7906
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
