"""Find out what SOURCE is by looking at what it holds."""

from pathlib import Path

from alexprep.errors import PrepareError
from alexprep.sources.check import check_names, check_splits
from alexprep.sources.content import is_litter
from alexprep.sources.ilsvrc import find_official
from alexprep.sources.listing import (
    WHAT_IS_LOOKED_FOR,
    Source,
    SourceOptions,
    split_of,
    with_findings,
)
from alexprep.sources.tars import kind_of_tar
from alexprep.sources.trees import tree_source, whole_source
from alexprep.sources.wds import find_shards, shard_source

KAGGLE = Path("ILSVRC", "Data", "CLS-LOC")


def find_source(path: Path, options: SourceOptions = SourceOptions()) -> Source:  # noqa: B008 - frozen
    """List every sample of the source at `path`; PrepareError says what was looked for."""
    if not path.exists():
        raise PrepareError(f"{path} does not exist. Give the folder that holds the images.")
    if not path.is_dir():
        raise PrepareError(f"{path} is a file; give the folder it is in. {WHAT_IS_LOOKED_FOR}")
    try:
        source = _look(path, options)
    except OSError as error:
        raise PrepareError(
            f"Cannot read {error.filename or path}: {error.strerror}. See to its permissions or "
            "its disk."
        ) from error
    warnings = [*check_names([wnid for wnid, _ in source.classes], str(path))]
    return with_findings(source, (), [*warnings, *check_splits(source)])


def _look(path: Path, options: SourceOptions) -> Source:
    if find_official(path):
        return tree_source("archives", path, path, options)
    for root in (path, path / "imagenet-object-localization-challenge"):
        if (root / KAGGLE).is_dir():
            return tree_source("kaggle", root, root / KAGGLE, options)
    if tables := find_tables(path):
        # pyarrow is an extra
        from alexprep.sources.rows import parquet_source  # noqa: PLC0415

        return parquet_source(path, tables, options)
    if shards := find_shards(path):
        return shard_source(path, shards, options)
    if archive := _lone_archive(path):
        return whole_source(path, archive, options)
    return tree_source("folder", path, path, options)


def _lone_archive(folder: Path) -> Path | None:
    """A tar of class tars (fall11_whole.tar), the only one in a folder without others."""
    tars = sorted(path for path in folder.glob("*.tar*") if path.is_file())
    tars = [path for path in tars if not is_litter(path.name)]
    return tars[0] if len(tars) == 1 and kind_of_tar(tars[0]) == "classes" else None


def find_tables(folder: Path) -> list[Path]:
    """The parquet files of a data set: in `folder`, in data/, or in folders named after splits.

    PrepareError where there are several data sets (the configurations of Hugging Face).
    """
    for pattern in ("*.parquet", "data/*.parquet"):
        if tables := sorted(path for path in folder.glob(pattern) if path.is_file()):
            return tables
    for pattern in ("*/*.parquet", "*/*/*.parquet"):
        tables = sorted(
            path
            for path in folder.glob(pattern)
            if path.is_file() and split_of(path.parent.name.removeprefix("partial-"))
        )
        if len(parents := sorted({path.parent.parent for path in tables})) > 1:
            raise PrepareError(
                f"{folder} holds {len(parents)} data sets of parquet files. Give one of them: "
                f"{', '.join(map(str, parents[:5]))}."
            )
        if tables:
            return tables
    return []
