"""The fuzzer finds readers that fail; `make fuzz`, of which CI runs a minute, gives it ours."""

import os
import time

import pytest
from fuzz import Fuzzer, mutate
from fuzz_targets import Target

from alexprep.errors import PrepareError


def fails(path):
    raise ZeroDivisionError


def dies(path):
    os.abort()


def grows(path):
    return bytearray(1 << 40)


def names_nothing(path):
    raise PrepareError("It is damaged.")


def refuses(path):
    raise PrepareError(f"{path} is damaged.")


@pytest.mark.parametrize(
    ("read", "finding"),
    [
        (fails, "ZeroDivisionError:"),
        (dies, "ended by SIGABRT"),
        (grows, "MemoryError:"),
        (names_nothing, "does not name the file: It is damaged."),
        (refuses, None),
        (len, "TypeError: object of type 'PosixPath' has no len()"),
    ],
)
def test_a_reader_that_fails_is_found_and_its_file_kept(tmp_path, read, finding):
    path = tmp_path / "a"
    path.write_bytes(b"whole")
    fuzzer = Fuzzer({"a": Target(path, read)}, seed=1, out=tmp_path / "findings")
    fuzzer.run(0)
    kept = sorted(path.name for path in (tmp_path / "findings").glob("*"))
    if finding is None:
        assert (kept, fuzzer.findings) == ([], 0)
        return
    assert {"a-0", "a-0.txt"} <= set(kept)
    assert (tmp_path / "findings" / "a-0.txt").read_text() == f"{finding}\n"
    assert path.read_bytes() == b"whole"


def test_a_reader_without_end_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("fuzz.SECONDS_AN_INPUT", 0.2)
    path = tmp_path / "a"
    path.write_bytes(b"whole")
    fuzzer = Fuzzer({"a": Target(path, lambda _: time.sleep(60))}, 1, tmp_path / "findings")
    fuzzer.run(0)
    assert (tmp_path / "findings" / "a-0.txt").read_text() == "too slow\n"


def test_the_same_numbers_give_the_same_file():
    import random  # noqa: PLC0415

    files = [mutate(b'{"a": [1, 2]}' * 9, random.Random("1/a/7")) for _ in range(2)]
    assert files[0] == files[1]
