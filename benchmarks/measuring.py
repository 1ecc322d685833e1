"""Seconds, peak memory and circumstances of a run, for the benchmarks of EK-FAC."""

import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peers import IS_INSTALLED

import whence

ROOT = Path(__file__).parent.parent


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds on the clock and of all cores, memory in MiB, and what the work gave.

    Others on the machine change the seconds of the cores less than those on the clock.
    """
    reset_peak()
    before = memory("VmRSS")
    wall, cores = time.perf_counter(), time.process_time()
    found = work()
    numbers = {
        "seconds": round(time.perf_counter() - wall, 3),
        "core seconds": round(time.process_time() - cores, 3),
        "peak MiB": round(memory("VmHWM") - before, 1),
        "held MiB": round(memory("VmRSS") - before, 1),
    }
    return numbers, found


def reset_peak() -> None:
    """Makes the kernel measure the peak of this process anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def memory(kind: str) -> float:
    """MiB of this process in memory: now ("VmRSS"), or at the peak since the reset ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def circumstances(script: str) -> dict[str, Any]:
    """Versions, threads, machine and command."""
    packages = ["torch", "numpy", *(["kronfluence"] if IS_INSTALLED else [])]
    return {
        "command": " ".join(
            ["python", str(Path(script).resolve().relative_to(ROOT)), *sys.argv[1:]]
        ),
        "versions": {"whence": whence.__version__} | {name: version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load at the end": [round(load, 1) for load in os.getloadavg()],
        "system": platform.system(),
    }
