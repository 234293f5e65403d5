import threading

import pytest
import torch

from alexnet.training.ahead import Ahead
from tests.batches import Batches


def test_the_batches_and_their_order_are_those_of_the_loader():
    plain, wrapped = Batches(), Batches()
    with Ahead(wrapped) as ahead:
        for _ in range(2):
            expected, found = list(plain), list(ahead)
            assert len(found) == len(ahead) == 5
            for (a, b), (c, d) in zip(expected, found, strict=True):
                assert torch.equal(a, c)
                assert torch.equal(b, d)


def test_the_state_counts_what_was_given_out_and_not_what_waits():
    with Ahead(Batches()) as ahead:
        batches = iter(ahead)
        for step in range(1, 5):
            next(batches)
            assert ahead.state_dict() == {"epoch": 0, "step": step}
        next(batches)
        assert ahead.state_dict() == {"epoch": 1, "step": 0}


class Watched(Batches):
    """Says when its second batch is made."""

    def __init__(self):
        super().__init__()
        self.second = threading.Event()

    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if number == 1:
                self.second.set()
            yield batch


def test_the_next_batch_is_made_before_it_is_asked_for():
    loader = Watched()
    with Ahead(loader) as ahead:
        next(iter(ahead))
        assert loader.second.wait(timeout=10)


class Broken(Batches):
    """Fails at its third batch."""

    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if number == 2:
                raise OSError("disk gone")
            yield batch


def test_a_fault_of_the_loader_comes_out_where_its_batch_is_asked_for():
    with Ahead(Broken()) as ahead:
        batches = iter(ahead)
        next(batches)
        next(batches)
        with pytest.raises(OSError, match="disk gone"):
            next(batches)


def test_leaving_ends_the_thread():
    with Ahead(Batches()) as ahead:
        next(iter(ahead))
    assert not [t for t in threading.enumerate() if t.name.startswith("alexnet-ahead")]
