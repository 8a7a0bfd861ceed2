"""The codec of the device: messages from and to bytes, at 0.1 to 0.4 µs each.

Everything here is generated at import from the declarations of `pyvirtfs.p9.messages` by `pyvirtfs.p9.lowering`;
`SOURCE` is the text. Values are plain: integers, bytes for strings, a tuple ``(type, version, path)`` for a qid, tuples
of those for the names of a Twalk and the qids of an Rwalk.

Payloads never pass through: a Twrite, Rread or Rreaddir is coded up to and including its `count`, its data stays where
it is (intro(5): ``count[4] data[count]``).

`PLAIN`, `UNIX` and `LINUX` are the codecs of the three dialects; the functions and tables of this module are those of
`LINUX`, 9P2000.L.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pyvirtfs.errors import MessageError
from pyvirtfs.p9 import lowering, messages
from pyvirtfs.p9.messages import DECLARATIONS, DIRECTORY_ENTRY, MESSAGES, STAT, STAT_UNIX

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "DECODERS",
    "ENCODERS",
    "LINUX",
    "MESSAGES",
    "PLAIN",
    "REQUEST_DECODERS",
    "SOURCE",
    "UNIX",
    "Codec",
    "Decoded",
    "decode",
    "decoder",
    "encode",
    "encode_directory_entry",
    "encode_stat_plain",
    "encode_stat_unix",
    "encoder",
    "fixed_size",
    "header",
]

Decoded: TypeAlias = tuple[int, int, tuple[Any, ...]]
"""Type, tag, and the fields in the order of their declaration, without a payload."""

ENTRIES: Final = {"directory_entry": DIRECTORY_ENTRY, "stat_plain": STAT, "stat_unix": STAT_UNIX}
"""What payloads consist of."""

SOURCE: Final[str] = lowering.generate(DECLARATIONS, ENTRIES)
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


class Codec:
    """The codec of one dialect.

    Args:
        vocabulary: Its messages.

    Attributes:
        vocabulary: The same.
        decoders: What `decode` chooses from: a decoder for each of the 256 types; hot paths index it themselves.
        request_decoders: The same for a server: a reply, which has an odd type, is nothing that it knows.
        encoders: What `encoder` and `encode` choose from.
    """

    __slots__ = ("_fixed_sizes", "decoders", "encoders", "request_decoders", "vocabulary")

    def __init__(self, vocabulary: messages.Vocabulary) -> None:
        self.vocabulary = vocabulary
        known = vocabulary.by_type
        self.decoders: list[Callable[[bytes], Decoded]] = [
            _functions[f"decode_{known[number].identifier}"] if number in known else _decode_unknown
            for number in range(256)
        ]
        self.request_decoders = [
            decoder if number in known and not number & 1 else _decode_unknown
            for number, decoder in enumerate(self.decoders)
        ]
        self.encoders: dict[int, Callable[..., bytes]] = {
            number: _functions[f"encode_{message.identifier}"] for number, message in known.items()
        }
        self._fixed_sizes = {
            number: 7 + size
            for number, message in known.items()
            if (size := lowering.fixed_size(lowering.describe(message.body))) is not None
        }

    def decode(self, data: bytes) -> Decoded:
        """Decode one message.

        Args:
            data: The bytes of one message, requests and replies alike. Bytes behind its `size` are ignored: a
                descriptor chain may be longer than the message in it. Only the payload of a Twrite, Rread or Rreaddir
                may be absent, wholly or in part.

        Returns:
            Type, tag and fields. A type that the dialect does not have gives no fields, and nothing of its body is
            checked.

        Raises:
            MessageError: The message is malformed: shorter than a header, than its `size` or than its body's
                declaration, or longer than its declaration; for a payload, `count` is not what `size` leaves for it.
        """
        try:
            return self.decoders[data[4]](data)
        except IndexError:
            raise MessageError(f"a message of {len(data)} bytes has no header") from None

    def decoder(self, number: int) -> Callable[[bytes], Decoded]:
        """The function that decodes messages of one type: as `decode`, but it does not look at the type."""
        return self.decoders[number]

    def encode(self, number: int, tag: int, *fields: Any) -> bytes:
        """Encode one message.

        Args:
            number: The message type; `KeyError` if the dialect does not have it.
            tag: 16 bits.
            fields: In the order of their declaration, as `decode` returns them.

        Returns:
            The whole message; for a Twrite, Rread or Rreaddir all but its payload, which `size` includes already.

        Raises:
            struct.error: A number is outside of its field's range, or a string longer than 65535 bytes.
            TypeError, ValueError: A field is missing, or not of its type.
        """
        return self.encoders[number](tag, *fields)

    def encoder(self, number: int) -> Callable[..., bytes]:
        """The function that encodes messages of one type, called with the tag and the fields; see `encode`."""
        return self.encoders[number]

    def fixed_size(self, number: int) -> int | None:
        """The bytes of a whole message of that type, None if that depends on its fields."""
        return self._fixed_sizes.get(number)


PLAIN: Final = Codec(messages.PLAIN)
UNIX: Final = Codec(messages.UNIX)
LINUX: Final = Codec(messages.LINUX)

DECODERS: Final = LINUX.decoders
REQUEST_DECODERS: Final = LINUX.request_decoders
ENCODERS: Final = LINUX.encoders
decode: Final = LINUX.decode
decoder: Final = LINUX.decoder
encode: Final = LINUX.encode
encoder: Final = LINUX.encoder
fixed_size: Final = LINUX.fixed_size

encode_directory_entry: Final[Callable[[tuple[int, int, int], int, int, bytes], bytes]] = _functions[
    "encode_directory_entry"
]
"""One entry of an Rreaddir's data from its qid, offset, type and name; 24 bytes plus the name."""

encode_stat_plain: Final[Callable[..., bytes]] = _functions["encode_stat_plain"]
"""A stat from its fields, in the order of `messages.STAT`."""

encode_stat_unix: Final[Callable[..., bytes]] = _functions["encode_stat_unix"]
"""A stat of 9P2000.u from its fields, in the order of `messages.STAT_UNIX`."""
