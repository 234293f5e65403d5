"""The commands that train, evaluate and use a network."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from alexprep.commands.options import (
    PATH,
    LocalPath,
    device_option,
    json_option,
    print_device,
    print_json,
    print_text,
    seed_option,
    usage,
    views_option,
)
from alexprep.errors import OptionError


def complete_recipe(_ctx: click.Context, _param: click.Parameter, prefix: str) -> list[str]:
    """Names of recipes, for shell completion."""
    from alexprep.model.recipes import RECIPES

    return [name for name in RECIPES if name.startswith(prefix)]


def parse_weights(text: str) -> tuple[float, ...]:
    """The numbers of --weights."""
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise ValueError(f"--weights must be comma-separated numbers, got {text!r}.") from None


@click.command()
@click.argument("dataset", type=PATH)
@click.option("--run", type=PATH, required=True, help="Folder of the run; resumed if it exists.")
@click.option(
    "--recipe",
    default="code2012",
    show_default=True,
    shell_complete=complete_recipe,
    help="Network, augmentation and schedule; listed in docs/reference/recipes.md.",
)
@click.option("--smoke", is_flag=True, help="Train a small version, sized for a CPU.")
@click.option(
    "--devices",
    default="auto",
    show_default=True,
    help="auto, cpu, cuda:0, or cuda:0,cuda:1 for one column per GPU. auto uses a GPU for each "
    "column, or the only GPU, or the CPU.",
)
@click.option(
    "--replicas",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Copies of the network that share each batch. With more than one, each column of each "
    "copy gets its own process and GPU.",
)
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Machines that share the replicas. Run the same command on each.",
)
@click.option(
    "--coordinator",
    default="",
    metavar="HOST:PORT",
    help="One of the machines and a free port on it, to which the others connect.",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "dali", "torch", "planes", "resident"]),
    default="auto",
    show_default=True,
    help="Source of the batches: JPEGs decoded by DALI or Pillow, or images decoded once, read "
    "from disk or held in GPU memory (docs/guide/decode-once.md).",
)
@click.option(
    "--epochs", type=click.IntRange(min=1), help="Number of epochs.  [default: from the recipe]"
)
@seed_option
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="PART.FIELD=VALUE",
    help="Override one field of the recipe, for example train.lr=0.02. Can be repeated.",
)
@click.option(
    "--no-validation",
    is_flag=True,
    help="Train without measuring the error on a validation split. The newest checkpoint is the "
    "best.",
)
@click.option(
    "--init-from",
    type=PATH,
    help="Initialize the weights from a checkpoint, .pth or .safetensors file.",
)
@click.option(
    "--stats",
    type=PATH,
    help="Folder that `alexprep stats --out` wrote to.  [default: DATASET]",
)
def train(
    dataset: Path,
    run: Path,
    devices: str,
    replicas: int,
    nodes: int,
    coordinator: str,
    no_validation: bool,
    **options: Any,
) -> None:
    """Train AlexNet on DATASET.

    If training is interrupted, run the same command again to resume.

    \b
    Example:
        alexprep train ~/imagenet256 --run ~/run
        alexprep train ~/imagenet256 --run ~/run --replicas 4     # on eight GPUs
    """
    from alexprep.model.placement import Launch
    from alexprep.model.training import TrainOptions
    from alexprep.model.training import train as work

    with usage():
        train_options = TrainOptions(
            devices=tuple(devices.split(",")),
            launch=Launch(replicas=replicas, nodes=nodes, coordinator=coordinator),
            validation=not no_validation,
            **options,
        )
    with usage(OptionError):
        summary = work(dataset, run, train_options)
    # The terminal may be gone, which is one of the ways to stop a run.
    with suppress(OSError):
        if summary.writes:
            print_text(summary.text())
    raise SystemExit(summary.exit_code)


@click.command("eval")
@click.argument("checkpoints", nargs=-1, required=True, type=PATH)
@click.option("--data", type=PATH, required=True, help="Data set to evaluate on.")
@click.option("--split", default="validation", show_default=True, help="Split to evaluate.")
@views_option("1")
@click.option("--batch", default=100, show_default=True, help="Batch size.")
@device_option
@click.option("--weights", help="Weight of each checkpoint in the average, for example 1,1,2.")
@click.option("--labels", type=PATH, help="JSON file of other labels: {key: [label, ...]}.")
@click.option(
    "--save-predictions",
    "save",
    type=PATH,
    help="Save the probabilities to this file, named *.predictions.",
)
@click.option("--per-class", is_flag=True, help="Also print the errors of each class.")
@json_option
def evaluate(
    checkpoints: tuple[Path, ...],
    data: Path,
    views: str,
    device: str,
    weights: str | None,
    save: Path | None,
    per_class: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Print the top-1 and top-5 error of CHECKPOINTS.

    A checkpoint is a file, the folder of a run (its best checkpoint), or a file of saved
    predictions. The predictions of several checkpoints are averaged. Classes are matched by wnid
    or name: the data set may lack some of the network's classes and have others.

    \b
    Example:
        alexprep eval ~/run --data ~/imagenet256 --views 10
    """
    from alexprep.model.evaluation import EvalOptions
    from alexprep.model.evaluation import evaluate as work

    with usage():
        eval_options = EvalOptions(
            views=1 if views == "1" else 10,
            device=device,
            weights=parse_weights(weights) if weights else (),
            **options,
        )
    with usage(OptionError):
        result = work(checkpoints, data, eval_options, save=save)
    print_device(device)
    if as_json:
        print_json(result.to_dict())
        return
    print_text(result.table())
    if per_class:
        print_text(result.class_table())


@click.command()
@click.argument("checkpoint", type=PATH)
@click.argument(
    "images",
    nargs=-1,
    required=True,
    type=LocalPath(path_type=Path, allow_dash=True, readable=False),
)
@views_option("10")
@click.option("--top", default=5, show_default=True, help="Number of classes to print.")
@device_option
@json_option
def predict(
    checkpoint: Path, images: tuple[Path, ...], views: str, top: int, device: str, as_json: bool
) -> None:
    """Classify IMAGES with a trained network.

    CHECKPOINT is a file or the folder of a run. IMAGES may have any format that `alexprep shard`
    reads; - is standard input.

    \b
    Example:
        alexprep predict ~/run cat.jpg dog.png
    """
    from alexprep.model.predict import PredictOptions
    from alexprep.model.predict import predict as work

    with usage():
        options = PredictOptions(views=1 if views == "1" else 10, top=top, device=device)
    with usage(OptionError):
        predictions = list(work(checkpoint, images, options))
    print_device(device)
    if as_json:
        print_json([prediction.to_dict() for prediction in predictions])
    else:
        print_text("\n\n".join(prediction.text() for prediction in predictions))
    raise SystemExit(1 if any(prediction.problem for prediction in predictions) else 0)


COMMANDS = (train, evaluate, predict)
