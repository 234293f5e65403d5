"""Batches from a split that is held decoded in memory: nothing is read or decoded while training.

At the start every image of the split becomes planes (pipelines.planes), read from the files that
`alexprep planes` wrote or decoded by all cores. They are held in GPU memory as far as they fit,
the rest in page-locked host memory, which a GPU reads over its bus. A batch is then one kernel
(pipelines.planes_triton); per image the host sends where its crop is and six factors. For all of
ILSVRC that is 126 GB.
"""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.augment import ten_views
from pipelines.config import LoaderConfig
from pipelines.errors import DataError
from pipelines.format import Manifest
from pipelines.normalize import VIEWS, Normalize, Preprocess
from pipelines.order import BatchPlan, BatchSchedule
from pipelines.planes import decode_planes
from pipelines.planesfile import plane_bytes
from pipelines.planestore import PlanesReader, has_planes
from pipelines.prefetch import prefetch
from pipelines.shards import Check, Image, RawBatch, SampleReader, SplitReader

CHUNK = 512  # images that are decoded, then copied together
# What the network, its activations and the libraries want of a GPU: 13 GB at batches of 1,024 by
# the count in docs/notes; a network of another kind may want more.
RESERVED_BYTES = 16 << 30


class ResidentStore(NamedTuple):
    """Planes of a split in two parts, in the split's own order, and the label of each image.

    planes: uint8 (M, plane_bytes(size)) on the device and (samples - M, ...) in host memory.
    labels: int64 (samples,).
    """

    planes: tuple[Tensor, Tensor]
    labels: NDArray[np.int64]


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU, as in the tests of this module."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def images_on_device(samples: int, size: int, device: torch.device) -> int:
    """How many images GPU memory takes; DataError if the host cannot hold the others."""
    if device.type != "cuda":
        return samples
    free, _ = torch.cuda.mem_get_info(device)
    count = max(0, min(samples, (free - RESERVED_BYTES) // plane_bytes(size)))
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    on_host, available = (samples - count) * plane_bytes(size), _available_host_bytes()
    # Page-locked memory cannot be swapped: half of the host's stays for everything else.
    if on_host * processes > available // 2:
        raise DataError(
            _too_little_memory(samples * plane_bytes(size), on_host, free, available, processes)
        )
    return int(count)


def _too_little_memory(needed: int, on_host: int, free: int, available: int, processes: int) -> str:
    host = f"{on_host / 1e9:,.1f} GB"
    # Another GPU's memory could be read over NVLink; that is not done, since nobody could try it.
    shared = (
        f"{host} in each of {processes} processes, which do not share them between GPUs,"
        if processes > 1
        else f"{host}"
    )
    return (
        f"The images need {needed / 1e9:,.1f} GB decoded: the GPU has {free / 1e9:,.1f} GB free, "
        f"{RESERVED_BYTES / 1e9:,.1f} of them left to the network, and {shared} are more than half "
        f"of the host's {available / 1e9:,.1f}. Use backend='dali', or 'planes' after `alexprep "
        "planes`."
    )


def fits_on_device(samples: int, size: int, device: torch.device) -> bool:
    """Whether all images fit into GPU memory beside a network."""
    return device.type == "cuda" and (
        torch.cuda.mem_get_info(device)[0] - RESERVED_BYTES >= samples * plane_bytes(size)
    )


def _available_host_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def load_store(
    reader: SampleReader, device: torch.device, progress: Callable[[int], None], *, threads: int
) -> ResidentStore:
    """Read or decode the whole split by `threads` threads.

    `progress` is called with the number of images loaded since its last call. DataError for an
    image that planes cannot hold, with its shard and key, or for too little memory.
    """
    samples, size = sum(reader.lengths), reader.manifest.size
    count = images_on_device(samples, size, device)
    on_device = torch.empty((count, plane_bytes(size)), dtype=torch.uint8, device=device)
    on_host = torch.empty(
        (samples - count, plane_bytes(size)), dtype=torch.uint8, pin_memory=device.type == "cuda"
    )
    labels = np.empty(samples, np.int64)

    def load(start: int) -> int:
        stop = min(start + CHUNK, samples)
        chunk = np.empty((stop - start, plane_bytes(size)), np.uint8)
        for index in range(start, stop):
            labels[index] = _load(reader, index, size, chunk[index - start])
        planes, middle = torch.as_tensor(chunk), max(start, min(stop, count))
        on_device[start:middle].copy_(planes[: middle - start])
        on_host[middle - count : stop - count].copy_(planes[middle - start :])
        return stop

    with closing(prefetch(range(0, samples, CHUNK), load, threads, threads)) as loaded:
        done = 0
        for stop in loaded:
            progress(stop - done)
            done = stop
    if device.type == "cuda":
        # Batches are made on other streams than the one that the copies were queued on.
        torch.cuda.synchronize(device)
    return ResidentStore((on_device, on_host), labels)


def _load(reader: SampleReader, index: int, size: int, out: NDArray[np.uint8]) -> int:
    """Fill `out` with the planes of a sample and return its label."""
    image = reader.read(index)
    if isinstance(reader, PlanesReader):
        out[:] = image.jpg
        return image.label
    try:
        decode_planes(image.jpg.tobytes(), size, out)
    except ValueError as error:
        raise DataError(
            f"{reader.where(index)}: {error}, so it cannot be held as planes. Use another "
            "backend, or make the data set again with `alexprep shard`."
        ) from error
    return image.label


class ResidentReader:
    """A SampleReader that loads all of its split into memory when the first batch is asked for.

    Args:
        reader: of the samples, as JPEGs or as planes.
        device: whose memory is filled first.
        threads: that read and decode.
    """

    concurrent = True
    means = ""

    def __init__(self, reader: SampleReader, device: torch.device, *, threads: int) -> None:
        self.reader, self.device, self.threads = reader, device, threads
        self.manifest, self.split, self.lengths = reader.manifest, reader.split, reader.lengths
        images_on_device(sum(self.lengths), self.manifest.size, device)
        self._store: ResidentStore | None = None

    def store(self, progress: Callable[[int], None] = lambda _count: None) -> ResidentStore:
        """The split in memory; it stays there when the loader starts anew from another state."""
        if self._store is None:
            self._store = load_store(self.reader, self.device, progress, threads=self.threads)
            self.reader.close()
        return self._store

    def batches(self, schedule: BatchSchedule, epoch: int, step: int) -> Iterator[BatchPlan]:
        return schedule.batches(epoch, step)

    def keys(self) -> list[str]:
        return self.reader.keys()

    def read(self, index: int) -> Image:
        return self.reader.read(index)

    def where(self, index: int) -> str:
        return self.reader.where(index)

    def close(self) -> None:
        self.reader.close()


def open_resident(
    root: Path, manifest: Manifest, split: str, *, check: Check, config: LoaderConfig
) -> ResidentReader:
    """A reader of the stored planes of a split if there are any, else of its JPEGs."""
    manifest.split(split, root)
    samples = PlanesReader if has_planes(root, manifest, split) else SplitReader
    return ResidentReader(
        samples(root, manifest, split, check),
        torch.device(config.device),
        threads=config.thread_count,
    )


class ResidentImages:
    """Makes images of plans from a store.

    Images are (N, 3, crop, crop), or (N, 10, 3, crop, crop) with ten views, and channels_last in
    memory if `preprocess` says so.
    """

    def __init__(self, store: ResidentStore, preprocess: Preprocess, size: int) -> None:
        self.store, self.preprocess, self.size = store, preprocess, size
        self.normalize = Normalize(preprocess)
        self.device = store.planes[0].device
        image = preprocess.colours.image_HWC
        mean = np.zeros((1, 1, 3)) if image is None else image
        self.mean_HWC = torch.as_tensor(mean.astype(np.float32)).to(self.device)
        self.dtype: torch.dtype = getattr(torch, preprocess.dtype)

    def images(self, plan: BatchPlan, out: Tensor | None = None) -> Tensor:
        """The images of a plan; written to `out`, channels_last (N, 3, side, side), if given.

        A larger side than the crop's leaves zeros behind it: the padding that a network wants.
        """
        from pipelines.planes_triton import crop_planes  # noqa: PLC0415 - Triton is optional

        preprocess, crop = self.preprocess, self.preprocess.spec.crop
        rows, origins, levels = self._arguments(plan)
        if out is None:
            out = torch.empty(
                (len(rows), 3, crop, crop),
                dtype=self.dtype,
                device=self.device,
                memory_format=torch.channels_last,
            )
        crop_planes(
            self.store.planes,
            self._sent(rows),
            self._sent(origins),
            self._sent(levels),
            self.mean_HWC,
            out,
            size=self.size,
            crop=crop,
            mean_moves=preprocess.spec.mean == "image_at_crop",
        )
        if preprocess.views > 1:
            return out.contiguous().view(-1, VIEWS, *out.shape[1:])
        return out if preprocess.channels_last else out.contiguous()

    def _arguments(self, plan: BatchPlan) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Stored image (N,), top, left and mirror (N, 3), and factors (N, 6) of each crop."""
        draws, rows = plan.draws, plan.indices
        if self.preprocess.views == 1:
            origins = np.stack([draws.y, draws.x, draws.mirror], axis=1)
            levels = self.normalize.factors(draws).levels
        else:
            origins = np.tile(np.array(ten_views(self.preprocess.spec)), (len(rows), 1))
            levels = np.tile(self.normalize.ten_factors.levels, (len(rows), 1, 1))
            rows = np.repeat(rows, VIEWS)
        return rows, origins.astype(np.int32), levels.reshape(-1, 6)

    def _sent(self, values: NDArray[Any]) -> Tensor:
        tensor = torch.as_tensor(np.ascontiguousarray(values))
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def resident_batches(
    plans: Iterator[BatchPlan],
    reader: ResidentReader,
    preprocess: Preprocess,
    target: Callable[[], Tensor | None],
) -> Generator[tuple[RawBatch, Tensor]]:
    """Images of each plan, queued on the current stream of the thread that asks for them.

    They are written to `target()`, channels_last (N, 3, side, side), where it has that many.
    """
    store = reader.store()
    maker = ResidentImages(store, preprocess, reader.manifest.size)
    for plan in plans:
        images = target()
        fits = images is not None and len(images) == len(plan.indices)
        out = maker.images(plan, images if fits else None)
        yield RawBatch(plan, [], store.labels[plan.indices]), out


def check_resident(device: torch.device) -> None:
    """DataError unless the kernel can run: on a GPU with Triton, or in Triton's interpreter."""
    if find_spec("triton") is None:
        raise DataError(
            "LoaderConfig.backend 'resident' needs Triton, which PyTorch for CUDA brings. Use "
            "backend='planes' or 'auto'."
        )
    if device.type != "cuda" and not interpreted():
        raise DataError(
            "LoaderConfig.backend 'resident' makes images on a GPU: it needs device='cuda:N'. On a "
            "CPU use backend='planes' after `alexprep planes`."
        )
