"""What other readers want beside tars: DALI's index of any tar, Energon's and OpenCLIP's files.

Our own data sets keep such files out of the split folders, where Hugging Face would read them as
data. An export is therefore another folder, with hard links to the same tars.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Literal

from alexprep.dataset.checksums import hash_file
from alexprep.dataset.store import STATE, LocalStore, write_bytes
from alexprep.errors import PrepareError
from alexprep.progress import DELAY, ProgressBar
from alexprep.tar import Entry, scan_tar
from pipelines.atomic import make_folder, write_whole
from pipelines.format import BLOCK, MANIFEST, Manifest, Shard, padded, parse_index

HALF = f"{STATE}/export"  # there until an export is whole; says of what
# Energon's names for the parts of a data set; others keep theirs.
ENERGON_SPLITS = {"validation": "val"}
ENERGON_FILES = (".info.json", ".info.yaml", "split.yaml", "dataset.yaml")
ENERGON_DATASET = """\
sample_type:
  __module__: megatron.energon
  __class__: ImageClassificationSample
field_map:
  image: jpg
  label: cls
"""


def index_tars(tars: Sequence[Path], out: Path | None = None) -> list[Path]:
    """Write the DALI index of each tar; the paths written.

    Into `out`, or ROOT/index for a shard of one of our data sets, else beside the tar.
    """
    written: list[Path] = []
    with ProgressBar("index", len(tars), "tars", delay=DELAY) as progress:
        for tar in tars:
            folder = out or _index_folder(tar)
            make_folder(folder)
            written.append(folder / f"{tar.name.removesuffix('.tar')}.idx")
            write_whole(written[-1], dali_index(tar).encode())
            progress.advance(1)
    return written


def dali_index(tar: Path) -> str:
    """DALI's index, version 1.2, of a tar in WebDataset's form with members of any kind.

    PrepareError for a tar without samples, or with a name that the index cannot hold.
    """
    if not tar.is_file():
        raise PrepareError(f"{tar} is not a file. Name the tars to index.")
    with tar.open("rb") as file:
        entries = scan_tar(tar, file.fileno())
    lines = [" ".join(_words(tar, members)) for members in _samples(entries)]
    if not lines:
        raise PrepareError(f"{tar} holds no sample: no file with a name before its first dot.")
    return "\n".join([f"v1.2 {len(lines)}", *lines]) + "\n"


def export(kind: Literal["energon", "openclip"], root: Path, out: Path) -> list[Path]:
    """Link the tars of a data set into `out`, with the metadata that Energon or OpenCLIP reads.

    The same call finishes an export that was killed, and repeats one that was not. PrepareError if
    `out` holds anything else, or another process writes there.
    """
    manifest = Manifest.load(root)
    identity = f"{kind} {hash_file(root / MANIFEST)}\n".encode()
    store = LocalStore(out)
    is_new = not set(store.listing()) - {STATE} or store.read(HALF) == identity
    if not is_new and not _is_finished(kind, root, manifest, out):
        raise PrepareError(f"{out} is not empty. Name a new folder.")
    with store.locked():
        write_bytes(store, HALF, identity)
        store.settle()
        written = _write_export(kind, root, manifest, out)
        store.settle()
        store.remove(HALF)
    return written


def _is_finished(kind: str, root: Path, manifest: Manifest, out: Path) -> bool:
    """Whether a folder has this export of this data set, and nothing else."""
    shards = [shard.name for split in manifest.splits.values() for shard in split.shards]
    names = {f"{split}/sizes.json" for split in manifest.splits}
    if kind == "energon":
        names = {f"{name}.idx" for name in shards} | {f".nv-meta/{name}" for name in ENERGON_FILES}
    paths = [path.relative_to(out) for path in out.rglob("*") if not path.is_dir()]
    files = {str(path) for path in paths if path.parts[0] != STATE}  # a lock of a killed call
    return files == names | set(shards) and all(
        (out / name).exists() and (out / name).samefile(root / name) for name in shards
    )


def _write_export(
    kind: Literal["energon", "openclip"], root: Path, manifest: Manifest, out: Path
) -> list[Path]:
    written: list[Path] = []
    shards = manifest.shards
    with ProgressBar("export", len(shards), "shards", delay=DELAY) as progress:
        for shard in shards:
            # A link takes no room, and a hard one outlives the data set.
            _link(root / shard.name, out / shard.name)
            if kind == "energon":
                written.append(out / f"{shard.name}.idx")
                write_whole(written[-1], energon_index(root, shard))
            progress.advance(1)
    if kind == "energon":
        return written + _energon_files(manifest, out)
    for name, split in manifest.splits.items():
        sizes = {PurePosixPath(shard.name).name: shard.samples for shard in split.shards}
        written.append(out / name / "sizes.json")
        write_whole(written[-1], (json.dumps(sizes, indent=1) + "\n").encode())
    return written


def energon_index(root: Path, shard: Shard) -> bytes:
    """Native uint64: where each sample begins in the tar, and where the last one ends."""
    path = root / shard.index
    samples = parse_index(path.read_bytes(), path)
    begins = [sample.jpg.offset - BLOCK for sample in samples]
    last = samples[-1].json
    return struct.pack(f"={len(begins) + 1}Q", *begins, last.offset + padded(last.size))


def _energon_files(manifest: Manifest, out: Path) -> list[Path]:
    counts = {shard.name: shard.samples for shard in manifest.shards}
    split_parts = {
        ENERGON_SPLITS.get(name, name): [shard.name for shard in split.shards]
        for name, split in manifest.splits.items()
    }
    info = json.dumps({"shard_counts": counts}, indent=1) + "\n"
    split = json.dumps({"split_parts": split_parts}, indent=1) + "\n"
    # JSON is YAML; releases before 7 look for .info.yaml.
    texts = (info, info, split, ENERGON_DATASET)
    files = dict(zip(ENERGON_FILES, texts, strict=True))
    folder = out / ".nv-meta"
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        write_whole(folder / name, text.encode())
    return [folder / name for name in files]


def _samples(entries: Sequence[Entry]) -> Iterator[list[tuple[str, Entry]]]:
    """(what follows the first dot of the file name, entry), grouped by what precedes it."""

    def key(entry: Entry) -> str:
        name = entry.name.decode("utf-8", "surrogateescape")
        dot = name.find(".", name.rfind("/") + 1)
        return name[:dot] if dot >= 0 else ""

    for base, members in groupby(entries, key):
        if base and not base.endswith("/"):
            start = len(base) + 1
            yield [(m.name.decode("utf-8", "surrogateescape")[start:], m) for m in members]


def _words(tar: Path, members: Sequence[tuple[str, Entry]]) -> Iterator[str]:
    for kind, entry in members:
        name = entry.name.decode("utf-8", "surrogateescape")
        if any(letter.isspace() for letter in name):
            raise PrepareError(
                f"{tar} has a member {name!r}: an index cannot hold names with spaces. Rename it."
            )
        yield f"{kind} {entry.offset} {entry.size} {name}"


def _index_folder(tar: Path) -> Path:
    """ROOT/index for a shard of one of our data sets, else the folder of the tar."""
    root = tar.absolute().parent.parent
    return root / "index" if (root / MANIFEST).is_file() else tar.parent


def _link(source: Path, target: Path) -> None:
    """A hard link, or a symbolic one from another file system."""
    if not source.is_file():
        raise PrepareError(f"{source} is missing. Check the data set with `alexprep verify`.")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # of an export that was killed
    try:
        target.hardlink_to(source)
    except OSError:
        target.symlink_to(source.absolute())
