"""How much memory a machine has to spare."""

from pathlib import Path

import torch

_UNLIMITED = 2**60
"""Where nothing can be found out, as on systems without /proc; also what control groups say."""


def free_bytes(device: torch.device | str = "cpu") -> int:
    """Memory that can still be taken, in bytes: of the device, or of the process on a CPU.

    On Linux what the kernel calls available, or what the limit of a container leaves if that is
    less. Elsewhere no limit is known, and none is assumed.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_available(), _left_by_container())


def _available(path: Path = Path("/proc/meminfo")) -> int:
    for line in _lines(path):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return _UNLIMITED


def _left_by_container(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """What a control group of version 2 leaves; files that were read count as free."""
    limit, used = (_lines(folder / f"memory.{name}") for name in ("max", "current"))
    if not limit or not used or limit[0] == "max":
        return _UNLIMITED
    read = [line.split()[1] for line in _lines(folder / "memory.stat") if line.startswith("file ")]
    return max(0, int(limit[0]) - int(used[0]) + int(read[0] if read else 0))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def in_words(size: float) -> str:
    """A number of bytes for people: "about 1.5 GB"."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
