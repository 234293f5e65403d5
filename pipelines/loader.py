"""Batches of (images, labels) from shards, in an order that is known beforehand.

    with open_loader("imagenet", "train", LoaderConfig(batch=128, device="cuda:0")) as loader:
        for epoch in range(90):
            for images, labels in loader:  # float32 (N, 3, 224, 224), int64 (N,)
                ...

The order and all draws are functions of (seed, epoch, position): `state_dict` is a position, and a
loader with other threads, another backend or another number of ranks continues the same sequence.
"""

import atexit
import ctypes
import hashlib
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor

from pipelines.augment import AugmentSpec, colours
from pipelines.backends import (
    Source,
    backend_stream,
    choose_backend,
    on_gpu,
    open_source,
    prefer_planes,
)
from pipelines.config import LoaderConfig
from pipelines.errors import DataError
from pipelines.finish import SideStream
from pipelines.imagestats import ImageStats
from pipelines.normalize import Preprocess
from pipelines.order import BatchPlan, BatchSchedule
from pipelines.prefetch import prefetch
from pipelines.regions import read_regions
from pipelines.shards import RawBatch, SampleReader, read_batch

MAX_EPOCH = 1 << 32  # a word of the counter that all chance is drawn from
_OPEN: "weakref.WeakSet[Loader]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Close what the program left open: later the modules that closing needs are gone."""
    for loader in list(_OPEN):
        loader.close()


class Loader:
    """An endless sequence of epochs; see `open_loader`. One thread iterates, any may close.

    Attributes:
        classes: (wnid, names) of each label.
        samples: images of the split, over all ranks.
        backend: which one is used, and why.
        epoch: of the next batch.
        step: of the next batch, within its epoch.
    """

    def __init__(
        self,
        reader: SampleReader,
        schedule: BatchSchedule,
        preprocess: Preprocess,
        config: LoaderConfig,
    ) -> None:
        self.classes = reader.manifest.classes
        self.samples = schedule.samples
        self._config, choice = choose_backend(config)
        self.backend = reader.means + choice
        self.epoch = 0
        self.step = 0
        self._reader = reader
        self._schedule = schedule
        self._preprocess = preprocess
        self._data = hashlib.sha256(
            "".join(shard.sha256 for shard in reader.split.shards).encode()
        ).hexdigest()
        self._stream: Generator[tuple[RawBatch, Tensor]] | None = None
        self._side: SideStream | None = None  # that batches are made on and copied, if by a GPU
        self._target = Target()
        self._lock = threading.RLock()  # an RLock: a signal handler may close while `_next` waits
        self._closed = False
        self._process = os.getpid()
        _OPEN.add(self)

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self._schedule.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The rest of this epoch: (images, labels), both on the configured device.

        images: (N, 3, crop, crop), or (N, 10, 3, crop, crop) with ten views; RGB by the formula of
        pipelines.augment; N may differ by a few at the end of an epoch. labels: int64, (N,).
        DataError, naming shard, key and offset, when it is the turn of a batch that cannot be made.
        """
        epoch = self.epoch
        while self.epoch == epoch and len(self):
            yield self._next()

    @property
    def keys(self) -> list[str]:
        """Keys of this rank's samples in evaluation order."""
        keys = self._reader.keys()
        order = self._schedule.order_of(0)
        steps = range(len(self))
        return [keys[index] for step in steps for index in order[self._schedule.positions(step)]]

    def state_dict(self) -> dict[str, Any]:
        """Where the sequence stands, by what was given out, not by what was read ahead; JSON."""
        return {"version": 1, "epoch": self.epoch, "step": self.step, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the last batch of `state`; DataError if it is of another sequence."""
        self._refuse_in_fork()
        own = {"version": 1, **self._identity()}
        for name, value in own.items():
            if state.get(name) != value and not (name == "batch" and state.get("step") == 0):
                raise DataError(
                    f"This loader cannot continue the saved sequence: {name} was "
                    f"{state.get(name)!r} and is {value!r}."
                )
        epoch, step = state.get("epoch"), state.get("step")
        steps = len(self._schedule.bounds) - 1
        if not (
            isinstance(epoch, int)
            and isinstance(step, int)
            and 0 <= epoch < MAX_EPOCH
            and 0 <= step < steps
        ):
            raise DataError(
                f"This loader cannot continue the saved sequence: epoch {epoch!r}, step {step!r} "
                f"does not exist, an epoch has {steps} steps. Use what state_dict() returned."
            )
        self._stop()
        # In evaluation a rank may have a step less than the one that saved.
        self.epoch, self.step = (epoch, step) if step < len(self) else (epoch + 1, 0)

    def load(self, progress: Callable[[int], None] = lambda _count: None) -> None:
        """Load what the backend holds in memory now, not with the first batch: "resident" alone.

        `progress` is called with the number of images that were loaded since its last call.
        DataError as iterating has it, and for too little memory.
        """
        if self._config.backend == "resident":
            from pipelines import resident  # noqa: PLC0415 - optional, needs numba

            self._refuse_in_fork()
            with self._lock:
                self._refuse_if_closed()
                cast(resident.ResidentReader, self._reader).store(progress)

    def write_into(self, images: Tensor) -> bool:
        """Write later batches straight into `images` where their shape is its own.

        The memory is then written again with every batch, on the stream that is current when the
        batch is asked for: it is for the static input of a captured step. Other batches, such as
        the last ones of an epoch, have memory of their own as before. False, and nothing changes,
        if the backend cannot: "resident" can, with channels_last and one view.
        """
        preprocess = self._preprocess
        able = (
            self._config.backend == "resident"
            and preprocess.channels_last
            and preprocess.views == 1
            and images.is_contiguous(memory_format=torch.channels_last)
            and images.dtype == getattr(torch, preprocess.dtype)
        )
        if able:
            self._target.images = images
        return able

    def close(self) -> None:
        """End all threads; a closed loader gives out nothing more. Closing twice is no error.

        A thread that waits for a batch at that time gets a DataError.
        """
        self._closed = True
        if os.getpid() != self._process:
            return
        self._reader.close()  # wakes a thread that waits for a server
        with self._lock:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _identity(self) -> dict[str, Any]:
        """What the sequence depends on; world only where ranks read their own shards."""
        schedule = self._schedule
        own = {"world": schedule.world} if schedule.order == "shards" else {}
        window = {"window": schedule.window} if schedule.order == "window" else {}
        return {
            "train": schedule.train,
            "seed": schedule.seed,
            "batch": schedule.batch,
            "order": schedule.order,
            **window,
            **own,
            "samples": self.samples,
            "data": self._data,
        }

    def _next(self) -> tuple[Tensor, Tensor]:
        self._refuse_in_fork()
        with self._lock:
            self._refuse_if_closed()
            if self._stream is None:
                if self._config.device.startswith("cuda") and self._side is None:
                    self._side = SideStream(torch.device(self._config.device))
                plans = self._reader.batches(self._schedule, self.epoch, self.step)
                self._stream = _stream(
                    plans, self._reader, self._preprocess, self._config, self._target
                )
            # What is written into memory that a step reads has to wait for that step.
            side = self._side if self._target.images is None else None
            try:
                with side.use() if side else nullcontext():
                    raw, images = next(self._stream)
                    labels = _pinned(torch.as_tensor(raw.labels), self._config)
                    device = self._config.device
                    images, labels = (t.to(device, non_blocking=True) for t in (images, labels))
            except BaseException as error:
                self._stop()
                if isinstance(error, Exception):
                    self._refuse_if_closed()  # what it failed of is then that it was closed
                raise
            if self._closed:
                self._stop()
                self._refuse_if_closed()
        last = raw.plan.step + 1 == len(self)
        self.epoch, self.step = (
            (raw.plan.epoch + 1, 0) if last else (raw.plan.epoch, raw.plan.step + 1)
        )
        if side is not None:
            side.hand_over((images, labels))
        return images, labels

    def _refuse_in_fork(self) -> None:
        if os.getpid() != self._process:
            raise DataError(
                f"This loader was opened by process {self._process} and cannot be used in process "
                f"{os.getpid()}, a fork of it. Call open_loader in the process that iterates."
            )

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise DataError("The loader was closed; open another with open_loader.")

    def _stop(self) -> None:
        self._reader.close()  # wakes a thread that waits for a server
        stream, self._stream = self._stream, None
        if stream is not None:
            with suppress(ValueError):  # it runs: a signal handler closes, `_next` will see it
                stream.close()
        self._reader.close()  # what was opened in between


def _keep_in_fork() -> None:
    """Let a fork never destroy the loaders of its parent.

    It has none of their threads: ending a DALI pipeline would wait for them for ever, and ending a
    remote reader would end the parent's commands. One more reference, which nobody gives back,
    outlives even the end of the interpreter.
    """
    for loader in _OPEN:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(loader))


os.register_at_fork(after_in_child=_keep_in_fork)


def open_loader(
    root: Path | str,
    split: str = "train",
    config: LoaderConfig | None = None,
    augment: AugmentSpec | None = None,
    *,
    train: bool | None = None,
    stats: ImageStats | None = None,
) -> Loader:
    """Open a split of a finished data set.

    Iterating the loader gives one epoch of (images, labels), both on `config.device`:

        images  (N, 3, H, W) with H = W = augment.crop, or (N, 10, 3, H, W) with config.views = 10;
                RGB, of config.dtype, in grey levels (0..255) less the mean, or in units of
                `augment.sd` if that is set; "uint8" are the pixels themselves
        labels  int64 (N,), 0..classes - 1, numbers of `loader.classes`
        N       this rank's share of config.batch; up to half of it less in the last two batches

    Args:
        root: the folder with manifest.json, or a URL or command (see pipelines.remote). A Path is
            always a folder.
        split: "train", "validation", or another name in the manifest.
        config: how batches are made; None: LoaderConfig().
        augment: what an image becomes. None: AugmentSpec() with the size of the stored images, and
            a crop of 7/8 of it (224 of 256).
        train: random crops in random order, or centre crops or ten views in the split's own order.
            None: whether the split is called "train".
        stats: measured colours; None: those of the train split under root, if `augment` needs them.

    Raises:
        DataError: the data set is missing, unfinished, damaged or without statistics, or the
            backend cannot work on this machine. Also raised by iterating, for damage in a batch.
        ValueError: config and augment contradict each other or the way the data set is read.
    """
    config = config or LoaderConfig()
    train = split == "train" if train is None else train
    resamples = augment is not None and augment.resamples
    if config.backend == "resident" and resamples:
        raise ValueError(
            "LoaderConfig.backend 'resident' does not resize images, which AugmentSpec.area and "
            "resize ask for. Use backend='dali' or 'planes'."
        )
    config = prefer_planes(root, split, config, resamples=resamples)
    source = open_source(root, config)
    spec = augment or AugmentSpec(source=source.manifest.size, crop=source.manifest.size * 7 // 8)
    _check(source, config, spec)
    numbers = colours(spec, stats or (source.stats() if spec.needs_stats else None))
    reader = source.reader(split)
    schedule = _schedule(reader.lengths, config, spec, f"{split} of {source.root}", train=train)
    views = 1 if train else config.views
    regions = spec.resamples or source.manifest.keep_aspect
    preprocess = Preprocess(spec, numbers, views, config.dtype, config.channels_last, regions)
    return Loader(reader, schedule, preprocess, config)


def _schedule(
    lengths: Sequence[int], config: LoaderConfig, spec: AugmentSpec, name: str, *, train: bool
) -> BatchSchedule:
    """The batches of this rank; DataError, with the split's name, if one would have no image."""
    schedule = BatchSchedule(
        lengths=lengths,
        spec=spec,
        train=train,
        seed=config.seed,
        batch=config.batch,
        rank=config.rank,
        world=config.world,
        order=config.order,
        window=config.window,
    )
    if not schedule.samples:
        raise DataError(f"{name} has no images. Choose another split.")
    if train and schedule.smallest < 1:
        raise DataError(
            f"{name} has {schedule.samples} images: with batch={config.batch} a rank of "
            f"{config.world} would get none in the last step. Use a larger batch or fewer ranks."
        )
    return schedule


def _check(source: Source, config: LoaderConfig, spec: AugmentSpec) -> None:
    size = source.manifest.size
    if spec.source != size:
        raise DataError(
            f"{source.root} holds images of {size} pixels, AugmentSpec.source is {spec.source}. "
            f"Use AugmentSpec(source={size}, ...)."
        )
    if config.dtype == "uint8" and not spec.leaves_bytes:
        raise ValueError(
            "LoaderConfig.dtype 'uint8' leaves pixels as they are: it needs "
            "AugmentSpec(mean='none', lighting=0, divide=1, sd=None)."
        )
    if source.manifest.keep_aspect:
        _check_aspect(source, config, spec)
    if source.streamed and config.order != "shards":
        raise ValueError(
            f"{source.root} is streamed, which cannot be done in {config.order!r} order: it needs "
            "LoaderConfig(order='shards')."
        )


def _check_aspect(source: Source, config: LoaderConfig, spec: AugmentSpec) -> None:
    if config.backend in ("planes", "resident"):
        raise DataError(
            f"{source.root} keeps the aspect ratio of its images (--keep-aspect); backend "
            f"{config.backend!r} takes squares of one size alone. Use backend='dali' or 'torch'."
        )
    if spec.mean == "image_at_crop" and not spec.square:
        raise ValueError(
            f"AugmentSpec.mean 'image_at_crop' is of square images; {source.root} keeps the aspect "
            "ratio of its images. Use square=True, or another mean."
        )


class Target:
    """Memory that a backend writes full batches into, if `Loader.write_into` was called."""

    images: Tensor | None = None


def _stream(
    plans: Iterator[BatchPlan],
    reader: SampleReader,
    preprocess: Preprocess,
    config: LoaderConfig,
    target: Target,
) -> Generator[tuple[RawBatch, Tensor]]:
    """Images of the plans, read and made early; closing it ends all threads."""
    if config.backend == "resident":
        from pipelines import resident  # noqa: PLC0415 - optional, needs numba

        # No thread either: one kernel a batch, queued before the step that takes it.
        yield from resident.resident_batches(
            plans, cast(resident.ResidentReader, reader), preprocess, lambda: target.images
        )
        return
    readers = config.reader_count if reader.concurrent else 1
    read = partial(read_batch, reader)
    if config.backend == "planes":
        from pipelines import planestore  # noqa: PLC0415 - optional, needs numba

        read = cast(planestore.PlanesReader, reader).open_batch
    if preprocess.regions:
        read = partial(read_regions, read, reader.manifest, preprocess)
    with (
        closing(prefetch(plans, read, readers, config.reader_count + 1)) as raw,
        closing(backend_stream(raw, reader, preprocess, config)) as images,
    ):
        if on_gpu(config):
            # No thread here: DALI makes its batches early in threads of its own, and `Loader` takes
            # them on a stream beside the user's.
            yield from images
            return

        def make(stream: Iterator[tuple[RawBatch, Tensor]]) -> tuple[RawBatch, Tensor]:
            batch, pixels = next(stream)
            return batch, _pinned(pixels, config)

        with closing(prefetch(repeat(images), make, workers=1, depth=1)) as batches:
            yield from batches


def _pinned(tensor: Tensor, config: LoaderConfig) -> Tensor:
    """Page-locked if configured, or if a copy to a GPU follows, which then need not wait."""
    pinned = config.pin_memory or config.device.startswith("cuda")
    return tensor.pin_memory() if pinned and tensor.device.type == "cpu" else tensor
