"""Free memory is what the kernel or a container says, whichever is less."""

import os
from pathlib import Path

import pytest

from whence.numerics import memory
from whence.numerics.memory import free_bytes, in_words


def test_what_is_free_is_a_part_of_what_the_machine_has():
    if free_bytes() == memory._UNLIMITED:
        pytest.skip("nothing is known of memory here")
    pages, size = (os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_PAGE_SIZE"))
    assert 2**20 < free_bytes() < pages * size


def test_the_kernel_says_what_is_available(tmp_path: Path):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:    7 kB\n")
    assert memory._available(tmp_path / "meminfo") == 7 * 1024
    assert memory._available(tmp_path / "nothing") == memory._UNLIMITED


@pytest.mark.parametrize(
    ("limit", "free"), [("1000", 1000 - 900 + 300), ("max", memory._UNLIMITED), ("100", 0)]
)
def test_a_container_leaves_what_is_below_its_limit(limit, free, tmp_path: Path):
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 600\nfile 300\nfile_mapped 10\n")
    assert memory._left_by_container(tmp_path) == free


@pytest.mark.parametrize(
    ("size", "words"),
    [(12, "12 bytes"), (1500, "2 kB"), (3e7, "30 MB"), (1.54e9, "1.5 GB"), (2e12, "2000.0 GB")],
)
def test_sizes_are_told_in_a_unit_that_fits(size, words):
    assert in_words(size) == words
