"""`alexprep verify`: everything a data set says of itself, held against what is there."""

import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from alexprep.dataset.codec import CODEC
from alexprep.dataset.manifest import sidecars
from alexprep.dataset.shard_plan import ShardConfig, ShardPlan
from alexprep.dataset.shard_writer import write_shard
from alexprep.dataset.splits import plan_source
from alexprep.dataset.verify_shard import CheckTask, Findings, check_shard
from alexprep.errors import PrepareError
from alexprep.machine import cores
from alexprep.progress import ProgressBar
from alexprep.workers import run_tasks
from pipelines.format import Manifest, Shard, Split


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What was looked at, the shards that were made again, and every fault, the first first."""

    shards: int
    images: int
    rebuilt: tuple[str, ...]
    faults: tuple[str, ...]


def verify(
    root: Path, *, workers: int | None = None, rebuild: int = 0, source: Path | None = None
) -> Verified:
    """Check every hash, count, index entry, label and JPEG of the data set at `root`.

    With `rebuild`, as many shards, chosen at random, are also made again from `source` and compared
    byte for byte. Faults are told in the result; DataError if there is no manifest to go by,
    PrepareError if `source` is not what the data set was made from.
    """
    manifest = Manifest.load(root)
    if rebuild and source is None:
        raise PrepareError(
            f"To make shards of {root} again their source is needed: give --source FOLDER."
        )
    plan = _plan(manifest, source, root) if rebuild and source is not None else None
    everything = _check_all(root, manifest, workers or cores())
    faults = [*_stray_files(root, manifest)]
    for split, there in manifest.splits.items():
        found = [everything[shard.name] for shard in there.shards]
        faults += [fault for one in found for fault in one.faults]
        faults += _split_faults(split, there, len(manifest.classes), found)
    faults += _data_set_faults(manifest, list(everything.values()))
    rebuilt: tuple[str, ...] = ()
    if plan is not None:
        rebuilt, differences = _rebuild(plan, manifest, rebuild, workers or cores())
        faults += differences
    return Verified(
        shards=len(everything),
        images=sum(one.samples for one in everything.values()),
        rebuilt=rebuilt,
        faults=tuple(faults),
    )


def format_verified(found: Verified, root: Path) -> str:
    """Every fault on a line of its own, then one line that sums up."""
    made = f", {len(found.rebuilt)} made again" if found.rebuilt else ""
    about = f"{found.shards:,} shards{made}, {found.images:,} images"
    if not found.faults:
        return f"{root}: {about}, all as the manifest says."
    return "\n".join([*found.faults, f"{root}: {about}, {len(found.faults):,} faults."])


def _check_all(root: Path, manifest: Manifest, workers: int) -> dict[str, Findings]:
    tasks = [
        CheckTask(
            root=root.absolute(),
            shard=shard,
            size=manifest.size,
            wnids=tuple(wnid for wnid, _ in manifest.classes),
            cls_width=manifest.cls_width,
        )
        for split in manifest.splits.values()
        for shard in split.shards
    ]
    found: dict[str, Findings] = {}
    with (
        ProgressBar("verify", sum(task.shard.samples for task in tasks)) as progress,
        closing(run_tasks(check_shard, tasks, workers=workers)) as results,
    ):
        for index, one in results:
            shard = tasks[index].shard
            found[shard.name] = one
            progress.advance(shard.samples, bytes=shard.bytes, errors=len(one.faults))
    return {task.shard.name: found[task.shard.name] for task in tasks}


def _stray_files(root: Path, manifest: Manifest) -> Iterator[str]:
    """Files in the split folders that the manifest does not name, and sidecars that say else."""
    known = {shard.name for split in manifest.splits.values() for shard in split.shards}
    for split in manifest.splits:
        for path in sorted((root / split).glob("**/*")):
            if path.is_file() and path.relative_to(root).as_posix() not in known:
                yield f"{path} is not in the manifest"
    for name, text in sidecars(manifest).items():
        path = root / name
        if not path.is_file():
            yield f"{path} is missing"
        elif path.read_text(errors="replace") != text:
            yield f"{path} does not say what the manifest says"


def _split_faults(
    name: str, split: Split, classes: int, found: Sequence[Findings]
) -> Iterator[str]:
    labels = Counter[int]()
    for one in found:
        labels.update(one.labels)
    if len(split.counts) != classes:
        yield f"{name}: the manifest counts {len(split.counts)} classes, it has {classes}"
    for label, count in enumerate(split.counts):
        if labels[label] != count:
            yield f"{name}: label {label} has {labels[label]} images, the manifest says {count}"


def _data_set_faults(manifest: Manifest, found: Sequence[Findings]) -> Iterator[str]:
    keys = Counter(key for one in found for key in one.keys)
    for key, count in keys.items():
        if count > 1:
            yield f"key {key!r} is there {count} times"
    fixes = Counter[str]()
    for one in found:
        fixes.update(one.fixes)
    if dict(fixes) != dict(manifest.fixes):
        yield f"mended images are {dict(fixes)}, the manifest says {dict(manifest.fixes)}"
    largest = max((one.largest_jpg for one in found), default=0)
    if largest != manifest.largest_jpg:
        yield f"the largest jpg has {largest} bytes, the manifest says {manifest.largest_jpg}"


def _plan(manifest: Manifest, source: Path, root: Path) -> ShardPlan:
    """The plan that made the data set, if `source` and this codec are those it was made with."""
    if dict(manifest.codec) != dict(CODEC):
        raise PrepareError(
            f"{root} was written with {dict(manifest.codec)}, here is {dict(CODEC)}: other bytes "
            "would say nothing. Install those versions, or leave out --rebuild."
        )
    config = ShardConfig(**manifest.config)
    plan = plan_source(source, config, splits=sorted(manifest.splits), skip=True)
    if plan.source.identity() != {k: v for k, v in manifest.source.items() if k != "warnings"}:
        raise PrepareError(
            f"{source} is not what {root} was made from: its images or classes are others."
        )
    return plan


def _rebuild(
    plan: ShardPlan, manifest: Manifest, count: int, workers: int
) -> tuple[tuple[str, ...], list[str]]:
    """Write some of the shards again in a temporary folder: their names, and the differences."""
    there = {shard.name: shard for split in manifest.splits.values() for shard in split.shards}
    names = sorted(random.sample(sorted(there), min(count, len(there))))
    with tempfile.TemporaryDirectory(prefix="alexprep-verify-") as folder:
        tasks = [task for task in plan.tasks(folder, {}, skip=True) if task.name in names]
        made: dict[str, Shard | None] = {}
        with (
            ProgressBar("make again", len(tasks), unit="shards") as progress,
            closing(run_tasks(write_shard, tasks, workers=workers)) as results,
        ):
            for index, record in results:
                made[tasks[index].name] = record.shard
                progress.advance(1)
    differences = [
        f"{name}, made again, has sha256 {_sha256(made.get(name))}, the manifest says "
        f"{there[name].sha256}"
        for name in names
        if made.get(name) != there[name]
    ]
    return tuple(names), differences


def _sha256(shard: Shard | None) -> str:
    return shard.sha256 if shard else "none (no sample)"
