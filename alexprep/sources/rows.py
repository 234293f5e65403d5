# pyright: basic
"""Parquet files of the Hugging Face layout: image {bytes, path}, label (extra `parquet`)."""

import json
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from alexprep.errors import PrepareError
from alexprep.sources.content import HEAD_BYTES, objection, stem
from alexprep.sources.items import Items, Places, Unreadable
from alexprep.sources.listing import (
    TRAIN,
    Classes,
    Source,
    SourceOptions,
    Table,
    are_named,
    integer_classes,
    label_space,
    list_named,
    list_numbered,
    make_source,
    split_of,
    with_findings,
)
from alexprep.sources.synsets import named

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise PrepareError(
        "Reading parquet files needs pyarrow, which is not installed. Install it with "
        "`pip install 'alexprep[parquet]'`."
    ) from error


# What pyarrow raises for a damaged table; UnicodeDecodeError is a ValueError.
DAMAGE = (pa.ArrowException, OSError, ValueError, LookupError, OverflowError, MemoryError)


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Rows(Items):
    """Rows of parquet files: a container is a file, `row` counts within its row group `group`."""

    # A row costs reading its whole row group.
    sequential: ClassVar = "always"
    group: NDArray[np.int64]
    row: NDArray[np.int64]
    column: str = "image"

    @property
    def fingerprint(self) -> NDArray[np.int64]:
        return self.row

    def neighbours(self) -> Iterator[Places]:
        order = np.lexsort((self.row, self.group, self.container))
        group = np.stack([self.container[order], self.group[order]])
        yield from np.split(order, np.flatnonzero((group[:, 1:] != group[:, :-1]).any(axis=0)) + 1)

    def read(self, limit: int | None = None) -> Generator[bytes | Unreadable]:
        """The content of each row, in order, keeping the row group of the last one in memory."""
        current, images = (-1, -1), None
        for index in range(len(self)):
            container, group = int(self.container[index]), int(self.group[index])
            if (container, group) != current or images is None:
                images = _read_images(Path(self.containers[container]), group, self.column)
                current = (container, group)
            try:
                data: bytes = images[int(self.row[index])].as_py() or b""
            except DAMAGE as error:
                raise _damaged(Path(self.containers[container]), error) from None
            yield data if limit is None else data[:limit]


def _read_images(path: Path, group: int, column: str) -> Any:
    with _open(path) as table:
        try:
            nested = pa.types.is_struct(table.schema_arrow.field(column).type)
            name = f"{column}.bytes" if nested else column
            images = table.read_row_group(group, columns=[name]).column(column).combine_chunks()
            return images.field("bytes") if nested else images
        except DAMAGE as error:
            raise _damaged(path, error) from None


def parquet_source(folder: Path, tables: list[Path], options: SourceOptions) -> Source:
    """The tables in `folder`, which are named after their split or lie in a folder that is.

    Integer labels are those in the files, in the order of their class list, which for the 1000
    classes of ILSVRC is that of the wnids. Text labels are classes, labelled in their order. Tables
    of a test split without labels are left out.
    """
    by_split: dict[str, list[Path]] = {}
    for table in tables:
        by_split.setdefault(_split_of_table(table), []).append(table)
    columns = options.image_column or "image", options.label_column or "label"
    listed = {split: _list_tables(paths, *columns) for split, paths in by_split.items()}
    listed = {split: table for split, table in listed.items() if not table.is_unlabelled}
    warnings: list[str] = []
    if are_named(listed, folder):
        listings = list_named(listed)
        classes = named(label_space(listings, options.classes), folder)
    else:
        classes = integer_classes(folder, _schema_names(tables[0], columns[1]), listed, warnings)
        listed = {split: _with_original_names(rows, classes) for split, rows in listed.items()}
        listings, classes = list_numbered(listed, classes, options.classes)
    return with_findings(make_source("parquet", folder, classes, listings), (), warnings)


def _split_of_table(path: Path) -> str:
    # refs/convert/parquet of the Hub calls a split that is cut off partial-train
    word = re.split(r"[-_.]", path.name)[0]
    return split_of(word) or split_of(path.parent.name.removeprefix("partial-")) or TRAIN


def _list_tables(paths: list[Path], image: str, label: str) -> Table:
    """Only names and labels are read here, not the images."""
    labels: list[Any] = []
    names: list[bytes] = []
    containers, groups, rows = [], [], []
    for container, path in enumerate(paths):
        with _open(path) as table:
            image_type = _check_columns(path, table.schema_arrow, image, label)
            for group in range(table.num_row_groups):
                try:
                    # The path within the struct by its full name: the column of bytes next to it,
                    # which is nearly the whole table, stays on the disk.
                    columns = [*([f"{image}.path"] if "path" in image_type else []), label]
                    read = table.read_row_group(group, columns=columns)
                    count = len(read)
                    names += _names(path, group, count, read.column(image) if columns[1:] else None)
                    labels.append(_labels(path, read.column(label)))
                except DAMAGE as error:
                    raise _damaged(path, error) from None
                containers.append(np.full(count, container, np.int32))
                groups.append(np.full(count, group, np.int64))
                rows.append(np.arange(count, dtype=np.int64))
    if not names:
        raise PrepareError(f"{paths[0]} has no rows. Download the tables again.")
    items = Rows(
        containers=tuple(str(path) for path in paths),
        container=np.concatenate(containers),
        name=np.array(names, dtype="S"),
        group=np.concatenate(groups),
        row=np.concatenate(rows),
        column=image,
    )
    kinds = {type(some) for some in labels}
    if len(kinds) > 1:
        raise PrepareError(f"{paths[0].parent} has numbers and text as labels of one split.")
    joined = [*chain(*labels)] if kinds == {list} else np.concatenate(labels)
    return Table(items, joined, paths[0].parent)


def _names(path: Path, group: int, count: int, images: Any) -> list[bytes]:
    named = [None] * count if images is None else images.combine_chunks().field("path").to_pylist()
    return [
        (name or f"{path.stem}_{group}_{row}").encode("utf-8", "surrogateescape")
        for row, name in enumerate(named)
    ]


def _labels(path: Path, column: Any) -> Any:
    """Labels of a row group: int32, or a list of texts."""
    if column.null_count:
        raise PrepareError(f"{path} has rows without a label. Remove them, or give them one.")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if _is_text(column.type):
        return column.to_pylist()
    labels = column.to_numpy()
    if len(labels) and not -1 <= labels.min() <= labels.max() < 2**31:
        raise PrepareError(f"{path} has labels from {labels.min()} to {labels.max()}.")
    return labels.astype(np.int32)


def _is_text(kind: Any) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _open(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            if (reason := objection(file.read(HEAD_BYTES))) is not None and "LFS" in reason:
                raise PrepareError(f"{path} {reason}.")
        return pq.ParquetFile(path)
    except DAMAGE as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> PrepareError:
    reason = " ".join(str(error).split())
    return PrepareError(f"{path} is not a complete Parquet file ({reason}). Download it again.")


def _check_columns(path: Path, schema: Any, image: str, label: str) -> set[str]:
    """The fields of the image column, none for plain bytes; PrepareError for what is not read."""
    types = {field.name: field.type for field in schema}
    if image not in types or label not in types:
        raise PrepareError(
            f"{path} has the columns {', '.join(types)}; expected image {{bytes, path}} and label, "
            "as Hugging Face's image sets have them. Name others with --image-column and "
            "--label-column."
        )
    kind = types[image]
    fields = {field.name for field in kind} if pa.types.is_struct(kind) else set[str]()
    if "bytes" not in fields and not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise PrepareError(
            f"{path}: the column {image} holds {kind}, not images. Expected {{bytes, path}} or "
            "bytes. Name another with --image-column."
        )
    value = types[label].value_type if pa.types.is_dictionary(types[label]) else types[label]
    if not (_is_text(value) or pa.types.is_integer(value)):
        raise PrepareError(
            f"{path}: the column {label} holds {types[label]}; labels are integers or text. Name "
            "another with --label-column."
        )
    return fields


def _schema_names(table: Path, column: str) -> list[str]:
    """The class list that Hugging Face puts into the schema, in label order; [] without one."""
    try:
        with _open(table) as opened:
            metadata: dict[bytes, bytes] = opened.schema_arrow.metadata or {}
        features = (
            json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        )
        names = features.get(column, {}).get("names") or []
        if isinstance(names, dict):
            names = [names[str(number)] for number in range(len(names))]
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a name is no text")
    except (*DAMAGE, AttributeError, TypeError, RecursionError) as error:
        raise PrepareError(
            f"{table} has a class list that cannot be read ({error!r}). Download it again."
        ) from None
    return [str(name) for name in names]


def _with_original_names(table: Table, classes: Classes) -> Table:
    """Names without the wnid that Hugging Face puts behind ILSVRC's (n01440764_10026_n01440764)."""
    endings = [f"_{wnid}".encode() for wnid, _ in classes]
    before: list[bytes] = table.items.name.tolist()
    labels: list[int] = np.asarray(table.labels).tolist()
    names: list[bytes] = []
    for name, label in zip(before, labels, strict=True):
        folder, slash, base = name.rpartition(b"/")
        plain = stem(base)
        names.append(folder + slash + plain.removesuffix(endings[label]) + base[len(plain) :])
    if len({*zip(labels, names, strict=True)}) < len({*zip(labels, before, strict=True)}):
        return table  # they end in their label by chance, and would no longer differ
    return table._replace(items=replace(table.items, name=np.array(names, "S")))
