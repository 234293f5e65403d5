"""The commands that train a network and say how good it is."""

from pathlib import Path
from typing import Literal

import click

from alexprep.commands.options import PATH, json_option, print_json, seed_option, usage


def complete_recipe(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[str]:
    """For the shell: the recipes that begin so."""
    from alexprep.model.recipes import RECIPES

    return [name for name in RECIPES if name.startswith(begun)]


def shares(words: str) -> tuple[float, ...]:
    """The numbers of --weights."""
    try:
        return tuple(float(word) for word in words.split(","))
    except ValueError:
        raise ValueError(f"--weights wants numbers between commas, got {words!r}.") from None


@click.command()
@click.argument("dataset", type=PATH)
@click.option("--run", type=PATH, required=True, help="Folder of this run; one there is resumed.")
@click.option(
    "--recipe",
    default="code2012",
    show_default=True,
    shell_complete=complete_recipe,
    help="See docs/recipes.md.",
)
@click.option("--smoke", is_flag=True, help="The recipe's small size, for a CPU.")
@click.option(
    "--devices",
    default="cpu",
    show_default=True,
    help="cpu, cuda:0, or cuda:0,cuda:1 for a column on each.",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "dali", "torch"]),
    default="auto",
    show_default=True,
    help="What decodes and augments.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Epochs.  [default: the recipe's]")
@seed_option
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="PART.FIELD=VALUE",
    help="Change one field of the recipe, as train.lr=0.02; may be given more than once.",
)
@click.option("--init-from", type=PATH, help="Start from the weights of this checkpoint.")
def train(
    dataset: Path,
    run: Path,
    recipe: str,
    smoke: bool,
    devices: str,
    backend: Literal["auto", "dali", "torch"],
    epochs: int | None,
    seed: int,
    settings: tuple[str, ...],
    init_from: Path | None,
) -> None:
    """Train AlexNet on DATASET. The same command goes on with a run that was stopped.

    \b
    Example:
        alexprep train ~/imagenet256 --run ~/run --devices cuda:0,cuda:1
    """
    from alexprep.model.training import TrainOptions
    from alexprep.model.training import train as work

    with usage():
        summary = work(
            dataset,
            run,
            TrainOptions(
                recipe=recipe,
                smoke=smoke,
                devices=tuple(devices.split(",")),
                backend=backend,
                epochs=epochs,
                seed=seed,
                settings=settings,
                init_from=init_from,
            ),
        )
    click.echo(summary.text())
    raise SystemExit(summary.exit_code)


@click.command("eval")
@click.argument("checkpoints", nargs=-1, required=True, type=PATH)
@click.option("--data", type=PATH, required=True, help="The data set.")
@click.option("--split", default="validation", show_default=True, help="The split to classify.")
@click.option(
    "--views",
    type=click.Choice(["1", "10"]),
    default="1",
    show_default=True,
    help="1: the centre. 10: corners and centre, and their mirrors, as the paper's tables.",
)
@click.option("--batch", default=100, show_default=True, help="Images at a time.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda:0.")
@click.option("--weights", help="Weights of the checkpoints' predictions, as 1,1,2.")
@click.option("--labels", type=PATH, help="Other labels: a JSON file of key to list of labels.")
@click.option(
    "--save-predictions",
    "save",
    type=PATH,
    help="Keep the probabilities in this file, *.predictions.",
)
@click.option("--per-class", is_flag=True, help="Print a table of the classes.")
@json_option
def evaluate(
    checkpoints: tuple[Path, ...],
    data: Path,
    split: str,
    views: str,
    batch: int,
    device: str,
    weights: str | None,
    labels: Path | None,
    save: Path | None,
    per_class: bool,
    as_json: bool,
) -> None:
    """Print the top-1 and top-5 error of CHECKPOINTS; several are averaged.

    A checkpoint is a file, a run's folder (its best one), or a file of kept predictions.

    \b
    Example:
        alexprep eval ~/run --data ~/imagenet256 --views 10
    """
    from alexprep.model.evaluation import EvalOptions
    from alexprep.model.evaluation import evaluate as work

    with usage():
        options = EvalOptions(
            split=split,
            views=1 if views == "1" else 10,
            batch=batch,
            device=device,
            weights=shares(weights) if weights else (),
            labels=labels,
        )
        result = work(checkpoints, data, options, save=save)
    if as_json:
        print_json(result.to_dict())
        return
    click.echo(result.table())
    if per_class:
        click.echo(result.class_table())


@click.command()
@click.argument("checkpoint", type=PATH)
@click.argument(
    "images",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, allow_dash=True, readable=False),
)
@click.option(
    "--views", type=click.Choice(["1", "10"]), default="10", show_default=True, help="As in eval."
)
@click.option("--top", default=5, show_default=True, help="Classes to print.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda:0.")
@json_option
def predict(
    checkpoint: Path, images: tuple[Path, ...], views: str, top: int, device: str, as_json: bool
) -> None:
    """Say what is in IMAGES, any image files; - is standard input.

    \b
    Example:
        alexprep predict ~/run cat.jpg dog.png
    """
    from alexprep.model.predict import PredictOptions
    from alexprep.model.predict import predict as work

    with usage():
        options = PredictOptions(views=1 if views == "1" else 10, top=top, device=device)
        found = list(work(checkpoint, images, options))
    if as_json:
        print_json([prediction.to_dict() for prediction in found])
    else:
        click.echo("\n\n".join(prediction.text() for prediction in found))
    raise SystemExit(1 if any(prediction.problem for prediction in found) else 0)


COMMANDS = (train, evaluate, predict)
