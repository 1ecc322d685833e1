import errno
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from whence.errors import BadData, NotARun, StoreError, WrongVersion
from whence.store import Run, writing
from whence.version import __version__

LEADING_OUT = ["../x", "a/../../x", "/etc/passwd", "C:/x", "C:x", "..", ".", "", "a//b", "a/", "/"]
NOT_PORTABLE = ["a\\b", "..\\x", "a:b", "what?", "a\0b", ".hidden", "a/.b", "dot.", "space "]


def write_run(folder: Path, text: str = "first") -> None:
    with writing(folder, kind="explanation", problem="train.py:problem") as run:
        run.put_json("story.json", {"text": text})
        run.path("arrays/values.bin").write_bytes(text.encode())


def text_of(folder: Path) -> str:
    run = Run.open(folder, check_hashes=True)
    text = run.read_json("story.json")["text"]
    assert run.path("arrays/values.bin").read_bytes() == text.encode()
    return text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def edit_manifest(folder: Path, **entries: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


# ------------------------------------------------------------------------ a whole run


@pytest.mark.parametrize("name", ["why", "Größe ✓ 数据", "with space", "dots.in.name"])
def test_a_run_comes_back_as_it_was_written(tmp_path: Path, name: str):
    write_run(tmp_path / "runs" / name)
    run = Run.open(str(tmp_path / "runs" / name), check_hashes=True)
    assert (run.kind, run.problem, run.whence) == ("explanation", "train.py:problem", __version__)
    assert run.read_json("story.json") == {"text": "first"}
    assert run.path("arrays/values.bin").read_bytes() == b"first"
    assert names(tmp_path / "runs") == [name]


def test_the_manifest_tells_format_time_and_every_file(tmp_path: Path):
    write_run(tmp_path / "why")
    manifest = json.loads((tmp_path / "why" / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"]) == ("whence-run", 1)
    age = datetime.now(UTC) - datetime.fromisoformat(manifest["created"])
    assert timedelta(seconds=-1) <= age < timedelta(minutes=1)
    assert manifest["files"].keys() == {"arrays/values.bin", "story.json"}
    assert manifest["files"]["arrays/values.bin"] == {
        "bytes": 5,
        "sha256": sha256(b"first").hexdigest(),
    }


def test_values_of_numpy_and_nan_are_written_as_strict_json(tmp_path: Path):
    with writing(tmp_path / "why", kind="explanation") as run:
        run.put_json("a.json", {"x": [float("nan"), 1.0]})
    opened = Run.open(tmp_path / "why")
    assert opened.read_json("a.json") == {"x": [None, 1.0]}
    assert opened.problem is None


def test_a_new_run_replaces_the_old_one_whole(tmp_path: Path):
    write_run(tmp_path / "why", "first")
    with writing(tmp_path / "why", kind="other") as run:
        run.put_json("only.json", 1)
        assert text_of(tmp_path / "why") == "first"
    assert Run.open(tmp_path / "why").files.keys() == {"only.json"}
    assert not (tmp_path / "why" / "story.json").exists()
    assert names(tmp_path) == ["why"]


def test_an_empty_folder_may_become_a_run(tmp_path: Path):
    (tmp_path / "why").mkdir()
    write_run(tmp_path / "why")
    assert text_of(tmp_path / "why") == "first"
    assert names(tmp_path) == ["why"]


def test_what_a_file_browser_leaves_does_not_matter(tmp_path: Path):
    write_run(tmp_path / "why")
    (tmp_path / "why" / ".DS_Store").write_bytes(b"icons")
    assert text_of(tmp_path / "why") == "first"
    write_run(tmp_path / "why", "second")
    assert text_of(tmp_path / "why") == "second"


# --------------------------------------------------------------- a writer that fails


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug"), OSError("network")])
@pytest.mark.parametrize("has_old", [False, True])
def test_a_failure_inside_the_block_leaves_only_the_old_run(
    tmp_path: Path, error: BaseException, has_old: bool
):
    if has_old:
        write_run(tmp_path / "why", "old")
    with pytest.raises(type(error)) as caught, writing(tmp_path / "why", kind="k") as run:  # noqa: PT012
        run.put_json("story.json", {"text": "new"})
        raise error
    assert caught.value is error
    assert names(tmp_path) == ["why"] * has_old
    assert not has_old or text_of(tmp_path / "why") == "old"


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_a_failure_of_any_rename_leaves_the_old_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, error: BaseException
):
    """The renames: manifest, old run aside, new run to its name."""
    write_run(tmp_path / "why", "old")
    renames = 0
    replace = os.replace

    def fail_once(source: Path, target: Path) -> None:
        nonlocal renames
        renames += 1
        if renames == failing + 1:
            raise error
        replace(source, target)

    expected = StoreError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected), writing(tmp_path / "why", kind="k") as run:  # noqa: PT012
        run.path("new.bin").write_bytes(b"new")
        monkeypatch.setattr(os, "replace", fail_once)
    assert text_of(tmp_path / "why") == "old"
    assert names(tmp_path) == ["why"]


KILLED = """
import os, sys
from whence.store import writing

left, replace = int(sys.argv[2]), os.replace

def dies(source, target):
    global left
    if left == 0:
        os._exit(9)
    left -= 1
    replace(source, target)

with writing(sys.argv[1], kind="explanation") as run:
    run.path("arrays/values.bin").write_bytes(b"new")
    run.put_json("story.json", {"text": "new"})
    os.replace = dies
    if left < 0:
        os._exit(9)
"""


@pytest.mark.parametrize(("survived", "left"), [(-1, "old"), (0, "old"), (1, "old"), (2, None)])
def test_a_killed_writer_leaves_the_old_run_or_none_and_the_next_one_tidies_up(
    tmp_path: Path, survived: int, left: str | None
):
    """The process ends without a word, before its rename number `survived` + 1."""
    write_run(tmp_path / "why", "old")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "why"), str(survived)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 9, done.stderr
    if left is None:
        with pytest.raises(NotARun):
            Run.open(tmp_path / "why")
    else:
        assert text_of(tmp_path / "why") == left

    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "why", kind="k"):
        raise KeyboardInterrupt
    assert text_of(tmp_path / "why") == "old"
    write_run(tmp_path / "why", "next")
    assert text_of(tmp_path / "why") == "next"
    assert names(tmp_path) == ["why"]


def test_an_old_run_that_could_not_be_deleted_is_deleted_by_the_next_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_run(tmp_path / "why", "old")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *arguments, **options: None)
        write_run(tmp_path / "why", "new")
    assert text_of(tmp_path / "why") == "new"
    assert len(names(tmp_path)) == 2
    write_run(tmp_path / "why", "newest")
    assert text_of(tmp_path / "why") == "newest"
    assert names(tmp_path) == ["why"]


# --------------------------------------------------------- what must not be replaced


def test_a_folder_that_is_no_run_is_never_overwritten(tmp_path: Path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("thesis", "file"):
        with pytest.raises(StoreError, match="is not a run of whence"):
            write_run(tmp_path / name)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "precious"
    assert (tmp_path / "file").read_text() == "precious"
    assert names(tmp_path) == ["file", "thesis"]


@pytest.mark.parametrize("manifest", ["{}", '{"format": "other"}', "[]", "no json"])
def test_another_programs_manifest_does_not_make_a_run(tmp_path: Path, manifest: str):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text(manifest)
    with pytest.raises(StoreError, match="is not a run of whence"):
        write_run(tmp_path / "app")
    assert (tmp_path / "app" / "manifest.json").read_text() == manifest


def test_a_run_with_files_of_the_user_is_not_replaced(tmp_path: Path):
    write_run(tmp_path / "why")
    (tmp_path / "why" / "arrays" / "notes.txt").write_text("precious")
    with pytest.raises(StoreError, match=r"arrays/notes\.txt"):
        write_run(tmp_path / "why", "second")
    assert (tmp_path / "why" / "arrays" / "notes.txt").read_text() == "precious"
    assert text_of(tmp_path / "why") == "first"


def test_a_run_of_another_version_can_be_replaced(tmp_path: Path):
    write_run(tmp_path / "why")
    edit_manifest(tmp_path / "why", version=99)
    write_run(tmp_path / "why", "second")
    assert text_of(tmp_path / "why") == "second"


# -------------------------------------------------------------------------- reading


def test_what_is_not_a_run_is_refused_with_the_reason(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text('{"format": "whence-run", ')
    reasons = {
        "nothing": "no such folder",
        "empty": "has no manifest",
        "file": "it is a file",
        "damaged": "is damaged",
    }
    for name, reason in reasons.items():
        with pytest.raises(NotARun, match=reason):
            Run.open(tmp_path / name)


def test_a_folder_of_runs_names_them(tmp_path: Path):
    for name in ("b", "a"):
        with writing(tmp_path / name, kind="k", problem=None) as draft:
            draft.put_json("x.json", {})
    with pytest.raises(NotARun, match=r"Name one of the runs in it: \S*/a, \S*/b\."):
        Run.open(tmp_path)


def test_a_run_that_was_begun_and_not_finished_says_so(tmp_path: Path):
    (tmp_path / "why.partial").mkdir()
    with pytest.raises(NotARun, match="was begun and not finished: make it anew"):
        Run.open(tmp_path / "why")


def test_a_draft_is_not_a_run(tmp_path: Path):
    with writing(tmp_path / "why", kind="k") as run:
        run.put_json("story.json", 1)
        for folder in (tmp_path / "why", tmp_path / "why.partial"):
            with pytest.raises(NotARun):
                Run.open(folder)


@pytest.mark.parametrize("version", [2, 0, None, "1"])
def test_another_version_is_refused_by_name(tmp_path: Path, version: object):
    write_run(tmp_path / "why")
    edit_manifest(tmp_path / "why", version=version)
    with pytest.raises(WrongVersion, match=f"version {version} of the format whence-run"):
        Run.open(tmp_path / "why")


@pytest.mark.parametrize("files", [None, [], 3, {"story.json": {}}, {"story.json": 1}])
def test_a_manifest_that_makes_no_sense_is_refused(tmp_path: Path, files: object):
    write_run(tmp_path / "why")
    edit_manifest(tmp_path / "why", files=files)
    with pytest.raises(NotARun, match="damaged"):
        Run.open(tmp_path / "why")


def test_missing_and_cut_off_files_are_found_without_hashing(tmp_path: Path):
    write_run(tmp_path / "why")
    values = tmp_path / "why" / "arrays" / "values.bin"
    values.write_bytes(b"fir")
    with pytest.raises(NotARun, match=r"values\.bin has 3 bytes instead of 5"):
        Run.open(tmp_path / "why")
    values.unlink()
    with pytest.raises(NotARun, match=r"values\.bin is missing"):
        Run.open(tmp_path / "why")


def test_a_changed_byte_is_found_by_hashing(tmp_path: Path):
    write_run(tmp_path / "why")
    (tmp_path / "why" / "arrays" / "values.bin").write_bytes(b"fIrst")
    Run.open(tmp_path / "why")
    with pytest.raises(StoreError, match=r"values\.bin is not the file that was written"):
        Run.open(tmp_path / "why", check_hashes=True)


def test_a_file_that_the_run_does_not_have_is_named_beside_those_it_has(tmp_path: Path):
    write_run(tmp_path / "why")
    run = Run.open(tmp_path / "why")
    with pytest.raises(StoreError, match=r"no 'other\.json'[\s\S]*story\.json"):
        run.read_json("other.json")
    with pytest.raises(StoreError, match="holds no JSON"):
        run.read_json("arrays/values.bin")


# ---------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", [*LEADING_OUT, *NOT_PORTABLE])
def test_names_that_leave_the_folder_or_one_system_are_refused(tmp_path: Path, name: str):
    with writing(tmp_path / "why", kind="k") as draft, pytest.raises(StoreError):
        draft.path(name)
    with pytest.raises(StoreError):
        Run.open(tmp_path / "why").path(name)


def test_a_manifest_cannot_point_out_of_the_folder(tmp_path: Path):
    write_run(tmp_path / "why")
    (tmp_path / "secret").write_text("secret")
    secret = {"bytes": 6, "sha256": sha256(b"secret").hexdigest()}
    edit_manifest(tmp_path / "why", files={"../secret": secret})
    with pytest.raises(StoreError, match="leads out of the folder"):
        Run.open(tmp_path / "why")


def test_a_link_cannot_lead_out_of_the_folder(tmp_path: Path):
    write_run(tmp_path / "why")
    (tmp_path / "secret").write_bytes(b"first")
    values = tmp_path / "why" / "arrays" / "values.bin"
    values.unlink()
    try:
        values.symlink_to(tmp_path / "secret")
    except OSError:
        pytest.skip("this user may not make links")
    with pytest.raises(StoreError, match="is a link that leads out"):
        Run.open(tmp_path / "why")


@pytest.mark.parametrize("name", ["manifest.json", "Manifest.JSON"])
def test_the_name_of_the_manifest_is_taken(tmp_path: Path, name: str):
    with writing(tmp_path / "why", kind="k") as draft, pytest.raises(StoreError, match="itself"):
        draft.path(name)


def test_what_json_cannot_hold_is_named_with_its_file(tmp_path: Path):
    with writing(tmp_path / "why", kind="k") as draft, pytest.raises(BadData, match=r"a\.json\['x"):
        draft.put_json("a.json", {"x": object()})


def test_the_journal_goes_over_to_the_run_that_takes_its_place(tmp_path: Path):
    folder = tmp_path / "why"
    write_run(folder)
    journal = Run.open(folder).journal
    (journal / "answers").mkdir(parents=True)
    (journal / "decisions.jsonl").write_text("kept")
    (journal / "answers" / "1.json").write_text("kept too")
    write_run(folder, "second")
    assert text_of(folder) == "second"
    assert (journal / "decisions.jsonl").read_text() == "kept"
    assert (journal / "answers" / "1.json").read_text() == "kept too"


def test_the_journal_is_no_part_of_what_the_run_was(tmp_path: Path):
    write_run(tmp_path / "why")
    journal = Run.open(tmp_path / "why").journal
    journal.mkdir()
    (journal / "decisions.jsonl").write_text("more")
    run = Run.open(tmp_path / "why", check_hashes=True)
    assert not [name for name in run.files if name.startswith("journal")]
    with (
        pytest.raises(StoreError, match="by whence itself"),
        writing(tmp_path / "x", kind="k") as d,
    ):
        d.path("journal/decisions.jsonl")


def test_a_journal_that_leads_out_of_the_run_is_refused(tmp_path: Path):
    write_run(tmp_path / "why")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "why" / "journal").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="leads out of the folder"):
        _ = Run.open(tmp_path / "why").journal
