"""Turn a source of images into a data set: look through it, plan, write every shard, finish.

    from alexprep.dataset.shard import RunOptions, ShardConfig, shard
    shard("ILSVRC", "imagenet1k-256", ShardConfig(), RunOptions(workers=16))

The bytes depend on the source, ShardConfig and the codec; RunOptions says how they are made.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alexprep.dataset.checksums import SUMS, write_checksums
from alexprep.dataset.duplicates import describe_duplicates
from alexprep.dataset.manifest import begin, faults_error, finish, refuse_empty
from alexprep.dataset.sequential import recommend_sequential, spool_folder, write_sequentially
from alexprep.dataset.shard_plan import ShardConfig, ShardPlan
from alexprep.dataset.shard_writer import Fault, ShardRecord, write_shard
from alexprep.dataset.splits import plan_source
from alexprep.dataset.store import STATE, LocalStore, Store, is_local, local_path, open_store
from alexprep.errors import PrepareError, warn
from alexprep.machine import cores
from alexprep.progress import ProgressBar
from alexprep.sources.check import check_beginnings, check_target, refuse_strays
from alexprep.sources.ilsvrc import check_archives
from alexprep.workers import run_tasks
from pipelines.format import Manifest

__all__ = ["RunOptions", "ShardConfig", "shard"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How a data set is made; none of this changes a byte of a shard.

    `splits` takes only these of the source's splits. `workers`: processes, None for one a core.
    `on_error`: "fail" ends at files that are no image, "skip" leaves them out and lists them.
    `scheduler`: address of a Dask cluster that does the work instead. `sequential`: read archives
    front to back. `check_archives`: compare the MD5 of the official archives first.
    """

    splits: Sequence[str] = ()
    workers: int | None = None
    on_error: Literal["fail", "skip"] = "fail"
    scheduler: str | None = None
    sequential: bool = False
    check_archives: bool = False

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"RunOptions.workers must be at least 1, got {self.workers}.")
        if self.on_error not in ("fail", "skip"):
            raise ValueError(f"RunOptions.on_error must be fail or skip, got {self.on_error!r}.")

    @property
    def skip(self) -> bool:
        return self.on_error == "skip"


def shard(
    source: Path | str,
    out: Path | str,
    config: ShardConfig = ShardConfig(),  # noqa: B008 - frozen
    options: RunOptions = RunOptions(),
) -> Manifest:
    """Write the data set of SOURCE to OUT, or finish one that was begun; its manifest.

    PrepareError: the source is not understood or cannot be read, holds files that are no images
    (with on_error="fail"), the store holds something else or cannot be written, or a worker died.
    Whatever ends it, finished shards stay, and the same call goes on from there.
    """
    if options.scheduler is not None:  # workers have working folders of their own
        source, out = Path(source).absolute(), _absolute(str(out))
    store = open_store(str(out))
    if options.check_archives:
        check_archives(Path(source))
    plan = plan_run(source, out, config, options)
    with store.locked():
        finished = begin(store, plan)
        for warning in plan.source.warnings if finished is None else ():
            warn(warning)
        if finished is None and not options.skip:  # now, not after hours of encoding
            refuse_strays(check_beginnings(plan.source), plan.source.name)
        records = _write_all(plan, store, options, finished)
        manifest = finished or finish(store, plan, records)
        _refuse_change(finished, records)
        if finished:
            store.settle()  # what was written again
        if finished and isinstance(store, LocalStore) and store.size(SUMS) is None:
            write_checksums(store.root, finished)  # the first release wrote none
        store.remove(STATE)
    for sentence in describe_duplicates(manifest.duplicates) if finished is None else ():
        warn(f"{sentence} `alexprep verify` names them.")
    refuse_empty(plan, manifest, store)
    return manifest


def _absolute(out: str) -> str:
    if out.startswith("memory://"):
        raise PrepareError(f"{out} is the memory of one process: leave out --scheduler.")
    return out if "://" in out else str(local_path(out).absolute())


def plan_run(
    source: Path | str, out: Path | str, config: ShardConfig, options: RunOptions
) -> ShardPlan:
    """The plan of `shard`; PrepareError where OUT lies in a folder that is searched for images."""
    plan = plan_source(
        Path(source), config, splits=options.splits, skip=options.skip, workers=options.workers
    )
    if is_local(str(out)):
        check_target(plan.source, local_path(str(out)).resolve())
    return plan


def _write_all(
    plan: ShardPlan, store: Store, options: RunOptions, finished: Manifest | None
) -> dict[str, ShardRecord]:
    """Do every task; the records by shard name, in the plan's order."""
    names = [name for split in plan.order for name in plan.names(split)]
    records: dict[str, ShardRecord] = {}
    faults: list[Fault] = []
    with (
        closing(_results(plan, store, options, finished)) as results,
        ProgressBar("shard", plan.source.images) as progress,
    ):
        for number, record in results:
            records[names[number]] = record
            faults += record.faults
            samples = record.shard.samples if record.shard else 0
            done = samples + len(record.faults)
            progress.advance(done, bytes=record.source_bytes, errors=len(record.faults))
            if faults and not options.skip:
                raise faults_error(faults, plan.source.name)
    return {name: records[name] for name in names}


def _results(
    plan: ShardPlan, store: Store, options: RunOptions, finished: Manifest | None
) -> Generator[tuple[int, ShardRecord], None, None]:
    """Start the work in the way that source, store and options ask for."""
    known = {shard.name: shard for shard in finished.shards} if finished else {}
    holder = store.holder() if options.scheduler else ""
    tasks = plan.tasks(store.url, known, skip=options.skip, holder=holder)
    sequential = {samples.items.sequential for samples in plan.source.splits.values()}
    # What is written to memory:// in another process is lost with it.
    in_memory = store.url.startswith("memory://")
    workers = 1 if in_memory else options.workers or cores()
    if options.sequential or "always" in sequential:
        if options.scheduler is not None:
            raise PrepareError(
                "Parquet files and --sequential are read on one machine: leave out --scheduler."
            )
        return write_sequentially(plan, list(tasks), spool_folder(store), workers)
    if "probe" in sequential:
        recommend_sequential(plan.source)
    return run_tasks(write_shard, tasks, workers=workers, scheduler=options.scheduler)


def _refuse_change(finished: Manifest | None, records: dict[str, ShardRecord]) -> None:
    """A shard written again must be the one that the manifest names."""
    if finished is None:
        return
    for shard in finished.shards:
        if records[shard.name].shard != shard:
            raise PrepareError(
                f"{shard.name} was damaged and, written again, differs from the manifest. The "
                "source has changed since: make the data set again in a new folder."
            )
