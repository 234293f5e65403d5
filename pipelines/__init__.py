"""Shards on disk in, batches on a device out.

    from pipelines import AugmentSpec, LoaderConfig, open_loader

The names below are imported when they are first used: `pipelines.format` alone needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.augment import AugmentSpec
    from pipelines.errors import DataError
    from pipelines.loader import Loader, LoaderConfig, open_loader

__all__ = ["AugmentSpec", "DataError", "Loader", "LoaderConfig", "open_loader"]

HOMES = {
    "AugmentSpec": "pipelines.augment",
    "DataError": "pipelines.errors",
    "Loader": "pipelines.loader",
    "LoaderConfig": "pipelines.config",
    "open_loader": "pipelines.loader",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
