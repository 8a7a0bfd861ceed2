"""Messages in one line, whatever their bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.p9 import codec
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.messages import LINUX, MESSAGES, PLAIN, UNIX, Vocabulary
from pyvirtfs.p9.printer import describe, format_message, qid_text, quoted

FILE = (0, 3, 0x1A2B)
DIR = (0x80, 3, 0x1A2B)


@pytest.mark.parametrize(
    ("number", "tag", "fields", "line"),
    [
        (c.TGETATTR, 3, (1, 0x7FF), "Tgetattr tag=3 fid=1 request_mask=0x7ff"),
        (c.RLERROR, 3, (2,), "Rlerror tag=3 ecode=2 (ENOENT)"),
        (c.RLERROR, 3, (95,), "Rlerror tag=3 ecode=95 (EOPNOTSUPP)"),
        (c.RLERROR, 3, (4000,), "Rlerror tag=3 ecode=4000"),
        (c.TVERSION, 0xFFFF, (8192, b"9P2000.L"), 'Tversion tag=NOTAG msize=8192 version="9P2000.L"'),
        (
            c.TATTACH,
            0,
            (0, c.NOFID, b"me", b"", c.NONUNAME),
            'Tattach tag=0 fid=0 afid=NOFID uname="me" aname="" n_uname=-1',
        ),
        (c.TLOPEN, 3, (1, 0o1002), "Tlopen tag=3 fid=1 flags=O_RDWR|O_TRUNC"),
        (c.RLOPEN, 3, (FILE, 0), "Rlopen tag=3 qid=(file 0x1a2b.3) iounit=0"),
        (
            c.TLCREATE,
            3,
            (1, b"a b", 0o4010301, 0o100644, 5),
            'Tlcreate tag=3 fid=1 name="a b" flags=O_WRONLY|O_CREAT|O_EXCL|O_SYNC mode=0100644 gid=5',
        ),
        (c.TWALK, 3, (1, 2, (b"a", b"..")), 'Twalk tag=3 fid=1 newfid=2 wnames=["a", ".."]'),
        (c.TWALK, 3, (1, 2, ()), "Twalk tag=3 fid=1 newfid=2 wnames=[]"),
        (c.RWALK, 3, ((DIR, FILE, DIR),), "Rwalk tag=3 wqids=[(dir 0x1a2b.3), (file 0x1a2b.3), (dir 0x1a2b.3)]"),
        (c.TFLUSH, 3, (0xFFFF,), "Tflush tag=3 oldtag=NOTAG"),
        (c.RFLUSH, 3, (), "Rflush tag=3"),
        (c.TUNLINKAT, 3, (1, b"d", 0x200), 'Tunlinkat tag=3 dirfid=1 name="d" flags=AT_REMOVEDIR'),
        (c.TUNLINKAT, 3, (1, b"d", 0x201), 'Tunlinkat tag=3 dirfid=1 name="d" flags=AT_REMOVEDIR|0x1'),
        (c.TUNLINKAT, 3, (1, b"d", 0), 'Tunlinkat tag=3 dirfid=1 name="d" flags=0x0'),
        (
            c.TXATTRCREATE,
            3,
            (1, b"user.x", 4, 3),
            'Txattrcreate tag=3 fid=1 name="user.x" attr_size=4 flags=XATTR_CREATE|XATTR_REPLACE',
        ),
        (
            c.TLOCK,
            3,
            (1, 1, 1, 0, 10, 7, b"h"),
            'Tlock tag=3 fid=1 type=WRLCK flags=BLOCK start=0 length=10 proc_id=7 client_id="h"',
        ),
        (c.RLOCK, 3, (1,), "Rlock tag=3 status=BLOCKED"),
        (c.RLOCK, 3, (9,), "Rlock tag=3 status=9"),
        (c.TWRITE, 3, (1, 2, 500), "Twrite tag=3 fid=1 offset=2 count=500"),
        (c.TMKNOD, 3, (1, b"n", 0o20666, 1, 3, 0), 'Tmknod tag=3 dfid=1 name="n" mode=020666 major=1 minor=3 gid=0'),
    ],
)
def test_lines(number: int, tag: int, fields: tuple[object, ...], line: str) -> None:
    assert describe(codec.encode(number, tag, *fields)) == line
    assert format_message(number, tag, fields) == line


UNTOUCHED = (0, 0xFFFF, 0xFFFFFFFF, (0xFF, 2**32 - 1, 2**64 - 1), *[0xFFFFFFFF] * 3, 2**64 - 1, *[b""] * 4)
CHANGED = (0, 0, 0, FILE, 0x81ED, 10, 11, 12, b"n", b"u", b"g", b"m", b"t", 1, 2, 0xFFFFFFFF)


@pytest.mark.parametrize(
    ("coder", "number", "fields", "line"),
    [
        (codec.PLAIN, c.RERROR, (b"Is a directory",), 'Rerror tag=3 ename="Is a directory"'),
        (codec.UNIX, c.RERROR, (b"no", 2), 'Rerror tag=3 ename="no" errno=2 (ENOENT)'),
        (codec.PLAIN, c.TATTACH, (0, c.NOFID, b"me", b""), 'Tattach tag=3 fid=0 afid=NOFID uname="me" aname=""'),
        (codec.UNIX, c.TOPEN, (1, 0x52), "Topen tag=3 fid=1 mode=ORDWR|OTRUNC|ORCLOSE"),
        (codec.UNIX, c.TOPEN, (1, 0xAC), "Topen tag=3 fid=1 mode=OREAD|OCEXEC|OEXCL|OAPPEND|0x8"),
        (
            codec.UNIX,
            c.TCREATE,
            (1, b"n", 0x020801ED, 0, b"to"),
            'Tcreate tag=3 fid=1 name="n" perm=DMSYMLINK|DMSETUID|0755 mode=OREAD extension="to"',
        ),
        (
            codec.PLAIN,
            c.TWSTAT,
            (1, 49, *UNTOUCHED),
            (
                "Twstat tag=3 fid=1 nstat=49 size=0 type=-1 dev=-1 qid=-1 mode=-1 atime=-1 mtime=-1 length=-1 "
                'name="" uid="" gid="" muid=""'
            ),
        ),
        (
            codec.UNIX,
            c.RSTAT,
            (68, *CHANGED),
            (
                "Rstat tag=3 nstat=68 size=0 type=0 dev=0 qid=(file 0x1a2b.3) mode=0100755 atime=10 mtime=11 length=12"
                ' name="n" uid="u" gid="g" muid="m" extension="t" n_uid=1 n_gid=2 n_muid=-1'
            ),
        ),
        (codec.PLAIN, c.TGETATTR, (), "type24 tag=3"),
    ],
)
def test_lines_of_older_dialects(coder: codec.Codec, number: int, fields: tuple[object, ...], line: str) -> None:
    assert format_message(number, 3, fields, vocabulary=coder.vocabulary) == line
    if fields:
        assert describe(coder.encode(number, 3, *fields), coder.vocabulary) == line


def test_payloads_are_shown_shortened() -> None:
    head = codec.encode(c.RREAD, 1, 30)
    assert describe(head) == "Rread tag=1 count=30"
    assert describe(head + b"x" * 30) == f'Rread tag=1 count=30 data="{"x" * 24}"...(30 bytes)'
    assert format_message(c.RREAD, 1, (3, memoryview(b"a\0b"))) == 'Rread tag=1 count=3 data="a\\x00b"'


def test_long_lists_are_shortened() -> None:
    line = describe(codec.encode(c.TWALK, 1, 2, 3, (b"a",) * 17))
    assert line.endswith('"a", ...(17)]')
    assert line.count('"a"') == 16


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"", '""'),
        ("é".encode(), '"é"'),
        (b"\xff\xfe", '"\\xff\\xfe"'),
        (b"\\xff", '"\\\\xff"'),
        (b'a"b', '"a\\"b"'),
        (b"a\n\t\0\x1b[31m", '"a\\n\\t\\x00\\x1b[31m"'),
        ("\u202e\u2028".encode(), '"\\u202e\\u2028"'),
        (b"x" * 64, f'"{"x" * 64}"'),
        (b"x" * 65, f'"{"x" * 64}"...(65 bytes)'),
        ("é".encode() * 40, f'"{"é" * 32}"...(80 bytes)'),
        (b"x" + "é".encode() * 40, f'"x{"é" * 31}"...(81 bytes)'),
    ],
)
def test_names_are_quoted(text: bytes, shown: str) -> None:
    assert quoted(text) == shown


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_quoting_is_harmless_and_tells_names_apart(one: bytes, other: bytes) -> None:
    shown = quoted(one, limit=1000)
    assert shown.isprintable()
    assert (shown == quoted(other, limit=1000)) == (one == other)


def test_qids_of_every_type() -> None:
    assert qid_text((0x02, 1, 2)) == "(symlink 0x2.1)"
    assert qid_text((0xC0, 1, 2)) == "(dir+append 0x2.1)"


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ("", "malformed: 0 bytes "),
        ("0700", "malformed: 2 bytes 0700"),
        ("07000000 78 0100", "Tclunk tag=1 malformed: fid is cut off"),
        ("0b000000 78 0100 0500", "Tclunk tag=1 malformed: fid is cut off malformed: size says 11, 9 bytes are there"),
        ("0c000000 78 0100 05000000 00", "Tclunk tag=1 fid=5 malformed: 1 bytes too many"),
        ("0b000000 78 0100 05000000 00", "Tclunk tag=1 fid=5"),
        ("03000000 6d 0100", "Rflush tag=1 malformed: size says 3, 7 bytes are there"),
        ("09000000 c8 0100 6162", 'type200 tag=1 body="ab"'),
        ("13000000 14 0100 01000000 02000000 0500 6869", "Trename tag=1 fid=1 dfid=2 malformed: name is cut off"),
    ],
)
def test_malformed_messages_are_printed_as_far_as_they_go(data: str, line: str) -> None:
    assert describe(bytes.fromhex(data)) == line


def test_decoded_messages_of_unknown_types() -> None:
    assert format_message(200, 1, ()) == "type200 tag=1"


@given(st.one_of(st.binary(max_size=80), st.builds(
    lambda number, size, body: struct.pack("<IBH", size, number, 1) + body,
    st.sampled_from(sorted({*MESSAGES, *UNIX.by_type})),
    st.one_of(st.integers(0, 80), st.integers(0, 2**32 - 1)),
    st.binary(max_size=70),
)), st.sampled_from([LINUX, UNIX, PLAIN]))  # fmt: skip
def test_nothing_raises_and_nothing_breaks_the_line(data: bytes, vocabulary: Vocabulary) -> None:
    line = describe(data, vocabulary)
    assert line
    assert line.isprintable()
