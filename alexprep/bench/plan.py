"""Planning at the size of ILSVRC, from the tar headers of an archive whose images are empty."""

import sys
import time
from pathlib import Path

from alexprep.dataset.plan import ShardConfig, make_plan
from alexprep.machine import peak_megabytes
from alexprep.sources.ilsvrc import TRAIN_TAR
from alexprep.sources.synsets import ilsvrc2012
from alexprep.sources.tars import archive_source
from alexprep.tar import build_header
from pipelines.format import BLOCK

ILSVRC_TRAIN = 1_281_167
END = bytes(2 * BLOCK)


def write_headers(folder: Path, images: int = ILSVRC_TRAIN) -> None:
    """ILSVRC2012_img_train.tar with `images` names of ILSVRC's kind and one block of data each."""
    synsets = ilsvrc2012()
    with (folder / TRAIN_TAR).open("wb") as tar:
        for label, synset in enumerate(synsets):
            count = images * (label + 1) // len(synsets) - images * label // len(synsets)
            inner = b"".join(
                build_header(f"{synset.wnid}_{number}.JPEG".encode(), BLOCK) + bytes(BLOCK)
                for number in range(count)
            )
            tar.write(build_header(f"{synset.wnid}.tar".encode(), len(inner + END)) + inner + END)
        tar.write(END)


def plan_everything(folder: Path) -> tuple[float, float, int]:
    """(seconds, most megabytes this process held, images) of listing, planning and every task."""
    began = time.perf_counter()
    plan = make_plan(archive_source(folder), ShardConfig())
    images = sum(len(task.samples.key) for task in plan.tasks("out", {}, skip=False))
    plan.identity()
    seconds = time.perf_counter() - began
    return seconds, peak_megabytes(), images


if __name__ == "__main__":
    sys.stdout.write("{} {} {}\n".format(*plan_everything(Path(sys.argv[1]))))
