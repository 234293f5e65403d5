from dataclasses import replace

import pytest

from alexnet.training.metrics import Metrics, read
from alexnet.training.run import RunContext
from alexnet.training.trainer import fit
from docs.generate.format import FIELDS
from tests.test_train import CONFIG, data, network


def test_records_come_back_in_order(tmp_path):
    metrics = Metrics(tmp_path, keep_lines=0)
    for step in range(3):
        metrics.write({"kind": "step", "step": step, "loss": 0.5})
    assert [record["step"] for record in read(tmp_path)] == [0, 1, 2]


def test_a_resumed_run_cuts_off_what_came_after_its_checkpoint(tmp_path):
    metrics = Metrics(tmp_path, keep_lines=0)
    for step in range(5):
        metrics.write({"step": step})
    again = Metrics(tmp_path, keep_lines=2)
    again.write({"step": 99})
    assert [record["step"] for record in read(tmp_path)] == [0, 1, 99]
    assert again.lines == 3


def test_a_line_that_a_killed_run_left_unfinished_is_left_out(tmp_path):
    Metrics(tmp_path, keep_lines=0).write({"step": 0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "lo')
    assert list(read(tmp_path)) == [{"step": 0}]


def test_a_damaged_line_is_an_error_to_a_reader_but_does_not_keep_a_run_from_resuming(tmp_path):
    lines = [b'{"step": 0}', b'{"step": \xff}', b'{"step": 2}']
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    records = read(tmp_path)
    assert next(records) == {"step": 0}
    with pytest.raises(ValueError, match="0xff"):
        next(records)
    assert Metrics(tmp_path, keep_lines=2).lines == 2
    assert (tmp_path / "metrics.jsonl").read_bytes().splitlines() == lines[:2]


def test_a_changed_log_is_said_by_the_run_that_resumes(tmp_path):
    config = replace(CONFIG, epochs=1)
    fit(network(), config, data(), RunContext(folder=tmp_path))
    notes = []

    def resume():
        notes.clear()
        fit(network(), config, data(), RunContext(folder=tmp_path, emit=notes.append))
        return [note["text"] for note in notes if "has changed since" in note["text"]]

    assert resume() == []
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    for changed in (whole.replace(b"1", b"2", 1), whole[:-5], b""):
        path.write_bytes(changed)
        (text,) = resume()
        assert text.startswith(f"{path} has changed since it was written")
        path.write_bytes(whole)


@pytest.mark.parametrize("kind", ["step", "epoch"])
def test_every_field_of_a_run_is_explained_and_no_other(tmp_path, kind):
    fit(network(), CONFIG, data(), RunContext(folder=tmp_path))
    written = {name for record in read(tmp_path) if record["kind"] == kind for name in record}
    assert set(FIELDS[kind]) == written  # of which docs/reference/format.md is made
