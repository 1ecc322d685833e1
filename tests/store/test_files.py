import errno
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from whence.errors import StoreError
from whence.store import write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fails_halfway(error: BaseException):
    """A writer that gets some bytes onto the disk before it fails."""

    def write(file: BinaryIO) -> None:
        file.write(b"half of the new")
        file.flush()
        raise error

    return write


@pytest.mark.parametrize("name", ["plain.bin", "Größe ✓ 数据.bin", "no ending", ".hidden"])
def test_what_is_written_can_be_read(tmp_path: Path, name: str):
    write_atomically(tmp_path / name, b"\x00\xff new")
    assert (tmp_path / name).read_bytes() == b"\x00\xff new"
    assert names(tmp_path) == [name]


def test_bytes_and_a_writer_of_these_bytes_make_the_same_file(tmp_path: Path):
    write_atomically(tmp_path / "a", b"content")
    write_atomically(tmp_path / "b", lambda file: file.write(b"content"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_missing_folders_are_made(tmp_path: Path):
    write_atomically(str(tmp_path / "one" / "two" / "file"), b"new")
    assert (tmp_path / "one" / "two" / "file").read_bytes() == b"new"


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    seen = []

    def write(file: BinaryIO) -> None:
        file.write(b"new")
        file.flush()
        seen.append(target.read_bytes())

    write_atomically(target, write)
    assert seen == [b"old"]
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug"), SystemExit(1)])
def test_any_failure_leaves_the_old_file_and_no_partial_one(tmp_path: Path, error: BaseException):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(type(error)) as caught:
        write_atomically(tmp_path / "file", fails_halfway(error))
    assert caught.value is error
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_failure_of_the_last_step_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_bytes(b"old")

    def refuse(source: object, target: object) -> None:
        raise PermissionError(errno.EACCES, "The file is open in another program")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StoreError, match="open in another program") as caught:
        write_atomically(tmp_path / "file", b"new")
    assert "Close programs" in caught.value.remedy
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_full_disk_says_how_much_is_needed_and_how_much_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"needs 1,234 bytes, [\d,]+ bytes are free") as caught:
        write_atomically(tmp_path / "file", bytes(1234))
    assert "another disk" in caught.value.remedy
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_full_disk_met_by_a_writer_is_the_same_error(tmp_path: Path):
    error = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StoreError, match="The disk is full") as caught:
        write_atomically(tmp_path / "file", fails_halfway(error))
    assert caught.value.__cause__ is error
    assert names(tmp_path) == []


def test_a_folder_is_never_replaced_by_a_file(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "folder" / "..", "."):
        with pytest.raises(StoreError, match="is a folder"):
            write_atomically(path, b"new")
    assert names(tmp_path) == ["folder"]


def test_a_file_on_the_way_is_named_as_the_reason(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"old")
    for path in (tmp_path / "file" / "new", tmp_path / "file" / "deep" / "new"):
        with pytest.raises(StoreError, match="one of the folders on the way is a file"):
            write_atomically(path, b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_read_only_folder_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # permissions do not bind every user and system
    with pytest.raises(StoreError, match="may not be written"):
        write_atomically(tmp_path / "file", b"new")


def test_what_a_killed_writer_left_does_not_disturb_the_next(tmp_path: Path):
    (tmp_path / "file.partial").write_bytes(b"left by a writer that was killed, and longer")
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert names(tmp_path) == ["file"]
