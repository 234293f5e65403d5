"""Data sets of whole pictures: stored, measured, checked and loaded as torchvision would."""

import io
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from alexprep.cli import cli
from alexprep.dataset.codec import ImageError, encode, resized, square
from alexprep.dataset.decode import store_planes
from alexprep.dataset.export import export
from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.dataset.stats import compute_stats
from alexprep.dataset.verify import verify
from alexprep.errors import PrepareError
from alexprep.model.training import TrainOptions, resolve_recipe
from pipelines import AugmentSpec, DataError, LoaderConfig, open_loader
from pipelines.augment import draw
from pipelines.format import Manifest
from pipelines.order import global_order
from pipelines.regions import random_boxes
from tests.documented import assert_documented
from tests.drawing import draw_classes, jpeg, photograph
from tests.shard_sets import HERE, all_samples
from tests.tarsets import Item, write_dataset
from tests.vision_ops import transforms as vision

SIZE = 48
WHOLE = ShardConfig(size=SIZE, shards={"train": 2, "validation": 1}, keep_aspect=True)
RAW = {"source": SIZE, "mean": "none", "lighting": 0, "divide": 1}
BACKENDS = ("torch", "dali")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return draw_classes(tmp_path_factory.mktemp("photos"), np.random.default_rng(3), each=4)


@pytest.fixture(scope="module")
def root(source, tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    shard(source, root, WHOLE, HERE)
    compute_stats(root, workers=1)
    return root


def pictures(root, split):
    """Images and labels in the split's own order."""
    return [
        (Image.open(io.BytesIO(jpg)).convert("RGB"), int(label))
        for _, jpg, label, _ in all_samples(root, split)
    ]


def test_pictures_are_whole_with_the_shorter_side_given(root, source):
    files = {path.stem: path for path in source.rglob("*.JPEG")}
    for key, jpg, _, _ in all_samples(root, "train"):
        with Image.open(files[key]) as original:
            shorter = min(original.size)
            expected = [int(side * SIZE / shorter + 0.5) for side in original.size]
        assert Image.open(io.BytesIO(jpg)).size == tuple(expected)
        assert SIZE in expected


def test_the_centre_of_a_whole_picture_is_the_square_of_other_sets(rng):
    for width, height in ((120, 90), (60, 61), (50, 200)):
        picture = photograph(rng, width, height)
        whole = np.asarray(resized(picture, SIZE)).astype(int)
        top, left = ((side - SIZE) // 2 for side in whole.shape[:2])
        centre = whole[top : top + SIZE, left : left + SIZE]
        assert np.abs(centre - np.asarray(square(picture, SIZE))).max() <= 1


def test_the_manifest_says_so_and_everything_else_is_as_in_other_sets(root, source, tmp_path):
    manifest = Manifest.load(root)
    plain = shard(source, tmp_path, ShardConfig(size=SIZE, shards=dict(WHOLE.shards)), HERE)
    assert (manifest.version, plain.version) == (2, 1)
    assert_documented(json.loads((root / "manifest.json").read_text()), "manifest")
    assert dict(manifest.config) == {**plain.config, "keep_aspect": True}
    assert (manifest.source, manifest.classes, manifest.size) == (
        plain.source,
        plain.classes,
        plain.size,
    )
    for split in ("train", "validation"):
        rows = [
            [(key, *notes) for key, _, *notes in all_samples(path, split)]
            for path in (root, tmp_path)
        ]
        assert rows[0] == rows[1]
    assert f"{SIZE} pixels on the shorter side" in (root / "README.md").read_text()


def test_a_reader_of_squares_refuses_it_and_versions_cannot_be_mixed(root, tmp_path):
    raw = json.loads((root / "manifest.json").read_text())
    with pytest.raises(DataError, match=r"version 1 with config.keep_aspect True"):
        Manifest.from_json({**raw, "version": 1}, "manifest.json")
    del raw["config"]["keep_aspect"]
    with pytest.raises(DataError, match=r"version 2 with config.keep_aspect False"):
        Manifest.from_json(raw, "manifest.json")


def test_verify_checks_it_and_rebuilds_its_shards(root, source):
    result = verify(root, workers=1, rebuild=1, source=source)
    assert result.faults == ()
    assert len(result.rebuilt) == 1


def test_the_bytes_do_not_depend_on_the_number_of_workers(root, source, tmp_path):
    again = shard(source, tmp_path, WHOLE, RunOptions(workers=2))
    assert again.splits == Manifest.load(root).splits


def test_a_set_of_squares_is_not_continued_with_whole_pictures(source, tmp_path):
    config = ShardConfig(size=SIZE, shards=1)
    shard(source, tmp_path, config, HERE)
    with pytest.raises(PrepareError, match=r"config.keep_aspect None where this run has True"):
        shard(source, tmp_path, ShardConfig(size=SIZE, shards=1, keep_aspect=True), HERE)


def test_a_share_is_held_out_and_the_set_is_exported(source, tmp_path):
    config = ShardConfig(size=SIZE, shards=1, keep_aspect=True, validation="25%")
    manifest = shard(source / "train", tmp_path / "set", config, HERE)
    assert {name: split.samples for name, split in manifest.splits.items()} == {
        "train": 9,
        "validation": 3,
    }
    export("openclip", tmp_path / "set", tmp_path / "openclip")
    assert (tmp_path / "openclip/train/sizes.json").is_file()


def test_statistics_are_of_the_central_squares(root):
    stats = json.loads((root / "stats.json").read_text())
    squares = []
    for picture, _ in pictures(root, "train"):
        pixels = np.asarray(picture).astype(float)
        top, left = ((side - SIZE) // 2 for side in pixels.shape[:2])
        squares.append(pixels[top : top + SIZE, left : left + SIZE])
    assert (stats["height"], stats["width"], stats["images"]) == (SIZE, SIZE, 12)
    np.testing.assert_allclose(stats["mean_0_255"], np.mean(squares, axis=(0, 1, 2)), rtol=1e-12)


def opened(root, split, spec, backend, views=1):
    config = LoaderConfig(batch=4, backend=backend, dtype="uint8", seed=3, views=views)
    with open_loader(root, split, config, spec) as loader:
        batches = [(images.clone(), labels) for images, labels in loader]
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def below(bound, word):
    return int(word) * bound >> 32


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("resize", [None, 40])
def test_training_crops_lie_anywhere_in_the_picture_as_torchvisions(root, backend, resize):
    crop = 36
    spec = AugmentSpec(crop=crop, resize=resize, **RAW)
    images, labels = opened(root, "train", spec, backend)
    stored, drawn = pictures(root, "train"), draw(spec, 3, 0, np.arange(12))
    for position, index in enumerate(global_order(12, 3, 0)):
        picture, label = stored[index]
        picture = picture if resize is None else vision.resize(picture, resize)
        top, left = (
            below(side - crop + 1, word)
            for side, word in zip(picture.size[::-1], drawn.words[:, position], strict=True)
        )
        expected = vision.crop(picture, top, left, crop, crop)
        expected = vision.hflip(expected) if drawn.mirror[position] else expected
        assert torch.equal(images[position], vision.pil_to_tensor(expected))
        assert labels[position] == label


@pytest.mark.parametrize("backend", BACKENDS)
def test_resized_crops_are_torchvisions_of_the_same_boxes(root, backend):
    spec = AugmentSpec(crop=36, area=(0.08, 1), **RAW)
    images, _ = opened(root, "train", spec, backend)
    stored, drawn = pictures(root, "train"), draw(spec, 3, 0, np.arange(12))
    order = global_order(12, 3, 0)
    sizes = np.array([stored[index][0].size[::-1] for index in order])
    boxes = random_boxes(spec.area, spec.ratio, drawn.words, sizes)
    assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()
    for position, index in enumerate(order):
        box = boxes[position].tolist()
        expected = vision.resized_crop(stored[index][0], *box, [36, 36])
        expected = vision.hflip(expected) if drawn.mirror[position] else expected
        assert torch.equal(images[position], vision.pil_to_tensor(expected))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("resize", "crop"), [(None, 41), (40, 35), (64, 56)])
def test_evaluation_is_torchvisions_resize_and_centre_crop(root, backend, resize, crop):
    images, labels = opened(
        root, "validation", AugmentSpec(crop=crop, resize=resize, **RAW), backend
    )
    stored = pictures(root, "validation")
    assert labels.tolist() == [label for _, label in stored]
    for image, (picture, _) in zip(images, stored, strict=True):
        picture = picture if resize is None else vision.resize(picture, resize)
        expected = vision.pil_to_tensor(vision.center_crop(picture, crop))
        assert torch.equal(image, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_network_of_squares_sees_the_central_squares_alone(root, backend):
    spec = AugmentSpec(crop=36, square=True, **RAW)
    images, _ = opened(root, "train", spec, backend)
    drawn = draw(spec, 3, 0, np.arange(12))
    stored = list(_central(root, "train"))
    for position, index in enumerate(global_order(12, 3, 0)):
        pixels = stored[index]
        y, x = int(drawn.y[position]), int(drawn.x[position])
        expected = pixels[y : y + 36, x : x + 36]
        expected = expected[:, ::-1] if drawn.mirror[position] else expected
        assert (images[position].permute(1, 2, 0).numpy() == expected).all()
    views, _ = opened(root, "validation", AugmentSpec(crop=36, **RAW), backend, views=10)
    for ten, pixels in zip(views, _central(root, "validation"), strict=True):
        assert (ten[0].permute(1, 2, 0).numpy() == pixels[:36, :36]).all()
        assert (ten[8].permute(1, 2, 0).numpy() == pixels[12:, 12:][:, ::-1]).all()


def _central(root, split):
    for picture, _ in pictures(root, split):
        pixels = np.asarray(picture)
        top, left = ((side - SIZE) // 2 for side in pixels.shape[:2])
        yield pixels[top : top + SIZE, left : left + SIZE]


def test_recipes_of_alexnet_take_the_central_squares(root):
    recipe = resolve_recipe(Manifest.load(root), TrainOptions(smoke=True))
    assert recipe.augment.square
    config = LoaderConfig(batch=4, backend="torch")
    with open_loader(root, "train", config, recipe.augment) as loader:
        images, _ = next(iter(loader))
    assert images.shape == (4, 3, recipe.model.crop, recipe.model.crop)


def test_a_stopped_epoch_continues(root):
    spec = AugmentSpec(crop=36, area=(0.08, 1), **RAW)
    with open_loader(root, "train", LoaderConfig(batch=4, backend="torch"), spec) as loader:
        next(iter(loader))
        state = loader.state_dict()
        expected = next(iter(loader))[0].clone()
    with open_loader(root, "train", LoaderConfig(batch=4, backend="dali"), spec) as loader:
        loader.load_state_dict(state)
        assert torch.equal(next(iter(loader))[0], expected)


@pytest.mark.parametrize("backend", ["torch", "webdataset"])
def test_streams_and_windows_give_the_same_pictures(root, backend):
    spec = AugmentSpec(crop=36, resize=40, **RAW)
    order = "shards" if backend == "webdataset" else "window"
    config = LoaderConfig(batch=4, backend=backend, dtype="uint8", order=order)
    with open_loader(root, "validation", config, spec) as loader:
        images = torch.cat([images.clone() for images, _ in loader])
    assert torch.equal(images, opened(root, "validation", spec, "dali")[0])


def test_planes_hold_squares_alone(root, source, tmp_path):
    with pytest.raises(PrepareError, match="keeps the aspect ratio"):
        store_planes(root, workers=1)
    command = ["shard", str(source), str(tmp_path / "new"), "--keep-aspect", "--planes"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 2
    assert "not --keep-aspect" in result.output
    config = LoaderConfig(batch=4, backend="planes")
    with pytest.raises(DataError, match="takes squares of one size alone"):
        open_loader(root, "train", config, AugmentSpec(crop=36, **RAW))


def test_a_mean_image_needs_squares(root):
    spec = AugmentSpec(source=SIZE, crop=36, mean="image_at_crop")
    with pytest.raises(ValueError, match="Use square=True"):
        open_loader(root, "train", LoaderConfig(batch=4), spec)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_picture_of_another_size_is_named(tmp_path, rng, backend):
    sizes = ((SIZE, SIZE), (70, SIZE), (SIZE - 8, 90))
    items = [
        Item(f"item_{number}", jpeg(photograph(rng, *size), 95, subsampling=2), 0)
        for number, size in enumerate(sizes)
    ]
    write_dataset(tmp_path, {"train": items}, size=SIZE, shards=1)
    raw = json.loads((tmp_path / "manifest.json").read_text())
    raw |= {"version": 2, "config": {"keep_aspect": True}}
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    config = LoaderConfig(batch=3, backend=backend)
    with (
        open_loader(tmp_path, "train", config, AugmentSpec(crop=36, **RAW)) as loader,
        pytest.raises(DataError, match=r"key item_2.*40x90 pixels.*48 for the shorter side"),
    ):
        next(iter(loader))
    assert any(
        "of 40x90, not YCbCr 420 of a shorter side of 48" in fault
        for fault in verify(tmp_path, workers=1).faults
    )


@pytest.mark.parametrize(("width", "height"), [(2000, 1), (1, 5000)])
def test_a_strip_that_no_jpeg_could_hold_is_refused(rng, width, height):
    data = io.BytesIO()
    Image.new("RGB", (width, height)).save(data, "PNG")
    with pytest.raises(ImageError, match="too long to be stored whole"):
        encode(data.getvalue(), size=256, quality=95, keep_aspect=True)
    assert encode(data.getvalue(), size=256, quality=95).width == width
