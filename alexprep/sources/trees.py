"""Trees of folders: which folder is a split, which a class, and where labels come from."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

from alexprep.errors import PrepareError
from alexprep.sources.check import check_branches, refuse_strays
from alexprep.sources.content import Stray
from alexprep.sources.files import (
    IMAGE_FOLDERS,
    Branch,
    Folder,
    files_of,
    list_folders,
    merged,
    read_branch,
    refuse_no_classes,
    sort_out,
    split_folders,
)
from alexprep.sources.ilsvrc import (
    ANNOTATIONS,
    ARCHIVES,
    MAPPING,
    PATCHES,
    find_devkit,
    find_official,
    find_truth,
    year_of,
)
from alexprep.sources.items import Items, text
from alexprep.sources.listing import (
    TEST,
    TRAIN,
    VALIDATION,
    Listing,
    Source,
    SourceOptions,
    join_listings,
    label_space,
    list_by_name,
    make_source,
    refuse_unknown_classes,
    splits_in,
    with_findings,
)
from alexprep.sources.synsets import ilsvrc2012, named
from alexprep.sources.tars import (
    CLASS_TAR,
    ClassTars,
    Tars,
    folder_of_class_tars,
    members_of,
    opened,
    replace_images,
    scan_images,
    tar_of_class_tars,
)

# Where Kaggle's list of the validation images is, seen from CLS-LOC: folders up.
LEVELS_UP = 3


class Split(NamedTuple):
    """A split that was looked through: its classes, if it says them, and what is no image.

    `listing` lists the rest, once nothing was refused.
    """

    path: Path
    names: set[str] | None
    strays: list[Stray]
    listing: Callable[[], Listing]


def tree_source(kind: str, root: Path, images: Path, options: SourceOptions) -> Source:
    """Class folders or class tars in `images`, or in its train/, val/ and test/.

    `root` holds what tells about the images: synsets.txt, the devkit, Kaggle's lists. The official
    archives of ILSVRC take the place of a split's folder.
    """
    official = find_official(images)
    splits, warnings = _look_through(root, images, official, options)
    if options.classes is None:
        names = {split: tree.names for split, tree in splits.items() if tree.names is not None}
        if TRAIN in names:
            refuse_unknown_classes(names, {split: tree.path for split, tree in splits.items()})
    strays = [stray for tree in splits.values() for stray in tree.strays]
    if not options.skip:
        refuse_strays(strays, str(images))
    listings = {split: tree.listing() for split, tree in splits.items()}
    year = year_of(official)
    if year is None and set(splits) == {VALIDATION} and splits[VALIDATION].names is None:
        year = "2012"  # validation images in one folder, which only a devkit or Kaggle explains
    if options.classes is None and year is not None:
        wnids, more = _official_classes(root, year, listings)
        warnings += more
    else:
        wnids = label_space(listings, options.classes)
    classes = named(wnids, root, MAPPING, *(["words.txt"] if _is_tiny(images) else []))
    return with_findings(make_source(kind, root, classes, listings), strays, warnings)


def whole_source(root: Path, archive: Path, options: SourceOptions) -> Source:
    """A tar of class tars that is all there is: fall11_whole.tar, winter21_whole.tar."""
    classes = tar_of_class_tars(archive)
    if options.classes is not None:
        classes.keep(options.classes)
    if not options.skip:
        refuse_strays(classes.strays, str(archive))
    listings = {TRAIN: classes.listing(archive)}
    names = named(label_space(listings, options.classes), root)
    return with_findings(make_source("tars", root, names, listings), classes.strays, ())


def _look_through(
    root: Path, images: Path, official: Mapping[str, Path], options: SourceOptions
) -> tuple[dict[str, Split], list[str]]:
    """The splits, and warnings on the tree."""
    folders = split_folders(images)
    if not folders and not official:
        folders = {TRAIN: images}
    branches = {s: read_branch(path) for s, path in folders.items() if s not in official}
    tars = {split: _class_tars(branch) for split, branch in branches.items()}
    if not official and not any(tars.values()):
        refuse_no_classes(images, branches)
    warnings: list[str] = []
    if branches:
        warnings += check_branches(images, branches, has_splits=folders != {TRAIN: images})
    splits = {split: _official(split, path, root, options) for split, path in official.items()}
    for split, branch in branches.items():
        if tars[split] or not _is_flat(split, branches):
            splits[split] = _in_classes(branch, tars[split], options.classes)
        elif split == VALIDATION:  # ILSVRC's test images have no labels
            splits[split] = _in_one_folder(branch, root)
    if official and TRAIN not in splits:
        warnings += _unused_tars(images, official)
    return splits, warnings


def _unused_tars(folder: Path, official: Mapping[str, Path]) -> list[str]:
    """A warning where the training images may be in an archive of another name."""
    names = sorted(path.name for path in folder.glob("*.tar*") if path not in official.values())
    names = [n for n in names if not {TEST} & splits_in(n) and "devkit" not in n.lower()]
    if not names:
        return []
    expected = ARCHIVES[year_of(official) or "2012"][TRAIN]
    return [
        f"{folder} has no training images; not used: {', '.join(names[:4])}. Rename the "
        f"archive that holds them to {expected}."
    ]


def _official_classes(
    root: Path, year: str, listings: Mapping[str, Listing]
) -> tuple[list[str], list[str]]:
    """The classes of a year of ILSVRC in label order, and warnings.

    Training images that lack some are refused where the devkit is there: all labels after the first
    missing class would be others'.
    """
    # The devkit knows its year's classes; without one only those of 2012 are at hand.
    present = label_space(listings, None)
    devkit = find_devkit(root)
    if devkit is not None:
        wnids = sorted(devkit.wnids.values())
    elif year == "2012":
        wnids = [synset.wnid for synset in ilsvrc2012()]
    else:
        return present, []
    if TRAIN not in listings:
        return (wnids if set(present) <= set(wnids) else present), []
    missing = sorted(set(wnids) - set(present))
    if not missing:
        return present, []
    lack = (
        f"{listings[TRAIN].path} lacks {len(missing):,} of the {len(wnids):,} classes of "
        f"ILSVRC{year}, the first is {missing[0]!r}"
    )
    if devkit is None:
        return present, [f"{lack}."]
    raise PrepareError(f"{lack}. Add them, or list the classes to keep in --classes FILE.")


def _official(split: str, path: Path, root: Path, options: SourceOptions) -> Split:
    """An archive as downloaded: a tar of class tars, or a flat one that the devkit labels."""
    if split == TRAIN:
        classes = tar_of_class_tars(path)
        if options.classes is not None:
            classes.keep(options.classes)
        listing = partial(classes.listing, path)
        return Split(path, set(classes), classes.strays, lambda: _patched(listing(), path))
    with opened(path) as file:
        images, strays = scan_images(path, file)

    def list_images() -> Listing:
        return _patched(_list_by_truth(members_of(path, images), [root], path), path)

    return Split(path, None, strays, list_images)


def _patched(listing: Listing, archive: Path) -> Listing:
    """The images of an archive of 2010, some of them as patch_images.tar next to it has them.

    The archives of that year hold images that are blank or say that there is no image.
    """
    patch = archive.with_name(PATCHES)
    if archive.name in ARCHIVES["2012"].values() or not patch.is_file():
        return listing
    with opened(patch) as file:
        images, _ = scan_images(patch, file)
    return listing._replace(items=replace_images(cast(Tars, listing.items), patch, images))


def _in_classes(branch: Branch, tars: ClassTars, keep: Sequence[str] | None) -> Split:
    """Class folders, class tars, or some of each (a half-extracted archive).

    What is in classes that are not kept does not matter.
    """
    kept = {n: folder for n, folder in branch.classes.items() if keep is None or n in keep}
    strays = _strays(branch, kept)
    if keep is not None:
        for name in [n for n, f in branch.classes.items() if n not in kept and not f.files]:
            del branch.classes[name]
        tars.keep(keep)
    for name in branch.classes:
        if name in tars:
            raise PrepareError(
                f"{branch.path} has {name}/ and {name}.tar. Remove the folder if it is not "
                "complete, else the tar."
            )

    def listing() -> Listing:
        listings: list[Listing] = []
        if branch.classes:
            listings.append(list_folders(branch.classes, branch.path))
        if tars:
            listings.append(tars.listing(branch.path))
        return join_listings(listings)

    names = {*branch.classes, *tars}
    return Split(branch.path, names, [*strays, *tars.strays], listing)


def _in_one_folder(branch: Branch, root: Path) -> Split:
    folder = merged(branch)
    strays = _strays(branch, {"": folder})
    return Split(branch.path, None, strays, lambda: _list_flat(folder, root))


def _class_tars(branch: Branch) -> ClassTars:
    """The tars next to class folders, each a class; they are not images."""
    tars = [name for name, _ in branch.loose.files if name.endswith(CLASS_TAR)]
    branch.loose.files[:] = [file for file in branch.loose.files if file[0] not in tars]
    return folder_of_class_tars([branch.path / text(name) for name in sorted(tars)])


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
    return _list_by_truth(files_of(folder), [root, folder.path, *above], folder.path)


def _list_by_truth(items: Items, folders: Sequence[Path], path: Path) -> Listing:
    """Images whose classes a file in one of `folders` says."""
    names: list[bytes] = items.name.tolist()
    truth = find_truth(folders, names)
    return list_by_name(items, [truth[name] for name in names], path)
