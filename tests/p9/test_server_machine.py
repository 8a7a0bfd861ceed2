"""Any order of requests, late answers, flushes, versions and resets, in each dialect."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from pyvirtfs.fsdev.throttling import Limit, Throttle, Throttling
from pyvirtfs.p9 import codec
from pyvirtfs.p9 import constants as c
from pyvirtfs.testing import FakeClock, fake_clock

if TYPE_CHECKING:
    from collections.abc import Callable

FIDS = st.integers(0, 4)
TAGS = st.integers(0, 5)
NAMES = st.sampled_from([b"file", b"folder", b"inner", b"..", b"nothing"])
CALLS = [
    "place",
    "setattr",
    "rename",
    "readdir",
    "symlink",
    "link",
    "fsync",
    "readlink",
    "walk",
    "open",
    "create",
    "read",
    "write",
    "getattr",
    "lock",
    "remove",
    "setxattr",
    "getxattr",
    "mkdir",
]

REQUESTS = st.one_of(
    st.tuples(st.just(c.TATTACH), FIDS.map(lambda fid: (fid, c.NOFID, b"", b"", 0))),
    st.tuples(st.just(c.TWALK), st.tuples(FIDS, FIDS, st.lists(NAMES, max_size=2).map(tuple))),
    st.tuples(st.just(c.TCLUNK), st.tuples(FIDS)),
    st.tuples(st.just(c.TREMOVE), st.tuples(FIDS)),
    st.tuples(st.just(c.TLOPEN), st.tuples(FIDS, st.just(2))),
    st.tuples(st.just(c.TLCREATE), st.tuples(FIDS, NAMES, st.just(2), st.just(0o644), st.just(0))),
    st.tuples(st.just(c.TMKDIR), st.tuples(FIDS, NAMES, st.just(0o755), st.just(0))),
    st.tuples(st.just(c.TREAD), st.tuples(FIDS, st.integers(0, 12), st.integers(0, 8))),
    st.tuples(st.just(c.TGETATTR), st.tuples(FIDS, st.just(0))),
    st.tuples(st.just(c.TXATTRWALK), st.tuples(FIDS, FIDS, st.sampled_from([b"", b"user.x"]))),
    st.tuples(st.just(c.TXATTRCREATE), st.tuples(FIDS, st.just(b"user.x"), st.integers(0, 1), st.just(0))),
    st.tuples(
        st.just(c.TLOCK), st.tuples(FIDS, st.integers(0, 2), *[st.just(0)] * 3, st.integers(1, 2), st.just(b"me"))
    ),
    st.tuples(st.just(c.TWRITE), st.tuples(FIDS, st.integers(0, 3), st.just(0))),
)

UNTOUCHED = (0, 0, 0xFFFF, 0xFFFFFFFF, (0xFF, 0xFFFFFFFF, 2**64 - 1))
NEW_NAMES = st.sampled_from([b"", b"file", b"inner", b"new"])


def older_requests(*, unix: bool) -> st.SearchStrategy[tuple[int, tuple[Any, ...]]]:
    """Requests of 9P2000.u or of 9P2000."""
    kinds = [0, c.DMDIR, *([c.DMSYMLINK, c.DMLINK, c.DMNAMEDPIPE] if unix else [])]
    numbers: tuple[Any, ...] = (0,) if unix else ()
    extensions = [st.sampled_from([b"0", b"1", b"2"])] if unix else []
    modes = st.sampled_from([c.OREAD, c.ORDWR, c.ORDWR | c.ORCLOSE])
    more = (b"", *[0xFFFFFFFF] * 3) if unix else ()
    return st.one_of(
        st.tuples(st.just(c.TATTACH), FIDS.map(lambda fid: (fid, c.NOFID, b"", b"", *numbers))),
        st.tuples(st.just(c.TWALK), st.tuples(FIDS, FIDS, st.lists(NAMES, max_size=2).map(tuple))),
        st.tuples(st.just(c.TCLUNK), st.tuples(FIDS)),
        st.tuples(st.just(c.TREMOVE), st.tuples(FIDS)),
        st.tuples(st.just(c.TOPEN), st.tuples(FIDS, modes)),
        st.tuples(st.just(c.TCREATE), st.tuples(FIDS, NAMES, st.sampled_from(kinds), modes, *extensions)),
        st.tuples(st.just(c.TREAD), st.tuples(FIDS, st.integers(0, 2), st.sampled_from([5, 80, 500]))),
        st.tuples(st.just(c.TWRITE), st.tuples(FIDS, st.integers(0, 3), st.just(0))),
        st.tuples(st.just(c.TSTAT), st.tuples(FIDS)),
        st.tuples(
            st.just(c.TWSTAT),
            st.builds(
                lambda fid, mode, length, name: (
                    fid, *UNTOUCHED, mode, 0xFFFFFFFF, 0xFFFFFFFF, length, name, b"", b"", b"", *more
                ),
                FIDS, st.sampled_from([0xFFFFFFFF, 0o600]), st.sampled_from([2**64 - 1, 0]), NEW_NAMES,
            ),
        ),
    )  # fmt: skip


class Machine(RuleBasedStateMachine):
    coder = codec.LINUX
    requests = REQUESTS

    def __init__(
        self, make_peer: Callable[..., Any], make_export: Callable[[], Any], clock: FakeClock, *, throttled: bool
    ) -> None:
        super().__init__()
        self.clock = clock
        self.export = make_export()
        if throttled:
            self.export.throttle = Throttle(Throttling(iops_read=Limit(1, 2), bps_write=Limit(1), iops_write=Limit(2)))
        self.export.add("file", b"0123456789")
        self.export.add("folder", mode=stat.S_IFDIR | 0o755)
        self.export.add("folder/inner", b"inside")
        self.export.root.xattrs[b"user.x"] = b"value"
        self.peer = make_peer(self.export)
        self.begin()
        self.open: dict[int, int] = {}
        """Token of the request in flight with a tag."""
        self.flushes: dict[int, int] = {}
        """Token of a flush: the token of what it flushes."""
        self.silent: set[int] = set()
        """Tokens that a reset forgot."""

    def begin(self) -> None:
        """Begin a session with a few fids: most numbers drawn would be unknown otherwise."""
        later, self.export.later = self.export.later, set()
        self.peer.version(coder=self.coder).attach()
        self.peer.walk(0, 1)
        for fid, name in ((2, b"file"), (3, b"folder")):
            if name in self.export.root.entries:
                self.peer.walk(0, fid, name)
        if self.coder is not codec.LINUX:
            self.peer.walk(0, 4)
            self.peer.call(c.TOPEN, 4, c.OREAD)
        self.export.later = later

    def submit(self, kind: int, fields: tuple[Any, ...], tag: int) -> int:
        token: int = self.peer.send(kind, *fields, tag=tag)
        if self.peer.nbytes(token) is None:
            assert tag not in self.open, "a second request with the tag of one in flight is kept"
            self.open[tag] = token
        return token

    def settle(self) -> None:
        for tag, token in list(self.open.items()):
            if self.peer.nbytes(token) is not None:
                del self.open[tag]

    @rule(names=st.sets(st.sampled_from(CALLS)), interruptible=st.booleans())
    def change_what_is_slow(self, names: set[str], interruptible: bool) -> None:
        self.export.later = set(names)
        self.export.interruptible = interruptible

    @rule(data=st.data())
    def request(self, data: st.DataObject) -> None:
        """Several, since most steps are others and most requests fail."""
        for (kind, fields), tag in data.draw(st.lists(st.tuples(self.requests, TAGS), min_size=1, max_size=12)):
            token = self.submit(kind, fields, tag)
            if self.open.get(tag, token) != token:
                assert self.peer.error_of(token) in {errno.EINVAL, b"Invalid argument"}
            self.settle()

    @rule(old_tag=TAGS, tag=TAGS)
    def flush(self, old_tag: int, tag: int) -> None:
        target = self.open.get(old_tag)
        busy = tag in self.open
        token = self.submit(c.TFLUSH, (old_tag,), tag)
        if target is not None and not busy:
            self.flushes[token] = target
        self.settle()

    @rule(index=st.integers(0, 20), how=st.sampled_from([None, errno.EINTR, errno.EIO]))
    def complete(self, index: int, how: int | None) -> None:
        if self.export.waiting:
            error = None if how is None else OSError(how, "failed")
            self.peer.finish(index % len(self.export.waiting), error)
            self.settle()

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 60.0]))
    def let_time_pass(self, seconds: float) -> None:
        deadline = self.peer.server.next_deadline()
        self.clock.advance(seconds)
        before, asked = len(self.peer.ended), len(self.export.waiting)
        self.peer.server.run_pending()
        if deadline is not None and deadline <= self.clock.now:
            assert (len(self.peer.ended), len(self.export.waiting)) != (before, asked), "called for nothing"
        self.settle()

    @rule()
    def version(self) -> None:
        before = dict(self.open)
        name = self.coder.vocabulary.version
        token = self.peer.send(c.TVERSION, 8192, name, tag=c.NOTAG)
        while self.export.waiting:
            self.peer.finish()
        assert all(self.peer.nbytes(each) == 0 for each in before.values())
        assert self.peer.ended[-1] == (token, 13 + len(name))
        self.open.clear()
        assert self.peer.server.fids == 0
        assert not self.export.nodes
        assert not self.export.files
        self.begin()

    @rule()
    def reset(self) -> None:
        self.silent |= set(self.open.values())
        self.peer.server.reset()
        self.open.clear()
        self.begin()

    @invariant()
    def each_request_ends_once_and_only_if_it_should(self) -> None:
        tokens = [token for token, _ in self.peer.ended]
        assert len(tokens) == len(set(tokens))
        assert not self.silent & set(tokens)
        assert set(range(len(self.peer.rooms))) == set(tokens) | self.silent | set(self.open.values())

    @invariant()
    def the_driver_is_used_as_it_may_be(self) -> None:
        assert not self.export.broken

    @invariant()
    def a_request_ends_before_its_flush(self) -> None:
        order = {token: position for position, (token, _) in enumerate(self.peer.ended)}
        for flush, target in self.flushes.items():
            if flush in order and self.peer.nbytes(flush):
                assert order[target] < order[flush]

    @invariant()
    def handles_belong_to_fids_or_requests(self) -> None:
        if not self.export.waiting and self.peer.server.next_deadline() is None:
            assert self.peer.server.busy == 0
            assert len(self.export.nodes) <= self.peer.server.fids
            assert len(self.export.files) <= self.peer.server.fids

    def teardown(self) -> None:
        self.peer.server.close()
        while self.export.waiting:
            self.peer.finish()
        assert not self.export.nodes
        assert not self.export.files
        assert not any(inode.locks for inode in self.export.root.entries.values())
        assert not self.peer.server.busy


@pytest.mark.parametrize("throttled", [False, True], ids=["", "throttled"])
@pytest.mark.parametrize("dialect", [codec.LINUX, codec.UNIX, codec.PLAIN], ids=["L", "u", "plain"])
def test_any_order_of_events(
    make_peer: Callable[..., Any], make_export: Callable[[], Any], dialect: codec.Codec, throttled: bool
) -> None:
    with fake_clock() as clock:

        class Prepared(Machine):
            coder = dialect
            requests = REQUESTS if dialect is codec.LINUX else older_requests(unix=dialect is codec.UNIX)

            def __init__(self) -> None:
                super().__init__(make_peer, make_export, clock, throttled=throttled)

        run_state_machine_as_test(
            Prepared,
            settings=settings(
                max_examples=120 if dialect is codec.LINUX else 60,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
            ),
        )
