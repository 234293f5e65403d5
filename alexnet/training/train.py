"""fit: any network, any loader of (images, labels), one folder that holds the run.

    RUN/checkpoints/    see alexnet.training.checkpoint
    RUN/metrics.jsonl   see alexnet.training.metrics

A run that was stopped anywhere, by a signal, a fault or a power cut, goes on from its last
checkpoint and ends with the weights of one that was never stopped, bit for bit on a CPU: order,
crops and dropout are functions of the position, and everything else is in the checkpoint.
"""

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from alexnet.errors import RunError
from alexnet.training.config import TrainConfig
from alexnet.training.run import Data, Loader, Run, Summary
from alexnet.training.signals import stop_requests
from alexnet.training.step import train_step
from alexnet.training.trainer import Stopped, Trainer, last_good

__all__ = ["Data", "Loader", "Run", "Summary", "TrainConfig", "fit", "train_step"]


def fit(model: nn.Module, config: TrainConfig, data: Data, run: Run) -> Summary:
    """Train until the schedule or the epochs end, or a signal comes; resume where `run` stands.

    Raises:
        RunError: the loss is not a number or explodes, the disk is full, a checkpoint is damaged or
            of another network. Names the last good checkpoint.
    """
    with naming_last_good(run.folder):
        trainer = Trainer(model, config, data, run)
        trainer.resume()
        with trainer.train, trainer.validation, stop_requests() as stop:
            began = time.perf_counter()
            try:
                while not trainer.done:
                    trainer.epoch(stop)
            except Stopped:
                trainer.save()
        return trainer.summary(time.perf_counter() - began, stop)


@contextmanager
def naming_last_good(run: Path) -> Generator[None]:
    """A fault of storage becomes a RunError that says from where the run can go on."""
    try:
        yield
    except OSError as error:
        where = error.filename or run
        raise RunError(f"{where}: {error.strerror or error}. {last_good(run)}") from error
