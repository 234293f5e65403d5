"""What cannot be worked with is answered by every command in one line, with exit code 1.

Data sets that are missing, unfinished, of another version or not to be read; runs without
checkpoints; folders that may not be written. Nothing is left behind.
"""

import json
import sys

import pytest
from click.testing import CliRunner

from alexprep.cli import cli
from tests.forks import run_fork
from tests.reports import make_dataset, make_run

ON_DATA = {
    "stats": ("stats", "{}"),
    "verify": ("verify", "{}"),
    "cat": ("cat", "{}", "KEY"),
    "export energon": ("export", "energon", "{}", "{here}/out"),
    "export openclip": ("export", "openclip", "{}", "{here}/out"),
    "report": ("report", "{}"),
    "train": ("train", "{}", "--run", "{here}/out", "--smoke"),
    "eval": ("eval", "{here}/some.predictions", "--data", "{}"),
    "bench stats": ("bench", "stats", "--rounds", "1", "--data", "{}"),
    "bench load": ("bench", "load", "--rounds", "1", "--data", "{}"),
    "bench shard": ("bench", "shard", "--rounds", "1", "--data", "{}"),
    "shard": ("shard", "{}", "{here}/out"),
    "index": ("index", "{}"),
    "predict": ("predict", "{}", "cat.jpg"),
}
FAULTS = ("missing", "empty", "file", "unfinished", "another version")


def run(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def in_one_line(result):
    """The line of a refusal, without its "Error: "."""
    assert result.exit_code == 1, result.output or result.exception
    assert isinstance(result.exception, SystemExit)
    (line,) = result.output.splitlines()
    assert line.startswith("Error: ")
    assert line.endswith((".", ")"))
    return line.removeprefix("Error: ")


def spoilt(folder, fault):
    """A path that is no data set, in one of the ways there are."""
    path = folder / "data"
    if fault == "file":
        path.write_text("hello\n")
    elif fault != "missing":
        path.mkdir()
    if fault == "unfinished":
        (path / ".alexprep").mkdir()
        (path / ".alexprep" / "plan.json").write_text("{}")
        (path / "train").mkdir()
    elif fault == "another version":
        (path / "manifest.json").write_text('{"version": 7}')
    return path


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("command", ON_DATA)
def test_what_is_no_data_set_is_named_in_one_line(tmp_path, command, fault):
    path = spoilt(tmp_path, fault)
    before = sorted(tmp_path.rglob("*"))
    words = [word.format(path, here=tmp_path) for word in ON_DATA[command]]
    assert str(path) in in_one_line(run(*words))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a data set and a run on it."""
    folder = tmp_path_factory.mktemp("made")
    make_run(make_dataset(folder / "set"), folder / "run")
    return folder


@pytest.mark.parametrize(
    "words",
    [("eval", "{run}", "--data", "{set}"), ("predict", "{run}", "x.jpg"), ("report", "{run}")],
    ids=lambda words: words[0],
)
def test_a_run_without_checkpoints_is_named_in_one_line(made, tmp_path, words):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_bytes((made / "run" / "config.json").read_bytes())
    line = in_one_line(run(*(word.format(run=tmp_path, set=made / "set") for word in words)))
    assert line.startswith(f"{tmp_path} ")
    assert "checkpoint" in line


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "{made}/run", "--data", "{made}/set", "--device", "cuda:63"),
        ("predict", "{made}/run", "x.jpg", "--device", "cuda:63"),
        ("report", "{made}/run", "--device", "cuda:63", "--out", "{here}/x.html"),
        ("train", "{made}/set", "--run", "{here}/out", "--smoke", "--devices", "cuda:63"),
    ],
    ids=lambda words: words[0],
)
def test_a_device_that_is_not_here_is_named_in_one_line(made, tmp_path, words):
    words = [word.format(made=made, here=tmp_path) for word in words]
    assert in_one_line(run(*words)).startswith("There is no cuda:63 on this machine")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [("eval", "--data", "{made}/set"), ("predict", "x.jpg")])
def test_a_word_that_is_no_device_is_wrong_usage(made, words):
    name, *rest = (word.format(made=made) for word in words)
    result = run(name, made / "run", *rest, "--device", "gpu")
    assert result.exit_code == 2
    assert "A device is auto, cpu or cuda:0" in result.output


def test_weights_that_are_no_numbers_are_wrong_usage(made):
    result = run("eval", made / "run", "--data", made / "set", "--weights", "1,x")
    assert result.exit_code == 2
    assert "--weights must be comma-separated numbers, got '1,x'" in result.output


def test_a_run_is_not_begun_in_a_file_nor_without_its_first_weights(made, tmp_path):
    (tmp_path / "file").write_text("hello\n")
    train = ("train", made / "set", "--smoke", "--run")
    assert in_one_line(run(*train, tmp_path / "file")).endswith("Name a folder with --run.")
    said = run(*train, tmp_path / "out", "--init-from", tmp_path / "absent")
    assert said.exit_code == 1
    assert said.output.splitlines()[-1].startswith(f"Error: {tmp_path / 'absent'} does not exist")
    assert not (tmp_path / "out").exists()


LOCKED = {
    "shard": ("shard", "{here}/src", "{here}/locked/out"),
    "stats": ("stats", "{here}/locked", "--workers", "1"),
    "cat": ("cat", "{made}/set", "train_00001", "--out", "{here}/locked/out"),
    "index": ("index", "{tar}", "--out", "{here}/locked"),
    "export": ("export", "openclip", "{made}/set", "{here}/locked/out"),
    "train": ("train", "{made}/set", "--run", "{here}/locked/out", "--smoke"),
    "eval": (
        *("eval", "{made}/run", "--data", "{made}/set"),
        *("--save-predictions", "{here}/locked/a.predictions"),
    ),
    "report": ("report", "{made}/run", "--out", "{here}/locked/a.html"),
    "demo": ("demo", "{here}/locked/out"),
}


def without_privileges(*words):
    """The command in a process of its own that may not write what its permissions forbid."""
    program = """
import ctypes
# For those who are root: without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, bits 1 and 2.
version = (ctypes.c_uint32 * 2)(0x20080522, 0)
capabilities = (ctypes.c_uint32 * 6)()
assert ctypes.CDLL(None).capget(version, capabilities) == 0
for word in range(3):
    capabilities[word] &= ~0b110
assert ctypes.CDLL(None).capset(version, capabilities) == 0
from alexprep.cli import cli
cli(prog_name="alexprep")
"""
    return run_fork([sys.executable, "-c", program, *words])


@pytest.mark.parametrize("command", LOCKED)
def test_a_folder_that_may_not_be_written_is_named_in_one_line(made, tmp_path, command):
    locked = tmp_path / "locked"
    if command == "stats":
        make_dataset(locked, stats=False)
    else:
        locked.mkdir()
    (tmp_path / "src" / "ant").mkdir(parents=True)
    (tmp_path / "src" / "ant" / "a.jpg").write_bytes(b"x")
    before = sorted(tmp_path.rglob("*"))
    locked.chmod(0o555)
    tar = next((made / "set").glob("train/*.tar"))
    words = [word.format(here=tmp_path, made=made, tar=tar) for word in LOCKED[command]]
    done = without_privileges(*words)
    locked.chmod(0o755)
    assert done.returncode == 1, done.stderr
    *progress, line = done.stderr.splitlines()
    assert not [said for said in progress if not said.startswith(("eval", "report", "stats"))]
    assert line.startswith("Error: ")
    assert str(locked) in line
    # `stats` names the option that writes elsewhere instead of the system's reason.
    assert "cannot be written to" in line if command == "stats" else "Permission denied" in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_that_may_not_be_read_is_not_called_missing(made, tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(next((made / "run" / "checkpoints").iterdir()).read_bytes())
    path.chmod(0)
    done = without_privileges("predict", path, "x.jpg")
    assert done.returncode == 1
    assert done.stderr == f"Error: {path}: Permission denied.\n"


def test_an_image_that_may_not_be_read_does_not_end_the_others(made, tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"x")
    (tmp_path / "x.jpg").chmod(0)
    done = without_privileges("predict", "--json", made / "run", tmp_path / "x.jpg", "absent")
    assert done.returncode == 1
    assert [found["problem"] for found in json.loads(done.stdout)] == [
        "cannot be read (Permission denied)",
        "cannot be read (No such file or directory)",
    ]


@pytest.mark.parametrize(
    ("setting", "answer"),
    [
        ("train.precision=foo", "expected float32 or bfloat16 or float64, got 'foo'"),
        ("train.lrr=1", "did you mean 'lr'"),
        ("model.lrn_size=-1", "lrn_size must be at least 1"),
        ("model.layers=[{}]", "which is missing"),
        ("loader.timeout=nan", "expected a number, got nan"),
        ("augment.mean=" + "[" * 5000, "maximum recursion depth"),
    ],
)
def test_a_wrong_setting_is_wrong_usage_before_the_folder_of_the_run_is_made(
    made, tmp_path, setting, answer
):
    result = run(
        *("train", made / "set", "--run", tmp_path / "run", "--smoke", "--set", setting),
    )
    assert result.exit_code == 2
    assert answer in result.output
    assert sum(line.startswith("Error: ") for line in result.output.splitlines()) == 1
    assert not (tmp_path / "run").exists()
