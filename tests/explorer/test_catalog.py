"""Runs that cannot be shown are refused with a reason; others stay in their files."""

import json
from pathlib import Path

import numpy as np
import pytest

from whence.errors import NotARun, StoreError, WrongVersion
from whence.explorer.catalog import Catalog
from whence.report.runs import ALBUM, SCORES


def edit(folder: Path, change) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_effects_and_displays_stay_in_their_files(folder: Path):
    catalog = Catalog.open(folder)
    assert isinstance(catalog.scores.values, np.memmap)
    assert isinstance(catalog.album.displays.text, np.memmap)
    assert "queries" not in catalog.story


def test_a_run_from_before_the_explorer_names_what_is_missing(folder: Path):
    (folder / ALBUM).unlink()
    edit(folder, lambda manifest: manifest["files"].pop(ALBUM))
    with pytest.raises(WrongVersion, match=r"has no album\.npz"):
        Catalog.open(folder)


def test_a_half_written_run_is_refused(folder: Path):
    (folder / SCORES).write_bytes((folder / SCORES).read_bytes()[:100])
    with pytest.raises(NotARun, match="100 bytes instead of"):
        Catalog.open(folder)


def test_a_run_of_another_version_is_refused(folder: Path):
    edit(folder, lambda manifest: manifest.update(version=99))
    with pytest.raises(WrongVersion, match="version 99"):
        Catalog.open(folder)


@pytest.mark.parametrize("name", [ALBUM, SCORES])
def test_nothing_pickled_is_loaded(folder: Path, name: str, tmp_path: Path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    np.savez(folder / name, metadata=np.array([Bomb()], dtype=object))
    size = (folder / name).stat().st_size
    edit(folder, lambda manifest: manifest["files"][name].update(bytes=size))
    with pytest.raises(StoreError):
        Catalog.open(folder)
    assert not (tmp_path / "exploded").exists()


def test_a_training_example_names_the_queries_that_it_moves_most(folder: Path):
    catalog = Catalog.open(folder)
    column = catalog.scores.values[:, 7]
    told = catalog.strongest_queries(7)
    assert [query["position"] for query in told] == np.argsort(-np.abs(column)).tolist()
    assert [query["effect"] for query in told] == [column[q["position"]] for q in told]
