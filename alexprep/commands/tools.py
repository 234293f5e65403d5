"""The commands that demonstrate, watch, report, check and measure."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from alexprep.commands.options import (
    PATH,
    device_option,
    json_option,
    print_device,
    print_json,
    print_text,
    usage,
    workers_option,
)
from alexprep.errors import OptionError


@click.command()
@click.argument("out", type=PATH, default=Path("alexprep-demo"))
def demo(out: Path) -> None:
    """Shard, train and evaluate on generated images, in two minutes.

    Everything is written to OUT (default: alexprep-demo). No download is needed.

    \b
    Example:
        alexprep demo /tmp/demo
    """
    from alexprep.demo import run_demo, table

    click.echo(table(run_demo(out)))


@click.command()
@click.argument("path", metavar="RUN|DATASET", type=PATH)
@click.option("--out", type=PATH, help="Output file.  [default: report.html in the folder]")
@click.option("--data", type=PATH, help="Location of the run's data set, if it has moved.")
@click.option(
    "--images", default=5000, show_default=True, help="Number of validation images to evaluate."
)
@device_option
def report(path: Path, out: Path | None, data: Path | None, images: int, device: str) -> None:
    """Write an HTML report of a run or a data set.

    The report is one self-contained file that opens without a network connection.

    \b
    Example:
        alexprep report ~/run
    """
    from alexprep.report import write_report

    with usage(OptionError):
        page = write_report(path, out, data=data, images=images, device=device)
    print_device(device)
    print_text(page)


@click.command()
@click.argument("run", type=PATH)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1, max=3600),
    default=2.0,
    show_default=True,
    help="Seconds between updates.",
)
@click.option("--once", is_flag=True, help="Print the state once and exit.")
def watch(run: Path, interval: float, once: bool) -> None:
    """Follow the training in RUN until it ends.

    Shows loss, accuracy, images/s, the share of time without data, the time left and memory. On a
    terminal the table is redrawn; in a pipe or a file each record is a line. It only reads the
    files of the run: it also works from another machine, and does not slow training down. Ctrl-C
    ends it, not the training.

    \b
    Example:
        alexprep watch ~/run
    """
    from alexprep.model.watch import watch as work

    with suppress(KeyboardInterrupt):
        work(run, interval=interval, once=once)


@click.command()
@click.argument("what", type=click.Choice(["shard", "stats", "load", "step", "train", "all"]))
@click.option(
    "--rounds", default=5, show_default=True, help="Number of rounds; medians are printed."
)
@click.option("--images", default=1024, show_default=True, help="Images per measurement.")
@workers_option
@click.option("--device", default="cpu", show_default=True, help="Device: cpu or cuda:0.")
@click.option(
    "--data", type=PATH, help="Data set to use (for shard: a source) instead of generated images."
)
@click.option("--out", type=PATH, help="Save the results as JSON in this folder.")
@json_option
def bench(what: str, workers: int | None, out: Path | None, as_json: bool, **options: Any) -> None:
    """Measure throughput against a baseline, interleaved.

    \b
    Example:
        alexprep bench shard --out benchmarks/results
    """
    from alexprep.bench.measurement import conditions, table
    from alexprep.bench.suite import BenchConfig, run_bench

    with usage():
        config = BenchConfig(workers=workers or 0, **options)
    for result in run_bench(what, config, out):
        text = f"{result.part} on {conditions(result)}\n\n{table(result.rows)}\n"
        click.echo(result.to_json() if as_json else text)


@click.command()
@click.argument("source", type=PATH, required=False)
@click.option("--out", type=PATH, default=Path(), help="Folder to write the shards to.")
@json_option
def doctor(source: Path | None, out: Path, as_json: bool) -> None:
    """Check the installation and print how to fix each problem.

    With SOURCE, also check that its shards fit on the disk. The exit code is 1 if something
    required is missing.

    \b
    Example:
        alexprep doctor ~/ILSVRC --out /data
    """
    from dataclasses import asdict

    from alexprep.doctor import examine, format_findings

    images = None
    if source is not None:
        from alexprep.sources.find import find_source

        images = find_source(source).images
    findings = examine(out, images)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_text(format_findings(findings))
    raise SystemExit(1 if any(finding.state == "fault" for finding in findings) else 0)


COMMANDS = (demo, watch, report, bench, doctor)
