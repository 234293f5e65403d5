"""Batches from a split that is held decoded in memory: nothing is read or decoded while training.

At the start every image of the split becomes planes (pipelines.planes), read from the files that
`alexprep planes` wrote or decoded by all cores. They are held in GPU memory as far as they fit,
then in that of other GPUs, which a GPU reads over NVLink, then in page-locked host memory, which it
reads over its bus. A batch is then one kernel (pipelines.planes_triton); per image the host sends
its address, where its crop is and six factors. For all of ILSVRC that is 126 GB.
"""

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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


class Share(NamedTuple):
    """How many images a memory holds."""

    device: torch.device
    images: int


class ResidentStore(NamedTuple):
    """Planes of a split in several tensors, in the split's own order, and the label of each image.

    tensors: uint8 (M, plane_bytes(size)) each, in the memory of a GPU or of the host.
    labels: int64 (samples,).
    """

    tensors: tuple[Tensor, ...]
    labels: NDArray[np.int64]

    def addresses(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the planes of images begin, by their number in the split."""
        firsts = np.cumsum([0, *(len(tensor) for tensor in self.tensors[:-1])])
        bases = np.array([tensor.data_ptr() for tensor in self.tensors], np.int64)
        numbers = np.searchsorted(firsts, rows, side="right") - 1
        return bases[numbers] + (rows - firsts[numbers]) * self.tensors[0].shape[1]


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU, as in the tests of this module."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def share_images(samples: int, size: int, devices: Sequence[torch.device]) -> list[Share]:
    """How many images each GPU holds, in the order they are filled, and the host at last.

    The first of the devices is the one that makes the batches; of the others those count whose
    memory it can read. DataError if the host cannot hold what does not fit on them.
    """
    if devices[0].type != "cuda":
        return [Share(devices[0], samples)]
    free = {device: _free_bytes(device) for device in _readable(devices)}
    shares: list[Share] = []
    surplus = samples
    for device, available in free.items():
        count = max(0, min(surplus, (available - RESERVED_BYTES) // plane_bytes(size)))
        shares.append(Share(device, int(count)))
        surplus -= int(count)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    on_host, available = surplus * plane_bytes(size), _available_host_bytes()
    # Page-locked memory cannot be swapped: half of the host's stays for everything else.
    if on_host * processes > available // 2:
        needed = samples * plane_bytes(size)
        raise DataError(_too_little_memory(needed, on_host, free, available, processes))
    return [*shares, Share(torch.device("cpu"), surplus)]


def _readable(devices: Sequence[torch.device]) -> list[torch.device]:
    """The first device, and those GPUs whose memory it can read."""
    first, *peers = devices
    number = first.index if ":" in str(first) else torch.cuda.current_device()
    candidates = [peer for peer in dict.fromkeys(peers) if peer.index != number]
    return [first, *(peer for peer in candidates if torch.cuda.can_device_access_peer(first, peer))]


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0]


def _too_little_memory(
    needed: int, on_host: int, free: Mapping[torch.device, int], available: int, processes: int
) -> str:
    gpus = " and ".join(f"{device} has {count / 1e9:,.1f} GB" for device, count in free.items())
    host = f"{on_host / 1e9:,.1f} GB"
    # Processes could read each other's GPUs too; nobody could try that.
    shared = (
        f"{host} in each of {processes} processes, which share none," if processes > 1 else host
    )
    return (
        f"The images need {needed / 1e9:,.1f} GB decoded: {gpus} free, {RESERVED_BYTES / 1e9:,.1f} "
        f"of each left to the network, and {shared} are more than half of the host's "
        f"{available / 1e9:,.1f}. Use backend='dali', 'planes' after `alexprep planes`, or more "
        "GPUs that can read each other in one process (LoaderConfig.peers)."
    )


def fits_on_devices(samples: int, size: int, devices: Sequence[torch.device]) -> bool:
    """Whether all images fit into the memory of GPUs beside a network."""
    if devices[0].type != "cuda":
        return False
    rooms = (_free_bytes(device) - RESERVED_BYTES for device in _readable(devices))
    return sum(max(0, room) // plane_bytes(size) for room in rooms) >= samples


def _available_host_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _empty_share(share: Share, size: int, first: torch.device) -> Tensor:
    """Memory for a share of the images that `first` can read."""
    pinned = share.device.type == "cpu" and first.type == "cuda"
    tensor = torch.empty(
        (share.images, plane_bytes(size)), dtype=torch.uint8, device=share.device, pin_memory=pinned
    )
    if share.device.type == "cuda" and share.device != first:
        # With a copy to another GPU, PyTorch lets this one read and write all of its memory.
        torch.zeros(1, dtype=torch.uint8, device=first).to(share.device)
    return tensor


def load_store(
    reader: SampleReader,
    shares: Sequence[Share],
    progress: Callable[[int], None],
    *,
    threads: int,
) -> ResidentStore:
    """Read or decode the whole split by `threads` threads, into the memories of `share_images`.

    `progress` is called with the number of images loaded since its last call. DataError for an
    image that planes cannot hold, with its shard and key.
    """
    samples, size = sum(reader.lengths), reader.manifest.size
    first = shares[0].device
    tensors = tuple(_empty_share(share, size, first) for share in shares)
    ends = list(accumulate(share.images for share in shares))
    labels = np.empty(samples, np.int64)

    def load(start: int) -> int:
        stop = min(start + CHUNK, samples)
        chunk = np.empty((stop - start, plane_bytes(size)), np.uint8)
        for index in range(start, stop):
            labels[index] = _load(reader, index, size, chunk[index - start])
        planes = torch.as_tensor(chunk)
        for tensor, end in zip(tensors, ends, strict=True):
            origin = end - len(tensor)
            a, b = max(start, origin), min(stop, end)
            if a < b:
                tensor[a - origin : b - origin].copy_(planes[a - start : b - start])
        return stop

    with closing(prefetch(range(0, samples, CHUNK), load, threads, threads)) as loaded:
        done = 0
        for stop in loaded:
            progress(stop - done)
            done = stop
    for share in shares:
        if share.device.type == "cuda":
            # Batches are made on other streams than those that the copies were queued on.
            torch.cuda.synchronize(share.device)
    return ResidentStore(tensors, labels)


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
        devices: whose memory is filled, one after the other; the first makes the batches.
        threads: that read and decode.
    """

    concurrent = True
    means = ""

    def __init__(
        self, reader: SampleReader, devices: Sequence[torch.device], *, threads: int
    ) -> None:
        self.reader, self.devices, self.threads = reader, devices, threads
        self.manifest, self.split, self.lengths = reader.manifest, reader.split, reader.lengths
        self._shares()
        self._store: ResidentStore | None = None

    def store(self, progress: Callable[[int], None] = lambda _count: None) -> ResidentStore:
        """The split in memory; it stays there when the loader starts anew from another state."""
        if self._store is None:
            self._store = load_store(self.reader, self._shares(), progress, threads=self.threads)
            self.reader.close()
        return self._store

    def _shares(self) -> list[Share]:
        return share_images(sum(self.lengths), self.manifest.size, self.devices)

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


def devices_of(config: LoaderConfig) -> list[torch.device]:
    """The device of the batches, and its peers."""
    return [torch.device(name) for name in (config.device, *config.peers)]


def open_resident(
    root: Path, manifest: Manifest, split: str, *, check: Check, config: LoaderConfig
) -> ResidentReader:
    """A reader of the stored planes of a split if there are any, else of its JPEGs."""
    manifest.split(split, root)
    samples = PlanesReader if has_planes(root, manifest, split) else SplitReader
    return ResidentReader(
        samples(root, manifest, split, check),
        devices_of(config),
        threads=config.thread_count,
    )


class ResidentImages:
    """Makes images of plans from a store.

    Images are (N, 3, crop, crop), or (N, 10, 3, crop, crop) with ten views, and channels_last in
    memory if `preprocess` says so. The store's first tensor is on the device that makes them.
    """

    def __init__(self, store: ResidentStore, preprocess: Preprocess, size: int) -> None:
        self.store, self.preprocess, self.size = store, preprocess, size
        self.normalize = Normalize(preprocess)
        self.device = store.tensors[0].device
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
        crops = self.normalize.crops(plan.draws)
        if out is None:
            out = torch.empty(
                (len(crops.images), 3, crop, crop),
                dtype=self.dtype,
                device=self.device,
                memory_format=torch.channels_last,
            )
        crop_planes(
            self._sent(self.store.addresses(plan.indices[crops.images])),
            self._sent(crops.corners.astype(np.int32)),
            self._sent(crops.factors.levels.reshape(-1, 6)),
            self.mean_HWC,
            out,
            size=self.size,
            crop=crop,
            mean_moves=preprocess.spec.mean == "image_at_crop",
        )
        if preprocess.views > 1:
            return out.contiguous().view(-1, VIEWS, *out.shape[1:])
        return out if preprocess.channels_last else out.contiguous()

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
