"""What ILSVRC2012 says about itself outside its images: truth files, archive names and hashes."""

import hashlib
import io
import lzma
import re
import resource
import signal
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

import numpy as np

from alexprep.errors import PrepareError
from alexprep.progress import ProgressBar
from alexprep.sources.content import stem
from alexprep.sources.items import text
from alexprep.sources.synsets import names_by_wnid, wnid_by_id
from alexprep.sources.tables import decode_text, read_csv, read_lines
from alexprep.workers import run_tasks

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VALIDATION_TAR = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12"
DEVKIT_TAR = f"{DEVKIT}.tar.gz"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
TRUTHS = "ILSVRC20??_validation_ground_truth.txt"
META = "meta.mat"
ANNOTATIONS = "val_annotations.txt"
SOLUTION = "LOC_val_solution.csv"
# That of 2012 has 11 MB. Other errors are tarfile's, of headers with odd numbers.
MAX_DEVKIT = 1 << 28
DAMAGE = (
    *(tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError),
    *(ValueError, OverflowError, MemoryError, RecursionError),
)
META_MEMORY, META_SECONDS = 1 << 31, 60  # that its reader may take
MAPPING = "LOC_synset_mapping.txt"
# The archives of a year as downloaded; test images have no labels.
ARCHIVES = {
    "2012": {"train": TRAIN_TAR, "validation": VALIDATION_TAR},
    "2010": {"train": "ILSVRC2010_images_train.tar", "validation": "ILSVRC2010_images_val.tar"},
}
PATCHES = "patch_images.tar"  # of 2010
# As torchvision and TFDS have them.
MD5 = {
    TRAIN_TAR: "1d675b47d978889d74fa0da5fadfb00e",
    VALIDATION_TAR: "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT_TAR: "fa75699e90414af021442c21a62c3abf",
}


def check_archives(folder: Path, expected: Mapping[str, str] = MD5) -> None:
    """Compare the MD5 of the official archives in `folder`; PrepareError names the wrong ones."""
    hashes = hash_archives(folder, expected)
    if not hashes:
        raise PrepareError(f"{folder} holds none of {', '.join(expected)}: nothing to check.")
    wrong = [
        f"{folder / name} has MD5 {md5}, not {expected[name]}"
        for name, md5 in hashes.items()
        if md5 != expected[name]
    ]
    if wrong:
        raise PrepareError(f"{'; '.join(wrong)}. Download again.")


def hash_archives(folder: Path, names: Iterable[str] = MD5) -> dict[str, str]:
    """MD5 of the archives in `folder` that are there, by name."""
    paths = {name: folder / name for name in names if (folder / name).is_file()}
    hashes: dict[str, str] = {}
    with ProgressBar("check", sum(path.stat().st_size for path in paths.values()), "bytes") as bar:
        for name, path in paths.items():
            digest = hashlib.md5(usedforsecurity=False)
            with path.open("rb") as file:
                while piece := file.read(2**22):
                    digest.update(piece)
                    bar.advance(len(piece), bytes=len(piece))
            hashes[name] = digest.hexdigest()
    return hashes


def find_official(folder: Path) -> dict[str, Path]:
    """The official archives in a folder by split, of the latest year that is there."""
    for names in ARCHIVES.values():
        paths = {split: folder / name for split, name in names.items() if (folder / name).is_file()}
        if paths:
            return paths
    return {}


def year_of(official: Mapping[str, Path]) -> str | None:
    """The year of official archives."""
    return next((path.name[len("ILSVRC") :][:4] for path in official.values()), None)


def find_truth(folders: Sequence[Path], names: list[bytes]) -> dict[bytes, str]:
    """The wnid of every validation file, by file name, from the first of `folders` that says it.

    Looked for: Kaggle's LOC_val_solution.csv, Tiny-ImageNet's val_annotations.txt, a devkit.
    """
    for folder in folders:
        for path in (folder / SOLUTION, folder / ANNOTATIONS):
            if path.is_file():
                return _truth_of(path, names)
        devkit = find_devkit(folder)
        if devkit is not None:
            return devkit.truth_of(names)
    raise PrepareError(
        f"The validation images in {folders[0]} lie in one folder or archive, and nothing says "
        f"their classes. Put {DEVKIT_TAR} next to them (or {TRUTH}, or Kaggle's {SOLUTION})."
    )


def _truth_of(path: Path, names: list[bytes]) -> dict[bytes, str]:
    """The wnids of the files in a list of Kaggle's or of Tiny-ImageNet's."""
    solution = path.name == SOLUTION  # which has names without their endings
    rows = dict(_solution_rows(path) if solution else _annotation_rows(path))
    truth: dict[bytes, str] = {}
    for name in names:
        image = text(stem(name) if solution else name.rpartition(b"/")[2])
        if image not in rows:
            raise PrepareError(f"{path} has no line for {text(name)!r}. Download the file again.")
        truth[name] = rows[image]
    return truth


def _solution_rows(path: Path) -> Iterator[tuple[str, str]]:
    for line, (image, prediction) in read_csv(path, ("ImageId", "PredictionString")):
        if not prediction.split():
            raise PrepareError(f"{path}, line {line}: no class for {image!r}. Download it again.")
        yield image, prediction.split()[0]


def _annotation_rows(path: Path) -> Iterator[tuple[str, str]]:
    for line, row in read_lines(path):
        words = row.split("\t")
        if len(words) < 2 or not words[1].strip():
            raise PrepareError(
                f"{path}, line {line}: expected a file name, a tab and a class, got {row[:80]!r}. "
                "Download the file again."
            )
        yield words[0].strip(), words[1].strip()


class Devkit(NamedTuple):
    """What a devkit says: the class id of each validation image in order, and the ids' wnids."""

    origin: str
    truth: list[str]
    wnids: Mapping[int, str]
    names: Mapping[str, str]

    def truth_of(self, names: list[bytes]) -> dict[bytes, str]:
        """The wnids of the files, which the devkit lists in sorted order."""
        if len(self.truth) != len(names):
            raise PrepareError(
                f"{self.origin} has {len(self.truth):,} lines for {len(names):,} validation "
                "images. Add the missing images, or use the devkit of their year."
            )
        truth: dict[bytes, str] = {}
        for line, (name, ident) in enumerate(zip(sorted(names), self.truth, strict=True), start=1):
            wnid = self.wnids.get(int(ident)) if ident.isdecimal() else None
            if wnid is None:
                raise PrepareError(
                    f"{self.origin}, line {line}: {ident!r} is no class id "
                    f"(1..{len(self.wnids):,}). Download the devkit again."
                )
            truth[name] = wnid
        return truth


def find_devkit(folder: Path) -> Devkit | None:
    """The devkit in a folder: extracted, or packed in any way that tarfile reads."""
    paths = [folder / DEVKIT_TAR, *_named_like_a_devkit(folder)]
    packed = [path for path in dict.fromkeys(paths) if path.is_file()]
    problems: list[str] = []
    for path in packed:
        try:
            files = _unpacked(path)
        except DAMAGE as error:
            problems.append(f"{path} is damaged ({' '.join(str(error).split())})")
            continue
        devkit = _devkit(files, str(path))
        if devkit is not None:
            return devkit
        problems.append(f"{path} holds no {TRUTH}")
    if problems:
        raise PrepareError(f"{problems[0]}. Download it again.")
    for parent in (*(path / "data" for path in paths), folder / "data", folder):
        for path in sorted(parent.glob(TRUTHS)) if parent.is_dir() else ():
            near = {path.name: path.read_bytes()}
            if (parent / META).is_file():
                near[META] = (parent / META).read_bytes()
            return _devkit(near, str(path), str(parent / META))
    return None


def _named_like_a_devkit(folder: Path) -> list[Path]:
    pattern = re.compile(r"ilsvrc\d{4}.*devkit|devkit", re.IGNORECASE)
    return [path for path in sorted(folder.iterdir()) if pattern.match(path.name)]


def _unpacked(path: Path) -> dict[str, bytes]:
    """The truth files and meta.mat of a packed devkit, by their names without folders."""
    files: dict[str, bytes] = {}
    with tarfile.open(path, "r:*") as devkit:
        for member in devkit:
            name = PurePosixPath(member.name).name
            # A few bytes may unpack to any number of them.
            if member.offset_data + member.size > MAX_DEVKIT:
                raise tarfile.ReadError(f"more than {MAX_DEVKIT:,} bytes when unpacked")
            if member.isreg() and (name == META or fnmatch(name, TRUTHS)):
                file = devkit.extractfile(member)
                files[name] = file.read() if file is not None else b""
    return files


def _devkit(files: Mapping[str, bytes], origin: str, meta: str = "") -> Devkit | None:
    """The devkit of these files; `meta` is the path of its meta.mat, if that is not in `origin`."""
    truth = next((name for name in sorted(files) if fnmatch(name, TRUTHS)), None)
    if truth is None:
        return None
    words = decode_text(files[truth], origin).split()
    if truth == TRUTH:
        return Devkit(origin, words, wnid_by_id(), names_by_wnid())
    year = truth[: len("ILSVRC2010")]
    if META not in files:
        raise PrepareError(
            f"{origin} holds {truth} but no {META}, which says what its ids mean. Get the whole "
            f"devkit of {year}."
        )
    wnids, names = _read_meta(files[META], year, meta or f"{META} in {origin}")
    return Devkit(origin, words, wnids, names)


def _read_meta(data: bytes, year: str, origin: str) -> tuple[dict[int, str], dict[str, str]]:
    """Leaf classes of a devkit's meta.mat: wnid by id, and names by wnid.

    Read in a process of its own: a damaged file ends scipy's reader, and its process, with SIGSEGV.
    """
    try:
        with closing(run_tasks(_leaf_synsets, [(data, year)], workers=2)) as results:
            rows = next(iter(results))[1]
    except ImportError:
        raise PrepareError(
            f"Reading the devkit of {year} needs scipy, which is not installed. Install it with "
            "`pip install 'alexprep[ilsvrc2010]'`."
        ) from None
    except Exception as error:  # noqa: BLE001 - scipy has none of its own for a damaged file
        raise PrepareError(
            f"{origin} does not give the synsets of {year} "
            f"({' '.join(str(error).split()) or type(error).__name__}). Download it again."
        ) from None
    return {ident: wnid for ident, wnid, _ in rows}, {wnid: words for _, wnid, words in rows}


def _leaf_synsets(task: tuple[bytes, str]) -> list[tuple[int, str, str]]:
    """Id, wnid and names of each synset without children. Runs in a worker."""
    # scipy is an extra: only devkits of other years need it
    from scipy.io import loadmat  # pyright: ignore # noqa: PLC0415

    # Its arrays are compressed: a few bytes may unpack to any number of them.
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = META_MEMORY if most == resource.RLIM_INFINITY else min(META_MEMORY, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
    signal.alarm(META_SECONDS)
    data, year = task
    synsets = cast(Any, loadmat)(io.BytesIO(data), squeeze_me=True)["synsets"]
    return [
        (int(row[f"{year}_ID"]), str(row["WNID"]), str(row["words"]))
        for row in np.atleast_1d(synsets)
        if int(row["num_children"]) == 0
    ]
