import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from alexnet.model.dropout import Dropout, keep_mask, mix, unit_keys
from tests.fake_gpus import move

CPU = torch.device("cpu")
IMAGES = torch.arange(2000)


def mask(seed=0, layer=5, columns=range(2), images=IMAGES, keep=0.5, each=512):
    return keep_mask(images, unit_keys(seed, layer, columns, each, CPU), keep)


@pytest.mark.parametrize("keep", [0.5, 0.2, 0.9])
def test_units_are_kept_as_often_as_asked(keep):
    drawn = mask(keep=keep).double()
    spread = (keep * (1 - keep)) ** 0.5
    # Five standard deviations of the mean of so many draws: over all, an image, a unit.
    assert drawn.mean().item() == pytest.approx(keep, abs=5 * spread / drawn.numel() ** 0.5)
    for dim in (0, 1):
        reach = 5 * spread / drawn.shape[dim] ** 0.5
        assert (drawn.mean(dim) - keep).abs().max().item() < reach


def test_masks_of_neighbours_are_independent():
    drawn = mask().double() * 2 - 1
    shifted = [
        (drawn[1:] * drawn[:-1]).mean(),  # the next image
        (drawn[:, 1:] * drawn[:, :-1]).mean(),  # the next unit
        (drawn[:, :512] * drawn[:, 512:]).mean(),  # the other column
        (drawn * (mask(layer=6).double() * 2 - 1)).mean(),  # the next layer
        (drawn * (mask(seed=1).double() * 2 - 1)).mean(),  # another seed
    ]
    assert max(abs(value.item()) for value in shifted) < 5 / (drawn.numel() / 2) ** 0.5


def test_the_mask_is_pinned():
    # Resumed runs and replicas rely on these bits. New bits mean a new version of checkpoints.
    assert mask(seed=3, images=torch.tensor([0, 1, 10**9]), each=8).int().tolist() == PINNED


PINNED = [
    [1, 0, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 0, 1],
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0],
    [1, 0, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 1],
]


def test_mix_has_no_collisions_among_many():
    assert mix(torch.arange(-200_000, 200_000)).unique().numel() == 400_000


def test_a_column_drops_what_both_drop_in_it():
    both = mask()
    assert torch.equal(both[:, :512], mask(columns=range(1)))
    assert torch.equal(both[:, 512:], mask(columns=range(1, 2)))


def test_a_replica_drops_what_the_whole_batch_drops_in_its_images():
    layer = Dropout(0.5, "mask", seed=1, columns=range(2))
    x = torch.ones(8, 64)
    layer.set_position(100)
    whole = layer(x, 5)
    layer.set_position(104)
    assert torch.equal(layer(x[4:], 5), whole[4:])
    for replica in range(3):
        layer.set_position(100 + replica, stride=3)
        assert torch.equal(layer(x[replica::3], 5), whole[replica::3])


def test_the_2012_kind_masks_in_training_and_scales_in_use():
    layer = Dropout(0.25, "mask", seed=1, columns=range(1))
    x = torch.full((4, 100), 2.0)
    assert set(layer(x, 0).unique().tolist()) == {0.0, 2.0}
    assert (layer.eval()(x, 0) == 1.5).all()


def test_the_inverted_kind_scales_in_training():
    layer = Dropout(0.5, "inverted", seed=1, columns=range(1))
    x = torch.full((4, 100), 2.0)
    assert set(layer(x, 0).unique().tolist()) == {0.0, 4.0}
    assert torch.equal(layer.eval()(x, 0), x)


def test_no_dropout_is_no_operation():
    x = torch.ones(2, 3)
    assert Dropout(0.0, "mask", seed=1, columns=range(1))(x, 0) is x


def test_units_are_counted_without_an_operation_on_the_gpu():
    dropout = Dropout(0.5, "mask", seed=1, columns=range(2)).train()
    with FakeTensorMode():  # to which this build of torch gives no views of CUDA's memory
        move(dropout, "cuda:0")
        x = torch.empty(4, 3, 2, dtype=torch.float64, device="cuda:0")
        y = dropout(x, 0)
    assert (y.shape, y.device) == (x.shape, x.device)
