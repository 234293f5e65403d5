"""What a run would write, how long it would take and how much room it needs; writes nothing."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alexprep.dataset.shard import RunOptions, plan_run
from alexprep.dataset.shard_plan import ShardConfig, ShardPlan, permutation
from alexprep.dataset.shard_writer import Outcome, outcomes
from alexprep.dataset.store import is_local, local_path
from alexprep.errors import counted
from alexprep.machine import cores, free_bytes
from alexprep.progress import clock
from alexprep.sources.listing import TRAIN
from pipelines.format import BLOCK, MEMBERS, padded

PROBES = 200
SHOWN = 5  # files left out, by name
NOTES_BYTES = 160  # KEY.json, within a block


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """The plan, and what a probe of some images says it will come to."""

    name: str
    kind: str
    classes: int
    images: dict[str, int]
    shards: dict[str, int]
    probed: int
    faults: int
    images_per_second: float
    workers: int
    seconds: float
    source_bytes: int
    bytes: int
    bytes_free: int | None
    folders: dict[str, str]
    class_names: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """A few lines for people."""
        lines = [
            f"{self.name} ({self.kind}), {self.classes:,} classes: {self._shown_classes()}",
            *(
                f"  {split}: {images:,} images in {counted(self.shards[split], 'shard')} of "
                f"{images / self.shards[split]:,.0f}, from {self.folders.get(split, TRAIN)}"
                for split, images in self.images.items()
            ),
            *(f"  left out: {path} {reason}" for path, reason in self.left_out[:SHOWN]),
            *([f"  {len(self.left_out):,} files are left out"] if self.left_out else []),
            *(f"  Warning: {warning}" for warning in self.warnings),
            f"  writes {_gigabytes(self.bytes)}, reads {_gigabytes(self.source_bytes)}",
            f"  takes {clock(self.seconds)} with {self.workers} workers at "
            f"{self.images_per_second:,.0f} images/s each (from {self.probed:,} images)",
        ]
        if self.faults:
            lines.append(f"  {self.faults:,} of the {self.probed:,} sampled images cannot be read")
        if self.bytes_free is not None:
            short = "" if self.bytes_free > self.bytes else ": NOT ENOUGH"
            lines.append(f"  {_gigabytes(self.bytes_free)} free on that disk{short}")
        return "\n".join(lines)

    def _shown_classes(self) -> str:
        first = ", ".join(f"{label} {name}" for label, name in enumerate(self.class_names[:3]))
        return first + (
            f" ... {self.classes - 1} {self.class_names[-1]}" if self.classes > 3 else ""
        )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB"


def forecast(
    source: Path | str,
    out: Path | str,
    config: ShardConfig = ShardConfig(),  # noqa: B008 - frozen
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
) -> Forecast:
    """ShardPlan as `shard` would, encode 200 images in memory, and extrapolate."""
    plan = plan_run(source, out, config, options)
    workers = options.workers or cores()
    results, seconds = _probe(plan)
    encoded = [result for result in results if result.encoded is not None]
    sample_bytes = np.mean([_sample_bytes(result) for result in encoded]) if encoded else 0.0
    count, probed = plan.source.images, len(results)
    return Forecast(
        name=plan.source.name,
        kind=plan.source.kind,
        classes=len(plan.source.classes),
        images={split: len(samples.key) for split, samples in plan.source.splits.items()},
        shards=plan.shards,
        probed=probed,
        faults=probed - len(encoded),
        images_per_second=probed / seconds,
        workers=workers,
        seconds=count * seconds / probed / workers,
        source_bytes=round(float(np.mean([result.source_bytes for result in results])) * count),
        bytes=round(float(sample_bytes) * count),
        bytes_free=free_bytes(local_path(str(out))) if is_local(str(out)) else None,
        folders=dict(plan.source.folders),
        class_names=tuple(wnid for wnid, _ in plan.source.classes),
        left_out=tuple((stray.path, stray.reason) for stray in plan.source.left_out),
        warnings=plan.source.warnings,
    )


def _probe(plan: ShardPlan) -> tuple[list[Outcome], float]:
    """Encode images from all over the largest split."""
    samples = max(plan.source.splits.values(), key=lambda split: len(split.key))
    indices = permutation(len(samples.key), 0, "probe")[:PROBES]
    # Neighbours cost what they will cost in the run.
    if samples.items.sequential == "always":
        indices = np.sort(indices)
    started = time.perf_counter()
    results = list(outcomes(samples.items.select(indices), plan.config))
    return results, time.perf_counter() - started


def _sample_bytes(result: Outcome) -> int:
    jpg = padded(len(result.encoded.jpg)) if result.encoded else 0
    return len(MEMBERS) * BLOCK + jpg + padded(NOTES_BYTES) + BLOCK
