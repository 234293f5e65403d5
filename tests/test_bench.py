import io
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexprep.bench.measurement import Result, Row, compared, interleaved, result, row, save, table
from alexprep.bench.shard_bench import BASELINE, with_simplejpeg
from alexprep.bench.stats_bench import run as bench_stats
from alexprep.bench.suite import BenchConfig, run_bench
from alexprep.dataset.codec import encode
from benchmarks.make_readme import readme
from docs.generate import speed
from tests.tarsets import drawn_items, write_dataset

FOUND = [
    Row(name="decode", unit="images/s", median=1000, p5=900, p95=1100, n=5),
    Row(
        name="stats",
        unit="images/s",
        median=910,
        p5=850,
        p95=990,
        n=5,
        baseline="decode",
        ratio=0.91,
        target=">= 0.85",
    ),
]


def test_a_case_that_takes_three_times_as_long_has_a_third_of_the_rate(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def work(seconds):
        clock[0] += seconds
        return 10

    rates = interleaved({"one": lambda: work(0.02), "two": lambda: work(0.06)}, rounds=3)
    assert {name: len(values) for name, values in rates.items()} == {"one": 3, "two": 3}
    one, two = compared(rates, baseline="one", targets={"two": ">= 0.4"})
    assert (one.ratio, one.baseline) == (None, "")
    assert two.ratio == pytest.approx(1 / 3)
    assert (two.baseline, two.target) == ("one", ">= 0.4")


def test_each_round_begins_with_another_case_after_one_uncounted_turn():
    turns = []
    cases = {name: lambda name=name: turns.append(name) or 1 for name in "abc"}
    interleaved(cases, rounds=3)
    assert "".join(turns) == "abc" + "abc" + "bca" + "cab"


def test_the_ratio_is_taken_within_a_round():
    # The machine is ten times slower in the second round; the ratio of the two is not.
    first, second = compared({"base": [100, 10, 100], "half": [50, 5, 50]}, baseline="base")
    assert (first.median, second.ratio) == (100, 0.5)


def test_median_and_spread_are_those_of_known_values():
    found = row("x", list(range(101)), "MB")
    assert (found.median, found.p5, found.p95, found.n) == (50, 5, 95, 101)
    alone = row("x", [7.0], "MB")
    assert (alone.median, alone.p5, alone.p95, alone.n) == (7, 7, 7, 1)


def test_a_table_has_one_line_a_row_and_says_what_was_promised():
    head, rule, decode, stats = table(FOUND).splitlines()
    assert head.count("|") == rule.count("|") == decode.count("|") == stats.count("|")
    assert "1,000" in decode
    assert "0.91 of decode" in stats
    assert ">= 0.85" in stats


def test_a_result_read_back_is_the_result_written_and_replaces_the_one_before(tmp_path):
    found = result("stats", "alexprep bench stats", FOUND, {"rounds": 5}, ["flat"])
    paths = {save(found, tmp_path) for _ in range(2)}
    assert len(paths) == 1
    read = Result.load(paths.pop())
    assert (read.part, read.rows, read.notes) == ("stats", tuple(FOUND), ("flat",))
    assert read.machine == json.loads(json.dumps(found.machine))
    assert read.machine["cores"] >= 1
    assert read.machine["cpu"]


def test_the_readme_has_every_result_with_its_hardware(tmp_path):
    found = result("stats", "alexprep bench stats", FOUND, {}, ["All of it would take an hour."])
    save(found, tmp_path)
    text = readme(tmp_path)
    assert "## stats" in text
    assert found.machine["cpu"] in text
    assert table(FOUND) in text
    assert "All of it would take an hour." in text


def test_the_committed_readme_is_that_of_the_committed_results():
    # `python benchmarks/make_readme.py` overwrites it.
    folder = Path(__file__).parents[1] / "benchmarks"
    assert (folder / "README.md").read_text() == readme(folder / "results")


def test_a_result_with_fewer_instructions_has_a_file_and_a_row_of_its_own(tmp_path, monkeypatch):
    rows = [
        replace(FOUND[0], name="bare"),
        replace(FOUND[1], name="alexprep dali", baseline="bare"),
    ]
    save(result("avx2", "command", rows, {}), tmp_path)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("NUMBA_CPU_NAME", "haswell")
    limited = [rows[0], replace(rows[1], median=700, ratio=0.7)]
    assert save(result("avx2", "command", limited, {}), tmp_path).stem.endswith("-avx2-haswell")
    assert len(list(tmp_path.iterdir())) == 2
    first, second = speed.compared({"loader": "alexprep dali"}, tmp_path).splitlines()[2:4]
    assert first.endswith("| 910 | bare 1,000 (0.91 times) |")
    assert second == "| loader | AVX2 alone | 700 | bare 1,000 (0.70 times) |"
    assert speed.compared(results=tmp_path / "none") == speed.NOT_MEASURED


def test_results_that_call_the_baseline_a_floor_are_still_read(tmp_path):
    rows = [{"name": "x", "unit": "s", "median": 2, "p5": 1, "p95": 3, "n": 5}]
    rows.append({**rows[0], "floor": "x", "ratio": 0.5, "target": ">= 1"})
    fields = {"part": "x", "command": "c", "when": "w", "machine": {}, "config": {}, "notes": ["n"]}
    (tmp_path / "x.json").write_text(json.dumps({**fields, "rows": rows}))
    old = Result.load(tmp_path / "x.json")
    assert [(row.baseline, row.ratio) for row in old.rows] == [("", None), ("x", 0.5)]
    assert old.notes == ("n",)


def test_the_command_of_a_result_has_the_options_that_were_given(tmp_path):
    items = drawn_items(np.random.default_rng(3), 6, size=32)
    root = write_dataset(tmp_path / "set", {"train": items}, size=32, shards=2)
    (measured,) = run_bench("stats", BenchConfig(rounds=1, workers=1, data=root), tmp_path / "out")
    assert measured.command == "alexprep bench stats --rounds 1 --workers 1 --data set"
    (path,) = (tmp_path / "out").iterdir()
    assert Result.load(path).config["data"] == "set"


def test_the_baseline_of_sharding_makes_the_square_that_shards_hold():
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (400, 300, 3), np.uint8))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=95)
    square = Image.open(io.BytesIO(with_simplejpeg(data.getvalue())))
    ours = Image.open(io.BytesIO(encode(data.getvalue(), size=256, quality=95).jpg))
    difference = np.asarray(square, float) - np.asarray(ours, float)
    assert square.size == ours.size == (256, 256)
    assert np.abs(difference).mean() < 2, BASELINE


def test_an_unknown_part_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"shard, stats, load, step, train or all, not 'trian'"):
        list(run_bench("trian", BenchConfig()))


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"images": 0}, {"workers": -1}])
def test_a_measurement_of_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="BenchConfig"):
        BenchConfig(**wrong)


def test_the_cases_of_the_stats_benchmark_see_every_image(tmp_path):
    items = drawn_items(np.random.default_rng(3), 24, size=32)
    root = write_dataset(tmp_path, {"train": items}, size=32, shards=2)
    found = {
        one.name: one for one in bench_stats(BenchConfig(rounds=1, data=root, workers=1), tmp_path)
    }
    assert found["stats"].baseline == "decode only, Pillow"
    assert found["stats"].ratio is not None
    assert 10 < found["peak memory of a worker"].median < 250
    assert all(one.n >= 1 and one.median > 0 for one in found.values())
