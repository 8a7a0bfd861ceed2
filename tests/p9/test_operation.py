from __future__ import annotations

import errno
from typing import Any

import pytest

from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.operation import ERROR_NBYTES, NO_TYPE, Operation, refusal

NOTHING: Any = None


@pytest.mark.parametrize(("number", "room"), [(c.TGETATTR, 160), (c.TCLUNK, 11), (c.TSTATFS, 67), (c.TREADLINK, 11)])
def test_room_is_that_of_the_reply_and_never_less_than_an_error_needs(number: int, room: int) -> None:
    def start(*_: Any) -> None: ...

    def finish(*_: Any) -> bytes:
        return b""

    assert Operation(number, start, finish).room == room
    assert Operation(number, start, finish, room=3).room == ERROR_NBYTES == 11
    assert Operation(number, start, finish, room=500).room == 500


def test_a_refusal_fails_before_and_after() -> None:
    refused = refusal(errno.EOPNOTSUPP, "no such message")
    assert (refused.number, refused.room) == (NO_TYPE, ERROR_NBYTES)
    for step in (lambda: refused.start(NOTHING, NOTHING, ()), lambda: refused.finish(NOTHING, NOTHING, None)):
        with pytest.raises(OSError, match="no such message") as caught:
            step()
        assert caught.value.errno == errno.EOPNOTSUPP
