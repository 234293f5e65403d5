# pyright: basic, reportMissingImports=false
"""MosaicML streaming's MDSWriter, fed by a pool of processes: by itself it writes in one."""

from multiprocessing import get_context

import torchvision_ops  # noqa: F401 - before streaming
from photographs import CODECS, MEGABYTES_OF_A_SHARD, arguments, files, labels
from streaming import MDSWriter

if __name__ == "__main__":
    options = arguments(__doc__ or "")
    paths, numbers = files(options.source), labels(options.source)
    # Its threads must not be there yet when the pool forks.
    with (
        get_context("fork").Pool(options.workers) as pool,
        MDSWriter(
            out=str(options.out),
            columns={"image": "bytes", "label": "int"},
            size_limit=MEGABYTES_OF_A_SHARD * 1_000_000,
        ) as writer,
    ):
        for path, jpg in zip(paths, pool.imap(CODECS[options.codec], paths, 16), strict=True):
            writer.write({"image": jpg, "label": numbers[path.parent.name]})
