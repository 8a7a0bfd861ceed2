"""A call by itself; in a session: test_client."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest

from pyvirtfs.errors import DeviceError
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.call import Call


class Settled(list[tuple[Call[Any], bool]]):
    def __call__(self, call: Call[Any], answered: bool) -> None:
        self.append((call, answered))


def make(message_name: str = "Tgetattr", /, tag: int = 5, **fields: Any) -> tuple[Call[dict[str, Any]], Settled]:
    settled = Settled()
    fields = fields or {"fid": 1, "request_mask": 1}
    return Call(settled, message_name, tag, fields, 8192, lambda answer: answer), settled


def message(kind: int, body: bytes, tag: int = 5) -> bytes:
    return struct.pack("<IBH", 7 + len(body), kind, tag) + body


def test_no_result_before_the_reply() -> None:
    call, settled = make()
    assert call.request == message(c.TGETATTR, struct.pack("<IQ", 1, 1))
    with pytest.raises(RuntimeError, match="Tgetattr tag 5"):
        call.result()
    assert (call.done, call.failed, settled) == (False, False, [])


@pytest.mark.parametrize("code", [1, errno.ENOENT, 4095])
def test_an_errno_is_raised(code: int) -> None:
    call, settled = make()
    call.feed(message(c.RLERROR, struct.pack("<I", code)))
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        call.result()
    assert caught.value.errno == code
    assert call.failed
    assert settled == [(call, True)]


@pytest.mark.parametrize(
    "reply",
    [
        message(c.RLERROR, struct.pack("<I", 0)),
        message(c.RLERROR, struct.pack("<I", 4096)),
        message(c.RLERROR, struct.pack("<I", 2), tag=6),
        message(c.RCLUNK, b""),
        message(c.RGETATTR, b"short"),
        b"\x0c" + message(c.RLERROR, struct.pack("<I", 2))[1:],
        b"123456",
    ],
)
def test_what_is_no_reply_to_it(reply: bytes) -> None:
    call, settled = make()
    with pytest.raises(DeviceError):
        call.feed(reply)
    with pytest.raises(DeviceError):
        call.result()
    assert settled == [(call, True)]
    with pytest.raises(RuntimeError, match="answered already"):
        call.feed(reply)


def test_a_cancelled_call_takes_no_reply() -> None:
    call, settled = make()
    call.cancel()
    call.cancel()
    assert settled == [(call, False)]
    call.feed(b"")
    with pytest.raises(DeviceError, match="after it was over"):
        call.feed(message(c.RLERROR, struct.pack("<I", 2)))
    with pytest.raises(InterruptedError):
        call.result()


@pytest.mark.parametrize(
    ("name", "fields", "fid"),
    [
        ("Twalk", {"fid": 1, "newfid": 2, "wnames": []}, 2),
        ("Tclunk", {"fid": 3}, 3),
        ("Tmkdir", {"dfid": 4, "name": b"x", "mode": 0, "gid": 0}, 4),
        ("Tunlinkat", {"dirfid": 5, "name": b"x", "flags": 0}, 5),
        ("Tflush", {"oldtag": 6}, c.NOFID),
    ],
)
def test_the_fid_that_it_is_about(name: str, fields: dict[str, Any], fid: int) -> None:
    assert make(name, **fields)[0].fid == fid
