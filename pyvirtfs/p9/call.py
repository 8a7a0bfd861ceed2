"""One request of a 9P2000.L client, and its reply."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

from pyvirtfs.errors import DeviceError, MessageError
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9 import frames
from pyvirtfs.p9.messages import BY_NAME, MESSAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")
Payload: TypeAlias = "bytes | bytearray | memoryview"

SMALL_REPLY: Final = 4096
"""The room that Linux gives to most replies."""
READLINK_REPLY: Final = 8192
"""The room that Linux gives to an Rreadlink: a path may have 4096 bytes."""
ZERO_COPY_COUNT: Final = 1024
"""Linux moves payloads longer than this apart from the message, straight from and to user pages."""
MAX_ERRNO: Final = 4095


def reply_size(name: str, fields: Mapping[str, Any], msize: int) -> int:
    """The bytes of room that Linux (6.1 and later) provides for the reply to a request; often much less than msize.

    Args:
        name: The request's message.
        fields: Its fields.
        msize: As negotiated.
    """
    if name == "Twalk":
        room = max(9 + c.QID_SIZE * len(fields["wnames"]), c.READ_HEADER_SIZE)
    elif name in {"Tread", "Treaddir"}:
        room = c.READ_HEADER_SIZE + int(fields["count"])
    elif name == "Treadlink":
        room = READLINK_REPLY
    else:
        room = SMALL_REPLY
    return min(room, msize)


class Call(Generic[T]):
    """One request, and later its reply."""

    def __init__(
        self,
        settle: Callable[[Call[Any], bool], None],
        name: str,
        tag: int,
        fields: dict[str, Any],
        msize: int,
        convert: Callable[[dict[str, Any]], T],
    ) -> None:
        self._settle = settle
        self._convert = convert
        self._value: T | None = None
        self._error: Exception | None = None
        self.name: Final = name
        """The request's message, for example ``Tgetattr``."""
        self.tag: Final = tag
        self.payload: Final[Payload] = fields.get("data", b"")
        """What follows `request` on the wire: the data of a Twrite, empty for all others."""
        self.fields: Final = {key: value for key, value in fields.items() if key != "data"}
        """The request's fields, but for `data`."""
        self.request: Final = frames.build(name, tag, self.fields, payload=False)
        """The message, without the data of a Twrite."""
        self.reply_size: Final = reply_size(name, fields, msize)
        """Bytes of room for the reply."""
        self.done = False
        """Whether it was answered, or ended without an answer."""
        self.cancelled = False
        """Whether it was ended by `cancel`, or by an Rflush or Rversion that came first."""

    @property
    def fid(self) -> int:
        """The fid that the request makes, if it makes one, or else the one that it is about; NOFID if neither."""
        keys = ("newfid", "fid", "dfid", "dirfid", "olddirfid")
        return next((int(self.fields[key]) for key in keys if key in self.fields), c.NOFID)

    @property
    def zero_copy(self) -> bool:
        """Whether Linux would move the payload apart from the message (Tread, Treaddir, Twrite of over 1024 bytes)."""
        return self.name in {"Tread", "Treaddir", "Twrite"} and int(self.fields["count"]) > ZERO_COPY_COUNT

    def result(self) -> T:
        """What the reply says.

        Raises:
            OSError: The server answered with this error; EINTR if the request was flushed and never answered.
            DeviceError: The reply was wrong.
            RuntimeError: There is no reply yet.
        """
        if not self.done:
            raise RuntimeError(f"{self.name} tag {self.tag} has no reply yet")
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # set together with done

    def feed(self, reply: bytes, payload: Payload | None = None) -> None:
        """Take the reply.

        Args:
            reply: As many bytes as the device says that it wrote; none: the request ended without an answer.
            payload: What follows the header of an Rread or Rreaddir, if the transport keeps that apart; `reply` then
                holds the first 11 bytes only. It becomes the result of a Tread as it is.

        Raises:
            DeviceError: It is no reply to this request, malformed, or larger than its room. `result` raises it again.
            RuntimeError: It was answered already.
        """
        if self.cancelled:
            if reply:
                raise DeviceError(f"{self.name} is answered after it was over")
            return
        if self.done:
            raise RuntimeError(f"{self.name} tag {self.tag} was answered already")
        try:
            if reply:
                self._value = self._convert(self._parse(reply, payload))
            else:
                self._error = InterruptedError(errno.EINTR, f"{self.name} was flushed")
        except (OSError, DeviceError) as error:
            self._error = error
        except MessageError as error:
            self._error = DeviceError(f"reply to {self.name}: {error}")
        self.done = True
        try:
            self._settle(self, bool(reply))
        except DeviceError as error:
            self._error = error
        if isinstance(self._error, DeviceError):
            raise self._error

    def cancel(self) -> None:
        """End it without an answer, because the session or the transport ended; `result` then raises EINTR."""
        if not self.done:
            self.done = self.cancelled = True
            self._error = InterruptedError(errno.EINTR, f"{self.name} was flushed")
            self._settle(self, False)

    @property
    def failed(self) -> bool:
        """Whether it is done and `result` will raise."""
        return self._error is not None

    def _parse(self, reply: bytes, payload: Payload | None) -> dict[str, Any]:
        """Check the reply; returns its fields."""
        nbytes = len(reply) + (len(payload) if payload is not None else 0)
        if nbytes < c.HEADER_SIZE or nbytes > self.reply_size:
            raise DeviceError(f"{nbytes} bytes answer {self.name}, which has room for {self.reply_size}")
        size, number, tag = frames.parse_header(reply)
        if size != nbytes:
            raise DeviceError(f"the reply to {self.name} says that it has {size} bytes, the device wrote {nbytes}")
        if tag != self.tag:
            raise DeviceError(f"tag {tag} answers {self.name} of tag {self.tag}")
        if number not in {BY_NAME[self.name].type + 1, c.RLERROR}:
            raise DeviceError(f"message type {number} answers {self.name}")
        if payload is not None and not MESSAGES[number].has_payload:  # an error in the room for an Rread
            reply, payload = reply + bytes(payload), None
        fields = frames.parse(reply, payload).fields
        if number == c.RLERROR:
            code = fields["ecode"]
            if not 1 <= code <= MAX_ERRNO:
                raise DeviceError(f"{code} answers {self.name}, which is no errno")
            raise OSError(code, os.strerror(code))
        if fields.get("count", 0) > self.fields.get("count", 0):
            raise DeviceError(f"{self.name} of {self.fields['count']} bytes is answered with {fields['count']}")
        if "wqids" in fields and not min(len(self.fields["wnames"]), 1) <= len(fields["wqids"]) <= len(
            self.fields["wnames"]
        ):
            raise DeviceError(f"a walk of {len(self.fields['wnames'])} names got {len(fields['wqids'])} qids")
        return fields
