"""Values in memory. The values that were used last stay."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar, final

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


@final
class RecentlyUsed(Generic[_Key, _Value]):
    """Values by keys, and `size`, the sum of their sizes."""

    def __init__(self) -> None:
        self.size = 0
        self._entries: OrderedDict[_Key, tuple[_Value, int]] = OrderedDict()

    def of(
        self, key: _Key, make: Callable[[], _Value], size: Callable[[_Value], int] = lambda _: 1
    ) -> _Value:
        """Return the value of a key, which counts as a use; it is made if it isn't kept."""
        if key not in self._entries:
            value = make()
            self._entries[key] = value, size(value)
            self.size += self._entries[key][1]
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def forget(self, room: int, least: int = 1) -> None:
        """Forget the values unused for longest until `size` is at most `room`; `least` stay."""
        while self.size > room and len(self._entries) > least:
            _, (_, size) = self._entries.popitem(last=False)
            self.size -= size
