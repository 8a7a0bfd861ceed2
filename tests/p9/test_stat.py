"""Stats of all kinds of objects in both dialects; what they say is what the object is."""

from __future__ import annotations

import errno
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.fsdev.driver import Attributes, Qid
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.messages import STAT, STAT_UNIX
from pyvirtfs.p9.stat import (
    KIND_BITS,
    PLAIN_BITS,
    UNIX_BITS,
    decimal,
    encode_stat,
    extension_of,
    host_permissions,
    stat_fields,
    stat_mode,
)

KINDS = {
    stat.S_IFREG: 0,
    stat.S_IFDIR: c.DMDIR,
    stat.S_IFLNK: c.DMSYMLINK,
    stat.S_IFCHR: c.DMDEVICE,
    stat.S_IFBLK: c.DMDEVICE,
    stat.S_IFIFO: c.DMNAMEDPIPE,
    stat.S_IFSOCK: c.DMSOCKET,
}
MODES = st.builds(lambda kind, bits: kind | bits, st.sampled_from(sorted(KINDS)), st.integers(0, 0o7777))
SECONDS = st.integers(-(2**40), 2**40)


def attributes_of(mode: int, **values: int) -> Attributes:
    fields = dict.fromkeys(Attributes._fields, 0) | {"mode": mode} | values
    return Attributes(**fields)


@given(MODES)
def test_modes_have_the_bits_of_their_dialect_only(mode: int) -> None:
    plain, unix = stat_mode(mode, unix=False), stat_mode(mode, unix=True)
    # H010: no set-id bit, no sticky bit and no type of Unix in 9P2000, and in 9P2000.u not where Unix has them.
    assert plain & ~PLAIN_BITS == 0
    assert unix & ~UNIX_BITS == 0
    assert plain == mode & 0o777 | (c.DMDIR if stat.S_ISDIR(mode) else 0)
    assert unix & KIND_BITS == KINDS[stat.S_IFMT(mode)]
    assert bool(unix & c.DMSETUID) == bool(mode & stat.S_ISUID)
    assert bool(unix & c.DMSETGID) == bool(mode & stat.S_ISGID)
    assert bool(unix & c.DMSETVTX) == bool(mode & stat.S_ISVTX)
    assert host_permissions(unix) == stat.S_IMODE(mode)


@pytest.mark.parametrize("bits", [0o4000, 0o2000, 0o1000, 0o7000])
def test_set_id_bits_of_unix_mean_nothing(bits: int) -> None:
    assert host_permissions(bits | 0o644) == 0o644


@given(
    st.builds(Qid, st.integers(0, 255), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)),
    MODES,
    st.integers(0, 2**63 - 1),
    SECONDS,
    SECONDS,
    st.integers(0, 2**32 - 1),
    st.binary(max_size=255),
    st.binary(max_size=300),
    st.booleans(),
)
def test_stats_are_read_back(
    qid: Qid, mode: int, size: int, atime: int, mtime: int, uid: int, name: bytes, target: bytes, unix: bool
) -> None:
    attributes = attributes_of(mode, size=size, atime_sec=atime, mtime_sec=mtime, uid=uid, gid=7, nlink=2)
    fields = stat_fields(qid, attributes, name, target, unix=unix)
    data = encode_stat(fields, unix=unix)
    found = (STAT_UNIX if unix else STAT).parse(data)
    assert found.size == len(data) - 2
    assert (found.qid.type, found.qid.version, found.qid.path) == qid
    assert found.mode == stat_mode(mode, unix=unix)
    assert found.length == (0 if stat.S_ISDIR(mode) else size)  # by convention (stat(5))
    assert (found.name, found.uid, found.gid, found.muid) == (name, b"%d" % uid, b"7", b"")
    for said, is_so in ((found.atime, atime), (found.mtime, mtime)):
        assert said == min(max(is_so, 0), 2**32 - 1)  # nothing before 1970, nothing after 2106
    if unix:
        assert (found.n_uid, found.n_gid, found.n_muid) == (uid, 7, c.NONUNAME)
        assert (found.extension == target) or not stat.S_ISLNK(mode)


@pytest.mark.parametrize(
    ("mode", "extension"),
    [
        (stat.S_IFLNK | 0o777, b"to"),
        (stat.S_IFCHR, b"c 1 3"),
        (stat.S_IFBLK, b"b 1 3"),
        (stat.S_IFREG, b"HARDLINKCOUNT 5"),
        (stat.S_IFDIR, b"HARDLINKCOUNT 5"),
        (stat.S_IFIFO, b""),
        (stat.S_IFSOCK, b""),
    ],
)
def test_extensions(mode: int, extension: bytes) -> None:
    assert extension_of(attributes_of(mode, nlink=5, rdev_major=1, rdev_minor=3), b"to") == extension


@pytest.mark.parametrize(
    ("text", "number"),
    [(b"0", 0), (b"007", 7), (b"4294967295", 2**32 - 1)]
    + [
        (text, None) for text in (b"", b"4294967296", b"99999999999", b"9" * 5000, b"-1", b" 1", b"1x", b"\xb2", b"0x1")
    ],
)
def test_decimal_numbers(text: bytes, number: int | None) -> None:
    assert decimal(text) == number


def test_what_does_not_fit_a_stat_is_an_error() -> None:
    link = attributes_of(stat.S_IFLNK | 0o777)
    longest = 65533 - 61 - 2  # the uid and the gid are one digit each
    assert len(encode_stat(stat_fields(Qid(2, 1, 1), link, b"", b"x" * longest, unix=True), unix=True)) == 65535
    with pytest.raises(OSError, match="65534 bytes") as caught:
        stat_fields(Qid(2, 1, 1), link, b"n", b"x" * longest, unix=True)
    assert caught.value.errno == errno.ENAMETOOLONG
