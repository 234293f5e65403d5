"""What a LoaderConfig chooses: who reads the samples, and which backend makes images of them."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pipelines.config import LoaderConfig
from pipelines.cpu import cpu_batches, normalized, pillow_decoded
from pipelines.errors import DataError, hide_secrets
from pipelines.format import Manifest
from pipelines.imagestats import ImageStats
from pipelines.normalize import Normalize, Preprocess
from pipelines.shards import RawBatch, SampleReader, SplitReader


class Source(NamedTuple):
    """A data set, wherever it is.

    root: for messages.
    streamed: whether its shards can only be read sequentially.
    stats: loads the statistics of the train split.
    reader: opens a split by its name.
    """

    root: str
    manifest: Manifest
    streamed: bool
    stats: Callable[[], ImageStats]
    reader: Callable[[str], SampleReader]


def open_source(root: Path | str, config: LoaderConfig) -> Source:
    """Find out what `root` is and read its manifest; DataError if it is no data set."""
    name = str(root)
    # A Path is a folder whatever it is called: one called "pipe:..." must not become a command.
    if _is_url(root):
        return _streamed(name, config, None)
    manifest = Manifest.load(Path(root))
    if config.backend == "webdataset":
        return _streamed(name, config, manifest)
    return Source(
        root=name,
        manifest=manifest,
        streamed=False,
        stats=partial(ImageStats.load, Path(root), manifest),
        reader=partial(_reader_class(config), Path(root), manifest, check=config.check),
    )


def _is_url(root: Path | str) -> bool:
    return isinstance(root, str) and ("://" in root or root.startswith("pipe:"))


def prefer_planes(
    root: Path | str, split: str, config: LoaderConfig, *, resamples: bool = False
) -> LoaderConfig:
    """With backend "planes" or "resident" for "auto" where decoded images are stored for the split.

    A GPU that cannot hold them all, or is to resize them, keeps DALI, which decodes there.
    """
    if config.backend != "auto" or _is_url(root) or find_spec("numba") is None:
        return config
    if not (Path(root) / "planes").is_dir():
        return config
    from pipelines.planestore import has_planes  # noqa: PLC0415 - optional, needs numba

    manifest = Manifest.load(Path(root))
    if not has_planes(Path(root), manifest, split):
        return config
    if config.device == "cpu":
        return replace(config, backend="planes")
    if resamples:
        return config
    from pipelines import resident  # noqa: PLC0415 - optional, needs numba

    samples, devices = manifest.splits[split].samples, resident.devices_of(config)
    fits = torch.cuda.is_available() and find_spec("triton") is not None
    fits = fits and resident.fits_on_devices(samples, manifest.size, devices)
    return replace(config, backend="resident") if fits else config


def _reader_class(config: LoaderConfig) -> Callable[..., SampleReader]:
    if config.backend not in ("planes", "resident"):
        return SplitReader
    if find_spec("numba") is None:
        raise DataError(
            f"LoaderConfig.backend {config.backend!r} needs numba, which is not installed. Install "
            "it with `pip install numba`, or use backend='auto'."
        )
    if config.backend == "planes":
        from pipelines.planestore import PlanesReader  # noqa: PLC0415 - optional, needs numba

        return PlanesReader
    from pipelines import resident  # noqa: PLC0415 - optional, needs numba

    resident.check_resident(torch.device(config.device))
    return partial(resident.open_resident, config=config)


def _streamed(root: str, config: LoaderConfig, manifest: Manifest | None) -> Source:
    from pipelines import remote  # noqa: PLC0415 - only here: webdataset takes 0.4 s to import

    manifest = manifest or remote.manifest_of(root, config.timeout)
    return Source(
        root=hide_secrets(root),
        manifest=manifest,
        streamed=True,
        stats=partial(remote.stats_of, root, manifest, config.timeout),
        reader=partial(
            remote.RemoteReader, root, manifest, streams=config.reader_count, timeout=config.timeout
        ),
    )


# Decoding a crop of 227 pixels takes DALI 380 us, the formula 100. As many threads for both would
# take the cores and their caches from each other.
DECODERS_PER_WRITER = 3
REASONS = {
    "planes": "the images are stored decoded",
    "resident": "the images are held decoded in memory",
    "torch": "as configured",
}


def choose_backend(config: LoaderConfig) -> tuple[LoaderConfig, str]:
    """The config with the backend that is used, and its name and why; DataError if it cannot work.

    The backend is "dali", "torch", "planes" or "resident".
    """
    needs_gpu = config.device.startswith("cuda") or config.pin_memory
    if needs_gpu and not torch.cuda.is_available():
        raise DataError(
            f"LoaderConfig has device={config.device!r} and pin_memory={config.pin_memory}, but "
            f"torch {torch.__version__} sees no GPU. Use device='cpu' without pinned memory, or "
            "see `alexprep doctor`."
        )
    if config.backend in REASONS:
        return config, f"{config.backend}: {REASONS[config.backend]}"
    try:
        import nvidia.dali  # noqa: PLC0415 - optional, and slow to import
    except ImportError as error:
        if config.backend == "dali":
            raise DataError(
                f"DALI cannot be imported ({error}). Install it with `pip install "
                "'alexprep[cuda13]'`, or use LoaderConfig(backend='torch')."
            ) from error
        return replace(config, backend="torch"), f"torch: DALI cannot be imported ({error})"
    reason = "as configured" if config.backend == "dali" else "the fastest that is installed"
    return replace(config, backend="dali"), f"dali {nvidia.dali.__version__}: {reason}"


def on_gpu(config: LoaderConfig) -> bool:
    """Whether the chosen backend makes the images on a GPU; those of others are copied there."""
    return config.device.startswith("cuda") and config.backend in ("dali", "resident")


def backend_stream(
    raw: Iterator[RawBatch],
    reader: SampleReader,
    preprocess: Preprocess,
    config: LoaderConfig,
) -> Generator[tuple[RawBatch, Tensor]]:
    """Images of raw batches by the backend that was chosen; closing ends its threads."""
    dtype: torch.dtype = getattr(torch, preprocess.dtype)
    if config.backend == "planes":
        from pipelines import planestore  # noqa: PLC0415 - optional, needs numba

        normalize = Normalize(preprocess)
        written = planestore.planes_written(raw, reader.manifest.size, preprocess, normalize)
        memory = planestore.written_type(preprocess)
        return cpu_batches(written, normalize, dtype, threads=config.thread_count, memory=memory)
    if config.backend == "torch":
        decoded = pillow_decoded(raw, reader, preprocess)
        normalize = Normalize(preprocess, mean_last=True)
        written = normalized(decoded, normalize)
        return cpu_batches(written, normalize, dtype, threads=config.thread_count)
    from pipelines import dali  # noqa: PLC0415 - optional, slow to import

    if on_gpu(config):
        return dali.dali_batches(raw, reader, preprocess, config)
    decoded = dali.dali_decoded(raw, reader, preprocess, config)
    normalize = Normalize(preprocess)
    written = normalized(decoded, normalize)
    threads = config.thread_count
    if preprocess.views == 1 and not preprocess.regions:
        threads = -(-threads // DECODERS_PER_WRITER)
    return cpu_batches(written, normalize, dtype, threads=threads)
