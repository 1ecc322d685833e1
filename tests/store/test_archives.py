"""Archives are read as a whole or not at all."""

import numpy as np
import pytest

from whence.errors import WrongVersion
from whence.store.archives import DAMAGE, read_archive

METADATA = '{"format": "kind", "version": 1}'


def test_metadata_and_arrays_come_back(tmp_path):
    np.savez(tmp_path / "a.npz", metadata=np.array(METADATA), values=np.arange(3))
    metadata, arrays = read_archive(tmp_path / "a.npz", kind="kind", version=1)
    assert metadata == {"format": "kind", "version": 1}
    assert list(arrays) == ["values"]
    assert arrays["values"].tolist() == [0, 1, 2]


def test_another_version_or_kind_and_what_is_no_archive_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, metadata=np.array(METADATA))
    with pytest.raises(WrongVersion, match="version 1 of the format kind"):
        read_archive(path, kind="kind", version=2)
    with pytest.raises(ValueError, match="its format is 'kind'"):
        read_archive(path, kind="other", version=1)
    np.save(tmp_path / "b.npy", np.arange(3))
    with pytest.raises(ValueError, match="one array"):
        read_archive(tmp_path / "b.npy", kind="kind", version=1)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(DAMAGE):
            read_archive(path, kind="kind", version=1)
