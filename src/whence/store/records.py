"""Many small JSON values in one array of bytes, each read without the others."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.store.jsonable import as_json, json_text

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Records:
    """M values in the order in which they were packed.

    >>> Records.pack([{"label": "3"}, None])[0]
    {'label': '3'}

    Args:
        text: (bytes,) uint8, the JSON of all values after each other; may be a map of a file.
        starts: (M + 1,) where each of them begins, and where the last one ends.
    """

    text: Array
    starts: Array

    @classmethod
    def pack(cls, values: Iterable[object]) -> "Records":
        """Values as records.

        Raises:
            BadData: a value has a part that JSON cannot hold.
        """
        pieces = [json_text(as_json(value, "a record")).encode("ascii") for value in values]
        ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        text = np.frombuffer(b"".join(pieces), dtype=np.uint8)
        return cls(text, np.concatenate([np.zeros(1, np.int64), ends]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, position: int) -> Any:
        if not 0 <= position < len(self):
            raise IndexError(position)
        start, end = int(self.starts[position]), int(self.starts[position + 1])
        return json.loads(self.text[start:end].tobytes())

    def __iter__(self) -> Iterator[Any]:
        return (self[position] for position in range(len(self)))
