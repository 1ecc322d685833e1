"""Nothing that was added is lost, whoever else writes and whatever is killed."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from whence.errors import StoreError
from whence.store.journals import Journal


def test_entries_come_back_in_their_order(tmp_path: Path):
    journal = Journal(tmp_path / "folder" / "decisions.jsonl")
    assert journal.entries() == []
    for number in range(3):
        journal.add({"number": number, "words": "two\nlines"})
    assert [entry["number"] for entry in journal.entries()] == [0, 1, 2]
    assert journal.entries()[0]["words"] == "two\nlines"


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: Journal(path).add({"i": i, "pad": "x" * 500}), range(200)))
    assert sorted(entry["i"] for entry in Journal(path).entries()) == list(range(200))


def test_an_entry_is_on_the_disk_when_the_writer_is_killed_right_after(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    code = (
        "import os, signal, sys; from pathlib import Path; "
        "from whence.store.journals import Journal; "
        "Journal(Path(sys.argv[1])).add({'kept': True}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=60)
    assert done.returncode != 0
    assert Journal(path).entries() == [{"kept": True}]


def test_an_entry_that_was_broken_off_harms_no_other(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    journal = Journal(path)
    journal.add({"i": 0})
    with path.open("ab") as file:
        file.write(b'\n{"i": 1, "half')
    journal.add({"i": 2})
    assert journal.entries() == [{"i": 0}, {"i": 2}]


def test_a_folder_that_cannot_be_made_is_an_error_with_a_remedy(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError):
        Journal(tmp_path / "file" / "j.jsonl").add({})


def test_a_link_is_not_followed(tmp_path: Path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "j.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(StoreError):
        Journal(tmp_path / "j.jsonl").add({"a": 1})
    assert (tmp_path / "precious").read_text() == "mine"
