"""DALI on the CPU, torch and plain NumPy make the same pictures of real and drawn photographs."""

import io
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import AugmentSpec, LoaderConfig, open_loader
from pipelines.augment import Colours, Draws, centre, colours, draw
from pipelines.finish import Finish
from pipelines.normalize import Normalize, Preprocess, compiled, normalize
from pipelines.order import global_order
from tests.census import Operations
from tests.drawing import jpeg
from tests.forks import Fork
from tests.tarsets import Item, drawn_items, measured, write_dataset

BACKENDS = ("dali", "torch")
SPECS = {
    "code": AugmentSpec(),
    "crop_227": AugmentSpec(crop=227, mean="channel"),
    "caffe": AugmentSpec(crop=227, mean="image_at_crop", lighting=0, divide=1),
    "whole": AugmentSpec(crop=256, mean="none", lighting_scale="fb_resnet"),
    "eigenvalue": AugmentSpec(lighting_scale="eigenvalue", chunk=4, sd="channel"),
    "published": AugmentSpec(mean=(123.675, 116.28, 103.53), sd=(58.395, 57.12, 57.375)),
}


@pytest.fixture(scope="session")
def photographs(shared_data, tmp_path_factory):
    """Real photographs as a data set of 256 pixels, with measured colours."""
    items = []
    with tarfile.open(shared_data / "ilsvrc-sample-500.tar") as tar:
        files = [member for member in tar if member.isfile()][::11]
        for label, member in enumerate(files):
            picture = Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB")
            scale = 256 / min(picture.size)
            picture = picture.resize([max(256, round(side * scale)) for side in picture.size])
            left, top = ((side - 256) // 2 for side in picture.size)
            picture = picture.crop((left, top, left + 256, top + 256))
            items.append(Item(f"photo_{label:03d}", jpeg(picture, 95, subsampling=2), label))
    root = tmp_path_factory.mktemp("photographs")
    write_dataset(root, {"train": items, "validation": items[:12]}, size=256, classes=len(items))
    measured(root, 256)
    return root, items


def oracle(item, spec, stats, chance, divide):
    """One image by the formula, in float64, straight from the text."""
    y, x, mirror, alpha = chance
    pixels = np.asarray(Image.open(io.BytesIO(item.jpg)).convert("RGB")).astype(np.float64)
    mean = {
        "image": lambda: stats.mean_image_HWC,
        "image_at_crop": lambda: stats.mean_image_HWC,
        "channel": lambda: np.broadcast_to(stats.mean, pixels.shape),
        "none": lambda: np.zeros(pixels.shape),
    }.get(spec.mean, lambda: np.broadcast_to(np.array(spec.mean), pixels.shape))()
    out = np.empty((spec.crop, spec.crop, 3))
    middle = (spec.source - spec.crop) // 2
    power = {"stdev": stats.stdevs, "eigenvalue": stats.eigenvalues}
    power = power.get(spec.lighting_scale, stats.eigenvalues / 255)
    light = stats.eigenvectors @ (alpha * power)
    sd = {None: np.ones(3), "channel": stats.sd}.get(spec.sd, spec.sd)
    columns = np.arange(x, x + spec.crop)[:: -1 if mirror else 1]
    for row in range(spec.crop):
        row_mean = mean[middle + row, middle : middle + spec.crop]
        if spec.mean == "image_at_crop":
            row_mean = mean[y + row, columns]
        out[row] = (pixels[y + row, columns] - row_mean + light) / (divide * np.array(sd))
    return out.transpose(2, 0, 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SPECS)
def test_training_crops_equal_the_formula_on_real_photographs(photographs, name, backend):
    root, items = photographs
    spec = SPECS[name]
    stats = measured(root, 256)
    order = global_order(len(items), 3, 0)
    drawn = draw(spec, 3, 0, np.arange(len(items)))
    config = LoaderConfig(batch=16, seed=3, backend=backend)
    with open_loader(root, "train", config, spec) as loader:
        images, labels = next(iter(loader))
    unit = np.max(stats.sd) if spec.sd else 1  # grey levels of one unit of output
    for position in range(0, 16, 5):
        item = items[order[position]]
        assert labels[position] == item.label
        expected = oracle(item, spec, stats, [part[position] for part in drawn[:4]], drawn.divide)
        assert np.abs(images[position].numpy() - expected).max() * unit < 0.01


def test_a_changed_draw_is_caught_by_that_comparison(photographs):
    root, items = photographs
    spec, stats = SPECS["code"], measured(root, 256)
    drawn = draw(spec, 3, 0, np.arange(1))
    item = items[global_order(len(items), 3, 0)[0]]
    with open_loader(root, "train", LoaderConfig(batch=16, seed=3), spec) as loader:
        image = next(iter(loader))[0][0].numpy()
    y, x, mirror, alpha = (part[0] for part in drawn[:4])
    for changed in (
        ((y + 1) % 33, x, mirror, alpha),
        (y, (x + 1) % 33, mirror, alpha),
        (y, x, not mirror, alpha),
        (y, x, mirror, alpha + 0.01),
    ):
        assert np.abs(image - oracle(item, spec, stats, changed, drawn.divide)).max() > 0.1


@pytest.mark.parametrize("crop", [1, 56, 200, 224, 227, 255, 256])
def test_decoders_agree_on_every_pixel_of_real_photographs(photographs, crop):
    root, _ = photographs
    spec = AugmentSpec(crop=crop, mean="none", lighting=0, divide=1)
    given = {}
    for backend in BACKENDS:
        config = LoaderConfig(batch=16, backend=backend, dtype="uint8")
        with open_loader(root, "train", config, spec) as loader:
            given[backend] = torch.cat([images.clone() for images, _ in loader])
    assert given["dali"].dtype == torch.uint8
    assert torch.equal(given["dali"], given["torch"])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_backends_give_the_type_and_memory_asked_for(tmp_path, rng, dtype, channels_last):
    write_dataset(tmp_path, {"train": drawn_items(rng, 10)}, size=64)
    measured(tmp_path)
    given = {}
    for backend in BACKENDS:
        config = LoaderConfig(batch=4, backend=backend, dtype=dtype, channels_last=channels_last)
        with open_loader(tmp_path, "train", config) as loader:
            given[backend], labels = next(iter(loader))
        memory = torch.channels_last if channels_last else torch.contiguous_format
        assert given[backend].is_contiguous(memory_format=memory)
        assert given[backend].dtype == getattr(torch, dtype)
        assert given[backend].shape == (4, 3, 56, 56)
        assert labels.dtype == torch.int64
    # From 128 to 256 float16 counts in eighths and bfloat16 in ones.
    tolerance = {"float32": 1e-4, "float16": 0.126, "bfloat16": 1.01}[dtype]
    assert (given["dali"].float() - given["torch"].float()).abs().max() < tolerance


@pytest.mark.parametrize("mean", ["channel", "none", (1.0, 2.0, 3.0)])
def test_without_a_mean_image_the_backends_give_the_same_bits(photographs, mean):
    root, _ = photographs
    given = {}
    for backend in BACKENDS:
        spec = AugmentSpec(mean=mean, sd="channel")
        with open_loader(root, "train", LoaderConfig(batch=16, backend=backend), spec) as loader:
            given[backend] = torch.cat([images.clone() for images, _ in loader])
    assert torch.equal(given["dali"], given["torch"])


@pytest.mark.parametrize("mean", ["image", "image_at_crop", "channel"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_ten_views_equal_the_formula(photographs, mean, backend):
    root, items = photographs
    stats = measured(root, 256)
    spec = AugmentSpec(mean=mean)
    config = LoaderConfig(batch=4, backend=backend, views=10)
    with open_loader(root, "validation", config, spec) as loader:
        images, labels = next(iter(loader))
    assert images.shape == (4, 10, 3, 224, 224)
    places = [(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]
    for number, view in enumerate((0, 3, 5, 9)):
        y, x = places[view % 5]
        expected = oracle(items[number], spec, stats, (y, x, view >= 5, np.zeros(3)), 1.0)
        assert np.abs(images[number, view].numpy() - expected).max() < 0.01
        assert labels[number] == items[number].label


def test_images_that_are_kept_are_not_written_over(tmp_path, rng):
    write_dataset(tmp_path, {"train": drawn_items(rng, 64)}, size=64)
    measured(tmp_path)
    with open_loader(tmp_path, "train", LoaderConfig(batch=8, backend="dali")) as loader:
        kept = [(images, images.clone()) for _ in range(4) for images, _ in loader]
    assert all(torch.equal(images, copied) for images, copied in kept)


def test_memory_of_batches_that_are_dropped_is_used_again(tmp_path, rng):
    write_dataset(tmp_path, {"train": drawn_items(rng, 64)}, size=64)
    measured(tmp_path)
    with open_loader(tmp_path, "train", LoaderConfig(batch=8)) as loader:
        places = {images.data_ptr() for _ in range(10) for images, _ in loader}
    assert len(places) < 10


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mean", ["image", "image_at_crop", "channel", "none", (1.0, 2.0, 3.0)])
@pytest.mark.parametrize("mirror", [False, True])
def test_the_compiled_loops_give_the_bits_of_numpy(rng, channels_last, mean, mirror):
    assert compiled(channels_last) is not None  # an installation of the project has numba
    spec = AugmentSpec(source=64, crop=57, mean=mean, sd="channel")
    draws = Draws(*np.array([[7, 0], [0, 7]]), np.array([mirror] * 2), rng.normal(size=(2, 3)), 1.1)
    numbers = colours(spec, measured())
    formula = Normalize(Preprocess(spec, numbers, channels_last=channels_last))
    pixels_HWC = rng.integers(0, 256, (57, 57, 3), dtype=np.uint8)
    out = np.empty(formula.shape(2), np.float32)
    formula.write(out, np.stack([pixels_HWC] * 2), formula.factors(draws))
    for i, (y, x) in enumerate(zip(draws.y, draws.x, strict=True)):
        image = np.zeros((64, 64, 3)) if numbers.image_HWC is None else numbers.image_HWC
        origin = (3, 3)
        if mean == "image_at_crop":
            image, origin = (image[:, ::-1], (y, 7 - x)) if mirror else (image, (y, x))
        expected_HWC = np.empty((57, 57, 3), np.float32)
        levels = formula.factors(draws).levels[i]
        crop_HWC = pixels_HWC[:, ::-1] if mirror else pixels_HWC
        local = image.astype(np.float32)[origin[0] : origin[0] + 57, origin[1] : origin[1] + 57]
        normalize(expected_HWC, crop_HWC, local, levels)
        assert np.array_equal(out[i] if channels_last else out[i].transpose(1, 2, 0), expected_HWC)


@pytest.mark.parametrize("views", [1, 10])
@pytest.mark.parametrize("mean", ["image", "image_at_crop", "channel"])
def test_what_a_gpu_subtracts_is_what_the_cpu_does(rng, mean, views):
    # The arithmetic of the GPU's last step on CPU tensors: no GPU is needed to hold it to this.
    spec = AugmentSpec(source=64, crop=56, mean=mean, sd="channel")
    preprocess = Preprocess(spec, colours(spec, measured()), views)
    draws = draw(spec, 1, 0, np.arange(4)) if views == 1 else centre(spec, 4)
    pixels = rng.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    formula = Normalize(preprocess)
    factors = formula.factors(draws)
    expected = np.empty(formula.shape(4), np.float32)
    given = []
    for i, image in enumerate(pixels):
        y, x, side = draws.y[i], draws.x[i], 56
        crop = np.ascontiguousarray(image[y : y + side, x : x + side])
        if views == 10:
            formula.ten_crops(expected[i], image)
            crop = image
        else:
            formula.write(expected[i : i + 1], crop[np.newaxis], factors.of(range(i, i + 1)))
        crop = crop[:, ::-1] if draws.mirror[i] else crop
        unit, added = factors.levels[i].astype(np.float64)
        given.append((crop * unit + added).transpose(2, 0, 1))
    images = Finish(preprocess)(torch.tensor(np.stack(given), dtype=torch.float32), draws)
    assert images.shape == expected.shape
    assert np.abs(images.numpy() - expected).max() < 1e-5


def test_the_centre_of_ten_views_is_the_single_view_bit_for_bit(photographs):
    root, _ = photographs
    spec = AugmentSpec(sd="channel")
    given = []
    for views in (1, 10):
        config = LoaderConfig(batch=12, views=views)
        with open_loader(root, "validation", config, spec) as loader:
            given.append(next(iter(loader))[0].clone())
    assert torch.equal(given[0], given[1][:, 4])


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None
import torch
from pipelines import AugmentSpec, LoaderConfig, open_loader
spec = AugmentSpec(source=64, crop=56, mean="image_at_crop")
with open_loader(sys.argv[1], "train", LoaderConfig(batch=8, backend="dali"), spec) as loader:
    torch.save(next(iter(loader))[0].clone(), sys.argv[2])
"""


def test_without_numba_the_images_are_the_same_bits(tmp_path, rng):
    root, saved = tmp_path / "set", tmp_path / "images.pt"
    write_dataset(root, {"train": drawn_items(rng, 24)}, size=64)
    measured(root)
    assert Fork([sys.executable, "-c", WITHOUT_NUMBA, root, saved]).wait(120) == 0
    spec = AugmentSpec(source=64, crop=56, mean="image_at_crop")
    with open_loader(root, "train", LoaderConfig(batch=8, backend="dali"), spec) as loader:
        assert torch.equal(next(iter(loader))[0], torch.load(saved))


def test_a_mean_image_at_each_crop_takes_as_many_operations_for_any_batch(rng):
    spec = AugmentSpec(source=64, crop=48, mean="image_at_crop")
    image = rng.uniform(90, 140, (64, 64, 3))
    numbers = Colours(np.zeros(3), image, np.zeros((3, 3)), np.ones(3))
    finish, counts = Finish(Preprocess(spec, numbers)), []
    for count in (2, 64):
        y, x = rng.integers(0, 17, (2, count))
        draws = Draws(y, x, rng.integers(0, 2, count) > 0, np.zeros((count, 3)), 1.0)
        with Operations() as operations:
            finish(torch.zeros(count, 3, 48, 48), draws)
        counts.append(len(operations.names))
    # A loop over the images, as it once was, had 914 operations for 256 of them.
    assert counts[0] == counts[1] < 40
