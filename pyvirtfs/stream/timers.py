"""Who is to be looked at when, even if nothing happens."""

from __future__ import annotations

import heapq
import itertools
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT")


class Timers(Generic[KeyT]):
    """One time for each key, at most; times are those of time.monotonic()."""

    def __init__(self) -> None:
        self._when: dict[KeyT, float] = {}
        self._heap: list[tuple[float, int, KeyT]] = []  # also times that do not count any more
        self._serial = itertools.count()  # keys need no order

    def set(self, key: KeyT, when: float | None) -> None:
        """Give a key a time, another time, or none."""
        if when is None:
            self._when.pop(key, None)
            if not self._when:
                self._heap.clear()
        elif self._when.get(key) != when:
            self._when[key] = when
            heapq.heappush(self._heap, (when, next(self._serial), key))
            if len(self._heap) > 64 + 2 * len(self._when):
                self._heap = [(each, next(self._serial), key) for key, each in self._when.items()]
                heapq.heapify(self._heap)

    def first(self) -> float | None:
        """The earliest time; None: there is none."""
        while self._heap:
            when, _, key = self._heap[0]
            if self._when.get(key) == when:
                return when
            heapq.heappop(self._heap)
        return None

    def due(self, now: float) -> list[KeyT]:
        """The keys whose time has come, the earliest first; they have none any more."""
        found = []
        while (when := self.first()) is not None and when <= now:
            _, _, key = heapq.heappop(self._heap)
            del self._when[key]
            found.append(key)
        return found
