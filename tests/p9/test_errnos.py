"""Every error that the protocol's users rely on: one test each, named for the situation."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from pyvirtfs.errors import GuestError
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.errnos import errno_of, public_errno

if TYPE_CHECKING:
    from collections.abc import Callable

Peer: TypeAlias = Any
Export: TypeAlias = Any


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOENT, "x"), errno.ENOENT),
        (FileNotFoundError(errno.ENOENT, "x", b"name"), errno.ENOENT),
        (OSError(4095, "x"), 4095),
        (OSError(4096, "x"), errno.EIO),
        (OSError(0, "x"), errno.EIO),
        (OSError(-5, "x"), errno.EIO),
        (OSError("x"), errno.EIO),
        (OSError(), errno.EIO),
        (ValueError("x"), errno.EIO),
        (MemoryError(), errno.ENOMEM),
        (GuestError("x"), errno.EFAULT),
        (InterruptedError(errno.EINTR, "x"), errno.EINTR),
    ],
)
def test_any_exception_is_an_errno(error: BaseException, code: int) -> None:
    assert errno_of(error) == code
    assert public_errno(error) == (errno.EIO if code == errno.EINTR else code)


UNKNOWN = 99

ENOENT_FOR_UNKNOWN_FIDS = [
    (c.TGETATTR, (UNKNOWN, 0)),
    (c.TLOPEN, (UNKNOWN, 0)),
    (c.TWALK, (UNKNOWN, 5, ())),
    (c.TWALK, (UNKNOWN, UNKNOWN, ())),
    (c.TLCREATE, (UNKNOWN, b"n", 0, 0, 0)),
    (c.TMKDIR, (UNKNOWN, b"n", 0, 0)),
    (c.TMKNOD, (UNKNOWN, b"n", 0, 0, 0, 0)),
    (c.TLINK, (UNKNOWN, 0, b"n")),
    (c.TLINK, (0, UNKNOWN, b"n")),
    (c.TLOCK, (UNKNOWN, 0, 0, 0, 0, 0, b"")),
    (c.TGETLOCK, (UNKNOWN, 0, 0, 0, 0, b"")),
    (c.TSTATFS, (UNKNOWN,)),
    (c.TFSYNC, (UNKNOWN, 0)),
    (c.TREADLINK, (UNKNOWN,)),
    (c.TXATTRWALK, (UNKNOWN, 5, b"")),
    (c.TCLUNK, (UNKNOWN,)),
    (c.TRENAME, (UNKNOWN, 0, b"n")),
    (c.TRENAME, (0, UNKNOWN, b"n")),
    (c.TRENAMEAT, (UNKNOWN, b"n", 0, b"m")),
    (c.TRENAMEAT, (0, b"n", UNKNOWN, b"m")),
]

EINVAL_FOR_UNKNOWN_FIDS = [
    (c.TREAD, (UNKNOWN, 0, 1)),
    (c.TWRITE, (UNKNOWN, 0, 0)),
    (c.TREADDIR, (UNKNOWN, 0, 100)),
    (c.TSYMLINK, (UNKNOWN, b"n", b"t", 0)),
    (c.TSETATTR, (UNKNOWN, *(0,) * 9)),
    (c.TREMOVE, (UNKNOWN,)),
    (c.TUNLINKAT, (UNKNOWN, b"n", 0)),
    (c.TXATTRCREATE, (UNKNOWN, b"user.n", 0, 0)),
]


@pytest.mark.parametrize(("kind", "fields"), ENOENT_FOR_UNKNOWN_FIDS)
def test_unknown_fid_is_enoent(peer: Peer, kind: int, fields: tuple[Any, ...]) -> None:
    assert peer.error(kind, *fields) == errno.ENOENT


@pytest.mark.parametrize(("kind", "fields"), EINVAL_FOR_UNKNOWN_FIDS)
def test_unknown_fid_is_einval_in_some_messages(peer: Peer, kind: int, fields: tuple[Any, ...]) -> None:
    assert peer.error(kind, *fields) == errno.EINVAL


def test_newfid_in_use_is_einval(peer: Peer) -> None:
    peer.walk(0, 1)
    assert peer.error(c.TATTACH, 1, c.NOFID, b"", b"", 0) == errno.EINVAL
    assert peer.error(c.TWALK, 0, 1, ()) == errno.EINVAL
    assert peer.error(c.TXATTRWALK, 0, 1, b"") == errno.EINVAL
    assert peer.error(c.TXATTRWALK, 0, 0, b"") == errno.EINVAL


def test_root_that_cannot_be_looked_up_in_attach_is_einval(make_peer: Callable[..., Peer], export: Export) -> None:
    peer = make_peer().version()
    export.failing["attach"] = OSError(errno.ENOENT, "gone")
    assert peer.error(c.TATTACH, 0, c.NOFID, b"", b"", 0) == errno.EINVAL


def test_fid_already_open_is_einval(peer: Peer) -> None:
    for fid, name in ((1, b"file"), (2, b"folder")):
        peer.open(fid, name)
        assert peer.error(c.TLOPEN, fid, 0) == errno.EINVAL
        assert peer.error(c.TLCREATE, fid, b"n", 0, 0, 0) == errno.EINVAL
        assert peer.error(c.TRENAME, fid, 0, b"n") == errno.EINVAL
        assert peer.error(c.TXATTRCREATE, fid, b"user.n", 0, 0) == errno.EINVAL
        assert peer.error(c.TWALK, fid, fid, ()) == errno.EINVAL


def _named(name: bytes) -> list[tuple[int, tuple[Any, ...]]]:
    return [
        (c.TWALK, (0, 5, (name,))),
        (c.TLCREATE, (0, name, 0, 0o644, 0)),
        (c.TMKDIR, (0, name, 0o755, 0)),
        (c.TMKNOD, (0, name, stat.S_IFREG, 0, 0, 0)),
        (c.TSYMLINK, (0, name, b"target", 0)),
        (c.TLINK, (0, 0, name)),
        (c.TRENAME, (0, 0, name)),
        (c.TRENAMEAT, (0, name, 0, b"n")),
        (c.TRENAMEAT, (0, b"n", 0, name)),
        (c.TUNLINKAT, (0, name, 0)),
    ]


@pytest.mark.parametrize("name", [b"", b"/", b"a/b", b"/etc", b"../x", b"a/", b"\0", b"a\0b", b"..\0", b"x/" * 30000])
@pytest.mark.parametrize("message", range(10))
def test_name_empty_or_with_slash_or_nul_is_enoent(
    make_peer: Callable[..., Peer], export: Export, name: bytes, message: int
) -> None:
    peer = make_peer().version(1 << 17).attach()
    calls = len(export.calls)
    kind, fields = _named(name)[message]
    assert peer.error(kind, *fields) == errno.ENOENT
    assert len(export.calls) == calls


@pytest.mark.parametrize("name", [b".", b".."])
def test_dot_and_dotdot(peer: Peer, export: Export, name: bytes) -> None:
    calls = len(export.calls)
    codes = {kind: peer.error(kind, *fields) for kind, fields in _named(name) if kind != c.TWALK}
    assert codes == {
        **dict.fromkeys((c.TLCREATE, c.TMKDIR, c.TMKNOD, c.TSYMLINK, c.TLINK), errno.EEXIST),
        **dict.fromkeys((c.TRENAME, c.TRENAMEAT), errno.EISDIR),
        c.TUNLINKAT: errno.EINVAL if name == b"." else errno.ENOTEMPTY,
    }
    assert len(export.calls) == calls
    peer.walk(0, 5, name)


def test_names_too_long_are_for_the_host_to_refuse(make_peer: Callable[..., Peer]) -> None:
    peer = make_peer().version(1 << 17).attach()
    for name in (b"x" * 256, b"x" * 65535):
        assert peer.error(c.TMKDIR, 0, name, 0, 0) == errno.ENAMETOOLONG


def test_walk_with_more_than_16_names_is_einval(peer: Peer) -> None:
    assert peer.error(c.TWALK, 0, 1, (b"x",) * 17) == errno.EINVAL


def test_unlinkat_flags_outside_removedir_are_einval(peer: Peer) -> None:
    assert peer.error(c.TUNLINKAT, 0, b"file", 0x400) == errno.EINVAL


def test_lock_flags_outside_block_are_einval(peer: Peer) -> None:
    assert peer.error(c.TLOCK, 0, 0, 2, 0, 0, 0, b"") == errno.EINVAL


def test_xattrcreate_flags_outside_3_are_einval(peer: Peer) -> None:
    assert peer.error(c.TXATTRCREATE, 0, b"user.n", 0, 4) == errno.EINVAL


def test_xattrcreate_larger_than_64_kib_is_e2big(peer: Peer) -> None:
    assert peer.error(c.TXATTRCREATE, 0, b"user.n", 65537, 0) == errno.E2BIG


def test_twrite_behind_the_end_of_an_xattr_fid_is_enospc(peer: Peer) -> None:
    peer.call(c.TXATTRCREATE, 0, b"user.n", 5, 0)
    assert peer.error(c.TWRITE, 0, 6, 1, data=b"x") == errno.ENOSPC
    assert peer.write(0, 3, b"1234") == 2


def test_clunk_of_a_partly_written_xattr_fid_is_einval_and_frees_it(peer: Peer) -> None:
    peer.call(c.TXATTRCREATE, 0, b"user.n", 5, 0)
    assert peer.error(c.TCLUNK, 0) == errno.EINVAL
    assert peer.server.fids == 0


def test_tread_on_a_folder_is_eopnotsupp(peer: Peer) -> None:
    peer.open(1)
    assert peer.error(c.TREAD, 1, 0, 100) == errno.EOPNOTSUPP


def test_fid_not_open_is_einval(peer: Peer) -> None:
    assert peer.error(c.TREAD, 0, 0, 1) == errno.EINVAL
    assert peer.error(c.TWRITE, 0, 0, 0) == errno.EINVAL
    assert peer.error(c.TREADDIR, 0, 0, 100) == errno.EINVAL


def test_driver_without_places_is_eopnotsupp(peer: Peer, export: Export) -> None:
    export.failing["rename"] = export.failing["remove"] = OSError(errno.EOPNOTSUPP, "no names")
    peer.walk(0, 1, b"file")
    assert peer.error(c.TRENAME, 1, 0, b"n") == errno.EOPNOTSUPP
    assert peer.error(c.TREMOVE, 1) == errno.EOPNOTSUPP


def test_small_msize_is_emsgsize(make_peer: Callable[..., Peer]) -> None:
    assert make_peer().error(c.TVERSION, 4095, b"9P2000.L", tag=c.NOTAG) == errno.EMSGSIZE


def test_unknown_id_is_eopnotsupp_and_tauth_enoent(peer: Peer) -> None:
    """The latter is how diod's clients are told that no authentication is needed; QEMU answers EOPNOTSUPP to both."""
    assert peer.error(c.TAUTH, 5, b"", b"", 0) == errno.ENOENT
    assert peer.error_of(peer.submit(bytes([7, 0, 0, 0, 200, 1, 0]))) == errno.EOPNOTSUPP


def test_walk_cut_short_by_a_flush_is_eintr_and_not_sent(peer: Peer, export: Export) -> None:
    export.later.add("walk")
    export.interruptible = True
    walk = peer.send(c.TWALK, 0, 1, (), tag=1)
    peer.call(c.TFLUSH, 1, tag=2)
    assert peer.nbytes(walk) == 0


def test_special_file_is_enxio(peer: Peer, export: Export) -> None:
    export.add("socket", mode=stat.S_IFSOCK | 0o644)
    peer.walk(0, 1, b"socket")
    assert peer.error(c.TLOPEN, 1, 0) == errno.ENXIO


def test_checks_come_in_the_order_names_flags_fid_state_host(peer: Peer, export: Export) -> None:
    export.failing["mkdir"] = OSError(errno.EDQUOT, "quota")
    assert peer.error(c.TMKDIR, UNKNOWN, b".", 0, 0) == errno.EEXIST
    assert peer.error(c.TUNLINKAT, UNKNOWN, b"", 0x400) == errno.ENOENT
    assert peer.error(c.TUNLINKAT, UNKNOWN, b"n", 0x400) == errno.EINVAL
    assert peer.error(c.TXATTRCREATE, UNKNOWN, b"user.n", 65537, 0) == errno.E2BIG
    assert peer.error(c.TLOCK, UNKNOWN, 0, 2, 0, 0, 0, b"") == errno.EINVAL
    assert peer.error(c.TLOCK, UNKNOWN, 0, 0, 0, 0, 0, b"") == errno.ENOENT
    assert peer.error(c.TMKDIR, 0, b"n", 0, 0) == errno.EDQUOT
