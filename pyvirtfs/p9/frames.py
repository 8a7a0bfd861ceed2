"""Whole messages by way of the construct declarations themselves: slow (tens of µs), plain, and the reference.

The simulated guest speaks through these functions, so that the device's generated codec is never tested against itself.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import construct

from pyvirtfs.errors import MessageError
from pyvirtfs.p9.messages import DIRECTORY_ENTRY, HEADER, LINUX, Message, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping


class Header(NamedTuple):
    """What every message begins with."""

    size: int
    type: int
    tag: int


class Frame(NamedTuple):
    """A parsed message."""

    message: Message
    """Its declaration."""
    tag: int
    fields: dict[str, Any]
    """By name, in wire order: int, bytes, a tuple ``(type, version, path)`` for a qid, tuples of those for arrays."""


def _plain(value: Any) -> Any:
    """What construct parsed, without its container types."""
    if isinstance(value, construct.Container):
        return tuple(_plain(part) for name, part in value.items() if name != "_io")
    if isinstance(value, construct.ListContainer):
        return tuple(_plain(part) for part in value)
    return value


def _prepared(value: Any) -> Any:
    """The opposite of `_plain`: a tuple of numbers is a qid."""
    if isinstance(value, tuple | list) and len(value) == 3 and all(isinstance(part, int) for part in value):
        return dict(zip(("type", "version", "path"), value, strict=True))
    if isinstance(value, tuple | list):
        return [_prepared(part) for part in value]
    return value


def parse_header(data: bytes) -> Header:
    """The first 7 bytes of a message, unchecked.

    Raises:
        MessageError: There are fewer.
    """
    try:
        header = HEADER.parse(data)
    except construct.ConstructError:
        raise MessageError(f"a message of {len(data)} bytes has no header") from None
    return Header(header.size, header.type, header.tag)


def parse(
    data: bytes, payload: bytes | bytearray | memoryview | None = None, *, vocabulary: Vocabulary = LINUX
) -> Frame:
    """Parse one whole message.

    Args:
        data: Bytes behind the message's `size` are ignored.
        payload: The data of a Twrite, Rread or Rreaddir if that lies elsewhere; `data` then ends before it. It is not
            copied.
        vocabulary: The dialect.

    Raises:
        MessageError: It is no message of the dialect, or a malformed one.
    """
    header = parse_header(data)
    message = vocabulary.by_type.get(header.type)
    if message is None:
        raise MessageError(f"{vocabulary.version.decode()} has no message of type {header.type}")
    apart = 0 if payload is None else len(payload)
    end = header.size - apart
    if not HEADER.sizeof() <= end <= len(data):
        raise MessageError(f"{message.name}: its size says {header.size}, {len(data) + apart} bytes are there")
    parts = message.body.subcons if payload is None else message.body.subcons[:-1]
    body = io.BytesIO(data[HEADER.sizeof() : end])
    try:
        parsed = construct.Struct(*parts).parse_stream(body)
    except construct.ConstructError as error:
        raise MessageError(f"{message.name} is too short: {str(error).splitlines()[-1]}") from None
    if rest := len(body.read()):
        raise MessageError(f"{message.name}: {rest} bytes behind its last field")
    fields = {part.name: _plain(parsed[part.name]) for part in parts}
    if payload is not None:
        if not message.has_payload or fields["count"] != apart:
            raise MessageError(f"{message.name}: {apart} bytes of payload are not what it declares")
        fields["data"] = payload
    return Frame(message, header.tag, fields)


def build(
    name: str, tag: int, fields: Mapping[str, Any], *, payload: bool = True, vocabulary: Vocabulary = LINUX
) -> bytes:
    """Build one message.

    Args:
        name: As it is declared, for example ``Twalk``; KeyError if it is not.
        tag: 16 bits.
        fields: Exactly its fields, as `Frame.fields` has them.
        payload: False: leave the data of a Twrite, Rread or Rreaddir away, which then need not be among the fields;
            `size` and `count` still include it.
        vocabulary: The dialect.

    Raises:
        TypeError: A field is missing, or there is no such field.
        ValueError: A field's value does not fit.
    """
    message = vocabulary.by_name[name]
    parts = message.body.subcons
    expected, extra = message.fields, 0
    if message.has_payload and not payload:
        parts, expected, extra = parts[:-1], expected[:-1], int(fields["count"])
    if set(fields) != set(expected):
        raise TypeError(f"{name} has the fields {', '.join(expected)}; got {', '.join(fields)}")
    values = {field: _prepared(value) for field, value in fields.items()}
    try:
        body: bytes = construct.Struct(*parts).build(values)
        header: bytes = HEADER.build(
            {"size": HEADER.sizeof() + len(body) + extra, "type": message.type, "tag": tag},
        )
    except construct.ConstructError as error:
        raise ValueError(f"{name}: {str(error).splitlines()[-1]}") from error
    return header + body


def _formats(declaration: Any) -> str:
    """The `struct` formats of the integers that a declaration of fixed size consists of, without byte orders."""
    if isinstance(declaration, construct.Renamed):
        return _formats(declaration.subcon)
    if isinstance(declaration, construct.Struct):
        return "".join(map(_formats, declaration.subcons))
    if not isinstance(declaration, construct.FormatField) or declaration.fmtstr[0] != "<":
        raise TypeError(f"{declaration!r} is no little-endian integer")
    return str(declaration.fmtstr[1:])


# All of an entry before its name, and the name's length. A folder has thousands of entries, at 85 µs each if construct
# parses them; its own compiler makes 16 µs of that, but no longer notices that a name is cut off.
*_FIXED, _NAME = DIRECTORY_ENTRY.subcons
_ENTRY = struct.Struct("<" + "".join(map(_formats, [*_FIXED, _NAME.subcon.lengthfield])))


def parse_directory(data: bytes) -> list[tuple[tuple[int, int, int], int, int, bytes]]:
    """Parse the data of an Rreaddir to (qid, offset, type, name) of each entry.

    Raises:
        MessageError: An entry is cut off; servers send whole entries only.
    """
    unpack_from, fixed, total = _ENTRY.unpack_from, _ENTRY.size, len(data)
    entries = []
    at = 0
    while at < total:
        begin = at + fixed
        if begin > total:
            raise MessageError("an Rreaddir ends within an entry")
        kind, version, path, offset, entry_type, nbytes = unpack_from(data, at)
        at = begin + nbytes
        if at > total:
            raise MessageError("an Rreaddir ends within the name of an entry")
        entries.append(((kind, version, path), offset, entry_type, data[begin:at]))
    return entries
