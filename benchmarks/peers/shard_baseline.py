# pyright: basic, reportMissingImports=false
"""A bare loop over images in memory that throws its JPEGs away, run with alexprep's interpreter.

The images are read once; the 500 of the sample are gone through as often as the source has links.
"""

import multiprocessing
from functools import cache
from pathlib import Path

from photographs import arguments, files

from alexprep.bench.shard_bench import with_simplejpeg


@cache
def in_memory(path: Path) -> bytes:
    """The original's bytes."""
    return path.read_bytes()


def encode(path: Path) -> int:
    """Bytes of an original's JPEG."""
    return len(with_simplejpeg(in_memory(path)))


if __name__ == "__main__":
    options = arguments(__doc__ or "")
    originals = [path.resolve() for path in files(options.source)]
    with multiprocessing.get_context("fork").Pool(options.workers) as pool:
        sum(pool.imap(encode, originals, 16))
    options.out.mkdir()
