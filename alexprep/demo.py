"""All commands in turn on generated images: shard, stats, train, eval.

    OUT/source   OUT/dataset   OUT/run   OUT/demo.json    what each finished stage took

Every stage calls the function that its command calls. Run it again to resume a demo that was
stopped; a finished one prints its table again.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from alexprep import schema
from alexprep.dataset.shard import ShardConfig, shard
from alexprep.dataset.stats import compute_stats
from alexprep.errors import PrepareError
from alexprep.model.evaluation import EvalOptions, evaluate
from alexprep.model.training import TrainOptions, train
from alexprep.progress import ProgressBar
from alexprep.synthetic import SHAPES, DrawConfig, draw_source
from pipelines.atomic import make_folder, write_whole

RECORD = "demo.json"
PARTIAL = f"{RECORD}.partial"  # of a call that was killed


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """What is drawn, the side of the shards' images, and how long the smoke network trains.

    Batches of 32 give 600 images enough steps. The rates fall after 60 and 85% of the epochs, of
    which 15 are enough on any processor; the first with 100% top-1 on validation is the last.
    """

    draw: DrawConfig = field(default_factory=DrawConfig)
    size: int = 64
    epochs: int = 15
    recipe: str = "code2012"
    settings: tuple[str, ...] = ("loader.batch=32", "train.stop_error=0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A finished stage: images it went through, its seconds, and its result in words."""

    images: int
    seconds: float
    result: str = ""

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / max(self.seconds, 1e-9)


class _Record(msgspec.Struct):
    """What OUT/demo.json holds."""

    config: dict[str, Any]
    stages: dict[str, Stage]


class Demo:
    """A demo in OUT: its finished stages, kept in OUT/demo.json."""

    def __init__(self, out: Path, config: DemoConfig) -> None:
        self.out, self.config = out, config
        self.source, self.dataset, self.run = out / "source", out / "dataset", out / "run"
        self.stages: dict[str, Stage] = {}
        self._load()

    def _load(self) -> None:
        path = self.out / RECORD
        if path.exists():
            record = schema.read(path, _Record, PrepareError, advice="Name another folder.")
            if record.config != json.loads(json.dumps(asdict(self.config))):
                raise PrepareError(
                    f"{self.out} has a demo of another configuration. Name another folder, or "
                    f"remove it: rm -r {self.out}"
                )
            self.stages = record.stages
        elif self.out.exists() and {entry.name for entry in self.out.iterdir()} - {PARTIAL}:
            raise PrepareError(
                f"{self.out} is not empty and has no demo. Name another folder: alexprep demo OUT"
            )
        make_folder(self.out)
        self._save()

    def _save(self) -> None:
        record = {
            "config": asdict(self.config),
            "stages": {name: asdict(stage) for name, stage in self.stages.items()},
        }
        write_whole(self.out / RECORD, f"{json.dumps(record, indent=1)}\n".encode())

    def stage(self, name: str, work: Callable[[], tuple[int, str]]) -> None:
        """Run a stage unless it is done: `work` returns its images and its result in words."""
        if name in self.stages:
            return
        start = time.perf_counter()
        images, result = work()
        self.stages[name] = Stage(images=images, seconds=time.perf_counter() - start, result=result)
        self._save()


def run_demo(out: Path, config: DemoConfig | None = None) -> Demo:
    """Draw, shard, measure, train and evaluate in `out`; finished stages are not repeated.

    Raises:
        PrepareError: `out` has other files than those of a demo of this configuration.
    """
    demo = Demo(out, config or DemoConfig())
    demo.stage("draw", lambda: _draw(demo))
    demo.stage("shard", lambda: _shard(demo))
    demo.stage("stats", lambda: _stats(demo))
    demo.stage("train", lambda: _train(demo))
    demo.stage("eval, 1 view", lambda: _eval(demo, 1))
    demo.stage("eval, 10 views", lambda: _eval(demo, 10))
    return demo


def table(demo: Demo) -> str:
    """Each stage with its speed and its result, and where the files are."""
    lines = [f"{'stage':14} {'images':>8} {'seconds':>8} {'images/s':>9}  result"]
    lines += [
        f"{name:14} {stage.images:8,} {stage.seconds:8.1f} {stage.rate:9,.0f}  {stage.result}"
        for name, stage in demo.stages.items()
    ]
    files = (("source", demo.source), ("data set", demo.dataset), ("run", demo.run))
    return "\n".join([*lines, "", *(f"{name:14} {path}" for name, path in files)])


def _draw(demo: Demo) -> tuple[int, str]:
    total = len(SHAPES) * (demo.config.draw.train + demo.config.draw.validation)
    with ProgressBar("draw", total) as progress:
        for _ in draw_source(demo.source, demo.config.draw):
            progress.advance(1)
    return total, f"{len(SHAPES)} classes"


def _shard(demo: Demo) -> tuple[int, str]:
    manifest = shard(demo.source, demo.dataset, ShardConfig(size=demo.config.size))
    fixed = ", ".join(f"{count} {fix}" for fix, count in sorted(manifest.fixes.items()))
    return manifest.samples, f"fixed: {fixed}"


def _stats(demo: Demo) -> tuple[int, str]:
    stats = compute_stats(demo.dataset)
    return stats.images, "mean " + " ".join(f"{value:.1f}" for value in stats.mean)


def _train(demo: Demo) -> tuple[int, str]:
    options = TrainOptions(
        recipe=demo.config.recipe,
        smoke=True,
        epochs=demo.config.epochs,
        settings=demo.config.settings,
    )
    summary = train(demo.dataset, demo.run, options)
    if summary.stopped:
        raise PrepareError(
            f"Stopped by {summary.stopped}. Run `alexprep demo {demo.out}` again to resume."
        )
    return summary.images, f"{summary.epochs} of {demo.config.epochs} epochs"


def _eval(demo: Demo, views: Literal[1, 10]) -> tuple[int, str]:
    result = evaluate([demo.run], demo.dataset, EvalOptions(views=views))
    return result.images, f"top-1 {1 - result.top1:.1%}, top-5 {1 - result.top5:.1%}"
