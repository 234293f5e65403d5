"""Every way of loading that is measured gives the pictures it is measured for."""

from contextlib import ExitStack
from itertools import islice

import pytest

from alexprep.bench.load_bench import BATCH, CROP, images_per_second, open_cases, read_samples
from alexprep.bench.suite import BenchConfig
from tests.tarsets import drawn_items, measured, write_dataset


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries we are compared with
def test_every_measured_loader_gives_full_batches_of_the_crop(tmp_path, rng):
    root = write_dataset(tmp_path, {"train": drawn_items(rng, 256, size=256)}, size=256)
    measured(root, 256)
    with ExitStack() as stack:
        cases = open_cases(root, "cpu", stack)
        for name, batches in cases.items():
            (images, labels) = next(islice(batches, 1))
            # DALI's shape is a method.
            shape = images.shape() if callable(images.shape) else images.shape
            assert tuple(shape) == (BATCH, 3, CROP, CROP), name
            assert len(labels) == BATCH, name
        assert images_per_second(cases["alexprep dali"], 2, "cpu") > 0


def test_reading_is_measured_without_decoding(tmp_path, rng):
    root = write_dataset(tmp_path, {"train": drawn_items(rng, 4, size=8)}, size=8)
    figure = read_samples(root, BenchConfig(rounds=2, images=6))
    assert (figure.n, figure.unit, figure.target) == (2, "us", "<= 10")
    assert figure.median > 0
