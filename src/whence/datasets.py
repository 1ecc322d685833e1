"""Real data by name, as plain numpy arrays.

digits          1,797 grey images 8 x 8, ten classes      comes with scikit-learn
breast_cancer     569 rows of 30 numbers, two classes     comes with scikit-learn
diabetes          442 rows of 10 numbers, regression      comes with scikit-learn
mnist          70,000 grey images 28 x 28, ten classes    $WHENCE_DATA, else downloaded once

>>> digits = load("digits", classes=(3, 8))
>>> digits.x_train.shape, digits.x_test.shape, digits.label_names
((287, 64), (70, 64), ('3', '8'))
"""

import gzip
import hashlib
import logging
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray
from sklearn import datasets as bundled

from whence.errors import BadArgument, BadData, StoreError, unknown_name
from whence.store import write_atomically

_log = logging.getLogger("whence")

Arrays = dict[str, NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class RealData:
    """A data set in two parts: one to train on, one to ask about.

    Attributes:
        name: the name it was loaded by.
        x_train: (N, D) floats, one flat row per example.
        y_train: (N,) labels 0..C-1 as int64, or values as float64 for regression.
        x_test: (M, D).
        y_test: (M,).
        label_names: one name per label; empty for regression.
        feature_names: one name per column; empty for images.
        shape: the shape of one example before it was made flat, (8, 8) or (D,).
        source: where the data come from.
        licence: under which terms.
    """

    name: str
    x_train: NDArray[np.floating]
    y_train: NDArray[np.generic]
    x_test: NDArray[np.floating]
    y_test: NDArray[np.generic]
    label_names: tuple[str, ...]
    feature_names: tuple[str, ...]
    shape: tuple[int, ...]
    source: str
    licence: str


def names() -> list[str]:
    """The names that `load` knows."""
    return sorted(_LOADERS)


def load(
    name: str, *, folder: str | Path | None = None, classes: Sequence[int] | None = None
) -> RealData:
    """A real data set by name.

    The bundled sets are split by position: every fifth example of each class is a test example, so
    the split needs no random numbers and never changes. MNIST keeps its official split.

    Args:
        name: one of `names()`.
        folder: where downloaded sets are kept; by default $WHENCE_DATA if it holds the file, else
            the cache folder of the user ($XDG_CACHE_HOME/whence or ~/.cache/whence).
        classes: keep only these labels, and number them 0, 1, ... in this order.

    Raises:
        UnknownName: there is no such data set.
        BadArgument: `classes` names a label twice, or one that the data do not have.
        StoreError: the file cannot be downloaded, read or written.
        BadData: the file does not hold the data that it should.
    """
    if name not in _LOADERS:
        raise unknown_name("data set", name, _LOADERS)
    data = _LOADERS[name](_folders(folder))
    return data if classes is None else _only(data, classes)


def _folders(folder: str | Path | None) -> list[Path]:
    """The folders to look in; the last one receives downloads."""
    if folder is not None:
        return [Path(folder)]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whence"
    given = os.environ.get("WHENCE_DATA")
    return [Path(given), cache] if given else [cache]


def _only(data: RealData, classes: Sequence[int]) -> RealData:
    known = range(len(data.label_names))
    if len(set(classes)) != len(classes) or len(classes) < 2 or not set(classes) <= set(known):
        labels = f"0 to {len(known) - 1}" if known else "none, its targets are numbers"
        raise BadArgument(
            found=f"classes={tuple(classes)} for {data.name}, whose labels are {labels}.",
            why="A selection is two or more different labels of the data set.",
            remedy="Pass for example classes=(0, 1), or leave it out for a regression.",
        )
    train, y_train = _renumbered(data.y_train, classes)
    test, y_test = _renumbered(data.y_test, classes)
    return replace(
        data,
        x_train=data.x_train[train],
        y_train=y_train,
        x_test=data.x_test[test],
        y_test=y_test,
        label_names=tuple(data.label_names[label] for label in classes),
    )


def _renumbered(
    y: NDArray[np.generic], classes: Sequence[int]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which examples stay, and their new labels."""
    is_class = y[:, None] == np.asarray(classes)  # (N, number of classes)
    stays = is_class.any(axis=1)
    return stays, is_class[stays].argmax(axis=1).astype(np.int64)


# --- sets that come with scikit-learn -------------------------------------------------------------

_UCI = "UCI Machine Learning Repository, through scikit-learn"


def _digits(_: list[Path]) -> RealData:
    x, y = bundled.load_digits(return_X_y=True)
    x, y = x / 16.0, y.astype(np.int64)  # 16 is white
    test = _every_fifth(y)
    return RealData(
        name="digits",
        x_train=x[~test],
        y_train=y[~test],
        x_test=x[test],
        y_test=y[test],
        label_names=tuple("0123456789"),
        feature_names=(),
        shape=(8, 8),
        source=f"Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998), {_UCI}",
        licence="CC BY 4.0",
    )


def _breast_cancer(_: list[Path]) -> RealData:
    raw = bundled.load_breast_cancer()
    x, y = raw.data, raw.target.astype(np.int64)
    test = _every_fifth(y)
    x = _standardized(x, by=x[~test])
    return RealData(
        name="breast_cancer",
        x_train=x[~test],
        y_train=y[~test],
        x_test=x[test],
        y_test=y[test],
        label_names=tuple(str(name) for name in raw.target_names),
        feature_names=tuple(str(name) for name in raw.feature_names),
        shape=(x.shape[1],),
        source=f"Breast Cancer Wisconsin, Diagnostic (Wolberg et al., 1995), {_UCI}",
        licence="CC BY 4.0",
    )


def _diabetes(_: list[Path]) -> RealData:
    raw = bundled.load_diabetes(scaled=False)
    x, y = raw.data, raw.target.astype(np.float64)
    test = _every_fifth(np.zeros(len(y)))
    x = _standardized(x, by=x[~test])
    return RealData(
        name="diabetes",
        x_train=x[~test],
        y_train=y[~test],
        x_test=x[test],
        y_test=y[test],
        label_names=(),
        feature_names=tuple(raw.feature_names),
        shape=(x.shape[1],),
        source="Disease progression after one year (Efron et al., 2004, Least Angle Regression), "
        "through scikit-learn",
        licence="published with the article, no licence stated",
    )


def _every_fifth(y: NDArray[np.generic]) -> NDArray[np.bool_]:
    """True for the fifth, tenth, ... example of each class."""
    test = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        test[np.flatnonzero(y == label)[4::5]] = True
    return test


def _standardized(x: NDArray[np.float64], *, by: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns of mean 0 and standard deviation 1, as measured on `by`."""
    return (x - by.mean(axis=0)) / by.std(axis=0)


# --- MNIST ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """One of the four files of MNIST: its name, the shape it holds, and its digest unpacked."""

    file: str
    shape: tuple[int, ...]
    sha256: str


_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist"  # kept by the PyTorch project
_MNIST = {
    "x_train": _Part(
        "train-images-idx3-ubyte",
        (60000, 28, 28),
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "y_train": _Part(
        "train-labels-idx1-ubyte",
        (60000,),
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "x_test": _Part(
        "t10k-images-idx3-ubyte",
        (10000, 28, 28),
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "y_test": _Part(
        "t10k-labels-idx1-ubyte",
        (10000,),
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
_REMEDY = (
    "Set WHENCE_DATA to a folder with mnist.npz (arrays x_train, y_train, x_test, y_test of the "
    "original), or try again with a network connection."
)


def _mnist(folders: list[Path]) -> RealData:
    found = [folder / "mnist.npz" for folder in folders if (folder / "mnist.npz").is_file()]
    if found:
        arrays = _read_mnist(found[0])
    else:
        arrays = {key: _download(part) for key, part in _MNIST.items()}
        _write(folders[-1] / "mnist.npz", arrays)
    return RealData(
        name="mnist",
        x_train=_rows(arrays["x_train"]),
        y_train=arrays["y_train"].astype(np.int64),
        x_test=_rows(arrays["x_test"]),
        y_test=arrays["y_test"].astype(np.int64),
        label_names=tuple("0123456789"),
        feature_names=(),
        shape=(28, 28),
        source="The MNIST Database of Handwritten Digits (LeCun, Cortes and Burges, 1998)",
        licence="CC BY-SA 3.0",
    )


def _rows(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Flat rows in [0, 1]; float32, since float64 would take 440 MB for 8-bit pixels."""
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)


def _read_mnist(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in _MNIST}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise StoreError(
            found=f"{path} cannot be read as MNIST: {error}",
            why="It must be an .npz file with the arrays x_train, y_train, x_test and y_test.",
            remedy=f"Delete it to have it downloaded again. {_REMEDY}",
        ) from error
    for key, part in _MNIST.items():
        _check(_idx(arrays[key]), part, origin=f"{key} in {path}")
    return arrays


def _idx(array: NDArray[np.uint8]) -> bytes:
    """The array in the format of the original files: magic number, dimensions, bytes."""
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def _download(part: _Part) -> NDArray[np.uint8]:
    """One part of MNIST as an array; nothing is written before it is known to be whole."""
    address = f"{_MIRROR}/{part.file}.gz"
    _log.info("downloading %s", address)
    try:
        with urlopen(address, timeout=60) as response:
            content = gzip.decompress(response.read())
    except (OSError, HTTPException, EOFError, zlib.error) as error:
        raise StoreError(
            found=f"{address} could not be downloaded: {error}",
            why="MNIST is not part of whence; it is downloaded once (11 MB) and then kept.",
            remedy=_REMEDY,
        ) from error
    _check(content, part, origin=address)
    header = 4 * (1 + len(part.shape))
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(part.shape)


def _check(content: bytes, part: _Part, *, origin: str) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != part.sha256:
        raise BadData(
            found=f"{origin} has the SHA-256 digest {digest[:16]}..., "
            f"the original {part.sha256[:16]}...",
            why="Results on altered data could not be compared with anybody else's.",
            remedy=f"Delete the file if it is yours. {_REMEDY}",
        )


def _write(path: Path, arrays: Mapping[str, Any]) -> None:
    packed = BytesIO()
    np.savez_compressed(packed, **arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, packed.getvalue())
    except OSError as error:
        raise StoreError(
            found=f"{path} cannot be written: {error}",
            why="The download is kept, so that it is needed only once.",
            remedy="Pass a folder that can be written to, for example folder='data'.",
        ) from error


_LOADERS: dict[str, Callable[[list[Path]], RealData]] = {
    "digits": _digits,
    "breast_cancer": _breast_cancer,
    "diabetes": _diabetes,
    "mnist": _mnist,
}
