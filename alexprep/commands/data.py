"""The commands that create and check a data set."""

from pathlib import Path
from typing import Any, Literal

import click

from alexprep.commands.options import (
    PATH,
    import_numpy,
    json_option,
    print_json,
    print_text,
    scheduler_option,
    seed_option,
    start_workers,
    take_fields,
    usage,
    workers_option,
)
from alexprep.errors import OptionError, counted


@click.command()
@click.argument("source", type=PATH)
@click.argument("out")
@click.option(
    "--split",
    "splits",
    multiple=True,
    metavar="NAME",
    help="Convert only this split. Can be repeated.  [default: all]",
)
@click.option("--size", default=256, show_default=True, help="Side of the stored images in pixels.")
@click.option(
    "--keep-aspect",
    is_flag=True,
    help="Store whole images, --size on their shorter side, instead of the central squares.",
)
@click.option("--quality", default=95, show_default=True, help="JPEG quality, 1 to 100.")
@click.option(
    "--shards",
    type=click.IntRange(min=1),
    help="Number of shards per split.  [default: depends on its size]",
)
@seed_option
@click.option(
    "--validation",
    metavar="SHARE",
    help="Hold out a stratified validation split: a share such as 10%, or a number of images.",
)
@click.option(
    "--classes",
    type=PATH,
    help="Keep only the classes listed in this file, one per line, labelled in that order.",
)
@click.option("--image-column", metavar="NAME", help="Parquet column of images.  [default: image]")
@click.option("--label-column", metavar="NAME", help="Parquet column of labels.  [default: label]")
@workers_option
@click.option(
    "--on-error",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What to do with an unreadable image: fail, or skip it and list it in the manifest.",
)
@click.option(
    "--on-duplicate",
    type=click.Choice(["keep", "drop-train", "fail"]),
    default="keep",
    show_default=True,
    help="What to do with duplicate images: keep and count them in the manifest, drop them from "
    "the training split, or fail. The last two hash the source first.",
)
@click.option("--apply-orientation", is_flag=True, help="Rotate images by their EXIF orientation.")
@click.option(
    "--sequential", is_flag=True, help="Read the archives front to back, for disks with slow seeks."
)
@click.option(
    "--check-archives",
    is_flag=True,
    help="Verify the MD5 checksums of the official archives first.",
)
@click.option(
    "--planes", is_flag=True, help="Also store the images decoded, as `alexprep planes` does."
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the plan with its estimated size and duration; write nothing.",
)
@scheduler_option
@json_option
def shard(
    source: Path, out: str, planes: bool, dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Convert SOURCE to a data set of WebDataset shards in OUT.

    SOURCE is a folder with the official ILSVRC archives, other tars of images, an extracted
    ImageNet, the Kaggle download, Parquet files, or one folder per class (optionally below train
    and validation).

    OUT is a folder or an fsspec URL such as s3://bucket/imagenet256. If the command is interrupted,
    run it again to resume.

    \b
    Example:
        alexprep shard ~/ILSVRC ~/imagenet256
    """
    from alexprep.machine import has_pillow_simd

    # First: the server of the workers imports while this process does the same below.
    if not dry_run and options["scheduler"] is None:
        modules = ["alexprep.dataset.shard_writer"]
        modules += [] if has_pillow_simd() else ["alexprep.dataset.resize"]
        start_workers(options["workers"], *modules)
    from alexprep.dataset.shard import RunOptions, ShardConfig
    from alexprep.dataset.shard import shard as work
    from alexprep.sources.synsets import read_classes

    if options["classes"] is not None:
        options["classes"] = read_classes(options["classes"])
    with usage():
        config, run_options = take_fields(ShardConfig, options), take_fields(RunOptions, options)
    if dry_run:
        from alexprep.dataset.forecast import forecast

        plan = forecast(source, out, config, run_options)
        print_json(plan.to_dict()) if as_json else print_text(plan.text())
        return
    if planes and (config.size % 2 or "://" in out or config.keep_aspect):
        raise click.UsageError(
            "--planes needs an even --size and a local folder as OUT, and not --keep-aspect."
        )
    manifest = work(source, out, config, run_options)
    if planes:
        from alexprep.dataset.decode import store_planes

        store_planes(Path(out), workers=run_options.workers)
    if as_json:
        click.echo(manifest.to_json(), nl=False)
        return
    for name, split in manifest.splits.items():
        print_text(f"{name}: {split.samples:,} images in {counted(len(split.shards), 'shard')}")
    print_text(f"{out} is a finished data set of {len(manifest.classes):,} classes.")


@click.command()
@click.argument("dataset", type=PATH)
@click.option("--split", default="train", show_default=True, help="Split to measure.")
@click.option(
    "--out", type=PATH, help="Folder for the statistics, for `train --stats`.  [default: DATASET]"
)
@workers_option
@scheduler_option
@json_option
def stats(dataset: Path, as_json: bool, **options: Any) -> None:
    """Compute the mean image and the colour PCA of DATASET.

    Writes stats.json, stats.npz and mean.png to DATASET, where `alexprep train` reads them. With
    --out, nothing is written to DATASET.

    \b
    Example:
        alexprep stats ~/imagenet256
    """
    if options["scheduler"] is None:
        start_workers(options["workers"], "alexprep.dataset.stats", "alexprep.dataset.pixelsums")
    from alexprep.dataset.stats import compute_stats
    from alexprep.dataset.stats_report import format_report

    result = compute_stats(dataset, **options)
    print_json(result.to_dict()) if as_json else print_text(format_report(result))


@click.command()
@click.argument("dataset", type=PATH)
@click.option(
    "--license", metavar="ID", help="License identifier of the Hugging Face Hub, such as cc-by-4.0."
)
@click.option("--author", metavar="NAME", help="Publisher of the data set.")
@click.option("--description", metavar="TEXT", help="Description of the data set, in Markdown.")
@click.option(
    "--data-version", "version", metavar="VERSION", help="Version of the data set, such as 1.1.0."
)
@click.option("--url", help="Web page of the data set.")
@click.option("--published", metavar="DATE", help="Date of publication, such as 2026-11-28.")
@click.option("--force", is_flag=True, help="Overwrite a card that was edited by hand.")
def card(dataset: Path, force: bool, **changes: str | None) -> None:
    """Update README.md, croissant.json and SHA256SUMS of DATASET.

    `alexprep shard` and `alexprep stats` write them too. Options are remembered by later calls; an
    empty value removes an earlier one.

    \b
    Example:
        alexprep card ~/imagenet256 --license cc-by-4.0 --data-version 1.1.0
    """
    from alexprep.dataset.card_files import renew_card
    from alexprep.dataset.store import LocalStore
    from pipelines.format import Manifest

    Manifest.load(dataset)  # first, for a lock makes the folder that it is in
    with usage(OptionError), LocalStore(dataset).locked():
        renew_card(dataset, {k: v for k, v in changes.items() if v is not None}, force=force)
    print_text(f"{dataset}: README.md, croissant.json and SHA256SUMS are up to date.")


@click.command()
@click.argument("dataset", type=PATH)
@workers_option
@click.option(
    "--rebuild",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Rebuild N random shards from --source and compare them byte for byte.",
)
@click.option("--source", type=PATH, help="Source that DATASET was converted from, for --rebuild.")
def verify(dataset: Path, **options: Any) -> None:
    """Check every shard and image of DATASET against its manifest.

    Prints one line per fault. The exit code is 1 if there are any.

    \b
    Example:
        alexprep verify ~/imagenet256 --rebuild 3 --source ~/ILSVRC
    """
    start_workers(options["workers"], "alexprep.dataset.verify")
    from alexprep.dataset.verify import format_verified
    from alexprep.dataset.verify import verify as work

    result = work(dataset, **options)
    print_text(format_verified(result, dataset))
    raise SystemExit(1 if result.faults else 0)


@click.command()
@click.argument("dataset", type=PATH)
@click.option("--split", "splits", multiple=True, help="Split to decode.  [default: all]")
@workers_option
def planes(dataset: Path, splits: tuple[str, ...], workers: int | None) -> None:
    """Store the images of DATASET decoded, for faster training.

    Writes DATASET/planes, 98 KB per image of 256 pixels. The loader makes the same pixels from it
    several times faster than from JPEGs. Run it again to resume.

    \b
    Example:
        alexprep planes ~/imagenet256 --split train
    """
    start_workers(workers, "alexprep.dataset.decode")
    from alexprep.dataset.decode import store_planes

    summary = store_planes(dataset, splits, workers=workers)
    stored = f"{counted(summary.images, 'image')} in {counted(summary.files, 'file')} of planes"
    amount = f"{summary.bytes / 1e9:,.2f} GB"
    if summary.written:
        click.echo(f"{stored} ({summary.written:,} new), {amount}.")
    else:
        click.echo(f"Nothing to do: {stored}, {amount}, are stored already.")


@click.command("check-imagenet")
@click.argument("dataset", type=PATH)
@click.option("--source", type=PATH, help="Folder with the official archives, to verify their MD5.")
def check_imagenet(dataset: Path, source: Path | None) -> None:
    """Compare DATASET with published facts about ILSVRC2012.

    Prints one line per fact: images per split and class, the CMYK and PNG files by name, labels of
    twenty validation images, mean colour, colour axes. The exit code is 1 if any differs.

    \b
    Example:
        alexprep check-imagenet ~/imagenet256 --source ~/ILSVRC
    """
    from alexprep.dataset.imagenet import check_imagenet as work

    comparisons = work(dataset, source)
    for comparison in comparisons:
        click.echo(comparison)
    raise SystemExit(1 if any(entry.verdict == "differs" for entry in comparisons) else 0)


@click.command("cat")
@click.argument("dataset", type=PATH)
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="Print its metadata instead of the image.")
@click.option(
    "--out", type=PATH, help="Write the three files of the sample to this folder instead."
)
def cat(dataset: Path, key: str, as_json: bool, out: Path | None) -> None:
    """Print one sample of DATASET by key.

    Writes the JPEG to standard output. KEY is the name of the source file without its extension.
    The full file name is accepted too, even where spaces or dots in it were replaced in the key.

    \b
    Example:
        alexprep cat ~/imagenet256 n01440764_10026 > tench.jpg
    """
    import_numpy()
    from alexprep.dataset.lookup import read_sample
    from pipelines.atomic import make_folder, write_whole

    sample = read_sample(dataset, key)
    if sample.key != key:
        click.echo(f"{key} is sample {sample.key}", err=True)
        key = sample.key
    if out is not None:
        make_folder(out)
        for kind, data in (("jpg", sample.jpg), ("cls", sample.cls), ("json", sample.json)):
            write_whole(out / f"{key}.{kind}", data)
            print_text(out / f"{key}.{kind}")
    elif as_json:
        print_text(sample.json.decode(errors="replace"))
    else:
        click.echo(sample.jpg, nl=False)


@click.command("index")
@click.argument("tars", metavar="TAR...", nargs=-1, required=True, type=PATH)
@click.option("--out", type=PATH, help="Folder for the index files.  [default: next to each tar]")
def index(tars: tuple[Path, ...], out: Path | None) -> None:
    """Write DALI index files for existing WebDataset tars.

    \b
    Example:
        alexprep index shards/*.tar --out shards-index
    """
    from alexprep.dataset.export import index_tars

    for path in index_tars(list(tars), out=out):
        print_text(path)


@click.command("export")
@click.argument("format", type=click.Choice(["energon", "openclip"]))
@click.argument("dataset", type=PATH)
@click.argument("out", type=PATH)
def export(format: Literal["energon", "openclip"], dataset: Path, out: Path) -> None:
    """Export DATASET to OUT for megatron-energon or OpenCLIP.

    OUT holds hard links to the tars and the metadata files that the other reader expects.

    \b
    Example:
        alexprep export openclip ~/imagenet256 ~/imagenet256-openclip
    """
    from alexprep.dataset.export import export as work

    for path in work(format, dataset, out):
        print_text(path)


COMMANDS = (shard, stats, planes, card, verify, check_imagenet, cat, index, export)
