"""Find out what SOURCE is by looking at what it holds."""

import os
import re
from pathlib import Path

from alexprep.errors import PrepareError
from alexprep.sources.check import check_names, check_splits
from alexprep.sources.content import is_litter
from alexprep.sources.files import folder_names
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
MOST_FOLDERS = 50


def find_source(path: Path, options: SourceOptions = SourceOptions()) -> Source:  # noqa: B008 - frozen
    """List every sample of the source at `path`; PrepareError says what was looked for."""
    if not path.exists():
        raise PrepareError(f"{path} does not exist. Give the folder that holds the images.")
    if not path.is_dir():
        raise PrepareError(f"{path} is a file; give the folder it is in. {WHAT_IS_LOOKED_FOR}")
    try:
        next(path.iterdir(), None)  # it names the folder, not a file that was looked for in it
        source = _look(path, options)
    except OSError as error:
        raise PrepareError(
            f"Cannot read {error.filename or path}: {error.strerror}. Check its permissions and "
            "its disk."
        ) from error
    names = [wnid for wnid, _ in source.classes]
    warnings = [*check_names(names, str(path), ordered=options.classes is not None)]
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
    if archive := _archive_of_classes(path):
        return whole_source(path, archive, options)
    _refuse_official_below(path)
    return tree_source("folder", path, path, options)


def _archive_of_classes(folder: Path) -> Path | None:
    """The tar of class tars in a folder (fall11_whole.tar); PrepareError if there are several."""
    tars = sorted(path for path in folder.glob("*.tar*") if path.is_file())
    tars = [path for path in tars if not is_litter(path.name)]
    if not tars or kind_of_tar(tars[0]) != "classes":
        return None
    if len(tars) > 1:
        raise PrepareError(
            f"{folder} has {', '.join(path.name for path in tars[:4])}, of which {tars[0].name} "
            "holds a tar a class. Keep one such archive in the folder, or unpack each into a "
            "folder of its split, train/ and val/."
        )
    return tars[0]


def _refuse_official_below(folder: Path) -> None:
    """PrepareError where the archives of ILSVRC lie in folders of this one."""
    below = [folder / name for name in folder_names(folder)[:MOST_FOLDERS]]
    # One that cannot be read is reported, or left out, as the files of a class are.
    below = [path for path in below if os.access(path, os.R_OK | os.X_OK)]
    if holders := [path for path in below if find_official(path) and not folder_names(path)]:
        advice = (
            f"SOURCE is probably {holders[0]}."
            if len(holders) == 1
            else "Put the archives into one folder, with the devkit."
        )
        names = [path.name for holder in holders for path in find_official(holder).values()]
        raise PrepareError(f"{folder} has {', '.join(names)} in folders. {advice}")


def find_tables(folder: Path) -> list[Path]:
    """The parquet files of a data set: in `folder`, in data/, or in folders named after splits.

    PrepareError where there are several data sets (the configurations of Hugging Face).
    """
    for pattern in ("*.parquet", "data/*.parquet"):
        if tables := sorted(path for path in folder.glob(pattern) if path.is_file()):
            return tables
    for pattern in ("*/*.parquet", "*/*/*.parquet"):
        # default/train/0000.parquet of refs/convert, or plain_text/train-00000-of-00001.parquet
        roots = {
            path: path.parent.parent if in_split else path.parent
            for path in folder.glob(pattern)
            if path.is_file()
            and (
                (in_split := split_of(path.parent.name.removeprefix("partial-")))
                or split_of(re.split(r"[-_.]", path.name)[0])
            )
        }
        tables = sorted(roots)
        if len(parents := sorted(set(roots.values()))) > 1:
            raise PrepareError(
                f"{folder} holds {len(parents)} data sets of parquet files. Give one of them: "
                f"{', '.join(map(str, parents[:5]))}."
            )
        if tables:
            return tables
    return []
