"""What ILSVRC2012 says about itself outside its images: truth files, archive names and hashes."""

import csv
import hashlib
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from alexprep.errors import PrepareError
from alexprep.progress import Progress
from alexprep.sources.synsets import wnid_by_id

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VALIDATION_TAR = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12"
DEVKIT_TAR = f"{DEVKIT}.tar.gz"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
SOLUTION = "LOC_val_solution.csv"
MAPPING = "LOC_synset_mapping.txt"
# As torchvision and TFDS have them.
MD5 = {
    TRAIN_TAR: "1d675b47d978889d74fa0da5fadfb00e",
    VALIDATION_TAR: "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT_TAR: "fa75699e90414af021442c21a62c3abf",
}


def check_archives(folder: Path, expected: Mapping[str, str] = MD5) -> None:
    """Compare the MD5 of the official archives in `folder`; PrepareError names the wrong ones."""
    there = {name: folder / name for name in expected if (folder / name).is_file()}
    wrong: list[str] = []
    with Progress("check", sum(path.stat().st_size for path in there.values()), "bytes") as bar:
        for name, path in there.items():
            digest = hashlib.md5(usedforsecurity=False)
            with path.open("rb") as file:
                while piece := file.read(2**22):
                    digest.update(piece)
                    bar.advance(len(piece), bytes=len(piece))
            if digest.hexdigest() != expected[name]:
                wrong.append(f"{path} has MD5 {digest.hexdigest()}, not {expected[name]}")
    if not there:
        raise PrepareError(f"{folder} holds none of {', '.join(expected)}: nothing to check.")
    if wrong:
        raise PrepareError(f"{'; '.join(wrong)}. Download again.")


def validation_truth(folder: Path, names: list[bytes]) -> dict[bytes, str]:
    """The wnid of every validation file, by file name, from Kaggle's csv or the devkit.

    The devkit has one ILSVRC2012_ID a line for the files in sorted order.
    """
    if (folder / SOLUTION).is_file():
        return _from_solution(folder / SOLUTION, names)
    lines, where = _devkit_truth(folder)
    if len(lines) != len(names):
        raise PrepareError(
            f"{where} has {len(lines):,} lines for {len(names):,} validation images. "
            "Complete the images, or take the devkit that belongs to them."
        )
    wnids = wnid_by_id()
    try:
        return {name: wnids[int(line)] for name, line in zip(sorted(names), lines, strict=True)}
    except (KeyError, ValueError) as error:
        raise PrepareError(
            f"{where} holds {error}, which is no ILSVRC2012_ID (1..1000). "
            "Download the devkit again."
        ) from None


def _from_solution(path: Path, names: list[bytes]) -> dict[bytes, str]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = {row["ImageId"]: row["PredictionString"].split() for row in csv.DictReader(file)}
    truth: dict[bytes, str] = {}
    for name in names:
        words = rows.get(PurePosixPath(name.decode("utf-8", "backslashreplace")).stem)
        if not words:
            raise PrepareError(f"{path} has no line for {name!r}. Get the whole file again.")
        truth[name] = words[0]
    return truth


def _devkit_truth(folder: Path) -> tuple[list[str], str]:
    archive = folder / DEVKIT_TAR
    if archive.is_file():
        try:
            with tarfile.open(archive, "r:gz") as devkit:
                for member in devkit:
                    if PurePosixPath(member.name).name == TRUTH and member.isreg():
                        file = devkit.extractfile(member)
                        if file is not None:
                            return file.read().decode("ascii").split(), str(archive)
        except (tarfile.TarError, EOFError, OSError, UnicodeDecodeError) as error:
            raise PrepareError(f"{archive} is damaged ({error}). Download it again.") from None
        raise PrepareError(f"{archive} holds no {TRUTH}. Download it again.")
    for path in (folder / DEVKIT / "data" / TRUTH, folder / "data" / TRUTH, folder / TRUTH):
        if path.is_file():
            return path.read_text("ascii", "replace").split(), str(path)
    raise PrepareError(
        f"The validation images in {folder} lie in one folder or archive, and nothing says their "
        f"classes. Put {DEVKIT_TAR} beside them (or {TRUTH}, or Kaggle's {SOLUTION})."
    )
