"""Train variants of a recipe on one data set, some seeds each, and compare them.

    python benchmarks/compare_recipes.py ablations DATASET OUT --smoke --epochs 4 --seeds 3
        --set train.precision=bfloat16
    python benchmarks/compare_recipes.py paper DATASET OUT --epochs 3 --seeds 1
    python benchmarks/compare_recipes.py ensemble DATASET OUT --smoke --epochs 15 --seeds 3

Every variant is a run of `alexprep train` in OUT/<variant>-<seed>; finished ones are not run again,
so that `--only` can divide the variants among processes and a last call without it sums them up.
OUT/summary.json and OUT/summary.md have errors and losses of the finished ones and are rewritten
after each run; for `ensemble` also the error of the seeds' mean prediction, for which the runs of
`ablations` serve as well.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from alexnet.model import networks
from alexnet.training import metrics
from alexprep.machine import machine
from alexprep.model.evaluation import EvalOptions, evaluate
from alexprep.model.training import TrainOptions, train

WIDE_START = tuple(f"model.conv{n}.sd=.03" for n in (3, 4, 5))
# variant -> (recipe, settings)
EXPERIMENTS = {
    # The paper's deltas in top-1: no_lrn 1.4, no_overlap .4, no_lighting over 1.
    "ablations": {
        name: (name, ())
        for name in (
            *("code2012", "no_lrn", "no_overlap", "no_lighting", "no_crops", "no_dropout", "tanh"),
        )
    },
    # One difference at a time from the paper's text towards the released code, at one rate.
    "paper": {
        # The most telling first: a comparison that is cut off has answered the question.
        "code2012": ("code2012", ("augment.lighting_epochs=none",)),
        "paper": ("paper", ()),
        "paper with sd .03 in conv3-5": ("paper", WIDE_START),
        "code2012 with sd .01 in conv3-5": (
            "code2012",
            (*(s.replace(".03", ".01") for s in WIDE_START), "augment.lighting_epochs=none"),
        ),
        "paper with bias rate 2x and no decay": (
            "paper",
            ("train.bias_lr=2", "train.bias_decay=0"),
        ),
        "paper with alpha divided by n": ("paper", ("model.lrn_alpha=1e-4",)),
        "paper with inverted dropout": ("paper", ("model.dropout_kind=inverted",)),
        "paper without dropout": ("paper", ("model.dropout=0",)),
    },
    "ensemble": {"code2012": ("code2012", ())},
}


def main() -> None:
    """Run what is not done yet, then write the summary."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--devices", default="cpu")
    parser.add_argument("--only", help="variants to train, with commas; no summary then")
    parser.add_argument("--set", action="append", default=[], help="as of `alexprep train`")
    args = parser.parse_args()
    variants = EXPERIMENTS[args.experiment]
    names = args.only.split(",") if args.only else list(variants)
    folders = {
        name: [args.out / f"{name.replace(' ', '_')}-{s}" for s in range(args.seeds)]
        for name in names
    }
    for seed in range(args.seeds):
        for name, runs in folders.items():
            recipe, settings = variants[name]
            if args.experiment == "paper":
                settings = (*settings, "train.schedule=constant")
            options = TrainOptions(
                recipe=recipe,
                smoke=args.smoke,
                epochs=args.epochs,
                seed=seed,
                devices=tuple(args.devices.split(",")),
                settings=(*(at_size(setting, smoke=args.smoke) for setting in settings), *args.set),
            )
            if train(args.dataset, runs[seed], options).stopped:
                sys.exit(1)
            if not args.only:
                write_summary(args, folders)
    if not args.only:
        sys.stdout.write((args.out / "summary.md").read_text())


def at_size(setting: str, *, smoke: bool) -> str:
    """A setting of the full size for the smoke size: sds grow as its layers have fewer terms."""
    name, value = setting.split("=")
    if smoke and name.endswith(".sd"):
        return f"{name}={float(value) * networks.SMOKE**0.5:.4f}"
    return setting


def write_summary(args: argparse.Namespace, folders: dict[str, list[Path]]) -> None:
    """The variants that have finished runs; the mean of all seeds once they are all there."""
    rows = []
    for name, runs in folders.items():
        done = [run for run in runs if finished(run, args.epochs)]
        if done:
            together = args.experiment == "ensemble" and done == runs
            rows.append(summary(name, done, args.dataset, together))
    record = {"machine": machine(), "argv": sys.argv[1:], "rows": rows}
    (args.out / "summary.json").write_text(json.dumps(record, indent=1) + "\n")
    (args.out / "summary.md").write_text(table(rows))


def finished(run: Path, epochs: int) -> bool:
    """Whether a run has its last epoch behind it."""
    if not (run / metrics.NAME).exists():
        return False
    return any(r["kind"] == "epoch" and r["epoch"] + 1 == epochs for r in metrics.read(run))


def summary(variant: str, runs: list[Path], dataset: Path, together: bool) -> dict:
    """Errors on validation and training loss, of the last epoch and by steps, over the seeds."""
    records = [list(metrics.read(run)) for run in runs]
    last = [[r for r in lines if r["kind"] == "epoch"][-1] for lines in records]
    row = {
        "variant": variant,
        "loss": [record["loss"] for record in last],
        "top1_error": [record["top1"] for record in last],
        "top5_error": [record["top5"] for record in last],
        "loss_by_step": [
            [(r["step"], round(r["loss"], 4)) for r in lines if r["kind"] == "step"]
            for lines in records
        ],
    }
    if together:
        mean = evaluate(runs, dataset, EvalOptions())
        row["mean_prediction"] = [mean.top1, mean.top5]
    return row


def table(rows: list[dict]) -> str:
    """Medians over the seeds, with the lowest and the highest, as Markdown."""
    lines = [
        "| variant | seeds | training loss | top-1 error | top-5 error |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            f"{statistics.median(row['loss']):.3f}",
            *(
                f"{statistics.median(v):.2%}"
                + (f" ({min(v):.2%} to {max(v):.2%})" if len(v) > 1 else "")
                for v in (row["top1_error"], row["top5_error"])
            ),
        ]
        lines.append(f"| {row['variant']} | {len(row['loss'])} | {' | '.join(cells)} |")
    for row in rows:
        if "mean_prediction" in row:
            first, five = row["mean_prediction"]
            lines.append(f"| mean of {row['variant']} | | | {first:.2%} | {five:.2%} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
