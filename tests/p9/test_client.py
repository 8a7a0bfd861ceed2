"""The client: what it sends, what it takes for an answer, which numbers it uses. The codec makes the replies."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyvirtfs.errors import DeviceError
from pyvirtfs.p9 import codec
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.call import Call, reply_size
from pyvirtfs.p9.client import Client
from pyvirtfs.p9.results import Attributes, DirectoryEntry, FileSystem, LockRange, Opened, Qid, Version

DIR = Qid(c.QTDIR, 1, 2)
FILE = Qid(c.QTFILE, 3, 4)


def answer(call: Call[Any], number: int, *fields: Any, data: bytes = b"") -> None:
    call.feed(codec.encode(number, call.tag, *fields) + data)


def fail(call: Call[Any], code: int) -> None:
    answer(call, c.RLERROR, code)


@pytest.fixture
def client() -> Client:
    made = Client()
    answer(made.version(), c.RVERSION, made.msize, b"9P2000.L")
    return made


@pytest.fixture
def root(client: Client) -> int:
    call = client.attach()
    answer(call, c.RATTACH, DIR)
    return call.fid


# --- the session ---


def test_version_uses_notag_and_takes_the_lower_msize() -> None:
    client = Client(msize=65536)
    call = client.version()
    assert codec.decode(call.request) == (c.TVERSION, c.NOTAG, (65536, b"9P2000.L"))
    answer(call, c.RVERSION, 8192, b"9P2000.L")
    assert call.result() == Version(8192, b"9P2000.L")
    assert client.msize == 8192
    assert client.max_payload == 8192 - 24


@pytest.mark.parametrize(("msize", "version"), [(8192, b"unknown"), (8192, b"9P2000.u"), (4095, b"9P2000.L")])
def test_version_without_agreement_is_eremoteio(msize: int, version: bytes) -> None:
    call = Client().version()
    answer(call, c.RVERSION, msize, version)
    with pytest.raises(OSError, match="server says") as caught:
        call.result()
    assert caught.value.errno == errno.EREMOTEIO


def test_version_may_not_raise_msize() -> None:
    call = Client(8192).version()
    with pytest.raises(DeviceError, match="msize"):
        answer(call, c.RVERSION, 8193, b"9P2000.L")


def test_a_new_session_forgets_everything(client: Client, root: int) -> None:
    waiting = client.getattr(root)
    answer(client.version(), c.RVERSION, client.msize, b"9P2000.L")
    assert waiting.done
    with pytest.raises(InterruptedError):
        waiting.result()
    assert client.fids == frozenset()
    assert client.calls == {}
    assert client.attach().tag == 0


# --- tags and fids ---


def test_numbers_are_the_lowest_free_ones(client: Client, root: int) -> None:
    assert root == 0
    first, second, third = (client.walk(root) for _ in range(3))
    assert [call.tag for call in (first, second, third)] == [0, 1, 2]
    assert [call.fid for call in (first, second, third)] == [1, 2, 3]
    fail(second, errno.ENOENT)
    assert client.fids == {0, 1, 3}
    again = client.walk(root, [b"a"])
    assert (again.tag, again.fid) == (1, 2)


def test_a_partial_walk_makes_no_fid(client: Client, root: int) -> None:
    call = client.walk(root, [b"a", b"b"])
    answer(call, c.RWALK, (DIR,))
    assert call.result() == (DIR,)
    assert client.fids == {root}


@pytest.mark.parametrize("code", [0, errno.EIO])
@pytest.mark.parametrize("name", ["clunk", "remove"])
def test_clunk_and_remove_free_the_fid_whatever_the_answer(client: Client, root: int, name: str, code: int) -> None:
    call = getattr(client, name)(root)
    if code:
        fail(call, code)
    else:
        answer(call, c.RCLUNK if name == "clunk" else c.RREMOVE)
    assert client.fids == frozenset()


def test_a_request_that_cannot_be_built_takes_no_numbers(client: Client, root: int) -> None:
    with pytest.raises(ValueError, match="Twalk"):
        client.walk(root, [bytes(65536)])
    with pytest.raises(TypeError):
        client.request("Tclunk", fid=0, flags=3)
    assert client.fids == {root}
    assert client.calls == {}
    assert client.getattr(root).tag == 0


def test_replies_find_their_calls_by_tag(client: Client, root: int) -> None:
    calls = [client.readlink(root) for _ in range(4)]
    for call in reversed(calls):
        assert client.receive(codec.encode(c.RREADLINK, call.tag, b"%d" % call.tag)) is call
    assert [call.result() for call in calls] == [b"0", b"1", b"2", b"3"]
    with pytest.raises(DeviceError, match="no request"):
        client.receive(codec.encode(c.RREADLINK, 2, b""))
    with pytest.raises(DeviceError, match="no request"):
        client.receive(b"123")


# --- flush ---


def test_flush_that_comes_too_late(client: Client, root: int) -> None:
    call = client.clunk(root)
    flush = client.flush(call)
    assert codec.decode(flush.request) == (c.TFLUSH, 1, (0,))
    answer(call, c.RCLUNK)
    assert call.result() is None
    assert client.attach().tag == 2  # 0 is not free before the Rflush
    answer(flush, c.RFLUSH)
    assert client.attach().tag == 0


def test_flush_that_ends_a_request(client: Client, root: int) -> None:
    call = client.walk(root)
    flushes = [client.flush(call), client.flush(call)]
    call.feed(b"")
    with pytest.raises(InterruptedError):
        call.result()
    assert client.fids == {root}
    answer(flushes[0], c.RFLUSH)
    assert {client.statfs(root).tag for _ in range(2)} == {1, 3}  # 0 is not free yet
    answer(flushes[1], c.RFLUSH)
    assert {client.statfs(root).tag for _ in range(3)} == {0, 2, 4}


def test_only_requests_in_flight_are_flushed(client: Client, root: int) -> None:
    call = client.walk(root)
    fail(call, errno.EIO)
    with pytest.raises(RuntimeError, match="done"):
        client.flush(call)
    other = client.getattr(root)
    answer(client.request("Tflush", oldtag=call.tag), c.RFLUSH)  # the same tag, but nobody meant this one
    assert not other.done


def test_rflush_ends_a_request_on_transports_that_have_no_empty_answer(client: Client, root: int) -> None:
    call = client.walk(root)
    answer(client.flush(call), c.RFLUSH)
    assert call.done
    assert call.cancelled
    assert client.calls == {}
    call.feed(b"")  # its chain may come back later
    with pytest.raises(DeviceError, match="over"):
        answer(call, c.RWALK, ())


def test_a_flush_that_is_flushed_says_nothing_of_the_first_request(client: Client, root: int) -> None:
    call = client.walk(root)
    flush = client.flush(call)
    answer(client.flush(flush), c.RFLUSH)
    assert flush.cancelled
    assert not call.done
    answer(call, c.RWALK, ())
    assert client.getattr(root).tag == 0


def test_an_empty_answer_without_flush_is_wrong(client: Client, root: int) -> None:
    with pytest.raises(DeviceError, match="nobody"):
        client.walk(root).feed(b"")
    assert client.calls == {}


# --- replies that are wrong ---


def test_errors_are_oserrors(client: Client, root: int) -> None:
    call = client.getattr(root)
    fail(call, errno.ENOENT)
    with pytest.raises(FileNotFoundError):
        call.result()
    assert call.failed


@pytest.mark.parametrize(
    "reply",
    [
        codec.encode(c.RCLUNK, 5),  # tag
        codec.encode(c.RREMOVE, 0),  # type
        codec.encode(c.TCLUNK, 0, 0),
        codec.encode(c.RCLUNK, 0) + b"\0",  # size
        codec.encode(c.RCLUNK, 0)[:6],
        struct.pack("<IBH", 8, c.RCLUNK, 0),
        struct.pack("<IBH", 8, c.RCLUNK, 0) + b"\0",  # body
        struct.pack("<IBH", 7, c.RLERROR, 0),
        struct.pack("<IBH", 7, 200, 0),
        codec.encode(c.RLERROR, 0, 0),  # no errno
        codec.encode(c.RLERROR, 0, 4096),
    ],
)
def test_wrong_replies_are_the_devices_fault(client: Client, root: int, reply: bytes) -> None:
    call = client.clunk(root)
    with pytest.raises(DeviceError):
        call.feed(reply)
    with pytest.raises(DeviceError):
        call.result()
    assert client.calls == {}


def test_no_reply_is_larger_than_its_room(client: Client, root: int) -> None:
    call = client.readlink(root)
    answer(call, c.RREADLINK, bytes(8192 - 9))
    with pytest.raises(DeviceError, match="room for 8192"):
        answer(client.readlink(root), c.RREADLINK, bytes(8192 - 8))


def test_no_more_bytes_than_asked(client: Client, root: int) -> None:
    with pytest.raises(DeviceError):
        answer(client.read(root, 0, 4), c.RREAD, 5, data=b"12345")
    with pytest.raises(DeviceError):
        answer(client.write(root, 0, b"1234"), c.RWRITE, 5)


@pytest.mark.parametrize(("names", "qids"), [(1, 0), (1, 2), (0, 1)])
def test_walks_get_at_least_one_qid_and_no_more_than_names(client: Client, root: int, names: int, qids: int) -> None:
    with pytest.raises(DeviceError):
        answer(client.walk(root, [b"x"] * names), c.RWALK, (DIR,) * qids)
    assert client.fids == {root}


def test_calls_are_answered_once(client: Client, root: int) -> None:
    call = client.fsync(root)
    with pytest.raises(RuntimeError, match="no reply yet"):
        call.result()
    answer(call, c.RFSYNC)
    with pytest.raises(RuntimeError, match="already"):
        answer(call, c.RFSYNC)


# --- reply room, payloads ---


@pytest.mark.parametrize(
    ("name", "fields", "msize", "room"),
    [
        ("Twalk", {"wnames": []}, 131072, 11),
        ("Twalk", {"wnames": [b""] * 16}, 131072, 217),
        ("Tread", {"count": 0}, 131072, 11),
        ("Tread", {"count": 4096}, 131072, 4107),
        ("Treaddir", {"count": 131048}, 131072, 131059),
        ("Treaddir", {"count": 131072}, 131072, 131072),
        ("Treadlink", {}, 131072, 8192),
        ("Treadlink", {}, 4096, 4096),
        ("Tgetattr", {}, 131072, 4096),
    ],
)
def test_reply_room_is_that_of_linux(name: str, fields: dict[str, Any], msize: int, room: int) -> None:
    assert reply_size(name, fields, msize) == room


def test_payload_of_a_write_stays_apart(client: Client, root: int) -> None:
    data = memoryview(bytes(1025))
    call = client.write(root, 7, data)
    assert call.payload is data
    assert call.zero_copy
    assert codec.decode(call.request) == (c.TWRITE, 0, (root, 7, 1025))
    assert len(call.request) == 23
    assert not client.write(root, 7, data[:1024]).zero_copy


def test_payload_of_a_read_may_stay_apart(client: Client, root: int) -> None:
    call = client.read(root, 0, 2000)
    data = memoryview(b"abc")
    call.feed(codec.encode(c.RREAD, 0, 3), data)
    assert call.result() is data
    call = client.read(root, 0, 2000)
    call.feed(codec.encode(c.RLERROR, 0, errno.EIO), memoryview(b""))
    with pytest.raises(OSError, match="Input/output"):
        call.result()
    with pytest.raises(DeviceError):
        client.read(root, 0, 2000).feed(codec.encode(c.RREAD, 0, 3), b"ab")


def test_raw_requests_give_raw_fields(client: Client, root: int) -> None:
    call = client.request("Twalk", fid=root, newfid=77, wnames=[b"a", b"b"])
    answer(call, c.RWALK, (DIR,))
    assert call.result() == {"wqids": (tuple(DIR),)}
    assert client.fids == {root}
    assert call.fid == 77
    call = client.request("Tread", fid=root, offset=0, count=3)
    answer(call, c.RREAD, 2, data=b"ab")
    assert call.result() == {"count": 2, "data": b"ab"}


# --- one test per method: the request's fields, the reply's fields, the result ---

LOCK = LockRange(c.LOCK_TYPE_WRLCK, 1, 2, 3, b"host")
ATTRIBUTES = (0x7FF, FILE, 0o100644, *range(5))
NOBODY = c.NONUNAME

METHODS: list[tuple[Callable[[Client], Call[Any]], int, tuple[Any, ...], tuple[Any, ...], Any]] = [
    (lambda p: p.attach(b"t", uname=b"u", uid=5), c.TATTACH, (1, c.NOFID, b"u", b"t", 5), (DIR,), DIR),
    (lambda p: p.walk(0, [b"a", b"b"]), c.TWALK, (0, 1, (b"a", b"b")), ((DIR, FILE),), (DIR, FILE)),
    (lambda p: p.lopen(0, 0o2), c.TLOPEN, (0, 2), (FILE, 9), Opened(FILE, 9)),
    (lambda p: p.lcreate(0, b"n", 2, 0o644, 5), c.TLCREATE, (0, b"n", 2, 0o644, 5), (FILE, 9), Opened(FILE, 9)),
    (lambda p: p.write(0, 7, b""), c.TWRITE, (0, 7, 0), (0,), 0),
    (lambda p: p.fsync(0, datasync=True), c.TFSYNC, (0, 1), (), None),
    (lambda p: p.lock(0, LOCK, 1), c.TLOCK, (0, 1, 1, 1, 2, 3, b"host"), (0,), c.LOCK_SUCCESS),
    (lambda p: p.getlock(0, LOCK), c.TGETLOCK, (0, 1, 1, 2, 3, b"host"), tuple(LOCK), LOCK),
    (lambda p: p.getattr(0), c.TGETATTR, (0, 0x7FF), (0x7FF, FILE, *range(18)), Attributes(0x7FF, FILE, *range(18))),
    (lambda p: p.setattr(0, mode=0o600), c.TSETATTR, (0, 1, 0o600, NOBODY, NOBODY, 0, 0, 0, 0, 0), (), None),
    (
        lambda p: p.setattr(0, uid=0, gid=5, size=0, atime_ns=-1, mtime_ns=10**9 + 2, also=c.SETATTR_CTIME),
        c.TSETATTR,
        (0, 0x1FE, 0, 0, 5, 0, -1, 999_999_999, 1, 2),
        (),
        None,
    ),
    (lambda p: p.setattr(0, also=c.SETATTR_ATIME), c.TSETATTR, (0, 0x10, 0, NOBODY, NOBODY, 0, 0, 0, 0, 0), (), None),
    (lambda p: p.statfs(0), c.TSTATFS, (0,), tuple(range(9)), FileSystem(*range(9))),
    (lambda p: p.xattrwalk(0, b"user.a"), c.TXATTRWALK, (0, 1, b"user.a"), (5,), 5),
    (lambda p: p.xattrcreate(0, b"user.a", 5, 1), c.TXATTRCREATE, (0, b"user.a", 5, 1), (), None),
    (lambda p: p.mkdir(0, b"n", 0o755, 5), c.TMKDIR, (0, b"n", 0o755, 5), (DIR,), DIR),
    (lambda p: p.symlink(0, b"n", b"t", 5), c.TSYMLINK, (0, b"n", b"t", 5), (FILE,), FILE),
    (lambda p: p.mknod(0, b"n", 0o20600, 5, major=1, minor=3), c.TMKNOD, (0, b"n", 0o20600, 1, 3, 5), (FILE,), FILE),
    (lambda p: p.link(0, 3, b"n"), c.TLINK, (0, 3, b"n"), (), None),
    (lambda p: p.readlink(0), c.TREADLINK, (0,), (b"t",), b"t"),
    (lambda p: p.rename(0, 3, b"n"), c.TRENAME, (0, 3, b"n"), (), None),
    (lambda p: p.renameat(0, b"o", 3, b"n"), c.TRENAMEAT, (0, b"o", 3, b"n"), (), None),
    (lambda p: p.unlinkat(0, b"n", 0x200), c.TUNLINKAT, (0, b"n", 0x200), (), None),
]


@pytest.mark.parametrize(("make", "number", "sent", "replied", "result"), METHODS)
def test_methods(
    client: Client,
    root: int,
    make: Callable[[Client], Call[Any]],
    number: int,
    sent: tuple[Any, ...],
    replied: tuple[Any, ...],
    result: object,
) -> None:
    assert root == 0
    call = make(client)
    assert codec.decode(call.request) == (number, 0, sent)
    answer(call, number + 1, *replied)
    assert call.result() == result
    assert type(call.result()) is type(result)


def test_readdir_gives_entries(client: Client, root: int) -> None:
    entries = [DirectoryEntry(DIR, 1, c.DT_DIR, b"."), DirectoryEntry(FILE, 2, c.DT_REG, b"name")]
    data = b"".join(codec.encode_directory_entry(*entry) for entry in entries)
    call = client.readdir(root, 0, 4096)
    answer(call, c.RREADDIR, len(data), data=data)
    assert call.result() == entries
    assert isinstance(call.result()[0].qid, Qid)
    with pytest.raises(DeviceError):
        answer(client.readdir(root, 0, 4096), c.RREADDIR, len(data) - 1, data=data[:-1])


def test_results_explain_themselves() -> None:
    assert DIR.is_directory
    assert not DIR.is_symlink
    assert Qid(c.QTSYMLINK, 0, 0).is_symlink
    attributes = Attributes(0x7FF, FILE, *range(18))
    assert attributes.atime_ns == 8_000_000_009
    assert attributes.mtime_ns == 10_000_000_011
    assert attributes.ctime_ns == 12_000_000_013


# --- numbers under any order of events ---


class Numbers(RuleBasedStateMachine):
    """A server that answers in any order, flushes included; the client's numbers must stay unique and none may leak."""

    def __init__(self) -> None:
        super().__init__()
        self.client = Client()
        self.waiting: list[Call[Any]] = []
        self.fids: set[int] = set()
        self.clunks: list[Call[Any]] = []
        answer(self.client.version(), c.RVERSION, self.client.msize, b"9P2000.L")

    @rule()
    def attach(self) -> None:
        self.waiting.append(self.client.attach())

    @precondition(lambda self: self.fids)
    @rule(data=st.data(), clunk=st.booleans())
    def use(self, data: st.DataObject, clunk: bool) -> None:
        fid = data.draw(st.sampled_from(sorted(self.fids)))
        if clunk:
            self.fids.remove(fid)
            self.clunks.append(self.client.clunk(fid))
            self.waiting.append(self.clunks[-1])
        else:
            self.waiting.append(self.client.walk(fid))

    @precondition(lambda self: any(not call.done for call in self.waiting))
    @rule(data=st.data())
    def flush(self, data: st.DataObject) -> None:
        live = [call for call in self.waiting if not call.done]
        self.waiting.append(self.client.flush(data.draw(st.sampled_from(live))))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), error=st.booleans())
    def answer(self, data: st.DataObject, error: bool) -> None:
        call = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        if call.done:  # by an Rflush
            return
        replies: dict[str, tuple[Any, ...]] = {
            "Tattach": (c.RATTACH, DIR),
            "Twalk": (c.RWALK, ()),
            "Tclunk": (c.RCLUNK,),
            "Tflush": (c.RFLUSH,),
        }
        if error and call.name != "Tflush":
            fail(call, errno.EIO)
        else:
            answer(call, *replies[call.name])
            if call.name in {"Tattach", "Twalk"}:
                assert call.fid not in self.fids
                self.fids.add(call.fid)

    @invariant()
    def numbers_are_unique(self) -> None:
        live = [call for call in self.waiting if not call.done]
        assert sorted(call.tag for call in live) == sorted(self.client.calls)
        made = [call.fid for call in live if call.name in {"Tattach", "Twalk"}]
        dropped = [call.fid for call in live if call.name == "Tclunk"]
        assert len(made) == len(set(made))
        # nobody knows what became of the fid of a clunk that was flushed before its answer: it stays taken
        unknown = [call.fid for call in self.clunks if call.cancelled]
        assert self.fids | {*made, *dropped, *unknown} == self.client.fids

    @invariant()
    def tags_in_use_are_those_in_flight_or_being_flushed(self) -> None:
        live = [call for call in self.waiting if not call.done]
        held = {call.fields["oldtag"] for call in live if call.name == "Tflush"} | {call.tag for call in live}
        free = next(number for number in range(len(held) + 1) if number not in held)
        probe = self.client.attach()
        assert probe.tag == free
        fail(probe, errno.EIO)


TestNumbers = Numbers.TestCase
TestNumbers.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
