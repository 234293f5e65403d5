"""Fixtures that several test files share."""

import signal
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(__file__).parents[2] / "shared" / "data"

# A shell starts what it puts into the background deaf to Ctrl-C, and its children stay so: the
# processes that tests interrupt must hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def rng():
    return np.random.default_rng(2012)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real images; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"real images are looked for in {SHARED}, which is not there")
    return SHARED
