"""Prefetching: the order of the items, errors at their turn, threads that end; and the loader's."""

import threading
import time
from itertools import count

import numpy as np
import pytest

from pipelines import AugmentSpec, DataError, LoaderConfig, open_loader
from pipelines.prefetch import prefetch
from tests.tarsets import drawn_items, write_dataset

RAW = AugmentSpec(source=64, crop=48, mean="none", lighting=0, divide=1)


def prefetch_threads():
    return [t.name for t in threading.enumerate() if t.name.startswith("alexprep-prefetch")]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("depth", [0, 1, 7, 50])
def test_results_come_in_the_order_of_the_items(workers, depth):
    def slow_first(number):
        time.sleep(0.01 if number % 3 == 0 else 0)
        return number * number

    assert list(prefetch(range(20), slow_first, workers, depth)) == [n * n for n in range(20)]
    assert not prefetch_threads()


def test_exactly_depth_items_are_started_before_they_are_asked_for():
    started = []
    squares = prefetch(count(), started.append, workers=1, depth=3)
    for number in range(5):
        next(squares)
        deadline = time.monotonic() + 10
        while len(started) < number + 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert started == list(range(number + 4))
    squares.close()


def test_an_error_of_the_function_is_raised_after_the_results_before_it():
    results = prefetch(range(10), lambda n: 1 / (n - 4), workers=3, depth=8)
    assert [next(results) for _ in range(4)] == [-1 / 4, -1 / 3, -1 / 2, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not prefetch_threads()


def test_an_error_of_the_items_is_raised_after_all_their_results():
    def items():
        yield from (1, 2, 3)
        raise OSError("disk gone")

    results = prefetch(items(), str, workers=2, depth=8)
    assert [next(results) for _ in range(3)] == ["1", "2", "3"]
    with pytest.raises(OSError, match="disk gone"):
        next(results)
    assert not prefetch_threads()


def test_closing_drops_what_was_not_begun_and_ends_the_threads():
    release, begun = threading.Event(), []

    def block(number):
        begun.append(number)
        release.wait(30)

    results = prefetch(range(100), block, workers=2, depth=50)
    consumer = threading.Thread(target=lambda: next(results))
    consumer.start()
    release.set()
    consumer.join()
    results.close()
    assert len(begun) <= 51
    assert not prefetch_threads()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    items = drawn_items(np.random.default_rng(8), 40)
    return write_dataset(tmp_path_factory.mktemp("drawn"), {"train": items}, size=64)


@pytest.mark.parametrize("backend", ["dali", "torch"])
def test_the_next_batch_of_a_loader_is_made_while_one_is_used(root, backend):
    config = LoaderConfig(batch=8, backend=backend)
    with open_loader(root, "train", config, RAW) as loader:
        next(iter(loader))
        state = loader.state_dict()
        pending = loader._stream.gi_frame.f_locals["batches"].gi_frame.f_locals["pending"]
        assert [future.result(timeout=60)[0].plan.step for future in pending] == [1]
        assert loader.state_dict() == state


@pytest.mark.parametrize("backend", ["dali", "torch"])
def test_a_watchdog_closes_a_loader_while_its_consumer_takes_batches(root, backend):
    before = set(threading.enumerate())
    loader = open_loader(root, "train", LoaderConfig(batch=4, backend=backend), RAW)
    messages = []

    def consume():
        try:
            while True:
                list(loader)
        except DataError as error:
            messages.append(str(error))

    consumer = threading.Thread(target=consume)
    consumer.start()
    while loader.epoch < 2:
        time.sleep(0.001)
    loader.close()
    consumer.join(timeout=60)
    assert messages == ["The loader was closed; open another with open_loader."]
    assert set(threading.enumerate()) == before
