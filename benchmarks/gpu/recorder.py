"""The tests marked for GPUs as figures of a part: each is written down as it ends.

A test that ends the process, or after which the GPU is of no use to it, loses itself alone: the
next process runs those that were not tried yet.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.gpu.check import Journal

ROOT = Path(__file__).resolve().parents[2]
MARKS = ("mark.gpu", "mark.two_gpus")
KERNELS = "kernel_scripts"  # what tests import that run kernels, each in a process of its own
SECONDS = 60  # of a test, where pytest-timeout is installed
PASSED, FAILED, AGAIN, NO_TESTS = 0, 1, 3, 5  # exit codes


def gpu_test_files(part: str) -> list[Path]:
    """The files with tests for GPUs: those that run kernels alone, or the others."""
    texts = {path: path.read_text() for path in sorted((ROOT / "tests").glob("test_*.py"))}
    kernels = [
        path
        for path, text in texts.items()
        if f"import {KERNELS}" in text or (f".{KERNELS} import" in text)
    ]
    if part == "kernels":
        return kernels
    return [
        path
        for path, text in texts.items()
        if path not in kernels and any(mark in text for mark in MARKS)
    ]


def test_options(marks: str, *, parallel: bool) -> list[str]:
    """What pytest is told: other than in the project, which has its versions and all packages."""
    # Warnings of other versions are shown, not made failures; a file whose packages are missing
    # does not keep the others from running.
    words = ["-v", "-rs", "--tb=short", "-o", "addopts=", "-m", marks, "-W", "default"]
    words += ["--continue-on-collection-errors", "-p", "no:cacheprovider"]
    if find_spec("pytest_timeout"):
        words += [f"--timeout={SECONDS}"]
    if parallel:  # each compiles for seconds, and measures nothing
        words += ["--numprocesses=auto", "--dist=worksteal"]
    return words


def run_tests(
    words: Sequence[str], journal: "Journal", save: Callable[[], None], works: Callable[[], bool]
) -> int:
    """Run what was not tried yet; the exit code.

    Args:
        words: options and files.
        journal: where tests are noted as they begin, and how they went as they end.
        save: called after each.
        works: whether this process can still use its GPU, asked after a failure.
    """
    import pytest  # noqa: PLC0415 - may be missing

    code = int(pytest.main([*words], plugins=[Recorder(journal, save, works)]))
    save()
    if code in (PASSED, FAILED, NO_TESTS) and journal.tried:
        return FAILED if journal.failures else PASSED
    return code


class Recorder:
    """A plugin of pytest; with pytest-xdist, of the process that starts the others."""

    def __init__(
        self, journal: "Journal", save: Callable[[], None], works: Callable[[], bool]
    ) -> None:
        self.journal, self.save, self.works = journal, save, works

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if item.nodeid not in self.journal.tried]

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.journal.failures[report.nodeid] = last_line(report)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if nodeid not in self.journal.tried:
            self.journal.tried.append(nodeid)
            self.journal.save()

    def pytest_runtest_logreport(self, report: Any) -> None:
        import pytest  # noqa: PLC0415 - may be missing

        journal, name = self.journal, report.nodeid
        if report.failed:
            journal.failures[name] = last_line(report)
        elif report.skipped:
            journal.skipped.append(name)
        elif report.when != "call":
            return
        from alexprep.bench.measurement import row  # noqa: PLC0415 - slow to import

        journal.keep(name, [row(key, [value], "as named") for key, value in report.user_properties])
        self.save()
        if report.failed and not self.works():
            pytest.exit("the GPU is of no use to this process any more", returncode=AGAIN)


def last_line(report: Any) -> str:
    """What went wrong, in a line."""
    lines = [line.strip() for line in report.longreprtext.splitlines() if line.strip()]
    errors = [line.removeprefix("E").strip() for line in lines if line.startswith("E ")]
    return (errors or lines or ["?"])[0]
