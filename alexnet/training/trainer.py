# pyright: reportUnknownMemberType=false
# torch types some of its functions only in part.
"""fit: any network, any loader of (images, labels), one folder that holds the run.

    RUN/checkpoints/    see alexnet.training.checkpoint
    RUN/metrics.jsonl   see alexnet.training.metrics

A run that was stopped anywhere, by a signal, a fault or a power cut, resumes from its last
checkpoint and ends with the weights of one that was never stopped, bit for bit on a CPU: order,
crops and dropout are functions of the position, and everything else is in the checkpoint.
"""

import math
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from alexnet.distributed.averaging import GradientAverage
from alexnet.distributed.feed import Loader, shared_loader
from alexnet.distributed.mesh import Team
from alexnet.errors import RunError
from alexnet.model.dropout import Dropout
from alexnet.training import checkpoint, metrics
from alexnet.training.checkpoint import Checkpoint, DamagedError
from alexnet.training.config import TrainConfig
from alexnet.training.evaluate import Errors
from alexnet.training.graph import StaticStep, check_graph, make_step
from alexnet.training.metrics import ChanceWatch, Interval, Meter, Metrics, Record
from alexnet.training.one_device import (
    check_shapes,
    from_one_device,
    load_weights,
    parameter_shapes,
    to_one_device,
)
from alexnet.training.optim import (
    full_weights,
    load_masters,
    load_velocities,
    set_rates,
    sgd,
    velocities,
)
from alexnet.training.run import Data, RunContext, Summary, TrainState
from alexnet.training.schedule import PlateauSchedule
from alexnet.training.signals import Stop, Stopped, stop_requests
from alexnet.training.step import count_errors, prepare_model

__all__ = ["Data", "Loader", "RunContext", "Summary", "TrainConfig", "Trainer", "fit"]

# Far more images than a batch has: positions of dropout never overlap, whatever the batch size.
POSITIONS_A_STEP = 1 << 20
# Share of an epoch's time without data from which the loader, not the network, sets the pace.
DATA_BOUND = 0.05
# So many epochs at the loss of guessing are reported, but neither fewer nor more steps than these:
# networks that learn may stay there for hundreds of steps (docs/notes/plateau.md).
CHANCE_EPOCHS = 2
CHANCE_STEPS = (100, 2000)


class Validation(NamedTuple):
    """Mean loss and errors on the validation split, and how long they took."""

    loss: float
    errors: Errors
    seconds: float


def fit(model: nn.Module, config: TrainConfig, data: Data, run: RunContext) -> Summary:
    """Train until the schedule or the epochs end, or a signal comes; resume what `run` holds.

    Raises:
        RunError: the loss is NaN or explodes, the disk is full, all checkpoints are damaged, or
            the newest is of another network. Names the last good checkpoint.
        ValueError: a schedule that follows the validation error, without validation.
        ValueError: the training loader has no batches.
    """
    if not data.has_validation and isinstance(config.schedule, PlateauSchedule):
        raise ValueError("A PlateauSchedule follows the validation error, which is not measured.")
    team = run.replicas.team
    with (
        checkpoint.naming_last_good(run.folder),
        shared_loader(data.train, team) as train,
        _shared_validation(data, team) as validation,
        stop_requests() as stop,
    ):
        if not len(train):
            raise ValueError("The training loader has no batches: there is nothing to learn from.")
        torch.manual_seed(config.seed)  # for networks that draw from torch's own generator
        trainer = Trainer(model, config, train, run, stop)
        trainer.validated = data.has_validation
        trainer.resume()
        try:
            while not trainer.done:
                trainer.train_epoch()
                trainer.end_epoch(None if validation is None else trainer.validate(validation))
        except Stopped:
            trainer.save()
        return trainer.summary()


class Trainer:
    """A run in memory: network, optimizer, position and log, and how it comes from a checkpoint."""

    def __init__(
        self, model: nn.Module, config: TrainConfig, train: Loader, run: RunContext, stop: Stop
    ) -> None:
        self.config, self.train, self.run, self.stop = config, train, run, stop
        self.model = model
        if config.cuda_graph:
            check_graph(model, run.replicas)
        timed = prepare_model(model, config)
        if timed:
            self._log(timed)
        self.optimizer = sgd(model, config, replicas=run.replicas.world)
        average = GradientAverage(model.parameters(), run.replicas)
        self.step = make_step(model, self.optimizer, config, average)
        if isinstance(self.step, StaticStep):
            self.step.offer_input(train)
        self.device = next(model.parameters()).device
        self.dropouts = [module for module in model.modules() if isinstance(module, Dropout)]
        self.classes = list(parameter_shapes(model).values())[-1][0]
        self.state = TrainState()
        self.meter = Meter(self.device)
        steps = min(max(CHANCE_EPOCHS * len(train), CHANCE_STEPS[0]), CHANCE_STEPS[1])
        self.chance = ChanceWatch(self.classes, steps)
        self.validated = True
        self.metrics: Metrics | None = None  # of the process that writes
        self.began = time.perf_counter()
        self.saved_at = time.monotonic()
        self.first_images = 0

    @property
    def done(self) -> bool:
        """Whether the schedule or the epochs have ended, or the error is as low as was asked."""
        config, state = self.config, self.state
        learned = config.stop_error is not None and state.best_error <= config.stop_error
        return learned or config.schedule.ended(state.plateau) or state.epoch >= config.epochs

    def resume(self) -> None:
        """Continue from the latest checkpoint, if there is one."""
        folder = self.run.folder
        if not (folder / checkpoint.FOLDER).is_dir():
            (folder / checkpoint.FOLDER).mkdir(parents=True, exist_ok=True)
            for parent in (folder, folder.parent):
                checkpoint.sync(parent)  # else a power cut may take them with all checkpoints
        saved = self._load_newest()
        if saved is not None:
            self._restore(saved)
        if self.run.replicas.writes:
            if saved is not None and metrics.has_changed(folder):
                self._log(
                    f"{folder / metrics.NAME} has changed since it was written: the log of the "
                    f"first {self.state.steps:,} steps is not to be trusted"
                )
            self.metrics = Metrics(folder, keep_lines=self.state.lines)

    def _load_newest(self) -> Checkpoint | None:
        """The newest checkpoint that no process finds damaged, None where there are none.

        Damaged ones are set aside by another name. DamagedError if there are no others.
        """
        damaged: list[tuple[Path, DamagedError]] = []
        saved = None
        for path in reversed(checkpoint.steps(self.run.folder)):
            saved, error = None, DamagedError(f"Another process cannot read {path}.")
            try:
                saved = self._load(path)
            except DamagedError as reason:
                error = reason
            # The processes must all take the same one.
            if self.run.replicas.any((saved is None,)) == (False,):
                break
            damaged.append((path, error))
            saved = None
        if damaged and saved is None:
            raise damaged[0][1]
        for path, error in damaged:
            self._log(f"{error} It was renamed to {path.name}.damaged; the one before it is used.")
            if self.run.replicas.writes:
                path.rename(path.with_name(f"{path.name}.damaged"))
        return saved

    def _load(self, path: Path) -> Checkpoint:
        """A checkpoint with all that `_restore` needs; DamagedError if anything is not right."""
        saved = checkpoint.load(path, ("model", "velocity", "chance"))
        with checkpoint.damage_named(path):
            TrainState.from_dict(saved.meta["progress"])
            chance, own = saved.parts["chance"]["cpu"], torch.get_rng_state()
            if (chance.dtype, chance.shape) != (own.dtype, own.shape):
                raise ValueError("the state of torch's generator has another shape or type")
            if not isinstance(saved.meta["loader"], dict):
                raise TypeError("the position of the loader is missing")
        return saved

    def _restore(self, saved: Checkpoint) -> None:
        path = saved.path
        load_weights(self.model, saved.parts["model"], path)
        load_masters(self.optimizer, from_one_device(self.model, saved.parts["model"]))
        check_shapes(parameter_shapes(self.model), saved.parts["velocity"], path)
        load_velocities(self.optimizer, from_one_device(self.model, saved.parts["velocity"]))
        self.state = TrainState.from_dict(saved.meta["progress"])
        self.first_images = self.state.images
        # The rates at which the velocities were made: `set_rates` rescales them from these.
        with checkpoint.damage_named(path):
            for group in self.optimizer.param_groups:
                group["lr"] = self.state.rates[f"{group['layer']}.{group['kind']}"]
        torch.set_rng_state(saved.parts["chance"]["cpu"])
        if self.device.type == "cuda" and "cuda" in saved.parts["chance"]:
            torch.cuda.set_rng_state(saved.parts["chance"]["cuda"], self.device)
        with checkpoint.damage_named(path):
            self.train.load_state_dict(saved.meta["loader"])
        self._mark_best()  # the run may have been killed between the two
        self._log(f"resuming from {path}: epoch {self.state.epoch}, step {self.state.step}")

    def train_epoch(self) -> None:
        """Train on the rest of the epoch at its rates, log and save in between.

        Raises:
            Stopped: a signal came; the caller saves.
        """
        self._set_rates()
        state, replicas, steps = self.state, self.run.replicas, len(self.train)
        if state.step >= steps:  # stopped between the last step and the validation
            return
        self.model.train()
        for batch in self.meter.batches(self.train):
            for dropout in self.dropouts:
                first = state.steps * POSITIONS_A_STEP + replicas.rank
                dropout.set_position(first, stride=replicas.world)
            self.meter.add(self.step(batch), len(batch[1]))
            state.count_step()
            last = state.step == steps
            if last or state.steps % self.config.log_steps == 0:
                self._log_steps()
            if not last:
                self._between_steps()

    def _set_rates(self) -> None:
        state, config = self.state, self.config
        set_rates(
            self.optimizer,
            lambda layer, kind: config.schedule.lr_factor(
                layer, kind, progress=state.epoch / config.epochs, state=state.plateau
            ),
            velocity_has_lr=config.velocity_has_lr,
        )
        state.rates = {f"{g['layer']}.{g['kind']}": g["lr"] for g in self.optimizer.param_groups}

    def _between_steps(self) -> None:
        """Save when it is time; stop on a signal, in all processes after the same step."""
        due = time.monotonic() - self.saved_at > 60 * self.config.checkpoint_minutes
        stop, due = self.run.replicas.any((bool(self.stop), due))
        if stop:
            raise Stopped
        if due:
            self.save()

    def _log_steps(self) -> None:
        """One record of the last steps; the loss is read here and before saving, nowhere else."""
        interval = self._flush()
        self._emit(
            {
                "kind": "step",
                "step": self.state.steps,
                "epoch": self.state.epoch,
                "at": self.state.step,
                "of": len(self.train),
                "loss": interval.mean_loss,
                "lr": max(g["lr"] for g in self.optimizer.param_groups if g["kind"] == "weight"),
                "images_per_second": interval.rate,
                "waiting": interval.stall,
            }
        )

    def _flush(self) -> Interval:
        """What all replicas did since the last call; RunError if the loss has diverged."""
        interval = self.meter.flush()
        if self.run.replicas.world > 1:
            sums = [interval.images, interval.loss]
            # float64 counts images exactly, and adds losses that rounding has not touched.
            own = torch.tensor(sums, device=self.device, dtype=torch.float64)
            images, loss = (float(value) for value in self.run.replicas.total(own))
            interval = interval._replace(images=round(images), loss=loss)
        loss, chance = interval.mean_loss, self.chance.loss
        if not math.isfinite(loss):
            raise RunError(self._diverged(f"the loss is {loss}"))
        if loss > self.config.explode * chance:
            raise RunError(self._diverged(f"the loss is {loss:.1f}, at chance it is {chance:.1f}"))
        self.state.add(interval)
        if self.chance.add(interval):
            self._log(
                f"the loss has stayed at ln({self.classes}) = {chance:.2f}, that of guessing, for "
                f"{self.chance.count:,} steps: look at the learning rate (train.lr), at the "
                "initialization (model.LAYER.sd, docs/notes/plateau.md), and whether the labels "
                "belong to the images"
            )
        return interval

    def _diverged(self, reason: str) -> str:
        return (
            f"Training diverged at step {self.state.steps} of epoch {self.state.epoch}: {reason}. "
            "Lower the learning rate (--set train.lr=...) in a new run. "
            f"{checkpoint.last_good(self.run.folder)}"
        )

    def validate(self, validation: Loader) -> Validation:
        """Loss and errors on validation, every image once over all replicas.

        Raises:
            RunError: the loss is not finite.
            Stopped: a signal came; the caller saves.
        """
        sums = torch.zeros(4, device=self.device, dtype=torch.float64)
        began = time.perf_counter()
        self.model.eval()
        with torch.inference_mode():
            for batch in validation:
                sums += count_errors(self.model, batch, self.config)
                # Replicas may differ in their number of batches here: they stop a step later.
                if self.stop and self.run.replicas.team is None:
                    raise Stopped
        images, loss, top1, top5 = (float(value) for value in self.run.replicas.total(sums))
        if not images:
            raise RunError("The validation loader gave no images. Train without validation.")
        if not math.isfinite(loss):
            raise RunError(self._diverged(f"the validation loss is {loss}"))
        errors = Errors(top1 / images, top5 / images)
        return Validation(loss / images, errors, time.perf_counter() - began)

    def end_epoch(self, validation: Validation | None) -> None:
        """Log the epoch, show its error to the schedule, save; mark the checkpoint if it is best.

        Without validation the newest is the best.
        """
        state = self.state
        self._log_epoch(validation)
        if validation is None:
            state.end_epoch(None)
        else:
            error = validation.errors.top1
            plateau = self.config.schedule.after(error, state.plateau)
            if plateau.drops != state.plateau.drops:
                self._log(f"validation error stopped improving: drop {plateau.drops} of the rates")
            state.plateau = plateau
            state.end_epoch(error)
        self.save()
        self._mark_best()

    def _log_epoch(self, validation: Validation | None) -> None:
        totals = self.state.totals
        record: Record = {
            "kind": "epoch",
            "step": self.state.steps,
            "epoch": self.state.epoch,
            "epochs": self.config.epochs,
            "loss": totals.mean_loss,
        }
        if validation is not None:
            top1, top5 = validation.errors
            record |= {"validation_loss": validation.loss, "top1": top1, "top5": top5}
        record |= {
            "images_per_second": totals.rate,
            "waiting": totals.stall,
            "bound": "data" if totals.stall > DATA_BOUND else "compute",
            "seconds": totals.seconds,
        }
        if validation is not None:
            record["validation_seconds"] = validation.seconds
        self._emit(record)

    def save(self) -> None:
        """Write a checkpoint of this moment; RunError instead if weights are not finite."""
        if self.meter.steps:
            self._flush()
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            raise RunError(self._diverged("weights are not finite"))
        # All columns send theirs, in every process; one of them writes.
        weights = to_one_device(self.model, full_weights(self.model, self.optimizer))
        momenta = to_one_device(self.model, dict(velocities(self.optimizer)))
        self.saved_at = time.monotonic()
        if self.metrics is None:
            return
        self.metrics.sync()
        self.state.lines = self.metrics.lines
        chance = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            chance["cuda"] = torch.cuda.get_rng_state(self.device)
        checkpoint.save(
            checkpoint.step_path(self.run.folder, self.state.steps),
            {
                **self.run.meta,
                "progress": self.state.to_dict(),
                "loader": self.train.state_dict(),
            },
            {**self.run.tensors, "model": weights, "velocity": momenta, "chance": chance},
        )
        checkpoint.prune(self.run.folder, self.config.keep)

    def _mark_best(self) -> None:
        if self.run.replicas.writes and self.state.best_step == self.state.steps:
            path = checkpoint.step_path(self.run.folder, self.state.steps)
            checkpoint.mark_best(self.run.folder, path)

    def summary(self) -> Summary:
        """The result of this call."""
        signal = self.stop.signal
        return Summary(
            epochs=self.state.epoch,
            steps=self.state.steps,
            images=self.state.images - self.first_images,
            seconds=time.perf_counter() - self.began,
            best_error=self.state.best_error if self.validated else None,
            best=checkpoint.best(self.run.folder),
            last=next(reversed(checkpoint.steps(self.run.folder)), None),
            stopped=signal.name if signal else "",
            exit_code=128 + signal if signal else 0,
            writes=self.run.replicas.writes,
        )

    def _emit(self, record: Record) -> None:
        """Write a record to metrics.jsonl and pass it on."""
        if self.metrics is not None:
            self.metrics.write(record)
            self.run.emit(record)

    def _log(self, text: str) -> None:
        if self.run.replicas.writes:
            self.run.emit({"kind": "note", "text": text})


def _shared_validation(
    data: Data, team: Team | None
) -> AbstractContextManager[Loader] | AbstractContextManager[None]:
    return shared_loader(data.validation, team) if data.has_validation else nullcontext()
