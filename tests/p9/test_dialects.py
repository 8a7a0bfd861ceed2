from __future__ import annotations

from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.codec import fixed_size
from pyvirtfs.p9.dialects import DIALECTS, LINUX
from pyvirtfs.p9.messages import REQUESTS


def test_all_requests_are_served_but_tauth() -> None:
    table = LINUX.table(readonly=False)
    assert len(table) == 256
    served = {number for number in range(256) if table[number].number == number}
    assert served == {message.type for message in REQUESTS} - {c.TAUTH}


def test_every_reply_of_fixed_size_has_room() -> None:
    for number, operation in enumerate(LINUX.table(readonly=False)):
        assert operation.room >= max(11, fixed_size(number + 1) or 0) or operation.number != number


def test_the_first_dialect_is_spoken_before_a_session() -> None:
    assert DIALECTS[0] is LINUX
    table = LINUX.table_without_session()
    assert [number for number in range(256) if table[number].number == number] == [c.TVERSION, c.TFLUSH]
