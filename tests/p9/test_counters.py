from __future__ import annotations

import errno
from typing import Any, TypeAlias

from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.counters import Counters

Peer: TypeAlias = Any
Export: TypeAlias = Any


def test_nothing_has_happened_yet() -> None:
    counters = Counters()
    assert counters.by_type == [0] * 256
    assert counters.requests == 0
    counters.by_type[c.TREAD] += 2
    counters.by_type[255] += 1
    assert counters.requests == 3
    assert Counters().requests == 0


def test_what_a_server_counts(peer: Peer, export: Export) -> None:
    counters = peer.server.counters
    assert counters.requests == 2  # Tversion, Tattach
    peer.open(1, b"file")
    assert peer.read(1, 2, 5) == b"23456"
    assert peer.write(1, 0, b"abc") == 3
    assert peer.error(c.TCLUNK, 77) == errno.ENOENT
    assert (counters.bytes_read, counters.bytes_written, counters.errors) == (5, 3, 1)
    assert (counters.by_type[c.TREAD], counters.by_type[c.TWRITE], counters.by_type[c.TCLUNK]) == (1, 1, 1)

    export.later.add("getattr")
    peer.send(c.TGETATTR, 0, 0, tag=1)
    peer.send(c.TFLUSH, 1, tag=2)
    assert (counters.deferred, counters.cancelled) == (1, 0)
    peer.finish(error=OSError(errno.EINTR, "interrupted"))
    assert (counters.deferred, counters.cancelled, counters.errors) == (1, 1, 1)
    assert counters.requests == 2 + 2 + 1 + 1 + 1 + 2
