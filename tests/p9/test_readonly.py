from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.messages import LINUX, PLAIN, REQUESTS, UNIX
from pyvirtfs.p9.readonly import READONLY_REQUESTS, check_open

if TYPE_CHECKING:
    from collections.abc import Callable

Peer: TypeAlias = Any
Export: TypeAlias = Any

MODIFYING: list[tuple[int, tuple[Any, ...]]] = [
    (c.TLCREATE, (0, b"n", 0, 0o644, 0)),
    (c.TSYMLINK, (0, b"n", b"t", 0)),
    (c.TMKNOD, (0, b"n", 0o100644, 0, 0, 0)),
    (c.TRENAME, (1, 0, b"n")),
    (c.TSETATTR, (0, 1, *(0,) * 8)),
    (c.TXATTRCREATE, (1, b"user.n", 0, 0)),
    (c.TXATTRCREATE, (1, b"user.n", 0, c.XATTR_REPLACE)),
    (c.TLINK, (0, 1, b"n")),
    (c.TMKDIR, (0, b"n", 0o755, 0)),
    (c.TRENAMEAT, (0, b"file", 0, b"n")),
    (c.TUNLINKAT, (0, b"file", 0)),
    (c.TWRITE, (1, 0, 0)),
    (c.TREMOVE, (1,)),
]


@pytest.fixture
def readonly(make_peer: Callable[..., Peer], make_export: Any) -> Peer:
    export = make_export(readonly=True)
    export.add("file", b"content")
    peer: Peer = make_peer(export).version().attach()
    peer.walk(0, 1, b"file")
    return peer


def test_every_request_is_either_harmless_or_tested_here() -> None:
    older = {c.TOPEN, c.TSTAT, c.TWSTAT}
    assert {kind for kind, _ in MODIFYING} | READONLY_REQUESTS - older == {message.type for message in REQUESTS}
    assert not {kind for kind, _ in MODIFYING} & READONLY_REQUESTS
    for vocabulary in (PLAIN, UNIX):
        refused = {message.type for message in vocabulary.requests} - READONLY_REQUESTS
        assert refused == {c.TCREATE, c.TWRITE, c.TREMOVE}
        assert older <= {message.type for message in vocabulary.requests} - {message.type for message in LINUX.requests}


@pytest.mark.parametrize(("kind", "fields"), MODIFYING)
def test_what_modifies_is_refused_before_the_driver_hears_of_it(
    readonly: Peer, kind: int, fields: tuple[Any, ...]
) -> None:
    calls = len(readonly.export.calls)
    assert readonly.error(kind, *fields) == errno.EROFS
    assert len(readonly.export.calls) == calls


@pytest.mark.parametrize(
    "flags",
    [
        c.DOTL_WRONLY,
        c.DOTL_RDWR,
        c.DOTL_APPEND,
        c.DOTL_TRUNC,
        c.DOTL_RDWR | c.DOTL_LARGEFILE,
        c.DOTL_APPEND | c.DOTL_DIRECT,
    ],
)
def test_opening_for_more_than_reading_is_refused(readonly: Peer, flags: int) -> None:
    assert readonly.error(c.TLOPEN, 1, flags) == errno.EROFS
    assert not readonly.export.files
    with pytest.raises(OSError, match="readonly"):
        check_open(flags)


def test_reading_works(readonly: Peer) -> None:
    readonly.call(c.TLOPEN, 1, c.DOTL_RDONLY | c.DOTL_LARGEFILE | c.DOTL_CREATE)
    assert readonly.read(1, 0, 100) == b"content"
    readonly.walk(0, 2)
    readonly.call(c.TLOPEN, 2, c.DOTL_RDWR)
    readonly.call(c.TREADDIR, 2, 0, 1000)
    readonly.call(c.TXATTRWALK, 1, 3, b"")
    readonly.call(c.TFSYNC, 1, 0)
    assert readonly.call(c.TLOCK, 1, c.LOCK_TYPE_RDLCK, 0, 0, 0, 1, b"me") == c.LOCK_SUCCESS
    readonly.call(c.TSTATFS, 0)


def test_unknown_requests_stay_unknown(readonly: Peer) -> None:
    assert readonly.error(c.TAUTH, 5, b"", b"", 0) == errno.ENOENT
