from __future__ import annotations

import pytest

from pyvirtfs.p9 import codec
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.dialects import DIALECTS, LINUX, PLAIN, UNIX, Dialect, table_without_session


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name.decode())
def test_all_requests_are_served_but_tauth(dialect: Dialect) -> None:
    table = dialect.table(readonly=False)
    assert len(table) == len(dialect.decoders) == 256
    served = {number for number in range(256) if table[number].number == number}
    assert served == dialect.requests == {message.type for message in dialect.vocabulary.requests} - {c.TAUTH}


@pytest.mark.parametrize(
    ("dialect", "coder"), [(LINUX, codec.LINUX), (UNIX, codec.UNIX), (PLAIN, codec.PLAIN)], ids=lambda each: ""
)
def test_every_reply_of_fixed_size_has_room(dialect: Dialect, coder: codec.Codec) -> None:
    for number, operation in enumerate(dialect.table(readonly=False)):
        assert operation.room >= max(11, coder.fixed_size(number + 1) or 0) or operation.number != number


@pytest.mark.parametrize(
    ("dialect", "nbytes", "reply"),
    [
        (LINUX, 11, "0b000000 07 0300 02000000"),
        (UNIX, 13, "0d000000 6b 0300 0000 02000000"),
        (PLAIN, 11, "0b000000 6b 0300 0200 4e6f"),
    ],
)
def test_errors_fit_into_the_least_room(dialect: Dialect, nbytes: int, reply: str) -> None:
    assert dialect.error_nbytes == nbytes
    assert dialect.error(3, 2, nbytes) == bytes.fromhex(reply)
    assert dialect.unix is (dialect is UNIX)


def test_the_first_dialect_is_spoken_before_a_session() -> None:
    assert DIALECTS[0] is LINUX
    table = table_without_session(DIALECTS)
    assert [number for number in range(256) if table[number].number == number] == [c.TVERSION, c.TFLUSH]
    assert table[c.TSTAT] is table[c.TGETATTR] is not table[1]
