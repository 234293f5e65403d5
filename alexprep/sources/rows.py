# pyright: basic
"""Parquet files of the Hugging Face layout: image {bytes, path}, label (extra `parquet`)."""

import json
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from alexprep.errors import PrepareError
from alexprep.sources.items import Items, Places
from alexprep.sources.listing import SPLIT_FOLDERS, TRAIN, Listing, Source, make_source
from alexprep.sources.synsets import ilsvrc2012

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise PrepareError(
        "Reading parquet files needs pyarrow, which is not installed. Install it with "
        "`pip install 'alexprep[parquet]'`."
    ) from error


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Rows(Items):
    """Rows of parquet files: a container is a file, `row` counts within its row group `group`."""

    # A row costs reading its whole row group.
    sequential: ClassVar = "always"
    group: NDArray[np.int64]
    row: NDArray[np.int64]

    @property
    def fingerprint(self) -> NDArray[np.int64]:
        return self.row

    def neighbours(self) -> Iterator[Places]:
        order = np.lexsort((self.row, self.group, self.container))
        group = np.stack([self.container[order], self.group[order]])
        yield from np.split(order, np.flatnonzero((group[:, 1:] != group[:, :-1]).any(axis=0)) + 1)

    def read(self) -> Generator[bytes]:
        """The content of each row, in order, keeping the row group of the last one in memory."""
        current, column = (-1, -1), None
        for index in range(len(self)):
            container, group = int(self.container[index]), int(self.group[index])
            if (container, group) != current or column is None:
                with _open(Path(self.containers[container])) as table:
                    images = table.read_row_group(group, columns=["image.bytes"])
                column = images.column("image").combine_chunks().field("bytes")
                current = (container, group)
            yield column[int(self.row[index])].as_py() or b""


def parquet_source(folder: Path, tables: list[Path]) -> Source:
    """The tables in `folder`, whose names begin with their split (train-00000-of-00294.parquet).

    Labels are those in the files, in the order of their class list, which for the 1000 classes of
    ILSVRC is that of the wnids. Tables of a test split without labels are left out.
    """
    by_split: dict[str, list[Path]] = {}
    for table in tables:
        word = re.split(r"[-_.]", table.name)[0].lower()
        by_split.setdefault(SPLIT_FOLDERS.get(word, TRAIN), []).append(table)
    found: dict[str, Listing] = {}
    for split, paths in by_split.items():
        listed = _listing(paths)
        if not (len(listed.label) and (listed.label == -1).all()):
            found[split] = listed
    highest = max((int(there.label.max()) for there in found.values()), default=-1)
    lowest = min((int(there.label.min()) for there in found.values()), default=0)
    classes = _classes(tables[0], highest)
    if lowest < 0 or highest >= len(classes):
        raise PrepareError(
            f"{folder} has labels from {lowest} to {highest} for {len(classes)} classes. "
            "Labels must be 0..classes - 1."
        )
    return make_source("parquet", folder, classes, _original_names(found, classes))


def _listing(paths: list[Path]) -> Listing:
    """Only names and labels are read here, not the images."""
    labels, names, containers, groups, rows = [], [], [], [], []
    for container, path in enumerate(paths):
        with _open(path) as table:
            for group in range(table.num_row_groups):
                read = table.read_row_group(group, columns=["image.path", "label"])
                count = len(read)
                named = read.column("image").combine_chunks().field("path").to_pylist()
                names += [
                    (name or f"{path.stem}_{group}_{row}").encode()
                    for row, name in enumerate(named)
                ]
                labels.append(_labels(path, read))
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
    )
    return Listing(np.concatenate(labels), items)


def _labels(path: Path, read: Any) -> Any:
    column = read.column("label")
    if column.null_count:
        raise PrepareError(f"{path} has rows without a label. Remove them, or give them one.")
    return column.to_numpy().astype(np.int32)


def _open(path: Path) -> Any:
    try:
        table = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise PrepareError(
            f"{path} is no whole parquet file ({error}). Download it again."
        ) from None
    image = table.schema_arrow.field("image").type if "image" in table.schema_arrow.names else None
    fields = {field.name for field in image} if image and pa.types.is_struct(image) else set()
    if not {"bytes", "path"} <= fields or "label" not in table.schema_arrow.names:
        table.close()
        raise PrepareError(
            f"{path} has the columns {', '.join(table.schema_arrow.names)}; expected image "
            "{bytes, path} and label, as Hugging Face's image sets have them."
        )
    return table


def _classes(table: Path, highest: int) -> tuple[tuple[str, str], ...]:
    """(wnid, names) in label order, from the class list that Hugging Face puts into the schema."""
    with _open(table) as opened:
        about = json.loads((opened.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
    label = about.get("info", {}).get("features", {}).get("label", {})
    names = label.get("names") or [str(number) for number in range(highest + 1)]
    if isinstance(names, dict):
        names = [names[str(number)] for number in range(len(names))]
    table_of_1000 = ilsvrc2012()
    same = sum(a.names.split(",")[0] == b.split(",")[0] for a, b in zip(table_of_1000, names))  # noqa: B905
    if len(names) == len(table_of_1000) and same > len(names) / 2:
        return tuple((synset.wnid, synset.names) for synset in table_of_1000)
    return tuple((name, name) for name in names)


def _original_names(
    found: dict[str, Listing], classes: tuple[tuple[str, str], ...]
) -> dict[str, Listing]:
    """Names without the wnid that Hugging Face puts behind ILSVRC's (n01440764_10026_n01440764)."""
    endings = [f"_{wnid}".encode() for wnid, _ in classes]
    renamed: dict[str, Listing] = {}
    for split, listed in found.items():
        names: list[bytes] = []
        for name, label in zip(listed.items.name.tolist(), listed.label.tolist(), strict=True):
            stem, dot, extension = name.rpartition(b".")
            names.append((stem if dot else name).removesuffix(endings[label]) + dot + extension)
        renamed[split] = listed._replace(items=replace(listed.items, name=np.array(names, "S")))
    return renamed
