"""What a broken or hostile guest can send: an errno or DEVICE_NEEDS_RESET, and nothing else happens.

After every test the device is reset and must work again; nothing outside the export may have changed, no descriptor may
have leaked, and no exception may have left the device's entry points (it would fail the test).
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.errors import DeviceError, MessageError
from pyvirtfs.guest import Request
from pyvirtfs.guest.session import Sent
from pyvirtfs.p9 import Limits, frames
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.messages import MESSAGES, REQUESTS
from pyvirtfs.p9.results import LockRange
from pyvirtfs.testing import Pair, check_descriptors, pair


def snapshot(folder: Path) -> dict[str, tuple[int, int, int, int, bytes]]:
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path)] = (status.st_mode, status.st_uid, status.st_mtime_ns, status.st_nlink, content)
    return found


@pytest.fixture
def export(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "file").write_bytes(b"Hi Guest")
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("../sentinel/secret")
    sentinel = tmp_path / "sentinel"
    sentinel.mkdir()
    (sentinel / "secret").write_bytes(b"not for the guest")
    before = snapshot(sentinel)
    yield folder
    assert snapshot(sentinel) == before
    assert sorted(os.listdir(tmp_path)) == ["export", "sentinel"]


@pytest.fixture
def stack(export: Path) -> Iterator[Pair]:
    yield from _stack(export)


def _stack(export: Path, **options: Any) -> Iterator[Pair]:
    with check_descriptors(), pair(f"local,path={export},security_model=none", timeout=0.5, **options) as both:
        yield both
        both.remount()
        for _ in range(2):
            assert both.mount.path("file").read_bytes() == b"Hi Guest"
        assert both.session.client.fids == {both.mount.root_fid}


def send(stack: Pair, message: bytes, room: int = 4096) -> tuple[int, bytes] | None:
    """Send raw bytes; the type and body of the reply, or None if the device needs a reset."""
    counters = stack.channel.driver.counters
    before = counters.config_interrupts
    try:
        request = stack.channel.wait(stack.channel.submit(message, room))
    except DeviceError:
        assert stack.channel.driver.needs_reset
        assert counters.config_interrupts == before + 1
        return None
    reply = request.reply()
    size, kind, _ = struct.unpack_from("<IBH", reply)
    assert size == request.nbytes == len(reply)
    return kind, reply[7:]


def error_of(answer: tuple[int, bytes] | None) -> int | None:
    assert answer is not None
    return int.from_bytes(answer[1], "little") if answer[0] == c.RLERROR else None


def needs_reset(stack: Pair) -> bool:
    stack.channel.deliver()
    return stack.channel.broken is not None


def message_of(stack: Pair, name: str, fields: dict[str, Any], tag: int = 3) -> bytes:
    return frames.build(name, tag, fields)


@pytest.mark.parametrize("nbytes", range(7))
def test_message_without_a_whole_header(stack: Pair, nbytes: int) -> None:
    buffer = stack.mount.allocate(64)
    buffer.write(0, struct.pack("<IBH", 7, c.TCLUNK, 1))
    readable = [(buffer.address, nbytes)] if nbytes else []
    stack.channel.submit_ranges(readable, [(buffer.address + 32, 32)], Request(b"", buffer, buffer, 32))
    assert needs_reset(stack)


@pytest.mark.parametrize("room", range(7))
def test_no_room_for_a_header(stack: Pair, room: int) -> None:
    message = message_of(stack, "Tgetattr", {"fid": 0, "request_mask": 0x7FF})
    buffer = stack.mount.allocate(64)
    buffer.write(0, message)
    writable = [(buffer.address + 32, room)] if room else []
    stack.channel.submit_ranges([(buffer.address, len(message))], writable, Request(message, buffer, buffer, room))
    assert needs_reset(stack)


def fields_of(stack: Pair) -> dict[str, dict[str, Any]]:
    """For each request, fields with which it works."""
    session = stack.session
    file, folder, opened, listing, link = (
        session.walk(stack.mount.root_fid, names) for names in ([b"file"], [b"folder"], [b"file"], [], [b"link"])
    )
    session.run(session.client.lopen(opened, c.DOTL_RDWR))
    session.run(session.client.lopen(listing))
    lock = {"fid": opened, "type": 1, "start": 0, "length": 0, "proc_id": 1, "client_id": b"me"}
    return {
        "Tversion": {"msize": 8192, "version": b"9P2000.L"},
        "Tauth": {"afid": 90, "uname": b"", "aname": b"", "n_uname": 0},
        "Tattach": {"fid": 91, "afid": c.NOFID, "uname": b"", "aname": b"", "n_uname": 0},
        "Tflush": {"oldtag": 77},
        "Twalk": {"fid": stack.mount.root_fid, "newfid": 92, "wnames": [b"folder"]},
        "Tclunk": {"fid": folder},
        "Tremove": {"fid": folder},
        "Tlopen": {"fid": file, "flags": 2},
        "Tlcreate": {"fid": folder, "name": b"new", "flags": 0o102, "mode": 0o644, "gid": 0},
        "Tread": {"fid": opened, "offset": 0, "count": 8},
        "Twrite": {"fid": opened, "offset": 0, "count": 4, "data": b"BAD!"},
        "Treaddir": {"fid": listing, "offset": 0, "count": 512},
        "Tfsync": {"fid": opened, "datasync": 0},
        "Tlock": {**lock, "flags": 0},
        "Tgetlock": lock,
        "Tgetattr": {"fid": file, "request_mask": 0x7FF},
        "Tsetattr": {"fid": file, "valid": 1, "mode": 0, "uid": 0, "gid": 0, "size": 0, "atime_sec": 0, "atime_nsec": 0,
                     "mtime_sec": 0, "mtime_nsec": 0},
        "Tstatfs": {"fid": file},
        "Txattrwalk": {"fid": file, "newfid": 93, "name": b""},
        "Txattrcreate": {"fid": file, "name": b"user.new", "attr_size": 4, "flags": 0},
        "Tsymlink": {"dfid": folder, "name": b"new", "symtgt": b"x", "gid": 0},
        "Tmknod": {"dfid": folder, "name": b"new", "mode": stat.S_IFREG | 0o644, "major": 0, "minor": 0, "gid": 0},
        "Tmkdir": {"dfid": folder, "name": b"new", "mode": 0o755, "gid": 0},
        "Tlink": {"dfid": folder, "fid": file, "name": b"new"},
        "Treadlink": {"fid": link},
        "Trename": {"fid": file, "dfid": folder, "name": b"new"},
        "Trenameat": {"olddirfid": stack.mount.root_fid, "oldname": b"file", "newdirfid": folder, "newname": b"new"},
        "Tunlinkat": {"dirfid": stack.mount.root_fid, "name": b"file", "flags": 0},
    }  # fmt: skip


NAMES = [message.name for message in REQUESTS]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "Tauth"])  # which is only ever an error
def test_reply_room_is_too_small(stack: Pair, export: Path, name: str) -> None:
    """For each message: first find out how large its reply is, then offer one byte less; nothing may have been done."""
    fields = fields_of(stack)[name]
    whole = send(stack, message_of(stack, name, fields))
    assert whole is not None
    assert whole[0] != c.RLERROR, f"{name}: errno {error_of(whole)}"
    need = 7 + len(whole[1])
    for room in {need - 1, 7, 11} - {need}:
        if room >= need:
            continue
        restore(export)
        stack.remount()
        fields = fields_of(stack)[name]
        before = snapshot(export)
        answer = send(stack, message_of(stack, name, fields), room)
        if answer is not None and name not in {"Tread", "Treaddir"}:
            assert answer[0] == c.RLERROR
        assert snapshot(export) == before
    restore(export)


def restore(export: Path) -> None:
    for path in sorted(export.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        elif path.name != "link":
            path.unlink()
    (export / "file").write_bytes(b"Hi Guest")
    (export / "folder").mkdir()


@pytest.mark.parametrize("name", NAMES)
def test_truncated_body(stack: Pair, export: Path, name: str) -> None:
    """Fewer readable bytes than the fields need, with a size that says so and with one that lies: no answer."""
    whole = message_of(stack, name, fields_of(stack)[name])
    if len(whole) == 7:
        pytest.skip("it has no body")
    before = snapshot(export)
    for cut in sorted({7, len(whole) // 2, len(whole) - 1}):
        for size in (cut, len(whole)):
            if stack.channel.broken:
                stack.remount()
            answer = send(stack, struct.pack("<I", size) + whole[4:cut])
            assert answer is None, (name, cut, size)
            assert snapshot(export) == before


@pytest.mark.parametrize("size", [0, 6, 7, 10, 12, 100, 0x7FFFFFFF, 0xFFFFFFFF])
def test_size_field_lies(stack: Pair, size: int) -> None:
    assert error_of(send(stack, struct.pack("<IBHI", 11, c.TCLUNK, 1, 999))) == errno.ENOENT
    assert send(stack, struct.pack("<IBHI", size, c.TCLUNK, 1, 999)) is None


def test_readable_bytes_behind_the_message_are_ignored(stack: Pair) -> None:
    message = message_of(stack, "Tgetattr", {"fid": stack.mount.root_fid, "request_mask": 0x7FF})
    exact, answer = send(stack, message), send(stack, message + bytes(100))
    assert exact == answer
    assert answer is not None
    assert answer[0] == c.RGETATTR


FOUR_BYTES = {  # a fid, and the type of the reply or the errno
    (c.TSTATFS, 0): c.RSTATFS, (c.TSTATFS, c.NOFID): -errno.ENOENT,
    (c.TREADLINK, 0): -errno.EINVAL, (c.TREADLINK, c.NOFID): -errno.ENOENT,
    (c.TCLUNK, 0): c.RCLUNK, (c.TCLUNK, c.NOFID): -errno.ENOENT,
    (c.TREMOVE, 0): -errno.EBUSY, (c.TREMOVE, c.NOFID): -errno.EINVAL,
}  # fmt: skip


def outcome(message: bytes) -> int | None:
    """What becomes of a message: the type of its reply, -errno, or None for a reset.

    By the declarations, which the device does not parse with: a request that cannot be read, or goes on behind its
    fields, has no answer; one that can be read works, and what is no request (a reply, too) is not known.
    """
    kind, fid = message[4], int.from_bytes(message[7:11], "little")
    if kind in MESSAGES and not kind & 1:
        try:
            frames.parse(message)
        except MessageError:
            return None
    return FOUR_BYTES.get((kind, fid), -errno.EOPNOTSUPP)


def test_every_type_with_every_kind_of_body(stack: Pair, export: Path) -> None:
    before = snapshot(export)
    for kind in range(256):
        for body in (b"", bytes(4), b"\xff" * 4, b"\xff" * 300):
            if stack.channel.broken:
                stack.remount()
            message = struct.pack("<IBH", 7 + len(body), kind, 1) + body
            answer = send(stack, message)
            number = error_of(answer) if answer is not None else None
            got = None if answer is None else answer[0] if number is None else -number
            assert got == outcome(message), (kind, body)
    assert snapshot(export) == before


@pytest.mark.parametrize(("said", "present"), [(17, 17), (0xFFFF, 0), (3, 2), (1, 0), (2, 3)])
def test_walk_count_lies(stack: Pair, said: int, present: int) -> None:
    """More names than 9P allows are an error; a count that does not fit the message makes it unreadable."""
    body = struct.pack("<IIH", 0, 50, said) + b"\x01\0." * present
    answer = send(stack, struct.pack("<IBH", 7 + len(body), c.TWALK, 1) + body)
    if said == present:
        assert error_of(answer) == errno.EINVAL
    else:
        assert answer is None


@pytest.mark.parametrize("count", [0, 3, 5, 1 << 16, 1 << 31, (1 << 32) - 24, (1 << 32) - 1])
def test_write_count_lies(stack: Pair, export: Path, count: int) -> None:
    fid = fields_of(stack)["Twrite"]["fid"]
    body = struct.pack("<IQI", fid, 0, count) + b"data"
    assert send(stack, struct.pack("<IBH", 7 + len(body), c.TWRITE, 1) + body) is None
    assert (export / "file").read_bytes() == b"Hi Guest"


# --- names ---

BAD_NAMES = [b"", b".", b"..", b"/", b"a/b", b"../sentinel", b"/etc", b"a\0b", b"..\0", b"x" * 256, b"x" * 65535]
TAKES_NAME: dict[str, str] = {
    "Tlcreate": "name", "Tsymlink": "name", "Tmknod": "name", "Tmkdir": "name", "Tlink": "name", "Trename": "name",
    "Trenameat": "newname", "Tunlinkat": "name",
}  # fmt: skip


def expected_errnos(message: str, name: bytes) -> set[int]:
    """By the ledger of QEMU's errors."""
    if name == b"" or b"/" in name:
        return {errno.ENOENT}
    if b"\0" in name:
        return {errno.ENOENT, errno.EINVAL}
    if name in {b".", b".."}:
        if message in {"Trename", "Trenameat"}:
            return {errno.EISDIR}
        if message == "Tunlinkat":
            return {errno.EINVAL} if name == b"." else {errno.ENOTEMPTY}
        return {errno.EEXIST}
    return {errno.ENAMETOOLONG}


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name[:12]))
@pytest.mark.parametrize("message", TAKES_NAME)
def test_bad_name(stack: Pair, export: Path, message: str, name: bytes) -> None:
    fields = {**fields_of(stack)[message], TAKES_NAME[message]: name}
    before = snapshot(export)
    assert error_of(send(stack, message_of(stack, message, fields))) in expected_errnos(message, name)
    assert snapshot(export) == before
    if message == "Trenameat":
        fields = {**fields, "oldname": name, "newname": b"new"}
        assert error_of(send(stack, message_of(stack, message, fields))) in expected_errnos(message, name)


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name[:12]))
def test_bad_name_in_a_walk(stack: Pair, name: bytes) -> None:
    for names in ([name], [b"folder", name], [b"link", name], [name, b"secret"]):
        fields = {"fid": stack.mount.root_fid, "newfid": 50, "wnames": names}
        answer = send(stack, message_of(stack, "Twalk", fields))
        assert answer is not None
        if answer[0] == c.RWALK and struct.unpack_from("<H", answer[1])[0] == len(names):
            assert name in {b".", b".."}
            attributes = stack.session.run(stack.session.client.getattr(50))
            assert stat.S_ISDIR(attributes.mode)
            root = stack.session.run(stack.session.client.getattr(stack.mount.root_fid)).qid
            folder = stack.mount.path("folder").stat().st_ino
            assert attributes.qid.path in {root.path, folder}
            stack.session.call("Tclunk", fid=50)


def test_a_symbolic_link_is_never_followed(stack: Pair) -> None:
    session = stack.session
    assert error_of(send(stack, message_of(stack, "Twalk", {"fid": 0, "newfid": 60, "wnames": [b"link", b""]}))) == 2
    for name in (b"x", b"..", b"secret"):
        answer = send(stack, message_of(stack, "Twalk", {"fid": 0, "newfid": 60, "wnames": [b"link", name]}))
        assert answer is not None
        assert answer[0] == c.RWALK
        assert answer[1][:3] == b"\1\0" + bytes([c.QTSYMLINK])  # as far as the link, so there is no new fid
    fid = session.walk(stack.mount.root_fid, [b"link"])
    for flags in (c.DOTL_RDONLY, c.DOTL_RDWR | c.DOTL_TRUNC):
        with pytest.raises(OSError, match="No such device") as caught:
            session.run(session.client.lopen(fid, flags))
        assert caught.value.errno == errno.ENXIO
    with pytest.raises(OSError, match=r"symbolic links") as caught:
        stack.session.run(session.client.lcreate(session.walk(0), b"link", c.DOTL_WRONLY | c.DOTL_CREATE, 0o644, 0))
    assert caught.value.errno == errno.ELOOP


# --- fids, tags, offsets ---


@pytest.mark.parametrize("fid", [95, 0x7FFFFFFF, 0xFFFFFFFE, c.NOFID])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in {"Tversion", "Tauth", "Tattach", "Tflush"}])
def test_unknown_fid(stack: Pair, name: str, fid: int) -> None:
    fields = fields_of(stack)[name]
    key = next(key for key in ("fid", "dfid", "dirfid", "olddirfid") if key in fields)
    einval = {"Tread", "Twrite", "Treaddir", "Tsymlink", "Tsetattr", "Tremove", "Tunlinkat", "Txattrcreate"}
    expected = errno.EINVAL if name in einval else errno.ENOENT
    assert error_of(send(stack, message_of(stack, name, {**fields, key: fid}))) == expected


def test_fid_misused(stack: Pair) -> None:
    fields, session = fields_of(stack), stack.session
    opened, file = fields["Tread"]["fid"], fields["Tgetattr"]["fid"]
    misuses: list[tuple[int, Callable[[], object]]] = [
        (errno.EINVAL, lambda: session.call("Twalk", fid=0, newfid=file, wnames=[])),  # in use
        (errno.EINVAL, lambda: session.call("Twalk", fid=opened, newfid=opened, wnames=[b".."])),  # open
        (errno.EINVAL, lambda: session.call("Tattach", **{**fields["Tattach"], "fid": file})),
        (errno.EINVAL, lambda: session.call("Txattrwalk", fid=file, newfid=opened, name=b"")),
        (errno.EINVAL, lambda: session.call("Tlopen", fid=opened, flags=0)),
        (errno.EINVAL, lambda: session.call("Tread", fid=file, offset=0, count=8)),
        (errno.EINVAL, lambda: session.call("Twrite", fid=file, offset=0, data=b"x")),
        (errno.EINVAL, lambda: session.call("Treaddir", fid=file, offset=0, count=500)),
        (errno.EOPNOTSUPP, lambda: session.call("Tread", fid=fields["Treaddir"]["fid"], offset=0, count=500)),
        (errno.EINVAL, lambda: session.call("Txattrcreate", fid=opened, name=b"user.x", attr_size=1, flags=0)),
        (errno.EINVAL, lambda: session.call("Txattrcreate", fid=file, name=b"user.x", attr_size=1, flags=4)),
        (errno.E2BIG, lambda: session.call("Txattrcreate", fid=file, name=b"user.x", attr_size=65537, flags=0)),
        (errno.EINVAL, lambda: session.call("Tunlinkat", dirfid=0, name=b"file", flags=1)),
        (errno.EINVAL, lambda: session.call("Tlock", **{**fields["Tlock"], "flags": 4})),
    ]
    for number, misuse in misuses:
        with pytest.raises(OSError, match=r".*") as caught:
            misuse()
        assert caught.value.errno == number


@pytest.mark.parametrize("offset", [2**31, 2**32, 2**63 - 8, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1])
def test_offsets_near_the_end_of_the_world(stack: Pair, export: Path, offset: int) -> None:
    fields = fields_of(stack)
    opened, listing, file = fields["Tread"]["fid"], fields["Treaddir"]["fid"], fields["Tgetattr"]["fid"]
    read = send(stack, message_of(stack, "Tread", {"fid": opened, "offset": offset, "count": 8}))
    assert read is not None
    assert error_of(read) is not None or read[1] == bytes(4)
    write = send(stack, message_of(stack, "Twrite", {"fid": opened, "offset": offset, "count": 4, "data": b"data"}))
    assert write is not None
    if error_of(write) is None:
        assert offset < 2**63
        assert (export / "file").stat().st_size == offset + 4
        os.truncate(export / "file", 8)
    assert send(stack, message_of(stack, "Treaddir", {"fid": listing, "offset": offset, "count": 500})) is not None
    for length in (0, 1, 2**63, 2**64 - 1):
        for kind in (0, 1, 2):
            lock = {**fields["Tlock"], "start": offset, "length": length, "type": kind}
            assert send(stack, message_of(stack, "Tlock", lock)) is not None
            del lock["flags"]
            assert send(stack, message_of(stack, "Tgetlock", lock)) is not None
    huge = {**fields["Tsetattr"], "valid": c.SETATTR_SIZE, "size": offset}
    answer = send(stack, message_of(stack, "Tsetattr", huge))
    assert answer is not None
    assert error_of(answer) in {None, errno.EFBIG, errno.EINVAL}
    os.truncate(export / "file", 0)
    (export / "file").write_bytes(b"Hi Guest")
    attribute = send(stack, message_of(stack, "Txattrwalk", {"fid": file, "newfid": 70, "name": b""}))
    assert error_of(attribute) is None
    assert send(stack, message_of(stack, "Tread", {"fid": 70, "offset": offset, "count": 8})) == (c.RREAD, bytes(4))


@pytest.mark.parametrize("count", [0, 1, 23, 24, 4085, 4086, 2**31, 2**32 - 12, 2**32 - 1])
def test_counts(stack: Pair, count: int) -> None:
    fields = fields_of(stack)
    for name in ("Tread", "Treaddir"):
        if stack.channel.broken:
            stack.remount()
            fields = fields_of(stack)
        answer = send(stack, message_of(stack, name, {**fields[name], "count": count}))
        assert answer is not None
        if name == "Treaddir" and count <= 24:  # the first entry does not fit, and 0 bytes would mean the end
            assert error_of(answer) == errno.EINVAL
        else:
            assert error_of(answer) is None
            (said,) = struct.unpack_from("<I", answer[1])
            assert said == len(answer[1]) - 4 <= min(count, 4096 - 11)
            assert said == min(count, 8) if name == "Tread" else said > 0


def test_two_requests_with_one_tag(stack: Pair) -> None:
    message = message_of(stack, "Tgetattr", {"fid": stack.mount.root_fid, "request_mask": 0x7FF})
    requests = [stack.channel.submit(message, 4096, kick=False) for _ in range(2)]
    stack.channel.queue.kick()
    for request in requests:
        assert stack.channel.wait(request).nbytes == 160  # the first was answered before the second was read


def test_notag_for_what_is_no_version(stack: Pair) -> None:
    message = message_of(stack, "Tgetattr", {"fid": 0, "request_mask": 1}, tag=c.NOTAG)
    answer = send(stack, message)
    assert answer is not None
    assert answer[0] == c.RGETATTR  # a tag like any other


def test_flush_of_itself_and_of_everything(stack: Pair) -> None:
    for tag in (3, 0, 1, c.NOTAG):
        assert send(stack, message_of(stack, "Tflush", {"oldtag": tag})) == (c.RFLUSH, b"")


# --- one guest cannot exhaust the host ---


def test_caps(export: Path) -> None:
    limits = Limits(fids=20, xattr_bytes=100_000, locks=5)
    with check_descriptors(), pair(f"local,path={export},security_model=none", limits=limits) as both:
        session = both.session
        fids = [session.walk(both.mount.root_fid, [b"file"]) for _ in range(19)]
        with pytest.raises(OSError, match="Too many open files in system"):
            session.walk(both.mount.root_fid)
        for fid in fids[2:]:
            session.clunk(fid)

        session.run(session.client.xattrcreate(fids[0], b"user.a", 65536))
        with pytest.raises(OSError, match="memory"):
            session.run(session.client.xattrcreate(fids[1], b"user.b", 65536))
        with pytest.raises(OSError, match="Invalid"):
            session.clunk(fids[0])  # it was never filled

        session.run(session.client.lopen(fids[1], c.DOTL_RDWR))
        statuses = []
        for i in range(8):
            call = session.client.lock(fids[1], LockRange(c.LOCK_TYPE_WRLCK, 10 * i, 5, 1, b"me"))
            try:
                statuses.append(session.run(call))
            except OSError as error:
                statuses.append(-(error.errno or 0))
        assert statuses[:5] == [c.LOCK_SUCCESS] * 5
        assert set(statuses[5:]) <= {c.LOCK_ERROR, -errno.ENOLCK}
        both.remount()
        assert both.mount.path("file").read_bytes() == b"Hi Guest"


def test_requests_in_flight_when_the_device_breaks(stack: Pair) -> None:
    session = stack.session
    sent: list[Sent[Any]] = [session.start(session.client.getattr(stack.mount.root_fid), kick=False) for _ in range(10)]
    stack.channel.submit(b"bad", 4096, kick=False)
    behind = session.start(session.client.getattr(stack.mount.root_fid))
    for one in sent:
        stack.channel.deliver()
        assert one.done
    with pytest.raises(DeviceError, match="needs a reset"):
        session.finish(behind)
