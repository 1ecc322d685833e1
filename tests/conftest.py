"""What all tests share: one thread, a fixed terminal, a fixed start, the folder of data."""

import os
from pathlib import Path

os.environ["COLUMNS"] = "100"
os.environ["NO_COLOR"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read once, when torch is imported

import pytest
import torch

torch.set_num_threads(1)  # sums in one order, and no threads that fight for the cores


@pytest.fixture(autouse=True)
def the_same_start() -> None:
    """A new module's random weights depend on the test alone, not on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def whence_data() -> Path:
    """The folder of real data sets named by $WHENCE_DATA; the test is skipped without it."""
    folder = os.environ.get("WHENCE_DATA")
    if not folder:
        pytest.skip("needs real data: set WHENCE_DATA to a folder with mnist.npz")
    return Path(folder)
