"""Read the source front to back instead of all over it, for storage that seeks slowly.

The images are encoded in the order of the source and appended to one spool file a shard; then each
shard is put together from its spool file. The bytes are the same. An archive is read twice: for its
headers, when the source is looked through, and for its images. The spool takes as much room as the
data set, and each spool file goes when its shard is published.
"""

import errno
import itertools
import json
import os
import statistics
import struct
import time
import zlib
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexprep.dataset.codec import Encoded
from alexprep.dataset.manifest import faults_error
from alexprep.dataset.shard_plan import ShardConfig, ShardPlan, ShardTask, permutation
from alexprep.dataset.shard_writer import (
    RECORDS,
    Fault,
    Outcome,
    ShardRecord,
    find_shard,
    outcomes,
    publish_shard,
)
from alexprep.dataset.store import STATE, LocalStore, Store, open_store
from alexprep.errors import PrepareError, warn
from alexprep.progress import ProgressBar
from alexprep.sources.items import Items
from alexprep.sources.listing import Source
from alexprep.workers import run_tasks
from pipelines.format import Shard

HEAD = struct.Struct("<4sIIII")  # mark, slot in the shard, bytes of jpg and of notes, CRC-32 of all
MARK = b"spl1"
UNKNOWN = -1
# A worker encodes an image in 2 ms and has AHEAD reads under way.
SLOW_READ = 0.004
PROBES = 32


class Chunk(NamedTuple):
    """Neighbours in the source: for each, the shard it goes to and its slot there."""

    number: int
    items: Items
    shard: NDArray[np.int32]
    slot: NDArray[np.int32]


def spool_folder(store: Store) -> Path:
    """Beside the shards where these are in a folder, so that an interrupted run finds it."""
    if isinstance(store, LocalStore):
        return store.root / STATE / "spool"
    raise PrepareError(
        f"--sequential and Parquet files need a local folder for their spool, unlike {store.url}. "
        "Write to a folder, and copy it."
    )


def recommend_sequential(source: Source) -> None:
    """Say so where scattered reads of the archives take longer than encoding what they bring."""
    seconds = max(
        scattered_read_seconds(samples.items)
        for samples in source.splits.values()
        if samples.items.sequential == "probe"
    )
    if seconds > SLOW_READ:
        warn(
            f"A random read from {source.root} takes {1000 * seconds:.0f} ms, as on a spinning "
            "disk or a network drive; --sequential is likely to be faster."
        )


def scattered_read_seconds(items: Items) -> float:
    """Median time of reading one image at a random position of a tar."""
    count = len(items.name)
    indices = permutation(count, 0, "probe")[:PROBES]
    seconds: list[float] = []
    with closing(items.select(indices).read()) as images:
        started = time.perf_counter()
        for _ in images:
            seconds.append(time.perf_counter() - started)
            started = time.perf_counter()
    return statistics.median(seconds)


def write_sequentially(
    plan: ShardPlan, tasks: list[ShardTask], folder: Path, workers: int
) -> Generator[tuple[int, ShardRecord], None, None]:
    """Encode all that is missing; then yield (index of the task, record) of every task.

    PrepareError lists the files that are no images, where tasks do not skip them, after the first.
    """
    records = _find_all(tasks, workers)
    missing = [number for number in range(len(tasks)) if number not in records]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        _encode_all(plan, np.array(missing), folder, workers, skip=tasks[0].skip)
    return _assemble(tasks, records, missing, folder, workers)


def _assemble(
    tasks: list[ShardTask],
    records: dict[int, ShardRecord],
    missing: list[int],
    folder: Path,
    workers: int,
) -> Generator[tuple[int, ShardRecord], None, None]:
    yield from records.items()
    assemble = partial(write_from_spool, folder=folder)
    jobs = ((number, tasks[number]) for number in missing)
    with closing(run_tasks(assemble, jobs, workers=workers)) as results:
        for index, record in results:
            yield missing[index], record


def _find_all(tasks: list[ShardTask], workers: int) -> dict[int, ShardRecord]:
    """The records of shards that earlier runs have published, hashed to make sure."""
    begun = open_store(tasks[0].out).listing(RECORDS)
    if not begun and tasks[0].known is None:
        return {}
    jobs = ((task.out, task.name, task.known) for task in tasks)
    with closing(run_tasks(_find, jobs, workers=workers)) as results:
        return {number: record for number, record in results if record is not None}


def _find(job: tuple[str, str, Shard | None]) -> ShardRecord | None:
    out, name, known = job
    return find_shard(open_store(out), name, known)


def _encode_all(
    plan: ShardPlan, missing: NDArray[np.intp], folder: Path, workers: int, *, skip: bool
) -> None:
    chunks = [
        chunk for chunk in source_chunks(plan, missing) if not _done(folder, chunk.number).exists()
    ]
    encode_chunk = partial(spool_chunk, folder=folder, config=plan.config)
    with (
        ProgressBar("encode", sum(len(chunk.shard) for chunk in chunks)) as progress,
        closing(run_tasks(encode_chunk, chunks, workers=workers)) as results,
    ):
        for number, (source_bytes, faults) in results:
            progress.advance(len(chunks[number].shard), source_bytes, len(faults))
            if faults and not skip:
                raise faults_error(faults, plan.source.name)


def source_chunks(plan: ShardPlan, missing: NDArray[np.intp]) -> Iterator[Chunk]:
    """All samples in the order of the source, in pieces, without those of finished shards.

    Pieces and their numbers do not depend on what is missing.
    """
    numbers = itertools.count()
    first_shard = 0
    for split, samples in plan.source.splits.items():
        cuts, order = plan.cuts[split], plan.order[split]
        shard_of = np.empty(len(order), np.int32)
        slot_of = np.empty(len(order), np.int32)
        lengths = np.diff(cuts)
        shard_of[order] = np.repeat(np.arange(len(lengths)), lengths)
        # Where each sample of the source goes: the inverse of the plan, which lists for each slot
        # of each shard its sample.
        slot_of[order] = np.arange(len(order)) - np.repeat(cuts[:-1], lengths)
        shard_of += first_shard
        first_shard += len(lengths)
        items = samples.items
        for indices in items.neighbours():
            number = next(numbers)
            unfinished = indices[np.isin(shard_of[indices], missing)]
            if len(unfinished):
                yield Chunk(
                    number, items.select(unfinished), shard_of[unfinished], slot_of[unfinished]
                )


def _done(folder: Path, chunk: int) -> Path:
    return folder / f"{chunk:06d}.done"


def _spool(folder: Path, shard: int) -> Path:
    return folder / f"{shard:06d}.spool"


def spool_chunk(chunk: Chunk, *, folder: Path, config: ShardConfig) -> tuple[int, list[Fault]]:
    """Encode neighbours and append each to the spool of its shard; bytes read, and the faults."""
    read, faults = 0, list[Fault]()
    for number, result in enumerate(outcomes(chunk.items, config)):
        read += result.source_bytes
        if result.encoded is None:
            faults.append(Fault(chunk.items.path(number), result.sha256, result.reason, UNKNOWN))
        path = _spool(folder, int(chunk.shard[number]))
        try:
            _append(path, _pack(int(chunk.slot[number]), result))
        except OSError as error:
            raise PrepareError(
                f"Cannot write {path}: {error.strerror}. A sequential run needs room for the data "
                "set twice. Make room and run the same command again."
            ) from error
    _done(folder, chunk.number).touch()
    return read, faults


def _append(path: Path, data: bytes) -> None:
    """One write to the end of a file, which the kernel does not mix with another process's."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        written = os.write(file, data)
    finally:
        os.close(file)
    if written != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _pack(slot: int, result: Outcome) -> bytes:
    jpg = result.encoded.jpg if result.encoded else b""
    metadata = result.encoded[1:] if result.encoded else None
    notes = json.dumps([metadata, *result[1:]]).encode()
    crc = zlib.crc32(jpg + notes, slot)  # so that nothing can come into another slot
    return HEAD.pack(MARK, slot, len(jpg), len(notes), crc) + jpg + notes


def _unpack(data: bytes) -> dict[int, Outcome]:
    """Outcomes by slot. What a kill or a full disk left incomplete is skipped."""
    results: dict[int, Outcome] = {}
    cursor = 0
    while (cursor := data.find(MARK, cursor)) >= 0 and cursor + HEAD.size <= len(data):
        _, slot, jpg_bytes, notes_bytes, crc = HEAD.unpack_from(data, cursor)
        begin = cursor + HEAD.size
        body = data[begin : begin + jpg_bytes + notes_bytes]
        if len(body) != jpg_bytes + notes_bytes or zlib.crc32(body, slot) != crc:
            cursor += 1
            continue
        metadata, sha256, source_bytes, reason = json.loads(body[jpg_bytes:])
        encoded = _with_jpg(body[:jpg_bytes], *metadata) if metadata else None
        results[slot] = Outcome(encoded, sha256, source_bytes, reason)
        cursor = begin + len(body)
    return results


def _with_jpg(jpg: bytes, width: int, height: int, fixes: list[str]) -> Encoded:
    return Encoded(jpg, width, height, tuple(fixes))


def write_from_spool(job: tuple[int, ShardTask], *, folder: Path) -> ShardRecord:
    """Publish a shard from its spool file; what is not in it is read from the source."""
    number, task = job
    path = _spool(folder, number)
    spooled = _unpack(path.read_bytes()) if path.exists() else {}
    absent = [slot for slot in range(len(task.samples.key)) if slot not in spooled]
    if absent:
        again = outcomes(task.samples.items.select(np.array(absent)), task.config)
        spooled |= dict(zip(absent, again, strict=True))
    results = (spooled[slot] for slot in range(len(task.samples.key)))
    record = publish_shard(open_store(task.out), task, results)
    path.unlink(missing_ok=True)
    return record
