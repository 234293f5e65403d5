"""Find out what SOURCE is by looking at what it holds."""

from pathlib import Path

from alexprep.errors import PrepareError
from alexprep.sources.files import folder_source, kaggle_source
from alexprep.sources.ilsvrc import TRAIN_TAR, VALIDATION_TAR
from alexprep.sources.listing import WHAT_IS_LOOKED_FOR, Source
from alexprep.sources.tars import archive_source

KAGGLE = Path("ILSVRC", "Data", "CLS-LOC")


def find_source(path: Path) -> Source:
    """List every sample of the source at `path`; PrepareError says what was looked for."""
    try:
        return _look(path)
    except OSError as error:
        raise PrepareError(
            f"Cannot read {error.filename or path}: {error.strerror}. See to its permissions or "
            "its disk."
        ) from error


def _look(path: Path) -> Source:
    if not path.exists():
        raise PrepareError(f"{path} does not exist. Give the folder that holds the images.")
    if not path.is_dir():
        raise PrepareError(f"{path} is a file; give the folder it is in. {WHAT_IS_LOOKED_FOR}")
    if any((path / name).is_file() for name in (TRAIN_TAR, VALIDATION_TAR)):
        return archive_source(path)
    for root in (path, path / "imagenet-object-localization-challenge"):
        if (root / KAGGLE).is_dir():
            return kaggle_source(root, root / KAGGLE)
    if tables := sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet")):
        # pyarrow is an extra
        from alexprep.sources.rows import parquet_source  # noqa: PLC0415

        return parquet_source(path, tables)
    return folder_source(path)
