"""The commands that show, check and measure."""

from pathlib import Path

import click

from alexprep.commands.options import PATH, json_option, print_json, usage, workers_option


@click.command()
@click.argument("out", type=PATH, default=Path("alexprep-demo"))
def demo(out: Path) -> None:
    """Draw images, shard, measure, train and evaluate: the whole way in OUT, in minutes.

    \b
    Example:
        alexprep demo /tmp/demo
    """
    from alexprep.demo import run_demo, table

    click.echo(table(run_demo(out)))


@click.command()
@click.argument("path", metavar="RUN|DATASET", type=PATH)
@click.option("--out", type=PATH, help="The page.  [default: report.html in the folder]")
@click.option("--data", type=PATH, help="Where the run's data set is now.")
@click.option(
    "--images", default=5000, show_default=True, help="Validation images the network is asked."
)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda:0.")
def report(path: Path, out: Path | None, data: Path | None, images: int, device: str) -> None:
    """Write one HTML page that shows a run, or what a data set holds; it needs no network.

    \b
    Example:
        alexprep report ~/run
    """
    from alexprep.report.report import report as work

    with usage():
        page = work(path, out, data=data, images=images, device=device)
    click.echo(page)


@click.command()
@click.argument("what", type=click.Choice(["shard", "stats", "load", "step", "train", "all"]))
@click.option("--rounds", default=5, show_default=True, help="Rounds; figures are medians.")
@click.option("--images", default=1024, show_default=True, help="Images a measurement.")
@workers_option
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda:0.")
@click.option("--data", type=PATH, help="A source (shard) or data set to use, not a drawn one.")
@click.option("--out", type=PATH, help="Keep the results as JSON in this folder.")
@json_option
def bench(
    what: str,
    rounds: int,
    images: int,
    workers: int | None,
    device: str,
    data: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure images/s of WHAT beside its floor on this machine, in turns.

    \b
    Example:
        alexprep bench shard --out benchmarks/results
    """
    from alexprep.bench.all import run_bench
    from alexprep.bench.frame import BenchConfig, table

    with usage():
        config = BenchConfig(
            rounds=rounds, images=images, workers=workers or 0, device=device, data=data
        )
    for found in run_bench(what, config, out):
        click.echo(found.to_json() if as_json else f"{found.part}\n{table(found.rows)}\n")


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what this machine has and what is wrong with it, each fault with the line that mends it.

    Exit code 1 if something needed is missing.

    \b
    Example:
        alexprep doctor
    """
    from dataclasses import asdict

    from alexprep.doctor import examine, format_findings

    found = examine(Path.cwd())
    if as_json:
        print_json([asdict(one) for one in found])
    else:
        click.echo(format_findings(found))
    raise SystemExit(1 if any(one.state == "fault" for one in found) else 0)


COMMANDS = (demo, report, bench, doctor)
