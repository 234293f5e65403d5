"""Memory of the process on a CPU: what a step frees, the next step takes again."""

import ctypes
import sys

# Names of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Let glibc keep large freed blocks instead of returning them to the kernel; True if it does.

    Activations are tens of megabytes. By default each is mapped anew every step, and the kernel
    clears its pages one by one: a third of the time of a step of the full network on two cores
    (docs/network.md). The process stays at its largest size until it ends. Call it once, before
    the network is built; elsewhere than on glibc it does nothing.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 * 2**20))
    return all(mallopt(name, value) for name, value in settings)
