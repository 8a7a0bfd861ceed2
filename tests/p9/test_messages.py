"""The declarations against byte streams written out by hand from protocol.md and the Plan 9 manual."""

from __future__ import annotations

from typing import Any

import pytest

from pyvirtfs.p9 import codec, constants, frames
from pyvirtfs.p9.messages import (
    BY_NAME,
    DECLARATIONS,
    LINUX,
    MESSAGES,
    PLAIN,
    REQUESTS,
    STAT,
    STAT_UNIX,
    UNIX,
    Vocabulary,
)

DIR = (0x80, 3, 0x1122334455667788)
DIR_HEX = "80 03000000 8877665544332211"
FILE = (0, 0xA1B2C3D4, 5)
FILE_HEX = "00 d4c3b2a1 0500000000000000"

# name: (bytes, tag, fields); a payload stands last
GOLDEN: dict[str, tuple[str, int, dict[str, object]]] = {
    "Rlerror": ("0b000000 07 0300  02000000", 3, {"ecode": 2}),
    "Tversion": (
        "15000000 64 ffff  00000200  0800 3950323030302e4c",
        0xFFFF,
        {"msize": 131072, "version": b"9P2000.L"},
    ),
    "Rversion": (
        "14000000 65 ffff  00100000  0700 756e6b6e6f776e",
        0xFFFF,
        {"msize": 4096, "version": b"unknown"},
    ),
    "Tauth": (
        "19000000 66 0000  07000000  0200 6d65  0400 74726565  e8030000",
        0,
        {"afid": 7, "uname": b"me", "aname": b"tree", "n_uname": 1000},
    ),
    "Rauth": (f"14000000 67 0000  {FILE_HEX}", 0, {"aqid": FILE}),
    "Tattach": (
        "1d000000 68 0000  00000000 ffffffff  0600 6e6f626f6479  0000  ffffffff",
        0,
        {"fid": 0, "afid": 0xFFFFFFFF, "uname": b"nobody", "aname": b"", "n_uname": 0xFFFFFFFF},
    ),
    "Rattach": (f"14000000 69 0000  {DIR_HEX}", 0, {"qid": DIR}),
    "Tflush": ("09000000 6c 0500  3412", 5, {"oldtag": 0x1234}),
    "Rflush": ("07000000 6d 0500", 5, {}),
    "Twalk": (
        "1a000000 6e 0100  00000000 01000000  0300  0100 61  0200 2e2e  0000",
        1,
        {"fid": 0, "newfid": 1, "wnames": (b"a", b"..", b"")},
    ),
    "Rwalk": (f"23000000 6f 0100  0200  {DIR_HEX}  {FILE_HEX}", 1, {"wqids": (DIR, FILE)}),
    "Tclunk": ("0b000000 78 0100  01000000", 1, {"fid": 1}),
    "Rclunk": ("07000000 79 0100", 1, {}),
    "Tremove": ("0b000000 7a 0100  01000000", 1, {"fid": 1}),
    "Rremove": ("07000000 7b 0100", 1, {}),
    "Tlopen": ("0f000000 0c 0100  01000000  02820000", 1, {"fid": 1, "flags": 0o101002}),
    "Rlopen": (f"18000000 0d 0100  {FILE_HEX}  e8ff0100", 1, {"qid": FILE, "iounit": 131048}),
    "Tlcreate": (
        "1e000000 0e 0100  01000000  0500 68656c6c6f  c1000000  a4810000  64000000",
        1,
        {"fid": 1, "name": b"hello", "flags": 0o301, "mode": 0o100644, "gid": 100},
    ),
    "Rlcreate": (f"18000000 0f 0100  {FILE_HEX}  00100000", 1, {"qid": FILE, "iounit": 4096}),
    "Tread": (
        "17000000 74 0100  01000000  0000000001000000  00100000",
        1,
        {"fid": 1, "offset": 1 << 32, "count": 4096},
    ),
    "Rread": ("0f000000 75 0100  04000000  deadbeef", 1, {"count": 4, "data": b"\xde\xad\xbe\xef"}),
    "Twrite": (
        "1a000000 76 0100  01000000  0a00000000000000  03000000  010203",
        1,
        {"fid": 1, "offset": 10, "count": 3, "data": b"\1\2\3"},
    ),
    "Rwrite": ("0b000000 77 0100  03000000", 1, {"count": 3}),
    "Treaddir": (
        "17000000 28 0100  01000000  ffffffffffffff7f  e8ff0100",
        1,
        {"fid": 1, "offset": (1 << 63) - 1, "count": 131048},
    ),
    "Rreaddir": (
        f"24000000 29 0100  19000000  {DIR_HEX} 0100000000000000 04 0100 2e",
        1,
        {"count": 25, "data": bytes.fromhex(f"{DIR_HEX} 0100000000000000 04 0100 2e")},
    ),
    "Tfsync": ("0f000000 32 0100  01000000  01000000", 1, {"fid": 1, "datasync": 1}),
    "Rfsync": ("07000000 33 0100", 1, {}),
    "Tlock": (
        "2a000000 34 0100  01000000 01 01000000  0001000000000000 0000000000000000  2a000000  0400 686f7374",
        1,
        {"fid": 1, "type": 1, "flags": 1, "start": 256, "length": 0, "proc_id": 42, "client_id": b"host"},
    ),
    "Rlock": ("08000000 35 0100  01", 1, {"status": 1}),
    "Tgetlock": (
        "24000000 36 0100  01000000 02  0001000000000000 1000000000000000  2a000000  0200 6869",
        1,
        {"fid": 1, "type": 2, "start": 256, "length": 16, "proc_id": 42, "client_id": b"hi"},
    ),
    "Rgetlock": (
        "20000000 37 0100  02  0001000000000000 1000000000000000  2a000000  0200 6869",
        1,
        {"type": 2, "start": 256, "length": 16, "proc_id": 42, "client_id": b"hi"},
    ),
    "Tgetattr": ("13000000 18 0100  01000000  ff17000000000000", 1, {"fid": 1, "request_mask": 0x17FF}),
    "Rgetattr": (
        (
            f"a0000000 19 0100  ff07000000000000  {FILE_HEX}  a4810000 e8030000 64000000  0100000000000000"
            " 0000000000000000  0010000000000000 00f0010000000000 0800000000000000"
            " 0100000000000000 0200000000000000  ffffffffffffffff 0300000000000000"
            " 0400000000000000 0500000000000000  0600000000000000 0700000000000000"
            " 0800000000000000  0900000000000000"
        ),
        1,
        {
            "valid": 0x7FF,
            "qid": FILE,
            "mode": 0o100644,
            "uid": 1000,
            "gid": 100,
            "nlink": 1,
            "rdev": 0,
            "size": 4096,
            "blksize": 126976,
            "blocks": 8,
            "atime_sec": 1,
            "atime_nsec": 2,
            "mtime_sec": -1,  # the last second of 1969
            "mtime_nsec": 3,
            "ctime_sec": 4,
            "ctime_nsec": 5,
            "btime_sec": 6,
            "btime_nsec": 7,
            "gen": 8,
            "data_version": 9,
        },
    ),
    "Tsetattr": (
        (
            "43000000 1a 0100  01000000  a9010000  a4010000 ffffffff ffffffff  0020000000000000"
            " 0100000000000000 0200000000000000  feffffffffffffff 0400000000000000"
        ),
        1,
        {
            "fid": 1,
            "valid": 0x1A9,
            "mode": 0o644,
            "uid": 0xFFFFFFFF,
            "gid": 0xFFFFFFFF,
            "size": 8192,
            "atime_sec": 1,
            "atime_nsec": 2,
            "mtime_sec": -2,
            "mtime_nsec": 4,
        },
    ),
    "Rsetattr": ("07000000 1b 0100", 1, {}),
    "Tstatfs": ("0b000000 08 0100  01000000", 1, {"fid": 1}),
    "Rstatfs": (
        (
            "43000000 09 0100  97190201  00100000  0100000000000000 0200000000000000 0300000000000000"
            " 0400000000000000 0500000000000000  efcdab8967452301  ff000000"
        ),
        1,
        {
            "type": 0x01021997,
            "bsize": 4096,
            "blocks": 1,
            "bfree": 2,
            "bavail": 3,
            "files": 4,
            "ffree": 5,
            "fsid": 0x0123456789ABCDEF,
            "namelen": 255,
        },
    ),
    "Txattrwalk": (
        "17000000 1e 0100  01000000 02000000  0600 757365722e61",
        1,
        {"fid": 1, "newfid": 2, "name": b"user.a"},
    ),
    "Rxattrwalk": ("0f000000 1f 0100  0700000000000000", 1, {"size": 7}),
    "Txattrcreate": (
        "1f000000 20 0100  01000000  0600 757365722e61  0000010000000000  02000000",
        1,
        {"fid": 1, "name": b"user.a", "attr_size": 65536, "flags": 2},
    ),
    "Rxattrcreate": ("07000000 21 0100", 1, {}),
    "Tsymlink": (
        "1a000000 10 0100  01000000  0300 6c6e6b  0400 2e2e2f78  64000000",
        1,
        {"dfid": 1, "name": b"lnk", "symtgt": b"../x", "gid": 100},
    ),
    "Rsymlink": ("14000000 11 0100  02 01000000 0900000000000000", 1, {"qid": (2, 1, 9)}),
    "Tmknod": (
        "21000000 12 0100  01000000  0400 6e756c6c  b6210000  01000000 03000000  00000000",
        1,
        {"dfid": 1, "name": b"null", "mode": 0o20666, "major": 1, "minor": 3, "gid": 0},
    ),
    "Rmknod": (f"14000000 13 0100  {FILE_HEX}", 1, {"qid": FILE}),
    "Tmkdir": (
        "17000000 48 0100  01000000  0200 c3a9  ed010000  64000000",
        1,
        {"dfid": 1, "name": "é".encode(), "mode": 0o755, "gid": 100},
    ),
    "Rmkdir": (f"14000000 49 0100  {DIR_HEX}", 1, {"qid": DIR}),
    "Tlink": ("13000000 46 0100  01000000 02000000  0200 6869", 1, {"dfid": 1, "fid": 2, "name": b"hi"}),
    "Rlink": ("07000000 47 0100", 1, {}),
    "Treadlink": ("0b000000 16 0100  01000000", 1, {"fid": 1}),
    "Rreadlink": ("0d000000 17 0100  0400 2e2e2f78", 1, {"target": b"../x"}),
    "Trename": ("13000000 14 0100  01000000 02000000  0200 6869", 1, {"fid": 1, "dfid": 2, "name": b"hi"}),
    "Rrename": ("07000000 15 0100", 1, {}),
    "Trenameat": (
        "18000000 4a 0100  01000000  0200 6869  02000000  0300 796f75",
        1,
        {"olddirfid": 1, "oldname": b"hi", "newdirfid": 2, "newname": b"you"},
    ),
    "Rrenameat": ("07000000 4b 0100", 1, {}),
    "Tunlinkat": (
        "13000000 4c 0100  01000000  0200 6869  00020000",
        1,
        {"dirfid": 1, "name": b"hi", "flags": 0x200},
    ),
    "Runlinkat": ("07000000 4d 0100", 1, {}),
}

FIXED_SIZES = {
    "Rlerror": 11,
    "Rlopen": 24,
    "Rlcreate": 24,
    "Rgetattr": 160,
    "Tsetattr": 67,
    "Rstatfs": 67,
    "Tread": 23,
    "Treaddir": 23,
    "Rlock": 8,
    "Rxattrwalk": 15,
    "Rclunk": 7,
    "Rflush": 7,
    "Rwrite": 11,
    "Rattach": 20,
}

STAT_FIELDS: dict[str, object] = {
    "size": 0,
    "type": 0x1234,
    "dev": 0x55667788,
    "qid": FILE,
    "mode": 0o644,
    "atime": 1_000_000_000,
    "mtime": 0xFFFFFFFF,
    "length": 0x1_0000_0000,
    "name": b"file",
    "uid": b"1000",
    "gid": b"",
    "muid": b"me",
}
STAT_HEX = (
    f"3412 88776655 {FILE_HEX} a4010000 00ca9a3b ffffffff 0000000001000000 "
    "0400 66696c65 0400 31303030 0000 0200 6d65"
)  # 47 + 4 + 4 + 2 bytes
UNIX_FIELDS: dict[str, object] = {"extension": b"c 1 3", "n_uid": 1000, "n_gid": 5, "n_muid": 0xFFFFFFFF}
UNIX_HEX = "0500 6320312033 e8030000 05000000 ffffffff"

# (dialect, name, bytes, fields): what 9P2000.L does not have, or not in that form; each with the tag 5
GOLDEN_OLDER: list[tuple[Vocabulary, str, str, Any]] = [
    (PLAIN, "Rerror", "10000000 6b 0500  0700 6e6f2066696c65", {"ename": b"no file"}),
    (UNIX, "Rerror", "14000000 6b 0500  0700 6e6f2066696c65  02000000", {"ename": b"no file", "errno": 2}),
    (
        PLAIN,
        "Tauth",
        "15000000 66 0500  07000000  0200 6d65  0400 74726565",
        {"afid": 7, "uname": b"me", "aname": b"tree"},
    ),
    (
        PLAIN,
        "Tattach",
        "19000000 68 0500  00000000 ffffffff  0600 6e6f626f6479  0000",
        {"fid": 0, "afid": 0xFFFFFFFF, "uname": b"nobody", "aname": b""},
    ),
    *(
        (vocabulary, name, text, fields)
        for vocabulary in (PLAIN, UNIX)
        for name, text, fields in (
            ("Topen", "0c000000 70 0500  01000000 12", {"fid": 1, "mode": 0x12}),
            ("Ropen", f"18000000 71 0500  {FILE_HEX} e81f0000", {"qid": FILE, "iounit": 8168}),
            ("Rcreate", f"18000000 73 0500  {DIR_HEX} 00000000", {"qid": DIR, "iounit": 0}),
            ("Tstat", "0b000000 7c 0500  01000000", {"fid": 1}),
            ("Rwstat", "07000000 7f 0500", {}),
        )
    ),
    (
        PLAIN,
        "Tcreate",
        "15000000 72 0500  01000000  0300 6e6577  ed010080 00",
        {"fid": 1, "name": b"new", "perm": 0x800001ED, "mode": 0},
    ),
    (
        UNIX,
        "Tcreate",
        "1b000000 72 0500  01000000  0300 6e6577  ff010002 00  0400 2f657463",
        {"fid": 1, "name": b"new", "perm": 0x020001FF, "mode": 0, "extension": b"/etc"},
    ),
    (PLAIN, "Rstat", f"44000000 7d 0500  3b00 3900 {STAT_HEX}", {"nstat": 59, **STAT_FIELDS, "size": 57}),
    (
        UNIX,
        "Rstat",
        f"57000000 7d 0500  4e00 4c00 {STAT_HEX} {UNIX_HEX}",
        {"nstat": 78, **STAT_FIELDS, "size": 76, **UNIX_FIELDS},
    ),
    (
        PLAIN,
        "Twstat",
        f"48000000 7e 0500  01000000 3b00 3900 {STAT_HEX}",
        {"fid": 1, "nstat": 59, **STAT_FIELDS, "size": 57},
    ),
    (
        UNIX,
        "Twstat",
        f"5b000000 7e 0500  01000000 4e00 4c00 {STAT_HEX} {UNIX_HEX}",
        {"fid": 1, "nstat": 78, **STAT_FIELDS, "size": 76, **UNIX_FIELDS},
    ),
]


DIALECTS = pytest.mark.parametrize(
    ("vocabulary", "requests", "error"),
    [(LINUX, 28, "Rlerror"), (UNIX, 13, "Rerror"), (PLAIN, 13, "Rerror")],
    ids=lambda value: value.version.decode() if isinstance(value, Vocabulary) else "",
)


@DIALECTS
def test_each_request_of_a_dialect_has_its_reply(vocabulary: Vocabulary, requests: int, error: str) -> None:
    assert len(vocabulary.requests) == requests
    assert len(vocabulary.by_type) == len(vocabulary.by_name) == len(vocabulary.messages) == 2 * requests + 1
    assert error in vocabulary.by_name
    for request in vocabulary.requests:
        assert request.name.startswith("T")
        assert vocabulary.by_type[request.type + 1].name == "R" + request.name[1:]


def test_all_dialects_together_have_32_requests() -> None:
    assert len({message.type for message in DECLARATIONS if message.is_request}) == 32
    assert (LINUX.by_type, LINUX.by_name, LINUX.requests) == (MESSAGES, BY_NAME, REQUESTS)


def test_a_number_has_one_name_and_a_form_one_identifier() -> None:
    assert len({message.type for message in DECLARATIONS}) == len({message.name for message in DECLARATIONS})
    identifiers = [message.identifier for message in DECLARATIONS]
    assert len(identifiers) == len(set(identifiers))
    assert [name for name in identifiers if name.startswith("Tattach")] == ["Tattach_plain", "Tattach"]
    assert [name for name in identifiers if name.startswith("Rerror")] == ["Rerror_plain", "Rerror_unix"]


def test_a_form_belongs_to_known_dialects_and_no_two_forms_to_one() -> None:
    for message in DECLARATIONS:
        others = [other for other in DECLARATIONS if other.type == message.type and other is not message]
        assert set(message.dialects) <= set(".uL")
        assert not any(set(message.dialects) & set(other.dialects) for other in others)


def test_constants_are_the_numbers_of_the_declarations() -> None:
    for message in DECLARATIONS:
        assert getattr(constants, message.name.upper()) == message.type


def test_every_message_has_a_golden_vector() -> None:
    assert set(GOLDEN) == set(BY_NAME)
    for vocabulary in (PLAIN, UNIX):
        older = {message.name for message in vocabulary.messages if message not in LINUX.messages}
        assert {name for each, name, *_ in GOLDEN_OLDER if each is vocabulary} == older


@pytest.mark.parametrize(("vocabulary", "name", "text", "fields"), GOLDEN_OLDER)
def test_older_dialects_match_their_golden_vectors(
    vocabulary: Vocabulary, name: str, text: str, fields: dict[str, object]
) -> None:
    data = bytes.fromhex(text)
    frame = frames.parse(data, vocabulary=vocabulary)
    assert (frame.message.name, frame.tag, frame.fields) == (name, 5, fields)
    assert frames.build(name, 5, fields, vocabulary=vocabulary) == data
    coded = codec.PLAIN if vocabulary is PLAIN else codec.UNIX
    number = vocabulary.by_name[name].type
    assert coded.decode(data) == (number, 5, tuple(fields.values()))
    assert coded.encode(number, 5, *fields.values()) == data


def test_stats_have_the_sizes_of_the_manual() -> None:
    empty = {"size": 0, "type": 0, "dev": 0, "qid": dict.fromkeys(("type", "version", "path"), 0), "mode": 0}
    empty |= dict.fromkeys(("atime", "mtime", "length"), 0) | dict.fromkeys(("name", "uid", "gid", "muid"), b"")
    assert len(STAT.build(empty)) == 2 + constants.STAT_SIZE
    empty |= {"extension": b"", "n_uid": 0, "n_gid": 0, "n_muid": 0}
    assert len(STAT_UNIX.build(empty)) == 2 + constants.STAT_UNIX_SIZE


@pytest.mark.parametrize("name", GOLDEN)
def test_declaration_matches_the_golden_vector(name: str) -> None:
    text, tag, fields = GOLDEN[name]
    data = bytes.fromhex(text)
    frame = frames.parse(data)
    assert (frame.message.name, frame.tag, frame.fields) == (name, tag, fields)
    assert frames.build(name, tag, fields) == data


@pytest.mark.parametrize("name", GOLDEN)
def test_codec_matches_the_golden_vector(name: str) -> None:
    text, tag, fields = GOLDEN[name]
    data = bytes.fromhex(text)
    values = tuple(value for field, value in fields.items() if field != "data")
    number = BY_NAME[name].type
    assert codec.decode(data) == (number, tag, values)
    payload = fields.get("data", b"")
    assert isinstance(payload, bytes)
    assert codec.encode(number, tag, *values) + payload == data


@pytest.mark.parametrize(("name", "nbytes"), FIXED_SIZES.items())
def test_fixed_sizes(name: str, nbytes: int) -> None:
    assert 7 + BY_NAME[name].body.sizeof() == nbytes
    assert codec.fixed_size(BY_NAME[name].type) == nbytes


@pytest.mark.parametrize(("name", "nbytes"), [("Rread", 11), ("Rreaddir", 11), ("Twrite", 23)])
def test_headers_before_a_payload(name: str, nbytes: int) -> None:
    message = BY_NAME[name]
    assert message.has_payload
    fields = dict.fromkeys(message.fields[:-1], 0)
    assert len(frames.build(name, 1, fields, payload=False)) == nbytes
    assert [other.name for other in DECLARATIONS if other.has_payload] == ["Rread", "Twrite", "Rreaddir"]


def test_fields_are_named_in_wire_order() -> None:
    assert BY_NAME["Tlcreate"].fields == ("fid", "name", "flags", "mode", "gid")
    assert BY_NAME["Rflush"].fields == ()
