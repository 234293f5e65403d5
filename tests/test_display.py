import errno
import os
import socket
import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from alexprep.model.display import RunDisplay, format_record

STEP = {
    "kind": "step",
    "step": 50,
    "epoch": 2,
    "at": 50,
    "of": 782,
    "loss": 1.23456,
    "lr": 0.01,
    "images_per_second": 1234.5,
    "waiting": 0.004,
}
EPOCH = {
    "kind": "epoch",
    "step": 782,
    "epoch": 2,
    "epochs": 15,
    "loss": 1.2,
    "validation_loss": 1.1,
    "top1": 0.4,
    "top5": 0.1,
    "images_per_second": 1234.5,
    "waiting": 0.074,
    "bound": "data",
    "seconds": 61.0,
    "validation_seconds": 3.0,
}


def test_a_step_is_one_line_with_speed_waiting_loss_and_rate():
    assert format_record(STEP, 15) == (
        "epoch 3 step 50/782: loss 1.2346, lr 0.01, 1,234 images/s, data wait 0.4%"
    )


def test_an_epoch_says_what_bounds_it_with_figures():
    assert format_record(EPOCH, 15) == (
        "epoch 3/15: train loss 1.200, val loss 1.100, top-1 acc 60.00%, top-5 acc 90.00%; "
        "1,234 images/s, data wait 7.4% (data-bound); 61 s + 3 s validation"
    )


def test_away_from_a_terminal_records_are_plain_lines(tmp_path, capsys):
    with RunDisplay(tmp_path, 15) as display:
        display.emit(STEP)
        display.log("hello")
    said = capsys.readouterr()
    assert said.err.splitlines() == [format_record(STEP, 15), "hello"]
    assert said.out == ""


def test_a_silent_display_writes_nothing(tmp_path, capsys):
    with RunDisplay(tmp_path, 15, silent=True) as display:
        display.open_events()
        display.emit(EPOCH)
    assert capsys.readouterr().err == ""
    assert not list(tmp_path.iterdir())


def test_on_a_terminal_epochs_make_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with RunDisplay(tmp_path, 15) as display:
        display.emit(STEP)
        display.emit(EPOCH)
    said = capsys.readouterr().err
    assert "60.00%" in said
    assert "3/15" in said


def test_tensorboard_events_are_written(tmp_path):
    with RunDisplay(tmp_path, 15) as display:
        display.open_events()
        display.emit(STEP)
        display.emit(EPOCH)
    (events,) = tmp_path.glob("events.*")
    data = events.read_bytes()
    for tag in (b"train/loss", b"epoch/top1"):
        assert tag in data


def test_events_are_read_back_by_another_reader_with_their_steps(tmp_path):
    with RunDisplay(tmp_path, 15) as display:
        display.open_events()
        display.emit(STEP)
        display.emit({**STEP, "step": 100, "loss": 0.5})
    (events,) = tmp_path.glob("events.*")
    found = list(scalars(events.read_bytes()))
    assert (50, "train/loss", pytest.approx(1.23456)) in found
    assert (100, "train/loss", 0.5) in found


def scalars(data):
    """(step, tag, value) of each record: length, its check, the message, its check."""
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + length])
        yield from ((event.step, one.tag, one.simple_value) for one in event.summary.value)
        at += 12 + length + 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_under_the_events_raises_and_does_not_wait(tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1234567890.0)
    (tmp_path / f"events.out.tfevents.1234567890.{socket.gethostname()}").symlink_to("/dev/full")
    display = RunDisplay(tmp_path, 15)
    display.open_events()
    with display:
        for _ in range(5):
            display.emit(STEP)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            display.emit(EPOCH)  # an epoch is flushed
