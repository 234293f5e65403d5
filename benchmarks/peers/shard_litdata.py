# pyright: basic, reportMissingImports=false
"""LitData's optimize with as many workers.

It empties the folders `data` and `chunks` of the temporary folder when it begins, whatever they
hold, unless it is told of others; and it is given numbers, not paths, so that it minds no file.
"""

import os
from functools import partial
from pathlib import Path

from litdata import optimize
from photographs import MEGABYTES_OF_A_SHARD, arguments, files, labels, with_pillow


def sample(number: int, paths: list[Path], numbers: dict[str, int]) -> dict[str, bytes | int]:
    """One image as LitData stores it."""
    path = paths[number]
    return {"image": with_pillow(path), "label": numbers[path.parent.name]}


if __name__ == "__main__":
    options = arguments(__doc__ or "")
    scratch = options.out.with_name(f"{options.out.name}-scratch").absolute()
    os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = str(scratch / "chunks")
    os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = str(scratch / "data")
    paths = files(options.source)
    optimize(
        fn=partial(sample, paths=paths, numbers=labels(options.source)),
        inputs=list(range(len(paths))),
        output_dir=str(options.out),
        num_workers=options.workers,
        chunk_bytes=f"{MEGABYTES_OF_A_SHARD}MB",
        verbose=False,
    )
