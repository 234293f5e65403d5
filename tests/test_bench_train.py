import json

import pytest

from alexprep.bench import train_bench
from alexprep.bench.suite import BenchConfig
from alexprep.bench.train_bench import Pace, pace
from alexprep.model.recipes import SMOKE_BATCH


def test_the_pace_weighs_steps_by_their_time_and_leaves_out_the_start(tmp_path):
    # 20 steps at 64 images/s with half of the time lost, then 20 s and 10 s of steps.
    lines = [
        {"kind": "step", "step": 20, "images_per_second": SMOKE_BATCH, "waiting": 0.5},
        {"kind": "step", "step": 40, "images_per_second": SMOKE_BATCH, "waiting": 0.01},
        {"kind": "epoch", "step": 40, "images_per_second": 1.0, "waiting": 1.0},
        {"kind": "step", "step": 60, "images_per_second": 2 * SMOKE_BATCH, "waiting": 0.04},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert pace(tmp_path, 20) == pytest.approx(Pace(40 * SMOKE_BATCH / 30, (0.2 + 0.4) / 30))
    assert pace(tmp_path, 0) == pytest.approx(Pace(60 * SMOKE_BATCH / 50, (10 + 0.6) / 50))


def test_a_real_training_is_measured_on_pictures_that_are_drawn(tmp_path, monkeypatch):
    # The run's memory setting would outlive this test.
    monkeypatch.setattr("alexprep.model.training.keep_freed_memory", bool)
    monkeypatch.setattr("alexprep.bench.step_bench.keep_freed_memory", bool)
    monkeypatch.setattr(train_bench, "STEPS", 25)
    monkeypatch.setattr(train_bench, "AGAIN", 2)
    rate, headspace, running, start, busy = train_bench.run(
        BenchConfig(rounds=1, images=640), tmp_path
    )
    assert rate.median > 0
    assert headspace.median > 0
    assert 0 < busy.median <= 100
    assert 0 <= running.median <= 100
    assert 0 <= start.median <= 100
    assert running.target == "<= 2"
