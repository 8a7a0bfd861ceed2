"""The server in 9P2000 and 9P2000.u: whatever bytes come, the answer is one of the dialect, or MessageError."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvirtfs.errors import MessageError
from pyvirtfs.p9 import codec, frames
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.messages import Message

if TYPE_CHECKING:
    from collections.abc import Callable

Peer: TypeAlias = Any
Export: TypeAlias = Any

CODERS = [codec.UNIX, codec.PLAIN]
NAMES = [coder.vocabulary.version.decode() for coder in CODERS]


@pytest.fixture(params=CODERS, ids=NAMES)
def older(request: pytest.FixtureRequest, make_peer: Callable[..., Peer]) -> Peer:
    return make_peer().version(coder=request.param).attach()


def answer(peer: Peer, frame: bytes, room: int = 8192) -> int | None:
    """The type of the reply, which must be one of the dialect; None: a MessageError."""
    try:
        token = peer.submit(frame, room)
    except MessageError:
        return None
    reply = frames.parse(peer.raw_reply(token), vocabulary=peer.coder.vocabulary)
    assert reply.message.type in {frame[4] + 1, c.RERROR}
    return reply.message.type


def test_every_type_survives_every_body(older: Peer) -> None:  # H119
    known = {message.type for message in older.coder.vocabulary.requests} - {c.TVERSION}
    for kind in set(range(256)) - {c.TVERSION}:
        for body in (b"", b"\0", b"\xff" * 3, b"\0" * 40, b"\xff" * 40, b"\0" * 7000):
            frame = struct.pack("<IBH", 7 + len(body), kind, 1) + body
            replied = answer(older, frame)
            if kind not in known:
                assert replied == c.RERROR
                assert older.reply(older.submit(frame))[1][0] == b"Operation not supported"


def test_messages_of_9p2000_l_are_unknown(older: Peer) -> None:
    for kind, fields in ((c.TGETATTR, (0, 0x7FF)), (c.TLOPEN, (0, 0)), (c.TREADDIR, (0, 0, 100)), (c.TSTATFS, (0,))):
        token = older.submit(codec.encode(kind, 1, *fields))
        assert older.reply(token)[1][0] == b"Operation not supported"


def sample(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = dict.fromkeys(message.fields, 0)
    texts = ("version", "uname", "aname", "name", "uid", "gid", "muid", "extension")
    fields |= {name: b"file" for name in texts if name in fields}
    if "qid" in fields:
        fields["qid"] = (0, 0, 0)
    if "wnames" in fields:
        fields["wnames"] = [b"file"]
    if "data" in fields:
        fields |= {"count": 4, "data": b"data"}
    return fields


@pytest.mark.parametrize(
    ("coder", "message"),
    [(coder, message) for coder in CODERS for message in coder.vocabulary.requests if message.type != c.TVERSION],
    ids=[f"{n}-{m.name}" for n, coder in zip(NAMES, CODERS, strict=True) for m in coder.vocabulary.requests[1:]],
)
def test_cut_and_extended_messages(make_peer: Callable[..., Peer], coder: codec.Codec, message: Message) -> None:
    """H119, H137: a message that is shorter or longer than its fields is malformed, and nothing happens."""
    peer = make_peer().version(coder=coder).attach()
    good = frames.build(message.name, 1, sample(message), vocabulary=coder.vocabulary)
    calls = len(peer.export.calls)
    for nbytes in range(7, len(good)):
        assert answer(peer, struct.pack("<I", nbytes) + good[4:nbytes]) is None
        assert answer(peer, good[:nbytes]) is None
    assert answer(peer, struct.pack("<I", len(good) + 1) + good[4:] + b"\0") is None
    assert len(peer.export.calls) == calls
    assert answer(peer, good) is not None


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_messages(make_peer: Callable[..., Peer], make_export: Any, data: st.DataObject) -> None:
    coder = data.draw(st.sampled_from(CODERS))
    export = make_export()
    export.add("file", b"content")
    peer = make_peer(export).version(coder=coder).attach()
    peer.walk(0, 1, b"file")
    for _ in range(20):
        message = data.draw(st.sampled_from(coder.vocabulary.requests[1:]))
        frame = bytearray(frames.build(message.name, 1, sample(message), vocabulary=coder.vocabulary))
        for _ in range(data.draw(st.integers(0, 4))):
            # Not the offset of a write: the export would fill what is before it with zeros.
            first = 7 if message.name != "Twrite" else 19
            frame[data.draw(st.integers(first, len(frame) - 1))] = data.draw(st.integers(0, 255))
        answer(peer, bytes(frame))
    assert not peer.export.broken
    assert peer.server.fids == len(peer.export.nodes)


@pytest.mark.parametrize(("coder", "least"), [(codec.UNIX, 13), (codec.PLAIN, 11)], ids=NAMES)
def test_errors_fit_whatever_room_there_is(make_peer: Callable[..., Peer], coder: codec.Codec, least: int) -> None:
    peer = make_peer().version(coder=coder).attach()  # H140
    frame = coder.encode(c.TCLUNK, 1, 99)
    whole = b"No such file or directory"
    for room in range(7, 60):
        if room < least:
            assert answer(peer, frame, room) is None
            continue
        text = peer.reply(peer.submit(frame, room))[1][0]
        assert text == whole[: room - least + (2 if coder is codec.PLAIN else 0)]


@pytest.mark.parametrize("code", [*range(1, 134), 511, 4095])
def test_hosts_errors_have_a_text_and_the_number(older: Peer, code: int) -> None:  # H140
    older.export.failing["getattr"] = OSError(code, "x" * 300)
    number, values = older.reply(older.send(c.TSTAT, 0))
    told = errno.EIO if code == errno.EINTR else code
    assert number == c.RERROR
    assert 0 < len(values[0]) < 128
    assert values[0].isascii()
    if older.coder is codec.UNIX:
        assert values[1] == told


def test_replies_fit_the_buffers_of_linux(older: Peer, export: Export) -> None:  # H139
    """Since Linux 6.1 a reply has as much room as it can need, mostly less than msize (net/9p/client.c)."""
    export.add("n" * 255, b"").target = b"t" * 4000
    export.root.entries[b"n" * 255].mode = 0o120777
    older.walk(0, 1, b"n" * 255)
    assert len(older.raw_reply(older.send(c.TSTAT, 1, room=8192))) < 8192
    older.walk(0, 2)
    older.call(c.TOPEN, 2, c.OREAD, room=4096)
    data = b""
    while part := older.read(2, len(data), 4597, room=4608):
        data += part
    assert b"n" * 255 in data
    assert older.call(c.TWALK, 0, 3, (b"folder", b"inner"), room=35)
    assert older.reply(older.send(c.TCLUNK, 77, room=135))[1][0] == b"No such file or directory"


def test_renames_and_their_readers_take_turns(make_peer: Callable[..., Peer], export: Export) -> None:  # H024
    """A file is renamed to and fro by answers that come late, while it is looked at, listed and joined by others."""
    peer = make_peer().version(coder=codec.UNIX).attach()
    peer.walk(0, 1, b"folder", b"inner")
    peer.walk(0, 2, b"folder")
    peer.call(c.TOPEN, 2, c.OREAD)
    ones = 0xFFFFFFFF
    for turn in range(30):
        export.later = {"rename", "walk", "getattr", "place", "readdir"}
        name = b"inner" if turn % 2 else b"other"
        untouched = (0, 0, 0xFFFF, ones, (0xFF, ones, 2**64 - 1), ones, ones, ones, 2**64 - 1)
        rename = peer.send(c.TWSTAT, 1, *untouched, name, b"", b"", b"", b"", ones, ones, ones, tag=1)
        tokens = [
            rename,
            peer.send(c.TSTAT, 1, tag=2),
            peer.send(c.TREAD, 2, 0, 4000, tag=3),
            peer.send(c.TWALK, 0, 5, (b"folder", b"inner"), tag=4),
        ]
        step = 0
        while export.waiting:
            step += turn
            peer.finish(step % len(export.waiting))
        kinds = [peer.reply(token)[0] for token in tokens]
        assert kinds[:3] == [c.RWSTAT, c.RSTAT, c.RREAD]
        export.later = set()
        if peer.server.fids == 4:
            peer.call(c.TCLUNK, 5)
        assert list(export.find("folder").entries) == [name]
        assert len(export.nodes) == 3


def test_traces_are_in_the_dialect(make_peer: Callable[..., Peer]) -> None:
    lines: list[str] = []
    peer = make_peer(trace=lines.append).version(coder=codec.PLAIN).attach()
    peer.walk(0, 1, b"file")
    del lines[:]
    peer.call(c.TOPEN, 1, c.ORDWR, tag=7)
    peer.send(c.TCLUNK, 9, tag=7)
    assert lines == [
        "Topen tag=7 fid=1 mode=ORDWR",
        f"Ropen tag=7 qid=(file {peer.export.find('file').ino:#x}.1) iounit=4096",
        "Tclunk tag=7 fid=9",
        'Rerror tag=7 ename="No such file or directory"',
    ]


def test_a_driver_that_fails_is_named_with_the_request(
    make_peer: Callable[..., Peer], caplog: pytest.LogCaptureFixture
) -> None:
    peer = make_peer().version(coder=codec.UNIX).attach()
    peer.export.failing["getattr"] = ValueError("a bug")
    assert peer.error(c.TSTAT, 0) == errno.EIO
    assert "broke its contract in a Tstat" in caplog.text


def test_interrupting_the_program_in_the_middle_of_steps(make_peer: Callable[..., Peer]) -> None:
    peer = make_peer().version(coder=codec.UNIX).attach()
    peer.export.failing["place"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        peer.send(c.TSTAT, 0)
    assert peer.error_of(len(peer.rooms) - 1) == errno.EIO
    peer.export.later = {"getattr"}
    token = peer.send(c.TSTAT, 0)
    with pytest.raises(KeyboardInterrupt):
        peer.finish()
    assert peer.error_of(token) == errno.EIO
    assert peer.server.busy == 0
