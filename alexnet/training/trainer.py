"""A run in memory: network, optimizer, position and log, and how it comes from a checkpoint."""

import math
import time
from pathlib import Path

import torch
from torch import nn

from alexnet.distributed.feed import in_lockstep
from alexnet.errors import RunError
from alexnet.model.dropout import Dropout
from alexnet.training import checkpoint
from alexnet.training.config import TrainConfig
from alexnet.training.evaluate import Errors
from alexnet.training.meter import Meter, Taken
from alexnet.training.metrics import Metrics, Record
from alexnet.training.one_device import from_whole, load_weights, to_whole, whole_like
from alexnet.training.optim import load_velocities, set_rates, sgd, velocities
from alexnet.training.progress import Progress
from alexnet.training.run import Data, Run, Summary
from alexnet.training.schedule import Kind, factor
from alexnet.training.signals import Stop
from alexnet.training.step import compiled, count_errors, set_channels_last, train_step

# Far more images than a batch has: positions of dropout never meet, whatever the batch size.
POSITIONS_A_STEP = 1 << 20
# Share of an epoch's time without data from which the loader, not the network, sets the pace.
DATA_BOUND = 0.05


class Stopped(Exception):  # noqa: N818 - no error: how the loop is left between two steps
    """A signal asked the run to stop."""


class Trainer:
    """One run; `epoch` is called until `done`."""

    def __init__(self, model: nn.Module, config: TrainConfig, data: Data, run: Run) -> None:
        self.config, self.run = config, run
        self.train = in_lockstep(data.train, run.replicas.team)
        self.validation = in_lockstep(data.validation, run.replicas.team)
        self.model: nn.Module = model
        if config.precision == "float64":
            model.double()
        if config.channels_last:
            set_channels_last(model)
        self.forward = compiled(self.model, config)
        self.optimizer = sgd(model, config)
        self.device = next(model.parameters()).device
        self.progress = Progress()
        self.first_images = 0
        self.meter = Meter(self.device)
        self.outputs = len(list(whole_like(model).values())[-1])
        self.metrics: Metrics | None = None
        self.saved_at = time.monotonic()

    @property
    def done(self) -> bool:
        """Whether the schedule or the epochs have come to their end."""
        ended = self.progress.watched.ended(self.config.schedule)
        return ended or self.progress.epoch >= self.config.epochs

    def resume(self) -> None:
        """Go on from the latest checkpoint, if there is one."""
        folder = self.run.folder
        (folder / checkpoint.FOLDER).mkdir(parents=True, exist_ok=True)
        found = checkpoint.steps(folder)
        if found:
            self._restore(found[-1])
        if self.run.replicas.writes:
            self.metrics = Metrics(folder, keep_lines=self.progress.lines)

    def _restore(self, path: Path) -> None:
        saved = checkpoint.load(path, ("model", "velocity", "chance"))
        load_weights(self.model, saved.parts["model"], path)
        load_velocities(self.optimizer, from_whole(self.model, saved.parts["velocity"]))
        self.progress = Progress.from_dict(saved.meta["progress"])
        self.first_images = self.progress.images
        for group in self.optimizer.param_groups:
            group["lr"] = self.progress.rates[f"{group['layer']}.{group['kind']}"]
        torch.set_rng_state(saved.parts["chance"]["cpu"])
        if self.device.type == "cuda" and "cuda" in saved.parts["chance"]:
            torch.cuda.set_rng_state(saved.parts["chance"]["cuda"], self.device)
        self.train.load_state_dict(saved.meta["loader"])
        self._mark_best()
        place = f"epoch {self.progress.epoch}, step {self.progress.step}"
        self.note(f"goes on from {path}: {place}")

    def epoch(self, stop: Stop) -> None:
        """Train on the rest of the epoch, count the errors, let the schedule look, save.

        Raises:
            Stopped: a signal came; the caller saves.
        """
        self._set_rates()
        if self.progress.step < len(self.train):
            self._train(stop)
        errors = self._validate(stop)
        watched = self.progress.watched.after(errors.top1, self.config.schedule)
        if watched.drops != self.progress.watched.drops:
            self.note(f"the validation error has not improved: drop {watched.drops} of the rates")
        self.progress.watched = watched
        self.progress.end_epoch(errors.top1)
        self.save()
        self._mark_best()

    def _set_rates(self) -> None:
        progress, config = self.progress, self.config
        part = progress.epoch / config.epochs

        def now(layer: str, kind: Kind) -> float:
            return factor(config.schedule, progress.watched, part, layer, kind)

        set_rates(self.optimizer, now, velocity_has_lr=config.velocity_has_lr)
        progress.rates = {f"{g['layer']}.{g['kind']}": g["lr"] for g in self.optimizer.param_groups}

    def _train(self, stop: Stop) -> None:
        progress, replicas = self.progress, self.run.replicas
        self.model.train()
        dropouts = [part for part in self.model.modules() if isinstance(part, Dropout)]
        for batch in self.meter.batches(self.train):
            for dropout in dropouts:
                first = progress.steps * POSITIONS_A_STEP + replicas.rank
                dropout.set_position(first, stride=replicas.world)
            loss = train_step(self.forward, self.optimizer, batch, self.config, replicas)
            self.meter.add(loss, len(batch[1]))
            progress.count()
            last = progress.step == len(self.train)
            if last or progress.steps % self.config.log_steps == 0:
                self._log()
            if not last:
                self._between_steps(stop)

    def _between_steps(self, stop: Stop) -> None:
        """Save when it is time; leave when a signal came: all processes after the same step."""
        due = time.monotonic() - self.saved_at > 60 * self.config.checkpoint_minutes
        asked, due = self.run.replicas.any((bool(stop), due))
        if asked:
            raise Stopped
        if due:
            self.save()

    def _log(self) -> None:
        """One line of the log; the loss is looked at here and before saving, nowhere between."""
        taken = self._take()
        self.tell(
            {
                "kind": "step",
                "step": self.progress.steps,
                "epoch": self.progress.epoch,
                "at": self.progress.step,
                "of": len(self.train),
                "loss": taken.mean_loss,
                "lr": max(g["lr"] for g in self.optimizer.param_groups if g["kind"] == "weight"),
                "images_per_second": taken.rate,
                "waiting": taken.waiting,
            }
        )

    def _take(self) -> Taken:
        """What all replicas did since the last call; RunError if it led nowhere."""
        taken = self.meter.take()
        if self.run.replicas.world > 1:
            own = torch.tensor([taken.images, taken.loss], device=self.device, dtype=torch.float64)
            images, loss = (float(part) for part in self.run.replicas.total(own))
            taken = taken._replace(images=round(images), loss=loss)
        self._check(taken.mean_loss)
        self.progress.add(taken)
        return taken

    def _check(self, loss: float) -> None:
        guess = math.log(max(self.outputs, 2))
        if not math.isfinite(loss):
            raise RunError(self._gone(f"the loss is {loss}"))
        if loss > self.config.explode * guess:
            raise RunError(self._gone(f"the loss is {loss:.1f}, guessing has {guess:.1f}"))

    def _gone(self, what: str) -> str:
        return (
            f"Training went astray at step {self.progress.steps} of epoch {self.progress.epoch}: "
            f"{what}. Lower the rate (--set train.lr=...) in a new run. "
            f"{last_good(self.run.folder)}"
        )

    def _validate(self, stop: Stop) -> Errors:
        """Errors on validation, every image once over all replicas."""
        sums = torch.zeros(4, device=self.device, dtype=torch.float64)
        began = time.perf_counter()
        self.model.eval()
        with torch.inference_mode():
            for batch in self.validation:
                sums += count_errors(self.model, batch, self.config)
                # Replicas may have batches of different number here: they leave a step later.
                if stop and self.run.replicas.team is None:
                    raise Stopped
        count, loss, first, five = (float(part) for part in self.run.replicas.total(sums))
        errors = Errors(first / count, five / count)
        totals = self.progress.totals
        self.tell(
            {
                "kind": "epoch",
                "step": self.progress.steps,
                "epoch": self.progress.epoch,
                "epochs": self.config.epochs,
                "loss": totals.mean_loss,
                "validation_loss": loss / count,
                "top1": errors.top1,
                "top5": errors.top5,
                "images_per_second": totals.rate,
                "waiting": totals.waiting,
                "bound": "data" if totals.waiting > DATA_BOUND else "compute",
                "seconds": totals.seconds,
                "validation_seconds": time.perf_counter() - began,
            }
        )
        return errors

    def save(self) -> None:
        """Write a checkpoint of this moment; RunError instead, if the network is past saving."""
        if self.meter.steps:
            self._take()
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            raise RunError(self._gone("weights are not finite"))
        weights = to_whole(self.model, dict(self.model.named_parameters()))
        momenta = to_whole(self.model, dict(velocities(self.optimizer)))
        self.saved_at = time.monotonic()
        if self.metrics is None:
            return
        self.progress.lines = self.metrics.lines
        chance = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            chance["cuda"] = torch.cuda.get_rng_state(self.device)
        checkpoint.save(
            checkpoint.step_path(self.run.folder, self.progress.steps),
            {
                **self.run.meta,
                "progress": self.progress.to_dict(),
                "loader": self.train.state_dict(),
            },
            {
                **self.run.tensors,
                "model": weights,
                "velocity": momenta,
                "chance": chance,
            },
        )
        checkpoint.prune(self.run.folder, self.config.keep)

    def _mark_best(self) -> None:
        if self.metrics is not None and self.progress.best_step == self.progress.steps:
            path = checkpoint.step_path(self.run.folder, self.progress.steps)
            checkpoint.mark_best(self.run.folder, path)

    def summary(self, seconds: float, stop: Stop) -> Summary:
        """What this call came to."""
        return Summary(
            epochs=self.progress.epoch,
            steps=self.progress.steps,
            images=self.progress.images - self.first_images,
            seconds=seconds,
            best_error=self.progress.best_error,
            best=checkpoint.best(self.run.folder),
            last=next(reversed(checkpoint.steps(self.run.folder)), None),
            stopped=stop.signal.name if stop.signal else "",
            exit_code=128 + stop.signal if stop.signal else 0,
        )

    def tell(self, record: Record) -> None:
        """Write a record to metrics.jsonl and report it."""
        if self.metrics is not None:
            self.metrics.write(record)
            self.run.report(record)

    def note(self, text: str) -> None:
        if self.run.replicas.writes:
            self.run.report({"kind": "note", "text": text})


def last_good(run: Path) -> str:
    """A sentence that names the checkpoint a run would go on from."""
    found = checkpoint.steps(run)
    if not found:
        return "No checkpoint had been written."
    return f"Last good checkpoint: {found[-1]}"
