"""Any message in one line, for traces and for what a failing test says.

    Tlopen tag=3 fid=1 flags=O_RDWR|O_TRUNC
    Rlopen tag=3 qid=(file 0x1a2b.3) iounit=0
    Rlerror tag=4 ecode=2 (ENOENT)
    Topen tag=5 fid=1 mode=ORDWR|OTRUNC

Messages come from the other side, so nothing here raises on any bytes: what can be read is printed, then what is wrong.
Names are bytes of the guest's choosing: whatever could disturb a terminal or a log is escaped, long ones are shortened.
"""

from __future__ import annotations

import errno
import io
import struct
from typing import TYPE_CHECKING, Any, Final

import construct

from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.flags import flag_names
from pyvirtfs.p9.messages import COUNTED_DATA, HEADER, LINUX, Message, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MAX_TEXT: Final = 64
"""Bytes of a string that are shown."""
MAX_DATA: Final = 24
"""Bytes of a payload that are shown."""

_QID_TYPES: Final = (
    (c.QTDIR, "dir"),
    (c.QTAPPEND, "append"),
    (c.QTEXCL, "exclusive"),
    (c.QTMOUNT, "mount"),
    (c.QTAUTH, "auth"),
    (c.QTTMP, "temporary"),
    (c.QTSYMLINK, "symlink"),
    (c.QTLINK, "link"),
)
_LOCK_TYPES: Final = {c.LOCK_TYPE_RDLCK: "RDLCK", c.LOCK_TYPE_WRLCK: "WRLCK", c.LOCK_TYPE_UNLCK: "UNLCK"}
_LOCK_STATUS: Final = {
    c.LOCK_SUCCESS: "SUCCESS",
    c.LOCK_BLOCKED: "BLOCKED",
    c.LOCK_ERROR: "ERROR",
    c.LOCK_GRACE: "GRACE",
}
_PERMISSIONS: Final = (
    (c.DMDIR, "DMDIR"),
    (c.DMAPPEND, "DMAPPEND"),
    (c.DMEXCL, "DMEXCL"),
    (c.DMMOUNT, "DMMOUNT"),
    (c.DMAUTH, "DMAUTH"),
    (c.DMTMP, "DMTMP"),
    (c.DMSYMLINK, "DMSYMLINK"),
    (c.DMLINK, "DMLINK"),
    (c.DMDEVICE, "DMDEVICE"),
    (c.DMNAMEDPIPE, "DMNAMEDPIPE"),
    (c.DMSOCKET, "DMSOCKET"),
    (c.DMSETUID, "DMSETUID"),
    (c.DMSETGID, "DMSETGID"),
    (c.DMSETVTX, "DMSETVTX"),
)
_OPEN_MODES: Final = ("OREAD", "OWRITE", "ORDWR", "OEXEC")
_OPEN_BITS: Final = (
    (c.OTRUNC, "OTRUNC"),
    (c.OCEXEC, "OCEXEC"),
    (c.ORCLOSE, "ORCLOSE"),
    (c.OEXCL, "OEXCL"),
    (c.OAPPEND, "OAPPEND"),
)
_UNTOUCHED_QID: Final = (0xFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
_ERRNO_NAMES: Final = {**errno.errorcode, errno.EOPNOTSUPP: "EOPNOTSUPP"}  # not its other name, ENOTSUP

# --- values ---


def quoted(text: bytes, limit: int = MAX_TEXT) -> str:
    r"""A string of the guest's in double quotes: UTF-8 as it is, all else escaped (``\xff``, ``\n``, ``\u202e``)."""
    end = min(len(text), limit)
    while end < len(text) and end > limit - 3 and text[end] & 0xC0 == 0x80:
        end -= 1  # not through the middle of a character
    pieces = []
    for character in text[:end].decode("utf-8", "surrogateescape"):
        if character in '"\\':
            pieces.append("\\" + character)
        elif "\udc80" <= character <= "\udcff":
            pieces.append(f"\\x{ord(character) - 0xDC00:02x}")
        elif character.isprintable():
            pieces.append(character)
        else:
            pieces.append(character.encode("unicode_escape").decode("ascii"))
    return f'"{"".join(pieces)}"' + (f"...({len(text)} bytes)" if end < len(text) else "")


def _number(value: Any) -> str:
    return str(value)


def _hexadecimal(value: int) -> str:
    return f"{value:#x}"


def _fid(value: int) -> str:
    return "NOFID" if value == c.NOFID else str(value)


def _tag(value: int) -> str:
    return "NOTAG" if value == c.NOTAG else str(value)


def _user(value: int) -> str:
    return "-1" if value == c.NONUNAME else str(value)


def _mode(value: int) -> str:
    return f"0{value:o}"


def _permissions(value: int) -> str:
    if value == 0xFFFFFFFF:
        return "-1"
    rest = value & ~sum(bit for bit, _ in _PERMISSIONS)
    return "|".join([*(name for bit, name in _PERMISSIONS if value & bit), _mode(rest)])


def _open_mode(value: int) -> str:
    rest = value & ~c.OMODE & ~sum(bit for bit, _ in _OPEN_BITS)
    names = [_OPEN_MODES[value & c.OMODE], *(name for bit, name in _OPEN_BITS if value & bit)]
    return "|".join([*names, *([hex(rest)] if rest else [])])


def _settable(bits: int) -> Callable[[int], str]:
    """Of a Twstat: all ones leave the field alone."""
    return lambda value: "-1" if value == (1 << bits) - 1 else str(value)


def _errno(value: int) -> str:
    return f"{value} ({_ERRNO_NAMES[value]})" if value in _ERRNO_NAMES else str(value)


def qid_text(qid: Sequence[int]) -> str:
    """A qid as ``(dir 0x1a2b.3)``: what it is, path, version; ``-1`` for that of a Twstat which leaves it alone."""
    kind, version, path = qid
    if (kind, version, path) == _UNTOUCHED_QID:
        return "-1"
    names = [name for bit, name in _QID_TYPES if kind & bit]
    return f"({'+'.join(names) or 'file'} {path:#x}.{version})"


def _choice(names: dict[int, str]) -> Callable[[int], str]:
    return lambda value: names.get(value, str(value))


def _bits(*names: tuple[int, str]) -> Callable[[int], str]:
    def text(value: int) -> str:
        shown = [name for bit, name in names if value & bit]
        rest = value & ~sum(bit for bit, _ in names)
        return "|".join([*shown, *([hex(rest)] if rest or not shown else [])])

    return text


_BY_FIELD: Final[dict[str, Callable[[Any], str]]] = {
    **dict.fromkeys(("fid", "newfid", "afid", "dfid", "olddirfid", "newdirfid", "dirfid"), _fid),
    **dict.fromkeys(("uid", "gid", "n_uname", "n_uid", "n_gid", "n_muid"), _user),
    **dict.fromkeys(("request_mask", "valid", "fsid", "rdev"), _hexadecimal),
    "oldtag": _tag,
    "mode": _mode,
    "ecode": _errno,
    "errno": _errno,
    "perm": _permissions,
    "status": _choice(_LOCK_STATUS),
}
"""How a field is printed wherever it occurs."""

_BY_MESSAGE: Final[dict[tuple[int, str], Callable[[Any], str]]] = {
    (c.TLOPEN, "flags"): flag_names,
    (c.TLCREATE, "flags"): flag_names,
    (c.TUNLINKAT, "flags"): _bits((c.UNLINKAT_REMOVEDIR, "AT_REMOVEDIR")),
    (c.TXATTRCREATE, "flags"): _bits((c.XATTR_CREATE, "XATTR_CREATE"), (c.XATTR_REPLACE, "XATTR_REPLACE")),
    (c.TLOCK, "flags"): _bits((c.LOCK_FLAGS_BLOCK, "BLOCK"), (c.LOCK_FLAGS_RECLAIM, "RECLAIM")),
    (c.TLOCK, "type"): _choice(_LOCK_TYPES),
    (c.TGETLOCK, "type"): _choice(_LOCK_TYPES),
    (c.RGETLOCK, "type"): _choice(_LOCK_TYPES),
    (c.RSTATFS, "type"): _hexadecimal,
    (c.TOPEN, "mode"): _open_mode,
    (c.TCREATE, "mode"): _open_mode,
    (c.RSTAT, "mode"): _permissions,
    (c.TWSTAT, "mode"): _permissions,
    (c.TWSTAT, "type"): _settable(16),
    **dict.fromkeys(((c.TWSTAT, name) for name in ("dev", "atime", "mtime")), _settable(32)),
    (c.TWSTAT, "length"): _settable(64),
}
"""How a field is printed in one message."""


def _value(message: Message, name: str, value: Any) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return quoted(bytes(value), MAX_DATA if name == "data" else MAX_TEXT)
    if isinstance(value, construct.Container):
        return qid_text((value.type, value.version, value.path))
    if isinstance(value, tuple | list):
        if len(value) == 3 and all(isinstance(part, int) for part in value):
            return qid_text(value)
        shown = [_value(message, name, part) for part in value[: c.MAX_WALK_NAMES]]
        if len(value) > len(shown):
            shown.append(f"...({len(value)})")
        return f"[{', '.join(shown)}]"
    return (_BY_MESSAGE.get((message.type, name)) or _BY_FIELD.get(name, _number))(value)


# --- messages ---


def _line(name: str, tag: int, parts: list[str]) -> str:
    return " ".join([name, f"tag={_tag(tag)}", *parts])


def format_message(number: int, tag: int, fields: Sequence[Any], *, vocabulary: Vocabulary = LINUX) -> str:
    """A decoded message in one line.

    Args:
        number: Its type.
        tag: Its tag.
        fields: As `pyvirtfs.p9.codec.decode` returns them; the payload of a Twrite, Rread or Rreaddir may stand at the
            end.
        vocabulary: The dialect.
    """
    message = vocabulary.by_type.get(number)
    if message is None:
        return _line(f"type{number}", tag, [repr(field) for field in fields])
    pairs = zip(message.fields, fields, strict=False)
    return _line(message.name, tag, [f"{name}={_value(message, name, value)}" for name, value in pairs])


def _walk_body(message: Message, body: bytes) -> Iterator[str]:
    """The fields that are there, one by one; then what is wrong, if anything is."""
    stream = io.BytesIO(body)
    count = 0
    for subcon in message.body.subcons:
        name = subcon.name
        if subcon.subcon is COUNTED_DATA:
            data = stream.read(count)
            if data:  # the payload may lie elsewhere
                yield f"data={_value(message, name, data)}"
            continue
        try:
            value = subcon.parse_stream(stream)
        except construct.ConstructError:
            yield f"malformed: {name} is cut off"
            return
        if name == "count":
            count = value
        yield f"{name}={_value(message, name, value)}"
    if rest := len(stream.read()):
        yield f"malformed: {rest} bytes too many"


def describe(data: bytes | bytearray | memoryview, vocabulary: Vocabulary = LINUX) -> str:
    """The bytes of a message in one line.

    Args:
        data: May be anything; malformed messages are printed as far as they go, and say so. The payload of a Twrite,
            Rread or Rreaddir may be absent.
        vocabulary: The dialect.
    """
    data = bytes(data)
    try:
        size, number, tag = struct.unpack_from("<IBH", data)
    except struct.error:
        return f"malformed: {len(data)} bytes {data.hex()}"
    message = vocabulary.by_type.get(number)
    end = min(size, len(data))
    if message is None:
        body = data[HEADER.sizeof() : end]
        parts = [f"body={quoted(body, MAX_DATA)}"]
        name = f"type{number}"
    else:
        parts = list(_walk_body(message, data[HEADER.sizeof() : end]))
        name = message.name
    apart = message is not None and message.has_payload
    if size < HEADER.sizeof() or (size > len(data) and not apart):
        parts.append(f"malformed: size says {size}, {len(data)} bytes are there")
    return _line(name, tag, parts)
