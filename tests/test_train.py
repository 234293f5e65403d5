import errno
import os
import signal
import sys
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from alexnet.errors import RunError
from alexnet.training import checkpoint
from alexnet.training.config import TrainConfig
from alexnet.training.metrics import read
from alexnet.training.optim import sgd
from alexnet.training.run import Data, RunContext
from alexnet.training.schedule import CONSTANT, PlateauSchedule, StepSchedule
from alexnet.training.trainer import fit
from tests.batches import Batches
from tests.ranks import run_ranks

CONFIG = TrainConfig(
    epochs=3, lr=0.05, schedule=StepSchedule(weights=((0.5, 0.1),)), log_steps=2, keep=50
)


def network():
    """Dropout draws from torch's generator, so that its state must come back too."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(32, 3)
    )


def data(**changes):
    return Data(train=Batches(**changes), validation=Evaluation())


class Evaluation(Batches):
    """Starts at its beginning each time, as an evaluation loader does."""

    def __init__(self):
        super().__init__(seed=9)

    def __iter__(self):
        yield from zip(self.images, self.labels, strict=True)


def weights(run):
    return checkpoint.load(checkpoint.steps(run)[-1], ("model", "velocity")).parts


def assert_same(one, two):
    for part, tensors in weights(one).items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, weights(two)[part][name]), (part, name)


def test_training_lowers_the_loss_and_says_so(tmp_path):
    told = []
    summary = fit(network(), CONFIG, data(), RunContext(folder=tmp_path, emit=told.append))
    assert (summary.epochs, summary.steps, summary.images, summary.stopped) == (3, 15, 120, "")
    epochs = [record for record in read(tmp_path) if record["kind"] == "epoch"]
    assert epochs[-1]["loss"] < epochs[0]["loss"] < 1.2
    assert summary.best_error == min(record["top1"] for record in epochs)
    assert told == list(read(tmp_path))
    assert checkpoint.load(summary.best).meta["progress"]["best_error"] == summary.best_error


class Killed(Batches):
    """Ends like a killed process when it is asked for the batch after `last` batches in all."""

    def __init__(self, last):
        super().__init__()
        self.left = last

    def __iter__(self):
        for batch in super().__iter__():
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize("last", [1, 4, 5, 7, 10, 14])
def test_a_run_killed_at_any_step_ends_with_the_weights_of_one_that_was_not(tmp_path, last):
    fit(network(), CONFIG, data(), RunContext(folder=tmp_path / "once"))
    # A checkpoint after every step, so that the run goes on amid epochs.
    often = replace(CONFIG, checkpoint_minutes=1e-9)
    killed = Data(train=Killed(last), validation=Evaluation())
    with pytest.raises(KeyboardInterrupt):
        fit(network(), often, killed, RunContext(folder=tmp_path / "twice"))
    torch.manual_seed(last)
    fit(network(), CONFIG, data(), RunContext(folder=tmp_path / "twice"))
    assert_same(tmp_path / "once", tmp_path / "twice")
    once, twice = ([(r["kind"], r["step"]) for r in read(tmp_path / n)] for n in ("once", "twice"))
    epochs = [line for line in once if line[0] == "epoch"]
    assert [line for line in twice if line[0] == "epoch"] == epochs


def truncate(path):
    os.truncate(path, path.stat().st_size - 7)


class Signals(Batches):
    """Sends this process a signal while the batch after `last` is made."""

    def __init__(self, last, number):
        super().__init__()
        self.left, self.number = last, number

    def __iter__(self):
        for batch in super().__iter__():
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.number)
            yield batch


ENDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@pytest.mark.parametrize("number", ENDED)
@pytest.mark.parametrize("last", [2, 5, 8])
def test_a_signal_saves_and_leaves_and_the_same_call_goes_on(tmp_path, number, last):
    fit(network(), CONFIG, data(), RunContext(folder=tmp_path / "once"))
    stopping = Data(train=Signals(last, number), validation=Evaluation())
    handler = signal.getsignal(number)
    summary = fit(network(), CONFIG, stopping, RunContext(folder=tmp_path / "twice"))
    assert (summary.stopped, summary.exit_code) == (signal.Signals(number).name, 128 + number)
    assert summary.steps == last
    assert signal.getsignal(number) is handler
    fit(network(), CONFIG, data(), RunContext(folder=tmp_path / "twice"))
    assert_same(tmp_path / "once", tmp_path / "twice")


def flip(path, byte):
    data = bytearray(path.read_bytes())
    data[byte] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [lambda p: flip(p, 300), lambda p: flip(p, -1), truncate])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    fit(network(), CONFIG, data(), RunContext(folder=tmp_path / "once"))
    run = tmp_path / "twice"
    fit(network(), replace(CONFIG, epochs=2), data(), RunContext(folder=run))
    first, newest = checkpoint.steps(run)
    damage(newest)
    notes = []
    fit(network(), CONFIG, data(), RunContext(folder=run, emit=notes.append))
    assert_same(tmp_path / "once", run)
    texts = [record["text"] for record in notes if record["kind"] == "note"]
    assert texts[0].startswith(f"{newest} is damaged")
    assert texts[1].startswith(f"resuming from {first}: epoch 1, step 0")
    assert (run / checkpoint.FOLDER / f"{newest.name}.damaged").exists()
    once, twice = ([(r["kind"], r["step"]) for r in read(tmp_path / n)] for n in ("once", "twice"))
    assert once == twice


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(tmp_path):
    fit(network(), replace(CONFIG, epochs=2), data(), RunContext(folder=tmp_path))
    for path in checkpoint.steps(tmp_path):
        flip(path, 300)
    newest = checkpoint.steps(tmp_path)[-1]
    with pytest.raises(RunError, match=f"{newest} is damaged"):
        fit(network(), CONFIG, data(), RunContext(folder=tmp_path))
    assert len(checkpoint.steps(tmp_path)) == 2


def test_a_validation_loss_that_is_no_number_ends_the_run_and_is_written_nowhere(tmp_path):
    poisoned = data()
    poisoned.validation.images[0] = torch.inf
    with pytest.raises(RunError, match="the validation loss is nan") as caught:
        fit(network(), CONFIG, poisoned, RunContext(folder=tmp_path))
    assert "\n" not in str(caught.value)
    assert {record["kind"] for record in read(tmp_path)} == {"step"}
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize(("lr", "reports"), [(1e-9, 1), (0.05, 0)])
def test_a_loss_that_stays_at_that_of_guessing_is_reported_once(tmp_path, lr, reports):
    model = network()
    torch.nn.init.zeros_(model[4].weight)
    torch.nn.init.zeros_(model[4].bias)
    notes = []
    config = replace(CONFIG, lr=lr, epochs=50, schedule=CONSTANT)
    fit(model, config, data(), RunContext(folder=tmp_path, emit=notes.append))
    texts = [record["text"] for record in notes if record["kind"] == "note"]
    assert len(texts) == reports
    for text in texts:
        assert text.startswith("the loss has stayed at ln(3) = 1.10, that of guessing, for 100 ste")
        for remedy in ("learning rate", "initialization", "labels"):
            assert remedy in text


def test_a_run_killed_before_it_marked_the_best_checkpoint_marks_it_when_resumed(tmp_path):
    config = replace(CONFIG, epochs=1)
    first = fit(network(), config, data(), RunContext(folder=tmp_path))
    saved = first.best.read_bytes()
    first.best.unlink()
    again = fit(network(), config, data(), RunContext(folder=tmp_path))
    assert again.steps == first.steps
    assert again.best.read_bytes() == saved


def test_a_loader_without_batches_is_refused(tmp_path):
    class Nothing(Batches):
        def __len__(self):
            return 0

    with pytest.raises(ValueError, match="training loader has no batches"):
        fit(
            network(),
            CONFIG,
            Data(train=Nothing(), validation=Evaluation()),
            RunContext(folder=tmp_path),
        )


def test_without_validation_the_newest_checkpoint_is_the_best(tmp_path):
    alone = Data(train=Batches(), validation=None, has_validation=False)
    summary = fit(network(), CONFIG, alone, RunContext(folder=tmp_path))
    assert summary.best_error is None
    assert f"newest checkpoint: {summary.best}" in summary.text()
    assert summary.best.read_bytes() == checkpoint.steps(tmp_path)[-1].read_bytes()
    epochs = [record for record in read(tmp_path) if record["kind"] == "epoch"]
    assert len(epochs) == 3
    assert not any({"top1", "top5", "validation_loss"} & set(record) for record in epochs)
    config = replace(CONFIG, schedule=PlateauSchedule())
    with pytest.raises(ValueError, match="follows the validation error"):
        fit(network(), config, alone, RunContext(folder=tmp_path))


def test_equal_runs_make_equal_checkpoints(tmp_path):
    # The network's dropout draws from torch's generator, which other code has used before.
    for number, name in enumerate(("once", "twice")):
        model = network()
        torch.manual_seed(number)
        fit(model, CONFIG, data(), RunContext(folder=tmp_path / name))
    once, twice = (checkpoint.steps(tmp_path / name)[-1] for name in ("once", "twice"))
    assert once.read_bytes() == twice.read_bytes()


def test_more_epochs_go_on_from_where_fewer_ended(tmp_path):
    config = replace(CONFIG, schedule=CONSTANT)
    fit(network(), config, data(), RunContext(folder=tmp_path / "once"))
    fit(network(), replace(config, epochs=1), data(), RunContext(folder=tmp_path / "twice"))
    fit(network(), config, data(), RunContext(folder=tmp_path / "twice"))
    assert_same(tmp_path / "once", tmp_path / "twice")


def test_a_finished_run_is_left_as_it_is(tmp_path):
    fit(network(), CONFIG, data(), RunContext(folder=tmp_path))
    before = checkpoint.steps(tmp_path)[-1].read_bytes()
    summary = fit(network(), CONFIG, data(), RunContext(folder=tmp_path))
    assert (summary.epochs, summary.images) == (3, 0)
    assert checkpoint.steps(tmp_path)[-1].read_bytes() == before


def test_a_plateau_ends_the_run_before_its_epochs(tmp_path):
    # Patience 1 and an improvement nobody makes: three drops and the end, one epoch each.
    config = replace(CONFIG, epochs=40, schedule=PlateauSchedule(patience=1, improvement=0.99))
    assert fit(network(), config, data(), RunContext(folder=tmp_path)).epochs == 4
    rates = [record["lr"] for record in read(tmp_path) if record["kind"] == "step"]
    assert sorted({round(rate, 9) for rate in rates}) == [5e-5, 5e-4, 5e-3, 5e-2]


def test_a_loss_that_is_no_number_names_the_last_good_checkpoint(tmp_path):
    fit(network(), replace(CONFIG, epochs=1), data(), RunContext(folder=tmp_path))
    last = checkpoint.steps(tmp_path)[-1]
    poisoned = data()
    poisoned.train.images[:] = torch.nan
    with pytest.raises(RunError, match="the loss is nan") as caught:
        fit(network(), CONFIG, poisoned, RunContext(folder=tmp_path))
    assert str(last) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert checkpoint.steps(tmp_path)[-1] == last


def test_a_loss_that_explodes_stops_the_run(tmp_path):
    with pytest.raises(RunError, match=r"Training diverged.*No checkpoint had been written"):
        fit(network(), replace(CONFIG, lr=1e6), data(), RunContext(folder=tmp_path))
    assert not checkpoint.steps(tmp_path)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    fit(network(), CONFIG, data(), RunContext(folder=tmp_path))
    other = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(RunError, match="of another network"):
        fit(other, CONFIG, data(), RunContext(folder=tmp_path))


class FullDisk(Batches):
    """From its second batch on the checkpoints' disk is full."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if number == 1:
                for step in range(1, 40):
                    name = checkpoint.step_path(self.run, step).name
                    path = self.run / checkpoint.FOLDER / f"{name}.partial"
                    path.unlink(missing_ok=True)
                    path.symlink_to("/dev/full")
            yield batch


def test_a_full_disk_is_one_line_that_names_the_last_good_checkpoint(tmp_path):
    fit(network(), replace(CONFIG, epochs=1), data(), RunContext(folder=tmp_path))
    last = checkpoint.steps(tmp_path)[-1]
    full = Data(train=FullDisk(tmp_path), validation=Evaluation())
    with pytest.raises(RunError, match=os.strerror(errno.ENOSPC)) as caught:
        fit(network(), CONFIG, full, RunContext(folder=tmp_path))
    assert str(last) in str(caught.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=str(tmp_path / "file")):
        fit(network(), CONFIG, data(), RunContext(folder=tmp_path / "file" / "run"))


class Slow(Batches):
    """Takes far longer for a batch than the network."""

    def __iter__(self):
        for batch in super().__iter__():
            time.sleep(0.3)
            yield batch


def test_a_loader_that_sets_the_pace_is_called_data_bound(tmp_path):
    slow = Data(train=Slow(), validation=Evaluation())
    fit(network(), replace(CONFIG, epochs=1), slow, RunContext(folder=tmp_path))
    epoch = next(record for record in read(tmp_path) if record["kind"] == "epoch")
    assert epoch["bound"] == "data"
    assert epoch["waiting"] > 0.5


TWO_RANKS = """
import sys
from dataclasses import replace
from pathlib import Path
from alexnet.distributed.mesh import join
from alexnet.distributed.mesh import Replicas
from alexnet.training.run import Data, RunContext
from alexnet.training.trainer import fit
from tests.test_train import CONFIG, Evaluation, network
from tests.batches import Batches

folder = Path(sys.argv[1])
team = join(columns=1)
rank = team.replica

class Share(Batches):
    def __iter__(self):
        for images, labels in super().__iter__():
            yield images[rank::2], labels[rank::2]

class EvaluationShare(Evaluation):
    def __iter__(self):
        for images, labels in super().__iter__():
            yield images[rank::2], labels[rank::2]

model = network().double()
model[3].p = 0.0
train, validation = Share(), EvaluationShare()
train.images, validation.images = train.images.double(), validation.images.double()
run = RunContext(folder=folder / "run", replicas=Replicas(team=team))
fit(model, CONFIG, Data(train=train, validation=validation), run)
team.close()
"""


def test_two_processes_learn_what_one_learns(tmp_path):
    model = network().double()
    model[3].p = 0.0
    alone = data()
    for batches in (alone.train, alone.validation):
        batches.images = batches.images.double()
    fit(model, CONFIG, alone, RunContext(folder=tmp_path / "once"))
    assert run_ranks(2, [sys.executable, "-c", TWO_RANKS, tmp_path]) == [0, 0]
    expected = weights(tmp_path / "once")["model"]
    for name, tensor in weights(tmp_path / "run")["model"].items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-12)
    errors = [
        [r["top1"] for r in read(tmp_path / run) if r["kind"] == "epoch"] for run in ("once", "run")
    ]
    assert errors[0] == errors[1]


@pytest.mark.parametrize("last", ["rounded", "plain"])
def test_weights_that_the_network_has_rounded_are_learned_and_saved_in_float32(
    tmp_path, monkeypatch, last
):
    half = replace(CONFIG, precision="bfloat16")
    fit(network(), half, data(), RunContext(folder=tmp_path / "plain"))

    def rounded(model, config, **options):
        optimizer = sgd(model, config, **options)
        optimizer.round_weights([p for p in model.parameters() if p.ndim > 1], torch.bfloat16)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16, torch.float32}
        return optimizer

    run = RunContext(folder=tmp_path / "rounded")
    with monkeypatch.context() as patch:  # where there is CUDA, `sgd` does so itself
        patch.setattr("alexnet.training.trainer.sgd", rounded)
        often = replace(half, checkpoint_minutes=1e-9)
        with pytest.raises(KeyboardInterrupt):
            fit(network(), often, Data(train=Killed(7), validation=Evaluation()), run)
        if last == "rounded":
            fit(network(), half, data(), run)
    if last == "plain":
        fit(network(), half, data(), run)
    assert {t.dtype for part in weights(run.folder).values() for t in part.values()} == {
        torch.float32
    }
    assert_same(tmp_path / "plain", run.folder)
