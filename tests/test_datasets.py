import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from sklearn import datasets as bundled

from whence import datasets
from whence.errors import BadArgument, BadData, StoreError, UnknownName

BUNDLED = ["breast_cancer", "diabetes", "digits"]


@pytest.mark.parametrize("name", BUNDLED)
def test_both_parts_together_are_the_whole_set(name: str):
    data = datasets.load(name)
    whole = getattr(bundled, f"load_{name}")().target
    assert sorted([*data.y_train, *data.y_test]) == sorted(whole)
    assert len(data.x_train) == len(data.y_train)
    assert len(data.x_test) == len(data.y_test)


@pytest.mark.parametrize("name", ["breast_cancer", "digits"])
def test_a_fifth_of_each_class_is_for_testing(name: str):
    data = datasets.load(name)
    train, test = np.bincount(data.y_train), np.bincount(data.y_test)
    assert (test == (train + test) // 5).all()
    assert len(train) == len(data.label_names)


def test_digits_are_the_pictures_of_scikit_learn_between_black_and_white():
    data, raw = datasets.load("digits"), bundled.load_digits()
    assert data.shape == (8, 8)
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)
    known = {image.tobytes(): label for image, label in zip(raw.data, raw.target, strict=True)}
    for image, label in zip(data.x_test, data.y_test, strict=True):
        assert known[(image * 16).tobytes()] == label


@pytest.mark.parametrize("name", ["breast_cancer", "diabetes"])
def test_columns_are_standardised_by_the_training_part_alone(name: str):
    data = datasets.load(name)
    np.testing.assert_allclose(data.x_train.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(data.x_train.std(axis=0), 1, atol=1e-12)
    assert abs(data.x_test.mean(axis=0)).max() > 1e-3
    assert len(data.feature_names) == data.x_train.shape[1]


@pytest.mark.parametrize("name", BUNDLED)
def test_the_same_name_gives_the_same_numbers(name: str):
    first, second = datasets.load(name), datasets.load(name)
    for part in ("x_train", "y_train", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(first, part), getattr(second, part))


def test_chosen_classes_are_numbered_in_the_order_asked():
    whole, pair = datasets.load("digits"), datasets.load("digits", classes=(8, 3))
    assert pair.label_names == ("8", "3")
    np.testing.assert_array_equal(
        pair.x_train[pair.y_train == 0], whole.x_train[whole.y_train == 8]
    )
    np.testing.assert_array_equal(pair.x_test[pair.y_test == 1], whole.x_test[whole.y_test == 3])
    assert len(pair.x_train) == np.isin(whole.y_train, (3, 8)).sum()


@pytest.mark.parametrize(
    ("name", "classes"),
    [("digits", (3, 3)), ("digits", (3, 10)), ("digits", (3,)), ("diabetes", (0, 1))],
)
def test_a_selection_that_is_not_two_labels_of_the_set_is_refused(name: str, classes: tuple):
    with pytest.raises(BadArgument, match=r"classes="):
        datasets.load(name, classes=classes)


def test_an_unknown_name_is_answered_with_the_nearest_one():
    with pytest.raises(UnknownName, match="'digits'"):
        datasets.load("digit")


# --- MNIST: four tiny files stand in for the real ones, and a folder for the mirror ---------------


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder served in place of the network, with the digests of its own small files."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    random = np.random.default_rng(0)
    parts = {}
    for key, (count, high) in {"x_train": (7, 256), "x_test": (3, 256)}.items():
        parts[key] = random.integers(high, size=(count, 28, 28), dtype=np.uint8)
        parts[key.replace("x", "y")] = random.integers(10, size=count, dtype=np.uint8)
    for key, array in parts.items():
        file = datasets._MNIST[key].file
        sizes = b"".join(struct.pack(">I", size) for size in array.shape)
        content = bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()
        (folder / f"{file}.gz").write_bytes(gzip.compress(content))
        digest = hashlib.sha256(content).hexdigest()
        monkeypatch.setitem(datasets._MNIST, key, datasets._Part(file, array.shape, digest))
    monkeypatch.setattr(datasets, "_MIRROR", folder.as_uri())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("WHENCE_DATA", raising=False)
    return folder


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_download_is_kept_and_not_repeated(mirror: Path, tmp_path: Path):
    first = datasets.load("mnist")
    assert files(tmp_path / "cache") == ["whence/mnist.npz"]
    for path in mirror.iterdir():
        path.unlink()
    second = datasets.load("mnist")
    assert first.x_train.shape == (7, 784)
    np.testing.assert_array_equal(first.x_train, second.x_train)
    np.testing.assert_array_equal(first.y_test, second.y_test)


def test_a_folder_of_the_user_comes_before_the_cache_and_is_not_written_to(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setenv("WHENCE_DATA", str(own))
    datasets.load("mnist")
    assert files(own) == []
    (tmp_path / "cache/whence/mnist.npz").rename(own / "mnist.npz")
    datasets.load("mnist")
    assert files(tmp_path / "cache") == []


def test_a_file_with_one_wrong_byte_is_refused_and_not_kept(mirror: Path, tmp_path: Path):
    path = mirror / "t10k-images-idx3-ubyte.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(BadData, match=r"t10k-images.* has the SHA-256 digest"):
        datasets.load("mnist")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kept", [0, 5, 40])
def test_an_interrupted_download_leaves_nothing(mirror: Path, tmp_path: Path, kept: int):
    path = mirror / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises((StoreError, BadData)):
        datasets.load("mnist")
    assert not (tmp_path / "cache").exists()


def test_without_a_network_the_error_names_the_way_out(mirror: Path, tmp_path: Path):
    (mirror / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(StoreError, match="WHENCE_DATA"):
        datasets.load("mnist")
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_to_is_an_error_with_a_remedy(mirror: Path, tmp_path: Path):
    (tmp_path / "data").write_text("a file stands where the folder should")
    with pytest.raises(StoreError, match="folder="):
        datasets.load("mnist", folder=tmp_path / "data")
    assert files(tmp_path) == sorted(["data", *(f"mirror/{name}" for name in files(mirror))])


def test_a_kept_file_that_was_altered_is_refused(mirror: Path, tmp_path: Path):
    datasets.load("mnist", folder=tmp_path)
    with np.load(tmp_path / "mnist.npz") as kept:
        arrays = dict(kept)
    arrays["y_train"][0] += 1
    np.savez(tmp_path / "mnist.npz", **arrays)
    with pytest.raises(BadData, match="y_train in"):
        datasets.load("mnist", folder=tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 broken"])
def test_a_kept_file_that_is_no_archive_is_refused(mirror: Path, tmp_path: Path, content: bytes):
    (tmp_path / "mnist.npz").write_bytes(content)
    with pytest.raises(StoreError, match="cannot be read as MNIST"):
        datasets.load("mnist", folder=tmp_path)


def test_the_real_mnist_has_the_published_counts(whence_data: Path):
    data = datasets.load("mnist", folder=whence_data)
    published = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(data.y_train).tolist() == published
    assert data.x_train.shape == (60000, 784)
    assert len(data.y_test) == 10000
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)
