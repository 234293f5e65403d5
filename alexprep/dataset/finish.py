"""Begin, continue and finish a data set: what a run finds in its target and leaves there."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from alexprep import __version__
from alexprep.dataset.codec import CODEC
from alexprep.dataset.plan import Plan
from alexprep.dataset.target import STATE, Target, write_bytes
from alexprep.dataset.write import Fault, Record
from alexprep.errors import PrepareError
from alexprep.sources.content import LITTER, Stray
from pipelines.format import MANIFEST, VERSION, Left, Manifest, Shard, Split, cls_width

PLAN = f"{STATE}/plan.json"
MOST_NAMED = 1000
# What mounts and file managers put into the root of a volume, next to content.LITTER.
MOUNTED = frozenset(
    {
        *(".DS_Store", ".localized", ".Spotlight-V100", ".fseventsd", ".TemporaryItems"),
        *(".snapshot", ".snapshots", ".zfs", ".directory", ".hidden", ".stfolder"),
    }
)


def begin(target: Target, plan: Plan) -> Manifest | None:
    """Write down what is to be made, or agree with what was; the manifest of a finished data set.

    PrepareError where the target holds another data set (the difference is named) or other files.
    """
    wanted = _jsonable(plan.identity())
    raw = target.read(MANIFEST)
    finished = Manifest.from_json(json.loads(raw), Path(target.url)) if raw is not None else None
    if finished is not None:
        _refuse_difference(target, "is a finished data set", _identity(finished), wanted)
        return finished
    begun = target.read(PLAN)
    if begun is not None:
        _refuse_difference(target, "holds a data set begun", json.loads(begun), wanted)
        return None
    if strangers := [name for name in target.listing() if not counts_as_empty(name)]:
        raise PrepareError(
            f"{target.url} is not empty ({strangers[0]} is there) and is no data set of alexprep. "
            "Give a new folder."
        )
    write_bytes(target, PLAN, (json.dumps(wanted, indent=1) + "\n").encode())
    return None


def counts_as_empty(name: str) -> bool:
    """Whether a folder with this in it may be taken: a mount or a file manager has put it there."""
    mounted = name.startswith((".nfs", ".Trash", ".fuse_hidden")) or name in MOUNTED
    return mounted or name == STATE or name.lower() in LITTER


def _identity(manifest: Manifest) -> dict[str, Any]:
    return _jsonable(
        {
            "version": manifest.version,
            "codec": manifest.codec,
            "config": manifest.config,
            "source": {k: v for k, v in manifest.source.items() if k != "warnings"},
        }
    )


def _jsonable(value: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(value, sort_keys=True))


def _refuse_difference(
    target: Target, what: str, there: dict[str, Any], wanted: dict[str, Any]
) -> None:
    differences = list(_differences("", there, wanted))
    if differences:
        raise PrepareError(
            f"{target.url} {what} with {'; '.join(differences)}. Give a new target, or remove "
            "that one to make it again."
        )


def _differences(path: str, there: Any, wanted: Any) -> Iterable[str]:
    if isinstance(there, dict) and isinstance(wanted, dict):
        left, right = cast(dict[str, Any], there), cast(dict[str, Any], wanted)
        for name in sorted(left.keys() | right.keys()):
            yield from _differences(f"{path}.{name}", left.get(name), right.get(name))
    elif there != wanted:
        yield f"{path.lstrip('.')} {there!r} where this run has {wanted!r}"


def finish(target: Target, plan: Plan, records: Mapping[str, Record]) -> Manifest:
    """Write the sidecars, then the manifest, then remove the traces of the run."""
    manifest = _manifest(plan, records)
    for name, data in sidecars(manifest).items():
        write_bytes(target, name, data.encode())
    target.settle()
    write_bytes(target, MANIFEST, manifest.to_json().encode())
    target.settle()
    return manifest


def sidecars(manifest: Manifest) -> dict[str, str]:
    """The files that timm, wids and people look for, by name."""
    files = {"synsets.txt": "".join(f"{wnid}\t{names}\n" for wnid, names in manifest.classes)}
    timm: dict[str, Any] = {}
    for split, there in manifest.splits.items():
        timm[split] = {
            "name": split,
            "num_samples": there.samples,
            "filenames": [shard.name for shard in there.shards],
            "shard_lengths": [shard.samples for shard in there.shards],
        }
        wids = {
            "__kind__": "wids-shard-index-v1",
            "wids_version": 1,
            "name": f"{manifest.name}-{split}",
            "shardlist": [
                {
                    "url": shard.name,
                    "md5sum": shard.md5,
                    "nsamples": shard.samples,
                    "filesize": shard.bytes,
                }
                for shard in there.shards
            ],
        }
        files[f"wids-{split}.json"] = json.dumps(wids, indent=1) + "\n"
    files["_info.json"] = json.dumps({"splits": timm}, indent=1) + "\n"
    return files


def _manifest(plan: Plan, records: Mapping[str, Record]) -> Manifest:
    identity = plan.identity()
    mended: dict[str, list[str]] = {}
    for record in records.values():
        for fix, keys in record.mended.items():
            mended.setdefault(fix, []).extend(keys)
    faults = [fault for record in records.values() for fault in record.faults]
    return Manifest(
        version=VERSION,
        name=plan.source.name,
        alexprep=__version__,
        codec=dict(CODEC),
        config=identity["config"],
        source=identity["source"]
        | ({"warnings": list(plan.source.warnings)} if plan.source.warnings else {}),
        classes=plan.source.classes,
        cls_width=cls_width(len(plan.source.classes)),
        size=plan.config.size,
        largest_jpg=max((record.largest_jpg for record in records.values()), default=0),
        fixes={fix: len(keys) for fix, keys in sorted(mended.items())},
        left_out=tuple(
            Left(path=path.removeprefix(f"{plan.source.root}/"), sha256=sha256, reason=reason)
            for path, sha256, reason in sorted(
                [*(fault[:3] for fault in faults), *map(_hashed, plan.source.left_out)]
            )
        ),
        splits={split: _split(plan, split, records) for split in plan.order},
        mended={
            fix: tuple(sorted(keys))
            for fix, keys in sorted(mended.items())
            if len(keys) <= MOST_NAMED
        },
    )


def _hashed(stray: Stray) -> tuple[str, str, str]:
    """(path, sha256, reason) of a file that was left out when the source was listed."""
    path, sha256 = Path(stray.path), stray.sha256
    try:
        if not sha256 and path.is_file():
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        sha256 = ""  # it may not be read, which is why it was left out
    return stray.path, sha256, stray.reason


def _split(plan: Plan, split: str, records: Mapping[str, Record]) -> Split:
    """Shards in order and samples a class; a shard that has no image left is not there."""
    counts = Counter[int]()
    labels = plan.source.splits[split].label
    for label, count in enumerate(np.bincount(labels, minlength=len(plan.source.classes))):
        counts[label] = int(count)
    shards: list[Shard] = []
    for name in plan.names(split):
        record = records[name]
        counts.subtract(fault.label for fault in record.faults)
        if record.shard is not None:
            shards.append(record.shard)
    ordered = tuple(counts[label] for label in range(len(plan.source.classes)))
    return Split(shards=tuple(shards), counts=ordered)


def refuse_empty(plan: Plan, manifest: Manifest, target: Target) -> None:
    """PrepareError if files that had to be left out were all that a class or split had."""
    for split, there in manifest.splits.items():
        before = np.bincount(plan.source.splits[split].label, minlength=len(manifest.classes))
        emptied = [
            manifest.classes[label][0]
            for label, (was, now) in enumerate(zip(before, there.counts, strict=True))
            if was and not now
        ]
        if emptied:
            raise PrepareError(
                f"{target.url} is written, but {split} has no image left of {len(emptied)} "
                f"classes, the first is {emptied[0]!r}: see left_out in its {MANIFEST}."
            )


def faults_message(faults: list[Fault], source: str) -> str:
    """The list that ends a run which may leave nothing out."""
    shown = [f"\n  {fault.path} {fault.reason}" for fault in sorted(faults)[:50]]
    more = f"\n  and {len(faults) - 50:,} more" if len(faults) > 50 else ""
    return (
        f"{source} holds {len(faults):,} file{'s' * (len(faults) != 1)} that cannot become a "
        f"sample:{''.join(shown)}{more}\nMend or remove them, or leave them out with "
        "--on-error skip. Finished shards are kept."
    )
