from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvirtfs.errors import DeviceError
from pyvirtfs.guest import Session
from pyvirtfs.guest.session import MAX_MSIZE
from pyvirtfs.p9 import constants as c
from pyvirtfs.testing import Pair, pair


@pytest.fixture
def both(export: Path) -> Iterator[Pair]:
    with pair(f"local,path={export},security_model=none") as both:
        yield both


def test_msize_is_what_the_transport_can_carry(both: Pair) -> None:
    session = Session(both.channel, msize=1 << 30)
    assert session.msize == MAX_MSIZE == 512_000
    assert session.max_io == 512_000 - 24
    both.remount(msize=4096)
    assert both.session.max_io == 4072
    with pytest.raises(OSError, match=r".*"):
        Session(both.channel, msize=4095)


def test_calls_by_name(both: Pair) -> None:
    answer = both.session.call("Tgetattr", fid=both.mount.root_fid, request_mask=c.GETATTR_BASIC)
    assert answer["mode"] == both.mount.root.stat().st_mode
    with pytest.raises(TypeError):
        both.session.call("Tgetattr", fid=0)
    assert both.session.counts["Tgetattr"] == 3


def test_partial_walks(both: Pair) -> None:
    with pytest.raises(FileNotFoundError):
        both.session.walk(both.mount.root_fid, [b"file", b"x"])
    fid, qids = both.session.try_walk(both.mount.root_fid, [b"file", b"x"])
    assert len(qids) == 1
    assert fid not in both.session.client.fids


def test_an_old_session_is_over(both: Pair) -> None:
    old = both.session
    new = Session(both.channel)
    with pytest.raises(DeviceError, match="session is over"):
        old.clunk(both.mount.root_fid)
    root = new.attach(uid=0)
    new.clunk(root)
    both.remount()


def test_finish_in_any_order(both: Pair) -> None:
    session = both.session
    sent = [session.start(session.client.walk(both.mount.root_fid, [b"file"])) for _ in range(30)]
    for one in reversed(sent):
        [qid] = session.finish(one)
        assert not qid.is_directory
    assert len(session.client.fids) == 31


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ((0, "<I", 12), "says that it has 12 bytes"),
        ((0, "<I", 10), "says that it has 10 bytes"),
        ((4, "<B", c.RCLUNK), "message type 121"),
        ((4, "<B", 255), "message type 255"),
        ((5, "<H", 77), "tag 77"),
    ],
)
def test_replies_that_cannot_be(both: Pair, change: tuple[int, str, int], problem: str) -> None:
    """What the device wrote is changed before the guest looks at it."""
    offset, form, value = change
    sent = both.session.start(both.session.client.fsync(99))
    both.channel.wait(sent.request)
    struct.pack_into(form, sent.request.reply_buffer.view, offset, value)
    with pytest.raises(DeviceError, match=problem):
        both.session.finish(sent)


def test_a_walk_that_finds_nothing_must_fail(both: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(both.session, "run", lambda _: ())
    with pytest.raises(DeviceError, match="no name was found"):
        both.session.try_walk(both.mount.root_fid, [b"file"])
