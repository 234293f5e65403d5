from collections import Counter

import numpy as np
import pytest
from PIL import Image

from alexprep.synthetic import EXIF_ORIENTATION, SHAPES, DrawConfig, draw_source, picture

SMALL = DrawConfig(train=3, validation=2, longest=120)


def mean_colours(split, each):
    """Mean colour and its spread of `each` pictures a class: (images, 6), and their labels."""
    rows, labels = [], []
    for label, wnid in enumerate(SHAPES):
        for number in range(each):
            rng = np.random.default_rng([split, label, number])
            pixels = np.asarray(picture(wnid, DrawConfig(longest=120), rng), dtype=float)
            rows.append(np.concatenate([pixels.mean((0, 1)), pixels.std((0, 1))]))
            labels.append(label)
    return np.array(rows), np.array(labels)


def linear_top1(features, labels, test_features, test_labels):
    """Top-1 of a least-squares classifier on squared and crossed features."""

    def expand(rows):
        rows = (rows - features.mean(0)) / features.std(0)
        crossed = [rows[:, i] * rows[:, j] for i in range(6) for j in range(i, 6)]
        return np.column_stack([np.ones(len(rows)), rows, *crossed])

    weights = np.linalg.lstsq(expand(features), np.eye(len(SHAPES))[labels], rcond=None)[0]
    return (expand(test_features) @ weights).argmax(1) == test_labels


def test_a_classifier_that_sees_colour_alone_is_right_on_less_than_a_quarter():
    # Chance is 10%. Mean and spread of the colour get 15% of the validation pictures right (they
    # hint at how much of the frame a shape covers); the demo asks 90% of the network.
    right = linear_top1(*mean_colours(0, 60), *mean_colours(1, 20))
    assert right.mean() < 1 / 4


def test_the_source_has_the_oddities_of_ilsvrc(tmp_path):
    paths = list(draw_source(tmp_path, DrawConfig(train=3, validation=2, longest=90, gray_every=3)))
    kinds = Counter()
    for path in paths:
        with Image.open(path) as found:
            kinds[found.format, found.mode] += 1
            kinds["exif"] += found.getexif().get(EXIF_ORIENTATION) == 6
    assert len(paths) == len(SHAPES) * 5
    assert kinds["JPEG", "CMYK"] == kinds["PNG", "RGB"] == kinds["exif"] == 1
    assert kinds["JPEG", "L"] == len(SHAPES)


def test_the_same_seed_draws_the_same_files(tmp_path):
    first, second = (
        [path.read_bytes() for path in draw_source(tmp_path / name, SMALL)] for name in "ab"
    )
    assert first == second


def test_sides_keep_to_the_range_asked_for(tmp_path):
    for path in draw_source(tmp_path, SMALL):
        with Image.open(path) as found:
            assert all(SMALL.shortest <= side <= SMALL.longest for side in found.size)


def test_a_range_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"shortest must be in 16..longest \(50\), got 60"):
        DrawConfig(longest=50)
