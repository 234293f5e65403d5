# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false
"""The usual script: a pool of processes makes the JPEGs, webdataset's ShardWriter writes them."""

import json
from contextlib import nullcontext
from multiprocessing import get_context

from photographs import CODECS, MEGABYTES_OF_A_SHARD, arguments, files, labels
from webdataset import ShardWriter

if __name__ == "__main__":
    options = arguments(__doc__ or "")
    options.out.mkdir()
    paths, numbers, encode = files(options.source), labels(options.source), CODECS[options.codec]
    pooled = options.workers > 1
    most = MEGABYTES_OF_A_SHARD * 1_000_000
    with (
        get_context("fork").Pool(options.workers) if pooled else nullcontext() as pool,
        ShardWriter(f"{options.out}/%06d.tar", maxsize=most, verbose=0) as tar,
    ):
        images = pool.imap(encode, paths, 16) if pool else map(encode, paths)
        for path, jpg in zip(paths, images, strict=True):
            wnid = path.parent.name
            metadata = json.dumps({"wnid": wnid}).encode()
            label = str(numbers[wnid]).encode()
            tar.write({"__key__": path.stem, "jpg": jpg, "cls": label, "json": metadata})
