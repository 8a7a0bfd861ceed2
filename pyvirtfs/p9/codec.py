"""The codec of the device: 9P2000.L messages from and to bytes, at 0.1 to 0.4 µs each.

Everything here is generated at import from the declarations of `pyvirtfs.p9.messages` by `pyvirtfs.p9.lowering`;
`SOURCE` is the text. Values are plain: integers, bytes for strings, a tuple ``(type, version, path)`` for a qid, tuples
of those for the names of a Twalk and the qids of an Rwalk.

Payloads never pass through: a Twrite, Rread or Rreaddir is coded up to and including its `count`, its data stays where
it is (intro(5): ``count[4] data[count]``).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pyvirtfs.errors import MessageError
from pyvirtfs.p9 import lowering
from pyvirtfs.p9.messages import DECLARATIONS, DIRECTORY_ENTRY, MESSAGES

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "DECODERS",
    "ENCODERS",
    "MESSAGES",
    "REQUEST_DECODERS",
    "SOURCE",
    "Decoded",
    "decode",
    "decoder",
    "encode",
    "encode_directory_entry",
    "encoder",
    "fixed_size",
    "header",
]

Decoded: TypeAlias = tuple[int, int, tuple[Any, ...]]
"""Type, tag, and the fields in the order of their declaration, without a payload."""

SOURCE: Final[str] = lowering.generate(DECLARATIONS, {"directory_entry": DIRECTORY_ENTRY})
"""The generated Python source of all decoders and encoders."""

_functions = lowering.load(SOURCE, "<lowered 9P codec>")
_unpack_header = struct.Struct("<IBH").unpack_from


def header(data: bytes) -> tuple[int, int, int]:
    """The size, type and tag that a message begins with, unchecked.

    Raises:
        MessageError: There are fewer than 7 bytes.
    """
    try:
        return _unpack_header(data)
    except struct.error:
        raise MessageError(f"a message of {len(data)} bytes has no header") from None


def _decode_unknown(data: bytes) -> Decoded:
    size, number, tag = header(data)
    if not 7 <= size <= len(data):
        raise MessageError(f"malformed message of type {number}: its size says {size}, {len(data)} bytes are there")
    return number, tag, ()


DECODERS: Final[list[Callable[[bytes], Decoded]]] = [
    _functions[f"decode_{MESSAGES[number].name}"] if number in MESSAGES else _decode_unknown for number in range(256)
]
"""What `decode` chooses from: a decoder for each of the 256 types; hot paths index it with the type themselves."""

REQUEST_DECODERS: Final = [
    decoder if number in MESSAGES and not number & 1 else _decode_unknown for number, decoder in enumerate(DECODERS)
]
"""The same for a server: a reply, which has an odd type, is nothing that it knows."""

ENCODERS: Final[dict[int, Callable[..., bytes]]] = {
    number: _functions[f"encode_{message.name}"] for number, message in MESSAGES.items()
}
"""What `encoder` and `encode` choose from."""

encode_directory_entry: Final[Callable[[tuple[int, int, int], int, int, bytes], bytes]] = _functions[
    "encode_directory_entry"
]
"""One entry of an Rreaddir's data from its qid, offset, type and name; 24 bytes plus the name."""

_FIXED_SIZES: Final[dict[int, int]] = {
    number: 7 + size
    for number, message in MESSAGES.items()
    if (size := lowering.fixed_size(lowering.describe(message.body))) is not None
}


def decode(data: bytes) -> Decoded:
    """Decode one message.

    Args:
        data: The bytes of one message, requests and replies alike. Bytes behind its `size` are ignored: a descriptor
            chain may be longer than the message in it. Only the payload of a Twrite, Rread or Rreaddir may be absent,
            wholly or in part.

    Returns:
        Type, tag and fields. A type that 9P2000.L does not have gives no fields, and nothing of its body is checked.

    Raises:
        MessageError: The message is malformed: shorter than a header, than its `size` or than its body's declaration,
            or longer than its declaration; for a payload, `count` is not what `size` leaves for it.
    """
    try:
        return DECODERS[data[4]](data)
    except IndexError:
        raise MessageError(f"a message of {len(data)} bytes has no header") from None


def decoder(number: int) -> Callable[[bytes], Decoded]:
    """The function that decodes messages of one type: as `decode`, but it does not look at the type."""
    return DECODERS[number]


def encode(number: int, tag: int, *fields: Any) -> bytes:
    """Encode one message.

    Args:
        number: The message type; `KeyError` if 9P2000.L does not have it.
        tag: 16 bits.
        fields: In the order of their declaration, as `decode` returns them.

    Returns:
        The whole message; for a Twrite, Rread or Rreaddir all but its payload, which `size` includes already.

    Raises:
        struct.error: A number is outside of its field's range, or a string longer than 65535 bytes.
        TypeError, ValueError: A field is missing, or not of its type.
    """
    return ENCODERS[number](tag, *fields)


def encoder(number: int) -> Callable[..., bytes]:
    """The function that encodes messages of one type, called with the tag and the fields; see `encode`."""
    return ENCODERS[number]


def fixed_size(number: int) -> int | None:
    """The bytes of a whole message of that type, None if that depends on its fields."""
    return _FIXED_SIZES.get(number)
