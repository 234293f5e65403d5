"""Trees of folders: which folder is a split, which a class, and where labels come from."""

from collections.abc import Mapping
from pathlib import Path

from alexprep.errors import PrepareError
from alexprep.sources.check import check_branches, refuse_strays
from alexprep.sources.content import Stray
from alexprep.sources.files import (
    IMAGE_FOLDERS,
    Branch,
    Folder,
    list_flat,
    list_folders,
    merged,
    read_branch,
    refuse_no_classes,
    sort_out,
    split_folders,
)
from alexprep.sources.ilsvrc import ANNOTATIONS, MAPPING, find_truth
from alexprep.sources.listing import (
    TRAIN,
    VALIDATION,
    Listing,
    Source,
    SourceOptions,
    label_space,
    make_source,
    refuse_unknown_classes,
    with_findings,
)
from alexprep.sources.synsets import ilsvrc2012, named

# Where Kaggle's list of the validation images is, seen from CLS-LOC: folders up.
LEVELS_UP = 3


def tree_source(kind: str, root: Path, images: Path, options: SourceOptions) -> Source:
    """Class folders in `images`, or in its train/, val/ and test/.

    `root` holds what tells about the images: synsets.txt, the devkit, Kaggle's lists.
    """
    splits = split_folders(images)
    branches = {split: read_branch(path) for split, path in (splits or {TRAIN: images}).items()}
    refuse_no_classes(images, branches)
    warnings = [*check_branches(images, branches, has_splits=bool(splits))]
    flat = {split for split in branches if _is_flat(split, branches)}
    # ILSVRC's test images have no labels; its validation images have theirs in a file.
    folders = {
        split: {"": merged(branch)} if split in flat else branch.classes
        for split, branch in branches.items()
        if split not in flat - {VALIDATION}
    }
    if TRAIN in folders and options.classes is None:
        names = {split: set(inner) for split, inner in folders.items() if split not in flat}
        refuse_unknown_classes(names, {split: branch.path for split, branch in branches.items()})
    strays = [stray for split in folders for stray in _strays(branches[split], folders[split])]
    if not options.skip:
        refuse_strays(strays, str(images))
    listings = {
        split: _list_flat(inner[""], root)
        if split in flat
        else list_folders(inner, branches[split].path)
        for split, inner in folders.items()
    }
    if TRAIN not in branches and set(listings) == {VALIDATION} == flat and not options.classes:
        wnids = [synset.wnid for synset in ilsvrc2012()]
    else:
        wnids = label_space(listings, options.classes)
    classes = named(wnids, root, MAPPING, *(["words.txt"] if _is_tiny(images) else []))
    return with_findings(make_source(kind, root, classes, listings), strays, warnings)


def _is_flat(split: str, branches: Mapping[str, Branch]) -> bool:
    """Whether a split has no class folders, as that of Tiny-ImageNet, which has val/images."""
    names = set(branches[split].classes)
    if not names:
        return True
    train = branches[TRAIN].classes if TRAIN in branches else {}
    return split != TRAIN and names <= IMAGE_FOLDERS and not names & set(train)


def _is_tiny(images: Path) -> bool:
    return (images / "wnids.txt").is_file() and (images / "words.txt").is_file()


def _strays(branch: Branch, folders: Mapping[str, Folder]) -> list[Stray]:
    """What is no image in a split; it is taken out of its folders."""
    strays = list(branch.loose.strays)
    for name, folder in folders.items():
        # Tiny-ImageNet has the boxes of a class, or the classes of all, next to the images.
        sort_out(folder, known=[f"{name}_boxes.txt", ANNOTATIONS])
        strays += folder.strays
    return strays


def _list_flat(folder: Folder, root: Path) -> Listing:
    if not folder.files:
        raise PrepareError(
            f"{folder.path} has no files. Put the validation images there or remove it."
        )
    above = [*root.resolve().parents][:LEVELS_UP]
    truth = find_truth([root, folder.path, *above], [name for name, _ in folder.files])
    return list_flat(folder, truth)
