"""How each dialect says that a request has failed: a number, a text, or both.

9P2000.L answers with an Rlerror, which is an errno (diod's protocol.md). 9P2000 answers with an Rerror, which is a text
(error(5)); 9P2000.u adds the errno to it. No client takes the other's form.

Linux's client of plain 9P2000 goes from texts back to numbers by a table (net/9p/error.c), and takes a text that it
does not know for a fault of the server, with a line in its log for each. So the texts are those of that table. They do
not depend on this process's locale, as strerror(3) does.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from pyvirtfs.p9 import codec
from pyvirtfs.p9 import constants as c

TEXT_MAX: Final = 127
"""The longest text that is sent, in bytes; Linux's client has room for one more (ERRMAX)."""

LINUX_NBYTES: Final = 11
"""The size of an Rlerror."""
UNIX_NBYTES: Final = 13
"""The size of an Rerror of 9P2000.u without a text."""
PLAIN_NBYTES: Final = 9
"""The size of an Rerror of 9P2000 without a text."""

TEXTS: Final[dict[int, bytes]] = {
    errno.EPERM: b"Operation not permitted",
    errno.ENOENT: b"No such file or directory",
    errno.EINTR: b"Interrupted system call",
    errno.EIO: b"Input/output error",
    errno.ENXIO: b"No such device or address",
    errno.E2BIG: b"Argument list too long",
    errno.EBADF: b"Bad file descriptor",
    errno.EAGAIN: b"Resource temporarily unavailable",
    errno.ENOMEM: b"Cannot allocate memory",
    errno.EACCES: b"Permission denied",
    errno.EFAULT: b"Bad address",
    errno.ENOTBLK: b"Block device required",
    errno.EBUSY: b"Device or resource busy",
    errno.EEXIST: b"File exists",
    errno.EXDEV: b"Invalid cross-device link",
    errno.ENODEV: b"No such device",
    errno.ENOTDIR: b"Not a directory",
    errno.EISDIR: b"Is a directory",
    errno.EINVAL: b"Invalid argument",
    errno.ENFILE: b"Too many open files in system",
    errno.EMFILE: b"Too many open files",
    errno.ETXTBSY: b"Text file busy",
    errno.EFBIG: b"File too large",
    errno.ENOSPC: b"No space left on device",
    errno.ESPIPE: b"Illegal seek",
    errno.EROFS: b"Read-only file system",
    errno.EMLINK: b"Too many links",
    errno.EPIPE: b"Broken pipe",
    errno.EDOM: b"Numerical argument out of domain",
    errno.ERANGE: b"Numerical result out of range",
    errno.EDEADLK: b"Resource deadlock avoided",
    errno.ENAMETOOLONG: b"File name too long",
    errno.ENOLCK: b"No locks available",
    errno.ENOSYS: b"Function not implemented",
    errno.ENOTEMPTY: b"Directory not empty",
    errno.ELOOP: b"Too many levels of symbolic links",
    errno.ENODATA: b"No data available",
    errno.EREMOTE: b"Object is remote",
    errno.ENOLINK: b"Link has been severed",
    errno.ECOMM: b"Communication error on send",
    errno.EPROTO: b"Protocol error",
    errno.EBADMSG: b"Bad message",
    errno.EMSGSIZE: b"Message too long",
    errno.EOPNOTSUPP: b"Operation not supported",
    errno.ENETDOWN: b"Network is down",
    errno.ENETUNREACH: b"Network is unreachable",
    errno.ECONNABORTED: b"Software caused connection abort",
    errno.ECONNRESET: b"Connection reset by peer",
    errno.ENOBUFS: b"No buffer space available",
    errno.ENOTCONN: b"Transport endpoint is not connected",
    errno.ESHUTDOWN: b"Cannot send after transport endpoint shutdown",
    errno.ETIMEDOUT: b"Connection timed out",
    errno.ECONNREFUSED: b"Connection refused",
    errno.EHOSTDOWN: b"Host is down",
    errno.EHOSTUNREACH: b"No route to host",
    errno.EREMOTEIO: b"Remote I/O error",
    errno.EDQUOT: b"Disk quota exceeded",
    # Not in that table: what comes next to it.
    errno.ESTALE: b"file has been removed",
    errno.EOVERFLOW: b"Numerical result out of range",
}
"""What texts there are for numbers."""

_rlerror: Final = codec.LINUX.encoder(c.RLERROR)
_rerror_unix: Final = codec.UNIX.encoder(c.RERROR)
_rerror_plain: Final = codec.PLAIN.encoder(c.RERROR)


def text_of(code: int) -> bytes:
    """The text for an errno: ASCII, at most `TEXT_MAX` bytes."""
    text = TEXTS.get(code)
    if text is None:
        text = os.strerror(code).encode("ascii", "replace")[:TEXT_MAX]
    return text


def linux_error(tag: int, code: int, _room: int) -> bytes:
    """The Rlerror of 9P2000.L.

    Args:
        tag: The request's.
        code: The errno.
        _room: Bytes that there are for it, `LINUX_NBYTES` at least.
    """
    return _rlerror(tag, code)


def unix_error(tag: int, code: int, room: int) -> bytes:
    """The Rerror of 9P2000.u; its text is cut off where there is no room for it (at least `UNIX_NBYTES`)."""
    return _rerror_unix(tag, text_of(code)[: max(room - UNIX_NBYTES, 0)], code)


def plain_error(tag: int, code: int, room: int) -> bytes:
    """The Rerror of 9P2000; its text is cut off where there is no room for it (at least `PLAIN_NBYTES`)."""
    return _rerror_plain(tag, text_of(code)[: max(room - PLAIN_NBYTES, 0)])
