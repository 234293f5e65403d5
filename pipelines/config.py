"""How batches are made."""

import os
import re
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args, get_origin, get_type_hints

from pipelines.order import Order
from pipelines.shards import Check

BackendName = Literal["auto", "dali", "torch", "planes", "resident", "webdataset"]
CPU_THREADS = 2
# The small network takes 420 images a second of a core, of which a thread decodes 1,600 (both
# benchmarks/README.md): a fourth of the cores could be needed; the full size needs a sixtieth.
CORES_PER_THREAD = 4
MOST_READERS = 8  # they share the interpreter: more do not read faster
DEVICE = re.compile(r"cpu|cuda(:[0-9]+)?")
# Far above any use: what is larger would fail later, during the work, as memory or threads run out.
LIMITS = {
    "batch": (1, 1 << 20),
    "world": (1, 1 << 20),
    "threads": (1, 4096),
    "readers": (1, 4096),
    "prefetch": (1, 4096),
    "window": (1, 1 << 31),
    "seed": (0, 2**64 - 1),
    "timeout": (1e-3, 1e9),
    "hw_decoder_load": (0, 1),
}
FRACTIONS = {"timeout", "hw_decoder_load"}  # the others count something


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderConfig:
    """How batches are made; what the pictures look like is AugmentSpec's.

    Attributes:
        batch: images of one step over ALL ranks; rank r gets every world-th of them from r on, so
            that another number of ranks makes the same steps. Where it does not divide the split,
            the last two batches share the rest.
        seed: 0..2**64-1, of the order and of all draws.
        rank: of this process among those that share the steps (not of processes that must see the
            same images, such as the two columns of one network).
        world: how many share them.
        device: where the images are delivered, "cpu" or "cuda:N".
        peers: other GPUs of this process whose memory "resident" may fill after that of `device`,
            which reads it over NVLink or the bus; those that it cannot read are left out.
        backend: "planes": from the images that `alexprep planes` stored decoded. "resident": from
            the whole split held decoded in memory: of `device`, then of its `peers`, then of the
            host. "dali", "torch": decode JPEGs with DALI or Pillow. "auto": where planes are
            stored, resident on a GPU that takes them all and planes on a CPU; else DALI if it is
            installed, else torch. "webdataset": DALI or torch, fed by the webdataset library
            instead of by index; a URL is always read so.
        decode: for DALI on a GPU: "mixed" decodes there, "cpu" here; "auto" is "mixed".
        hw_decoder_load: the share of a batch, 0..1, that is decoded by the GPU's JPEG engine if it
            has one, the rest by its other cores; 1 or 0, so that how an image is rounded does not
            depend on its number in the batch, or between them where that is faster.
        threads: that decode; None: all cores where the device is a GPU; on a CPU, whose other
            cores are the network's, a fourth of them, but at least 2.
        readers: threads that read samples ahead of decoding; for a URL, shards open at one time;
            None: as many as `threads`, at most 8.
        prefetch: batches made ahead.
        dtype: "float32", "bfloat16", "float16", or "uint8" (pixels that AugmentSpec crops, resizes
            and mirrors, nothing else).
        channels_last: memory format of the images; their shape is NCHW either way.
        pin_memory: give out page-locked CPU tensors, for the caller's own copies to a GPU.
        order: "global": all samples mixed. "window": `window` shards at a time, in random order,
            for disks slow to seek. "shards": one shard after the other, for streamed storage.
        window: shards that are mixed together.
        check: "size" compares lengths, tar headers, JPEG frames and labels with manifest and index
            as they are read; "sha256" also hashes each shard when it is first used; "auto" is
            "sha256" for splits of at most 1 GiB.
        views: of evaluation: 1 is the centre crop, 10 the corners, centre and their mirrors.
        timeout: seconds without a sample after which a URL counts as dead.
    """

    batch: int = 128
    seed: int = 0
    rank: int = 0
    world: int = 1
    device: str = "cpu"
    peers: tuple[str, ...] = ()
    backend: BackendName = "auto"
    decode: Literal["auto", "cpu", "mixed"] = "auto"
    hw_decoder_load: float = 1.0
    threads: int | None = None
    readers: int | None = None
    prefetch: int = 2
    dtype: Literal["float32", "bfloat16", "float16", "uint8"] = "float32"
    channels_last: bool = False
    pin_memory: bool = False
    order: Order = "global"
    window: int = 16
    check: Check = "auto"
    views: Literal[1, 10] = 1
    timeout: float = 60.0

    def __post_init__(self) -> None:
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            if value is None:
                continue
            if not (least <= value <= most and (name in FRACTIONS or isinstance(value, Integral))):
                raise ValueError(f"LoaderConfig.{name} must be in {least}..{most}, got {value}.")
        if not 0 <= self.rank < self.world:
            raise ValueError(
                f"LoaderConfig.rank must be in 0..world-1, got {self.rank} of {self.world}."
            )
        self._check_devices()
        for name, kind in get_type_hints(LoaderConfig).items():
            choices, value = get_args(kind), getattr(self, name)
            if get_origin(kind) is Literal and value not in choices:
                raise ValueError(f"LoaderConfig.{name} must be one of {choices}, got {value!r}.")

    def _check_devices(self) -> None:
        if not DEVICE.fullmatch(self.device):
            raise ValueError(f"LoaderConfig.device must be 'cpu' or 'cuda:N', got {self.device!r}.")
        if not all(DEVICE.fullmatch(name) and ":" in name for name in self.peers):
            raise ValueError(f"LoaderConfig.peers must be 'cuda:N' each, got {self.peers!r}.")

    @property
    def thread_count(self) -> int:
        """`threads`, or what stands for None."""
        if self.threads is not None:
            return self.threads
        # torchrun's processes of one machine share its cores.
        cores = _cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return default_threads(cores, self.device)

    @property
    def reader_count(self) -> int:
        """`readers`, or what stands for None."""
        return self.readers if self.readers is not None else min(self.thread_count, MOST_READERS)


def default_threads(cores: int, device: str) -> int:
    """Threads that decode, of a process with so many cores whose batches are for `device`."""
    return max(CPU_THREADS, cores if device.startswith("cuda") else cores // CORES_PER_THREAD)


def _cores() -> int:
    """Cores this process may run on; a container may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
