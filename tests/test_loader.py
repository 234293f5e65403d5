"""The loader: ranks, exact resume, epochs, and what it says of itself."""

import json
import shutil
import sys
import threading

import numpy as np
import pytest
import torch

from pipelines import AugmentSpec, DataError, LoaderConfig, open_loader
from pipelines.config import default_threads
from tests.forks import run_fork
from tests.tarsets import drawn_items, measured, write_dataset

BACKENDS = ("dali", "torch")
RAW = AugmentSpec(source=64, crop=48, mean="none", lighting=0, divide=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """53 training and 11 validation images in 4 shards each; a label for every image."""
    rng = np.random.default_rng(5)
    root = tmp_path_factory.mktemp("drawn")
    splits = {
        "train": drawn_items(rng, 53, classes=53),
        "validation": drawn_items(rng, 11, classes=53, prefix="held"),
    }
    write_dataset(root, splits, size=64, shards=4, classes=53)
    measured(root)
    return root


def labels_of(loader):
    return [labels.tolist() for _, labels in loader]


def flat(lists):
    return [each for one in lists for each in one]


def copied(batches):
    return [(images.clone(), labels) for images, labels in batches]


def same(one, two):
    return len(one) == len(two) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_every_image_once_an_epoch_for_any_number_of_ranks(root, backend, world):
    given, steps = [], set()
    for rank in range(world):
        config = LoaderConfig(batch=16, rank=rank, world=world, backend=backend)
        with open_loader(root, config=config) as loader:
            epoch = labels_of(loader)
            given += flat(epoch)
            steps.add(len(epoch))
            assert len(epoch) == len(loader)
    assert sorted(given) == list(range(53))
    assert steps == {4}


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_evaluation_gives_every_image_once_and_its_key(root, world):
    given = {}
    for rank in range(world):
        config = LoaderConfig(batch=4, rank=rank, world=world)
        with open_loader(root, "validation", config) as loader:
            labels = flat(labels_of(loader))
            assert len(labels) == len(loader.keys)
            given |= dict(zip(loader.keys, labels, strict=True))
    assert given == {f"held_{n:05d}": n for n in range(11)}


def test_evaluation_is_in_the_order_of_the_shards_every_time(root):
    with open_loader(root, "validation", LoaderConfig(batch=4)) as loader:
        assert flat(labels_of(loader)) == flat(labels_of(loader)) == list(range(11))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stop_at_any_step_and_resume_gives_the_same_bytes(root, backend):
    config = LoaderConfig(batch=16, backend=backend, seed=4)
    with open_loader(root, config=config) as loader:
        whole = copied(batch for _ in range(2) for batch in loader)
    for stop in range(len(whole)):
        with open_loader(root, config=config) as first:
            batches = (batch for _ in range(2) for batch in first)
            before = copied(next(batches) for _ in range(stop))
            state = json.loads(json.dumps(first.state_dict()))
        with open_loader(root, config=config) as second:
            second.load_state_dict(state)
            after = copied(batch for _ in range(2) for batch in second)
            if state["epoch"] == 0:
                assert second.epoch == 2
        assert same(before + after[: len(whole) - stop], whole)


def test_resuming_with_other_threads_backend_and_ranks_continues_the_sequence(root):
    config = LoaderConfig(batch=16, backend="torch", threads=1, readers=1, prefetch=1)
    with open_loader(root, config=config, augment=RAW) as loader:
        batches = iter(loader)
        next(batches)
        state = loader.state_dict()
        images, labels = next(batches)
        images, labels = images.clone(), labels
    for rank in range(3):
        other = LoaderConfig(
            batch=16, backend="dali", threads=2, readers=3, prefetch=3, rank=rank, world=3
        )
        with open_loader(root, config=other, augment=RAW) as loader:
            loader.load_state_dict(state)
            own_images, own_labels = next(iter(loader))
        assert torch.equal(own_labels, labels[rank::3])
        assert torch.equal(own_images, images[rank::3])


def test_a_state_counts_what_was_given_not_what_was_read_ahead(root):
    with open_loader(root, config=LoaderConfig(batch=8, prefetch=4, readers=4)) as loader:
        batches = iter(loader)
        for taken in range(1, 5):
            next(batches)
            assert (loader.state_dict()["epoch"], loader.state_dict()["step"]) == (0, taken)


def test_a_loop_that_breaks_off_goes_on_where_it_stopped(root):
    with open_loader(root, config=LoaderConfig(batch=16)) as loader:
        first = next(iter(loader))[1].tolist()
        rest = labels_of(loader)
        assert (loader.epoch, loader.step) == (1, 0)
        assert sorted(first + flat(rest)) == list(range(53))


def test_epochs_have_different_orders_and_one_seed_always_the_same(root):
    config = LoaderConfig(batch=16, seed=9)
    with open_loader(root, config=config) as loader, open_loader(root, config=config) as again:
        epochs = [labels_of(loader) for _ in range(2)]
        assert epochs[0] != epochs[1]
        assert [labels_of(again) for _ in range(2)] == epochs


@pytest.mark.parametrize("order", ["window", "shards"])
def test_other_orders_resume_too(root, order):
    config = LoaderConfig(batch=16, order=order, window=2)
    with open_loader(root, config=config) as loader:
        batches = iter(loader)
        next(batches)
        state, rest = loader.state_dict(), [labels.tolist() for _, labels in batches]
    with open_loader(root, config=config) as loader:
        loader.load_state_dict(state)
        assert labels_of(loader) == rest


@pytest.mark.parametrize(
    ("change", "name"),
    [({"seed": 1}, "seed"), ({"batch": 8}, "batch"), ({"order": "window"}, "order")],
)
def test_a_state_of_another_sequence_is_refused_by_name(root, change, name):
    with open_loader(root, config=LoaderConfig(batch=16)) as loader:
        next(iter(loader))
        state = loader.state_dict()
    with (
        open_loader(root, config=LoaderConfig(**{"batch": 16} | change)) as loader,
        pytest.raises(DataError, match=f"{name} was"),
    ):
        loader.load_state_dict(state)


@pytest.mark.parametrize(
    "change",
    [
        {"step": 4},
        {"step": -1},
        {"epoch": -1},
        {"epoch": 2**32},
        {"epoch": "1"},
        {"step": None},
    ],
)
def test_a_state_beyond_the_epoch_is_refused(root, change):
    with open_loader(root, config=LoaderConfig(batch=16)) as loader:  # 4 steps
        state = loader.state_dict()
        with pytest.raises(DataError, match="does not exist, an epoch has 4 steps"):
            loader.load_state_dict(state | change)
        assert loader.state_dict() == state


def test_a_rank_without_a_share_of_the_last_step_resumes_with_the_next_epoch(root):
    with open_loader(root, "validation", LoaderConfig(batch=10)) as loader:  # 6 and 5 images
        next(iter(loader))
        state = loader.state_dict()
    with open_loader(root, "validation", LoaderConfig(batch=10, world=6, rank=5)) as loader:
        assert len(loader) == 1
        loader.load_state_dict(state)
        assert (loader.epoch, loader.step) == (1, 0)


def test_a_split_without_images_is_refused(root, tmp_path):
    empty = shutil.copytree(root, tmp_path / "copy")
    manifest = json.loads((empty / "manifest.json").read_text())
    manifest["splits"]["none"] = {"shards": [], "counts": []}
    (empty / "manifest.json").write_text(json.dumps(manifest))
    for train in (True, False):
        with pytest.raises(DataError, match=r"none of .* has no images"):
            open_loader(empty, "none", train=train)


def test_the_batch_may_change_between_epochs(root):
    with open_loader(root, config=LoaderConfig(batch=16)) as loader:
        labels_of(loader)
        state = loader.state_dict()
    with open_loader(root, config=LoaderConfig(batch=8)) as loader:
        loader.load_state_dict(state)
        assert sorted(flat(labels_of(loader))) == list(range(53))


@pytest.mark.parametrize("backend", BACKENDS)
def test_close_ends_every_thread_and_a_closed_loader_says_so(root, backend):
    before = set(threading.enumerate())
    loader = open_loader(root, config=LoaderConfig(batch=8, backend=backend))
    next(iter(loader))
    assert set(threading.enumerate()) > before
    loader.close()
    loader.close()
    assert set(threading.enumerate()) == before
    with pytest.raises(DataError, match="closed"):
        next(iter(loader))


def test_auto_takes_dali_and_says_why(root):
    with open_loader(root) as loader:
        assert loader.backend.startswith("dali")
        assert loader.samples == 53
        assert loader.classes[1] == ("n00000001", "class 1")


def test_wrong_use_is_answered_with_what_to_change(root):
    with pytest.raises(DataError, match=r"images of 64 pixels.*source is 256"):
        open_loader(root, augment=AugmentSpec())
    with pytest.raises(ValueError, match="uint8"):
        open_loader(root, config=LoaderConfig(dtype="uint8"))
    with pytest.raises(DataError, match="no split 'test'; it has train, validation"):
        open_loader(root, "test")
    with pytest.raises(DataError, match="larger batch or fewer ranks"):
        open_loader(root, config=LoaderConfig(batch=4, world=8))
    with pytest.raises(ValueError, match="rank must be in"):
        LoaderConfig(rank=2, world=2)


def test_a_gpu_that_is_not_there_is_an_error_when_the_loader_is_opened(root, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for change in ({"device": "cuda:0"}, {"pin_memory": True}):
        with pytest.raises(DataError, match=r"sees no GPU. Use device='cpu'"):
            open_loader(root, config=LoaderConfig(**change))
    for name in ("gpu", "cuda:", "cuda:\u00b2"):
        with pytest.raises(ValueError, match=f"must be 'cpu' or 'cuda:N', got '{name}'"):
            LoaderConfig(device=name)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch", 0),
        ("batch", 99_999_999_999),
        ("threads", 0),
        ("batch", 2.5),
        ("seed", 1.0),
        ("readers", 10**9),
        ("timeout", float("nan")),
        ("timeout", float("inf")),
        ("timeout", 0.0),
    ],
)
def test_a_number_out_of_its_range_is_named_with_its_value(field, value):
    with pytest.raises(ValueError, match=rf"LoaderConfig\.{field} must be .*, got {value}\."):
        LoaderConfig(**{field: value})


def test_statistics_are_asked_for_only_when_they_are_needed(tmp_path, rng):
    write_dataset(tmp_path, {"train": drawn_items(rng, 4)}, size=64)
    with open_loader(tmp_path, config=LoaderConfig(batch=2), augment=RAW) as loader:
        assert len(labels_of(loader)) == 2
    with pytest.raises(DataError, match="alexprep stats"):
        open_loader(tmp_path)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_program_may_end_without_closing_its_loader(root, backend):
    program = (
        "from pipelines import LoaderConfig, open_loader\n"
        f"config = LoaderConfig(batch=8, backend={backend!r})\n"
        f"batches = iter(open_loader({str(root)!r}, config=config))\n"
        "next(batches), print(len(next(batches)[1]))\n"
    )
    run = run_fork([sys.executable, "-c", program])
    assert (run.returncode, run.stdout, run.stderr) == (0, "8\n", "")


FORK = """
import gc, os, sys
from pipelines import DataError, LoaderConfig, open_loader

loader = open_loader(sys.argv[1], config=LoaderConfig(batch=16, backend=sys.argv[2]))
batches = iter(loader)
labels = next(batches)[1].tolist()
child = os.fork()
if child == 0:
    for use in (lambda: next(iter(loader)), lambda: loader.load_state_dict(loader.state_dict())):
        try:
            use()
        except DataError as error:
            print(error, flush=True)
    loader.close()
    del loader, batches, use
    gc.collect()
    sys.exit(7)  # the interpreter ends as usual and destroys what is left
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
labels += [label for _, others in batches for label in others.tolist()]
print(os.getpid(), child, status, sorted(labels))
loader.close()
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fork_is_refused_with_one_line_and_leaves_the_loader_of_its_parent_alone(root, backend):
    command = [sys.executable, "-c", FORK, root, backend]
    done = run_fork(command)
    assert done.returncode == 0, done.stderr
    *refusals, last = done.stdout.splitlines()
    parent, child, status, labels = last.split(" ", 3)
    line = f"opened by process {parent} and cannot be used in process {child}, a fork of it"
    assert len(refusals) == 2
    assert all(line in refusal and "open_loader" in refusal for refusal in refusals)
    assert (int(status), json.loads(labels)) == (7, list(range(53)))


@pytest.mark.parametrize(
    ("cores", "device", "threads"),
    [
        (1, "cpu", 2),
        (2, "cpu", 2),
        (16, "cpu", 4),
        (64, "cpu", 16),
        (1, "cuda", 2),
        (8, "cuda:1", 8),
    ],
)
def test_a_share_of_the_cores_decodes(cores, device, threads):
    assert default_threads(cores, device) == threads


def test_readers_are_as_many_as_threads_but_few():
    assert LoaderConfig(threads=3).reader_count == 3
    assert LoaderConfig(threads=64).reader_count == 8
    assert LoaderConfig(threads=64, readers=20).reader_count == 20
