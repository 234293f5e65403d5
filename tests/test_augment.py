"""Draws: pinned, uniform, pure; what each field of AugmentSpec turns on."""

import math
from dataclasses import replace

import numpy as np
import pytest

from pipelines.augment import AugmentSpec, centre, colours, draw, shift, ten_views
from pipelines.errors import DataError
from pipelines.philox import philox
from tests.tarsets import measured

MANY = np.arange(40_000)


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**64 - 1, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            0x299F31D0_A4093822,
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(key, counter, expected):
    words = philox(key, tuple(np.array([word], np.uint64) for word in counter))
    assert tuple(int(word[0]) for word in words) == expected


def test_a_draw_is_pinned():
    # Stopped runs and all backends rely on these numbers. New numbers mean a new AugmentSpec.
    drawn = draw(AugmentSpec(), seed=0, epoch=3, positions=np.array([0, 17]))
    assert (drawn.y.tolist(), drawn.x.tolist(), drawn.mirror.tolist()) == PINNED
    np.testing.assert_allclose(drawn.alpha[1], PINNED_ALPHA, rtol=1e-12)


PINNED = ([31, 12], [2, 16], [True, False])
PINNED_ALPHA = [0.13860873887185474, -0.0182338985685631, 0.11874202181468885]


def test_draws_are_uniform_over_33_places_and_both_sides():
    drawn = draw(AugmentSpec(), 1, 0, MANY)
    for places in (drawn.y, drawn.x):
        counts = np.bincount(places, minlength=33)
        assert len(counts) == 33
        assert ((counts - len(MANY) / 33) ** 2 / (len(MANY) / 33)).sum() < 75  # 32 degrees
    assert abs(drawn.mirror.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(drawn.y, drawn.x)[0, 1]) < 0.02


def test_lighting_is_normal_with_the_sd_asked_for():
    alpha = draw(AugmentSpec(lighting=0.1), 1, 0, MANY).alpha
    np.testing.assert_allclose(alpha.std(axis=0), 0.1, rtol=0.02)
    np.testing.assert_allclose(alpha.mean(axis=0), 0, atol=0.002)
    np.testing.assert_allclose(np.corrcoef(alpha.T), np.eye(3), atol=0.02)
    assert abs((np.abs(alpha) < 0.1).mean() - 0.6827) < 0.01


def test_draws_depend_on_the_position_alone_not_on_its_batch():
    spec = AugmentSpec()
    whole = draw(spec, 5, 2, np.arange(100))
    one = draw(spec, 5, 2, np.array([61, 7]))
    for all_of_them, two in zip(whole[:4], one[:4], strict=True):
        np.testing.assert_array_equal(all_of_them[[61, 7]], two)


def test_seed_and_epoch_change_the_draws():
    spec = AugmentSpec()
    one, two, three = (draw(spec, s, e, np.arange(50)).y for s, e in ((0, 0), (0, 1), (1, 0)))
    assert (one != two).any()
    assert (one != three).any()


def test_a_chunk_of_images_shares_one_place_but_not_the_light():
    drawn = draw(AugmentSpec(chunk=32), 0, 0, np.arange(96))
    for part in (drawn.y, drawn.x, drawn.mirror):
        assert all(len(set(part[at : at + 32].tolist())) == 1 for at in (0, 32, 64))
    assert len(set(drawn.y[::32].tolist()) | set(drawn.x[::32].tolist())) > 2
    assert len(np.unique(drawn.alpha[:, 0])) == 96


def test_light_and_division_end_with_their_epoch():
    spec = AugmentSpec(lighting_epochs=3)
    lit, dark = draw(spec, 0, 2, np.arange(4)), draw(spec, 0, 3, np.arange(4))
    assert (lit.divide, dark.divide) == (1.1, 1.0)
    assert lit.alpha.any()
    assert not dark.alpha.any()


def test_random_crops_can_be_turned_off_without_changing_any_other_draw():
    spec = AugmentSpec()
    here = draw(spec, 5, 2, np.arange(64))
    middle = draw(replace(spec, random_crop=False), 5, 2, np.arange(64))
    assert set(middle.y) == set(middle.x) == {16}
    assert (middle.mirror == here.mirror).all()
    assert (middle.alpha == here.alpha).all()


def test_mirror_and_lighting_can_be_turned_off():
    drawn = draw(AugmentSpec(mirror=False, lighting=0), 0, 0, np.arange(64))
    assert not drawn.mirror.any()
    assert not drawn.alpha.any()


def test_evaluation_is_the_centre_without_chance():
    drawn = centre(AugmentSpec(), 3)
    assert drawn.y.tolist() == drawn.x.tolist() == [16, 16, 16]
    assert not drawn.mirror.any()
    assert not drawn.alpha.any()
    assert drawn.divide == 1


def test_the_ten_views_are_corners_and_centre_then_their_mirrors():
    places = [(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]
    expected = [(y, x, mirrored) for mirrored in (False, True) for y, x in places]
    assert ten_views(AugmentSpec()) == expected


@pytest.mark.parametrize(
    ("scale", "factor"),
    [("stdev", np.sqrt), ("eigenvalue", np.asarray), ("fb_resnet", lambda value: value / 255)],
)
def test_each_lighting_scale_moves_colours_along_the_axes_by_its_own_measure(scale, factor):
    stats = measured(size=256)
    axes = colours(AugmentSpec(lighting_scale=scale), stats).axes
    drawn = draw(AugmentSpec(), 0, 0, np.arange(5))
    expected = [
        sum(a * factor(stats.eigenvalues[k]) * stats.eigenvectors[:, k] for k, a in enumerate(row))
        for row in drawn.alpha
    ]
    np.testing.assert_allclose(shift(drawn, axes), expected)


def test_named_and_given_means_and_sds_are_resolved():
    stats = measured(size=256)
    named = colours(AugmentSpec(mean="channel", sd="channel", lighting=0), stats)
    np.testing.assert_array_equal(named.mean, stats.mean)
    np.testing.assert_array_equal(named.sd, stats.sd)
    given = AugmentSpec(mean=(123.675, 116.28, 103.53), sd=(58.395, 57.12, 57.375), lighting=0)
    assert not given.needs_stats
    assert colours(given, None).sd.tolist() == [58.395, 57.12, 57.375]


def test_statistics_of_images_of_another_size_are_refused():
    with pytest.raises(DataError, match=r"64x64.*source is 256"):
        colours(AugmentSpec(), measured(size=64))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("crop", 300, "crop must be in 1..source"),
        ("mean", "average", "mean must be one of"),
        ("lighting_scale", "lambda", "lighting_scale must be one of"),
        ("divide", 0, "divide > 0"),
        ("divide", math.nan, "divide > 0"),
        ("lighting", math.nan, "lighting >= 0"),
        ("mean", (1.0, math.nan, 2.0), "three values"),
        ("sd", (1.0, 0.0, 2.0), "three values .* above 0"),
        ("mean", 3, "three values"),
        ("area", 0.5, "two values"),
        ("crop", 224.5, "crop must be an integer"),
        ("lighting_epochs", 1.5, "lighting_epochs must be an integer"),
        ("chunk", 0, "chunk in 1.."),
        ("chunk", 2**31, "chunk in 1.."),
        ("sd", (1.0, 2.0), "three values"),
    ],
)
def test_a_wrong_field_is_named_with_its_value(field, value, says):
    with pytest.raises(ValueError, match=says) as caught:
        AugmentSpec(**{field: value})
    assert str(value).strip("()") in str(caught.value)


def test_a_channel_of_one_value_is_not_divided_by_its_sd_of_nothing():
    flat = replace(measured(), sd=np.array([10.0, 0.0, 10.0]))
    with pytest.raises(DataError, match=r"sd of 0.*three values"):
        colours(AugmentSpec(source=64, crop=56, sd="channel"), flat)
