"""Values in memory, of which those that were used last stay."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar, final

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


@final
class RecentlyUsed(Generic[_Key, _Value]):
    """Values by keys, and `size`, the sum of their sizes."""

    def __init__(self) -> None:
        self.size = 0
        self._entries: OrderedDict[_Key, tuple[_Value, int]] = OrderedDict()

    def get(self, key: _Key) -> _Value | None:
        """Return the value, which counts as a use, or None."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: _Key, value: _Value, size: int = 1) -> None:
        """Keep a new value."""
        self._entries[key] = value, size
        self.size += size

    def forget(self, room: int, least: int = 1) -> None:
        """Forget the values unused for longest until `size` is at most `room`; `least` stay."""
        while self.size > room and len(self._entries) > least:
            _, (_, size) = self._entries.popitem(last=False)
            self.size -= size
