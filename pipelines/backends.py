"""Which backend works here, and its stream of images."""

from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from pipelines.config import LoaderConfig
from pipelines.cpu import cpu_batches, pillow_decoded
from pipelines.errors import DataError
from pipelines.normalize import Normalize, Preprocess
from pipelines.plan import Plan
from pipelines.shards import RawBatch, SampleReader


def choose_backend(config: LoaderConfig, means: str = "") -> str:
    """Name of the backend and the reason, as one phrase; DataError if it cannot work here."""
    wants_gpu = config.device.startswith("cuda") or config.pin_memory
    if wants_gpu and not torch.cuda.is_available():
        raise DataError(
            f"LoaderConfig has device={config.device!r} and pin_memory={config.pin_memory}, but "
            f"torch {torch.__version__} sees no GPU. Use device='cpu' without pinned memory, or "
            "see `alexprep doctor`."
        )
    if config.backend == "planes":
        return "planes: the images are stored decoded"
    if config.backend == "resident":
        return "resident: the images are held decoded in memory"
    if config.backend == "torch":
        return f"{means}torch: asked for"
    try:
        import nvidia.dali  # noqa: PLC0415 - optional, and slow to import
    except ImportError as error:
        if config.backend == "dali":
            raise DataError(
                f"DALI cannot be imported ({error}). Install nvidia-dali-cuda130, or use "
                "LoaderConfig(backend='torch')."
            ) from error
        return f"{means}torch: DALI cannot be imported ({error})"
    why = "asked for" if config.backend == "dali" else "the fastest that is installed"
    return f"{means}dali {nvidia.dali.__version__}: {why}"


def on_gpu(config: LoaderConfig) -> bool:
    """Whether the backend makes the images on a GPU; those of others are only copied there."""
    return config.device.startswith("cuda") and choose_backend(config).startswith(
        ("dali", "resident")
    )


def backend_stream(
    raw: Iterator[RawBatch],
    reader: SampleReader,
    preprocess: Preprocess,
    plan: Plan,
    config: LoaderConfig,
) -> Generator[tuple[RawBatch, Tensor]]:
    """Images of raw batches by the backend of `choose_backend`; closing ends its threads."""
    dtype: torch.dtype = getattr(torch, preprocess.dtype)
    if config.backend == "planes":
        from pipelines.planestore import planes_decoded  # noqa: PLC0415 - optional, needs numba

        decoded = planes_decoded(raw, reader, preprocess)
        return cpu_batches(decoded, Normalize(preprocess), dtype, threads=config.threads)
    if choose_backend(config).startswith("torch"):
        decoded = pillow_decoded(raw, reader, preprocess)
        normalize = Normalize(preprocess, mean_last=True)
        return cpu_batches(decoded, normalize, dtype, threads=config.threads)
    from pipelines import dali  # noqa: PLC0415 - optional, slow to import

    options = dali.DaliOptions(
        device=torch.device(config.device),
        threads=config.threads,
        batch=-(-plan.batch // plan.world),
        prefetch=config.prefetch,
        decode=config.decode,
    )
    if on_gpu(config):
        return dali.dali_batches(raw, reader, preprocess, options)
    decoded = dali.dali_decoded(raw, reader, preprocess, options)
    return cpu_batches(decoded, Normalize(preprocess), dtype, threads=config.threads)
