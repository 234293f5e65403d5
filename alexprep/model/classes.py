"""The classes of a data set among those of a network: matched by what they are called.

The position of a class says nothing: the tench is label 0 of ILSVRC2012 and of imagenette, but not
of ImageNet-A. In order of trust:

    wnid     the first word of an entry of the manifest, which is the class folder's name
    name     where one of the two is no wnid: a word that is a name of one class alone. "tench",
             "tench, Tinca tinca" and "Tinca_tinca" are one class; "crane" is two of ILSVRC2012
    number   folders 0..999 (ImageNet-V2): the labels of the network, if nothing else fits
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from alexnet.errors import RunError
from alexprep.errors import shown
from alexprep.sources.synsets import ilsvrc2012

Classes = tuple[tuple[str, str], ...]  # (wnid, names) in label order
WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassMatch:
    """Which class of a network each class of a data set is.

    Attributes:
        classes: those of the network; of the data set where the two are the same.
        label: of the network, for each label of the data set; -1 where it does not know the class.
            int64, on the CPU.
        basis: what the classes were matched by; the weakest that was needed.
        unknown: classes of the data set that the network does not know.
        same: whether a label means the same class in both.
    """

    classes: Classes
    label: Tensor
    basis: Literal["wnid", "name", "number"] = "wnid"
    unknown: tuple[str, ...] = ()
    same: bool = True

    @property
    def present(self) -> Tensor:
        """Labels of the network that the data set has, ascending."""
        return self.label[self.label >= 0].sort().values


def match_classes(network: Classes, dataset: Classes, checkpoint: str, root: Path) -> ClassMatch:
    """Find the classes of the data set at `root` among those of the network in `checkpoint`.

    RunError where there are none, and where two of them would be one class of the network.
    """
    wnids = [wnid for wnid, _ in network]
    # The usual case, in which labels stay as they are.
    if wnids == [wnid for wnid, _ in dataset]:
        return ClassMatch(classes=dataset, label=torch.arange(len(dataset)))
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    labels = [label_of.get(wnid, -1) for wnid, _ in dataset]
    basis: Literal["wnid", "name", "number"] = "wnid"
    if -1 in labels:
        named = _labels_by_name(network, dataset, labels)
        labels, basis = named, "wnid" if named == labels else "name"
    if set(labels) == {-1}:
        labels, basis = _labels_by_number(network, dataset), "number"
    if set(labels) <= {-1}:
        raise RunError(
            f"{checkpoint} knows none of the {len(dataset):,} classes of {root} "
            f"({shown([wnid for wnid, _ in dataset])}); it knows {len(network):,} others "
            f"({shown(wnids)}). Classes are matched by wnid or name: name the class folders after "
            "those of the network."
        )
    _refuse_twins(labels, network, dataset, root)
    return ClassMatch(
        classes=network,
        label=torch.tensor(labels),
        basis=basis,
        unknown=tuple(wnid for label, (wnid, _) in zip(labels, dataset, strict=True) if label < 0),
        same=False,
    )


def _labels_by_name(network: Classes, dataset: Classes, labels: Sequence[int]) -> list[int]:
    """`labels`, with those of classes that share a name with one class of the network alone."""
    every: dict[str, set[int]] = {}
    folders: dict[str, set[int]] = {}  # of classes that have no wnid
    for label, entry in enumerate(network):
        for name in _spellings(entry):
            every.setdefault(name, set()).add(label)
            if WNID.fullmatch(entry[0]) is None:
                folders.setdefault(name, set()).add(label)

    def find(entry: tuple[str, str]) -> int:
        # Two wnids are two classes, whatever they are called: WordNet has many a crane.
        names = folders if WNID.fullmatch(entry[0]) else every
        shared = (names.get(name, set[int]()) for name in _spellings(entry))
        return next((min(group) for group in shared if len(group) == 1), -1)

    return [
        label if label >= 0 else find(entry) for label, entry in zip(labels, dataset, strict=True)
    ]


def _spellings(entry: tuple[str, str]) -> Iterator[str]:
    """What a class may be called, the surest first."""
    wnid, names = entry
    yield _plain(wnid)
    yield _plain(names)
    yield from map(_plain, names.split(","))


def _plain(name: str) -> str:
    """A name without case, hyphens, underscores and leading zeros."""
    words = re.split(r"[\s_-]+", unicodedata.normalize("NFKC", name).casefold().strip())
    plain = " ".join(words)
    return str(int(plain)) if plain.isdecimal() else plain


def _labels_by_number(network: Classes, dataset: Classes) -> list[int]:
    """Labels of class folders that are numbers from 0 without gaps; empty if they are others."""
    names = [wnid for wnid, _ in dataset]
    if not all(name.isdecimal() for name in names):
        return []
    numbers = [int(name) for name in names]
    if sorted(numbers) != list(range(len(numbers))):
        return []  # some labels of an unknown list, or numbers from 1
    wnids = [wnid for wnid, _ in network]
    if len(numbers) == len(wnids) and not all(wnid.isdecimal() for wnid in wnids):
        return numbers
    official = [synset.wnid for synset in ilsvrc2012()]
    if len(numbers) == len(official) and set(wnids) <= set(official):
        label_of = {wnid: label for label, wnid in enumerate(wnids)}
        return [label_of.get(official[number], -1) for number in numbers]
    return []


def _refuse_twins(labels: Sequence[int], network: Classes, dataset: Classes, root: Path) -> None:
    first: dict[int, str] = {}
    for label, (wnid, _) in zip(labels, dataset, strict=True):
        other = first.setdefault(label, wnid)
        if label >= 0 and other != wnid:
            raise RunError(
                f"{root} has the classes {other!r} and {wnid!r}, which are both "
                f"{' '.join(network[label])} of the network. Rename or merge them."
            )
