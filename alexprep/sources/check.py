"""Look at a source as it was understood, before hours of encoding.

What is certainly wrong is refused with the path that was probably meant. What is probably wrong is
a warning, a sentence that is kept in the manifest.
"""

import re
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import combinations
from pathlib import Path

import numpy as np

from alexprep.errors import PrepareError, counted, listed, shown
from alexprep.sources.content import (
    HEAD_BYTES,
    Stray,
    has_image_ending,
    objection,
    stem,
)
from alexprep.sources.files import IMAGE_FOLDERS, Branch, Folder, folder_names, has_images
from alexprep.sources.items import Unreadable, text
from alexprep.sources.listing import TRAIN, Samples, Source, split_of, splits_in

# The share of a split's images with the name and size of a training image from which it is said.
SAME_SHARE = 0.1
MOST_NAMED = 50


def check_branches(
    root: Path, branches: Mapping[str, Branch], *, has_splits: bool
) -> Iterator[str]:
    """Warnings on a tree of folders; PrepareError where its levels are not what they seem."""
    if has_splits:
        yield from _next_to_splits(root, branches)
    else:
        yield from _too_low(root)
    for branch in branches.values():
        _refuse_nested_splits(branch)
        _refuse_one_level_too_high(branch)
        _refuse_same_folders(branch)
        _refuse_split_words(branch)
        yield from _too_high(branch)
        yield from _odd_classes(branch)
        yield from _aliases(branch)
    if len({_inode(branch.path) for branch in branches.values()}) < len(branches):
        names = ", ".join(f"{branch.path.name}/" for branch in branches.values())
        yield f"Some of {names} in {root} are the same folder: splits share their images."


def _refuse_nested_splits(branch: Branch) -> None:
    """A class folder that holds train/ with classes, or two splits, is no class."""
    nested_trees: list[tuple[bool, Path, list[str]]] = []
    for name, folder in branch.classes.items():
        for path in ["", *folder.counts]:
            below = _below(folder, path)
            splits = {split: inner for inner in below if (split := split_of(_base(inner)))}
            if len(splits) > 1 or (TRAIN in splits and _below(folder, splits[TRAIN])):
                images = any(map(folder.holds_images, splits.values()))
                nested_trees.append((images, branch.path / name / path, list(splits.values())))
    if nested_trees:
        # Of Annotations/ and Data/ of ILSVRC, which both hold train/, the one with images is meant.
        _, meant, splits = max(nested_trees, key=lambda nested: nested[0])
        raise PrepareError(
            f"{branch.path} would be a folder of classes, but {meant} holds splits "
            f"({_folders(map(_base, splits))}). SOURCE is probably {meant}."
        )


def _below(folder: Folder, path: str) -> list[str]:
    """The folders directly in the folder at `path`."""
    prefix = f"{path}/" if path else ""
    depth = prefix.count("/")
    return sorted(p for p in folder.counts if p and p.startswith(prefix) and p.count("/") == depth)


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _forks(folder: Folder) -> list[str]:
    """The folders that the images of a class folder without images of its own lie in.

    Folders that hold nothing but one other are passed: a/b/c/cat and a/b/c/dog are the folders of
    a. Empty where images lie in a single folder.
    """
    path = ""
    while True:
        inner = [below for below in _below(folder, path) if folder.holds_images(below)]
        if len(inner) != 1 or folder.counts[path]:
            return [] if folder.counts[path] or len(inner) < 2 else inner
        path = inner[0]


def _with_images(branch: Branch) -> dict[str, Folder]:
    return {name: f for name, f in branch.classes.items() if any(f.counts.values())}


def _refuse_one_level_too_high(branch: Branch) -> None:
    """The only class folder with images has none itself but several folders of them."""
    with_images = _with_images(branch)
    if len(with_images) != 1:
        return
    ((name, folder),) = with_images.items()
    if inner := _forks(folder):
        meant = (branch.path / name / inner[0]).parent
        raise PrepareError(
            f"{branch.path} holds one class folder, {name}/, which holds only folders "
            f"({_folders(map(_base, inner))}): all images would be "
            f"of one class. SOURCE is probably {meant}."
        )


def _refuse_same_folders(branch: Branch) -> None:
    """Class folders that hold the same folders are splits or folds under names nobody knows."""
    inner = {name: set(map(_base, _forks(folder))) for name, folder in _with_images(branch).items()}
    if len(inner) < 2 or not all(inner.values()):
        return
    shared = {
        name for name, count in Counter(n for s in inner.values() for n in s).items() if count > 1
    }
    if all(2 * len(names & shared) >= len(names) for names in inner.values()):
        first, second = sorted(inner)[:2]
        raise PrepareError(
            f"{branch.path} has {len(inner):,} class folders ({shown(sorted(inner))}) without "
            f"images of their own but the same folders ({shown(sorted(shared))}): these are "
            f"probably the classes, and {first}/ and {second}/ splits. Call the splits train/, "
            "val/ and test/, or give one of them as SOURCE."
        )


def _refuse_split_words(branch: Branch) -> None:
    """Class folders with folders in them, called train.X1 and val.X: splits under longer names."""
    named = {
        name: splits
        for name, folder in branch.classes.items()
        if (splits := splits_in(name)) and folder.folders and not folder.counts[""]
    }
    if len(set[str]().union(*named.values())) > 1:
        raise PrepareError(
            f"{branch.path} would be a folder of {len(branch.classes):,} classes, but "
            f"{_folders(sorted(named))} hold folders and are named after "
            "splits. Put their class folders into train/, val/ and test/, or give one of them as "
            "SOURCE."
        )


def _too_high(branch: Branch) -> Iterator[str]:
    """Class folders that all hold nothing but folders: letters, genera or cameras over classes."""
    inner = [below for folder in branch.classes.values() for below in _forks(folder)]
    if len(inner) > 1 and not any(folder.counts[""] for folder in branch.classes.values()):
        yield (
            f"The {len(branch.classes):,} class folders of {branch.path} "
            f"({_folders(sorted(branch.classes))}) hold only folders "
            f"({_folders(map(_base, inner))}). If those are the classes, put "
            "them into one folder."
        )


def _next_to_splits(root: Path, branches: Mapping[str, Branch]) -> Iterator[str]:
    """Folders and images next to train/ and val/, which are not in the data set."""
    splits = {branch.path.name for branch in branches.values()}
    folders = [name for name in folder_names(root) if name not in splits]
    images = [name for name in folders[:MOST_NAMED] if _holds_images(root / name)]
    if images and TRAIN not in branches:
        raise PrepareError(
            f"{root} has {_folders(sorted(splits))} but no train/, and "
            f"{_folders(images)} with images next to it. Put the training "
            "classes into train/, or rename the others if they are all classes."
        )
    if images:
        yield f"{root} also has images in {_folders(images)}, which are not used."
    if has_images(root):
        yield f"{root} has images next to {shown(sorted(splits))}, which are not used."


def _holds_images(folder: Path) -> bool:
    """Whether there are images in a folder, or in one of the first folders in it."""
    if has_images(folder):
        return True
    try:
        return any(has_images(folder / name) for name in folder_names(folder)[:10])
    except OSError:
        return False


def _too_low(root: Path) -> Iterator[str]:
    """SOURCE is train/ itself, with val/ next to it."""
    path = root.resolve()
    if split_of(path.name) is None:
        return
    try:
        siblings = [n for n in folder_names(path.parent) if n != path.name and split_of(n)]
    except OSError:
        return
    if siblings:
        yield (
            f"{root} is read as the whole source, without {_folders(siblings)} "
            f"next to it. For all splits give {path.parent}."
        )


def _odd_classes(branch: Branch) -> Iterator[str]:
    """Classes called cat_train and cat_test, and images that lie in no class folder."""
    if len(set[str]().union(*map(splits_in, branch.classes))) > 1:
        named = sorted(name for name in branch.classes if splits_in(name))
        yield f"Classes of {branch.path} are named after splits: {shown(named)}."
    count = sum(has_image_ending(name) for name, _ in branch.loose.files)
    if count and branch.classes and not set(branch.classes) <= IMAGE_FOLDERS:
        yield (
            f"{branch.path} has {counted(count, 'image')} outside its class folders, "
            "which are not used."
        )


def _aliases(branch: Branch) -> Iterator[str]:
    """Class folders that are links to the same folder: images under two labels."""
    first: dict[tuple[int, int], str] = {}
    for name, folder in branch.classes.items():
        twin = first.setdefault(_inode(folder.path), name)
        if twin != name:
            yield (
                f"{branch.path} has {twin}/ and {name}/, which are the same folder: its images "
                "have two labels."
            )


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def check_names(names: Sequence[str], origin: str, *, ordered: bool) -> Iterator[str]:
    """Warnings on names of classes; PrepareError for those that no text file can hold.

    `ordered`: their order was asked for.
    """
    for name in names:
        if not name.strip():
            raise PrepareError(f"{origin} has a class without a name, {name!r}. Give it one.")
        if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name):
            raise PrepareError(
                f"{origin} has a class {text(name)!r}, which cannot be written to synsets.txt. "
                "Rename it: without tabs, line ends and bytes that are no UTF-8."
            )
    if len(names) == 1:
        yield f"{origin} has one class, {names[0]!r}: there is nothing to learn."
    numbers = [re.fullmatch(r"(\D*)(\d+)", name) for name in names if not ordered]
    numbered = [(match[1], int(match[2])) for match in numbers if match is not None]
    if (
        len(numbered) == len(names)
        and len(set(dict(numbered))) == 1
        and numbered != sorted(numbered)
    ):
        yield (
            f"The classes of {origin} are numbered, and labels follow the order of text: "
            f"{shown(names)}. For another order give --classes FILE."
        )
    yield from _look_alikes(names, origin)


def _look_alikes(names: Sequence[str], origin: str) -> Iterator[str]:
    first: dict[str, str] = {}
    for name in names:
        letters = unicodedata.normalize("NFKC", name).casefold()
        plain = "".join(
            x
            for n, x in enumerate(letters)
            if unicodedata.category(x)[0] not in "ZC" and (x != "_" and (x != "-" or not n))
        )
        twin = first.setdefault(plain or name, name)
        if twin != name:
            yield f"{origin} has the classes {twin!r} and {name!r}, which look alike."


def check_splits(source: Source) -> Iterator[str]:
    """Warn of images that two splits share, by their name, size and class."""
    for (first, one), (second, two) in combinations(sorted(source.splits.items()), 2):
        if one.items.sequential == "always" or two.items.sequential == "always":
            continue  # sizes are not known
        smaller, larger = sorted((one, two), key=lambda samples: len(samples.key))
        known = _names_and_sizes(smaller)
        shared = len(known & _names_and_sizes(larger, {name for name, *_ in known}))
        if shared >= SAME_SHARE * len(smaller.key):
            yield (
                f"{shared:,} images of {first} and {second} have the same name, size and class: "
                "the splits share images."
            )


def _names_and_sizes(
    samples: Samples, only: set[bytes] | None = None
) -> set[tuple[bytes, int, int]]:
    columns = (
        samples.items.name.tolist(),
        samples.items.fingerprint.tolist(),
        samples.label.tolist(),
    )
    rows = ((stem(name), size, label) for name, size, label in zip(*columns, strict=True))
    return {row for row in rows if only is None or row[0] in only}


def check_target(source: Source, out: Path) -> None:
    """PrepareError where OUT lies in a folder that is searched for images."""
    searched = [Path(folder) for folder in source.folders.values() if Path(folder).is_dir()]
    if source.kind == "folder":
        searched.append(Path(source.root))
    for folder in searched:
        if out.is_relative_to(folder.resolve()):
            raise PrepareError(
                f"OUT, {out}, lies in SOURCE, {folder}, and would be read as images of it the next "
                "time. Give a folder outside of it."
            )


def refuse_strays(strays: Sequence[Stray], name: str) -> None:
    """PrepareError that lists the files of a source that are no images, if there are any."""
    if not strays:
        return
    raise PrepareError(
        f"{name} holds {counted(len(strays), 'file')} that cannot become a sample:",
        *listed([f"{stray.path} {stray.reason}" for stray in sorted(strays)]),
        "Fix or remove them, or leave them out with --on-error skip.",
    )


def check_beginnings(source: Source, seconds: float = 2.0) -> list[Stray]:
    """Files named like images that do not begin like one, of those that `seconds` allow to open.

    They are picked all over the source. Encoding finds the others, hours later.
    """
    strays: list[Stray] = []
    until = time.monotonic() + seconds
    for samples in source.splits.values():
        items = samples.items
        if items.sequential == "always":
            continue  # a row costs reading its whole group
        order = np.random.default_rng(0).permutation(len(items))
        # Those of no bytes first, as far as the source was listed with sizes.
        order = order[np.argsort(items.fingerprint[order] != 0, kind="stable")]
        for begin in range(0, len(order), 256):
            some = items.select(order[begin : begin + 256])
            with closing(some.read(HEAD_BYTES)) as heads:
                for index, head in enumerate(heads):
                    reason = head.reason if isinstance(head, Unreadable) else objection(head)
                    if reason is not None:
                        strays.append(Stray(some.path(index), reason))
            if time.monotonic() > until:
                return strays
    return strays


def _folders(names: Iterable[str]) -> str:
    return shown([f"{name}/" for name in names])
