# pyright: basic, reportMissingImports=false
"""A tar of the JPEG files of 256 pixels, and TurboLoader's file of their decoded pixels."""

import tarfile

from photographs import SIZE, arguments, files
from turboloader import preprocess_to_tbl

if __name__ == "__main__":
    options = arguments(__doc__ or "")
    options.out.mkdir()
    with tarfile.open(options.out / "train.tar", "w") as tar:
        for path in files(options.source):
            tar.add(path, path.name)
    tar, stored = (str(options.out / f"train.{kind}") for kind in ("tar", "tbl"))
    preprocess_to_tbl(tar, stored, image_size=SIZE, num_workers=options.workers)
