"""Archives of arrays with their metadata as JSON: one .npz file, nothing pickled."""

import json
import struct
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from whence.errors import WrongVersion
from whence.version import __version__

DAMAGE = (
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise when they read something that is not, or no longer, their own."""


def read_archive(
    path: Path, *, kind: str, version: int, mapped: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and arrays; the arrays only once the metadata say that they are of this kind.

    Args:
        path: of the file.
        kind: what the metadata name as their "format".
        version: the one that can be read.
        mapped: arrays that stay in the file; what is looked at of them is read then.

    Raises:
        WrongVersion: another version of this format.
        OSError: the file cannot be read.
        ValueError: something else; or another error of `DAMAGE`.
    """
    with path.open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is one array, not an archive")
        metadata = json.loads(archive["metadata"].item())
        if metadata["format"] != kind:
            raise ValueError(f"its format is {metadata['format']!r}")
        if metadata["version"] != version:
            raise WrongVersion(
                found=f"{path} has version {metadata['version']} of the format {kind}.",
                why=f"whence {__version__} reads version {version}.",
                remedy=f"Use the whence that wrote it ({metadata.get('whence')}), or make it anew.",
            )
        return metadata, {
            name: _map(path, name) if name in mapped else archive[name]
            for name in archive.files
            if name != "metadata"
        }


_LOCAL_HEADER = struct.Struct("<26xHH")
"""Of a member of a zip file: at its end, how long the name and the extra field behind it are."""


def _map(path: Path, name: str) -> np.ndarray:
    """An array of an archive as a read-only map of the file.

    Raises:
        ValueError: it is compressed, or of Python objects.
    """
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed, and cannot be read in parts")
    with path.open("rb") as file:
        file.seek(member.header_offset)
        file.seek(sum(_LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))), 1)
        shape, is_fortran, dtype = _read_header(file)
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects")
        if 0 in shape:
            return np.zeros(shape, dtype)
        order = "F" if is_fortran else "C"
        return np.memmap(path, dtype, "r", file.tell(), shape, order)


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of an array in numpy's own format."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"an array is in version {version} of its format")
