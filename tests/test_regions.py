"""Random resized crops and resized centres: torchvision's places and pictures, on every backend."""

import io
import math
from functools import partial

import numpy as np
import pytest
import torch
from nvidia.dali import fn
from PIL import Image

from alexprep.dataset.decode import store_planes
from pipelines import AugmentSpec, LoaderConfig, dali, open_loader
from pipelines.augment import centre, colours, draw
from pipelines.format import Manifest
from pipelines.jpeg import decode
from pipelines.normalize import Preprocess
from pipelines.order import BatchPlan, global_order
from pipelines.regions import cut_box, finish_box, read_regions, set_regions
from pipelines.shards import SplitReader, read_batch
from tests.tarsets import drawn_items, write_dataset
from tests.vision_ops import InterpolationMode, RandomResizedCrop
from tests.vision_ops import transforms as vision

RAW = {"mean": "none", "lighting": 0, "divide": 1}
AREA = AugmentSpec(area=(0.08, 1), **RAW)
MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
SIZE = 64


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("regions")
    items = drawn_items(rng, 12, SIZE)
    write_dataset(root, {"train": items, "validation": items[:6]}, size=SIZE)
    store_planes(root, workers=1)
    return root, items


def boxes(spec, sizes, epoch=0, seed=0):
    """Boxes of training crops in images of these sizes."""
    preprocess = Preprocess(spec, colours(spec, None), regions=True)
    drawn = draw(spec, seed, epoch, np.arange(len(sizes)))
    return set_regions(preprocess, drawn, np.array(sizes)).regions


def test_resized_crops_are_pinned():
    # Stopped runs and all backends rely on these numbers.
    regions = boxes(AREA, [(256, 256), (256, 341), (500, 256)], epoch=3)
    assert regions.box.tolist() == PINNED
    assert regions.size.tolist() == [[224, 224]] * 3
    assert not regions.origin.any()


PINNED = [[52, 2, 201, 213], [30, 149, 166, 179], [311, 4, 116, 104]]


def test_resized_crops_change_no_other_draw():
    plain = draw(AugmentSpec(), 5, 2, np.arange(64))
    drawn = draw(AugmentSpec(area=(0.08, 1), mean="channel"), 5, 2, np.arange(64))
    for old, new in zip(plain[:5], drawn[:5], strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("size", [(256, 256), (256, 400), (300, 64)])
def test_areas_ratios_and_places_are_distributed_as_torchvisions(size):
    torch.manual_seed(0)
    canvas = torch.empty(1, *size)
    theirs = np.array(
        [RandomResizedCrop.get_params(canvas, (0.08, 1), (3 / 4, 4 / 3)) for _ in range(4000)]
    )
    ours = boxes(AREA, [size] * 4000).box
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= size).all()
    for column in range(4):
        # Kolmogorov and Smirnov: the largest distance of two distributions of 4000, 1 in 10,000.
        values = np.unique(np.concatenate([ours[:, column], theirs[:, column]]))
        shares = [
            np.searchsorted(np.sort(sample[:, column]), values, side="right") / 4000
            for sample in (ours, theirs)
        ]
        assert np.abs(shares[0] - shares[1]).max() < 2.23 * math.sqrt(2 / 4000)


@pytest.mark.parametrize("size", [(20, 300), (300, 20), (31, 32), (1, 1), (1, 50)])
def test_where_ten_tries_fail_the_crop_is_torchvisions_central_one(size):
    # The whole area at a ratio that the image does not have fits in no try.
    spec = AugmentSpec(area=(1, 1), ratio=(1.1, 1.2), **RAW)
    theirs = RandomResizedCrop.get_params(torch.empty(1, *size), (1, 1), (1.1, 1.2))
    box = boxes(spec, [size]).box[0].tolist()
    if size != (1, 1):  # its first try fits
        assert box == list(theirs)
    assert min(box[2:]) > 0


def test_a_chunk_of_images_shares_one_box():
    spec = AugmentSpec(area=(0.08, 1), chunk=4, **RAW)
    shared = boxes(spec, [(256, 256)] * 8).box
    assert (shared[:4] == shared[0]).all()
    assert (shared[4:] == shared[4]).all()
    assert (shared[0] != shared[4]).any()


def opened(root, split, spec, backend, views=1):
    config = LoaderConfig(batch=4, backend=backend, dtype="uint8", seed=3, views=views)
    with open_loader(root, split, config, spec) as loader:
        return torch.cat([images.clone() for images, _ in loader])


def picture(item):
    return Image.open(io.BytesIO(item.jpg)).convert("RGB")


@pytest.mark.parametrize("backend", ["torch", "dali", "planes"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_training_pictures_are_torchvisions_of_the_same_draws(dataset, backend, interpolation):
    root, items = dataset
    spec = AugmentSpec(source=SIZE, crop=40, area=(0.08, 1), interpolation=interpolation, **RAW)
    images = opened(root, "train", spec, backend)
    regions, drawn = boxes(spec, [(SIZE, SIZE)] * 12, seed=3), draw(spec, 3, 0, np.arange(12))
    for position, index in enumerate(global_order(12, 3, 0)):
        place = regions.box[position].tolist()
        expected = vision.resized_crop(
            picture(items[index]), *place, [40, 40], MODES[interpolation]
        )
        expected = vision.hflip(expected) if drawn.mirror[position] else expected
        assert torch.equal(images[position], vision.pil_to_tensor(expected))
        # Of tensors torchvision rounds once, Pillow after each axis.
        tensor = vision.resized_crop(
            vision.pil_to_tensor(picture(items[index])), *place, [40, 40], MODES[interpolation]
        )
        tensor = vision.hflip(tensor) if drawn.mirror[position] else tensor
        assert (images[position].int() - tensor.int()).abs().float().mean() <= 0.5


@pytest.mark.parametrize("backend", ["torch", "dali", "planes"])
@pytest.mark.parametrize(("resize", "crop"), [(48, 40), (80, 72), (64, 51), (56, 33), (41, 40)])
def test_resized_centres_are_torchvisions_resize_and_centre_crop(dataset, backend, resize, crop):
    root, items = dataset
    spec = AugmentSpec(source=SIZE, resize=resize, crop=crop, **RAW)
    images = opened(root, "validation", spec, backend)
    for image, item in zip(images, items, strict=False):
        resized = vision.resize(picture(item), resize)
        expected = vision.pil_to_tensor(vision.center_crop(resized, crop))
        assert torch.equal(image, expected)


@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_ten_views_of_a_resized_image_are_torchvisions_five_and_their_mirrors(dataset, backend):
    root, items = dataset
    spec = AugmentSpec(source=SIZE, resize=48, crop=40, **RAW)
    images = opened(root, "validation", spec, backend, views=10)
    for views, item in zip(images, items, strict=False):
        crops = vision.five_crop(vision.resize(picture(item), 48), 40)
        expected = [*crops, *map(vision.hflip, crops)]
        assert torch.equal(views, torch.stack([*map(vision.pil_to_tensor, expected)]))


def test_a_stopped_epoch_of_resized_crops_continues_with_the_same_pictures(dataset):
    root, _ = dataset
    spec = AugmentSpec(source=SIZE, crop=40, area=(0.08, 1), **RAW)
    config = LoaderConfig(batch=4, backend="torch")
    with open_loader(root, "train", config, spec) as loader:
        next(iter(loader))
        state = loader.state_dict()
        expected = next(iter(loader))[0].clone()
    with open_loader(root, "train", LoaderConfig(batch=4, backend="dali"), spec) as loader:
        loader.load_state_dict(state)
        assert torch.equal(next(iter(loader))[0], expected)


@pytest.mark.parametrize("views", [1, 10])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize", [None, 48, 80])
def test_the_operators_of_a_gpu_give_pillows_pictures_within_their_bounds(
    dataset, interpolation, resize, views
):
    """They run on the CPU here, with the arguments that a GPU gets.

    DALI's table of the triangle is coarse, and Pillow clips bicubic's overshoot after each axis:
    both show at hard edges, which a third of these pictures is.
    """
    root, _ = dataset
    area = (0.08, 1) if resize is None else None
    spec = AugmentSpec(
        source=SIZE, crop=40, area=area, resize=resize, interpolation=interpolation, **RAW
    )
    preprocess = Preprocess(spec, colours(spec, None), views, "uint8", True, True)
    reader = SplitReader(root, Manifest.load(root), "train")
    draws = centre(spec, 12) if views == 10 else draw(spec, 0, 0, np.arange(12))
    plan = BatchPlan(0, 0, np.arange(12), draws)
    batch = read_regions(partial(read_batch, reader), reader.manifest, preprocess, plan)
    config = LoaderConfig(threads=1, batch=12, prefetch=1)
    arguments = dali.arguments(batch, preprocess)
    with dali._pipeline(config) as pipeline:
        jpg, mirror, *origin = fn.external_source(
            source=[(batch.jpgs, *arguments)],
            num_outputs=1 + len(arguments),
            batch=True,
            cycle=True,
        )
        images = dali.cut_boxes(fn.decoders.image(jpg, output_type=dali.RGB), origin)
        images = dali.resize(images, origin[2], preprocess)
        pipeline.set_outputs(dali._normalize(images, mirror, origin[3:], [], preprocess))
    pipeline.build()
    (theirs,) = pipeline.run()
    for number, (jpg, mirrored) in enumerate(zip(batch.jpgs, draws.mirror, strict=True)):
        regions = batch.plan.draws.regions
        ours = finish_box(cut_box(decode(jpg), regions, number), regions, number, preprocess)
        ours = ours[:, ::-1] if mirrored else ours
        difference = np.abs(np.asarray(theirs[number]).astype(int) - ours)
        assert difference.max() <= 8
        assert difference.mean() <= 0.5


def test_images_held_in_gpu_memory_are_not_resized(dataset):
    spec = AugmentSpec(source=SIZE, crop=40, area=(0.08, 1), **RAW)
    config = LoaderConfig(batch=4, backend="resident")
    with pytest.raises(ValueError, match="'resident' does not resize images"):
        open_loader(dataset[0], "train", config, spec)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"area": (0.5,)}, "area expects two values"),
        ({"area": (0, 1)}, "area expects two values"),
        ({"area": (0.5, 0.2)}, "area expects two values"),
        ({"area": (0.5, 1.5)}, "area expects two values"),
        ({"ratio": (-1, 1)}, "ratio expects two values"),
        ({"area": (0.1, 1), "random_crop": False}, "area needs random_crop"),
        ({"area": (0.1, 1), "mean": "image"}, "of images that are not resized"),
        ({"resize": 200}, "crop must be in 1..resize"),
        ({"resize": 1 << 20}, "resize must be in 1.."),
        ({"interpolation": "nearest"}, "interpolation must be one of"),
    ],
)
def test_what_cannot_be_resized_is_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        AugmentSpec(**(RAW | fields))
