"""What `alexprep bench` measures, and the input that it draws where no data set is named."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path

from alexprep.bench.measurement import Result, Row, result, save
from alexprep.lock import temporary_folder
from alexprep.machine import cores
from alexprep.synthetic import SHAPES, DrawConfig, draw_source

PARTS = ("shard", "stats", "load", "step", "train")


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """How much to measure, and on what.

    Attributes:
        rounds: measurements of each figure.
        images: images of one measurement.
        workers: processes of shard and stats; 0: one per core.
        device: of load, step and train: cpu or cuda:0.
        data: a source (for shard) or data set to use instead of generated images.
    """

    rounds: int = 5
    images: int = 1024
    workers: int = 0
    device: str = "cpu"
    data: Path | None = None

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("images", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"BenchConfig.{name} must be at least {least}, got {getattr(self, name)}."
                )

    @property
    def processes(self) -> int:
        return self.workers or cores()


def run_bench(what: str, config: BenchConfig, out: Path | None = None) -> Iterator[Result]:
    """Measure one of PARTS or "all"; with `out`, each result is saved there as soon as it is done.

    ValueError for an unknown part.
    """
    if what not in (*PARTS, "all"):
        raise ValueError(f"bench measures {', '.join(PARTS)} or all, not {what!r}.")
    for part in PARTS if what == "all" else (what,):
        # Imported when it is measured: step needs torch, load needs DALI.
        module = import_module(f"alexprep.bench.{part}_bench")
        run: Callable[[BenchConfig, Path], list[Row]] = module.run
        with temporary_folder(f"alexprep-bench-{part}-") as folder:
            rows = run(config, folder)
        settings = {**asdict(config), "data": config.data and config.data.name}
        measured = result(part, f"alexprep bench {part}{_options(config)}", rows, settings)
        if out is not None:
            save(measured, out)
        yield measured


def _options(config: BenchConfig) -> str:
    """The options that differ from their default, as they are typed."""
    words = [
        f" --{field.name} {value.name if isinstance(value, Path) else value}"
        for field in fields(config)
        if (value := getattr(config, field.name)) != field.default
    ]
    return "".join(words)


def draw_photographs(folder: Path, images: int, sides: tuple[int, int] = (256, 500)) -> Path:
    """Class folders of about `images` generated JPEGs with sides of that many pixels."""
    shortest, longest = sides
    config = DrawConfig(
        train=-(-images // len(SHAPES)),
        validation=max(1, images // 100),
        shortest=shortest,
        longest=longest,
    )
    for _ in draw_source(folder, config):
        pass
    return folder


def drawn_data_set(folder: Path, images: int, size: int = 256) -> Path:
    """A data set of generated images with statistics, in a few shards."""
    # `make gpu-check` imports this module where simplejpeg is not installed.
    from alexprep.dataset.shard import RunOptions, ShardConfig, shard  # noqa: PLC0415
    from alexprep.dataset.stats import compute_stats  # noqa: PLC0415

    sides = (size, 2 * size) if size >= 256 else (size, 96)
    source = draw_photographs(folder / "source", images, sides)
    shard(source, folder / "shards", ShardConfig(size=size, shards=4), RunOptions())
    compute_stats(folder / "shards")
    return folder / "shards"
