"""The commands that make and look after a data set."""

from pathlib import Path
from typing import Literal

import click

from alexprep.commands.options import (
    PATH,
    json_option,
    print_json,
    scheduler_option,
    seed_option,
    usage,
    workers_option,
)


@click.command()
@click.argument("source", type=PATH)
@click.argument("out")
@click.option(
    "--split",
    "splits",
    multiple=True,
    metavar="NAME",
    help="Only this split; may be given more than once.  [default: all there are]",
)
@click.option("--size", default=256, show_default=True, help="Pixels a side of the stored images.")
@click.option("--quality", default=95, show_default=True, help="JPEG quality, 1 to 100.")
@click.option(
    "--shards", type=click.IntRange(min=1), help="Shards a split.  [default: from its size]"
)
@seed_option
@workers_option
@click.option(
    "--on-error",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What a file that is no whole image does: stop the work, or be left out and listed.",
)
@click.option("--apply-orientation", is_flag=True, help="Turn images as their EXIF says.")
@click.option("--sequential", is_flag=True, help="Read archives front to back: for slow seeks.")
@click.option("--check-archives", is_flag=True, help="Compare the archives' MD5 first.")
@click.option("--dry-run", is_flag=True, help="Print the plan and what it takes; write nothing.")
@scheduler_option
@json_option
def shard(
    source: Path,
    out: str,
    splits: tuple[str, ...],
    size: int,
    quality: int,
    shards: int | None,
    seed: int,
    workers: int | None,
    on_error: Literal["fail", "skip"],
    apply_orientation: bool,
    sequential: bool,
    check_archives: bool,
    dry_run: bool,
    scheduler: str | None,
    as_json: bool,
) -> None:
    """Turn SOURCE into a data set of WebDataset shards in OUT.

    SOURCE is a folder with the official ILSVRC2012 archives, an extracted ImageNet, Kaggle's tree,
    parquet files, or any folder of class folders, with or without train and validation folders. OUT
    is a folder or an fsspec URL. Stopped, it goes on where it was when called again.

    \b
    Example:
        alexprep shard ~/ILSVRC ~/imagenet256
    """
    from alexprep.dataset.shard import RunOptions, ShardConfig
    from alexprep.dataset.shard import shard as run

    with usage():
        config = ShardConfig(
            size=size,
            quality=quality,
            shards=shards,
            seed=seed,
            apply_orientation=apply_orientation,
        )
        options = RunOptions(
            splits=splits,
            workers=workers,
            on_error=on_error,
            scheduler=scheduler,
            sequential=sequential,
            check_archives=check_archives,
        )
    if dry_run:
        from alexprep.dataset.forecast import forecast

        plan = forecast(source, out, config, options)
        print_json(plan.to_dict()) if as_json else click.echo(plan.text())
        return
    manifest = run(source, out, config, options)
    if as_json:
        click.echo(manifest.to_json(), nl=False)
        return
    for name, split in manifest.splits.items():
        click.echo(f"{name}: {split.samples:,} images in {len(split.shards):,} shards")
    click.echo(f"{out} is a finished data set of {len(manifest.classes):,} classes.")


@click.command()
@click.argument("dataset", type=PATH)
@click.option("--split", default="train", show_default=True, help="The split to measure.")
@workers_option
@scheduler_option
@json_option
def stats(
    dataset: Path, split: str, workers: int | None, scheduler: str | None, as_json: bool
) -> None:
    """Measure the mean image and the principal colours of DATASET, exactly.

    Writes stats.json, stats.npz and mean.png into DATASET; `train` wants them there.

    \b
    Example:
        alexprep stats ~/imagenet256
    """
    from alexprep.dataset.stats import compute_stats
    from alexprep.dataset.stats_report import format_report

    found = compute_stats(dataset, split, workers=workers, scheduler=scheduler)
    print_json(found.to_dict()) if as_json else click.echo(format_report(found))


@click.command()
@click.argument("dataset", type=PATH)
@workers_option
@click.option(
    "--rebuild",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Remake so many random shards from --source and compare their bytes.",
)
@click.option("--source", type=PATH, help="What DATASET was made from.")
def verify(dataset: Path, workers: int | None, rebuild: int, source: Path | None) -> None:
    """Check every hash, count, index entry and JPEG of DATASET against its manifest.

    Prints all faults, the first one first; exit code 1 if there is any.

    \b
    Example:
        alexprep verify ~/imagenet256 --rebuild 3 --source ~/ILSVRC
    """
    from alexprep.dataset.verify import format_verified
    from alexprep.dataset.verify import verify as work

    found = work(dataset, workers=workers, rebuild=rebuild, source=source)
    click.echo(format_verified(found, dataset))
    raise SystemExit(1 if found.faults else 0)


@click.command("cat")
@click.argument("dataset", type=PATH)
@click.argument("key")
@click.option("--json", "about", is_flag=True, help="Print what is known of it, not the picture.")
@click.option("--out", type=PATH, help="Write its three files into this folder instead.")
def cat(dataset: Path, key: str, about: bool, out: Path | None) -> None:
    """Bring out the sample KEY of DATASET: its JPEG goes to standard output.

    \b
    Example:
        alexprep cat ~/imagenet256 n01440764_10026 > tench.jpg
    """
    from alexprep.dataset.lookup import read_sample

    sample = read_sample(dataset, key)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for kind, data in (("jpg", sample.jpg), ("cls", sample.cls), ("json", sample.json)):
            (out / f"{key}.{kind}").write_bytes(data)
            click.echo(out / f"{key}.{kind}")
    elif about:
        click.echo(sample.json)
    else:
        click.echo(sample.jpg, nl=False)


@click.command("index")
@click.argument("tars", metavar="TAR...", nargs=-1, required=True, type=PATH)
@click.option("--out", type=PATH, help="Folder of the index files.  [default: beside each tar]")
def index(tars: tuple[Path, ...], out: Path | None) -> None:
    """Write DALI index files for tars that others wrote.

    \b
    Example:
        alexprep index shards/*.tar --out shards-index
    """
    from alexprep.dataset.export import index_tars

    for path in index_tars(list(tars), out=out):
        click.echo(path)


@click.command("export")
@click.argument("what", type=click.Choice(["energon", "openclip"]))
@click.argument("dataset", type=PATH)
@click.argument("out", type=PATH)
def export(what: Literal["energon", "openclip"], dataset: Path, out: Path) -> None:
    """Make OUT: the tars of DATASET (as hard links) with the files that WHAT wants beside them.

    \b
    Example:
        alexprep export openclip ~/imagenet256 ~/imagenet256-openclip
    """
    from alexprep.dataset.export import export as work

    for path in work(what, dataset, out):
        click.echo(path)


COMMANDS = (shard, stats, verify, cat, index, export)
