"""report: one HTML page about a run or a data set.

    RUN/report.html      learning curves, kernels, predictions, neighbours, confusion, throughput
    DATASET/report.html  classes, source images, fixes, colour statistics, augmentation

`run_summary`, `dataset_summary` and `split_predictions` hold the numbers, `figures` and `pictures`
draw them, `page` and `templates` put them into HTML.
"""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from alexprep.errors import OptionError, PrepareError
from pipelines.atomic import check_writable, write_whole

NAME = "report.html"
# All validation images of most data sets. Of ILSVRC as many as bring the standard error of top-1
# down to two thirds of a point, in minutes on a CPU rather than hours.
IMAGES = 5_000
Kind = Literal["run", "dataset"]
MARKERS: dict[Kind, tuple[str, ...]] = {
    "dataset": ("manifest.json", ".alexprep"),
    "run": ("config.json", "metrics.jsonl", "checkpoints"),
}


def write_report(
    path: Path,
    out: Path | None = None,
    *,
    data: Path | None = None,
    images: int = IMAGES,
    device: str = "cpu",
) -> Path:
    """Write the report of the run or data set in the folder `path`; returns the file's path.

    Args:
        path: folder of a run or of a data set.
        out: file to write. None: report.html in `path`.
        data: data set of a run. None: the path it was trained from; if nothing is there, the
            report is written without pictures.
        images: maximum number of validation images to predict.
        device: device for the predictions.

    Raises:
        PrepareError: `path` is neither, has no checkpoint yet, or `out` cannot be written.
        DataError: the data set is unfinished, damaged or of another version.
        RunError: the checkpoint is damaged or was trained on another data set than `data`.
        OptionError: `images` is less than 1, or `device` no word for one.
    """
    if images < 1:
        raise OptionError(f"report needs at least 1 image, got {images}.")
    kind = folder_kind(path)
    out = out or path / NAME
    if out.is_dir():
        raise PrepareError(f"{out} is a folder. Name a file with --out, such as {out / NAME}.")
    with _writing(out):
        check_writable(out)
    # Torch is imported only here, so that wrong usage is reported at once.
    from alexprep.report import page  # noqa: PLC0415

    if kind == "dataset":
        html = page.dataset_page(path)
    else:
        html = page.run_page(path, data=data, images=images, device=device)
    with _writing(out):
        # File and class names may hold surrogates, which UTF-8 cannot encode.
        write_whole(out, html.encode("utf-8", "replace"))
    return out


def folder_kind(path: Path) -> Kind:
    """What a folder holds; PrepareError, with its reportable subfolders, if it is neither."""
    if not path.is_dir():
        raise PrepareError(f"{path} is not a folder. Name the folder of a run or of a data set.")
    kind = _kind(path)
    if kind:
        return kind
    children = [str(child) for child in sorted(path.iterdir()) if child.is_dir() and _kind(child)]
    hint = f" Did you mean {' or '.join(children[:4])}?" if children else ""
    raise PrepareError(
        f"{path} is neither a run (config.json, checkpoints) nor a data set (manifest.json).{hint}"
    )


def _kind(path: Path) -> Kind | None:
    for kind, names in MARKERS.items():
        if any((path / name).exists() for name in names):
            return kind
    return None


@contextmanager
def _writing(out: Path) -> Generator[None]:
    """Say what to do where a report cannot be written."""
    try:
        yield
    except OSError as error:
        raise PrepareError(
            f"{out} cannot be written ({error.strerror or error}). Name another file with --out."
        ) from error
