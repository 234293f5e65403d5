"""Write the card of a data set into its folder, over one that alexprep wrote, damaged or not.

A card that differs from the generated one is somebody's work, or damaged. It is damaged if its
bytes are those of the generated one but for what a bad disk, a power cut or a killed process does
to them: a changed bit, zeros, an end that is missing, one file of another call than the other. Of
the last PENDING tells: hashes of the two files, there while they are written.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from alexprep.dataset.card import (
    IMAGENET_TERMS,
    README,
    Card,
    Publication,
    description,
    make_card,
)
from alexprep.dataset.checksums import hash_file, write_checksums
from alexprep.dataset.croissant import CROISSANT, read_publication
from alexprep.dataset.store import STATE
from alexprep.errors import PrepareError, checking_options, warn
from pipelines.atomic import make_folder, write_whole
from pipelines.errors import DataError
from pipelines.format import Manifest
from pipelines.imagestats import ImageStats

PENDING = f"{STATE}/card"


@dataclass(frozen=True, kw_only=True, slots=True)
class CardState:
    """The files of a card that are not as they were generated.

    `damaged` names files with what has happened to them, `edited` those that nothing of that kind
    explains. `publication` is what the publisher said when the card was generated.
    """

    publication: Publication
    damaged: Mapping[str, str]
    edited: tuple[str, ...]


def card_state(root: Path, manifest: Manifest) -> CardState:
    """Compare the card in a folder with the generated one."""
    card = Card.load(root)
    publication = card.publication
    trusted = card.readme is not None and README not in card.edited
    pending = _pending(root)
    damaged = {
        name: "it belongs to a call that was interrupted"
        for name in card.edited
        if pending.get(name) == hash_file(root / name)
    }
    for candidate, generated in _candidates(root, manifest, card, trusted) if card.edited else ():
        for name, text in ((README, generated.readme), (CROISSANT, generated.croissant)):
            reason = _damage(root / name, (text or "").encode())
            if reason is None or name not in card.edited or name in damaged:
                continue
            damaged[name] = reason
            # What README.md says of the publication may be what is damaged.
            if not trusted:
                publication, trusted = candidate, name == README
    edited = tuple(name for name in card.edited if name not in damaged)
    damaged = {name: reason for name, reason in damaged.items() if reason}
    return CardState(publication=publication, damaged=damaged, edited=edited)


def _candidates(
    root: Path, manifest: Manifest, card: Card, trusted: bool
) -> Iterator[tuple[Publication, Card]]:
    """What the card may have been, by README.md, and unless that is `trusted` by croissant.json."""
    fields = read_publication(card.croissant or "")
    unsaid = {"license": ("unknown", IMAGENET_TERMS), "description": (description(manifest),)}
    fields = {k: value for k, value in fields.items() if value not in unsaid.get(k, ())}
    publications = [card.publication]
    with suppress(TypeError, ValueError):
        # First, for an empty README.md fits all.
        publications = publications if trusted else [Publication(**fields), *publications]
    for publication in publications:
        for stats in (_load_stats(root, manifest), ()):
            yield publication, make_card(manifest, publication, stats)


def _damage(path: Path, generated: bytes) -> str | None:
    """What has happened to a generated file, "" if nothing; None for another text, or no file."""
    data = path.read_bytes() if path.is_file() else generated + b"?"
    if generated.startswith(data):
        missing = len(generated) - len(data)
        return f"its last {missing:,} bytes are missing" if missing else ""
    if len(data) != len(generated):
        return None
    changed = [n for n, pair in enumerate(zip(data, generated, strict=True)) if pair[0] != pair[1]]
    begin, end = changed[0], changed[-1] + 1
    if not any(data[begin:end]):
        return f"bytes {begin:,} to {end:,} are zeros"
    if begin + 1 == end and (data[begin] ^ generated[begin]).bit_count() == 1:
        line = slice(generated.rfind(b"\n", 0, begin) + 1, begin + 20)
        return f"a bit of byte {begin:,} has changed: {data[line]!r} was {generated[line]!r}"
    return None


def _pending(root: Path) -> dict[str, str]:
    """SHA-256 by name of the files that a call was about to write when it was interrupted."""
    try:
        return msgspec.json.decode((root / PENDING).read_bytes(), type=dict[str, str])
    except (OSError, ValueError, RecursionError):
        return {}


def card_warnings(root: Path, manifest: Manifest) -> list[str]:
    """A line for each file of the card that is not as it was generated."""
    state = card_state(root, manifest)
    lines = [
        f"{root / name} is damaged ({reason}). Write it again with `alexprep card {root}`."
        for name, reason in state.damaged.items()
    ]
    return lines + [
        f"{root / name} is not as it was generated: it was edited by hand, or is damaged"
        for name in state.edited
    ]


def renew_card(
    root: Path, changes: Mapping[str, str] | None = None, *, force: bool = False
) -> tuple[str, ...]:
    """Write the card of the data set at `root` anew, with its statistics; what was edited by hand.

    `changes` are fields of Publication to set. A damaged card is replaced with a warning.
    PrepareError, with nothing written, for one that was edited by hand, unless `force`; without
    `changes` such a card is kept, and returned.
    """
    manifest = Manifest.load(root)
    state = card_state(root, manifest)
    edited = () if force else state.edited
    if edited and changes is not None:
        raise PrepareError(
            f"{root / edited[0]} was edited by hand, or is damaged: it is not what alexprep wrote. "
            "Overwrite it with --force, or edit it further by hand."
        )
    # An edited file is kept, and so is the other: together they say one thing.
    if not edited:
        fields = state.publication.to_dict() | dict(changes or {})
        with checking_options():
            publication = Publication(**{name: value for name, value in fields.items() if value})
        card = make_card(manifest, publication, _load_stats(root, manifest))
        _write(root, {CROISSANT: card.croissant or "", README: card.readme or ""})
        for name, reason in state.damaged.items():
            warn(f"{root / name} was damaged ({reason}) and has been written again.")
    write_checksums(root, manifest)
    return edited


def _write(root: Path, texts: Mapping[str, str]) -> None:
    make_folder(root / STATE)
    hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    write_whole(root / PENDING, json.dumps(hashes).encode())
    for name, text in texts.items():
        write_whole(root / name, text.encode())
    (root / PENDING).unlink()
    with suppress(OSError):  # not empty: it has the lock of this call
        (root / STATE).rmdir()


def has_card(root: Path) -> bool:
    """Whether a data set has a card; those of the first release have none."""
    return any((root / name).is_file() for name in (README, CROISSANT))


def _load_stats(root: Path, manifest: Manifest) -> list[ImageStats]:
    """The statistics of every split that has valid ones."""
    stats: list[ImageStats] = []
    for split in manifest.splits:
        try:
            stats.append(ImageStats.load(root, manifest, split))
        except DataError:
            continue  # none yet, or of other shards: the card does without
    return stats
