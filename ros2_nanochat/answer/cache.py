"""A bounded cache of what forms were compiled to."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_Value = TypeVar('_Value')


class BoundedCache(Generic[_Value]):
    """Keeps the values that were used last. Thread-safe.

    Args:
        most: Maximum number of values.
        most_bytes: Maximum sum of their sizes. A larger value is not kept.
    """

    def __init__(self, most: int, most_bytes: int):
        self._most, self._most_bytes = most, most_bytes
        self._values: OrderedDict[Hashable, tuple[_Value, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable, size: int, make: Callable[[], _Value]) -> _Value:
        """Return the value of a key.

        Args:
            key: The key.
            size: Size of the value in bytes.
            make: Makes the value if it is not kept. Called without the lock, so two threads may both call it.
        """
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
        value = make()
        with self._lock:
            if key not in self._values and size <= self._most_bytes:
                self._values[key] = value, size
                self._bytes += size
                while len(self._values) > self._most or self._bytes > self._most_bytes:
                    self._bytes -= self._values.popitem(last=False)[1][1]
        return value
