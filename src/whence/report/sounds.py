"""How much sound a page or a run holds: spectrograms stay, files that play are left out."""

from typing import Any

MOST_SOUND = 32 * 2**20
"""Characters of all sounds of a page, of the queries of a run, and of its training examples."""


class Room:
    """Space for sounds that is filled in the order in which they come.

    Args:
        left: characters.
    """

    def __init__(self, left: int = MOST_SOUND) -> None:
        self.left = left

    def fit(self, value: Any) -> Any:
        """A copy of plain JSON in which sounds that find no room any more are not played.

        Args:
            value: a display, or whatever holds some.
        """
        if isinstance(value, list):
            return [self.fit(entry) for entry in value]
        if not isinstance(value, dict):
            return value
        if value.get("kind") != "audio" or "wav" not in value:
            return {name: self.fit(entry) for name, entry in value.items()}
        size = len(value["wav"])
        if size > self.left:
            return {name: entry for name, entry in value.items() if name != "wav"}
        self.left -= size
        return value
