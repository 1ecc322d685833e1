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


@pytest.mark.parametrize(
    "values",
    [
        np.arange(12.0).reshape(3, 4),
        np.asfortranarray(np.ones((2, 3))),
        np.zeros((0, 3)),
        np.int8(3),
    ],
)
def test_a_mapped_array_is_the_same_and_cannot_be_written_to(tmp_path, values):
    path = tmp_path / "a.npz"
    np.savez(path, metadata=np.array(METADATA), other=np.arange(3), values=values)
    _, arrays = read_archive(path, kind="kind", version=1, mapped=("values",))
    assert arrays["values"].dtype == values.dtype
    assert np.array_equal(arrays["values"], values)
    if values.size:
        assert isinstance(arrays["values"], np.memmap)
        assert not arrays["values"].flags.writeable


def test_what_cannot_be_mapped_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, metadata=np.array(METADATA), values=np.arange(3))
    with pytest.raises(ValueError, match="compressed"):
        read_archive(path, kind="kind", version=1, mapped=("values",))
    objects = np.array([{}, None], dtype=object)
    np.savez(path, metadata=np.array(METADATA), values=objects)
    with pytest.raises(ValueError, match="Python objects"):
        read_archive(path, kind="kind", version=1, mapped=("values",))
