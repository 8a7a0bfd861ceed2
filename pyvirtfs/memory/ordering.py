"""Memory ordering between this process and the processors that watch the same RAM.

A virtqueue is shared with code that runs at the same time, so three things must hold (virtio 1.3, 2.7.13 and 2.7.14):

* **An index is loaded and stored in one piece.** Use a cast memoryview, ``ring = view.cast("H")``, and then
  ``ring[1]`` and ``ring[1] = value``: CPython copies an element of a native format with a two-byte ``memcpy``, which
  every compiler turns into one aligned load or store. `GuestMemory` takes only RAM whose host and guest alignment
  agree, so that an aligned guest address is an aligned host address. ``struct.pack_into`` is no substitute: it clears
  the target before it writes, and the other side does see that zero. ``view[2:4] = bytes`` is a ``memmove`` with no
  promise at all.
* **What an index publishes is visible before the index.** `store_barrier` stands between the two stores; its
  counterpart `load_barrier` stands between loading an index and loading what it covers. x86 never reorders two stores
  or two loads, so they do nothing there (`TOTAL_STORE_ORDER`).
* **Publishing an index comes before looking at the other side's** (its event index or flags). This store-then-load pair
  is the one that every processor reorders, x86 too, and only `full_barrier` keeps it in order.

A memoryview cast is native-endian and virtio 1.x is little-endian; so are all hosts that are supported.
"""

from __future__ import annotations

import platform
import threading
from typing import Final

TOTAL_STORE_ORDER: Final = platform.machine() in {"x86_64", "AMD64", "i686", "i386"}
"""True where the processor reorders nothing but a store with a later load of another place."""

_new_lock = threading.Lock


def _one_lock() -> None:
    """A full barrier on x86: taking a free lock is a ``lock cmpxchg``.

    A lock-prefixed instruction orders like MFENCE (Intel SDM volume 3, 9.2.2).
    """
    _new_lock().acquire()


def _two_locks() -> None:
    """A full barrier elsewhere.

    Taking a lock only promises that nothing behind it comes before it, and giving it back (a lock that is dropped while
    it is held is given back) that nothing before it comes behind it. So it is done twice, and the order comes from the
    middle, the first release followed by the second acquire. On arm64, what came before cannot pass the release (STLR,
    STLXR, LDADDL), what comes behind cannot pass the acquire (LDAR, LDAXR, CASA), and a load-acquire is never moved
    ahead of an earlier store-release; C's memory_order_seq_cst rests on that last rule (Arm ARM, B2.3,
    "barrier-ordered-before").
    """
    _new_lock().acquire()
    _new_lock().acquire()


full_barrier = _one_lock if TOTAL_STORE_ORDER else _two_locks
"""Keep every load and store before this call ahead of every load and store behind it; 0.15 to 0.3 µs.

Python offers no fence, but its locks are made of one. Each is a new one: a lock that all share would stay taken for
ever if a signal handler raised (Ctrl-C) between its acquire and its release.
"""


def _no_barrier() -> None:
    """Nothing to do on a processor with total store order."""


store_barrier = _no_barrier if TOTAL_STORE_ORDER else full_barrier
"""Keep the stores before this call ahead of the stores behind it."""

load_barrier = _no_barrier if TOTAL_STORE_ORDER else full_barrier
"""Keep the loads before this call ahead of the loads behind it."""
