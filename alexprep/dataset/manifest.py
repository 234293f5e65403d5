"""Begin, resume and finish a data set: what a run reads from its store and leaves there."""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from alexprep import __version__
from alexprep.dataset.card import README, Card, make_card
from alexprep.dataset.checksums import SUMS, checksums, hash_file, shard_digests
from alexprep.dataset.codec import codec_of
from alexprep.dataset.croissant import CROISSANT
from alexprep.dataset.duplicates import DIGEST_BYTES, count_duplicates, equal_groups, join
from alexprep.dataset.shard_plan import ShardPlan
from alexprep.dataset.shard_writer import Fault, ShardRecord
from alexprep.dataset.store import STATE, Store, write_bytes
from alexprep.errors import PrepareError, counted, listed
from alexprep.schema import parse
from alexprep.sources.content import LARGEST_FILE, LITTER, Stray
from pipelines.format import MANIFEST, Left, Manifest, Split, cls_width

PLAN = f"{STATE}/plan.json"
MAX_NAMED = 1000
# What mounts and file managers put into the root of a volume, next to content.LITTER.
MOUNTED = frozenset(
    {
        *(".DS_Store", ".localized", ".Spotlight-V100", ".fseventsd", ".TemporaryItems"),
        *(".snapshot", ".snapshots", ".zfs", ".directory", ".hidden", ".stfolder"),
    }
)


def begin(store: Store, plan: ShardPlan) -> Manifest | None:
    """Write down the plan, or check it against the one there; the manifest of a finished data set.

    PrepareError where the store holds another data set (the difference is named) or other files.
    """
    identity = _jsonable(plan.identity())
    # The manifest first: a finished data set has no plan any more.
    raw = store.read(MANIFEST)
    if raw is not None:
        finished = Manifest.from_json(_json_object(store, MANIFEST, raw), f"{store.url}/{MANIFEST}")
        _refuse_difference(store, "is a finished data set", _identity(finished), identity)
        return finished
    strangers = [name for name in store.listing() if not counts_as_empty(name)]
    unfinished = _read_plan(store, bool(strangers))
    if unfinished is not None:
        _refuse_difference(store, "holds an unfinished data set", unfinished, identity)
        return None
    if strangers:
        raise PrepareError(
            f"{store.url} is not empty ({strangers[0]} is there) and is not a data set of "
            "alexprep. Name a new folder."
        )
    write_bytes(store, PLAN, (json.dumps(identity, indent=1) + "\n").encode())
    store.settle()
    return None


def _read_plan(store: Store, has_files: bool) -> dict[str, Any] | None:
    raw = store.read(PLAN)
    if raw is None:
        return None
    try:
        return _json_object(store, PLAN, raw)
    except PrepareError:
        if has_files:
            raise
        return None  # as a power cut leaves it, and no shard depends on it yet


def _json_object(store: Store, name: str, raw: bytes) -> dict[str, Any]:
    advice = "Write the data set to a new folder, or remove this one first."
    return parse(raw, dict[str, Any], PrepareError, source=f"{store.url}/{name}", advice=advice)


def counts_as_empty(name: str) -> bool:
    """Whether a folder with this in it may be used: a mount or a file manager has put it there."""
    mounted = name.startswith((".nfs", ".Trash", ".fuse_hidden")) or name in MOUNTED
    return mounted or name == STATE or name.lower() in LITTER


def _identity(manifest: Manifest) -> dict[str, Any]:
    return _jsonable(
        {
            "version": manifest.version,
            "codec": manifest.codec,
            "config": manifest.config,
            "source": source_identity(manifest),
        }
    )


def source_identity(manifest: Manifest) -> dict[str, Any]:
    """What Source.identity() was, without what was found out about the source."""
    findings = ("warnings", "duplicates")
    return {name: value for name, value in manifest.source.items() if name not in findings}


def _jsonable(value: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(value, sort_keys=True))


def _refuse_difference(
    store: Store, state: str, stored: dict[str, Any], expected: dict[str, Any]
) -> None:
    # Data sets made before codec had all of its names lack some.
    codec = {**expected["codec"], **cast(dict[str, Any], stored.get("codec") or {})}
    differences = list(_differences("", {**stored, "codec": codec}, expected))
    if differences:
        raise PrepareError(
            f"{store.url} {state} with {'; '.join(differences)}. Name a new folder, or remove this "
            "one to build it again."
        )


def _differences(path: str, stored: Any, expected: Any) -> Iterable[str]:
    if isinstance(stored, dict) and isinstance(expected, dict):
        old, new = cast(dict[str, Any], stored), cast(dict[str, Any], expected)
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(f"{path}.{name}", old.get(name), new.get(name))
    elif stored != expected:
        yield f"{path.lstrip('.')} {stored!r} where this run has {expected!r}"


def finish(store: Store, plan: ShardPlan, records: Mapping[str, ShardRecord]) -> Manifest:
    """Write the sidecars and the card, then the manifest."""
    manifest = _manifest(plan, records)
    texts = sidecars(manifest)
    sums = checksums(_digests(store, manifest, texts | {MANIFEST: manifest.to_json()}))
    for name, text in (texts | _card_texts(store, manifest) | {SUMS: sums}).items():
        write_bytes(store, name, text.encode())
    # The manifest says that the data set is finished: it must not outlive its shards.
    store.settle()
    write_bytes(store, MANIFEST, manifest.to_json().encode())
    store.settle()
    return manifest


def _card_texts(store: Store, manifest: Manifest) -> dict[str, str]:
    """The card; nothing if a run that was interrupted has written it and someone edited it."""
    present = [store.read(name) for name in (README, CROISSANT)]
    readme, croissant = (
        None if data is None else data.decode(errors="replace") for data in present
    )
    if Card(readme=readme, croissant=croissant).edited:
        return {}
    card = make_card(manifest)
    return {README: card.readme or "", CROISSANT: card.croissant or ""}


def _digests(store: Store, manifest: Manifest, texts: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of shards, indexes and sidecars, by name."""

    def digest(name: str) -> str:
        return store.sha256(name) or hashlib.sha256(store.read(name) or b"").hexdigest()

    digests = shard_digests(manifest)
    indexes = [shard.index for shard in manifest.shards]
    # No record of a shard has the hash of its index. They are small, but may be far away.
    with ThreadPoolExecutor(max_workers=16) as pool:
        digests |= dict(zip(indexes, pool.map(digest, indexes), strict=True))
    return digests | {
        name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()
    }


def sidecars(manifest: Manifest) -> dict[str, str]:
    """The files that timm, wids and people look for, by name."""
    files = {"synsets.txt": "".join(f"{wnid}\t{names}\n" for wnid, names in manifest.classes)}
    # _info.json is timm's, wids-SPLIT.json of the wids library; neither reads manifest.json.
    timm: dict[str, Any] = {}
    for name, split in manifest.splits.items():
        timm[name] = {
            "name": name,
            "num_samples": split.samples,
            "filenames": [shard.name for shard in split.shards],
            "shard_lengths": [shard.samples for shard in split.shards],
        }
        wids = {
            "__kind__": "wids-shard-index-v1",
            "wids_version": 1,
            "name": f"{manifest.name}-{name}",
            "shardlist": [
                {
                    "url": shard.name,
                    "md5sum": shard.md5,
                    "nsamples": shard.samples,
                    "filesize": shard.bytes,
                }
                for shard in split.shards
            ],
        }
        files[f"wids-{name}.json"] = json.dumps(wids, indent=1) + "\n"
    files["_info.json"] = json.dumps({"splits": timm}, indent=1) + "\n"
    return files


def _manifest(plan: ShardPlan, records: Mapping[str, ShardRecord]) -> Manifest:
    identity = plan.identity()
    mended: dict[str, list[str]] = {}
    for record in records.values():
        for fix, keys in record.mended.items():
            mended.setdefault(fix, []).extend(keys)
    faults = [fault for record in records.values() for fault in record.faults]
    return Manifest(
        version=identity["version"],
        name=plan.source.name,
        alexprep=__version__,
        codec=codec_of(mended),
        config=identity["config"],
        source=identity["source"] | _findings(plan, records),
        classes=plan.source.classes,
        cls_width=cls_width(len(plan.source.classes)),
        size=plan.config.size,
        largest_jpg=max((record.largest_jpg for record in records.values()), default=0),
        fixes={fix: len(keys) for fix, keys in sorted(mended.items())},
        # Sorted, so that the order in which workers finish leaves no trace.
        left_out=tuple(
            Left(path=path.removeprefix(f"{plan.source.root}/"), sha256=sha256, reason=reason)
            for path, sha256, reason in sorted(
                [*(fault[:3] for fault in faults), *map(_hash_file, plan.source.left_out)]
            )
        ),
        splits={split: _split(plan, split, records) for split in plan.order},
        mended={
            fix: tuple(sorted(keys))
            for fix, keys in sorted(mended.items())
            if len(keys) <= MAX_NAMED
        },
    )


def _findings(plan: ShardPlan, records: Mapping[str, ShardRecord]) -> dict[str, Any]:
    """What is noteworthy about the source; a field is absent where there is nothing to say."""
    findings = {
        "warnings": list(plan.source.warnings),
        "duplicates": _count_duplicates(plan, records),
    }
    return {name: value for name, value in findings.items() if value}


def _count_duplicates(plan: ShardPlan, records: Mapping[str, ShardRecord]) -> dict[str, int]:
    hashed: list[tuple[bytes, int, NDArray[np.int32]]] = []
    for split_number, split in enumerate(plan.order):
        labels, cuts = plan.source.splits[split].label[plan.order[split]], plan.cuts[split]
        for number, name in enumerate(plan.names(split)):
            shard_labels = labels[cuts[number] : cuts[number + 1]]
            digests = base64.b64decode(records[name].digests)
            if len(digests) != DIGEST_BYTES * len(shard_labels):
                return {}  # an earlier release began this data set; `verify` counts them
            hashed.append((digests, split_number, shard_labels))
    images = join(hashed)
    return count_duplicates(images, equal_groups(images))


def _hash_file(stray: Stray) -> tuple[str, str, str]:
    """(path, sha256, reason) of a file that was left out when the source was listed."""
    path, sha256 = Path(stray.path), stray.sha256
    try:
        if not sha256 and path.is_file() and path.stat().st_size <= LARGEST_FILE:
            sha256 = hash_file(path)
    except OSError:
        sha256 = ""  # it cannot be read, which is why it was left out
    return stray.path, sha256, stray.reason


def _split(plan: ShardPlan, split: str, records: Mapping[str, ShardRecord]) -> Split:
    """Shards in order and samples per class; a shard without any image is left out."""
    classes, labels = len(plan.source.classes), plan.source.splits[split].label
    faults = [fault.label for name in plan.names(split) for fault in records[name].faults]
    counts = np.bincount(labels, minlength=classes)
    counts -= np.bincount(np.array(faults, np.intp), minlength=classes)
    shards = [records[name].shard for name in plan.names(split)]
    return Split(
        shards=tuple(shard for shard in shards if shard is not None), counts=tuple(counts.tolist())
    )


def refuse_empty(plan: ShardPlan, manifest: Manifest, store: Store) -> None:
    """PrepareError if all files of a class in a split had to be skipped."""
    for name, split in manifest.splits.items():
        labels = plan.source.splits[name].label
        listed = np.bincount(labels, minlength=len(manifest.classes))
        emptied = [
            manifest.classes[label][0]
            for label, (files, samples) in enumerate(zip(listed, split.counts, strict=True))
            if files and not samples
        ]
        if emptied:
            raise PrepareError(
                f"{store.url} is written, but {name} has no image of {len(emptied)} classes, the "
                f"first is {emptied[0]!r}: see left_out in its {MANIFEST}."
            )


def faults_error(faults: list[Fault], source: str) -> PrepareError:
    """The list that ends a run which may not skip unreadable images."""
    return PrepareError(
        f"{source} holds {counted(len(faults), 'file')} that cannot become a sample:",
        *listed([f"{fault.path} {fault.reason}" for fault in sorted(faults)]),
        "Fix or remove them, or skip them with --on-error skip. Finished shards are kept.",
    )
