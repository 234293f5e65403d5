"""The network of Krizhevsky et al. 2012, its split over two GPUs, and the loop that trains it.

`from alexnet import build` gives the network of a config; the configs are in
alexnet.model.networks.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alexnet.builder import build

__all__ = ["build"]


def __getattr__(name: str) -> Any:
    """Import torch with the first use of `build`: `--help` must not wait 1.4 s for it."""
    if name != "build":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from alexnet.builder import build  # noqa: PLC0415

    return build
