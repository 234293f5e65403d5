"""report: one HTML page about a run or a data set, to look at before reading anything.

    RUN/report.html     curves, kernels, answers, neighbours, confusion, speed, recipe
    DATASET/report.html classes, sources, fixes, colours, images with and without augmentation

The page is one file that opens from disk. It appears whole or not at all. In a data set it lies
beside the manifest, where the libraries that read the shards do not look.
"""

import os
from pathlib import Path
from typing import Literal

from alexprep.errors import PrepareError
from pipelines.files import check_writable

NAME = "report.html"
# Validation images a network is asked about: all of most data sets, and of ILSVRC as many as make
# the standard error of top-1 two thirds of a point and take a CPU minutes, not hours.
IMAGES = 5_000
MARKS: dict[Literal["run", "dataset"], tuple[str, ...]] = {
    "dataset": ("manifest.json", ".alexprep"),
    "run": ("config.json", "metrics.jsonl", "checkpoints"),
}


def report(
    path: Path,
    out: Path | None = None,
    *,
    data: Path | None = None,
    images: int = IMAGES,
    device: str = "cpu",
) -> Path:
    """Write the page about the run or data set in the folder `path`; the path of the page.

    Args:
        path: what it is about.
        out: where the page goes. None: report.html in `path`.
        data: where the data set of a run is now. None: where it was trained from; a page without
            pictures is written if it is gone.
        images: validation images, at most, that the network of a run is asked about.
        device: that it is asked on.

    Raises:
        PrepareError: `path` is neither, has no checkpoint yet, or the page cannot be written.
        DataError: the data set is being written, damaged or of another version.
        RunError: the checkpoint is damaged or of another data set than `data`.
        ValueError: no images.
    """
    if images < 1:
        raise ValueError(f"report wants at least 1 image, got {images}.")
    kind = kind_of(path)
    out = out or path / NAME
    _check_writable(out)
    # Heavy imports from here on: wrong usage is answered before they are paid for.
    if kind == "dataset":
        from alexprep.report.dataset import dataset_page  # noqa: PLC0415

        text = dataset_page(path)
    else:
        from alexprep.report.run import run_page  # noqa: PLC0415

        text = run_page(path, data=data, images=images, device=device)
    _write(out, text)
    return out


def kind_of(path: Path) -> Literal["run", "dataset"]:
    """What a folder holds; PrepareError for one that is neither, naming what lies in it."""
    if not path.is_dir():
        raise PrepareError(f"{path} is not a folder. Name the folder of a run or of a data set.")
    for kind, names in MARKS.items():
        if any((path / name).exists() for name in names):
            return kind
    inside = [child for child in sorted(path.iterdir()) if child.is_dir() and _is_one(child)]
    hint = f" Inside it, {', '.join(map(str, inside[:4]))} can be reported on." if inside else ""
    raise PrepareError(
        f"{path} is neither a run (config.json, checkpoints) nor a data set (manifest.json).{hint}"
    )


def _is_one(path: Path) -> bool:
    return any((path / name).exists() for names in MARKS.values() for name in names)


def _check_writable(out: Path) -> None:
    """Before minutes of work, not after them."""
    if out.is_dir():
        raise PrepareError(f"{out} is a folder. Name a file with --out, as {out / NAME}.")
    try:
        check_writable(out)
    except OSError as error:
        raise _refusal(out, error) from error


def _write(out: Path, text: str) -> None:
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, "utf-8")
        partial.replace(out)
    except OSError as error:
        raise _refusal(out, error) from error
    finally:
        partial.unlink(missing_ok=True)


def _refusal(out: Path, error: OSError) -> PrepareError:
    return PrepareError(
        f"{out} cannot be written ({error.strerror or error}). Name another file with --out."
    )
