"""Every command that writes, killed at each of its changes to the disk, or in a power cut there.

Whatever is left, the readers give what was there before, or what the command makes, or one clear
line; the same command then ends with the bytes of one that was not disturbed, and leaves no file
more. All changes are tried with `-m slow`, some of them always.
"""

import json
import random
import re
import shutil
from contextlib import closing
from typing import NamedTuple

import numpy as np
import pytest
from drawing import draw_classes
from power_cut import Disk
from traced import Server

NETWORK = [
    {"name": "conv1", "out": 2, "kernel": 11, "stride": 8, "then": ["act", "lrn"]},
    {"name": "fc7", "out": 6, "then": ["act"]},
    {"name": "fc8", "out": 3, "then": []},
]
SHARD = ("shard", "zoo", "set", "--size=64", "--shards=2", "--workers=1")
STATS = ("stats", "set", "--workers=1")
PLANES = ("planes", "set", "--workers=1")
VERIFY = ("verify", "set", "--workers=1")
TRAIN = (
    *("train", "set", "--run=run", "--smoke", "--devices=cpu", "--backend=torch"),
    *("--set=train.log_steps=1", "--set=loader.batch=2", "--set=train.lr=1e-6"),
    *("--set=train.checkpoint_minutes=1e-9", "--set=train.keep=1"),
    f"--set=model.layers={json.dumps(NETWORK)}",
)
EVAL = ("eval", "run", "--data=set", "--device=cpu")
PREDICT = ("predict", "run", "zoo/train/ant/ant_train_0.JPEG", "--device=cpu")
# Of the process, of torch, or of TensorBoard, which has its own checksums.
PASSING = re.compile(r"(^|/)(events\.out.*|\.lock|metrics\.crc32|torchinductor_.*)$")
TIMES = {"images_per_second", "waiting", "bound", "seconds", "validation_seconds"}


class Case(NamedTuple):
    """A command, the state that it finds, and the command that reads what it writes.

    `steps` is on for commands that have more states than before and after.
    """

    words: tuple
    state: str
    reader: tuple = VERIFY
    steps: bool = False


CASES = {
    "shard": Case(SHARD, "source"),
    "shard with planes": Case((*SHARD, "--planes"), "source"),
    "shard sequentially": Case((*SHARD, "--sequential"), "source"),
    "shard a damaged data set": Case(SHARD, "damaged"),
    "verify against the source": Case((*VERIFY, "--rebuild=2", "--source=zoo"), "set"),
    "stats": Case(STATS, "set"),
    "stats elsewhere": Case((*STATS, "--out=stats"), "set", ("train", "--help")),
    "planes": Case(PLANES, "set"),
    "card": Case(("card", "set", "--license=mit", "--author=A"), "measured"),
    "export to Energon": Case(("export", "energon", "set", "out"), "set"),
    "export to OpenCLIP": Case(("export", "openclip", "set", "out"), "set"),
    "index": Case(("index", "set/train/zoo-train-000000.tar", "--out=new/out"), "set"),
    "cat": Case(("cat", "set", "ant_val_0", "--json"), "set"),
    "cat to files": Case(("cat", "set", "ant_val_0", "--out=new/out"), "set"),
    "train": Case((*TRAIN, "--epochs=2"), "measured", PREDICT, steps=True),
    "train more": Case((*TRAIN, "--epochs=2"), "run", PREDICT, steps=True),
    "eval": Case((*EVAL, "--save-predictions=a.predictions"), "run", PREDICT),
    "report of a run": Case(("report", "run", "--device=cpu"), "run", PREDICT),
    "report of a data set": Case(("report", "set", "--device=cpu"), "measured"),
}


def read(root):
    """Every file and folder below, by path; None for a folder."""
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes()
        for path in sorted(root.rglob("*"))
    }


def write(root, files):
    """Make a folder hold these and nothing else; files that share their bytes object are one."""
    written = {}
    for path in root.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, data in sorted(files.items()):
        path = root / name
        if data is None:
            path.mkdir()
        elif len(data) > 1 and id(data) in written:  # Python has one object for each short value
            path.hardlink_to(written[id(data)])
        else:
            path.write_bytes(data)
            written[id(data)] = path


def comparable(files):
    """Without what two equal calls write differently: times, and who called."""
    kept = {}
    for name, data in files.items():
        if name.endswith("metrics.jsonl"):
            lines = [json.loads(line) for line in data.splitlines()]
            kept[name] = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
        elif name.endswith("run/config.json"):
            kept[name] = {k: v for k, v in json.loads(data).items() if k in ("recipe", "data")}
        elif not PASSING.search(name):
            kept[name] = data
    return kept


class Commands:
    """Commands in the folder `root`, the states that they find, and what they do with them."""

    def __init__(self, folder):
        self.root = folder / "root"
        self.root.mkdir()
        self.server = Server(folder)
        self.states, self.results = {}, {}

    def run(self, *words, **options):
        return self.server.run(self.root, *words, **options)

    def make_states(self):
        (self.root / "tmp").mkdir()
        draw_classes(self.root / "zoo", np.random.default_rng(8), each=2)
        self.keep("source")
        self.keep("set", SHARD)
        tar = self.root / "set/train/zoo-train-000001.tar"
        tar.write_bytes(tar.read_bytes()[:-512])
        (self.root / "set/index/zoo-validation-000000.idx").unlink()
        self.keep("damaged")
        write(self.root, self.states["set"])
        self.keep("measured", STATS)
        self.keep("run", (*TRAIN, "--epochs=1"))

    def keep(self, name, words=()):
        if words:
            result = self.run(*words)
            assert result.code == 0, result.err
        self.states[name] = read(self.root)

    def undisturbed(self, name):
        """(what the reader prints before, and after; the changes; the files after) of a case."""
        if name not in self.results:
            case = CASES[name]
            write(self.root, self.states[case.state])
            before = self.run(*case.reader)
            write(self.root, self.states[case.state])
            result = self.run(*case.words)
            assert result.code == 0, result.err
            files = read(self.root)
            changes = [relative(change, self.root) for change in result.changes]
            self.results[name] = before, self.run(*case.reader), changes, files
        return self.results[name]

    def check(self, name, what):
        """What a command left is read, and the same command finishes."""
        case = CASES[name]
        before, after, _, expected = self.undisturbed(name)
        files = read(self.root)
        old = self.states[case.state]
        if not case.steps:
            for path in files.keys() & expected.keys():
                assert files[path] in (old.get(path, b""), expected[path]), f"{what}: {path}"
        result = self.run(*case.reader)
        said = f"{what}: {' '.join(case.reader)}: {result.out}{result.err}"
        assert "Traceback" not in result.err, said
        if result.code == 0 and not case.steps:
            read_out = [without_warnings(result) for result in (result, before, after)]
            assert read_out[0] in read_out[1:], said
        elif result.code != 0:
            errors = [line for line in result.err.splitlines() if line.startswith("Error: ")]
            assert result.code == 1, said
            assert errors or re.search(r", \d+ faults?\.$", result.out), said
        result = self.run(*case.words)
        assert result.code == 0, f"{what}: {result.out}{result.err}"
        files = comparable(read(self.root))
        expected = comparable(expected)
        assert files.keys() == expected.keys(), what
        assert not [path for path in files if files[path] != expected[path]], what


def without_warnings(result):
    """What a command has printed, but for lines that say what is wrong."""
    return [line for line in result.out.splitlines() if not line.startswith("Warning: ")]


def relative(change, root):
    """A change with paths below the folder."""
    return tuple(
        word.removeprefix(str(root)).lstrip("/") if isinstance(word, str) else word
        for word in change
    )


def kill(commands, name, number):
    """Kill the command of a case at one of its changes."""
    case = CASES[name]
    _, _, changes, _ = commands.undisturbed(name)
    write(commands.root, commands.states[case.state])
    result = commands.run(*case.words, kill_at=number)
    assert result.code == -9
    commands.check(name, f"killed at {number}, {changes[number - 1][:3]}")


def cut_power(commands, name, numbers, chance):
    """What power cuts after these changes of a case leave; equal folders are looked at once."""
    _, _, changes, _ = commands.undisturbed(name)
    disk, done = Disk(commands.states[CASES[name].state]), set()
    for number, change in enumerate(changes, start=1):
        disk.apply(change)
        if number not in numbers:
            continue
        for left in (
            disk.after_power_cut(chance),
            disk.after_power_cut(),
            disk.after_power_cut(names=False),
        ):
            if tuple(sorted(left.items())) not in done:
                done.add(tuple(sorted(left.items())))
                write(commands.root, left)
                commands.check(name, f"power cut after {number}, {change[:3]}")


def assert_finished_work_outlives_a_power_cut(commands, name):
    _, _, changes, expected = commands.undisturbed(name)
    disk = Disk(commands.states[CASES[name].state])
    for change in changes:
        disk.apply(change)
    left = comparable(disk.after_power_cut(names=False))
    lost = {path for path, data in comparable(expected).items() if left.get(path, b"") != data}
    assert not lost, lost


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    commands = Commands(tmp_path_factory.mktemp("kills"))
    with closing(commands.server):
        commands.make_states()
        yield commands


@pytest.mark.parametrize("name", ["shard", "stats", "card", "export to OpenCLIP", "train"])
def test_a_command_killed_or_without_power_at_some_change_is_finished_by_the_same(commands, name):
    assert_finished_work_outlives_a_power_cut(commands, name)
    chance = random.Random(name)
    count = len(commands.undisturbed(name)[2])
    kill(commands, name, chance.randint(1, count))
    cut_power(commands, name, {chance.randint(1, count)}, chance)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CASES)
def test_a_command_killed_at_any_change_is_finished_by_the_same(commands, name):
    for number in range(1, len(commands.undisturbed(name)[2]) + 1):
        kill(commands, name, number)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CASES)
def test_a_command_in_a_power_cut_at_any_change_is_finished_by_the_same(commands, name):
    assert_finished_work_outlives_a_power_cut(commands, name)
    count = len(commands.undisturbed(name)[2])
    cut_power(commands, name, range(1, count + 1), random.Random(name))
