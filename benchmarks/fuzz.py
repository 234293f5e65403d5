"""make fuzz: seeded changes of every kind of file, each read in a process with limits.

    python benchmarks/fuzz.py --seconds 60 [--inputs 1000000] [--seed 0] [--only NAME]
        [--out build/fuzz]

Prints a line per kind, after SECONDS or, if earlier, INPUTS. A file is a finding if its reader ends
otherwise than by returning or by one line of ours that names it: with another exception, a signal,
after SECONDS_AN_INPUT, or with more than MEMORY beyond what the process had before. Findings are
kept in --out, as NAME-NUMBER and a line that says what happened; --seed, NAME and NUMBER give the
same file again. The exit code is 1 if there are any.
"""

import argparse
import contextlib
import faulthandler
import io
import math
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from fuzz_targets import Target, make_targets

from alexnet.errors import RunError
from alexprep.dataset.codec import ImageError
from alexprep.errors import PrepareError
from pipelines import streams
from pipelines.errors import DataError

OWN = (RunError, PrepareError, DataError, ImageError)
SECONDS_AN_INPUT = 10.0
MEMORY = 1 << 30
# A process is forked for a turn: for so many inputs, or as many as it reads in so many seconds.
INPUTS_A_TURN = 200
SECONDS_A_TURN = 1.0
MOST_FINDINGS = 20  # that are kept of one kind of file
BLOCK = 512
END = b"end"  # of a turn that no input has ended
ODD_NUMBERS = (
    *(b"0", b"-1", b"1", b"255", b"65536", b"-9223372036854775809", b"4294967296", b"1e999"),
    *(b"99999999999999999999", b"0.5", b"NaN", b"00", b"0x10"),
)
ODD_VALUES = (
    *(b"null", b"true", b"{}", b"[]", b'""', b'"x"', b'"../../x"', b"[[]]", b"-0", b'"\\ud800"'),
    *(b"[" * 3000, b'"' + b"9" * 400 + b'"', b'{"a":' * 2000),
)
VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?|true|false|null')
NUMBER = re.compile(rb"\d+")


def mutate(data: bytes, chance: random.Random) -> bytes:
    """One to four changes, of bits, bytes, stretches, numbers or values."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        data = chance.choice(CHANGES)(data, chance)
    return data


def _flip(data: bytes, chance: random.Random) -> bytes:
    if not data:
        return b"\0"
    changed = bytearray(data)
    # Headers are where lengths and types are: half of the changes go there.
    end = chance.choice((len(data), min(len(data), 2048)))
    changed[chance.randrange(end)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _set(data: bytes, chance: random.Random) -> bytes:
    begin = chance.randrange(len(data) + 1)
    value = chance.choice((b"\0", b"\xff", b"\x7f", b"\x80", b"-", b" ", b"\n", b'"'))
    value *= chance.choice((1, 1, 2, 4, 8))
    return data[:begin] + value + data[begin + len(value) :]


def _move(data: bytes, chance: random.Random) -> bytes:
    """Delete, repeat or insert a stretch."""
    begin, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    end = min(end, begin + chance.choice((1, 4, 64, BLOCK, len(data) + 1)))
    stretch = chance.choice((b"", data[begin:end] * 2, chance.randbytes(end - begin)))
    return data[:begin] + stretch + data[end:]


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _swap_lines(data: bytes, chance: random.Random) -> bytes:
    lines = data.split(b"\n")
    first, second = (chance.randrange(len(lines)) for _ in range(2))
    lines[first] = lines[second]
    return b"\n".join(lines)


def _replaced(pattern: re.Pattern[bytes], values: tuple[bytes, ...]) -> "Change":
    def change(data: bytes, chance: random.Random) -> bytes:
        # From a random place on: files of megabytes are not searched as a whole.
        match = pattern.search(data, chance.randrange(min(len(data), 1 << 16) + 1))
        if match is None:
            return _flip(data, chance)
        return data[: match.start()] + chance.choice(values) + data[match.end() :]

    return change


def _tar_header(data: bytes, chance: random.Random) -> bytes:
    """A changed header of a tar whose checksum is right, as someone would write who means it."""
    starts = [
        n for n in range(0, min(len(data), 1 << 16), BLOCK) if data[n + 257 : n + 262] == b"ustar"
    ]
    if not starts:
        return _flip(data, chance)
    start = chance.choice(starts)
    block = bytearray(data[start : start + BLOCK].ljust(BLOCK, b"\0"))
    field, length = chance.choice(
        ((0, 100), (124, 12), (124, 12), (156, 1), (157, 100), (345, 155))
    )
    value = chance.choice((*ODD_NUMBERS, b"-0000001000", b"\x80" * 12, b"x", b"g", b"L", b"../a"))
    block[field : field + length] = value[:length].ljust(length, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return data[:start] + bytes(block) + data[start + BLOCK :]


Change = Callable[[bytes, random.Random], bytes]
CHANGES: tuple[Change, ...] = (
    *(_flip, _flip, _flip, _set, _move, _cut, _swap_lines, _tar_header),
    *(_replaced(NUMBER, ODD_NUMBERS), _replaced(VALUE, (*ODD_NUMBERS, *ODD_VALUES))),
)


def outcome(target: Target) -> str:
    """What became of a file: "read", "refused", or what is wrong."""
    try:
        target.read(target.path)
    except OWN as error:
        message = str(error)
        if "\n" in message:
            return f"more than a line: {message!r}"
        if target.message_names_file and str(target.path) not in message:
            return f"does not name the file: {message}"
        return "refused"
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return f"{type(error).__name__}: {error}"[:300]
    return "read"


def run_turn(target: Target, seed: bytes, label: str, numbers: range, report: int) -> None:
    """In a child: read one changed file after the other, and write each outcome to `report`."""
    streams.RETRY_AFTER = ()  # seconds that a connection is given to come back
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    faulthandler.disable()  # pytest's writes to a copy of the descriptor
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    end = time.monotonic() + SECONDS_A_TURN
    for number in numbers:
        if number > numbers.start and time.monotonic() > end:
            break
        target.path.write_bytes(mutate(seed, random.Random(f"{label}/{number}")))
        signal.setitimer(signal.ITIMER_REAL, SECONDS_AN_INPUT)
        result = outcome(target)
        signal.setitimer(signal.ITIMER_REAL, 0)
        line = " ".join(result.split()).encode("ascii", "backslashreplace")
        os.write(report, line + b"\n")
    os.write(report, END + b"\n")


def turn(target: Target, seed: bytes, label: str, first: int) -> list[str]:
    """Outcomes of the next inputs; the last one may be how their process ended."""
    reader, writer = os.pipe()
    numbers = range(first, first + INPUTS_A_TURN)
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            run_turn(target, seed, label, numbers, writer)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        outcomes = lines.read().splitlines()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    target.path.write_bytes(seed)
    if outcomes[-1:] == [END.decode()]:
        outcomes.pop()
    else:
        name = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        outcomes.append("too slow" if name == "SIGALRM" else f"ended by {name}")
    return outcomes


class Fuzzer:
    """Counts outcomes of each target, and keeps the files of findings in a folder."""

    def __init__(self, targets: dict[str, Target], seed: int, out: Path) -> None:
        self.targets, self.seed, self.out = targets, seed, out
        self.seeds = {name: target.path.read_bytes() for name, target in targets.items()}
        self.counts = {name: Counter[str]() for name in targets}

    def run(self, seconds: float, inputs: float = math.inf) -> None:
        """Take turns until the time or the inputs are up, one at least of every target."""
        end = time.monotonic() + seconds
        while True:
            for name in self.targets:
                self.run_target(name)
            if time.monotonic() >= end or self.inputs >= inputs:
                return

    def run_target(self, name: str) -> None:
        target, counts, label = self.targets[name], self.counts[name], f"{self.seed}/{name}"
        first = counts.total()
        for number, result in enumerate(turn(target, self.seeds[name], label, first), start=first):
            finding = result not in ("read", "refused")
            counts["finding" if finding else result] += 1
            if finding and counts["finding"] <= MOST_FINDINGS:
                self._keep(name, number, result)

    def _keep(self, name: str, number: int, result: str) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"{re.sub('[^a-zA-Z0-9.]+', '-', name)}-{number}"
        chance = random.Random(f"{self.seed}/{name}/{number}")
        path.write_bytes(mutate(self.seeds[name], chance))
        path.with_name(f"{path.name}.txt").write_text(f"{result}\n")
        sys.stdout.write(f"{path}: {result}\n")

    @property
    def inputs(self) -> int:
        return sum(counts.total() for counts in self.counts.values())

    @property
    def findings(self) -> int:
        return sum(counts["finding"] for counts in self.counts.values())

    def table(self) -> str:
        """Markdown: inputs, read, refused and findings of each kind of file."""
        lines = ["| file | inputs | read | refused | findings |", "| --- | --- | --- | --- | --- |"]
        total = sum(self.counts.values(), Counter[str]())
        for name, counts in (*self.counts.items(), ("all", total)):
            cells = [counts.total(), counts["read"], counts["refused"], counts["finding"]]
            lines.append(f"| {name} | {' | '.join(f'{cell:,}' for cell in cells)} |")
        return "\n".join(lines)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--inputs", type=float, default=math.inf)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"))
    options = parser.parse_args()
    memory = Path("/dev/shm")  # a disk would write every input
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        with contextlib.redirect_stderr(io.StringIO()):  # the progress of making them
            targets = make_targets(Path(folder))
        if options.only:
            targets = {name: targets[name] for name in options.only}
        fuzzer = Fuzzer(targets, options.seed, options.out)
        fuzzer.run(options.seconds, options.inputs)
    sys.stdout.write(f"{fuzzer.table()}\n")
    return 1 if fuzzer.findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
