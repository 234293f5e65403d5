"""The numbers and pictures of `alexprep report`, each against an oracle of its own."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from alexprep.report.dataset_summary import augmented_images, survey
from alexprep.report.figures import merged_marks, thinned
from alexprep.report.pictures import colour_share, kernel_sheet, thumbnail
from alexprep.report.run_summary import standard_error
from alexprep.report.split_predictions import (
    SplitPredictions,
    chance_accuracy,
    confused_classes,
    evenly_spaced,
    neighbour_accuracy,
    neighbours,
)
from pipelines import AugmentSpec, LoaderConfig, open_loader
from pipelines.format import Manifest
from pipelines.imagestats import ImageStats
from tests.drawing import jpeg, photograph
from tests.reports import TRAIN, make_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("parts") / "dataset")


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def predictions(dataset, labels, guesses, features=None):
    """Predictions that are sure of `guesses`."""
    probabilities = np.full((len(labels), 3), 0.1)
    probabilities[np.arange(len(labels)), guesses] = 0.8
    return SplitPredictions(
        root=dataset,
        manifest=Manifest.load(dataset),
        split_images=len(labels),
        labels=np.array(labels),
        probabilities={1: probabilities},
        features=np.zeros((len(labels), 2), np.float32) if features is None else features,
    )


def test_a_gray_kernel_has_no_colour_and_one_without_brightness_nothing_else(rng):
    gray = np.repeat(rng.normal(size=(4, 1, 11, 11)), 3, axis=1)
    coloured = rng.normal(size=(4, 3, 11, 11))
    coloured -= coloured.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(colour_share(gray), 0, atol=1e-12)
    np.testing.assert_allclose(colour_share(coloured), 1)
    np.testing.assert_allclose(colour_share(gray + coloured * 0), 0, atol=1e-12)
    assert colour_share(np.zeros((1, 3, 2, 2))) == 0


def test_random_kernels_have_two_thirds_of_their_energy_in_colour(rng):
    shares = colour_share(rng.normal(size=(2000, 3, 11, 11)))
    assert shares.mean() == pytest.approx(2 / 3, abs=0.003)


def test_the_sheet_of_kernels_keeps_their_order_signs_and_colours():
    kernels = np.zeros((3, 3, 2, 2))
    kernels[0, 0, 0, 1] = 0.02  # red, upper right
    kernels[2, 2, 1, 0] = -5.0  # less than no blue, lower left
    sheet = pixels(kernel_sheet(kernels, columns=2))
    assert sheet.shape == (5, 5, 3)
    assert sheet[0, 1].tolist() == [255, 128, 128]
    assert sheet[0, 3].tolist() == [128, 128, 128]  # a kernel of zeros is gray
    assert sheet[4, 0].tolist() == [128, 128, 0]
    assert sheet[4, 4].tolist() == [255, 255, 255]  # no fourth kernel


def test_small_images_are_shown_as_they_are_stored_and_large_ones_smaller(rng):
    small, large = (jpeg(photograph(rng, side, side)) for side in (64, 256))
    assert base64.b64decode(thumbnail(small).partition(",")[2]) == small
    assert pixels(thumbnail(large)).shape == (224, 224, 3)


def test_neighbours_are_those_of_a_search_by_hand_and_never_the_image_itself(rng):
    features = rng.normal(size=(40, 7)).astype(np.float32)
    rows = neighbours(features, [3, 17], 5)
    for query, row in zip([3, 17], rows, strict=True):
        distances = np.linalg.norm(features - features[query], axis=1)
        assert row.tolist() == [p for p in np.argsort(distances).tolist() if p != query][:5]


def test_pairs_of_one_class_are_counted_against_chance(dataset):
    points = np.array([[0, 0], [0, 1], [9, 0], [9, 1]], np.float32)
    alike = predictions(dataset, [0, 0, 1, 1], [0, 0, 1, 1], points)
    assert neighbour_accuracy(alike) == 1.0
    assert chance_accuracy(alike) == pytest.approx(1 / 3)
    assert neighbour_accuracy(predictions(dataset, [0, 1, 0, 1], [0, 0, 0, 0], points)) == 0.0


def test_confusion_lists_the_worst_class_first_with_what_was_predicted_instead(dataset):
    answers = predictions(dataset, [0, 0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 2, 2, 2, 1])
    classes = confused_classes(answers, 1)
    assert [entry.label for entry in classes] == [1, 2, 0]
    assert [entry.error for entry in classes] == [1, 0.5, 0.25]
    assert [entry.images for entry in classes] == [2, 2, 4]
    assert [entry.mistakes() for entry in classes] == [[(2, 2)], [(1, 1)], [(1, 1)]]


def test_classes_of_one_error_are_in_the_order_of_their_probability(dataset):
    answers = predictions(dataset, [0, 1, 2], [0, 1, 2])
    answers.probabilities[1][[0, 1, 2], [0, 1, 2]] = 0.5, 0.9, 0.4
    assert [entry.label for entry in confused_classes(answers, 1)] == [2, 0, 1]
    assert not any(entry.mistakes() for entry in confused_classes(answers, 1))


def test_evenly_spaced_items_are_the_middles_of_equal_shares():
    assert evenly_spaced(range(100), 4) == [12, 37, 62, 87]
    assert evenly_spaced([7, 8], 5) == [7, 8]
    assert evenly_spaced([], 5) == []


def test_the_standard_error_is_that_of_a_binomial_share_and_never_zero():
    assert standard_error(0.4, 5000) == pytest.approx((0.4 * 0.6 / 5000) ** 0.5, rel=1e-3)
    assert standard_error(0, 200) == pytest.approx(0.005, rel=0.01)


def test_marks_too_close_for_two_texts_share_one():
    marks = [(25.0, "lr 0.001"), (26.0, "conv1 frozen"), (51.0, "lr 0.0001")]
    assert merged_marks(marks, 90) == [(25.0, "lr 0.001, conv1 frozen"), marks[2]]
    assert merged_marks(marks, 10) == marks


def test_thinning_keeps_the_mean_and_the_ends():
    x = [n / 100 for n in range(24_000)]
    thin_x, thin_y = thinned(x, [2 * value for value in x])
    assert len(thin_x) == 1200
    assert sum(thin_x) / 1200 == pytest.approx(sum(x) / 24_000)
    np.testing.assert_allclose(thin_y, 2 * np.array(thin_x))
    assert thinned([1.0, 2.0], [3.0, 4.0]) == ([1.0, 2.0], [3.0, 4.0])
    assert thinned([], []) == ([], [])


def test_the_survey_of_the_sources_is_what_the_shards_say(dataset):
    result = survey(dataset, Manifest.load(dataset), "train")
    assert result.sizes == {(500, 375): TRAIN}
    assert len(result.jpg_bytes) == TRAIN
    assert result.sides.tolist() == [[500, 375]] * TRAIN


def test_augmented_images_are_those_that_training_gives_out(dataset):
    manifest = Manifest.load(dataset)
    stats = ImageStats.load(dataset, manifest)
    augmented = augmented_images(dataset, manifest, "train", stats)
    assert sorted(image.label for image in augmented) == [0, 1, 2]
    mean = stats.mean_image_HWC[4:60, 4:60]
    config = LoaderConfig(batch=16, backend="torch")
    with open_loader(dataset, "train", config, AugmentSpec(source=64, crop=56)) as loader:
        for epoch in range(2):
            images = [image.permute(1, 2, 0).numpy() for batch, _ in loader for image in batch]
            for example in augmented:
                off = [np.abs(image + mean - example.drawn_NHWC[epoch]).max() for image in images]
                assert min(off) < 1e-3
    first = augmented[0].stored_HWC
    assert first.shape == (64, 64, 3)
    assert first.min() >= 0
