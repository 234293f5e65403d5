"""Write shards of a finished data set again from its source, to compare them byte for byte."""

import random
from contextlib import closing
from pathlib import Path

from alexprep.dataset.codec import CODEC, matches_codec
from alexprep.dataset.manifest import source_identity
from alexprep.dataset.shard_plan import ShardConfig, ShardPlan
from alexprep.dataset.shard_writer import write_shard
from alexprep.dataset.splits import plan_source
from alexprep.errors import PrepareError
from alexprep.lock import temporary_folder
from alexprep.progress import ProgressBar
from alexprep.workers import run_tasks
from pipelines.format import Manifest, Shard

PREFIX = "alexprep-verify-"


def plan_again(manifest: Manifest, source: Path, root: Path) -> ShardPlan:
    """The plan that made the data set.

    PrepareError unless `source` and this installation's codec are those it was made with.
    """
    if not matches_codec(manifest.codec):
        raise PrepareError(
            f"{root} was written with {dict(manifest.codec)}, this installation has {dict(CODEC)}, "
            "which writes other bytes. Install those versions, or leave out --rebuild."
        )
    config = ShardConfig(**manifest.config)
    plan = plan_source(source, config, splits=sorted(manifest.splits), skip=True)
    if plan.source.identity() != source_identity(manifest):
        raise PrepareError(
            f"{source} is not what {root} was made from: its images or classes differ."
        )
    return plan


def rebuild_shards(
    plan: ShardPlan, manifest: Manifest, count: int, workers: int
) -> tuple[tuple[str, ...], list[str]]:
    """Write random shards again in a temporary folder: their names, and the differences."""
    shards = {shard.name: shard for shard in manifest.shards}
    # Random ones, so that every call looks at others.
    names = sorted(random.sample(sorted(shards), min(count, len(shards))))
    rebuilt: dict[str, Shard | None] = {}
    with temporary_folder(PREFIX) as folder:
        tasks = [task for task in plan.tasks(str(folder), {}, skip=True) if task.name in names]
        with (
            ProgressBar("rebuild", len(tasks), unit="shards") as progress,
            closing(run_tasks(write_shard, tasks, workers=workers)) as results,
        ):
            for index, record in results:
                rebuilt[tasks[index].name] = record.shard
                progress.advance(1)
    differences = [
        f"{name}, rebuilt, has sha256 {_sha256(rebuilt.get(name))}, the manifest says "
        f"{shards[name].sha256}"
        for name in names
        if rebuilt.get(name) != shards[name]
    ]
    return tuple(names), differences


def _sha256(shard: Shard | None) -> str:
    return shard.sha256 if shard else "none (no sample)"
