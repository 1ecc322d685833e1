"""Archives of arrays with their metadata as JSON: one .npz file, nothing pickled."""

import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

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
    path: Path, *, kind: str, version: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and arrays; the arrays only once the metadata say that they are of this kind.

    Args:
        path: of the file.
        kind: what the metadata name as their "format".
        version: the one that can be read.

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
        return metadata, {name: archive[name] for name in archive.files if name != "metadata"}
