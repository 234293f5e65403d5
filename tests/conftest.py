"""Fixtures that several test files share."""

import os
import signal
from pathlib import Path

# Before torch is imported. Threads of several test processes would wait for each other's cores, and
# torch's wait by spinning. Processes that tests start inherit it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from drawing import draw_classes
from hypothesis import settings

SHARED = Path(__file__).parents[2] / "shared" / "data"

# A busy machine is no failure: hypothesis would end an example after 200 ms.
settings.register_profile("any speed", deadline=None)
settings.load_profile("any speed")

# A shell starts what it puts into the background deaf to Ctrl-C, nohup deaf to the end of the
# terminal, and children stay so: the processes that tests interrupt must hear both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """`-n auto`: a process for each core, up to 8; pytest-xdist itself counts physical cores."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)


@pytest.fixture
def rng():
    return np.random.default_rng(2012)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real images; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"real images are looked for in {SHARED}, which is not there")
    return SHARED


@pytest.fixture
def source(tmp_path, rng):
    """Class folders of drawn pictures."""
    return draw_classes(tmp_path / "zoo", rng, each=8)


@pytest.fixture
def made(source, tmp_path):
    """A finished data set of them: its folder and manifest."""
    # Not at the top: the tests of a GPU run where the encoder is not installed.
    from shard_sets import make_small  # noqa: PLC0415

    return make_small(source, tmp_path / "made")
